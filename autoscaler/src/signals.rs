//! What is seen of queue and agents. Heartbeats are pushed; the queue is asked for the functions that have messages, in one
//! request a lane, and for how far those of which some wait were worked off, in one each: nothing costs more for functions that
//! have none, nor for how much waits.

use std::{collections::HashMap, sync::Arc, time::Duration};

use async_trait::async_trait;
use flux_bootstrap::Heartbeats;
use flux_broker::{Broker, BrokerError, Progress};
use flux_plan::{Load, Wait};
use flux_protocol::{
    AgentId, FunctionName, Lane, PoolName, Timestamp,
    agent::{AgentStatus, Budget, Heartbeat},
    limits,
    subject::{self, QueueName},
};
use flux_runtime::Tasks;
use futures::StreamExt as _;
use parking_lot::Mutex;
use tokio::{sync::Notify, time::Instant};

use crate::{keeper::Seen, waits::Waits};

/// A look goes on without a lane's ages.
const AGES_WITHIN: Duration = Duration::from_secs(3);
const LISTEN_AGAIN_AFTER: Duration = Duration::from_secs(1);

/// Agents as they were heard of last.
#[derive(Clone, Default)]
pub struct Heard {
    agents: Arc<Mutex<HashMap<AgentId, (Heartbeat, Instant)>>>,
    /// Somebody was heard of.
    again: Arc<Notify>,
}

impl Heard {
    fn hear(&self, beat: Heartbeat) {
        self.agents.lock().insert(beat.agent_id.clone(), (beat, Instant::now()));
        self.again.notify_waiters();
    }
}

#[async_trait]
impl Heartbeats for Heard {
    async fn first_of(&self, agent: &AgentId) {
        let began = Instant::now();
        loop {
            let mut again = std::pin::pin!(self.again.notified());
            // From here on none is missed.
            again.as_mut().enable();
            if self.agents.lock().get(agent).is_some_and(|(_, when)| *when > began) {
                return;
            }
            again.await;
        }
    }
}

pub struct Signals {
    broker: Arc<dyn Broker>,
    pool: PoolName,
    heard: Heard,
    waits: Mutex<Waits>,
    silent_timeout: Duration,
}

impl Signals {
    pub fn start(broker: Arc<dyn Broker>, pool: PoolName, silent_timeout: Duration, tasks: &Tasks) -> Self {
        let heard = Heard::default();
        let (listening, beats, killed) = (Arc::clone(&broker), heard.clone(), tasks.shutdown().kill_token());
        tasks.spawn_essential("heartbeats", async move {
            tokio::select! {
                () = listen(listening, beats) => {}
                () = killed.cancelled() => {}
            }
        });
        Self { broker, pool, heard, waits: Mutex::default(), silent_timeout }
    }

    /// For those who wait for an agent.
    pub fn heard(&self) -> Heard {
        self.heard.clone()
    }

    /// # Errors
    /// The queue is out of reach.
    pub async fn look(&self, at: Timestamp) -> Result<Seen, BrokerError> {
        let mut seen = Seen { at, ..Seen::default() };
        // By lane and function.
        let mut running: HashMap<(Lane, FunctionName), u64> = HashMap::new();
        {
            let mut heard = self.heard.agents.lock();
            let remembered = self.silent_timeout.max(limits::AGENT_OFFLINE_AFTER);
            heard.retain(|_, (_, when)| when.elapsed() < remembered);
            for (id, (beat, when)) in heard.iter().filter(|(_, (beat, _))| beat.pool == self.pool) {
                if when.elapsed() < limits::AGENT_OFFLINE_AFTER {
                    seen.loads.insert(id.to_string(), load(beat));
                    seen.finished.insert(id.to_string(), beat.finished);
                }
                let of_it = seen.running.entry(id.to_string()).or_default();
                // What a silent one runs does not wait: it is the plan's to say when its node is lost.
                for count in &beat.running {
                    *running.entry((Lane::Call, count.function.clone())).or_default() += u64::from(count.calls);
                    *running.entry((Lane::Invoke, count.function.clone())).or_default() += u64::from(count.invokes);
                    *of_it.entry(count.function.clone()).or_default() += u64::from(count.calls + count.invokes);
                }
            }
        }
        let mut waiting: Vec<(Lane, Vec<FunctionName>)> = Vec::new();
        for lane in Lane::ALL {
            let mut functions = Vec::new();
            for depth in self.broker.depths(lane, &self.pool).await? {
                let running = running.get(&(lane, depth.queue.function.clone())).copied().unwrap_or(0);
                let waits = depth.messages.saturating_sub(running);
                if waits > 0 {
                    seen.waiting += waits;
                    functions.push(depth.queue.function);
                }
            }
            waiting.push((lane, functions));
        }
        if self.broker.capabilities().counts_deliveries {
            (seen.waits, seen.untold) = self.waits(&waiting, &running, at).await;
        }
        Ok(seen)
    }

