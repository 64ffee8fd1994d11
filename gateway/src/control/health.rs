//! Health: for people what works and what does not, for probes a status.

use std::sync::Arc;
use std::time::Duration;

use axum::Json;
use axum::extract::State as Extract;
use http::StatusCode;
use serde::Serialize;

use super::State;

/// How long the store may take to say that it is there.
const PING_DEADLINE: Duration = Duration::from_secs(2);
/// How long the artifact store may, retries included.
const ARTIFACTS_DEADLINE: Duration = Duration::from_secs(10);

/// `ok`, or `degraded` while a part is missing.
#[derive(Serialize)]
pub(crate) struct Health {
    status: &'static str,
    parts: Parts,
}

#[derive(Serialize)]
struct Parts {
    /// `ok` or `down`.
    store: &'static str,
    /// `ok` or `down`.
    artifacts: &'static str,
    /// `ok`, or `none` while no node is connected.
    node: &'static str,
}

/// `GET /api/health`.
pub(crate) async fn health(Extract(state): Extract<Arc<State>>) -> Json<Health> {
    let store = store_answers(&state).await;
    let artifacts = state.metrics.artifacts_answer();
    let node = state.fleet.is_ready();
    let word = |is_up: bool| if is_up { "ok" } else { "down" };
    Json(Health {
        status: if store && artifacts && node { "ok" } else { "degraded" },
        parts: Parts { store: word(store), artifacts: word(artifacts), node: if node { "ok" } else { "none" } },
    })
}

/// `GET /api/health/live`: this process answers.
pub(crate) async fn live() -> Json<Probe> {
    Json(Probe { status: "live" })
}

/// `GET /api/health/ready`: whether requests should come here. A gateway without a node is ready: nodes come to it. One
/// without its database or its artifacts is, too: calls need neither, and all gateways lack them at the same moment.
pub(crate) async fn ready(Extract(state): Extract<Arc<State>>) -> (StatusCode, Json<Probe>) {
    if state.stop.is_cancelled() {
        (StatusCode::SERVICE_UNAVAILABLE, Json(Probe { status: "not ready" }))
    } else {
        (StatusCode::OK, Json(Probe { status: "ready" }))
    }
}

/// A probe's answer.
#[derive(Serialize)]
pub(crate) struct Probe {
    status: &'static str,
}

/// Whether the store answers.
pub(super) async fn store_answers(state: &State) -> bool {
    matches!(tokio::time::timeout(PING_DEADLINE, state.store.ping()).await, Ok(Ok(())))
}

/// Whether the artifact store answers.
pub(super) async fn artifacts_answer(state: &State) -> bool {
    matches!(tokio::time::timeout(ARTIFACTS_DEADLINE, state.artifacts.ping()).await, Ok(Ok(())))
}
