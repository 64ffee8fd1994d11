//! `functions`, each with the version that serves; and the deletion of all that is a function's.

use common::ids::{FunctionId, UserId};
use sqlx::PgPool;
use uuid::Uuid;

use crate::endings::{
    DELETE, PURGE_FUNCTION, PURGE_LOGS_OF, PURGE_RECORDS_OF, PURGE_ROWS, PURGE_VALUES_OF, deleted_name,
};
use crate::rows::{FUNCTION_OF_OWNER, FUNCTIONS_OF_OWNER, FunctionRow, SERVING, all};
use crate::text::storable;
use crate::{Error, Function};

pub(super) async fn serving(pool: &PgPool) -> Result<Vec<Function>, Error> {
    let rows: Vec<FunctionRow> = sqlx::query_as(SERVING).fetch_all(pool).await?;
    all(rows)
}

pub(super) async fn find(pool: &PgPool, owner: UserId, key: &str) -> Result<Option<Function>, Error> {
    let id: Option<FunctionId> = key.parse().ok();
    let row: Option<FunctionRow> = sqlx::query_as(FUNCTION_OF_OWNER)
        .bind(owner.uuid())
        .bind(id.map(FunctionId::uuid))
        .bind(storable(key))
        .fetch_optional(pool)
        .await?;
    row.map(Function::try_from).transpose()
}

pub(super) async fn list(
    pool: &PgPool,
    owner: UserId,
    limit: u32,
    after: Option<&str>,
) -> Result<Vec<Function>, Error> {
    let rows: Vec<FunctionRow> = sqlx::query_as(FUNCTIONS_OF_OWNER)
        .bind(owner.uuid())
        // Every name is longer than the empty one.
        .bind(storable(after.unwrap_or_default()))
        .bind(i64::from(limit))
        .fetch_all(pool)
        .await?;
    all(rows)
}

pub(super) async fn delete(pool: &PgPool, owner: UserId, function: FunctionId) -> Result<(), Error> {
    let deleted =
        sqlx::query(DELETE).bind(function.uuid()).bind(owner.uuid()).bind(deleted_name(function)).execute(pool).await?;
    if deleted.rows_affected() == 0 { Err(Error::NotFound) } else { Ok(()) }
}

/// Some of what is left of one deleted function; at last itself. One that another gateway is at is passed over. Records
/// that still come do not wait for it, since they need the function's key alone, but for the moment in which that goes.
pub(super) async fn purge_deleted(main: &PgPool, function_data: &PgPool) -> Result<u64, Error> {
    let next = "SELECT id FROM functions WHERE deleted_at IS NOT NULL ORDER BY deleted_at LIMIT 1
         FOR NO KEY UPDATE SKIP LOCKED";
    let mut tx = main.begin().await?;
    let found: Option<Uuid> = sqlx::query_scalar(next).fetch_optional(&mut *tx).await?;
    let Some(function) = found else { return Ok(0) };
    // In a database of their own, and so before the function: values without one would be found by nobody.
    let done = sqlx::query(PURGE_VALUES_OF).bind(function).bind(PURGE_ROWS).execute(function_data).await?;
    let mut deleted = done.rows_affected();
    for statement in [PURGE_RECORDS_OF, PURGE_LOGS_OF] {
        let done = sqlx::query(statement).bind(function).bind(PURGE_ROWS).execute(&mut *tx).await?;
        deleted += done.rows_affected();
    }
    if deleted == 0 {
        deleted = sqlx::query(PURGE_FUNCTION).bind(function).execute(&mut *tx).await?.rows_affected();
    }
    tx.commit().await?;
    Ok(deleted)
}
