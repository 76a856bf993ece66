//! Who looks through all processes: for what a worker left beside it, and for orphans; and who clears it away. That takes long,
//! so that it is nothing for the thread that has to be free for kills.

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

/// What is asked of an execution.
#[derive(Debug, Clone, Copy)]
pub(super) enum Question {
    IsAlone { id: u64, nonce: u64 },
    Clear { id: u64, nonce: u64 },
}

impl Question {
    fn look(self, server: &Server) -> bool {
        match self {
            Self::IsAlone { id, .. } => server.is_alone(id),
            Self::Clear { id, .. } => server.clear(id) || self.fail(server),
        }
    }

    /// Whoever asked to clear may not wait for the answer, and nobody else ends what is there.
    fn fail(self, server: &Server) -> bool {
        if let Self::Clear { id, .. } = self {
            server.registry.signal(id, libc::SIGKILL);
        }
        false
    }

    /// A client that does not read its answers gets none.
    fn answer(self, yes: bool, control: &OwnedFd) {
        let reply = match self {
            Self::IsAlone { nonce, .. } => ControlReply::Alone { nonce, alone: yes },
            Self::Clear { nonce, .. } => ControlReply::Cleared { nonce, clean: yes },
        };
        let _ = socket::try_send(control.as_fd(), &reply.encode(), &[]);
    }
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
    pub(super) fn look(&self, question: Question, server: &Server, control: &OwnedFd) {
        if let Err(TrySendError::Full(question) | TrySendError::Disconnected(question)) =
            self.questions.try_send(question)
        {
            question.answer(question.fail(server), control);
        }
    }
}

fn look(server: &Server, control: &OwnedFd, asked: &Receiver<Question>) {
    let has_strays = server.slots.is_none();
    let mut next = Instant::now() + STRAYS_EVERY;
    loop {
        let wait = if has_strays { next.saturating_duration_since(Instant::now()) } else { Duration::MAX };
        match asked.recv_timeout(wait) {
            Ok(question) => question.answer(question.look(server), control),
            Err(RecvTimeoutError::Timeout) => {}
            Err(RecvTimeoutError::Disconnected) => return,
        }
        if has_strays && Instant::now() >= next {
            server.plain.end_strays(&server.registry);
            next = Instant::now() + STRAYS_EVERY;
        }
    }
}
