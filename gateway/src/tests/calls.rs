//! Calls, from the public port to the node and back.

use std::sync::atomic::Ordering;

use bytes::Bytes;
use common::ids::NodeId;
use common::labels::Labels;
use common::protocol::{AgentMessage, GatewayMessage, Hello, Kind, VERSION};
use futures_util::StreamExt as _;
use http_body_util::Full;
use serde_json::json;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use super::house::{House, PATIENCE, get, post, read, timing, until};
use super::node::{Node, dial, frames, say};

#[tokio::test]
async fn the_front_page_and_what_is_not_there() {
    let house = House::start(&[]).await;
    let home = house.ask(get("/", "")).await.expect(200, "");
    assert_eq!(home.json()["api"], "/api");
    for path in ["/nothing", "/f", "/f/x", "/f/x/y", "/metrics", "/archives/x", "/records"] {
        let refused = house.ask(get(path, "")).await.expect(404, "not_found");
        let phases: Vec<_> = timing(&refused.headers).into_iter().map(|(name, _)| name).collect();
        assert_eq!(phases, ["gate", "total"], "{path}");
    }
    house.ask(get("/api/nothing", "")).await.expect(404, "not_found");
    house.ask(get("/api/health", "")).await.expect(200, "");
    assert!(house.readiness.get());
    house.stopped().await;
}

