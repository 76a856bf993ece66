//! Who listens to what in this process. Everything it listens to comes to one queue of its own, bound to each pattern once,
//! and is handed out here; what is shared within a group has a queue for the group.

use std::{collections::HashMap, sync::Arc};

use flux_protocol::{limits, subject::matches};
use futures::StreamExt as _;
use lapin::{
    message::Delivery as Incoming,
    options::{BasicConsumeOptions, QueueBindOptions, QueueDeclareOptions},
    types::FieldTable,
};
use parking_lot::Mutex;
use tokio::sync::mpsc;

use super::{error::is_denied, link::Link, message, names::binding, session::Session};
use crate::Signal;

struct Listener {
    pattern: String,
    group: Option<String>,
    heard: mpsc::Sender<Signal>,
}

pub(super) struct Listeners {
    all: Mutex<HashMap<u64, Listener>>,
    next: std::sync::atomic::AtomicU64,
    /// Answers to this process's questions come below it.
    answers: String,
}

impl Listeners {
    pub(super) fn new(answers: Option<String>) -> Self {
        let answers = answers.unwrap_or_else(|| format!("_INBOX.{:032x}", rand::random::<u128>()));
        Self { all: Mutex::default(), next: std::sync::atomic::AtomicU64::new(1), answers }
    }

    fn answers_pattern(&self) -> String {
        format!("{}.*", self.answers)
    }

    pub(super) fn new_answer(&self) -> String {
        format!("{}.{:032x}", self.answers, rand::random::<u128>())
    }

    /// Enters one that hears; the server does not know of it yet.
    pub(super) fn add(&self, pattern: &str, group: Option<&str>, capacity: usize) -> (u64, mpsc::Receiver<Signal>) {
        let (heard, receiver) = mpsc::channel(capacity);
        let id = self.next.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        let listener = Listener { pattern: pattern.to_owned(), group: group.map(str::to_owned), heard };
        self.all.lock().insert(id, listener);
        (id, receiver)
    }

    /// Takes one out. Its pattern, where nobody else listens to that.
    pub(super) fn remove(&self, id: u64) -> Option<String> {
        let mut all = self.all.lock();
        let gone = all.remove(&id)?;
        let bound_anyway = gone.group.is_some() || matches(&self.answers_pattern(), &gone.pattern);
        let shared = bound_anyway || all.values().any(|other| other.pattern == gone.pattern);
        (!shared).then_some(gone.pattern)
    }

    /// Whether somebody listens to that very pattern, by a binding of its own.
    pub(super) fn hears(&self, pattern: &str) -> bool {
        self.all.lock().values().any(|listener| listener.group.is_none() && listener.pattern == pattern)
    }

    /// Binds everything that is listened to, on a connection that nobody uses yet, and reads from then on.
    pub(super) async fn restore(
        self: &Arc<Self>,
        link: &Arc<Link>,
        session: &Arc<Session>,
    ) -> Result<(), lapin::Error> {
        let (patterns, groups): (Vec<_>, Vec<_>) = {
            let all = self.all.lock();
            let of = |id: &u64, listener: &Listener| (*id, listener.pattern.clone(), listener.group.clone());
            all.iter().map(|(id, listener)| of(id, listener)).partition(|(_, _, group)| group.is_none())
        };
        bind(link, session, &self.answers_pattern()).await?;
        for (_, pattern, _) in patterns {
            if matches(&self.answers_pattern(), &pattern) {
                continue;
            }
            if let Err(error) = bind(link, session, &pattern).await {
                if is_denied(&error) {
                    tracing::error!(
                        pattern,
                        "this identity may not hear that any more; whoever listened hears the end"
                    );
                    self.all.lock().retain(|_, listener| listener.group.is_some() || listener.pattern != pattern);
                }
                return Err(error);
            }
        }
        let no_ack = BasicConsumeOptions { no_ack: true, exclusive: true, ..BasicConsumeOptions::default() };
        let mut messages = session
            .saying
            .basic_consume(session.inbox.as_str().into(), "".into(), no_ack, FieldTable::default())
            .await?;
        let listeners = Arc::clone(self);
        link.tasks.spawn("rabbitmq inbox", async move {
            while let Some(Ok(incoming)) = messages.next().await {
                listeners.hand_out(incoming);
            }
        });
        for (id, pattern, group) in groups {
            self.join(link, session, id, &pattern, group.as_deref().unwrap_or_default()).await?;
        }
        Ok(())
    }

    fn hand_out(&self, incoming: Incoming) {
        let signal = message::signal(incoming);
        let all = self.all.lock();
        let mut hearing =
            all.values().filter(|listener| listener.group.is_none() && matches(&listener.pattern, &signal.subject));
        let Some(first) = hearing.next() else { return };
        // Who does not keep up misses some: at most once.
        for other in hearing {
            let _ = other.heard.try_send(signal.clone());
        }
        let _ = first.heard.try_send(signal);
    }

    /// Has one take its share of a group's queue.
    pub(super) async fn join(
        self: &Arc<Self>,
        link: &Arc<Link>,
        session: &Arc<Session>,
        id: u64,
        pattern: &str,
        group: &str,
    ) -> Result<(), lapin::Error> {
        let channel = session.channel().await?;
        let queue = link.names.group(group, pattern);
        let passing = QueueDeclareOptions { auto_delete: true, ..QueueDeclareOptions::default() };
        channel.queue_declare(queue.as_str().into(), passing, FieldTable::default()).await?;
        let bound = QueueBindOptions::default();
        let signals = link.names.signals();
        channel
            .queue_bind(queue.as_str().into(), signals.into(), binding(pattern).into(), bound, FieldTable::default())
            .await?;
        let no_ack = BasicConsumeOptions { no_ack: true, ..BasicConsumeOptions::default() };
        let mut messages =
            channel.basic_consume(queue.as_str().into(), "".into(), no_ack, FieldTable::default()).await?;
        let listeners = Arc::clone(self);
        link.tasks.spawn("rabbitmq group", async move {
            let gone = {
                let all = listeners.all.lock();
                all.get(&id).map(|listener| listener.heard.clone())
            };
            let Some(heard) = gone else { return };
            loop {
                tokio::select! {
                    incoming = messages.next() => match incoming {
                        Some(Ok(incoming)) => {
                            let _ = heard.try_send(message::signal(incoming));
                        }
                        Some(Err(_)) | None => return,
                    },
                    // With the channel its share of the group ends.
                    () = heard.closed() => return,
                }
            }
        });
        Ok(())
    }
}

/// Has this connection's queue hear a pattern.
pub(super) async fn bind(link: &Link, session: &Session, pattern: &str) -> Result<(), lapin::Error> {
    let (queue, exchange) = (session.inbox.as_str(), link.names.signals());
    let bound = QueueBindOptions::default();
    session
        .saying
        .queue_bind(queue.into(), exchange.into(), binding(pattern).into(), bound, FieldTable::default())
        .await
}

/// As many as may wait for a listener that is behind.
pub(super) const HEARD: usize = limits::CHANNEL * 4;
