//! The connections of one worker to its Runtime API.

use std::{
    io,
    net::{SocketAddr, TcpListener as StdListener},
    os::fd::{AsFd as _, AsRawFd as _, OwnedFd},
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
};

use flux_protocol::limits;
use hyper::{server::conn::http1, service::service_fn};
use hyper_util::rt::TokioIo;
use nix::{
    errno::Errno,
    sys::socket::{MsgFlags, recv},
};
use tokio::net::{TcpListener, TcpStream};

use super::{desk::Desk, owner};

/// Serves one connection to its end. What went wrong with it is between the worker and itself.
type Serving = Pin<Box<dyn Future<Output = ()> + Send>>;

struct Link {
    serving: Serving,
    /// The same socket, to look at it while it is not served.
    socket: OwnedFd,
}

impl Link {
    /// Whether the worker's end is open, as far as the kernel has heard.
    fn is_open(&self) -> bool {
        let mut byte = [0];
        let heard = recv(self.socket.as_raw_fd(), &mut byte, MsgFlags::MSG_PEEK | MsgFlags::MSG_DONTWAIT);
        matches!(heard, Err(Errno::EAGAIN) | Ok(1..))
    }
}

pub(super) struct Links {
    listener: TcpListener,
    address: SocketAddr,
    /// The process whose user alone may connect; `None` where no other can.
    owner_of: Option<u32>,
    owner: Option<u32>,
    desk: Arc<Desk>,
    links: Vec<Link>,
}

impl Links {
    pub(super) fn new(listener: StdListener, owner_of: Option<u32>, desk: Arc<Desk>) -> io::Result<Self> {
        listener.set_nonblocking(true)?;
        let address = listener.local_addr()?;
        let listener = TcpListener::from_std(listener)?;
        Ok(Self { listener, address, owner_of, owner: None, desk, links: Vec::new() })
    }

    pub(super) fn is_one_open(&self) -> bool {
        self.links.iter().any(Link::is_open)
    }

    /// Does what can be done now on all connections.
    pub(super) fn serve(&mut self, cx: &mut Context<'_>) {
        loop {
            self.links.retain_mut(|link| link.serving.as_mut().poll(cx).is_pending());
            // More than there may be wait in the kernel, until one ends.
            if self.links.len() >= limits::LAMBDA_CONNECTIONS {
                return;
            }
            match self.listener.poll_accept(cx) {
                Poll::Ready(Ok((stream, from))) => self.add(stream, from),
                Poll::Ready(Err(error)) => tracing::debug!(%error, "a worker's connection was not accepted"),
                Poll::Pending => return,
            }
        }
    }

    fn add(&mut self, stream: TcpStream, from: SocketAddr) {
        if !self.is_the_workers(from) {
            tracing::warn!(%from, to = %self.address, "a connection to a worker's Runtime API that is not the worker's was closed");
            return;
        }
        let made = stream.set_nodelay(true).and_then(|()| stream.as_fd().try_clone_to_owned());
        match made {
            Ok(socket) => {
                let serving = Box::pin(served(stream, Arc::clone(&self.desk)));
                self.links.push(Link { serving, socket });
            }
            Err(error) => tracing::warn!(%error, "a worker's connection could not be used"),
        }
    }

    fn is_the_workers(&mut self, from: SocketAddr) -> bool {
        let Some(pid) = self.owner_of else { return true };
        let owner = self.owner.or_else(|| super::status_field(pid, "Uid:"));
        self.owner = owner;
        match owner::of_connection(from, self.address) {
            Ok(found) => owner.is_some() && found == owner,
            Err(error) => {
                tracing::warn!(%error, "the kernel does not tell whose a connection is");
                false
            }
        }
    }
}

async fn served(stream: TcpStream, desk: Arc<Desk>) {
    let service = service_fn(move |request| {
        let desk = Arc::clone(&desk);
        async move { Ok::<_, std::convert::Infallible>(desk.answer(request).await) }
    });
    let served = http1::Builder::new()
        .header_read_timeout(None)
        .max_headers(limits::HTTP_HEADERS)
        .max_buf_size(limits::HTTP_HEAD_BYTES)
        .serve_connection(TokioIo::new(stream), service)
        .await;
    if let Err(error) = served {
        tracing::debug!(%error, "a worker's connection ended");
    }
}
