//! Rings: somebody stored a message. For a hot queue that is no news; a cold one is made hot, so that agents come.
//! Rings are shared out among gateways and may be lost; the reconciler's counts stand behind them.

use std::{sync::Arc, time::Duration};

use flux_protocol::subject::QueueName;
use futures::StreamExt as _;

use super::Inner;

/// Queues made hot at once on behalf of rings.
const AT_ONCE: usize = 32;

/// Runs for as long as the gateway does.
pub(super) async fn run(inner: Arc<Inner>) {
    loop {
        match inner.broker.rings().await {
            Ok(rings) => {
                rings
                    .filter(|ring| std::future::ready(!inner.is_no_news(&ring.queue)))
                    .for_each_concurrent(AT_ONCE, |ring| {
                        let inner = Arc::clone(&inner);
                        async move { inner.answer_ring(&ring.queue).await }
                    })
                    .await;
            }
            Err(error) => {
                tracing::warn!(
                    error = &error as &dyn std::error::Error,
                    "cannot hear rings; the reconciler counts meanwhile"
                );
            }
        }
        tokio::time::sleep(Duration::from_millis(500)).await;
    }
}

impl Inner {
    /// Whether the queue is hot; then at most an agent is told.
    fn is_no_news(&self, queue: &QueueName) -> bool {
        let hot = self.hot.touch(queue);
        if hot {
            self.hot.tell_if_needed(queue, 0, self.functions.known(&queue.function));
        }
        hot
    }

    /// Makes the queue hot, or takes what lies in it where no such function exists.
    pub(super) async fn answer_ring(&self, queue: &QueueName) {
        match self.functions.current(&queue.function).await {
            Ok(Some(function)) => {
                let heated = self.hot.heat(queue).await;
                self.hot.tell_if_needed(queue, 0, Some(function));
                if let Err(error) = heated {
                    tracing::debug!(
                        queue = %queue.key(),
                        error = &error as &dyn std::error::Error,
                        "cannot make a queue hot; the reconciler will"
                    );
                }
            }
            Ok(None) => self.take_unknown(queue).await,
            Err(error) => {
                tracing::debug!(error = &error as &dyn std::error::Error, "cannot read a function that was rung for");
            }
        }
    }
}
