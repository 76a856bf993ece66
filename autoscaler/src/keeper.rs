//! One look, one decision, and what follows from it.

use std::{
    collections::{BTreeMap, VecDeque},
    sync::Arc,
    time::Duration,
};

use flux_plan::{Action, Decision, History, Load, Policy, Reason, Rule, Snapshot, Wait, plan};
use flux_protocol::{
    FunctionName, PoolName, Timestamp,
    autoscaler::{ActionRecord, AutoscalerReply, AutoscalerRequest, AutoscalerStatus, DecisionRecord, ManagedState},
    limits,
};
use flux_provider::{ClusterName, LIST_LAGS_AT_MOST, Node, SharedProvider};

use crate::{
    act::{Agents, Hands, Launches, Refused},
    book::{Book, BookError},
    fleet::{Ended, Fleet, Found, Heard, Member},
    reach::{Reach, Reached},
    set_up::SetUps,
    shown::{numbers, recorded, said, stray},
};

/// A look so many polls after the one before it comes after a time in which nothing could be heard.
const LOOKS_MISSED: u32 = 3;

/// What was seen of queue and agents at one moment.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Seen {
    pub at: Timestamp,
    /// Invocations that no agent has.
    pub waiting: u64,
    /// The same by function, and for how long, where that is known; `running` is of all agents.
    pub waits: Vec<Wait>,
    /// More may wait than `waits` says: the queue did not tell of all.
    pub untold: bool,
    /// Executions of each function on each agent, ours or not, as it said last.
    pub running: BTreeMap<String, BTreeMap<FunctionName, u64>>,
    /// Of every agent that was heard of lately, ours or not.
    pub loads: BTreeMap<String, Load>,
    /// Executions that ended on each since it started.
    pub finished: BTreeMap<String, u64>,
}

/// Acts, while it has the lease.
pub struct Keeper {
    holder: String,
    cluster: ClusterName,
    policy: Policy,
    book: Arc<dyn Book>,
    reach: Reach,
    /// With the providers that are in reach.
    hands: Hands,
    set_ups: SetUps,
    /// The fleet as it is written, and its revision; `None` while another acts.
    written: Option<(Fleet, u64)>,
    history: History,
    refused: Refused,
    poll: Duration,
    heard: BTreeMap<String, Heard>,
    ended: Ended,
    looked: Option<Timestamp>,
    /// Until then agents get to say something: what is not heard is not missing yet.
    listens_until: Option<Timestamp>,
    finished: Finished,
    decisions: VecDeque<DecisionRecord>,
    shown: Option<AutoscalerStatus>,
}

/// Everything that a [`Keeper`] is made of.
pub struct KeeperParts {
    pub holder: String,
    pub cluster: ClusterName,
    pub pool: PoolName,
    pub policy: Policy,
    /// Between looks.
    pub poll: Duration,
    pub book: Arc<dyn Book>,
    pub providers: BTreeMap<String, SharedProvider>,
    /// Where each of them has its machines, for people: what changes with its list.
    pub places: BTreeMap<String, String>,
    /// Of providers whose machines do not start their agents by themselves.
    pub set_ups: SetUps,
    pub agents: Arc<dyn Agents>,
}

/// Executions that ended on our nodes: a count that only grows, though agents come, go and begin anew.
#[derive(Debug, Default)]
struct Finished {
    of: BTreeMap<String, u64>,
    total: u64,
}

impl Finished {
    fn count(&mut self, fleet: &Fleet, said: &BTreeMap<String, u64>) -> u64 {
        for (name, now) in said.iter().filter(|(name, _)| fleet.members.contains_key(*name)) {
            let before = self.of.insert(name.clone(), *now).unwrap_or(0);
            self.total += if *now >= before { now - before } else { *now };
        }
        self.of.retain(|name, _| fleet.members.contains_key(name));
        self.total
    }
}

impl Keeper {
    pub fn new(parts: KeeperParts) -> Self {
        let KeeperParts { holder, cluster, pool, policy, poll, book, providers, places, set_ups, agents } = parts;
        Self {
            holder,
            cluster,
            policy,
            book,
            hands: Hands { providers: BTreeMap::new(), agents, pool },
            reach: Reach { providers, places },
            set_ups,
            written: None,
            history: History::default(),
            refused: Refused::new(),
            poll,
            heard: BTreeMap::new(),
            ended: Ended::new(),
            looked: None,
            listens_until: None,
            finished: Finished::default(),
            decisions: VecDeque::new(),
            shown: None,
        }
    }

