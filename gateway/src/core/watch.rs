//! Following an execution's output live, from any gateway, and resuming where a watcher had got to.
//!
//! Subscribe to the output and the statuses, then read the record, then ask the agent for what it has, then follow. A gap in
//! the chunks' numbers (signals may be lost) is healed by asking again; a new attempt starts over at its first chunk; the
//! outcome has the whole output, so whatever was missed is told before the end. The end is the record's: a signal that tells
//! of one says when to look, since of two outcomes the log decides, and one may have been said that nobody will record.

use std::{sync::Arc, time::Duration};

use flux_broker::{Signal, Subscription};
use flux_protocol::{AgentId, Chunk, ExecutionId, ExecutionRecord, OutputLog, Phase, agent::OutputMessage, subject};
use futures::{StreamExt as _, stream::BoxStream};
use tokio::{sync::mpsc, time::Instant};
use tokio_stream::wrappers::ReceiverStream;

use super::{
    Gateway, Inner, WatchEvent, WatchFrom,
    waiters::{LOOK_FIRST, merged, next_status},
};
use crate::refusal::Refusal;

/// Events on their way to a slow watcher; beyond it the agent's and the store's copies wait.
const EVENTS: usize = 64;
/// The store and the agent are asked after this, should signals have been lost; while nothing comes, each time twice as
/// long after the last, up to the second: thousands of idle watchers must cost nearly nothing. A connection that was lost
/// and came back, which is what loses signals, has them look at once.
const LOOK_AFTER: Duration = Duration::from_secs(2);
const LOOK_AT_LEAST_EVERY: Duration = Duration::from_secs(30);

impl Gateway {
    /// The execution's output from `from` on, and its end.
    ///
    /// # Errors
    /// It is unknown, or this gateway holds as many watchers as it may.
    pub async fn watch(&self, id: ExecutionId, from: WatchFrom) -> Result<BoxStream<'static, WatchEvent>, Refusal> {
        let inner = &self.inner;
        let place = inner.watching_place()?;
        let outputs = inner.broker.listen(&subject::outputs_of(id)).await?;
        let statuses = inner.broker.listen(&subject::statuses_of(id)).await?;
        let Some(record) = inner.store.execution(id).await? else { return Err(Inner::execution_not_found(id)) };
        let (events, watcher) = mpsc::channel(EVENTS);
        let follower = Follower {
            inner: Arc::clone(inner),
            id,
            agent: record.agent_id.clone(),
            cursor: Cursor { attempt: from.attempt, chunk: from.chunk },
            events,
        };
        inner.tasks.spawn("watch", async move {
            // An error means that the watcher went.
            let _ = follower.run(record, outputs, statuses).await;
            drop(place);
        });
        Ok(ReceiverStream::new(watcher).boxed())
    }
}

/// What a watcher has got: pure.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Cursor {
    attempt: u32,
    chunk: u64,
}

#[derive(Debug, PartialEq, Eq)]
enum Take {
    /// The next chunk.
    Deliver,
    /// Told before, or of an attempt that is over.
    Old,
    /// Chunks before it were missed.
    Gap,
}

impl Cursor {
    /// `live` chunks are numbered without gaps; in a log the dropped middle leaves one.
    fn take(&mut self, attempt: u32, chunk: u64, live: bool) -> Take {
        if attempt < self.attempt || (attempt == self.attempt && chunk <= self.chunk) {
            return Take::Old;
        }
        let expected = if attempt == self.attempt { self.chunk + 1 } else { 1 };
        if live && chunk > expected {
            return Take::Gap;
        }
        *self = Self { attempt, chunk };
        Take::Deliver
    }
}

struct Gone;

struct Follower {
    inner: Arc<Inner>,
    id: ExecutionId,
    agent: Option<AgentId>,
    cursor: Cursor,
    events: mpsc::Sender<WatchEvent>,
}

impl Follower {
    async fn run(
        mut self,
        mut record: ExecutionRecord,
        mut outputs: Subscription,
        mut statuses: Subscription,
    ) -> Result<(), Gone> {
        let mut look_after = LOOK_AFTER;
        let mut end_was_said = false;
        let mut connection = self.inner.broker.connection();
        connection.mark_unchanged();
        loop {
            if record.is_terminal() {
                return self.end(record).await;
            }
            if record.phase == Phase::Running && !end_was_said {
                self.heal().await?;
            }
            let looked = tokio::time::sleep(look_after);
            tokio::pin!(looked);
            // Until something changed that the record tells.
            loop {
                tokio::select! {
                    biased;
                    signal = outputs.next() => match signal {
                        Some(signal) => {
                            look_after = LOOK_AFTER;
                            self.output(&signal).await?;
                        }
                        None => break,
                    },
                    status = next_status(&mut statuses) => {
                        if status.agent_id.is_some() {
                            self.agent.clone_from(&status.agent_id);
                        }
                        end_was_said = status.is_terminal();
                        if end_was_said {
                            look_after = LOOK_FIRST;
                            looked.as_mut().reset(Instant::now() + LOOK_FIRST);
                            continue;
                        }
                        record = merged(record, &status);
                        look_after = LOOK_AFTER;
                        break;
                    }
                    Ok(()) = connection.changed() => {
                        look_after = LOOK_AFTER;
                        // Not all of them in the same moment.
                        looked.as_mut().reset(Instant::now() + LOOK_AFTER.mul_f64(rand::random()));
                    }
                    () = &mut looked => {
                        if let Ok(Some(read)) = self.inner.store.execution(self.id).await {
                            if read.agent_id.is_some() {
                                self.agent.clone_from(&read.agent_id);
                            }
                            record = read;
                        }
                        look_after = (look_after * 2).min(if end_was_said { LOOK_AFTER } else { LOOK_AT_LEAST_EVERY });
                        break;
                    }
                    () = self.events.closed() => return Err(Gone),
                }
            }
        }
    }