#[tokio::test]
async fn http_in_and_out() {
    let (house, _node) = House::with_node(&[]).await;
    let (handle, token) = house.user("ann@example.com").await;
    house.deploy(&token, "hello", "{}").await;
    let mut request = post(&format!("/f/{handle}/hello/a/b?c=d%20e"), &token, "the body");
    request.headers_mut().insert("x-mine", "1".parse().unwrap());
    request.headers_mut().insert("x-forwarded-for", "1.1.1.1".parse().unwrap());
    request.headers_mut().insert("dartcloud-order", "build".parse().unwrap());
    let answer = house.ask(request).await.expect(200, "");
    let seen = answer.json();
    assert_eq!((&seen["method"], &seen["target"]), (&json!("POST"), &json!("/a/b?c=d%20e")));
    assert_eq!(seen["body"], "the body");
    let headers = &seen["headers"];
    assert_eq!((&headers["x-mine"], &headers["host"]), (&json!("1"), &json!("cloud.example")));
    assert_eq!(headers["x-forwarded-for"], "127.0.0.1");
    assert_eq!((&headers["dartcloud-order"], &headers["dartcloud-form"]), (&json!("invoke"), &json!("http")));
    assert_eq!(headers["dartcloud-invocation"], answer.headers["x-request-id"].to_str().unwrap());
    assert!(headers.get("authorization").is_none());
    assert_eq!(answer.headers["x-own"], "kept");
    assert!(answer.headers.keys().all(|name| !name.as_str().starts_with("dartcloud-")));
    assert!(answer.headers.get("service-worker-allowed").is_none(), "a browser would take it for the whole origin");
    assert!(headers["dartcloud-gate-us"].is_string() && headers["dartcloud-auth-us"].is_string(), "{headers}");
    let phases = timing(&answer.headers);
    let names: Vec<_> = phases.iter().map(|(name, _)| name.as_str()).collect();
    assert_eq!(names, ["gate", "auth", "queue", "fn", "link", "total"]);
    assert_eq!((phases[2].1, phases[3].1), (2, 1));
    // What the node had the call for is in no phase of the gateway's.
    assert_eq!(phases[0].1 + phases[1].1 + 4 + phases[4].1, phases[5].1, "{phases:?}");
    house.until_metric(r#"dartcloud_gateway_phase_seconds_count{phase="link"} 1"#).await;
    let bare = house.ask(get(&format!("/f/{handle}/hello"), &token)).await.expect(200, "");
    assert_eq!(bare.json()["target"], "/");
    let crashed = house.ask(get(&format!("/f/{handle}/hello/crash"), &token)).await;
    assert_eq!(crashed.status, 502);
    house.until_metric(r#"dartcloud_gateway_requests_total{kind="http",outcome="function"} 1"#).await;
    house.until_metric(r#"dartcloud_gateway_requests_total{kind="http",outcome="success"} 2"#).await;
    house.until_metric(r#"dartcloud_gateway_errors_total{code="function_crashed",fault="function"} 1"#).await;
    house.stopped().await;
}

#[tokio::test]
async fn the_envelope() {
    let (house, _node) = House::with_node(&[]).await;
    let (_, token) = house.user("ann@example.com").await;
    let id = house.deploy(&token, "hello", "{}").await;
    for key in [id.as_str(), "hello"] {
        let path = format!("/api/functions/{key}/invoke");
        let answer = house.ask(post(&path, &token, r#"{"body":1}"#)).await.expect(200, "").json();
        assert_eq!(answer["body"], r#"{"body":1}"#);
        assert_eq!(answer["headers"]["dartcloud-form"], "envelope");
        let refused = house.ask(get(&path, &token)).await.expect(405, "method_not_allowed");
        assert_eq!((&refused.headers["allow"], &refused.json()["success"]), (&"POST".parse().unwrap(), &json!(false)));
    }
    house.stopped().await;
}

#[tokio::test]
async fn who_may_call() {
    let (house, _node) = House::with_node(&[]).await;
    let (handle, token) = house.user("ann@example.com").await;
    let (_, other) = house.user("bob@example.com").await;
    let id = house.deploy(&token, "mine", "{}").await;
    house.deploy(&token, "open", r#"{"access":"public"}"#).await;
    let mine = format!("/f/{handle}/mine");
    let refused = house.ask(get(&mine, "")).await.expect(401, "unauthorized");
    assert_eq!(refused.headers["www-authenticate"], "Bearer");
    let phases: Vec<_> = timing(&refused.headers).into_iter().map(|(name, _)| name).collect();
    assert_eq!(phases, ["gate", "auth", "total"]);
    assert_eq!(refused.json()["success"], false);
    house.ask(get(&mine, "no.such.token")).await.expect(401, "unauthorized");
    house.ask(get(&mine, &other)).await.expect(404, "not_found");
    let invoke = format!("/api/functions/{id}/invoke");
    house.ask(post(&invoke, "", "{}")).await.expect(401, "unauthorized");
    house.ask(post(&invoke, &other, "{}")).await.expect(404, "not_found");
    house.ask(post("/api/functions/mine/invoke", &other, "{}")).await.expect(404, "not_found");
    house.ask(post("/api/functions/none/invoke", &token, "{}")).await.expect(404, "not_found");
    // A public function sees what its caller sent.
    let open = house.ask(get(&format!("/f/{handle}/open"), "its.own.token")).await.expect(200, "");
    assert_eq!(open.json()["headers"]["authorization"], "Bearer its.own.token");
    // But not what lets in to the platform.
    let astray = house.ask(get(&format!("/f/{handle}/open"), &other)).await.expect(200, "");
    assert!(astray.json()["headers"].get("authorization").is_none());
    house.stopped().await;
}

#[tokio::test]
async fn rates() {
    let house = House::start(&["--rate-limit-per-client", "3", "--rate-limit-login", "2"]).await;
    let login = || post("/api/auth/login", "", r#"{"email":"ann@example.com","password":"correct horse"}"#);
    house.ask(login()).await.expect(401, "bad_credentials");
    house.ask(post("/api/auth/logout", "", r#"{"refreshToken":"none"}"#)).await.expect(204, "");
    let refused = house.ask(login()).await.expect(429, "rate_limited");
    assert!(refused.headers["retry-after"].to_str().unwrap().parse::<u32>().unwrap() > 1);
    let mut limited = 0;
    for _ in 0..20 {
        let answer = house.ask(get("/api/health/live", "")).await;
        limited += usize::from(answer.status == 429);
    }
    assert!(limited > 0);
    house.stopped().await;
}

#[tokio::test]
async fn refusals_count() {
    for (request, status) in [
        ("GET /f/no/body HTTP/1.1\r\nHost: a\r\n\r\n", "404"),
        ("GET /api/functions/x/invoke HTTP/1.1\r\nHost: a\r\n\r\n", "405"),
        ("POST /api/functions/x/invoke HTTP/1.1\r\nHost: a\r\nAuthorization: Bearer x\r\n\r\n", "401"),
        ("GET /nothing HTTP/1.1\r\nHost: a\r\n\r\n", "404"),
        ("GET /%2e%2e HTTP/1.1\r\nHost: a\r\n\r\n", "400"),
    ] {
        let house = House::start(&["--rate-limit-per-client", "1"]).await;
        let mut statuses = Vec::new();
        for _ in 0..20 {
            statuses.push(house.raw(request.as_bytes()).await.split(' ').nth(1).unwrap().to_owned());
        }
        assert!(statuses.starts_with(&[status.into(), status.into()]), "{request}: {statuses:?}");
        assert!(statuses.contains(&"429".to_owned()), "{request}: {statuses:?}");
        house.stopped().await;
    }
}

#[tokio::test]
async fn concurrency_is_the_functions_own() {
    let (house, node) = House::with_node(&[]).await;
    let (handle, token) = house.user("ann@example.com").await;
    house.deploy(&token, "slow", r#"{"concurrency":2}"#).await;
    let path = format!("/f/{handle}/slow/hang");
    let (mut first, mut second) = (house.connect().await, house.connect().await);
    let calls =
        (tokio::spawn(first.send_request(get(&path, &token))), tokio::spawn(second.send_request(get(&path, &token))));
    until("two calls hang", || node.state.hanging.load(Ordering::Relaxed) == 2).await;
    let refused = house.ask(get(&path, &token)).await.expect(429, "concurrency_limited");
    assert_eq!(refused.headers["retry-after"], "1");
    // A client that goes away leaves its call running, and the call keeps its place.
    calls.0.abort();
    drop(first);
    house.until_metric(r#"dartcloud_gateway_requests_total{kind="http",outcome="gone"} 1"#).await;
    house.ask(get(&path, &token)).await.expect(429, "concurrency_limited");
    node.state.go.add_permits(2);
    let answered = read(calls.1.await.unwrap().unwrap()).await;
    assert_eq!(answered.status, 200);
    until("both calls ended", || node.state.finished.load(Ordering::Relaxed) == 2).await;
    let free = async { house.ask(get(&format!("/f/{handle}/slow"), &token)).await.status == 200 };
    assert!(free.await);
    house.stopped().await;
}

#[tokio::test]
async fn bodies_have_a_size() {
    let (house, _node) = House::with_node(&["--max-request-mb", "1"]).await;
    let (handle, token) = house.user("ann@example.com").await;
    house.deploy(&token, "hello", "{}").await;
    let path = format!("/f/{handle}/hello");
    let fits = house.ask(post(&path, &token, &"x".repeat(1024 * 1024))).await.expect(200, "");
    assert_eq!(fits.json()["body"].as_str().unwrap().len(), 1024 * 1024);
    house.ask(post(&path, &token, &"x".repeat(1024 * 1024 + 1))).await.expect(413, "too_large");
    // Without a length, the bytes are counted as they pass.
    let mut chunked = format!(
        "POST {path} HTTP/1.1\r\nHost: a\r\nAuthorization: Bearer {token}\r\nTransfer-Encoding: chunked\r\n\r\n"
    )
    .into_bytes();
    for _ in 0..20 {
        chunked.extend_from_slice(b"10000\r\n");
        chunked.extend_from_slice(&[b'x'; 0x10000]);
        chunked.extend_from_slice(b"\r\n");
    }
    chunked.extend_from_slice(b"0\r\n\r\n");
    assert!(house.raw(&chunked).await.starts_with("HTTP/1.1 413"));
    house.ask(get(&path, &token)).await.expect(200, "");
    house.stopped().await;
}

/// The head of a call with a body of `length` bytes.
fn head(path: &str, token: &str, length: usize) -> Vec<u8> {
    let head = format!(
        "POST {path} HTTP/1.1\r\nHost: a\r\nAuthorization: Bearer {token}\r\nContent-Length: {length}\r\n\
         Connection: close\r\n\r\n"
    );
    head.into_bytes()
}

#[tokio::test]
async fn who_sends_slowly_holds_no_place() {
    let (house, _node) = House::with_node(&[]).await;
    let (handle, token) = house.user("ann@example.com").await;
    house.deploy(&token, "hello", r#"{"concurrency":1}"#).await;
    let path = format!("/f/{handle}/hello");
    let mut slow = tokio::net::TcpStream::connect(house.address).await.unwrap();
    slow.write_all(&[head(&path, &token, 4), b"sl".to_vec()].concat()).await.unwrap();
    house.until_metric("dartcloud_gateway_requests_in_flight 1").await;
    house.ask(post(&path, &token, "quick")).await.expect(200, "");
    slow.write_all(b"ow").await.unwrap();
    assert_eq!(rest(&mut slow).await["body"], "slow");
    house.stopped().await;
}

#[tokio::test]
async fn the_room_for_bodies_has_an_end() {
    let (house, _node) = House::with_node(&["--max-request-mb", "1", "--request-buffer-mb", "1"]).await;
    let (handle, token) = house.user("ann@example.com").await;
    house.deploy(&token, "hello", "{}").await;
    let path = format!("/f/{handle}/hello");
    let length = 1024 * 1024;
    let mut slow = tokio::net::TcpStream::connect(house.address).await.unwrap();
    slow.write_all(&[head(&path, &token, length), vec![b'x'; length - 1]].concat()).await.unwrap();
    house.until_metric(&format!("dartcloud_gateway_request_buffer_bytes {}", length - 1 - 16 * 1024)).await;
    let refused = house.ask(post(&path, &token, &"x".repeat(length))).await.expect(503, "overloaded");
    assert_eq!(refused.headers["retry-after"], "1");
    house.ask(post(&path, &token, &"x".repeat(10_000))).await.expect(200, "");
    slow.write_all(b"x").await.unwrap();
    assert_eq!(rest(&mut slow).await["body"].as_str().unwrap().len(), length);
    house.until_metric("dartcloud_gateway_request_buffer_bytes 0").await;
    house.stopped().await;
}

#[tokio::test]
async fn a_get_may_have_a_body() {
    let (house, _node) = House::with_node(&[]).await;
    let (handle, token) = house.user("ann@example.com").await;
    house.deploy(&token, "hello", "{}").await;
    let mut stream = tokio::net::TcpStream::connect(house.address).await.unwrap();
    let head = format!("GET /f/{handle}/hello HTTP/1.1\r\nHost: a\r\nAuthorization: Bearer {token}\r\n");
    let body = "Transfer-Encoding: chunked\r\nConnection: close\r\n\r\n3\r\nabc\r\n2\r\nde\r\n0\r\n\r\n";
    stream.write_all((head + body).as_bytes()).await.unwrap();
    let seen = rest(&mut stream).await;
    assert_eq!((&seen["method"], &seen["body"]), (&json!("GET"), &json!("abcde")));
    assert_eq!(seen["headers"]["content-length"], "5");
    house.stopped().await;
}

/// The JSON of the last answer on a connection.
async fn rest(stream: &mut tokio::net::TcpStream) -> serde_json::Value {
    let mut answer = String::new();
    tokio::time::timeout(PATIENCE, stream.read_to_string(&mut answer)).await.unwrap().unwrap();
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    assert!(head.starts_with("HTTP/1.1 200"), "{answer}");
    serde_json::from_str(body).unwrap()
}

#[tokio::test]
async fn nodes_come_and_go() {
    let house = House::start(&[]).await;
    let (handle, token) = house.user("ann@example.com").await;
    let node = Node::join(&house.socket).await;
    house.until_nodes(1).await;
    house.deploy(&token, "hello", "{}").await;
    let path = format!("/f/{handle}/hello");
    house.ask(get(&path, &token)).await.expect(200, "");
    let lost = house.ask(get(&format!("{path}/die"), &token)).await.expect(502, "node_lost");
    assert_eq!(lost.json()["success"], false);
    // One lost connection is not a lost node.
    house.ask(get(&path, &token)).await.expect(200, "");
    node.cut.cancel();
    house.until_nodes(0).await;
    let refused = house.ask(get(&path, &token)).await.expect(503, "no_node");
    assert_eq!(refused.headers["retry-after"], "1");
    let _back = Node::join(&house.socket).await;
    house.until_nodes(1).await;
    house.ask(get(&path, &token)).await.expect(200, "");
    house.stopped().await;
}

#[tokio::test]
async fn more_calls_than_connections() {
    let (house, node) = House::with_node(&[]).await;
    let (handle, token) = house.user("ann@example.com").await;
    house.deploy(&token, "slow", r#"{"concurrency":30}"#).await;
    let path = format!("/f/{handle}/slow/hang");
    let mut calls = Vec::new();
    for _ in 0..20 {
        let mut sender = house.connect().await;
        let request = get(&path, &token);
        calls.push(tokio::spawn(async move { (sender.send_request(request).await, sender) }));
    }
    until("all calls hang", || node.state.hanging.load(Ordering::Relaxed) == 20).await;
    node.state.go.add_permits(20);
    for call in calls {
        assert_eq!(call.await.unwrap().0.unwrap().status(), 200);
    }
    let dialled = node.state.dialled.load(Ordering::Relaxed);
    assert!((20..=60).contains(&dialled), "{dialled} connections for 20 calls");
    house.stopped().await;
}

#[tokio::test]
async fn a_deleted_function_is_retired() {
    let (house, node) = House::with_node(&[]).await;
    let (handle, token) = house.user("ann@example.com").await;
    let id = house.deploy(&token, "hello", "{}").await;
    house
        .ask(super::house::call(http::Method::DELETE, &format!("/api/functions/{id}"), &token, ""))
        .await
        .expect(204, "");
    until("retired", || node.state.retired.lock().unwrap().len() == 1).await;
    house.ask(get(&format!("/f/{handle}/hello"), &token)).await.expect(404, "not_found");
    house.stopped().await;
}

#[tokio::test]
async fn agents_that_are_turned_away() {
    let house = House::start(&[]).await;
    let hello = |protocol, kind| Hello { protocol, node: NodeId::new(), kind, epoch: 0 };
    let mut old = frames(dial(&house.socket, &hello(VERSION + 1, Kind::Control)).await);
    let frame = old.next().await.unwrap().unwrap();
    let GatewayMessage::Refused { reason } = serde_json::from_slice(&frame).unwrap() else { panic!("{frame:?}") };
    assert!(reason.contains("bring both to the same version"), "{reason}");
    // A node that was away gets to know which of its deployments nobody wants.
    let stale: common::ids::DeploymentId = "0190a1b2-0000-7000-8000-000000000001".parse().unwrap();
    let mut back = frames(dial(&house.socket, &hello(VERSION, Kind::Control)).await);
    let register = AgentMessage::Register {
        name: "n".into(),
        max_connections: 1,
        deployments: vec![stale],
        labels: Labels::default(),
        learns_authorities: false,
    };
    assert!(say(&mut back, &register).await);
    let mut orders = Vec::new();
    for _ in 0..2 {
        orders.push(serde_json::from_slice::<GatewayMessage>(&back.next().await.unwrap().unwrap()).unwrap());
    }
    assert_eq!(
        orders,
        [GatewayMessage::Welcome { protocol: VERSION }, GatewayMessage::Retire { deployments: vec![stale] }]
    );
    // A hello that never ends is cut off.
    let mut endless = tokio::net::UnixStream::connect(&house.socket).await.unwrap();
    endless.write_all(&[b' '; 5000]).await.unwrap();
    let mut answer = Vec::new();
    assert!(matches!(endless.read_to_end(&mut answer).await, Ok(0) | Err(_)));
    house.stopped().await;
}

#[tokio::test]
async fn what_agents_ask() {
    let (house, node) = House::with_node(&[]).await;
    let (handle, token) = house.user("ann@example.com").await;
    house.deploy(&token, "hello", "{}").await;
    let seen = house.ask(get(&format!("/f/{handle}/hello"), &token)).await.expect(200, "").json();
    let deployment = seen["headers"]["dartcloud-deployment"].as_str().unwrap().to_owned();
    let stream = dial(&house.socket, &node.state.hello(Kind::Calls)).await;
    let io = hyper_util::rt::TokioIo::new(stream);
    let (mut sender, connection) = hyper::client::conn::http1::handshake(io).await.unwrap();
    tokio::spawn(connection);
    let mut ask = async |method: http::Method, path: String, body: &'static str| {
        let request = http::Request::builder().method(method).uri(path).header("host", "gateway");
        let request = request.body(Full::<Bytes>::from(body)).unwrap();
        sender.ready().await.unwrap();
        read(sender.send_request(request).await.unwrap()).await
    };
    use http::Method;
    let spec = ask(Method::GET, format!("/deployments/{deployment}"), "").await;
    let spec: common::function::DeploymentSpec = serde_json::from_str(&spec.text).unwrap();
    let archive = ask(Method::GET, format!("/archives/{}", spec.archive), "").await;
    assert_eq!((archive.status.as_u16(), archive.headers["content-length"].to_str().unwrap().is_empty()), (200, false));
    let none = common::digest::Digest::of(b"none");
    assert_eq!(ask(Method::GET, format!("/builds/{none}"), "").await.status, 404);
    assert_eq!(ask(Method::PUT, format!("/builds/{none}"), "packed").await.status, 201);
    assert_eq!(ask(Method::GET, format!("/builds/{none}"), "").await.text, "packed");
    assert_eq!(ask(Method::GET, format!("/deployments/{}", NodeId::new()), "").await.status, 404);
    assert_eq!(ask(Method::GET, "/archives/../x".into(), "").await.status, 404);
    assert_eq!(ask(Method::POST, "/records".into(), "[]").await.status, 204);
    assert_eq!(ask(Method::POST, "/records".into(), "{").await.status, 422);
    assert_eq!(ask(Method::POST, "/nothing".into(), "").await.status, 404);
    house.stopped().await;
}
