//! A keeper on a provider in memory, in a time of its own, that may die at any of its steps.

use std::{
    collections::BTreeSet,
    sync::{
        Arc, Mutex,
        atomic::{AtomicI64, AtomicU64, Ordering},
    },
    time::Duration,
};

use async_trait::async_trait;
use flux_autoscaler::{
    act::Agents,
    book::{Book, BookError, QueueBook},
    fleet::Fleet,
    keeper::{Keeper, KeeperParts, Seen},
    set_up::{NotSetUp, SetUp, SetUps},
};
use flux_broker::{Broker, memory::MemoryBroker};
use flux_plan::{Load, NodeType, Policy, ProviderPolicy};
use flux_protocol::{AgentId, PoolName, Timestamp, autoscaler::AutoscalerStatus};
use flux_provider::{
    ClusterName, MemoryProvider, Node, NodeId, SharedProvider,
    memory::{Fault, MemoryOptions, bought_twice},
};
use flux_runtime::{Shutdown, Tasks};
use tokio::sync::watch;

pub(crate) const MOST: u32 = 4;
pub(crate) const STEP: Duration = Duration::from_secs(5);
/// A node's agent says something this long after its launch.
const BOOTS_IN: Duration = Duration::from_secs(20);
/// Work comes for the first of them; the rest is more than every timeout.
const BUSY_STEPS: usize = 9;
const STEPS: usize = 44;

/// Where the keeper dies.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Crash {
    /// At that call of the provider, before or after its effect.
    Provider(u64, Fault),
    /// At that call of the book, before or after its effect.
    Book(u64, Fault),
    /// While that machine is set up, before or after it is an agent.
    SetUp(u64, Fault),
}

/// The book in the queue's table, whose caller may die at a call.
struct MortalBook {
    book: QueueBook,
    calls: Arc<AtomicU64>,
    dies: Option<(u64, Fault)>,
    dead: watch::Sender<bool>,
}

impl MortalBook {
    async fn call<T>(&self, effect: impl Future<Output = T>) -> T {
        let number = self.calls.fetch_add(1, Ordering::Relaxed);
        let fault = self.dies.filter(|(at, _)| *at == number).map(|(_, fault)| fault);
        if fault == Some(Fault::HaltBefore) {
            self.dead.send_replace(true);
            return std::future::pending().await;
        }
        let done = effect.await;
        if fault == Some(Fault::HaltAfter) {
            self.dead.send_replace(true);
            return std::future::pending().await;
        }
        done
    }
}

#[async_trait]
impl Book for MortalBook {
    async fn lease(&self, holder: &str, at: Timestamp) -> Result<bool, BookError> {
        self.call(self.book.lease(holder, at)).await
    }

    async fn read(&self) -> Result<(Fleet, u64), BookError> {
        self.call(self.book.read()).await
    }

    async fn write(&self, fleet: &Fleet, revision: u64) -> Result<u64, BookError> {
        self.call(self.book.write(fleet, revision)).await
    }

    async fn show(&self, status: &AutoscalerStatus) -> Result<(), BookError> {
        self.call(self.book.show(status)).await
    }

    async fn shown(&self) -> Result<Option<AutoscalerStatus>, BookError> {
        self.call(self.book.shown()).await
    }
}

/// Agents that do as they are told: those that take no more work.
pub(crate) type Cordoned = Arc<Mutex<BTreeSet<String>>>;

struct Told {
    cordoned: Cordoned,
    forgotten: Arc<Mutex<BTreeSet<String>>>,
    gateway_is_away: Arc<Mutex<bool>>,
}

#[async_trait]
impl Agents for Told {
    async fn cordon(&self, agent: &AgentId, cordoned: bool) {
        let mut all = self.cordoned.lock().expect("nobody panics");
        if cordoned {
            all.insert(agent.to_string())
        } else {
            all.remove(agent.as_str())
        };
    }

