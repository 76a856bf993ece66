//! How many outcomes may be on their way to the record at once, and whether the queue is so far behind that nothing more
//! is pulled.
//!
//! Whatever is in flight waits at the server with everything else, and what waits there for longer than its ack wait is
//! delivered again: more work for a server that is behind already. So the window follows how long the server takes, as TCP's
//! does: it grows by one with each outcome that is recorded in time, and halves when one is late.

use std::time::{Duration, Instant};

use parking_lot::Mutex;
use tokio::sync::{Notify, watch};

/// Where it begins: a queue that is well opens it within a few round trips.
const FIRST: usize = 16;
/// An outcome that took longer to record is late. A sixth of the ack wait.
const LATE: Duration = Duration::from_millis(250);
/// After one that took longer nothing is pulled, until one is in time again or none is on its way. A third of the ack wait.
const BEHIND: Duration = Duration::from_millis(500);

#[derive(Debug)]
struct State {
    in_flight: usize,
    limit: usize,
    most: usize,
    /// It is not halved again for what was on its way by then.
    halved_at: Option<Instant>,
}

impl State {
    fn new(most: usize) -> Self {
        Self { in_flight: 0, limit: FIRST.min(most), most, halved_at: None }
    }

    fn try_begin(&mut self) -> bool {
        let may = self.in_flight < self.limit;
        self.in_flight += usize::from(may);
        may
    }

    /// An outcome that was sent at `began` is on its way no more. Whether the queue is behind, if that is known.
    fn ended(&mut self, began: Instant, now: Instant) -> Option<bool> {
        self.in_flight -= 1;
        let took = now - began;
        if took <= LATE {
            self.limit = (self.limit + 1).min(self.most);
        } else if self.halved_at.is_none_or(|halved_at| began >= halved_at) {
            self.limit = (self.limit / 2).max(1);
            self.halved_at = Some(now);
        }
        match took {
            took if took > BEHIND && self.in_flight > 0 => Some(true),
            took if took <= LATE || self.in_flight == 0 => Some(false),
            _ => None,
        }
    }
}

#[derive(Debug)]
pub(crate) struct Window {
    state: Mutex<State>,
    /// One has come to its end.
    ended: Notify,
    behind: watch::Sender<bool>,
}

/// One outcome on its way. It is there, or given up, when this is dropped.
#[derive(Debug)]
pub(crate) struct OnItsWay<'a> {
    window: &'a Window,
    began: Instant,
}

impl Window {
    pub(crate) fn new(most: usize) -> Self {
        Self { state: Mutex::new(State::new(most)), ended: Notify::new(), behind: watch::Sender::new(false) }
    }

    /// Waits for a place.
    pub(crate) async fn begin(&self) -> OnItsWay<'_> {
        loop {
            // Before it is looked, so that no end is missed.
            let ended = self.ended.notified();
            if self.state.lock().try_begin() {
                return OnItsWay { window: self, began: Instant::now() };
            }
            ended.await;
        }
    }

    /// Whether nothing more is to be pulled.
    pub(crate) fn behind(&self) -> watch::Receiver<bool> {
        self.behind.subscribe()
    }
}

impl Drop for OnItsWay<'_> {
    fn drop(&mut self) {
        let mut state = self.window.state.lock();
        // Said in the order in which they ended: the last one alone knows that nothing is on its way.
        if let Some(behind) = state.ended(self.began, Instant::now()) {
            self.window.behind.send_if_modified(|said| std::mem::replace(said, behind) != behind);
        }
        drop(state);
        // The window may have grown by one as well.
        self.window.ended.notify_one();
        self.window.ended.notify_one();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: Duration = Duration::from_millis(1);

    /// What a server that records `per_second` outcomes, and an agent that always has more, come to: the most that waited,
    /// in milliseconds, after `warm_up_ms`.
    fn longest_wait_ms(per_second: u32, ms: u32, warm_up_ms: u32) -> u128 {
        let mut state = State::new(128);
        let start = Instant::now();
        let mut waiting = std::collections::VecDeque::new();
        let (mut owed, mut longest) = (0, 0);
        for n in 0..ms {
            let now = start + MS * n;
            while state.try_begin() {
                waiting.push_back(now);
            }
            owed += per_second;
            while owed >= 1_000 {
                owed -= 1_000;
                let Some(began) = waiting.pop_front() else { break };
                if n > warm_up_ms {
                    longest = longest.max((now - began).as_millis());
                }
                state.ended(began, now);
            }
        }
        longest
    }

    #[test]
    fn a_quick_queue_has_the_whole_window_and_a_slow_one_is_not_flooded() {
        assert!(longest_wait_ms(10_000, 2_000, 0) < 20);
        for per_second in [5, 20, 100, 400] {
            let longest = longest_wait_ms(per_second, 60_000, 20_000);
            assert!(longest <= 700, "{per_second}/s: {longest} ms");
        }
        let mut state = State::new(128);
        let now = Instant::now();
        for _ in 0..200 {
            assert!(state.try_begin());
            state.ended(now, now + MS);
        }
        assert_eq!(state.limit, 128);
    }

    #[test]
    fn a_queue_that_is_behind_is_left_alone_until_it_is_not() {
        let window = Window::new(64);
        let mut state = window.state.lock();
        let now = Instant::now();
        assert!(state.try_begin() && state.try_begin() && state.try_begin());
        assert_eq!(state.ended(now, now + MS * 300), None, "late, and no more");
        assert_eq!(state.ended(now, now + MS * 600), Some(true));
        assert_eq!(state.limit, FIRST / 2, "halved once for what was on its way together");
        assert_eq!(state.ended(now, now + MS * 900), Some(false), "nothing is left that would say so");
    }

    #[tokio::test]
    async fn who_waits_for_a_place_gets_it() {
        let window = Window::new(1);
        let first = window.begin().await;
        let second = window.begin();
        tokio::pin!(second);
        assert!(futures::poll!(&mut second).is_pending());
        drop(first);
        assert!(futures::poll!(&mut second).is_ready());
    }
}
