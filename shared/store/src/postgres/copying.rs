//! The whole schema, read in one transaction and written in one.

use flux_protocol::{Digest, ExecutionId, FunctionName, Timestamp, limits};
use futures::{StreamExt as _, pin_mut};
use tokio::sync::mpsc;
use tokio_postgres::Row as Found;
use uuid::Uuid;

use super::{
    access,
    connect::Session,
    executions::{key, whole_record},
    fault::Fault,
    functions, secrets,
    transaction::{Columns, INSERT},
};
use crate::{Census, Entry, FunctionHead, HeldKey, NumberedEntry, Part, SharedKey, UsedKey, row::Row};

/// It takes as long as it takes, and waits for whoever reads or writes the other end.
const PATIENT: &str = "SET LOCAL statement_timeout = 0; SET LOCAL idle_in_transaction_session_timeout = 0;
    SET LOCAL lock_timeout = '30s'";

pub(super) async fn census(session: &Session) -> Result<Census, Fault> {
    let count = async |sql: String| -> Result<u64, Fault> {
        let count: i64 = session.client.query_one(&sql, &[]).await?.try_get(0)?;
        Ok(u64::try_from(count).unwrap_or(0))
    };
    let most = Census::COUNTED;
    Ok(Census {
        functions: count("SELECT count(*) FROM functions WHERE current IS NOT NULL".to_owned()).await?,
        executions: count(format!("SELECT count(*) FROM (SELECT 1 FROM executions LIMIT {most}) AS counted")).await?,
        keys: count("SELECT count(*) FROM api_keys".to_owned()).await?,
        secrets: count("SELECT count(*) FROM secrets".to_owned()).await?,
    })
}

/// From a row to an entry.
type Reading = fn(&Found) -> Result<Entry, Fault>;

pub(super) async fn export(session: &Session, into: &mpsc::Sender<Entry>) -> Result<(), Fault> {
    session.client.batch_execute("BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY").await?;
    session.client.batch_execute(PATIENT).await?;
    let tables: [(&str, Reading); 8] = [
        ("SELECT name, current, last FROM functions", head),
        ("SELECT version, digest, spec, created_at FROM versions", |row| {
            Ok(Entry::Version(Box::new(functions::version_from(row)?)))
        }),
        ("SELECT record, output, invocation FROM executions", |row| {
            Ok(Entry::Execution(Box::new(whole_record(row, 0)?)))
        }),
        ("SELECT function, key, execution, body, at, expires_at FROM idempotency", held_key),
        ("SELECT id, record, last_used_at FROM api_keys", |row| Ok(Entry::ApiKey(UsedKey::of(access::read(row)?)))),
        ("SELECT seq, entry FROM audit ORDER BY seq", audit_entry),
        ("SELECT name, value FROM shared_keys", |row| {
            Ok(Entry::SharedKey(SharedKey { name: row.try_get(0)?, value: row.try_get(1)? }))
        }),
        (secrets::ALL, |row| Ok(Entry::Secret(secrets::read(row)?))),
    ];
    for (sql, entry) in tables {
        let none: [&str; 0] = [];
        let rows = session.client.query_raw(sql, none).await?;
        pin_mut!(rows);
        while let Some(row) = rows.next().await {
            if into.send(entry(&row?)?).await.is_err() {
                return Ok(());
            }
        }
    }
    Ok(session.client.batch_execute("ROLLBACK").await?)
}

fn name(row: &Found) -> Result<FunctionName, Fault> {
    FunctionName::parse(row.try_get(0)?).map_err(|error| Fault::row("a function", error))
}

fn head(row: &Found) -> Result<Entry, Fault> {
    let current: Option<i64> = row.try_get(1)?;
    let current = current.map(functions::number).transpose()?;
    Ok(Entry::Function(FunctionHead { name: name(row)?, current, last: functions::number(row.try_get(2)?)? }))
}

fn held_key(row: &Found) -> Result<Entry, Fault> {
    let (execution, body): (Uuid, &[u8]) = (row.try_get(2)?, row.try_get(3)?);
    let body = <[u8; 32]>::try_from(body).map_err(|error| Fault::row("an idempotency key", error))?;
    Ok(Entry::Idempotency(HeldKey {
        function: name(row)?,
        key: row.try_get(1)?,
        execution: ExecutionId::from_bytes(*execution.as_bytes()),
        body: Digest::from_bytes(body),
        at: Timestamp::from_micros(row.try_get(4)?),
        expires_at: Timestamp::from_micros(row.try_get(5)?),
    }))
}

fn audit_entry(row: &Found) -> Result<Entry, Fault> {
    let (seq, json): (i64, &str) = (row.try_get(0)?, row.try_get(1)?);
    let entry = serde_json::from_str(json).map_err(|error| Fault::row(format!("audit entry {seq}"), error))?;
    Ok(Entry::Audit(NumberedEntry { seq: u64::try_from(seq).unwrap_or_default(), entry }))
}

