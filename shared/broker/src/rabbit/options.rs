//! How to reach the server and who to be there.

use std::{fmt, sync::Arc, time::Duration};

/// What every name on the server begins with, unless it is told otherwise.
pub const NAMESPACE: &str = "flux";

/// What [`RabbitBroker::connect`](super::RabbitBroker::connect) needs.
#[derive(Clone)]
pub struct RabbitOptions {
    /// `amqp://user:password@host:port/vhost` or `amqps://…`, any of a cluster's nodes; tried in turn.
    pub urls: Vec<String>,
    /// This process in the server's lists of connections, such as `flux-agent agent-1`.
    pub name: String,
    /// What every name on the server begins with; two Fluxes on one virtual host have two.
    pub namespace: String,
    /// Where answers to this process's questions come: below `<answers>.`, each under 128 random bits.
    pub answers: Option<String>,
    /// By the certificate that the configuration shows (`amqps://`, SASL EXTERNAL). Without it the URL's user and password.
    pub certificate: Option<Arc<rustls::ClientConfig>>,
    /// How long the first connection may take. Later ones are retried for ever.
    pub connect_within: Duration,
}

impl RabbitOptions {
    /// One node, the URL's user.
    pub fn new(url: impl Into<String>, name: impl Into<String>) -> Self {
        Self {
            urls: vec![url.into()],
            name: name.into(),
            namespace: NAMESPACE.to_owned(),
            answers: None,
            certificate: None,
            connect_within: Duration::from_secs(10),
        }
    }
}

impl fmt::Debug for RabbitOptions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // URLs have passwords in them.
        f.debug_struct("RabbitOptions")
            .field("name", &self.name)
            .field("namespace", &self.namespace)
            .field("certificate", &self.certificate.is_some())
            .finish_non_exhaustive()
    }
}
