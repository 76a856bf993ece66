//! Whether the server stores what it is sent.
//!
//! A `nats-server` that could not write a message, because its disk was full, answers no publish to that stream any more,
//! also when there is room again, until it is started anew (seen with 2.15.1); everything else it answers as before. So what
//! tells is a stream from which no ack came for a while though publishes were tried.

use std::{
    collections::HashMap,
    sync::atomic::{AtomicBool, Ordering},
    time::Duration,
};

use parking_lot::Mutex;
use tokio::time::Instant;

/// Streams whose publishes are not acked. Empty, and then it costs nothing, unless something is wrong.
#[derive(Debug, Default)]
pub(super) struct Storing {
    any: AtomicBool,
    unacked: Mutex<HashMap<String, Unacked>>,
}

#[derive(Debug, Clone, Copy)]
struct Unacked {
    /// When the first of them was sent, and when the last was given up.
    since: Instant,
    last: Instant,
    /// The connection that they were sent on: another one may be to a server that is well.
    connects: u64,
}

/// What nobody tried since says nothing of now: the stream may have found its leader again, and nothing came for it.
const SAYS_WITHIN: Duration = Duration::from_secs(10);

/// What of a subject stands for its stream.
fn stream_of(subject: &str) -> &str {
    let second_dot = subject.match_indices('.').nth(1).map_or(subject.len(), |(at, _)| at);
    subject.get(..second_dot).unwrap_or(subject)
}

impl Storing {
    /// A publish got no answer within this time.
    pub(super) fn unanswered(&self, subject: &str, within: Duration, connects: u64, now: Instant) {
        let since = now.checked_sub(within).unwrap_or(now);
        let mut unacked = self.unacked.lock();
        let new = Unacked { since, last: now, connects };
        let entry = unacked.entry(stream_of(subject).to_owned()).or_insert(new);
        if entry.connects != connects || entry.is_old(now) {
            *entry = new;
        }
        entry.last = now;
        self.any.store(true, Ordering::Release);
    }

    pub(super) fn answered(&self, subject: &str) {
        if !self.any.load(Ordering::Acquire) {
            return;
        }
        let mut unacked = self.unacked.lock();
        unacked.remove(stream_of(subject));
        self.any.store(!unacked.is_empty(), Ordering::Release);
    }

    /// For how long the longest of them, on this connection: from the first to the last that was tried, so that one alone is
    /// little.
    pub(super) fn nothing_for(&self, connects: u64, now: Instant) -> Option<Duration> {
        if !self.any.load(Ordering::Acquire) {
            return None;
        }
        let mut unacked = self.unacked.lock();
        unacked.retain(|_, one| one.connects == connects && !one.is_old(now));
        self.any.store(!unacked.is_empty(), Ordering::Release);
        unacked.values().map(|one| one.last.duration_since(one.since)).max()
    }
}

impl Unacked {
    fn is_old(&self, now: Instant) -> bool {
        now.duration_since(self.last) > SAYS_WITHIN
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TRY: Duration = Duration::from_secs(2);

    #[test]
    fn a_stream_that_acks_nothing_is_seen_and_forgotten_when_it_does() {
        let (storing, now) = (Storing::default(), Instant::now());
        assert_eq!(storing.nothing_for(1, now), None);
        storing.unanswered("flux.invoke.f", TRY, 1, now);
        storing.answered("flux.call.f");
        storing.unanswered("flux.invoke.g", TRY, 1, now + TRY);
        assert_eq!(storing.nothing_for(1, now + TRY), Some(2 * TRY));
        storing.answered("flux.invoke.h");
        assert_eq!(storing.nothing_for(1, now + TRY), None);
    }

    #[test]
    fn one_that_was_given_up_does_not_grow_and_is_forgotten() {
        let (storing, now) = (Storing::default(), Instant::now());
        storing.unanswered("flux.dlq.f", TRY, 1, now);
        assert_eq!(storing.nothing_for(1, now + 2 * TRY), Some(TRY));
        assert_eq!(storing.nothing_for(1, now + SAYS_WITHIN + TRY), None);
        storing.unanswered("flux.dlq.f", TRY, 1, now + 2 * SAYS_WITHIN);
        assert_eq!(storing.nothing_for(1, now + 2 * SAYS_WITHIN), Some(TRY), "a new trouble");
    }

    #[test]
    fn another_connection_begins_anew() {
        let (storing, now) = (Storing::default(), Instant::now());
        storing.unanswered("$KV.flux_functions.f", TRY, 1, now);
        assert_eq!(storing.nothing_for(2, now), None);
        storing.unanswered("$KV.flux_functions.f", TRY, 2, now);
        assert_eq!(storing.nothing_for(2, now), Some(TRY));
    }
}
