//! The right to run a recipe: of all nodes that lack the same build at once, one makes it, and the others find it in the
//! artifact store. It is the claim of those that deploy the archive.

use std::sync::Arc;
use std::time::Duration;

use common::digest::Digest;
use common::error::Chain;
use common::function::DeploymentSpec;
use common::ids::HolderId;
use common::protocol::calls::CLAIM_SECONDS;
use tokio::time::Instant;
use tokio_util::task::AbortOnDropHandle;

use super::Builds;
use super::failure::BuildFailure;
use super::run::{How, Run};
use crate::build_cache::BuildHandle;
use crate::link::calls::Calls;

/// How often a claim is renewed.
const RENEWAL: Duration = Duration::from_secs(CLAIM_SECONDS as u64 / 4);
/// How often it is looked whether another's build is there, or its claim has ended.
const PAUSE: Duration = Duration::from_secs(1);
/// How long others are waited for; a build has an end long before.
const PATIENCE: Duration = Duration::from_secs(20 * 60);

/// A claim that is ours. One that is dropped ends by itself.
struct Claim {
    calls: Arc<Calls>,
    spec: Arc<DeploymentSpec>,
    holder: HolderId,
    renewing: AbortOnDropHandle<()>,
}

/// What became of the wish to build.
enum Right {
    /// It is ours; without a claim where a gateway has it for us, or none could be had.
    Ours(Option<Claim>),
    /// Another node has made it.
    Made(BuildHandle),
}

impl Builds {
    /// Has `work` make a build whose recipe is to be run, unless another node makes it first.
    pub(super) async fn claimed(
        self: &Arc<Self>,
        spec: &Arc<DeploymentSpec>,
        digest: Digest,
        run: &Run,
        work: impl Future<Output = Result<BuildHandle, BuildFailure>>,
    ) -> Result<(BuildHandle, How), BuildFailure> {
        match self.right(spec, digest, run).await? {
            Right::Made(build) => Ok((build, How::Fetched)),
            Right::Ours(claim) => {
                let build = work.await;
                if let Some(claim) = claim {
                    claim.end().await;
                }
                Ok((build?, How::Built))
            }
        }
    }

    /// Waits for the right, or for the build.
    async fn right(
        self: &Arc<Self>,
        spec: &Arc<DeploymentSpec>,
        digest: Digest,
        run: &Run,
    ) -> Result<Right, BuildFailure> {
        let since = Instant::now();
        loop {
            let claimed = tokio::select! {
                biased;
                () = run.ordered() => return Ok(Right::Ours(None)),
                claimed = Claim::take(&self.parts.calls, spec) => claimed,
            };
            // Whoever had it may have made the build since it was looked for; nodes that wait fetch it all at once.
            match self.fetch(spec, digest).await {
                Ok(Some(build)) => {
                    if let Taken::Ours(claim) = claimed {
                        claim.end().await;
                    }
                    return Ok(Right::Made(build));
                }
                Err(full @ BuildFailure::DiskFull(_)) => return Err(full),
                // One that is there and cannot be used is made again.
                Ok(None) | Err(_) => {}
            }
            match claimed {
                Taken::Ours(claim) => return Ok(Right::Ours(Some(claim))),
                Taken::Unknown => return Ok(Right::Ours(None)),
                Taken::Theirs if since.elapsed() > PATIENCE => return Ok(Right::Ours(None)),
                Taken::Theirs => tracing::debug!(build = %digest, "another node makes this build"),
            }
            tokio::select! {
                () = tokio::time::sleep(PAUSE) => {}
                () = run.ordered() => return Ok(Right::Ours(None)),
            }
        }
    }
}

enum Taken {
    Ours(Claim),
    Theirs,
    /// Nobody could say. A build that is made twice is better than none.
    Unknown,
}

impl Claim {
    async fn take(calls: &Arc<Calls>, spec: &Arc<DeploymentSpec>) -> Taken {
        let holder = HolderId::new();
        match calls.claim(spec.deployment, spec.archive, holder).await {
            Ok(true) => {}
            Ok(false) => return Taken::Theirs,
            Err(error) => {
                tracing::warn!(error = %Chain(&error), "a build cannot be claimed: it is made all the same");
                return Taken::Unknown;
            }
        }
        let (renewed_by, renewed) = (Arc::clone(calls), Arc::clone(spec));
        let renewing = tokio::spawn(async move {
            loop {
                tokio::time::sleep(RENEWAL).await;
                if let Err(error) = renewed_by.claim(renewed.deployment, renewed.archive, holder).await {
                    tracing::warn!(error = %Chain(&error), "the claim of a build could not be renewed");
                }
            }
        });
        let (calls, spec) = (Arc::clone(calls), Arc::clone(spec));
        Taken::Ours(Self { calls, spec, holder, renewing: AbortOnDropHandle::new(renewing) })
    }

    /// Gives it up.
    async fn end(self) {
        let Self { calls, spec, holder, renewing } = self;
        drop(renewing);
        if let Err(error) = calls.give_up(spec.deployment, spec.archive, holder).await {
            tracing::debug!(error = %Chain(&error), "the claim of a build ends later than it could");
        }
    }
}
