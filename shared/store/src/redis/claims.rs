//! What one of many gets: idempotency keys, leases, the secrets of an attempt. One script claims, so two at once cannot both.

use std::{sync::LazyLock, time::Duration};

use ::redis::Script;
use flux_protocol::{AgentId, Digest, ExecutionId, FunctionName, Timestamp};

use super::{fault::Fault, keys::Keys, link::Wire, transaction::Transaction};
use crate::{Claim, HeldKey, Lease};

static CLAIM: LazyLock<Script> = LazyLock::new(|| Script::new(include_str!("claim.lua")));
static RELEASE: LazyLock<Script> = LazyLock::new(|| Script::new(include_str!("release.lua")));
static LEASE: LazyLock<Script> = LazyLock::new(|| Script::new(include_str!("lease.lua")));
static RELEASE_LEASE: LazyLock<Script> = LazyLock::new(|| Script::new(include_str!("release_lease.lua")));
static CLAIM_SECRETS: LazyLock<Script> = LazyLock::new(|| Script::new(include_str!("claim_secrets.lua")));

/// Redis forgets a key this long after it ran out: by its own clock, which may be another than the gateways'.
const KEPT_LONGER: Duration = Duration::from_secs(3600);

pub(super) struct Wanted<'c> {
    pub(super) function: &'c FunctionName,
    pub(super) key: &'c str,
    pub(super) body: Digest,
    pub(super) id: ExecutionId,
    pub(super) now: Timestamp,
    pub(super) window: Duration,
    /// It was asked before and the answer was not heard: what is held as this call would hold it, this call got.
    pub(super) again: bool,
}

pub(super) async fn claim(mut wire: Wire, keys: &Keys, wanted: &Wanted<'_>) -> Result<Claim, Fault> {
    let now = wanted.now.as_micros();
    let mut script = CLAIM.key(keys.idempotency(wanted.function, wanted.key));
    script.arg(&wanted.id.as_bytes()[..]).arg(&wanted.body.as_bytes()[..]).arg(now);
    script.arg(wanted.now.plus(wanted.window).as_micros());
    script.arg(u64::try_from((wanted.window + KEPT_LONGER).as_millis()).unwrap_or(u64::MAX));
    let held: Vec<Vec<u8>> = script.invoke_async(&mut wire).await?;
    let [execution, body, at] = &held[..] else { return Ok(Claim::Claimed) };
    let wrong = || Fault::row("an idempotency key", "it is not as Flux wrote it");
    let execution_id = ExecutionId::from_bytes(execution[..].try_into().map_err(|_| wrong())?);
    let body = Digest::from_bytes(body[..].try_into().map_err(|_| wrong())?);
    let at: i64 = std::str::from_utf8(at).ok().and_then(|at| at.parse().ok()).ok_or_else(wrong)?;
    if wanted.again && execution_id == wanted.id && at == now {
        return Ok(Claim::Claimed);
    }
    Ok(Claim::Held { execution_id, body, at: Timestamp::from_micros(at) })
}

/// Puts a key as it was held. Redis forgets it as if it had been claimed now.
pub(super) async fn put(wire: &mut Wire, keys: &Keys, held: &HeldKey) -> Result<(), Fault> {
    let key = keys.idempotency(&held.function, &held.key);
    let window = held.expires_at.since(held.at) + KEPT_LONGER;
    let mut command = redis::cmd("HSET");
    command.arg(&key).arg("execution").arg(&held.execution.as_bytes()[..]).arg("body").arg(&held.body.as_bytes()[..]);
    command.arg("at").arg(held.at.as_micros()).arg("until").arg(held.expires_at.as_micros());
    let _: i64 = command.query_async(wire).await?;
    let window_ms = u64::try_from(window.as_millis()).unwrap_or(u64::MAX);
    let _: i64 = redis::cmd("PEXPIRE").arg(&key).arg(window_ms).query_async(wire).await?;
    Ok(())
}

pub(super) async fn release(
    mut wire: Wire,
    keys: &Keys,
    function: &FunctionName,
    name: &str,
    id: ExecutionId,
) -> Result<(), Fault> {
    let mut script = RELEASE.key(keys.idempotency(function, name));
    Ok(script.arg(&id.as_bytes()[..]).invoke_async(&mut wire).await?)
}

pub(super) async fn take_lease(
    mut wire: Wire,
    keys: &Keys,
    name: &str,
    holder: &str,
    now: Timestamp,
    ttl: Duration,
) -> Result<Option<Lease>, Fault> {
    let until = now.plus(ttl);
    let mut script = LEASE.key(keys.lease(name));
    script.arg(holder).arg(now.as_micros()).arg(until.as_micros());
    let token: Option<u64> = script.invoke_async(&mut wire).await?;
    Ok(token.map(|token| Lease { holder: holder.to_owned(), token, until }))
}

pub(super) async fn release_lease(mut wire: Wire, keys: &Keys, name: &str, holder: &str) -> Result<(), Fault> {
    Ok(RELEASE_LEASE.key(keys.lease(name)).arg(holder).invoke_async(&mut wire).await?)
}

pub(super) async fn claim_secrets(
    mut wire: Wire,
    keys: &Keys,
    (execution, attempt): (ExecutionId, u32),
    agent: &AgentId,
    nonce: [u8; 16],
    now: Timestamp,
) -> Result<bool, Fault> {
    let claim = keys.secret_claim(execution, attempt);
    let mut script = CLAIM_SECRETS.key(&claim);
    script.key(keys.secret_claims(keys.shard_of(execution.as_bytes())));
    script.arg([&nonce[..], agent.as_str().as_bytes()].concat()).arg(now.as_micros()).arg(&claim);
    Ok(script.invoke_async(&mut wire).await?)
}

/// Forgets at most `limit` claims of each shard that are older than `before`. Returns whether there may be more of them.
/// (Idempotency keys Redis forgets itself.)
pub(super) async fn expire(mut wire: Wire, keys: &Keys, before: Timestamp, limit: usize) -> Result<bool, Fault> {
    let mut more = false;
    for shard in keys.shards() {
        let list = keys.secret_claims(shard);
        let mut command = redis::cmd("ZRANGEBYSCORE");
        command.arg(&list).arg("-inf").arg(format!("({}", before.as_micros())).arg("LIMIT").arg(0).arg(limit);
        let old: Vec<String> = command.query_async(&mut wire).await?;
        more |= old.len() >= limit;
        let mut transaction = Transaction::default();
        for claim in &old {
            transaction.add("DEL", claim, &[]);
            transaction.add("ZREM", &list, &[claim.as_bytes()]);
        }
        if !transaction.is_empty() {
            transaction.run(&mut wire).await?;
        }
    }
    Ok(more)
}
