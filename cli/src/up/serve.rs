//! The worker: a gateway and an agent in one runtime, on one connection to the queue.

use std::{error::Error, net::SocketAddr, path::PathBuf, sync::Arc, time::Duration};

use anyhow::Context as _;
use flux_agent::Agent;
use flux_broker::Broker;
use flux_gateway::{
    Gateway, compose,
    http::{self, HttpOptions},
};
use flux_runtime::{Settings, Shutdown, Tasks, telemetry};
use flux_store::SharedStore;
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use tokio::time::Instant;

use super::{full_disk, ready};
use crate::{error::CliError, output::Output};

/// A gateway with no agent would refuse the first calls; one is there within moments of its start.
const AGENT_WITHIN: Duration = Duration::from_secs(5);
/// For what nobody waits for any more, after everything was drained.
const TASKS_END_WITHIN: Duration = Duration::from_secs(2);
/// What an agent gets at least to finish, however long the calls took.
const LEAST_DRAIN: Duration = Duration::from_millis(500);

#[derive(Debug, clap::Args)]
pub(crate) struct ServeArgs {
    #[arg(long)]
    settings: PathBuf,
    #[arg(long)]
    listen: SocketAddr,
    #[command(flatten)]
    ready: ready::Ready,
}

pub(crate) fn serve(args: &ServeArgs, out: Output) -> Result<(), CliError> {
    let failed = |error: anyhow::Error| CliError::Problem { what: format!("{error:#}"), remedy: None };
    let settings = read(&args.settings).map_err(failed)?;
    telemetry::init(settings.log.format, &settings.log.level).map_err(CliError::usage)?;
    raise_open_files();
    let runtime = flux_runtime::async_runtime()
        .map_err(|source| CliError::local("the async runtime cannot be started", source))?;
    let ended = runtime.block_on(run(settings, args, out));
    // Blocking work that nobody waits for does not hold the process up.
    runtime.shutdown_background();
    ended.map_err(failed)
}

fn read(path: &std::path::Path) -> anyhow::Result<Settings> {
    let text = std::fs::read(path).with_context(|| format!("{} cannot be read", path.display()))?;
    serde_json::from_slice(&text).with_context(|| format!("{} is not what `flux up` wrote", path.display()))
}

fn data_dir(settings: &Settings) -> PathBuf {
    settings.data_dir.clone().unwrap_or_default()
}

/// Connections and pipes are descriptors, and the usual soft limit is of another time.
fn raise_open_files() {
    let raised =
        getrlimit(Resource::RLIMIT_NOFILE).and_then(|(_, hard)| setrlimit(Resource::RLIMIT_NOFILE, hard, hard));
    if let Err(error) = raised {
        tracing::warn!(%error, "the limit of open files stays as it is");
    }
}

/// Each part has a shutdown of its own, since they go one after the other.
struct Worker {
    settings: Settings,
    broker: Arc<dyn Broker>,
    store: SharedStore,
    gateway: Gateway,
    agent: Agent,
    core: Tasks,
    http: Tasks,
    agent_tasks: Tasks,
}

async fn run(settings: Settings, args: &ServeArgs, out: Output) -> anyhow::Result<()> {
    // Bound before anything else is ready: who calls early waits instead of being refused.
    let listener = http::listen(args.listen).await.with_context(|| format!("{} cannot be listened on", args.listen))?;
    let worker = Box::pin(Worker::start(settings)).await?;
    let options = HttpOptions::from_settings(&worker.settings)?;
    let (gateway, shutdown, tasks) = (worker.gateway.clone(), Arc::clone(worker.http.shutdown()), worker.http.clone());
    worker.http.spawn_essential("http", async move {
        if let Err(error) = http::serve(gateway, listener, options, shutdown, tasks).await {
            tracing::error!(error = &error as &dyn Error, "HTTP cannot be served");
        }
    });
    args.ready.say(&worker.settings, args.listen, out);
    worker.until_end().await
}

impl Worker {
    async fn start(settings: Settings) -> anyhow::Result<Self> {
        let part = || Tasks::new(Shutdown::new());
        let (core, http, agent_tasks) = (part(), part(), part());
        let certs = compose::certs(&settings)?;
        let options = compose::queue_options(&settings, certs.as_ref(), "flux up")?;
        let broker = flux_broker::connect(options, core.clone()).await.context("the queue cannot be reached")?;
        compose::say_durability(settings.queue.durability, true);
        let (gateway, store) = compose::gateway(&settings, certs, &broker, &core).await?;
        let agent = flux_agent::start_beside_gateway(&settings, Arc::clone(&broker), agent_tasks.clone())
            .await
            .context("the agent cannot start")?;
        let seen = async {
            while gateway.agents().is_empty() {
                tokio::time::sleep(Duration::from_millis(2)).await;
            }
        };
        core.spawn("full disk", full_disk::watch(data_dir(&settings), Arc::clone(&broker), core.clone()));
        if tokio::time::timeout(AGENT_WITHIN, seen).await.is_err() {
            tracing::warn!("the gateway has not heard from the agent yet");
        }
        Ok(Self { settings, broker, store, gateway, agent, core, http, agent_tasks })
    }

    /// Serves until a signal, or until a part cannot go on; then drains: HTTP, then the agent, then the queue.
    async fn until_end(self) -> anyhow::Result<()> {
        let process = Shutdown::new();
        let longest = self.settings.gateway.drain_timeout.max(self.settings.agent.drain_timeout);
        let patience = Duration::from_secs(longest) + 2 * LEAST_DRAIN;
        let parts = [self.core.clone(), self.http.clone(), self.agent_tasks.clone()];
        for part in &parts {
            let (part, process) = (Arc::clone(part.shutdown()), Arc::clone(&process));
            self.core.spawn("part", async move {
                part.draining().await;
                if let Some(task) = part.failed() {
                    process.fail(task);
                }
            });
        }
        process.on_signals(patience, self.drain()).await.context("signals cannot be listened to")?;
        parts.iter().for_each(|part| part.shutdown().start_kill());
        let Self { broker, store, agent, gateway, .. } = self;
        // Some tasks end when nobody can give them work any more.
        drop((agent, gateway));
        let ended = futures::future::join_all(parts.iter().map(Tasks::wait));
        if tokio::time::timeout(TASKS_END_WITHIN, ended).await.is_err() {
            let [core, http, agent] = parts.each_ref().map(Tasks::len);
            tracing::warn!(core, http, agent, "some tasks did not end; the process ends without them");
        }
        broker.close().await;
        store.close().await;
        match process.failed() {
            Some(task) => anyhow::bail!("`{task}` ended, and Flux cannot go on without it"),
            None => Ok(()),
        }
    }

    async fn drain(&self) {
        let begun = Instant::now();
        self.http.shutdown().start_drain();
        let calls = async {
            self.http.wait().await;
            self.gateway.drain().await;
        };
        let for_calls = Duration::from_secs(self.settings.gateway.drain_timeout);
        if tokio::time::timeout(for_calls, calls).await.is_err() {
            tracing::warn!("calls still wait at the drain deadline");
        }
        let for_all = Duration::from_secs(self.settings.agent.drain_timeout);
        self.agent.drain(for_all.saturating_sub(begun.elapsed()).max(LEAST_DRAIN)).await;
        tracing::info!(after_ms = begun.elapsed().as_millis(), "drained");
    }
}
