//! A call of a server on its way through the edge: its time, which no side can stretch by not reading, and the bytes
//! of one that was upgraded.

use std::sync::Arc;
use std::time::Duration;

use common::function::{Contract, DeploymentSpec};
use common::stream::{Pace, tunnel};
use hyper::upgrade::OnUpgrade;
use hyper_util::rt::TokioIo;
use tokio::sync::Notify;
use tokio_util::task::{AbortOnDropHandle, TaskTracker};

use super::limits::Permit;
use super::seats::Seated;
use crate::fleet::stock::NodeLink;

/// How much more time the edge gives than the agent, so that as a rule it is the agent that ends a call, and says why.
const GRACE: Duration = Duration::from_secs(5);

/// How long a server may take to listen, at least, whatever its own time limit: the agent's allowance.
const LISTEN_ALLOWANCE: Duration = Duration::from_secs(30);

/// What a call of a server has beyond that of a process.
pub(crate) struct Streaming {
    pace: Pace,
    until_head: Duration,
    /// Closes the client's connection.
    cut: Arc<Notify>,
    /// The client's side of an upgrade, if it asks for one.
    pub(crate) upgrade: Option<OnUpgrade>,
    /// What its connection holds then.
    pub(crate) seated: Option<Arc<Seated>>,
}

impl Streaming {
    /// The call of a version, if that is a server; `cut` closes the client's connection. A server may take its time
    /// limit to listen, and once more to answer.
    pub(crate) fn of(spec: &DeploymentSpec, start: Duration, cut: &Arc<Notify>) -> Option<Self> {
        let Contract::Http { idle_timeout_ms } = spec.contract else { return None };
        let total = Duration::from_millis(spec.limits.timeout_ms.into());
        let until_head = start + total.max(LISTEN_ALLOWANCE) + total;
        let pace = Pace::begin(until_head + total + GRACE, Duration::from_millis(idle_timeout_ms.into()) + GRACE);
        Some(Self { pace, until_head, cut: cut.clone(), upgrade: None, seated: None })
    }

    /// How long it may take until its answer's head is here.
    pub(crate) fn until_head(&self) -> Duration {
        self.until_head
    }

    /// The call's time, for who hears something.
    pub(crate) fn pace(&self) -> &Pace {
        &self.pace
    }

    /// Watches the time of an answer whose head is here.
    pub(crate) fn watch(self, permit: Option<Permit>) -> Watch {
        self.pace.heard();
        let (pace, cut) = (self.pace.clone(), self.cut);
        let guard = AbortOnDropHandle::new(tokio::spawn(async move {
            let late = pace.over().await;
            tracing::debug!(?late, "a client's connection is closed");
            // Only who waits: a permit that is kept would close the connection at its next request.
            cut.notify_waiters();
        }));
        Watch { pace: self.pace, _guard: guard, _permit: permit }
    }

    /// Carries the bytes of an upgraded call both ways, in the background, until its node is gone.
    pub(crate) fn carry(
        self,
        tasks: &TaskTracker,
        client: OnUpgrade,
        node: OnUpgrade,
        permit: Option<Permit>,
        link: &Arc<NodeLink>,
    ) {
        let pace = self.pace;
        pace.heard();
        let held = (permit, self.seated, link.hold());
        let gone = link.gone.clone();
        tasks.spawn(async move {
            let _held = held;
            let joined = tokio::select! {
                joined = async { tokio::try_join!(client, node) } => joined,
                _ = pace.over() => return,
            };
            let Ok((client, node)) = joined else { return };
            tokio::select! {
                ended = tunnel(TokioIo::new(client), TokioIo::new(node), &pace) => if let Err(late) = ended {
                    tracing::debug!(?late, "an upgraded connection is closed");
                },
                () = gone.cancelled() => tracing::debug!("an upgraded connection of a node that is gone is closed"),
            }
        });
    }
}

/// The time of an answer under way, and its place in the function's concurrency.
pub(crate) struct Watch {
    pace: Pace,
    _guard: AbortOnDropHandle<()>,
    _permit: Option<Permit>,
}

impl Watch {
    /// Something came.
    pub(crate) fn heard(&self) {
        self.pace.heard();
    }
}
