//! A call that runs once, however often it comes: what an `Idempotency-Key` makes of it. The first one with its key runs to
//! its end, whoever waits for it, and its answer is kept before it leaves; a repeat gets that answer. Only what surely
//! did not run is forgotten.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use common::digest::Digest;
use common::error::{Chain, Code, PublicError};
use common::ids::InvocationId;
use common::invocation::Outcome;
use common::protocol::{OUTCOME, TIMING};
use http::{HeaderName, HeaderValue, Request, Response, StatusCode, request as http_request};
use hyper::body::Incoming;

use super::answer::{NeverHandedOver, ORIGINAL_REQUEST};
use super::entire::{self, Entire};
use super::streamed::Arrival;
use super::{Form, Invocations, Order, panicked, refusal, unknown};
use crate::answers::{Asked, Claim};

/// How much longer than the function's own time a repeat waits: for what the first one waits for.
const START_ALLOWANCE: Duration = Duration::from_secs(60);
/// On a repeat's answer, as others have it, too.
const IDEMPOTENT_REPLAYED: HeaderName = HeaderName::from_static("idempotent-replayed");

/// Answers a call with a key.
pub(super) async fn answer(
    invocations: &Arc<Invocations>,
    order: Order,
    key: Digest,
    request: Request<Incoming>,
    arrival: Arrival,
) -> Response<Bytes> {
    let (head, body) = request.into_parts();
    let id = order.id;
    let refuse = |error: &PublicError| refusal(error, &id.to_string(), None);
    let (body, room) = match invocations.read(body).await {
        Ok(read) => read,
        Err(error) => return invocations.unreadable(&error, id),
    };
    let spec = match invocations.parts.deployments.get(order.deployment).await {
        Ok(spec) => spec,
        Err(error) => return refuse(&unknown(&error)),
    };
    let asked = Asked { key, print: print(&head, order.form, &body), function: spec.function, id };
    let patience = Duration::from_millis(spec.limits.timeout_ms.into()) + START_ALLOWANCE;
    match invocations.parts.answers.claim(asked, patience).await {
        Ok(Claim::First(turn)) => {
            let call = Entire { order, spec, head, body, room, arrival };
            let own = Arc::clone(invocations);
            let running = invocations.tasks.spawn(async move {
                let response = entire::answer(&own, call).await;
                if may_have_run(&response) {
                    turn.keep(&response);
                } else {
                    turn.forget();
                }
                response
            });
            running.await.unwrap_or_else(|_| refuse(&panicked()))
        }
        Ok(Claim::Repeat(first, answer)) => {
            let mut room = invocations.held.answer_room();
            match room.fit(answer.as_ref().map_or(0, |answer| answer.body().len())) {
                Ok(()) => repeated(first, answer).map(|body| room.around(body)),
                // It can come once more.
                Err(full) => refuse(&full.public()),
            }
        }
        Ok(Claim::Reused) => refuse(&PublicError::new(
            Code::KeyReused,
            "This Idempotency-Key came with another request before: send each request with a key of its own",
        )),
        Ok(Claim::UnderWay) => refuse(&PublicError::new(
            Code::CallUnderWay,
            "The first call with this Idempotency-Key has not ended yet: try again",
        )),
        Err(error) => {
            tracing::error!(error = %Chain(&error), request_id = %id, "a key could not be looked up or written down");
            let sentence = "The node could not write down the Idempotency-Key, so nothing ran; its log has the cause";
            refuse(&PublicError::new(Code::Internal, sentence))
        }
    }
}

/// Tells a request from another one.
fn print(head: &http_request::Parts, form: Form, body: &[u8]) -> Digest {
    let form: &[u8] = match form {
        Form::Http => b"http",
        Form::Envelope => b"envelope",
    };
    let target = head.uri.path_and_query().map_or("", |target| target.as_str());
    Digest::of_parts(&[form, head.method.as_str().as_bytes(), target.as_bytes(), body])
}

