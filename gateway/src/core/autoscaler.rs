//! What the autoscaler says, from its table; and what it is asked, over the queue.

use std::time::Duration;

use flux_broker::{BrokerError, Table};
use flux_protocol::{
    ErrorCode,
    autoscaler::{AutoscalerReply, AutoscalerRequest, AutoscalerStatus, STATUS_KEY},
    subject,
};

use super::Gateway;
use crate::refusal::Refusal;

/// Machines are launched or terminated meanwhile.
const ANSWERED_WITHIN: Duration = Duration::from_secs(60);

impl Gateway {
    /// What the autoscaler said last.
    ///
    /// # Errors
    /// There never was one.
    pub async fn autoscaler(&self) -> Result<AutoscalerStatus, Refusal> {
        self.autoscaler_status().await?.ok_or_else(no_autoscaler)
    }

    pub(super) async fn autoscaler_status(&self) -> Result<Option<AutoscalerStatus>, BrokerError> {
        let Some(entry) = self.inner.broker.get(Table::Autoscaler, STATUS_KEY).await? else { return Ok(None) };
        serde_json::from_slice(&entry.value)
            .map(Some)
            .map_err(|error| BrokerError::refused("read what the autoscaler said", error))
    }

    /// Starts `min_nodes` of every provider: how many were launched, and how many were not.
    ///
    /// # Errors
    /// No autoscaler answers.
    pub async fn initialize_nodes(&self) -> Result<(u32, u32), Refusal> {
        match self.ask_autoscaler(AutoscalerRequest::Initialize).await? {
            AutoscalerReply::Initialized { spawned, failed } => Ok((spawned, failed)),
            other => Err(unexpected(other)),
        }
    }

    /// Ends every managed node; how many.
    ///
    /// # Errors
    /// No autoscaler answers.
    pub async fn remove_nodes(&self) -> Result<u32, Refusal> {
        match self.ask_autoscaler(AutoscalerRequest::RemoveNodes).await? {
            AutoscalerReply::Removed { removed } => Ok(removed),
            other => Err(unexpected(other)),
        }
    }

    async fn ask_autoscaler(&self, request: AutoscalerRequest) -> Result<AutoscalerReply, Refusal> {
        let body = serde_json::to_vec(&request).map_err(|error| BrokerError::refused("encode a request", error))?;
        let answer = self.inner.broker.ask(subject::AUTOSCALER.to_owned(), body.into(), ANSWERED_WITHIN).await?;
        let reply = answer.and_then(|answer| serde_json::from_slice(&answer.body).ok());
        reply.ok_or_else(no_autoscaler)
    }
}

fn no_autoscaler() -> Refusal {
    let message = "no autoscaler answers: start `flux-autoscaler` with a provider in its configuration";
    Refusal::new(ErrorCode::NoAutoscaler, message)
}

fn unexpected(reply: AutoscalerReply) -> Refusal {
    let message = match reply {
        AutoscalerReply::Failed { message } => format!("the autoscaler cannot: {message}"),
        _ => "the autoscaler answered something else".to_owned(),
    };
    Refusal::new(ErrorCode::NoAutoscaler, message)
}
