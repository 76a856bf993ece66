//! `flux up`: a gateway, an agent, a launcher and a `nats-server` on one machine, as one process tree.
//!
//! ```text
//!  flux up            checks everything, writes the configuration, then is the tree: one thread, restarts what dies
//!   ├── nats-server   the queue, on loopback, JetStream in the data directory
//!   ├── flux __serve  the worker: gateway and agent in one runtime, unprivileged
//!   └── flux __launcher   when the worker asks for one; starts functions
//! ```
//!
//! What can be wrong is found out here, before anything starts: a port in use, a directory that the user `flux` cannot
//! enter, a `nats-server` that is missing or too old, another `flux up` on the same data. Each is one error with a
//! remedy.
//!
//! **Architecture Invariant:** no thread exists before the tree does: it is root's process where Flux was started as
//! root, and starts the launcher.

use std::{ffi::OsString, path::PathBuf, time::Duration};

use flux_launcher::{
    LauncherConfig, UidRange,
    tree::{self, ChildEnv, ChildSpec, TreeEnd, TreeEvent},
};
use flux_runtime::{Settings, config::env, settings::Durability, telemetry};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};

use crate::{error::CliError, output::Output};

mod api_key;
mod data_dir;
mod full_disk;
mod guarded;
mod identity;
mod nats_server;
mod pki;
mod ports;
mod ready;
mod serve;

use data_dir::DataDir;
use identity::Identity;
use ready::Ready;

pub(crate) use pki::{PkiArgs, make as make_identities};
pub(crate) use serve::{ServeArgs, serve};

/// The hidden command that the worker is started with.
pub(crate) const SERVE: &str = "__serve";
/// The one that makes identities, as whom they belong to.
pub(crate) const IDENTITIES: &str = "__identities";
/// The worker's name in the log.
const WORKER: &str = "worker";
/// Executions at once, for each core, unless the configuration says.
const TASKS_PER_CORE: usize = 16;
/// Above the worker's own drain deadline: it says itself what it could not wait for.
const STOP_MARGIN: Duration = Duration::from_secs(8);
/// What the platform's own processes see of the environment.
const PASSED_ON: &[&str] = &["PATH", "HOME", "LANG", "TZ", "TERM", "NO_COLOR", "RUST_BACKTRACE"];

#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Where everything is kept [default: ~/.local/share/flux; as root /var/lib/flux]
    #[arg(long, value_name = "DIR")]
    data_dir: Option<PathBuf>,
    /// Where the HTTP API listens [default: 127.0.0.1:7227]
    #[arg(long, value_name = "HOST:PORT")]
    listen: Option<String>,
    /// The admin key [default: made once, and kept in the data directory]
    #[arg(long, value_name = "KEY")]
    api_key: Option<String>,
    /// A configuration file; see docs/operating.md
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Executions at once [default: 16 for each core]
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..), value_name = "N")]
    tasks: Option<u32>,
    /// Where the queue listens, for remote agents and producers [default: 127.0.0.1:4222, or a free port]
    #[arg(long, value_name = "HOST:PORT")]
    queue_listen: Option<String>,
    /// Let the queue be reached from elsewhere without certificates, where `disable_mtls` is set
    #[arg(long)]
    insecure: bool,
    /// What is accepted survives the death of every `process`, or with `fsync` a power cut too [default: process]
    #[arg(long, value_parser = Durability::NAMES, value_name = "WHAT")]
    queue_durability: Option<String>,
}

/// Runs until it is told to stop; the process exits with what became of it.
pub(crate) fn run(args: &Args, out: Output) -> Result<(), CliError> {
    let mut settings = settings(args)?;
    telemetry::init(settings.log.format, &settings.log.level).map_err(CliError::usage)?;
    let identity = Identity::find(&settings)?;
    let data = DataDir::open(settings.data_dir.take(), &identity)?;
    let listen = ports::http(&settings.gateway.listen)?;
    let queue = ports::queue(&settings, args.queue_listen.as_deref(), &data)?;
    let nats = nats_server::find(settings.queue.nats_server.as_deref(), &identity)?;
    let key = api_key::resolve(settings.gateway.api_key.take(), &data)?;
    if settings.disable_mtls && queue.is_public() && !args.insecure {
        return Err(CliError::problem(
            format!(
                "the queue would listen on {} without certificates: whoever reaches it could run and read everything",
                queue.listen
            ),
            "remove `disable_mtls`; or, on a network where everybody may, add --insecure",
        ));
    }
    if let Some(note) = api_key::remember(&key, &listen.to_string()) {
        out.note(note);
    }
    let key_file = key.made.then(|| data.key_file());
    let file = data.write_settings(complete(settings, &data, &queue, key.text))?;
    let ca = pki::prepare(&file, &identity)?;
    if let Some(note) = pki::remember(&file.settings, ca.as_deref(), &listen.to_string()) {
        out.note(note);
    }
    let nats_config = nats_server::configure(&data, &queue, &file.settings)?;
    if let Some(note) = &queue.note {
        out.note(note);
    }

    let ready = Ready::new(data.unsaid()?, key_file);
    let mut worker = worker(&data, &file, &identity, listen, &ready);
    if out.json {
        worker.args.push("--json".into());
    }
    let mut queue_child = ChildSpec::new("nats-server", nats);
    queue_child.args = vec!["--config".into(), nats_config.into()];
    let mut queue_env = environment();
    queue_env.push(queue_cores());
    queue_child.env = ChildEnv::Only(queue_env);
    queue_child.user = identity.platform;
    queue_child.stop_order = 1;
    let mut watcher = Watcher { said: data.worker("ready"), gave_up: false };
    let ended = tree::run(vec![queue_child, worker], &mut |event| watcher.hear(event));
    if watcher.gave_up {
        let remedy = format!("the lines above say why; the queue's own log is {}", data.worker("nats.log").display());
        return Err(CliError::problem("Flux could not start", remedy));
    }
    end(ended)
}

