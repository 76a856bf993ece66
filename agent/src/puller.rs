//! One task owns the planner: it sends the pulls that the planner grants, hands what they bring to executions, and
//! tells the planner what ended. It waits for events alone; an idle agent renews its standing pulls and does
//! nothing else.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use flux_broker::{BrokerError, Delivery, Pull};
use flux_launcher::{Capabilities, wire};
use flux_protocol::{
    AgentId, FunctionName, FunctionVersion,
    agent::Budget,
    function::{Isolation, Network},
    subject::QueueName,
};
use futures::{FutureExt as _, StreamExt as _, future::BoxFuture, stream::FuturesUnordered};
use tokio::sync::{mpsc, watch};

use crate::{
    execution,
    functions::FunctionEvent,
    node::Node,
    plan::{Amount, Credit, Grant, Need, Planner, PullEnd},
    room::{Room, SlotEvent},
    runtimes::Runtimes,
    sandbox::Tier,
};

/// A pull that the broker refused is not sent again before this.
const AFTER_REFUSAL: Duration = Duration::from_millis(250);
/// A queue that is said to be hot and cannot be pulled: gateways hear of it with each try, and make it anew.
const AFTER_MISSING: Duration = Duration::from_secs(1);

/// A queue that is behind is so for a moment, time after time.
const SAY_BEHIND_EVERY: Duration = Duration::from_secs(60);

/// What others tell the puller.
#[derive(Debug)]
pub(crate) enum Event {
    /// `waits`: somebody knows that work waits there.
    Hot {
        queue: QueueName,
        waits: bool,
    },
    /// This agent is told, by name, that work waits there.
    Ring(QueueName),
    Cold(QueueName),
    Functions(FunctionEvent),
    /// Take nothing new; what is under way is given back.
    Drain,
    Undrain,
}

/// What the puller tells others.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct PullerState {
    pub(crate) free: Budget,
    pub(crate) draining: bool,
}

/// What its pull has to say next.
enum Heard {
    Delivery(Box<Delivery>),
    Ended(PullEnd),
}

type Next = BoxFuture<'static, (Credit, Option<Pull>, Heard)>;

pub(crate) struct Puller {
    node: Arc<Node>,
    planner: Planner,
    pulls: FuturesUnordered<Next>,
    events: mpsc::Receiver<Event>,
    slots: mpsc::Receiver<SlotEvent>,
    slot_events: mpsc::Sender<SlotEvent>,
    capabilities: watch::Receiver<Option<Arc<Capabilities>>>,
    /// The queue takes long to record outcomes.
    behind: watch::Receiver<bool>,
    said_behind: Option<Instant>,
    state: watch::Sender<PullerState>,
    draining: bool,
    started: Instant,
    grants: Vec<Grant>,
}

impl Puller {
    pub(crate) fn new(
        node: Arc<Node>,
        total: Budget,
        events: mpsc::Receiver<Event>,
    ) -> (Self, watch::Receiver<PullerState>) {
        let at_once = crate::room::events_at_once(usize::try_from(total.tasks).unwrap_or(usize::MAX / 4));
        let (slot_events, slots) = mpsc::channel(at_once);
        let (state, watched) = watch::channel(PullerState { free: total, draining: false });
        let (capabilities, behind) = (node.executor.capabilities(), node.finishing.behind());
        let puller = Self {
            node,
            planner: Planner::new(Amount::from(total), rand::random()),
            pulls: FuturesUnordered::new(),
            events,
            slots,
            slot_events,
            capabilities,
            behind,
            said_behind: None,
            state,
            draining: false,
            started: Instant::now(),
            grants: Vec::new(),
        };
        (puller, watched)
    }

    /// Pulls until nobody can tell it anything any more.
    pub(crate) async fn run(mut self) {
        self.follow_launcher();
        loop {
            self.plan();
            let wake_at = self.planner.wake_at_ms().map(|at_ms| self.started + Duration::from_millis(at_ms));
            tokio::select! {
                Some(heard) = self.pulls.next() => self.on_pull(heard),
                Some(event) = self.slots.recv() => self.on_slot(event),
                event = self.events.recv() => match event {
                    Some(event) => self.on_event(event),
                    None => return,
                },
                changed = self.capabilities.changed() => match changed {
                    Ok(()) => self.follow_launcher(),
                    Err(_) => return,
                },
                // Its sender is of the node.
                Ok(()) = self.behind.changed() => {
                    self.follow_queue();
                }
                () = sleep_until(wake_at) => {}
            }
            self.take_what_is_ready();
        }
    }

    /// Events that came together are planned for together: fewer and larger pulls.
    fn take_what_is_ready(&mut self) {
        while let Ok(event) = self.slots.try_recv() {
            self.on_slot(event);
        }
        while let Some(Some(heard)) = self.pulls.next().now_or_never() {
            self.on_pull(heard);
        }
    }

    fn now_ms(&self) -> u64 {
        u64::try_from(self.started.elapsed().as_millis()).unwrap_or(u64::MAX)
    }

