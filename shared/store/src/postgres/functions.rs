//! Functions and their versions. Who changes a function holds the row of its name.

use flux_protocol::{Digest, FunctionName, FunctionSpec, FunctionVersion, Timestamp, limits};

use super::{connect::Session, fault::Fault};
use crate::{
    Deployed, Function, VersionSummary, row,
    versions::{self, Change},
};

pub(super) fn number(version: i64) -> Result<u32, Fault> {
    u32::try_from(version).map_err(|error| Fault::row("a version's number", error))
}

/// Reads `version, digest, spec, created_at`.
pub(super) fn version_from(found: &tokio_postgres::Row) -> Result<FunctionVersion, Fault> {
    let version = number(found.try_get(0)?)?;
    let wrong = |error: String| Fault::row(format!("version {version} of a function"), error);
    let digest: Option<&[u8]> = found.try_get(1)?;
    let digest =
        digest.map(|bytes| <[u8; 32]>::try_from(bytes).map_err(|error| wrong(error.to_string()))).transpose()?;
    let spec: &str = found.try_get(2)?;
    Ok(FunctionVersion {
        version,
        digest: digest.map(Digest::from_bytes),
        spec: serde_json::from_str(spec).map_err(|error| wrong(error.to_string()))?,
        created_at: Timestamp::from_micros(found.try_get(3)?),
    })
}

/// A version of a function that is there.
pub(super) async fn live_version(
    session: &Session,
    name: &FunctionName,
    wanted: u32,
) -> Result<Option<FunctionVersion>, Fault> {
    let sql = "SELECT v.version, v.digest, v.spec, v.created_at FROM functions f JOIN versions v ON v.function = f.name
               WHERE f.name = $1 AND f.current IS NOT NULL AND v.version = $2";
    let statement = session.prepared(sql).await?;
    let found = session.client.query_opt(&statement, &[&name.as_str(), &i64::from(wanted)]).await?;
    found.map(|found| version_from(&found)).transpose()
}

async fn current(session: &Session, name: &FunctionName) -> Result<Option<FunctionVersion>, Fault> {
    let sql = "SELECT v.version, v.digest, v.spec, v.created_at FROM functions f
               JOIN versions v ON v.function = f.name AND v.version = f.current WHERE f.name = $1";
    let statement = session.prepared(sql).await?;
    session.client.query_opt(&statement, &[&name.as_str()]).await?.map(|found| version_from(&found)).transpose()
}

pub(super) async fn register(session: &Session, spec: &FunctionSpec, now: Timestamp) -> Result<Deployed, Fault> {
    change(session, &spec.name, now, |current| versions::register(current, spec)).await
}

pub(super) async fn deploy(
    session: &Session,
    name: &FunctionName,
    digest: Digest,
    spec: Option<&FunctionSpec>,
    now: Timestamp,
) -> Result<Deployed, Fault> {
    change(session, name, now, |current| versions::deploy(current, name, digest, spec, now)).await
}

async fn change(
    session: &Session,
    name: &FunctionName,
    now: Timestamp,
    decide: impl FnOnce(Option<FunctionVersion>) -> Change,
) -> Result<Deployed, Fault> {
    let client = &session.client;
    client.batch_execute("BEGIN").await?;
    // Also one that is not there yet is held: by a row without a current version, as that of a deleted one is.
    let hold = "INSERT INTO functions (name, current, last) VALUES ($1, NULL, 0)
                ON CONFLICT (name) DO UPDATE SET last = functions.last RETURNING last";
    let hold = session.prepared(hold).await?;
    let last = number(client.query_one(&hold, &[&name.as_str()]).await?.try_get(0)?)?;
    let deployed = match decide(current(session, name).await?) {
        Change::None(version) => Ok(Deployed { version, changed: false }),
        Change::Fill(version) => {
            save(session, &version).await?;
            Ok(Deployed { version, changed: true })
        }
        Change::Add { digest, spec } => {
            let version = FunctionVersion { version: last.saturating_add(1), digest, spec, created_at: now };
            add(session, &version).await?;
            Ok(Deployed { version, changed: true })
        }
        Change::NotFound => Err(Fault::NotFound { what: format!("function {name}") }),
    };
    client.batch_execute(if deployed.is_ok() { "COMMIT" } else { "ROLLBACK" }).await?;
    deployed
}

/// Adds a version, makes it current, and lets the oldest go. The current one is the newest then, so it stays.
async fn add(session: &Session, version: &FunctionVersion) -> Result<(), Fault> {
    let (name, number) = (version.spec.name.as_str(), i64::from(version.version));
    save(session, version).await?;
    let head = session.prepared("UPDATE functions SET current = $2, last = $2 WHERE name = $1").await?;
    session.client.execute(&head, &[&name, &number]).await?;
    let sql = "DELETE FROM versions WHERE function = $1 AND version NOT IN
               (SELECT version FROM versions WHERE function = $1 ORDER BY version DESC LIMIT $2)";
    let trim = session.prepared(sql).await?;
    session.client.execute(&trim, &[&name, &i64::from(limits::VERSION_HISTORY)]).await?;
    Ok(())
}

