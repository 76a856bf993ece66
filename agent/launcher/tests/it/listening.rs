//! A worker that is spoken to over TCP: it alone reaches the socket that the launcher listens on for it.

use std::io::{BufRead as _, BufReader, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};

use flux_launcher::wire::Network;
use flux_launcher::{LauncherConfig, UidRange};

use crate::harness::Launched;

/// Says hello at its own server, then connects where it is told to, and says how that went.
const WORKER: &str = r#"
import os, socket
host, port = os.environ["AWS_LAMBDA_RUNTIME_API"].rsplit(":", 1)
own = socket.create_connection((host, int(port)))
own.sendall(b"hello from %s\n" % os.environ["LAMBDA_TASK_ROOT"].encode())
for line in own.makefile():
    host, port = line.rsplit(":", 1)
    try:
        socket.create_connection((host, int(port)), 5).close()
        said = "connected"
    except OSError as error:
        said = type(error).__name__
    own.sendall(said.encode() + b"\n")
"#;

fn with_own_uids(config: &mut LauncherConfig) {
    config.runner_uids = Some(UidRange { first: 1_879_048_192, count: 65_536 });
}

struct Spoken {
    address: SocketAddr,
    _listener: TcpListener,
    stream: BufReader<TcpStream>,
}

impl Spoken {
    fn new(launcher: &mut Launched, network: Network) -> Self {
        let (_, listener) = launcher.start_listening(network, WORKER);
        let address = listener.local_addr().unwrap();
        let (stream, _) = listener.accept().unwrap();
        let mut spoken = Spoken { address, _listener: listener, stream: BufReader::new(stream) };
        let code = if launcher.capabilities.mount_namespace { "/var/task" } else { "/" };
        assert!(spoken.line().starts_with(&format!("hello from {code}")));
        spoken
    }

    fn line(&mut self) -> String {
        let mut line = String::new();
        self.stream.read_line(&mut line).unwrap();
        line.trim().to_owned()
    }

    fn connects_to(&mut self, address: SocketAddr) -> String {
        self.stream.get_ref().write_all(format!("{address}\n").as_bytes()).unwrap();
        self.line()
    }
}

#[test]
fn each_worker_reaches_its_own_server_and_no_others() {
    let mut launcher = Launched::with(with_own_uids);
    let mut one = Spoken::new(&mut launcher, Network::Host);
    let mut other = Spoken::new(&mut launcher, Network::Host);
    assert_ne!(one.address.ip(), other.address.ip());
    assert!(one.address.ip().is_loopback());
    let port = TcpListener::bind("127.0.0.1:0").unwrap();
    assert_eq!(one.connects_to(port.local_addr().unwrap()), "connected", "the machine's network is open otherwise");
    let capabilities = &launcher.capabilities;
    if !(capabilities.network_guard && capabilities.own_uids) {
        assert!(std::env::var_os("CI").is_none() || !capabilities.root, "CI must have both");
        eprintln!("not tested: no network guard or no users of their own here");
        return;
    }
    for (worker, address) in [(&mut one, other.address), (&mut other, port.local_addr().unwrap())] {
        let expected = if address.ip().to_string() == "127.0.0.1" { "connected" } else { "PermissionError" };
        assert_eq!(worker.connects_to(address), expected, "{address}");
    }
    assert_eq!(other.connects_to(one.address), "PermissionError");
}

#[test]
fn one_without_a_network_is_spoken_to_inside_its_own() {
    let mut launcher = Launched::start();
    if !launcher.capabilities.net_namespace {
        assert!(std::env::var_os("CI").is_none() || !launcher.capabilities.root, "CI must have network namespaces");
        eprintln!("not tested: no network namespaces here");
        return;
    }
    let mut worker = Spoken::new(&mut launcher, Network::None);
    assert!(TcpStream::connect(worker.address).is_err(), "nobody outside reaches it");
    assert_eq!(worker.connects_to(worker.address), "connected");
    let outside = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    assert_eq!(worker.connects_to(outside), "ConnectionRefusedError");
}

#[test]
fn the_same_without_slots() {
    let mut launcher = Launched::with(|config| config.slots = false);
    let mut one = Spoken::new(&mut launcher, Network::Host);
    let own = one.address;
    assert_eq!(one.connects_to(own), "connected");
}
