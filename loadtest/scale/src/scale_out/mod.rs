//! Nodes that come with the load and go after it: none, one, many, none, while work is accepted all along.
//!
//! ```text
//!   flux up ──────────┬─► nats-server
//!     (load, watch)   └─► gateway, and an agent of another pool
//!   flux-autoscaler ────► flux-agent …       the nodes of its provider `local`, each with an identity and a launcher
//! ```
//!
//! The load is a closed loop over HTTP, so that how much waits is said and not hoped for: one invocation unfinished until there is a
//! node, a backlog that asks for all nodes until all are there and have worked, a trickle while they drain, then nothing. In
//! the end a call wakes the fleet once more. What is accepted is asked for twice, when it has ended and when no node is left.

mod elastic;
mod load;
mod report;
mod watch;

use std::time::Duration;

use flux_protocol::Timestamp;
use flux_testkit::{Api, eventually};
use futures::StreamExt as _;
use serde_json::{Value, json};
use tokio::time::Instant;

use self::{elastic::Elastic, load::Load, watch::Watch};
use crate::cluster::{Ended, ended};

pub use report::{tell, write};
pub use watch::{Node, Sample};

const FUNCTION: &str = "nap";
/// Whoever calls it waits for a node.
const PATIENT: &str = "patient-nap";
const WITHIN: Duration = Duration::from_secs(120);
/// What has no end by then counts as lost: a node that had to be given up was silent for half of it at most.
const ENDS_WITHIN: Duration = Duration::from_secs(150);
/// As the autoscaler is told to work a backlog off.
const TARGET_QUEUE: Duration = Duration::from_secs(4);
/// Unfinished invocations while nodes go.
const TRICKLE: u64 = 2;
const READS_AT_ONCE: usize = 8;

/// How much of it.
#[derive(Debug, Clone, Copy)]
pub struct ScaleOut {
    /// The most there may be, and there have to be.
    pub nodes: u32,
    /// Executions at once on each.
    pub tasks: u32,
    /// How long an execution sleeps.
    pub nap: Duration,
    /// Executions that end while all nodes are there.
    pub held: u64,
}

impl ScaleOut {
    /// 1 → 10 → 0, half a minute of it with ten.
    pub const fn full() -> Self {
        Self { nodes: 10, tasks: 4, nap: Duration::from_millis(500), held: 2_400 }
    }

    /// The same in short, for the tests.
    pub const fn short() -> Self {
        Self { nodes: 10, tasks: 2, nap: Duration::from_millis(400), held: 100 }
    }

    /// Half as much again as asks for all nodes.
    fn backlog(&self) -> u64 {
        let naps = TARGET_QUEUE.as_millis().div_ceil(self.nap.as_millis().max(1));
        let naps = u64::try_from(naps).unwrap_or(1);
        u64::from(self.nodes) * u64::from(self.tasks) * naps * 3 / 2
    }
}

/// What came of it.
#[derive(Debug, Clone)]
pub struct ScaledOut {
    pub size: ScaleOut,
    /// Each that there ever was, as they came.
    pub nodes: Vec<Node>,
    pub samples: Vec<Sample>,
    /// Asynchronous invocations that were accepted, and those that were not.
    pub accepted: u64,
    pub refused: u64,
    /// Records without a success, or that nobody has.
    pub lost: Vec<Value>,
    /// Records that said something else when they were read again.
    pub changed: Vec<(Value, Value)>,
    /// Accepted ones that took more than one attempt.
    pub again: u64,
    /// Ends that were recorded, the waiting call's with them.
    pub ended: Ended,
    /// The call that found no node: its status, and how long it took.
    pub woke: (u16, Duration),
    /// From the last end to no node.
    pub emptied_in: Duration,
    /// Identities of nodes that still let somebody in.
    pub let_in: Vec<String>,
}

impl ScaledOut {
    /// The most nodes that were ready at once.
    pub fn peak(&self) -> u32 {
        self.samples.iter().map(|sample| sample.ready).max().unwrap_or(0)
    }

    /// Ends beyond one for each execution.
    pub fn second_outcomes(&self) -> u64 {
        let changed = u64::try_from(self.changed.len()).unwrap_or(u64::MAX);
        self.ended.all().saturating_sub(self.accepted + 1) + changed
    }
}

