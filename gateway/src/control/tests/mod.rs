//! The routes, called as the edge calls them, on a real store in a directory of their own.

mod accounts;
mod artifacts;
mod deploys;
mod functions;
mod node;
mod releases;

use std::path::Path;
use std::sync::Arc;

use axum::body::Body;
use clap::Parser as _;
use common::ids::{SessionId, UserId};
use common::settings::MIB;
use http::header::{AUTHORIZATION, CONTENT_TYPE};
use http::{HeaderMap, Method, Request, StatusCode};
use http_body_util::BodyExt as _;
use serde_json::Value;
use store::StoreArgs;
use tokio::runtime::Handle;
use tokio_util::task::AbortOnDropHandle;
use tower::ServiceExt as _;

use super::*;
use crate::config::Secrets;
use crate::feed::Feed;
use crate::fleet::calls::Calls;
use crate::fleet::link::Link;
use crate::fleet::reception::Reception;
use node::Node;

/// The link's socket, in the directory.
const SOCKET: &str = "link.sock";

/// The largest archive here, in MiB.
const MAX_ARCHIVE_MB: u32 = 1;

/// A control API, at first without a node.
struct Api {
    router: Router,
    state: Arc<State>,
    directory: tempfile::TempDir,
    _link: AbortOnDropHandle<()>,
}

/// An answer, read to its end.
struct Answer {
    status: StatusCode,
    headers: HeaderMap,
    text: String,
}

#[derive(clap::Parser)]
struct Settings {
    #[command(flatten)]
    control: ControlArgs,
    #[command(flatten)]
    ceilings: Ceilings,
}

impl Api {
    async fn start() -> Self {
        Self::start_with(&[]).await
    }

    /// With these flags.
    async fn start_with(flags: &[&str]) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let settings = Settings::parse_from(["test"].iter().chain(flags));
        let registry = Registry::new();
        let store = store::open(&StoreArgs::default(), directory.path()).await.unwrap();
        let artifacts = Artifacts::open(directory.path().join("artifacts")).unwrap();
        let (routes, sessions) = (Arc::new(Routes::new()), Arc::<EndedSessions>::default());
        let fleet = Fleet::new(Handle::current(), Arc::new(crate::metrics::Metrics::register(&registry).unwrap()));
        let link = Link::bind(&directory.path().join(SOCKET)).unwrap();
        let runtimes = Arc::new(Runtimes::load(None).unwrap());
        let calls = Calls {
            store: Arc::clone(&store),
            artifacts: artifacts.clone(),
            routes: Arc::clone(&routes),
            fleet: fleet.clone(),
            runtimes: Arc::clone(&runtimes),
            enrolment: None,
        };
        let reception = Arc::new(Reception::new(fleet.clone(), Arc::new(calls)));
        let link = tokio::spawn(link.run(reception, CancellationToken::new()));
        let stop = CancellationToken::new();
        let secrets = Secrets { current: "a secret of tests, long enough for HS256".to_owned(), previous: None };
        let parts = Parts {
            gateway: GatewayId::new(),
            store,
            artifacts,
            runtimes,
            ceilings: settings.ceilings,
            caps: Caps { max_archive_mb: MAX_ARCHIVE_MB, ..Caps::default() },
            identity: Arc::new(Identity::new(&secrets, Arc::clone(&sessions))),
            fleet,
            enrolment: None,
            routes,
            sessions,
            tasks: TaskTracker::new(),
            close: stop.child_token(),
            stop,
        };
        let state = State::start(settings.control, parts, &registry).unwrap();
        Self { router: router(Arc::clone(&state)), state, directory, _link: AbortOnDropHandle::new(link) }
    }

    /// Who keeps its pictures level with the database.
    fn feed(&self) -> Feed {
        let State { routes, sessions, fleet, store, .. } = &*self.state;
        let metrics = crate::metrics::Metrics::register(&Registry::new()).unwrap();
        Feed::new(routes, sessions, fleet, None, store, &metrics)
    }

    async fn call(&self, request: Request<Body>) -> Answer {
        let response = self.router.clone().oneshot(request).await.unwrap();
        let (parts, body) = response.into_parts();
        let bytes = body.collect().await.unwrap().to_bytes();
        let text = String::from_utf8(bytes.to_vec()).unwrap();
        Answer { status: parts.status, headers: parts.headers, text }
    }

    /// Calls, and expects a status and a part of the answer's text.
    async fn check(&self, request: Request<Body>, status: u16, part: &str) -> Answer {
        let what = format!("{} {}", request.method(), request.uri());
        let answer = self.call(request).await;
        assert_eq!(answer.status.as_u16(), status, "{what}: {}", answer.text);
        assert!(answer.text.contains(part), "{what}: {} has no {part}", answer.text);
        if status >= 400 {
            let body = answer.json();
            assert!(body["error"].as_str().is_some_and(|sentence| sentence.len() > 5), "{body}");
            assert!(body["code"].is_string() && body["request_id"].is_string(), "{body}");
        }
        answer
    }

    /// A user and an access token of his.
    async fn user(&self, email: &str) -> (UserId, String) {
        let body = format!(r#"{{"email":"{email}","password":"correct horse"}}"#);
        let answer = self.check(json("/api/auth/register", &body), 201, "handle").await;
        let id: UserId = answer.json()["id"].as_str().unwrap().parse().unwrap();
        let token = self.check(json("/api/auth/login", &body), 200, "accessToken").await;
        (id, token.json()["accessToken"].as_str().unwrap().to_owned())
    }

    /// One more node that has joined.
    async fn node(&self) -> Node {
        let before = self.state.fleet.nodes().iter().len();
        let node = Node::dial(&self.directory.path().join(SOCKET));
        until("the node has joined", || self.state.fleet.nodes().iter().len() > before).await;
        node
    }

    /// Files in a folder of the artifact store.
    fn files(&self, folder: &str) -> usize {
        fn count(path: &Path) -> usize {
            let Ok(entries) = std::fs::read_dir(path) else { return 0 };
            entries.map(|entry| entry.unwrap().path()).map(|path| if path.is_dir() { count(&path) } else { 1 }).sum()
        }
        count(&self.directory.path().join("artifacts").join(folder))
    }
}

