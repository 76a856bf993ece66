//! A log that every process reads from its first record, and so comes to the same as all others: what stands in for a
//! key-value store. It is a stream of RabbitMQ, which keeps what was read.
//!
//! ```text
//!   put, update, delete ─► exchange ─► stream ─┬─► reader of this process ─► its view
//!                                                └─► readers of all others   ─► theirs
//! ```
//!
//! Whether an update holds is decided by the place of its record among all others, the same for every reader; its writer
//! waits until it reads it. Who wants to know what holds *now* writes a mark and waits for that.

use std::{
    collections::HashMap,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};

use flux_protocol::time::now;
use futures::StreamExt as _;
use lapin::{
    Channel, Consumer,
    options::{BasicAckOptions, BasicConsumeOptions, BasicQosOptions},
};
use parking_lot::Mutex;
use tokio::sync::{oneshot, watch};

use super::{
    link::{Link, WITHIN},
    record::{Change, Record},
    session::{Session, arguments, text},
    view::{Applied, View},
};
use crate::BrokerError;

/// Unread records on their way.
const AHEAD: u16 = 512;
/// Records between two acks, which a stream wants only so as to send more.
const ACK_EVERY: u64 = 64;
const FORGET_EVERY: u64 = 10_000;
/// Deletes are remembered for as long as a watcher may be behind.
const FORGOTTEN_AFTER: Duration = Duration::from_secs(24 * 3600);

/// What a log is for.
#[derive(Debug, Clone, Copy)]
pub(super) struct Kind {
    pub(super) name: &'static str,
    /// Tables whose earlier values are kept as well.
    pub(super) history: &'static [&'static str],
    /// Tables whose values age.
    pub(super) aging: &'static [&'static str],
    /// Values stay in memory; otherwise only that they are there.
    pub(super) keeps_values: bool,
}

pub(super) struct Log {
    link: Arc<Link>,
    kind: Kind,
    view: Mutex<View>,
    /// Grows with each record, and when the view was read anew.
    changed: watch::Sender<u64>,
    /// How often the view was read from the start; 0 before the first.
    rounds: AtomicU64,
    waiting: Mutex<HashMap<String, oneshot::Sender<Applied>>>,
    reading: AtomicBool,
}

impl Log {
    pub(super) fn new(link: &Arc<Link>, kind: Kind) -> Arc<Self> {
        Arc::new(Self {
            link: Arc::clone(link),
            kind,
            view: Mutex::default(),
            changed: watch::channel(0).0,
            rounds: AtomicU64::new(0),
            waiting: Mutex::default(),
            reading: AtomicBool::new(false),
        })
    }

    /// Looks at what was read so far.
    pub(super) fn look<T>(&self, at: impl FnOnce(&View) -> T) -> T {
        at(&self.view.lock())
    }

    pub(super) fn rounds(&self) -> u64 {
        self.rounds.load(Ordering::Acquire)
    }

    pub(super) fn changed(&self) -> watch::Receiver<u64> {
        self.changed.subscribe()
    }

    /// Writes without reading: nobody else writes that key.
    pub(super) async fn write(&self, attempted: &'static str, record: &Record) -> Result<(), BrokerError> {
        let (properties, body) = record.encode();
        let key = self.routing_key(record);
        self.link.store(attempted, &self.link.names.logs(), &key, properties, &body).await
    }

    /// Writes, and waits until it is read here.
    pub(super) async fn append(
        self: &Arc<Self>,
        attempted: &'static str,
        record: Record,
    ) -> Result<Applied, BrokerError> {
        self.read_on();
        let (told, applied) = oneshot::channel();
        let waiting = Waiting { log: self, id: record.id.clone() };
        self.waiting.lock().insert(record.id.clone(), told);
        self.write(attempted, &record).await?;
        let applied = tokio::time::timeout(WITHIN, applied).await;
        drop(waiting);
        match applied {
            Ok(Ok(applied)) => Ok(applied),
            Ok(Err(_)) => Err(BrokerError::Closed),
            Err(_) => Err(BrokerError::unavailable(attempted, "what was written is not read in time")),
        }
    }

    fn routing_key(&self, record: &Record) -> String {
        format!("{}.{}.{}", self.kind.name, record.table, record.key)
    }

