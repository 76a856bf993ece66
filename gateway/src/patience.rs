//! Starting while the queue or the store has a bad moment: an engine that is just coming up, or is as busy as the machine.

use std::{future::Future, time::Duration};

use flux_protocol::limits;
use flux_runtime::Tasks;
use tokio::time::Instant;

const TRY_AGAIN: Duration = Duration::from_millis(100);
const LONGEST: Duration = Duration::from_secs(2);

/// For all steps of one start together.
pub(crate) struct Patience<'t> {
    until: Instant,
    tasks: &'t Tasks,
}

impl<'t> Patience<'t> {
    pub(crate) fn of(tasks: &'t Tasks) -> Self {
        Self { until: Instant::now() + limits::STARTS_WITHIN, tasks }
    }

    /// Goes on while what it meets passes, there is time, and nobody wants the process to end.
    pub(crate) async fn go_on<T, E, F>(&self, passes: impl Fn(&E) -> bool, step: impl Fn() -> F) -> Result<T, E>
    where
        E: std::error::Error + 'static,
        F: Future<Output = Result<T, E>>,
    {
        let mut pause = TRY_AGAIN;
        loop {
            match step().await {
                Err(error) if passes(&error) && Instant::now() < self.until && !self.tasks.shutdown().is_draining() => {
                    tracing::warn!(error = &error as &dyn std::error::Error, "cannot start yet; trying again");
                }
                done => return done,
            }
            tokio::select! {
                () = tokio::time::sleep(pause) => pause = (pause * 2).min(LONGEST),
                () = self.tasks.shutdown().draining() => {}
            }
        }
    }
}
