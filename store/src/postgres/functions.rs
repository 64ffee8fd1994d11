//! `functions`, each with the version that serves; and the deletion of all that is a function's.

use common::ids::{FunctionId, UserId};
use sqlx::{PgPool, PgTransaction};

use super::DELETE_DEADLINE;
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

/// The values are deleted in a transaction that commits after the function's own: a crash between the two leaves
/// values that no one can reach, for ids are never given twice, and never a function that lost its values.
pub(super) async fn delete(
    main: &PgPool,
    function_data: &PgPool,
    owner: UserId,
    function: FunctionId,
) -> Result<(), Error> {
    let mut tx = begin_patient(main).await?;
    let deleted = sqlx::query("DELETE FROM functions WHERE id = $1 AND owner_id = $2")
        .bind(function.uuid())
        .bind(owner.uuid())
        .execute(&mut *tx)
        .await?;
    if deleted.rows_affected() == 0 {
        return Err(Error::NotFound);
    }
    let mut values = begin_patient(function_data).await?;
    sqlx::query("DELETE FROM function_data WHERE function_id = $1").bind(function.uuid()).execute(&mut *values).await?;
    tx.commit().await?;
    values.commit().await?;
    Ok(())
}

/// A transaction whose statements, and whose waits between them, may take as long as a deletion does.
async fn begin_patient(pool: &PgPool) -> Result<PgTransaction<'static>, Error> {
    let mut tx = pool.begin().await?;
    sqlx::query(
        "SELECT set_config('statement_timeout', $1, TRUE), set_config('idle_in_transaction_session_timeout', $1, TRUE)",
    )
    .bind(format!("{}ms", DELETE_DEADLINE.as_millis()))
    .execute(&mut *tx)
    .await?;
    Ok(tx)
}
