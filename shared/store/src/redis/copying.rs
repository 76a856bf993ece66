//! Everything, key by key. Redis has no moment that all of it could be read at, so what is read when is chosen: the keys of
//! requests before the executions that they stand for, and executions before the versions that they ran.
//!
//! It has no transaction over all of it either. So a store that is being filled says so, and is not opened by a gateway until
//! it was filled to the end.

use std::collections::HashSet;

use ::redis::{AsyncCommands as _, FromRedisValue};
use flux_protocol::{Digest, ExecutionId, ExecutionRecord, FunctionName, Timestamp, limits};
use tokio::sync::mpsc;

use super::{
    Caller, access,
    executions::{Fields, fetch, id_of, known, read, write},
    fault::Fault,
    functions,
    keys::Keys,
    link::Wire,
    server::FILLING,
    transaction::{Transaction, stamp},
};
use crate::{
    Census, Entry, FunctionHead, HeldKey, NumberedEntry, Part, SealedSecret, SharedKey, StoreError, UsedKey, row::Row,
};

/// Records read, or written, in one step.
const STEP: usize = 100;
/// Keys looked through in one step of a scan.
const SCAN: usize = 1000;

pub(super) async fn census(mut wire: Wire, keys: &Keys) -> Result<Census, Fault> {
    let mut executions = 0;
    for shard in keys.shards() {
        let list: u64 = wire.zcard(keys.list(shard, None, None)).await?;
        executions += list;
    }
    let fields: Vec<String> = wire.hkeys(keys.api_keys()).await?;
    let secrets: Vec<String> = wire.hkeys(keys.secrets()).await?;
    Ok(Census {
        functions: wire.zcard(keys.functions()).await?,
        executions: executions.min(Census::COUNTED),
        keys: fields.iter().filter(|field| Keys::is_key_id(field)).count() as u64,
        secrets: secrets.iter().filter(|name| *name != Keys::VERSION).count() as u64,
    })
}

/// Sends; false where nobody takes any more.
async fn send(into: &mpsc::Sender<Entry>, entries: Vec<Entry>) -> bool {
    for entry in entries {
        if into.send(entry).await.is_err() {
            return false;
        }
    }
    true
}

pub(super) async fn export(link: &Caller, keys: &Keys, into: &mpsc::Sender<Entry>) -> Result<(), StoreError> {
    const ATTEMPTED: &str = "read all of it";
    // One server can be looked through. A cluster cannot: see docs/backup.md.
    // A scan may give a key twice. To know which were given would be to keep all of them: whoever imports takes either.
    if !link.link.is_cluster() {
        let mut cursor = 0;
        loop {
            let (next, held) = link.call(ATTEMPTED, |wire| held_keys(wire, keys.idempotency_prefix(), cursor)).await?;
            if !send(into, held).await {
                return Ok(());
            }
            cursor = next;
            if cursor == 0 {
                break;
            }
        }
    }
    for shard in keys.shards() {
        let list = keys.list(shard, None, None);
        // What comes later than this came after the beginning: or a busy store would never be read to its end.
        let last: Vec<Vec<u8>> = link
            .call(ATTEMPTED, |mut wire| {
                let list = list.clone();
                async move { Ok(wire.zrevrangebylex_limit(list, "+", "-", 0, 1).await?) }
            })
            .await?;
        let Some(last) = last.first() else { continue };
        let mut from = b"-".to_vec();
        loop {
            let page = link.call(ATTEMPTED, |wire| executions_from(wire, keys, &list, &from, last)).await?;
            let Some((end, records)) = page else { break };
            if !send(into, records.into_iter().map(|record| Entry::Execution(Box::new(record))).collect()).await {
                return Ok(());
            }
            from = [&b"("[..], &end].concat();
        }
    }
    for name in names(link, keys, ATTEMPTED).await? {
        let entries = link.call(ATTEMPTED, |wire| function(wire, keys, &name)).await?;
        if !send(into, entries).await {
            return Ok(());
        }
    }
    let entries = link.call(ATTEMPTED, |wire| access_entries(wire, keys)).await?;
    if !send(into, entries).await {
        return Ok(());
    }
    let mut before = None;
    loop {
        let page = link.call(ATTEMPTED, |wire| access::audit_log(wire, keys, before, limits::PAGE)).await?;
        let Some((seq, _)) = page.last() else { return Ok(()) };
        before = Some(*seq);
        let entries = page.into_iter().map(|(seq, entry)| Entry::Audit(NumberedEntry { seq, entry }));
        if !send(into, entries.collect()).await {
            return Ok(());
        }
    }
}

