//! The agents, as this gateway last heard of them. One task owns the view; everyone else reads it.
//!
//! Heartbeats come twice: as signals, at once, and as last values of the agents' table, which tells a gateway that
//! starts late what is there. Liveness goes by when *this* process heard a beat, never by the agent's clock.

use std::{
    collections::{BTreeMap, HashMap},
    sync::Arc,
    time::Duration,
};

use flux_broker::{Broker, Change, Table};
use flux_protocol::{
    AgentId, FunctionName, FunctionSpec, PoolName, Timestamp,
    agent::{AgentStatus, Heartbeat},
    limits,
    subject::{self, QueueName},
    time::now,
};
use flux_runtime::Tasks;
use futures::StreamExt as _;
use tokio::{
    sync::watch,
    time::{Instant, MissedTickBehavior},
};

use super::{
    AgentView,
    admission::{AgentRoom, Summary, can_run, summarize},
    homes::Homes,
};

/// An offline agent is listed this long, so that a person can see what went.
const LISTED_OFFLINE: Duration = Duration::from_secs(300);
const SWEEP_EVERY: Duration = Duration::from_millis(500);

#[derive(Debug, Clone)]
struct Known {
    heartbeat: Arc<Heartbeat>,
    heard: Instant,
    last_heartbeat: Timestamp,
    all_invokes: u32,
    offline: bool,
    /// So long silent that nothing of ours can still run there.
    forgotten: bool,
}

impl Known {
    fn status(&self) -> AgentStatus {
        if self.offline { AgentStatus::Offline } else { self.heartbeat.status }
    }
}

#[derive(Debug, Default)]
struct View {
    agents: BTreeMap<AgentId, Known>,
    generation: u64,
    /// Where agents are online: kept, since each message that is stored may ask for it.
    pools: HashMap<PoolName, Pool>,
    /// The agents' table was read once: from then on "no agents" means it.
    synced: bool,
}

#[derive(Debug, Default)]
struct Pool {
    homes: Homes,
    /// Executions that the largest of its agents runs at once.
    most_tasks: u64,
}

/// A handle on the view. Clones share it.
#[derive(Debug, Clone)]
pub(super) struct Fleet {
    view: watch::Receiver<View>,
    started: Instant,
}

impl Fleet {
    pub(super) fn start(broker: Arc<dyn Broker>, tasks: &Tasks) -> Self {
        let (sender, view) = watch::channel(View::default());
        let drained = tasks.shutdown().kill_token();
        tasks.spawn_essential("fleet", async move {
            tokio::select! {
                () = follow(broker, sender) => {}
                () = drained.cancelled() => {}
            }
        });
        Self { view, started: Instant::now() }
    }

    /// Waits until the table was read, at most `most`.
    pub(super) async fn settle(&self, most: Duration) {
        let mut view = self.view.clone();
        let _ = tokio::time::timeout(most, view.wait_for(|view| view.synced)).await;
    }

    /// Whether agents that are there may not have been heard of yet.
    pub(super) fn is_young(&self) -> bool {
        self.started.elapsed() < 2 * limits::HEARTBEAT_EVERY
    }

    pub(super) fn generation(&self) -> u64 {
        self.view.borrow().generation
    }

    /// The fleet as one function sees it, and the generation of the view that it was read from.
    pub(super) fn summary(&self, spec: &FunctionSpec) -> (u64, Summary) {
        let view = self.view.borrow();
        let rooms = view.agents.values().map(|known| {
            let beat = &known.heartbeat;
            let running = beat.running.iter().find(|running| running.function == spec.name);
            AgentRoom {
                pool: &beat.pool,
                status: known.status(),
                capabilities: &beat.capabilities,
                total: beat.total,
                free: beat.free,
                calls: running.map_or(0, |running| running.calls),
                invokes: running.map_or(0, |running| running.invokes),
                all_invokes: known.all_invokes,
                may_hold: !known.forgotten,
            }
        });
        (view.generation, summarize(spec, rooms))
    }

    pub(super) fn list(&self) -> Vec<AgentView> {
        self.view
            .borrow()
            .agents
            .values()
            .map(|known| AgentView {
                heartbeat: (*known.heartbeat).clone(),
                status: known.status(),
                last_heartbeat: known.last_heartbeat,
            })
            .collect()
    }

