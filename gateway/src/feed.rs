//! Follows what other gateways change: the pictures that are held here of routes, ended sessions, nodes and authorities are
//! read anew when the database's numbers are no longer theirs. It is looked when the database says a word, and every two
//! seconds all the same. What this gateway changes itself it does not wait for.

use std::sync::Arc;
use std::time::Duration;

use common::error::Chain;
use prometheus::Gauge;
use store::Store;
use tokio::sync::Notify;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::edge::routes::Routes;
use crate::edge::sessions::EndedSessions;
use crate::fleet::enrolment::Enrolment;
use crate::fleet::{Fleet, roster};
use crate::metrics::Metrics;

/// How often it is looked without a word.
const POLL: Duration = Duration::from_secs(2);

/// The same while the gateway before this one ends: what is changed there is soon asked for here.
const NEAR_POLL: Duration = Duration::from_millis(50);

/// How long to wait before it is listened again where nothing can be heard.
const DEAF_PAUSE: Duration = Duration::from_secs(1);

/// Who keeps the pictures level with the database.
pub(crate) struct Feed {
    routes: Arc<Routes>,
    sessions: Arc<EndedSessions>,
    fleet: Fleet,
    /// Who has the authorities; `None` where there is no node port.
    enrolment: Option<Arc<Enrolment>>,
    store: Arc<dyn Store>,
    /// For how many seconds the pictures may have been behind; 0 while they are not.
    behind: Gauge,
}

impl Feed {
    pub(crate) fn new(
        routes: &Arc<Routes>,
        sessions: &Arc<EndedSessions>,
        fleet: &Fleet,
        enrolment: Option<Arc<Enrolment>>,
        store: &Arc<dyn Store>,
        metrics: &Metrics,
    ) -> Self {
        let (routes, sessions, store) = (Arc::clone(routes), Arc::clone(sessions), Arc::clone(store));
        Self { routes, sessions, fleet: fleet.clone(), enrolment, store, behind: metrics.behind.clone() }
    }

    /// Follows until `end`.
    pub(crate) async fn run(self: Arc<Self>, end: CancellationToken) {
        let word = Notify::new();
        tokio::select! {
            () = self.listen(&word) => {}
            () = self.look(&word) => {}
            () = end.cancelled() => {}
        }
    }

    async fn listen(&self, word: &Notify) {
        let mut watch = self.store.watch();
        loop {
            match watch.changed().await {
                Ok(()) => word.notify_one(),
                Err(error) => {
                    // Whether the database answers at all, the look says.
                    tracing::debug!(error = %Chain(&error), "no word of changes can be heard");
                    tokio::time::sleep(DEAF_PAUSE).await;
                }
            }
        }
    }

    async fn look(&self, word: &Notify) {
        let (mut level_at, mut is_level) = (Instant::now(), true);
        loop {
            let pause = if self.fleet.predecessor().is_some() { NEAR_POLL } else { POLL };
            tokio::select! { () = word.notified() => {}, () = tokio::time::sleep(pause) => {} }
            let looked_at = Instant::now();
            match self.catch_up().await {
                Ok(()) => {
                    if !is_level {
                        tracing::info!(seconds = level_at.elapsed().as_secs(), "level with the database again");
                    }
                    (level_at, is_level) = (looked_at, true);
                    self.behind.set(0.0);
                }
                Err(error) => {
                    // Once, and not every two seconds.
                    if is_level {
                        tracing::warn!(error = %Chain(&error), "this gateway may lag behind the database: trying again");
                    }
                    is_level = false;
                    self.behind.set(level_at.elapsed().as_secs_f64());
                }
            }
        }
    }

    /// Reads anew what is behind.
    pub(crate) async fn catch_up(&self) -> Result<(), store::Error> {
        let changes = self.store.changes().await?;
        self.sessions.catch_up(&*self.store, changes.sessions).await?;
        let left_out = self.routes.catch_up(&*self.store, changes.routes).await?;
        self.fleet.let_go(&left_out);
        if let Some(enrolment) = &self.enrolment {
            enrolment.catch_up(&self.fleet, changes.authority).await?;
        }
        roster::catch_up(&self.fleet, &*self.store, changes.nodes).await
    }
}
