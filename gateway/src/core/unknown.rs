//! Messages for functions that do not exist: no agent would ever pull them. A gateway takes each, records what it is
//! (`invalid_function`), and the recorder makes a dead letter of it, from which it can be redriven once the function exists.

use flux_broker::{BrokerError, Delivery};
use flux_protocol::{
    ErrorKind, ExecutionError, ExecutionId, FunctionName, Invocation, Outcome, OutcomeStatus, Phase, StatusMessage,
    subject::QueueName, time::now,
};

use super::Inner;

/// Messages taken at a time; the reconciler comes back for more.
const AT_A_TIME: usize = 1000;

impl Inner {
    pub(super) async fn take_unknown(&self, queue: &QueueName) {
        for _ in 0..AT_A_TIME {
            // The store is asked each time: once the function is registered its messages are its own.
            if !matches!(self.store.function(&queue.function).await, Ok(None)) {
                return;
            }
            let taken = match self.broker.take_one(queue).await {
                Ok(Some(delivery)) => self.refuse_delivery(queue, delivery).await,
                Ok(None) => break,
                Err(error) => Err(error),
            };
            if let Err(error) = taken {
                tracing::warn!(
                    queue = %queue.key(),
                    error = &error as &dyn std::error::Error,
                    "cannot take a message for an unknown function; trying again soon"
                );
                return;
            }
        }
        if let Err(error) = self.hot.cool(queue).await {
            tracing::debug!(error = &error as &dyn std::error::Error, "cannot cool an unknown function's queue");
        }
    }

    /// In the order that agents keep: the reply, the status, then the ack.
    async fn refuse_delivery(&self, queue: &QueueName, delivery: Delivery) -> Result<(), BrokerError> {
        let (mut invocation, notes) = Invocation::from_message(|name| delivery.header(name), delivery.body.clone());
        let id = invocation.execution_id.unwrap_or_else(|| {
            ExecutionId::derived(&delivery.position.stream, delivery.position.sequence, delivery.stored_at)
        });
        invocation.execution_id = Some(id);
        let reply_to = invocation.reply_to.clone();
        let status = StatusMessage {
            execution_id: id,
            function: queue.function.clone(),
            version: invocation.version.unwrap_or(0),
            attempt: invocation.attempt,
            lane: queue.lane,
            pool: queue.pool.clone(),
            phase: Phase::Ended,
            agent_id: None,
            queued_at: delivery.stored_at,
            started_at: None,
            at: now(),
            deadline: invocation.deadline,
            traceparent: invocation.traceparent.clone(),
            outcome: Some(unknown_function(&queue.function)),
            invocation: Some(Box::new(invocation)),
            notes,
        };
        tracing::info!(execution_id = %id, function = %queue.function, "a message for an unknown function was taken");
        self.end_with(status, reply_to).await?;
        delivery.ack.ack().await
    }
}

fn unknown_function(name: &FunctionName) -> Outcome {
    let error = ExecutionError::new(
        ErrorKind::InvalidFunction,
        format!("there is no function `{name}`; register it, then redrive the message with `flux dlq redrive {name}`"),
    );
    Outcome::without_process(OutcomeStatus::Failed, error)
}
