//! The streams and buckets, as configured here and nowhere else.

use std::time::Duration;

use async_nats::jetstream::stream::{Config, DiscardPolicy, Republish, RetentionPolicy, StorageType};
use flux_protocol::{
    PoolName, Timestamp,
    invocation::Lane,
    limits,
    subject::{self, BLOB_BUCKET, CODE_BUCKET, DLQ_STREAM, OUTPUT_BUCKET, STATUS_STREAM},
};
use futures::{StreamExt as _, TryStreamExt as _, stream};
use serde::Deserialize;

use super::{
    core::{ApiFailure, Core},
    dead_letters::SAME_WITHIN,
    delayed,
    tables::{bucket, is_passing},
};
use crate::{BrokerError, Table};

/// Ids of a lane whose gateways wait for each message: only a try that is sent again must be told. The server keeps
/// each id in memory for as long.
const CALL_DUPLICATE_WINDOW: Duration = Duration::from_secs(15);
/// The same for statuses, which whoever sent them sends again until they are stored.
const STATUS_DUPLICATE_WINDOW: Duration = Duration::from_secs(30);
/// Requests at once: the server makes streams one after the other anyway.
const AT_ONCE: usize = 16;

/// Makes what is missing and updates what differs. All at once: where everything is there, it is one round trip.
pub(super) async fn provision(core: &Core, pools: &[PoolName]) -> Result<(), BrokerError> {
    let connects = core.link_now().connects;
    core.forget_epochs();
    let lanes = pools.iter().flat_map(|pool| Lane::ALL.map(|lane| (lane, pool.clone())));
    let mut wanted: Vec<(Option<(Lane, PoolName)>, Config)> =
        lanes.map(|(lane, pool)| (Some((lane, pool.clone())), queues(lane, &pool))).collect();
    let tables = [
        Table::Functions,
        Table::Versions,
        Table::Agents,
        Table::Hot,
        Table::Cancelled,
        Table::Registered,
        Table::Autoscaler,
    ]
    .map(table);
    let objects = [CODE_BUCKET, BLOB_BUCKET, OUTPUT_BUCKET].map(object_store);
    wanted.extend(pools.iter().map(|pool| (None, delayed::config(pool))));
    wanted.extend([statuses(), dead_letters()].into_iter().chain(tables).chain(objects).map(|config| (None, config)));

    stream::iter(wanted)
        .map(|(lane, mut config)| async move {
            config.num_replicas = core.replicas;
            let created = make(core, &config).await?;
            if let Some((lane, pool)) = lane {
                core.note_epoch(lane, &pool, connects, created);
            }
            Ok::<(), BrokerError>(())
        })
        .buffer_unordered(AT_ONCE)
        .try_collect::<Vec<()>>()
        .await
        .map(|_| ())
}

/// When it was made.
async fn make(core: &Core, config: &Config) -> Result<Timestamp, BrokerError> {
    #[derive(Deserialize)]
    struct Made {
        created: Timestamp,
    }
    let attempted = "make a stream";
    let body = serde_json::to_vec(config).map_err(|error| BrokerError::refused(attempted, error))?;
    let name = &config.name;
    let made = core.api::<Made>(attempted, &format!("STREAM.CREATE.{name}"), body.clone()).await;
    match made {
        Ok(made) => Ok(made.created),
        Err(ApiFailure::Api(error)) if error.is_name_in_use() => {
            tracing::info!(stream = %name, "a stream has another configuration; updating it");
            let updated = core.api::<Made>(attempted, &format!("STREAM.UPDATE.{name}"), body).await;
            match updated {
                Ok(updated) => Ok(updated.created),
                Err(ApiFailure::Api(error)) => Err(BrokerError::refused(
                    "change a stream's configuration",
                    format!("stream {name} exists with a configuration that cannot be changed to Flux's: {error}"),
                )),
                Err(ApiFailure::Broker(error)) => Err(error),
            }
        }
        Err(failure) => Err(failure.into_broker(attempted, name)),
    }
}

/// What all have in common: nothing is lost silently, nothing is unbounded but by its own limit.
pub(super) fn base(name: impl Into<String>, subjects: Vec<String>) -> Config {
    Config {
        name: name.into(),
        subjects,
        discard: DiscardPolicy::New,
        max_bytes: -1,
        max_messages: -1,
        max_messages_per_subject: -1,
        max_consumers: limits::CONSUMERS,
        max_message_size: -1,
        storage: StorageType::File,
        num_replicas: 1,
        duplicate_window: limits::DUPLICATE_WINDOW,
        allow_direct: true,
        ..Config::default()
    }
}

fn queues(lane: Lane, pool: &PoolName) -> Config {
    let mut config = base(subject::stream(lane, pool), vec![subject::stream_subjects(lane, pool)]);
    config.retention = RetentionPolicy::WorkQueue;
    config.discard_new_per_subject = true;
    config.max_messages_per_subject = limits::QUEUED_PER_FUNCTION;
    match lane {
        Lane::Call => {
            config.storage = StorageType::Memory;
            config.duplicate_window = CALL_DUPLICATE_WINDOW;
            config.max_bytes = limits::CALL_STREAM_BYTES;
        }
        Lane::Invoke => {
            config.max_bytes = limits::INVOKE_STREAM_BYTES;
            let (source, destination) = subject::ring_mapping(lane, pool);
            config.republish = Some(Republish { source, destination, headers_only: true });
        }
    }
    config
}

fn statuses() -> Config {
    Config {
        retention: RetentionPolicy::WorkQueue,
        max_bytes: limits::STATUS_STREAM_BYTES,
        duplicate_window: STATUS_DUPLICATE_WINDOW,
        ..base(STATUS_STREAM, vec![subject::status_logs().to_owned()])
    }
}

fn dead_letters() -> Config {
    Config {
        max_bytes: limits::DLQ_STREAM_BYTES,
        duplicate_window: SAME_WITHIN,
        ..base(DLQ_STREAM, vec![subject::dlqs().to_owned()])
    }
}

fn table(table: Table) -> Config {
    let bucket = bucket(table);
    let mut config = base(bucket.stream, vec![format!("{}>", bucket.prefix)]);
    // Rolling up can be asked for by whoever publishes, and of a whole stream: not where agents do.
    config.allow_rollup = table != Table::Agents;
    config.deny_delete = true;
    config.max_messages_per_subject = match table {
        Table::Functions => i64::from(limits::VERSION_HISTORY),
        Table::Versions | Table::Agents | Table::Hot | Table::Cancelled | Table::Registered | Table::Autoscaler => 1,
    };
    if is_passing(table) {
        config.storage = StorageType::Memory;
        config.allow_message_ttl = true;
    }
    if let Some(ttl) = table.ttl() {
        config.max_age = ttl;
    }
    if let Some(destination) = bucket.changes() {
        config.republish = Some(Republish { source: format!("{}>", bucket.prefix), destination, headers_only: false });
    }
    if let Table::Agents = table {
        config.duplicate_window = Duration::from_secs(5);
    }
    config
}

fn object_store(bucket: &str) -> Config {
    let mut config = base(format!("OBJ_{bucket}"), vec![format!("$O.{bucket}.C.>"), format!("$O.{bucket}.M.>")]);
    if bucket == OUTPUT_BUCKET {
        // Agents write here. Each subject has one message.
        config.max_messages_per_subject = 1;
        return config;
    }
    config.allow_rollup = true;
    config
}