    /// Waits until everything is read that was written before now.
    pub(super) async fn read_to_now(self: &Arc<Self>, attempted: &'static str) -> Result<(), BrokerError> {
        self.append(attempted, Record::new("mark", "mark", Change::Mark)).await.map(|_| ())
    }

    /// Reads from now on, if it does not yet.
    fn read_on(self: &Arc<Self>) {
        if !self.reading.swap(true, Ordering::AcqRel) {
            self.link.tasks.spawn("rabbitmq log", Arc::clone(self).read());
        }
    }

    async fn read(self: Arc<Self>) {
        while let Some(session) = self.link.session_whenever().await {
            if let Err(error) = self.read_from_the_start(&session).await
                && session.is_up()
            {
                tracing::warn!(log = self.kind.name, %error, "a log cannot be read; trying again");
            }
            tokio::select! {
                () = tokio::time::sleep(Duration::from_millis(100)) => {}
                () = self.link.closed.cancelled() => return,
            }
        }
    }

    async fn read_from_the_start(self: &Arc<Self>, session: &Session) -> Result<(), lapin::Error> {
        let (channel, mut records) = consume(session, &self.link.names.log(self.kind.name), "first").await?;
        // What is there at this moment ends with this.
        let mark = Record::new("mark", "mark", Change::Mark);
        let (properties, body) = mark.encode();
        let key = self.routing_key(&mark);
        session.publish(&self.link.names.logs(), &key, properties, &body).await?;
        let mut anew = Some(View::default());
        let (mut count, mut early) = (0_u64, Vec::new());
        while let Some(incoming) = records.next().await {
            let incoming = incoming?;
            count += 1;
            if count.is_multiple_of(ACK_EVERY) {
                channel.basic_ack(incoming.delivery_tag, BasicAckOptions { multiple: true }).await?;
            }
            let Some((offset, mut record)) = Record::decode(&incoming.properties, incoming.data.into()) else {
                tracing::warn!(log = self.kind.name, "something in a log is no record of ours; it is passed over");
                continue;
            };
            // The server holds agents to what they may write by this key alone.
            if incoming.routing_key.as_str() != self.routing_key(&record) {
                tracing::warn!(log = self.kind.name, key = %incoming.routing_key, "a record is not what it was published as; it is passed over");
                continue;
            }
            if !self.kind.keeps_values {
                record.forget_value();
            }
            let (id, keeps_history) = (record.id.clone(), self.kind.history.contains(&record.table.as_str()));
            let applied = match &mut anew {
                Some(view) => view.apply(offset, record, keeps_history),
                None => self.view.lock().apply(offset, record, keeps_history),
            };
            if id == mark.id
                && let Some(view) = anew.take()
            {
                {
                    let mut current = self.view.lock();
                    *current = view;
                    self.rounds.fetch_add(1, Ordering::AcqRel);
                }
                let mut waiting = self.waiting.lock();
                for (id, applied) in early.drain(..) {
                    if let Some(told) = waiting.remove(&id) {
                        let _ = told.send(applied);
                    }
                }
            }
            if anew.is_some() {
                // Its writer may look only once the view is there.
                if self.waiting.lock().contains_key(&id) {
                    early.push((id, applied));
                }
                continue;
            }
            self.changed.send_modify(|changes| *changes += 1);
            if let Some(told) = self.waiting.lock().remove(&id) {
                let _ = told.send(applied);
            }
            if count.is_multiple_of(FORGET_EVERY) {
                self.view.lock().forget(now().minus(FORGOTTEN_AFTER), self.kind.aging);
            }
        }
        Ok(())
    }
}

/// Reads a stream from an offset, or from its `first` record, on a channel of its own.
pub(super) async fn consume(session: &Session, stream: &str, from: &str) -> Result<(Channel, Consumer), lapin::Error> {
    let from = match from.parse() {
        Ok(offset) => super::session::number(offset),
        Err(_) => text(from),
    };
    let channel = session.channel().await?;
    channel.basic_qos(AHEAD, BasicQosOptions::default()).await?;
    let options = BasicConsumeOptions::default();
    let consumer =
        channel.basic_consume(stream.into(), "".into(), options, arguments([("x-stream-offset", from)])).await?;
    Ok((channel, consumer))
}

/// Nobody waits any more, however that came.
struct Waiting<'a> {
    log: &'a Log,
    id: String,
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.log.waiting.lock().remove(&self.id);
    }
}
