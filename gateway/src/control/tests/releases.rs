//! Deploys with a node that builds, or does not.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use common::protocol::BuildEvent;
use http::header::ACCEPT;
use tower::ServiceExt as _;

use super::deploys::{archive, form, python, upload};
use super::lanes::MAX_IN_LANE;
use super::{Answer, Api, delete, get, until};

fn one(token: &str, name: &str) -> http::Request<axum::body::Body> {
    upload(token, form(&[("name", name.as_bytes()), ("archive", &python())]))
}

fn log(line: &str) -> BuildEvent {
    BuildEvent::Log { line: line.into() }
}

fn version(answer: &Answer) -> u64 {
    answer.json()["version"].as_u64().unwrap()
}

#[tokio::test]
async fn first_and_again() {
    let api = Api::start().await;
    let node = api.node().await;
    let (_, token) = api.user("ada@example.com").await;
    let first = api.check(one(&token, "a"), 201, "").await.json();
    let expected = serde_json::json!({
        "id": first["id"], "name": "a", "version": 1, "deploymentId": first["deploymentId"], "status": "active",
        "isFirstDeployment": true, "runtime": "python", "url": "http://cloud.example:8080/f/ada/a",
        "createdAt": first["createdAt"], "buildMs": 12, "buildCached": false, "messages": [],
    });
    assert_eq!(first, expected);
    let order = node.orders().remove(0);
    assert_eq!((order.entrypoint.as_str(), order.version), ("main.py", 1));
    assert_eq!(order.deployment.to_string(), first["deploymentId"].as_str().unwrap());
    assert!(api.state.routes.now().serves(order.deployment));

    let settings = br#"{"timeout_ms": 86400000, "access": "public", "env": {"A": "b"}}"#;
    let body = form(&[("name", b"a"), ("archive", &python()), ("settings", settings)]);
    let second = api.check(upload(&token, body), 200, "over this platform's ceiling").await.json();
    assert_eq!(
        (&second["version"], &second["isFirstDeployment"], &second["id"]),
        (&2.into(), &false.into(), &first["id"])
    );
    let shown = api.check(get("/api/functions/a", &token), 200, "public").await.json();
    assert_eq!((&shown["version"], &shown["limits"]["timeoutMs"]), (&2.into(), &900_000.into()));
    until("version 1 is retired", || node.retired() == [order.deployment]).await;

    api.check(delete("/api/functions/a", &token), 204, "").await;
    until("version 2 is retired", || node.retired().iter().any(|id| *id != order.deployment)).await;
}

#[tokio::test]
async fn a_build_that_fails_leaves_the_old_version_serving() {
    let api = Api::start().await;
    let node = api.node().await;
    let (_, token) = api.user("ada@example.com").await;
    node.says(|_| {
        vec![log("compiling"), log("no such\0 package"), BuildEvent::Failed { reason: "exit code 1".into() }]
    });
    let answer = api.check(one(&token, "a"), 422, "build_failed").await.json();
    assert_eq!((&answer["error"], &answer["log"]), (&"exit code 1".into(), &"compiling\nno such package".into()));
    let shown = api.check(get("/api/functions/a", &token), 200, "\"failed\"").await.json();
    assert!(shown["version"].is_null() && shown["limits"].is_null(), "{shown}");

    node.says(|_| vec![BuildEvent::Built { build_ms: 0, cached: true }]);
    let second = api.check(one(&token, "a"), 200, "").await;
    assert_eq!((version(&second), &second.json()["buildCached"]), (2, &true.into()));

    node.says(|_| vec![BuildEvent::Failed { reason: "exit code 1".into() }]);
    api.check(one(&token, "a"), 422, "build_failed").await;
    assert_eq!(version(&api.check(get("/api/functions/a", &token), 200, "active").await), 2);
    assert!(api.state.routes.now().by_path("ada", "a").is_some_and(|route| route.spec.version == 2));
    assert!(node.retired().is_empty());
}

