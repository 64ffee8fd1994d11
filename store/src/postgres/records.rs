//! `function_invocations`: batches in, pages and single calls out.

use chrono::{DateTime, Utc};
use common::ids::{InvocationId, UserId};
use common::invocation::Record;
use common::phases::ColdCause;
use sqlx::PgPool;
use uuid::Uuid;

use crate::endings::{PURGE_LOGS, PURGE_RECORDS, PURGE_ROWS};
use crate::rows::{
    IS_THERE, RECORDED_CALL, RECORDS, RecordedCallRow, bigint, first_id, integer, page, status_word, timestamp,
};
use crate::text::{storable, storable_json};
use crate::{Error, RecordPage, RecordQuery, RecordedCall};

/// How often functions may be deleted while a batch that names them is inserted, before that is given up.
const ATTEMPTS: u32 = 5;

pub(super) async fn insert(pool: &PgPool, records: &[Record]) -> Result<(), Error> {
    for _ in 1..ATTEMPTS {
        match insert_once(pool, records).await {
            // Deleted between the join and the check; the next join does not find it. (A lock would settle this,
            // too, but a role that may only insert records may not lock.)
            Err(Error::Query(sqlx::Error::Database(error))) if error.is_foreign_key_violation() => {}
            result => return result,
        }
    }
    insert_once(pool, records).await
}

async fn insert_once(pool: &PgPool, records: &[Record]) -> Result<(), Error> {
    fn column<T>(records: &[Record], of: impl FnMut(&Record) -> T) -> Vec<T> {
        records.iter().map(of).collect()
    }
    let text = |text: &Option<String>| text.as_deref().map(|text| storable(text).into_owned());
    // What this acknowledges is gone from the sender's disk, so the server's own has to have it: `synchronous_commit` is as
    // the operator set it. In the order of ids, so that two senders of the same records do not wait for each other crosswise.
    sqlx::query(
        "INSERT INTO function_invocations (id, function_id, status, duration_ms, error, logs, request_info, result,
           success, created_at, deployment_id, node_id, outcome, cold, peak_memory_bytes,
           gate_us, auth_us, queue_us, cold_us, fn_us, total_us, cold_cause)
         SELECT r.id, r.function_id, r.status, r.duration_ms, r.error, r.logs::jsonb, r.request_info::jsonb, r.result,
           r.status = 'success', r.created_at, r.deployment_id, r.node_id, r.outcome, r.cold, r.peak_memory_bytes,
           r.gate_us, r.auth_us, r.queue_us, r.cold_us, r.fn_us, r.total_us, r.cold_cause
         FROM UNNEST($1::uuid[], $2::uuid[], $3::text[], $4::int[], $5::text[], $6::text[], $7::text[], $8::text[],
           $9::timestamp[], $10::uuid[], $11::uuid[], $12::text[], $13::bool[], $14::bigint[],
           $15::bigint[], $16::bigint[], $17::bigint[], $18::bigint[], $19::bigint[], $20::bigint[], $21::text[])
           AS r (id, function_id, status, duration_ms, error, logs, request_info, result,
             created_at, deployment_id, node_id, outcome, cold, peak_memory_bytes,
             gate_us, auth_us, queue_us, cold_us, fn_us, total_us, cold_cause)
         JOIN functions f ON f.id = r.function_id
         ORDER BY r.id
         ON CONFLICT (id) DO NOTHING",
    )
    .bind(column(records, |r| r.id.uuid()))
    .bind(column(records, |r| r.function.uuid()))
    .bind(column(records, |r| status_word(r.outcome)))
    .bind(column(records, |r| integer(r.duration_ms)))
    .bind(column(records, |r| text(&r.error)))
    .bind(column(records, |r| storable_json(&r.logs)))
    .bind(column(records, |r| storable_json(&r.request_info)))
    .bind(column(records, |r| text(&r.result)))
    .bind(column(records, |r| timestamp(r.created_at)))
    .bind(column(records, |r| r.deployment.uuid()))
    .bind(column(records, |r| r.node.uuid()))
    .bind(column(records, |r| r.outcome.word()))
    .bind(column(records, |r| r.cold))
    .bind(column(records, |r| bigint(r.peak_memory_bytes)))
    .bind(column(records, |r| r.phases.gate_us.map(bigint)))
    .bind(column(records, |r| r.phases.auth_us.map(bigint)))
    .bind(column(records, |r| r.phases.queue_us.map(bigint)))
    .bind(column(records, |r| r.phases.cold_us.map(bigint)))
    .bind(column(records, |r| r.phases.fn_us.map(bigint)))
    .bind(column(records, |r| r.phases.total_us.map(bigint)))
    .bind(column(records, |r| r.phases.cold_cause.map(ColdCause::word)))
    .execute(pool)
    .await?;
    Ok(())
}

pub(super) async fn list(pool: &PgPool, query: RecordQuery) -> Result<RecordPage, Error> {
    let rows = sqlx::query_as(RECORDS)
        .bind(query.function.uuid())
        .bind(query.owner.uuid())
        .bind(query.before.map_or(Uuid::max(), |id| id.uuid()))
        .bind(query.success.unwrap_or(true))
        .bind(!query.success.unwrap_or(false))
        // One more than asked for tells whether there are more.
        .bind(i64::from(query.limit) + 1)
        .fetch(pool);
    let page = page(rows, query.limit).await?;
    if page.records.is_empty() {
        // Nothing to show, or not his to see?
        let (function, owner) = (query.function.uuid(), query.owner.uuid());
        let his: bool = sqlx::query_scalar(IS_THERE).bind(function).bind(owner).fetch_one(pool).await?;
        if !his {
            return Err(Error::NotFound);
        }
    }
    Ok(page)
}

/// Records, and the lines of logs beside them.
pub(super) async fn purge(pool: &PgPool, before: DateTime<Utc>) -> Result<u64, Error> {
    let mut deleted = 0;
    for statement in [PURGE_RECORDS, PURGE_LOGS] {
        let done = sqlx::query(statement).bind(first_id(before)).bind(PURGE_ROWS).execute(pool).await?;
        deleted += done.rows_affected();
    }
    Ok(deleted)
}

pub(super) async fn find(pool: &PgPool, owner: UserId, id: InvocationId) -> Result<Option<RecordedCall>, Error> {
    let row: Option<RecordedCallRow> =
        sqlx::query_as(RECORDED_CALL).bind(id.uuid()).bind(owner.uuid()).fetch_optional(pool).await?;
    row.map(RecordedCall::try_from).transpose()
}
