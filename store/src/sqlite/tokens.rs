//! `refresh_tokens` and `ended_sessions`. A session ends by deleting the rows of its family, and by one row that says so.

use chrono::{DateTime, Utc};
use common::digest::Digest;
use common::ids::SessionId;
use sqlx::{SqlitePool, SqliteTransaction};
use uuid::Uuid;

use super::begin;
use crate::rows::{TokenRow, timestamp};
use crate::{Error, RefreshToken, Rotation};

pub(super) async fn add(writer: &SqlitePool, token: RefreshToken) -> Result<(), Error> {
    sqlx::query("INSERT INTO refresh_tokens (hash, family, user_id, expires_at) VALUES ($1, $2, $3, $4)")
        .bind(&token.hash.bytes()[..])
        .bind(token.session.uuid())
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
    access_seconds: u32,
) -> Result<Rotation, Error> {
    let mut tx = begin(writer).await?;
    let Some(token) = read(&mut tx, old).await? else { return Ok(Rotation::Unknown) };
    if token.expired {
        return Ok(Rotation::Unknown);
    }
    if token.spent {
        end_session(&mut tx, token.family, access_seconds).await?;
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
    Ok(Rotation::Rotated { user: token.user_id.into(), session: token.family.into() })
}

pub(super) async fn revoke(writer: &SqlitePool, hash: Digest, access_seconds: u32) -> Result<bool, Error> {
    let mut tx = begin(writer).await?;
    let Some(token) = read(&mut tx, hash).await? else { return Ok(false) };
    end_session(&mut tx, token.family, access_seconds).await?;
    tx.commit().await?;
    Ok(true)
}

pub(super) async fn ended(readers: &SqlitePool) -> Result<Vec<SessionId>, Error> {
    let sql = "SELECT session_id FROM ended_sessions WHERE until > strftime('%Y-%m-%d %H:%M:%f', 'now')";
    let ids: Vec<Uuid> = sqlx::query_scalar(sql).fetch_all(readers).await?;
    Ok(ids.into_iter().map(SessionId::from).collect())
}

pub(super) async fn purge(writer: &SqlitePool) -> Result<u64, Error> {
    let tokens = sqlx::query("DELETE FROM refresh_tokens WHERE expires_at <= strftime('%Y-%m-%d %H:%M:%f', 'now')")
        .execute(writer)
        .await?;
    let sessions = sqlx::query("DELETE FROM ended_sessions WHERE until <= strftime('%Y-%m-%d %H:%M:%f', 'now')")
        .execute(writer)
        .await?;
    Ok(tokens.rows_affected() + sessions.rows_affected())
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

/// Ends the session whose family has been read in this transaction, and so has rows.
async fn end_session(tx: &mut SqliteTransaction<'_>, family: Uuid, access_seconds: u32) -> Result<(), Error> {
    sqlx::query("DELETE FROM refresh_tokens WHERE family = $1").bind(family).execute(&mut **tx).await?;
    sqlx::query("INSERT INTO ended_sessions (session_id, until) VALUES ($1, strftime('%Y-%m-%d %H:%M:%f', 'now', $2))")
        .bind(family)
        .bind(format!("+{access_seconds} seconds"))
        .execute(&mut **tx)
        .await?;
    Ok(())
}
