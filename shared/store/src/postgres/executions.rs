//! Records of executions: merged by [`merge`](crate::merge), one read and one write per batch.

use std::collections::HashMap;

use flux_protocol::{ExecutionId, ExecutionRecord, Timestamp, execution::QueuePosition};
use parking_lot::Mutex;
use tokio_postgres::types::ToSql;
use uuid::Uuid;

use super::{
    accept::Accepted,
    connect::Session,
    fault::Fault,
    transaction::{self, Begun, Columns},
};
use crate::{
    ExecutionFilter, Recorded, StatusUpdate,
    batch::{self, MergedBatch},
    merge_queued, merge_requeued,
    row::{self, Question, Row},
};

const INSERT_NEW: &str = "INSERT INTO executions (id, function, status, queued_at, status_at, record, output, invocation)
    SELECT * FROM unnest($1::uuid[], $2::text[], $3::int2[], $4::int8[], $5::int8[], $6::text[], $7::bytea[], $8::text[])
        AS n (id, function, status, queued_at, status_at, record, output, invocation) ORDER BY n.id
    ON CONFLICT (id) DO NOTHING RETURNING id";

pub(super) fn key(id: ExecutionId) -> Uuid {
    Uuid::from_bytes(*id.as_bytes())
}

/// Reads `record, output, invocation` from the columns that start at `first`.
pub(super) fn whole_record(found: &tokio_postgres::Row, first: usize) -> Result<ExecutionRecord, Fault> {
    let record: &str = found.try_get(first)?;
    let output: Option<&[u8]> = found.try_get(first + 1)?;
    let invocation: Option<&str> = found.try_get(first + 2)?;
    Ok(row::whole(record.as_bytes(), output, invocation.map(str::as_bytes))?)
}

pub(super) async fn load(session: &Session, id: ExecutionId) -> Result<Option<ExecutionRecord>, Fault> {
    let statement = session.prepared("SELECT record, output, invocation FROM executions WHERE id = $1").await?;
    session.client.query_opt(&statement, &[&key(id)]).await?.map(|found| whole_record(&found, 0)).transpose()
}

/// Adds records that are likely new, and merges those that are not.
pub(super) async fn insert_queued(session: &Session, batch: &[Accepted]) -> Result<(), Fault> {
    let statement = session.prepared(INSERT_NEW).await?;
    let columns = Columns::of(batch.iter().map(|accepted| &accepted.row));
    let inserted = session.client.query(&statement, &columns.parameters()).await?;
    if inserted.len() == batch.len() {
        return Ok(());
    }
    let mut known: HashMap<ExecutionId, Vec<&ExecutionRecord>> = HashMap::new();
    for Accepted { record, .. } in batch {
        known.entry(record.execution_id).or_default().push(record);
    }
    for row in &inserted {
        let id: Uuid = row.try_get(0)?;
        // Of two of one batch that are the same execution the first was inserted, and both are merged again.
        if known.get(&ExecutionId::from_bytes(*id.as_bytes())).is_some_and(|records| records.len() == 1) {
            known.remove(&ExecutionId::from_bytes(*id.as_bytes()));
        }
    }
    let ids: Vec<ExecutionId> = known.keys().copied().collect();
    rewrite(session, &ids, |id, before| {
        let mut record = before;
        for queued in known.get(&id).into_iter().flatten() {
            record = Some(merge_queued(record, (*queued).clone()));
        }
        record
    })
    .await
}

pub(super) async fn requeued(
    session: &Session,
    id: ExecutionId,
    attempt: u32,
    position: &QueuePosition,
    now: Timestamp,
) -> Result<(), Fault> {
    rewrite(session, &[id], |_, known| known.map(|known| merge_requeued(known, attempt, position.clone(), now))).await
}

/// Makes of each record what `make` makes of it.
async fn rewrite(
    session: &Session,
    ids: &[ExecutionId],
    make: impl Fn(ExecutionId, Option<ExecutionRecord>) -> Option<ExecutionRecord>,
) -> Result<(), Fault> {
    let (_, mut known) = transaction::begin(session, ids).await?;
    let (mut stored, mut new) = (Vec::new(), Vec::new());
    for id in ids {
        let before = known.remove(id);
        let into = if before.is_some() { &mut stored } else { &mut new };
        into.extend(make(*id, before).map(Row::of));
    }
    if stored.is_empty() && new.is_empty() {
        return transaction::undo(session).await;
    }
    transaction::commit(session, &stored, &mut new).await
}

/// A batch whose commit was not heard of, and what it came to.
pub(super) type Unheard = Mutex<Option<(Begun, Vec<Recorded>)>>;

