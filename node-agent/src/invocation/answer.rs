//! The answers that a node makes itself: of what a function by files gave, and of what went wrong.

use bytes::Bytes;
use common::error::{Form, PublicError};
use common::ids::InvocationId;
use common::invocation::Outcome;
use common::protocol::{OUTCOME, TIMING};
use http::header::{CONTENT_TYPE, RETRY_AFTER};
use http::{HeaderName, HeaderValue, Response, StatusCode};
use http_body_util::{BodyExt as _, Full};

use super::{Done, phases};
use crate::link::AnswerBody;

/// On an answer that was given before: the id of the call that ran for it, which has a record.
pub(super) const ORIGINAL_REQUEST: HeaderName = HeaderName::from_static("original-request");

/// What the client gets of a call that ended.
pub(super) fn respond(done: Done, id: InvocationId) -> Response<Bytes> {
    let mut response = match done.answer {
        Ok(reply) => {
            let mut response = Response::new(reply.body);
            *response.status_mut() = reply.status;
            *response.headers_mut() = reply.headers;
            response
                .headers_mut()
                .insert(HeaderName::from_static(OUTCOME), HeaderValue::from_static(done.outcome.word()));
            response
        }
        Err(error) => refusal(&error, &id.to_string(), Some(done.outcome)),
    };
    if !done.is_handed_over {
        response = never_handed_over(response);
    }
    if let Some(timing) = phases::header(&done.phases) {
        response.headers_mut().insert(HeaderName::from_static(TIMING), timing);
    }
    response
}

/// On an answer to a call that its function surely never saw, for whoever keeps answers.
#[derive(Clone, Copy)]
pub(super) struct NeverHandedOver;

/// Says so of `answer`.
pub(super) fn never_handed_over(mut answer: Response<Bytes>) -> Response<Bytes> {
    answer.extensions_mut().insert(NeverHandedOver);
    answer
}

/// An answer's body that is all there.
pub(crate) fn whole(bytes: Bytes) -> AnswerBody {
    Full::new(bytes).map_err(|never| match never {}).boxed_unsync()
}

/// A finished error answer.
pub(super) fn refusal(error: &PublicError, request_id: &str, outcome: Option<Outcome>) -> Response<Bytes> {
    let mut response = Response::new(Bytes::from(error.body(request_id, Form::Invoke)));
    *response.status_mut() = StatusCode::from_u16(error.code.status()).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    if let Some(seconds) = error.retry_after {
        headers.insert(RETRY_AFTER, seconds.into());
    }
    if let Some(outcome) = outcome {
        headers.insert(HeaderName::from_static(OUTCOME), HeaderValue::from_static(outcome.word()));
    }
    response
}
