//! From settings to a running agent: for `flux-agent`, and for `flux up`, which has a gateway beside it.

use std::{
    net::ToSocketAddrs as _,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use flux_broker::{Broker, ConnectOptions};
use flux_containers::DriverConfig;
use flux_launcher::{
    LauncherConfig, UidRange,
    wire::{LauncherWish, TREE_FD},
};
use flux_pki::{Certs, Credential};
use flux_protocol::{AgentId, function::Isolation, subject};
use flux_runtime::{Settings, Shutdown, Tasks, config, settings::AgentSettings};

use crate::{
    agent::{Agent, AgentParts, CODE, StartError},
    budget, identity,
    launch::{LauncherPool, Source, TreeLink},
    machine::Machine,
    renewal,
    runtimes::Runtimes,
    sandbox::{ContainerSource, Containers, MicrovmSource, Microvms, Tiers},
};

/// Numbers that guests may run as: one for each function's version that has guests or a snapshot.
const GUEST_UIDS: u32 = 1024;

/// For what nobody waits for any more, after everything was drained.
const TASKS_END_WITHIN: Duration = Duration::from_secs(10);

/// Where the agent keeps its things unless it is told.
fn work_dir(settings: &AgentSettings) -> PathBuf {
    settings.work_dir.clone().unwrap_or_else(|| PathBuf::from("flux-agent"))
}

/// Has a launcher keep functions from Flux's own servers, by the addresses that they have now: what containers are kept from too.
///
/// The gateway is not among them: functions call others, and it asks for a key. Nobody takes its place.
pub fn guard_servers(launcher: &mut LauncherConfig, settings: &Settings) {
    guard_queue(launcher, &settings.queue.url);
    // Without certificates nobody listens there.
    if let Some(probe) = settings.agent.probe.as_ref().filter(|_| !settings.disable_mtls) {
        match probe.to_socket_addrs().map(Vec::from_iter) {
            Ok(addresses) if addresses.iter().all(|address| address.port() != 0) => launcher.servers.extend(addresses),
            Ok(_) => launcher.unknown_servers.push(format!("{probe} (`agent.probe`, a port that is chosen later)")),
            Err(error) => launcher.unknown_servers.push(format!("{probe} (`agent.probe`, {error})")),
        }
    }
    let listen = &settings.gateway.listen;
    match listen.to_socket_addrs() {
        Ok(addresses) => launcher.listeners.extend(addresses),
        Err(error) => launcher.unknown_servers.push(format!("{listen} (`gateway.listen`, {error})")),
    }
}

fn guard_queue(launcher: &mut LauncherConfig, urls: &str) {
    for url in urls.split(',').map(str::trim).filter(|url| !url.is_empty()) {
        let usual_port = match url.split("://").next() {
            Some("amqp") => 5672,
            Some("amqps") => 5671,
            _ => 4222,
        };
        let authority = url.split("://").last().unwrap_or(url);
        // What follows is a virtual host.
        let authority = authority.split('/').next().unwrap_or(authority);
        let host = authority.rsplit('@').next().unwrap_or(authority);
        let with_port = if host.rsplit(':').next().is_some_and(|port| port.parse::<u16>().is_ok()) {
            host.to_socket_addrs()
        } else {
            (host.trim_start_matches('[').trim_end_matches(']'), usual_port).to_socket_addrs()
        };
        match with_port {
            Ok(addresses) => launcher.servers.extend(addresses),
            Err(error) => launcher.unknown_servers.push(format!("{host} ({error})")),
        }
    }
}

/// The settings of the container driver, where there is to be one: for who starts it. `work_dir` is a directory of its own, `launcher`
/// what holds processes in beside it.
pub fn container_driver(
    settings: &AgentSettings,
    launcher: &LauncherConfig,
    agent_work_dir: &Path,
    work_dir: PathBuf,
) -> Option<DriverConfig> {
    let container = &settings.container;
    container.enabled.then(|| DriverConfig {
        work_dir,
        socket: container.socket.clone(),
        pull: container.pull,
        code_dir: agent_work_dir.join(CODE),
        user: launcher.runner,
        tmp_bytes: launcher.tmp_bytes,
        servers: launcher.servers.clone(),
        unknown_servers: launcher.unknown_servers.clone(),
        isolation_required: settings.isolation_required,
    })
}

/// The settings of the driver of microVMs, where there is to be one: for who starts it. `work_dir` is a directory of its own, `uids`
/// numbers that guests may run as under a jailer.
pub fn microvm_driver(
    settings: &AgentSettings,
    agent_work_dir: &Path,
    work_dir: PathBuf,
    uids: Option<UidRange>,
) -> Option<flux_firecracker::DriverConfig> {
    let microvm = &settings.microvm;
    let image = microvm.image.as_ref()?;
    let [kernel, initramfs, rootfs] =
        [flux_guest_image::KERNEL, flux_guest_image::INITRAMFS, flux_guest_image::ROOTFS].map(|name| image.join(name));
    let mut settings = flux_firecracker::Settings::new(&microvm.firecracker, kernel, initramfs, rootfs, work_dir);
    // Slots have the range's first numbers, guests its last.
    let uids = uids.filter(|uids| uids.count >= 2 * GUEST_UIDS);
    settings.jailer = uids.map(|uids| flux_firecracker::Jailer {
        program: microvm.jailer.clone(),
        first_uid: uids.first + uids.count - GUEST_UIDS,
        uids: GUEST_UIDS,
        cgroups: None,
    });
    Some(flux_firecracker::DriverConfig { settings, code_dir: agent_work_dir.join(CODE) })
}

/// Where launchers and drivers come from: the process tree that started us, or else this program itself with our own rights.
fn sources(settings: &Settings) -> Result<(Source, Option<ContainerSource>, Option<MicrovmSource>), StartError> {
    let agent = &settings.agent;
    let tasks = budget::of(agent, Machine::cores(), 0).tasks;
    match config::env(TREE_FD).and_then(|number| number.parse().ok()) {
        Some(number) => {
            let link = TreeLink::inherited(number).map_err(StartError::Tree)?;
            let containers = agent
                .container
                .enabled
                .then(|| ContainerSource::Tree { link: link.clone(), socket: agent.container.socket.clone() });
            let microvms = agent.microvm.image.is_some().then(|| MicrovmSource::Tree(link.clone()));
            let wish = LauncherWish { tasks: Some(tasks), ..LauncherWish::default() };
            Ok((Source::Tree { link, wish }, containers, microvms))
        }
        None => {
            let program = PathBuf::from("/proc/self/exe");
            let work_dir = work_dir(agent);
            let mut config = LauncherConfig::new(work_dir.join("launcher"), tasks);
            config.isolation_required = agent.isolation_required;
            guard_servers(&mut config, settings);
            let containers = container_driver(agent, &config, &work_dir, work_dir.join("containers"));
            let containers = containers.map(|config| ContainerSource::Direct { program: program.clone(), config });
            let microvms = microvm_driver(agent, &work_dir, work_dir.join("microvms"), None);
            let microvms =
                microvms.map(|config| MicrovmSource::Direct { program: program.clone(), config: Box::new(config) });
            Ok((Source::Direct { program, config }, containers, microvms))
        }
    }
}

/// What the agent says who it is with; `None` where none has certificates.
fn credential(settings: &Settings, id: &AgentId) -> Result<Option<Arc<Credential>>, StartError> {
    let certs = (!settings.disable_mtls).then(|| Certs::at(settings.certs_dir()));
    Ok(certs.map(|certs| certs.agent(id)).transpose()?)
}

/// Starts an agent on a gateway's connection, which renews the certificate too.
pub async fn start_beside_gateway(
    settings: &Settings,
    broker: Arc<dyn Broker>,
    tasks: Tasks,
) -> Result<Agent, StartError> {
    let credential = credential(settings, &agent_id(settings)?)?;
    if let Some(credential) = credential.clone() {
        until_killed(&tasks, "certificate", renewal::follow(credential));
    }
    start(settings, broker, credential, tasks).await
}

/// Starts an agent on a broker that is there: gets a launcher, then starts pulling.
async fn start(
    settings: &Settings,
    broker: Arc<dyn Broker>,
    credential: Option<Arc<Credential>>,
    tasks: Tasks,
) -> Result<Agent, StartError> {
    let (launchers, containers, microvms) = sources(settings)?;
    let (pool, driver) = LauncherPool::connect(launchers).await?;
    tasks.spawn_essential("launcher", end_with(driver, tasks.shutdown().kill_token()));
    let mut tiers = Tiers::default();
    if let Some(source) = containers {
        let (containers, follow) = Containers::new(source, tasks.clone());
        tasks.spawn_essential("container driver", end_with(Box::pin(follow), tasks.shutdown().kill_token()));
        tiers = tiers.with(Isolation::Container, Arc::new(containers));
    }
    if let Some(source) = microvms {
        let (microvms, follow) = Microvms::new(source, tasks.clone());
        tasks.spawn_essential("driver of microVMs", end_with(Box::pin(follow), tasks.shutdown().kill_token()));
        tiers = tiers.with(Isolation::Microvm, Arc::new(microvms));
    }
    let parts = AgentParts {
        broker,
        work_dir: work_dir(&settings.agent),
        private_ip: config::env("FLUX_NODE_PRIVATE_IP"),
        public_ip: config::env("FLUX_NODE_PUBLIC_IP"),
        settings: settings.agent.clone(),
        credential: credential.clone(),
        runtimes: Runtimes::default(),
        tiers,
        tasks,
    };
    let agent = Agent::start(parts, pool).await?;
    if let (Some(address), Some(credential)) = (settings.agent.probe.clone(), credential) {
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

fn until_killed(tasks: &Tasks, name: &'static str, work: impl Future<Output = ()> + Send + 'static) {
    let stop = tasks.shutdown().kill_token();
    tasks.spawn(name, async move {
        tokio::select! {
            () = work => {}
            () = stop.cancelled() => {}
        }
    });
}

/// The agent's id: configured, or made once and kept.
pub fn agent_id(settings: &Settings) -> Result<AgentId, StartError> {
    identity::agent_id(&settings.agent, &work_dir(&settings.agent))
}

/// Runs an agent as a process: connect, start, wait for a signal, drain within the deadline.
pub async fn run(settings: &Settings) -> Result<(), StartError> {
    let tasks = Tasks::new(Shutdown::new());
    let id = agent_id(settings)?;
    let mut options = ConnectOptions::new(&settings.queue.url, format!("flux-agent {id}"));
    options.is_agent = true;
    let credential = credential(settings, &id)?;
    match &credential {
        None => tracing::warn!(
            "`disable_mtls` is set: whoever reaches the queue can do everything, and this agent believes whoever answers"
        ),
        Some(credential) => {
            options.certificate = Some(Arc::new(credential.queue_client()?));
            options.answers = Some(subject::answers_of_agent(&id));
        }
    }
    let broker = flux_broker::connect(options, tasks.clone()).await?;
    let agent = start(settings, Arc::clone(&broker), credential.clone(), tasks.clone()).await?;
    if let Some(credential) = credential {
        let certs = Certs::at(settings.certs_dir());
        until_killed(&tasks, "certificate", renewal::keep(certs, Arc::clone(&broker), id, credential));
    }
    let drain_timeout = Duration::from_secs(settings.agent.drain_timeout);
    let shutdown = Arc::clone(tasks.shutdown());
    // The agent keeps its own deadline, a little before the one that ends the process.
    let drained = agent.drain(drain_timeout);
    let signalled = shutdown.on_signals(drain_timeout + Duration::from_secs(5), drained).await;
    // Some tasks end when nobody can give them work any more.
    drop(agent);
    broker.close().await;
    if tokio::time::timeout(TASKS_END_WITHIN, tasks.wait()).await.is_err() {
        tracing::warn!(tasks = tasks.len(), "some tasks did not end; the process ends without them");
    }
    signalled.map_err(StartError::Signals)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_server_of_a_queue_has_its_address_or_is_named() {
        let mut config = LauncherConfig::new("/nowhere", 1);
        let urls = "nats://127.0.0.1:14222, tls://user:secret@192.0.2.1/,nats://[::1]:6222,nats://[::1],nats://queue.invalid,\
             amqp://guest:guest@192.0.2.2/%2f,amqps://192.0.2.2:6000/flux,amqps://192.0.2.3";
        guard_queue(&mut config, urls);
        let known = [
            "127.0.0.1:14222",
            "192.0.2.1:4222",
            "[::1]:6222",
            "[::1]:4222",
            "192.0.2.2:5672",
            "192.0.2.2:6000",
            "192.0.2.3:5671",
        ];
        assert_eq!(config.servers, known.map(|address| address.parse().expect("an address")));
        let [unknown] = &config.unknown_servers[..] else { panic!("{:?}", config.unknown_servers) };
        assert!(unknown.starts_with("queue.invalid "), "{unknown}");
    }

    #[test]
    fn the_probe_port_is_guarded_where_there_is_one_and_the_gateways_is_not() {
        let guarded = |probe: &str, disable_mtls: bool| {
            let mut settings = Settings { disable_mtls, ..Settings::default() };
            settings.agent.probe = Some(probe.to_owned());
            settings.gateway.listen = "0.0.0.0:7300".to_owned();
            let mut config = LauncherConfig::new("/nowhere", 1);
            guard_servers(&mut config, &settings);
            assert_eq!(config.listeners, [([0, 0, 0, 0], 7300).into()]);
            (config.servers, config.unknown_servers)
        };
        let [queue, probe] = [4222, 50052].map(|port| ([127, 0, 0, 1], port).into());
        assert_eq!(guarded("127.0.0.1:50052", false), (vec![queue, probe], Vec::new()));
        assert_eq!(guarded("127.0.0.1:50052", true), (vec![queue], Vec::new()), "nobody listens there");
        let (servers, unknown) = guarded("127.0.0.1:0", false);
        assert_eq!(servers, [queue]);
        assert!(unknown[0].contains("agent.probe"), "{unknown:?}");
    }
}
