//! A call of a server by its description: the request that the envelope describes is sent, and the answer's body
//! becomes the `result`. It runs to its end whether or not anybody waits, as under the file contract.

use std::sync::Arc;

use bytes::Bytes;
use common::error::{Code, PublicError};
use common::function::DeploymentSpec;
use common::invocation::Outcome;
use http::header::CONTENT_TYPE;
use http::{HeaderMap, HeaderValue, Request, Response};
use http_body_util::{BodyExt as _, Full, Limited};
use hyper::body::Incoming;
use serde_json::value::RawValue;

use super::story::Story;
use super::streamed::{Arrival, fail, mark, pace, refused, send, within};
use super::trouble::Trouble;
use super::{Invocations, Order, read_body, refusal, request, whole};
use crate::link::AnswerBody;

type Refused = (PublicError, Option<Outcome>);

/// Answers a call by its description.
pub(super) async fn answer(
    invocations: &Arc<Invocations>,
    order: &Order,
    spec: Arc<DeploymentSpec>,
    request: Request<Incoming>,
    arrival: Arrival,
) -> Response<AnswerBody> {
    let (head, body) = request.into_parts();
    let described = read_body(body, &invocations.parts.bodies).await;
    let described = described.and_then(|body| request::real_from_envelope(&head, &body, arrival.1));
    let answered = match described {
        Ok((request, info)) => {
            let story = Story::new(invocations, spec, order, info, arrival);
            let running = invocations.tasks.spawn(run(story, request));
            let failed = || PublicError::new(Code::Internal, "The node failed at this call; its log has the cause");
            running.await.unwrap_or_else(|_| Err((failed(), None)))
        }
        Err(error) => {
            invocations.parts.metrics.invocations.with_label_values(&[Outcome::BadRequest.word()]).inc();
            Err((error, Some(Outcome::BadRequest)))
        }
    };
    answered.unwrap_or_else(|(error, outcome)| refusal(&error, &order.id.to_string(), outcome)).map(whole)
}

async fn run(mut story: Story, request: Request<Bytes>) -> Result<Response<Bytes>, Refused> {
    story.enter().await.map_err(refused)?;
    let cap = story.invocations().parts.bodies.response_bytes();
    let pace = pace(story.spec());
    let request = request.map(|body| Full::new(body).map_err(|never| match never {}).boxed_unsync());
    let called = async {
        let Some(seat) = story.seat() else { return Err(Trouble::Lost) };
        let (response, connection) = send(seat, request).await?;
        let status = response.status();
        let too_large = || Trouble::BadAnswer(format!("it is larger than {} MiB", cap / (1024 * 1024)));
        let body = Limited::new(response.into_body(), cap)
            .collect()
            .await
            .map_err(|error| if error.is::<hyper::Error>() { Trouble::HungUp } else { too_large() })?;
        seat.keep(connection);
        Ok((status, body.to_bytes()))
    };
    match within(&pace, called).await {
        Ok((status, body)) => {
            story.answered(status);
            let mut headers = HeaderMap::from_iter([(CONTENT_TYPE, HeaderValue::from_static("application/json"))]);
            mark(&mut headers, &story.phases());
            story.succeed().await.map_err(|error| (error, None))?;
            let mut response = Response::new(result(&body));
            *response.headers_mut() = headers;
            Ok(response)
        }
        Err(trouble) => Err(fail(story, trouble).await),
    }
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
