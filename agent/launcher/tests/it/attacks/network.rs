//! With the machine's network: what is on it but not for functions.

use std::os::linux::net::SocketAddrExt as _;
use std::os::unix::net::{SocketAddr, UnixListener};

use flux_launcher::wire::Network;
use flux_launcher::{LauncherConfig, Layer};
use flux_testkit::Cloud;

use super::Arena;
use crate::harness::root_or_skip;

/// Where the server of Flux listens, and one that is anybody's.
pub(super) const OWN: u16 = 4222;
pub(super) const OTHER: u16 = 8088;
/// A port of Flux's whose server is away, so that somebody could take its place.
const VACANT: u16 = 6222;
/// The gateway's: anybody's to connect to, nobody's to listen on.
const GATEWAY: u16 = 8089;

fn guarded(config: &mut LauncherConfig) {
    config.listeners = vec![([127, 0, 0, 1], GATEWAY).into()];
    config.servers = [OWN, VACANT].map(|port| ([127, 0, 0, 1], port).into()).to_vec();
}

fn has_guard(arena: &Arena) -> bool {
    let there = arena.launcher.capabilities.network_guard;
    if !there {
        eprintln!("SKIPPED: this kernel does not guard the network: {:?}", arena.launcher.capabilities.missing);
        assert!(std::env::var_os("CI").is_none_or(|ci| ci != "true"), "CI must have cgroup BPF");
    }
    there
}

#[test]
fn a_server_without_an_address_is_not_said_to_be_guarded() {
    if !root_or_skip() {
        return;
    }
    let Some(arena) = Arena::with(guarded) else { return };
    if !has_guard(&arena) {
        return;
    }
    let unknown = |config: &mut LauncherConfig| {
        guarded(config);
        config.unknown_servers = vec!["queue.invalid".to_owned()];
        config.isolation_required = true;
    };
    let capabilities = Arena::with(unknown).unwrap().launcher.capabilities.clone();
    assert!(!capabilities.network_guard && capabilities.refuses.contains(&Network::Host), "{capabilities:?}");
    let said = |missing: &&flux_launcher::Missing| missing.layer == "network guard";
    let missing = capabilities.missing.iter().find(said).expect("it is missing");
    assert!(missing.reason.contains("queue.invalid"), "{}", missing.reason);
}

pub(super) const METADATA: [&str; 12] = [
    "tcp:169.254.169.254:80",
    "fast:169.254.169.254:80",
    "udp:169.254.169.254:80",
    "connected:169.254.169.254:80",
    "tcp:168.63.129.16:80",
    "tcp:100.100.100.200:80",
    "tcp:[fd00:ec2::254]:80",
    "udp:[fd00:ec2::254]:80",
    "fast:[fd00:ec2::254]:80",
    "tcp:[::ffff:169.254.169.254]:80",
    "udp:[::ffff:169.254.169.254]:80",
    "connected:[::ffff:168.63.129.16]:80",
];

#[test]
fn the_clouds_metadata_is_out_of_reach() {
    if !root_or_skip() {
        return;
    }
    let _cloud = Cloud::start(&[OWN, OTHER]);
    let Some(mut arena) = Arena::with(guarded) else { return };
    if !has_guard(&arena) {
        return;
    }
    assert_eq!(arena.is_held("reach", &METADATA), METADATA.len());
    // Names are asked for at the same address.
    arena.reaches("reach", &["tcp:169.254.169.254:53", "udp:169.254.169.254:53"]);
    let mut open = Arena::with(|config| config.without = vec![Layer::NetworkGuard]).unwrap();
    assert_eq!(open.reaches("reach", &METADATA).len(), METADATA.len());
}

