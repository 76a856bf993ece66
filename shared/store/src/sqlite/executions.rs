//! Records of executions: merged by [`merge`](crate::merge), one read and one write per execution and batch.

use std::collections::{HashMap, HashSet};

use flux_protocol::{ExecutionId, ExecutionRecord, Timestamp, execution::QueuePosition};
use rusqlite::{Connection, ToSql, params};

use super::{
    fault::Fault,
    rows::{key, page, slim_record, whole_record},
};
use crate::{
    ExecutionFilter, Recorded, StatusUpdate,
    batch::{self, MergedBatch},
    merge_queued, merge_requeued,
    row::{self, Question, Row},
};

pub(super) fn load(database: &Connection, id: ExecutionId) -> Result<Option<ExecutionRecord>, Fault> {
    let mut statement = database.prepare_cached("SELECT record, output, invocation FROM executions WHERE id = ?1")?;
    let mut found = statement.query([key(id)])?;
    found.next()?.map(|row| whole_record(row, 0)).transpose()
}

/// Inserts; whether there was none.
pub(super) fn insert(database: &Connection, row: &Row) -> Result<bool, Fault> {
    let mut statement = database.prepare_cached(
        "INSERT INTO executions (id, function, status, queued_at, status_at, record, output, invocation)
         VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8) ON CONFLICT DO NOTHING",
    )?;
    let inserted = statement.execute(params![
        row.id,
        row.function,
        row.status,
        row.queued_at,
        row.status_at,
        row.record,
        row.output.as_deref(),
        row.invocation,
    ])?;
    Ok(inserted == 1)
}

fn replace(database: &Connection, row: &Row) -> Result<(), Fault> {
    // A function that statuses do not agree on moves in its indexes too, which is not worth it for the others.
    let mut statement = database.prepare_cached(
        "UPDATE executions SET status = ?2, queued_at = ?3, status_at = ?4, record = ?5, output = ?6, invocation = ?7
         WHERE id = ?1 AND function = ?8",
    )?;
    let updated = statement.execute(params![
        row.id,
        row.status,
        row.queued_at,
        row.status_at,
        row.record,
        row.output.as_deref(),
        row.invocation,
        row.function,
    ])?;
    if updated == 0 {
        database.prepare_cached("DELETE FROM executions WHERE id = ?1")?.execute([row.id])?;
        insert(database, row)?;
    }
    Ok(())
}

pub(super) fn insert_queued(database: &Connection, record: &ExecutionRecord, row: &Row) -> Result<(), Fault> {
    if insert(database, row)? {
        return Ok(());
    }
    let known = load(database, record.execution_id)?;
    replace(database, &Row::of(merge_queued(known, record.clone())))
}

pub(super) fn record(database: &Connection, updates: &[StatusUpdate]) -> Result<Vec<Recorded>, Fault> {
    let mut known = HashMap::with_capacity(updates.len());
    for id in batch::ids(updates) {
        if let Some(record) = load(database, id)? {
            known.insert(id, record);
        }
    }
    let stored: HashSet<ExecutionId> = known.keys().copied().collect();
    let MergedBatch { results, changed } = batch::merge(known, updates);
    for record in changed {
        let is_stored = stored.contains(&record.execution_id);
        let row = Row::of(record);
        if is_stored {
            replace(database, &row)?;
        } else {
            insert(database, &row)?;
        }
    }
    Ok(results)
}

pub(super) fn requeued(
    database: &Connection,
    id: ExecutionId,
    attempt: u32,
    position: &QueuePosition,
    now: Timestamp,
) -> Result<(), Fault> {
    let Some(known) = load(database, id)? else { return Ok(()) };
    replace(database, &Row::of(merge_requeued(known, attempt, position.clone(), now)))
}

pub(super) fn list(database: &Connection, filter: &ExecutionFilter) -> Result<Vec<ExecutionRecord>, Fault> {
    let Question { function, status, cursor, since, limit } = Question::of(filter);
    let limit = page(limit);
    let (since, first) = since.unzip();

    // The index is named: without statistics SQLite guesses, and a wrong guess reads the whole history.
    let index = match (&function, status) {
        (None, None) => "",
        (Some(_), None) => "INDEXED BY executions_of_function",
        (Some(_), Some(_)) => "INDEXED BY executions_of_function_by_status",
        (None, Some(row::OPEN)) => "INDEXED BY executions_open",
        (None, Some(_)) => "INDEXED BY executions_ended",
    };
    let mut sql = format!("SELECT record FROM executions {index} WHERE 1");
    let mut values: Vec<(&str, &dyn ToSql)> = Vec::new();
    if let Some(function) = &function {
        sql.push_str(" AND function = :function");
        values.push((":function", function));
    }
    match &status {
        // A partial index is taken where its own condition is written out.
        Some(row::OPEN) if function.is_none() => sql.push_str(" AND status = 0"),
        Some(status) => {
            sql.push_str(if function.is_none() {
                " AND status <> 0 AND status = :status"
            } else {
                " AND status = :status"
            });
            values.push((":status", status));
        }
        None => {}
    }
    if let Some(cursor) = &cursor {
        sql.push_str(" AND id < :cursor");
        values.push((":cursor", cursor));
    }
    if let (Some(since), Some(first)) = (&since, &first) {
        sql.push_str(" AND id >= :first AND queued_at >= :since");
        values.push((":first", first));
        values.push((":since", since));
    }
    sql.push_str(" ORDER BY id DESC LIMIT :limit");
    values.push((":limit", &limit));

    let mut statement = database.prepare_cached(&sql)?;
    let mut found = statement.query(&values[..])?;
    let mut records = Vec::new();
    while let Some(row) = found.next()? {
        records.push(slim_record(row, 0)?);
    }
    Ok(records)
}

pub(super) fn list_open(
    database: &Connection,
    before: Timestamp,
    after: Option<ExecutionId>,
    limit: usize,
) -> Result<Vec<ExecutionRecord>, Fault> {
    // Which ones is answered by the index alone. In one step SQLite looks up the row of every open execution before it
    // looks at `status_at`: with a long queue that was a quarter of a busy gateway's time.
    let mut statement = database.prepare_cached(
        "SELECT record, output, invocation FROM executions WHERE id IN (
             SELECT id FROM executions INDEXED BY executions_open
             WHERE status = 0 AND id > ?1 AND status_at < ?2 ORDER BY id LIMIT ?3)
         ORDER BY id",
    )?;
    // An empty key sorts before every id.
    let after = after.map_or_else(Vec::new, |id| key(id).to_vec());
    let mut found = statement.query(params![after, before.as_micros(), page(limit)])?;
    let mut records = Vec::new();
    while let Some(row) = found.next()? {
        records.push(whole_record(row, 0)?);
    }
    Ok(records)
}

/// Removes at most `limit` records whose end is older than `before`.
pub(super) fn expire(database: &Connection, before: Timestamp, limit: usize) -> Result<Vec<ExecutionRecord>, Fault> {
    let mut statement = database.prepare_cached(
        "SELECT record FROM executions INDEXED BY executions_ended_at
         WHERE status <> 0 AND status_at < ?1 ORDER BY status_at, id LIMIT ?2",
    )?;
    let mut found = statement.query(params![before.as_micros(), i64::try_from(limit).unwrap_or(i64::MAX)])?;
    let mut records = Vec::new();
    while let Some(row) = found.next()? {
        records.push(slim_record(row, 0)?);
    }
    let mut delete = database.prepare_cached("DELETE FROM executions WHERE id = ?1")?;
    for record in &records {
        delete.execute([key(record.execution_id)])?;
    }
    Ok(records)
}
