//! The sweep: archives and builds that no version needs any more are removed. One gateway at a time does it, and it
//! claims each archive first, so that no deploy that is under way loses its own.

use std::collections::HashSet;
use std::io;
use std::time::{Duration, SystemTime};

use common::error::Chain;
use futures_util::TryStreamExt as _;
use store::artifacts::{Artifact, ArtifactEntry};
use store::claims::Claim;

use super::State;

/// The pause between two sweeps.
const PAUSE: Duration = Duration::from_secs(60 * 60);
/// How long an artifact stays that nobody needs: whoever deletes a function by mistake deploys it again.
const GRACE: Duration = Duration::from_secs(24 * 60 * 60);
/// The pause after each removal: there may be many, and others use the disk as well.
const PACE: Duration = Duration::from_millis(20);
/// Versions that are read at once.
const PAGE: u32 = 1000;

/// Why a sweep ended early.
#[derive(Debug, thiserror::Error)]
pub(super) enum SweepError {
    #[error("the store does not say what is needed")]
    Store(#[from] store::Error),
    #[error("the artifact store failed")]
    Artifacts(#[from] io::Error),
}

/// Until the gateway stops.
pub(super) async fn run(state: &State) {
    loop {
        tokio::select! {
            swept = sweep(state, GRACE) => match swept {
                Ok(0) => {}
                Ok(removed) => tracing::info!(removed, "artifacts that no version needs are removed"),
                Err(error) => tracing::warn!(error = %Chain(&error), "the sweep of artifacts ended early: again later"),
            },
            () = state.stop.cancelled() => return,
        }
        tokio::select! {
            () = tokio::time::sleep(PAUSE) => {}
            () = state.stop.cancelled() => return,
        }
    }
}

/// Removes what no version has needed for `grace`; how many. None, while another gateway sweeps.
pub(super) async fn sweep(state: &State, grace: Duration) -> Result<u64, SweepError> {
    match state.claims.take(Claim::Sweep).await? {
        Some(claimed) => claimed.during(remove_unneeded(state, grace)).await,
        None => Ok(0),
    }
}

async fn remove_unneeded(state: &State, grace: Duration) -> Result<u64, SweepError> {
    let needed = needed(state).await?;
    let before = SystemTime::now().checked_sub(grace).unwrap_or(SystemTime::UNIX_EPOCH);
    let is_unneeded = |entry: &ArtifactEntry| entry.since <= before && !needed.contains(&entry.artifact);
    let (mut all, mut removed) = (state.artifacts.list(), 0);
    while let Some(kept) = all.try_next().await? {
        if is_unneeded(&kept) && remove(state, kept.artifact).await? {
            state.metrics.artifact_removed(kept.artifact);
            removed += 1;
            tokio::time::sleep(PACE).await;
        }
    }
    Ok(removed)
}

/// What versions name, failed ones included. A build that was made by another recipe than today's is not among it: no
/// node asks for it.
async fn needed(state: &State) -> Result<HashSet<Artifact>, SweepError> {
    let (mut needed, mut after) = (HashSet::new(), None);
    loop {
        let page = state.store.sources(after, PAGE).await?;
        let Some(last) = page.last() else { return Ok(needed) };
        after = Some(last.deployment);
        for source in &page {
            needed.insert(Artifact::Archive(source.archive));
            let build = state.runtimes.build_digest(source.archive, &source.runtime, &source.entrypoint);
            needed.extend(build.map(Artifact::Build));
        }
    }
}

/// Whether it was removed. An archive may have been deployed again since it was found unneeded; a build as well, and
/// then it is made from its archive once more.
async fn remove(state: &State, artifact: Artifact) -> Result<bool, SweepError> {
    let Artifact::Archive(digest) = artifact else {
        state.artifacts.remove(artifact).await?;
        return Ok(true);
    };
    // A deploy has it.
    let Some(claimed) = state.claims.take(Claim::Archive(digest)).await? else { return Ok(false) };
    let removed = claimed.during(async {
        if state.store.is_wanted(digest).await? {
            return Ok(false);
        }
        state.artifacts.remove(artifact).await?;
        Ok(true)
    });
    removed.await
}
