//! A door for so many at once. A short crowd waits before it; one that does not end is turned away.
//!
//! Queueing helps against bursts alone. Where more comes than can be done, a queue is always full, and all that it
//! does is to add its length to every answer. So whoever finds no room waits, but only until there has been none for
//! [`BURST`]: from then on the door is *pressed*, and refuses at once, until nobody found it full for as long.
//!
//! ```text
//!            no room                  for BURST, again and again
//!   open ───────────────► crowded ──────────────────────────► pressed
//!     ▲   (waits for room)    │                                   │ (refuses)
//!     └───────────────────────┴──── nobody found it full for BURST┘
//! ```
//!
//! How much is free just now says nothing: what is inside ends together, when the disk has taken a group of it.

use std::sync::Arc;

use flux_protocol::{ErrorCode, limits::BURST};
use parking_lot::Mutex;
use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore},
    time::{Instant, timeout_at},
};

use crate::refusal::Refusal;

pub(super) struct Gate {
    what: &'static str,
    room: usize,
    places: Arc<Semaphore>,
    crowd: Mutex<Option<Crowd>>,
}

/// Who found no room, one after the other with less than [`BURST`] in between: when the first did, and the last.
#[derive(Debug, Clone, Copy)]
struct Crowd {
    first: Instant,
    last: Instant,
}

impl Gate {
    pub(super) fn new(what: &'static str, room: usize) -> Self {
        let room = room.max(1);
        Self { what, room, places: Arc::new(Semaphore::new(room)), crowd: Mutex::new(None) }
    }

    /// A place, for as long as it is held.
    pub(super) async fn enter(&self) -> Result<OwnedSemaphorePermit, Refusal> {
        if let Ok(place) = Arc::clone(&self.places).try_acquire_owned() {
            return Ok(place);
        }
        match timeout_at(self.crowded_at(Instant::now()) + BURST, Arc::clone(&self.places).acquire_owned()).await {
            Ok(Ok(place)) => Ok(place),
            _ => Err(Refusal::new(
                ErrorCode::TooManyRequests,
                format!(
                    "this gateway has been full of {} for {} ms ({} at once); try again",
                    self.what,
                    BURST.as_millis(),
                    self.room
                ),
            )),
        }
    }

    /// One more finds no room: since when there has been none.
    fn crowded_at(&self, now: Instant) -> Instant {
        let mut crowd = self.crowd.lock();
        let first = crowd.filter(|crowd| now.duration_since(crowd.last) < BURST).map_or(now, |crowd| crowd.first);
        *crowd = Some(Crowd { first, last: now });
        first
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_burst_waits_for_its_turn() {
        let gate = Gate::new("tests", 2);
        let all = futures::future::join_all((0..8).map(|_| async {
            let place = gate.enter().await;
            tokio::time::sleep(Duration::from_millis(100)).await;
            place.is_ok()
        }));
        assert!(all.await.into_iter().all(|entered| entered), "four rounds of 100 ms are a burst");
    }

    #[tokio::test(start_paused = true)]
    async fn a_crowd_that_stays_is_refused_at_once_until_there_is_room() {
        let gate = Gate::new("tests", 4);
        let mut held = Vec::new();
        for _ in 0..4 {
            held.push(gate.enter().await.expect("there is room"));
        }
        let begun = Instant::now();
        let (first, later) = tokio::join!(gate.enter(), async {
            tokio::time::sleep(BURST / 2).await;
            gate.enter().await
        });
        assert!(first.is_err() && later.is_err());
        assert_eq!(begun.elapsed(), BURST, "both wait until there has been none for so long");
        let refusal = gate.enter().await.expect_err("there is none");
        assert_eq!(begun.elapsed(), BURST, "the next does not");
        assert_eq!((refusal.code, refusal.retry_after.is_some()), (ErrorCode::TooManyRequests, true));
        // All of it is free for a moment and taken again: the door stays pressed.
        held.clear();
        for _ in 0..4 {
            held.push(gate.enter().await.expect("a place is free"));
        }
        assert!(gate.enter().await.is_err());
        assert_eq!(begun.elapsed(), BURST);
        held.clear();
        tokio::time::sleep(BURST).await;
        for _ in 0..4 {
            held.push(gate.enter().await.expect("there is room again"));
        }
        let begun = Instant::now();
        assert!(gate.enter().await.is_err());
        assert_eq!(begun.elapsed(), BURST, "it is a new crowd");
    }
}
