//! `flux-agent`: pulls invocations from a queue and runs them on this machine.
//!
//! Started by hand or by a service manager it is the process tree: one thread, which starts the agent and, when that asks
//! for one, a launcher. As root the agent itself drops to the user `flux`.

use std::{
    io,
    os::unix::fs::{PermissionsExt as _, lchown},
    path::{Path, PathBuf},
    process::ExitCode,
    time::Duration,
};

use anyhow::{Context as _, bail};
use clap::Parser as _;
use flux_launcher::{
    LauncherConfig, Runner, UidRange,
    tree::{self, ChildEnv, ChildSpec, TreeEnd},
    wire::TREE_FD,
};
use flux_runtime::{Settings, config, telemetry};
use nix::unistd::{Uid, User};

const PLATFORM_USER: &str = "flux";
/// The launcher's directory, in the agent's.
const LAUNCHER: &str = "launcher";
/// The container driver's directory, in the agent's.
const CONTAINERS: &str = "containers";
/// That of the driver of microVMs.
const MICROVMS: &str = "microvms";
/// Above the agent's own drain deadline: it says itself what it could not wait for.
const STOP_MARGIN: Duration = Duration::from_secs(8);

/// Runs functions that a Flux gateway, or any producer, puts into the queue.
#[derive(Debug, clap::Parser)]
#[command(name = "flux-agent", version)]
struct Args {
    /// A configuration file [default: ./flux.yaml, or else /etc/flux/flux.yaml, if there is one]
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// `nats://host:port`; several separated by commas
    #[arg(long, value_name = "URL")]
    queue_url: Option<String>,
    /// The agent's id [default: made once, and kept in the work directory]
    #[arg(long, value_name = "ID")]
    id: Option<String>,
    /// The pool whose functions it runs
    #[arg(long, value_name = "POOL")]
    pool: Option<String>,
    /// Unpacked code and the agent's id [default: ~/.local/share/flux/agent; as root /var/lib/flux/agent]
    #[arg(long, value_name = "DIR")]
    work_dir: Option<PathBuf>,
    /// CA and certificates, this agent's among them [default: /etc/flux/certs]
    #[arg(long, value_name = "DIR")]
    certs_dir: Option<PathBuf>,
    /// Executions at once [default: 16 for each core]
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..), value_name = "N")]
    tasks: Option<u32>,
    /// CPU budget in millicores [default: four times all cores]
    #[arg(long, value_name = "MILLICORES")]
    cpu: Option<u32>,
    /// Memory budget in MB [default: 80 % of the machine]
    #[arg(long, value_name = "MB")]
    memory: Option<u32>,
    /// Read the configuration, say what is wrong with it, and end
    #[arg(long)]
    check: bool,
}

fn main() -> ExitCode {
    flux_launcher::run_if_launcher();
    flux_containers::run_if_driver();
    flux_firecracker::run_if_driver();
    flux_runtime::install_tls_provider();
    let args = Args::parse();
    let ended = if args.check {
        settings(&args).map(|_| ExitCode::SUCCESS)
    } else if config::env(TREE_FD).is_some() {
        worker(&args)
    } else {
        process_tree(&args)
    };
    match ended {
        Ok(code) => code,
        Err(error) => {
            // Before logging was set up, or after it ended: one line for whoever started it.
            #[allow(clippy::print_stderr)]
            {
                eprintln!("flux-agent: {error:#}");
            }
            ExitCode::FAILURE
        }
    }
}

fn settings(args: &Args) -> anyhow::Result<Settings> {
    let mut agent = serde_json::Map::new();
    let mut set = |field: &str, value: Option<serde_json::Value>| {
        if let Some(value) = value {
            agent.insert(field.to_owned(), value);
        }
    };
    set("id", args.id.clone().map(Into::into));
    set("pool", args.pool.clone().map(Into::into));
    set("work_dir", args.work_dir.as_ref().map(|dir| serde_json::json!(dir)));
    set("tasks", args.tasks.map(Into::into));
    set("cpu", args.cpu.map(Into::into));
    set("memory", args.memory.map(Into::into));
    let mut given = serde_json::json!({ "agent": agent });
    if let Some(url) = &args.queue_url {
        given["queue"] = serde_json::json!({ "url": url });
    }
    if let Some(dir) = &args.certs_dir {
        given["certs_dir"] = serde_json::json!(dir);
    }
    let mut settings: Settings = config::load(config::file(args.config.as_deref())?.as_deref(), given)?;
    if settings.agent.work_dir.is_none() {
        settings.agent.work_dir = Some(default_work_dir()?);
    }
    Ok(settings)
}

fn default_work_dir() -> anyhow::Result<PathBuf> {
    if Uid::effective().is_root() {
        return Ok(PathBuf::from("/var/lib/flux/agent"));
    }
    match config::env("HOME") {
        Some(home) => Ok(Path::new(&home).join(".local/share/flux/agent")),
        None => bail!("there is no HOME to keep the agent's files in; pass --work-dir"),
    }
}