    fn plan(&mut self) {
        let mut grants = std::mem::take(&mut self.grants);
        self.planner.plan(self.now_ms(), &mut grants);
        for grant in grants.drain(..) {
            self.pulls.push(send(Arc::clone(&self.node), grant).boxed());
        }
        self.grants = grants;
        let state = PullerState { free: self.planner.free().into(), draining: self.draining };
        // Followers wake when the status may have changed, not with each slot.
        self.state.send_if_modified(|said| {
            let before = std::mem::replace(said, state);
            before.draining != state.draining || (before.free.tasks == 0) != (state.free.tasks == 0)
        });
    }

    fn on_pull(&mut self, (mut credit, pull, heard): (Credit, Option<Pull>, Heard)) {
        let delivery = match heard {
            Heard::Ended(how) => return self.planner.ended(credit, how, self.now_ms()),
            Heard::Delivery(delivery) => delivery,
        };
        let slot = self.planner.delivered(&mut credit, delivery.pending, self.now_ms());
        let room = Room::new(slot, self.slot_events.clone());
        // Once, for another agent. What comes again is run: see `Agent::drain`.
        if self.draining && delivery.redeliveries == 0 && self.node.max_losses > 0 {
            self.node.tasks.spawn("give back", give_back(*delivery, room));
        } else {
            self.node.tasks.spawn("execution", execution::execute(Arc::clone(&self.node), *delivery, room));
        }
        match pull {
            Some(pull) => self.pulls.push(listen(credit, pull).boxed()),
            None => self.planner.ended(credit, PullEnd::Failed, self.now_ms()),
        }
    }

    fn on_slot(&mut self, event: SlotEvent) {
        match event {
            SlotEvent::Finished(slot) => self.planner.finished(slot),
            SlotEvent::Recost(change) => self.planner.recosted(&change),
        }
    }

    fn on_event(&mut self, event: Event) {
        match event {
            Event::Hot { queue, waits } => {
                let need = self.need(&queue.function);
                self.planner.heat(&queue, need, waits);
            }
            Event::Ring(queue) => self.planner.ring(&queue),
            Event::Cold(queue) => self.planner.cool(&queue),
            Event::Functions(FunctionEvent::Changed(function)) => self.refresh(&function),
            Event::Functions(FunctionEvent::Synced) => self.refresh_all(),
            Event::Drain => {
                self.draining = true;
                self.planner.pause();
            }
            // Who goes away does not come back.
            Event::Undrain if self.node.tasks.shutdown().is_draining() => {}
            Event::Undrain => {
                self.draining = false;
                self.follow_launcher();
            }
        }
    }

    /// Without a launcher nothing can be started, so nothing is pulled; with another one, other functions may run.
    fn follow_launcher(&mut self) {
        if self.capabilities.borrow_and_update().is_some() {
            self.refresh_all();
        }
        self.pause_or_resume();
    }

    /// What a queue that is behind would deliver could not be acked in time.
    fn follow_queue(&mut self) {
        let behind = *self.behind.borrow_and_update();
        if behind && self.said_behind.is_none_or(|at| at.elapsed() > SAY_BEHIND_EVERY) {
            self.said_behind = Some(Instant::now());
            tracing::warn!("the queue takes long to record outcomes: nothing is pulled until it has caught up");
        }
        self.pause_or_resume();
    }

    fn pause_or_resume(&mut self) {
        let can_start = self.capabilities.borrow().is_some();
        if !can_start || self.draining || *self.behind.borrow() {
            self.planner.pause();
        } else if self.planner.is_paused() {
            self.planner.resume();
        }
    }

    fn refresh_all(&mut self) {
        for function in self.planner.functions() {
            self.refresh(&function);
        }
    }

    fn refresh(&mut self, function: &FunctionName) {
        if self.planner.knows(function) {
            let need = self.need(function);
            self.planner.set_need(function, need);
        }
    }

    fn need(&self, function: &FunctionName) -> Option<Need> {
        let version = self.node.functions.current(function)?;
        let capabilities = self.capabilities.borrow();
        capabilities.as_deref().and_then(|capabilities| need_of(&version, capabilities, &self.node))
    }
}

/// What a function needs, or `None` where this agent cannot give what it asks for.
fn need_of(version: &FunctionVersion, capabilities: &Capabilities, node: &Node) -> Option<Need> {
    let offers = match version.spec.isolation {
        Isolation::Process => need_of_process(version, capabilities, &node.runtimes.read(), &node.id),
        isolation => has_tier(version, node.tiers.get(isolation), &node.id),
    };
    let each = Amount::of_one(version.spec.resources);
    offers.then(|| Need { each, max_concurrency: version.spec.max_concurrency.map_or(u64::MAX, u64::from) })
}

/// Whether a tier is there, and runs functions with such a network.
fn has_tier(version: &FunctionVersion, tier: Option<&Arc<dyn Tier>>, agent: &AgentId) -> bool {
    let spec = &version.spec;
    let wanted = match spec.network {
        Network::Host => wire::Network::Host,
        Network::None => wire::Network::None,
    };
    let offer = tier.map(|tier| tier.offer().borrow().clone());
    let why = match offer {
        Some(Ok(offer)) if !offer.refuses.contains(&wanted) => return true,
        Some(Ok(_)) => "`isolation_required` is set, and a layer is missing".to_owned(),
        Some(Err(reason)) => reason,
        None => "it is switched off".to_owned(),
    };
    tracing::warn!(function = %spec.name, %agent, isolation = spec.isolation.as_str(), why, "not pulled: this agent has not its isolation");
    false
}