pub(super) async fn record(
    session: &Session,
    updates: &[StatusUpdate],
    unheard: &Unheard,
) -> Result<Vec<Recorded>, Fault> {
    // What a commit did is told to its caller once: had it succeeded and were it done again, nobody would be told. So it stays
    // there until it is told, however often the server goes away before.
    let before = unheard.lock().clone();
    let mut committed = None;
    if let Some((begun, results)) = before {
        match transaction::ended_well(session, &begun).await? {
            Some(true) => committed = Some(results),
            Some(false) => *unheard.lock() = None,
            None => return Err(Fault::Away("a commit before has not ended".to_owned())),
        }
    }
    let (begun, known) = transaction::begin(session, &batch::ids(updates)).await?;
    let was: Vec<ExecutionId> = known.keys().copied().collect();
    let MergedBatch { results, changed } = batch::merge(known, updates);
    if changed.is_empty() {
        transaction::undo(session).await?;
        return Ok(committed.unwrap_or(results));
    }
    // Something is to be written, so that commit was another's: a server that was killed gives the number of a transaction again of
    // which nothing had come to its log.
    let (stored, new): (Vec<_>, Vec<_>) = changed.into_iter().partition(|record| was.contains(&record.execution_id));
    let stored: Vec<Row> = stored.into_iter().map(Row::of).collect();
    let mut new: Vec<Row> = new.into_iter().map(Row::of).collect();
    *unheard.lock() = Some((begun, results.clone()));
    let committed = transaction::commit(session, &stored, &mut new).await;
    if committed.as_ref().err().is_none_or(Fault::leaves_connection) {
        *unheard.lock() = None;
    }
    committed.map(|()| results)
}

/// The text of a list's statement, and its parameters' names in their order.
pub(super) fn list_sql(question: &Question) -> (String, Vec<&'static str>) {
    let mut sql = "SELECT record FROM executions WHERE true".to_owned();
    let mut names = Vec::new();
    let mut add = |text: &str, name: &'static str| {
        names.push(name);
        sql.push_str(&text.replace('?', &format!("${}", names.len())));
    };
    if question.function.is_some() {
        add(" AND function = ?", "function");
    }
    match question.status {
        // A partial index is taken where its own condition is written out.
        Some(row::OPEN) if question.function.is_none() => add(" AND status = 0 AND status = ?", "status"),
        Some(_) if question.function.is_none() => add(" AND status <> 0 AND status = ?", "status"),
        Some(_) => add(" AND status = ?", "status"),
        None => {}
    }
    if question.cursor.is_some() {
        add(" AND id < ?", "cursor");
    }
    if question.since.is_some() {
        add(" AND id >= ?", "first");
        add(" AND queued_at >= ?", "since");
    }
    add(" ORDER BY id DESC LIMIT ?", "limit");
    (sql, names)
}

/// A list's parameters, as [`list_sql`] names them.
pub(super) fn list_values(question: &Question, names: &[&'static str]) -> Vec<Box<dyn ToSql + Sync + Send>> {
    let value = |name: &&str| -> Box<dyn ToSql + Sync + Send> {
        match *name {
            "function" => Box::new(question.function.clone()),
            "status" => Box::new(question.status),
            "cursor" => Box::new(question.cursor.map(Uuid::from_bytes)),
            "first" => Box::new(question.since.map(|(_, first)| Uuid::from_bytes(first))),
            "since" => Box::new(question.since.map(|(since, _)| since)),
            _ => Box::new(i64::try_from(question.limit).unwrap_or(1)),
        }
    };
    names.iter().map(value).collect()
}

pub(super) async fn list(session: &Session, filter: &ExecutionFilter) -> Result<Vec<ExecutionRecord>, Fault> {
    let question = Question::of(filter);
    let (sql, names) = list_sql(&question);
    let values = list_values(&question, &names);
    let values: Vec<&(dyn ToSql + Sync)> = values.iter().map(|value| &**value as &(dyn ToSql + Sync)).collect();
    let statement = session.prepared(&sql).await?;
    let found = session.client.query(&statement, &values).await?;
    found.iter().map(|found| Ok(row::slim(found.try_get::<_, &str>(0)?.as_bytes())?)).collect()
}

/// Which ones is answered by the index alone, and only their rows are read.
pub(super) const LIST_OPEN: &str = "SELECT record, output, invocation FROM executions WHERE id = ANY (ARRAY(
        SELECT id FROM executions WHERE status = 0 AND id > $1 AND status_at < $2 ORDER BY id LIMIT $3))
    ORDER BY id";

pub(super) async fn list_open(
    session: &Session,
    before: Timestamp,
    after: Option<ExecutionId>,
    limit: usize,
) -> Result<Vec<ExecutionRecord>, Fault> {
    let statement = session.prepared(LIST_OPEN).await?;
    let after = after.map_or_else(Uuid::nil, key);
    let limit = i64::try_from(row::page(limit)).unwrap_or(1);
    let found = session.client.query(&statement, &[&after, &before.as_micros(), &limit]).await?;
    found.iter().map(|found| whole_record(found, 0)).collect()
}

/// Two gateways that expire at once take different rows.
pub(super) const EXPIRE: &str = "DELETE FROM executions WHERE id = ANY (ARRAY(
        SELECT id FROM executions WHERE status <> 0 AND status_at < $1 ORDER BY status_at, id LIMIT $2
        FOR UPDATE SKIP LOCKED))
    RETURNING record";

/// Removes at most `limit` records whose end is older than `before`.
pub(super) async fn expire(session: &Session, before: Timestamp, limit: usize) -> Result<Vec<ExecutionRecord>, Fault> {
    let statement = session.prepared(EXPIRE).await?;
    let limit = i64::try_from(limit).unwrap_or(i64::MAX);
    let found = session.client.query(&statement, &[&before.as_micros(), &limit]).await?;
    found.iter().map(|found| Ok(row::slim(found.try_get::<_, &str>(0)?.as_bytes())?)).collect()
}
