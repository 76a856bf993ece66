//! A provider without machines: for simulation, and for proofs of what its caller does when it fails, is late, or when the
//! caller itself dies in the middle.
//!
//! Calls are numbered as they come. A [`Fault`] is set for a number, or for the next call of a kind. `Halt…` makes a
//! *crash of the caller*: the call never returns, nor does any later one, until [`MemoryProvider::revive`]. A test awaits
//! [`MemoryProvider::halted`], drops its caller, revives, and starts another caller on the same provider; going through
//! all numbers and both halts, it crashes the caller between any two steps.
//!
//! ```text
//!   call n:   ──┬─ HaltBefore ─┬─ Fail ──┬─ the effect ─┬─ HaltAfter ─┬─ LoseAnswer ──► answer
//! ```

use std::{
    collections::{BTreeMap, HashMap},
    sync::Arc,
    time::Duration,
};

use async_trait::async_trait;
use flux_protocol::{Timestamp, time};
use parking_lot::Mutex;
use tokio::sync::watch;

use crate::{
    Capabilities, ClientToken, ClusterName, ConsoleOutput, ErrorKind, LaunchRequest, Node, NodeId, NodeType, Provider,
    ProviderError, TypeDetails, Zone,
};

mod world;

pub use world::Bought;
use world::World;

/// What goes wrong with one call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// An error, and no effect.
    Fail(ErrorKind),
    /// The effect, and an [`ErrorKind::Unavailable`].
    LoseAnswer,
    /// The caller dies before the request arrives.
    HaltBefore,
    /// The caller dies after the effect, and never learns of it.
    HaltAfter,
}

/// The methods of [`Provider`] that ask something of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Call {
    Launch,
    List,
    Terminate,
    ConsoleOutput,
    DescribeTypes,
}

/// How the provider is.
#[derive(Clone)]
pub struct MemoryOptions {
    pub cluster: ClusterName,
    pub zones: Vec<Zone>,
    pub types: Vec<TypeDetails>,
    /// A provider that does not buys one more node each time that a launch is repeated.
    pub honours_tokens: bool,
    /// [`Provider::list`] shows the world as it was this long ago.
    pub list_lags: Duration,
    /// From the launch to [`crate::NodeState::Running`], and from the termination to [`crate::NodeState::Gone`].
    pub boots_in: Duration,
    pub stops_in: Duration,
    /// Nodes of all clusters that may be alive at once.
    pub quota: usize,
    /// Simulations have a clock of their own.
    pub clock: Arc<dyn Fn() -> Timestamp + Send + Sync>,
}

impl MemoryOptions {
    /// One zone, `small` and `large`, at once and without limits.
    ///
    /// # Panics
    /// Never: its names are valid.
    #[allow(clippy::unwrap_used)]
    pub fn new(cluster: ClusterName) -> Self {
        let details = |name: &str, cpus: u32, micros: u64| TypeDetails {
            node_type: NodeType::parse(name).unwrap(),
            cpu_millicores: cpus * 1_000,
            memory_mb: cpus * 4_096,
            price_per_hour: Some(crate::MicroUsd(micros)),
        };
        Self {
            cluster,
            zones: vec![Zone::parse("memory-a").unwrap()],
            types: vec![details("small", 2, 50_000), details("large", 8, 200_000)],
            honours_tokens: true,
            list_lags: Duration::ZERO,
            boots_in: Duration::ZERO,
            stops_in: Duration::ZERO,
            quota: usize::MAX,
            clock: Arc::new(time::now),
        }
    }
}

/// See the module's documentation. Clones, and those of [`MemoryProvider::of_cluster`], share one world.
#[derive(Clone)]
pub struct MemoryProvider {
    options: Arc<MemoryOptions>,
    shared: Arc<Shared>,
}

struct Shared {
    world: Mutex<World>,
    faults: Mutex<Faults>,
    halted: watch::Sender<bool>,
}

#[derive(Default)]
struct Faults {
    calls: u64,
    at: BTreeMap<u64, Fault>,
    next: Vec<(Call, Fault)>,
}

impl Faults {
    fn of_next_call(&mut self, call: Call) -> Option<Fault> {
        let number = self.calls;
        self.calls += 1;
        if let Some(fault) = self.at.remove(&number) {
            return Some(fault);
        }
        let index = self.next.iter().position(|(of, _)| *of == call)?;
        Some(self.next.remove(index).1)
    }
}

impl MemoryProvider {
    pub fn new(options: MemoryOptions) -> Self {
        Self {
            options: Arc::new(options),
            shared: Arc::new(Shared {
                world: Mutex::default(),
                faults: Mutex::default(),
                halted: watch::Sender::new(false),
            }),
        }
    }

    /// The same provider as another cluster sees it.
    #[must_use]
    pub fn of_cluster(&self, cluster: ClusterName) -> Self {
        let options = MemoryOptions { cluster, ..MemoryOptions::clone(&self.options) };
        Self { options: Arc::new(options), shared: self.shared.clone() }
    }

    /// How many calls have come so far: the number of the next.
    pub fn calls(&self) -> u64 {
        self.shared.faults.lock().calls
    }

    /// Sets a fault for the call of that number, counted from 0.
    pub fn fault_at(&self, call_number: u64, fault: Fault) {
        self.shared.faults.lock().at.insert(call_number, fault);
    }

    /// Sets a fault for the next call of a kind that has none yet by its number.
    pub fn fault_next(&self, call: Call, fault: Fault) {
        self.shared.faults.lock().next.push((call, fault));
    }

    /// How many nodes of a type a zone has room for; without it, any number.
    pub fn limit_capacity(&self, zone: &Zone, node_type: &NodeType, alive_at_most: usize) {
        self.shared.world.lock().capacity.insert((zone.clone(), node_type.clone()), alive_at_most);
    }

