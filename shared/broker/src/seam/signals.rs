//! Messages that may be lost: replies, live output, heartbeats, control, cancel.
//!
//! At most once, in order per sender and subject, to whoever listens at that moment. `*` in a pattern
//! stands for one token.

use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use futures::stream::BoxStream;

use crate::BrokerError;

/// A message as it was heard. Receivers must check `subject`: it is where the sender published.
#[derive(Debug, Clone)]
pub struct Signal {
    pub subject: String,
    pub headers: Vec<(String, String)>,
    pub body: Bytes,
    /// Where an answer is awaited.
    pub reply_to: Option<String>,
}

/// Ends when dropped.
pub type Subscription = BoxStream<'static, Signal>;

#[async_trait]
pub trait Signals {
    /// Sends without waiting for anyone. Buffered while the connection is down, up to a limit.
    async fn signal(&self, subject: String, body: Bytes) -> Result<(), BrokerError>;

    /// Hears everything on a pattern from the moment this returns: the broker has confirmed it.
    async fn listen(&self, pattern: &str) -> Result<Subscription, BrokerError>;

    /// As [`Signals::listen`], shared out among all who name the same group.
    async fn listen_in_group(&self, pattern: &str, group: &str) -> Result<Subscription, BrokerError>;

    /// Asks, and waits for the first answer; `None` when nobody listens or `timeout` passed.
    async fn ask(&self, subject: String, body: Bytes, timeout: Duration) -> Result<Option<Signal>, BrokerError>;

    /// Asks everybody, and gathers the answers that come within `timeout`, at most `most`.
    async fn ask_all(
        &self,
        subject: String,
        body: Bytes,
        timeout: Duration,
        most: usize,
    ) -> Result<Vec<Signal>, BrokerError>;
}
