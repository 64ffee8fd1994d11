//! The sandboxes that the gateway wants kept warm whether or not anybody calls: each version that is to have some is
//! looked at now and then, and what it misses is started in the background.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use common::error::Chain;
use common::function::Contract;
use common::ids::{DeploymentId, InvocationId};
use common::protocol::{MAX_KEPT, Warm};
use tokio_util::task::AbortOnDropHandle;

use crate::backoff::Backoff;
use crate::build::{Builds, NotReady};
use crate::deployments::{Deployments, LookupError};
use crate::sandbox::{LeaseError, Sandboxes};
use crate::server::{NoServer, Servers};

/// How often it is looked whether a version has all that it is to have.
const ROUND: Duration = Duration::from_secs(1);
/// The first and the longest wait after a start that failed.
const PAUSE: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(60));

/// What is kept warm on this node.
pub(crate) struct Kept {
    deployments: Arc<Deployments>,
    builds: Arc<Builds>,
    sandboxes: Arc<Sandboxes>,
    servers: Arc<Servers>,
    held: Mutex<HashMap<DeploymentId, Held>>,
}

/// One version's.
struct Held {
    sandboxes: u32,
    /// Whether it had all of them when it was looked at last.
    full: Arc<AtomicBool>,
    /// Sees to it.
    _task: AbortOnDropHandle<()>,
}

/// Why a version has not all that it is to have.
#[derive(Debug, thiserror::Error)]
enum Missing {
    #[error(transparent)]
    Unknown(#[from] LookupError),
    #[error(transparent)]
    Build(#[from] NotReady),
    #[error(transparent)]
    Sandbox(#[from] LeaseError),
    #[error(transparent)]
    Server(#[from] NoServer),
}

impl Kept {
    pub(crate) fn new(
        deployments: Arc<Deployments>,
        builds: Arc<Builds>,
        sandboxes: Arc<Sandboxes>,
        servers: Arc<Servers>,
    ) -> Arc<Self> {
        Arc::new(Self { deployments, builds, sandboxes, servers, held: Mutex::default() })
    }

    /// Keeps these from now on, and nothing else.
    pub(crate) fn want(self: &Arc<Self>, wanted: &[Warm]) {
        let wanted: HashMap<_, _> =
            wanted.iter().take(MAX_KEPT).map(|warm| (warm.deployment, warm.sandboxes)).collect();
        let mut held = self.lock();
        held.retain(|deployment, held| {
            let stays = wanted.get(deployment) == Some(&held.sandboxes);
            if !stays {
                self.sandboxes.keep(*deployment, 0);
            }
            stays
        });
        for (deployment, sandboxes) in wanted {
            held.entry(deployment).or_insert_with(|| {
                self.sandboxes.keep(deployment, sandboxes);
                let full = Arc::new(AtomicBool::new(false));
                let task = tokio::spawn(Arc::clone(self).hold(deployment, Arc::clone(&full)));
                Held { sandboxes, full, _task: AbortOnDropHandle::new(task) }
            });
        }
    }

    /// The deployment gets no more calls.
    pub(crate) fn retire(&self, deployment: DeploymentId) {
        if self.lock().remove(&deployment).is_some() {
            self.sandboxes.keep(deployment, 0);
        }
    }

    /// Those that have all that they are to have.
    pub(crate) fn full(&self) -> Vec<DeploymentId> {
        let held = self.lock();
        let mut full: Vec<_> =
            held.iter().filter(|(_, held)| held.full.load(Ordering::Relaxed)).map(|(id, _)| *id).collect();
        // So that two heartbeats of the same state are equal.
        full.sort_unstable();
        full
    }

    /// Keeps nothing any more.
    pub(crate) fn close(self: &Arc<Self>) {
        self.want(&[]);
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<DeploymentId, Held>> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Looks after one version, without end.
    async fn hold(self: Arc<Self>, deployment: DeploymentId, full: Arc<AtomicBool>) {
        let mut backoff = Backoff::new(PAUSE.0, PAUSE.1);
        loop {
            let filled = self.fill(deployment).await;
            full.store(filled.is_ok(), Ordering::Relaxed);
            match filled {
                Ok(()) => {
                    backoff.reset();
                    tokio::time::sleep(ROUND).await;
                }
                Err(error) => {
                    if backoff.failures() == 0 {
                        let error = Chain(&error);
                        tracing::warn!(%error, %deployment, "it is to be kept warm and cannot be: trying again");
                    }
                    backoff.wait().await;
                }
            }
        }
    }

    async fn fill(&self, deployment: DeploymentId) -> Result<(), Missing> {
        let spec = self.deployments.get(deployment).await?;
        if self.sandboxes.is_short(deployment) {
            let build = self.builds.ready(&spec, InvocationId::new()).await?;
            self.sandboxes.refill(&spec, build).await?;
        }
        if matches!(spec.contract, Contract::Http { .. }) {
            self.servers.hold(&spec).await?;
        }
        Ok(())
    }
}
