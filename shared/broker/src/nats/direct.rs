//! Reading stored messages where they lie, without a consumer (direct get, ADR-31).

use async_nats::{
    HeaderMap, Message, StatusCode,
    jetstream::{message::StreamMessage, stream::RawMessage},
};
use bytes::Bytes;
use flux_protocol::Timestamp;
use serde::Deserialize;
use serde_json::json;
use tokio::time::Instant;

use super::core::{ApiFailure, Core, REQUEST_WITHIN};
use crate::BrokerError;

/// A message as it is stored.
pub(super) struct Found {
    pub(super) sequence: u64,
    pub(super) at: Timestamp,
    pub(super) subject: String,
    pub(super) headers: HeaderMap,
    pub(super) body: Bytes,
}

impl Core {
    /// The last message on a subject.
    ///
    /// Any replica answers a direct get, also one that lags. What it has may be older than what there is, which its
    /// readers can bear; that there is nothing is believed of the stream's leader alone.
    pub(super) async fn last_on(&self, stream: &str, subject: &str) -> Result<Option<Found>, BrokerError> {
        let attempted = "read a stored message";
        let answer =
            self.request(attempted, &format!("$JS.API.DIRECT.GET.{stream}.{subject}"), || None, Bytes::new()).await?;
        match found(attempted, answer)? {
            Some(found) => Ok(Some(found)),
            None => self.last_of_leader(attempted, stream, subject).await,
        }
    }

    async fn last_of_leader(
        &self,
        attempted: &'static str,
        stream: &str,
        subject: &str,
    ) -> Result<Option<Found>, BrokerError> {
        #[derive(Deserialize)]
        struct Answer {
            message: RawMessage,
        }

        if !self.may_ask_leader(stream) {
            return Err(BrokerError::Denied { attempted: attempted.to_owned() });
        }
        let body = json!({ "last_by_subj": subject }).to_string();
        let answer: Answer = match self.api(attempted, &format!("STREAM.MSG.GET.{stream}"), body).await {
            Ok(answer) => answer,
            Err(ApiFailure::Api(error)) if error.is_message_gone() => return Ok(None),
            Err(failure) => return Err(failure.into_broker(attempted, stream)),
        };
        let at = answer.message.time.into();
        let message =
            StreamMessage::try_from(answer.message).map_err(|error| BrokerError::refused(attempted, error))?;
        Ok(Some(Found {
            sequence: message.sequence,
            at,
            subject: message.subject.to_string(),
            headers: message.headers,
            body: message.payload,
        }))
    }

    pub(super) async fn stored_at(&self, stream: &str, sequence: u64) -> Result<Option<Found>, BrokerError> {
        let attempted = "read a stored message";
        let body = json!({ "seq": sequence }).to_string().into();
        let answer = self.request(attempted, &format!("$JS.API.DIRECT.GET.{stream}"), || None, body).await?;
        found(attempted, answer)
    }

    /// Messages on a subject from a sequence on, oldest first: at most `most`, and fewer where they are more than
    /// `max_bytes` (one at least).
    pub(super) async fn stored_from(
        &self,
        stream: &str,
        subject: &str,
        from: u64,
        most: usize,
        max_bytes: usize,
    ) -> Result<Vec<Found>, BrokerError> {
        let attempted = "read stored messages";
        let deadline = Instant::now() + REQUEST_WITHIN;
        let body: Bytes =
            json!({ "seq": from, "next_by_subj": subject, "batch": most, "max_bytes": max_bytes }).to_string().into();
        'again: loop {
            let sent_on = self.connected(attempted, deadline).await?;
            let mut mailbox = self.inbox.mailbox(most + 1);
            let to = format!("$JS.API.DIRECT.GET.{stream}");
            self.send_with_reply(attempted, to, mailbox.subject.clone(), body.clone()).await?;
            let mut link = self.link();
            let mut all = Vec::new();
            loop {
                let answer = tokio::select! {
                    answer = mailbox.next() => answer.ok_or(BrokerError::Closed)?,
                    _ = link.wait_for(|link| link.closed || (link.up && link.connects > sent_on.connects)) => {
                        if self.link_now().closed {
                            return Err(BrokerError::Closed);
                        }
                        continue 'again;
                    }
                    () = tokio::time::sleep_until(deadline) => {
                        return Err(BrokerError::unavailable(attempted, "no answer came in time"));
                    }
                };
                // The end of a batch is a message without content.
                if answer.status.is_some_and(|status| status.as_u16() == 204) {
                    return Ok(all);
                }
                match found(attempted, answer)? {
                    Some(found) => all.push(found),
                    None => return Ok(all),
                }
            }
        }
    }
}

/// Reads an answer; `None` is "not found".
fn found(attempted: &'static str, answer: Message) -> Result<Option<Found>, BrokerError> {
    match answer.status {
        Some(StatusCode::NOT_FOUND) => return Ok(None),
        Some(StatusCode::NO_RESPONDERS) => return Err(BrokerError::unavailable(attempted, "nobody answers")),
        Some(status) if !status.is_success() => {
            let said = answer.description.unwrap_or_default();
            return Err(BrokerError::refused(attempted, format!("{status} {said}")));
        }
        _ => {}
    }
    let headers = answer.headers.unwrap_or_default();
    let read = |name: &str| headers.get(name).map(|value| value.as_str().to_owned());
    let parsed = (|| {
        Some((read("Nats-Sequence")?.parse().ok()?, read("Nats-Time-Stamp")?.parse().ok()?, read("Nats-Subject")?))
    })();
    let Some((sequence, at, subject)) = parsed else {
        return Err(BrokerError::refused(attempted, "the answer does not say what it is"));
    };
    Ok(Some(Found { sequence, at, subject, headers, body: answer.payload }))
}
