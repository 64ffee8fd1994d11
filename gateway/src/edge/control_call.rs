//! Calls of the control API: the edge hands them to a runtime of their own and waits, so that no database, hash or
//! upload ever sits on an edge thread.

use std::time::Duration;

use axum::Router;
use common::error::{Code, PublicError};
use http::request::Parts;
use http::{Request, Response};
use tokio::runtime::Handle;
use tokio::time::timeout;
use tokio_util::task::TaskTracker;
use tower::ServiceExt as _;

use super::body::ClientBody;

/// How long a call of the control API may take to its answer's head. A deploy waits for its build.
const DEADLINE: Duration = Duration::from_secs(30 * 60);

/// How long an upload may take as a whole.
pub(crate) const UPLOAD_DEADLINE: Duration = Duration::from_secs(15 * 60);

/// The control API, as the edge calls it.
pub(crate) struct ControlCalls {
    router: Router,
    runtime: Handle,
    pub(crate) tasks: TaskTracker,
}

impl ControlCalls {
    pub(crate) fn new(router: Router, runtime: &Handle) -> Self {
        Self { router, runtime: runtime.clone(), tasks: TaskTracker::new() }
    }

    /// Has the control API answer. If the client goes away, the call still runs to its end.
    ///
    /// # Errors
    /// The call panicked or took too long; both are bugs.
    pub(crate) async fn answer(
        &self,
        parts: Parts,
        body: ClientBody,
    ) -> Result<Response<axum::body::Body>, PublicError> {
        let request = Request::from_parts(parts, axum::body::Body::new(body));
        let router = self.router.clone();
        let call = async move { timeout(DEADLINE, router.oneshot(request)).await };
        let answer = self.tasks.spawn_on(call, &self.runtime);
        match answer.await {
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
