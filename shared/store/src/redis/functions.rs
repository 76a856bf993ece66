//! Functions: a hash each, with its versions, which of them is current, how far it has counted, and a stamp of its last write.

use std::collections::HashMap;

use flux_protocol::{Digest, FunctionName, FunctionSpec, FunctionVersion, Timestamp, limits};

use super::{
    fault::Fault,
    keys::Keys,
    link::Wire,
    transaction::{Transaction, stamp},
};
use crate::{
    Deployed, Function, FunctionHead, VersionSummary, row,
    versions::{self, Change},
};

/// The current version's number, and itself once more, so that lists need one look; how far was counted; the stamp.
const CURRENT: &str = "current";
const CURRENT_VERSION: &str = "version";
const LAST: &str = "last";
const STAMP: &str = "w";

/// A version's field.
fn field(version: u32) -> String {
    format!("v{version}")
}

/// Its current version, how far it counted, and its versions.
pub(super) type Whole = (Option<u32>, u32, Vec<FunctionVersion>);

#[derive(Default)]
struct Head {
    current: Option<FunctionVersion>,
    last: u32,
    stamp: Vec<u8>,
}

fn version_from(json: &[u8]) -> Result<FunctionVersion, Fault> {
    serde_json::from_slice(json).map_err(|error| Fault::row("a function's version", error))
}

fn written(version: &FunctionVersion) -> Result<Vec<u8>, Fault> {
    serde_json::to_vec(version).map_err(|error| Fault::row("a function's version", error))
}

async fn head(wire: &mut Wire, key: &str) -> Result<Head, Fault> {
    let (version, last, stamp): (Option<Vec<u8>>, Option<u32>, Option<Vec<u8>>) =
        redis::cmd("HMGET").arg(key).arg(&[CURRENT_VERSION, LAST, STAMP]).query_async(wire).await?;
    let current = version.map(|json| version_from(&json)).transpose()?;
    Ok(Head { current, last: last.unwrap_or(0), stamp: stamp.unwrap_or_default() })
}

pub(super) async fn register(wire: Wire, keys: &Keys, spec: &FunctionSpec, now: Timestamp) -> Result<Deployed, Fault> {
    change(wire, keys, &spec.name, now, |current| versions::register(current, spec)).await
}

pub(super) async fn deploy(
    wire: Wire,
    keys: &Keys,
    name: &FunctionName,
    digest: Digest,
    spec: Option<&FunctionSpec>,
    now: Timestamp,
) -> Result<Deployed, Fault> {
    change(wire, keys, name, now, |current| versions::deploy(current, name, digest, spec, now)).await
}

async fn change(
    mut wire: Wire,
    keys: &Keys,
    name: &FunctionName,
    now: Timestamp,
    decide: impl FnOnce(Option<FunctionVersion>) -> Change,
) -> Result<Deployed, Fault> {
    let key = keys.function(name);
    let head = head(&mut wire, &key).await?;
    let version = match decide(head.current) {
        Change::None(version) => return Ok(Deployed { version, changed: false }),
        Change::NotFound => return Err(Fault::NotFound { what: format!("function {name}") }),
        Change::Fill(version) => version,
        Change::Add { digest, spec } => {
            FunctionVersion { version: head.last.saturating_add(1), digest, spec, created_at: now }
        }
    };
    let json = written(&version)?;
    let (number, own) = (version.version.to_string(), field(version.version));
    let mut transaction = Transaction::default();
    transaction.check(&key, STAMP, &head.stamp);
    let mut words: Vec<&[u8]> = vec![own.as_bytes(), &json, CURRENT.as_bytes(), number.as_bytes()];
    let (last, stamp) = (version.version.max(head.last).to_string(), stamp());
    words.extend([CURRENT_VERSION.as_bytes(), &json, LAST.as_bytes(), last.as_bytes(), STAMP.as_bytes(), &stamp]);
    transaction.add("HSET", &key, &words);
    // The oldest go. The current one is the newest, or was there already, so it stays.
    if version.version > head.last {
        let kept = stored_versions(&mut wire, &key).await?;
        let surplus = (kept.len() + 1).saturating_sub(limits::VERSION_HISTORY as usize);
        for (number, _) in kept.into_iter().take(surplus) {
            transaction.add("HDEL", &key, &[field(number).as_bytes()]);
        }
    }
    transaction.add("ZADD", &keys.functions(), &[b"0", name.as_str().as_bytes()]);
    transaction.run(&mut wire).await?;
    Ok(Deployed { version, changed: true })
}

