//! The Flux that is measured: one of its own, on a temporary directory.

use std::{
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use flux_protocol::{FunctionName, PoolName, Timestamp, invocation::Lane, limits, subject::QueueName, time::now};
use reqwest::{Method, header::CONTENT_TYPE};
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::time::{Instant, sleep};

use super::{
    Durability,
    costs::Snapshot,
    guarded::{Guarded, free_address},
    yardstick::BODY,
};
use crate::{client::Client, error::CliError, model::rows, project};

pub(super) const KEY: &str = "bench";
/// The function as it is, and the same with more memory than any machine has: what is accepted for it stays queued.
pub(super) const ECHO: &str = "echo";
pub(super) const WAITS: &str = "waits";
/// The Python handler.
pub(super) const WARM: &str = "warm";
/// The same, in a process forked for each call.
pub(super) const FRESH: &str = "fresh";
/// The same, with AWS's own client.
pub(super) const LAMBDA: &str = "lambda";
const READY_WITHIN: Duration = Duration::from_secs(20);
const IDLE_WITHIN: Duration = Duration::from_secs(120);
const POLL: Duration = Duration::from_millis(10);
/// Idle is what takes less than this share of one core over this time.
const QUIET: f64 = 0.05;
const QUIET_FOR: Duration = Duration::from_millis(300);
const QUIET_WITHIN: Duration = Duration::from_secs(10);
/// Longer than an execution takes: who asks for its record asks when it is over, and is no part of what is measured.
const BETWEEN_SINGLES: Duration = Duration::from_millis(15);

#[derive(Debug)]
pub(super) struct Subject {
    process: Guarded,
    pub(super) client: Client,
    queue: Queue,
    _dir: TempDir,
}

/// Where the queue is, and what is shown there.
#[derive(Debug)]
pub(super) struct Queue {
    pub(super) url: String,
    /// `None`: it asks for nothing.
    pub(super) certs: Option<PathBuf>,
}

impl Queue {
    pub(super) fn args(&self) -> Vec<String> {
        let mut args = vec!["--url".to_owned(), self.url.clone()];
        if let Some(dir) = &self.certs {
            args.extend(["--certs".to_owned(), dir.display().to_string()]);
        }
        args
    }
}

/// How long invocations waited until their process started, in microseconds.
#[derive(Debug, Default)]
pub(super) struct Dispatched {
    /// Since the gateway took them.
    accepted_us: Vec<f64>,
    /// Since before the client asked: the request over HTTP is part of it.
    asked_us: Vec<f64>,
}

impl Dispatched {
    /// p50 and p95.
    pub(super) fn accepted_us(&mut self) -> [f64; 2] {
        ranks(&mut self.accepted_us)
    }

    pub(super) fn asked_us(&mut self) -> [f64; 2] {
        ranks(&mut self.asked_us)
    }
}

fn ranks(waited: &mut [f64]) -> [f64; 2] {
    waited.sort_by(f64::total_cmp);
    let last = waited.len().saturating_sub(1);
    [50, 95].map(|percent| waited.get((waited.len() * percent / 100).min(last)).copied().unwrap_or(f64::NAN))
}

/// The function's program, by its absolute path: what the spawn loop starts.
pub(super) fn program(function: &Path) -> Result<PathBuf, CliError> {
    let program = function.join("echo");
    program.canonicalize().map_err(|_| {
        CliError::problem(format!("{} is not built", program.display()), "`make bench` builds everything and runs this")
    })
}

/// A directory that the users whom the platform drops to can reach, as root.
pub(super) fn directory() -> Result<TempDir, CliError> {
    let make = || {
        let dir = tempfile::Builder::new().prefix("flux-bench-").tempdir()?;
        std::fs::set_permissions(dir.path(), std::fs::Permissions::from_mode(0o711))?;
        Ok(dir)
    };
    make().map_err(|source| CliError::local("a temporary directory cannot be made", source))
}

impl Subject {
    /// `flux up`, with every one of `functions` deployed and called once.
    pub(super) async fn start(guard: &Path, functions: &[PathBuf], durability: Durability) -> Result<Self, CliError> {
        let cannot = |source| CliError::local("a Flux to measure cannot be started", source);
        let dir = directory()?;
        let (listen, queue) = (free_address()?, free_address()?);
        let mut command = Command::new(std::env::current_exe().map_err(cannot)?);
        command.arg("up").arg("--data-dir").arg(dir.path().join("data")).args(["--listen", &listen, "--api-key", KEY]);
        command.args(["--queue-listen", &queue]).args(durability.flags());
        let certs = Some(dir.path().join("data/certs"));
        let queue = Queue { url: format!("nats://{queue}"), certs };
        let process = Guarded::start(guard, &command, dir.path().join("flux.log"))?;
        let client = Client::try_new(Some(&format!("http://{listen}")), Some(KEY), None)?;
        let mut subject = Self { process, client, queue, _dir: dir };
        until_ready(&subject.client, &mut [&mut subject.process]).await?;
        deploy(&subject.client, functions).await?;
        Ok(subject)
    }

    pub(super) fn queue(&self) -> &Queue {
        &self.queue
    }

    pub(super) fn execute_url(&self, function: &str) -> String {
        self.client.url(&["execute", function], &[]).to_string()
    }

    pub(super) fn async_url(&self, function: &str) -> String {
        self.client.url(&["execute", function, "async"], &[]).to_string()
    }

    pub(super) fn look(&self) -> Snapshot {
        Snapshot::of(self.process.pid())
    }

    /// Runs `count` asynchronous invocations one at a time, and reads from their records how long each waited.
    pub(super) async fn dispatch(&self, count: usize) -> Result<Dispatched, CliError> {
        let body = json!({ "payload": BODY.trim_matches('"') });
        let mut waited = Dispatched::default();
        for _ in 0..count {
            let asked = now();
            let accepted = self.client.post(&["execute", ECHO, "async"], &[], &body).await?;
            sleep(BETWEEN_SINGLES).await;
            let id = accepted.get("execution_id").and_then(Value::as_str).unwrap_or_default();
            let record = self.client.get(&["executions", id], &[("wait", "10s")]).await?;
            let at =
                |field: &str| record.get(field).and_then(|at| serde_json::from_value::<Timestamp>(at.clone()).ok());
            if let (Some(queued), Some(started)) = (at("queued_at"), at("started_at")) {
                waited.accepted_us.push(started.since(queued).as_secs_f64() * 1e6);
                waited.asked_us.push(started.since(asked).as_secs_f64() * 1e6);
            }
        }
        Ok(waited)
    }

    /// Until everything that was accepted has its outcome.
    pub(super) async fn until_done(&self, function: &str) -> Result<(), CliError> {
        let begun = Instant::now();
        loop {
            let query = [("function", function), ("status", "running"), ("limit", "1")];
            let open = self.client.get(&["executions"], &query).await?;
            if rows(&open, "executions").is_empty() {
                return Ok(());
            }
            if begun.elapsed() > IDLE_WITHIN {
                return Err(CliError::problem("executions are still open", "look at the log of this Flux"));
            }
            sleep(POLL).await;
        }
    }

    pub(super) async fn until_quiet(&self) {
        until_quiet(|| self.look().cpu()).await;
    }
}

/// Until processes that have had `cpu` time do nothing but what an idle system does. A system that never gets there is
/// measured as it is.
pub(super) async fn until_quiet(cpu: impl Fn() -> Duration) {
    let begun = Instant::now();
    let mut before = cpu();
    while begun.elapsed() < QUIET_WITHIN {
        sleep(QUIET_FOR).await;
        let now = cpu();
        if now.saturating_sub(before) < QUIET_FOR.mul_f64(QUIET) {
            return;
        }
        before = now;
    }
}

/// Where a function's invocations lie: its subject, and the stream that keeps it.
pub(super) fn queue(function: &str) -> Result<[String; 2], CliError> {
    let function = FunctionName::parse(function).map_err(|error| CliError::usage(error.rule))?;
    let queue = QueueName::new(Lane::Invoke, PoolName::default(), function);
    Ok([queue.subject(), queue.stream()])
}

pub(super) fn headers() -> Vec<String> {
    vec![format!("X-API-Key: {KEY}"), "Content-Type: application/json".to_owned()]
}

/// The function's standard input is then [`BODY`], as the yardsticks' is.
pub(super) fn body() -> String {
    format!("{{\"payload\":{BODY}}}")
}

/// Until the gateway answers and an agent has come, or one of `processes` has ended.
pub(super) async fn until_ready(client: &Client, processes: &mut [&mut Guarded]) -> Result<(), CliError> {
    let has_agent = async || client.get(&["agents"], &[]).await.is_ok_and(|answer| !rows(&answer, "agents").is_empty());
    let begun = Instant::now();
    while client.get(&["ready"], &[]).await.is_err() || !has_agent().await {
        let late = begun.elapsed() > READY_WITHIN;
        if let Some(process) = processes.iter_mut().find_map(|process| (late || process.has_ended()).then_some(process))
        {
            return Err(process.failed());
        }
        sleep(POLL).await;
    }
    Ok(())
}

/// Deploys each, and calls it once, so that its code is unpacked and its queue hot; of the first one there is another,
/// [`WAITS`], which nobody ever has room for.
pub(super) async fn deploy(client: &Client, functions: &[PathBuf]) -> Result<(), CliError> {
    let put = |segments: &[&str], kind: &str| {
        client.request(Method::PUT, client.url(segments, &[])).header(CONTENT_TYPE, kind)
    };
    for (place, function) in functions.iter().enumerate() {
        let project = project::read(function, None, None)?;
        let name = project.name.as_str();
        let configuration = project.configuration.unwrap_or_default();
        client.json(put(&["functions"], "application/yaml").body(configuration)).await?;
        client.json(put(&["deploy", name], "application/zip").body(project.archive.clone())).await?;
        client.post(&["execute", name], &[], &json!({})).await?;
        if place == 0 {
            let waits =
                format!("name: {WAITS}\nhandler: echo\nresources: {{ memory: {} }}\n", limits::FUNCTION_MEMORY_MB);
            client.json(put(&["functions"], "application/yaml").body(waits)).await?;
            client.json(put(&["deploy", WAITS], "application/zip").body(project.archive)).await?;
        }
    }
    Ok(())
}
