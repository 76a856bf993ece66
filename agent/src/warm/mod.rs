//! The warm pool: workers that wait for their function's next invocation.
//!
//! ```text
//!                start                 take                    answered, and fit
//!   (none) ──────────────► serving ◄───────── idle ◄───────────────────────────────┐
//!                             │                │ keep_warm, redeployed, a secret    │
//!                             │                ▼ was changed, room is needed       │
//!                             │             (killed) ◄── died, printed unasked     │
//!                             ├── crash, timeout, cancel, not fit ──► (killed)     │
//!                             └────────────────────────────────────────────────────┘
//! ```
//!
//! A worker that waits takes nothing of the planner's budget, so it never keeps work away. What runs and what waits share the
//! memory that the agent may use ([`WarmPool::claim`]): before something starts, those go that waited longest.
//!
//! Starting takes longer than most calls. So whoever finds no worker free waits a little for one that serves, if those have
//! been quick lately ([`line::Line::patience`]).

mod channel;
mod line;
mod shelf;
mod talk;
#[cfg(test)]
mod tests;
mod worker;

use std::{
    collections::HashMap,
    sync::Arc,
    time::{Duration, Instant},
};

use flux_protocol::FunctionName;
use parking_lot::Mutex;
use tokio::sync::{Notify, oneshot};

pub(crate) use channel::{Channel, Died, Exchange, FirstWords, Forks, Served};
use line::Line;
pub(crate) use shelf::Key;
use shelf::Shelf;
pub(crate) use talk::Talk;
pub(crate) use worker::{Parts, Unfit, Worker};

#[derive(Default)]
struct State {
    shelf: Shelf<Worker>,
    lines: HashMap<Key, Line<(Worker, Lease)>>,
    /// Of executions that run.
    running_mb: u64,
    /// When the tender looks again, where it waits for a time.
    looks_at: Option<Instant>,
}

/// What there is for who needs a worker.
#[expect(
    clippy::large_enum_variant,
    reason = "it lives for a moment, and a box would be an allocation for each warm call"
)]
enum Found {
    /// Counted as one that serves.
    Idle(Worker),
    /// Nothing yet; it is worth waiting so long.
    Busy(Duration, oneshot::Receiver<(Worker, Lease)>),
    Nothing,
}

impl State {
    fn find(&mut self, key: &Key) -> Found {
        if let Some(worker) = self.shelf.take(key) {
            self.lines.entry(key.clone()).or_default().serving += 1;
            return Found::Idle(worker);
        }
        let line = self.lines.get_mut(key);
        match line.and_then(|line| line.patience().map(|patience| (patience, line.wait()))) {
            Some((patience, free)) => Found::Busy(patience, free),
            None => Found::Nothing,
        }
    }
}

/// See the module's text.
pub(crate) struct WarmPool {
    state: Mutex<State>,
    /// Something expires before the tender's next look.
    sooner: Notify,
    total_mb: u64,
    most_idle: usize,
}

impl WarmPool {
    /// Never more than `most_idle` wait, and with what runs they never have more than `total_mb`.
    pub(crate) fn new(total_mb: u64, most_idle: usize) -> Self {
        Self { state: Mutex::default(), sooner: Notify::new(), total_mb, most_idle }
    }

    /// A worker that waits, or comes free soon. Whoever gets none is to start one. The lease says that one serves.
    pub(crate) async fn take(self: &Arc<Self>, key: &Key) -> (Lease, Option<Worker>) {
        loop {
            // One look: a worker that comes back is on the shelf by then, or goes to who waits.
            let found = self.state.lock().find(key);
            match found {
                Found::Idle(worker) => {
                    let lease = Lease { pool: Arc::clone(self), key: key.clone(), returns: false };
                    if worker.is_quiet() {
                        return (lease, Some(worker));
                    }
                    tracing::debug!(function = %key.function, "a worker ended, or printed, while it waited; it is replaced");
                }
                Found::Busy(patience, free) => {
                    return match within(patience, free).await {
                        Some((worker, lease)) => (lease, Some(worker).filter(Worker::is_quiet)),
                        None => self.take_idle(key),
                    };
                }
                Found::Nothing => return (self.lease(key), None),
            }
        }
    }

    /// After having waited: what came back and went to nobody who waits.
    fn take_idle(self: &Arc<Self>, key: &Key) -> (Lease, Option<Worker>) {
        let lease = self.lease(key);
        loop {
            let worker = self.state.lock().shelf.take(key);
            if worker.as_ref().is_none_or(Worker::is_quiet) {
                return (lease, worker);
            }
        }
    }

    fn lease(self: &Arc<Self>, key: &Key) -> Lease {
        self.state.lock().lines.entry(key.clone()).or_default().serving += 1;
        Lease { pool: Arc::clone(self), key: key.clone(), returns: false }
    }

    /// Memory for an execution that is about to start: workers that wait go until there is room.
    pub(crate) fn claim(self: &Arc<Self>, memory_mb: u32) -> Claim {
        let memory_mb = u64::from(memory_mb);
        let mut evicted = Vec::new();
        {
            let mut state = self.state.lock();
            state.running_mb += memory_mb;
            while state.running_mb + state.shelf.memory_mb() > self.total_mb {
                let Some(worker) = state.shelf.take_oldest() else { break };
                evicted.push(worker);
            }
        }
        // Killed outside of the lock.
        drop(evicted);
        Claim { pool: Arc::clone(self), memory_mb }
    }

