//! `claims`, and what keeps an archive.

use common::digest::Digest;
use common::ids::DeploymentId;
use sqlx::PgPool;
use uuid::Uuid;

use crate::Error;
use crate::claims::{Claim, GIVE_UP, Holder, IS_WANTED, SOURCES, Source, SourceRow};
use crate::rows::all;

pub(super) async fn claim(pool: &PgPool, what: Claim, holder: Holder, seconds: u32) -> Result<bool, Error> {
    let done = sqlx::query(
        "INSERT INTO claims (what, holder, until) VALUES ($1, $2, LOCALTIMESTAMP + make_interval(secs => $3))
         ON CONFLICT (what) DO UPDATE SET holder = EXCLUDED.holder, until = EXCLUDED.until
         WHERE claims.holder = EXCLUDED.holder OR claims.until <= LOCALTIMESTAMP",
    )
    .bind(what.word())
    .bind(holder.0)
    .bind(f64::from(seconds))
    .execute(pool)
    .await?;
    Ok(done.rows_affected() == 1)
}

pub(super) async fn give_up(pool: &PgPool, what: Claim, holder: Holder) -> Result<(), Error> {
    sqlx::query(GIVE_UP).bind(what.word()).bind(holder.0).execute(pool).await?;
    Ok(())
}

pub(super) async fn sources(pool: &PgPool, after: Option<DeploymentId>, limit: u32) -> Result<Vec<Source>, Error> {
    let after = after.map_or(Uuid::nil(), |id| id.uuid());
    let rows: Vec<SourceRow> = sqlx::query_as(SOURCES).bind(after).bind(i64::from(limit)).fetch_all(pool).await?;
    all(rows)
}

pub(super) async fn is_wanted(pool: &PgPool, archive: Digest) -> Result<bool, Error> {
    Ok(sqlx::query_scalar(IS_WANTED).bind(archive.to_string()).fetch_one(pool).await?)
}

/// Those whose holders are gone for long.
pub(super) async fn purge(pool: &PgPool) -> Result<u64, Error> {
    let done = sqlx::query("DELETE FROM claims WHERE until <= LOCALTIMESTAMP - interval '1 day'").execute(pool).await?;
    Ok(done.rows_affected())
}
