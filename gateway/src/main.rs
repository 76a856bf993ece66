//! `flux-gateway`: takes requests over HTTP and puts them into a queue.

use std::{
    path::{Path, PathBuf},
    process::ExitCode,
};

use anyhow::{Context as _, bail};
use clap::Parser as _;
use flux_gateway::{compose, http::HttpOptions};
use flux_runtime::{Settings, Shutdown, config, settings::Durability, telemetry};
use nix::{
    sys::resource::{Resource, getrlimit, setrlimit},
    unistd::Uid,
};

/// Takes requests over HTTP and puts them into a queue, from which agents run them.
#[derive(Debug, clap::Parser)]
#[command(name = "flux-gateway", version)]
struct Args {
    /// A configuration file [default: ./flux.yaml, or else /etc/flux/flux.yaml, if there is one]
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Where to listen [default: 127.0.0.1:7227]
    #[arg(long, value_name = "HOST:PORT")]
    listen: Option<String>,
    /// The admin key; other users of the machine can read a command line, so prefer FLUX_GATEWAY__API_KEY
    #[arg(long, value_name = "KEY")]
    api_key: Option<String>,
    /// `nats://host:port`; several separated by commas
    #[arg(long, value_name = "URL")]
    queue_url: Option<String>,
    /// What a record survives: the death of every `process`, or with `fsync` a power cut too [default: process]
    #[arg(long, value_parser = Durability::NAMES, value_name = "WHAT")]
    queue_durability: Option<String>,
    /// `sqlite:///path/flux.db`, `postgres://…` or `redis://…`, see docs/stores.md [default: flux.db in the data directory]
    #[arg(long, value_name = "URL")]
    store_url: Option<String>,
    /// Every code archive, by digest [default: artifacts/ in the data directory]
    #[arg(long, value_name = "DIR")]
    artifacts_dir: Option<PathBuf>,
    /// [default: ~/.local/share/flux/gateway; as root /var/lib/flux/gateway]
    #[arg(long, value_name = "DIR")]
    data_dir: Option<PathBuf>,
    /// Read the configuration, say what is wrong with it, and end
    #[arg(long)]
    check: bool,
}

fn main() -> ExitCode {
    flux_runtime::install_tls_provider();
    match serve(&Args::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            // Before logging was set up, or after it ended: one line for whoever started it.
            #[allow(clippy::print_stderr)]
            {
                eprintln!("flux-gateway: {error:#}");
            }
            ExitCode::FAILURE
        }
    }
}

fn serve(args: &Args) -> anyhow::Result<()> {
    let settings = settings(args)?;
    if args.check {
        HttpOptions::from_settings(&settings)?;
        return Ok(());
    }
    telemetry::init(settings.log.format, &settings.log.level).map_err(anyhow::Error::msg)?;
    raise_open_files();
    let runtime = flux_runtime::async_runtime().context("no async runtime")?;
    let ended = runtime.block_on(compose::run(settings, Shutdown::new()));
    // Blocking work that nobody waits for does not hold the process up.
    runtime.shutdown_background();
    ended
}

fn settings(args: &Args) -> anyhow::Result<Settings> {
    let mut given = serde_json::json!({});
    let mut set = |section: &str, field: &str, value: Option<serde_json::Value>| {
        if let Some(value) = value {
            given[section][field] = value;
        }
    };
    set("gateway", "listen", args.listen.clone().map(Into::into));
    set("gateway", "api_key", args.api_key.clone().map(Into::into));
    set("queue", "url", args.queue_url.clone().map(Into::into));
    set("queue", "durability", args.queue_durability.clone().map(Into::into));
    set("store", "url", args.store_url.clone().map(Into::into));
    set("artifacts", "dir", args.artifacts_dir.as_ref().map(|dir| serde_json::json!(dir)));
    let mut settings: Settings = config::load(config::file(args.config.as_deref())?.as_deref(), given)?;
    let data_dir = match args.data_dir.clone().or_else(|| settings.data_dir.clone()) {
        Some(dir) => dir,
        None => default_data_dir()?,
    };
    let has_files =
        settings.store.url.is_none() || (settings.artifacts.dir.is_none() && settings.artifacts.url.is_none());
    if has_files && !args.check {
        std::fs::create_dir_all(&data_dir).with_context(|| format!("{} cannot be made", data_dir.display()))?;
    }
    let data_dir = data_dir.canonicalize().unwrap_or(data_dir);
    compose::keep_in(&mut settings, &data_dir);
    Ok(settings)
}

fn default_data_dir() -> anyhow::Result<PathBuf> {
    if Uid::effective().is_root() {
        return Ok(PathBuf::from("/var/lib/flux/gateway"));
    }
    match config::env("HOME") {
        Some(home) => Ok(Path::new(&home).join(".local/share/flux/gateway")),
        None => bail!("there is no HOME to keep the gateway's files in; pass --data-dir"),
    }
}

/// Connections are descriptors, and the usual soft limit is of another time.
fn raise_open_files() {
    let raised =
        getrlimit(Resource::RLIMIT_NOFILE).and_then(|(_, hard)| setrlimit(Resource::RLIMIT_NOFILE, hard, hard));
    if let Err(error) = raised {
        tracing::warn!(error = &error as &dyn std::error::Error, "the limit of open files stays as it is");
    }
}