    /// For how long what waits does so, and whether that could not be told of some: how much waits is known.
    async fn waits(
        &self,
        waiting: &[(Lane, Vec<FunctionName>)],
        running: &HashMap<(Lane, FunctionName), u64>,
        at: Timestamp,
    ) -> (Vec<Wait>, bool) {
        let queue = |lane, function: &FunctionName| QueueName::new(lane, self.pool.clone(), function.clone());
        let queues =
            waiting.iter().flat_map(|(lane, functions)| functions.iter().map(|function| queue(*lane, function)));
        self.waits.lock().forget_others(&queues.collect());
        let asked = waiting.iter().filter(|(_, functions)| !functions.is_empty());
        // Each on its own: what one lane tells is not lost with the other.
        let looks = asked.map(async |(lane, functions)| {
            let look = self.broker.progress(*lane, &self.pool, functions);
            let late = || BrokerError::unavailable("look at what waits", "no answer came in time");
            tokio::time::timeout(AGES_WITHIN, look).await.unwrap_or_else(|_| Err(late()))
        });
        let (mut progress, mut untold) = (Vec::new(), false);
        for looked in futures::future::join_all(looks).await {
            match looked {
                Ok(told) => progress.extend(told),
                Err(error) => {
                    tracing::warn!(
                        error = &error as &dyn std::error::Error,
                        "it is not known for how long what waits does so"
                    );
                    untold = true;
                }
            }
        }
        let mut known = self.waits.lock();
        let wait = |progress: &Progress| {
            let (lane, function) = (progress.queue.lane, progress.queue.function.clone());
            let oldest = at.since(known.see(progress, at)?);
            let running = running.get(&(lane, function.clone())).copied().unwrap_or(0);
            Some(Wait { function, waiting: progress.waiting, running, oldest })
        };
        (progress.iter().filter_map(wait).collect(), untold)
    }
}

fn load(beat: &Heartbeat) -> Load {
    let running = beat.running.iter().map(|count| count.calls + count.invokes).sum();
    Load {
        cpu_percent: beat.node.cpu_percent,
        memory_percent: beat.node.memory_percent,
        running,
        slots: beat.total.tasks,
        used: used(beat.total, beat.free),
        draining: beat.status == AgentStatus::Draining,
    }
}

/// How much of the fullest budget is taken.
fn used(total: Budget, free: Budget) -> f64 {
    let taken = |total: u32, free: u32| f64::from(total.saturating_sub(free)) / f64::from(total.max(1));
    taken(total.tasks, free.tasks)
        .max(taken(total.cpu_millicores, free.cpu_millicores))
        .max(taken(total.memory_mb, free.memory_mb))
}

async fn listen(broker: Arc<dyn Broker>, heard: Heard) {
    loop {
        match broker.listen(subject::heartbeats()).await {
            Ok(mut beats) => {
                while let Some(signal) = beats.next().await {
                    let Ok(beat) = serde_json::from_slice::<Heartbeat>(&signal.body) else { continue };
                    // The broker holds an agent to its own subject, not to what it writes.
                    if signal.subject == subject::heartbeat(&beat.pool, &beat.agent_id) {
                        heard.hear(beat);
                    }
                }
            }
            Err(error) => {
                tracing::warn!(error = &error as &dyn std::error::Error, "heartbeats cannot be heard; trying again");
            }
        }
        tokio::time::sleep(LISTEN_AGAIN_AFTER).await;
    }
}
