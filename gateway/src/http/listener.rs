//! Accepting connections, turning away those for which there is no room, and going away without losing any: on drain what already stands in the backlog is still
//! taken, then the socket closes and connections end with their requests.

use std::{future::Future, io, net::SocketAddr, sync::Arc, time::Duration};

use axum::Router;
use flux_protocol::{ErrorCode, limits};
use flux_runtime::{Shutdown, Tasks};
use futures::FutureExt as _;
use nix::sys::socket::{setsockopt, sockopt};
use tokio::{
    io::AsyncWriteExt as _,
    net::{TcpListener, TcpSocket, TcpStream, ToSocketAddrs, lookup_host},
    sync::Semaphore,
};
use tokio_util::task::TaskTracker;

use super::{HttpOptions, connection::Server, refused};
use crate::refusal::Refusal;

/// After an error of accepting that is about us, such as too many open files.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);
/// A peer that vanished without a word is noticed within a minute: its executions are cancelled then.
const PROBE_AFTER_SECONDS: u32 = 30;
const PROBE_EVERY_SECONDS: u32 = 10;
const PROBES: u32 = 3;

/// Listens, with room for a crowd that comes in one moment: beyond the backlog a caller's first packet is dropped, and
/// it tries again only after a second.
///
/// # Errors
/// The address is none, or cannot be bound.
pub async fn listen(address: impl ToSocketAddrs) -> io::Result<TcpListener> {
    let mut failed = io::Error::new(io::ErrorKind::InvalidInput, "it is no address");
    for address in lookup_host(address).await? {
        match bind(address) {
            Ok(listener) => return Ok(listener),
            Err(error) => failed = error,
        }
    }
    Err(failed)
}

fn bind(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = if address.is_ipv4() { TcpSocket::new_v4()? } else { TcpSocket::new_v6()? };
    socket.set_reuseaddr(true)?;
    socket.bind(address)?;
    socket.listen(limits::HTTP_BACKLOG)
}

pub(super) async fn run(
    listener: TcpListener,
    router: Router,
    options: HttpOptions,
    shutdown: Arc<Shutdown>,
    tasks: Tasks,
) {
    let most = options.max_connections;
    let speaks_tls = options.tls.is_some();
    let permits = Arc::new(Semaphore::new(most));
    let open = TaskTracker::new();
    let server = Arc::new(Server::new(router, options, Arc::clone(&shutdown), tasks.clone()));
    let start = |stream: TcpStream, permit| {
        if let Err(error) = prepare(&stream) {
            tracing::debug!(%error, "a connection was gone before it was served");
            return;
        }
        let server = Arc::clone(&server);
        tasks.spawn(
            "http connection",
            open.track_future(async move {
                server.serve(stream).await;
                drop(permit);
            }),
        );
    };
    let turned_away = Arc::new(Semaphore::new(limits::HTTP_TURNED_AWAY));
    let let_in = |stream: TcpStream| match Arc::clone(&permits).try_acquire_owned() {
        Ok(permit) => start(stream, permit),
        Err(_) => {
            metrics::counter!("flux_http_turned_away_total").increment(1);
            // Words in the clear would be none to who speaks TLS.
            if speaks_tls {
                return;
            }
            let Ok(place) = Arc::clone(&turned_away).try_acquire_owned() else { return };
            tasks.spawn("http turned away", async move {
                turn_away(stream, most).await;
                drop(place);
            });
        }
    };
    loop {
        let accepted = tokio::select! {
            biased;
            () = shutdown.draining() => break,
            accepted = accept_one(&listener) => accepted,
        };
        accepted.into_iter().for_each(&let_in);
    }
    while let Some(Some(stream)) = accept_one(&listener).now_or_never() {
        let_in(stream);
    }
    drop(listener);
    open.close();
    open.wait().await;
}

async fn accept_one(listener: &TcpListener) -> Option<TcpStream> {
    match listener.accept().await {
        Ok((stream, _)) => Some(stream),
        Err(error) if is_the_peers(&error) => None,
        Err(error) => {
            tracing::warn!(%error, "cannot accept connections now");
            tokio::time::sleep(ACCEPT_PAUSE).await;
            None
        }
    }
}

/// Answers whatever is asked. What the caller sends meanwhile is read: an answer that is followed by a reset is often lost.
async fn turn_away(mut stream: TcpStream, most: usize) {
    let message = format!("this gateway holds {most} connections, which is all it takes; try again");
    let answer = refused::by_hand(&Refusal::new(ErrorCode::TooManyConnections, message));
    let talk = async {
        stream.write_all(&answer).await?;
        stream.shutdown().await?;
        tokio::io::copy(&mut stream, &mut tokio::io::sink()).await
    };
    let _ = tokio::time::timeout(limits::HTTP_TURNED_AWAY_FOR, talk).await;
}

fn is_the_peers(error: &io::Error) -> bool {
    use io::ErrorKind as K;
    matches!(error.kind(), K::ConnectionRefused | K::ConnectionAborted | K::ConnectionReset)
}

fn prepare(stream: &TcpStream) -> io::Result<()> {
    stream.set_nodelay(true)?;
    setsockopt(stream, sockopt::KeepAlive, &true)?;
    setsockopt(stream, sockopt::TcpKeepIdle, &PROBE_AFTER_SECONDS)?;
    setsockopt(stream, sockopt::TcpKeepInterval, &PROBE_EVERY_SECONDS)?;
    setsockopt(stream, sockopt::TcpKeepCount, &PROBES)?;
    Ok(())
}

/// Streams of HTTP/2 run as supervised tasks.
#[derive(Clone)]
pub(super) struct Supervised(pub(super) Tasks);

impl<F> hyper::rt::Executor<F> for Supervised
where
    F: Future + Send + 'static,
    F::Output: Send,
{
    fn execute(&self, work: F) {
        self.0.spawn("http2 stream", async move {
            work.await;
        });
    }
}
