//! Threads that read, each with a connection of its own: readers neither wait for the writer nor hold it up.

use std::{sync::Arc, thread};

use parking_lot::Mutex;
use rusqlite::Connection;
use tokio::sync::{mpsc, oneshot};

use super::{fault::Fault, writer::Writer};
use crate::StoreError;

type Job = Box<dyn FnOnce(&Connection) + Send>;

pub(super) enum Readers {
    Threads {
        jobs: mpsc::Sender<Job>,
        place: Arc<str>,
    },
    /// A database in memory belongs to one connection, the writer's.
    Writer,
}

impl Readers {
    /// Starts `count` threads; each connection was opened and checked by the caller.
    pub(super) fn start(place: Arc<str>, queue: usize, connections: Vec<Connection>) -> Result<Self, StoreError> {
        let (jobs, waiting) = mpsc::channel::<Job>(queue.max(1));
        let waiting = Arc::new(Mutex::new(waiting));
        for (number, database) in connections.into_iter().enumerate() {
            let waiting = Arc::clone(&waiting);
            thread::Builder::new()
                .name(format!("store-reader-{number}"))
                .spawn(move || {
                    loop {
                        // One idle thread waits in the channel, the others for the lock.
                        let job = waiting.lock().blocking_recv();
                        let Some(job) = job else { break };
                        job(&database);
                    }
                })
                .map_err(|error| StoreError::Unavailable { attempted: "start a reader", source: error.into() })?;
        }
        Ok(Self::Threads { jobs, place })
    }

    pub(super) async fn read<T: Send + 'static>(
        &self,
        writer: &Writer,
        attempted: &'static str,
        mut work: impl FnMut(&Connection) -> Result<T, Fault> + Send + 'static,
    ) -> Result<T, StoreError> {
        let Self::Threads { jobs, place } = self else {
            return writer.write(attempted, 0, work).await;
        };
        if !writer.is_running() {
            return Err(StoreError::Closed);
        }
        let (reply, answer) = oneshot::channel();
        let job: Job = Box::new(move |database| drop(reply.send(work(database))));
        jobs.send(job).await.map_err(|_| StoreError::Closed)?;
        answer.await.map_err(|_| StoreError::Closed)?.map_err(|fault| fault.into_error(attempted, place))
    }
}