pub(super) async fn save(session: &Session, version: &FunctionVersion) -> Result<(), Fault> {
    let spec = serde_json::to_string(&version.spec).map_err(|error| Fault::row("a configuration", error))?;
    let sql = "INSERT INTO versions (function, version, digest, spec, created_at) VALUES ($1, $2, $3, $4, $5)
               ON CONFLICT (function, version) DO UPDATE SET
                   digest = excluded.digest, spec = excluded.spec, created_at = excluded.created_at";
    let statement = session.prepared(sql).await?;
    let digest = version.digest.as_ref().map(|digest| &digest.as_bytes()[..]);
    let (number, created_at) = (i64::from(version.version), version.created_at.as_micros());
    session.client.execute(&statement, &[&version.spec.name.as_str(), &number, &digest, &spec, &created_at]).await?;
    Ok(())
}

pub(super) async fn rollback(
    session: &Session,
    name: &FunctionName,
    wanted: u32,
) -> Result<Option<FunctionVersion>, Fault> {
    let client = &session.client;
    client.batch_execute("BEGIN").await?;
    let hold = session.prepared("SELECT 1 FROM functions WHERE name = $1 FOR UPDATE").await?;
    client.query_opt(&hold, &[&name.as_str()]).await?;
    let version = live_version(session, name, wanted).await?;
    if version.is_some() {
        let head = session.prepared("UPDATE functions SET current = $2 WHERE name = $1").await?;
        client.execute(&head, &[&name.as_str(), &i64::from(wanted)]).await?;
    }
    client.batch_execute("COMMIT").await?;
    Ok(version)
}

pub(super) async fn function(session: &Session, name: &FunctionName) -> Result<Option<Function>, Fault> {
    // One statement, so that current version and list are of one moment.
    let sql = "SELECT v.version, v.digest, v.spec, v.created_at, v.version = f.current
               FROM functions f JOIN versions v ON v.function = f.name
               WHERE f.name = $1 AND f.current IS NOT NULL ORDER BY v.version";
    let statement = session.prepared(sql).await?;
    let mut current = None;
    let mut versions = Vec::new();
    for found in session.client.query(&statement, &[&name.as_str()]).await? {
        let version = version_from(&found)?;
        let FunctionVersion { version: number, digest, created_at, .. } = version;
        versions.push(VersionSummary { version: number, digest, created_at });
        if found.try_get(4)? {
            current = Some(version);
        }
    }
    Ok(current.map(|current| Function { current, versions }))
}

pub(super) const LIST: &str = "SELECT v.version, v.digest, v.spec, v.created_at
    FROM functions f JOIN versions v ON v.function = f.name AND v.version = f.current
    WHERE f.name >= $1 AND f.name < $2 AND f.name > $3 ORDER BY f.name LIMIT $4";

pub(super) async fn list(
    session: &Session,
    prefix: &str,
    cursor: Option<&FunctionName>,
    limit: usize,
) -> Result<Vec<FunctionVersion>, Fault> {
    let statement = session.prepared(LIST).await?;
    let limit = i64::try_from(row::page(limit)).unwrap_or(1);
    let cursor = cursor.map_or("", FunctionName::as_str);
    let found = session.client.query(&statement, &[&prefix, &row::beyond(prefix), &cursor, &limit]).await?;
    found.iter().map(version_from).collect()
}

pub(super) async fn delete(session: &Session, name: &FunctionName) -> Result<bool, Fault> {
    let client = &session.client;
    client.batch_execute("BEGIN").await?;
    // The name's row first, as everybody does.
    let head = session.prepared("UPDATE functions SET current = NULL WHERE name = $1 AND current IS NOT NULL").await?;
    let was_there = client.execute(&head, &[&name.as_str()]).await? > 0;
    let versions = session.prepared("DELETE FROM versions WHERE function = $1").await?;
    client.execute(&versions, &[&name.as_str()]).await?;
    client.batch_execute("COMMIT").await?;
    Ok(was_there)
}

pub(super) async fn digests(session: &Session) -> Result<Vec<Digest>, Fault> {
    let sql = "SELECT DISTINCT digest FROM versions WHERE digest IS NOT NULL ORDER BY digest";
    let mut digests = Vec::new();
    for found in session.client.query(sql, &[]).await? {
        let bytes = <[u8; 32]>::try_from(found.try_get::<_, &[u8]>(0)?);
        digests.push(Digest::from_bytes(bytes.map_err(|error| Fault::row("a digest", error))?));
    }
    Ok(digests)
}
