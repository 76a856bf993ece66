//! Thousands of readers of one execution's event stream, who have nothing to read.

use std::time::Duration;

use anyhow::{Context as _, ensure};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
};

use super::{
    Args,
    figures::Outcome,
    generator::{Target, open_loop},
    memory,
};

/// Connecting at once: the kernel's backlog is shorter than the crowd.
const AT_ONCE: usize = 64;
const CALLS_FOR: Duration = Duration::from_secs(5);
const CALLS_PER_S: f64 = 100.0;
const ANSWERED_WITHIN: Duration = Duration::from_secs(30);

pub(super) struct Readers {
    pub(super) asked: usize,
    pub(super) reading: usize,
    pub(super) alone: Outcome,
    pub(super) beside: Outcome,
    pub(super) kib_each: f64,
}

pub(super) async fn run(args: &Args, sync: &Target) -> anyhow::Result<Readers> {
    let execution = accepted(args).await?;
    let alone = Outcome::of(&open_loop(sync, CALLS_PER_S, CALLS_FOR).await);
    let before: f64 = memory::look(args.pid).values().sum();
    let mut reading = Vec::with_capacity(args.readers);
    while reading.len() < args.readers {
        let next = AT_ONCE.min(args.readers - reading.len());
        let more = futures::future::join_all((0..next).map(|_| reader(args, &execution))).await;
        let came: Vec<TcpStream> = more.into_iter().flatten().collect();
        if came.is_empty() {
            break;
        }
        reading.extend(came);
    }
    ensure!(!reading.is_empty(), "no reader was let in");
    let after: f64 = memory::look(args.pid).values().sum();
    let beside = Outcome::of(&open_loop(sync, CALLS_PER_S, CALLS_FOR).await);
    #[allow(clippy::cast_precision_loss)] // thousands
    let kib_each = (after - before) * 1024.0 / reading.len() as f64;
    Ok(Readers { asked: args.readers, reading: reading.len(), alone, beside, kib_each })
}

/// The id of a sleeping execution.
async fn accepted(args: &Args) -> anyhow::Result<String> {
    let target = args.target(&format!("/execute/{}/async", args.nap))?;
    let mut stream = TcpStream::connect(&target.address).await?;
    stream.write_all(&target.request).await?;
    let answer = head(&mut stream).await?;
    let location = answer.lines().find_map(|line| line.strip_prefix("location: "));
    Ok(location.with_context(|| format!("it was not accepted: {answer}"))?.trim().to_owned())
}

/// A connection whose stream has begun.
async fn reader(args: &Args, execution: &str) -> anyhow::Result<TcpStream> {
    let address = args.address()?;
    let mut stream = TcpStream::connect(address).await?;
    let request = format!("GET {execution}/stream HTTP/1.1\r\nHost: {address}\r\nX-API-Key: {}\r\n\r\n", args.key);
    stream.write_all(request.as_bytes()).await?;
    let answer = tokio::time::timeout(ANSWERED_WITHIN, head(&mut stream)).await??;
    ensure!(answer.starts_with("HTTP/1.1 200"), "it was refused: {answer}");
    Ok(stream)
}

async fn head(stream: &mut TcpStream) -> anyhow::Result<String> {
    let mut all = Vec::new();
    while !all.windows(4).any(|four| four == b"\r\n\r\n") {
        ensure!(stream.read_buf(&mut all).await? > 0, "the connection ended");
    }
    Ok(String::from_utf8_lossy(&all).into_owned())
}
