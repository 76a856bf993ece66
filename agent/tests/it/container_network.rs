//! What containers with a network reach, on a real bridge in a network namespace with a cloud in it.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use bollard::{
    models::{ContainerCreateBody, HostConfig},
    query_parameters::{
        CreateContainerOptionsBuilder, LogsOptionsBuilder, RemoveContainerOptionsBuilder, WaitContainerOptionsBuilder,
    },
};
use flux_agent::Start;
use flux_containers::DriverConfig;
use flux_launcher::{LauncherConfig, wire::Network};
use flux_runtime::Settings;
use flux_testkit::{Cloud, Dockerd, eventually, processes_matching};
use futures::StreamExt as _;

use crate::{
    sandboxes::{Engine, PROGRAM},
    world::SOON,
};

const ATTACKS: &str = include_str!("../../launcher/tests/attacks/attack.py");
const PYTHON: &str = "/usr/bin/python3";
const LAYER: &str = "container_network_guard";
/// Flux's ports, and one that is anybody's.
const QUEUE: u16 = 4222;
const PROBE: u16 = 50052;
const GATEWAY: u16 = 7227;
const OTHER: u16 = 8088;

/// By IPv4 they are reached without the guard; of IPv6 Docker's bridge has nothing, and the guard refuses before the network does.
const METADATA: [&str; 7] = [
    "tcp:169.254.169.254:80",
    "fast:169.254.169.254:80",
    "udp:169.254.169.254:80",
    "connected:169.254.169.254:80",
    "tcp:168.63.129.16:80",
    "tcp:100.100.100.200:80",
    "udp:100.100.100.200:80",
];
const METADATA_V6: [&str; 4] = [
    "tcp:[fd00:ec2::254]:80",
    "udp:[fd00:ec2::254]:80",
    "tcp:[::ffff:169.254.169.254]:80",
    "udp:[::ffff:169.254.169.254]:80",
];

/// Flux as its configuration has it: what functions are kept from is found there, for both tiers.
fn of_flux() -> LauncherConfig {
    let mut settings = Settings::default();
    settings.queue.url = format!("nats://127.0.0.1:{QUEUE}");
    settings.agent.probe = Some(format!("0.0.0.0:{PROBE}"));
    settings.gateway.listen = format!("0.0.0.0:{GATEWAY}");
    let mut launcher = LauncherConfig::new("/nowhere", 1);
    flux_agent::guard_servers(&mut launcher, &settings);
    launcher
}

fn flux(config: &mut DriverConfig) {
    config.servers = of_flux().servers;
}

/// A function of Flux's that tries.
fn trying(engine: &Engine, targets: &[&str]) -> Start {
    let arguments: Vec<&str> = ["-I", "-c", ATTACKS, "reach"].iter().chain(targets).copied().collect();
    let mut start = engine.start(&arguments);
    start.request.program = PYTHON.to_owned();
    start.request.network = Network::Host;
    start.request.limits.memory_bytes = 256 << 20;
    start
}

/// What it finds out.
async fn tried(engine: &Engine, targets: &[&str]) -> Vec<String> {
    found_out(engine, trying(engine, targets), targets.len()).await
}

async fn found_out(engine: &Engine, start: Start, count: usize) -> Vec<String> {
    let ran = engine.run_as(start, b"").await.expect("it runs");
    assert_eq!(ran.stderr, "", "{}", ran.stdout);
    lines(&ran.stdout, count)
}

/// What any other container of the same Docker finds out.
async fn tried_by_another(docker: &Dockerd, targets: &[&str]) -> Vec<String> {
    const NAME: &str = "another";
    let command = [PYTHON, "-I", "-c", ATTACKS, "reach"];
    let host_config = HostConfig { network_mode: Some("bridge".to_owned()), ..HostConfig::default() };
    let body = ContainerCreateBody {
        image: Some(Dockerd::IMAGE.to_owned()),
        cmd: Some(command.iter().chain(targets).map(|&word| word.to_owned()).collect()),
        host_config: Some(host_config),
        ..ContainerCreateBody::default()
    };
    let docker = docker.docker().await;
    let options = CreateContainerOptionsBuilder::new().name(NAME).build();
    docker.create_container(Some(options), body).await.expect("created");
    docker.start_container(NAME, None).await.expect("started");
    let wait = WaitContainerOptionsBuilder::new().condition("not-running").build();
    docker.wait_container(NAME, Some(wait)).next().await.expect("an end").expect("a good one");
    let mut said = String::new();
    let mut log = docker.logs(NAME, Some(LogsOptionsBuilder::new().stdout(true).build()));
    while let Some(piece) = log.next().await {
        said.push_str(&piece.expect("a log").to_string());
    }
    docker
        .remove_container(NAME, Some(RemoveContainerOptionsBuilder::new().force(true).build()))
        .await
        .expect("removed");
    lines(&said, targets.len())
}

