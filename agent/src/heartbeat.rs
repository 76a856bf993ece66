//! What the agent says of itself: every second, and at once when its status changes.
//!
//! Gateways decide from it whether a call finds room. It goes out as a signal, for those who listen, and into the agents'
//! table, for those who come later; there it outlives the agent by ten seconds at most.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use flux_broker::Table;
use flux_launcher::wire;
use flux_protocol::{
    Timestamp,
    agent::{AgentStatus, Budget, Capabilities, Heartbeat, MissingLayer, RunningCount},
    function::{Isolation, Network},
    limits,
    secret::Base64,
    subject, time,
};
use tokio::{sync::watch, time::MissedTickBehavior};
use tokio_util::sync::CancellationToken;

use crate::{machine::Machine, node::Node, puller::PullerState, sandbox::Tiers};

/// A status that flips with each execution is said this often at most.
const SAID_AT_MOST_EVERY: Duration = Duration::from_millis(100);
/// A broker that does not answer must not stop the next heartbeat.
const PUT_WITHIN: Duration = Duration::from_secs(1);

pub(crate) struct Heart {
    node: Arc<Node>,
    machine: Machine,
    total: Budget,
    state: watch::Receiver<PullerState>,
    launcher: watch::Receiver<Option<Arc<flux_launcher::Capabilities>>>,
    name: String,
    started_at: Timestamp,
}

impl Heart {
    pub(crate) fn new(node: Arc<Node>, machine: Machine, total: Budget, state: watch::Receiver<PullerState>) -> Self {
        let launcher = node.executor.capabilities();
        Self { node, machine, total, state, launcher, name: Machine::name(), started_at: time::now() }
    }

    /// Beats until `stop`; then says once that it goes, and takes itself out of the table.
    pub(crate) async fn beat(mut self, stop: CancellationToken) {
        let mut ticks = tokio::time::interval(limits::HEARTBEAT_EVERY);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut said = None;
        let mut said_at = Instant::now();
        loop {
            tokio::select! {
                () = stop.cancelled() => break,
                _ = ticks.tick() => {}
                changed = self.state.changed() => {
                    if changed.is_err() {
                        break;
                    }
                    tokio::time::sleep_until((said_at + SAID_AT_MOST_EVERY).into()).await;
                    if said == Some(self.status()) {
                        continue;
                    }
                }
            }
            said = Some(self.status());
            said_at = Instant::now();
            let heartbeat = self.heartbeat();
            self.say(&heartbeat).await;
        }
        self.say_goodbye().await;
    }

    fn status(&self) -> AgentStatus {
        let state = *self.state.borrow();
        match state {
            PullerState { draining: true, .. } => AgentStatus::Draining,
            // Without a launcher there is no room, whatever the budget says.
            _ if self.launcher.borrow().is_none() => AgentStatus::Busy,
            PullerState { free: Budget { tasks: 0, .. }, .. } => AgentStatus::Busy,
            _ => AgentStatus::Online,
        }
    }

    fn heartbeat(&mut self) -> Heartbeat {
        let mut running = self.node.held.running_counts();
        let mut warm = self.node.warm.counts();
        for count in &mut running {
            count.warm = warm.remove(&count.function).unwrap_or(0);
        }
        let idle = warm.into_iter();
        running.extend(idle.map(|(function, warm)| RunningCount { function, calls: 0, invokes: 0, warm }));
        let active = running.iter().map(|count| count.calls + count.invokes).sum();
        let free = self.state.borrow().free;
        let measured = self.machine.measure(active);
        *self.node.measured.write() = Some(measured.clone());
        Heartbeat {
            agent_id: self.node.id.clone(),
            pool: self.node.pool.clone(),
            address: self.name.clone(),
            status: self.status(),
            release: env!("CARGO_PKG_VERSION").to_owned(),
            started_at: self.started_at,
            at: time::now(),
            node: measured,
            total: self.total,
            free: if self.launcher.borrow().is_some() { free } else { Budget::default() },
            running,
            capabilities: self
                .launcher
                .borrow()
                .as_deref()
                .map(|of| Capabilities { runtimes: self.node.runtimes.read().given(), ..capabilities(of) })
                .map(|of| with_tiers(of, &self.node.tiers))
                .unwrap_or_default(),
            cached_digests: self.node.code.cached(),
            secrets_key: Some(Base64(self.node.secrets_key.public_key().to_vec())),
            finished: self.node.held.finished(),
        }
    }

