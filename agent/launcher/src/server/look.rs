//! Who looks through all processes: for what a worker left beside it, and for orphans. A look takes long, so that it is
//! nothing for the thread that has to be free for kills.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, TrySendError, sync_channel};
use std::time::{Duration, Instant};

use super::THREAD_STACK_BYTES;
use super::execution::Server;
use crate::sys::socket;
use crate::wire::ControlReply;

/// Without slots, how often orphans are looked for, whatever else is asked.
const STRAYS_EVERY: Duration = Duration::from_secs(1);

/// Whether an execution is alone.
#[derive(Debug)]
struct Question {
    id: u64,
    nonce: u64,
}

/// Where to ask.
#[derive(Debug)]
pub(super) struct Looker {
    questions: SyncSender<Question>,
}

impl Looker {
    /// A thread that answers on `control`, and at most `at_once` questions that wait for it.
    pub(super) fn start(server: &Arc<Server>, control: &OwnedFd, at_once: u32) -> io::Result<Self> {
        let (questions, asked) = sync_channel(at_once as usize);
        let (server, control) = (Arc::clone(server), control.try_clone()?);
        let look = move || look(&server, &control, &asked);
        std::thread::Builder::new().name("flux-look".to_owned()).stack_size(THREAD_STACK_BYTES).spawn(look)?;
        Ok(Looker { questions })
    }

    /// The answer is sent when it is known; one that cannot be is the one that costs a worker, and nothing else.
    pub(super) fn is_alone(&self, id: u64, nonce: u64, control: &OwnedFd) {
        if let Err(TrySendError::Full(Question { nonce, .. }) | TrySendError::Disconnected(Question { nonce, .. })) =
            self.questions.try_send(Question { id, nonce })
        {
            answer(control, nonce, false);
        }
    }
}

/// A client that does not read its answers gets none.
fn answer(control: &OwnedFd, nonce: u64, alone: bool) {
    let _ = socket::try_send(control.as_fd(), &ControlReply::Alone { nonce, alone }.encode(), &[]);
}

fn look(server: &Server, control: &OwnedFd, asked: &Receiver<Question>) {
    let has_strays = server.slots.is_none();
    let mut next = Instant::now() + STRAYS_EVERY;
    loop {
        let wait = if has_strays { next.saturating_duration_since(Instant::now()) } else { Duration::MAX };
        match asked.recv_timeout(wait) {
            Ok(Question { id, nonce }) => answer(control, nonce, server.is_alone(id)),
            Err(RecvTimeoutError::Timeout) => {}
            Err(RecvTimeoutError::Disconnected) => return,
        }
        if has_strays && Instant::now() >= next {
            server.plain.end_strays(&server.registry);
            next = Instant::now() + STRAYS_EVERY;
        }
    }
}
