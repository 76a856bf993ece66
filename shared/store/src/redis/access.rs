//! API keys, secrets, the audit log, and what gateways share.

use std::{collections::HashMap, sync::LazyLock};

use ::redis::Script;
use flux_protocol::{Digest, KeyId, SecretName, Timestamp};

use super::{
    fault::Fault,
    keys::Keys,
    link::Wire,
    transaction::{Transaction, stamp},
};
use crate::{ApiKeyRecord, AuditEntry, PreviousKey, SealedSecret, row};

static AUDIT: LazyLock<Script> = LazyLock::new(|| Script::new(include_str!("audit.lua")));
static PUT_AUDIT: LazyLock<Script> = LazyLock::new(|| Script::new(include_str!("put_audit.lua")));
static EXPIRE_AUDIT: LazyLock<Script> = LazyLock::new(|| Script::new(include_str!("expire_audit.lua")));
static KEYS_USED: LazyLock<Script> = LazyLock::new(|| Script::new(include_str!("keys_used.lua")));

/// A secret's fields.
const SECRET: &[&str] = &["version", "key", "sealed", "created_at", "updated_at"];

pub(super) fn written<T: serde::Serialize>(what: &str, value: &T) -> Result<Vec<u8>, Fault> {
    serde_json::to_vec(value).map_err(|error| Fault::row(what.to_owned(), error))
}

fn key_from(id: &str, json: &[u8], used: Option<i64>) -> Result<ApiKeyRecord, Fault> {
    let mut record: ApiKeyRecord =
        serde_json::from_slice(json).map_err(|error| Fault::row(format!("the API key {id}"), error))?;
    record.last_used_at = used.map(Timestamp::from_micros);
    Ok(record)
}

/// The version of a hash that is changed as a whole.
async fn version_of(wire: &mut Wire, hash: &str) -> Result<Vec<u8>, Fault> {
    let version: Option<Vec<u8>> = redis::cmd("HGET").arg(hash).arg(Keys::VERSION).query_async(wire).await?;
    Ok(version.unwrap_or_default())
}

/// Begins a change of such a hash.
fn changing(hash: &str, version: &[u8]) -> Transaction {
    let mut transaction = Transaction::default();
    transaction.check(hash, Keys::VERSION, version);
    transaction.add("HSET", hash, &[Keys::VERSION.as_bytes(), &stamp()]);
    transaction
}

pub(super) async fn insert_key(mut wire: Wire, keys: &Keys, key: &ApiKeyRecord, most: usize) -> Result<bool, Fault> {
    let hash = keys.api_keys();
    let version = version_of(&mut wire, &hash).await?;
    let (count, taken): (usize, bool) = redis::pipe()
        .cmd("HLEN")
        .arg(&hash)
        .cmd("HEXISTS")
        .arg(&hash)
        .arg(key.id.as_str())
        .query_async(&mut wire)
        .await?;
    // One field is the version.
    if taken || count.saturating_sub(usize::from(!version.is_empty())) >= most {
        return Ok(false);
    }
    let mut transaction = changing(&hash, &version);
    transaction.add("HSET", &hash, &[key.id.as_str().as_bytes(), &written("an API key", key)?]);
    transaction.run(&mut wire).await?;
    Ok(true)
}

pub(super) async fn api_keys(mut wire: Wire, keys: &Keys) -> Result<Vec<ApiKeyRecord>, Fault> {
    let (records, used): (HashMap<String, Vec<u8>>, HashMap<String, i64>) = redis::pipe()
        .cmd("HGETALL")
        .arg(keys.api_keys())
        .cmd("HGETALL")
        .arg(keys.keys_used())
        .query_async(&mut wire)
        .await?;
    let records = records.iter().filter(|(id, _)| Keys::is_key_id(id));
    let mut all = records.map(|(id, json)| key_from(id, json, used.get(id).copied())).collect::<Result<Vec<_>, _>>()?;
    all.sort_by(|a, b| (a.created_at, a.id.as_str()).cmp(&(b.created_at, b.id.as_str())));
    Ok(all)
}

pub(super) async fn rotate_key(
    mut wire: Wire,
    keys: &Keys,
    id: &KeyId,
    digest: Digest,
    now: Timestamp,
    until: Timestamp,
) -> Result<Option<ApiKeyRecord>, Fault> {
    let hash = keys.api_keys();
    let version = version_of(&mut wire, &hash).await?;
    let (json, used): (Option<Vec<u8>>, Option<i64>) = redis::pipe()
        .cmd("HGET")
        .arg(&hash)
        .arg(id.as_str())
        .cmd("HGET")
        .arg(keys.keys_used())
        .arg(id.as_str())
        .query_async(&mut wire)
        .await?;
    let Some(json) = json else { return Ok(None) };
    let mut record = key_from(id.as_str(), &json, used)?;
    // Done already, by this call before its connection was lost: the key before stays the one before.
    if record.digest != digest {
        record.previous = Some(PreviousKey { digest: record.digest, until });
        record.digest = digest;
        record.rotated_at = Some(now);
        let mut transaction = changing(&hash, &version);
        transaction.add("HSET", &hash, &[id.as_str().as_bytes(), &written("an API key", &record)?]);
        transaction.run(&mut wire).await?;
    }
    Ok(Some(record))
}

