//! Those who serve one version, and who waits for one of them.

use std::{collections::VecDeque, time::Duration};

use flux_protocol::limits;
use tokio::sync::oneshot;

/// Calls are averaged with this weight of the past, in eighths.
const PAST: u32 = 7;
/// Who waits longest, however long starting takes.
const MOST: Duration = Duration::from_millis(100);

#[derive(Debug)]
pub(super) struct Line<W> {
    /// Workers that serve or start.
    pub(super) serving: u32,
    /// Of those, the ones that have answered and come back in a moment.
    returning: u32,
    waiting: VecDeque<oneshot::Sender<W>>,
    call: Option<Duration>,
    start: Option<Duration>,
}

impl<W> Default for Line<W> {
    fn default() -> Self {
        Self { serving: 0, returning: 0, waiting: VecDeque::new(), call: None, start: None }
    }
}

impl<W> Line<W> {
    /// How long waiting for a worker is worth it: half of what starting took last, where one is likely to come free by then.
    pub(super) fn patience(&mut self) -> Option<Duration> {
        self.waiting.retain(|waiting| !waiting.is_closed());
        if self.waiting.len() < self.returning as usize {
            return Some(limits::WORKER_RETURNS_WITHIN);
        }
        let patience = (self.start? / 2).min(MOST);
        let before_me = u32::try_from(self.waiting.len()).unwrap_or(u32::MAX).saturating_add(1);
        let likely = self.call?.saturating_mul(before_me) / self.serving.max(1);
        (self.serving > 0 && likely < patience).then_some(patience)
    }

    pub(super) fn wait(&mut self) -> oneshot::Receiver<W> {
        let (sender, receiver) = oneshot::channel();
        self.waiting.push_back(sender);
        receiver
    }

    /// Gives it to who waits longest; back when nobody does.
    pub(super) fn hand_over(&mut self, mut worker: W) -> Option<W> {
        while let Some(waiting) = self.waiting.pop_front() {
            match waiting.send(worker) {
                Ok(()) => return None,
                Err(back) => worker = back,
            }
        }
        Some(worker)
    }

    pub(super) fn started(&mut self, took: Duration) {
        self.start = Some(took);
    }

    pub(super) fn served(&mut self, took: Duration) {
        self.call = Some(self.call.map_or(took, |average| (average * PAST + took) / (PAST + 1)));
    }

    /// One has answered, and will be given back or end.
    pub(super) fn returns(&mut self) {
        self.returning += 1;
    }

    /// It came back. Or it ended: who waited for it looks again.
    pub(super) fn returned(&mut self, has_ended: bool) {
        self.returning = self.returning.saturating_sub(1);
        if has_ended {
            self.waiting.pop_front();
        }
    }

    /// One serves no more. Where no worker is left that could come free, nobody is to wait for one.
    pub(super) fn ended(&mut self) {
        self.serving = self.serving.saturating_sub(1);
        if self.serving == 0 {
            self.waiting.clear();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: Duration = Duration::from_millis(1);

    #[test]
    fn waiting_is_worth_it_while_calls_are_quicker_than_starts() {
        let mut line = Line::<u8> { serving: 1, ..Line::default() };
        assert_eq!(line.patience(), None, "nothing is known");
        line.started(40 * MS);
        line.served(MS);
        assert_eq!(line.patience(), Some(20 * MS));
        line.serving = 0;
        assert_eq!(line.patience(), None, "nobody serves");
        line.serving = 1;
        let waiting: Vec<_> = (0..19).map(|_| line.wait()).collect();
        assert_eq!(line.patience(), None, "too many wait already");
        drop(waiting);
        assert_eq!(line.patience(), Some(20 * MS), "they are gone");
        for _ in 0..50 {
            line.served(100 * MS);
        }
        assert_eq!(line.patience(), None, "calls became slow");
    }

    #[test]
    fn one_that_returns_is_waited_for_however_slow_calls_are() {
        let mut line = Line::<u8> { serving: 2, ..Line::default() };
        line.returns();
        assert_eq!(line.patience(), Some(limits::WORKER_RETURNS_WITHIN));
        let mut waiting = line.wait();
        assert_eq!(line.patience(), None, "somebody waits for it");
        line.returned(true);
        assert!(waiting.try_recv().is_err_and(|error| error == oneshot::error::TryRecvError::Closed));
        line.returns();
        let mut waiting = line.wait();
        line.returned(false);
        assert_eq!((line.hand_over(1), waiting.try_recv()), (None, Ok(1)));
        assert_eq!(line.patience(), None);
    }

    #[test]
    fn a_worker_goes_to_who_waits_longest_and_still_does() {
        let mut line = Line { serving: 1, ..Line::default() };
        let (gone, mut first, mut second) = (line.wait(), line.wait(), line.wait());
        drop(gone);
        assert_eq!(line.hand_over('a'), None);
        assert_eq!(first.try_recv(), Ok('a'));
        line.ended();
        assert!(second.try_recv().is_err_and(|error| error == oneshot::error::TryRecvError::Closed));
        assert_eq!(line.hand_over('b'), Some('b'));
    }
}
