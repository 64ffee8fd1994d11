//! `refresh_tokens`. A family is revoked by deleting its rows.

use chrono::{DateTime, Utc};
use common::digest::Digest;
use sqlx::{SqlitePool, SqliteTransaction};
use uuid::Uuid;

use super::begin;
use crate::rows::{TokenRow, timestamp};
use crate::{Error, RefreshToken, Rotation};

pub(super) async fn add(writer: &SqlitePool, token: RefreshToken) -> Result<(), Error> {
    sqlx::query("INSERT INTO refresh_tokens (hash, family, user_id, expires_at) VALUES ($1, $2, $3, $4)")
        .bind(&token.hash.bytes()[..])
        .bind(Uuid::now_v7())
        .bind(token.user.uuid())
        .bind(timestamp(token.expires_at))
        .execute(writer)
        .await?;
    Ok(())
}

pub(super) async fn rotate(
    writer: &SqlitePool,
    old: Digest,
    new_hash: Digest,
    expires_at: DateTime<Utc>,
) -> Result<Rotation, Error> {
    let mut tx = begin(writer).await?;
    let Some(token) = read(&mut tx, old).await? else { return Ok(Rotation::Unknown) };
    if token.expired {
        return Ok(Rotation::Unknown);
    }
    if token.spent {
        delete_family(&mut tx, token.family).await?;
        tx.commit().await?;
        return Ok(Rotation::Reused);
    }
    sqlx::query("UPDATE refresh_tokens SET spent_at = strftime('%Y-%m-%d %H:%M:%f', 'now') WHERE hash = $1")
        .bind(&old.bytes()[..])
        .execute(&mut *tx)
        .await?;
    sqlx::query("INSERT INTO refresh_tokens (hash, family, user_id, expires_at) VALUES ($1, $2, $3, $4)")
        .bind(&new_hash.bytes()[..])
        .bind(token.family)
        .bind(token.user_id)
        .bind(timestamp(expires_at))
        .execute(&mut *tx)
        .await?;
    tx.commit().await?;
    Ok(Rotation::Rotated(token.user_id.into()))
}

pub(super) async fn revoke(writer: &SqlitePool, hash: Digest) -> Result<(), Error> {
    let mut tx = begin(writer).await?;
    if let Some(token) = read(&mut tx, hash).await? {
        delete_family(&mut tx, token.family).await?;
        tx.commit().await?;
    }
    Ok(())
}

pub(super) async fn purge(writer: &SqlitePool) -> Result<u64, Error> {
    let done = sqlx::query("DELETE FROM refresh_tokens WHERE expires_at <= strftime('%Y-%m-%d %H:%M:%f', 'now')")
        .execute(writer)
        .await?;
    Ok(done.rows_affected())
}

async fn read(tx: &mut SqliteTransaction<'_>, hash: Digest) -> Result<Option<TokenRow>, Error> {
    let row = sqlx::query_as(
        "SELECT family, user_id, expires_at <= strftime('%Y-%m-%d %H:%M:%f', 'now') AS expired, spent_at IS NOT NULL AS spent
         FROM refresh_tokens WHERE hash = $1",
    )
    .bind(&hash.bytes()[..])
    .fetch_optional(&mut **tx)
    .await?;
    Ok(row)
}

async fn delete_family(tx: &mut SqliteTransaction<'_>, family: Uuid) -> Result<(), Error> {
    sqlx::query("DELETE FROM refresh_tokens WHERE family = $1").bind(family).execute(&mut **tx).await?;
    Ok(())
}
