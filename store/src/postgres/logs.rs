//! `function_logs`: what builds print, and what became of deploys.

use common::ids::DeploymentId;
use sqlx::PgPool;
use uuid::Uuid;

use crate::text::storable;
use crate::{Error, LogLine};

/// Lines of a function that was deleted meanwhile are dropped.
pub(super) async fn append(pool: &PgPool, deployment: DeploymentId, lines: &[LogLine]) -> Result<(), Error> {
    if lines.is_empty() {
        return Ok(());
    }
    // Ids that are made one after the other keep the lines' order.
    let ids: Vec<Uuid> = lines.iter().map(|_| Uuid::now_v7()).collect();
    let sources: Vec<&str> = lines.iter().map(|line| line.source).collect();
    let messages: Vec<_> = lines.iter().map(|line| storable(&line.message).into_owned()).collect();
    // The function is locked against deletion before its lines refer to it.
    sqlx::query(
        "WITH written AS (
           SELECT d.id, d.function_id FROM function_deployments d JOIN functions f ON f.id = d.function_id
           WHERE d.id = $1 FOR KEY SHARE OF f
         )
         INSERT INTO function_logs (id, function_id, deployment_id, source, message)
         SELECT l.id, w.function_id, w.id, l.source, l.message
         FROM written w, UNNEST($2::uuid[], $3::text[], $4::text[]) AS l (id, source, message)",
    )
    .bind(deployment.uuid())
    .bind(ids)
    .bind(sources)
    .bind(messages)
    .execute(pool)
    .await?;
    Ok(())
}