    async fn forget(&self, agent: &AgentId) -> bool {
        let answers = !*self.gateway_is_away.lock().expect("nobody panics");
        if answers {
            self.forgotten.lock().expect("nobody panics").insert(agent.to_string());
        }
        answers
    }
}

/// Machines that are agents since they were set up.
#[derive(Default)]
pub(crate) struct Made {
    pub(crate) agents: BTreeSet<String>,
    pub(crate) calls: u64,
    /// As often it fails from now on.
    pub(crate) fails: u32,
    /// It comes to no end.
    pub(crate) hangs: bool,
}

/// What makes them, whose caller may die at a call.
struct MortalSetUp {
    made: Arc<Mutex<Made>>,
    dies: Option<(u64, Fault)>,
    dead: watch::Sender<bool>,
}

#[async_trait]
impl SetUp for MortalSetUp {
    fn lacks(&self, _: &Node) -> Option<String> {
        None
    }

    async fn set_up(&self, agent: &AgentId, _: &PoolName, _: &Node) -> Result<(), NotSetUp> {
        let (number, fails, hangs) = {
            let mut made = self.made.lock().expect("nobody panics");
            made.calls += 1;
            let fails = made.fails > 0;
            made.fails = made.fails.saturating_sub(1);
            (made.calls - 1, fails, made.hangs)
        };
        let fault = self.dies.filter(|(at, _)| *at == number).map(|(_, fault)| fault);
        if fault == Some(Fault::HaltBefore) {
            self.dead.send_replace(true);
            return std::future::pending().await;
        }
        tokio::task::yield_now().await;
        if hangs {
            return std::future::pending().await;
        }
        if fails {
            return Err(NotSetUp {
                why: "the agent was not installed".to_owned(),
                output: "E: no room\n".repeat(4000),
            });
        }
        self.made.lock().expect("nobody panics").agents.insert(agent.to_string());
        if fault == Some(Fault::HaltAfter) {
            self.dead.send_replace(true);
            return std::future::pending().await;
        }
        Ok(())
    }

    fn forget(&self, _: &NodeId) {}
}

/// How a story ended.
#[derive(Debug)]
pub(crate) struct Ended {
    pub(crate) provider_calls: u64,
    pub(crate) book_calls: u64,
    pub(crate) set_ups: u64,
    /// Agents that may still come.
    pub(crate) let_in: usize,
    pub(crate) launched: usize,
    pub(crate) alive: usize,
    pub(crate) members: usize,
    pub(crate) most_alive: usize,
    pub(crate) died: bool,
}

pub(crate) fn policy() -> Policy {
    let node_types = vec![NodeType { name: "small".to_owned(), price_per_hour: 0.05, slots: 4 }];
    let provider = ProviderPolicy { name: "memory".to_owned(), min_nodes: 0, max_nodes: MOST, node_types, share: 1.0 };
    Policy { drain_timeout: Duration::from_secs(60), ..Policy::new(vec![provider]) }
}

fn provider(clock: &Arc<AtomicI64>, boots_in: Duration) -> MemoryProvider {
    let cluster = ClusterName::parse("story").expect("a name");
    let told = Arc::clone(clock);
    let clock = Arc::new(move || Timestamp::from_micros(told.load(Ordering::Relaxed)));
    MemoryProvider::new(MemoryOptions { clock, boots_in, ..MemoryOptions::new(cluster) })
}

pub(crate) struct World {
    clock: Arc<AtomicI64>,
    pub(crate) provider: MemoryProvider,
    pub(crate) broker: Arc<dyn Broker>,
    book_calls: Arc<AtomicU64>,
    keepers: u32,
    pub(crate) policy: Policy,
    /// Whether keepers know the provider.
    pub(crate) is_configured: bool,
    /// Another, which they know too.
    pub(crate) second: Option<MemoryProvider>,
    /// Where they are told that the first one's machines are.
    pub(crate) place: &'static str,
    pub(crate) cordoned: Cordoned,
    pub(crate) forgotten: Arc<Mutex<BTreeSet<String>>>,
    pub(crate) gateway_is_away: Arc<Mutex<bool>>,
    /// Of machines that are bare when they are launched; without it they are agents by themselves.
    pub(crate) made: Option<Arc<Mutex<Made>>>,
}

