//! Current versions by name, so that the path of a call meets no store.
//!
//! A miss reads the store. A change in the functions' table, which every gateway watches, drops the entry it
//! concerns, unless it says what the entry says; the next use reads again. A change that comes while a read is under way keeps its result from being
//! remembered, so an old version cannot stick.
//!
//! Bounded: two generations of names; the older one goes when the younger is full.

use std::{
    collections::HashMap,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};

use flux_broker::{Broker, Change, Table};
use flux_protocol::{
    ErrorCode, FunctionName, FunctionSpec, FunctionVersion, Lane, subject::QueueName, suggest::nearest,
};
use flux_runtime::Tasks;
use flux_store::{SharedStore, StoreError};
use futures::StreamExt as _;
use parking_lot::{Mutex, RwLock};

use super::{admission::Summary, fleet::Fleet};
use crate::refusal::Refusal;

/// Names in one generation.
const GENERATION: usize = 10_000;

/// One version with what an invocation of it needs, made once.
#[derive(Debug)]
pub(super) struct Runnable {
    pub(super) version: FunctionVersion,
    call: QueueName,
    invoke: QueueName,
    /// The queue's tables, which agents read, have this version.
    published: AtomicBool,
    /// The fleet as this version sees it, with the generation of the view that it was made from.
    summary: Mutex<Option<(u64, Summary)>>,
}

impl Runnable {
    pub(super) fn new(version: FunctionVersion) -> Self {
        let queue = |lane| QueueName::new(lane, version.spec.pool.clone(), version.spec.name.clone());
        Self {
            call: queue(Lane::Call),
            invoke: queue(Lane::Invoke),
            published: AtomicBool::new(false),
            summary: Mutex::new(None),
            version,
        }
    }

    pub(super) fn is_published(&self) -> bool {
        self.published.load(Ordering::Acquire)
    }

    pub(super) fn set_published(&self) {
        self.published.store(true, Ordering::Release);
    }

    pub(super) fn spec(&self) -> &FunctionSpec {
        &self.version.spec
    }

    pub(super) fn queue(&self, lane: Lane) -> &QueueName {
        match lane {
            Lane::Call => &self.call,
            Lane::Invoke => &self.invoke,
        }
    }

    pub(super) fn summary(&self, fleet: &Fleet) -> Summary {
        let generation = fleet.generation();
        if let Some((of, summary)) = *self.summary.lock()
            && of == generation
        {
            return summary;
        }
        let (generation, summary) = fleet.summary(self.spec());
        *self.summary.lock() = Some((generation, summary));
        summary
    }

    /// A function without code cannot be invoked.
    pub(super) fn require_code(&self) -> Result<(), Refusal> {
        if self.version.is_runnable() {
            return Ok(());
        }
        let name = self.version.name();
        Err(Refusal::new(
            ErrorCode::FunctionNotDeployed,
            format!("`{name}` is registered but has no code yet: deploy it with `flux deploy` or PUT /deploy/{name}"),
        ))
    }
}

#[derive(Default)]
struct Generations {
    young: HashMap<FunctionName, Arc<Runnable>>,
    old: HashMap<FunctionName, Arc<Runnable>>,
}

pub(super) struct FunctionCache {
    store: SharedStore,
    names: RwLock<Generations>,
    /// Grows with each change heard of.
    changes: AtomicU64,
}

impl FunctionCache {
    pub(super) fn start(store: SharedStore, broker: Arc<dyn Broker>, tasks: &Tasks) -> Arc<Self> {
        let cache = Arc::new(Self { store, names: RwLock::default(), changes: AtomicU64::new(0) });
        let watching = Arc::clone(&cache);
        let killed = tasks.shutdown().kill_token();
        tasks.spawn_essential("function-cache", async move {
            tokio::select! {
                () = watching.follow(broker) => {}
                () = killed.cancelled() => {}
            }
        });
        cache
    }

    /// The current version; `None` when there is no such function.
    pub(super) async fn current(&self, name: &FunctionName) -> Result<Option<Arc<Runnable>>, StoreError> {
        if let Some(found) = self.cached(name) {
            return Ok(Some(found));
        }
        let changes = self.changes.load(Ordering::Acquire);
        let Some(function) = self.store.function(name).await? else { return Ok(None) };
        let found = Arc::new(Runnable::new(function.current));
        let mut names = self.names.write();
        if self.changes.load(Ordering::Acquire) == changes {
            names.insert(name.clone(), Arc::clone(&found));
        }
        Ok(Some(found))
    }

    /// The current version if it is remembered.
    pub(super) fn known(&self, name: &FunctionName) -> Option<Arc<Runnable>> {
        let names = self.names.read();
        names.young.get(name).or_else(|| names.old.get(name)).cloned()
    }

