//! `function_invocations`: batches in, pages and single calls out.

use chrono::{DateTime, Utc};
use common::ids::{InvocationId, UserId};
use common::invocation::Record;
use common::phases::ColdCause;
use sqlx::{QueryBuilder, Sqlite, SqlitePool};
use uuid::Uuid;

use super::begin;
use crate::endings::{PURGE_LOGS, PURGE_RECORDS, PURGE_ROWS};
use crate::rows::{
    IS_THERE, RECORDED_CALL, RECORDS, RecordedCallRow, bigint, first_id, integer, page, status_word, timestamp,
};
use crate::text::{storable, storable_json};
use crate::{Error, RecordPage, RecordQuery, RecordedCall};

/// Rows of one statement. A full chunk's is prepared once, and is kept with its 21 parameters a row, so it is not large; what
/// is left over is prepared each time, so it is not much.
const CHUNK: usize = 100;

pub(super) async fn insert(writer: &SqlitePool, records: &[Record]) -> Result<(), Error> {
    let mut tx = begin(writer).await?;
    for chunk in records.chunks(CHUNK) {
        insertion(chunk).build().persistent(chunk.len() == CHUNK).execute(&mut *tx).await?;
    }
    Ok(tx.commit().await?)
}

fn insertion(records: &[Record]) -> QueryBuilder<Sqlite> {
    let mut insertion = QueryBuilder::new(
        "WITH r (id, function_id, status, duration_ms, error, logs, request_info, result, created_at,
           deployment_id, node_id, outcome, cold, peak_memory_bytes,
           gate_us, auth_us, queue_us, cold_us, fn_us, total_us, cold_cause) AS (",
    );
    insertion.push_values(records, |mut row, record| {
        row.push_bind(record.id.uuid())
            .push_bind(record.function.uuid())
            .push_bind(status_word(record.outcome))
            .push_bind(integer(record.duration_ms))
            .push_bind(record.error.as_deref().map(|text| storable(text).into_owned()))
            .push_bind(storable_json(&record.logs))
            .push_bind(storable_json(&record.request_info))
            .push_bind(record.result.as_deref().map(|text| storable(text).into_owned()))
            .push_bind(timestamp(record.created_at))
            .push_bind(record.deployment.uuid())
            .push_bind(record.node.uuid())
            .push_bind(record.outcome.word())
            .push_bind(record.cold)
            .push_bind(bigint(record.peak_memory_bytes))
            .push_bind(record.phases.gate_us.map(bigint))
            .push_bind(record.phases.auth_us.map(bigint))
            .push_bind(record.phases.queue_us.map(bigint))
            .push_bind(record.phases.cold_us.map(bigint))
            .push_bind(record.phases.fn_us.map(bigint))
            .push_bind(record.phases.total_us.map(bigint))
            .push_bind(record.phases.cold_cause.map(ColdCause::word));
    });
    // `WHERE TRUE` keeps SQLite from reading the `ON` of the conflict as that of the join.
    insertion.push(
        ")
         INSERT INTO function_invocations (id, function_id, status, duration_ms, error, logs, request_info, result,
           success, created_at, deployment_id, node_id, outcome, cold, peak_memory_bytes,
           gate_us, auth_us, queue_us, cold_us, fn_us, total_us, cold_cause)
         SELECT r.id, r.function_id, r.status, r.duration_ms, r.error, r.logs, r.request_info, r.result,
           r.status = 'success', r.created_at, r.deployment_id, r.node_id, r.outcome, r.cold, r.peak_memory_bytes,
           r.gate_us, r.auth_us, r.queue_us, r.cold_us, r.fn_us, r.total_us, r.cold_cause
         FROM r JOIN functions f ON f.id = r.function_id
         WHERE TRUE
         ON CONFLICT (id) DO NOTHING",
    );
    insertion
}

pub(super) async fn list(readers: &SqlitePool, query: RecordQuery) -> Result<RecordPage, Error> {
    let rows = sqlx::query_as(RECORDS)
        .bind(query.function.uuid())
        .bind(query.owner.uuid())
        .bind(query.before.map_or(Uuid::max(), |id| id.uuid()))
        .bind(query.success.unwrap_or(true))
        .bind(!query.success.unwrap_or(false))
        // One more than asked for tells whether there are more.
        .bind(i64::from(query.limit) + 1)
        .fetch(readers);
    let page = page(rows, query.limit).await?;
    if page.records.is_empty() {
        // Nothing to show, or not his to see?
        let (function, owner) = (query.function.uuid(), query.owner.uuid());
        let his: bool = sqlx::query_scalar(IS_THERE).bind(function).bind(owner).fetch_one(readers).await?;
        if !his {
            return Err(Error::NotFound);
        }
    }
    Ok(page)
}

/// Records, and the lines of logs beside them.
pub(super) async fn purge(writer: &SqlitePool, before: DateTime<Utc>) -> Result<u64, Error> {
    let mut deleted = 0;
    for statement in [PURGE_RECORDS, PURGE_LOGS] {
        let done = sqlx::query(statement).bind(first_id(before)).bind(PURGE_ROWS).execute(writer).await?;
        deleted += done.rows_affected();
    }
    Ok(deleted)
}

pub(super) async fn find(readers: &SqlitePool, owner: UserId, id: InvocationId) -> Result<Option<RecordedCall>, Error> {
    let row: Option<RecordedCallRow> =
        sqlx::query_as(RECORDED_CALL).bind(id.uuid()).bind(owner.uuid()).fetch_optional(readers).await?;
    row.map(RecordedCall::try_from).transpose()
}