/// The program that `flux up` would start as its queue, for who wants one without the rest.
pub(crate) fn find_nats_server() -> Result<PathBuf, CliError> {
    nats_server::find(None, &Identity { platform: None, runner: None })
}

/// The settings of a `flux up` that need not run: what it was last started with, unless a configuration is named, and else what it
/// would be started with. Nothing is made.
pub(crate) fn settings_at(data_dir: Option<PathBuf>, config: Option<&std::path::Path>) -> Result<Settings, CliError> {
    let named = config.map(std::path::Path::to_owned);
    let mut settings = loaded(named.as_deref(), data_dir.map(|dir| serde_json::json!({ "data_dir": dir })))?;
    let dir = data_dir::path(settings.data_dir.take())?;
    let written = dir.join("run/settings.json");
    if config.is_none() && written.exists() {
        let cannot = |source| CliError::local(format!("{} cannot be read", written.display()), source);
        let text = std::fs::read(&written).map_err(cannot)?;
        let written: Settings = serde_json::from_slice(&text).map_err(|error| cannot(error.into()))?;
        // A directory that was copied or moved still names what it was.
        if written.data_dir.as_deref().and_then(|of| of.canonicalize().ok()) == dir.canonicalize().ok() {
            return Ok(written);
        }
    }
    keep_in(&mut settings, &dir);
    Ok(settings)
}

/// Makes the directories of a `flux up`, and keeps others from starting on them for as long as the answer lives.
pub(crate) fn hold(data_dir: &std::path::Path, settings: &Settings) -> Result<impl Sized + use<>, CliError> {
    DataDir::open(Some(data_dir.to_owned()), &Identity::find(settings)?)
}

/// The file, then the environment, then the command line.
fn settings(args: &Args) -> Result<Settings, CliError> {
    let mut given = serde_json::Map::new();
    let mut set = |section: &str, field: &str, value: Option<serde_json::Value>| {
        let Some(value) = value else { return };
        let fields = given.entry(section).or_insert_with(|| serde_json::json!({}));
        if let Some(fields) = fields.as_object_mut() {
            fields.insert(field.to_owned(), value);
        }
    };
    set("gateway", "listen", args.listen.clone().map(Into::into));
    set("gateway", "api_key", args.api_key.clone().map(Into::into));
    set("agent", "tasks", args.tasks.map(Into::into));
    set("queue", "durability", args.queue_durability.clone().map(Into::into));
    if let Some(dir) = &args.data_dir {
        given.insert("data_dir".to_owned(), serde_json::json!(dir));
    }
    loaded(args.config.as_deref(), Some(given.into()))
}

fn loaded(named: Option<&std::path::Path>, given: Option<serde_json::Value>) -> Result<Settings, CliError> {
    let file = flux_runtime::config::file(named);
    let given = given.unwrap_or_else(|| serde_json::json!({}));
    file.and_then(|file| flux_runtime::config::load(file.as_deref(), given)).map_err(|error| {
        let cause = std::error::Error::source(&error).map_or_else(String::new, |source| format!(": {source}"));
        CliError::problem(format!("{error}{cause}"), "docs/operating.md lists every field and its default")
    })
}

/// The settings with nothing left to be guessed.
fn complete(settings: Settings, data: &DataDir, queue: &ports::Queue, key: String) -> Settings {
    let mut settings = settings;
    keep_in(&mut settings, data.path());
    settings.queue.accounts_file = Some(data.worker("accounts.conf"));
    settings.queue.server_pid_file = Some(data.worker("nats.pid"));
    settings.queue.names.extend(queue.name());
    settings.queue.url = queue.url();
    settings.gateway.api_key = Some(key);
    settings.agent.tasks.get_or_insert_with(default_tasks);
    settings.agent.work_dir.get_or_insert_with(|| data.path().join("agent"));
    settings
}

