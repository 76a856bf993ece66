//! Agents that are agents in all but one thing: what they start is over at once and never was a process.

use std::{
    os::fd::OwnedFd,
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use anyhow::Context as _;
use async_trait::async_trait;
use flux_agent::{
    Agent, AgentParts, Code, CodeError, CodeFolder, Executor, Process, Runtimes, Tiers,
    launch::{Ended, EndedReport, ExitStatus, LaunchError},
};
use flux_broker::{
    Broker,
    nats::{NatsBroker, NatsOptions},
};
use flux_launcher::{Capabilities, wire::SpawnRequest};
use flux_protocol::{Digest, time};
use flux_runtime::{Shutdown, Tasks, settings::AgentSettings};
use futures::StreamExt as _;
use tokio::sync::watch;

/// Where the process of simulated agents says how many executions it started.
pub(crate) const STARTS: &str = "scale.starts";
/// Connecting at once.
const AT_ONCE: usize = 16;

#[derive(Debug, clap::Args)]
pub struct Args {
    #[arg(long)]
    queue_url: String,
    /// How many agents.
    #[arg(long)]
    count: usize,
    /// Executions at once, of each.
    #[arg(long)]
    tasks: u32,
}

/// Runs agents until the process is killed.
pub async fn run(args: Args) -> anyhow::Result<()> {
    let started = Arc::new(AtomicU64::new(0));
    let executor = Arc::new(Nothing {
        started: Arc::clone(&started),
        capabilities: watch::Sender::new(Some(Arc::new(Capabilities::default()))),
    });
    let work_dir = tempfile::tempdir().context("no temporary directory")?;
    let agents: Vec<_> = futures::stream::iter(0..args.count)
        .map(|n| agent(&args, n, Arc::clone(&executor), work_dir.path().to_owned()))
        .buffer_unordered(AT_ONCE)
        .collect()
        .await;
    let agents: Vec<Agent> = agents.into_iter().collect::<anyhow::Result<_>>()?;
    let client = async_nats::connect(&args.queue_url).await?;
    let mut asked = client.subscribe(STARTS).await?;
    while let Some(message) = asked.next().await {
        if let Some(reply) = message.reply {
            client.publish(reply, started.load(Ordering::SeqCst).to_string().into()).await?;
        }
    }
    drop(agents);
    Ok(())
}

async fn agent(args: &Args, n: usize, executor: Arc<Nothing>, work_dir: PathBuf) -> anyhow::Result<Agent> {
    let tasks = Tasks::new(Shutdown::new());
    let id = format!("simulated-{n}");
    let options = NatsOptions::new(&args.queue_url, format!("flux-agent {id}"));
    let broker: Arc<dyn Broker> = NatsBroker::connect(options, tasks.clone()).await.context("no connection")?;
    let settings = AgentSettings {
        id: Some(id),
        tasks: Some(args.tasks),
        cpu: Some(args.tasks * 1_000),
        memory: Some(args.tasks * 1_024),
        ..AgentSettings::default()
    };
    let parts = AgentParts {
        broker,
        settings,
        credential: None,
        work_dir,
        private_ip: Some("127.0.0.1".to_owned()),
        public_ip: None,
        runtimes: Runtimes::default(),
        tiers: Tiers::default(),
        tasks,
    };
    Ok(Agent::start_with(parts, executor, Arc::new(NoCode))?)
}

/// An executor whose processes end as they begin, with success and without a word.
struct Nothing {
    started: Arc<AtomicU64>,
    capabilities: watch::Sender<Option<Arc<Capabilities>>>,
}

#[async_trait]
impl Executor for Nothing {
    async fn spawn(&self, _: SpawnRequest, _: [OwnedFd; 3]) -> Result<Box<dyn Process>, LaunchError> {
        self.started.fetch_add(1, Ordering::SeqCst);
        Ok(Box::new(Over { at_us: now_us() }))
    }

    async fn spawn_worker(
        &self,
        request: SpawnRequest,
        stdio: [OwnedFd; 3],
        _: OwnedFd,
    ) -> Result<Box<dyn Process>, LaunchError> {
        self.spawn(request, stdio).await
    }

    fn capabilities(&self) -> watch::Receiver<Option<Arc<Capabilities>>> {
        self.capabilities.subscribe()
    }
}

struct Over {
    at_us: u64,
}

#[async_trait]
impl Process for Over {
    fn pid(&self) -> u32 {
        0
    }

    fn started_at_us(&self) -> u64 {
        self.at_us
    }

    fn kill(&self, _: i32) {}

    async fn is_alone(&mut self) -> bool {
        true
    }

    async fn wait(&mut self) -> Ended {
        Ended::Finished(EndedReport {
            id: 0,
            status: ExitStatus::Exited(0),
            oom_killed: false,
            cpu_us: 0,
            memory_peak_bytes: 0,
            ended_at_us: now_us(),
        })
    }
}

fn now_us() -> u64 {
    u64::try_from(time::now().as_micros()).unwrap_or(0)
}

/// Code that is always there, since nobody reads it.
struct NoCode;

#[async_trait]
impl Code for NoCode {
    async fn ensure(&self, _: &Digest) -> Result<CodeFolder, CodeError> {
        Ok(CodeFolder { path: PathBuf::from("/"), hold: Arc::new(()) })
    }

    fn cached(&self) -> u32 {
        0
    }
}
