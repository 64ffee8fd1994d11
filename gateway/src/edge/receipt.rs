//! The last step: what became of a request, in its answer's headers, in the metrics, and in the log if it failed.

use std::fmt::Write as _;
use std::time::Instant;

use common::error::{Fault, Form, PublicError};
use common::ids::InvocationId;
use common::invocation::Outcome;
use common::protocol::{OUTCOME, OWN_HEADER_PREFIX, TIMING};
use common::stream::name_websocket;
use http::header::{ALLOW, CONNECTION, CONTENT_TYPE, RETRY_AFTER, WWW_AUTHENTICATE};
use http::{HeaderMap, HeaderName, HeaderValue, Method, Response, StatusCode};

use super::body::{AnswerBody, NodeBody};
use super::gate::ends_here;
use crate::metrics::{Ending, Kind, Metrics};

const SERVER_TIMING: HeaderName = HeaderName::from_static("server-timing");
const X_REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");

/// What is known of a request while it is answered. Dropped before [`finish`](Receipt::finish), it counts as one
/// whose client went away.
pub(crate) struct Receipt<'a> {
    metrics: &'a Metrics,
    started: Instant,
    pub(crate) id: InvocationId,
    pub(crate) id_text: HeaderValue,
    /// Set as soon as the path is read.
    pub(crate) kind: Kind,
    /// For the log.
    method: Method,
    finished: bool,
}

/// How a request was answered, before it is written up.
pub(crate) enum Answer {
    /// By a node.
    Node(Response<NodeBody>),
    /// By the control API.
    Control(Response<axum::body::Body>),
    /// By the edge itself.
    Own(Response<AnswerBody>),
}

impl<'a> Receipt<'a> {
    pub(crate) fn begin(metrics: &'a Metrics, method: Method) -> Self {
        let id = InvocationId::new();
        let mut buffer = uuid::Uuid::encode_buffer();
        let id_text = HeaderValue::from_str(id.uuid().hyphenated().encode_lower(&mut buffer))
            .expect("a UUID is a valid header value");
        metrics.in_flight.inc();
        Self { metrics, started: Instant::now(), id, id_text, kind: Kind::Other, method, finished: false }
    }

    /// Writes up the answer. `closing` asks the client for another connection.
    pub(crate) fn finish(mut self, result: Result<Answer, PublicError>, closing: bool) -> Response<AnswerBody> {
        self.finished = true;
        let (mut response, ending) = match result {
            Ok(Answer::Node(response)) => self.node(response),
            Ok(Answer::Control(response)) => {
                let ending = by_status(response.status());
                (response.map(AnswerBody::Control), ending)
            }
            Ok(Answer::Own(response)) => (response, Ending::Success),
            Err(error) => self.refusal(&error),
        };
        response.headers_mut().insert(X_REQUEST_ID, self.id_text.clone());
        // An upgraded connection carries no other request anyway.
        if closing && response.status() != StatusCode::SWITCHING_PROTOCOLS {
            response.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
        }
        let duration = self.started.elapsed();
        self.metrics.request(self.kind, ending, duration);
        let status = response.status().as_u16();
        tracing::debug!(request_id = %self.id, method = %self.method, kind = ?self.kind, status, ?duration, "answered");
        response
    }

    fn node(&self, mut response: Response<NodeBody>) -> (Response<AnswerBody>, Ending) {
        let switches = response.status() == StatusCode::SWITCHING_PROTOCOLS;
        let headers = response.headers_mut();
        let outcome = headers.get(OUTCOME).and_then(|word| word.to_str().ok()).and_then(Outcome::from_word);
        let timing = self.timing(headers.get(TIMING));
        strip(headers);
        headers.append(SERVER_TIMING, timing);
        if switches {
            name_websocket(headers);
        }
        let ending = match outcome {
            Some(outcome) => match outcome.code() {
                None => Ending::Success,
                Some(code) => {
                    self.metrics.error(code);
                    self.log(code.word(), code.fault());
                    by_fault(code.fault())
                }
            },
            // The node refused the order itself.
            None => by_status(response.status()),
        };
        (response.map(AnswerBody::Node), ending)
    }

    /// The agent's phases and ours: all that is not the agent's is the gateway's and the link's.
    fn timing(&self, agent: Option<&HeaderValue>) -> HeaderValue {
        let mut text = String::with_capacity(96);
        if let Some(agent) = agent.and_then(|agent| agent.to_str().ok()) {
            text.push_str(agent);
            text.push_str(", ");
        }
        let total = self.started.elapsed().as_secs_f64() * 1000.0;
        // Writing to a String cannot fail.
        let _ = write!(text, "total;dur={total:.3}");
        HeaderValue::try_from(text).expect("two valid parts and a comma are a valid header value")
    }

    fn refusal(&self, error: &PublicError) -> (Response<AnswerBody>, Ending) {
        let form = if matches!(self.kind, Kind::Http | Kind::Envelope) { Form::Invoke } else { Form::Control };
        let id = self.id_text.to_str().unwrap_or_default();
        let mut response = Response::new(AnswerBody::Own(Some(error.body(id, form).into())));
        *response.status_mut() =
            StatusCode::from_u16(error.code.status()).expect("the error table has valid statuses only");
        let headers = response.headers_mut();
        headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
        if let Some(seconds) = error.retry_after {
            headers.insert(RETRY_AFTER, seconds.into());
        }
        match response.status() {
            StatusCode::UNAUTHORIZED => {
                response.headers_mut().insert(WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
            }
            StatusCode::METHOD_NOT_ALLOWED if self.kind == Kind::Envelope => {
                response.headers_mut().insert(ALLOW, HeaderValue::from_static("POST"));
            }
            _ => {}
        }
        self.metrics.error(error.code);
        self.log(error.code.word(), error.code.fault());
        (response, by_fault(error.code.fault()))
    }

    fn log(&self, code: &str, fault: Fault) {
        let (request_id, method, kind) = (self.id, &self.method, self.kind);
        let ms = self.started.elapsed().as_millis();
        match fault {
            Fault::Platform => {
                tracing::warn!(%request_id, %method, ?kind, code, fault = "platform", ms, "request failed")
            }
            Fault::Client | Fault::Function => {
                tracing::info!(%request_id, %method, ?kind, code, fault = fault.word(), ms, "request failed");
            }
        }
    }
}

impl Drop for Receipt<'_> {
    fn drop(&mut self) {
        self.metrics.in_flight.dec();
        if !self.finished {
            self.metrics.request(self.kind, Ending::Gone, self.started.elapsed());
        }
    }
}

/// Removes what is ours, and what ends at the link.
fn strip(headers: &mut HeaderMap) {
    let ours = |name: &HeaderName| name.as_str().starts_with(OWN_HEADER_PREFIX) || ends_here(name);
    let gone: Vec<HeaderName> = headers.keys().filter(|name| ours(name)).cloned().collect();
    for name in gone {
        headers.remove(name);
    }
}

fn by_fault(fault: Fault) -> Ending {
    match fault {
        Fault::Client => Ending::Client,
        Fault::Function => Ending::Function,
        Fault::Platform => Ending::Platform,
    }
}

fn by_status(status: StatusCode) -> Ending {
    if status.is_server_error() {
        Ending::Platform
    } else if status.is_client_error() {
        Ending::Client
    } else {
        Ending::Success
    }
}