    /// Looks, decides and acts once; false: another autoscaler does.
    ///
    /// # Errors
    /// The queue is out of reach. Whatever was begun is gone on with at the next look.
    pub async fn step(&mut self, seen: &Seen) -> Result<bool, BookError> {
        let stepped = self.try_step(seen, None).await;
        Ok(self.unless_overtaken(stepped)?.is_some())
    }

    /// Does what a gateway asks for.
    ///
    /// # Errors
    /// As [`Keeper::step`].
    pub async fn answer(&mut self, request: AutoscalerRequest, seen: &Seen) -> Result<AutoscalerReply, BookError> {
        let stepped = self.try_step(seen, Some(request)).await;
        Ok(match self.unless_overtaken(stepped)? {
            None => AutoscalerReply::Failed { message: "another autoscaler acts".to_owned() },
            Some(reply) => reply,
        })
    }

    fn unless_overtaken<T>(&mut self, stepped: Result<Option<T>, BookError>) -> Result<Option<T>, BookError> {
        match stepped {
            Err(BookError::Overtaken) => {
                tracing::warn!("another autoscaler acts now");
                self.stand_back();
                Ok(None)
            }
            // What is written is not known: it is read again.
            Err(error) => {
                self.written = None;
                Err(error)
            }
            Ok(done) => Ok(done),
        }
    }

    /// Another acts, and goes on with what goes on.
    fn stand_back(&mut self) {
        self.written = None;
        self.set_ups.drop_all();
    }

    async fn try_step(
        &mut self,
        seen: &Seen,
        request: Option<AutoscalerRequest>,
    ) -> Result<Option<AutoscalerReply>, BookError> {
        if !self.book.lease(&self.holder, seen.at).await? {
            self.stand_back();
            return Ok(None);
        }
        let mut fleet = self.fleet(seen.at).await?;
        let out_of_reach = self.reach(&mut fleet, seen.at);
        let (found, listed) = self.reconcile(&mut fleet, seen.at).await;
        if !found.adopted.is_empty() {
            // What they run is known first.
            self.listens_until = Some(seen.at.plus(limits::AGENT_OFFLINE_AFTER));
        }
        fleet.hear(&seen.loads, seen.at);
        let not_set_up = self.set_ups.take(&mut fleet, seen.at);
        self.refuse_failing();
        let removed = match request {
            Some(AutoscalerRequest::RemoveNodes) => fleet.remove_all(seen.at),
            Some(AutoscalerRequest::Initialize) => {
                fleet.paused = false;
                0
            }
            None => 0,
        };
        let mut decision = self.decide(&fleet, seen);
        decision.notes.extend(found.strays.iter().map(stray));
        decision.notes.extend(out_of_reach);
        let actions: Vec<&Action> = decision.actions.iter().map(|act| &act.action).collect();
        fleet.intend(&actions, &self.cluster, seen.at);
        self.write(&fleet).await?;
        self.set_ups.drop_leaving(&fleet);
        self.history.decided(&decision);

        self.hands.cordon(&fleet, &seen.loads).await;
        for (provider, id) in self.hands.terminate(&mut fleet, &mut self.ended, seen.at).await {
            self.set_ups.forget(&provider, &id);
        }
        // Who took over a moment ago does not know yet which agents there are.
        if self.listens_until.is_none() {
            self.set_ups.begin(&fleet, &listed, &self.hands.pool);
        }
        let Launches { launched, failed } = self.hands.launch(&mut fleet, &mut self.refused, seen.at).await;
        self.hands.forget(&mut fleet).await;
        self.write(&fleet).await?;
        self.show(&fleet, seen, &decision, not_set_up).await;
        Ok(Some(match request {
            Some(AutoscalerRequest::RemoveNodes) => AutoscalerReply::Removed { removed },
            _ => AutoscalerReply::Initialized { spawned: launched, failed },
        }))
    }

