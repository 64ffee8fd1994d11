//! `claims`, and what keeps an archive.

use common::digest::Digest;
use common::ids::DeploymentId;
use sqlx::SqlitePool;
use uuid::Uuid;

use crate::Error;
use crate::claims::{Claim, GIVE_UP, Holder, IS_WANTED, SOURCES, Source, SourceRow};
use crate::rows::all;

pub(super) async fn claim(writer: &SqlitePool, what: Claim, holder: Holder, seconds: u32) -> Result<bool, Error> {
    let done = sqlx::query(
        "INSERT INTO claims (what, holder, until) VALUES ($1, $2, strftime('%Y-%m-%d %H:%M:%f', 'now', $3))
         ON CONFLICT (what) DO UPDATE SET holder = excluded.holder, until = excluded.until
         WHERE claims.holder = excluded.holder OR claims.until <= strftime('%Y-%m-%d %H:%M:%f', 'now')",
    )
    .bind(what.word())
    .bind(holder.0)
    .bind(format!("+{seconds} seconds"))
    .execute(writer)
    .await?;
    Ok(done.rows_affected() == 1)
}

pub(super) async fn give_up(writer: &SqlitePool, what: Claim, holder: Holder) -> Result<(), Error> {
    sqlx::query(GIVE_UP).bind(what.word()).bind(holder.0).execute(writer).await?;
    Ok(())
}

pub(super) async fn sources(
    readers: &SqlitePool,
    after: Option<DeploymentId>,
    limit: u32,
) -> Result<Vec<Source>, Error> {
    let after = after.map_or(Uuid::nil(), |id| id.uuid());
    let rows: Vec<SourceRow> = sqlx::query_as(SOURCES).bind(after).bind(i64::from(limit)).fetch_all(readers).await?;
    all(rows)
}

/// The writer is asked, so that it is what was written last.
pub(super) async fn is_wanted(writer: &SqlitePool, archive: Digest) -> Result<bool, Error> {
    Ok(sqlx::query_scalar(IS_WANTED).bind(archive.to_string()).fetch_one(writer).await?)
}

/// Those whose holders are gone for long.
pub(super) async fn purge(writer: &SqlitePool) -> Result<u64, Error> {
    let done = sqlx::query("DELETE FROM claims WHERE until <= strftime('%Y-%m-%d %H:%M:%f', 'now', '-1 day')")
        .execute(writer)
        .await?;
    Ok(done.rows_affected())
}
