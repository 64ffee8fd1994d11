//! What the control API does without being asked.

use std::sync::Arc;
use std::time::Duration;

use super::State;

/// The pause between two purges of expired tokens.
const PURGE_PAUSE: Duration = Duration::from_secs(60 * 60);

/// Once, before the first request: versions that a crash left in `building` have failed.
pub(crate) async fn recover(state: &State) -> Result<(), store::Error> {
    let failed = state.store.fail_unfinished_deployments().await?;
    if failed > 0 {
        tracing::warn!(failed, "deploys that were under way at the last stop have failed: deploy them again");
    }
    Ok(())
}

/// Until the gateway stops: deletes refresh tokens that have expired.
pub(crate) async fn run(state: Arc<State>) {
    loop {
        match state.store.purge_refresh_tokens().await {
            Ok(0) => {}
            Ok(purged) => tracing::debug!(purged, "expired refresh tokens are deleted"),
            Err(error) => tracing::warn!(%error, "expired refresh tokens could not be deleted: trying again later"),
        }
        tokio::select! {
            () = tokio::time::sleep(PURGE_PAUSE) => {}
            () = state.stop.cancelled() => return,
        }
    }
}
