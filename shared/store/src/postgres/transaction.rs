//! Transactions in two round trips: what is looked at is locked on the way in, and what is written goes out with its commit.

use std::{collections::HashMap, future::Future};

use flux_protocol::{ExecutionId, ExecutionRecord};
use futures::future::{try_join, try_join3};
use tokio_postgres::Statement;
use uuid::Uuid;

use super::{connect::Session, executions::whole_record, fault::Fault};
use crate::{
    patience::{Again, Failure as _},
    row::Row,
};

const LOCK: &str = "SELECT id, record, output, invocation FROM executions WHERE id = ANY($1) ORDER BY id FOR UPDATE";
const XID: &str = "SELECT pg_current_xact_id()::text";
pub(super) const INSERT: &str = "INSERT INTO executions (id, function, status, queued_at, status_at, record, output, invocation)
    SELECT * FROM unnest($1::uuid[], $2::text[], $3::int2[], $4::int8[], $5::int8[], $6::text[], $7::bytea[], $8::text[])";
const UPDATE: &str = "UPDATE executions e SET function = n.function, status = n.status, queued_at = n.queued_at,
        status_at = n.status_at, record = n.record, output = n.output, invocation = n.invocation
    FROM unnest($1::uuid[], $2::text[], $3::int2[], $4::int8[], $5::int8[], $6::text[], $7::bytea[], $8::text[])
        AS n (id, function, status, queued_at, status_at, record, output, invocation)
    WHERE e.id = n.id";

/// Rows as the arrays of a statement.
#[derive(Default)]
pub(super) struct Columns<'r> {
    ids: Vec<Uuid>,
    functions: Vec<&'r str>,
    statuses: Vec<i16>,
    queued_at: Vec<i64>,
    status_at: Vec<i64>,
    records: Vec<&'r str>,
    outputs: Vec<Option<&'r [u8]>>,
    invocations: Vec<Option<&'r str>>,
}

impl<'r> Columns<'r> {
    pub(super) fn of(rows: impl IntoIterator<Item = &'r Row>) -> Self {
        let mut columns = Self::default();
        for row in rows {
            columns.ids.push(Uuid::from_bytes(row.id));
            columns.functions.push(&row.function);
            columns.statuses.push(row.status);
            columns.queued_at.push(row.queued_at);
            columns.status_at.push(row.status_at);
            columns.records.push(&row.record);
            columns.outputs.push(row.output.as_deref());
            columns.invocations.push(row.invocation.as_deref());
        }
        columns
    }

    /// Runs a statement on them, which is prepared: what is sent together is sent in its order.
    async fn execute(&self, session: &Session, statement: &Statement) -> Result<(), Fault> {
        if !self.ids.is_empty() {
            session.client.execute(statement, &self.parameters()).await?;
        }
        Ok(())
    }

    pub(super) fn parameters(&self) -> [&(dyn tokio_postgres::types::ToSql + Sync); 8] {
        [
            &self.ids,
            &self.functions,
            &self.statuses,
            &self.queued_at,
            &self.status_at,
            &self.records,
            &self.outputs,
            &self.invocations,
        ]
    }
}

/// What a transaction was, for somebody who did not hear how it ended.
#[derive(Clone)]
pub(super) struct Begun {
    pub(super) xid: String,
}

/// Begins, and loads what is there of `ids` with its rows locked. They are locked in the order of their ids, whoever
/// locks them, and later inserts come in that order too: so two never wait for each other.
pub(super) async fn begin(
    session: &Session,
    ids: &[ExecutionId],
) -> Result<(Begun, HashMap<ExecutionId, ExecutionRecord>), Fault> {
    let (lock, xid) = (session.prepared(LOCK).await?, session.prepared(XID).await?);
    let mut keys: Vec<Uuid> = ids.iter().map(|id| Uuid::from_bytes(*id.as_bytes())).collect();
    keys.sort_unstable();
    let opened = together(session.client.batch_execute("BEGIN"), session.client.query_one(&xid, &[]));
    let ((_, xid), rows) = together(opened, session.client.query(&lock, &[&keys])).await?;
    let mut known = HashMap::with_capacity(rows.len());
    for row in &rows {
        let record = whole_record(row, 1)?;
        known.insert(record.execution_id, record);
    }
    Ok((Begun { xid: xid.try_get(0)? }, known))
}

/// Writes, and commits. `stored`: those of which [`begin`] found a row.
pub(super) async fn commit(session: &Session, stored: &[Row], new: &mut [Row]) -> Result<(), Fault> {
    new.sort_unstable_by_key(|row| row.id);
    let (stored, new) = (Columns::of(stored), Columns::of(&*new));
    let (update, insert) = (session.prepared(UPDATE).await?, session.prepared(INSERT).await?);
    let commit = async { Ok(session.client.batch_execute("COMMIT").await?) };
    // Sent together: the commit of a transaction in which something failed undoes it.
    match try_join3(stored.execute(session, &update), new.execute(session, &insert), commit).await {
        Ok(_) => Ok(()),
        Err(fault) if fault.again() == Again::Raced => {
            // A refusal that came at once may have been seen before the commit was sent.
            undo(session).await?;
            Err(Fault::Raced)
        }
        Err(fault) => Err(fault),
    }
}

/// Undoes what [`begin`] began.
pub(super) async fn undo(session: &Session) -> Result<(), Fault> {
    Ok(session.client.batch_execute("ROLLBACK").await?)
}

/// How a transaction ended whose commit was not heard of. `None`: it has not ended.
pub(super) async fn ended_well(session: &Session, begun: &Begun) -> Result<Option<bool>, Fault> {
    let row = match session.client.query_one("SELECT pg_xact_status(($1::text)::xid8)", &[&begun.xid]).await {
        Ok(row) => row,
        // Class 22, "in the future": a server that never began it, such as a standby that took over before it heard of it.
        Err(error) if error.code().is_some_and(|code| code.code().starts_with("22")) => return Ok(Some(false)),
        Err(error) => return Err(error.into()),
    };
    Ok(match row.try_get::<_, Option<&str>>(0)? {
        Some("committed") => Some(true),
        Some("in progress") => None,
        // Too old to be known is a transaction of before the call.
        _ => Some(false),
    })
}

async fn together<A, B>(
    first: impl Future<Output = Result<A, tokio_postgres::Error>>,
    second: impl Future<Output = Result<B, tokio_postgres::Error>>,
) -> Result<(A, B), tokio_postgres::Error> {
    // Polled in this order, and so sent in this order, without waiting for the first one's answer.
    try_join(first, second).await
}
