//! A call of a server: the request is streamed to the function over a connection of its own, and the answer streamed
//! back, bytes as they come. When the client goes away, so does the connection.

use std::error::Error as _;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use chrono::{DateTime, Utc};
use common::error::PublicError;
use common::function::DeploymentSpec;
use common::invocation::Outcome;
use common::phases::Phases;
use common::protocol::{OUTCOME, OWN_HEADER_PREFIX, TIMING};
use common::stream::{self, Pace, name_websocket, names_websocket};
use http::header::{CONNECTION, CONTENT_LENGTH, TRANSFER_ENCODING};
use http::{HeaderMap, HeaderName, HeaderValue, Request, Response, StatusCode, request};
use http_body_util::{BodyExt as _, Full};
use hyper::body::{Body as _, Incoming};
use hyper::upgrade::OnUpgrade;
use hyper_util::rt::TokioIo;

use super::entire::{self, Entire};
use super::pump::pumped;
use super::request::HOP_BY_HOP;
use super::story::Story;
use super::trouble::{Trouble, Verdict};
use super::{Form, Invocations, Order, phases, refusal, whole};
use crate::link::{AnswerBody, Hold};
use crate::server::{CallBody, Connection, Seat};

/// Largest answer that is read whole before it is handed on, so that it needs one record and not two.
const SMALL_BYTES: u64 = 16 * 1024;
/// Most header lines of an answer: the link has room for a few more of its own.
const MAX_ANSWER_HEADERS: usize = 90;

/// When a request arrived.
pub(super) type Arrival = (Instant, DateTime<Utc>);

/// Answers a call of a server.
pub(super) async fn answer(
    invocations: &Arc<Invocations>,
    order: Order,
    spec: Arc<DeploymentSpec>,
    mut request: Request<Incoming>,
    arrival: Arrival,
) -> Response<AnswerBody> {
    let id = order.id;
    if order.form == Form::Envelope {
        let (head, body) = request.into_parts();
        return match invocations.read(body).await {
            Ok((body, room)) => entire::answer(invocations, Entire { order, spec, head, body, room, arrival }).await,
            Err(error) => invocations.unreadable(&error, id),
        }
        .map(whole);
    }
    // The gate let one through and no other.
    let upgrade = names_websocket(request.headers()).then(|| hyper::upgrade::on(&mut request));
    let hold = request.extensions_mut().remove::<Hold>();
    let (head, body) = request.into_parts();
    let story = Story::new(invocations, spec, &order, super::request::info(&head, arrival.1), arrival);
    let request = for_function(head, body, upgrade.is_some());
    match serve(story, request, upgrade.zip(hold)).await {
        Ok(response) => response,
        Err((error, outcome)) => refusal(&error, &id.to_string(), outcome).map(whole),
    }
}

/// The error, and the outcome that is in the record.
pub(super) type Refused = (PublicError, Option<Outcome>);

async fn serve(
    mut story: Story,
    request: Request<CallBody>,
    upgrade: Option<(OnUpgrade, Hold)>,
) -> Result<Response<AnswerBody>, Refused> {
    story.enter().await.map_err(refused)?;
    let pace = pace(story.spec());
    let request = request.map(|body| paced(body, pace.clone()));
    let answered = match story.seat() {
        Some(seat) => within(&pace, send(seat, request)).await,
        None => Err(Trouble::Lost),
    };
    let (mut response, connection) = match answered {
        Ok(answered) => answered,
        Err(trouble) => return Err(fail(story, trouble).await),
    };
    let status = response.status();
    story.answered(status);
    let switches = status == StatusCode::SWITCHING_PROTOCOLS;
    if let Some(reason) = fault(&response, upgrade.is_some()) {
        return Err(fail(story, Trouble::BadAnswer(reason)).await);
    }
    strip(response.headers_mut());
    mark(response.headers_mut(), &story.phases());
    match upgrade.filter(|_| switches) {
        Some((client, hold)) => {
            story.begin().map_err(|error| (error, None))?;
            name_websocket(response.headers_mut());
            let server = hyper::upgrade::on(&mut response);
            let tasks = story.invocations().tasks.clone();
            tasks.spawn(tunnel(story, client, server, pace, hold));
            Ok(response.map(|_| whole(Bytes::new())))
        }
        None if response.body().size_hint().exact().is_some_and(|size| size <= SMALL_BYTES) => {
            small(story, response, connection, &pace).await
        }
        None => {
            story.begin().map_err(|error| (error, None))?;
            Ok(response.map(|body| pumped(story, body, connection, pace).boxed_unsync()))
        }
    }
}

/// An answer that is read whole, recorded, and then handed on.
async fn small(
    story: Story,
    response: Response<Incoming>,
    connection: Connection,
    pace: &Pace,
) -> Result<Response<AnswerBody>, Refused> {
    let (head, body) = response.into_parts();
    let read = within(pace, async { body.collect().await.map_err(|_| Trouble::HungUp) });
    match read.await {
        Ok(body) => {
            if let Some(seat) = story.seat() {
                seat.keep(connection);
            }
            story.succeed().await.map_err(|error| (error, None))?;
            Ok(Response::from_parts(head, whole(body.to_bytes())))
        }
        Err(trouble) => Err(fail(story, trouble).await),
    }
}

