//! Hands a call to its node and brings back the answer. A call whose bytes never left is tried on another
//! connection, and then on another node; one that may have run is not.

use std::error::Error as _;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use common::digest::Digest;
use common::error::{Chain, Code, PublicError};
use common::invocation::Outcome;
use common::protocol::{AUTH_US, DEPLOYMENT, FORM, GATE_US, INVOCATION, ONCE, ORDER, ORDER_INVOKE, OUTCOME};
use common::stream::{name_websocket, names_websocket};
use http::header::{CONTENT_LENGTH, TRANSFER_ENCODING};
use http::request::Parts;
use http::{HeaderName, HeaderValue, Request, Response, StatusCode, Uri, Version};
use http_body_util::{BodyExt as _, Either};
use hyper::body::Incoming;
use hyper::client::conn::TrySendError;
use tokio::time::{Instant, timeout_at};
use tokio_util::task::TaskTracker;

use super::body::{Cut, NodeBody};
use super::limits::Permit;
use super::routes::Route;
use super::stopwatch::Phases;
use super::stream::Streaming;
use crate::fleet::Fleet;
use crate::fleet::health::Failure;
use crate::fleet::stock::{Lease, NodeLink, Payload};

/// How long a node may take to have a sandbox ready, on top of the function's own time.
pub(crate) const START_ALLOWANCE: Duration = Duration::from_secs(60);

/// How long a client may take to send the body of a call.
pub(crate) const UPLOAD_DEADLINE: Duration = Duration::from_secs(120);

/// Connections to one node that a call is tried on.
const ATTEMPTS: usize = 4;

const ORDER_NAME: HeaderName = HeaderName::from_static(ORDER);
const DEPLOYMENT_NAME: HeaderName = HeaderName::from_static(DEPLOYMENT);
const INVOCATION_NAME: HeaderName = HeaderName::from_static(INVOCATION);
const FORM_NAME: HeaderName = HeaderName::from_static(FORM);
const ONCE_NAME: HeaderName = HeaderName::from_static(ONCE);
const GATE_US_NAME: HeaderName = HeaderName::from_static(GATE_US);
const AUTH_US_NAME: HeaderName = HeaderName::from_static(AUTH_US);

/// A call that was let in.
pub(crate) struct Invocation {
    pub(crate) route: Arc<Route>,
    pub(crate) parts: Parts,
    pub(crate) body: Payload,
    /// What the function sees as its path and query.
    pub(crate) target: Uri,
    /// [`common::protocol::FORM_HTTP`] or [`common::protocol::FORM_ENVELOPE`].
    pub(crate) form: &'static str,
    pub(crate) id: HeaderValue,
    /// Set where the call runs once, however often it comes.
    pub(crate) once: Option<Box<Digest>>,
    /// What the record says of the way here.
    pub(crate) so_far: Phases,
    pub(crate) permit: Permit,
    /// Set where the function is a server.
    pub(crate) streaming: Option<Streaming>,
}

type Sent = Result<Response<Incoming>, TrySendError<Request<Payload>>>;

/// Forwards a call; the answer is the node's, untouched.
///
/// # Errors
/// There is no connection, the client's body ended early, or the node went away.
pub(crate) async fn forward(
    fleet: &Fleet,
    tasks: &TaskTracker,
    mut link: Arc<NodeLink>,
    mut call: Invocation,
) -> Result<Response<NodeBody>, PublicError> {
    let streaming = call.streaming.take();
    let time = streaming.as_ref().map_or(call.route.timeout + START_ALLOWANCE, Streaming::until_head);
    let deadline = Instant::now() + time + UPLOAD_DEADLINE;
    if let Some(streaming) = &streaming {
        name_again(&mut call, streaming);
    }
    let patient = streaming.is_none();
    // What runs once has one home.
    let (mut attempts, mut may_move) = (0, call.once.is_none());
    let (mut request, permit, route) = order(call);
    let mut permit = Some(permit);
    loop {
        attempts += 1;
        let lease = if attempts > ATTEMPTS { None } else { fleet.connection(&link).await };
        let Some(mut lease) = lease else {
            let Some((other, seat)) = may_move.then(|| fleet.elsewhere(&route.spec, &link)).flatten() else {
                drop(permit);
                discard(request.into_body()).await;
                return Err(PublicError::new(Code::NoNode, "no node can take the call now: try again in a moment"));
            };
            if let Some(permit) = &mut permit {
                permit.sit(seat);
            }
            (link, attempts, may_move) = (other, 0, false);
            continue;
        };
        let answer = Box::pin(lease.sender.try_send_request(request));
        let flight =
            Flight { answer: Some(answer), lease: Some(lease), permit: permit.take(), deadline, patient, tasks };
        let Ok((sent, lease, kept)) = timeout_at(deadline, flight).await else {
            fleet.failed(&link, Failure::Lost);
            return Err(PublicError::new(Code::NodeLost, "the node did not answer in time; the call may have run"));
        };
        match sent {
            Ok(answer) => {
                match has_no_sandbox(&answer) {
                    false => link.succeeded(),
                    true => fleet.failed(&link, Failure::NoSandbox(route.spec.function)),
                }
                return arrived(answer, lease, kept, streaming, (tasks, &link));
            }
            Err(mut error) => {
                if let Some(unsent) = error.take_message() {
                    permit = kept;
                    request = unsent;
                    continue;
                }
                let error = explain(&error.into_error());
                if error.code == Code::NodeLost {
                    fleet.failed(&link, Failure::Lost);
                }
                return Err(error);
            }
        }
    }
}

