//! The probe port: who this agent is and how its machine does, said to a gateway that shows its certificate, and nothing else.
//!
//! Nothing is read from whoever connects but the handshake.

use std::{sync::Arc, time::Duration};

use flux_pki::Credential;
use flux_protocol::{agent::ProbeAnswer, identity::Identity};
use tokio::{
    io::AsyncWriteExt as _,
    net::{TcpListener, TcpStream},
    sync::Semaphore,
};
use tokio_rustls::TlsAcceptor;

use crate::node::Node;

const AT_ONCE: usize = 16;
const WITHIN: Duration = Duration::from_secs(5);
const PAUSE: Duration = Duration::from_millis(100);

/// Answers until the process ends.
pub(crate) async fn answer(listener: TcpListener, credential: Arc<Credential>, node: Arc<Node>) {
    let gateways = match credential.server(Arc::new(|peer| *peer == Identity::Gateway)) {
        Ok(config) => TlsAcceptor::from(Arc::new(config)),
        Err(error) => {
            tracing::error!(error = &error as &dyn std::error::Error, "the probe port cannot be served");
            return;
        }
    };
    let places = Arc::new(Semaphore::new(AT_ONCE));
    loop {
        // The semaphore is never closed.
        let Ok(place) = Arc::clone(&places).acquire_owned().await else { return };
        let socket = match listener.accept().await {
            Ok((socket, _)) => socket,
            Err(error) => {
                tracing::debug!(%error, "a probe could not be accepted");
                tokio::time::sleep(PAUSE).await;
                continue;
            }
        };
        let (gateways, asked) = (gateways.clone(), Arc::clone(&node));
        node.tasks.spawn("probe", async move {
            let _place = place;
            if !matches!(tokio::time::timeout(WITHIN, say(gateways, socket, &asked)).await, Ok(Ok(()))) {
                tracing::debug!("a probe came to nothing");
            }
        });
    }
}

async fn say(gateways: TlsAcceptor, socket: TcpStream, node: &Node) -> std::io::Result<()> {
    let mut connection = gateways.accept(socket).await?;
    let Some(status) = node.measured.read().clone() else { return Ok(()) };
    let mut line = serde_json::to_vec(&ProbeAnswer { agent_id: node.id.clone(), node: status })?;
    line.push(b'\n');
    connection.write_all(&line).await?;
    connection.shutdown().await
}