#[tokio::test]
async fn a_node_that_fails_leaves_nothing_half_made() {
    let api = Api::start().await;
    let node = api.node().await;
    let (_, token) = api.user("ada@example.com").await;
    node.says(|_| vec![log("one"), BuildEvent::Error { reason: "the Engine hangs".into() }]);
    let answer = api.check(one(&token, "a"), 503, "no_sandbox").await;
    assert!(!answer.text.contains("Engine") && answer.headers.contains_key("retry-after"));
    // The answer breaks off.
    node.says(|_| vec![log("one")]);
    api.check(one(&token, "a"), 503, "").await;
    api.check(get("/api/functions", &token), 200, r#"{"functions":[],"next":null}"#).await;
}

#[tokio::test]
async fn a_first_deploy_that_fails_takes_nothing_of_another_gateway_along() {
    let api = Api::start().await;
    let node = api.node().await;
    let (ada, token) = api.user("ada@example.com").await;
    node.hold().await;
    node.says(|_| vec![BuildEvent::Error { reason: "the Engine hangs".into() }]);
    let call = tokio::spawn(api.router.clone().oneshot(one(&token, "a")));
    until("the build is ordered", || node.orders().len() == 1).await;
    let serving = api.function(ada, "a").await;
    node.go_on();
    assert_eq!(call.await.unwrap().unwrap().status(), 503);
    assert_eq!(version(&api.check(get("/api/functions/a", &token), 200, "active").await), 2);
    assert_eq!(api.state.store.serving().await.unwrap(), [serving]);
}

#[tokio::test]
async fn the_log_as_it_comes() {
    let api = Api::start().await;
    let node = api.node().await;
    let (_, token) = api.user("ada@example.com").await;
    let stream = || {
        let mut request = one(&token, "a");
        request.headers_mut().insert(ACCEPT, "text/event-stream".parse().unwrap());
        request
    };
    let answer = api.call(stream()).await;
    assert_eq!(answer.status, 200);
    let events: Vec<&str> = answer.text.split_terminator("\n\n").collect();
    assert_eq!(events[0], "event: log\ndata: hello from the build");
    assert_eq!(events[1], "event: log\ndata: version 1 serves after 12 ms");
    assert!(events[2].starts_with("event: result\ndata: {") && events[2].contains("\"isFirstDeployment\":true"));
    assert_eq!(events.len(), 3);

    node.says(|_| vec![log("compiling"), BuildEvent::Failed { reason: "exit code 1".into() }]);
    let answer = api.call(stream()).await;
    let last = answer.text.split_terminator("\n\n").last().unwrap();
    let body = last.strip_prefix("event: error\ndata: ").unwrap();
    let body: serde_json::Value = serde_json::from_str(body).unwrap();
    assert_eq!((&body["code"], &body["log"]), (&"build_failed".into(), &"compiling".into()));
}

#[tokio::test]
async fn a_client_that_leaves_does_not_end_its_deploy() {
    let api = Api::start().await;
    let node = api.node().await;
    let (_, token) = api.user("ada@example.com").await;
    node.hold().await;
    let call = tokio::spawn(api.router.clone().oneshot(one(&token, "a")));
    until("the build is ordered", || node.orders().len() == 1).await;
    call.abort();
    assert!(call.await.unwrap_err().is_cancelled());
    node.go_on();
    until("it serves", || api.state.routes.now().by_path("ada", "a").is_some()).await;
}

#[tokio::test]
async fn deploys_of_one_function_take_turns() {
    let api = Api::start().await;
    let node = api.node().await;
    let (_, token) = api.user("ada@example.com").await;
    node.hold().await;
    let calls: Vec<_> = (0..MAX_IN_LANE).map(|_| tokio::spawn(api.router.clone().oneshot(one(&token, "a")))).collect();
    until("one build is ordered and the rest wait", || {
        node.orders().len() == 1 && api.state.deploys.lanes.taken() == MAX_IN_LANE
    })
    .await;
    api.check(one(&token, "a"), 409, "conflict").await;
    // Another function's deploy does not wait for these, unless it is of the same archive.
    let of_another = archive(&[("main.py", "print('another')")]);
    let other = upload(&token, form(&[("name", b"b"), ("archive", &of_another)]));
    let other = tokio::spawn(api.router.clone().oneshot(other));
    until("two builds are ordered", || node.orders().len() == 2).await;
    node.go_on();
    assert_eq!(other.await.unwrap().unwrap().status(), 201);
    let mut statuses = Vec::new();
    for call in calls {
        statuses.push(call.await.unwrap().unwrap().status().as_u16());
    }
    statuses.sort_unstable();
    assert_eq!(statuses, [200, 200, 200, 200, 201]);
    assert_eq!(version(&api.check(get("/api/functions/a", &token), 200, "").await), MAX_IN_LANE as u64);
}

#[tokio::test]
async fn nobody_deploys_in_all_places() {
    let api = Api::start().await;
    let node = api.node().await;
    let (_, token) = api.user("ada@example.com").await;
    let (_, other) = api.user("bob@example.com").await;
    node.hold().await;
    let mut calls = Vec::new();
    for n in 0..8 {
        calls.push(tokio::spawn(api.router.clone().oneshot(one(&token, &format!("f{n}")))));
        until("the upload is here", || api.state.deploys.lanes.taken() == n + 1).await;
    }
    api.check(one(&token, "more"), 429, "as many deploys under way").await;
    calls.push(tokio::spawn(api.router.clone().oneshot(one(&other, "his"))));
    until("another's upload is here", || api.state.deploys.lanes.taken() == 9).await;
    node.go_on();
    for call in calls {
        assert_eq!(call.await.unwrap().unwrap().status(), 201);
    }
}

#[tokio::test]
async fn deleted_while_it_is_built() {
    let api = Api::start().await;
    let node = api.node().await;
    let (_, token) = api.user("ada@example.com").await;
    node.hold().await;
    let call = tokio::spawn(api.router.clone().oneshot(one(&token, "a")));
    until("the build is ordered", || node.orders().len() == 1).await;
    api.check(get("/api/functions/a", &token), 200, "building").await;
    api.check(delete("/api/functions/a", &token), 204, "").await;
    node.go_on();
    assert_eq!(call.await.unwrap().unwrap().status(), 409);
    api.check(get("/api/functions/a", &token), 404, "not_found").await;
}

#[tokio::test]
async fn a_single_top_folder_is_stripped() {
    let api = Api::start().await;
    let node = api.node().await;
    let (_, token) = api.user("ada@example.com").await;
    let files = archive(&[("hello/main.py", ""), ("hello/dartcloud.toml", "memory_mb = 64\n[env]\nA = 'b'")]);
    api.check(upload(&token, form(&[("name", b"a"), ("archive", &files)])), 201, "").await;
    let order = node.orders().remove(0);
    assert_eq!((order.archive_root.as_deref(), order.limits.memory_mb), (Some("hello"), 64));
    assert_eq!(order.env["A"], "b");
}

#[tokio::test]
async fn what_a_node_cannot_build_another_one_does_once() {
    let check = async |says: fn(usize) -> BuildEvent, status: u16, part: &str, asked: usize| {
        let api = Api::start().await;
        let nodes = [api.node().await, api.node().await];
        let (_, token) = api.user("ada@example.com").await;
        let count = Arc::new(AtomicUsize::new(0));
        for node in &nodes {
            let count = Arc::clone(&count);
            node.says(move |_| vec![says(count.fetch_add(1, Ordering::Relaxed))]);
        }
        api.check(one(&token, "a"), status, part).await;
        let orders = nodes.each_ref().map(|node| node.orders().len());
        assert_eq!(orders.iter().sum::<usize>(), asked, "{orders:?}");
        assert!(orders.iter().all(|orders| *orders <= 1), "asked twice: {orders:?}");
    };
    fn full() -> BuildEvent {
        BuildEvent::Error { reason: "the disk is full".into() }
    }
    let built = |asked| if asked == 0 { full() } else { BuildEvent::Built { build_ms: 1, cached: false } };
    check(built, 201, "active", 2).await;
    check(|_| full(), 503, "no_sandbox", 2).await;
    check(|_| BuildEvent::Failed { reason: "it does not compile".into() }, 422, "it does not compile", 1).await;
}