/// Whether the end came, and all of it was committed.
pub(super) async fn import(session: &Session, parts: &mut mpsc::Receiver<Part>) -> Result<bool, Fault> {
    let client = &session.client;
    client.batch_execute(&format!("BEGIN; {PATIENT}")).await?;
    // Leases stay: their tokens only grow.
    client
        .batch_execute(
            "TRUNCATE functions, versions, executions, idempotency, api_keys, audit, shared_keys, secrets, secret_claims",
        )
        .await?;
    let mut rows: Vec<Row> = Vec::new();
    let mut bytes = 0;
    while let Some(part) = parts.recv().await {
        match part {
            Part::Entry(Entry::Execution(record)) => {
                let row = Row::of(*record);
                bytes += row.bytes();
                rows.push(row);
                if rows.len() >= limits::STORE_BATCH || bytes >= limits::STORE_BATCH_BYTES {
                    insert(session, &mut rows).await?;
                    bytes = 0;
                }
            }
            Part::Entry(entry) => write(session, entry).await?,
            Part::End => {
                insert(session, &mut rows).await?;
                // What is numbered later goes on from there.
                let next = "SELECT setval(pg_get_serial_sequence('audit', 'seq'), (SELECT max(seq) FROM audit))
                            WHERE EXISTS (SELECT 1 FROM audit)";
                client.query(next, &[]).await?;
                client.batch_execute("COMMIT").await?;
                return Ok(true);
            }
        }
    }
    client.batch_execute("ROLLBACK").await?;
    Ok(false)
}

async fn insert(session: &Session, rows: &mut Vec<Row>) -> Result<(), Fault> {
    if !rows.is_empty() {
        let statement = session.prepared(INSERT).await?;
        session.client.execute(&statement, &Columns::of(&*rows).parameters()).await?;
        rows.clear();
    }
    Ok(())
}

async fn write(session: &Session, entry: Entry) -> Result<(), Fault> {
    let client = &session.client;
    match entry {
        Entry::Function(FunctionHead { name, current, last }) => {
            let statement = session.prepared("INSERT INTO functions (name, current, last) VALUES ($1, $2, $3)").await?;
            client.execute(&statement, &[&name.as_str(), &current.map(i64::from), &i64::from(last)]).await?;
        }
        Entry::Version(version) => functions::save(session, &version).await?,
        Entry::Execution(record) => insert(session, &mut vec![Row::of(*record)]).await?,
        Entry::Idempotency(held) => {
            // One that was read from Redis may come twice.
            let sql = "INSERT INTO idempotency (function, key, execution, body, at, expires_at)
                       VALUES ($1, $2, $3, $4, $5, $6)
                       ON CONFLICT (function, key) DO UPDATE SET execution = excluded.execution, body = excluded.body,
                           at = excluded.at, expires_at = excluded.expires_at";
            let statement = session.prepared(sql).await?;
            let (execution, body) = (key(held.execution), &held.body.as_bytes()[..]);
            let (at, expires_at) = (held.at.as_micros(), held.expires_at.as_micros());
            let function = held.function.as_str();
            client.execute(&statement, &[&function, &held.key, &execution, &body, &at, &expires_at]).await?;
        }
        Entry::ApiKey(used) => {
            let UsedKey { record, last_used_at } = *used;
            let sql = "INSERT INTO api_keys (id, record, last_used_at) VALUES ($1, $2, $3)";
            let used = last_used_at.map(Timestamp::as_micros);
            let json = access::written("an API key", &record)?;
            client.execute(sql, &[&record.id.as_str(), &json, &used]).await?;
        }
        Entry::Audit(NumberedEntry { seq, entry }) => {
            let sql = "INSERT INTO audit (seq, at, entry) OVERRIDING SYSTEM VALUE VALUES ($1, $2, $3)";
            let statement = session.prepared(sql).await?;
            let seq = i64::try_from(seq).unwrap_or(i64::MAX);
            let json = access::written("an audit entry", &entry)?;
            client.execute(&statement, &[&seq, &entry.at.as_micros(), &json]).await?;
        }
        Entry::SharedKey(SharedKey { name, value }) => {
            client.execute("INSERT INTO shared_keys (name, value) VALUES ($1, $2)", &[&name, &value]).await?;
        }
        Entry::Secret(secret) => {
            let sql = "INSERT INTO secrets (name, version, key, sealed, created_at, updated_at)
                       VALUES ($1, $2, $3, $4, $5, $6)";
            let (created_at, updated_at) = (secret.created_at.as_micros(), secret.updated_at.as_micros());
            let (name, version) = (secret.name.as_str(), i64::from(secret.version));
            client.execute(sql, &[&name, &version, &secret.key, &secret.sealed, &created_at, &updated_at]).await?;
        }
    }
    Ok(())
}
