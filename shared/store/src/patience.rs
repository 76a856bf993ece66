//! Calls to a store that is a server: tried again while it may come back, and over within a limit that has a name.

use std::{
    sync::atomic::{AtomicBool, Ordering},
    time::Duration,
};

use flux_protocol::limits;
use tokio::time::{Instant, sleep, timeout_at};

const FIRST_PAUSE: Duration = Duration::from_millis(10);
const LONGEST_PAUSE: Duration = Duration::from_millis(250);
/// Whoever lost a race comes again within this, at random, so that the same do not meet again.
const RACE_PAUSE_MICROS: u64 = 5_000;

/// Whether the same call may come through.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Again {
    Never,
    /// Somebody else was quicker: at once.
    Raced,
    /// When the server is back.
    Away,
}

pub(crate) trait Failure: Send + Sized {
    fn again(&self) -> Again;
    /// Nothing came within the limit.
    fn late() -> Self;
}

/// Whether the server answered lately. While it is known to be away a call tries once: who waits behind a server that
/// is gone only adds to what waits.
#[derive(Debug, Default)]
pub(crate) struct Patience {
    away: AtomicBool,
}

impl Patience {
    /// Calls `attempt` until it succeeds or fails for good, for at most [`limits::STORE_CALL`]. An attempt that is cut off
    /// is dropped, and must leave nothing half done behind: what it had connected is not used again.
    pub(crate) async fn call<T, F, Fut>(&self, place: &str, attempt: impl Fn() -> Fut + Send) -> Result<T, F>
    where
        F: Failure,
        Fut: Future<Output = Result<T, F>> + Send,
    {
        let end = Instant::now() + limits::STORE_CALL;
        let mut pause = FIRST_PAUSE;
        let mut last = None;
        loop {
            let Ok(done) = timeout_at(end, attempt()).await else {
                self.say_away(place);
                return Err(last.unwrap_or_else(F::late));
            };
            let failure = match done {
                Ok(done) => {
                    self.say_back(place);
                    return Ok(done);
                }
                Err(failure) => failure,
            };
            let wait = match failure.again() {
                Again::Never => return Err(failure),
                Again::Raced => Duration::from_micros(rand::random_range(0..RACE_PAUSE_MICROS)),
                Again::Away if self.away.load(Ordering::Relaxed) => return Err(failure),
                Again::Away => pause,
            };
            if Instant::now() + wait >= end {
                if failure.again() == Again::Away {
                    self.say_away(place);
                }
                return Err(failure);
            }
            pause = (pause * 2).min(LONGEST_PAUSE);
            sleep(wait).await;
            last = Some(failure);
        }
    }

    fn say_away(&self, place: &str) {
        if !self.away.swap(true, Ordering::Relaxed) {
            tracing::warn!(store = place, "the store does not answer; until it does, calls are tried once and refused");
        }
    }

    fn say_back(&self, place: &str) {
        if self.away.swap(false, Ordering::Relaxed) {
            tracing::info!(store = place, "the store answers again");
        }
    }
}
