//! A run, from its start to its report.

use std::{
    collections::BTreeSet,
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64},
    },
    time::{Duration, Instant},
};

use anyhow::Context as _;
use flux_testkit::{Api, Seed};
use reqwest::Method;

use crate::{
    checker::{self, Report},
    cluster::Cluster,
    collector::Collector,
    embedded::Embedded,
    engines::Engines,
    faults, function,
    history::{AskKind, Event, History, Seen},
    leaks,
    load::Load,
    plan::{Fault, Plan},
    strike::Topology,
};

/// Everything that was accepted has ended by then: the reconciler gives up on a status after 10 s.
const SETTLES_WITHIN: Duration = Duration::from_secs(90);
const READY_WITHIN: Duration = Duration::from_secs(60);
const PAGE: usize = 1_000;

/// How the pieces of Flux are put together.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Shape {
    /// `flux up`.
    Embedded,
    /// Two gateways on one SQLite file, three agents, three `nats-server`.
    Cluster,
    /// The same on Redis.
    Redis,
    /// Two gateways on PostgreSQL, three agents, RabbitMQ.
    PostgresRabbitmq,
}

/// How long, how much, and by which seed.
#[derive(Debug, Clone)]
pub struct Options {
    pub shape: Shape,
    pub seed: u64,
    pub clients: usize,
    /// Goes on until all of these are reached.
    pub at_least: Duration,
    /// That began: what was refused meanwhile counts for nothing.
    pub executions: u64,
    pub kills: u64,
    /// Full disks and wiped queues too.
    pub thorough: bool,
    /// Where the history is written.
    pub history: PathBuf,
}

/// Runs it and judges it.
///
/// # Errors
/// The harness itself cannot work. What Flux does wrong is in the report, or a panic where nothing can go on.
pub async fn run(options: &Options) -> anyhow::Result<Report> {
    let others = leaks::launchers_cgroups();
    match options.shape {
        Shape::Embedded => run_on(Embedded::start().await, options, others).await,
        Shape::Cluster => run_on(Cluster::start(Engines::SqliteNats).await?, options, others).await,
        Shape::Redis => run_on(Cluster::start(Engines::RedisNats).await?, options, others).await,
        Shape::PostgresRabbitmq => run_on(Cluster::start(Engines::PostgresRabbit).await?, options, others).await,
    }
}

async fn run_on<T: Topology>(mut topology: T, options: &Options, others: BTreeSet<PathBuf>) -> anyhow::Result<Report> {
    let mut seed = Seed::new(options.seed);
    let history = Arc::new(History::create(&options.history).context("the history cannot be written")?);
    history.note(Event::Opened {
        seed: options.seed,
        topology: topology.name().to_owned(),
        agents: T::AGENTS,
        max_losses: flux_protocol::limits::LOSSES,
    });
    let collector = Collector::start(Arc::clone(&history))?;
    let apis = topology.apis();
    deploy(&apis[0]).await;
    for api in &apis {
        flux_testkit::eventually(READY_WITHIN, "a first call", || faults::probe(api)).await;
    }
    let before = leaks::descriptors(&topology);
    let producer = Arc::new(topology.producer().await.context("no connection to the queue")?);
    let load = Arc::new(Load {
        history: Arc::clone(&history),
        apis: apis.clone(),
        producer: Arc::clone(&producer),
        port: collector.port,
        stop: AtomicBool::new(false),
        ops: AtomicU64::new(1),
        editions: AtomicU64::new(2),
    });
    let clients = load.start(seed.fork(), options.clients);
    topology.remembers().await;
    let mut menu = topology.menu();
    menu.faults.retain(|(fault, _)| options.thorough || !matches!(fault, Fault::DiskFull | Fault::Wipe(_)));
    let plan = Plan::new(seed.fork(), menu);
    let launchers = harm(&mut topology, plan, options, &load).await;
    load.stop();
    clients.wait().await;
    settle(&apis[0], &collector).await;
    history.note(Event::Closing);
    read_all(&apis[0], &history).await;
    let mut report = checker::check(&history.entries());
    report.leaks = leaks::of_running(&topology, &producer, &before).await;
    topology.stop().await;
    report.leaks.extend(leaks::of_stopped(&topology, &launchers, &others).await);
    Ok(report)
}

async fn deploy(api: &Api) {
    for name in function::NAMES {
        api.deploy(name, &function::yaml(name), &function::code(1)).await;
    }
    let yaml = format!("name: {}\nhandler: run.sh\nresources: {{ cpu: 10, memory: 32 }}\n", function::PROBE);
    api.deploy(function::PROBE, &yaml, &function::probe()).await;
}

/// Strikes until there was enough of everything; the launchers that were seen meanwhile.
async fn harm<T: Topology>(topology: &mut T, plan: Plan, options: &Options, load: &Load) -> BTreeSet<i32> {
    let begun = Instant::now();
    let (mut fault, mut kills) = (0, 0);
    let mut launchers = BTreeSet::new();
    for step in plan {
        launchers.extend(leaks::launchers(topology));
        let enough =
            begun.elapsed() >= options.at_least && kills >= options.kills && load.history.begun() >= options.executions;
        if enough {
            break;
        }
        if faults::strike(topology, step, fault, &load.history).await {
            fault += 1;
            kills += u64::from(step.fault.kind() == crate::history::FaultKind::Kill);
        }
    }
    topology.mend().await;
    for api in topology.apis() {
        flux_testkit::eventually(READY_WITHIN, "a call after the last fault", || faults::probe(&api)).await;
    }
    launchers.extend(leaks::launchers(topology));
    launchers
}

/// Waits until nothing is open any more. What is open still after that is the checker's to judge.
async fn settle(api: &Api, collector: &Collector) {
    let until = Instant::now() + SETTLES_WITHIN;
    while Instant::now() < until {
        let request = api.request(Method::GET, "/executions?status=running&limit=1");
        let open = Api::try_send(request).await.map(|reply| reply.json["executions"].as_array().map(Vec::len));
        if matches!(open, Ok(Some(0))) && collector.open() == 0 {
            return;
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

/// Every record that there is, and every one that there should be.
async fn read_all(api: &Api, history: &History) {
    let mut known: BTreeSet<String> = history
        .entries()
        .into_iter()
        .filter_map(|entry| match entry.event {
            Event::Began { execution, .. } | Event::Read { execution, .. } => Some(execution),
            Event::Answered { answer: crate::history::Answer::Accepted { execution }, .. } => Some(execution),
            Event::Asked { ask, .. } if ask.kind == AskKind::Direct => ask.execution,
            _ => None,
        })
        .collect();
    for function in function::NAMES {
        let mut cursor = String::new();
        loop {
            let page = api.get(&format!("/executions?function={function}&limit={PAGE}{cursor}")).await.expect(200).json;
            let ids = page["executions"].as_array().into_iter().flatten();
            known.extend(ids.filter_map(|one| one["execution_id"].as_str()).map(str::to_owned));
            let Some(next) = page["next_cursor"].as_str() else { break };
            cursor = format!("&cursor={next}");
        }
    }
    for execution in known {
        let reply = api.get(&format!("/executions/{execution}")).await;
        if reply.status == 200 {
            history.note(Event::Read { execution, seen: Seen::of(&reply.json) });
        }
    }
}
