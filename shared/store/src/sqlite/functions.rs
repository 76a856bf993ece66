//! Functions and their versions.

use flux_protocol::{Digest, FunctionName, FunctionSpec, FunctionVersion, Timestamp, limits};
use rusqlite::{Connection, OptionalExtension as _, params};

use super::{fault::Fault, rows::page};
use crate::{
    Deployed, Function, VersionSummary, row,
    versions::{self, Change},
};

const VERSION_COLUMNS: &str = "v.version, v.digest, v.spec, v.created_at";

/// Where a function's count stands.
struct Head {
    current: Option<u32>,
    last: u32,
}

fn head(database: &Connection, name: &FunctionName) -> Result<Option<Head>, Fault> {
    let mut statement = database.prepare_cached("SELECT current, last FROM functions WHERE name = ?1")?;
    let head =
        statement.query_row([name.as_str()], |row| Ok(Head { current: row.get(0)?, last: row.get(1)? })).optional()?;
    Ok(head)
}

pub(super) fn version_from(row: &rusqlite::Row<'_>) -> Result<FunctionVersion, Fault> {
    let version: u32 = row.get(0)?;
    let digest: Option<[u8; 32]> = row.get(1)?;
    let spec: String = row.get(2)?;
    let spec: FunctionSpec =
        serde_json::from_str(&spec).map_err(|error| Fault::row(format!("version {version} of a function"), error))?;
    Ok(FunctionVersion {
        version,
        digest: digest.map(Digest::from_bytes),
        spec,
        created_at: Timestamp::from_micros(row.get(3)?),
    })
}

fn version(database: &Connection, name: &FunctionName, version: u32) -> Result<Option<FunctionVersion>, Fault> {
    let sql = format!("SELECT {VERSION_COLUMNS} FROM versions v WHERE v.function = ?1 AND v.version = ?2");
    let mut statement = database.prepare_cached(&sql)?;
    let mut found = statement.query(params![name.as_str(), version])?;
    found.next()?.map(version_from).transpose()
}

/// A version of a function that is there.
pub(super) fn live_version(
    database: &Connection,
    name: &FunctionName,
    wanted: u32,
) -> Result<Option<FunctionVersion>, Fault> {
    match head(database, name)? {
        Some(Head { current: Some(_), .. }) => version(database, name, wanted),
        _ => Ok(None),
    }
}

fn current(database: &Connection, name: &FunctionName) -> Result<Option<FunctionVersion>, Fault> {
    match head(database, name)?.and_then(|head| head.current) {
        Some(number) => version(database, name, number),
        None => Ok(None),
    }
}

/// Adds a version, makes it current, and lets the oldest go. The current one is the newest then, so it stays.
fn add(
    database: &Connection,
    digest: Option<Digest>,
    spec: &FunctionSpec,
    now: Timestamp,
) -> Result<FunctionVersion, Fault> {
    let number = head(database, &spec.name)?.map_or(0, |head| head.last).saturating_add(1);
    database
        .prepare_cached(
            "INSERT INTO functions (name, current, last) VALUES (?1, ?2, ?2)
             ON CONFLICT (name) DO UPDATE SET current = excluded.current, last = excluded.last",
        )?
        .execute(params![spec.name.as_str(), number])?;
    let version = FunctionVersion { version: number, digest, spec: spec.clone(), created_at: now };
    save(database, &version)?;
    database
        .prepare_cached(
            "DELETE FROM versions WHERE function = ?1 AND version NOT IN
             (SELECT version FROM versions WHERE function = ?1 ORDER BY version DESC LIMIT ?2)",
        )?
        .execute(params![spec.name.as_str(), limits::VERSION_HISTORY])?;
    Ok(version)
}

pub(super) fn save(database: &Connection, version: &FunctionVersion) -> Result<(), Fault> {
    let spec = serde_json::to_string(&version.spec).map_err(|error| Fault::row("a configuration", error))?;
    database
        .prepare_cached(
            "INSERT OR REPLACE INTO versions (function, version, digest, spec, created_at) VALUES (?1, ?2, ?3, ?4, ?5)",
        )?
        .execute(params![
            version.spec.name.as_str(),
            version.version,
            version.digest.as_ref().map(Digest::as_bytes),
            spec,
            version.created_at.as_micros(),
        ])?;
    Ok(())
}

