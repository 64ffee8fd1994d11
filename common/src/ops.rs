//! The ops listener: metrics for Prometheus and probes for whoever restarts us, and pages that a program brings beside
//! them. Never on the public port.

use std::convert::Infallible;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};

use bytes::Bytes;
use futures_util::FutureExt as _;
use futures_util::future::BoxFuture;
use http::header::{CONTENT_TYPE, HOST};
use http::{HeaderValue, Request, Response, StatusCode};
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

/// Pages beside ours.
pub trait Pages: Send + Sync {
    /// The answer to a request for `path` by somebody who knows this listener as `host`; `None` where there is no such
    /// page.
    fn answer(&self, path: &str, host: &str) -> Option<BoxFuture<'static, Response<Full<Bytes>>>>;
}

/// Where they will be: the listener is there before those who bring them.
#[derive(Clone, Default)]
pub struct More(Arc<OnceLock<Box<dyn Pages>>>);

impl More {
    /// From now on these are served, too.
    pub fn bring(&self, pages: impl Pages + 'static) {
        self.0.get_or_init(|| Box::new(pages));
    }

    /// The answer of those that were brought, if they have this page.
    #[must_use]
    pub fn answer(&self, path: &str, host: &str) -> Option<BoxFuture<'static, Response<Full<Bytes>>>> {
        self.0.get()?.answer(path, host)
    }
}

/// What is served of a program.
#[derive(Clone, Default)]
pub struct Shown {
    /// Its metrics.
    pub registry: Registry,
    /// Whether it is ready.
    pub readiness: Readiness,
    /// Pages of its own.
    pub more: More,
}

/// Serves `GET /metrics`, `/live`, `/ready`, and the pages of its own, until `stop`. A connection has ten seconds for a
/// request's head.
pub async fn serve(listener: TcpListener, shown: Shown, stop: CancellationToken) {
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
        let (shown, stop) = (shown.clone(), stop.clone());
        tasks.spawn(async move {
            let service = hyper::service::service_fn(move |request| {
                let answer = answer(&request, &shown.registry, &shown.readiness, &shown.more);
                answer.map(Ok::<_, Infallible>)
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

fn answer(
    request: &Request<Incoming>,
    registry: &Registry,
    readiness: &Readiness,
    more: &More,
) -> BoxFuture<'static, Response<Full<Bytes>>> {
    let path = request.uri().path();
    let own = match path {
        "/metrics" => match metrics(registry) {
            Ok(metrics) => text(StatusCode::OK, metrics),
            Err(error) => text(StatusCode::INTERNAL_SERVER_ERROR, error.to_string()),
        },
        "/live" => text(StatusCode::OK, "live\n"),
        "/ready" if readiness.get() => text(StatusCode::OK, "ready\n"),
        "/ready" => text(StatusCode::SERVICE_UNAVAILABLE, "not ready\n"),
        _ => {
            let host = request.headers().get(HOST).and_then(|host| host.to_str().ok()).unwrap_or_default();
            if let Some(answer) = more.answer(path, host) {
                return answer;
            }
            let places = "metrics are at /metrics, a gateway's nodes at /sd, probes at /live and /ready\n";
            text(StatusCode::NOT_FOUND, places)
        }
    };
    std::future::ready(own).boxed()
}

/// All metrics, as Prometheus reads them.
///
/// # Errors
/// One of them cannot be written.
pub fn metrics(registry: &Registry) -> Result<String, prometheus::Error> {
    TextEncoder::new().encode_to_string(&registry.gather())
}

/// An answer of the kind that Prometheus takes for metrics.
#[must_use]
pub fn text(status: StatusCode, text: impl Into<Bytes>) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(text.into()));
    *response.status_mut() = status;
    let kind = HeaderValue::from_static("text/plain; version=0.0.4; charset=utf-8");
    response.headers_mut().insert(CONTENT_TYPE, kind);
    response
}
