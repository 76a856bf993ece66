//! How to reach the server and who to be there.

use std::{fmt, sync::Arc, time::Duration};

/// What [`NatsBroker::connect`](super::NatsBroker::connect) needs.
#[derive(Debug, Clone)]
pub struct NatsOptions {
    /// `nats://host:port`, any of a cluster's servers.
    pub urls: Vec<String>,
    /// This process in the server's lists of connections, such as `flux-agent agent-1`.
    pub name: String,
    /// Below it lie this process's own subjects. An identity may subscribe and publish there and nowhere else of
    /// its kind, so it is given where permissions name it; otherwise it is `_INBOX.<random>`.
    pub inbox_prefix: Option<String>,
    /// Where answers to this process's questions come, where it asks those who may not publish into its inbox: below
    /// `<answers>.`, each under 128 random bits, so that only who was asked can answer. Otherwise they come to the inbox.
    pub answers: Option<String>,
    /// This identity has an account of its own, beside that with the streams: agents have, where the server knows them.
    pub own_account: bool,
    pub auth: NatsAuth,
    /// Copies of every stream, 1 to 5. More than the cluster has servers is refused.
    pub replicas: usize,
    /// How long the first connection may take. Later ones are retried for ever.
    pub connect_within: Duration,
}

impl NatsOptions {
    /// One server, no credentials, one replica.
    pub fn new(url: impl Into<String>, name: impl Into<String>) -> Self {
        Self {
            urls: vec![url.into()],
            name: name.into(),
            inbox_prefix: None,
            answers: None,
            own_account: false,
            auth: NatsAuth::None,
            replicas: 1,
            connect_within: Duration::from_secs(10),
        }
    }
}

/// Who this process is.
#[derive(Clone, Default)]
pub enum NatsAuth {
    #[default]
    None,
    /// By the certificate that the configuration shows; it also says whom to believe.
    Certificate(Arc<rustls::ClientConfig>),
    Token(String),
    User {
        name: String,
        password: String,
    },
}

impl fmt::Debug for NatsAuth {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::None => f.write_str("None"),
            Self::Certificate(_) => f.write_str("Certificate(…)"),
            Self::Token(_) => f.write_str("Token(…)"),
            Self::User { name, .. } => write!(f, "User({name}, …)"),
        }
    }
}