fn lines(said: &str, count: usize) -> Vec<String> {
    assert_eq!(said.lines().count(), count, "{said}");
    said.lines().map(str::to_owned).collect()
}

fn are_reached(said: &[String]) {
    assert!(said.iter().all(|line| line.starts_with("REACHED ")), "{said:#?}");
}

fn are_refused(said: &[String]) {
    let refused = |line: &String| line.starts_with("HELD ") && line.ends_with("Operation not permitted");
    assert!(said.iter().all(refused), "{said:#?}");
}

/// A driver's own word, which is in the names of all that it makes.
fn owner_in(work: &Path) -> String {
    fs::read_to_string(work.join("owner")).expect("a driver was there").trim().to_owned()
}

/// Cgroups that drivers of this owner made.
fn cgroups_of(owner: &str) -> Vec<PathBuf> {
    let mounts = fs::read_to_string("/proc/self/mountinfo").expect("read");
    let point = mounts.lines().find(|line| line.contains(" - cgroup2 ")).and_then(|line| line.split(' ').nth(4));
    let (mut found, mut folders) = (Vec::new(), Vec::from_iter(point.map(PathBuf::from)));
    while let Some(folder) = folders.pop() {
        let inside = fs::read_dir(&folder).into_iter().flatten().flatten();
        folders
            .extend(inside.filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir())).map(|entry| entry.path()));
        if folder.to_string_lossy().contains(owner) {
            found.push(folder);
        }
    }
    found
}

#[test]
fn a_container_with_a_network_reaches_neither_the_clouds_metadata_nor_the_queue() {
    let _cloud = Cloud::start(&[QUEUE, PROBE, GATEWAY, OTHER]);
    // Its threads, and what they start, are in the namespace too.
    let runtime =
        tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().expect("a runtime");
    runtime.block_on(async {
        let docker = Dockerd::start_with_bridge().await;
        what_is_held(&docker).await;
        what_processes_are_kept_from_as_well().await;
        what_is_left(&docker).await;
        what_is_not_guarded(&docker).await;
        what_is_not_seen(&docker).await;
        docker.until_empty().await;
    });
}

async fn what_is_held(docker: &Dockerd) {
    let mut work = PathBuf::new();
    let (engine, offer) = Engine::container_with(docker, |config| {
        flux(config);
        config.isolation_required = true;
        work.clone_from(&config.work_dir);
    })
    .await;
    assert!(offer.missing.iter().all(|missing| missing.layer != LAYER), "{offer:?}");
    assert!(!offer.refuses.contains(&Network::Host), "{offer:?}");
    let hosts = [Dockerd::GATEWAY, Cloud::MACHINE[0], "[::ffff:192.0.2.7]"];
    let own = [at(&hosts, QUEUE), at(&hosts, PROBE)].concat();
    let open: Vec<&str> = METADATA.into_iter().chain(own.iter().map(String::as_str)).collect();
    are_reached(&tried_by_another(docker, &open).await);
    let held: Vec<&str> = open.into_iter().chain(METADATA_V6).collect();
    are_refused(&tried(&engine, &held).await);
    // Names are asked for at the metadata's address, and what is anybody's is there: the gateway is.
    let others = [at(&hosts[..2], OTHER), at(&hosts[..2], GATEWAY)].concat();
    let mut allowed: Vec<&str> = others.iter().map(String::as_str).collect();
    allowed.extend(["tcp:169.254.169.254:53", "udp:169.254.169.254:53"]);
    are_reached(&tried(&engine, &allowed).await);
    let owner = owner_in(&work);
    drop(engine);
    eventually(SOON, "no cgroup of a driver that ended", || std::future::ready(cgroups_of(&owner).is_empty())).await;
}

fn at(hosts: &[&str], port: u16) -> Vec<String> {
    let of = |kind: &'static str| hosts.iter().map(move |host| format!("{kind}:{host}:{port}"));
    ["tcp", "fast", "udp"].into_iter().flat_map(of).collect()
}

/// From the same, by the same list.
async fn what_processes_are_kept_from_as_well() {
    let engine = Engine::process_with(|config| {
        let LauncherConfig { servers, listeners, .. } = of_flux();
        (config.servers, config.listeners) = (servers, listeners);
    })
    .await;
    let hosts = [Dockerd::GATEWAY, Cloud::MACHINE[0], "[::ffff:192.0.2.7]", "127.0.0.1"];
    let own = [at(&hosts, QUEUE), at(&hosts, PROBE)].concat();
    let taken = [QUEUE, PROBE, GATEWAY].map(|port| format!("bind:127.0.0.1:{port}"));
    let held: Vec<&str> = METADATA.into_iter().chain(own.iter().chain(&taken).map(String::as_str)).collect();
    are_refused(&tried(&engine, &held).await);
    let others = [at(&hosts, OTHER), at(&hosts, GATEWAY)].concat();
    are_reached(&tried(&engine, &others.iter().map(String::as_str).collect::<Vec<_>>()).await);
}