impl World {
    pub(crate) fn new() -> Self {
        Self::whose_machines_run_in(Duration::ZERO)
    }

    fn whose_machines_run_in(boots_in: Duration) -> Self {
        let clock = Arc::new(AtomicI64::new(1_000_000_000_000_000));
        let broker: Arc<dyn Broker> = Arc::new(MemoryBroker::new(flux_broker::memory::MemoryLimits::default()));
        Self {
            provider: provider(&clock, boots_in),
            clock,
            broker,
            book_calls: Arc::default(),
            keepers: 0,
            policy: policy(),
            is_configured: true,
            second: None,
            place: "region here",
            cordoned: Cordoned::default(),
            forgotten: Arc::default(),
            gateway_is_away: Arc::default(),
            made: None,
        }
    }

    /// Machines have to be set up.
    pub(crate) fn bare() -> Self {
        Self { made: Some(Arc::default()), ..Self::whose_machines_run_in(BOOTS_IN) }
    }

    /// From now on there is another provider, of as many nodes.
    pub(crate) fn add_second(&mut self) {
        let policy = ProviderPolicy { name: "second".to_owned(), min_nodes: 0, ..self.policy.providers[0].clone() };
        self.policy.providers.push(policy);
        self.second = Some(provider(&self.clock, Duration::ZERO));
    }

    pub(crate) fn now(&self) -> Timestamp {
        Timestamp::from_micros(self.clock.load(Ordering::Relaxed))
    }

    pub(crate) fn pass(&self) {
        let micros = i64::try_from(STEP.as_micros()).expect("a few seconds");
        self.clock.fetch_add(micros, Ordering::Relaxed);
    }

    /// A keeper, and a watch that says when it is dead.
    pub(crate) fn keeper(&mut self, dies: Option<(u64, Fault)>) -> (Keeper, watch::Receiver<bool>) {
        self.keeper_that(dies, None)
    }

    fn keeper_that(
        &mut self,
        dies: Option<(u64, Fault)>,
        dies_setting_up: Option<(u64, Fault)>,
    ) -> (Keeper, watch::Receiver<bool>) {
        self.keepers += 1;
        let (dead, died) = watch::channel(false);
        let set_up = self.made.clone().map(|made| {
            let mortal = MortalSetUp { made, dies: dies_setting_up, dead: dead.clone() };
            ("memory".to_owned(), Arc::new(mortal) as Arc<dyn SetUp>)
        });
        let book = MortalBook {
            book: QueueBook::new(Arc::clone(&self.broker), STEP),
            calls: Arc::clone(&self.book_calls),
            dies,
            dead,
        };
        let provider: SharedProvider = Arc::new(self.provider.clone());
        let providers = self.is_configured.then(|| ("memory".to_owned(), provider)).into_iter();
        let second = self.second.clone().map(|second| ("second".to_owned(), Arc::new(second) as SharedProvider));
        let places = [("memory", self.place), ("second", "elsewhere")];
        let parts = KeeperParts {
            holder: format!("keeper-{}", self.keepers),
            cluster: ClusterName::parse("story").expect("a name"),
            pool: PoolName::default(),
            policy: self.policy.clone(),
            poll: STEP,
            book: Arc::new(book),
            providers: providers.chain(second).collect(),
            places: places.map(|(name, place)| (name.to_owned(), place.to_owned())).into(),
            set_ups: SetUps::new(set_up.into_iter().collect(), Tasks::new(Shutdown::new())),
            agents: Arc::new(Told {
                cordoned: Arc::clone(&self.cordoned),
                forgotten: Arc::clone(&self.forgotten),
                gateway_is_away: Arc::clone(&self.gateway_is_away),
            }),
        };
        (Keeper::new(parts), died)
    }

