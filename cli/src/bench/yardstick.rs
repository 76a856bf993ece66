//! The floors, and the load generator: `yardstick`, a program of its own that prints a line of JSON.

use std::{
    path::{Path, PathBuf},
    process::{Command, Output, Stdio},
};

use serde::{Deserialize, de::DeserializeOwned};

use super::subject::Queue;
use super::{costs::Cost, guarded::Server};
use crate::error::CliError;

pub(super) const NAME: &str = "yardstick";
/// 32 bytes, as the function gets them from `Subject::body`.
pub(super) const BODY: &str = "\"0123456789abcdef0123456789abcd\"";

/// In the order in which an agent tries them.
const PYTHONS: [&str; 3] = ["/usr/bin/python3", "/usr/local/bin/python3", "/bin/python3"];

#[derive(Debug)]
pub(super) struct Yardsticks {
    pub(super) program: PathBuf,
}

/// What a load met with.
#[derive(Debug, Deserialize)]
pub(super) struct Loaded {
    #[serde(rename = "requests_per_s")]
    pub(super) per_s: f64,
    pub(super) p50_us: f64,
    pub(super) p99_us: f64,
    requests: u32,
    warm_up_requests: u32,
    succeeded: u32,
    errors: usize,
    #[serde(default)]
    last_error: Option<String>,
    #[serde(default)]
    statuses: serde_json::Value,
    /// What the generator itself has used.
    #[serde(flatten)]
    pub(super) generator: Cost,
}

impl Loaded {
    /// Warming up included.
    pub(super) fn calls(&self) -> f64 {
        f64::from(self.requests + self.warm_up_requests)
    }
}

#[derive(Debug, Deserialize)]
pub(super) struct Spawned {
    #[serde(rename = "executions_per_s")]
    pub(super) per_s: f64,
    pub(super) p50_us: f64,
}

/// JetStream and core NATS by themselves.
#[derive(Debug, Deserialize)]
pub(super) struct Piped {
    #[serde(rename = "publish_delivered_p50_us")]
    pub(super) delivered_p50_us: f64,
    #[serde(rename = "core_request_p50_us")]
    pub(super) core_p50_us: f64,
    pub(super) pipe_per_s: f64,
}

#[derive(Debug, Deserialize)]
pub(super) struct Published {
    pub(super) executed_per_s: f64,
}

/// A load to put on a URL.
#[derive(Debug)]
pub(super) struct Load {
    args: Vec<String>,
}

impl Load {
    pub(super) fn new(url: &str, concurrency: usize, seconds: f64, warm_up: f64) -> Self {
        let numbers = [concurrency.to_string(), seconds.to_string(), warm_up.to_string()];
        let [concurrency, seconds, warm_up] = numbers;
        let args = ["http-load", url, "--concurrency", &concurrency, "--seconds", &seconds, "--warm-up", &warm_up];
        Self { args: args.map(str::to_owned).into() }
    }

    /// So many requests, and no warming up: each of them counts.
    pub(super) fn counted(url: &str, concurrency: usize, count: usize) -> Self {
        let (concurrency, count) = (concurrency.to_string(), count.to_string());
        let args = ["http-load", url, "--concurrency", &concurrency, "--count", &count, "--warm-up", "0"];
        Self { args: args.map(str::to_owned).into() }
    }

    pub(super) fn body(mut self, body: &str) -> Self {
        self.args.extend(["--body".to_owned(), body.to_owned()]);
        self
    }

    pub(super) fn headers(mut self, headers: &[String]) -> Self {
        self.args.extend(headers.iter().flat_map(|header| ["--header".to_owned(), header.clone()]));
        self
    }
}

impl Yardsticks {
    /// Beside this program.
    pub(super) fn find() -> Result<Self, CliError> {
        let beside = std::env::current_exe().ok().and_then(|exe| Some(exe.parent()?.join(NAME)));
        match beside.filter(|program| program.is_file()) {
            Some(program) => Ok(Self { program }),
            None => Err(CliError::problem(
                format!("there is no {NAME} beside this program, to compare with"),
                "`make bench` builds everything and runs this",
            )),
        }
    }