pub(super) async fn delete_key(mut wire: Wire, keys: &Keys, id: &KeyId) -> Result<bool, Fault> {
    let hash = keys.api_keys();
    let version = version_of(&mut wire, &hash).await?;
    let there: bool = redis::cmd("HEXISTS").arg(&hash).arg(id.as_str()).query_async(&mut wire).await?;
    if there {
        let mut transaction = changing(&hash, &version);
        transaction.add("HDEL", &hash, &[id.as_str().as_bytes()]);
        transaction.add("HDEL", &keys.keys_used(), &[id.as_str().as_bytes()]);
        transaction.run(&mut wire).await?;
    }
    Ok(there)
}

pub(super) async fn keys_used(mut wire: Wire, keys: &Keys, uses: &[(KeyId, Timestamp)]) -> Result<(), Fault> {
    let mut script = KEYS_USED.key(keys.api_keys());
    script.key(keys.keys_used());
    for (id, at) in uses {
        script.arg(id.as_str()).arg(at.as_micros());
    }
    Ok(script.invoke_async(&mut wire).await?)
}

pub(super) async fn shared_key(
    mut wire: Wire,
    keys: &Keys,
    name: &str,
    proposed: &[u8; 32],
) -> Result<[u8; 32], Fault> {
    let (_, value): (i64, Vec<u8>) = redis::pipe()
        .cmd("HSETNX")
        .arg(keys.shared())
        .arg(name)
        .arg(&proposed[..])
        .cmd("HGET")
        .arg(keys.shared())
        .arg(name)
        .query_async(&mut wire)
        .await?;
    value.try_into().map_err(|_| Fault::row(format!("the shared key {name}"), "it has not 32 bytes"))
}

pub(super) async fn audit(mut wire: Wire, keys: &Keys, entry: &AuditEntry) -> Result<(), Fault> {
    let [count, log, by_time] = keys.audit();
    let mut script = AUDIT.key(count);
    script.key(log).key(by_time).arg(entry.at.as_micros()).arg(written("an audit entry", entry)?);
    Ok(script.invoke_async(&mut wire).await?)
}

/// Puts an entry under its own number; later ones count on from it.
pub(super) async fn put_audit(wire: &mut Wire, keys: &Keys, seq: u64, entry: &AuditEntry) -> Result<(), Fault> {
    let [count, log, by_time] = keys.audit();
    let mut script = PUT_AUDIT.key(count);
    script.key(log).key(by_time).arg(entry.at.as_micros()).arg(written("an audit entry", entry)?).arg(seq);
    Ok(script.invoke_async(wire).await?)
}

pub(super) async fn audit_log(
    mut wire: Wire,
    keys: &Keys,
    before: Option<u64>,
    limit: usize,
) -> Result<Vec<(u64, AuditEntry)>, Fault> {
    let [_, log, _] = keys.audit();
    let mut command = redis::cmd("ZREVRANGEBYSCORE");
    command.arg(log).arg(before.map_or_else(|| "+inf".to_owned(), |seq| format!("({seq}"))).arg("-inf");
    command.arg("LIMIT").arg(0).arg(row::page(limit));
    let found: Vec<String> = command.query_async(&mut wire).await?;
    let entries = found.iter().map(|text| {
        let wrong = |problem: String| Fault::row("an audit entry", problem);
        let (seq, json) = text.split_once(' ').ok_or_else(|| wrong("it has no number".to_owned()))?;
        let seq = seq.parse().map_err(|_| wrong(format!("`{seq}` is no number")))?;
        Ok((seq, serde_json::from_str(json).map_err(|error| wrong(error.to_string()))?))
    });
    entries.collect()
}

pub(super) async fn expire_audit(mut wire: Wire, keys: &Keys, before: Timestamp, limit: usize) -> Result<(), Fault> {
    let [_, log, by_time] = keys.audit();
    let mut script = EXPIRE_AUDIT.key(log);
    Ok(script.key(by_time).arg(before.as_micros()).arg(limit).invoke_async(&mut wire).await?)
}

type SecretFields = (Option<u32>, Option<String>, Option<Vec<u8>>, Option<i64>, Option<i64>);

