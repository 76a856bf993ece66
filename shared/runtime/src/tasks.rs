//! The supervisor of a process's tasks. Nothing is detached: each task has a name, its end is noticed,
//! and a panic of one that the process cannot do without ends the process in order.

use std::{future::Future, sync::Arc};

use tokio_util::task::{TaskTracker, task_tracker::TaskTrackerWaitFuture};

use crate::shutdown::Shutdown;

/// Spawns tasks and waits for them. Clones share one set.
#[derive(Clone, Debug)]
pub struct Tasks {
    tracker: TaskTracker,
    shutdown: Arc<Shutdown>,
}

impl Tasks {
    pub fn new(shutdown: Arc<Shutdown>) -> Self {
        Self { tracker: TaskTracker::new(), shutdown }
    }

    pub fn shutdown(&self) -> &Arc<Shutdown> {
        &self.shutdown
    }

    /// Starts a short piece of work that may end at any time, such as one execution. A panic is logged
    /// and stays with that work.
    #[allow(clippy::disallowed_methods)] // the one room in which tasks are spawned
    pub fn spawn<F>(&self, name: &'static str, work: F)
    where
        F: Future<Output = ()> + Send + 'static,
    {
        let guard = PanicGuard { name, on_panic: None };
        self.tracker.spawn(async move {
            work.await;
            guard.ended();
        });
    }

    /// Starts a task that the process cannot do without. When it ends before shutdown was asked for,
    /// or panics, the process is told to shut down, so that whoever supervises it starts it anew.
    #[allow(clippy::disallowed_methods)] // as above
    pub fn spawn_essential<F>(&self, name: &'static str, work: F)
    where
        F: Future<Output = ()> + Send + 'static,
    {
        let shutdown = Arc::clone(&self.shutdown);
        let guard = PanicGuard { name, on_panic: Some(Arc::clone(&self.shutdown)) };
        self.tracker.spawn(async move {
            work.await;
            guard.ended();
            if !shutdown.is_draining() {
                tracing::error!(task = name, "an essential task ended; shutting down");
                shutdown.fail(name);
            }
        });
    }

    /// Ends when every task has. New ones may still be spawned meanwhile and are waited for too.
    pub fn wait(&self) -> TaskTrackerWaitFuture<'_> {
        self.tracker.close();
        self.tracker.wait()
    }

    pub fn len(&self) -> usize {
        self.tracker.len()
    }

    pub fn is_empty(&self) -> bool {
        self.tracker.is_empty()
    }
}

struct PanicGuard {
    name: &'static str,
    on_panic: Option<Arc<Shutdown>>,
}

impl PanicGuard {
    fn ended(mut self) {
        self.name = "";
        self.on_panic = None;
    }
}

impl Drop for PanicGuard {
    fn drop(&mut self) {
        if self.name.is_empty() || !std::thread::panicking() {
            return;
        }
        tracing::error!(task = self.name, "a task panicked");
        if let Some(shutdown) = &self.on_panic {
            shutdown.fail(self.name);
        }
    }
}