async fn scan(wire: &mut Wire, pattern: &str, cursor: u64) -> Result<(u64, Vec<String>), Fault> {
    let mut command = redis::cmd("SCAN");
    command.arg(cursor).arg("MATCH").arg(pattern).arg("COUNT").arg(SCAN);
    Ok(command.query_async(wire).await?)
}

/// Execution, body, when, and until when.
type Held = (Option<Vec<u8>>, Option<Vec<u8>>, Option<i64>, Option<i64>);

async fn held_keys(mut wire: Wire, prefix: String, cursor: u64) -> Result<(u64, Vec<Entry>), Fault> {
    let (next, names) = scan(&mut wire, &format!("{prefix}*"), cursor).await?;
    let mut entries = Vec::new();
    for name in names {
        let (execution, body, at, until): Held =
            redis::cmd("HMGET").arg(&name).arg(&["execution", "body", "at", "until"]).query_async(&mut wire).await?;
        // It may have run out since.
        let (Some(execution), Some(body), Some(at), Some(until)) = (execution, body, at, until) else { continue };
        let wrong = || Fault::row("an idempotency key", "it is not as Flux wrote it");
        let (function, key) = name[prefix.len()..].split_once(':').ok_or_else(wrong)?;
        entries.push(Entry::Idempotency(HeldKey {
            function: FunctionName::parse(function).map_err(|_| wrong())?,
            key: key.to_owned(),
            execution: ExecutionId::from_bytes(execution.try_into().map_err(|_| wrong())?),
            body: Digest::from_bytes(body.try_into().map_err(|_| wrong())?),
            at: Timestamp::from_micros(at),
            expires_at: Timestamp::from_micros(until),
        }));
    }
    Ok((next, entries))
}

/// The next records of a shard, up to `last`, and where they end. `None`: that were all.
async fn executions_from(
    mut wire: Wire,
    keys: &Keys,
    list: &str,
    from: &[u8],
    last: &[u8],
) -> Result<Option<(Vec<u8>, Vec<ExecutionRecord>)>, Fault> {
    let to = [&b"["[..], last].concat();
    let mut command = redis::cmd("ZRANGEBYLEX");
    command.arg(list).arg(from).arg(to).arg("LIMIT").arg(0).arg(STEP);
    let members: Vec<Vec<u8>> = command.query_async(&mut wire).await?;
    let Some(end) = members.last().cloned() else { return Ok(None) };
    let ids = members.iter().map(|member| id_of(member)).collect::<Result<Vec<_>, _>>()?;
    let found: Vec<Fields> = fetch(&wire, keys, &ids, &["r", "o", "i", "w", "f", "s", "t"]).await?;
    let mut records = Vec::with_capacity(found.len());
    for fields in found {
        records.extend(known(fields)?.map(super::executions::Known::into_record));
    }
    Ok(Some((end, records)))
}

