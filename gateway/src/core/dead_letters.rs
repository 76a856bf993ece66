//! Dead letters: invocations given up on, until somebody redrives or purges them.
//!
//! Redrive is a new execution that names the old one. The letter goes once the new execution is accepted; dying between the
//! two leaves the letter, and redriving it again is a further execution.

use std::sync::Arc;

use flux_broker::DeadLetter;
use flux_protocol::{ErrorCode, FunctionName, Payload, limits, subject, trace::TraceParent};

use super::{Gateway, Inner, InvokeRequest, Redriven, function_cache::Runnable};
use crate::refusal::Refusal;

/// Letters read at a time.
const PAGE: usize = 100;

impl Gateway {
    /// Functions that have letters, and how many.
    ///
    /// # Errors
    /// The queue is out of reach.
    pub async fn dead_letter_counts(&self) -> Result<Vec<(FunctionName, u64)>, Refusal> {
        Ok(self.inner.broker.letter_counts().await?)
    }

    /// Letters of a function after `after`, oldest first.
    ///
    /// # Errors
    /// The queue is out of reach.
    pub async fn dead_letters(
        &self,
        name: &FunctionName,
        after: u64,
        limit: usize,
    ) -> Result<Vec<DeadLetter>, Refusal> {
        Ok(self.inner.broker.letters(name, after, limit.clamp(1, limits::PAGE)).await?)
    }

    /// # Errors
    /// There is no such letter.
    pub async fn dead_letter(&self, name: &FunctionName, sequence: u64) -> Result<DeadLetter, Refusal> {
        self.inner.broker.letter(name, sequence).await?.ok_or_else(|| letter_not_found(name, sequence))
    }

    /// Invokes what a letter holds anew: one letter, or all of the function's.
    ///
    /// # Errors
    /// The function, its version or the letter is unknown, or the queue or the store refuses.
    pub async fn redrive(
        &self,
        name: &FunctionName,
        sequence: Option<u64>,
        version: Option<u32>,
        dry_run: bool,
    ) -> Result<Vec<Redriven>, Refusal> {
        let inner = &self.inner;
        inner.require_open()?;
        let function = inner.invocable(name, version).await?;
        function.require_code()?;
        if let Some(sequence) = sequence {
            let letter = self.dead_letter(name, sequence).await?;
            return Ok(vec![inner.redrive_letter(&function, letter, dry_run).await?]);
        }
        let mut redriven = Vec::new();
        let mut after = 0;
        loop {
            let page = inner.broker.letters(name, after, PAGE).await?;
            let Some(last) = page.last() else { return Ok(redriven) };
            after = last.sequence;
            for letter in page {
                redriven.push(inner.redrive_letter(&function, letter, dry_run).await?);
            }
            if redriven.len() >= limits::PAGE * 10 {
                return Ok(redriven);
            }
        }
    }

    /// Removes one letter, or all of the function's; how many there were.
    ///
    /// # Errors
    /// There is no such letter, or the queue is out of reach.
    pub async fn purge(&self, name: &FunctionName, sequence: Option<u64>) -> Result<u64, Refusal> {
        let inner = &self.inner;
        if let Some(sequence) = sequence {
            let letter = self.dead_letter(name, sequence).await?;
            inner.discard_payload(&letter.invocation);
            return Ok(u64::from(inner.broker.remove_letter(name, sequence).await?));
        }
        let mut after = 0;
        loop {
            let page = inner.broker.letters(name, after, PAGE).await?;
            let Some(last) = page.last() else { break };
            after = last.sequence;
            for letter in &page {
                if let Payload::Blob(blob) = &letter.invocation.payload {
                    inner.delete_blob(&blob.key).await;
                }
            }
        }
        Ok(inner.broker.purge_letters(name).await?)
    }
}

fn letter_not_found(name: &FunctionName, sequence: u64) -> Refusal {
    Refusal::new(
        ErrorCode::MessageNotFound,
        format!("`{name}` has no dead letter {sequence}; GET /dlq/{name} lists those that it has"),
    )
}

impl Inner {
    async fn redrive_letter(
        self: &Arc<Self>,
        function: &Arc<Runnable>,
        letter: DeadLetter,
        dry_run: bool,
    ) -> Result<Redriven, Refusal> {
        let of = letter.status.execution_id;
        if dry_run {
            return Ok(Redriven { letter: letter.sequence, execution_id: None, of });
        }
        let payload = match &letter.invocation.payload {
            Payload::Inline(bytes) => bytes.clone(),
            Payload::Blob(blob) => {
                self.broker.get_blob(subject::blob_bucket(&blob.key), &blob.key, limits::PAYLOAD).await?.ok_or_else(
                    || {
                        Refusal::new(
                            ErrorCode::MessageNotFound,
                            format!(
                                "the payload of dead letter {} is no longer in the blob store; purge the letter",
                                letter.sequence
                            ),
                        )
                    },
                )?
            }
        };
        let request = InvokeRequest {
            payload,
            args: letter.invocation.args.clone(),
            trace: letter.invocation.traceparent.as_deref().and_then(TraceParent::parse),
            ..InvokeRequest::default()
        };
        let accepted = self.accept(function, request, Some(of)).await?;
        self.broker.remove_letter(&letter.function, letter.sequence).await?;
        self.discard_payload(&letter.invocation);
        tracing::info!(execution_id = %accepted.execution_id, %of, function = %letter.function, "dead letter redriven");
        Ok(Redriven { letter: letter.sequence, execution_id: Some(accepted.execution_id), of })
    }
}
