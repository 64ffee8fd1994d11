//! The last step: what became of a request, in its answer's headers, in the metrics, and in the log if it failed.

use std::time::Duration;

use common::error::{Fault, Form, PublicError};
use common::ids::InvocationId;
use common::invocation::Outcome;
use common::phases::{AUTH, GATE, LINK, ServerTiming, TOTAL, micros};
use common::protocol::{OUTCOME, OWN_HEADER_PREFIX, TIMING, TOOK_US};
use common::stream::name_websocket;
use http::header::{ALLOW, CONNECTION, CONTENT_TYPE, RETRY_AFTER, WWW_AUTHENTICATE};
use http::{HeaderMap, HeaderName, HeaderValue, Method, Response, StatusCode};

use super::body::{AnswerBody, NodeBody};
use super::gate::ends_here;
use super::stopwatch::{End, Stopwatch};
use crate::metrics::{Ending, Kind, Metrics};

const SERVER_TIMING: HeaderName = HeaderName::from_static("server-timing");
const X_REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");

/// What is known of a request while it is answered. Dropped before [`finish`](Receipt::finish), it counts as one
/// whose client went away.
pub(crate) struct Receipt<'a> {
    metrics: &'a Metrics,
    pub(crate) watch: Stopwatch,
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
        Self { metrics, watch: Stopwatch::start(), id, id_text, kind: Kind::Other, method, finished: false }
    }

    /// Writes up the answer. `closing` asks the client for another connection.
    pub(crate) fn finish(mut self, result: Result<Answer, PublicError>, closing: bool) -> Response<AnswerBody> {
        self.finished = true;
        let duration = self.watch.elapsed();
        let (mut response, ending) = match result {
            Ok(Answer::Node(response)) => self.node(response, duration),
            Ok(Answer::Control(response)) => {
                let ending = by_status(response.status());
                (response.map(AnswerBody::Control), ending)
            }
            Ok(Answer::Own(response)) => (response, Ending::Success),
            Err(error) => self.refusal(&error, duration),
        };
        response.headers_mut().insert(X_REQUEST_ID, self.id_text.clone());
        // An upgraded connection carries no other request anyway.
        if closing && response.status() != StatusCode::SWITCHING_PROTOCOLS {
            response.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
        }
        self.metrics.request(self.kind, ending, duration);
        let status = response.status().as_u16();
        tracing::debug!(request_id = %self.id, method = %self.method, kind = ?self.kind, status, ?duration, "answered");
        response
    }

    fn node(&self, mut response: Response<NodeBody>, total: Duration) -> (Response<AnswerBody>, Ending) {
        let switches = response.status() == StatusCode::SWITCHING_PROTOCOLS;
        let headers = response.headers_mut();
        let outcome = headers.remove(OUTCOME).and_then(|word| Outcome::from_word(word.to_str().ok()?));
        let took = headers.remove(TOOK_US).and_then(|us| us.to_str().ok()?.parse().ok());
        let timing = self.timing(End::Answered(took), headers.remove(TIMING).as_ref(), total);
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

    /// The phases, ours around the node's, into the metrics and into the header.
    fn timing(&self, end: End, node: Option<&HeaderValue>, total: Duration) -> HeaderValue {
        let total = micros(total);
        let phases = self.watch.phases(end, total);
        if self.is_call() {
            self.metrics.phases(&phases);
        }
        let mut timing = ServerTiming::new();
        timing.add(GATE, phases.gate);
        timing.add(AUTH, phases.auth);
        timing.add_text(node.and_then(|node| node.to_str().ok()).unwrap_or_default());
        timing.add(LINK, phases.link);
        timing.add(TOTAL, Some(total));
        HeaderValue::try_from(timing.text()).expect("valid parts with commas between are a valid header value")
    }

    fn refusal(&self, error: &PublicError, total: Duration) -> (Response<AnswerBody>, Ending) {
        let form = if self.is_call() { Form::Invoke } else { Form::Control };
        let id = self.id_text.to_str().unwrap_or_default();
        let mut response = Response::new(AnswerBody::Own(Some(error.body(id, form).into())));
        *response.status_mut() =
            StatusCode::from_u16(error.code.status()).expect("the error table has valid statuses only");
        let headers = response.headers_mut();
        headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
        // What the gate refuses may have been meant as a call.
        if self.kind != Kind::Control {
            headers.insert(SERVER_TIMING, self.timing(End::Refused, None, total));
        }
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

    fn is_call(&self) -> bool {
        matches!(self.kind, Kind::Http | Kind::Envelope)
    }

    fn log(&self, code: &str, fault: Fault) {
        let (request_id, method, kind) = (self.id, &self.method, self.kind);
        let ms = self.watch.elapsed().as_millis();
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
            self.metrics.request(self.kind, Ending::Gone, self.watch.elapsed());
        }
    }
}

/// What a browser takes for the whole origin, which is all owners' together.
fn is_of_the_origin(name: &HeaderName) -> bool {
    const WORDS: [&str; 7] = [
        "alt-svc",
        "clear-site-data",
        "nel",
        "report-to",
        "reporting-endpoints",
        "service-worker-allowed",
        "strict-transport-security",
    ];
    WORDS.contains(&name.as_str())
}

/// Removes what is ours, what ends at the link, and what is nobody's alone.
fn strip(headers: &mut HeaderMap) {
    let ours =
        |name: &HeaderName| name.as_str().starts_with(OWN_HEADER_PREFIX) || ends_here(name) || is_of_the_origin(name);
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