#[test]
fn the_brokers_port_is_out_of_reach_at_every_address() {
    if !root_or_skip() {
        return;
    }
    let _cloud = Cloud::start(&[OWN, OTHER]);
    let Some(mut arena) = Arena::with(guarded) else { return };
    if !has_guard(&arena) {
        return;
    }
    let hosts =
        ["127.0.0.1", "127.9.9.9", "0.0.0.0", "192.0.2.7", "[::1]", "[::]", "[2001:db8::7]", "[::ffff:127.0.0.1]"];
    let at = |kind: &str, port: u16| hosts.map(|host| format!("{kind}:{host}:{port}"));
    for (kind, port) in [("tcp", OWN), ("fast", OWN), ("udp", OWN), ("bind", VACANT), ("bind", GATEWAY)] {
        let targets = at(kind, port);
        let targets: Vec<&str> = targets.iter().map(String::as_str).collect();
        assert_eq!(arena.is_held("reach", &targets), hosts.len(), "{kind}");
    }
    let targets = at("tcp", OTHER);
    let targets: Vec<&str> = targets.iter().map(String::as_str).collect();
    assert_eq!(arena.reaches("reach", &targets).len(), hosts.len(), "what is anybody's is there");
    let mut open = Arena::with(|config| {
        guarded(config);
        config.without = vec![Layer::NetworkGuard];
    })
    .unwrap();
    arena.reaches("reach", &[&format!("bind:127.0.0.1:{}", GATEWAY + 1)]);
    for (kind, port) in [("tcp", OWN), ("bind", VACANT), ("bind", GATEWAY)] {
        let targets = at(kind, port);
        let targets: Vec<&str> = targets.iter().map(String::as_str).collect();
        open.reaches("reach", &targets);
    }
}

#[test]
fn sockets_of_docker_and_dbus_are_not_in_the_view() {
    let Some(mut arena) = Arena::new() else { return };
    let path = format!("/run/flux-attack-{}.sock", std::process::id());
    let listener = UnixListener::bind(&path).unwrap();
    std::fs::set_permissions(&path, std::os::unix::fs::PermissionsExt::from_mode(0o666)).unwrap();
    let ours = format!("unix:{path}");
    let targets = [
        ours.as_str(),
        "unix:/run/docker.sock",
        "unix:/var/run/docker.sock",
        "unix:/run/containerd/containerd.sock",
        "unix:/run/dbus/system_bus_socket",
        "unix:/var/run/dbus/system_bus_socket",
        "unix:/run/systemd/private",
        "unix:/run/systemd/journal/socket",
    ];
    assert_eq!(arena.is_held("reach", &targets), targets.len());
    let mut open = Arena::with(|config| config.slots = false).unwrap();
    assert_eq!(open.reaches("reach", &[&ours]).len(), 1);
    drop(listener);
    std::fs::remove_file(path).unwrap();
}

#[test]
fn abstract_sockets_are_out_of_reach() {
    let Some(mut arena) = Arena::new() else { return };
    if !arena.launcher.capabilities.landlock_scopes {
        eprintln!("SKIPPED: this kernel has no Landlock scopes: {:?}", arena.launcher.capabilities.missing);
        return;
    }
    let name = format!("flux-attack-{}", std::process::id());
    let address = SocketAddr::from_abstract_name(&name).unwrap();
    let _listener = UnixListener::bind_addr(&address).unwrap();
    // Another function's, also one that the same thread of the launcher started.
    let other = format!("{name}-function");
    let script = format!(
        "use Socket; socket(S, PF_UNIX, SOCK_STREAM, 0); bind(S, pack('Sa*', 1, \"\\0{other}\")) or die; \
         listen(S, 9); $| = 1; print \"there\\n\"; sleep 600"
    );
    let mut request = arena.launcher.request("/usr/bin/perl", &["-e", &script]);
    request.slot_key = "victim@1".to_owned();
    let victim = arena.launcher.start_one(&request, b"").unwrap();
    assert_eq!(victim.line(), "there");
    let targets = [format!("abstract:{name}"), format!("abstract:{other}")];
    let targets = [targets[0].as_str(), &targets[1]];
    assert_eq!(arena.is_held("reach", &targets), 2);
    let mut open = Arena::with(|config| config.without = vec![Layer::Landlock]).unwrap();
    assert_eq!(open.reaches("reach", &targets).len(), 2);
    arena.launcher.kill(victim.id, libc::SIGKILL);
}

#[test]
fn without_a_network_there_is_nothing_to_reach() {
    if !root_or_skip() {
        return;
    }
    let _cloud = Cloud::start(&[OWN, OTHER]);
    let Some(mut arena) = Arena::with(|config| config.without = vec![Layer::NetworkGuard, Layer::Landlock]) else {
        return;
    };
    let name = format!("flux-alone-{}", std::process::id());
    let _listener = UnixListener::bind_addr(&SocketAddr::from_abstract_name(&name).unwrap()).unwrap();
    let of_ours = format!("abstract:{name}");
    let targets: Vec<&str> = METADATA.into_iter().filter(|t| t.starts_with("tcp")).chain([of_ours.as_str()]).collect();
    let mut request = arena.attack("reach", &targets);
    request.network = flux_launcher::wire::Network::None;
    assert_eq!(arena.request_is_held(&request), targets.len());
}
