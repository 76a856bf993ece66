//! What is seen of nodes from outside: at the API, and by their heartbeats.

use std::{
    collections::BTreeMap,
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use flux_protocol::{Timestamp, agent::Heartbeat, time::now};
use flux_testkit::Api;
use futures::StreamExt as _;
use serde_json::Value;

use super::load::Load;
use crate::cluster::ended;

const LOOK_EVERY: Duration = Duration::from_millis(100);

/// One node, and when it came how far.
#[derive(Debug, Clone)]
pub struct Node {
    /// Of its agent.
    pub id: String,
    /// The autoscaler decided on it.
    pub decided: Timestamp,
    /// The provider had launched it, and all that were decided on with it; unknown where no look came between that and its first heartbeat.
    pub launched: Option<Timestamp>,
    /// Its agent's process began.
    pub started: Option<Timestamp>,
    /// Its first heartbeat came.
    pub heard: Option<Timestamp>,
    /// The first execution that it ran to the end started.
    pub first_execution: Option<Timestamp>,
}

/// All nodes at one moment.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct Sample {
    pub at: Timestamp,
    /// Decided on, and not heard of yet.
    pub coming: u32,
    pub ready: u32,
    /// They take no more work, or are being terminated.
    pub going: u32,
    /// Invocations without an end.
    pub unfinished: u64,
}

impl Sample {
    pub fn nodes(&self) -> u32 {
        self.coming + self.ready + self.going
    }
}

#[derive(Debug, Default)]
pub(super) struct Watch {
    seen: Mutex<Seen>,
}

#[derive(Debug, Default)]
struct Seen {
    nodes: BTreeMap<String, Node>,
    /// Of whoever was heard of: its process began, and it was heard of first.
    beats: BTreeMap<String, (Timestamp, Timestamp)>,
    samples: Vec<Sample>,
}

impl Watch {
    /// Looks until it is dropped.
    pub(super) async fn run(&self, api: &Api, load: &Load, mut beats: async_nats::Subscriber) {
        let looks = async {
            let mut ticks = tokio::time::interval(LOOK_EVERY);
            loop {
                ticks.tick().await;
                self.look(api, load).await;
            }
        };
        let hear = async {
            while let Some(message) = beats.next().await {
                let Ok(beat) = serde_json::from_slice::<Heartbeat>(&message.payload) else { continue };
                self.seen().beats.entry(beat.agent_id.to_string()).or_insert_with(|| (beat.started_at, now()));
            }
        };
        tokio::select! {
            () = looks => {}
            () = hear => {}
        }
    }

    /// As of the last look.
    pub(super) fn now(&self) -> Sample {
        self.seen().samples.last().copied().unwrap_or_default()
    }

    pub(super) fn samples(&self) -> Vec<Sample> {
        self.seen().samples.clone()
    }

    /// As they were decided on.
    pub(super) fn nodes(&self) -> Vec<Node> {
        let seen = self.seen();
        let mut nodes: Vec<Node> = seen.nodes.values().cloned().collect();
        for node in &mut nodes {
            let beat = seen.beats.get(&node.id);
            (node.started, node.heard) = (beat.map(|(started, _)| *started), beat.map(|(_, heard)| *heard));
        }
        nodes.sort_by_key(|node| node.decided);
        nodes
    }

    async fn look(&self, api: &Api, load: &Load) {
        load.saw_ended(ended(api).await.all());
        let answer = api.get("/autoscaler").await;
        let Some(nodes) = answer.json["nodes"].as_array() else { return };
        let mut sample =
            Sample { at: now(), unfinished: load.begun().saturating_sub(load.ended()), ..Sample::default() };
        let mut seen = self.seen();
        for node in nodes {
            match node["state"].as_str() {
                Some("wanted" | "booting") => sample.coming += 1,
                Some("ready") => sample.ready += 1,
                _ => sample.going += 1,
            }
            if let (Some(id), Some(decided)) = (node["id"].as_str(), time(&node["wanted_at"])) {
                let (launched, started, heard, first_execution) = (None, None, None, None);
                let new = Node { id: id.to_owned(), decided, launched, started, heard, first_execution };
                let known = seen.nodes.entry(id.to_owned()).or_insert(new);
                if node["state"] == "booting" {
                    known.launched = time(&node["since"]);
                }
            }
        }
        seen.samples.push(sample);
    }

    fn seen(&self) -> MutexGuard<'_, Seen> {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn time(of: &Value) -> Option<Timestamp> {
    of.as_str()?.parse().ok()
}
