//! `fleet_authority`, `join_tokens`, `nodes`, `node_links`.

use chrono::{DateTime, NaiveDateTime, Utc};
use common::digest::Digest;
use common::ids::{GatewayId, NodeId, UserId};
use common::labels::Labels;
use sqlx::SqlitePool;
use uuid::Uuid;

use super::begin;
use crate::Error;
use crate::fleet::{
    AUTHORITIES, Authorities, Authority, AuthorityRow, CertificateFacts, Duty, Joining, LABEL, MOVE, NODES, NOTE_FIRST,
    NewNode, Node, NodeRow, RESEAL, ROTATE,
};
use crate::rows::{all, timestamp};

pub(super) async fn authorities(pool: &SqlitePool) -> Result<Option<Authorities>, Error> {
    let row: Option<AuthorityRow> = sqlx::query_as(AUTHORITIES).fetch_optional(pool).await?;
    Ok(row.map(Authorities::from))
}

pub(super) async fn found(writer: &SqlitePool, new: Authority) -> Result<Authorities, Error> {
    sqlx::query("INSERT INTO fleet_authority (certificate, sealed_key) VALUES ($1, $2) ON CONFLICT DO NOTHING")
        .bind(new.certificate)
        .bind(new.sealed_key)
        .execute(writer)
        .await?;
    authorities(writer).await?.ok_or(Error::NotFound)
}

pub(super) async fn rotate(writer: &SqlitePool, before: &[u8], next: Authority) -> Result<bool, Error> {
    let mut tx = begin(writer).await?;
    let done = sqlx::query(ROTATE).bind(before).bind(next.certificate).bind(next.sealed_key).execute(&mut *tx).await?;
    if done.rows_affected() == 0 {
        return Ok(false);
    }
    sqlx::query(NOTE_FIRST).bind(&Digest::of(before).bytes()[..]).execute(&mut *tx).await?;
    tx.commit().await?;
    Ok(true)
}

pub(super) async fn end_former(writer: &SqlitePool, former: &[u8], force: bool) -> Result<bool, Error> {
    let done = sqlx::query(
        "UPDATE fleet_authority SET former_certificate = NULL, former_sealed_key = NULL
         WHERE former_certificate = $1 AND ($2 OR NOT EXISTS (
           SELECT 1 FROM nodes WHERE duty <> 'removed' AND certificate_expires_at > strftime('%Y-%m-%d %H:%M:%f', 'now')
             AND (certificate_authority IS NULL OR certificate_authority = $3)))",
    )
    .bind(former)
    .bind(force)
    .bind(&Digest::of(former).bytes()[..])
    .execute(writer)
    .await?;
    Ok(done.rows_affected() == 1)
}

pub(super) async fn reseal(writer: &SqlitePool, old: &[u8], new: &[u8]) -> Result<(), Error> {
    Ok(sqlx::query(RESEAL).bind(old).bind(new).execute(writer).await.map(drop)?)
}

pub(super) async fn add_token(
    writer: &SqlitePool,
    hash: Digest,
    made_by: UserId,
    seconds: u32,
) -> Result<DateTime<Utc>, Error> {
    let (expires_at,): (NaiveDateTime,) = sqlx::query_as(
        "INSERT INTO join_tokens (hash, made_by, expires_at)
         VALUES ($1, $2, strftime('%Y-%m-%d %H:%M:%f', 'now', $3)) RETURNING expires_at",
    )
    .bind(&hash.bytes()[..])
    .bind(made_by.uuid())
    .bind(format!("+{seconds} seconds"))
    .fetch_one(writer)
    .await?;
    Ok(expires_at.and_utc())
}

