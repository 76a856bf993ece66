//! Invocations given up on, with the reason, until someone redrives or purges them.

use async_trait::async_trait;
use flux_protocol::{FunctionName, Invocation, StatusMessage, Timestamp};
use serde::{Deserialize, Serialize};

use crate::BrokerError;

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DeadLetter {
    pub sequence: u64,
    pub function: FunctionName,
    pub at: Timestamp,
    pub invocation: Invocation,
    /// The execution's last status (its outcome's output may be cut).
    pub status: StatusMessage,
}

#[async_trait]
pub trait DeadLetters {
    /// Adds a letter once per execution: the same execution again is the same letter.
    async fn bury(&self, status: &StatusMessage, invocation: &Invocation) -> Result<u64, BrokerError>;

    /// Letters of a function with a sequence above `after`, oldest first.
    async fn letters(&self, function: &FunctionName, after: u64, most: usize) -> Result<Vec<DeadLetter>, BrokerError>;

    async fn letter(&self, function: &FunctionName, sequence: u64) -> Result<Option<DeadLetter>, BrokerError>;

    /// Whether it was there.
    async fn remove_letter(&self, function: &FunctionName, sequence: u64) -> Result<bool, BrokerError>;

    /// Removes all of a function's; how many there were.
    async fn purge_letters(&self, function: &FunctionName) -> Result<u64, BrokerError>;

    /// Functions that have letters, and how many.
    async fn letter_counts(&self) -> Result<Vec<(FunctionName, u64)>, BrokerError>;
}
