//! The control API: accounts, deploys, functions and their logs, calls, health. An axum router on a runtime of its own,
//! called by the edge; invocations never come here.

use std::sync::Arc;

use axum::Router;
use axum::middleware::{from_fn, from_fn_with_state};
use axum::routing::{get, patch, post};
use common::archive::Caps;
use common::ids::GatewayId;
use common::manifest::Ceilings;
use common::runtime::Runtimes;
use prometheus::Registry;
use store::Store;
use store::artifacts::Artifacts;
use tokio::sync::{Notify, Semaphore};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::edge::identity::Identity;
use crate::edge::routes::Routes;
use crate::edge::sessions::EndedSessions;
use crate::fleet::Fleet;
use crate::fleet::enrolment::Enrolment;

pub(crate) mod auth;
mod authority;
mod build_log;
mod caller;
mod claims;
pub(crate) mod config;
mod deletion;
mod deploy;
mod error;
mod functions;
mod health;
pub(crate) mod housekeeping;
mod invocations;
mod lanes;
mod logs;
mod metrics;
mod nodes;
mod passwords;
mod plan;
mod release;
mod request;
mod sse;
mod sweep;
#[cfg(test)]
mod tests;
mod tokens;
mod upload;

pub(crate) use release::STOP_GRACE;
pub(crate) use upload::edge_limit as upload_limit;

use claims::Claims;
use config::ControlArgs;
use deploy::Deploys;
use logs::{Followers, MAX_LOG_READS};
use metrics::Metrics;
use passwords::Passwords;

/// What the control API is made of.
pub(crate) struct Parts {
    /// Which gateway this is.
    pub(crate) gateway: GatewayId,
    pub(crate) store: Arc<dyn Store>,
    pub(crate) artifacts: Artifacts,
    pub(crate) runtimes: Arc<Runtimes>,
    pub(crate) ceilings: Ceilings,
    pub(crate) caps: Caps,
    pub(crate) identity: Arc<Identity>,
    pub(crate) fleet: Fleet,
    /// Who takes nodes in; `None` where there is no node port.
    pub(crate) enrolment: Option<Arc<Enrolment>>,
    pub(crate) routes: Arc<Routes>,
    /// What the identity refuses.
    pub(crate) sessions: Arc<EndedSessions>,
    /// Deploys and deletions run on it; wait for it before the store is closed.
    pub(crate) tasks: TaskTracker,
    /// From its cancellation on no deploy begins, and those under way have a deadline.
    pub(crate) stop: CancellationToken,
    /// From its cancellation on, which may be earlier, nobody new is let in, and who would stay for long is let go.
    pub(crate) close: CancellationToken,
}

/// What every handler shares.
pub(crate) struct State {
    gateway: GatewayId,
    store: Arc<dyn Store>,
    artifacts: Artifacts,
    pub(crate) runtimes: Arc<Runtimes>,
    ceilings: Ceilings,
    caps: Caps,
    identity: Arc<Identity>,
    fleet: Fleet,
    enrolment: Option<Arc<Enrolment>>,
    routes: Arc<Routes>,
    sessions: Arc<EndedSessions>,
    tasks: TaskTracker,
    stop: CancellationToken,
    close: CancellationToken,
    args: ControlArgs,
    passwords: Passwords,
    claims: Claims,
    deploys: Deploys,
    /// Rung when a function was deleted, whose rows are to go.
    deleted: Notify,
    followers: Followers,
    /// A permit is a page of records that is read.
    log_reads: Semaphore,
    metrics: Metrics,
}

/// The control API cannot start.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ControlApiError {
    /// Its pool of threads cannot.
    #[error("cannot start the passwords' pool")]
    Passwords(#[from] passwords::PasswordsError),
    /// A metric has the name of another.
    #[error("a metric is registered twice")]
    Metric(#[from] prometheus::Error),
}

impl State {
    /// Starts what the control API runs beside its requests: the passwords' threads.
    pub(crate) fn start(args: ControlArgs, parts: Parts, registry: &Registry) -> Result<Arc<Self>, ControlApiError> {
        let Parts { gateway, store, artifacts, runtimes, ceilings, caps, .. } = parts;
        let Parts { identity, fleet, enrolment, routes, sessions, tasks, stop, close, .. } = parts;
        Ok(Arc::new(Self {
            passwords: Passwords::start(args.password_threads.get(), registry)?,
            deploys: Deploys::new(args.deploy_concurrency.get(), registry)?,
            claims: Claims::new(Arc::clone(&store)),
            deleted: Notify::new(),
            followers: Followers::new(registry)?,
            log_reads: Semaphore::new(MAX_LOG_READS),
            metrics: Metrics::new(registry)?,
            gateway,
            store,
            artifacts,
            runtimes,
            ceilings,
            caps,
            identity,
            fleet,
            enrolment,
            routes,
            sessions,
            tasks,
            stop,
            close,
            args,
        }))
    }

    /// What a function's URL begins with.
    fn base_url<'a>(&'a self, origin: &'a str) -> &'a str {
        self.args.public_url.as_ref().map_or(origin, |url| url.as_str())
    }
}

/// Every route of the control API.
pub(crate) fn router(state: Arc<State>) -> Router {
    let prompt = Router::new()
        .route("/api/auth/register", post(auth::register))
        .route("/api/auth/login", post(auth::login))
        .route("/api/auth/refresh", post(auth::refresh))
        .route("/api/auth/logout", post(auth::logout))
        .route("/api/auth/me", get(auth::me))
        .route("/api/functions", get(functions::list))
        .route("/api/functions/{id}", get(functions::get).delete(deletion::delete))
        .route("/api/functions/{id}/logs", get(logs::logs))
        .route("/api/invocations/{id}", get(invocations::story))
        .route("/api/nodes", get(nodes::list))
        .route("/api/nodes/tokens", post(nodes::invite))
        .route("/api/nodes/authority", get(authority::show))
        .route("/api/nodes/authority/rotate", post(authority::rotate))
        .route("/api/nodes/authority/finish", post(authority::finish))
        .route("/api/nodes/{id}", patch(nodes::label).delete(nodes::remove))
        .route("/api/nodes/{id}/cordon", post(nodes::cordon))
        .route("/api/nodes/{id}/uncordon", post(nodes::uncordon))
        .route("/api/nodes/{id}/drain", post(nodes::drain))
        .route("/api/health", get(health::health))
        .route("/api/health/live", get(health::live))
        .route("/api/health/ready", get(health::ready))
        .route_layer(from_fn(request::within_deadline));
    let uploads = Router::new()
        // A function may be called `deploy`, too.
        .route("/api/functions/deploy", post(deploy::deploy).get(functions::get).delete(deletion::delete))
        .route_layer(upload::body_limit(state.caps.archive_bytes()));
    prompt
        .merge(uploads)
        .fallback(error::no_route)
        .method_not_allowed_fallback(error::no_method)
        .layer(from_fn_with_state(Arc::clone(&state), error::answer))
        .with_state(state)
}
