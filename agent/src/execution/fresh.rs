//! What follows an invocation that a worker's forked child served: the child's end, a slot as new around the worker, and the
//! next child. See `docs/adr/0021-fresh-python.md`.
//!
//! It is off the way of the answer. Whoever calls meanwhile waits for the worker, since that takes a millisecond
//! ([`Lease::returns`]); only who stopped the child hears of it when nothing of that is left.

use std::{
    borrow::Cow,
    cell::Cell,
    sync::Arc,
    time::{Duration, Instant},
};

use async_trait::async_trait;
use flux_launcher::wire::{EndedReport, ExitStatus};
use flux_protocol::{limits, time};
use flux_secrets::{Patterns, Redactor};
use flux_worker::Over;
use nix::libc::SIGKILL;

use super::{Attempt, serve::end};
use crate::{
    executor::Process,
    launch::Ended,
    node::Node,
    warm::{Forks, Key, Lease, Worker},
};

/// A worker's process, of which the first SIGKILL ends all but itself once it forks.
pub(super) struct Sparing<'a> {
    process: &'a mut dyn Process,
    forks: Option<Arc<Forks>>,
    has_spared: Cell<bool>,
}

impl<'a> Sparing<'a> {
    pub(super) fn new(process: &'a mut dyn Process, forks: Option<Arc<Forks>>) -> Self {
        Self { process, forks, has_spared: Cell::new(false) }
    }
}

#[async_trait]
impl Process for Sparing<'_> {
    fn pid(&self) -> u32 {
        self.process.pid()
    }

    fn started_at_us(&self) -> u64 {
        self.process.started_at_us()
    }

    fn kill(&self, signal: i32) {
        let forks = self.forks.as_ref().is_some_and(|forks| forks.does());
        if signal == SIGKILL && forks && !self.has_spared.replace(true) {
            self.process.start_clearing();
        } else {
            self.process.kill(signal);
        }
    }

    async fn is_alone(&mut self) -> bool {
        self.process.is_alone().await
    }

    async fn wait(&mut self) -> Ended {
        self.process.wait().await
    }
}

/// How a child's invocation came to its end.
#[derive(Debug, Clone, Copy)]
pub(super) struct Turn {
    pub(super) took: Duration,
    /// The end of the child was heard of already.
    pub(super) is_over: bool,
    pub(super) was_stopped: bool,
}

impl Attempt {
    /// Has a worker whose child has served come back.
    pub(super) async fn returns(&mut self, mut worker: Worker, mut lease: Lease, turn: Turn) {
        worker.served += 1;
        if worker.served == 1 && worker.has_grown() {
            let most = limits::WORKER_MEMORY_PERCENT;
            self.notes.push(format!(
                "its module holds more than {most} % of its memory: it is not kept, and the next start is cold"
            ));
            if turn.was_stopped {
                end(&mut *worker.process).await;
            }
            return;
        }
        lease.returns();
        let returning = come_back(Arc::clone(&self.node), worker, lease, turn);
        if turn.was_stopped {
            returning.await;
        } else {
            self.node.tasks.spawn("worker that forks", returning);
        }
    }

    /// Else it would look as if `fresh` had been forgotten.
    pub(super) fn note_cannot_fork(&mut self, why: &str, hidden: Option<&Patterns>) {
        let why = match hidden {
            Some(hidden) => Cow::Owned(Redactor::whole(hidden, why.as_bytes())),
            None => Cow::Borrowed(why.as_bytes()),
        };
        let why = String::from_utf8_lossy(&why);
        self.notes.push(format!(
            "`fresh: true`: once its module is loaded, {why}; so no process can be forked from it, and each start is cold"
        ));
    }
}

async fn come_back(node: Arc<Node>, mut worker: Worker, lease: Lease, turn: Turn) {
    let began = Instant::now();
    let again = tokio::time::timeout(limits::WORKER_RETURNS_WITHIN, begin_anew(&mut worker, turn.is_over)).await;
    if again != Ok(true) {
        tracing::debug!(
            pid = worker.process.pid(),
            "what an invocation left could not be cleared: its worker is ended"
        );
        if turn.was_stopped {
            end(&mut *worker.process).await;
        }
        return;
    }
    if worker.served < limits::WORKER_INVOCATIONS && !worker.has_grown() && is_current(&node, &worker) {
        lease.give_back(worker, turn.took + began.elapsed());
    }
}

async fn begin_anew(worker: &mut Worker, is_over: bool) -> bool {
    let Some(channel) = worker.talk.forking() else { return false };
    // It ends by itself. Killed before, it could be in the midst of its answer, for all that its parent knows.
    if !is_over && channel.until_over().await.is_none() {
        return false;
    }
    if !worker.process.clear().await {
        return false;
    }
    for pipe in &worker.pipes {
        pipe.discard();
    }
    worker.oom_kills = worker.process.oom_kills();
    channel.fork().await.is_ok()
}

/// Whether the worker is what a new one would be: of the current version, with the secrets' values.
pub(super) fn is_current(node: &Node, worker: &Worker) -> bool {
    let version = &worker.version;
    let key = Key { function: version.spec.name.clone(), version: version.version };
    let current = node.functions.current(&key.function).map(|current| current.version);
    current == Some(key.version) && !node.stamps.are_old(&key, worker.secrets.stamps())
}

/// The end of a child as that of a process.
pub(super) fn report(over: &Over, oom_killed: bool) -> EndedReport {
    let status = match over.signal {
        0 => ExitStatus::Exited(over.exit_code),
        signal => ExitStatus::Signaled(signal),
    };
    EndedReport {
        id: 0,
        status,
        oom_killed,
        cpu_us: over.cpu_us,
        memory_peak_bytes: over.peak_bytes,
        ended_at_us: u64::try_from(time::now().as_micros()).unwrap_or(0),
    }
}

/// Whether the kernel has ended something at the memory limit since the worker's last invocation; `None` where it does not say.
pub(super) fn passed_its_memory(worker: &Worker) -> Option<bool> {
    Some(worker.process.oom_kills()? > worker.oom_kills?)
}
