//! Signals: a topic exchange, of which each connection hears what it asked for.

use std::{
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use async_trait::async_trait;
use bytes::Bytes;
use flux_protocol::limits;
use futures::{Stream, StreamExt as _};
use lapin::{BasicProperties, options::BasicPublishOptions, types::FieldTable};
use tokio::{sync::mpsc, time::Instant};

use super::{
    RabbitBroker,
    link::{Link, WITHIN},
    listeners::{HEARD, bind},
    names::binding,
    session::Confirmed,
};
use crate::{BrokerError, Signal, Signals, Subscription};

/// A signal on its way.
pub(super) type Said = (String, Bytes);

/// Signals wait here while the connection is down.
pub(super) fn outbox() -> (mpsc::Sender<Said>, mpsc::Receiver<Said>) {
    mpsc::channel(limits::CHANNEL * 8)
}

/// Says what comes, one after the other, over whichever connection is there.
pub(super) async fn say(link: Arc<Link>, mut said: mpsc::Receiver<Said>) {
    let exchange = link.names.signals();
    while let Some((subject, body)) = said.recv().await {
        loop {
            let Some(session) = link.session_whenever().await else { return };
            let options = BasicPublishOptions::default();
            let properties = BasicProperties::default();
            let key = subject.as_str().into();
            let sent = session.saying.basic_publish(exchange.as_str().into(), key, options, &body, properties).await;
            match sent {
                Ok(_) => break,
                Err(error) => {
                    tracing::debug!(%error, "a signal waits for another connection");
                    tokio::time::sleep(Duration::from_millis(20)).await;
                }
            }
        }
    }
}

/// Ends listening when dropped.
pub(super) struct Hearing {
    heard: mpsc::Receiver<Signal>,
    id: u64,
    link: Arc<Link>,
}

impl Stream for Hearing {
    type Item = Signal;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Signal>> {
        self.heard.poll_recv(context)
    }
}

impl Drop for Hearing {
    fn drop(&mut self) {
        let Some(pattern) = self.link.listeners.remove(self.id) else { return };
        let link = Arc::clone(&self.link);
        self.link.tasks.spawn("rabbitmq unbind", async move {
            // On the next connection it is not bound at all.
            let Ok(session) = link.session("stop listening").await else { return };
            let (queue, exchange) = (session.inbox.as_str().into(), link.names.signals().into());
            let key = binding(&pattern).into();
            let _ = session.saying.queue_unbind(queue, exchange, key, FieldTable::default()).await;
            // Somebody may have begun to listen to the same meanwhile.
            if link.listeners.hears(&pattern) {
                let _ = bind(&link, &session, &pattern).await;
            }
        });
    }
}

impl RabbitBroker {
    fn hearing(&self, pattern: &str, group: Option<&str>, capacity: usize) -> Hearing {
        let (id, heard) = self.parts.link.listeners.add(pattern, group, capacity);
        Hearing { heard, id, link: Arc::clone(&self.parts.link) }
    }

    /// Asks; nothing where nobody listens.
    pub(super) async fn question(
        &self,
        subject: String,
        body: Bytes,
        most: usize,
    ) -> Result<Option<Hearing>, BrokerError> {
        let attempted = "ask a question";
        let session = self.parts.link.session(attempted).await?;
        let inbox = self.parts.link.listeners.new_answer();
        // Its pattern is bound since the connection is there.
        let hearing = self.hearing(&inbox, None, most.max(1));
        let properties = BasicProperties::default().with_reply_to(inbox.as_str().into());
        let exchange = self.parts.link.names.signals();
        let asked = session.publish_to_someone(&exchange, &subject, properties, &body);
        match self.parts.link.within(attempted, asked).await? {
            Confirmed::Unroutable => Ok(None),
            Confirmed::Stored | Confirmed::Full => Ok(Some(hearing)),
        }
    }
}

#[async_trait]
impl Signals for RabbitBroker {
    async fn signal(&self, subject: String, body: Bytes) -> Result<(), BrokerError> {
        match tokio::time::timeout(WITHIN, self.parts.outbox.send((subject, body))).await {
            Ok(Ok(())) => Ok(()),
            Ok(Err(_)) => Err(BrokerError::Closed),
            Err(_) => Err(BrokerError::unavailable("send a signal", "too many wait for the connection")),
        }
    }

    async fn listen(&self, pattern: &str) -> Result<Subscription, BrokerError> {
        let session = self.parts.link.session("listen").await?;
        // Before it is bound; and a connection that is made meanwhile binds it too.
        let hearing = self.hearing(pattern, None, HEARD);
        self.parts.link.within("listen", bind(&self.parts.link, &session, pattern)).await?;
        Ok(hearing.boxed())
    }

    async fn listen_in_group(&self, pattern: &str, group: &str) -> Result<Subscription, BrokerError> {
        let session = self.parts.link.session("listen").await?;
        let hearing = self.hearing(pattern, Some(group), HEARD);
        let joined = self.parts.link.listeners.join(&self.parts.link, &session, hearing.id, pattern, group);
        self.parts.link.within("listen", joined).await?;
        Ok(hearing.boxed())
    }

    async fn ask(&self, subject: String, body: Bytes, timeout: Duration) -> Result<Option<Signal>, BrokerError> {
        Ok(self.ask_all(subject, body, timeout, 1).await?.into_iter().next())
    }

    async fn ask_all(
        &self,
        subject: String,
        body: Bytes,
        timeout: Duration,
        most: usize,
    ) -> Result<Vec<Signal>, BrokerError> {
        let deadline = Instant::now() + timeout;
        let Some(mut answers) = self.question(subject, body, most).await? else { return Ok(Vec::new()) };
        let mut all = Vec::new();
        while all.len() < most {
            match tokio::time::timeout_at(deadline, answers.next()).await {
                Ok(Some(answer)) => all.push(answer),
                Ok(None) | Err(_) => break,
            }
        }
        Ok(all)
    }
}
