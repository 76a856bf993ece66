//! Where functions report: one connection for each attempt.

use std::{
    net::Ipv4Addr,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
};

use anyhow::Context as _;
use tokio::{
    io::{AsyncBufReadExt as _, BufReader},
    net::{TcpListener, TcpStream},
};

use crate::{
    clock,
    history::{Event, History},
};

#[derive(Debug)]
pub(crate) struct Collector {
    pub(crate) port: u16,
    open: Arc<AtomicUsize>,
}

impl Collector {
    /// Listens on a thread of its own, so that whatever else the harness does, an end is seen when it comes.
    pub(crate) fn start(history: Arc<History>) -> anyhow::Result<Self> {
        let listener = std::net::TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).context("no port to collect on")?;
        listener.set_nonblocking(true)?;
        let port = listener.local_addr()?.port();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_io().build()?;
        let open = Arc::new(AtomicUsize::new(0));
        let count = Arc::clone(&open);
        std::thread::Builder::new().name("collector".to_owned()).spawn(move || {
            runtime.block_on(async move {
                let listener = TcpListener::from_std(listener).expect("a listener that does not block");
                let local = tokio::task::LocalSet::new();
                local
                    .run_until(async move {
                        loop {
                            let Ok((stream, _)) = listener.accept().await else { continue };
                            let (history, count) = (Arc::clone(&history), Arc::clone(&count));
                            count.fetch_add(1, Ordering::AcqRel);
                            tokio::task::spawn_local(async move {
                                listen(stream, &history).await;
                                count.fetch_sub(1, Ordering::AcqRel);
                            });
                        }
                    })
                    .await;
            });
        })?;
        Ok(Self { port, open })
    }

    /// Attempts that have not closed their connection.
    pub(crate) fn open(&self) -> usize {
        self.open.load(Ordering::Acquire)
    }
}

async fn listen(stream: TcpStream, history: &History) {
    let mut lines = BufReader::new(stream).lines();
    let Some((execution, attempt)) = begin(lines.next_line().await, history) else { return };
    while let Ok(Some(line)) = lines.next_line().await {
        if let Some(at_us) = line.strip_prefix("end ").and_then(clock::parse_uptime) {
            history.note_at(at_us, Event::Finished { execution: execution.clone(), attempt });
        }
    }
    history.note(Event::Gone { execution, attempt });
}

/// `start <execution> <op> <attempt> <version> <uptime>`. A process that was killed before it could say so has not
/// begun.
fn begin(line: std::io::Result<Option<String>>, history: &History) -> Option<(String, u32)> {
    let line = line.ok()??;
    let mut fields = line.strip_prefix("start ")?.split(' ');
    let execution = fields.next()?.to_owned();
    let op = fields.next()?.parse().ok()?;
    let attempt = fields.next()?.parse().ok()?;
    let version = fields.next()?.parse().ok()?;
    let at_us = clock::parse_uptime(fields.next()?)?;
    history.note_at(at_us, Event::Began { execution: execution.clone(), op, attempt, version });
    Some((execution, attempt))
}
