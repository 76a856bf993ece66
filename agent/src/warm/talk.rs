//! How a worker is spoken to.

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use flux_protocol::limits;
use flux_worker::Call;

use super::{
    Exchange, Served,
    channel::{Channel, Forks},
};
use crate::lambda::RuntimeApi;

pub(crate) enum Talk {
    /// Frames on a channel that it was given.
    Framed(Channel),
    /// It asks, over HTTP.
    Lambda(Box<RuntimeApi>),
}

impl Talk {
    /// Has one invocation served.
    pub(crate) async fn exchange(&mut self, call: &Call, payload: &Bytes) -> Exchange {
        match self {
            Self::Framed(channel) => channel.exchange(call, payload).await,
            Self::Lambda(api) => api.exchange(call, payload).await,
        }
    }

    /// The channel of a worker that forks for each invocation.
    pub(crate) fn forking(&mut self) -> Option<&mut Channel> {
        match self {
            Self::Framed(channel) if channel.forks().does() => Some(channel),
            Self::Framed(_) | Self::Lambda(_) => None,
        }
    }

    /// Whether the worker forks for each invocation; none of those that are spoken to otherwise does.
    pub(crate) fn forks(&self) -> Option<&Arc<Forks>> {
        match self {
            Self::Framed(channel) => Some(channel.forks()),
            Self::Lambda(_) => None,
        }
    }

    /// Why a worker that was to fork served by itself.
    pub(crate) fn cannot_fork(&self) -> Option<&str> {
        self.forks().and_then(|forks| forks.why_not())
    }

    /// For how long to listen to a worker whose process ended. A channel ends with it, but the runtime may hear of what is in it
    /// later than of the process's end.
    pub(crate) const fn last_words(&self) -> Duration {
        match self {
            Self::Framed(_) => limits::PIPE_DRAIN,
            // What was heard is kept, and nothing says that no more comes.
            Self::Lambda(_) => Duration::ZERO,
        }
    }

    /// Whether it is open, and the worker says nothing unasked.
    pub(crate) fn is_quiet(&self) -> bool {
        match self {
            Self::Framed(channel) => channel.is_quiet(),
            Self::Lambda(api) => api.is_quiet(),
        }
    }

    /// Whether a worker that ended had not read, or not been told, all of its last invocation.
    pub(crate) fn is_unread(&self) -> bool {
        match self {
            Self::Framed(channel) => channel.is_unread(),
            Self::Lambda(api) => !api.is_handed_over(),
        }
    }

    /// Whether the worker waits for its next invocation, as far as that can be known.
    pub(super) fn is_asking(&self) -> bool {
        match self {
            Self::Framed(_) => true,
            Self::Lambda(api) => api.is_asked(),
        }
    }

    /// Whether its invocation left processes behind; `None` where that is for others to find out.
    pub(super) fn has_left_processes(&self) -> Option<bool> {
        match self {
            Self::Framed(_) => None,
            Self::Lambda(api) => api.has_left_processes(),
        }
    }

    /// An answer that was heard, of a worker that ended before its invocation did.
    pub(crate) fn take_answer(&mut self) -> Option<Served> {
        match self {
            Self::Framed(_) => None,
            Self::Lambda(api) => api.take_answer(),
        }
    }

    /// Whether it ended as it started, without a word about its handler.
    pub(crate) fn never_asked(&self) -> bool {
        match self {
            Self::Framed(_) => false,
            Self::Lambda(api) => !api.is_loaded(),
        }
    }
}