/// Of functions that are there, and where that can be found out of those that were deleted.
async fn names(link: &Caller, keys: &Keys, attempted: &'static str) -> Result<HashSet<FunctionName>, StoreError> {
    let named = |all: Vec<String>| -> Result<Vec<FunctionName>, Fault> {
        let parsed = all.iter().map(|name| FunctionName::parse(name));
        parsed.map(|name| name.map_err(|error| Fault::row("the list of functions", error))).collect()
    };
    let listed = |mut wire: Wire| async move { named(wire.zrange(keys.functions(), 0, -1).await?) };
    let mut all: HashSet<FunctionName> = link.call(attempted, listed).await?.into_iter().collect();
    if link.link.is_cluster() {
        return Ok(all);
    }
    let prefix = keys.functions_prefix();
    let mut cursor = 0;
    loop {
        let pattern = format!("{prefix}*");
        let pattern = &pattern;
        let (next, found) =
            link.call(attempted, |mut wire| async move { scan(&mut wire, pattern, cursor).await }).await?;
        // The list itself lies among them, under what is no name.
        all.extend(found.iter().filter_map(|key| FunctionName::parse(&key[prefix.len()..]).ok()));
        cursor = next;
        if cursor == 0 {
            return Ok(all);
        }
    }
}

async fn function(mut wire: Wire, keys: &Keys, name: &FunctionName) -> Result<Vec<Entry>, Fault> {
    let Some((current, last, versions)) = functions::whole(&mut wire, keys, name).await? else {
        return Ok(Vec::new());
    };
    let head = Entry::Function(FunctionHead { name: name.clone(), current, last });
    Ok([head].into_iter().chain(versions.into_iter().map(|version| Entry::Version(Box::new(version)))).collect())
}

async fn access_entries(mut wire: Wire, keys: &Keys) -> Result<Vec<Entry>, Fault> {
    let mut all: Vec<Entry> = Vec::new();
    for record in access::api_keys(wire.clone(), keys).await? {
        all.push(Entry::ApiKey(UsedKey::of(record)));
    }
    all.extend(access::secrets(wire.clone(), keys).await?.into_iter().map(Entry::Secret));
    let shared: std::collections::HashMap<String, Vec<u8>> = hash(&mut wire, keys.shared()).await?;
    all.extend(shared.into_iter().map(|(name, value)| Entry::SharedKey(SharedKey { name, value })));
    Ok(all)
}

async fn hash<T: FromRedisValue>(wire: &mut Wire, key: String) -> Result<T, Fault> {
    Ok(redis::cmd("HGETALL").arg(key).query_async(wire).await?)
}

/// Whether the end came.
pub(super) async fn import(link: &Caller, keys: &Keys, parts: &mut mpsc::Receiver<Part>) -> Result<bool, StoreError> {
    const ATTEMPTED: &str = "fill it";
    let mark = |mut wire: Wire| async move {
        let _: i64 = wire.hset(keys.meta(), FILLING, 1).await?;
        Ok::<_, Fault>(())
    };
    link.call(ATTEMPTED, mark).await?;
    empty(link, keys, ATTEMPTED).await?;
    let mut rows: Vec<Row> = Vec::new();
    let mut functions: Vec<Entry> = Vec::new();
    while let Some(part) = parts.recv().await {
        match part {
            Part::Entry(Entry::Execution(record)) => {
                rows.push(Row::of(*record));
                if rows.len() >= STEP || rows.iter().map(Row::bytes).sum::<usize>() >= limits::STORE_BATCH_BYTES {
                    write_rows(link, keys, ATTEMPTED, &mut rows).await?;
                }
            }
            // Current and last are of the function, whose versions may come before or after it.
            Part::Entry(entry @ Entry::Function(_)) => functions.push(entry),
            Part::Entry(entry) => link.call(ATTEMPTED, |wire| put(wire, keys, entry.clone())).await?,
            Part::End => {
                write_rows(link, keys, ATTEMPTED, &mut rows).await?;
                for entry in functions {
                    link.call(ATTEMPTED, |wire| put(wire, keys, entry.clone())).await?;
                }
                let done = |mut wire: Wire| async move {
                    let _: i64 = wire.hdel(keys.meta(), FILLING).await?;
                    Ok::<_, Fault>(())
                };
                link.call(ATTEMPTED, done).await?;
                return Ok(true);
            }
        }
    }
    Ok(false)
}