fn secret_from(
    name: &SecretName,
    (version, key, sealed, created_at, updated_at): SecretFields,
) -> Result<Option<SealedSecret>, Fault> {
    let Some(version) = version else { return Ok(None) };
    let wrong = || Fault::row(format!("the secret {name}"), "it is not as Flux wrote it");
    Ok(Some(SealedSecret {
        name: name.clone(),
        version,
        key: key.ok_or_else(wrong)?,
        sealed: sealed.ok_or_else(wrong)?,
        created_at: Timestamp::from_micros(created_at.ok_or_else(wrong)?),
        updated_at: Timestamp::from_micros(updated_at.ok_or_else(wrong)?),
    }))
}

pub(super) async fn secret(wire: &mut Wire, keys: &Keys, name: &SecretName) -> Result<Option<SealedSecret>, Fault> {
    let fields: SecretFields = redis::cmd("HMGET").arg(keys.secret(name)).arg(SECRET).query_async(wire).await?;
    secret_from(name, fields)
}

pub(super) async fn secrets(mut wire: Wire, keys: &Keys) -> Result<Vec<SealedSecret>, Fault> {
    let names: Vec<String> = redis::cmd("HKEYS").arg(keys.secrets()).query_async(&mut wire).await?;
    let names = names.iter().filter(|name| *name != Keys::VERSION);
    let parsed = names.map(|name| SecretName::parse(name).map_err(|error| Fault::row("a secret", error)));
    let mut names = parsed.collect::<Result<Vec<_>, _>>()?;
    names.sort_unstable_by(|a, b| a.as_str().cmp(b.as_str()));
    let mut pipe = redis::pipe();
    for name in &names {
        pipe.cmd("HMGET").arg(keys.secret(name)).arg(SECRET);
    }
    let found: Vec<SecretFields> = if names.is_empty() { Vec::new() } else { pipe.query_async(&mut wire).await? };
    names.iter().zip(found).filter_map(|(name, fields)| secret_from(name, fields).transpose()).collect()
}

pub(super) async fn put_secret(
    mut wire: Wire,
    keys: &Keys,
    secret: &SealedSecret,
    most: usize,
) -> Result<Option<u32>, Fault> {
    let hash = keys.secrets();
    let version = version_of(&mut wire, &hash).await?;
    let before = self::secret(&mut wire, keys, &secret.name).await?;
    let count: usize = redis::cmd("HLEN").arg(&hash).query_async(&mut wire).await?;
    if before.is_none() && count.saturating_sub(usize::from(!version.is_empty())) >= most {
        return Ok(None);
    }
    let at = secret.updated_at;
    let (number, created_at) = before.map_or((1, at), |before| (before.version.saturating_add(1), before.created_at));
    let mut transaction = changing(&hash, &version);
    transaction.add("HSET", &hash, &[secret.name.as_str().as_bytes(), b"1"]);
    let (version, created, updated) =
        (number.to_string(), created_at.as_micros().to_string(), at.as_micros().to_string());
    let mut words: Vec<&[u8]> = vec![b"version", version.as_bytes(), b"key", secret.key.as_bytes()];
    words.extend([
        &b"sealed"[..],
        &secret.sealed,
        b"created_at",
        created.as_bytes(),
        b"updated_at",
        updated.as_bytes(),
    ]);
    transaction.add("HSET", &keys.secret(&secret.name), &words);
    transaction.run(&mut wire).await?;
    Ok(Some(number))
}

pub(super) async fn reseal_secret(mut wire: Wire, keys: &Keys, secret: &SealedSecret) -> Result<bool, Fault> {
    let hash = keys.secrets();
    let version = version_of(&mut wire, &hash).await?;
    let before = self::secret(&mut wire, keys, &secret.name).await?;
    if before.is_none_or(|before| before.version != secret.version) {
        return Ok(false);
    }
    let mut transaction = changing(&hash, &version);
    let words: [&[u8]; 4] = [b"key", secret.key.as_bytes(), b"sealed", &secret.sealed];
    transaction.add("HSET", &keys.secret(&secret.name), &words);
    transaction.run(&mut wire).await?;
    Ok(true)
}

pub(super) async fn delete_secret(mut wire: Wire, keys: &Keys, name: &SecretName) -> Result<bool, Fault> {
    let hash = keys.secrets();
    let version = version_of(&mut wire, &hash).await?;
    let there: bool = redis::cmd("HEXISTS").arg(&hash).arg(name.as_str()).query_async(&mut wire).await?;
    if there {
        let mut transaction = changing(&hash, &version);
        transaction.add("HDEL", &hash, &[name.as_str().as_bytes()]);
        transaction.add("DEL", &keys.secret(name), &[]);
        transaction.run(&mut wire).await?;
    }
    Ok(there)
}