    async fn say(&self, heartbeat: &Heartbeat) {
        let Ok(body) = serde_json::to_vec(heartbeat).map(bytes::Bytes::from) else { return };
        let broker = &self.node.broker;
        let signal = broker.signal(subject::heartbeat(&heartbeat.pool, &self.node.id), body.clone());
        let _ = tokio::time::timeout(PUT_WITHIN, signal).await;
        let key = subject::agents_key(&heartbeat.pool, &self.node.id);
        let put = broker.put(Table::Agents, &key, body);
        match tokio::time::timeout(PUT_WITHIN, put).await {
            Ok(Ok(_)) => {}
            Ok(Err(error)) => tracing::debug!(error = &error as &dyn std::error::Error, "the heartbeat was not kept"),
            Err(_) => tracing::debug!("the heartbeat was not kept in time"),
        }
    }

    async fn say_goodbye(&mut self) {
        let heartbeat = Heartbeat { status: AgentStatus::Draining, free: Budget::default(), ..self.heartbeat() };
        self.say(&heartbeat).await;
        let key = subject::agents_key(&heartbeat.pool, &self.node.id);
        let deleted = self.node.broker.delete(Table::Agents, &key);
        let _ = tokio::time::timeout(PUT_WITHIN, deleted).await;
    }
}

/// The launcher's layers by the names of the API.
pub(crate) fn capabilities(of: &flux_launcher::Capabilities) -> Capabilities {
    let layers = [
        ("unprivileged_user", of.root),
        ("own_uids", of.own_uids),
        ("pid_namespace", of.pid_namespace),
        ("mount_namespace", of.mount_namespace),
        ("net_namespace", of.net_namespace),
        ("network_guard", of.network_guard),
        ("no_new_privs", of.no_new_privs),
        ("landlock_scopes", of.landlock_scopes),
        ("landlock_files", of.landlock_files),
        ("seccomp", of.seccomp),
        ("cgroup_memory", of.cgroup.memory),
        ("cgroup_cpu", of.cgroup.cpu),
        ("cgroup_pids", of.cgroup.pids),
    ];
    // An agent without the namespace could not run them anyway.
    let cannot = (!of.net_namespace).then_some(wire::Network::None);
    let mut refuses: Vec<Network> = of.refuses.iter().copied().chain(cannot).map(network).collect();
    refuses.dedup();
    Capabilities {
        refuses,
        tiers: vec!["process".to_owned()],
        layers: layers.into_iter().filter(|(_, given)| *given).map(|(name, _)| name.to_owned()).collect(),
        missing: of
            .missing
            .iter()
            .map(|missing| MissingLayer { layer: missing.layer.clone(), reason: missing.reason.clone() })
            .collect(),
        runtimes: Vec::new(),
        container_refuses: Vec::new(),
    }
}

/// What there is beside processes, or why not.
fn with_tiers(mut of: Capabilities, tiers: &Tiers) -> Capabilities {
    let said = |missing: &flux_launcher::Missing| MissingLayer {
        layer: missing.layer.clone(),
        reason: missing.reason.clone(),
    };
    for (isolation, offer) in tiers.offers() {
        match offer {
            Ok(offer) => {
                of.tiers.push(isolation.as_str().to_owned());
                of.missing.extend(offer.missing.iter().map(said));
                if isolation == Isolation::Container {
                    of.container_refuses = offer.refuses.iter().copied().map(network).collect();
                }
            }
            Err(reason) => of.missing.push(MissingLayer { layer: isolation.as_str().to_owned(), reason }),
        }
    }
    of
}

fn network(of: wire::Network) -> Network {
    match of {
        wire::Network::Host => Network::Host,
        wire::Network::None => Network::None,
    }
}

/// A layer that is missing is said aloud, once for each launcher.
pub(crate) async fn say_what_is_missing(mut launcher: watch::Receiver<Option<Arc<flux_launcher::Capabilities>>>) {
    let mut said = Vec::new();
    loop {
        let missing = launcher.borrow_and_update().as_ref().map(|of| of.missing.clone());
        if let Some(missing) = missing.filter(|missing| *missing != said) {
            if !missing.is_empty() {
                let text: Vec<String> = missing.iter().map(|m| format!("{}: {}", m.layer, m.reason)).collect();
                tracing::warn!(missing = text.join("; "), "functions run without some layers of isolation");
            }
            said = missing;
        }
        if launcher.changed().await.is_err() {
            return;
        }
    }
}