    /// What agents and queue say: nodes run as much as they can while there is work.
    pub(crate) fn seen(&self, busy: bool) -> Seen {
        let at = self.now();
        let made = self.made.as_ref().map(|made| made.lock().expect("nobody panics").agents.clone());
        let booted = |bought: &&flux_provider::memory::Bought| match &made {
            Some(made) => made.contains(bought.client_token.as_str()),
            None => at.since(bought.launched_at) >= BOOTS_IN,
        };
        let running = if busy { 4 } else { 0 };
        let load = Load {
            cpu_percent: 20.0 * f64::from(running),
            memory_percent: 20.0,
            running,
            slots: 4,
            used: f64::from(running) / 4.0,
            draining: false,
        };
        let alive = self.provider.alive();
        let cordoned = self.cordoned.lock().expect("nobody panics");
        let loads = alive.iter().filter(booted).map(|bought| {
            let name = bought.client_token.to_string();
            let draining = cordoned.contains(&name);
            (name, Load { draining, ..load })
        });
        Seen { at, waiting: if busy { 60 } else { 0 }, loads: loads.collect(), ..Seen::default() }
    }

    /// Machines' agents whose identity was not revoked.
    pub(crate) fn let_in(&self) -> usize {
        let forgotten = self.forgotten.lock().expect("nobody panics");
        let bought = self.provider.bought().into_iter();
        bought.filter(|bought| !forgotten.contains(bought.client_token.as_str())).count()
    }

    pub(crate) async fn members(&self) -> usize {
        let (fleet, _) = QueueBook::new(Arc::clone(&self.broker), STEP).read().await.expect("the fleet");
        fleet.members.len()
    }
}

/// What was begun beside a look gets to its end.
pub(crate) async fn settle() {
    for _ in 0..8 {
        tokio::task::yield_now().await;
    }
}

/// Work comes and goes; the keeper dies once, and another takes its place.
pub(crate) async fn told(crash: Option<Crash>) -> Ended {
    let mut world = World::bare();
    let (mut book_dies, mut set_up_dies) = (None, None);
    match crash {
        Some(Crash::Provider(number, fault)) => world.provider.fault_at(number, fault),
        Some(Crash::Book(number, fault)) => book_dies = Some((number, fault)),
        Some(Crash::SetUp(number, fault)) => set_up_dies = Some((number, fault)),
        None => {}
    }
    let (mut keeper, mut dead) = world.keeper_that(book_dies, set_up_dies);
    let (mut most_alive, mut died) = (0, false);
    for step in 0..STEPS {
        let seen = world.seen(step < BUSY_STEPS);
        let dies = async {
            tokio::select! {
                () = world.provider.halted() => {}
                _ = dead.wait_for(|dead| *dead) => {}
            }
        };
        let step = async {
            let stepped = keeper.step(&seen).await;
            settle().await;
            stepped
        };
        let stepped = tokio::select! {
            biased;
            () = dies => None,
            stepped = step => Some(stepped),
        };
        match stepped {
            Some(stepped) => {
                stepped.expect("a queue that answers");
            }
            None => {
                died = true;
                world.provider.revive();
                (keeper, dead) = world.keeper(None);
            }
        }
        assert_eq!(bought_twice(&world.provider.bought()), [], "{crash:?}: a machine was bought twice");
        most_alive = most_alive.max(world.provider.alive().len());
        world.pass();
    }
    Ended {
        provider_calls: world.provider.calls(),
        book_calls: world.book_calls.load(Ordering::Relaxed),
        set_ups: world.made.as_ref().map_or(0, |made| made.lock().expect("nobody panics").calls),
        let_in: world.let_in(),
        launched: world.provider.bought().len(),
        alive: world.provider.alive().len(),
        members: world.members().await,
        most_alive,
        died,
    }
}
