//! Calls of the control API: the edge hands them to a runtime of their own and waits, so that no database, hash or
//! upload ever sits on an edge thread.

use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use common::error::{Code, PublicError};
use http::request::Parts;
use http::{Request, Response};
use tokio::runtime::Handle;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::timeout;
use tokio_util::task::{AbortOnDropHandle, TaskTracker};
use tower::ServiceExt as _;

use super::body::ClientBody;
use super::limits::{Client, neighbourhood};
use super::shares::{Share, Shares};

/// How long a call of the control API may take to its answer's head. A deploy waits for its build.
const DEADLINE: Duration = Duration::from_secs(30 * 60);

/// How long an upload may take as a whole.
pub(crate) const UPLOAD_DEADLINE: Duration = Duration::from_secs(15 * 60);

/// Most calls under way that run to their end without their client: over HTTP/2 one that takes its requests back at once
/// begins as many as it likes.
const MAX_CHANGES: usize = 1024;

/// Those of one client: a user, or an address of callers without a token, who only ever log in and out. A call is under
/// way from its head on, so that whoever never sends the bodies would have all the places.
const MAX_CHANGES_EACH: u32 = 64;

/// The control API, as the edge calls it.
pub(crate) struct ControlCalls {
    router: Router,
    runtime: Handle,
    pub(crate) tasks: TaskTracker,
    changes: Arc<Semaphore>,
    shares: Arc<Shares<Client>>,
}

/// The right to one call that may change something.
struct Place {
    _permit: OwnedSemaphorePermit,
    _share: Share<Client>,
}

impl ControlCalls {
    pub(crate) fn new(router: Router, runtime: &Handle) -> Self {
        let (changes, shares) = (Arc::new(Semaphore::new(MAX_CHANGES)), Shares::new(MAX_CHANGES_EACH));
        Self { router, runtime: runtime.clone(), tasks: TaskTracker::new(), changes, shares }
    }

    fn admit(&self, client: Client) -> Result<Place, PublicError> {
        let sentence = "you have as many calls of the API under way as you may: let one of them end first";
        let yours = || PublicError::new(Code::RateLimited, sentence);
        let share = self.shares.take(neighbourhood(client, false)).ok_or_else(yours)?;
        let sentence = "too many calls of the API are under way: try again in a moment";
        let busy = |_| PublicError::new(Code::Overloaded, sentence);
        let permit = self.changes.clone().try_acquire_owned().map_err(busy)?;
        Ok(Place { _permit: permit, _share: share })
    }

    /// Has the control API answer `client`. If it goes away, a call that may change something still runs to its end; one
    /// that only looks does not.
    ///
    /// # Errors
    /// Too many calls of the first sort are under way, in all or of this client. The call panicked or took too long; both
    /// are bugs.
    pub(crate) async fn answer(
        &self,
        client: Client,
        parts: Parts,
        body: ClientBody,
    ) -> Result<Response<axum::body::Body>, PublicError> {
        let is_safe = parts.method.is_safe();
        let place = if is_safe { None } else { Some(self.admit(client)?) };
        let request = Request::from_parts(parts, axum::body::Body::new(body));
        let router = self.router.clone();
        let call = async move {
            let _place = place;
            timeout(DEADLINE, router.oneshot(request)).await
        };
        let answer = AbortOnDropHandle::new(self.tasks.spawn_on(call, &self.runtime));
        let answered = if is_safe { answer.await } else { answer.detach().await };
        match answered {
            Ok(Ok(Ok(answer))) => Ok(answer),
            Ok(Ok(Err(never))) => match never {},
            Ok(Err(_late)) => {
                tracing::error!("a control call took over {} s", DEADLINE.as_secs());
                Err(PublicError::new(Code::Internal, "the call took too long"))
            }
            Err(error) if error.is_cancelled() => Err(PublicError::new(Code::Stopping, "the platform is stopping")),
            Err(error) => {
                tracing::error!(%error, "a control call panicked");
                Err(PublicError::new(Code::Internal, "something went wrong on our side; the log has the cause"))
            }
        }
    }
}