pub(super) fn register(database: &Connection, spec: &FunctionSpec, now: Timestamp) -> Result<Deployed, Fault> {
    apply(database, &spec.name, versions::register(current(database, &spec.name)?, spec), now)
}

pub(super) fn deploy(
    database: &Connection,
    name: &FunctionName,
    digest: Digest,
    spec: Option<&FunctionSpec>,
    now: Timestamp,
) -> Result<Deployed, Fault> {
    apply(database, name, versions::deploy(current(database, name)?, name, digest, spec, now), now)
}

fn apply(database: &Connection, name: &FunctionName, change: Change, now: Timestamp) -> Result<Deployed, Fault> {
    match change {
        Change::None(version) => Ok(Deployed { version, changed: false }),
        Change::Fill(version) => {
            save(database, &version)?;
            Ok(Deployed { version, changed: true })
        }
        Change::Add { digest, spec } => Ok(Deployed { version: add(database, digest, &spec, now)?, changed: true }),
        Change::NotFound => Err(Fault::NotFound { what: format!("function {name}") }),
    }
}

pub(super) fn rollback(
    database: &Connection,
    name: &FunctionName,
    wanted: u32,
) -> Result<Option<FunctionVersion>, Fault> {
    let Some(version) = live_version(database, name, wanted)? else { return Ok(None) };
    database
        .prepare_cached("UPDATE functions SET current = ?2 WHERE name = ?1")?
        .execute(params![name.as_str(), wanted])?;
    Ok(Some(version))
}

pub(super) fn function(database: &Connection, name: &FunctionName) -> Result<Option<Function>, Fault> {
    // One statement, so that current version and list are of one moment.
    let sql = format!(
        "SELECT {VERSION_COLUMNS}, v.version = f.current FROM functions f JOIN versions v ON v.function = f.name
         WHERE f.name = ?1 AND f.current IS NOT NULL ORDER BY v.version"
    );
    let mut statement = database.prepare_cached(&sql)?;
    let mut found = statement.query([name.as_str()])?;
    let mut current = None;
    let mut versions = Vec::new();
    while let Some(row) = found.next()? {
        let version = version_from(row)?;
        versions.push(VersionSummary {
            version: version.version,
            digest: version.digest,
            created_at: version.created_at,
        });
        if row.get(4)? {
            current = Some(version);
        }
    }
    Ok(current.map(|current| Function { current, versions }))
}

pub(super) fn list(
    database: &Connection,
    prefix: &str,
    cursor: Option<&FunctionName>,
    limit: usize,
) -> Result<Vec<FunctionVersion>, Fault> {
    let sql = format!(
        "SELECT {VERSION_COLUMNS} FROM functions f JOIN versions v ON v.function = f.name AND v.version = f.current
         WHERE f.name >= ?1 AND f.name < ?2 AND f.name > ?3 ORDER BY f.name LIMIT ?4"
    );
    let mut statement = database.prepare_cached(&sql)?;
    let cursor = cursor.map_or("", FunctionName::as_str);
    let mut found = statement.query(params![prefix, row::beyond(prefix), cursor, page(limit)])?;
    let mut versions = Vec::new();
    while let Some(row) = found.next()? {
        versions.push(version_from(row)?);
    }
    Ok(versions)
}

pub(super) fn delete(database: &Connection, name: &FunctionName) -> Result<bool, Fault> {
    let was_there = database
        .prepare_cached("UPDATE functions SET current = NULL WHERE name = ?1 AND current IS NOT NULL")?
        .execute([name.as_str()])?
        > 0;
    database.prepare_cached("DELETE FROM versions WHERE function = ?1")?.execute([name.as_str()])?;
    Ok(was_there)
}

pub(super) fn digests(database: &Connection) -> Result<Vec<Digest>, Fault> {
    let mut statement =
        database.prepare_cached("SELECT DISTINCT digest FROM versions WHERE digest IS NOT NULL ORDER BY digest")?;
    let mut found = statement.query([])?;
    let mut digests = Vec::new();
    while let Some(row) = found.next()? {
        digests.push(Digest::from_bytes(row.get(0)?));
    }
    Ok(digests)
}