/// Carries bytes both ways until either side has enough.
async fn tunnel(story: Story, client: OnUpgrade, server: OnUpgrade, pace: Pace, hold: Hold) {
    let carried = async {
        let (client, server) = tokio::try_join!(client, server).ok()?;
        stream::tunnel(TokioIo::new(client), TokioIo::new(server), &pace).await.err()
    };
    let late = tokio::select! {
        late = carried => late,
        () = hold.cut.cancelled() => None,
    };
    match late {
        None => story.leave().await,
        Some(late) => drop(story.fail(Trouble::Late(late)).await),
    }
}

pub(super) fn pace(spec: &DeploymentSpec) -> Pace {
    let total = Duration::from_millis(spec.limits.timeout_ms.into());
    Pace::begin(total, spec.contract.idle_timeout_ms().map_or(total, |ms| Duration::from_millis(ms.into())))
}

/// Does `step`, unless the call is over time before.
pub(super) async fn within<T>(pace: &Pace, step: impl Future<Output = Result<T, Trouble>>) -> Result<T, Trouble> {
    tokio::select! {
        done = step => done,
        late = pace.over() => Err(Trouble::Late(late)),
    }
}

/// Ends a call that failed before anything left.
pub(super) async fn fail(story: Story, trouble: Trouble) -> Refused {
    // What broke may have broken because the server ended.
    let trouble = match (trouble, story.seat()) {
        (trouble @ (Trouble::HungUp | Trouble::Unreachable), Some(seat)) => {
            Trouble::of_end(seat.end_now().await.as_deref(), trouble)
        }
        (trouble, _) => trouble,
    };
    match story.fail(trouble).await {
        Ok(verdict) => refused(verdict),
        Err(error) => (error, None),
    }
}

pub(super) fn refused(verdict: Verdict) -> Refused {
    (verdict.public, Some(verdict.outcome))
}

/// Sends a request on a connection that is kept, or on a new one where that had closed meanwhile.
pub(super) async fn send(
    seat: &Seat,
    mut request: Request<CallBody>,
) -> Result<(Response<Incoming>, Connection), Trouble> {
    let mut new = false;
    loop {
        let connected = seat.connection(new).await;
        let mut connection = connected.map_err(|error| {
            tracing::debug!(%error, "a server takes no connection");
            Trouble::Unreachable
        })?;
        match connection.sender.try_send_request(request).await {
            Ok(response) => return Ok((response, connection)),
            Err(mut error) => match error.take_message() {
                Some(unsent) if !new => (request, new) = (unsent, true),
                _ => return Err(if of_client(error.error()) { Trouble::BrokenRequest } else { Trouble::HungUp }),
            },
        }
    }
}

/// Whether it was the client's body that ended early.
fn of_client(error: &hyper::Error) -> bool {
    let mut cause = error.source();
    while let Some(inner) = cause {
        if inner.is::<BrokenRequest>() {
            return true;
        }
        cause = inner.source();
    }
    false
}

#[derive(Debug, thiserror::Error)]
#[error("the client's request ended early")]
struct BrokenRequest(#[source] hyper::Error);

/// The client's request as the function sees it.
fn for_function(mut head: request::Parts, body: Incoming, upgrade: bool) -> Request<CallBody> {
    strip(&mut head.headers);
    if upgrade {
        name_websocket(&mut head.headers);
    } else if !body.is_end_stream() && !head.headers.contains_key(CONTENT_LENGTH) {
        head.headers.insert(TRANSFER_ENCODING, HeaderValue::from_static("chunked"));
    }
    head.extensions.clear();
    Request::from_parts(head, body.map_err(|error| BrokenRequest(error).into()).boxed_unsync())
}

/// `body`, each part of which is heard.
fn paced(body: CallBody, pace: Pace) -> CallBody {
    if body.is_end_stream() {
        return Full::default().map_err(|never| match never {}).boxed_unsync();
    }
    body.map_frame(move |frame| {
        pace.heard();
        frame
    })
    .boxed_unsync()
}

/// Why an answer cannot be handed on, if so.
pub(super) fn fault(response: &Response<Incoming>, upgrade: bool) -> Option<String> {
    if response.headers().len() > MAX_ANSWER_HEADERS {
        return Some(format!("it has more than {MAX_ANSWER_HEADERS} header lines"));
    }
    let switches = response.status() == StatusCode::SWITCHING_PROTOCOLS;
    (switches && !(upgrade && names_websocket(response.headers())))
        .then(|| "it goes over to another protocol, which nobody asked for".to_owned())
}

/// Removes what speaks of one connection only, and what is ours.
pub(super) fn strip(headers: &mut HeaderMap) {
    let named: Vec<HeaderName> = headers
        .get_all(CONNECTION)
        .iter()
        .flat_map(|value| value.to_str().unwrap_or_default().split(','))
        .filter_map(|option| option.trim().parse().ok())
        .collect();
    let ours = |name: &HeaderName| name.as_str().starts_with(OWN_HEADER_PREFIX);
    let gone = headers.keys().filter(|name| HOP_BY_HOP.contains(&name.as_str()) || ours(name));
    let gone: Vec<_> = gone.cloned().chain(named).filter(|name| *name != CONTENT_LENGTH).collect();
    for name in gone {
        headers.remove(name);
    }
}

/// Says to the gateway how it went so far.
pub(super) fn mark(headers: &mut HeaderMap, so_far: &Phases) {
    headers.insert(HeaderName::from_static(OUTCOME), HeaderValue::from_static(Outcome::Success.word()));
    if let Some(timing) = phases::header(so_far) {
        headers.insert(HeaderName::from_static(TIMING), timing);
    }
}