/// All versions that are kept, oldest first.
async fn stored_versions(wire: &mut Wire, key: &str) -> Result<Vec<(u32, Vec<u8>)>, Fault> {
    let all: HashMap<String, Vec<u8>> = redis::cmd("HGETALL").arg(key).query_async(wire).await?;
    Ok(versions_among(all))
}

fn versions_among(all: HashMap<String, Vec<u8>>) -> Vec<(u32, Vec<u8>)> {
    let numbered = all.into_iter().filter_map(|(field, json)| Some((field.strip_prefix('v')?.parse().ok()?, json)));
    let mut versions: Vec<(u32, Vec<u8>)> = numbered.collect();
    versions.sort_unstable_by_key(|(number, _)| *number);
    versions
}

pub(super) async fn rollback(
    mut wire: Wire,
    keys: &Keys,
    name: &FunctionName,
    wanted: u32,
) -> Result<Option<FunctionVersion>, Fault> {
    let key = keys.function(name);
    let head = head(&mut wire, &key).await?;
    if head.current.is_none() {
        return Ok(None);
    }
    let json: Option<Vec<u8>> = redis::cmd("HGET").arg(&key).arg(field(wanted)).query_async(&mut wire).await?;
    let Some(json) = json else { return Ok(None) };
    let version = version_from(&json)?;
    let mut transaction = Transaction::default();
    transaction.check(&key, STAMP, &head.stamp);
    let (number, stamp) = (wanted.to_string(), stamp());
    let mut words: Vec<&[u8]> = vec![CURRENT.as_bytes(), number.as_bytes(), CURRENT_VERSION.as_bytes(), &json];
    words.extend([STAMP.as_bytes(), &stamp]);
    transaction.add("HSET", &key, &words);
    transaction.run(&mut wire).await?;
    Ok(Some(version))
}

pub(super) async fn function(mut wire: Wire, keys: &Keys, name: &FunctionName) -> Result<Option<Function>, Fault> {
    let all: HashMap<String, Vec<u8>> = redis::cmd("HGETALL").arg(keys.function(name)).query_async(&mut wire).await?;
    let Some(current) = all.get(CURRENT_VERSION).map(|json| version_from(json)).transpose()? else { return Ok(None) };
    let mut versions = Vec::new();
    for (_, json) in versions_among(all) {
        let FunctionVersion { version, digest, created_at, .. } = version_from(&json)?;
        versions.push(VersionSummary { version, digest, created_at });
    }
    Ok(Some(Function { current, versions }))
}

/// A version of a function that is there: a deleted one has none.
pub(super) async fn version(
    mut wire: Wire,
    keys: &Keys,
    name: &FunctionName,
    wanted: u32,
) -> Result<Option<FunctionVersion>, Fault> {
    let json: Option<Vec<u8>> =
        redis::cmd("HGET").arg(keys.function(name)).arg(field(wanted)).query_async(&mut wire).await?;
    json.map(|json| version_from(&json)).transpose()
}

pub(super) async fn list(
    mut wire: Wire,
    keys: &Keys,
    prefix: &str,
    cursor: Option<&FunctionName>,
    limit: usize,
) -> Result<Vec<FunctionVersion>, Fault> {
    let from = match cursor.map(FunctionName::as_str).filter(|cursor| *cursor >= prefix) {
        Some(cursor) => format!("({cursor}"),
        None => format!("[{prefix}"),
    };
    let mut command = redis::cmd("ZRANGEBYLEX");
    command.arg(keys.functions()).arg(from).arg(format!("({}", row::beyond(prefix)));
    command.arg("LIMIT").arg(0).arg(row::page(limit));
    let names: Vec<String> = command.query_async(&mut wire).await?;
    let mut pipe = redis::pipe();
    for name in &names {
        let name = FunctionName::parse(name).map_err(|error| Fault::row("the list of functions", error))?;
        pipe.cmd("HGET").arg(keys.function(&name)).arg(CURRENT_VERSION);
    }
    let found: Vec<Option<Vec<u8>>> = if names.is_empty() { Vec::new() } else { pipe.query_async(&mut wire).await? };
    // One that was deleted since its name was read is left out.
    found.into_iter().flatten().map(|json| version_from(&json)).collect()
}

