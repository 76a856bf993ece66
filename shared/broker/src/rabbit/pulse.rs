//! How late may a delivery be? The server gives what it sent over a connection to another once it has closed that one: 4 s after it
//! last heard of it. What lay on its way meanwhile, or in front of a process that stood still, is read all the same, before
//! the end of the connection is. So who pulls asks the server for an answer now and then, over the same connection; while one is
//! overdue, all that comes may be another's.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use lapin::{Channel, options::BasicQosOptions};
use parking_lot::Mutex;
use tokio::time::{Instant, MissedTickBehavior};

use super::{Parts, session::HEARTBEAT_S};

const ASK_EVERY: Duration = Duration::from_millis(400);
/// Without an answer for as long something stood still. The server needs twice as long to close a connection.
const QUIET: Duration = Duration::from_secs(HEARTBEAT_S as u64);
/// When it goes on, all that lay there comes within this.
const CAUGHT_UP_WITHIN: Duration = Duration::from_secs(2);

/// Of this process's connection.
#[derive(Default)]
pub(super) struct Pulse {
    begun: AtomicBool,
    heard: Mutex<Heard>,
}

#[derive(Default)]
struct Heard {
    /// The connection that answers, by its number. `None` before the first.
    connection: Option<u64>,
    /// The last answer, or when the connection was made. `None` before the first pull.
    at: Option<Instant>,
    late_until: Option<Instant>,
}

impl Heard {
    /// Nothing lies on another connection than before. On the same one, asked over another channel, everything does.
    fn asks(&mut self, connection: u64, now: Instant) {
        if self.connection != Some(connection) {
            *self = Self { connection: Some(connection), at: Some(now), late_until: None };
        }
    }

    fn answered(&mut self, now: Instant) {
        self.may_be_late(now);
        self.at = Some(now);
    }

    fn may_be_late(&mut self, now: Instant) -> bool {
        if self.at.is_some_and(|at| now.saturating_duration_since(at) >= QUIET) {
            self.late_until = Some(now + CAUGHT_UP_WITHIN);
        }
        self.late_until.is_some_and(|until| now < until)
    }
}

impl Pulse {
    /// Whether a delivery that is handed out now may be another's. One whose channel is gone surely may.
    pub(super) fn may_be_late(&self, channel: &Channel) -> bool {
        !channel.status().connected() || self.heard.lock().may_be_late(Instant::now())
    }

    /// From the first pull on.
    pub(super) fn begin(parts: &Arc<Parts>) {
        if parts.pulse.begun.swap(true, Ordering::AcqRel) {
            return;
        }
        parts.pulse.heard.lock().at = Some(Instant::now());
        let asking = Arc::clone(parts);
        parts.link.tasks.spawn("rabbitmq pulse", async move {
            tokio::select! {
                () = ask(&asking) => {}
                () = asking.link.closed.cancelled() => {}
            }
        });
    }
}

async fn ask(parts: &Parts) {
    while let Some(session) = parts.link.session_whenever().await {
        parts.pulse.heard.lock().asks(session.number, Instant::now());
        if let Ok(channel) = session.channel().await {
            let mut ticks = tokio::time::interval(ASK_EVERY);
            ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
            // The cheapest that is answered; nothing is consumed over this channel.
            while channel.basic_qos(1, BasicQosOptions::default()).await.is_ok() {
                parts.pulse.heard.lock().answered(Instant::now());
                ticks.tick().await;
            }
        }
        tokio::time::sleep(ASK_EVERY / 10).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_comes_while_an_answer_is_overdue_and_just_after_may_be_late() {
        let (mut heard, made) = (Heard::default(), Instant::now());
        let after = |time: Duration| made + time;
        assert!(!heard.may_be_late(made), "nobody pulls");
        heard.asks(1, made);
        heard.answered(after(ASK_EVERY));
        assert!(!heard.may_be_late(after(QUIET)));
        let overdue = ASK_EVERY + QUIET;
        assert!(heard.may_be_late(after(overdue)));
        heard.answered(after(overdue));
        assert!(heard.may_be_late(after(overdue + CAUGHT_UP_WITHIN / 2)), "it is still being read");
        heard.answered(after(overdue + CAUGHT_UP_WITHIN / 2));
        heard.answered(after(overdue + CAUGHT_UP_WITHIN));
        assert!(!heard.may_be_late(after(overdue + CAUGHT_UP_WITHIN)));
        // An answer that comes before any delivery says so too.
        heard.answered(after(overdue + CAUGHT_UP_WITHIN + 2 * QUIET));
        assert!(heard.may_be_late(after(overdue + CAUGHT_UP_WITHIN + 2 * QUIET)));
        heard.asks(1, after(overdue + CAUGHT_UP_WITHIN + 2 * QUIET));
        assert!(heard.may_be_late(after(overdue + CAUGHT_UP_WITHIN + 2 * QUIET)), "another channel of the same one");
        heard.asks(2, after(overdue + CAUGHT_UP_WITHIN + 2 * QUIET));
        assert!(!heard.may_be_late(after(overdue + CAUGHT_UP_WITHIN + 2 * QUIET)), "another connection");
        // It gives no channel to ask over.
        let since = overdue + CAUGHT_UP_WITHIN + 2 * QUIET;
        heard.asks(2, after(since + QUIET / 2));
        heard.asks(2, after(since + QUIET));
        assert!(heard.may_be_late(after(since + QUIET)), "nothing was answered");
    }
}