/// Where what is kept is kept, as far as it is not set.
fn keep_in(settings: &mut Settings, dir: &std::path::Path) {
    settings.data_dir = Some(dir.to_owned());
    settings.certs_dir.get_or_insert_with(|| dir.join("certs"));
    settings.store_url_or(|| format!("sqlite://{}", dir.join("db/flux.db").display()));
    settings.artifacts.dir.get_or_insert_with(|| dir.join("artifacts"));
    settings.gateway.secrets_key.get_or_insert_with(|| dir.join("keys/secrets.key"));
}

fn default_tasks() -> u32 {
    let cores = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    u32::try_from(cores * TASKS_PER_CORE).unwrap_or(u32::MAX)
}

fn worker(
    data: &DataDir,
    file: &data_dir::WrittenSettings,
    identity: &Identity,
    listen: std::net::SocketAddr,
    ready: &Ready,
) -> ChildSpec {
    let mut launcher = LauncherConfig::new(data.launcher_dir(), file.settings.agent.tasks.unwrap_or(1));
    launcher.runner = identity.runner;
    launcher.runner_uids = identity.runner.and_then(|_| UidRange::set_aside_for(&file.settings.agent.runner_user));
    // Where it was told to; what it was told may be any free port.
    launcher.listeners.push(listen);
    launcher.isolation_required = file.settings.agent.isolation_required;
    flux_agent::guard_servers(&mut launcher, &file.settings);
    let mut worker = ChildSpec::new(WORKER, "/proc/self/exe");
    worker.args = vec![SERVE.into(), "--settings".into(), file.path.clone().into()];
    worker.args.extend(["--listen".into(), listen.to_string().into()]);
    worker.args.extend(ready.args());
    worker.env = ChildEnv::Only(environment());
    worker.user = identity.platform;
    let agent_dir = file.settings.agent.work_dir.clone().unwrap_or_default();
    let driver = flux_agent::container_driver(&file.settings.agent, &launcher, &agent_dir, data.containers_dir());
    worker.launcher = Some(launcher);
    worker.drivers.extend(driver.map(|driver| driver.spec()));
    let uids = identity.runner.and_then(|_| UidRange::set_aside_for(&file.settings.agent.runner_user));
    let microvms = flux_agent::microvm_driver(&file.settings.agent, &agent_dir, data.microvms_dir(), uids);
    worker.drivers.extend(microvms.map(|driver| driver.spec()));
    let drain = file.settings.gateway.drain_timeout.max(file.settings.agent.drain_timeout);
    worker.stop_timeout = Duration::from_secs(drain) + STOP_MARGIN;
    worker
}

fn environment() -> Vec<(OsString, OsString)> {
    PASSED_ON.iter().filter_map(|name| Some(((*name).into(), env(name)?.into()))).collect()
}

/// Half of the cores are the queue's; the rest is for the worker and the functions. With all of them, Go's idle threads
/// look for work on the cores that the functions run on: a call cost a sixth more there, and its slowest tenth much more.
fn queue_cores() -> (OsString, OsString) {
    const NAME: &str = "GOMAXPROCS";
    let cores = std::thread::available_parallelism().map_or(1, |cores| (cores.get() / 2).max(1));
    (NAME.into(), env(NAME).unwrap_or_else(|| cores.to_string()).into())
}

/// Tells the log. A worker that ends before it was ever ready would do so again: then all of it ends.
struct Watcher {
    said: PathBuf,
    gave_up: bool,
}

impl Watcher {
    fn hear(&mut self, event: &TreeEvent) {
        match event {
            TreeEvent::Started { .. }
            | TreeEvent::Launcher { .. }
            | TreeEvent::Stopping { .. }
            | TreeEvent::Ended { .. } => tracing::info!("{event}"),
            TreeEvent::Restarting { name, .. } if name == WORKER && !self.said.exists() => {
                self.gave_up = true;
                // To ourselves: the tree stops what it started, in order.
                let _ = kill(Pid::this(), Signal::SIGTERM);
            }
            TreeEvent::Restarting { .. }
            | TreeEvent::NoLauncher { .. }
            | TreeEvent::TooSlow { .. }
            | TreeEvent::KillingAll => tracing::warn!("{event}"),
        }
    }
}

fn end(ended: Result<TreeEnd, tree::TreeError>) -> Result<(), CliError> {
    match ended {
        Ok(TreeEnd::Stopped) => Ok(()),
        Ok(TreeEnd::Killed) => Err(CliError::problem(
            "not everything ended in time, and was killed",
            "what ran then runs again after the next start",
        )),
        Ok(TreeEnd::ChildEnded { name, code }) => {
            Err(CliError::problem(format!("{name} ended with status {code}"), "its last lines above say why"))
        }
        Err(error) => {
            let cause = std::error::Error::source(&error).map_or_else(String::new, |source| format!(": {source}"));
            Err(CliError::Problem { what: format!("{error}{cause}"), remedy: None })
        }
    }
}
