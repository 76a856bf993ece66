//! What one of many gets: idempotency keys, leases, the secrets of an attempt. One statement claims, so two at once cannot both.

use std::time::Duration;

use flux_protocol::{AgentId, Digest, ExecutionId, FunctionName, Timestamp};
use uuid::Uuid;

use super::{connect::Session, executions::key, fault::Fault};
use crate::{Claim, Lease};

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

pub(super) async fn claim(session: &Session, wanted: &Wanted<'_>) -> Result<Claim, Fault> {
    let sql = "INSERT INTO idempotency (function, key, execution, body, at, expires_at) VALUES ($1, $2, $3, $4, $5, $6)
               ON CONFLICT (function, key) DO UPDATE SET
                   execution = excluded.execution, body = excluded.body, at = excluded.at, expires_at = excluded.expires_at
               WHERE idempotency.expires_at <= excluded.at";
    let statement = session.prepared(sql).await?;
    let function = wanted.function.as_str();
    let (body, now) = (&wanted.body.as_bytes()[..], wanted.now.as_micros());
    let expires_at = wanted.now.plus(wanted.window).as_micros();
    let claimed = session
        .client
        .execute(&statement, &[&function, &wanted.key, &key(wanted.id), &body, &now, &expires_at])
        .await?;
    if claimed == 1 {
        return Ok(Claim::Claimed);
    }
    let sql = "SELECT execution, body, at FROM idempotency WHERE function = $1 AND key = $2";
    let statement = session.prepared(sql).await?;
    // Released in between: whoever asks again gets it.
    let held = session.client.query_opt(&statement, &[&function, &wanted.key]).await?.ok_or(Fault::Raced)?;
    let (execution, body, at): (Uuid, &[u8], i64) = (held.try_get(0)?, held.try_get(1)?, held.try_get(2)?);
    let body = body.try_into().map_err(|error| Fault::row("an idempotency key", error))?;
    let execution_id = ExecutionId::from_bytes(*execution.as_bytes());
    if wanted.again && execution_id == wanted.id && at == now {
        return Ok(Claim::Claimed);
    }
    Ok(Claim::Held { execution_id, body: Digest::from_bytes(body), at: Timestamp::from_micros(at) })
}

pub(super) async fn release(
    session: &Session,
    function: &FunctionName,
    name: &str,
    id: ExecutionId,
) -> Result<(), Fault> {
    let statement =
        session.prepared("DELETE FROM idempotency WHERE function = $1 AND key = $2 AND execution = $3").await?;
    session.client.execute(&statement, &[&function.as_str(), &name, &key(id)]).await?;
    Ok(())
}

/// Removes at most so many that ran out.
pub(super) const EXPIRE_IDEMPOTENCY: &str = "DELETE FROM idempotency WHERE ctid = ANY (ARRAY(
        SELECT ctid FROM idempotency WHERE expires_at < $1 ORDER BY expires_at LIMIT $2 FOR UPDATE SKIP LOCKED))";
pub(super) const EXPIRE_CLAIMS: &str = "DELETE FROM secret_claims WHERE ctid = ANY (ARRAY(
        SELECT ctid FROM secret_claims WHERE at < $1 ORDER BY at LIMIT $2 FOR UPDATE SKIP LOCKED))";

/// Runs one of the statements that remove what is older than a time.
pub(super) async fn expire(session: &Session, sql: &'static str, before: Timestamp, limit: usize) -> Result<(), Fault> {
    let statement = session.prepared(sql).await?;
    let limit = i64::try_from(limit).unwrap_or(i64::MAX);
    session.client.execute(&statement, &[&before.as_micros(), &limit]).await?;
    Ok(())
}

pub(super) async fn take_lease(
    session: &Session,
    name: &str,
    holder: &str,
    now: Timestamp,
    ttl: Duration,
) -> Result<Option<Lease>, Fault> {
    let sql = "INSERT INTO leases (name, holder, token, until) VALUES ($1, $2, 1, $4)
               ON CONFLICT (name) DO UPDATE SET
                   holder = excluded.holder, until = excluded.until,
                   token = CASE WHEN leases.until > $3 THEN leases.token ELSE leases.token + 1 END
               WHERE leases.until <= $3 OR leases.holder = excluded.holder
               RETURNING token";
    let statement = session.prepared(sql).await?;
    let until = now.plus(ttl);
    let taken = session.client.query_opt(&statement, &[&name, &holder, &now.as_micros(), &until.as_micros()]).await?;
    let Some(taken) = taken else { return Ok(None) };
    let token: i64 = taken.try_get(0)?;
    Ok(Some(Lease { holder: holder.to_owned(), token: u64::try_from(token).unwrap_or_default(), until }))
}

pub(super) async fn release_lease(session: &Session, name: &str, holder: &str) -> Result<(), Fault> {
    let statement = session.prepared("UPDATE leases SET until = 0 WHERE name = $1 AND holder = $2").await?;
    session.client.execute(&statement, &[&name, &holder]).await?;
    Ok(())
}

pub(super) async fn claim_secrets(
    session: &Session,
    execution: ExecutionId,
    attempt: u32,
    agent: &AgentId,
    nonce: [u8; 16],
    now: Timestamp,
) -> Result<bool, Fault> {
    let sql = "INSERT INTO secret_claims (execution, attempt, agent, nonce, at) VALUES ($1, $2, $3, $4, $5)
               ON CONFLICT (execution, attempt) DO NOTHING";
    let (attempt, nonce) = (i64::from(attempt), &nonce[..]);
    let insert = session.prepared(sql).await?;
    let inserted = session
        .client
        .execute(&insert, &[&key(execution), &attempt, &agent.as_str(), &nonce, &now.as_micros()])
        .await?;
    if inserted == 1 {
        return Ok(true);
    }
    let select =
        session.prepared("SELECT agent, nonce FROM secret_claims WHERE execution = $1 AND attempt = $2").await?;
    let held = session.client.query_opt(&select, &[&key(execution), &attempt]).await?.ok_or(Fault::Raced)?;
    Ok(held.try_get::<_, &str>(0)? == agent.as_str() && held.try_get::<_, &[u8]>(1)? == nonce)
}
