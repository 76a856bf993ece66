//! Signals: core NATS messages.

use std::time::Duration;

use async_nats::{Message, StatusCode, Subscriber};
use async_trait::async_trait;
use bytes::Bytes;
use flux_protocol::subject;
use futures::StreamExt as _;
use tokio::time::Instant;

use super::{NatsBroker, core::header_map, deliveries::own_headers};
use crate::{BrokerError, Signal, Signals, Subscription};

/// Names where an answer is awaited, in a question of an account of its own.
const ANSWER_TO: &str = "Flux-Answer-To";

#[async_trait]
impl Signals for NatsBroker {
    async fn signal(&self, subject: String, body: Bytes) -> Result<(), BrokerError> {
        self.core.send("send a signal", subject, body).await
    }

    async fn listen(&self, pattern: &str) -> Result<Subscription, BrokerError> {
        Ok(heard(self.subscribe(pattern, None).await?, pattern))
    }

    async fn listen_in_group(&self, pattern: &str, group: &str) -> Result<Subscription, BrokerError> {
        Ok(heard(self.subscribe(pattern, Some(group)).await?, pattern))
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
        let attempted = "ask";
        let deadline = Instant::now() + timeout;
        self.core.connected(attempted, deadline).await?;
        let mut question = self.core.inbox.question(most.max(1));
        if self.core.own_account {
            // Between accounts the server gives a question another reply subject, to which gateways alone may answer.
            let headers = header_map([(ANSWER_TO, question.subject())]);
            self.core.send_with_headers(attempted, subject, headers, body).await?;
        } else {
            self.core.send_with_reply(attempted, subject, question.subject(), body).await?;
        }
        let mut answers = Vec::new();
        while answers.len() < most {
            match tokio::time::timeout_at(deadline, question.next()).await {
                // The server's word that nobody listens.
                Ok(Some(answer)) if answer.status == Some(StatusCode::NO_RESPONDERS) => break,
                Ok(Some(answer)) => answers.push(signal(answer)),
                Ok(None) => return Err(BrokerError::Closed),
                Err(_) => break,
            }
        }
        Ok(answers)
    }
}

impl NatsBroker {
    /// Subscribes, and returns when the server has it.
    pub(super) async fn subscribe(&self, pattern: &str, group: Option<&str>) -> Result<Subscriber, BrokerError> {
        let attempted = "listen";
        let subscribed = match group {
            None => self.core.client.subscribe(pattern.to_owned()).await,
            Some(group) => self.core.client.queue_subscribe(pattern.to_owned(), group.to_owned()).await,
        };
        let messages = subscribed.map_err(|error| BrokerError::refused(attempted, error))?;
        // The server reads in order: when our own message came back, it has read the subscription.
        self.core.round_trip(attempted).await?;
        Ok(messages)
    }
}

/// What was published where the pattern says. JetStream can be made to send a stored message to anybody who subscribes to
/// anything, since who pulls it names where to; its subject is that of the message then. Such are dropped and counted.
fn heard(messages: Subscriber, pattern: &str) -> Subscription {
    let pattern = pattern.to_owned();
    let own = messages.filter_map(move |message| {
        let own = subject::matches(&pattern, &message.subject);
        if !own {
            metrics::counter!("flux_signals_dropped_total", "kind" => "foreign_subject").increment(1);
            tracing::warn!(%pattern, subject = %message.subject, "dropped what was sent here and published elsewhere");
        }
        std::future::ready(own.then(|| signal(message)))
    });
    own.boxed()
}

fn signal(message: Message) -> Signal {
    let answer_to = message.headers.as_ref().and_then(|headers| headers.get(ANSWER_TO));
    // Whoever answers does it with its own rights: nowhere but where answers come.
    let answer_to = answer_to
        .map(async_nats::HeaderValue::as_str)
        .filter(|to| subject::is_gateway_reply(to) && subject::may_reply_to(to));
    let reply_to = message.reply.as_ref().map(ToString::to_string).or_else(|| answer_to.map(str::to_owned));
    Signal {
        subject: message.subject.into_string(),
        headers: message.headers.as_ref().map(own_headers).unwrap_or_default(),
        body: message.payload,
        reply_to,
    }
}