/// Takes in what of a refused call's body is still on its way, so that the refusal reaches its client.
pub(super) async fn discard(body: Payload) {
    if let Either::Left(body) = body {
        body.discard().await;
    }
}

/// Whether the node could not begin to run the call, which its function's own 503 does not say.
fn has_no_sandbox(answer: &Response<Incoming>) -> bool {
    answer.status() == StatusCode::SERVICE_UNAVAILABLE
        && answer.headers().get(OUTCOME).is_some_and(|word| word == Outcome::NoSandbox.word())
}

/// The answer's head is here. A process has ended by then; a server's call goes on.
fn arrived(
    mut answer: Response<Incoming>,
    lease: Lease,
    permit: Option<Permit>,
    streaming: Option<Streaming>,
    (tasks, link): (&TaskTracker, &Arc<NodeLink>),
) -> Result<Response<NodeBody>, PublicError> {
    let switches = answer.status() == StatusCode::SWITCHING_PROTOCOLS;
    let Some(mut streaming) = streaming else {
        return if switches { Err(unasked()) } else { Ok(answer.map(|body| NodeBody::whole(body, lease, permit))) };
    };
    if switches {
        let client = streaming.upgrade.take().filter(|_| names_websocket(answer.headers())).ok_or_else(unasked)?;
        let node = hyper::upgrade::on(&mut answer);
        streaming.carry(tasks, client, node, permit, link);
        return Ok(answer.map(|body| NodeBody::new(body, lease, None)));
    }
    let watch = streaming.watch(permit);
    Ok(answer.map(|body| NodeBody::new(body, lease, Some(watch))))
}

/// The agent lets no such answer through.
fn unasked() -> PublicError {
    PublicError::new(Code::NodeLost, "the node went over to a protocol that nobody asked for")
}

/// Says on the link what the gate took off, because it was of the client's connection only.
fn name_again(call: &mut Invocation, streaming: &Streaming) {
    let is_unknown = matches!(&call.body, Either::Left(body) if body.is_of_unknown_length());
    if streaming.upgrade.is_some() {
        name_websocket(&mut call.parts.headers);
    } else if is_unknown && !call.parts.headers.contains_key(CONTENT_LENGTH) {
        // hyper alone would take a GET's body for none.
        call.parts.headers.insert(TRANSFER_ENCODING, HeaderValue::from_static("chunked"));
    }
}

fn order(call: Invocation) -> (Request<Payload>, Permit, Arc<Route>) {
    let Invocation { route, mut parts, body, target, form, id, once, so_far, permit, .. } = call;
    parts.uri = target;
    parts.version = Version::HTTP_11;
    parts.extensions.clear();
    parts.headers.insert(ORDER_NAME, HeaderValue::from_static(ORDER_INVOKE));
    parts.headers.insert(DEPLOYMENT_NAME, route.deployment.clone());
    parts.headers.insert(INVOCATION_NAME, id);
    parts.headers.insert(FORM_NAME, HeaderValue::from_static(form));
    if let Some(key) = once {
        let key = HeaderValue::try_from(key.to_string()).expect("a digest is a valid header value");
        parts.headers.insert(ONCE_NAME, key);
    }
    for (name, us) in [(GATE_US_NAME, so_far.gate), (AUTH_US_NAME, so_far.auth)] {
        if let Some(us) = us {
            parts.headers.insert(name, us.into());
        }
    }
    (Request::from_parts(parts, body), permit, route)
}

fn explain(error: &hyper::Error) -> PublicError {
    let mut cause = error.source();
    while let Some(inner) = cause {
        if let Some(cut) = inner.downcast_ref::<Cut>() {
            return cut.public();
        }
        cause = inner.source();
    }
    tracing::warn!(error = %Chain(error), "a node was lost during a call");
    PublicError::new(Code::NodeLost, "the node went away during the call, which may have run")
}

/// A call under way. When the client goes away in the middle, a process is still waited for: it runs to its end,
/// holds its place in the function's concurrency until then, and the connection is not wasted. A server is told at once,
/// by the connection's end.
struct Flight<'a> {
    answer: Option<Pin<Box<dyn Future<Output = Sent> + Send>>>,
    lease: Option<Lease>,
    permit: Option<Permit>,
    deadline: Instant,
    /// Whether the call is waited for when its client is gone.
    patient: bool,
    tasks: &'a TaskTracker,
}

impl Future for Flight<'_> {
    type Output = (Sent, Lease, Option<Permit>);

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let answer = self.answer.as_mut().expect("a finished flight is not polled again");
        let sent = std::task::ready!(answer.as_mut().poll(cx));
        self.answer = None;
        let lease = self.lease.take().expect("a flight has its lease until it is over");
        Poll::Ready((sent, lease, self.permit.take()))
    }
}

impl Drop for Flight<'_> {
    fn drop(&mut self) {
        let (Some(answer), Some(lease)) = (self.answer.take(), self.lease.take()) else { return };
        if !self.patient {
            return;
        }
        let (permit, deadline) = (self.permit.take(), self.deadline);
        // At the end of the runtime there is nobody to wait.
        let Ok(runtime) = tokio::runtime::Handle::try_current() else { return };
        let wait = async move {
            let finished = timeout_at(deadline, async {
                let Ok(answer) = answer.await else { return false };
                drop(permit);
                let mut body = answer.into_body();
                while let Some(frame) = body.frame().await {
                    if frame.is_err() {
                        return false;
                    }
                }
                true
            });
            if let Ok(true) = finished.await {
                lease.give_back();
            }
        };
        self.tasks.spawn_on(wait, &runtime);
    }
}
