//! How many threads serve. Executions have theirs from the start; a worker keeps one for its whole life, so each that there is
//! brings another with it. They are made by a thread that holds all rights: a thread made by one that has given them up
//! would have the filter of system calls twice.

use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};

/// What the serving threads say.
#[derive(Debug)]
pub(crate) struct Crew {
    wanted: Sender<()>,
    workers: AtomicU32,
    /// Threads that workers brought; they stay.
    more: AtomicU32,
    most: u32,
}

impl Crew {
    /// At most `most` threads are asked for on the receiver.
    pub(super) fn new(most: u32) -> (Self, Receiver<()>) {
        let (wanted, wishes) = channel();
        (Crew { wanted, workers: AtomicU32::new(0), more: AtomicU32::new(0), most }, wishes)
    }

    /// A thread serves a worker from now on.
    pub(super) fn worker_begins(&self) {
        let workers = self.workers.fetch_add(1, Ordering::AcqRel) + 1;
        let one_more = |more: u32| (more < workers && more < self.most).then_some(more + 1);
        if self.more.fetch_update(Ordering::AcqRel, Ordering::Acquire, one_more).is_ok() {
            // Its receiver is there as long as the launcher.
            let _ = self.wanted.send(());
        }
    }

    pub(super) fn worker_ended(&self) {
        self.workers.fetch_sub(1, Ordering::AcqRel);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_worker_brings_a_thread_once() {
        let (crew, wishes) = Crew::new(2);
        let wished = || wishes.try_iter().count();
        crew.worker_begins();
        assert_eq!(wished(), 1);
        crew.worker_ended();
        crew.worker_begins();
        assert_eq!(wished(), 0, "the thread is still there");
        crew.worker_begins();
        crew.worker_begins();
        assert_eq!(wished(), 1, "no more than two");
    }
}
