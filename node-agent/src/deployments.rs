//! What this node knows of deployments: each is asked for once, and kept until it is retired. They never change.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use common::function::DeploymentSpec;
use common::ids::DeploymentId;
use tokio::sync::OnceCell;

use crate::link::calls::{CallError, Calls};

/// Most deployments that are kept; beyond it any one goes and is asked for again when it is called.
const MAX_KNOWN: usize = 10_000;

/// A deployment could not be had.
#[derive(Debug, thiserror::Error)]
pub(crate) enum LookupError {
    /// Nothing serves it any more.
    #[error("the deployment is gone")]
    Gone,
    /// The gateway did not say.
    #[error("the deployment could not be looked up")]
    Call(#[from] CallError),
}

type Cell = Arc<OnceCell<Arc<DeploymentSpec>>>;

/// The deployments that are known here.
pub(crate) struct Deployments {
    calls: Arc<Calls>,
    known: Mutex<HashMap<DeploymentId, Cell>>,
}

impl Deployments {
    /// Knows none yet.
    pub(crate) fn new(calls: Arc<Calls>) -> Self {
        Self { calls, known: Mutex::default() }
    }

    /// A deployment. All who ask at once share one question.
    pub(crate) async fn get(&self, id: DeploymentId) -> Result<Arc<DeploymentSpec>, LookupError> {
        let cell = self.cell(id);
        let found = cell.get_or_try_init(|| async {
            let spec = self.calls.deployment(id).await?.ok_or(LookupError::Gone)?;
            Ok(Arc::new(spec))
        });
        let found = found.await.cloned();
        if found.is_err() {
            self.lock().remove(&id);
        }
        found
    }

    /// Keeps what a build order has told anyway.
    pub(crate) fn learn(&self, spec: &Arc<DeploymentSpec>) {
        // Who set it first has set the same.
        let _ = self.cell(spec.deployment).set(Arc::clone(spec));
    }

    /// Forgets what is retired.
    pub(crate) fn forget(&self, id: DeploymentId) {
        self.lock().remove(&id);
    }

    fn cell(&self, id: DeploymentId) -> Cell {
        let mut known = self.lock();
        if known.len() >= MAX_KNOWN && !known.contains_key(&id) {
            if let Some(any) = known.keys().next().copied() {
                known.remove(&any);
            }
        }
        Arc::clone(known.entry(id).or_default())
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<DeploymentId, Cell>> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
