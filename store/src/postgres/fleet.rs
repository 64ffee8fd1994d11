//! `fleet_authority`, `join_tokens`, `nodes`, `node_links`.

use chrono::{DateTime, NaiveDateTime, Utc};
use common::digest::Digest;
use common::ids::{GatewayId, NodeId, UserId};
use common::labels::Labels;
use sqlx::PgPool;
use uuid::Uuid;

use crate::Error;
use crate::fleet::{
    AUTHORITIES, Authorities, Authority, AuthorityRow, CertificateFacts, Duty, Joining, LABEL, MOVE, NODES, NOTE_FIRST,
    NewNode, Node, NodeRow, RESEAL, ROTATE,
};
use crate::rows::{all, timestamp};

pub(super) async fn authorities(pool: &PgPool) -> Result<Option<Authorities>, Error> {
    let row: Option<AuthorityRow> = sqlx::query_as(AUTHORITIES).fetch_optional(pool).await?;
    Ok(row.map(Authorities::from))
}

pub(super) async fn found(pool: &PgPool, new: Authority) -> Result<Authorities, Error> {
    sqlx::query("INSERT INTO fleet_authority (certificate, sealed_key) VALUES ($1, $2) ON CONFLICT DO NOTHING")
        .bind(new.certificate)
        .bind(new.sealed_key)
        .execute(pool)
        .await?;
    authorities(pool).await?.ok_or(Error::NotFound)
}

pub(super) async fn rotate(pool: &PgPool, before: &[u8], next: Authority) -> Result<bool, Error> {
    let mut tx = pool.begin().await?;
    let done = sqlx::query(ROTATE).bind(before).bind(next.certificate).bind(next.sealed_key).execute(&mut *tx).await?;
    if done.rows_affected() == 0 {
        return Ok(false);
    }
    sqlx::query(NOTE_FIRST).bind(&Digest::of(before).bytes()[..]).execute(&mut *tx).await?;
    tx.commit().await?;
    Ok(true)
}

pub(super) async fn end_former(pool: &PgPool, former: &[u8], force: bool) -> Result<bool, Error> {
    let done = sqlx::query(
        "UPDATE fleet_authority SET former_certificate = NULL, former_sealed_key = NULL
         WHERE former_certificate = $1 AND ($2 OR NOT EXISTS (
           SELECT 1 FROM nodes WHERE duty <> 'removed' AND certificate_expires_at > LOCALTIMESTAMP
             AND (certificate_authority IS NULL OR certificate_authority = $3)))",
    )
    .bind(former)
    .bind(force)
    .bind(&Digest::of(former).bytes()[..])
    .execute(pool)
    .await?;
    Ok(done.rows_affected() == 1)
}

pub(super) async fn reseal(pool: &PgPool, old: &[u8], new: &[u8]) -> Result<(), Error> {
    Ok(sqlx::query(RESEAL).bind(old).bind(new).execute(pool).await.map(drop)?)
}

pub(super) async fn add_token(
    pool: &PgPool,
    hash: Digest,
    made_by: UserId,
    seconds: u32,
) -> Result<DateTime<Utc>, Error> {
    let (expires_at,): (NaiveDateTime,) = sqlx::query_as(
        "INSERT INTO join_tokens (hash, made_by, expires_at)
         VALUES ($1, $2, LOCALTIMESTAMP + make_interval(secs => $3)) RETURNING expires_at",
    )
    .bind(&hash.bytes()[..])
    .bind(made_by.uuid())
    .bind(f64::from(seconds))
    .fetch_one(pool)
    .await?;
    Ok(expires_at.and_utc())
}

pub(super) async fn join(pool: &PgPool, token: Digest, node: NewNode) -> Result<Joining, Error> {
    let mut tx = pool.begin().await?;
    // Of two at once the second waits for the first, and then finds the token used.
    let spent = sqlx::query(
        "UPDATE join_tokens SET used_at = LOCALTIMESTAMP
         WHERE hash = $1 AND used_at IS NULL AND expires_at > LOCALTIMESTAMP",
    )
    .bind(&token.bytes()[..])
    .execute(&mut *tx)
    .await?;
    if spent.rows_affected() == 0 {
        let used: Option<(bool,)> = sqlx::query_as("SELECT used_at IS NOT NULL FROM join_tokens WHERE hash = $1")
            .bind(&token.bytes()[..])
            .fetch_optional(&mut *tx)
            .await?;
        return Ok(match used {
            Some((true,)) => Joining::Used,
            Some((false,)) => Joining::Expired,
            None => Joining::Unknown,
        });
    }
    sqlx::query(
        "INSERT INTO nodes (id, name, duty, certificate_authority, certificate_serial, certificate_expires_at)
         VALUES ($1, $2, 'active', $3, $4, $5)",
    )
    .bind(node.id.uuid())
    .bind(node.name)
    .bind(&node.authority.bytes()[..])
    .bind(node.certificate.serial)
    .bind(timestamp(node.certificate.expires_at))
    .execute(&mut *tx)
    .await?;
    tx.commit().await?;
    Ok(Joining::Joined)
}

