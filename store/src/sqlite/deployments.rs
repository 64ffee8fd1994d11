//! `function_deployments`: versions from `building` to `ready` or `failed`, and which one serves.

use chrono::{DateTime, Utc};
use common::ids::{DeploymentId, GatewayId};
use sqlx::{SqlitePool, SqliteTransaction};
use uuid::Uuid;

use super::begin;
use crate::endings::{ABANDON, FAIL, PURGE_ROWS, PURGE_VERSIONS};
use crate::rows::{FUNCTION, FunctionRow, access_word, bigint, first_id, integer};
use crate::text::{storable, storable_json};
use crate::{Error, Function, NewDeployment, PendingDeployment};

/// Why a version failed that a restart cut short.
const INTERRUPTED: &str = "the gateway stopped before the build was done";

pub(super) async fn create(writer: &SqlitePool, new: NewDeployment) -> Result<PendingDeployment, Error> {
    let mut tx = begin(writer).await?;
    let (function, is_first) = function_for(&mut tx, &new).await?;
    let version: i32 = sqlx::query_scalar(
        "INSERT INTO function_deployments (id, function_id, version, status, runtime, entrypoint, archive,
           archive_root, access, timeout_ms, memory_mb, concurrency, env, egress, contract, idle_timeout_ms,
           stale_while_cold_ms, min_warm, gateway_id, node_selector)
         SELECT $1, $2, COALESCE(MAX(version), 0) + 1, 'building', $3, $4, $5, $6, $7, $8, $9, $10, $11, $12,
           $13, $14, $15, $16, $17, $18
         FROM function_deployments WHERE function_id = $2
         RETURNING version",
    )
    .bind(new.id.uuid())
    .bind(function)
    .bind(new.runtime.as_str())
    .bind(storable(&new.entrypoint))
    .bind(new.archive.to_string())
    .bind(new.archive_root.as_deref().map(storable))
    .bind(access_word(new.access))
    .bind(integer(new.limits.timeout_ms))
    .bind(integer(new.limits.memory_mb))
    .bind(integer(new.limits.concurrency))
    .bind(storable_json(&new.env))
    .bind(new.egress)
    .bind(new.contract.word())
    .bind(new.contract.idle_timeout_ms().map(integer))
    .bind(integer(new.stale_while_cold_ms))
    .bind(integer(new.limits.min_warm))
    .bind(new.gateway.uuid())
    .bind(new.node_selector.to_string())
    .fetch_one(&mut *tx)
    .await?;
    tx.commit().await?;
    let version = u32::try_from(version).map_err(|_| Error::Damaged("version"))?;
    Ok(PendingDeployment { spec: new.into_spec(function.into(), version), is_first })
}

/// The function's id, and whether it is new.
async fn function_for(tx: &mut SqliteTransaction<'_>, new: &NewDeployment) -> Result<(Uuid, bool), Error> {
    let inserted = sqlx::query(
        "INSERT INTO functions (id, owner_id, name) VALUES ($1, $2, $3) ON CONFLICT (owner_id, name) DO NOTHING",
    )
    .bind(new.function_if_new.uuid())
    .bind(new.owner.uuid())
    .bind(new.name.as_str())
    .execute(&mut **tx)
    .await?;
    let function = sqlx::query_scalar("SELECT id FROM functions WHERE owner_id = $1 AND name = $2")
        .bind(new.owner.uuid())
        .bind(new.name.as_str())
        .fetch_one(&mut **tx)
        .await?;
    Ok((function, inserted.rows_affected() == 1))
}

pub(super) async fn activate(writer: &SqlitePool, id: DeploymentId, build_ms: u64) -> Result<Function, Error> {
    let mut tx = begin(writer).await?;
    let found: Option<(Uuid, i32)> = sqlx::query_as(
        "SELECT f.id, d.version FROM function_deployments d JOIN functions f ON f.id = d.function_id
         WHERE d.id = $1 AND f.deleted_at IS NULL",
    )
    .bind(id.uuid())
    .fetch_optional(&mut *tx)
    .await?;
    let (function, version) = found.ok_or(Error::NotFound)?;
    sqlx::query("UPDATE function_deployments SET status = 'ready', build_ms = $2, failure = NULL WHERE id = $1")
        .bind(id.uuid())
        .bind(bigint(build_ms))
        .execute(&mut *tx)
        .await?;
    sqlx::query(
        "UPDATE functions SET active_version = $2
         WHERE id = $1 AND (active_version IS NULL OR active_version < $2)",
    )
    .bind(function)
    .bind(version)
    .execute(&mut *tx)
    .await?;
    let row: FunctionRow = sqlx::query_as(FUNCTION).bind(function).fetch_one(&mut *tx).await?;
    tx.commit().await?;
    row.try_into()
}

pub(super) async fn fail(writer: &SqlitePool, id: DeploymentId, reason: &str) -> Result<(), Error> {
    sqlx::query(FAIL).bind(id.uuid()).bind(storable(reason)).execute(writer).await?;
    Ok(())
}

pub(super) async fn abandon(writer: &SqlitePool, id: DeploymentId, reason: &str) -> Result<(), Error> {
    let mut tx = begin(writer).await?;
    let deleted = sqlx::query(ABANDON).bind(id.uuid()).execute(&mut *tx).await?;
    if deleted.rows_affected() == 0 {
        sqlx::query(FAIL).bind(id.uuid()).bind(storable(reason)).execute(&mut *tx).await?;
    }
    Ok(tx.commit().await?)
}

pub(super) async fn fail_of(writer: &SqlitePool, gateway: GatewayId) -> Result<u64, Error> {
    let update = "UPDATE function_deployments SET status = 'failed', failure = $1
         WHERE status = 'building' AND gateway_id = $2";
    let done = sqlx::query(update).bind(INTERRUPTED).bind(gateway.uuid()).execute(writer).await?;
    Ok(done.rows_affected())
}

pub(super) async fn fail_overdue(writer: &SqlitePool, seconds: u32) -> Result<u64, Error> {
    let update = "UPDATE function_deployments SET status = 'failed', failure = $1
         WHERE status = 'building' AND created_at <= strftime('%Y-%m-%d %H:%M:%f', 'now', $2)";
    let done = sqlx::query(update).bind(INTERRUPTED).bind(format!("-{seconds} seconds")).execute(writer).await?;
    Ok(done.rows_affected())
}

/// Those that others replaced, and those that failed.
pub(super) async fn purge(writer: &SqlitePool, before: DateTime<Utc>) -> Result<u64, Error> {
    let done = sqlx::query(PURGE_VERSIONS).bind(first_id(before)).bind(PURGE_ROWS).execute(writer).await?;
    Ok(done.rows_affected())
}
