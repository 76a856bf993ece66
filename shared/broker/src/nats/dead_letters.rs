//! Dead letters: a stream that keeps them until they are redriven or purged.

use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use flux_protocol::{
    FunctionName, Invocation, StatusMessage,
    invocation::header,
    limits,
    subject::{self, DLQ_STREAM},
};
use serde::{Deserialize, Serialize};
use serde_json::json;

use super::{
    NatsBroker,
    core::{ApiFailure, header_map},
    direct::Found,
    queue::MESSAGE_ID,
};
use crate::{BrokerError, DeadLetter, DeadLetters};

/// An execution that is buried again within this is the letter that is there. Burying is repeated when a gateway
/// died between doing it and acking the status: within seconds.
pub(super) const SAME_WITHIN: Duration = Duration::from_secs(24 * 3600);
/// Letters of one answer together.
const PAGE_BYTES: usize = 32 * limits::MIB;

/// The body of a letter.
#[derive(Serialize, Deserialize)]
struct Letter {
    invocation: Invocation,
    status: StatusMessage,
}

#[async_trait]
impl DeadLetters for NatsBroker {
    async fn bury(&self, status: &StatusMessage, invocation: &Invocation) -> Result<u64, BrokerError> {
        // What the status was retried with is the letter's invocation; once is enough.
        let status = StatusMessage { invocation: None, ..status.clone() };
        let kind = status.outcome.as_ref().and_then(|outcome| outcome.error.as_ref()).map(|error| error.kind);
        let reason = kind.and_then(|kind| serde_json::to_string(&kind).ok()).unwrap_or_default();
        let id = status.execution_id.to_string();
        let headers = || {
            header_map([
                (MESSAGE_ID, id.as_str()),
                (header::EXECUTION_ID, id.as_str()),
                (header::REASON, reason.trim_matches('"')),
            ])
        };
        let subject = subject::dlq(&status.function);
        let body = serde_json::to_vec(&Letter { invocation: invocation.clone(), status })
            .map_err(|error| BrokerError::refused("encode a dead letter", error))?;
        self.core.publish("store a dead letter", &subject, headers, body.into()).await.map(|ack| ack.sequence)
    }

    async fn letters(&self, function: &FunctionName, after: u64, most: usize) -> Result<Vec<DeadLetter>, BrokerError> {
        let subject = subject::dlq(function);
        let most = most.min(limits::PAGE);
        let mut letters = Vec::new();
        let mut from = after + 1;
        while letters.len() < most {
            let page = self.core.stored_from(DLQ_STREAM, &subject, from, most - letters.len(), PAGE_BYTES).await?;
            let Some(last) = page.last() else { break };
            from = last.sequence + 1;
            letters.extend(page.into_iter().filter_map(|found| read(function, found)));
        }
        Ok(letters)
    }

    async fn letter(&self, function: &FunctionName, sequence: u64) -> Result<Option<DeadLetter>, BrokerError> {
        let found = self.core.stored_at(DLQ_STREAM, sequence).await?;
        Ok(found.filter(|found| found.subject == subject::dlq(function)).and_then(|found| read(function, found)))
    }

    async fn remove_letter(&self, function: &FunctionName, sequence: u64) -> Result<bool, BrokerError> {
        let attempted = "remove a dead letter";
        let found = self.core.stored_at(DLQ_STREAM, sequence).await?;
        if found.is_none_or(|found| found.subject != subject::dlq(function)) {
            return Ok(false);
        }
        let body = json!({ "seq": sequence, "no_erase": true }).to_string();
        let removed = self.core.api::<Done>(attempted, &format!("STREAM.MSG.DELETE.{DLQ_STREAM}"), body).await;
        match removed {
            Ok(_) => Ok(true),
            Err(ApiFailure::Api(error)) if error.is_message_gone() => Ok(false),
            Err(failure) => Err(failure.into_broker(attempted, DLQ_STREAM)),
        }
    }

    async fn purge_letters(&self, function: &FunctionName) -> Result<u64, BrokerError> {
        let attempted = "purge dead letters";
        let body = json!({ "filter": subject::dlq(function) }).to_string();
        let purged: Done = self
            .core
            .api(attempted, &format!("STREAM.PURGE.{DLQ_STREAM}"), body)
            .await
            .map_err(|failure| failure.into_broker(attempted, DLQ_STREAM))?;
        Ok(purged.purged)
    }

    async fn letter_counts(&self) -> Result<Vec<(FunctionName, u64)>, BrokerError> {
        let (counts, _) = self.core.counts(DLQ_STREAM, subject::dlqs()).await?;
        let function = |subject: &str| FunctionName::parse(subject.rsplit('.').next()?).ok();
        Ok(counts.into_iter().filter_map(|(subject, letters)| Some((function(&subject)?, letters))).collect())
    }
}

#[derive(Deserialize)]
pub(super) struct Done {
    // An error's answer lacks it.
    #[serde(rename = "success")]
    _success: bool,
    #[serde(default)]
    purged: u64,
}

fn read(function: &FunctionName, found: Found) -> Option<DeadLetter> {
    match serde_json::from_slice::<Letter>(&found.body) {
        Ok(letter) => Some(DeadLetter {
            sequence: found.sequence,
            function: function.clone(),
            at: found.at,
            invocation: letter.invocation,
            status: letter.status,
        }),
        Err(error) => {
            let body: &Bytes = &found.body;
            tracing::error!(%function, sequence = found.sequence, bytes = body.len(), %error, "a dead letter cannot be read");
            None
        }
    }
}
