//! A closed loop over HTTP/1.1: each connection sends its next request when the answer to the last one is there.
//!
//! A closed loop understates what a user sees while the server stalls (it stops asking), so a maximum stands beside
//! the percentiles; for open-loop load see the k6 scripts.

use std::{
    collections::BTreeMap,
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use anyhow::{Context, bail};
use serde_json::{Value, json};
use tokio::{io::AsyncWriteExt, net::TcpStream};

use crate::{
    http_response::read,
    stats::{Samples, rate, seconds},
    usage,
};

/// After an error a connection waits this long, so that a server that is down is not flooded.
const AFTER_ERROR: Duration = Duration::from_millis(10);
const PATIENCE: Duration = Duration::from_secs(120);

#[derive(clap::Args)]
pub(crate) struct Args {
    /// What to load: `http://host:port/path`.
    url: String,
    #[arg(long, short, default_value_t = 1)]
    concurrency: usize,
    /// How long to measure.
    #[arg(long, default_value_t = 5.0, conflicts_with = "count")]
    seconds: f64,
    /// Measure this many requests instead.
    #[arg(long)]
    count: Option<usize>,
    /// Load for this long first, unmeasured.
    #[arg(long, default_value_t = 0.5)]
    warm_up: f64,
    #[arg(long, default_value = "POST")]
    method: String,
    /// `Name: value`; may be given more than once.
    #[arg(long = "header", short = 'H')]
    headers: Vec<String>,
    #[arg(long, default_value = "", conflicts_with = "body_file")]
    body: String,
    #[arg(long)]
    body_file: Option<PathBuf>,
    /// Threads of the generator; one is cheapest, and enough for what two cores serve.
    #[arg(long, default_value_t = 1)]
    pub(crate) threads: usize,
}

/// What all connections of a run share.
struct Load {
    address: String,
    request: Vec<u8>,
    /// Requests still to be sent; `usize::MAX` stands for no such limit.
    left: AtomicUsize,
    end: Option<Instant>,
}

#[derive(Default)]
struct Outcome {
    samples: Samples,
    statuses: BTreeMap<u16, usize>,
    errors: usize,
    last_error: Option<String>,
}

pub(crate) async fn run(args: Args) -> anyhow::Result<Value> {
    let (address, request) = request(&args)?;
    let mut warm_up = 0;
    if args.warm_up > 0.0 {
        let end = Instant::now() + Duration::from_secs_f64(args.warm_up);
        warm_up = load(args.concurrency, &address, &request, None, Some(end)).await?.samples.len();
    }
    let start = Instant::now();
    let end = args.count.is_none().then(|| start + Duration::from_secs_f64(args.seconds));
    let outcome = load(args.concurrency, &address, &request, args.count, end).await?;
    let mut line = line(args.concurrency, outcome, start.elapsed());
    if let Some(map) = line.as_object_mut() {
        map.insert("warm_up_requests".to_owned(), json!(warm_up));
        map.extend(usage::of_this_process()?);
    }
    Ok(line)
}

/// The address to connect to and the bytes to send, the same every time.
fn request(args: &Args) -> anyhow::Result<(String, Vec<u8>)> {
    let rest = args.url.strip_prefix("http://").context("the URL has to begin with http://")?;
    let (authority, path) = rest.split_once('/').unwrap_or((rest, ""));
    let address = if authority.contains(':') { authority.to_owned() } else { format!("{authority}:80") };
    let body = match &args.body_file {
        Some(path) => std::fs::read(path).with_context(|| format!("cannot read {}", path.display()))?,
        None => args.body.clone().into_bytes(),
    };
    let mut head =
        format!("{} /{path} HTTP/1.1\r\nHost: {authority}\r\nContent-Length: {}\r\n", args.method, body.len());
    for header in &args.headers {
        if !header.contains(':') {
            bail!("`{header}` is not `Name: value`");
        }
        head.push_str(header);
        head.push_str("\r\n");
    }
    head.push_str("\r\n");
    let mut request = head.into_bytes();
    request.extend_from_slice(&body);
    Ok((address, request))
}

async fn load(
    concurrency: usize,
    address: &str,
    request: &[u8],
    count: Option<usize>,
    end: Option<Instant>,
) -> anyhow::Result<Outcome> {
    let load = Arc::new(Load {
        address: address.to_owned(),
        request: request.to_vec(),
        left: AtomicUsize::new(count.unwrap_or(usize::MAX)),
        end,
    });
    let connections: Vec<_> = (0..concurrency).map(|_| tokio::spawn(connection(load.clone()))).collect();
    let mut all = Outcome::default();
    for connection in connections {
        let one = connection.await?;
        all.samples.extend(one.samples);
        all.errors += one.errors;
        all.last_error = one.last_error.or(all.last_error);
        for (status, count) in one.statuses {
            *all.statuses.entry(status).or_default() += count;
        }
    }
    Ok(all)
}

async fn connection(load: Arc<Load>) -> Outcome {
    let mut outcome = Outcome::default();
    let mut buffer = Vec::new();
    let mut stream = None;
    while load.goes_on() {
        let start = Instant::now();
        match tokio::time::timeout(PATIENCE, exchange(&load, &mut stream, &mut buffer)).await {
            Ok(Ok(status)) => {
                outcome.samples.record(start.elapsed());
                *outcome.statuses.entry(status).or_default() += 1;
            }
            failed => {
                stream = None;
                outcome.errors += 1;
                outcome.last_error = Some(failed.map_or_else(|_| "no answer in time".to_owned(), |e| format!("{e:?}")));
                tokio::time::sleep(AFTER_ERROR).await;
            }
        }
    }
    outcome
}

async fn exchange(load: &Load, stream: &mut Option<TcpStream>, buffer: &mut Vec<u8>) -> std::io::Result<u16> {
    let mut connected = match stream.take() {
        Some(open) => open,
        None => {
            let fresh = TcpStream::connect(&load.address).await?;
            fresh.set_nodelay(true)?;
            fresh
        }
    };
    connected.write_all(&load.request).await?;
    let response = read(&mut connected, buffer).await?;
    if response.keep_alive {
        *stream = Some(connected);
    }
    Ok(response.status)
}

impl Load {
    /// Takes one request off what is left, if anything is.
    fn goes_on(&self) -> bool {
        if self.end.is_some_and(|end| Instant::now() >= end) {
            return false;
        }
        self.left.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| left.checked_sub(1)).is_ok()
    }
}

fn line(concurrency: usize, outcome: Outcome, elapsed: Duration) -> Value {
    let total = outcome.samples.len();
    let succeeded: usize = outcome.statuses.range(200..300).map(|(_, count)| count).sum();
    let statuses: BTreeMap<String, usize> =
        outcome.statuses.into_iter().map(|(status, count)| (status.to_string(), count)).collect();
    let mut line = json!({
        "what": "http-load",
        "concurrency": concurrency,
        "requests": total,
        "succeeded": succeeded,
        "errors": outcome.errors,
        "last_error": outcome.last_error,
        "statuses": statuses,
        "seconds": seconds(elapsed),
        "requests_per_s": rate(total, elapsed),
    });
    if let Some(map) = line.as_object_mut() {
        map.extend(outcome.samples.summary(""));
    }
    line
}
