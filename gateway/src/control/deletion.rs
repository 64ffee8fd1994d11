//! The deletion of a function: its rows, then its route, then its sandboxes. With millions of records it takes minutes,
//! so it runs to its end whether or not its client waits, once for all who ask for it.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use axum::extract::{Request, State as Extract};
use common::error::Code;
use common::ids::{FunctionId, UserId};
use http::StatusCode;
use store::Function;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};

use super::State;
use super::caller::Caller;
use super::error::{Failure, request_id};
use super::functions::{owned, reload_routes};
use super::request::Key;

/// Deletions at once: each holds two connections of the store for as long as it takes.
const MAX_DELETIONS: usize = 2;
/// How long a client waits for its deletion's end; below the deadline of the calls around it.
const ANSWER_DEADLINE: Duration = Duration::from_secs(25);

type UnderWay = HashMap<FunctionId, watch::Receiver<()>>;

/// The deletions under way.
pub(crate) struct Deletions {
    under_way: Arc<Mutex<UnderWay>>,
    room: Arc<Semaphore>,
}

/// One of them; its drop tells who waits that it has ended.
struct Deletion {
    function: FunctionId,
    under_way: Arc<Mutex<UnderWay>>,
    _ended: watch::Sender<()>,
    _room: OwnedSemaphorePermit,
}

impl Deletions {
    /// None yet.
    pub(crate) fn new() -> Self {
        Self { under_way: Arc::default(), room: Arc::new(Semaphore::new(MAX_DELETIONS)) }
    }

    /// The end of the deletion of `function`, if one is under way.
    fn end_of(&self, function: FunctionId) -> Option<watch::Receiver<()>> {
        lock(&self.under_way).get(&function).cloned()
    }

    /// Begins the deletion of `function`, unless somebody did: then what to wait for.
    async fn begin(&self, function: FunctionId) -> Result<Deletion, watch::Receiver<()>> {
        if let Some(end) = self.end_of(function) {
            return Err(end);
        }
        let room = Arc::clone(&self.room).acquire_owned().await.expect("the semaphore is never closed");
        let mut under_way = lock(&self.under_way);
        if let Some(end) = under_way.get(&function) {
            return Err(end.clone());
        }
        let (ended, end) = watch::channel(());
        under_way.insert(function, end);
        Ok(Deletion { function, under_way: Arc::clone(&self.under_way), _ended: ended, _room: room })
    }
}

impl Drop for Deletion {
    fn drop(&mut self) {
        lock(&self.under_way).remove(&self.function);
    }
}

fn lock(under_way: &Mutex<UnderWay>) -> MutexGuard<'_, UnderWay> {
    under_way.lock().unwrap_or_else(PoisonError::into_inner)
}

/// `DELETE /api/functions/{id}`: with its versions, records, logs and data.
pub(crate) async fn delete(
    Extract(state): Extract<Arc<State>>,
    Caller(owner): Caller,
    Key(key): Key,
    request: Request,
) -> Result<StatusCode, Failure> {
    let id = request_id(request.extensions());
    let ended = async {
        let function = owned(&state, owner, &key).await?;
        let function_id = function.id;
        let deletion = match state.deletions.begin(function_id).await {
            Ok(deletion) => deletion,
            Err(mut end) => {
                // Nothing is ever sent: this waits for the sender's end.
                while end.changed().await.is_ok() {}
                return gone(&state, owner, function_id).await;
            }
        };
        let job = state.tasks.spawn({
            let state = Arc::clone(&state);
            async move {
                let result = run(&state, owner, function).await;
                drop(deletion);
                if let Err(failure) = &result {
                    failure.log(id);
                }
                result
            }
        });
        let broken = |cause| Failure::caused(Code::Internal, "the deletion broke off: ask for it again", cause);
        job.await.map_err(broken)?
    };
    match tokio::time::timeout(ANSWER_DEADLINE, ended).await {
        Ok(ended) => ended.map(|()| StatusCode::NO_CONTENT),
        Err(_) => {
            let sentence = "the function has so much to delete that it takes a while: ask again until it is gone";
            Err(Failure::new(Code::StoreUnavailable, sentence))
        }
    }
}

async fn run(state: &State, owner: UserId, function: Function) -> Result<(), Failure> {
    let deleted = state.store.delete_function(owner, function.id).await;
    // Also after a failure: a store that did not answer may have done it.
    let reloaded = reload_routes(state).await;
    deleted?;
    tracing::info!(function = %function.id, name = %function.name, "deleted");
    reloaded
}

/// What somebody else's request for the same deletion came to.
async fn gone(state: &State, owner: UserId, function: FunctionId) -> Result<(), Failure> {
    match state.store.function(owner, &function.to_string()).await? {
        None => Ok(()),
        Some(_) => Err(Failure::new(Code::StoreUnavailable, "the function could not be deleted: ask again")),
    }
}
