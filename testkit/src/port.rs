//! Ports for servers that a test starts, stops and starts again on the same one.
//!
//! Asking the kernel for any free port is not enough for that: it gives one of the range from which outgoing
//! connections take theirs, so that while the server is down a client that tries to reconnect can take the port
//! itself, and even connect to itself. These are from below that range, and held for the life of the test process
//! by a file lock, since nextest runs every test in a process of its own, many at a time.

use std::{
    fs::{File, TryLockError},
    net::{Ipv4Addr, TcpListener},
    path::PathBuf,
    process,
    sync::Mutex,
};

const LOWEST: u16 = 12_000;
/// What Linux begins outgoing connections at unless told otherwise.
const USUAL_EPHEMERAL: u16 = 32_768;

/// The locks of the ports that this process was given. Closing one would free the port.
static HELD: Mutex<Vec<File>> = Mutex::new(Vec::new());

/// A port on 127.0.0.1 that nothing listens on and that no other test gets while this process lives.
#[allow(clippy::missing_panics_doc)] // as everything here
pub fn free_port() -> u16 {
    let locks = lock_dir();
    let highest = lowest_ephemeral().clamp(LOWEST + 1000, USUAL_EPHEMERAL);
    let span = u32::from(highest - LOWEST);
    // Each process starts looking elsewhere, so that they seldom meet.
    let start = process::id().wrapping_mul(2_654_435_761) % span;
    for step in 0..span {
        let offset = u16::try_from((start + step) % span).unwrap_or_default();
        let port = LOWEST + offset;
        let lock = File::create(locks.join(port.to_string())).expect("cannot write a port's lock file");
        match lock.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => continue,
            Err(TryLockError::Error(error)) => panic!("cannot lock a port's file: {error}"),
        }
        if TcpListener::bind((Ipv4Addr::LOCALHOST, port)).is_ok() {
            HELD.lock().unwrap_or_else(std::sync::PoisonError::into_inner).push(lock);
            return port;
        }
    }
    panic!("no free port between {LOWEST} and {highest} on 127.0.0.1");
}

fn lock_dir() -> PathBuf {
    // Per user: a directory that root made cannot be written by anyone else.
    let dir = std::env::temp_dir().join(format!("flux-testkit-ports-{}", nix::unistd::getuid()));
    std::fs::create_dir_all(&dir).expect("cannot make the directory of port locks");
    dir
}

fn lowest_ephemeral() -> u16 {
    std::fs::read_to_string("/proc/sys/net/ipv4/ip_local_port_range")
        .ok()
        .and_then(|range| range.split_whitespace().next()?.parse().ok())
        .unwrap_or(USUAL_EPHEMERAL)
}
