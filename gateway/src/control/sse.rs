//! Server-sent events, with a comment now and then so that nothing on the way takes a quiet stream for a dead one.

use std::convert::Infallible;
use std::pin::pin;
use std::time::Duration;

use axum::response::sse::{Event, Sse};
use axum::response::{IntoResponse, Response};
use futures_util::stream::{self, Stream, StreamExt as _};
use http::{HeaderName, HeaderValue};
use serde::Serialize;
use tokio::sync::mpsc;

/// Longest silence of a stream.
const KEEP_ALIVE: Duration = Duration::from_secs(10);

/// Whether an `Accept` header asks for events.
pub(crate) fn accepted(accept: Option<&HeaderValue>) -> bool {
    let kinds = accept.and_then(|value| value.to_str().ok()).unwrap_or_default();
    kinds.split(',').any(|kind| kind.split(';').next().unwrap_or_default().trim() == "text/event-stream")
}

/// An event whose data is JSON.
pub(crate) fn json(event: &'static str, value: &impl Serialize) -> Event {
    let text = serde_json::to_string(value).expect("our answers are plain structs with text keys");
    Event::default().event(event).data(text)
}

/// The response that streams `events`. They are made here, on the control runtime: the answer is polled on an edge thread,
/// where nobody asks the database.
pub(crate) fn answer(events: impl Stream<Item = Event> + Send + 'static) -> Response {
    let (tell, told) = mpsc::channel(1);
    tokio::spawn(async move {
        let mut events = pin!(events);
        loop {
            let event = tokio::select! {
                () = tell.closed() => return,
                event = events.next() => event,
            };
            let Some(event) = event else { return };
            if tell.send(event).await.is_err() {
                return;
            }
        }
    });
    let kept_alive = stream::unfold(told, |mut told| async {
        let event = match tokio::time::timeout(KEEP_ALIVE, told.recv()).await {
            Ok(event) => event?,
            Err(_) => Event::default().comment("still here"),
        };
        Some((Ok::<_, Infallible>(event), told))
    });
    let mut response = Sse::new(kept_alive).into_response();
    // nginx, where somebody puts it before us, holds answers back without this.
    response.headers_mut().insert(HeaderName::from_static("x-accel-buffering"), HeaderValue::from_static("no"));
    response
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(accept: &str, expected: bool) {
        assert_eq!(accepted(Some(&HeaderValue::from_str(accept).unwrap())), expected, "{accept:?}");
    }

    #[test]
    fn accept_headers() {
        check("text/event-stream", true);
        check("application/json, text/event-stream;q=0.9", true);
        check("*/*", false);
        check("application/json", false);
        check("", false);
        assert!(!accepted(None));
    }
}
