//! Someone who publishes straight into the queue, and looks what lies in it in the end.

use async_nats::{HeaderMap, jetstream};
use flux_protocol::{ExecutionId, FunctionName, Lane, PoolName, invocation::header, subject, time::now};
use lapin::{
    BasicProperties, Channel, Connection, ConnectionProperties,
    options::{BasicPublishOptions, ConfirmSelectOptions, QueueDeclareOptions},
    types::{AMQPValue, FieldTable},
};
use tokio::sync::Mutex;

use crate::{function, history::Place};

const PERSISTENT: u8 = 2;
/// AMQP's code of what is not there.
const NOT_FOUND: u16 = 404;
const STATUSES: &str = "flux.statuses";

pub(crate) enum Producer {
    Nats(async_nats::Client),
    /// Connects again after each failure.
    Rabbit {
        url: String,
        channel: Box<Mutex<Option<(Connection, Channel)>>>,
    },
}

impl Producer {
    pub(crate) async fn nats(options: async_nats::ConnectOptions, urls: Vec<String>) -> anyhow::Result<Self> {
        Ok(Self::Nats(options.retry_on_initial_connect().connect(urls).await?))
    }

    pub(crate) fn rabbit(url: String) -> Self {
        Self::Rabbit { url, channel: Box::default() }
    }

    /// Whether a publish has to say which execution it is: on NATS its place in the queue can.
    pub(crate) fn needs_an_id(&self) -> bool {
        matches!(self, Self::Rabbit { .. })
    }

    /// Waits for the queue's word that it is stored. Where, if the queue says so.
    pub(crate) async fn publish(
        &self,
        function: &str,
        args: String,
        id: Option<ExecutionId>,
    ) -> Result<Option<Place>, String> {
        match self {
            Self::Nats(client) => {
                let mut headers = HeaderMap::new();
                headers.insert(header::ARGS, args);
                if let Some(id) = id {
                    headers.insert(header::EXECUTION_ID, id.to_string());
                }
                let name = FunctionName::parse(function).expect("a function's name");
                let subject = subject::QueueName::new(Lane::Invoke, PoolName::default(), name).subject();
                let queue = jetstream::new(client.clone());
                let ack = queue.publish_with_headers(subject, headers, "{}".into()).await.map_err(|e| e.to_string())?;
                let ack = ack.await.map_err(|error| error.to_string())?;
                Ok(Some(Place { stream: ack.stream, sequence: ack.sequence }))
            }
            Self::Rabbit { url, channel } => {
                let mut kept = channel.lock().await;
                // What fails, or is given up by its caller, leaves none.
                let (connection, channel) = match kept.take() {
                    Some(open) if open.1.status().connected() => open,
                    _ => open(url).await.map_err(|error| error.to_string())?,
                };
                let confirm = rabbit_publish(&channel, function, &args, id).await.map_err(|error| error.to_string())?;
                *kept = Some((connection, channel));
                if confirm { Ok(None) } else { Err("the queue refused it".to_owned()) }
            }
        }
    }

    /// What still lies in the queue, where nothing should.
    pub(crate) async fn left(&self) -> Vec<String> {
        match self {
            Self::Nats(client) => left_in_streams(client).await,
            Self::Rabbit { url, .. } => match left_in_queues(url).await {
                Ok(left) => left,
                Err(error) => vec![format!("the queues cannot be looked at: {error}")],
            },
        }
    }
}

async fn open(url: &str) -> lapin::Result<(Connection, Channel)> {
    let connection = Connection::connect(url, ConnectionProperties::default()).await?;
    let channel = connection.create_channel().await?;
    channel.confirm_select(ConfirmSelectOptions::default()).await?;
    Ok((connection, channel))
}

/// Whether it was confirmed.
async fn rabbit_publish(channel: &Channel, function: &str, args: &str, id: Option<ExecutionId>) -> lapin::Result<bool> {
    let mut headers = FieldTable::default();
    headers.insert(header::ARGS.into(), AMQPValue::LongString(args.into()));
    let id = id.unwrap_or_default().to_string();
    headers.insert(header::EXECUTION_ID.into(), AMQPValue::LongString(id.as_str().into()));
    let seconds = u64::try_from(now().as_millis() / 1_000).unwrap_or_default();
    let properties = BasicProperties::default()
        .with_message_id(id.as_str().into())
        .with_timestamp(seconds)
        .with_delivery_mode(PERSISTENT)
        .with_headers(headers);
    let options = BasicPublishOptions::default();
    let confirm =
        channel.basic_publish("flux.invoke".into(), function.into(), options, b"{}", properties).await?.await?;
    Ok(confirm.is_ack())
}

fn is_not_found(error: &lapin::Error) -> bool {
    matches!(error.kind(), lapin::ErrorKind::ProtocolError(error) if error.get_id() == NOT_FOUND)
}

async fn left_in_streams(client: &async_nats::Client) -> Vec<String> {
    let queue = jetstream::new(client.clone());
    let pool = PoolName::default();
    let functions = function::NAMES.len() + 1;
    let streams = [
        (subject::stream(Lane::Invoke, &pool), functions),
        (subject::stream(Lane::Call, &pool), functions),
        (subject::STATUS_STREAM.to_owned(), 1),
    ];
    let mut left = Vec::new();
    for (name, most) in streams {
        let state = match queue.get_stream(&name).await {
            Ok(stream) => stream.cached_info().state.clone(),
            Err(error) => {
                left.push(format!("{name} cannot be looked at: {error}"));
                continue;
            }
        };
        if state.messages > 0 {
            left.push(format!("{name} still has {} messages", state.messages));
        }
        if state.consumer_count > most {
            left.push(format!("{name} has {} consumers for {most}", state.consumer_count));
        }
    }
    left
}

async fn left_in_queues(url: &str) -> lapin::Result<Vec<String>> {
    let connection = Connection::connect(url, ConnectionProperties::default()).await?;
    let mut left = Vec::new();
    let lanes = ["flux.invoke", "flux.call"];
    let queues = lanes.iter().flat_map(|lane| function::NAMES.map(|function| format!("{lane}.{function}")));
    for name in queues.chain([STATUSES.to_owned()]) {
        let channel = connection.create_channel().await?;
        let passive = QueueDeclareOptions { passive: true, ..QueueDeclareOptions::default() };
        match channel.queue_declare(name.as_str().into(), passive, FieldTable::default()).await {
            Ok(queue) if queue.message_count() > 0 => {
                left.push(format!("{name} still has {} messages", queue.message_count()));
            }
            Ok(_) => {}
            // A call's queue goes with its server's memory.
            Err(error) if is_not_found(&error) && name.starts_with("flux.call.") => {}
            Err(error) => return Err(error),
        }
    }
    connection.close(200, "done".into()).await?;
    Ok(left)
}
