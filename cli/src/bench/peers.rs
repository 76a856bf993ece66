//! What people use instead, where it comes by package: each runs the same static program (or Python handler) with the same payload, listens
//! on loopback alone, and ends with us. None has a sandbox, and the queues keep nothing on disk.

use std::{
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use serde::{Deserialize, de::DeserializeOwned};

use super::{
    Part,
    figures::Figures,
    guarded::{Guarded, free_address, until_listening},
    round::{Bench, MANY},
    subject::directory,
    yardstick::{BODY, read_answer},
};
use crate::error::CliError;

const SCRIPTS: &str = "loadtest/peers";
const TOOLS: &str = ".tools/peers";
/// A CGI program prints its own headers, and the echo prints what it is given.
const CGI_HEADERS: &str = "Content-Type: text/plain\r\n\r\n";

/// What is there to compare with.
#[derive(Debug)]
pub(super) struct Peers {
    scripts: PathBuf,
    tools: PathBuf,
}

#[derive(Debug, Deserialize)]
struct Celery {
    executed_per_s: f64,
}

#[derive(Debug, Deserialize)]
struct BullMq {
    executed_per_s: f64,
    dispatch_p50_us: f64,
    dispatch_p95_us: f64,
}

impl Peers {
    pub(super) fn find() -> Result<Self, CliError> {
        let missing = |what: &str| {
            CliError::problem(format!("{what} is missing"), "`make bench-peers` installs the peers and runs this")
        };
        let scripts = Path::new(SCRIPTS).canonicalize().map_err(|_| missing(SCRIPTS))?;
        let tools = Path::new(TOOLS).canonicalize().map_err(|_| missing(TOOLS))?;
        Ok(Self { scripts, tools })
    }

    /// One round of those that the measured parts of Flux stand beside.
    pub(super) async fn measure(&self, bench: &Bench, figures: &mut Figures) -> Result<(), CliError> {
        if bench.wants(Part::Sync) {
            self.cgi(bench, figures).await?;
        }
        if bench.wants(Part::Warm) {
            self.framework(bench, figures).await?;
        }
        if bench.wants(Part::Async) || bench.wants(Part::Dispatch) {
            self.queues(bench, figures).await?;
        }
        Ok(())
    }

    /// Sync: a CGI program below busybox httpd, forked for each request (Q1).
    async fn cgi(&self, bench: &Bench, figures: &mut Figures) -> Result<(), CliError> {
        let cannot = |source| CliError::local("a CGI program cannot be set up", source);
        let dir = directory()?;
        let home = dir.path().join("www");
        std::fs::create_dir_all(home.join("cgi-bin")).map_err(cannot)?;
        std::fs::copy(&bench.program, home.join("cgi-bin/echo")).map_err(cannot)?;
        let listen = free_address()?;
        let mut command = Command::new("busybox");
        command.args(["httpd", "-f", "-p", &listen, "-h"]).arg(&home);
        let mut httpd = Guarded::start(&bench.yardsticks.program, &command, dir.path().join("httpd.log"))?;
        until_listening(&mut httpd, &listen).await?;
        let (url, body) = (format!("http://{listen}/cgi-bin/echo"), format!("{CGI_HEADERS}{BODY}"));
        let one = bench.yardsticks.load(&bench.load(&url, 1).body(&body))?;
        figures.add("cgi_p50_us", one.p50_us);
        let many = bench.yardsticks.load(&bench.load(&url, MANY).body(&body))?;
        figures.add("cgi_per_s", many.per_s);
        Ok(())
    }

    /// Sync: the same Python handler, warm below functions-framework (Q2).
    async fn framework(&self, bench: &Bench, figures: &mut Figures) -> Result<(), CliError> {
        let dir = directory()?;
        let listen = free_address()?;
        let port = listen.rsplit(':').next().unwrap_or_default();
        let mut command = Command::new(self.tools.join("venv/bin/functions-framework"));
        command.args(["--target", "handler", "--host", "127.0.0.1", "--port", port, "--source"]);
        command.arg(self.scripts.join("framework_peer.py")).current_dir(dir.path());
        let mut server = Guarded::start(&bench.yardsticks.program, &command, dir.path().join("framework.log"))?;
        until_listening(&mut server, &listen).await?;
        let (url, json) = (format!("http://{listen}/"), vec!["Content-Type: application/json".to_owned()]);
        let one = bench.yardsticks.load(&bench.load(&url, 1).headers(&json).body(BODY))?;
        figures.add("framework_p50_us", one.p50_us);
        let many = bench.yardsticks.load(&bench.load(&url, MANY).headers(&json).body(BODY))?;
        figures.add("framework_per_s", many.per_s);
        Ok(())
    }

    /// Asynchronous: Celery and BullMQ on a Redis without persistence (Q3, Q5).
    async fn queues(&self, bench: &Bench, figures: &mut Figures) -> Result<(), CliError> {
        let dir = directory()?;
        let listen = free_address()?;
        let port = listen.rsplit(':').next().unwrap_or_default();
        let mut command = Command::new("redis-server");
        command
            .args(["--bind", "127.0.0.1", "--port", port, "--save", "", "--appendonly", "no", "--dir"])
            .arg(dir.path());
        let mut redis = Guarded::start(&bench.yardsticks.program, &command, dir.path().join("redis.log"))?;
        until_listening(&mut redis, &listen).await?;

        let (jobs, singles) = ((bench.effort.invocations / 2).to_string(), bench.effort.singles.to_string());
        let mut celery = self.script(bench, &self.tools.join("venv/bin/python"), "celery_peer.py", port);
        let celery: Celery = run(celery.arg(&jobs))?;
        figures.add("celery_per_s", celery.executed_per_s);

        let mut bullmq = self.script(bench, Path::new("node"), "bullmq.js", port);
        bullmq.env("NODE_PATH", self.tools.join("node/node_modules"));
        let bullmq: BullMq = run(bullmq.args([&jobs, &singles]))?;
        figures.add("bullmq_per_s", bullmq.executed_per_s);
        figures.add("bullmq_dispatch_p50_us", bullmq.dispatch_p50_us);
        figures.add("bullmq_dispatch_p95_us", bullmq.dispatch_p95_us);
        Ok(())
    }

    /// Below a guard: what it starts ends with us.
    fn script(&self, bench: &Bench, interpreter: &Path, name: &str, redis_port: &str) -> Command {
        let mut command = Command::new(&bench.yardsticks.program);
        command.args(["guard", "--"]).arg(interpreter).arg(self.scripts.join(name)).arg(redis_port).arg(&bench.program);
        command
    }
}

/// Runs a guarded program to its end, and reads the line of JSON that it prints.
fn run<T: DeserializeOwned>(command: &mut Command) -> Result<T, CliError> {
    let name = command.get_args().nth(3).unwrap_or_default().to_string_lossy().into_owned();
    let cannot = |source| CliError::local(format!("{name} cannot be run"), source);
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().map_err(cannot)?;
    // Open for as long as we wait.
    let hold = child.stdin.take();
    let output = child.wait_with_output().map_err(cannot)?;
    drop(hold);
    read_answer(&name, &output)
}
