//! Records as they are asked for, and the output of a running execution, which only its agent has.

use std::time::Duration;

use flux_protocol::{
    AgentId, ExecutionId, ExecutionRecord, OutputLog, Phase,
    agent::{ControlReply, ControlRequest},
    limits, subject,
};
use flux_store::ExecutionFilter;

use super::{Gateway, Inner};
use crate::refusal::Refusal;

/// An agent answers from memory.
const TAIL_WITHIN: Duration = Duration::from_millis(500);

impl Gateway {
    /// The record; [`Gateway::output`] has what it printed.
    ///
    /// # Errors
    /// It is unknown.
    pub async fn execution(&self, id: ExecutionId) -> Result<ExecutionRecord, Refusal> {
        self.inner.store.execution(id).await?.ok_or_else(|| Inner::execution_not_found(id))
    }

    /// Newest first, without output.
    ///
    /// # Errors
    /// The store is out of reach.
    pub async fn executions(&self, mut filter: ExecutionFilter) -> Result<Vec<ExecutionRecord>, Refusal> {
        filter.limit = filter.limit.clamp(1, limits::PAGE);
        Ok(self.inner.store.executions(&filter).await?)
    }

    /// The whole output of a record, fetched where it lies in the blob seam; of a running execution what it has
    /// printed by now, from its agent.
    ///
    /// # Errors
    /// The blob store is out of reach, or has it no longer.
    pub async fn output(&self, record: &ExecutionRecord) -> Result<OutputLog, Refusal> {
        match &record.outcome {
            Some(outcome) if record.phase == Phase::Ended => match &outcome.output_ref {
                Some(blob) => self.inner.fetch_output(blob).await,
                None => Ok(outcome.output.clone()),
            },
            _ => Ok(self.live_output(record).await.unwrap_or_default()),
        }
    }

    /// What a running execution has printed by now; `None` when no agent says so.
    pub async fn live_output(&self, record: &ExecutionRecord) -> Option<OutputLog> {
        let agent = record.agent_id.as_ref().filter(|_| record.phase == Phase::Running)?;
        let (_, output) = self.inner.tail(agent, record.execution_id).await?;
        Some(output)
    }
}

impl Inner {
    /// The attempt that an agent runs, and what it has printed by now.
    pub(super) async fn tail(&self, agent: &AgentId, id: ExecutionId) -> Option<(u32, OutputLog)> {
        let request = serde_json::to_vec(&ControlRequest::Tail { execution_id: id }).ok()?;
        let answer = self.broker.ask(subject::control(agent), request.into(), TAIL_WITHIN).await.ok()??;
        match serde_json::from_slice(&answer.body).ok()? {
            ControlReply::Tail { attempt, output } => Some((attempt, output)),
            _ => None,
        }
    }
}
