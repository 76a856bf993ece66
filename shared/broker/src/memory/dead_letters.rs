//! Dead letters.

use std::collections::HashMap;

use async_trait::async_trait;
use flux_protocol::{ExecutionId, FunctionName, Invocation, StatusMessage, time::now};

use super::{MemoryBroker, takes_fault};
use crate::{BrokerError, DeadLetter, DeadLetters};

#[derive(Default)]
pub(super) struct Letters {
    all: Vec<DeadLetter>,
    sequence: u64,
    /// Also of those that were removed.
    buried: HashMap<ExecutionId, u64>,
}

#[async_trait]
impl DeadLetters for MemoryBroker {
    async fn bury(&self, status: &StatusMessage, invocation: &Invocation) -> Result<u64, BrokerError> {
        let attempted = "store a dead letter";
        self.inner.connected(attempted)?;
        takes_fault(&self.inner.faults.buries_to_fail, attempted)?;
        let mut letters = self.inner.letters.lock();
        if let Some(sequence) = letters.buried.get(&status.execution_id) {
            return Ok(*sequence);
        }
        letters.sequence += 1;
        let sequence = letters.sequence;
        letters.buried.insert(status.execution_id, sequence);
        letters.all.push(DeadLetter {
            sequence,
            function: status.function.clone(),
            at: now(),
            invocation: invocation.clone(),
            status: StatusMessage { invocation: None, ..status.clone() },
        });
        Ok(sequence)
    }

    async fn letters(&self, function: &FunctionName, after: u64, most: usize) -> Result<Vec<DeadLetter>, BrokerError> {
        self.inner.connected("read dead letters")?;
        let letters = self.inner.letters.lock();
        let of = letters.all.iter().filter(|letter| letter.function == *function && letter.sequence > after);
        Ok(of.take(most).cloned().collect())
    }

    async fn letter(&self, function: &FunctionName, sequence: u64) -> Result<Option<DeadLetter>, BrokerError> {
        Ok(self.letters(function, sequence.saturating_sub(1), 1).await?.into_iter().find(|l| l.sequence == sequence))
    }

    async fn remove_letter(&self, function: &FunctionName, sequence: u64) -> Result<bool, BrokerError> {
        self.inner.connected("remove a dead letter")?;
        let mut letters = self.inner.letters.lock();
        let before = letters.all.len();
        letters.all.retain(|letter| letter.function != *function || letter.sequence != sequence);
        Ok(letters.all.len() < before)
    }

    async fn purge_letters(&self, function: &FunctionName) -> Result<u64, BrokerError> {
        self.inner.connected("purge dead letters")?;
        let mut letters = self.inner.letters.lock();
        let before = letters.all.len();
        letters.all.retain(|letter| letter.function != *function);
        Ok((before - letters.all.len()) as u64)
    }

    async fn letter_counts(&self) -> Result<Vec<(FunctionName, u64)>, BrokerError> {
        self.inner.connected("count dead letters")?;
        let letters = self.inner.letters.lock();
        let mut counts: HashMap<FunctionName, u64> = HashMap::new();
        for letter in &letters.all {
            *counts.entry(letter.function.clone()).or_default() += 1;
        }
        Ok(counts.into_iter().collect())
    }
}