    fn give_back(&self, worker: Worker, mut lease: Lease, took: Duration) {
        let keep_warm = worker.version.spec.keep_warm;
        let memory_mb = worker.memory_mb();
        let key = lease.key.clone();
        let gone = {
            let mut state = self.state.lock();
            let state = &mut *state;
            let line = state.lines.entry(key.clone()).or_default();
            line.served(took);
            if std::mem::take(&mut lease.returns) {
                line.returned(false);
            }
            let Some((worker, lease)) = line.hand_over((worker, lease)) else { return };
            let expires_at = Instant::now() + keep_warm;
            state.shelf.push(&key, worker, memory_mb, expires_at);
            if state.looks_at.is_none_or(|at| expires_at < at) {
                state.looks_at = Some(expires_at);
                self.sooner.notify_one();
            }
            (lease, (state.shelf.count() > self.most_idle).then(|| state.shelf.take_oldest()))
        };
        // Not under the lock, which a lease takes.
        drop(gone);
    }

    /// A function has another current version, or none any more: what waits of others goes.
    pub(crate) fn keep_only(&self, function: &FunctionName, version: Option<u32>) {
        let gone = self.state.lock().shelf.take_others(function, version);
        if !gone.is_empty() {
            tracing::debug!(%function, workers = gone.len(), "workers of another version go");
        }
    }

    /// What waits and is such goes.
    pub(crate) fn forget(&self, goes: impl Fn(&Key, &Worker) -> bool) {
        let gone = self.state.lock().shelf.take_if(goes);
        if !gone.is_empty() {
            tracing::debug!(workers = gone.len(), "workers go that have secrets from before");
        }
    }

    /// What there are workers of, or will be in a moment.
    pub(crate) fn keys(&self) -> Vec<Key> {
        let state = self.state.lock();
        let used = |(key, line): (&Key, &Line<_>)| (line.serving > 0 || state.shelf.has(key)).then(|| key.clone());
        state.lines.iter().filter_map(used).collect()
    }

    /// All that wait go.
    pub(crate) fn clear(&self) {
        let gone = self.state.lock().shelf.take_all();
        drop(gone);
    }

    /// How many wait for a function.
    pub(crate) fn counts(&self) -> HashMap<FunctionName, u32> {
        let mut counts = HashMap::new();
        for (function, count) in self.state.lock().shelf.counts() {
            *counts.entry(function.clone()).or_default() += u32::try_from(count).unwrap_or(u32::MAX);
        }
        counts
    }

    /// Ends the workers whose time is up, for as long as it is run.
    pub(crate) async fn tend(&self) {
        loop {
            let (expired, looks_at) = {
                let mut state = self.state.lock();
                let state = &mut *state;
                let expired = state.shelf.take_expired(Instant::now());
                state.lines.retain(|key, line| line.serving > 0 || state.shelf.has(key));
                state.looks_at = state.shelf.next_expiry();
                (expired, state.looks_at)
            };
            drop(expired);
            match looks_at {
                Some(at) => tokio::select! {
                    () = tokio::time::sleep_until(at.into()) => {}
                    () = self.sooner.notified() => {}
                },
                None => self.sooner.notified().await,
            }
        }
    }
}

/// Waits for a worker; one that came at the very end is not lost.
async fn within<W>(patience: Duration, mut free: oneshot::Receiver<W>) -> Option<W> {
    match tokio::time::timeout(patience, &mut free).await {
        Ok(worker) => worker.ok(),
        Err(_) => {
            free.close();
            free.try_recv().ok()
        }
    }
}

/// That a worker serves, or is started to. Dropped, whoever waits for it hears that it will not come.
pub(crate) struct Lease {
    pool: Arc<WarmPool>,
    key: Key,
    returns: bool,
}

impl Lease {
    /// How long starting took.
    pub(crate) fn started(&self, took: Duration) {
        if let Some(line) = self.pool.state.lock().lines.get_mut(&self.key) {
            line.started(took);
        }
    }

    /// The worker has answered, and will be given back once what its invocation left is gone.
    pub(crate) fn returns(&mut self) {
        if let Some(line) = self.pool.state.lock().lines.get_mut(&self.key) {
            self.returns = true;
            line.returns();
        }
    }

    /// The worker has answered, and can be used again.
    pub(crate) fn give_back(self, worker: Worker, took: Duration) {
        let pool = Arc::clone(&self.pool);
        pool.give_back(worker, self, took);
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        if let Some(line) = self.pool.state.lock().lines.get_mut(&self.key) {
            if self.returns {
                line.returned(true);
            }
            line.ended();
        }
    }
}

/// Memory of an execution that runs.
pub(crate) struct Claim {
    pool: Arc<WarmPool>,
    memory_mb: u64,
}

impl Drop for Claim {
    fn drop(&mut self) {
        self.pool.state.lock().running_mb -= self.memory_mb;
    }
}
