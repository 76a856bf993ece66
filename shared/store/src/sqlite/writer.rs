//! The one thread that writes, and commits in groups.
//!
//! A commit costs about the same for one write as for a hundred, so whatever waits when the writer is free
//! goes into one transaction; each caller is answered after its commit. Should a job fail, the whole
//! transaction is undone and every job of the group runs again in one of its own: jobs are repeatable, and no
//! job can take another's writes with it. (Savepoints would do it without the second run, but copy every page
//! that a job touches, and do not survive a full disk, where SQLite rolls back everything.)

use std::{sync::Arc, thread};

use rusqlite::Connection;
use tokio::sync::{mpsc, oneshot};

use super::fault::Fault;
use crate::StoreError;

/// Rows that go into one transaction before those who wait are answered.
const GROUP_ROWS: usize = 2048;

pub(super) struct Writer {
    jobs: mpsc::Sender<Message>,
    place: Arc<str>,
}

enum Message {
    Run(Box<dyn Job>),
    Close(oneshot::Sender<()>),
}

trait Job: Send {
    fn rows(&self) -> usize;
    /// May be called again after its transaction was undone. Whether its writes may be committed.
    fn run(&mut self, database: &Connection) -> bool;
    fn answer(self: Box<Self>, commit: Result<(), Fault>);
}

struct Call<T, F> {
    rows: usize,
    work: F,
    done: Option<Result<T, Fault>>,
    reply: oneshot::Sender<Result<T, Fault>>,
}

impl<T: Send, F: FnMut(&Connection) -> Result<T, Fault> + Send> Job for Call<T, F> {
    fn rows(&self) -> usize {
        self.rows
    }

    fn run(&mut self, database: &Connection) -> bool {
        let done = (self.work)(database);
        let keep = !done.as_ref().is_err_and(Fault::spoils_transaction);
        self.done = Some(done);
        keep
    }

    fn answer(self: Box<Self>, commit: Result<(), Fault>) {
        let done = match (self.done, commit) {
            (Some(Ok(_)), Err(fault)) => Err(fault),
            (Some(done), _) => done,
            (None, Err(fault)) => Err(fault),
            (None, Ok(())) => return, // dropping the reply says `Closed`
        };
        // A caller that went away does not want to know.
        let _ = self.reply.send(done);
    }
}

impl Writer {
    /// Starts the thread, which opens the connection by `connect` and says how that went.
    pub(super) fn start(
        place: Arc<str>,
        queue: usize,
        connect: impl FnOnce() -> Result<Connection, StoreError> + Send + 'static,
    ) -> Result<(Self, oneshot::Receiver<Result<(), StoreError>>), StoreError> {
        let (jobs, waiting) = mpsc::channel(queue.max(1));
        let (opened, opening) = oneshot::channel();
        thread::Builder::new()
            .name("store-writer".to_owned())
            .spawn(move || match connect() {
                Ok(database) => {
                    if opened.send(Ok(())).is_ok() {
                        let closers = serve(&database, waiting);
                        drop(database);
                        for closed in closers {
                            let _ = closed.send(());
                        }
                    }
                }
                Err(error) => {
                    let _ = opened.send(Err(error));
                }
            })
            .map_err(|error| StoreError::Unavailable { attempted: "start its writer", source: error.into() })?;
        Ok((Self { jobs, place }, opening))
    }

    /// Runs `work` in a transaction and returns after its commit. `rows` is about how much it writes.
    pub(super) async fn write<T: Send + 'static>(
        &self,
        attempted: &'static str,
        rows: usize,
        work: impl FnMut(&Connection) -> Result<T, Fault> + Send + 'static,
    ) -> Result<T, StoreError> {
        let (reply, answer) = oneshot::channel();
        let call = Box::new(Call { rows, work, done: None, reply });
        self.jobs.send(Message::Run(call)).await.map_err(|_| StoreError::Closed)?;
        let done = answer.await.map_err(|_| StoreError::Closed)?;
        done.map_err(|fault| fault.into_error(attempted, &self.place))
    }

    pub(super) fn is_running(&self) -> bool {
        !self.jobs.is_closed()
    }

    pub(super) async fn close(&self) {
        let (closed, closing) = oneshot::channel();
        if self.jobs.send(Message::Close(closed)).await.is_ok() {
            let _ = closing.await;
        }
    }
}

/// Runs until every handle is gone or one closed it; returns who waits for that.
fn serve(database: &Connection, mut waiting: mpsc::Receiver<Message>) -> Vec<oneshot::Sender<()>> {
    let mut closers = Vec::new();
    while let Some(first) = waiting.blocking_recv() {
        let mut group: Vec<Box<dyn Job>> = Vec::new();
        let mut rows = 0;
        let mut next = Some(first);
        while let Some(message) = next {
            match message {
                Message::Run(job) => {
                    rows += job.rows();
                    group.push(job);
                }
                // What was sent before the channel closed is still taken.
                Message::Close(closed) => {
                    waiting.close();
                    closers.push(closed);
                }
            }
            next = if rows < GROUP_ROWS { waiting.try_recv().ok() } else { None };
        }
        commit_group(database, group);
    }
    if let Err(error) = database.query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |_| Ok(())) {
        tracing::debug!(%error, "the log was not folded into the database; the next start does it");
    }
    closers
}

fn commit_group(database: &Connection, mut group: Vec<Box<dyn Job>>) {
    if group.is_empty() {
        return;
    }
    match transact(database, &mut group) {
        Ok(()) => group.into_iter().for_each(|job| job.answer(Ok(()))),
        // A database that gives no transaction now would let each of them wait for the same answer.
        Err(Failed::Begin(fault)) => group.into_iter().for_each(|job| job.answer(Err(fault.clone()))),
        Err(Failed::Job) if group.len() == 1 => group.into_iter().for_each(|job| job.answer(Ok(()))),
        Err(Failed::Commit(fault)) if group.len() == 1 => {
            group.into_iter().for_each(|job| job.answer(Err(fault.clone())));
        }
        Err(Failed::Job | Failed::Commit(_)) => group.into_iter().for_each(|job| commit_group(database, vec![job])),
    }
}

enum Failed {
    Begin(Fault),
    /// A job did, and keeps what it failed with.
    Job,
    Commit(Fault),
}

/// All or nothing.
fn transact(database: &Connection, jobs: &mut [Box<dyn Job>]) -> Result<(), Failed> {
    let execute =
        |sql| database.prepare_cached(sql).and_then(|mut statement| statement.execute([])).map_err(Fault::from);
    execute("BEGIN IMMEDIATE").map_err(Failed::Begin)?;
    let undo = Undo(database);
    if !jobs.iter_mut().all(|job| job.run(database)) {
        return Err(Failed::Job);
    }
    execute("COMMIT").map_err(Failed::Commit)?;
    std::mem::forget(undo);
    Ok(())
}

/// Rolls back when dropped, unless SQLite did so itself.
struct Undo<'c>(&'c Connection);

impl Drop for Undo<'_> {
    fn drop(&mut self) {
        if self.0.is_autocommit() {
            return;
        }
        if let Err(error) = self.0.execute_batch("ROLLBACK") {
            tracing::error!(%error, "a failed transaction was not rolled back");
        }
    }
}
