//! `functions`, each with the version that serves; and the deletion of all that is a function's.

use common::ids::{FunctionId, UserId};
use sqlx::SqlitePool;

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

/// Everything that refers to the function goes with it.
pub(super) async fn delete(writer: &SqlitePool, owner: UserId, function: FunctionId) -> Result<(), Error> {
    let deleted = sqlx::query("DELETE FROM functions WHERE id = $1 AND owner_id = $2")
        .bind(function.uuid())
        .bind(owner.uuid())
        .execute(writer)
        .await?;
    if deleted.rows_affected() == 0 { Err(Error::NotFound) } else { Ok(()) }
}