/// Removes all keys but the leases' and what says how the store is laid out.
async fn empty(link: &Caller, keys: &Keys, attempted: &'static str) -> Result<(), StoreError> {
    if link.link.is_cluster() {
        // Its keys cannot be looked through; of the others there are none.
        if !link.call(attempted, |wire| census(wire, keys)).await?.is_empty() {
            return Err(StoreError::Corrupt {
                problem: format!(
                    "{} is a cluster and not empty, and the keys of a cluster cannot be removed from here: empty it by \
                     hand, or name another `prefix`",
                    link.link.place
                ),
            });
        }
        let remove = |mut wire: Wire| async move {
            for key in keys.of_access() {
                let _: i64 = wire.del(key).await?;
            }
            Ok::<_, Fault>(())
        };
        return link.call(attempted, remove).await;
    }
    for pattern in keys.patterns() {
        let pattern = &pattern;
        let mut cursor = 0;
        loop {
            let step = |mut wire: Wire| async move {
                let (next, mut found) = scan(&mut wire, pattern, cursor).await?;
                found.retain(|key| !keys.outlives(key));
                if !found.is_empty() {
                    let _: i64 = wire.unlink(found).await?;
                }
                Ok::<_, Fault>(next)
            };
            cursor = link.call(attempted, step).await?;
            if cursor == 0 {
                break;
            }
        }
    }
    Ok(())
}

async fn write_rows(
    link: &Caller,
    keys: &Keys,
    attempted: &'static str,
    rows: &mut Vec<Row>,
) -> Result<(), StoreError> {
    for shard in keys.shards() {
        let of_shard: Vec<&Row> = rows.iter().filter(|row| keys.shard_of(&row.id) == shard).collect();
        let of_shard = &of_shard;
        let step = |mut wire: Wire| async move {
            // What a try before has written, whose answer was lost, is written again.
            let ids: Vec<[u8; 16]> = of_shard.iter().map(|row| row.id).collect();
            let known = read(&mut wire, keys, &ids).await?;
            let mut transaction = Transaction::default();
            for row in of_shard {
                write(&mut transaction, keys, known.get(&row.id), row, &stamp());
            }
            transaction.run(&mut wire).await
        };
        if !of_shard.is_empty() {
            link.call(attempted, step).await?;
        }
    }
    rows.clear();
    Ok(())
}

/// Puts one entry; putting it again changes nothing.
async fn put(mut wire: Wire, keys: &Keys, entry: Entry) -> Result<(), Fault> {
    match entry {
        Entry::Function(head) => functions::put_head(&mut wire, keys, &head).await,
        Entry::Version(version) => functions::put_version(&mut wire, keys, &version).await,
        Entry::Execution(_) => Ok(()), // in groups
        Entry::Idempotency(held) => super::claims::put(&mut wire, keys, &held).await,
        Entry::ApiKey(used) => {
            let UsedKey { record, last_used_at } = *used;
            let id = record.id.as_str();
            let _: i64 = wire.hset(keys.api_keys(), id, access::written("an API key", &record)?).await?;
            if let Some(used) = last_used_at {
                let _: i64 = wire.hset(keys.keys_used(), id, used.as_micros()).await?;
            }
            Ok(())
        }
        Entry::Audit(NumberedEntry { seq, entry }) => access::put_audit(&mut wire, keys, seq, &entry).await,
        Entry::SharedKey(SharedKey { name, value }) => {
            let _: i64 = wire.hset(keys.shared(), name, value).await?;
            Ok(())
        }
        Entry::Secret(secret) => put_secret(&mut wire, keys, &secret).await,
    }
}

async fn put_secret(wire: &mut Wire, keys: &Keys, secret: &SealedSecret) -> Result<(), Fault> {
    let _: i64 = wire.hset(keys.secrets(), secret.name.as_str(), 1).await?;
    let mut command = redis::cmd("HSET");
    command.arg(keys.secret(&secret.name)).arg("version").arg(secret.version).arg("key").arg(&secret.key);
    command.arg("sealed").arg(&secret.sealed);
    command.arg("created_at").arg(secret.created_at.as_micros()).arg("updated_at").arg(secret.updated_at.as_micros());
    let _: i64 = command.query_async(wire).await?;
    Ok(())
}
