//! Load: an open loop, whose requests come at their time whether the last ones were answered or not, and a closed one,
//! which finds out what the server can take.
//!
//! Each request is timed from when it was due, so that a server that stalls is not asked less and judged better.

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use parking_lot::Mutex;
use tokio::{
    io::AsyncWriteExt as _,
    net::TcpStream,
    time::{Instant, MissedTickBehavior},
};

use crate::http_response::read;

/// How often it is looked which requests are due.
const TICK: Duration = Duration::from_millis(1);
/// Connections of an open loop; a request that finds none free was held up by the generator, and is counted apart.
const CONNECTIONS: usize = 12_000;
/// An answer that takes longer counts as none.
const PATIENCE: Duration = Duration::from_secs(20);

/// Where to, and the bytes of the request, the same every time.
#[derive(Debug, Clone)]
pub(super) struct Target {
    pub(super) address: String,
    pub(super) request: Arc<[u8]>,
}

#[derive(Debug, Clone, Copy)]
pub(super) struct Answer {
    /// When the request was due, from the beginning of the load.
    pub(super) due: Duration,
    pub(super) took: Duration,
    /// How much of that went by before the generator got to send it.
    pub(super) late: Duration,
    pub(super) status: u16,
    pub(super) retry_after: bool,
}

#[derive(Debug, Default)]
pub(super) struct Answers {
    pub(super) all: Vec<Answer>,
    /// Connections that broke, and requests without an answer in time.
    pub(super) broken: usize,
    /// Requests that were not sent for want of a connection.
    pub(super) unsent: usize,
}

struct Open {
    target: Target,
    begun: Instant,
    idle: Mutex<Vec<TcpStream>>,
    connections: AtomicUsize,
    answers: Mutex<Answers>,
}

/// Sends `rate` requests a second for `length`, and waits for their answers.
pub(super) async fn open_loop(target: &Target, rate: f64, length: Duration) -> Answers {
    let open = Arc::new(Open {
        target: target.clone(),
        begun: Instant::now(),
        idle: Mutex::default(),
        connections: AtomicUsize::new(0),
        answers: Mutex::default(),
    });
    let mut running = tokio::task::JoinSet::new();
    let mut tick = tokio::time::interval(TICK);
    tick.set_missed_tick_behavior(MissedTickBehavior::Skip);
    let interval = Duration::from_secs_f64(1.0 / rate);
    let mut due = Duration::ZERO;
    while due < length {
        tick.tick().await;
        while due < length && due <= open.begun.elapsed() {
            let open = Arc::clone(&open);
            running.spawn(async move { open.one(due).await });
            due += interval;
        }
        while running.try_join_next().is_some() {}
    }
    while running.join_next().await.is_some() {}
    std::mem::take(&mut *open.answers.lock())
}

impl Open {
    async fn one(&self, due: Duration) {
        let late = self.begun.elapsed().saturating_sub(due);
        let free = self.idle.lock().pop();
        let stream = match free {
            Some(stream) => Ok(stream),
            None if self.connections.fetch_add(1, Ordering::Relaxed) < CONNECTIONS => connect(&self.target).await,
            None => {
                self.connections.fetch_sub(1, Ordering::Relaxed);
                self.answers.lock().unsent += 1;
                return;
            }
        };
        let exchanged = match stream {
            Ok(stream) => exchange(&self.target, stream, &mut Vec::new()).await,
            Err(error) => Err(error),
        };
        match exchanged {
            Ok((status, retry_after, stream)) => {
                let took = self.begun.elapsed().saturating_sub(due);
                self.answers.lock().all.push(Answer { due, took, late, status, retry_after });
                match stream {
                    Some(stream) => self.idle.lock().push(stream),
                    None => {
                        self.connections.fetch_sub(1, Ordering::Relaxed);
                    }
                }
            }
            Err(_) => {
                self.connections.fetch_sub(1, Ordering::Relaxed);
                self.answers.lock().broken += 1;
            }
        }
    }
}

/// `width` callers, each with its next request as soon as the last one is answered.
pub(super) async fn closed_loop(target: &Target, width: usize, length: Duration) -> Answers {
    let begun = Instant::now();
    let callers = (0..width).map(|_| async {
        let mut answers = Answers::default();
        let (mut open, mut buffer) = (None, Vec::new());
        while begun.elapsed() < length {
            let due = begun.elapsed();
            let stream = match open.take() {
                Some(stream) => Ok(stream),
                None => connect(target).await,
            };
            let exchanged = match stream {
                Ok(stream) => exchange(target, stream, &mut buffer).await,
                Err(error) => Err(error),
            };
            match exchanged {
                Ok((status, retry_after, stream)) => {
                    let took = begun.elapsed().saturating_sub(due);
                    answers.all.push(Answer { due, took, late: Duration::ZERO, status, retry_after });
                    open = stream;
                }
                Err(_) => answers.broken += 1,
            }
        }
        answers
    });
    let mut sum = Answers::default();
    for answers in futures::future::join_all(callers).await {
        sum.all.extend(answers.all);
        sum.broken += answers.broken;
    }
    sum
}

async fn connect(target: &Target) -> std::io::Result<TcpStream> {
    let stream = TcpStream::connect(&target.address).await?;
    stream.set_nodelay(true)?;
    Ok(stream)
}

/// Status, whether it says when to try again, and the connection if it serves another request.
async fn exchange(
    target: &Target,
    mut stream: TcpStream,
    buffer: &mut Vec<u8>,
) -> std::io::Result<(u16, bool, Option<TcpStream>)> {
    let talk = async {
        stream.write_all(&target.request).await?;
        read(&mut stream, buffer).await
    };
    let response = tokio::time::timeout(PATIENCE, talk).await.map_err(|_| std::io::ErrorKind::TimedOut)??;
    Ok((response.status, response.retry_after, response.keep_alive.then_some(stream)))
}
