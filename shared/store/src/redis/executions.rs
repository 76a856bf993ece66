//! Records of executions: merged by [`merge`](crate::merge), and written if nobody wrote them meanwhile.

use std::collections::HashMap;

use flux_protocol::{ExecutionId, ExecutionRecord, Timestamp, execution::QueuePosition};
use futures::future::try_join_all;
use parking_lot::Mutex;

use super::{
    fault::Fault,
    keys::Keys,
    link::Wire,
    transaction::{Transaction, stamp},
};
use crate::{
    ExecutionFilter, Recorded, StatusUpdate,
    batch::{self, MergedBatch},
    merge_queued, merge_requeued,
    row::{self, OPEN, Question, Row},
};

/// Ids looked through in one step of a list that leaves some out.
const SCAN_STEP: usize = 1000;
/// While no more than so many are stale they are asked for by their time, and else looked for in the order of their ids.
const STALE_FEW: i64 = 5000;

/// A record as it was read.
pub(super) struct Known {
    record: ExecutionRecord,
    /// Which write this is of.
    stamp: Vec<u8>,
    function: String,
    status: i16,
    status_at: i64,
}

impl Known {
    pub(super) fn into_record(self) -> ExecutionRecord {
        self.record
    }
}

pub(super) type Fields =
    (Option<Vec<u8>>, Option<Vec<u8>>, Option<Vec<u8>>, Option<Vec<u8>>, Option<String>, Option<i16>, Option<i64>);

pub(super) fn known(
    (record, output, invocation, stamp, function, status, status_at): Fields,
) -> Result<Option<Known>, Fault> {
    let Some(record) = record else { return Ok(None) };
    let missing = || Fault::row("an execution", "it is not as Flux wrote it");
    Ok(Some(Known {
        record: row::whole(&record, output.as_deref(), invocation.as_deref())?,
        stamp: stamp.ok_or_else(missing)?,
        function: function.ok_or_else(missing)?,
        status: status.ok_or_else(missing)?,
        status_at: status_at.ok_or_else(missing)?,
    }))
}

/// What is there of `ids`, which are of one shard.
pub(super) async fn read(wire: &mut Wire, keys: &Keys, ids: &[[u8; 16]]) -> Result<HashMap<[u8; 16], Known>, Fault> {
    let mut pipe = redis::pipe();
    for id in ids {
        pipe.cmd("HMGET").arg(keys.execution(id)).arg(&["r", "o", "i", "w", "f", "s", "t"]);
    }
    let found: Vec<Fields> = if ids.is_empty() { Vec::new() } else { pipe.query_async(wire).await? };
    let mut all = HashMap::with_capacity(ids.len());
    for (id, fields) in ids.iter().zip(found) {
        if let Some(known) = known(fields)? {
            all.insert(*id, known);
        }
    }
    Ok(all)
}

pub(super) async fn load(mut wire: Wire, keys: &Keys, id: ExecutionId) -> Result<Option<ExecutionRecord>, Fault> {
    let mut found = read(&mut wire, keys, &[*id.as_bytes()]).await?;
    Ok(found.remove(id.as_bytes()).map(|known| known.record))
}