impl Answer {
    fn json(&self) -> Value {
        serde_json::from_str(&self.text).unwrap_or_else(|error| panic!("{error}: {}", self.text))
    }
}

/// Waits until `done`.
async fn until(what: &str, done: impl Fn() -> bool) {
    let waited = async {
        while !done() {
            tokio::time::sleep(std::time::Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(std::time::Duration::from_secs(20), waited).await.unwrap_or_else(|_| panic!("never: {what}"));
}

fn request(method: Method, path: &str, token: &str) -> Request<Body> {
    let request = Request::builder().method(method).uri(path).header("host", "cloud.example:8080");
    let request = if token.is_empty() { request } else { request.header(AUTHORIZATION, format!("Bearer {token}")) };
    request.body(Body::empty()).unwrap()
}

fn get(path: &str, token: &str) -> Request<Body> {
    request(Method::GET, path, token)
}

fn delete(path: &str, token: &str) -> Request<Body> {
    request(Method::DELETE, path, token)
}

/// A POST of JSON.
fn json(path: &str, body: &str) -> Request<Body> {
    let mut request = request(Method::POST, path, "").map(|_| Body::from(body.to_owned()));
    request.headers_mut().insert(CONTENT_TYPE, "application/json".parse().unwrap());
    request
}

#[tokio::test]
async fn what_no_route_takes() {
    let api = Api::start().await;
    api.check(get("/api/nothing", ""), 404, "not_found").await;
    api.check(get("/", ""), 404, "/ was not found").await;
    let answer = api.check(request(Method::DELETE, "/api/auth/login", ""), 405, "method_not_allowed").await;
    assert_eq!(answer.headers["allow"], "POST");
    api.check(request(Method::PATCH, "/api/functions/deploy", ""), 405, "PATCH").await;
    let mut marked = get("/api/nothing", "");
    let id = common::ids::InvocationId::new();
    marked.extensions_mut().insert(crate::edge::RequestId(id));
    assert_eq!(api.check(marked, 404, "").await.json()["request_id"], id.to_string());
}

#[tokio::test]
async fn health_without_a_node() {
    let api = Api::start().await;
    let answer = api.check(get("/api/health", ""), 200, "").await.json();
    assert_eq!(
        answer,
        serde_json::json!({"status": "degraded", "parts": {"store": "ok", "artifacts": "ok", "node": "none"}})
    );
    api.check(get("/api/health/live", ""), 200, "live").await;
    api.check(get("/api/health/ready", ""), 200, "ready").await;
    api.state.stop.cancel();
    let answer = api.call(get("/api/health/ready", "")).await;
    assert_eq!((answer.status.as_u16(), answer.text.as_str()), (503, r#"{"status":"not ready"}"#));
    api.check(get("/api/health/live", ""), 200, "live").await;
}

#[tokio::test]
async fn who_needs_a_token() {
    let api = Api::start().await;
    for path in ["/api/auth/me", "/api/functions", "/api/functions/x", "/api/functions/x/logs"] {
        let answer = api.check(get(path, ""), 401, "Authorization: Bearer").await;
        assert_eq!(answer.headers["www-authenticate"], "Bearer");
        api.check(get(path, "no.such.token"), 401, "log in again").await;
    }
    api.check(delete("/api/functions/x", ""), 401, "unauthorized").await;
    api.check(request(Method::POST, "/api/functions/deploy", ""), 401, "unauthorized").await;
    let expired = api.state.identity.issue(UserId::new(), SessionId::new(), std::time::Duration::ZERO);
    // Seconds that clocks may differ by are given; the identity's own tests have what is beyond.
    api.check(get("/api/auth/me", &expired), 401, "the account behind this token is gone").await;
    let large = "x".repeat(MIB);
    api.check(get("/api/auth/me", &large), 401, "not valid").await;
}