    /// Executions that the largest agent of a pool runs at once.
    pub(super) fn most_tasks(&self, pool: &PoolName) -> u64 {
        self.view.borrow().pools.get(pool).map_or(0, |pool| pool.most_tasks)
    }

    /// The agent to be told that work waits at a queue: the one with room that comes at `rank` (from 0) among those it
    /// belongs to, or the last one before. Where none has room as far as is known, one that works: it comes when it can.
    pub(super) fn home(&self, queue: &QueueName, rank: usize, spec: Option<&FunctionSpec>) -> Option<AgentId> {
        let view = self.view.borrow();
        let pool = view.pools.get(&queue.pool)?;
        let mut busy = None;
        let with_room = pool.homes.of_queue(queue).filter(|id| {
            let Some(known) = view.agents.get(*id).filter(|known| !known.offline) else { return false };
            let beat = &known.heartbeat;
            if !spec.is_none_or(|spec| can_run(spec, &beat.capabilities, beat.total)) {
                return false;
            }
            let has_room = beat.status == AgentStatus::Online && beat.free.tasks > 0;
            if !has_room && beat.status == AgentStatus::Busy {
                busy.get_or_insert(*id);
            }
            has_room
        });
        with_room.take(rank + 1).last().or(busy).cloned()
    }

    /// Agents that were heard of lately.
    pub(super) fn online(&self) -> Vec<AgentId> {
        self.view.borrow().agents.iter().filter(|(_, known)| !known.offline).map(|(id, _)| id.clone()).collect()
    }

    pub(super) fn is_online(&self, agent: &AgentId) -> bool {
        self.view.borrow().agents.get(agent).is_some_and(|known| !known.offline)
    }

    /// Whether agents may live that are not online as far as this gateway heard: fallen silent lately, or not heard of yet.
    pub(super) fn may_have_silent(&self) -> bool {
        let view = self.view.borrow();
        let silent = view.agents.values().any(|known| known.offline && !known.forgotten);
        silent || self.is_young()
    }

    /// Whether an agent runs the function now, as far as heartbeats say.
    pub(super) fn runs(&self, function: &FunctionName) -> bool {
        self.view.borrow().agents.values().any(|known| {
            !known.offline
                && known
                    .heartbeat
                    .running
                    .iter()
                    .any(|running| running.function == *function && (running.calls > 0 || running.invokes > 0))
        })
    }
}

async fn follow(broker: Arc<dyn Broker>, view: watch::Sender<View>) {
    let mut backoff = Duration::from_millis(100);
    loop {
        let started = Instant::now();
        if let Err(error) = follow_once(&*broker, &view).await {
            tracing::warn!(
                error = &error as &dyn std::error::Error,
                "cannot follow the agents' heartbeats; trying again"
            );
        }
        if started.elapsed() > Duration::from_secs(10) {
            backoff = Duration::from_millis(100);
        }
        tokio::time::sleep(backoff).await;
        backoff = (backoff * 2).min(Duration::from_secs(2));
    }
}

async fn follow_once(broker: &dyn Broker, view: &watch::Sender<View>) -> Result<(), flux_broker::BrokerError> {
    let mut beats = broker.listen(subject::heartbeats()).await?;
    let mut table = broker.watch(Table::Agents, false).await?;
    let mut sweep = tokio::time::interval(SWEEP_EVERY);
    sweep.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            beat = beats.next() => match beat {
                Some(signal) => match serde_json::from_slice::<Heartbeat>(&signal.body) {
                    // The broker holds an agent to its own subjects and so to its pools, not to what it writes into the
                    // body.
                    Ok(beat) if signal.subject == subject::heartbeat(&beat.pool, &beat.agent_id) => {
                        view.send_modify(|view| view.heard(beat, Duration::ZERO));
                    }
                    _ => metrics::counter!("flux_signals_dropped_total", "kind" => "heartbeat").increment(1),
                },
                None => return Ok(()),
            },
            change = table.next() => match change {
                Some(Ok(Change::Put(entry))) => match serde_json::from_slice::<Heartbeat>(&entry.value) {
                    Ok(beat) if entry.key == subject::agents_key(&beat.pool, &beat.agent_id) => {
                        let age = now().since(entry.at).min(limits::AGENT_FORGOTTEN_AFTER);
                        view.send_modify(|view| view.heard(beat, age));
                    }
                    _ => metrics::counter!("flux_signals_dropped_total", "kind" => "heartbeat").increment(1),
                },
                Some(Ok(Change::Deleted { key, .. })) => view.send_modify(|view| view.left(&key)),
                Some(Ok(Change::Synced)) => view.send_modify(|view| view.synced = true),
                Some(Err(error)) => return Err(error),
                None => return Ok(()),
            },
            _ = sweep.tick() => {
                view.send_if_modified(View::sweep);
            }
        }
    }
}

