//! The ops listener: metrics for Prometheus and probes for whoever restarts us. Never on the public port.

use std::convert::Infallible;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use bytes::Bytes;
use http::{Request, Response, StatusCode};
use http_body_util::Full;
use hyper::body::Incoming;
use hyper_util::rt::{TokioIo, TokioTimer};
use prometheus::{Registry, TextEncoder};
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

/// Whether the program is ready for work; shared by whoever knows and whoever asks.
#[derive(Clone, Debug, Default)]
pub struct Readiness(Arc<AtomicBool>);

impl Readiness {
    /// From now on `/ready` answers 200 (`true`) or 503 (`false`).
    pub fn set(&self, ready: bool) {
        self.0.store(ready, Ordering::Release);
    }

    /// What was last set; `false` at first.
    #[must_use]
    pub fn get(&self) -> bool {
        self.0.load(Ordering::Acquire)
    }
}

/// Serves `GET /metrics`, `/live` and `/ready` until `stop`. A connection has ten seconds for a request's head.
pub async fn serve(listener: TcpListener, registry: Registry, readiness: Readiness, stop: CancellationToken) {
    let tasks = TaskTracker::new();
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            () = stop.cancelled() => break,
        };
        let Ok((stream, _)) = accepted else {
            // Out of descriptors, most likely: give others the time to close some.
            tokio::time::sleep(std::time::Duration::from_millis(100)).await;
            continue;
        };
        let (registry, readiness, stop) = (registry.clone(), readiness.clone(), stop.clone());
        tasks.spawn(async move {
            let service = hyper::service::service_fn(move |request| {
                let answer = answer(&request, &registry, &readiness);
                async move { Ok::<_, Infallible>(answer) }
            });
            let connection = hyper::server::conn::http1::Builder::new()
                .timer(TokioTimer::new())
                .header_read_timeout(std::time::Duration::from_secs(10))
                .serve_connection(TokioIo::new(stream), service);
            tokio::select! {
                result = connection => if let Err(error) = result { tracing::debug!(%error, "ops connection") },
                () = stop.cancelled() => {}
            }
        });
    }
    tasks.close();
    tasks.wait().await;
}

fn answer(request: &Request<Incoming>, registry: &Registry, readiness: &Readiness) -> Response<Full<Bytes>> {
    match request.uri().path() {
        "/metrics" => match TextEncoder::new().encode_to_string(&registry.gather()) {
            Ok(text) => text_answer(StatusCode::OK, text),
            Err(error) => text_answer(StatusCode::INTERNAL_SERVER_ERROR, error.to_string()),
        },
        "/live" => text_answer(StatusCode::OK, "live\n".into()),
        "/ready" if readiness.get() => text_answer(StatusCode::OK, "ready\n".into()),
        "/ready" => text_answer(StatusCode::SERVICE_UNAVAILABLE, "not ready\n".into()),
        _ => text_answer(StatusCode::NOT_FOUND, "metrics are at /metrics, probes at /live and /ready\n".into()),
    }
}

fn text_answer(status: StatusCode, text: String) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(Bytes::from(text)));
    *response.status_mut() = status;
    let kind = http::HeaderValue::from_static("text/plain; version=0.0.4; charset=utf-8");
    response.headers_mut().insert(http::header::CONTENT_TYPE, kind);
    response
}
