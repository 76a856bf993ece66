//! Signals.

use std::{collections::HashMap, time::Duration};

use async_trait::async_trait;
use bytes::Bytes;
use flux_protocol::limits;
use futures::StreamExt as _;
use tokio::{sync::mpsc, time::Instant};
use tokio_stream::wrappers::ReceiverStream;

use super::{Inner, MemoryBroker};
use crate::{BrokerError, Signal, Signals, Subscription};

#[derive(Default)]
pub(super) struct Listeners {
    all: Vec<Listener>,
    /// Whose turn it is, of each group.
    turns: HashMap<(String, String), usize>,
    next_inbox: u64,
}

struct Listener {
    pattern: String,
    group: Option<String>,
    heard: mpsc::Sender<Signal>,
}

/// `*` stands for one token, a last `>` for one or more.
fn matches(pattern: &str, subject: &str) -> bool {
    let mut tokens = subject.split('.');
    for wanted in pattern.split('.') {
        match (wanted, tokens.next()) {
            (">", Some(_)) => return true,
            ("*", Some(_)) => {}
            (wanted, Some(token)) if wanted == token => {}
            _ => return false,
        }
    }
    tokens.next().is_none()
}

impl Listeners {
    fn add(&mut self, pattern: &str, group: Option<&str>, capacity: usize) -> mpsc::Receiver<Signal> {
        let (heard, hears) = mpsc::channel(capacity);
        self.all.push(Listener { pattern: pattern.to_owned(), group: group.map(str::to_owned), heard });
        hears
    }

    /// How many heard it.
    fn say(&mut self, signal: &Signal) -> usize {
        self.all.retain(|listener| !listener.heard.is_closed());
        let mut groups: HashMap<(String, String), Vec<&Listener>> = HashMap::new();
        let mut heard = 0;
        for listener in self.all.iter().filter(|listener| matches(&listener.pattern, &signal.subject)) {
            match &listener.group {
                Some(group) => groups.entry((listener.pattern.clone(), group.clone())).or_default().push(listener),
                // Signals may be lost: one whose channel is full loses this one.
                None => heard += usize::from(listener.heard.try_send(signal.clone()).is_ok()),
            }
        }
        for (group, members) in groups {
            let turn = self.turns.entry(group).or_default();
            *turn = turn.wrapping_add(1);
            heard += usize::from(members[*turn % members.len()].heard.try_send(signal.clone()).is_ok());
        }
        heard
    }
}

impl Inner {
    pub(super) fn say(&self, subject: String, body: Bytes, reply_to: Option<String>) -> usize {
        self.listeners.lock().say(&Signal { subject, headers: Vec::new(), body, reply_to })
    }
}

#[async_trait]
impl Signals for MemoryBroker {
    async fn signal(&self, subject: String, body: Bytes) -> Result<(), BrokerError> {
        self.inner.connected("send a signal")?;
        self.inner.check_size(&body)?;
        self.inner.say(subject, body, None);
        Ok(())
    }

    async fn listen(&self, pattern: &str) -> Result<Subscription, BrokerError> {
        self.inner.connected("listen")?;
        Ok(ReceiverStream::new(self.inner.listeners.lock().add(pattern, None, 16 * limits::CHANNEL)).boxed())
    }

    async fn listen_in_group(&self, pattern: &str, group: &str) -> Result<Subscription, BrokerError> {
        self.inner.connected("listen")?;
        Ok(ReceiverStream::new(self.inner.listeners.lock().add(pattern, Some(group), 16 * limits::CHANNEL)).boxed())
    }

    async fn ask(&self, subject: String, body: Bytes, timeout: Duration) -> Result<Option<Signal>, BrokerError> {
        Ok(self.ask_all(subject, body, timeout, 1).await?.pop())
    }

    async fn ask_all(
        &self,
        subject: String,
        body: Bytes,
        timeout: Duration,
        most: usize,
    ) -> Result<Vec<Signal>, BrokerError> {
        self.inner.connected("ask")?;
        let deadline = Instant::now() + timeout;
        let (inbox, mut heard) = {
            let mut listeners = self.inner.listeners.lock();
            listeners.next_inbox += 1;
            let inbox = format!("_INBOX.memory.{}", listeners.next_inbox);
            let heard = listeners.add(&inbox, None, most.max(1));
            (inbox, heard)
        };
        let mut answers = Vec::new();
        if self.inner.say(subject, body, Some(inbox)) == 0 {
            return Ok(answers);
        }
        while answers.len() < most {
            match tokio::time::timeout_at(deadline, heard.recv()).await {
                Ok(Some(answer)) => answers.push(answer),
                Ok(None) | Err(_) => break,
            }
        }
        Ok(answers)
    }
}

#[cfg(test)]
mod tests {
    use super::matches;

    #[test]
    fn patterns_match_by_token() {
        for (pattern, subject, fits) in [
            ("a.b", "a.b", true),
            ("a.b", "a.b.c", false),
            ("a.*", "a.b", true),
            ("a.*", "a", false),
            ("a.*.c", "a.b.c", true),
            ("a.>", "a.b.c", true),
            ("a.>", "a", false),
            ("a.*", "ab.c", false),
        ] {
            assert_eq!(matches(pattern, subject), fits, "{pattern} {subject}");
        }
    }
}
