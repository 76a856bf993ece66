//! A gateway that listens, with functions for the tests, and the words to speak to it.

use std::{net::SocketAddr, sync::Arc, time::Duration};

use flux_gateway::http::{ApiKey, HttpOptions, listen, serve};
use flux_runtime::{Shutdown, Tasks};
use flux_testkit::Api;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
};

use crate::gateway::{self, Scripted};

pub(crate) const KEY: &str = "a-key-for-tests";
pub(crate) const SOON: Duration = Duration::from_secs(10);

/// A gateway with functions: `echo` prints its payload, `answer` the `body` of its event, `fail` complains and exits
/// with 3, `slow` prints `let go` when it is, `lines` prints three as they are let go.
pub(crate) struct Flux {
    pub(crate) api: Api,
    pub(crate) address: SocketAddr,
    pub(crate) scripted: Scripted,
    pub(crate) shutdown: Arc<Shutdown>,
    pub(crate) tasks: Tasks,
}

impl Flux {
    pub(crate) async fn start() -> Self {
        Self::with(|_| {}).await
    }

    pub(crate) async fn with(change: impl FnOnce(&mut HttpOptions)) -> Self {
        let mut options = HttpOptions::new(ApiKey::parse(KEY).expect("a key"));
        change(&mut options);
        let listener = listen("127.0.0.1:0").await.expect("a port");
        let address = listener.local_addr().expect("bound");
        let shutdown = Shutdown::new();
        let tasks = Tasks::new(Arc::clone(&shutdown));
        let scripted = gateway::start().await;
        let serving = serve(scripted.gateway(), listener, options, Arc::clone(&shutdown), tasks.clone());
        tasks.spawn("http", async move { serving.await.expect("serves") });
        Self { api: Api::new(format!("http://{address}"), KEY), address, scripted, shutdown, tasks }
    }

    /// Another gateway of the same Flux, listening elsewhere.
    pub(crate) async fn beside(&self) -> Api {
        let listener = listen("127.0.0.1:0").await.expect("a port");
        let address = listener.local_addr().expect("bound");
        let options = HttpOptions::new(ApiKey::parse(KEY).expect("a key"));
        let gateway = self.scripted.beside().await;
        let serving = serve(gateway, listener, options, Arc::clone(&self.shutdown), self.tasks.clone());
        self.tasks.spawn("http beside", async move { serving.await.expect("serves") });
        Api::new(format!("http://{address}"), KEY)
    }

    /// A connection by hand.
    pub(crate) async fn connect(&self) -> Wire {
        Wire(TcpStream::connect(self.address).await.expect("connects"))
    }
}

impl Drop for Flux {
    fn drop(&mut self) {
        self.shutdown.start_kill();
    }
}

/// Bytes as they go over the wire.
pub(crate) struct Wire(pub(crate) TcpStream);

impl Wire {
    pub(crate) async fn send(&mut self, text: &str) {
        self.0.write_all(text.as_bytes()).await.expect("written");
    }

    /// All that comes until the peer closes.
    pub(crate) async fn rest(&mut self) -> String {
        let mut all = Vec::new();
        let read = tokio::time::timeout(SOON, self.0.read_to_end(&mut all)).await;
        read.expect("the peer closes in time").expect("read");
        String::from_utf8_lossy(&all).into_owned()
    }

    /// All that comes until `end` was seen.
    pub(crate) async fn until(&mut self, end: &str) -> String {
        let mut all = Vec::new();
        let read = async {
            while !String::from_utf8_lossy(&all).contains(end) {
                assert_ne!(self.0.read_buf(&mut all).await.expect("read"), 0, "closed after {all:?}");
            }
        };
        tokio::time::timeout(SOON, read).await.expect("in time");
        String::from_utf8_lossy(&all).into_owned()
    }
}

/// The head of a request with the key.
pub(crate) fn head(method: &str, path: &str, more: &str) -> String {
    format!("{method} {path} HTTP/1.1\r\nHost: flux\r\nX-API-Key: {KEY}\r\n{more}\r\n")
}