/// The root of the processes: no thread may exist before it runs.
fn process_tree(args: &Args) -> anyhow::Result<ExitCode> {
    let settings = settings(args)?;
    telemetry::init(settings.log.format, &settings.log.level).map_err(anyhow::Error::msg)?;
    let work_dir = settings.agent.work_dir.clone().unwrap_or_default();
    std::fs::create_dir_all(&work_dir).with_context(|| format!("{} cannot be made", work_dir.display()))?;
    let (platform, runner) = identities(&settings)?;
    if let Some(user) = platform {
        give(&work_dir, user)
            .and_then(|()| share(&work_dir, user))
            .with_context(|| format!("{} cannot be given to the user flux", work_dir.display()))?;
    }
    let tasks = settings.agent.tasks.unwrap_or_else(default_tasks);
    let mut launcher = LauncherConfig::new(work_dir.join(LAUNCHER), tasks);
    launcher.runner = runner;
    launcher.runner_uids = runner.and_then(|_| UidRange::set_aside_for(&settings.agent.runner_user));
    launcher.isolation_required = settings.agent.isolation_required;
    flux_agent::guard_servers(&mut launcher, &settings);
    let containers = work_dir.join(CONTAINERS);
    let driver = flux_agent::container_driver(&settings.agent, &launcher, &work_dir, containers);
    let (microvms, work_dir_of_agent) = (work_dir.join(MICROVMS), work_dir.clone());
    let mut agent = ChildSpec::new("flux-agent", "/proc/self/exe");
    agent.args = std::env::args_os().skip(1).collect();
    // What the tree found out must be what the agent uses, whatever its own HOME.
    agent.env = ChildEnv::Inherit(vec![("FLUX_AGENT__WORK_DIR".into(), work_dir.into())]);
    agent.user = platform;
    agent.launcher = Some(launcher);
    agent.drivers.extend(driver.map(|driver| driver.spec()));
    let uids = runner.and_then(|_| UidRange::set_aside_for(&settings.agent.runner_user));
    let microvms = flux_agent::microvm_driver(&settings.agent, &work_dir_of_agent, microvms, uids);
    agent.drivers.extend(microvms.map(|driver| driver.spec()));
    agent.stop_timeout = Duration::from_secs(settings.agent.drain_timeout) + STOP_MARGIN;
    let ended = tree::run(vec![agent], &mut |event| tracing::info!("{event}"))?;
    Ok(match ended {
        TreeEnd::Stopped => ExitCode::SUCCESS,
        other => ExitCode::from(u8::try_from(other.exit_code()).unwrap_or(1)),
    })
}

fn default_tasks() -> u32 {
    let cores = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    u32::try_from(cores * 16).unwrap_or(u32::MAX)
}

/// Whom the agent and whom functions run as, where we are root.
fn identities(settings: &Settings) -> anyhow::Result<(Option<Runner>, Option<Runner>)> {
    if !Uid::effective().is_root() {
        return Ok((None, None));
    }
    let Some(platform) = user(PLATFORM_USER)? else {
        bail!(
            "there is no user `{PLATFORM_USER}`: as root the agent drops to it; `make setup` adds the users flux and flux-runner"
        );
    };
    Ok((Some(platform), user(&settings.agent.runner_user)?))
}

fn user(name: &str) -> anyhow::Result<Option<Runner>> {
    let found = User::from_name(name).with_context(|| format!("the user `{name}` cannot be looked up"))?;
    Ok(found.map(|user| Runner { uid: user.uid.as_raw(), gid: user.gid.as_raw() }))
}

/// The work directory and what is in it, except what the launcher and the drivers keep.
fn give(directory: &Path, to: Runner) -> io::Result<()> {
    lchown(directory, Some(to.uid), Some(to.gid))?;
    for entry in std::fs::read_dir(directory)? {
        let entry = entry?;
        if [LAUNCHER, CONTAINERS, MICROVMS].iter().any(|name| entry.file_name() == *name) {
            continue;
        }
        if entry.file_type()?.is_dir() {
            give(&entry.path(), to)?;
        } else {
            lchown(entry.path(), Some(to.uid), Some(to.gid))?;
        }
    }
    Ok(())
}

/// Root keeps the directory itself, and lets `with` write into it: what the launcher and the drivers keep there is root's, and not to
/// be moved away to have them follow something else of the same name.
fn share(directory: &Path, with: Runner) -> io::Result<()> {
    const STICKY: u32 = 0o1775;
    lchown(directory, Some(Uid::effective().as_raw()), Some(with.gid))?;
    std::fs::set_permissions(directory, std::fs::Permissions::from_mode(STICKY))
}

/// The agent itself, started by the tree.
fn worker(args: &Args) -> anyhow::Result<ExitCode> {
    let settings = settings(args)?;
    telemetry::init(settings.log.format, &settings.log.level).map_err(anyhow::Error::msg)?;
    let runtime = flux_runtime::async_runtime().context("no runtime")?;
    runtime.block_on(flux_agent::run(&settings))?;
    Ok(ExitCode::SUCCESS)
}
