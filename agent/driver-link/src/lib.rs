//! What agents and drivers speak over: a socket of packets in the event loop, a JSON text a packet. Both ends are of one build. And
//! what drivers share: how they open an agent's folders.

mod code;

use std::{
    io,
    os::fd::{AsFd as _, OwnedFd},
};

use flux_launcher::socket;
use serde::{Serialize, de::DeserializeOwned};
use tokio::io::{Interest, unix::AsyncFd};

pub use code::OpenCode;

/// The largest packet.
pub const PACKET: usize = 32 << 10;

/// Turns this process into a driver if it was started with `argument`; to be called first in `main`, before any thread exists.
pub fn run_if_driver<C: DeserializeOwned>(
    argument: &str,
    name: &str,
    drive: impl FnOnce(C, OwnedFd) -> io::Result<()>,
) {
    let mut args = std::env::args_os().skip(1);
    if args.next().is_none_or(|first| first != argument) {
        return;
    }
    let number = args.next().and_then(|number| number.to_str()?.parse().ok());
    let config = args.next().and_then(|json| serde_json::from_slice(json.as_encoded_bytes()).ok());
    let (Some(number), Some(config)) = (number, config) else {
        eprintln!("{name}: it takes a descriptor and its configuration, which only Flux passes");
        std::process::exit(2);
    };
    let code = match socket::inherited(number).and_then(|socket| drive(config, socket)) {
        Ok(()) => 0,
        Err(error) => {
            eprintln!("{name}: {error}");
            1
        }
    };
    std::process::exit(code)
}

/// One end of the link between an agent and a driver.
#[derive(Debug)]
pub struct Packets(AsyncFd<OwnedFd>);

impl Packets {
    /// Takes over an open socket.
    ///
    /// # Errors
    /// The event loop does not take it.
    // Deprecated for descriptors that may be closed behind the loop's back, which an owned one is not.
    #[allow(deprecated)]
    pub fn try_new(socket: OwnedFd) -> io::Result<Self> {
        socket::set_nonblocking(socket.as_fd())?;
        AsyncFd::with_interest(socket, Interest::READABLE | Interest::WRITABLE).map(Self)
    }

    /// Sends one packet, with a descriptor where there is one.
    ///
    /// # Errors
    /// The other end is closed, or the packet is too large.
    pub async fn send(&self, what: &impl Serialize, descriptor: Option<&OwnedFd>) -> io::Result<()> {
        let bytes = serde_json::to_vec(what)?;
        if bytes.len() > PACKET {
            return Err(io::Error::other(format!("a packet of {} bytes, and at most {PACKET} are sent", bytes.len())));
        }
        let descriptors: Vec<_> = descriptor.iter().map(|descriptor| descriptor.as_fd()).collect();
        loop {
            let mut ready = self.0.writable().await?;
            match ready.try_io(|socket| socket::send(socket.as_fd(), &bytes, &descriptors)) {
                Ok(result) => return result,
                Err(_would_block) => {}
            }
        }
    }

    /// Sends one packet where there is room for it at once.
    pub fn try_send(&self, what: &impl Serialize) -> io::Result<()> {
        socket::try_send(self.0.get_ref().as_fd(), &serde_json::to_vec(what)?, &[])
    }

    /// The next packet, and the descriptor that came with it; `None` when the other end is closed.
    ///
    /// # Errors
    /// The socket failed, or what came is no packet of this protocol.
    pub async fn receive<T: DeserializeOwned>(&self) -> io::Result<Option<(T, Option<OwnedFd>)>> {
        let mut buffer = vec![0; PACKET];
        loop {
            let mut ready = self.0.readable().await?;
            match ready.try_io(|socket| socket::recv(socket.as_fd(), &mut buffer)) {
                Ok(Ok(packet)) if packet.len == 0 => return Ok(None),
                Ok(Ok(packet)) => {
                    let said = serde_json::from_slice(buffer.get(..packet.len).unwrap_or_default())?;
                    return Ok(Some((said, packet.fds.into_iter().next())));
                }
                Ok(Err(error)) if error.kind() == io::ErrorKind::ConnectionReset => return Ok(None),
                Ok(Err(error)) => return Err(error),
                Err(_would_block) => {}
            }
        }
    }
}
