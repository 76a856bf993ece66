//! Which engine a URL means, and how one is there: for all who connect.

use std::{sync::Arc, time::Duration};

use flux_runtime::Tasks;

use crate::{
    Broker, BrokerError,
    nats::{NatsAuth, NatsBroker, NatsOptions},
    rabbit::{RabbitBroker, RabbitOptions},
};

/// What every engine needs to know.
#[derive(Debug, Clone)]
pub struct ConnectOptions {
    /// `nats://…` or `amqp://…`, several divided by commas: servers of one cluster.
    pub urls: String,
    /// This process in the server's lists of connections.
    pub name: String,
    /// By which certificate it is there; it also says whom to believe.
    pub certificate: Option<Arc<rustls::ClientConfig>>,
    /// Where answers to this process's questions come, if those who are asked may answer nowhere else.
    pub answers: Option<String>,
    /// Copies of what is stored, where the engine is told by its clients.
    pub replicas: usize,
    /// This is an agent, which the server may hold to less.
    pub is_agent: bool,
    /// How long the first connection may take.
    pub connect_within: Duration,
}

impl ConnectOptions {
    /// Without a certificate.
    pub fn new(urls: impl Into<String>, name: impl Into<String>) -> Self {
        Self {
            urls: urls.into(),
            name: name.into(),
            certificate: None,
            answers: None,
            replicas: 1,
            is_agent: false,
            connect_within: Duration::from_secs(10),
        }
    }
}

/// Whether the URL means RabbitMQ. What is neither is left to NATS, which also takes `host:port`.
fn is_amqp(url: &str) -> bool {
    let scheme = url.split("://").next().unwrap_or_default();
    scheme.eq_ignore_ascii_case("amqp") || scheme.eq_ignore_ascii_case("amqps")
}

/// Connects to the queue that the URLs mean.
///
/// # Errors
/// Those of the engine's own `connect`; `Refused` where URLs of two engines are mixed, or one cannot do what is asked.
pub async fn connect(options: ConnectOptions, tasks: Tasks) -> Result<Arc<dyn Broker>, BrokerError> {
    let urls: Vec<String> = options.urls.split(',').map(|url| url.trim().to_owned()).collect();
    let amqp = urls.iter().filter(|url| is_amqp(url)).count();
    if amqp == 0 {
        let nats = NatsOptions {
            urls,
            replicas: options.replicas,
            answers: options.answers,
            own_account: options.is_agent && options.certificate.is_some(),
            auth: options.certificate.map_or(NatsAuth::None, NatsAuth::Certificate),
            connect_within: options.connect_within,
            ..NatsOptions::new("", options.name)
        };
        return Ok(NatsBroker::connect(nats, tasks).await?);
    }
    if amqp < urls.len() {
        return Err(BrokerError::refused("connect", "`queue.url` names servers of two kinds: all must be of one"));
    }
    if options.replicas > 1 {
        let why =
            "with RabbitMQ leave `queue.replicas` at 1: its own policy says how many copies its quorum queues have";
        return Err(BrokerError::refused("connect", why));
    }
    let is_plain = urls.iter().any(|url| url.to_ascii_lowercase().starts_with("amqp:"));
    if is_plain && options.certificate.is_some() {
        let why = "`queue.url` is `amqp://`, which shows no certificate: use `amqps://`, or set `disable_mtls`";
        return Err(BrokerError::refused("connect", why));
    }
    let rabbit = RabbitOptions {
        urls,
        answers: options.answers,
        certificate: options.certificate,
        connect_within: options.connect_within,
        ..RabbitOptions::new("", options.name)
    };
    Ok(RabbitBroker::connect(rabbit, tasks).await?)
}

#[cfg(test)]
mod tests {
    use flux_runtime::Shutdown;

    use super::*;

    #[tokio::test]
    async fn what_cannot_work_is_refused_with_what_to_do() {
        let said = async |options: ConnectOptions| match connect(options, Tasks::new(Shutdown::new())).await {
            Err(BrokerError::Refused { source, .. }) => source.to_string(),
            Err(other) => panic!("{other}"),
            Ok(_) => panic!("it connected"),
        };
        let mixed = said(ConnectOptions::new("nats://127.0.0.1:1, amqp://127.0.0.1:1", "test")).await;
        assert!(mixed.contains("two kinds"), "{mixed}");
        let copies = ConnectOptions { replicas: 3, ..ConnectOptions::new("amqp://127.0.0.1:1", "test") };
        assert!(said(copies).await.contains("queue.replicas"));
    }
}
