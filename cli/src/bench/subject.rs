//! The Flux that is measured: one of its own, on a temporary directory.

use std::{
    net::{Ipv4Addr, TcpListener},
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::Duration,
};

use flux_protocol::{Timestamp, limits};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use reqwest::{Method, header::CONTENT_TYPE};
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::time::{Instant, sleep};

use super::yardstick::BODY;
use crate::{client::Client, error::CliError, model::rows, project};

const KEY: &str = "bench";
/// The function as it is, and the same with more memory than any machine has: what is accepted for it stays queued.
pub(super) const ECHO: &str = "echo";
pub(super) const WAITS: &str = "waits";
const READY_WITHIN: Duration = Duration::from_secs(20);
const IDLE_WITHIN: Duration = Duration::from_secs(120);
const POLL: Duration = Duration::from_millis(10);

#[derive(Debug)]
pub(super) struct Subject {
    child: Child,
    client: Client,
    queue_url: String,
    dir: TempDir,
}

/// Accepted → process started.
#[derive(Debug)]
pub(super) struct Dispatched {
    pub(super) p50_us: f64,
    pub(super) p95_us: f64,
}

/// The function's program, by its absolute path: what the spawn loop starts.
pub(super) fn program(function: &Path) -> Result<PathBuf, CliError> {
    let program = function.join("echo");
    program.canonicalize().map_err(|_| {
        CliError::problem(format!("{} is not built", program.display()), "`make bench` builds everything and runs this")
    })
}

impl Subject {
    pub(super) async fn start(function: &Path) -> Result<Self, CliError> {
        let cannot = |source| CliError::local("a Flux to measure cannot be started", source);
        let dir = tempfile::Builder::new().prefix("flux-bench-").tempdir().map_err(cannot)?;
        let free = || TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?.local_addr();
        let (listen, queue) = (free().map_err(cannot)?.to_string(), free().map_err(cannot)?.to_string());
        let log = std::fs::File::create(dir.path().join("flux.log")).map_err(cannot)?;
        let mut command = Command::new(std::env::current_exe().map_err(cannot)?);
        command.arg("up").arg("--data-dir").arg(dir.path().join("data")).args(["--listen", &listen, "--api-key", KEY]);
        command.args(["--queue-listen", &queue]).stdin(Stdio::null()).stdout(Stdio::null()).stderr(log);
        // As root the platform runs as another user, who has to reach the data.
        std::fs::set_permissions(dir.path(), std::fs::Permissions::from_mode(0o711)).map_err(cannot)?;
        let child = command.spawn().map_err(cannot)?;
        let client = Client::try_new(Some(&format!("http://{listen}")), Some(KEY))?;
        let mut subject = Self { child, client, queue_url: format!("nats://{queue}"), dir };
        subject.until_ready().await?;
        subject.deploy(function).await?;
        Ok(subject)
    }

    async fn until_ready(&mut self) -> Result<(), CliError> {
        let begun = Instant::now();
        while self.client.get(&["ready"], &[]).await.is_err() || !self.has_agent().await {
            let ended = self.child.try_wait().is_ok_and(|status| status.is_some());
            if ended || begun.elapsed() > READY_WITHIN {
                let log = std::fs::read_to_string(self.dir.path().join("flux.log")).unwrap_or_default();
                return Err(CliError::Problem { what: format!("`flux up` did not come up:\n{log}"), remedy: None });
            }
            sleep(POLL).await;
        }
        Ok(())
    }

    async fn has_agent(&self) -> bool {
        self.client.get(&["agents"], &[]).await.is_ok_and(|answer| !rows(&answer, "agents").is_empty())
    }

    async fn deploy(&self, function: &Path) -> Result<(), CliError> {
        let project = project::read(function, None)?;
        let put = |segments: &[&str], kind: &str| {
            self.client.request(Method::PUT, self.client.url(segments, &[])).header(CONTENT_TYPE, kind)
        };
        let configuration = project.configuration.unwrap_or_default();
        let waits = format!("name: {WAITS}\nhandler: echo\nresources: {{ memory: {} }}\n", limits::FUNCTION_MEMORY_MB);
        for (name, configuration) in [(project.name.as_str(), configuration), (WAITS, waits)] {
            self.client.json(put(&["functions"], "application/yaml").body(configuration)).await?;
            self.client.json(put(&["deploy", name], "application/zip").body(project.archive.clone())).await?;
        }
        let name = project.name.as_str();
        // Once, so that its code is unpacked and its queue hot.
        self.client.post(&["execute", name], &[], &json!({})).await?;
        Ok(())
    }

