//! From settings to a running agent: for `flux-agent`, and for `flux up`, which has a gateway beside it.

use std::{net::ToSocketAddrs as _, path::PathBuf, sync::Arc, time::Duration};

use flux_broker::{
    Broker,
    nats::{NatsAuth, NatsBroker, NatsOptions},
};
use flux_launcher::{
    LauncherConfig,
    wire::{LauncherWish, TREE_FD},
};
use flux_pki::Certs;
use flux_protocol::{AgentId, subject};
use flux_runtime::{Settings, Shutdown, Tasks, config, settings::AgentSettings};

use crate::{
    agent::{Agent, AgentParts, StartError},
    budget, identity,
    launch::{LauncherPool, Source, TreeLink},
    machine::Machine,
    renewal,
    runtimes::Runtimes,
};

/// Where the agent keeps its things unless it is told.
fn work_dir(settings: &AgentSettings) -> PathBuf {
    settings.work_dir.clone().unwrap_or_else(|| PathBuf::from("flux-agent"))
}

/// Has a launcher keep functions from the servers of a queue, by the addresses that they have now.
pub fn guard_queue(launcher: &mut LauncherConfig, urls: &str) {
    const NATS_PORT: u16 = 4222;
    for url in urls.split(',').map(str::trim).filter(|url| !url.is_empty()) {
        let authority = url.rsplit("//").next().unwrap_or(url);
        let host = authority.rsplit('@').next().unwrap_or(authority).trim_end_matches('/');
        let with_port = if host.rsplit(':').next().is_some_and(|port| port.parse::<u16>().is_ok()) {
            host.to_socket_addrs()
        } else {
            (host.trim_start_matches('[').trim_end_matches(']'), NATS_PORT).to_socket_addrs()
        };
        match with_port {
            Ok(addresses) => launcher.servers.extend(addresses),
            Err(error) => launcher.unknown_servers.push(format!("{host} ({error})")),
        }
    }
}

/// Where launchers come from: the process tree that started us, or else this program itself with our own rights.
pub fn launchers(settings: &Settings) -> Result<Source, StartError> {
    let agent = &settings.agent;
    let tasks = budget::of(agent, Machine::cores(), 0).tasks;
    match config::env(TREE_FD).and_then(|number| number.parse().ok()) {
        Some(number) => Ok(Source::Tree {
            link: TreeLink::inherited(number).map_err(StartError::Tree)?,
            wish: LauncherWish { tasks: Some(tasks), max_slots: None },
        }),
        None => {
            let mut config = LauncherConfig::new(work_dir(agent).join("launcher"), tasks);
            config.isolation_required = agent.isolation_required;
            guard_queue(&mut config, &settings.queue.url);
            Ok(Source::Direct { program: PathBuf::from("/proc/self/exe"), config })
        }
    }
}

/// Starts an agent on a broker that is there: gets a launcher, then starts pulling.
pub async fn start(settings: &Settings, broker: Arc<dyn Broker>, tasks: Tasks) -> Result<Agent, StartError> {
    let (pool, driver) = LauncherPool::connect(launchers(settings)?).await?;
    tasks.spawn_essential("launcher", end_with(driver, tasks.shutdown().kill_token()));
    let parts = AgentParts {
        broker,
        work_dir: work_dir(&settings.agent),
        private_ip: config::env("FLUX_NODE_PRIVATE_IP"),
        public_ip: config::env("FLUX_NODE_PUBLIC_IP"),
        settings: settings.agent.clone(),
        runtimes: Runtimes::default(),
        tasks,
    };
    let agent = Agent::start(parts, pool).await?;
    if let Some(address) = settings.agent.probe.clone().filter(|_| !settings.disable_mtls) {
        let credential = Certs::at(settings.certs_dir()).agent(agent.id())?;
        let listener = tokio::net::TcpListener::bind(&address).await;
        let listener = listener.map_err(|source| StartError::Probe { address, source })?;
        agent.answer_probes(listener, credential);
    }
    Ok(agent)
}

/// Dropping a launcher's driver ends it, and everything that it runs.
async fn end_with(driver: crate::launch::Driver, kill: tokio_util::sync::CancellationToken) {
    tokio::select! {
        () = driver => {}
        () = kill.cancelled() => {}
    }
}

/// The agent's id: configured, or made once and kept.
pub fn agent_id(settings: &Settings) -> Result<AgentId, StartError> {
    identity::agent_id(&settings.agent, &work_dir(&settings.agent))
}

/// Runs an agent as a process: connect, start, wait for a signal, drain within the deadline.
pub async fn run(settings: &Settings) -> Result<(), StartError> {
    let tasks = Tasks::new(Shutdown::new());
    let id = agent_id(settings)?;
    let mut options = NatsOptions::new("", format!("flux-agent {id}"));
    options.urls = settings.queue.url.split(',').map(|url| url.trim().to_owned()).collect();
    let credential = if settings.disable_mtls {
        tracing::warn!(
            "`disable_mtls` is set: whoever reaches the queue can do everything, and this agent believes whoever answers"
        );
        None
    } else {
        let credential = Certs::at(settings.certs_dir()).agent(&id)?;
        options.auth = NatsAuth::Certificate(Arc::new(credential.queue_client()?));
        options.own_account = true;
        options.answers = Some(subject::answers_of_agent(&id));
        Some(credential)
    };
    let broker: Arc<dyn Broker> = NatsBroker::connect(options, tasks.clone()).await?;
    let agent = start(settings, Arc::clone(&broker), tasks.clone()).await?;
    if let Some(credential) = credential {
        let (certs, broker, id) = (Certs::at(settings.certs_dir()), Arc::clone(&broker), id.clone());
        let stop = tasks.shutdown().kill_token();
        tasks.spawn("certificate", async move {
            tokio::select! {
                () = renewal::keep(certs, broker, id, credential) => {}
                () = stop.cancelled() => {}
            }
        });
    }
    let drain_timeout = Duration::from_secs(settings.agent.drain_timeout);
    let shutdown = Arc::clone(tasks.shutdown());
    // The agent keeps its own deadline, a little before the one that ends the process.
    let drained = agent.drain(drain_timeout);
    let signalled = shutdown.on_signals(drain_timeout + Duration::from_secs(5), drained).await;
    broker.close().await;
    let _ = tokio::time::timeout(Duration::from_secs(2), tasks.wait()).await;
    signalled.map_err(StartError::Signals)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_server_of_a_queue_has_its_address_or_is_named() {
        let mut config = LauncherConfig::new("/nowhere", 1);
        let urls =
            "nats://127.0.0.1:14222, tls://user:secret@192.0.2.1/,nats://[::1]:6222,nats://[::1],nats://queue.invalid";
        guard_queue(&mut config, urls);
        let known = ["127.0.0.1:14222", "192.0.2.1:4222", "[::1]:6222", "[::1]:4222"];
        assert_eq!(config.servers, known.map(|address| address.parse().expect("an address")));
        let [unknown] = &config.unknown_servers[..] else { panic!("{:?}", config.unknown_servers) };
        assert!(unknown.starts_with("queue.invalid "), "{unknown}");
    }
}
