//! Accepting connections, and going away without losing any: on drain what already stands in the backlog is still
//! taken, then the socket closes and connections end with their requests.

use std::{future::Future, io, sync::Arc, time::Duration};

use axum::Router;
use flux_runtime::{Shutdown, Tasks};
use futures::FutureExt as _;
use nix::sys::socket::{setsockopt, sockopt};
use tokio::{
    net::{TcpListener, TcpStream},
    sync::Semaphore,
};
use tokio_util::task::TaskTracker;

use super::{HttpOptions, connection::Server};

/// After an error of accepting that is about us, such as too many open files.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);
/// A peer that vanished without a word is noticed within a minute: its executions are cancelled then.
const PROBE_AFTER_SECONDS: u32 = 30;
const PROBE_EVERY_SECONDS: u32 = 10;
const PROBES: u32 = 3;

pub(super) async fn run(
    listener: TcpListener,
    router: Router,
    options: HttpOptions,
    shutdown: Arc<Shutdown>,
    tasks: Tasks,
) {
    let permits = Arc::new(Semaphore::new(options.max_connections));
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
    loop {
        let accepted = tokio::select! {
            biased;
            () = shutdown.draining() => break,
            accepted = accept_one(&listener, &permits) => accepted,
        };
        let Some((stream, permit)) = accepted else { continue };
        start(stream, permit);
    }
    while let Some(Some((stream, permit))) = accept_one(&listener, &permits).now_or_never() {
        start(stream, permit);
    }
    drop(listener);
    open.close();
    open.wait().await;
}

/// Waits for a free place first: beyond the limit, callers wait in the kernel's backlog.
async fn accept_one(
    listener: &TcpListener,
    permits: &Arc<Semaphore>,
) -> Option<(TcpStream, tokio::sync::OwnedSemaphorePermit)> {
    let permit = Arc::clone(permits).acquire_owned().await.ok()?;
    match listener.accept().await {
        Ok((stream, _)) => Some((stream, permit)),
        Err(error) if is_the_peers(&error) => None,
        Err(error) => {
            tracing::warn!(%error, "cannot accept connections now");
            tokio::time::sleep(ACCEPT_PAUSE).await;
            None
        }
    }
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