    /// Comes back when a `Halt…` was reached.
    pub async fn halted(&self) {
        // The sender lives as long as `self`.
        let _ = self.shared.halted.subscribe().wait_for(|halted| *halted).await;
    }

    /// Answers again, but not to the calls that were made before: their caller is dead.
    pub fn revive(&self) {
        self.shared.halted.send_replace(false);
    }

    /// A node ends by itself: its host died, or a spot node was taken back.
    pub fn interrupt(&self, id: &NodeId) {
        self.shared.world.lock().end(id, self.now());
    }

    /// Every node of this cluster that was ever launched, as it truly is: whatever [`Provider::list`] shows.
    pub fn bought(&self) -> Vec<Bought> {
        self.shared.world.lock().of_cluster(&self.options.cluster)
    }

    /// Those of [`Self::bought`] that nobody ended: what goes on costing money.
    pub fn alive(&self) -> Vec<Bought> {
        self.bought().into_iter().filter(|bought| bought.ended_at.is_none()).collect()
    }

    fn now(&self) -> Timestamp {
        (self.options.clock)()
    }

    /// One call, with what was set to go wrong with it. Others get to run before it and after its effect.
    async fn call<T>(
        &self,
        call: Call,
        attempted: &str,
        effect: impl FnOnce(&mut World, Timestamp) -> Result<T, ProviderError>,
    ) -> Result<T, ProviderError> {
        tokio::task::yield_now().await;
        if *self.shared.halted.borrow() {
            return std::future::pending().await;
        }
        let fault = self.shared.faults.lock().of_next_call(call);
        match fault {
            Some(Fault::HaltBefore) => return self.halt().await,
            Some(Fault::Fail(kind)) => return Err(injected(kind, attempted)),
            Some(Fault::HaltAfter | Fault::LoseAnswer) | None => {}
        }
        let answer = effect(&mut self.shared.world.lock(), self.now());
        tokio::task::yield_now().await;
        if fault == Some(Fault::HaltAfter) {
            return self.halt().await;
        }
        if *self.shared.halted.borrow() {
            return std::future::pending().await;
        }
        if fault == Some(Fault::LoseAnswer) {
            return Err(injected(ErrorKind::Unavailable, attempted));
        }
        answer
    }

    async fn halt<T>(&self) -> T {
        self.shared.halted.send_replace(true);
        std::future::pending().await
    }
}

fn injected(kind: ErrorKind, attempted: &str) -> ProviderError {
    let why = "a fault was set for this call";
    match kind {
        ErrorKind::Quota => ProviderError::quota(attempted, why),
        ErrorKind::Capacity => ProviderError::capacity(attempted, why),
        ErrorKind::Credentials => ProviderError::credentials(attempted, why),
        ErrorKind::Invalid => ProviderError::invalid("node_types", attempted, why),
        ErrorKind::NotFound => ProviderError::NotFound { what: attempted.to_owned() },
        ErrorKind::Throttled => ProviderError::throttled(attempted, why),
        ErrorKind::Unavailable => ProviderError::unavailable(attempted, why),
    }
}

#[async_trait]
impl Provider for MemoryProvider {
    fn name(&self) -> &'static str {
        "memory"
    }

    fn capabilities(&self) -> Capabilities {
        Capabilities { needs_bootstrap: false, console: true, user_data: true, spot: true }
    }

    fn zones(&self) -> &[Zone] {
        &self.options.zones
    }

    async fn launch(&self, request: &LaunchRequest) -> Result<Node, ProviderError> {
        let attempted = format!("launch a node of type {}", request.node_type);
        self.call(Call::Launch, &attempted, |world, now| world.launch(&self.options, request, now)).await
    }

    async fn list(&self) -> Result<Vec<Node>, ProviderError> {
        self.call(Call::List, "list the nodes", |world, now| {
            Ok(world.seen_by(&self.options, now.minus(self.options.list_lags)))
        })
        .await
    }

    async fn terminate(&self, id: &NodeId) -> Result<(), ProviderError> {
        self.call(Call::Terminate, &format!("terminate {id}"), |world, now| {
            if world.find(&self.options.cluster, id).is_some() {
                world.end(id, now);
            }
            Ok(())
        })
        .await
    }

    async fn console_output(&self, id: &NodeId) -> Result<ConsoleOutput, ProviderError> {
        self.call(Call::ConsoleOutput, &format!("read the console of {id}"), |world, now| {
            let found = world.find(&self.options.cluster, id);
            let bought = found.ok_or_else(|| ProviderError::NotFound { what: format!("node {id}") })?;
            Ok(bought.console(&self.options, now))
        })
        .await
    }

    async fn describe_types(&self, types: &[NodeType]) -> Result<Vec<TypeDetails>, ProviderError> {
        self.call(Call::DescribeTypes, "describe the node types", |_, _| {
            let known: HashMap<_, _> = self.options.types.iter().map(|details| (&details.node_type, details)).collect();
            Ok(types.iter().filter_map(|name| known.get(name).map(|details| (*details).clone())).collect())
        })
        .await
    }
}

/// Nodes of one token that are alive: more than one is a machine bought twice.
pub fn bought_twice(bought: &[Bought]) -> Vec<ClientToken> {
    let mut alive: HashMap<&ClientToken, usize> = HashMap::new();
    for one in bought.iter().filter(|one| one.ended_at.is_none()) {
        *alive.entry(&one.client_token).or_default() += 1;
    }
    let mut twice: Vec<_> = alive.into_iter().filter(|(_, n)| *n > 1).map(|(token, _)| token.clone()).collect();
    twice.sort();
    twice
}