/// Adds to a transaction that `row` takes the place of `before`, in the lists too.
pub(super) fn write(transaction: &mut Transaction, keys: &Keys, before: Option<&Known>, row: &Row, stamp: &[u8]) {
    let (shard, key) = (keys.shard_of(&row.id), keys.execution(&row.id));
    transaction.check(&key, "w", before.map_or(&[][..], |known| &known.stamp));
    let (status, status_at) = (row.status.to_string(), row.status_at.to_string());
    let mut words: Vec<&[u8]> = vec![b"r", row.record.as_bytes(), b"w", stamp, b"f", row.function.as_bytes()];
    words.extend([&b"s"[..], status.as_bytes(), b"t", status_at.as_bytes()]);
    let mut gone: Vec<&[u8]> = Vec::new();
    match &row.output {
        Some(output) => words.extend([b"o", &output[..]]),
        None => gone.push(b"o"),
    }
    match &row.invocation {
        Some(invocation) => words.extend([b"i", invocation.as_bytes()]),
        None => gone.push(b"i"),
    }
    transaction.add("HSET", &key, &words);
    if before.is_some() && !gone.is_empty() {
        transaction.add("HDEL", &key, &gone);
    }

    let listed = before.map(|known| (known.function.as_str(), known.status));
    if let Some((function, status)) = listed.filter(|listed| *listed != (&row.function, row.status)) {
        unlist(transaction, keys, &row.id, function, status, function != row.function);
    }
    if listed != Some((&row.function, row.status)) {
        let id = &row.id[..];
        transaction.add("ZADD", &keys.list(shard, None, None), &[b"0", id]);
        transaction.add("ZADD", &keys.list(shard, Some(&row.function), None), &[b"0", id]);
        transaction.add("ZADD", &keys.list(shard, None, Some(row.status)), &[b"0", id]);
        transaction.add("ZADD", &keys.list(shard, Some(&row.function), Some(row.status)), &[b"0", id]);
    }
    transaction.add("ZADD", &keys.by_time(shard, row.status), &[status_at.as_bytes(), &row.id]);
}

/// Takes an id out of the lists of its status, and if it is told to out of its function's too.
fn unlist(transaction: &mut Transaction, keys: &Keys, id: &[u8; 16], function: &str, status: i16, of_function: bool) {
    let shard = keys.shard_of(id);
    transaction.add("ZREM", &keys.list(shard, None, Some(status)), &[id]);
    transaction.add("ZREM", &keys.list(shard, Some(function), Some(status)), &[id]);
    transaction.add("ZREM", &keys.by_time(shard, status), &[id]);
    if of_function {
        transaction.add("ZREM", &keys.list(shard, Some(function), None), &[id]);
    }
}

/// `first`: it is likely new, and written as if it were.
pub(super) async fn insert_queued(
    mut wire: Wire,
    keys: &Keys,
    record: &ExecutionRecord,
    row: &Row,
    first: bool,
) -> Result<(), Fault> {
    let before = if first { None } else { read(&mut wire, keys, &[row.id]).await?.remove(&row.id) };
    let mut transaction = Transaction::default();
    match before {
        None => write(&mut transaction, keys, None, row, &stamp()),
        Some(known) => {
            let row = Row::of(merge_queued(Some(known.record.clone()), record.clone()));
            write(&mut transaction, keys, Some(&known), &row, &stamp());
        }
    }
    transaction.run(&mut wire).await
}

pub(super) async fn requeued(
    mut wire: Wire,
    keys: &Keys,
    id: ExecutionId,
    attempt: u32,
    position: &QueuePosition,
    now: Timestamp,
) -> Result<(), Fault> {
    let Some(known) = read(&mut wire, keys, &[*id.as_bytes()]).await?.remove(id.as_bytes()) else { return Ok(()) };
    let row = Row::of(merge_requeued(known.record.clone(), attempt, position.clone(), now));
    let mut transaction = Transaction::default();
    write(&mut transaction, keys, Some(&known), &row, &stamp());
    transaction.run(&mut wire).await
}

/// How far a shard's part of a batch is: what a write is told of is told once, so that a write whose answer was lost is
/// recognised by its stamp and not made again.
#[derive(Default)]
pub(super) enum Part {
    #[default]
    New,
    Sent {
        stamp: [u8; 16],
        results: Vec<Recorded>,
    },
    Done(Vec<Recorded>),
}

pub(super) type Parts = Mutex<HashMap<usize, Part>>;

