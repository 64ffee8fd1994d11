//! What a node may ask for, and the end of it all. It outlives the node's control streams.

use std::collections::HashSet;

use std::sync::Arc;

use arc_swap::ArcSwap;
use common::ids::DeploymentId;
use tokio_util::sync::CancellationToken;

/// What one node was given to do.
#[derive(Default)]
pub(crate) struct Pass {
    /// Versions that it was told to build or run. Read at every call, and changed when one is new.
    placed: ArcSwap<HashSet<DeploymentId>>,
    /// Cancelled when the node is removed from the fleet: every connection of it closes at once.
    pub(crate) gone: CancellationToken,
}

impl Pass {
    /// Notes that the node is told to build or run this version.
    pub(crate) fn place(&self, deployment: DeploymentId) {
        if !self.has(deployment) {
            self.placed.rcu(|placed| {
                let mut placed = HashSet::clone(placed);
                placed.insert(deployment);
                placed
            });
        }
    }

    /// Whether it was told to.
    pub(crate) fn has(&self, deployment: DeploymentId) -> bool {
        self.placed.load().contains(&deployment)
    }

    /// All that it was told to.
    pub(super) fn placed(&self) -> Arc<HashSet<DeploymentId>> {
        self.placed.load_full()
    }

    /// Whether any version that it was told to build or run is so.
    pub(crate) fn has_any(&self, is_so: impl FnMut(&DeploymentId) -> bool) -> bool {
        self.placed.load().iter().any(is_so)
    }

    /// Forgets versions that no call is on its way to any more.
    pub(crate) fn forget(&self, deployments: &[DeploymentId]) {
        if deployments.iter().any(|id| self.has(*id)) {
            self.placed.rcu(|placed| {
                let mut placed = HashSet::clone(placed);
                deployments.iter().for_each(|id| {
                    placed.remove(id);
                });
                placed
            });
        }
    }
}
