//! Going away in order: *drain* (take nothing new, finish what runs), then *kill* at the deadline.
//! A second signal kills at once.

use std::time::Duration;

use tokio_util::sync::CancellationToken;

/// Two edges that tasks wait for. Neither is ever taken back.
#[derive(Debug, Default)]
pub struct Shutdown {
    drain: CancellationToken,
    kill: CancellationToken,
    failed: std::sync::OnceLock<&'static str>,
}

/// What asked for the shutdown.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ShutdownSignal {
    Interrupt,
    Terminate,
}

impl Shutdown {
    pub fn new() -> std::sync::Arc<Self> {
        std::sync::Arc::new(Self::default())
    }

    /// Take nothing new.
    pub fn start_drain(&self) {
        self.drain.cancel();
    }

    /// End now.
    pub fn start_kill(&self) {
        self.drain.cancel();
        self.kill.cancel();
    }

    /// An essential task ended: drain, and let the process exit with an error.
    pub fn fail(&self, task: &'static str) {
        let _ = self.failed.set(task);
        self.drain.cancel();
    }

    /// The essential task that ended, if that is why the process goes.
    pub fn failed(&self) -> Option<&'static str> {
        self.failed.get().copied()
    }

    pub fn is_draining(&self) -> bool {
        self.drain.is_cancelled()
    }

    pub fn is_killed(&self) -> bool {
        self.kill.is_cancelled()
    }

    pub async fn draining(&self) {
        self.drain.cancelled().await;
    }

    pub async fn killed(&self) {
        self.kill.cancelled().await;
    }

    pub fn drain_token(&self) -> CancellationToken {
        self.drain.clone()
    }

    pub fn kill_token(&self) -> CancellationToken {
        self.kill.clone()
    }

    /// Waits for SIGINT or SIGTERM (or for an essential task to end) and starts the drain; a second
    /// signal, or `drain_timeout` passing before `drained` ends, kills. Returns when `drained` did or the kill came.
    pub async fn on_signals(&self, drain_timeout: Duration, drained: impl Future<Output = ()>) -> std::io::Result<()> {
        use tokio::signal::unix::{SignalKind, signal};
        let mut interrupt = signal(SignalKind::interrupt())?;
        let mut terminate = signal(SignalKind::terminate())?;
        let received = tokio::select! {
            _ = interrupt.recv() => Some(ShutdownSignal::Interrupt),
            _ = terminate.recv() => Some(ShutdownSignal::Terminate),
            () = self.draining() => None,
        };
        tracing::info!(signal = ?received, timeout_seconds = drain_timeout.as_secs(), "draining");
        self.start_drain();
        tokio::select! {
            () = drained => {}
            () = tokio::time::sleep(drain_timeout) => tracing::warn!("the drain deadline passed"),
            _ = interrupt.recv() => tracing::warn!("a second signal: ending at once"),
            _ = terminate.recv() => tracing::warn!("a second signal: ending at once"),
        }
        self.start_kill();
        Ok(())
    }
}
