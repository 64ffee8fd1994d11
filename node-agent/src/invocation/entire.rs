//! A call that is read whole, runs to its end whether or not anybody waits, and is answered whole. Under the file contract
//! every call is so; a server's is when it comes by its description (the answer's body becomes the `result`), and when its
//! answer is to be kept.

use std::sync::Arc;

use bytes::Bytes;
use common::function::{Contract, DeploymentSpec};
use http::header::{CONTENT_LENGTH, CONTENT_TYPE};
use http::{HeaderValue, Request, Response, request as http_request};
use http_body_util::{BodyExt as _, Full, Limited};
use serde_json::value::RawValue;

use super::answer::never_handed_over;
use super::bodies::{NoRoom, Room};
use super::story::Story;
use super::streamed::{Arrival, Refused, fail, fault, mark, pace, send, strip, within};
use super::trouble::Trouble;
use super::{Form, Invocations, Order, panicked, refusal, request};

/// A call whose request is here.
pub(super) struct Entire {
    pub(super) order: Order,
    pub(super) spec: Arc<DeploymentSpec>,
    pub(super) head: http_request::Parts,
    pub(super) body: Bytes,
    pub(super) room: Room,
    pub(super) arrival: Arrival,
}

/// Answers a call, by whichever contract.
pub(super) async fn answer(invocations: &Arc<Invocations>, call: Entire) -> Response<Bytes> {
    match call.spec.contract {
        Contract::File => invocations.run_by_files(call).await,
        Contract::Http { .. } => answer_by_server(invocations, call).await,
    }
}

async fn answer_by_server(invocations: &Arc<Invocations>, call: Entire) -> Response<Bytes> {
    let Entire { order, spec, head, body, room, arrival } = call;
    let (id, form) = (order.id, order.form);
    let described = match form {
        Form::Envelope => request::real_from_envelope(&head, &body, arrival.1),
        Form::Http => {
            let info = request::info(&head, arrival.1);
            Ok((as_it_is(head, body), info))
        }
    };
    let answered = match described {
        Ok((request, info)) => {
            let story = Story::new(invocations, spec, &order, info, arrival);
            let running = invocations.tasks.spawn(async move {
                let _room = room;
                run(story, request, form).await
            });
            running.await.unwrap_or_else(|_| Err((panicked(), None)))
        }
        Err(error) => return invocations.unreadable(&error, id),
    };
    answered.unwrap_or_else(|(error, outcome)| refusal(&error, &id.to_string(), outcome))
}

/// The client's own request.
fn as_it_is(mut head: http_request::Parts, body: Bytes) -> Request<Bytes> {
    strip(&mut head.headers);
    if !body.is_empty() {
        head.headers.insert(CONTENT_LENGTH, body.len().into());
    }
    head.extensions.clear();
    Request::from_parts(head, body)
}

async fn run(mut story: Story, request: Request<Bytes>, form: Form) -> Result<Response<Bytes>, Refused> {
    if let Err(verdict) = story.enter().await {
        let refusal = refusal(&verdict.public, &story.id().to_string(), Some(verdict.outcome));
        return Ok(never_handed_over(refusal));
    }
    let cap = story.invocations().parts.bodies.response_bytes();
    let pace = pace(story.spec());
    let mut answer_room = story.invocations().held.answer_room();
    let request = request.map(|body| Full::new(body).map_err(|never| match never {}).boxed_unsync());
    let called = async {
        let Some(seat) = story.seat() else { return Err(Trouble::Lost) };
        let (response, connection) = send(seat, request).await?;
        if let Some(reason) = fault(&response, false) {
            return Err(Trouble::BadAnswer(reason));
        }
        let too_large = || Trouble::BadAnswer(format!("it is larger than {} MiB", cap / (1024 * 1024)));
        let (head, body) = response.into_parts();
        // Nobody knows how much is to come, so this one does not wait for memory.
        let body = Limited::new(answer_room.counting(body), cap).collect().await.map_err(|error| {
            if let Some(full) = error.downcast_ref::<NoRoom>() {
                tracing::warn!("an answer was given up: {full}");
                return Trouble::Lost;
            }
            if error.is::<hyper::Error>() { Trouble::HungUp } else { too_large() }
        })?;
        seat.keep(connection);
        Ok((head, body.to_bytes()))
    };
    match within(&pace, called).await {
        Ok((mut head, body)) => {
            story.answered(head.status);
            let mut response = match form {
                Form::Http => {
                    head.extensions.clear();
                    strip(&mut head.headers);
                    Response::from_parts(head, body)
                }
                Form::Envelope => enveloped(&body),
            };
            mark(response.headers_mut(), &story.phases());
            story.succeed().await.map_err(|error| (error, None))?;
            Ok(response.map(|body| answer_room.around(body)))
        }
        Err(trouble) => Err(fail(story, trouble).await),
    }
}

fn enveloped(body: &[u8]) -> Response<Bytes> {
    let mut response = Response::new(result(body));
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    response
}

/// A body that is JSON stays what it is, any other becomes a string.
fn result(body: &[u8]) -> Bytes {
    let json = std::str::from_utf8(body).ok().and_then(|text| serde_json::from_str::<&RawValue>(text).ok());
    let text = json.map_or_else(|| string(body), |json| json.get().to_owned());
    format!(r#"{{"success":true,"result":{text}}}"#).into()
}

fn string(body: &[u8]) -> String {
    serde_json::to_string(&String::from_utf8_lossy(body)).expect("a string always serialises")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(body: &str, expected: &str) {
        assert_eq!(result(body.as_bytes()), format!(r#"{{"success":true,"result":{expected}}}"#), "{body}");
    }

    #[test]
    fn json_where_it_is_and_a_string_else() {
        check(r#"{"a": 1.50}"#, r#"{"a": 1.50}"#);
        check("null", "null");
        check("hello", r#""hello""#);
        check("", r#""""#);
        assert_eq!(result(&[0xff]), "{\"success\":true,\"result\":\"\u{fffd}\"}");
    }
}
