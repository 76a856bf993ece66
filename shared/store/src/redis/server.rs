//! What is looked at before a server is used: that it keeps what it is given, and whose it is.

use std::collections::HashMap;

use ::redis::{
    Value,
    cluster_routing::{MultipleNodeRoutingInfo, RoutingInfo},
};

use super::{fault::Fault, keys::Keys, link::Wire};
use crate::Durability;

/// The form of what is kept. A newer release that needs another counts on.
const SCHEMA: usize = 1;
/// Shards in a cluster, which then grows to as many servers. One server has one: a batch is then one script.
const CLUSTER_SHARDS: usize = 16;

/// Says that the store is being filled.
pub(super) const FILLING: &str = "filling";

/// How many shards what is kept has; says so at the first start.
pub(super) async fn shards(wire: &mut Wire, prefix: &str, cluster: bool, filling: bool) -> Result<usize, Fault> {
    let meta = Keys::new(prefix, 1).meta();
    let shards = if cluster { CLUSTER_SHARDS } else { 1 };
    let (_, _, (schema, shards, half)): (i64, i64, (usize, usize, Option<String>)) = redis::pipe()
        .cmd("HSETNX")
        .arg(&meta)
        .arg("schema")
        .arg(SCHEMA)
        .cmd("HSETNX")
        .arg(&meta)
        .arg("shards")
        .arg(shards)
        .cmd("HMGET")
        .arg(&meta)
        .arg(&["schema", "shards", FILLING])
        .query_async(wire)
        .await?;
    if schema > SCHEMA {
        return Err(Fault::Refused {
            problem: format!(
                "the keys of `{prefix}` were written by a newer release of Flux (schema {schema}; this one knows {SCHEMA}): \
                 start that release, or restore the backup from before"
            ),
        });
    }
    if half.is_some() && !filling {
        return Err(Fault::Refused {
            problem: format!(
                "the keys of `{prefix}` are those of a restore that is under way, or broke off: let it end, or run \
                 `flux restore --force` again"
            ),
        });
    }
    Ok(shards)
}

/// Refuses a server that throws away what it was given, and says what it does not survive.
pub(super) async fn examine(wire: &mut Wire, place: &str, durability: Durability) -> Result<(), Fault> {
    for info in infos(wire).await? {
        let of = |name: &str| info.get(name).map_or("", String::as_str);
        let policy = of("maxmemory_policy");
        if !policy.is_empty() && policy != "noeviction" && of("maxmemory") != "0" {
            return Err(Fault::Refused {
                problem: format!(
                    "its `maxmemory-policy` is `{policy}`, with which it throws accepted executions away when its memory \
                     is full: set `maxmemory-policy noeviction`, with which it refuses new ones instead"
                ),
            });
        }
        if of("aof_enabled") == "1" {
            continue;
        }
        if durability == Durability::Power {
            return Err(Fault::Refused {
                problem: "it has no append-only file, so it cannot keep accepted work through a power cut, which \
                          `queue.durability: fsync` asks for: set `appendonly yes` and `appendfsync always`"
                    .to_owned(),
            });
        }
        tracing::warn!(
            store = place,
            "Redis has no append-only file: when its process dies, accepted executions, functions, keys and secrets since \
             its last snapshot are gone; set `appendonly yes`"
        );
    }
    if durability == Durability::Power {
        sync_is_always(wire, place).await?;
    }
    Ok(())
}

async fn sync_is_always(wire: &mut Wire, place: &str) -> Result<(), Fault> {
    let asked: Result<Value, _> = ask_all(wire, redis::cmd("CONFIG").arg("GET").arg("appendfsync")).await;
    // A hosted server does not tell.
    let Ok(told) = asked else {
        tracing::warn!(
            store = place,
            "whether Redis syncs each write cannot be asked; `appendfsync always` has to be set"
        );
        return Ok(());
    };
    let mut words = Vec::new();
    texts(&told, &mut words);
    match words.iter().find(|word| matches!(word.as_str(), "everysec" | "no")) {
        None => Ok(()),
        Some(word) => Err(Fault::Refused {
            problem: format!(
                "its `appendfsync` is `{word}`, so a power cut takes what was accepted last, which `queue.durability: fsync` \
                 forbids: set `appendfsync always`"
            ),
        }),
    }
}

/// Of each server, what it says about its memory and its files.
async fn infos(wire: &mut Wire) -> Result<Vec<HashMap<String, String>>, Fault> {
    let mut all = Vec::new();
    // Servers before version 7 tell of one section at a time.
    for section in ["memory", "persistence"] {
        let told = ask_all(wire, redis::cmd("INFO").arg(section)).await?;
        let mut found = Vec::new();
        texts(&told, &mut found);
        let found: Vec<String> = found.into_iter().filter(|text| text.contains(":") && text.contains('\n')).collect();
        all.resize_with(found.len().max(all.len()), HashMap::new);
        for (info, text) in all.iter_mut().zip(found) {
            let pairs = text.lines().filter_map(|line| line.trim().split_once(':'));
            info.extend(pairs.map(|(name, value)| (name.to_owned(), value.to_owned())));
        }
    }
    Ok(all)
}

/// Asks the server, or every primary of a cluster.
async fn ask_all(wire: &mut Wire, command: &redis::Cmd) -> Result<Value, Fault> {
    match wire {
        Wire::One(_) => Ok(command.query_async(wire).await?),
        Wire::Cluster(cluster) => {
            let primaries = RoutingInfo::MultiNode((MultipleNodeRoutingInfo::AllMasters, None));
            Ok(cluster.route_command(command.clone(), primaries).await?)
        }
    }
}

/// All text in an answer, whichever way it is nested.
fn texts(value: &Value, into: &mut Vec<String>) {
    match value {
        Value::BulkString(bytes) => into.push(String::from_utf8_lossy(bytes).into_owned()),
        Value::SimpleString(text) | Value::VerbatimString { text, .. } => into.push(text.clone()),
        Value::Array(values) | Value::Set(values) => values.iter().for_each(|value| texts(value, into)),
        Value::Map(pairs) => pairs.iter().for_each(|(name, value)| {
            texts(name, into);
            texts(value, into);
        }),
        _ => {}
    }
}
