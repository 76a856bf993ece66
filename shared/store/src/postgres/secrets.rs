//! Secrets, which come here encrypted.

use flux_protocol::{SecretName, Timestamp};

use super::{connect::Session, fault::Fault};
use crate::SealedSecret;

pub(super) fn read(found: &tokio_postgres::Row) -> Result<SealedSecret, Fault> {
    let version: i64 = found.try_get(1)?;
    Ok(SealedSecret {
        name: SecretName::parse(found.try_get(0)?).map_err(|error| Fault::row("a secret", error))?,
        version: u32::try_from(version).map_err(|error| Fault::row("a secret's version", error))?,
        key: found.try_get(2)?,
        sealed: found.try_get(3)?,
        created_at: Timestamp::from_micros(found.try_get(4)?),
        updated_at: Timestamp::from_micros(found.try_get(5)?),
    })
}

pub(super) const ALL: &str = "SELECT name, version, key, sealed, created_at, updated_at FROM secrets";

pub(super) async fn put(session: &Session, secret: &SealedSecret, most: usize) -> Result<Option<u32>, Fault> {
    let sql = "INSERT INTO secrets AS s (name, version, key, sealed, created_at, updated_at)
               SELECT $1, 1, $2, $3, $4, $4
               WHERE (SELECT count(*) FROM secrets) < $5 OR EXISTS (SELECT 1 FROM secrets WHERE name = $1)
               ON CONFLICT (name) DO UPDATE SET
                   version = s.version + 1, key = excluded.key, sealed = excluded.sealed, updated_at = excluded.updated_at
               RETURNING s.version";
    let client = &session.client;
    // One at a time, which counts what is there.
    client.batch_execute("BEGIN; LOCK TABLE secrets IN SHARE ROW EXCLUSIVE MODE").await?;
    let statement = session.prepared(sql).await?;
    let (at, most) = (secret.updated_at.as_micros(), i64::try_from(most).unwrap_or(i64::MAX));
    let put = client.query_opt(&statement, &[&secret.name.as_str(), &secret.key, &secret.sealed, &at, &most]).await?;
    client.batch_execute("COMMIT").await?;
    let version: Option<i64> = put.map(|row| row.try_get(0)).transpose()?;
    version.map(|version| u32::try_from(version).map_err(|error| Fault::row("a secret's version", error))).transpose()
}

pub(super) async fn get(session: &Session, name: &SecretName) -> Result<Option<SealedSecret>, Fault> {
    let sql = "SELECT name, version, key, sealed, created_at, updated_at FROM secrets WHERE name = $1";
    let statement = session.prepared(sql).await?;
    session.client.query_opt(&statement, &[&name.as_str()]).await?.as_ref().map(read).transpose()
}

pub(super) async fn list(session: &Session) -> Result<Vec<SealedSecret>, Fault> {
    let sql = "SELECT name, version, key, sealed, created_at, updated_at FROM secrets ORDER BY name";
    session.client.query(sql, &[]).await?.iter().map(read).collect()
}

pub(super) async fn reseal(session: &Session, secret: &SealedSecret) -> Result<bool, Fault> {
    let sql = "UPDATE secrets SET key = $3, sealed = $4 WHERE name = $1 AND version = $2";
    let version = i64::from(secret.version);
    let changed = session.client.execute(sql, &[&secret.name.as_str(), &version, &secret.key, &secret.sealed]).await?;
    Ok(changed == 1)
}

pub(super) async fn delete(session: &Session, name: &SecretName) -> Result<bool, Fault> {
    Ok(session.client.execute("DELETE FROM secrets WHERE name = $1", &[&name.as_str()]).await? == 1)
}