pub(super) async fn join(writer: &SqlitePool, token: Digest, node: NewNode) -> Result<Joining, Error> {
    let mut tx = begin(writer).await?;
    // Of two at once the second waits for the first, and then finds the token used.
    let spent = sqlx::query(
        "UPDATE join_tokens SET used_at = strftime('%Y-%m-%d %H:%M:%f', 'now')
         WHERE hash = $1 AND used_at IS NULL AND expires_at > strftime('%Y-%m-%d %H:%M:%f', 'now')",
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

pub(super) async fn renew(writer: &SqlitePool, id: NodeId, certificate: CertificateFacts) -> Result<(), Error> {
    let done = sqlx::query(
        "UPDATE nodes SET certificate_serial = $2, certificate_expires_at = $3 WHERE id = $1 AND duty <> 'removed'",
    )
    .bind(id.uuid())
    .bind(certificate.serial)
    .bind(timestamp(certificate.expires_at))
    .execute(writer)
    .await?;
    if done.rows_affected() == 0 { Err(Error::NotFound) } else { Ok(()) }
}

pub(super) async fn moved(writer: &SqlitePool, id: NodeId, authority: Digest) -> Result<(), Error> {
    Ok(sqlx::query(MOVE).bind(id.uuid()).bind(&authority.bytes()[..]).execute(writer).await.map(drop)?)
}

pub(super) async fn nodes(pool: &SqlitePool) -> Result<Vec<Node>, Error> {
    all::<NodeRow, _>(sqlx::query_as(NODES).fetch_all(pool).await?)
}

pub(super) async fn linked(writer: &SqlitePool, id: NodeId, name: &str, labels: &Labels) -> Result<(), Error> {
    // What joined was inserted then; what has no certificate is on the gateway's own machine.
    let upsert = "INSERT INTO nodes (id, name, labels, duty, last_seen_at) VALUES ($1, $2, $3, 'active', strftime('%Y-%m-%d %H:%M:%f', 'now'))
         ON CONFLICT (id) DO UPDATE SET name = excluded.name, labels = excluded.labels, last_seen_at = excluded.last_seen_at,
           duty = CASE WHEN nodes.duty = 'removed' AND nodes.certificate_serial IS NULL THEN 'active' ELSE nodes.duty END";
    Ok(sqlx::query(upsert).bind(id.uuid()).bind(name).bind(labels.to_string()).execute(writer).await.map(drop)?)
}

pub(super) async fn seen(writer: &SqlitePool, gateway: GatewayId, ids: &[NodeId]) -> Result<(), Error> {
    let mut tx = begin(writer).await?;
    sqlx::query("DELETE FROM node_links WHERE gateway_id = $1").bind(gateway.uuid()).execute(&mut *tx).await?;
    for id in ids {
        sqlx::query("UPDATE nodes SET last_seen_at = strftime('%Y-%m-%d %H:%M:%f', 'now') WHERE id = $1")
            .bind(id.uuid())
            .execute(&mut *tx)
            .await?;
        sqlx::query(
            "INSERT INTO node_links (node_id, gateway_id, seen_at)
             SELECT id, $2, strftime('%Y-%m-%d %H:%M:%f', 'now') FROM nodes WHERE id = $1",
        )
        .bind(id.uuid())
        .bind(gateway.uuid())
        .execute(&mut *tx)
        .await?;
    }
    Ok(tx.commit().await?)
}

pub(super) async fn links(readers: &SqlitePool, seconds: u32) -> Result<Vec<(NodeId, GatewayId)>, Error> {
    let rows: Vec<(Uuid, Uuid)> = sqlx::query_as(
        "SELECT node_id, gateway_id FROM node_links WHERE seen_at > strftime('%Y-%m-%d %H:%M:%f', 'now', $1)",
    )
    .bind(format!("-{seconds} seconds"))
    .fetch_all(readers)
    .await?;
    Ok(rows.into_iter().map(|(node, gateway)| (node.into(), gateway.into())).collect())
}

pub(super) async fn label(writer: &SqlitePool, id: NodeId, before: &Labels, labels: &Labels) -> Result<bool, Error> {
    let done =
        sqlx::query(LABEL).bind(id.uuid()).bind(before.to_string()).bind(labels.to_string()).execute(writer).await?;
    Ok(done.rows_affected() == 1)
}

pub(super) async fn set_duty(writer: &SqlitePool, id: NodeId, duty: Duty) -> Result<(), Error> {
    let update = "UPDATE nodes SET duty = $2 WHERE id = $1 AND duty <> 'removed'";
    let done = sqlx::query(update).bind(id.uuid()).bind(duty.word()).execute(writer).await?;
    if done.rows_affected() == 0 { Err(Error::NotFound) } else { Ok(()) }
}

pub(super) async fn purge(writer: &SqlitePool) -> Result<u64, Error> {
    let tokens =
        sqlx::query("DELETE FROM join_tokens WHERE expires_at <= strftime('%Y-%m-%d %H:%M:%f', 'now', '-1 day')")
            .execute(writer)
            .await?;
    let links = sqlx::query("DELETE FROM node_links WHERE seen_at <= strftime('%Y-%m-%d %H:%M:%f', 'now', '-1 day')")
        .execute(writer)
        .await?;
    let nodes = sqlx::query(
        "DELETE FROM nodes WHERE duty = 'removed'
           AND (certificate_expires_at IS NULL OR certificate_expires_at <= strftime('%Y-%m-%d %H:%M:%f', 'now'))",
    )
    .execute(writer)
    .await?;
    Ok(tokens.rows_affected() + links.rows_affected() + nodes.rows_affected())
}