    /// As [`Self::current`]; unknown is a refusal that names the nearest known function.
    pub(super) async fn require(&self, name: &FunctionName) -> Result<Arc<Runnable>, Refusal> {
        match self.current(name).await? {
            Some(found) => Ok(found),
            None => Err(self.not_found(name)),
        }
    }

    /// The version asked for, which need not be the current one.
    pub(super) async fn require_version(
        &self,
        name: &FunctionName,
        version: Option<u32>,
    ) -> Result<Arc<Runnable>, Refusal> {
        let current = self.require(name).await?;
        let Some(version) = version.filter(|version| *version != current.version.version) else { return Ok(current) };
        match self.store.function_version(name, version).await? {
            Some(found) => Ok(Arc::new(Runnable::new(found))),
            None => Err(version_not_found(name, version)),
        }
    }

    pub(super) fn not_found(&self, name: &FunctionName) -> Refusal {
        let names = self.names.read();
        let known = names.young.keys().chain(names.old.keys()).map(FunctionName::as_str);
        let message = match nearest(name.as_str(), known) {
            Some(near) => format!("there is no function `{name}`; did you mean `{near}`?"),
            None => {
                format!(
                    "there is no function `{name}`; register it with PUT /functions or `flux deploy DIR --name {name}`"
                )
            }
        };
        Refusal::new(ErrorCode::FunctionNotFound, message)
    }

    pub(super) fn forget(&self, name: &FunctionName) {
        let mut names = self.names.write();
        self.changes.fetch_add(1, Ordering::AcqRel);
        names.young.remove(name);
        names.old.remove(name);
    }

    pub(super) fn forget_all(&self) {
        let mut names = self.names.write();
        self.changes.fetch_add(1, Ordering::AcqRel);
        *names = Generations::default();
    }

    fn cached(&self, name: &FunctionName) -> Option<Arc<Runnable>> {
        let found = {
            let names = self.names.read();
            if let Some(found) = names.young.get(name) {
                return Some(Arc::clone(found));
            }
            Arc::clone(names.old.get(name)?)
        };
        let mut names = self.names.write();
        // It may have been dropped between the two locks: then what was found is old.
        names.old.remove(name)?;
        names.insert(name.clone(), Arc::clone(&found));
        Some(found)
    }

    async fn follow(&self, broker: Arc<dyn Broker>) {
        loop {
            match broker.watch(Table::Functions, false).await {
                Ok(mut changes) => {
                    while let Some(change) = changes.next().await {
                        match change {
                            Ok(Change::Put(entry)) if self.is_known(&entry.key, &entry.value) => {}
                            Ok(Change::Put(entry)) => self.changed(&entry.key),
                            Ok(Change::Deleted { key, .. }) => self.changed(&key),
                            // What was read before the watch saw the present may be old.
                            Ok(Change::Synced) => self.forget_all(),
                            Err(error) => {
                                tracing::warn!(
                                    error = &error as &dyn std::error::Error,
                                    "the watch on functions broke; starting it again"
                                );
                                break;
                            }
                        }
                    }
                }
                Err(error) => {
                    tracing::warn!(
                        error = &error as &dyn std::error::Error,
                        "cannot watch the functions; trying again"
                    );
                }
            }
            // What changed while nobody watched is not known.
            self.forget_all();
            tokio::time::sleep(Duration::from_millis(500)).await;
        }
    }

    /// Whether the change says what is cached already, as each deployment's own does a moment after it was made.
    fn is_known(&self, key: &str, value: &[u8]) -> bool {
        let Ok(name) = FunctionName::parse(key) else { return false };
        let Ok(said) = serde_json::from_slice::<FunctionVersion>(value) else { return false };
        let names = self.names.read();
        let is_known =
            names.young.get(&name).or_else(|| names.old.get(&name)).is_some_and(|cached| cached.version == said);
        if is_known {
            // What is being read may be older than what is said.
            self.changes.fetch_add(1, Ordering::AcqRel);
        }
        is_known
    }

    fn changed(&self, key: &str) {
        if let Ok(name) = FunctionName::parse(key) {
            self.forget(&name);
        }
    }
}

impl Generations {
    fn insert(&mut self, name: FunctionName, found: Arc<Runnable>) {
        if self.young.len() >= GENERATION {
            self.old = std::mem::take(&mut self.young);
        }
        self.young.insert(name, found);
    }
}

pub(super) fn version_not_found(name: &FunctionName, version: u32) -> Refusal {
    Refusal::new(
        ErrorCode::VersionNotFound,
        format!("`{name}` has no version {version}; GET /functions/{name} lists those that are kept"),
    )
}