pub(super) async fn delete(mut wire: Wire, keys: &Keys, name: &FunctionName) -> Result<bool, Fault> {
    let key = keys.function(name);
    let head = head(&mut wire, &key).await?;
    if head.current.is_none() {
        return Ok(false);
    }
    let kept = stored_versions(&mut wire, &key).await?;
    let mut transaction = Transaction::default();
    transaction.check(&key, STAMP, &head.stamp);
    // The count stays.
    transaction.add("HSET", &key, &[STAMP.as_bytes(), &stamp()]);
    transaction.add("HDEL", &key, &[CURRENT.as_bytes(), CURRENT_VERSION.as_bytes()]);
    for (number, _) in kept {
        transaction.add("HDEL", &key, &[field(number).as_bytes()]);
    }
    transaction.add("ZREM", &keys.functions(), &[name.as_str().as_bytes()]);
    transaction.run(&mut wire).await?;
    Ok(true)
}

/// Everything of a function, deleted ones included.
pub(super) async fn whole(wire: &mut Wire, keys: &Keys, name: &FunctionName) -> Result<Option<Whole>, Fault> {
    let all: HashMap<String, Vec<u8>> = redis::cmd("HGETALL").arg(keys.function(name)).query_async(wire).await?;
    let number = |field: &str| -> Result<Option<u32>, Fault> {
        let text = all.get(field).map(|bytes| String::from_utf8_lossy(bytes));
        text.map(|text| text.parse().map_err(|error| Fault::row("a function", error))).transpose()
    };
    let (current, last) = (number(CURRENT)?, number(LAST)?);
    let Some(last) = last else { return Ok(None) };
    let versions = versions_among(all).into_iter().map(|(_, json)| version_from(&json));
    Ok(Some((current, last, versions.collect::<Result<_, _>>()?)))
}

pub(super) async fn put_version(wire: &mut Wire, keys: &Keys, version: &FunctionVersion) -> Result<(), Fault> {
    let mut command = redis::cmd("HSET");
    command.arg(keys.function(version.name())).arg(field(version.version)).arg(written(version)?);
    let _: i64 = command.query_async(wire).await?;
    Ok(())
}

/// After its versions.
pub(super) async fn put_head(wire: &mut Wire, keys: &Keys, head: &FunctionHead) -> Result<(), Fault> {
    let key = keys.function(&head.name);
    let mut command = redis::cmd("HSET");
    command.arg(&key).arg(LAST).arg(head.last).arg(STAMP).arg(&stamp()[..]);
    if let Some(current) = head.current {
        let json: Option<Vec<u8>> = redis::cmd("HGET").arg(&key).arg(field(current)).query_async(wire).await?;
        let wrong = || Fault::row(format!("the function {}", head.name), format!("it lacks its version {current}"));
        command.arg(CURRENT).arg(current).arg(CURRENT_VERSION).arg(json.ok_or_else(wrong)?);
        let name = head.name.as_str();
        let _: i64 = redis::cmd("ZADD").arg(keys.functions()).arg(0).arg(name).query_async(wire).await?;
    }
    let _: i64 = command.query_async(wire).await?;
    Ok(())
}

pub(super) async fn digests(mut wire: Wire, keys: &Keys) -> Result<Vec<Digest>, Fault> {
    let mut digests = Vec::new();
    let mut from = "-".to_owned();
    loop {
        let mut command = redis::cmd("ZRANGEBYLEX");
        command.arg(keys.functions()).arg(&from).arg("+").arg("LIMIT").arg(0).arg(limits::PAGE);
        let names: Vec<String> = command.query_async(&mut wire).await?;
        let Some(last) = names.last() else { break };
        from = format!("({last}");
        let mut pipe = redis::pipe();
        for name in &names {
            let name = FunctionName::parse(name).map_err(|error| Fault::row("the list of functions", error))?;
            pipe.cmd("HGETALL").arg(keys.function(&name));
        }
        let all: Vec<HashMap<String, Vec<u8>>> = pipe.query_async(&mut wire).await?;
        for (_, json) in all.into_iter().flat_map(versions_among) {
            digests.extend(version_from(&json)?.digest);
        }
    }
    digests.sort_unstable();
    digests.dedup();
    Ok(digests)
}
