//! Where things listen: found to be free before anything starts.

use std::{
    io::{self, ErrorKind},
    net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, ToSocketAddrs as _},
    os::{
        linux::net::SocketAddrExt as _,
        unix::net::{SocketAddr as UnixAddr, UnixListener},
    },
    time::{Duration, Instant},
};

use flux_runtime::{Settings, settings::QueueSettings};

use super::data_dir::{DataDir, RETRY};
use crate::{error::CliError, keys};

/// A process that was killed a moment ago still has its ports for a moment.
const FREE_WITHIN: Duration = Duration::from_millis(1500);
const ATTEMPTS: u32 = 100;

/// The HTTP API's address, free now.
pub(super) fn http(listen: &str) -> Result<SocketAddr, CliError> {
    let address = resolve(listen, "gateway.listen")?;
    free_soon(address).map_err(|source| match source.kind() {
        ErrorKind::AddrInUse => CliError::problem(
            format!("{address} is in use by another program"),
            format!(
                "stop that one (is another `flux up` running?), or listen elsewhere: --listen {}:0 takes any free port",
                address.ip()
            ),
        ),
        _ => CliError::local(format!("{address} cannot be listened on"), source),
    })
}

/// The queue's address, and a claim on it.
#[derive(Debug)]
pub(super) struct Queue {
    pub(super) listen: SocketAddr,
    /// Something the user should know.
    pub(super) note: Option<String>,
    /// Holds the port among several `flux up` of this machine until `nats-server` has it, and while it restarts.
    _claim: UnixListener,
}

impl Queue {
    /// Where this machine's processes reach it.
    pub(super) fn url(&self) -> String {
        let host = if self.listen.ip().is_unspecified() { IpAddr::V4(Ipv4Addr::LOCALHOST) } else { self.listen.ip() };
        format!("nats://{}", SocketAddr::new(host, self.listen.port()))
    }

    /// Under which others reach it, as far as that is known.
    pub(super) fn name(&self) -> Option<String> {
        let ip = self.listen.ip();
        (!ip.is_unspecified() && !ip.is_loopback()).then(|| ip.to_string())
    }

    pub(super) fn is_public(&self) -> bool {
        !self.listen.ip().is_loopback()
    }
}

/// Where the user said: there or an error. Otherwise the port of the last time, the usual one, or any free one.
pub(super) fn queue(settings: &Settings, given: Option<&str>, data: &DataDir) -> Result<Queue, CliError> {
    let usual = QueueSettings::default().url;
    let configured = Some(settings.queue.url.as_str()).filter(|url| *url != usual);
    if let Some(text) = given.or(configured) {
        let listen = resolve(text.trim_start_matches("nats://"), "queue.url")?;
        let claim = free_soon(listen).and_then(|listen| claim(listen.port()));
        let claim = claim.map_err(|source| match source.kind() {
            ErrorKind::AddrInUse => CliError::problem(
                format!("the queue's address {listen} is in use by another program"),
                "stop that one, or choose another: --queue-listen HOST:PORT, or `queue.url`",
            ),
            _ => CliError::local(format!("the queue cannot listen on {listen}"), source),
        })?;
        return Ok(Queue { listen, note: None, _claim: claim });
    }
    let file = data.run("queue-port");
    let remembered = data.read(&file).ok().flatten().and_then(|text| text.trim().parse::<u16>().ok());
    let loopback = |port: u16| SocketAddr::from((Ipv4Addr::LOCALHOST, port));
    let usual = resolve(usual.trim_start_matches("nats://"), "queue.url")?;
    let mut taken =
        remembered.and_then(|port| take(loopback(port), FREE_WITHIN)).or_else(|| take(usual, Duration::ZERO));
    for _ in 0..ATTEMPTS {
        if taken.is_some() {
            break;
        }
        taken = any_port().ok().and_then(|port| take(loopback(port), Duration::ZERO));
    }
    let Some((listen, claim)) = taken else {
        return Err(CliError::problem(
            "no port is free for the queue",
            "free one, or choose it: --queue-listen HOST:PORT",
        ));
    };
    keys::replace(&file, &listen.port().to_string(), keys::SECRET, None)
        .map_err(|source| CliError::local(format!("{} cannot be written", file.display()), source))?;
    let moved = listen != usual && remembered.is_none();
    let note =
        moved.then(|| format!("{usual} is taken, so the queue listens on {listen} (remembered for the next start)"));
    Ok(Queue { listen, note, _claim: claim })
}

fn take(address: SocketAddr, within: Duration) -> Option<(SocketAddr, UnixListener)> {
    let claim = claim(address.port()).ok()?;
    free(address, within).ok()?;
    Some((address, claim))
}

/// Among several Flux that start at the same moment one gets a port: an abstract socket's name is taken as long as
/// its process lives.
fn claim(port: u16) -> io::Result<UnixListener> {
    let begun = Instant::now();
    loop {
        let name = UnixAddr::from_abstract_name(format!("flux-queue-{port}"))?;
        match UnixListener::bind_addr(&name) {
            Err(error) if error.kind() == ErrorKind::AddrInUse && begun.elapsed() < FREE_WITHIN / 10 => {
                std::thread::sleep(RETRY);
            }
            done => return done,
        }
    }
}

fn free_soon(address: SocketAddr) -> io::Result<SocketAddr> {
    free(address, FREE_WITHIN)
}

/// The address, with the port chosen where it is 0, once nobody listens there.
fn free(address: SocketAddr, within: Duration) -> io::Result<SocketAddr> {
    let begun = Instant::now();
    loop {
        match TcpListener::bind(address) {
            Ok(listener) => return listener.local_addr(),
            Err(error) if error.kind() == ErrorKind::AddrInUse && begun.elapsed() < within => std::thread::sleep(RETRY),
            Err(error) => return Err(error),
        }
    }
}

fn any_port() -> io::Result<u16> {
    Ok(TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?.local_addr()?.port())
}

fn resolve(text: &str, field: &str) -> Result<SocketAddr, CliError> {
    let wrong = || CliError::usage(format!("`{field}`: `{text}` is not HOST:PORT, such as 127.0.0.1:7227"));
    text.to_socket_addrs().map_err(|_| wrong())?.next().ok_or_else(wrong)
}
