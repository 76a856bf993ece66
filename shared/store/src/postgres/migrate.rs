//! The schema: made and brought up to date by one gateway while others wait.

use flux_protocol::limits;

use super::{connect::Session, fault::Fault};

/// The n-th brings a database from schema n to n + 1. Only ever appended to.
const MIGRATIONS: &[&str] = &[include_str!("schema.sql")];

/// `may`: else an earlier one is refused, and none is made.
pub(super) async fn migrate(session: &Session, schema: &str, may: bool) -> Result<(), Fault> {
    // Most starts have nothing to do, and then need no lock, nor the right to make tables.
    let found = match version(session, schema).await? {
        Some(found) if usize::try_from(found).is_ok_and(|found| found >= MIGRATIONS.len()) => found,
        None if !may => return Err(Fault::Refused { problem: format!("there is no store in the schema `{schema}`") }),
        Some(found) if !may => {
            return Err(Fault::Refused {
                problem: format!(
                    "the schema `{schema}` is of an earlier release of Flux (schema {found}; this one knows {}), and is left as \
                     it is: use that release's `flux`",
                    MIGRATIONS.len()
                ),
            });
        }
        _ => bring_up_to_date(session, schema).await?,
    };
    let known = MIGRATIONS.len();
    if usize::try_from(found).is_ok_and(|found| found <= known) {
        return Ok(());
    }
    Err(Fault::Refused {
        problem: format!(
            "the schema `{schema}` was written by a newer release of Flux (schema {found}; this one knows {known}): \
             start that release, or restore the backup from before"
        ),
    })
}

/// `None`: nothing of Flux's is there.
async fn version(session: &Session, schema: &str) -> Result<Option<i64>, Fault> {
    let there = "SELECT to_regclass($1 || '.flux_schema') IS NOT NULL";
    if !session.client.query_one(there, &[&schema]).await?.try_get::<_, bool>(0)? {
        return Ok(None);
    }
    let found = session.client.query_opt("SELECT version FROM flux_schema", &[]).await?;
    Ok(found.map(|row| row.try_get(0)).transpose()?)
}

async fn bring_up_to_date(session: &Session, schema: &str) -> Result<i64, Fault> {
    let client = &session.client;
    // A name of its own for each schema, since a lock is the whole database's.
    let patience_ms = limits::STORE_MIGRATION.as_millis();
    client.batch_execute(&format!("BEGIN; SET LOCAL statement_timeout = {patience_ms}")).await?;
    client.query_one("SELECT pg_advisory_xact_lock(hashtextextended('flux/' || $1, 0))", &[&schema]).await?;
    client
        .batch_execute(&format!("CREATE SCHEMA IF NOT EXISTS {schema}"))
        .await
        .map_err(|error| denied(error, schema))?;
    client.batch_execute("CREATE TABLE IF NOT EXISTS flux_schema (version bigint NOT NULL)").await?;
    // Another may have been here while this one waited for the lock.
    let found = version(session, schema).await?;
    let from = found.and_then(|found| usize::try_from(found).ok()).unwrap_or(0);
    for migration in MIGRATIONS.get(from..).unwrap_or_default() {
        client.batch_execute(migration).await?;
    }
    let reached = i64::try_from(from.max(MIGRATIONS.len())).unwrap_or(i64::MAX);
    client.batch_execute("DELETE FROM flux_schema").await?;
    client.execute("INSERT INTO flux_schema VALUES ($1)", &[&reached]).await?;
    client.batch_execute("COMMIT").await?;
    Ok(reached)
}

fn denied(error: tokio_postgres::Error, schema: &str) -> Fault {
    if error.code().is_some_and(|code| code.code() == "42501") {
        return Fault::Refused {
            problem: format!(
                "this user may not make the schema `{schema}`: as the database's owner, run \
                 `CREATE SCHEMA {schema} AUTHORIZATION <user>`"
            ),
        };
    }
    error.into()
}
