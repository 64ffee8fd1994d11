//! The one place where a failed control call becomes a response. Handlers return a [`Failure`]; [`answer`] gives it
//! the request's id, writes its cause to the log once, and makes the body.

use std::error::Error;
use std::sync::{Arc, Once};
use std::time::Instant;

use axum::body::Body;
use axum::extract::{MatchedPath, Request, State as Extract};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use common::error::{Code, Form, PublicError};
use common::ids::InvocationId;
use http::header::{CONTENT_LENGTH, CONTENT_TYPE, RETRY_AFTER, WWW_AUTHENTICATE};
use http::{HeaderValue, StatusCode};

use super::State;
use crate::edge::RequestId;

/// A control call that failed: what the public reads, and what only the log does.
#[derive(Debug)]
pub(crate) struct Failure {
    public: PublicError,
    cause: Option<Box<dyn Error + Send + Sync>>,
    // A deploy goes on without its client, so it logs for itself; the boundary then must not again.
    logged: Once,
}

impl Failure {
    /// A failure that says everything in its sentence.
    pub(crate) fn new(code: Code, message: impl Into<String>) -> Self {
        Self { public: PublicError::new(code, message), cause: None, logged: Once::new() }
    }

    /// A failure whose cause goes to the log, never into the answer.
    pub(crate) fn caused(
        code: Code,
        message: impl Into<String>,
        cause: impl Into<Box<dyn Error + Send + Sync>>,
    ) -> Self {
        Self { public: PublicError::new(code, message), cause: Some(cause.into()), logged: Once::new() }
    }

    /// The failure of what is not there, or somebody else's.
    pub(crate) fn not_found(what: &str) -> Self {
        Self::new(Code::NotFound, format!("{what} was not found"))
    }

    /// A disk that is full or broken under us.
    pub(crate) fn disk(cause: std::io::Error) -> Self {
        Self::caused(Code::Internal, "the platform could not write the archive to its disk", cause)
    }

    /// The artifact store did not take an archive.
    pub(crate) fn artifacts(cause: std::io::Error) -> Self {
        let sentence = "the artifact store does not take the archive now: try again in a moment";
        Self::caused(Code::StoreUnavailable, sentence, cause)
    }

    /// The same failure with a build's log in its answer.
    pub(crate) fn with_log(mut self, log: String) -> Self {
        self.public.log = Some(log);
        self
    }

    /// What happened.
    pub(crate) fn code(&self) -> Code {
        self.public.code
    }

    /// The sentence for the public.
    pub(crate) fn message(&self) -> &str {
        &self.public.message
    }

    /// Writes the failure to the log, with every cause under it; only the first call does.
    pub(crate) fn log(&self, request_id: InvocationId) {
        self.logged.call_once(|| self.write(request_id));
    }

    fn write(&self, request_id: InvocationId) {
        let code = self.public.code.word();
        let Some(cause) = &self.cause else {
            tracing::debug!(%request_id, code, message = %self.public.message, "control call refused");
            return;
        };
        let mut chain = cause.to_string();
        let mut next = cause.source();
        while let Some(source) = next {
            chain.push_str(": ");
            chain.push_str(&source.to_string());
            next = source.source();
        }
        if self.public.code.status() >= 500 {
            tracing::error!(%request_id, code, cause = chain, "control call failed");
        } else {
            tracing::debug!(%request_id, code, cause = chain, "control call refused");
        }
    }

    /// The JSON body.
    pub(crate) fn body(&self, request_id: InvocationId) -> Vec<u8> {
        self.public.body(&request_id.to_string(), Form::Control)
    }
}

impl From<store::Error> for Failure {
    fn from(error: store::Error) -> Self {
        use store::Error as E;
        match error {
            E::NotFound => Self::not_found("what you asked for"),
            E::Taken => Self::new(Code::Conflict, "this name is already taken: choose another"),
            E::NotFirst => Self::new(
                Code::Forbidden,
                "registration is closed here: the operator makes accounts, by this call with his own token",
            ),
            E::Unavailable(_) => Self::caused(
                Code::StoreUnavailable,
                "the platform's database does not answer: try again in a moment",
                error,
            ),
            E::Query(_) | E::Migration(_) | E::Damaged(_) | E::Settings(_) => {
                Self::caused(Code::Internal, "something went wrong here: the platform's log has the cause", error)
            }
        }
    }
}

impl IntoResponse for Failure {
    fn into_response(self) -> Response {
        let mut response = status(self.code()).into_response();
        response.extensions_mut().insert(Arc::new(self));
        response
    }
}

/// The layer around every route: turns the failure that a response carries into its body and headers.
pub(crate) async fn answer(Extract(state): Extract<Arc<State>>, request: Request, next: Next) -> Response {
    let id = request_id(request.extensions());
    let route = request.extensions().get::<MatchedPath>().cloned();
    let begun = Instant::now();
    let mut response = next.run(request).await;
    state.metrics.answered(route.as_ref().map(MatchedPath::as_str), response.status(), begun.elapsed());
    let Some(failure) = response.extensions_mut().remove::<Arc<Failure>>() else { return response };
    state.metrics.failed(failure.code());
    failure.log(id);
    // What the response already says (`Allow`) stays.
    let (mut parts, _) = response.into_parts();
    parts.headers.remove(CONTENT_LENGTH);
    parts.headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    if let Some(seconds) = failure.public.retry_after {
        parts.headers.insert(RETRY_AFTER, HeaderValue::from(seconds));
    }
    if failure.code().status() == 401 {
        parts.headers.insert(WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
    }
    Response::from_parts(parts, Body::from(failure.body(id)))
}

/// The id that the edge gave the request; a fresh one when the router is called without an edge.
pub(crate) fn request_id(extensions: &http::Extensions) -> InvocationId {
    extensions.get::<RequestId>().map_or_else(InvocationId::new, |id| id.0)
}

/// For paths that no route has.
pub(crate) async fn no_route(uri: http::Uri) -> Failure {
    Failure::not_found(&format!("the path {}", uri.path()))
}

/// For methods that a route does not take; the `Allow` header lists those that it does.
pub(crate) async fn no_method(method: http::Method) -> Failure {
    Failure::new(Code::MethodNotAllowed, format!("{method} is not possible here: the Allow header lists what is"))
}

fn status(code: Code) -> StatusCode {
    StatusCode::from_u16(code.status()).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR)
}