    /// The fleet as it is written. Whoever takes over says so before it does anything: who acted before cannot write any more.
    async fn fleet(&mut self, at: Timestamp) -> Result<Fleet, BookError> {
        if let Some((fleet, _)) = &self.written {
            return Ok(fleet.clone());
        }
        let (mut fleet, revision) = self.book.read().await?;
        fleet.epoch += 1;
        let out_of_reach = self.reach(&mut fleet, at);
        let revision = self.book.write(&fleet, revision).await?;
        tracing::info!(epoch = fleet.epoch, nodes = fleet.members.len(), "this autoscaler acts");
        for note in out_of_reach {
            tracing::error!("{}", note.said);
        }
        let load = |name: &String| self.heard.get(name).and_then(|heard| heard.load);
        self.heard = fleet.members.keys().map(|name| (name.clone(), Heard { at, load: load(name) })).collect();
        self.looked = Some(at);
        self.listens_until = Some(at.plus(limits::AGENT_OFFLINE_AFTER));
        self.decisions = self.book.shown().await?.map(|status| status.decisions.into()).unwrap_or_default();
        self.written = Some((fleet.clone(), revision));
        Ok(fleet)
    }

    /// Uses what is in reach from now on; of what is not, what is to be said.
    fn reach(&mut self, fleet: &mut Fleet, at: Timestamp) -> Vec<Reason> {
        let Reached { providers, moved, notes } = self.reach.of(fleet);
        self.hands.providers = providers;
        let until = at.plus(self.poll * LOOKS_MISSED);
        self.refused.extend(moved.into_iter().map(|provider| ((provider, String::new()), until)));
        notes
    }

    async fn write(&mut self, fleet: &Fleet) -> Result<(), BookError> {
        match &mut self.written {
            Some((written, _)) if written == fleet => {}
            Some((written, revision)) => {
                *revision = self.book.write(fleet, *revision).await?;
                *written = fleet.clone();
            }
            None => return Err(BookError::Overtaken),
        }
        Ok(())
    }

    /// Also what machines there are, under their members' names.
    async fn reconcile(&mut self, fleet: &mut Fleet, at: Timestamp) -> (Found, BTreeMap<String, Node>) {
        self.ended.retain(|_, when| at.since(*when) <= LIST_LAGS_AT_MOST);
        let (mut all, mut machines) = (Found::default(), BTreeMap::new());
        for (name, provider) in &self.hands.providers {
            match provider.list().await {
                Ok(listed) => {
                    let found = fleet.reconcile(name, &listed, &self.ended, at);
                    for id in &found.adopted {
                        tracing::warn!(provider = %name, provider_id = %id, "a machine with our tag is in no record: it is adopted, and drains");
                    }
                    for id in &found.strays {
                        tracing::warn!(provider = %name, provider_id = %id, "a machine with our tag has no name of ours: it is left alone");
                    }
                    all.adopted.extend(found.adopted);
                    all.strays.extend(found.strays);
                    let named = listed.into_iter().filter(|node| node.state.is_alive());
                    machines.extend(named.filter_map(|node| Some((node.client_token.clone()?.to_string(), node))));
                }
                Err(error) => {
                    tracing::warn!(provider = %name, error = &error as &dyn std::error::Error, "the nodes cannot be listed");
                }
            }
        }
        (all, machines)
    }

    fn decide(&mut self, fleet: &Fleet, seen: &Seen) -> Decision {
        self.heard.retain(|name, _| fleet.members.contains_key(name));
        self.forgive_missed_looks(seen.at);
        for (name, load) in seen.loads.iter().filter(|(name, _)| fleet.members.contains_key(*name)) {
            self.heard.insert(name.clone(), Heard { at: seen.at, load: Some(*load) });
        }
        self.refused.retain(|_, until| *until > seen.at);
        if let Some(why) = self.deaf(fleet, seen) {
            tracing::warn!("{why}: nothing is decided");
            let note = Reason { rule: Rule::Held, said: format!("{why}: nothing is decided"), inputs: BTreeMap::new() };
            return Decision { at: seen.at, notes: vec![note], ..Decision::default() };
        }
        let mut snapshot = Snapshot {
            at: seen.at,
            nodes: fleet.seen(&seen.loads, &self.heard, |provider| self.hands.providers.contains_key(provider)),
            waiting: seen.waiting,
            waits: fleet.waits(&seen.waits, &seen.running),
            untold: seen.untold,
            finished: self.finished.count(fleet, &seen.finished),
            refused: self.refused.keys().cloned().collect(),
            paused: fleet.paused,
        };
        self.history.observe(&snapshot, &self.policy);
        let mut decision = plan(&snapshot, &self.policy, &self.history);
        let not_started = self.set_ups.not_started(fleet, &decision, seen.at);
        if !not_started.is_empty() {
            // Another in their place would go the same way.
            self.refuse_failing();
            snapshot.refused = self.refused.keys().cloned().collect();
            decision = plan(&snapshot, &self.policy, &self.history);
        }
        self.set_ups.keep_to_places(fleet, &mut decision);
        for act in &mut decision.actions {
            if let Action::Terminate { node } = &act.action
                && let Some(why) = not_started.get(node)
            {
                act.reason.said.clone_from(why);
            }
            tracing::info!(action = ?act.action, reason = %act.reason, "decided");
        }
        decision
    }

