//! Where the stream to the agent comes from.

use std::{
    ffi::OsStr,
    io,
    os::{
        fd::OwnedFd,
        unix::net::{UnixListener, UnixStream},
    },
    path::PathBuf,
};

use nix::libc::VMADDR_CID_ANY;
use socket2::{Domain, SockAddr, Socket, Type};

/// Where to find the agent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Endpoint {
    /// It listens at this Unix socket, and takes one connection.
    Connect(PathBuf),
    /// It connects to this Unix socket.
    Listen(PathBuf),
    /// It connects to this port of the guest's vsock. A listener outlives a snapshot; its connections do not.
    Vsock(u32),
}

impl Endpoint {
    /// `connect PATH`, `listen PATH` or `vsock PORT`.
    pub fn parse(how: &OsStr, wherever: &OsStr) -> Option<Self> {
        match how.to_str()? {
            "connect" => Some(Self::Connect(wherever.into())),
            "listen" => Some(Self::Listen(wherever.into())),
            "vsock" => wherever.to_str()?.parse().ok().map(Self::Vsock),
            _ => None,
        }
    }

    /// Connects, or begins to listen.
    ///
    /// # Errors
    /// There is no such socket, or no such kind of socket on this machine.
    pub fn open(&self) -> io::Result<Streams> {
        match self {
            Self::Connect(path) => Ok(Streams::Open(Some(UnixStream::connect(path)?.into()))),
            Self::Listen(path) => Ok(Streams::Unix(UnixListener::bind(path)?)),
            Self::Vsock(port) => {
                let listener = Socket::new(Domain::VSOCK, Type::STREAM, None)?;
                listener.bind(&SockAddr::vsock(VMADDR_CID_ANY, *port))?;
                listener.listen(1)?;
                Ok(Streams::Vsock(listener))
            }
        }
    }
}

/// Connections to the agent, one after another.
#[derive(Debug)]
pub enum Streams {
    /// One that is open already, and no other.
    Open(Option<OwnedFd>),
    Unix(UnixListener),
    Vsock(Socket),
}

impl Streams {
    /// Waits for the next one; `None` when there will be no other.
    ///
    /// # Errors
    /// The listener failed.
    pub fn next_stream(&mut self) -> io::Result<Option<OwnedFd>> {
        match self {
            Self::Open(stream) => Ok(stream.take()),
            Self::Unix(listener) => Ok(Some(listener.accept()?.0.into())),
            Self::Vsock(listener) => Ok(Some(listener.accept()?.0.into())),
        }
    }
}