impl View {
    fn heard(&mut self, beat: Heartbeat, age: Duration) {
        let at = Instant::now();
        let heard = at.checked_sub(age).unwrap_or(at);
        if let Some(known) = self.agents.get(&beat.agent_id) {
            // The table says a little later what the signal said; a beat from before is no news.
            if known.heartbeat.started_at == beat.started_at && known.heartbeat.at >= beat.at {
                return;
            }
        }
        let all_invokes = beat.running.iter().map(|running| running.invokes).sum();
        let known = Known {
            last_heartbeat: beat.at,
            all_invokes,
            offline: at.duration_since(heard) >= limits::AGENT_OFFLINE_AFTER,
            forgotten: at.duration_since(heard) >= limits::AGENT_FORGOTTEN_AFTER,
            heard,
            heartbeat: Arc::new(beat),
        };
        let id = known.heartbeat.agent_id.clone();
        let place = |known: &Known| (known.heartbeat.pool.clone(), known.heartbeat.total.tasks, known.offline);
        let now = place(&known);
        let before = self.agents.insert(id.clone(), known);
        if before.is_none() {
            tracing::info!(agent_id = %id, "an agent joined");
        }
        self.generation += 1;
        if before.is_none_or(|before| place(&before) != now) {
            self.lay_out();
        }
    }

    /// Its entry went. An agent that drained and left took it away; otherwise it expired, or the queue lost its
    /// storage and the agent is there as before: silence tells, not this.
    fn left(&mut self, key: &str) {
        let Some(Ok(id)) = key.split_once('.').map(|(_, agent)| AgentId::parse(agent)) else { return };
        let drained = self.agents.get(&id).is_some_and(|known| {
            known.heartbeat.status == AgentStatus::Draining && subject::agents_key(&known.heartbeat.pool, &id) == key
        });
        if drained {
            self.agents.remove(&id);
            self.generation += 1;
            self.lay_out();
            tracing::info!(agent_id = %id, "an agent left");
        }
    }

    fn sweep(&mut self) -> bool {
        let before = self.agents.len();
        self.agents.retain(|_, known| known.heard.elapsed() < LISTED_OFFLINE);
        let mut changed = self.agents.len() != before;
        for (id, known) in &mut self.agents {
            if !known.offline && known.heard.elapsed() >= limits::AGENT_OFFLINE_AFTER {
                known.offline = true;
                changed = true;
                tracing::warn!(agent_id = %id, "an agent went silent");
            }
            if !known.forgotten && known.heard.elapsed() >= limits::AGENT_FORGOTTEN_AFTER {
                known.forgotten = true;
                changed = true;
            }
        }
        if changed {
            self.generation += 1;
            self.lay_out();
        }
        changed
    }

    /// Who is there has changed, or how much one of them runs.
    fn lay_out(&mut self) {
        let mut pools: HashMap<&PoolName, Vec<(&AgentId, u32)>> = HashMap::new();
        for (id, known) in self.agents.iter().filter(|(_, known)| !known.offline) {
            pools.entry(&known.heartbeat.pool).or_default().push((id, known.heartbeat.total.tasks));
        }
        let laid_out = pools.into_iter().map(|(pool, agents)| {
            let most_tasks = agents.iter().map(|(_, tasks)| u64::from(*tasks)).max().unwrap_or(0);
            (pool.clone(), Pool { homes: Homes::of(agents), most_tasks })
        });
        self.pools = laid_out.collect();
    }
}
