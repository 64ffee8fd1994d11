//! A user's functions: list, one; and the JSON in which they are shown.

use std::sync::Arc;
use std::time::Duration;

use axum::Json;
use axum::extract::State as Extract;
use common::function::{Access, Limits, Status};
use common::ids::{FunctionId, UserId};
use common::labels::Labels;
use common::names::{FunctionName, RuntimeName};
use serde::Serialize;
use store::Function;

use super::State;
use super::auth::rfc3339;
use super::caller::Caller;
use super::error::Failure;
use super::request::{Key, Origin, Parameters};

/// A function as its owner sees it. What no version has served yet is `null`.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct View {
    id: FunctionId,
    name: FunctionName,
    status: Status,
    version: Option<u32>,
    runtime: Option<RuntimeName>,
    contract: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    idle_timeout_ms: Option<u32>,
    access: Option<Access>,
    #[serde(skip_serializing_if = "Option::is_none")]
    stale_while_cold_ms: Option<u32>,
    #[serde(skip_serializing_if = "Labels::is_empty")]
    node_selector: Labels,
    url: String,
    limits: Option<Limits>,
    created_at: String,
    updated_at: String,
}

impl View {
    fn new(function: Function, base: &str) -> Self {
        let url = url(base, &function);
        let active = function.active;
        Self {
            id: function.id,
            name: function.name,
            status: function.status,
            version: active.as_ref().map(|active| active.spec.version),
            runtime: active.as_ref().map(|active| active.spec.runtime.clone()),
            contract: active.as_ref().map(|active| active.spec.contract.word()),
            idle_timeout_ms: active.as_ref().and_then(|active| active.spec.contract.idle_timeout_ms()),
            access: active.as_ref().map(|active| active.access),
            stale_while_cold_ms: active.as_ref().map(|active| active.spec.stale_while_cold_ms).filter(|ms| *ms > 0),
            node_selector: active.as_ref().map(|active| active.spec.node_selector.clone()).unwrap_or_default(),
            url,
            limits: active.as_ref().map(|active| active.spec.limits),
            created_at: rfc3339(function.created_at),
            updated_at: rfc3339(function.updated_at),
        }
    }
}

/// Where a function is called over plain HTTP.
pub(crate) fn url(base: &str, function: &Function) -> String {
    format!("{base}/f/{}/{}", function.owner_handle, function.name)
}

/// A page of functions.
#[derive(Serialize)]
pub(crate) struct Page {
    functions: Vec<View>,
    /// The `after` of the next page; `null` on the last one.
    next: Option<FunctionName>,
}

/// `GET /api/functions?limit&after`, by name.
pub(crate) async fn list(
    Extract(state): Extract<Arc<State>>,
    Caller(owner): Caller,
    Origin(origin): Origin,
    parameters: Parameters,
) -> Result<Json<Page>, Failure> {
    let parameters = parameters.only(&["limit", "after"])?;
    let limit = parameters.limit()?;
    let after: Option<FunctionName> = parameters.get("after", "the name of a function")?;
    // One more than asked for tells whether there is a next page.
    let mut functions = state.store.functions(owner, limit + 1, after.as_ref().map(FunctionName::as_str)).await?;
    let more = functions.len() > limit as usize;
    functions.truncate(limit as usize);
    let next = functions.last().filter(|_| more).map(|last| last.name.clone());
    let base = state.base_url(&origin);
    Ok(Json(Page { functions: functions.into_iter().map(|function| View::new(function, base)).collect(), next }))
}

/// `GET /api/functions/{id}`.
pub(crate) async fn get(
    Extract(state): Extract<Arc<State>>,
    Caller(owner): Caller,
    Key(key): Key,
    Origin(origin): Origin,
) -> Result<Json<View>, Failure> {
    let function = owned(&state, owner, &key).await?;
    Ok(Json(View::new(function, state.base_url(&origin))))
}

/// The function behind a key, if it is `owner`'s; else it is not there, whoever's it is.
pub(crate) async fn owned(state: &State, owner: UserId, key: &str) -> Result<Function, Failure> {
    // Nothing longer is an id or a name, and the store need not look.
    let function =
        if key.len() <= MAX_KEY_BYTES && !key.contains('\0') { state.store.function(owner, key).await? } else { None };
    function.ok_or_else(|| Failure::not_found("the function"))
}

/// Longest `{id}`: names have 63 bytes, UUIDs up to 45.
const MAX_KEY_BYTES: usize = 64;
/// How often a change that is in the store already is tried to be brought into the routes.
const RELOADS: u32 = 4;
/// The first pause between two such tries; it doubles.
const RELOAD_PAUSE: Duration = Duration::from_millis(100);

/// Brings the route table up to what the store says. The store's change stands whatever happens here, so a store
/// that hiccups is asked again, and one that is down, by the feed, until it answers. Sandboxes of what served before are
/// let go.
pub(crate) async fn reload_routes(state: &State) -> Result<(), Failure> {
    let mut pause = RELOAD_PAUSE;
    for _ in 1..RELOADS {
        match state.routes.reload(state.store.as_ref()).await {
            Ok(left_out) => {
                state.fleet.let_go(&left_out);
                return Ok(());
            }
            Err(error) => tracing::warn!(%error, "the routes could not be reloaded: trying again"),
        }
        tokio::time::sleep(pause).await;
        pause *= 2;
    }
    let left_out = state.routes.reload(state.store.as_ref()).await?;
    state.fleet.let_go(&left_out);
    Ok(())
}
