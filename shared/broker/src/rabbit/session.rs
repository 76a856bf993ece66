//! One connection, with the channels that everything shares. What may fail by the server's answer is asked on a channel
//! of its own, since such an answer closes the channel.

use std::time::Duration;

use lapin::{
    BasicProperties, Channel, Confirmation, Connection, ConnectionProperties, ExchangeKind,
    options::{
        BasicPublishOptions, ConfirmSelectOptions, ExchangeBindOptions, ExchangeDeclareOptions, QueueBindOptions,
        QueueDeclareOptions,
    },
    tcp::AMQPUriTcpExt as _,
    types::{AMQPValue, FieldTable},
    uri::{AMQPScheme, AMQPUri, SASLMechanism},
};

use super::{
    error::{is_denied, is_not_found},
    names::Names,
    options::RabbitOptions,
};

/// A peer that was not heard of for twice as long is taken for dead, by either side.
pub(super) const HEARTBEAT_S: u16 = 2;
/// Bytes of log that one file of it holds: what is too old or too much goes by whole files.
const KEPT_FILE_BYTES: i64 = 64 << 20;
const PASSING_FILE_BYTES: i64 = 16 << 20;
const AGENTS_FILE_BYTES: i64 = 4 << 20;
/// What was refused is kept for somebody to look at, up to as many.
const REFUSED: i64 = 10_000;

/// How a confirmed publish ended.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Confirmed {
    Stored,
    /// The queue refused it: it is full.
    Full,
    /// Nobody listens.
    Unroutable,
}

pub(super) struct Session {
    /// Counts connections, from 1.
    pub(super) number: u64,
    connection: Connection,
    /// Confirms everything.
    pub(super) publishing: Channel,
    /// Confirms nothing.
    pub(super) saying: Channel,
    /// Confirms, for one publish at a time: a return belongs to the confirm that follows it.
    asking: tokio::sync::Mutex<Channel>,
    /// The queue of this connection.
    pub(super) inbox: String,
}

impl Session {
    /// # Errors
    /// The server cannot be reached, or does not let this identity in.
    pub(super) async fn open(
        options: &RabbitOptions,
        url: &str,
        number: u64,
        names: &Names,
    ) -> Result<Self, lapin::Error> {
        let connection = connect(options, url).await?;
        let publishing = confirming(&connection).await?;
        let asking = tokio::sync::Mutex::new(confirming(&connection).await?);
        let saying = connection.create_channel().await?;
        let session = Self { number, connection, publishing, saying, asking, inbox: names.inbox() };
        session.make_what_all_share(names).await?;
        let exclusive = QueueDeclareOptions { exclusive: true, auto_delete: true, ..QueueDeclareOptions::default() };
        session.saying.queue_declare(session.inbox.as_str().into(), exclusive, FieldTable::default()).await?;
        Ok(session)
    }

    pub(super) fn is_up(&self) -> bool {
        let channels = [&self.publishing, &self.saying];
        self.connection.status().connected() && channels.iter().all(|channel| channel.status().connected())
    }

    /// Ends when the connection has.
    pub(super) async fn ended(&self) {
        use futures::StreamExt as _;
        let mut events = std::pin::pin!(self.connection.events_listener());
        let mut look = tokio::time::interval(Duration::from_millis(500));
        while self.is_up() {
            tokio::select! {
                event = events.next() => match event {
                    Some(lapin::Event::ConnectionBlocked(why)) => {
                        tracing::warn!(why, "the queue's server takes no messages for now");
                    }
                    Some(lapin::Event::ConnectionUnblocked) => tracing::info!("the queue's server takes messages again"),
                    Some(_) => {}
                    None => return,
                },
                _ = look.tick() => {}
            }
        }
    }

    pub(super) async fn close(&self) {
        let _ = tokio::time::timeout(Duration::from_secs(2), self.connection.close(200, "closed".into())).await;
    }

    pub(super) async fn channel(&self) -> Result<Channel, lapin::Error> {
        self.connection.create_channel().await
    }