async fn what_is_left(docker: &Dockerd) {
    let mut work = PathBuf::new();
    let (engine, _) = Engine::container_with(docker, |config| {
        flux(config);
        work.clone_from(&config.work_dir);
    })
    .await;
    let mut start = engine.start(&["-c", "echo ready; exec sleep 300"]);
    start.request.network = Network::Host;
    let running = engine.running(start, b"", false).await.expect("it runs");
    assert_eq!(running.line().await, "ready");
    let before = docker.containers().await;
    let mark = work.to_string_lossy().into_owned();
    let drivers: Vec<_> = processes_matching("__containers");
    let driver = drivers.into_iter().find(|process| process.command.contains(&mark)).expect("a driver");
    let cgroups = cgroups_of(&owner_in(&work));
    driver.kill9();
    eventually(SOON * 3, "what a killed driver left to be removed by the next", || async {
        let left =
            cgroups.iter().filter(|cgroup| cgroup.parent().is_some_and(|base| cgroups.contains(&base.to_owned())));
        left.into_iter().all(|cgroup| !cgroup.exists())
            && docker.containers().await.iter().all(|name| !before.contains(name))
    })
    .await;
    drop(running);
    // The next one guards as well.
    let held = tokio::time::timeout(SOON * 3, async {
        loop {
            let mut start = engine.start(&["-c", "echo again"]);
            start.request.network = Network::Host;
            if engine.run_as(start, b"").await.is_ok() {
                break tried(&engine, &METADATA).await;
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    });
    are_refused(&held.await.expect("another driver"));
}

async fn what_is_not_guarded(docker: &Dockerd) {
    let (engine, offer) = Engine::container_with(docker, |config| {
        flux(config);
        config.unknown_servers = vec!["queue.invalid".to_owned()];
        config.isolation_required = true;
    })
    .await;
    let missing = offer.missing.iter().find(|missing| missing.layer == LAYER).expect("it is said");
    assert!(missing.reason.contains("queue.invalid"), "{missing:?}");
    assert!(offer.refuses.contains(&Network::Host), "{offer:?}");
    let mut start = engine.start(&["-c", "echo ran"]);
    start.request.network = Network::Host;
    let refused = engine.run_as(start, b"").await.expect_err("refused");
    assert!(refused.to_string().contains("isolation_required"), "{refused}");
}

/// A cgroup that a driver enters, to have a namespace from there on; removed when dropped.
struct Apart {
    cgroup: PathBuf,
    program: tempfile::TempPath,
}

impl Apart {
    fn new() -> Self {
        let mounts = fs::read_to_string("/proc/self/mountinfo").expect("read");
        let mount = mounts.lines().find(|line| line.contains(" - cgroup2 "));
        let point = mount.and_then(|line| line.split(' ').nth(4)).expect("cgroups of version 2");
        let cgroup = Path::new(point).join(format!("flux-test-apart-{}", std::process::id()));
        fs::create_dir(&cgroup).expect("a cgroup, which needs root");
        let script = format!(
            "#!/bin/sh\nset -e\necho $$ > {}/cgroup.procs\n\
             exec /usr/bin/unshare --cgroup --mount /bin/sh -ec '\n\
             /usr/bin/umount --lazy {point}\n\
             /usr/bin/mount -t cgroup2 cgroup2 {point}\nexec {PROGRAM} \"$@\"' sh \"$@\"\n",
            cgroup.display()
        );
        let program = tempfile::NamedTempFile::new().expect("a file").into_temp_path();
        // Not written by this process: it could not be run while somebody whom that started meanwhile has it open.
        let written = Command::new("/bin/sh")
            .args(["-c", "printf %s \"$1\" > \"$2\" && chmod 755 \"$2\"", "sh", &script])
            .arg(&program)
            .status();
        assert!(written.expect("sh runs").success());
        Self { cgroup, program }
    }
}

impl Drop for Apart {
    fn drop(&mut self) {
        let until = std::time::Instant::now() + SOON;
        while fs::remove_dir(&self.cgroup).is_err() && std::time::Instant::now() < until {
            std::thread::sleep(Duration::from_millis(10));
        }
    }
}

/// As where Flux is in a container with a cgroup namespace of its own, and Docker is not.
async fn what_is_not_seen(docker: &Dockerd) {
    let apart = Apart::new();
    let (engine, offer) = Engine::container_by(&apart.program, docker, flux).await;
    let missing = offer.missing.iter().find(|missing| missing.layer == LAYER).expect("it is said");
    assert!(missing.reason.contains("--cgroupns=host"), "{missing:?}");
    assert_eq!(offer.refuses, [], "nothing was required");
    // Without the guard it runs. (Its code is mounted where the driver alone sees it here.)
    let mut start = trying(&engine, &METADATA);
    start.code = None;
    are_reached(&found_out(&engine, start, METADATA.len()).await);
}
