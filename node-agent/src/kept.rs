//! The sandboxes that gateways want kept warm whether or not anybody calls: each version that is to have some is looked at
//! now and then, and what it misses is started in the background. Of what several gateways want the most counts: they
//! see the same fleet, as a rule, and want the same.

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
use crate::link::GatewayNumber;
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
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    /// What each gateway wants.
    wishes: HashMap<GatewayNumber, Vec<Warm>>,
    held: HashMap<DeploymentId, Held>,
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
        Arc::new(Self { deployments, builds, sandboxes, servers, state: Mutex::default() })
    }

    /// Keeps these for a gateway from now on, and nothing else.
    pub(crate) fn want(self: &Arc<Self>, gateway: GatewayNumber, wanted: &[Warm]) {
        let mut state = self.lock();
        match wanted {
            [] => drop(state.wishes.remove(&gateway)),
            wanted => drop(state.wishes.insert(gateway, wanted.iter().take(MAX_KEPT).copied().collect())),
        }
        self.settle(&mut state);
    }

    fn settle(self: &Arc<Self>, State { wishes, held }: &mut State) {
        let wanted = most(wishes.values());
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
        let mut state = self.lock();
        state.wishes.values_mut().for_each(|wishes| wishes.retain(|warm| warm.deployment != deployment));
        if state.held.remove(&deployment).is_some() {
            self.sandboxes.keep(deployment, 0);
        }
    }

    /// Those that have all that they are to have.
    pub(crate) fn full(&self) -> Vec<DeploymentId> {
        let state = self.lock();
        let mut full: Vec<_> =
            state.held.iter().filter(|(_, held)| held.full.load(Ordering::Relaxed)).map(|(id, _)| *id).collect();
        // So that two heartbeats of the same state are equal.
        full.sort_unstable();
        full
    }

    /// Keeps nothing any more.
    pub(crate) fn close(self: &Arc<Self>) {
        let mut state = self.lock();
        state.wishes.clear();
        self.settle(&mut state);
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
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

/// Of each version as many as who wants most of it.
fn most<'a>(wishes: impl Iterator<Item = &'a Vec<Warm>>) -> HashMap<DeploymentId, u32> {
    let mut wanted = HashMap::new();
    for warm in wishes.flatten() {
        let sandboxes = wanted.entry(warm.deployment).or_default();
        *sandboxes = warm.sandboxes.max(*sandboxes);
    }
    wanted
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_most_that_any_gateway_wants() {
        let [one, two, three] = [(); 3].map(|()| DeploymentId::new());
        let wishes = |wishes: &[(DeploymentId, u32)]| -> Vec<Warm> {
            wishes
                .iter()
                .map(|(deployment, sandboxes)| Warm { deployment: *deployment, sandboxes: *sandboxes })
                .collect()
        };
        let all = [wishes(&[(one, 1), (two, 3)]), wishes(&[(two, 2), (three, 1)]), wishes(&[])];
        assert_eq!(most(all.iter()), HashMap::from([(one, 1), (two, 3), (three, 1)]));
        assert_eq!(most([].iter()), HashMap::new());
    }
}