/// Does it all, and ends what it started.
pub async fn scale_out(size: ScaleOut) -> ScaledOut {
    let mut elastic = Elastic::start(&size).await;
    let (load, watch) = (Load::default(), Watch::default());
    let beats = elastic.heartbeats().await;
    let api = elastic.api().clone();
    let scaled = tokio::select! {
        () = load.run(&api) => unreachable!("callers go on for ever"),
        () = watch.run(&api, &load, beats) => panic!("the queue's connection ended"),
        scaled = story(&size, &elastic, &load, &watch) => scaled,
    };
    elastic.end().await;
    scaled
}

async fn story(size: &ScaleOut, elastic: &Elastic, load: &Load, watch: &Watch) -> ScaledOut {
    let api = elastic.api();
    let ready = |count: u32| move || async move { watch.now().ready >= count };
    say("none: until the first node has worked");
    load.keep(1);
    eventually(WITHIN, "the first node", ready(1)).await;
    eventually(WITHIN, "the first end", || async { load.ended() > 0 }).await;
    say("a backlog: until all nodes are there");
    load.keep(size.backlog());
    eventually(WITHIN, "all nodes", ready(size.nodes)).await;
    let enough = load.ended() + size.held;
    eventually(WITHIN, "they have worked", || async { load.ended() >= enough }).await;
    say("a trickle: until half of them are gone");
    load.keep(TRICKLE);
    eventually(WITHIN, "half of the nodes to go", || async { watch.now().nodes() <= size.nodes / 2 }).await;
    say("nothing: until none is left");
    load.keep(0);
    // Those that never end are counted below.
    let all_ended = eventually(ENDS_WITHIN * 2, "the last end", || async { load.is_done() });
    let _ = tokio::time::timeout(ENDS_WITHIN, all_ended).await;
    let accepted = load.accepted();
    let idle = Instant::now();
    let first = records(api, &accepted).await;
    eventually(WITHIN, "no node", || async { watch.now().nodes() == 0 }).await;
    let emptied_in = idle.elapsed();
    say("none: until a call has woken one, and it is gone again");
    let (before, called) = (watch.nodes().len(), Instant::now());
    let call = api.execute(PATIENT, &json!({})).await;
    let woke = (call.status, called.elapsed());
    let gone_again = || async { watch.nodes().len() > before && watch.now().nodes() == 0 };
    eventually(WITHIN, "no node again", gone_again).await;
    let mut nodes = watch.nodes();
    // A machine is gone a moment before who it was is.
    let still = || elastic.let_in(&nodes);
    let gone = eventually(WITHIN * 2, "no identity", || async { still().is_empty() });
    let _ = tokio::time::timeout(WITHIN, gone).await;
    let let_in = still();

    let last = records(api, &accepted).await;
    let called = call.json["execution_id"].as_str().map(str::to_owned);
    first_of(&mut nodes, &[&last[..], &records(api, called.as_slice()).await].concat());
    let succeeded = |record: &&Value| record["status"] == "success";
    let both = first.iter().cloned().zip(last.iter().cloned());
    ScaledOut {
        size: *size,
        nodes,
        samples: watch.samples(),
        accepted: u64::try_from(accepted.len()).unwrap_or(u64::MAX),
        refused: load.refused(),
        lost: last.iter().filter(|record| !succeeded(record)).cloned().collect(),
        changed: both.filter(|(first, last)| end_of(first) != end_of(last)).collect(),
        again: u64::try_from(last.iter().filter(|one| one["attempt"] != 1).count()).unwrap_or(u64::MAX),
        ended: ended(api).await,
        woke,
        emptied_in,
        let_in,
    }
}

async fn records(api: &Api, ids: &[String]) -> Vec<Value> {
    let read = |id: &String| {
        let path = format!("/executions/{id}");
        async move { api.get(&path).await.json }
    };
    futures::stream::iter(ids.iter().map(read)).buffered(READS_AT_ONCE).collect().await
}

/// What may not change once there is an outcome.
fn end_of(record: &Value) -> [Option<&Value>; 5] {
    ["status", "attempt", "agent_id", "started_at", "status_at"].map(|field| record.get(field))
}

/// When each node started the first that it ran to the end.
fn first_of(nodes: &mut [Node], records: &[Value]) {
    for node in nodes {
        let own = records.iter().filter(|record| record["agent_id"] == *node.id);
        let started = own.filter_map(|record| record["started_at"].as_str()?.parse::<Timestamp>().ok());
        node.first_execution = started.min();
    }
}

fn say(what: &str) {
    #[allow(clippy::print_stderr, reason = "progress of a run that takes a minute")]
    {
        eprintln!("scale-out: {what}");
    }
}