    /// Publishes and waits until the server has stored it.
    pub(super) async fn publish(
        &self,
        exchange: &str,
        key: &str,
        properties: BasicProperties,
        body: &[u8],
    ) -> Result<Confirmed, lapin::Error> {
        let options = BasicPublishOptions::default();
        let confirm = self.publishing.basic_publish(exchange.into(), key.into(), options, body, properties).await?;
        Ok(match confirm.await? {
            Confirmation::Nack(_) => Confirmed::Full,
            Confirmation::Ack(_) | Confirmation::NotRequested => Confirmed::Stored,
        })
    }

    /// Publishes and tells whether anybody listens.
    pub(super) async fn publish_to_someone(
        &self,
        exchange: &str,
        key: &str,
        properties: BasicProperties,
        body: &[u8],
    ) -> Result<Confirmed, lapin::Error> {
        let channel = self.asking.lock().await;
        let options = BasicPublishOptions { mandatory: true, ..BasicPublishOptions::default() };
        let confirm = channel.basic_publish(exchange.into(), key.into(), options, body, properties).await?;
        Ok(match confirm.await?.take_message() {
            Some(_) => Confirmed::Unroutable,
            None => Confirmed::Stored,
        })
    }

    /// Messages that wait in a queue; `None` where there is no such queue.
    pub(super) async fn waiting(&self, queue: &str) -> Result<Option<u64>, lapin::Error> {
        let channel = self.channel().await?;
        let passive = QueueDeclareOptions { passive: true, ..QueueDeclareOptions::default() };
        match channel.queue_declare(queue.into(), passive, FieldTable::default()).await {
            Ok(queue) => {
                let _ = channel.close(200, "done".into()).await;
                Ok(Some(queue.message_count().into()))
            }
            Err(error) if is_not_found(&error) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// What everybody needs, whoever comes first. One who may not make anything finds it made.
    async fn make_what_all_share(&self, names: &Names) -> Result<(), lapin::Error> {
        match self.try_make_what_all_share(names).await {
            Err(error) if is_denied(&error) => {
                tracing::debug!(%error, "this identity makes no queues: gateways do");
                Ok(())
            }
            other => other,
        }
    }

    async fn try_make_what_all_share(&self, names: &Names) -> Result<(), lapin::Error> {
        let channel = self.channel().await?;
        exchange(&channel, &names.signals(), FieldTable::default()).await?;
        exchange(&channel, &names.refused(), FieldTable::default()).await?;
        exchange(&channel, &names.unrouted(), FieldTable::default()).await?;
        exchange(&channel, &names.statuses(), FieldTable::default()).await?;
        exchange(&channel, &names.logs(), FieldTable::default()).await?;
        exchange(&channel, &names.blobs(), FieldTable::default()).await?;
        let all = "#";
        let none = FieldTable::default;
        channel
            .exchange_bind(
                names.signals().into(),
                names.statuses().into(),
                all.into(),
                ExchangeBindOptions::default(),
                none(),
            )
            .await?;
        let refused = arguments([("x-queue-type", text("quorum")), ("x-max-length", number(REFUSED))]);
        bound_queue(&channel, &names.refused(), &names.refused(), all, refused).await?;
        let mut unrouted = safe(&names.refused());
        unrouted.insert("x-max-length-bytes".into(), number(flux_protocol::limits::INVOKE_STREAM_BYTES));
        bound_queue(&channel, &names.unrouted(), &names.unrouted(), all, unrouted).await?;
        let statuses = arguments([
            ("x-queue-type", text("quorum")),
            ("x-single-active-consumer", AMQPValue::Boolean(true)),
            ("x-overflow", text("reject-publish")),
            ("x-max-length-bytes", number(flux_protocol::limits::STATUS_STREAM_BYTES)),
        ]);
        bound_queue(&channel, &names.statuses(), &names.statuses(), all, statuses).await?;
        let letters = number(flux_protocol::limits::DLQ_STREAM_BYTES);
        let logs = [
            ("kept", KEPT_FILE_BYTES, None),
            ("passing", PASSING_FILE_BYTES, Some(("x-max-age", text("24h")))),
            ("agents", AGENTS_FILE_BYTES, Some(("x-max-age", text("2m")))),
            ("letters", KEPT_FILE_BYTES, Some(("x-max-length-bytes", letters))),
        ];
        for (log, file_bytes, bound) in logs {
            let mut stream =
                arguments([("x-queue-type", text("stream")), ("x-stream-max-segment-size-bytes", number(file_bytes))]);
            if let Some((name, value)) = bound {
                stream.insert(name.into(), value);
            }
            bound_queue(&channel, &names.log(log), &names.logs(), &format!("{log}.#"), stream).await?;
        }
        let _ = channel.close(200, "done".into()).await;
        Ok(())
    }
}

async fn confirming(connection: &Connection) -> Result<Channel, lapin::Error> {
    let channel = connection.create_channel().await?;
    channel.confirm_select(ConfirmSelectOptions::default()).await?;
    Ok(channel)
}

async fn connect(options: &RabbitOptions, url: &str) -> Result<Connection, lapin::Error> {
    let mut uri: AMQPUri = url
        .parse()
        .map_err(|why: String| lapin::Error::from(std::io::Error::new(std::io::ErrorKind::InvalidInput, why)))?;
    uri.query.heartbeat.get_or_insert(HEARTBEAT_S);
    if options.certificate.is_some() {
        uri.query.auth_mechanism.get_or_insert(SASLMechanism::External);
    }
    let properties = ConnectionProperties::default().with_connection_name(options.name.as_str().into());
    let certificate = options.certificate.clone();
    Connection::connector(
        uri,
        lapin::runtime::default_runtime()?,
        async move |uri: AMQPUri, runtime| {
            let mut plain = uri.clone();
            plain.scheme = AMQPScheme::AMQP;
            let stream = plain.connect_async(&runtime).await?;
            Ok(match uri.scheme {
                AMQPScheme::AMQP => stream,
                AMQPScheme::AMQPS => {
                    let certificate = certificate.clone().ok_or_else(|| {
                        std::io::Error::new(std::io::ErrorKind::InvalidInput, "amqps:// needs the identity files")
                    })?;
                    stream.into_rustls(&lapin::tcp::RustlsConnector::from(certificate), &uri.authority.host).await?
                }
            })
        },
        properties,
    )
    .await
}

/// A durable topic exchange.
pub(super) async fn exchange(channel: &Channel, name: &str, arguments: FieldTable) -> Result<(), lapin::Error> {
    let durable = ExchangeDeclareOptions { durable: true, ..ExchangeDeclareOptions::default() };
    channel.exchange_declare(name.into(), ExchangeKind::Topic, durable, arguments).await
}

/// A durable queue, bound.
pub(super) async fn bound_queue(
    channel: &Channel,
    queue: &str,
    exchange: &str,
    key: &str,
    arguments: FieldTable,
) -> Result<(), lapin::Error> {
    let durable = QueueDeclareOptions { durable: true, ..QueueDeclareOptions::default() };
    channel.queue_declare(queue.into(), durable, arguments).await?;
    channel
        .queue_bind(queue.into(), exchange.into(), key.into(), QueueBindOptions::default(), FieldTable::default())
        .await
}

/// A queue that survives a node, says when it is full, and loses nothing that it gives up on.
pub(super) fn safe(dead_letters: &str) -> FieldTable {
    arguments([
        ("x-queue-type", text("quorum")),
        ("x-overflow", text("reject-publish")),
        ("x-dead-letter-exchange", text(dead_letters)),
        ("x-dead-letter-strategy", text("at-least-once")),
    ])
}

pub(super) fn arguments<const N: usize>(all: [(&str, AMQPValue); N]) -> FieldTable {
    let mut table = FieldTable::default();
    for (name, value) in all {
        table.insert(name.into(), value);
    }
    table
}

pub(super) fn text(value: &str) -> AMQPValue {
    AMQPValue::LongString(value.into())
}

pub(super) fn number(value: i64) -> AMQPValue {
    AMQPValue::LongLongInt(value)
}
