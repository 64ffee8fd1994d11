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
    /// `ok`, or `none` while no node is connected.
    node: &'static str,
}

/// `GET /api/health`.
pub(crate) async fn health(Extract(state): Extract<Arc<State>>) -> Json<Health> {
    let store = store_answers(&state).await;
    let node = state.fleet.is_ready();
    Json(Health {
        status: if store && node { "ok" } else { "degraded" },
        parts: Parts { store: if store { "ok" } else { "down" }, node: if node { "ok" } else { "none" } },
    })
}

/// `GET /api/health/live`: this process answers.
pub(crate) async fn live() -> Json<Probe> {
    Json(Probe { status: "live" })
}

/// `GET /api/health/ready`: whether requests should come here. A gateway without a node is ready: nodes come to it.
pub(crate) async fn ready(Extract(state): Extract<Arc<State>>) -> (StatusCode, Json<Probe>) {
    if !state.stop.is_cancelled() && store_answers(&state).await {
        (StatusCode::OK, Json(Probe { status: "ready" }))
    } else {
        (StatusCode::SERVICE_UNAVAILABLE, Json(Probe { status: "not ready" }))
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