    pub(super) fn echo(&self) -> Result<Server, CliError> {
        Server::start(&self.program, &["echo-http"])
    }

    pub(super) fn route(&self, queue: &Queue) -> Result<Server, CliError> {
        let to = queue.args();
        let mut args = vec!["nats-route", "--storage", "memory"];
        args.extend(to.iter().map(String::as_str));
        Server::start(&self.program, &args)
    }

    /// A load in which every request has to succeed: a refusal is quick, and would look like speed.
    pub(super) fn load(&self, load: &Load) -> Result<Loaded, CliError> {
        let loaded: Loaded = self.run(&load.args)?;
        if loaded.errors > 0 || loaded.succeeded < loaded.requests {
            return Err(CliError::problem(
                format!(
                    "of {} requests to {} only {} succeeded, with {} errors ({}) and statuses {}",
                    loaded.requests,
                    load.args[1],
                    loaded.succeeded,
                    loaded.errors,
                    loaded.last_error.as_deref().unwrap_or("none"),
                    loaded.statuses
                ),
                "a figure of failures says nothing; find out why they fail",
            ));
        }
        Ok(loaded)
    }

    pub(super) fn spawn_loop(
        &self,
        program: &Path,
        threads: usize,
        pipes: bool,
        seconds: f64,
    ) -> Result<Spawned, CliError> {
        let program = program.display().to_string();
        let (threads, seconds) = (threads.to_string(), seconds.to_string());
        let mut args = vec!["spawn-loop", &program, "--threads", &threads, "--seconds", &seconds];
        if pipes {
            args.push("--pipes");
        }
        self.run(&args)
    }

    /// An interpreter that starts, imports `json` and ends: the one that functions get.
    pub(super) fn python_start(&self, seconds: f64) -> Result<Spawned, CliError> {
        let found = PYTHONS.into_iter().find(|program| Path::new(program).exists());
        let python = found.ok_or_else(|| {
            CliError::problem(format!("there is none of {}", PYTHONS.join(", ")), "`make setup` installs Python")
        })?;
        let seconds = seconds.to_string();
        self.run(&["spawn-loop", python, "--threads", "1", "--seconds", &seconds, "--", "-I", "-c", "import json"])
    }

    pub(super) fn nats_pipe(&self, queue: &Queue, messages: usize, singles: usize) -> Result<Piped, CliError> {
        let (messages, singles, to) = (messages.to_string(), singles.to_string(), queue.args());
        let mut args = vec!["nats-pipe", "--storage", "file", "--messages", &messages, "--singles", &singles];
        args.extend(to.iter().map(String::as_str));
        self.run(&args)
    }

    /// Publishes onto a function's queue, and waits until all of it has been worked on.
    pub(super) fn publish(
        &self,
        queue: &Queue,
        [subject, stream]: &[String; 2],
        messages: usize,
    ) -> Result<Published, CliError> {
        let (messages, to) = (messages.to_string(), queue.args());
        let mut args =
            vec!["nats-publish", "--messages", &messages, "--body", BODY, "--subject", subject, "--stream", stream];
        args.extend(to.iter().map(String::as_str));
        self.run(&args)
    }

    fn run<T: DeserializeOwned>(&self, args: &[impl AsRef<std::ffi::OsStr>]) -> Result<T, CliError> {
        let output = Command::new(&self.program).args(args).stdin(Stdio::null()).output();
        let output = output.map_err(|source| CliError::local(format!("{NAME} cannot be run"), source))?;
        read_answer(NAME, &output)
    }
}

/// Reads the line of JSON that a program printed before it ended.
pub(super) fn read_answer<T: DeserializeOwned>(name: &str, output: &Output) -> Result<T, CliError> {
    if !output.status.success() {
        let what = format!("{name} failed: {}", String::from_utf8_lossy(&output.stderr).trim());
        return Err(CliError::Problem { what, remedy: None });
    }
    serde_json::from_slice(&output.stdout).map_err(|error| CliError::Problem {
        what: format!("{name} printed something else than expected: {error}"),
        remedy: Some("is it of this release? `make bench` builds both".to_owned()),
    })
}
