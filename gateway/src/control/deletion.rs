//! The deletion of a function: at once it is not there any more, neither for its owner nor for who calls it, and its
//! name is free. Of what it had there may be millions of rows; those go afterwards, by the housekeeping.

use std::sync::Arc;

use axum::extract::{Request, State as Extract};
use common::error::Code;
use common::ids::UserId;
use http::StatusCode;
use store::Function;

use super::State;
use super::caller::Caller;
use super::error::{Failure, request_id};
use super::functions::{owned, reload_routes};
use super::request::Key;

/// `DELETE /api/functions/{id}`: with its versions, records, logs and data. It runs to its end whether or not its
/// client waits: what is deleted is not to go on serving.
pub(crate) async fn delete(
    Extract(state): Extract<Arc<State>>,
    Caller(owner): Caller,
    Key(key): Key,
    request: Request,
) -> Result<StatusCode, Failure> {
    let id = request_id(request.extensions());
    let function = owned(&state, owner, &key).await?;
    let job = state.tasks.spawn({
        let state = Arc::clone(&state);
        async move {
            let result = run(&state, owner, function).await;
            if let Err(failure) = &result {
                failure.log(id);
            }
            result
        }
    });
    let broken = |cause| Failure::caused(Code::Internal, "the deletion broke off: ask for it again", cause);
    job.await.map_err(broken)??;
    Ok(StatusCode::NO_CONTENT)
}

async fn run(state: &State, owner: UserId, function: Function) -> Result<(), Failure> {
    let deleted = state.store.delete_function(owner, function.id).await;
    // Also after a failure: a store that did not answer may have done it.
    let reloaded = reload_routes(state).await;
    deleted?;
    state.deleted.notify_one();
    tracing::info!(function = %function.id, name = %function.name, "deleted");
    reloaded
}