/// Whether the function may have run for this answer.
fn may_have_run(answer: &Response<Bytes>) -> bool {
    if answer.extensions().get::<NeverHandedOver>().is_some() {
        return false;
    }
    let outcome = answer.headers().get(OUTCOME).and_then(|word| Outcome::from_word(word.to_str().ok()?));
    match outcome {
        Some(Outcome::BadRequest | Outcome::NoSandbox | Outcome::Unstartable) => false,
        Some(_) => true,
        // Without one the node refused the call itself, or failed at any point of it.
        None => answer.status() == StatusCode::INTERNAL_SERVER_ERROR,
    }
}

fn repeated(first: InvocationId, answer: Option<Response<Bytes>>) -> Response<Bytes> {
    let id = first.to_string();
    let mut response = answer.unwrap_or_else(|| {
        let sentence =
            "The first call with this Idempotency-Key may have run, but its answer is lost: it does not run again";
        refusal(&PublicError::new(Code::NodeLost, sentence), &id, None)
    });
    let headers = response.headers_mut();
    // What its time went into was told to the first.
    headers.remove(TIMING);
    headers.insert(IDEMPOTENT_REPLAYED, HeaderValue::from_static("true"));
    headers.insert(ORIGINAL_REQUEST, HeaderValue::try_from(id).expect("a UUID is a valid header value"));
    response
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::invocation::answer::never_handed_over;

    #[test]
    fn what_surely_did_not_run_is_forgotten() {
        let check = |status: u16, outcome: Option<Outcome>, ran: bool| {
            let mut answer = Response::builder().status(status);
            if let Some(outcome) = outcome {
                answer = answer.header(OUTCOME, outcome.word());
            }
            assert_eq!(may_have_run(&answer.body(Bytes::new()).unwrap()), ran, "{status} {outcome:?}");
        };
        check(200, Some(Outcome::Success), true);
        check(503, Some(Outcome::Success), true);
        check(502, Some(Outcome::Crashed), true);
        check(504, Some(Outcome::TimedOut), true);
        check(502, Some(Outcome::OutOfMemory), true);
        check(502, Some(Outcome::InvalidResult), true);
        check(503, Some(Outcome::NoSandbox), false);
        check(502, Some(Outcome::Unstartable), false);
        check(400, Some(Outcome::BadRequest), false);
        check(503, None, false);
        check(404, None, false);
        // Its record could not be written, after it had run.
        check(500, None, true);
        // Its program could not be started, or its server did not come to listen.
        let answer = Response::builder().status(502).header(OUTCOME, Outcome::Crashed.word()).body(Bytes::new());
        assert!(!may_have_run(&never_handed_over(answer.unwrap())));
    }

    #[test]
    fn prints_tell_requests_apart() {
        let print_of = |method: &str, uri: &str, form, body: &[u8]| {
            let (head, ()) = Request::builder().method(method).uri(uri).body(()).unwrap().into_parts();
            print(&head, form, body)
        };
        let same = print_of("POST", "/a?b=c", Form::Http, b"d");
        assert_eq!(print_of("POST", "/a?b=c", Form::Http, b"d"), same);
        let others = [
            print_of("PUT", "/a?b=c", Form::Http, b"d"),
            print_of("POST", "/a", Form::Http, b"d"),
            print_of("POST", "/a?b=d", Form::Http, b"d"),
            print_of("POST", "/a?b=c", Form::Envelope, b"d"),
            print_of("POST", "/a?b=c", Form::Http, b"e"),
            print_of("POST", "/a?b=c", Form::Http, b""),
        ];
        assert!(others.iter().all(|other| *other != same));
    }

    #[test]
    fn a_repeat_says_what_it_is() {
        let first = InvocationId::new();
        let kept = Response::builder().status(201).header(TIMING, "fn;dur=1").body(Bytes::from("b")).unwrap();
        for (answer, status) in [(Some(kept), 201), (None, 502)] {
            let repeat = repeated(first, answer);
            assert_eq!(repeat.status(), status);
            assert_eq!(
                (repeat.headers()["idempotent-replayed"].as_bytes(), repeat.headers().get(TIMING)),
                (&b"true"[..], None)
            );
            assert_eq!(repeat.headers()["original-request"], first.to_string());
        }
    }
}
