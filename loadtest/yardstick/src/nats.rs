//! The parts that both NATS floors need.

use std::time::Duration;

use async_nats::jetstream::{
    self,
    consumer::{PullConsumer, pull},
    stream::{self, DiscardPolicy, RetentionPolicy, StorageType},
};

/// A connection; with a directory of certificates, as a gateway.
pub(crate) async fn connect(url: &str, certs: Option<&std::path::Path>) -> anyhow::Result<async_nats::Client> {
    let mut options = async_nats::ConnectOptions::new();
    if let Some(dir) = certs {
        options = options
            .add_root_certificates(dir.join("ca/ca.pem"))
            .add_client_certificate(dir.join("flux/flux.pem"), dir.join("flux/flux-key.pem"))
            .require_tls(true);
    }
    Ok(options.connect(url).await?)
}

/// Where messages are kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Storage {
    Memory,
    File,
}

impl Storage {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Memory => "memory",
            Self::File => "file",
        }
    }
}

/// A work queue of our own, made anew, and the one consumer of it.
pub(crate) struct Queue {
    pub(crate) jetstream: jetstream::Context,
    pub(crate) consumer: PullConsumer,
    pub(crate) subject: String,
    stream: String,
}

const CONSUMER: &str = "agents";
const ACKS_IN_FLIGHT: usize = 20_000;
const ACK_WAIT: Duration = Duration::from_secs(30);

impl Queue {
    /// `name` tells this run's stream from those of others on the server.
    pub(crate) async fn make(client: &async_nats::Client, name: &str, storage: Storage) -> anyhow::Result<Self> {
        let jetstream = jetstream::context::ContextBuilder::new()
            .max_ack_inflight(ACKS_IN_FLIGHT)
            .timeout(ACK_WAIT)
            .build(client.clone());
        let subject = format!("yardstick.{name}.{}", std::process::id());
        let stream = format!("YARDSTICK_{}_{}", name.to_uppercase(), std::process::id());
        let made = jetstream
            .create_stream(stream::Config {
                name: stream.clone(),
                subjects: vec![subject.clone()],
                storage: match storage {
                    Storage::Memory => StorageType::Memory,
                    Storage::File => StorageType::File,
                },
                retention: RetentionPolicy::WorkQueue,
                discard: DiscardPolicy::New,
                ..Default::default()
            })
            .await?;
        let consumer = made
            .create_consumer(pull::Config {
                durable_name: Some(CONSUMER.into()),
                max_ack_pending: i64::try_from(ACKS_IN_FLIGHT)?,
                ack_wait: ACK_WAIT,
                ..Default::default()
            })
            .await?;
        Ok(Self { jetstream, consumer, subject, stream })
    }

    /// The same queue, consumed over another connection.
    pub(crate) async fn consumed_by(self, client: async_nats::Client) -> anyhow::Result<Self> {
        let jetstream = jetstream::new(client);
        let consumer = jetstream.get_consumer_from_stream(CONSUMER, &self.stream).await?;
        Ok(Self { consumer, ..self })
    }

    pub(crate) async fn remove(&self) -> anyhow::Result<()> {
        self.jetstream.delete_stream(&self.stream).await?;
        Ok(())
    }
}