pub(super) async fn record(
    wire: Wire,
    keys: &Keys,
    updates: &[StatusUpdate],
    parts: &Parts,
) -> Result<Vec<Recorded>, Fault> {
    let mut of_shards: HashMap<usize, Vec<usize>> = HashMap::new();
    for (number, update) in updates.iter().enumerate() {
        of_shards.entry(keys.shard_of(update.status.execution_id.as_bytes())).or_default().push(number);
    }
    let of_shards: Vec<(usize, Vec<usize>)> = of_shards.into_iter().collect();
    let recorded = of_shards.iter().map(|(shard, numbers)| {
        let part: Vec<StatusUpdate> = numbers.iter().map(|number| updates[*number].clone()).collect();
        record_part(wire.clone(), keys, *shard, part, parts)
    });
    let recorded = try_join_all(recorded).await?;
    let mut results: Vec<(usize, Recorded)> = Vec::with_capacity(updates.len());
    for ((_, numbers), part) in of_shards.iter().zip(recorded) {
        results.extend(numbers.iter().copied().zip(part));
    }
    results.sort_unstable_by_key(|(number, _)| *number);
    Ok(results.into_iter().map(|(_, recorded)| recorded).collect())
}

async fn record_part(
    mut wire: Wire,
    keys: &Keys,
    shard: usize,
    updates: Vec<StatusUpdate>,
    parts: &Parts,
) -> Result<Vec<Recorded>, Fault> {
    let before = parts.lock().remove(&shard).unwrap_or_default();
    if let Part::Done(results) = before {
        parts.lock().insert(shard, Part::Done(results.clone()));
        return Ok(results);
    }
    let ids: Vec<[u8; 16]> = batch::ids(&updates).iter().map(|id| *id.as_bytes()).collect();
    let found = read(&mut wire, keys, &ids).await;
    if let Part::Sent { stamp, results } = before {
        match &found {
            Ok(found) if found.values().any(|known| known.stamp == stamp) => {
                parts.lock().insert(shard, Part::Done(results.clone()));
                return Ok(results);
            }
            Ok(_) => {}
            Err(_) => drop(parts.lock().insert(shard, Part::Sent { stamp, results })),
        }
    }
    let found = found?;
    let known = found.iter().map(|(id, known)| (ExecutionId::from_bytes(*id), known.record.clone())).collect();
    let MergedBatch { results, changed } = batch::merge(known, &updates);
    let stamp = stamp();
    let mut transaction = Transaction::default();
    for record in changed {
        let row = Row::of(record);
        write(&mut transaction, keys, found.get(&row.id), &row, &stamp);
    }
    if !transaction.is_empty() {
        parts.lock().insert(shard, Part::Sent { stamp, results: results.clone() });
        let written = transaction.run(&mut wire).await;
        if let Err(Fault::Raced) = &written {
            parts.lock().remove(&shard);
        }
        written?;
    }
    parts.lock().insert(shard, Part::Done(results.clone()));
    Ok(results)
}

/// The ids of one list of a shard, newest first, below `cursor` and not below `first`.
async fn newest(
    mut wire: Wire,
    list: String,
    cursor: Option<[u8; 16]>,
    first: Option<[u8; 16]>,
    count: usize,
) -> Result<Vec<Vec<u8>>, Fault> {
    let bound = |sign: &[u8], id: [u8; 16]| [sign, &id].concat();
    let from = cursor.map_or_else(|| b"+".to_vec(), |cursor| bound(b"(", cursor));
    let to = first.map_or_else(|| b"-".to_vec(), |first| bound(b"[", first));
    let mut command = redis::cmd("ZREVRANGEBYLEX");
    command.arg(list).arg(from).arg(to).arg("LIMIT").arg(0).arg(count);
    Ok(command.query_async(&mut wire).await?)
}

pub(super) fn id_of(member: &[u8]) -> Result<[u8; 16], Fault> {
    member.try_into().map_err(|_| Fault::row("a list of executions", "it has something else than ids in it"))
}