fn need_of_process(
    version: &FunctionVersion,
    capabilities: &Capabilities,
    runtimes: &Runtimes,
    agent: &AgentId,
) -> bool {
    let spec = &version.spec;
    let (network, wanted) = match spec.network {
        Network::Host => (true, wire::Network::Host),
        Network::None => (capabilities.net_namespace, wire::Network::None),
    };
    if !network {
        tracing::warn!(function = %spec.name, %agent, "not pulled: this agent cannot give it `network: none`");
        return false;
    }
    if !runtimes.gives(spec.runtime) {
        tracing::warn!(function = %spec.name, %agent, runtime = %spec.runtime, "not pulled: this agent has not its runtime");
        return false;
    }
    if capabilities.refuses.contains(&wanted) {
        let missing: Vec<&str> = capabilities.missing_for(wanted).map(|missing| missing.layer.as_str()).collect();
        tracing::warn!(function = %spec.name, %agent, missing = missing.join(", "), "not pulled: `isolation_required` is set");
        return false;
    }
    true
}

async fn send(node: Arc<Node>, grant: Grant) -> (Credit, Option<Pull>, Heard) {
    let batch = usize::try_from(grant.batch()).unwrap_or(usize::MAX);
    match node.broker.pull(&grant.name, batch, grant.expires).await {
        Ok(pull) => listen(grant.credit, pull).await,
        Err(error) => refused(grant.credit, &error).await,
    }
}

async fn listen(credit: Credit, mut pull: Pull) -> (Credit, Option<Pull>, Heard) {
    match pull.next().await {
        Some(Ok(delivery)) if credit.left > 0 => (credit, Some(pull), Heard::Delivery(Box::new(delivery))),
        Some(Ok(delivery)) => {
            // More than was asked for would be more than there is room for: it goes to another after the ack wait.
            tracing::error!(queue = ?delivery.queue, "the broker delivered more than the pull's batch");
            (credit, None, Heard::Ended(PullEnd::Failed))
        }
        Some(Err(error)) => refused(credit, &error).await,
        None => (credit, None, Heard::Ended(PullEnd::Expired)),
    }
}

/// The credit stays spent during the pause, so that a queue that cannot be pulled is not asked in a loop.
async fn refused(credit: Credit, error: &BrokerError) -> (Credit, Option<Pull>, Heard) {
    if matches!(error, BrokerError::Full { .. }) {
        return (credit, None, Heard::Ended(PullEnd::Covered));
    }
    tracing::debug!(error = error as &dyn std::error::Error, "a pull was refused");
    let pause = if matches!(error, BrokerError::NotFound { .. }) { AFTER_MISSING } else { AFTER_REFUSAL };
    tokio::time::sleep(pause).await;
    (credit, None, Heard::Ended(PullEnd::Failed))
}

async fn give_back(delivery: Delivery, room: Room) {
    if let Err(error) = delivery.ack.nack(None).await {
        tracing::debug!(error = &error as &dyn std::error::Error, "not given back; it goes on after the ack wait");
    }
    drop(room);
}

async fn sleep_until(at: Option<Instant>) {
    match at {
        Some(at) => tokio::time::sleep_until(at.into()).await,
        None => std::future::pending().await,
    }
}

#[cfg(test)]
mod tests {
    use flux_launcher::Missing;

    use super::*;

    #[test]
    fn what_an_agent_refuses_or_cannot_give_is_not_pulled() {
        let agent = AgentId::parse("agent-1").expect("an id");
        let version = |network: Network, runtime: &str| {
            let yaml = format!("name: f\nhandler: h.h\nnetwork: {}\nruntime: {runtime}", network.as_str());
            let spec = flux_protocol::function::parse_yaml(&yaml).expect("a function");
            FunctionVersion { version: 1, digest: None, spec, created_at: flux_protocol::Timestamp::from_millis(0) }
        };
        let pulled = |capabilities: &Capabilities| {
            [Network::Host, Network::None]
                .map(|network| need_of_process(&version(network, "native"), capabilities, &Runtimes::default(), &agent))
        };
        let whole = Capabilities { net_namespace: true, ..Capabilities::default() };
        assert_eq!(pulled(&whole), [true, true]);
        assert_eq!(pulled(&Capabilities::default()), [true, false]);
        let python = version(Network::Host, "python");
        assert!(!need_of_process(&python, &whole, &Runtimes::default(), &agent), "nothing to run it");
        let missing = vec![Missing { layer: "network guard".to_owned(), reason: "why".to_owned() }];
        let lacking = Capabilities { refuses: vec![wire::Network::Host], missing, ..whole.clone() };
        assert_eq!(pulled(&lacking), [false, true]);
    }
}