    fn refuse_failing(&mut self) {
        let failing = self.set_ups.refused().map(|(provider, until)| ((provider.clone(), String::new()), until));
        self.refused.extend(failing);
    }

    /// Nobody was heard of while nobody listened: that is no silence of theirs.
    fn forgive_missed_looks(&mut self, at: Timestamp) {
        let longest = self.poll * LOOKS_MISSED;
        let gap = self.looked.replace(at).map_or(Duration::ZERO, |before| at.since(before));
        if gap <= longest {
            return;
        }
        for heard in self.heard.values_mut() {
            heard.at = heard.at.plus(gap - longest).min(at);
        }
        // Not twice in a row: looks that take long are to decide something too.
        self.listens_until = match self.listens_until {
            Some(_) => None,
            None => Some(at.plus(limits::AGENT_OFFLINE_AFTER)),
        };
    }

    /// Why what is heard says nothing about the nodes.
    fn deaf(&mut self, fleet: &Fleet, seen: &Seen) -> Option<&'static str> {
        if self.listens_until.is_some_and(|until| seen.at < until) && !fleet.members.is_empty() {
            return Some("agents were not listened to until now");
        }
        self.listens_until = None;
        // Machines that are out of reach may be gone long since, and their silence is nothing new.
        let ready = |one: &Member| one.state == ManagedState::Ready && self.hands.providers.contains_key(&one.provider);
        let ready: Vec<&String> = fleet.members.iter().filter(|(_, one)| ready(one)).map(|(name, _)| name).collect();
        if !seen.loads.is_empty() || ready.is_empty() {
            return None;
        }
        if let [only] = ready[..] {
            // It alone may well be dead: its time runs.
            let silent = self.heard.get(only).map_or(Duration::ZERO, |heard| seen.at.since(heard.at));
            return (silent < self.policy.silent_timeout).then_some("its only agent is not heard of");
        }
        // All at once die less often than the way to them.
        for heard in self.heard.values_mut() {
            heard.at = seen.at;
        }
        Some("no agent is heard of")
    }

    async fn show(&mut self, fleet: &Fleet, seen: &Seen, decision: &Decision, failed: Vec<ActionRecord>) {
        let mut recorded = recorded(decision);
        recorded.actions.splice(0..0, failed);
        if !recorded.actions.is_empty() {
            self.decisions.push_front(recorded);
            self.decisions.truncate(limits::AUTOSCALER_DECISIONS);
            let actions = self.decisions.iter_mut().flat_map(|decision| &mut decision.actions);
            let outputs = actions.filter(|action| action.output.is_some());
            outputs.skip(limits::AUTOSCALER_OUTPUTS).for_each(|action| action.output = None);
        }
        let status = AutoscalerStatus {
            holder: self.holder.clone(),
            at: seen.at,
            paused: fleet.paused,
            nodes: fleet.shown(&self.policy),
            seen: numbers(&decision.demand),
            decisions: self.decisions.iter().cloned().collect(),
            notes: decision.notes.iter().map(said).chain(self.set_ups.notes(seen.at)).collect(),
        };
        // While nothing happens the time alone is no news, until it is old.
        let is_news = self.shown.as_ref().is_none_or(|shown| {
            *shown != AutoscalerStatus { at: shown.at, ..status.clone() }
                || seen.at.since(shown.at) >= limits::AUTOSCALER_LEASE
        });
        if is_news {
            match self.book.show(&status).await {
                Ok(()) => self.shown = Some(status),
                Err(error) => tracing::warn!(error = &error as &dyn std::error::Error, "the status was not published"),
            }
        }
    }
}
