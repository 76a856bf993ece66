//! One connection from its first byte to its last.
//!
//! Drain has two steps. At once every answer says `connection: close`, so that a pool of connections empties by
//! itself; a moment later idle connections are closed and busy ones end with the request that they carry. Closing
//! idle ones at once would cut off requests that are already on the wire, which a proxy in front answers with 502.

use std::{
    net::SocketAddr,
    pin::pin,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use axum::Router;
use flux_protocol::{ErrorCode, limits};
use flux_runtime::{Shutdown, Tasks};
use hyper::{Request, body::Incoming, service::service_fn};
use hyper_util::{
    rt::{TokioIo, TokioTimer},
    server::conn::auto::Builder,
};
use tokio::net::TcpStream;
use tower::Service as _;

use super::{
    HttpOptions,
    listener::Supervised,
    measures::OpenConnection,
    patient::{Patient, Wire},
    refused, tls,
};
use crate::refusal::Refusal;

/// In a request's extensions: the other end of its connection.
#[derive(Debug, Clone, Copy)]
pub(super) struct Peer(pub(super) SocketAddr);

pub(super) struct Server {
    builder: Builder<Supervised>,
    router: Router,
    options: HttpOptions,
    shutdown: Arc<Shutdown>,
}

impl Server {
    pub(super) fn new(router: Router, options: HttpOptions, shutdown: Arc<Shutdown>, tasks: Tasks) -> Self {
        let mut builder = Builder::new(Supervised(tasks));
        builder
            .http1()
            .timer(TokioTimer::new())
            .header_read_timeout(options.head_read_timeout)
            .max_headers(limits::HTTP_HEADERS)
            .max_buf_size(limits::HTTP_HEAD_BYTES);
        builder
            .http2()
            .timer(TokioTimer::new())
            .max_concurrent_streams(limits::HTTP2_STREAMS)
            .max_header_list_size(u32::try_from(limits::HTTP_HEAD_BYTES).unwrap_or(u32::MAX))
            .keep_alive_interval(options.head_read_timeout)
            .keep_alive_timeout(options.head_read_timeout)
            .adaptive_window(true);
        Self { builder, router, options, shutdown }
    }

    pub(super) async fn serve(&self, stream: TcpStream) {
        // A connection that has no other end any more.
        let Ok(peer) = stream.peer_addr() else { return };
        let within = self.options.head_read_timeout;
        let stream = match &self.options.tls {
            None => tls::Stream::Plain(stream),
            Some(tls) => match tokio::time::timeout(within, tls.accept(stream)).await {
                Ok(Ok(stream)) => stream,
                Ok(Err(error)) => {
                    tracing::debug!(%error, "a TLS handshake failed");
                    return;
                }
                Err(_) => return,
            },
        };
        let _open = OpenConnection::new();
        let spoke = AtomicBool::new(false);
        let service = service_fn(|mut request: Request<Incoming>| {
            spoke.store(true, Ordering::Relaxed);
            request.extensions_mut().insert(Peer(peer));
            self.router.clone().call(request)
        });
        let wire = Arc::new(Wire::default());
        let io = TokioIo::new(Patient::new(stream, Arc::clone(&wire), self.options.write_stall_timeout));
        let mut connection = pin!(self.builder.serve_connection(io, service));
        let mut silence = pin!(tokio::time::sleep(self.options.head_read_timeout));
        let mut drained = pin!(async {
            self.shutdown.draining().await;
            tokio::time::sleep(limits::HTTP_DRAIN_GRACE).await;
        });
        let (mut listening_for_silence, mut draining) = (true, false);
        loop {
            tokio::select! {
                biased;
                ended = connection.as_mut() => {
                    if let Err(error) = ended {
                        if error.downcast_ref::<hyper::Error>().is_some_and(hyper::Error::is_timeout) {
                            self.say_too_slow(&wire);
                        }
                        // Peers go away at any time: their business, unless one debugs it.
                        tracing::debug!(error = %Chain(&*error), "a connection broke");
                    }
                    return;
                }
                () = self.shutdown.killed() => return,
                // hyper's own clock starts with the first bytes: before them there is only this one.
                () = &mut silence, if listening_for_silence => {
                    if !spoke.load(Ordering::Relaxed) {
                        self.say_too_slow(&wire);
                        return;
                    }
                    listening_for_silence = false;
                }
                () = &mut drained, if !draining => {
                    draining = true;
                    connection.as_mut().graceful_shutdown();
                }
            }
        }
    }
}

impl Server {
    /// To a caller who is in the middle of a head. An idle connection is closed without a word: what is said on it would
    /// be taken for the answer to a request that is on its way.
    fn say_too_slow(&self, wire: &Wire) {
        if wire.is_in_a_head() {
            let seconds = self.options.head_read_timeout.as_secs_f64();
            let message = format!("the head of the request did not come within {seconds} s");
            wire.say_at_the_end(refused::by_hand(&Refusal::new(ErrorCode::RequestTimeout, message)));
        }
    }
}

struct Chain<'a>(&'a (dyn std::error::Error + 'static));

impl std::fmt::Display for Chain<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}", self.0)?;
        let mut cause = self.0.source();
        while let Some(error) = cause {
            write!(f, ": {error}")?;
            cause = error.source();
        }
        Ok(())
    }
}
