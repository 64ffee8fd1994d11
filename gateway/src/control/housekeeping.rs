//! What the control API does without being asked.

use std::sync::Arc;
use std::time::Duration;

use common::ids::GatewayId;

use super::{State, health, sweep};

/// The pause between two purges of what has expired.
const PURGE_PAUSE: Duration = Duration::from_secs(60 * 60);

/// For how many days more versions stay than the records that name them: a gateway that cannot read what serves goes on
/// with the version before.
const VERSIONS_LONGER_DAYS: i64 = 1;

/// How often it is looked for what is left of functions that a gateway deleted which then ended. Its own it knows.
const DELETED_PAUSE: Duration = Duration::from_secs(60);

/// A version that is so old and still in `building` is nobody's: a deploy takes a quarter of an hour at most, and a bit.
const OVERDUE_SECONDS: u32 = 20 * 60;

/// How often such versions are looked for.
const OVERDUE_PAUSE: Duration = Duration::from_secs(5 * 60);

/// How often the store is asked whether it is there.
const WATCH_PAUSE: Duration = Duration::from_secs(5);

/// How often the artifact store is.
const ARTIFACTS_PAUSE: Duration = Duration::from_secs(30);

/// Once, before the first request, or when the gateway before this one has ended: versions that `gateway` left in
/// `building` have failed. Other gateways go on with theirs.
pub(crate) async fn recover(state: &State, gateway: GatewayId) -> Result<(), store::Error> {
    let failed = state.store.fail_deployments_of(gateway).await?;
    if failed > 0 {
        tracing::warn!(failed, "deploys that were under way at the last stop have failed: deploy them again");
    }
    Ok(())
}

/// Until the gateway stops.
pub(crate) async fn run(state: Arc<State>) {
    tokio::join!(
        purge_tokens(&state),
        purge_fleet(&state),
        purge_history(&state),
        purge_deleted(&state),
        fail_overdue(&state),
        watch_store(&state),
        watch_artifacts(&state),
        sweep::run(&state)
    );
}

/// Deletes refresh tokens that have expired, and ended sessions that are past their time, which no change tells of.
async fn purge_tokens(state: &State) {
    loop {
        let purged = async {
            let purged = state.store.purge_refresh_tokens().await?;
            state.sessions.reload(&*state.store).await?;
            Ok::<_, store::Error>(purged)
        };
        match purged.await {
            Ok(0) => {}
            Ok(purged) => tracing::debug!(purged, "expired refresh tokens and ended sessions are deleted"),
            Err(error) => tracing::warn!(%error, "expired refresh tokens could not be deleted: trying again later"),
        }
        tokio::select! {
            () = tokio::time::sleep(PURGE_PAUSE) => {}
            () = state.stop.cancelled() => return,
        }
    }
}

/// Deletes join tokens, nodes and claims that nobody needs to know of any more.
async fn purge_fleet(state: &State) {
    loop {
        let purged =
            async { Ok::<_, store::Error>(state.store.purge_fleet().await? + state.store.purge_claims().await?) };
        match purged.await {
            Ok(0) => {}
            Ok(purged) => tracing::debug!(purged, "old join tokens, removed nodes and dead claims are deleted"),
            Err(error) => tracing::warn!(%error, "old join tokens could not be deleted: trying again later"),
        }
        tokio::select! {
            () = tokio::time::sleep(PURGE_PAUSE) => {}
            () = state.stop.cancelled() => return,
        }
    }
}

/// Deletes records and logs that are older than they are kept, and versions of which there are no records any more.
async fn purge_history(state: &State) {
    loop {
        let before = chrono::Utc::now() - state.args.record_retention();
        purge_all(state, "old records and log lines", || state.store.purge_history(before)).await;
        let before = before - chrono::Duration::days(VERSIONS_LONGER_DAYS);
        purge_all(state, "old versions", || state.store.purge_versions(before)).await;
        tokio::select! {
            () = tokio::time::sleep(PURGE_PAUSE) => {}
            () = state.stop.cancelled() => return,
        }
    }
}

/// Deletes what is left of functions that were deleted.
async fn purge_deleted(state: &State) {
    loop {
        purge_all(state, "rows of deleted functions", || state.store.purge_deleted()).await;
        tokio::select! {
            () = state.deleted.notified() => {}
            () = tokio::time::sleep(DELETED_PAUSE) => {}
            () = state.stop.cancelled() => return,
        }
    }
}

/// Purges until nothing is left, some at a time: whoever waits for the database gets his turn between two.
async fn purge_all<F>(state: &State, what: &'static str, purge: impl Fn() -> F)
where
    F: Future<Output = Result<u64, store::Error>>,
{
    while !state.stop.is_cancelled() {
        match purge().await {
            Ok(0) => return,
            Ok(purged) => tracing::debug!(purged, "{what} are deleted"),
            Err(error) => {
                tracing::warn!(%error, "{what} could not be deleted: trying again later");
                return;
            }
        }
    }
}

/// Fails versions that somebody left in `building` and did not come back for.
async fn fail_overdue(state: &State) {
    loop {
        match state.store.fail_overdue_deployments(OVERDUE_SECONDS).await {
            Ok(0) => {}
            Ok(failed) => tracing::warn!(failed, "deploys that a gateway left unfinished have failed"),
            Err(error) => tracing::warn!(%error, "unfinished deploys could not be failed: trying again later"),
        }
        tokio::select! {
            () = tokio::time::sleep(OVERDUE_PAUSE) => {}
            () = state.stop.cancelled() => return,
        }
    }
}

/// Tells the metrics whether the store answers, also while nobody asks for anything that needs it.
async fn watch_store(state: &State) {
    loop {
        state.metrics.store(health::store_answers(state).await);
        tokio::select! {
            () = tokio::time::sleep(WATCH_PAUSE) => {}
            () = state.stop.cancelled() => return,
        }
    }
}

/// The same of the artifact store.
async fn watch_artifacts(state: &State) {
    loop {
        state.metrics.artifacts(health::artifacts_answer(state).await);
        tokio::select! {
            () = tokio::time::sleep(ARTIFACTS_PAUSE) => {}
            () = state.stop.cancelled() => return,
        }
    }
}
