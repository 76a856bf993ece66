//! Waiting for a condition. A test never sleeps: it says what it waits for, how long that may take, and fails with
//! those words.

use std::{fmt::Display, future::Future, panic::Location, time::Duration};

use tokio::time::{Instant, sleep};

const FIRST_PAUSE: Duration = Duration::from_millis(2);
const LONGEST_PAUSE: Duration = Duration::from_millis(50);

/// Polls `condition` until it is true. Panics when it was not within `deadline`, naming `what` and the caller.
///
/// ```
/// # use std::{sync::atomic::{AtomicU32, Ordering}, time::Duration};
/// # tokio::runtime::Runtime::new().expect("runtime").block_on(async {
/// let calls = AtomicU32::new(0);
/// flux_testkit::eventually(Duration::from_secs(5), "a third call", || async {
///     calls.fetch_add(1, Ordering::Relaxed) >= 2
/// })
/// .await;
/// # });
/// ```
#[track_caller]
pub fn eventually<F, Fut>(deadline: Duration, what: impl Display, mut condition: F) -> impl Future<Output = ()>
where
    F: FnMut() -> Fut,
    Fut: Future<Output = bool>,
{
    eventually_some(deadline, what, move || {
        let holds = condition();
        async move { holds.await.then_some(()) }
    })
}

/// Polls `look` until it finds something, and returns that. Panics as [`eventually`] does.
#[track_caller]
pub fn eventually_some<T, F, Fut>(deadline: Duration, what: impl Display, mut look: F) -> impl Future<Output = T>
where
    F: FnMut() -> Fut,
    Fut: Future<Output = Option<T>>,
{
    let caller = Location::caller();
    async move {
        let end = Instant::now() + deadline;
        let mut pause = FIRST_PAUSE;
        loop {
            // A condition that hangs is as unmet as one that is false.
            let found = tokio::time::timeout_at(end, look()).await;
            if let Ok(Some(found)) = found {
                return found;
            }
            assert!(Instant::now() < end, "waited {deadline:?} in vain for {what} ({caller})");
            sleep(pause).await;
            pause = (pause * 3 / 2).min(LONGEST_PAUSE);
        }
    }
}