    async fn output(&mut self, signal: &Signal) -> Result<(), Gone> {
        let Ok(message) = serde_json::from_slice::<OutputMessage>(&signal.body) else { return Ok(()) };
        match self.cursor.take(message.attempt, message.chunk.seq, true) {
            Take::Deliver => self.tell(message.attempt, message.chunk).await,
            Take::Old => Ok(()),
            Take::Gap => {
                let sender = signal.subject.split('.').nth(2).and_then(|agent| AgentId::parse(agent).ok());
                self.agent = sender.or_else(|| self.agent.take());
                self.heal().await?;
                // What the agent has includes this chunk, unless the agent is gone.
                match self.cursor.take(message.attempt, message.chunk.seq, false) {
                    Take::Deliver => self.tell(message.attempt, message.chunk).await,
                    Take::Old | Take::Gap => Ok(()),
                }
            }
        }
    }

    /// Asks the agent for what it has, and tells what is new of it.
    async fn heal(&mut self) -> Result<(), Gone> {
        let Some(agent) = self.agent.clone() else { return Ok(()) };
        match self.inner.tail(&agent, self.id).await {
            Some((attempt, log)) => self.replay(attempt, log).await,
            None => Ok(()),
        }
    }

    async fn replay(&mut self, attempt: u32, log: OutputLog) -> Result<(), Gone> {
        for chunk in log.chunks {
            if self.cursor.take(attempt, chunk.seq, false) == Take::Deliver {
                self.tell(attempt, chunk).await?;
            }
        }
        Ok(())
    }

    async fn end(mut self, mut record: ExecutionRecord) -> Result<(), Gone> {
        let attempt = record.attempt;
        if let Some(outcome) = record.outcome.take() {
            let log = match &outcome.output_ref {
                Some(blob) => self.inner.fetch_output(blob).await.unwrap_or_else(|refusal| {
                    tracing::warn!(
                        execution_id = %self.id,
                        error = &refusal as &dyn std::error::Error,
                        "a watcher ends without the rest of the output"
                    );
                    OutputLog::default()
                }),
                None => outcome.output.clone(),
            };
            // A watcher that names an attempt which never was gets everything.
            if self.cursor.attempt > attempt {
                self.cursor = Cursor { attempt, chunk: 0 };
            }
            self.replay(attempt, log).await?;
            record.outcome = Some(outcome);
        }
        self.events.send(WatchEvent::End(Box::new(record))).await.map_err(|_| Gone)
    }

    async fn tell(&self, attempt: u32, chunk: Chunk) -> Result<(), Gone> {
        self.events.send(WatchEvent::Output { attempt, chunk }).await.map_err(|_| Gone)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn chunks_are_told_once_and_gaps_are_seen() {
        let mut cursor = Cursor { attempt: 0, chunk: 0 };
        let steps = [
            ((1, 1, true), Take::Deliver),
            ((1, 1, true), Take::Old),
            ((1, 2, true), Take::Deliver),
            ((1, 4, true), Take::Gap),
            ((1, 3, false), Take::Deliver),
            ((1, 4, false), Take::Deliver),
            ((1, 4, true), Take::Old),
            // The middle was dropped: a log has gaps that nothing can heal.
            ((1, 9, false), Take::Deliver),
            ((2, 2, true), Take::Gap),
            ((2, 1, true), Take::Deliver),
            ((1, 10, true), Take::Old),
            ((2, 2, true), Take::Deliver),
        ];
        for (at, ((attempt, chunk, live), expected)) in steps.into_iter().enumerate() {
            assert_eq!(cursor.take(attempt, chunk, live), expected, "step {at}");
        }
    }

    #[test]
    fn resuming_goes_on_after_the_last_chunk() {
        let mut cursor = Cursor { attempt: 2, chunk: 7 };
        assert_eq!(cursor.take(2, 7, false), Take::Old);
        assert_eq!(cursor.take(1, 90, true), Take::Old);
        assert_eq!(cursor.take(2, 8, true), Take::Deliver);
    }
}
