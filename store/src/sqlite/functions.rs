//! `functions`, each with the version that serves; and the deletion of all that is a function's.

use common::ids::{FunctionId, UserId};
use sqlx::SqlitePool;
use uuid::Uuid;

use super::begin;
use crate::endings::{
    DELETE, PURGE_FUNCTION, PURGE_LOGS_OF, PURGE_RECORDS_OF, PURGE_ROWS, PURGE_VALUES_OF, deleted_name,
};
use crate::rows::{FUNCTION_OF_OWNER, FUNCTIONS_OF_OWNER, FunctionRow, SERVING, all};
use crate::text::storable;
use crate::{Error, Function};

pub(super) async fn serving(readers: &SqlitePool) -> Result<Vec<Function>, Error> {
    let rows: Vec<FunctionRow> = sqlx::query_as(SERVING).fetch_all(readers).await?;
    all(rows)
}

pub(super) async fn find(readers: &SqlitePool, owner: UserId, key: &str) -> Result<Option<Function>, Error> {
    let id: Option<FunctionId> = key.parse().ok();
    let row: Option<FunctionRow> = sqlx::query_as(FUNCTION_OF_OWNER)
        .bind(owner.uuid())
        .bind(id.map(FunctionId::uuid))
        .bind(storable(key))
        .fetch_optional(readers)
        .await?;
    row.map(Function::try_from).transpose()
}

pub(super) async fn list(
    readers: &SqlitePool,
    owner: UserId,
    limit: u32,
    after: Option<&str>,
) -> Result<Vec<Function>, Error> {
    let rows: Vec<FunctionRow> = sqlx::query_as(FUNCTIONS_OF_OWNER)
        .bind(owner.uuid())
        // Every name is longer than the empty one.
        .bind(storable(after.unwrap_or_default()))
        .bind(i64::from(limit))
        .fetch_all(readers)
        .await?;
    all(rows)
}

pub(super) async fn delete(writer: &SqlitePool, owner: UserId, function: FunctionId) -> Result<(), Error> {
    let deleted = sqlx::query(DELETE)
        .bind(function.uuid())
        .bind(owner.uuid())
        .bind(deleted_name(function))
        .execute(writer)
        .await?;
    if deleted.rows_affected() == 0 { Err(Error::NotFound) } else { Ok(()) }
}

/// Some of what is left of one deleted function; at last itself.
pub(super) async fn purge_deleted(writer: &SqlitePool) -> Result<u64, Error> {
    let next = "SELECT id FROM functions WHERE deleted_at IS NOT NULL ORDER BY deleted_at LIMIT 1";
    let mut tx = begin(writer).await?;
    let found: Option<Uuid> = sqlx::query_scalar(next).fetch_optional(&mut *tx).await?;
    let Some(function) = found else { return Ok(0) };
    let mut deleted = 0;
    for statement in [PURGE_RECORDS_OF, PURGE_LOGS_OF, PURGE_VALUES_OF] {
        let done = sqlx::query(statement).bind(function).bind(PURGE_ROWS).execute(&mut *tx).await?;
        deleted += done.rows_affected();
    }
    if deleted == 0 {
        deleted = sqlx::query(PURGE_FUNCTION).bind(function).execute(&mut *tx).await?.rows_affected();
    }
    tx.commit().await?;
    Ok(deleted)
}