/// The given fields of executions, in the order of `ids`.
pub(super) async fn fetch<T: redis::FromRedisValue + Send>(
    wire: &Wire,
    keys: &Keys,
    ids: &[[u8; 16]],
    fields: &[&str],
) -> Result<Vec<T>, Fault> {
    let mut of_shards: HashMap<usize, Vec<usize>> = HashMap::new();
    for (number, id) in ids.iter().enumerate() {
        of_shards.entry(keys.shard_of(id)).or_default().push(number);
    }
    let fetched = of_shards.into_values().map(|numbers| {
        let mut pipe = redis::pipe();
        for number in &numbers {
            pipe.cmd("HMGET").arg(keys.execution(&ids[*number])).arg(fields);
        }
        let mut wire = wire.clone();
        async move {
            let found: Vec<T> = pipe.query_async(&mut wire).await?;
            Ok::<_, Fault>(numbers.into_iter().zip(found).collect::<Vec<_>>())
        }
    });
    let mut all: Vec<(usize, T)> = try_join_all(fetched).await?.into_iter().flatten().collect();
    all.sort_unstable_by_key(|(number, _)| *number);
    Ok(all.into_iter().map(|(_, found)| found).collect())
}

pub(super) async fn list(wire: Wire, keys: &Keys, filter: &ExecutionFilter) -> Result<Vec<ExecutionRecord>, Fault> {
    let Question { function, status, mut cursor, since, limit } = Question::of(filter);
    let (since, first) = since.unzip();
    let mut records = Vec::new();
    loop {
        let lists = keys
            .shards()
            .map(|shard| newest(wire.clone(), keys.list(shard, function.as_deref(), status), cursor, first, limit));
        let mut ids = Vec::new();
        for member in try_join_all(lists).await?.into_iter().flatten() {
            ids.push(id_of(&member)?);
        }
        ids.sort_unstable_by(|a, b| b.cmp(a));
        ids.truncate(limit);
        let found: Vec<(Option<Vec<u8>>, Option<i16>)> = fetch(&wire, keys, &ids, &["r", "s"]).await?;
        for (record, now) in found {
            // It may have gone, or gone on, since the list was read.
            let Some(record) = record.filter(|_| status.is_none() || status == now) else { continue };
            let record = row::slim(&record)?;
            if since.is_none_or(|since| record.queued_at.as_micros() >= since) {
                records.push(record);
            }
        }
        if records.len() >= limit || ids.len() < limit {
            records.truncate(limit);
            return Ok(records);
        }
        cursor = ids.last().copied();
    }
}

pub(super) async fn list_open(
    wire: Wire,
    keys: &Keys,
    before: Timestamp,
    after: Option<ExecutionId>,
    limit: usize,
) -> Result<Vec<ExecutionRecord>, Fault> {
    let limit = row::page(limit);
    let after = after.map(|id| *id.as_bytes());
    let before = before.as_micros();
    let stale = keys.shards().map(|shard| stale(wire.clone(), keys, shard, before, after, limit));
    let mut ids: Vec<[u8; 16]> = try_join_all(stale).await?.into_iter().flatten().collect();
    ids.sort_unstable();
    ids.truncate(limit);
    let found: Vec<Fields> = fetch(&wire, keys, &ids, &["r", "o", "i", "w", "f", "s", "t"]).await?;
    let mut records = Vec::with_capacity(found.len());
    for fields in found {
        if let Some(known) = known(fields)?.filter(|known| known.status == OPEN && known.status_at < before) {
            records.push(known.record);
        }
    }
    Ok(records)
}

