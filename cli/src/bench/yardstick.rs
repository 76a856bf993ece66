//! The floors, and the load generator: `yardstick`, a program of its own that prints a line of JSON.

use std::{
    io::{BufRead as _, BufReader},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
};

use serde::{Deserialize, de::DeserializeOwned};

use crate::error::CliError;

const NAME: &str = "yardstick";
/// 32 bytes, as the function gets them from [`Subject::body`](super::subject::Subject::body).
pub(super) const BODY: &str = "\"0123456789abcdef0123456789abcd\"";

#[derive(Debug)]
pub(super) struct Yardsticks {
    program: PathBuf,
}

/// What a load met with.
#[derive(Debug, Deserialize)]
pub(super) struct Loaded {
    #[serde(rename = "requests_per_s")]
    pub(super) per_s: f64,
    pub(super) p50_us: f64,
    pub(super) p99_us: f64,
    requests: usize,
    succeeded: usize,
    errors: usize,
    #[serde(default)]
    last_error: Option<String>,
    #[serde(default)]
    statuses: serde_json::Value,
}

#[derive(Debug, Deserialize)]
pub(super) struct Spawned {
    #[serde(rename = "executions_per_s")]
    pub(super) per_s: f64,
    pub(super) p50_us: f64,
}

#[derive(Debug, Deserialize)]
pub(super) struct Piped {
    #[serde(rename = "publish_delivered_p50_us")]
    pub(super) delivered_p50_us: f64,
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

    /// Starts the servers that are loaded for comparison.
    pub(super) fn start(&self, queue_url: &str) -> Result<Servers, CliError> {
        Ok(Servers {
            echo: Server::start(&self.program, &["echo-http"])?,
            route: Server::start(&self.program, &["nats-route", "--url", queue_url, "--storage", "memory"])?,
        })
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

    pub(super) fn nats_pipe(&self, queue_url: &str) -> Result<Piped, CliError> {
        self.run(&["nats-pipe", "--url", queue_url, "--storage", "file", "--messages", "5000", "--singles", "500"])
    }

    fn run<T: DeserializeOwned>(&self, args: &[impl AsRef<std::ffi::OsStr>]) -> Result<T, CliError> {
        let cannot = |source| CliError::local(format!("{} cannot be run", self.program.display()), source);
        let output = Command::new(&self.program).args(args).stdin(Stdio::null()).output().map_err(cannot)?;
        if !output.status.success() {
            let what = format!("{NAME} failed: {}", String::from_utf8_lossy(&output.stderr).trim());
            return Err(CliError::Problem { what, remedy: None });
        }
        serde_json::from_slice(&output.stdout).map_err(|error| CliError::Problem {
            what: format!("{NAME} printed something else than expected: {error}"),
            remedy: Some("is it of this release? `make bench` builds both".to_owned()),
        })
    }
}

/// The servers to compare with.
#[derive(Debug)]
pub(super) struct Servers {
    echo: Server,
    route: Server,
}

impl Servers {
    pub(super) fn echo_url(&self) -> &str {
        &self.echo.url
    }

    pub(super) fn route_url(&self) -> &str {
        &self.route.url
    }
}

/// A server that ends when its standard input is closed: with us, however we end.
#[derive(Debug)]
struct Server {
    url: String,
    child: Child,
}

impl Server {
    fn start(program: &Path, args: &[&str]) -> Result<Self, CliError> {
        #[derive(Deserialize)]
        struct Listening {
            listening: String,
        }
        let cannot = |source| CliError::local(format!("{NAME} {} cannot be started", args[0]), source);
        let mut command = Command::new(program);
        command.args(args).arg("--until-eof").stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut child = command.spawn().map_err(cannot)?;
        let mut line = String::new();
        if let Some(stdout) = child.stdout.take() {
            BufReader::new(stdout).read_line(&mut line).map_err(cannot)?;
        }
        match serde_json::from_str::<Listening>(&line) {
            Ok(Listening { listening }) => Ok(Self { url: format!("http://{listening}/"), child }),
            Err(error) => Err(cannot(error.into())),
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        drop(self.child.stdin.take());
        let _ = self.child.wait();
    }
}
