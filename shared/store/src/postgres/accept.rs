//! Accepted executions, many to a statement.
//!
//! A commit waits for the server's disk, and costs about the same for one row as for a hundred: so whatever waits when a
//! writer is free goes together, and each caller is answered after the commit. There are two writers, so that one batch
//! gathers while another is on its way.

use std::{future::Future, sync::Arc};

use flux_protocol::{ExecutionRecord, limits};
use tokio::{
    sync::{Mutex, mpsc, oneshot},
    task::JoinSet,
};

use super::fault::Fault;
use crate::row::Row;

const WRITERS: usize = 2;

pub(super) struct Accepted {
    pub(super) record: ExecutionRecord,
    pub(super) row: Row,
}

struct Waiting {
    accepted: Accepted,
    answer: oneshot::Sender<Result<(), Arc<Fault>>>,
}

pub(super) struct Acceptor {
    waiting: mpsc::Sender<Waiting>,
    /// Ended when the store is dropped.
    _writers: JoinSet<()>,
}

impl Acceptor {
    /// `write` commits all that it is given, or nothing.
    pub(super) fn start<W, Fut>(queue: usize, write: W) -> Self
    where
        W: Fn(Arc<Vec<Accepted>>) -> Fut + Clone + Send + Sync + 'static,
        Fut: Future<Output = Result<(), Fault>> + Send,
    {
        let (waiting, taken) = mpsc::channel(queue.max(1));
        let taken = Arc::new(Mutex::new(taken));
        let mut writers = JoinSet::new();
        for _ in 0..WRITERS {
            let (taken, write) = (Arc::clone(&taken), write.clone());
            writers.spawn(async move {
                loop {
                    // The lock is held while waiting: one writer gathers at a time, and what comes goes together.
                    let batch = gather(&mut *taken.lock().await).await;
                    let Some(batch) = batch else { return };
                    commit(batch, &write).await;
                }
            });
        }
        Self { waiting, _writers: writers }
    }

    /// Returns after the commit. `None`: the store was closed.
    pub(super) async fn accept(&self, record: ExecutionRecord) -> Option<Result<(), Arc<Fault>>> {
        let row = Row::of(record.clone());
        let (answer, answered) = oneshot::channel();
        self.waiting.send(Waiting { accepted: Accepted { record, row }, answer }).await.ok()?;
        answered.await.ok()
    }
}

async fn gather(taken: &mut mpsc::Receiver<Waiting>) -> Option<Vec<Waiting>> {
    let first = taken.recv().await?;
    let mut bytes = first.accepted.row.bytes();
    let mut batch = vec![first];
    while batch.len() < limits::STORE_BATCH && bytes < limits::STORE_BATCH_BYTES {
        let Ok(next) = taken.try_recv() else { break };
        bytes += next.accepted.row.bytes();
        batch.push(next);
    }
    Some(batch)
}

async fn commit<Fut: Future<Output = Result<(), Fault>>>(
    batch: Vec<Waiting>,
    write: &impl Fn(Arc<Vec<Accepted>>) -> Fut,
) {
    let (accepted, answers): (Vec<_>, Vec<_>) =
        batch.into_iter().map(|Waiting { accepted, answer }| (accepted, answer)).unzip();
    let accepted = Arc::new(accepted);
    let done = write(Arc::clone(&accepted)).await.map_err(Arc::new);
    let alone = match &done {
        // One of them may be what the server does not take: each by itself, then.
        Err(fault) if !fault.is_of_server() && answers.len() > 1 => Arc::into_inner(accepted),
        _ => None,
    };
    match alone {
        None => {
            for answer in answers {
                // A caller that went away does not want to know.
                let _ = answer.send(done.clone());
            }
        }
        Some(accepted) => {
            for (accepted, answer) in accepted.into_iter().zip(answers) {
                let _ = answer.send(write(Arc::new(vec![accepted])).await.map_err(Arc::new));
            }
        }
    }
}