/// Ids of a shard's open executions that did not change since `before`, oldest first, at least `limit` of them if there are.
async fn stale(
    mut wire: Wire,
    keys: &Keys,
    shard: usize,
    before: i64,
    after: Option<[u8; 16]>,
    limit: usize,
) -> Result<Vec<[u8; 16]>, Fault> {
    let (open, by_time) = (keys.list(shard, None, Some(OPEN)), keys.by_time(shard, OPEN));
    let until = format!("({before}");
    let count: i64 = redis::cmd("ZCOUNT").arg(&by_time).arg("-inf").arg(&until).query_async(&mut wire).await?;
    if count <= STALE_FEW {
        let mut command = redis::cmd("ZRANGEBYSCORE");
        let members: Vec<Vec<u8>> = command.arg(&by_time).arg("-inf").arg(&until).query_async(&mut wire).await?;
        let mut ids = members.iter().map(|member| id_of(member)).collect::<Result<Vec<_>, _>>()?;
        ids.retain(|id| after.is_none_or(|after| *id > after));
        ids.sort_unstable();
        return Ok(ids);
    }
    let mut from = after;
    let mut ids = Vec::new();
    loop {
        let start = from.map_or_else(|| b"-".to_vec(), |from| [&b"("[..], &from].concat());
        let mut command = redis::cmd("ZRANGEBYLEX");
        command.arg(&open).arg(start).arg("+").arg("LIMIT").arg(0).arg(SCAN_STEP);
        let members: Vec<Vec<u8>> = command.query_async(&mut wire).await?;
        let Some(last) = members.last() else { return Ok(ids) };
        from = Some(id_of(last)?);
        let times: Vec<Option<f64>> = redis::cmd("ZMSCORE").arg(&by_time).arg(&members).query_async(&mut wire).await?;
        for (member, at) in members.iter().zip(times) {
            #[allow(clippy::cast_precision_loss)] // microseconds since the epoch are exact for two centuries more
            if at.is_some_and(|at| at < before as f64) {
                ids.push(id_of(member)?);
            }
        }
        if ids.len() >= limit || members.len() < SCAN_STEP {
            return Ok(ids);
        }
    }
}

/// Removes at most `limit` records whose end is older than `before`, the oldest first.
pub(super) async fn expire(
    wire: Wire,
    keys: &Keys,
    before: Timestamp,
    limit: usize,
) -> Result<Vec<ExecutionRecord>, Fault> {
    if limit == 0 {
        return Ok(Vec::new());
    }
    const ENDED: i16 = 1;
    let oldest = keys.shards().map(|shard| {
        let mut wire = wire.clone();
        let mut command = redis::cmd("ZRANGEBYSCORE");
        command.arg(keys.by_time(shard, ENDED)).arg("-inf").arg(format!("({}", before.as_micros()));
        command.arg("WITHSCORES").arg("LIMIT").arg(0).arg(limit);
        async move { Ok::<Vec<(Vec<u8>, f64)>, Fault>(command.query_async(&mut wire).await?) }
    });
    let mut oldest: Vec<(Vec<u8>, f64)> = try_join_all(oldest).await?.into_iter().flatten().collect();
    oldest.sort_unstable_by(|a, b| a.1.total_cmp(&b.1).then_with(|| a.0.cmp(&b.0)));
    oldest.truncate(limit);
    let mut of_shards: HashMap<usize, Vec<[u8; 16]>> = HashMap::new();
    for (member, _) in &oldest {
        let id = id_of(member)?;
        of_shards.entry(keys.shard_of(&id)).or_default().push(id);
    }
    let removed = of_shards.into_values().map(|ids| remove(wire.clone(), keys, ids, before));
    let mut removed: Vec<ExecutionRecord> = try_join_all(removed).await?.into_iter().flatten().collect();
    removed.sort_by_key(|record| (record.status_at, record.execution_id));
    Ok(removed)
}

async fn remove(
    mut wire: Wire,
    keys: &Keys,
    ids: Vec<[u8; 16]>,
    before: Timestamp,
) -> Result<Vec<ExecutionRecord>, Fault> {
    let mut found = read(&mut wire, keys, &ids).await?;
    let mut transaction = Transaction::default();
    let mut removed = Vec::with_capacity(ids.len());
    for id in &ids {
        let Some(known) = found.remove(id) else { continue };
        if known.status == OPEN || known.status_at >= before.as_micros() {
            continue;
        }
        let key = keys.execution(id);
        transaction.check(&key, "w", &known.stamp);
        transaction.add("DEL", &key, &[]);
        transaction.add("ZREM", &keys.list(keys.shard_of(id), None, None), &[id]);
        unlist(&mut transaction, keys, id, &known.function, known.status, true);
        removed.push(slim(known.record));
    }
    if !transaction.is_empty() {
        transaction.run(&mut wire).await?;
    }
    Ok(removed)
}

fn slim(mut record: ExecutionRecord) -> ExecutionRecord {
    record.invocation = None;
    if let Some(outcome) = &mut record.outcome {
        outcome.output.chunks = Vec::new();
    }
    record
}