pub(super) async fn renew(pool: &PgPool, id: NodeId, certificate: CertificateFacts) -> Result<(), Error> {
    let done = sqlx::query(
        "UPDATE nodes SET certificate_serial = $2, certificate_expires_at = $3 WHERE id = $1 AND duty <> 'removed'",
    )
    .bind(id.uuid())
    .bind(certificate.serial)
    .bind(timestamp(certificate.expires_at))
    .execute(pool)
    .await?;
    if done.rows_affected() == 0 { Err(Error::NotFound) } else { Ok(()) }
}

pub(super) async fn moved(pool: &PgPool, id: NodeId, authority: Digest) -> Result<(), Error> {
    Ok(sqlx::query(MOVE).bind(id.uuid()).bind(&authority.bytes()[..]).execute(pool).await.map(drop)?)
}

pub(super) async fn nodes(pool: &PgPool) -> Result<Vec<Node>, Error> {
    all::<NodeRow, _>(sqlx::query_as(NODES).fetch_all(pool).await?)
}

pub(super) async fn linked(pool: &PgPool, id: NodeId, name: &str, labels: &Labels) -> Result<(), Error> {
    // What joined was inserted then; what has no certificate is on the gateway's own machine.
    let upsert = "INSERT INTO nodes (id, name, labels, duty, last_seen_at) VALUES ($1, $2, $3, 'active', LOCALTIMESTAMP)
         ON CONFLICT (id) DO UPDATE SET name = excluded.name, labels = excluded.labels, last_seen_at = excluded.last_seen_at,
           duty = CASE WHEN nodes.duty = 'removed' AND nodes.certificate_serial IS NULL THEN 'active' ELSE nodes.duty END";
    Ok(sqlx::query(upsert).bind(id.uuid()).bind(name).bind(labels.to_string()).execute(pool).await.map(drop)?)
}

pub(super) async fn seen(pool: &PgPool, gateway: GatewayId, ids: &[NodeId]) -> Result<(), Error> {
    let ids: Vec<_> = ids.iter().map(|id| id.uuid()).collect();
    let mut tx = pool.begin().await?;
    sqlx::query("UPDATE nodes SET last_seen_at = LOCALTIMESTAMP WHERE id = ANY($1)")
        .bind(&ids)
        .execute(&mut *tx)
        .await?;
    sqlx::query("DELETE FROM node_links WHERE gateway_id = $1 AND node_id <> ALL($2)")
        .bind(gateway.uuid())
        .bind(&ids)
        .execute(&mut *tx)
        .await?;
    sqlx::query(
        "INSERT INTO node_links (node_id, gateway_id, seen_at)
         SELECT id, $1, LOCALTIMESTAMP FROM nodes WHERE id = ANY($2)
         ON CONFLICT (node_id, gateway_id) DO UPDATE SET seen_at = excluded.seen_at",
    )
    .bind(gateway.uuid())
    .bind(&ids)
    .execute(&mut *tx)
    .await?;
    Ok(tx.commit().await?)
}

pub(super) async fn links(pool: &PgPool, seconds: u32) -> Result<Vec<(NodeId, GatewayId)>, Error> {
    let rows: Vec<(Uuid, Uuid)> = sqlx::query_as(
        "SELECT node_id, gateway_id FROM node_links WHERE seen_at > LOCALTIMESTAMP - make_interval(secs => $1)",
    )
    .bind(f64::from(seconds))
    .fetch_all(pool)
    .await?;
    Ok(rows.into_iter().map(|(node, gateway)| (node.into(), gateway.into())).collect())
}

pub(super) async fn label(pool: &PgPool, id: NodeId, before: &Labels, labels: &Labels) -> Result<bool, Error> {
    let done =
        sqlx::query(LABEL).bind(id.uuid()).bind(before.to_string()).bind(labels.to_string()).execute(pool).await?;
    Ok(done.rows_affected() == 1)
}

pub(super) async fn set_duty(pool: &PgPool, id: NodeId, duty: Duty) -> Result<(), Error> {
    let update = "UPDATE nodes SET duty = $2 WHERE id = $1 AND duty <> 'removed'";
    let done = sqlx::query(update).bind(id.uuid()).bind(duty.word()).execute(pool).await?;
    if done.rows_affected() == 0 { Err(Error::NotFound) } else { Ok(()) }
}

pub(super) async fn purge(pool: &PgPool) -> Result<u64, Error> {
    let tokens = sqlx::query("DELETE FROM join_tokens WHERE expires_at <= LOCALTIMESTAMP - INTERVAL '1 day'")
        .execute(pool)
        .await?;
    let links =
        sqlx::query("DELETE FROM node_links WHERE seen_at <= LOCALTIMESTAMP - INTERVAL '1 day'").execute(pool).await?;
    let nodes = sqlx::query(
        "DELETE FROM nodes WHERE duty = 'removed'
           AND (certificate_expires_at IS NULL OR certificate_expires_at <= LOCALTIMESTAMP)",
    )
    .execute(pool)
    .await?;
    Ok(tokens.rows_affected() + links.rows_affected() + nodes.rows_affected())
}
