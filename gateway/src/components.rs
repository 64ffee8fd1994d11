//! The components that all parts of a gateway share: its stores, its pictures of routes, ended sessions and nodes, and the
//! ends of its tasks.

use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use common::ids::GatewayId;
use common::runtime::Runtimes;
use common::settings::Shared;
use prometheus::Registry;
use store::Store;
use store::artifacts::Artifacts;
use tokio::runtime::Runtime;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::config::Settings;
use crate::control;
use crate::edge::identity::Identity;
use crate::edge::limits::{Limits, SWEEP};
use crate::edge::routes::Routes;
use crate::edge::sessions::EndedSessions;
use crate::error::StartError;
use crate::feed::Feed;
use crate::fleet::enrolment::Enrolment;
use crate::fleet::{Fleet, roster, warmth};
use crate::metrics::Metrics;

/// Them.
pub(crate) struct Components {
    pub(crate) gateway: GatewayId,
    pub(crate) store: Arc<dyn Store>,
    pub(crate) artifacts: Artifacts,
    pub(crate) routes: Arc<Routes>,
    pub(crate) sessions: Arc<EndedSessions>,
    pub(crate) fleet: Fleet,
    pub(crate) feed: Arc<Feed>,
    /// Everything on the control runtime but control calls and deploys.
    pub(crate) tasks: TaskTracker,
    pub(crate) deploys: TaskTracker,
    /// Set before `close` if it is since a successor has our place.
    pub(crate) to_successor: Arc<AtomicBool>,
    /// From its cancellation on nobody is accepted.
    pub(crate) close: CancellationToken,
    /// The gateway is told to stop, or the edge has drained.
    pub(crate) stop: CancellationToken,
    /// Ends the link, after the edge has drained.
    pub(crate) end: CancellationToken,
}

impl Components {
    pub(crate) fn new(
        gateway: GatewayId,
        (artifacts, store): (Artifacts, Arc<dyn Store>),
        enrolment: Option<Arc<Enrolment>>,
        runtime: &Runtime,
        metrics: &Arc<Metrics>,
        stop: CancellationToken,
    ) -> Self {
        let (routes, sessions) = (Arc::new(Routes::new()), Arc::default());
        let fleet = Fleet::new(runtime.handle().clone(), Arc::clone(metrics));
        let feed = Arc::new(Feed::new(&routes, &sessions, &fleet, enrolment, &store, metrics));
        Self {
            gateway,
            store,
            artifacts,
            routes,
            sessions,
            fleet,
            feed,
            tasks: TaskTracker::new(),
            deploys: TaskTracker::new(),
            to_successor: Arc::default(),
            close: stop.child_token(),
            stop,
            end: CancellationToken::new(),
        }
    }

    /// The control API on them.
    pub(crate) fn state(
        &self,
        settings: &Settings,
        shared: &Shared,
        (runtimes, identity): (Arc<Runtimes>, Arc<Identity>),
        enrolment: Option<Arc<Enrolment>>,
        registry: &Registry,
    ) -> Result<Arc<control::State>, StartError> {
        let parts = control::Parts {
            gateway: self.gateway,
            store: Arc::clone(&self.store),
            enrolment,
            artifacts: self.artifacts.clone(),
            runtimes,
            ceilings: settings.ceilings,
            caps: shared.archives,
            identity,
            fleet: self.fleet.clone(),
            routes: Arc::clone(&self.routes),
            sessions: Arc::clone(&self.sessions),
            tasks: self.deploys.clone(),
            stop: self.stop.clone(),
            close: self.close.clone(),
        };
        let state = control::State::start(settings.control.clone(), parts, registry);
        state.map_err(|error| StartError::Control(error.into()))
    }

    /// Begins what runs beside everything, until `end`.
    pub(crate) fn begin(&self, runtime: &Runtime, limits: Arc<Limits>, state: Arc<control::State>) {
        let (fleet, end) = (&self.fleet, &self.end);
        self.tasks.spawn_on(warmth::run(fleet.clone(), Arc::clone(&self.routes), end.clone()), runtime.handle());
        let roster = roster::run(fleet.clone(), Arc::clone(&self.store), self.gateway, end.clone());
        self.tasks.spawn_on(roster, runtime.handle());
        self.tasks.spawn_on(Arc::clone(&self.feed).run(end.clone()), runtime.handle());
        self.tasks.spawn_on(sweep(limits, end.clone()), runtime.handle());
        self.tasks.spawn_on(control::housekeeping::run(state), runtime.handle());
    }
}

/// Keeps the limits, until `end`.
async fn sweep(limits: Arc<Limits>, end: CancellationToken) {
    let shared = async {
        if let Some(shared) = &limits.shared {
            shared.clone().run(end.clone()).await;
        }
    };
    let own = async {
        while !end.is_cancelled() {
            tokio::select! { () = tokio::time::sleep(SWEEP) => limits.sweep(), () = end.cancelled() => {} }
        }
    };
    tokio::join!(shared, own);
}