    pub(super) fn queue_url(&self) -> &str {
        &self.queue_url
    }

    pub(super) fn execute_url(&self) -> String {
        self.client.url(&["execute", ECHO], &[]).to_string()
    }

    pub(super) fn async_url(&self, function: &str) -> String {
        self.client.url(&["execute", function, "async"], &[]).to_string()
    }

    pub(super) fn headers(&self) -> Vec<String> {
        vec![format!("X-API-Key: {KEY}"), "Content-Type: application/json".to_owned()]
    }

    /// The function's standard input is then [`BODY`], as the yardsticks' is.
    pub(super) fn body(&self) -> String {
        format!("{{\"payload\":{BODY}}}")
    }

    /// Runs `count` asynchronous invocations one at a time, and reads from their records how long each waited.
    pub(super) async fn dispatch(&self, count: usize) -> Result<Dispatched, CliError> {
        let mut waited = Vec::with_capacity(count);
        for _ in 0..count {
            let accepted = self.client.post(&["execute", ECHO, "async"], &[], &json!({})).await?;
            let id = accepted.get("execution_id").and_then(Value::as_str).unwrap_or_default();
            let record = self.client.get(&["executions", id], &[("wait", "10s")]).await?;
            let at =
                |field: &str| record.get(field).and_then(|at| serde_json::from_value::<Timestamp>(at.clone()).ok());
            if let (Some(queued), Some(started)) = (at("queued_at"), at("started_at")) {
                waited.push(started.since(queued).as_secs_f64() * 1e6);
            }
        }
        waited.sort_by(f64::total_cmp);
        let rank = |percent: usize| waited.get((waited.len() * percent / 100).min(waited.len().saturating_sub(1)));
        Ok(Dispatched { p50_us: rank(50).copied().unwrap_or_default(), p95_us: rank(95).copied().unwrap_or_default() })
    }

    /// Until everything that was accepted has its outcome.
    pub(super) async fn until_idle(&self) -> Result<(), CliError> {
        let begun = Instant::now();
        loop {
            let query = [("function", ECHO), ("status", "running"), ("limit", "1")];
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

    /// Resident memory of each of its processes, in MB, by name.
    pub(super) fn memory(&self) -> Vec<(String, u64)> {
        let mut found = Vec::new();
        let mut next = vec![self.child.id()];
        while let Some(pid) = next.pop() {
            let read = |file: &str| std::fs::read_to_string(format!("/proc/{pid}/{file}")).unwrap_or_default();
            let status = read("status");
            let field = |name: &str| status.lines().find_map(|line| line.strip_prefix(name)).unwrap_or_default().trim();
            let kb = field("VmRSS:").trim_end_matches(" kB").parse::<u64>().unwrap_or(0);
            let command = read("cmdline");
            let role = command.split('\0').find(|word| matches!(*word, "up" | "__serve" | "__launcher"));
            found.push((role.unwrap_or_else(|| field("Name:")).to_owned(), kb / 1024));
            next.extend(
                read(&format!("task/{pid}/children")).split_whitespace().filter_map(|child| child.parse::<u32>().ok()),
            );
        }
        found
    }

    pub(super) async fn stop(mut self) -> Result<(), CliError> {
        self.signal(Signal::SIGTERM);
        let begun = Instant::now();
        while self.child.try_wait().is_ok_and(|status| status.is_none()) && begun.elapsed() < READY_WITHIN {
            sleep(POLL).await;
        }
        Ok(())
    }

    fn signal(&self, signal: Signal) {
        if let Ok(pid) = i32::try_from(self.child.id()) {
            let _ = kill(Pid::from_raw(pid), signal);
        }
    }
}

impl Drop for Subject {
    fn drop(&mut self) {
        if self.child.try_wait().is_ok_and(|status| status.is_none()) {
            let _ = self.child.kill();
            let _ = self.child.wait();
        }
    }
}
