//! `function_logs`: what builds print, and what became of deploys.

use common::ids::DeploymentId;
use sqlx::SqlitePool;
use uuid::Uuid;

use super::begin;
use crate::text::storable;
use crate::{Error, LogLine};

/// Lines of a function that was deleted meanwhile are dropped.
pub(super) async fn append(writer: &SqlitePool, deployment: DeploymentId, lines: &[LogLine]) -> Result<(), Error> {
    let mut tx = begin(writer).await?;
    for line in lines {
        sqlx::query(
            "INSERT INTO function_logs (id, function_id, deployment_id, source, message)
             SELECT $1, function_id, id, $3, $4 FROM function_deployments WHERE id = $2",
        )
        // Ids that are made one after the other keep the lines' order.
        .bind(Uuid::now_v7())
        .bind(deployment.uuid())
        .bind(line.source)
        .bind(storable(&line.message))
        .execute(&mut *tx)
        .await?;
    }
    Ok(tx.commit().await?)
}
