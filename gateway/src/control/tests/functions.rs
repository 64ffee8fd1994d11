//! Listing, showing, deleting, and the records.

use std::sync::Arc;

use common::base64;
use common::digest::Digest;
use common::function::{Access, Limits};
use common::ids::{DeploymentId, FunctionId, InvocationId, NodeId, UserId};
use common::invocation::{ContainerLogs, Logs, Outcome, Record, RequestInfo};
use common::phases::Phases;
use futures_util::StreamExt as _;
use serde_json::{Value, json};
use store::{Function, NewDeployment};
use tower::ServiceExt as _;

use super::{Api, delete, get, until};

impl Api {
    /// A function that serves, as if a node had built it.
    pub(super) async fn function(&self, owner: UserId, name: &str) -> Function {
        let new = NewDeployment {
            id: DeploymentId::new(),
            gateway: self.state.gateway,
            function_if_new: FunctionId::new(),
            owner,
            name: name.parse().unwrap(),
            runtime: "python".parse().unwrap(),
            entrypoint: "main.py".into(),
            archive: Digest::of(b"archive"),
            archive_root: None,
            access: Access::Public,
            limits: Limits { timeout_ms: 5000, memory_mb: 128, concurrency: 10, min_warm: 2 },
            env: Default::default(),
            contract: common::function::Contract::File,
            egress: false,
            stale_while_cold_ms: 0,
            node_selector: common::labels::Labels::NONE,
        };
        let id = self.state.store.create_deployment(new).await.unwrap().spec.deployment;
        self.state.store.activate_deployment(id, 7).await.unwrap()
    }

    async fn record(&self, function: &Function, outcome: Outcome) -> InvocationId {
        let failed = outcome != Outcome::Success;
        let record = Record {
            id: InvocationId::new(),
            function: function.id,
            deployment: function.active.as_ref().unwrap().spec.deployment,
            node: NodeId::new(),
            outcome,
            duration_ms: 12,
            error: failed.then(|| base64::encode("it broke")),
            logs: Logs {
                container: Some(ContainerLogs { stdout: "hello".into(), exit_code: 0, ..Default::default() }),
                ..Default::default()
            },
            request_info: RequestInfo { method: "POST".into(), path: "/".into(), ..Default::default() },
            result: (!failed).then(|| base64::encode("1")),
            cold: false,
            peak_memory_bytes: 1024,
            created_at: chrono::Utc::now(),
            phases: Phases { fn_us: Some(1500), ..Phases::default() },
        };
        let id = record.id;
        self.state.store.insert_records(&[record]).await.unwrap();
        id
    }
}

fn names(page: &Value) -> Vec<&str> {
    page["functions"].as_array().unwrap().iter().map(|function| function["name"].as_str().unwrap()).collect()
}

fn ids(page: &Value) -> Vec<&str> {
    page["logs"].as_array().unwrap().iter().map(|entry| entry["id"].as_str().unwrap()).collect()
}

#[tokio::test]
async fn list_and_get() {
    let api = Api::start().await;
    let (ada, token) = api.user("ada@example.com").await;
    let (_, other) = api.user("bob@example.com").await;
    assert_eq!(api.check(get("/api/functions", &token), 200, "").await.json(), json!({"functions": [], "next": null}));
    for name in ["c", "a", "b"] {
        api.function(ada, name).await;
    }
    let all = api.check(get("/api/functions", &token), 200, "").await.json();
    assert_eq!((names(&all), &all["next"]), (vec!["a", "b", "c"], &Value::Null));
    let page = api.check(get("/api/functions?limit=2", &token), 200, "").await.json();
    assert_eq!((names(&page), &page["next"]), (vec!["a", "b"], &json!("b")));
    let rest = api.check(get("/api/functions?limit=2&after=b", &token), 200, "").await.json();
    assert_eq!((names(&rest), &rest["next"]), (vec!["c"], &Value::Null));
    assert!(names(&api.check(get("/api/functions", &other), 200, "").await.json()).is_empty());

    let one = api.check(get("/api/functions/a", &token), 200, "").await.json();
    let id = one["id"].as_str().unwrap();
    let expected = json!({
        "id": id, "name": "a", "status": "active", "version": 1, "runtime": "python", "contract": "file",
        "access": "public", "url": "http://cloud.example:8080/f/ada/a",
        "limits": {"timeoutMs": 5000, "memoryMb": 128, "concurrency": 10, "minWarm": 2},
        "createdAt": one["createdAt"], "updatedAt": one["updatedAt"],
    });
    assert_eq!(one, expected);
    assert_eq!(api.check(get(&format!("/api/functions/{id}"), &token), 200, "").await.json(), expected);
    let long = "x".repeat(500);
    for key in ["nothing", "%00", "%ff", "A", "..", &long, &FunctionId::new().to_string()] {
        api.check(get(&format!("/api/functions/{key}"), &token), 404, "not_found").await;
    }
    for path in [format!("/api/functions/{id}"), "/api/functions/a".into(), "/api/functions/a/logs".into()] {
        api.check(get(&path, &other), 404, "not_found").await;
    }
    for query in ["limit=0", "limit=1001", "limit=x", "limit=", "limit=-1", "after=A", "color=red", "%ff=1"] {
        api.check(get(&format!("/api/functions?{query}"), &token), 422, "the parameter").await;
    }
}

#[tokio::test]
async fn a_public_url_of_its_own() {
    let api = Api::start_with(&["--public-url", "https://fn.example.com/"]).await;
    let (ada, token) = api.user("ada@example.com").await;
    api.function(ada, "a").await;
    api.check(get("/api/functions/a", &token), 200, "\"https://fn.example.com/f/ada/a\"").await;
}

#[tokio::test]
async fn delete_what_is_ours() {
    let api = Api::start().await;
    let (ada, token) = api.user("ada@example.com").await;
    let (_, other) = api.user("bob@example.com").await;
    let function = api.function(ada, "a").await;
    api.state.routes.reload(api.state.store.as_ref()).await.unwrap();
    assert!(api.state.routes.now().by_path("ada", "a").is_some());
    api.check(delete("/api/functions/a", &other), 404, "not_found").await;
    api.check(delete(&format!("/api/functions/{}", function.id), &token), 204, "").await;
    assert!(api.state.routes.now().by_path("ada", "a").is_none());
    api.check(delete("/api/functions/a", &token), 404, "not_found").await;
    api.check(get("/api/functions/a", &token), 404, "not_found").await;
}

#[tokio::test]
async fn what_is_deleted_is_emptied_by_the_housekeeping() {
    let api = Api::start().await;
    let (ada, token) = api.user("ada@example.com").await;
    // One that a gateway deleted that is gone by now, and one that is deleted while this one is at it.
    for name in ["a", "b"] {
        let function = api.function(ada, name).await;
        api.record(&function, Outcome::Success).await;
    }
    let left = api.function(ada, "a").await.id;
    api.state.store.delete_function(ada, left).await.unwrap();
    let housekeeping = tokio::spawn(super::housekeeping::run(Arc::clone(&api.state)));
    let versions = async || api.state.store.sources(None, 9).await.unwrap().len();
    let within = async |versions_left: usize| {
        let emptied = async { while versions().await > versions_left {} };
        tokio::time::timeout(std::time::Duration::from_secs(20), emptied).await.unwrap();
    };
    within(1).await;
    api.check(delete("/api/functions/b", &token), 204, "").await;
    within(0).await;
    api.state.stop.cancel();
    tokio::time::timeout(std::time::Duration::from_secs(20), housekeeping).await.unwrap().unwrap();
}

#[tokio::test]
async fn a_client_that_leaves_does_not_end_its_deletion() {
    let api = Api::start().await;
    let (ada, token) = api.user("ada@example.com").await;
    let function = api.function(ada, "a").await;
    api.state.routes.reload(api.state.store.as_ref()).await.unwrap();
    let held = api.state.routes.hold().await;
    let call = tokio::spawn(api.router.clone().oneshot(delete("/api/functions/a", &token)));
    let deleted = async { while api.state.store.function(ada, "a").await.unwrap().is_some() {} };
    tokio::time::timeout(std::time::Duration::from_secs(20), deleted).await.unwrap();
    call.abort();
    assert!(call.await.unwrap_err().is_cancelled());
    assert!(api.state.routes.now().by_path("ada", "a").is_some(), "the route is still to go");
    drop(held);
    until("its route is gone", || api.state.routes.now().by_path("ada", "a").is_none()).await;
    api.check(delete(&format!("/api/functions/{}", function.id), &token), 404, "not_found").await;
}

#[tokio::test]
async fn routes_that_lag_behind_are_caught_up() {
    let api = Api::start().await;
    let (ada, _) = api.user("ada@example.com").await;
    api.function(ada, "a").await;
    let feed = tokio::spawn(Arc::new(api.feed()).run(api.state.stop.clone()));
    until("it serves", || api.state.routes.now().by_path("ada", "a").is_some()).await;
    api.state.stop.cancel();
    tokio::time::timeout(std::time::Duration::from_secs(20), feed).await.unwrap().unwrap();
}

#[tokio::test]
async fn a_function_called_deploy() {
    let api = Api::start().await;
    let (ada, token) = api.user("ada@example.com").await;
    api.function(ada, "deploy").await;
    api.check(get("/api/functions/deploy", &token), 200, "/f/ada/deploy").await;
    api.check(get("/api/functions/deploy/logs", &token), 200, "[]").await;
    api.check(delete("/api/functions/deploy", &token), 204, "").await;
    api.check(get("/api/functions/deploy", &token), 404, "not_found").await;
}

#[tokio::test]
async fn records() {
    let api = Api::start().await;
    let (ada, token) = api.user("ada@example.com").await;
    let function = api.function(ada, "a").await;
    api.check(get("/api/functions/a/logs", &token), 200, r#"{"logs":[],"next":null}"#).await;
    let good = api.record(&function, Outcome::Success).await.to_string();
    let bad = api.record(&function, Outcome::Crashed).await.to_string();

    let all = api.check(get("/api/functions/a/logs", &token), 200, "").await.json();
    assert_eq!((ids(&all), &all["next"]), (vec![bad.as_str(), good.as_str()], &Value::Null));
    let entry = &all["logs"][0];
    assert_eq!((&entry["status"], &entry["success"]), (&json!("error"), &json!(false)));
    assert_eq!((&entry["error"], &entry["durationMs"]), (&json!("it broke"), &json!(12)));
    assert_eq!(entry["logs"]["container"]["exit_code"], 0);
    assert_eq!(entry["logs"]["errors"], json!([]));
    assert_eq!(entry["requestInfo"]["method"], "POST");
    assert!(entry["createdAt"].as_str().unwrap().ends_with('Z') && entry.get("result").is_none());
    assert_eq!((&all["logs"][1]["status"], &all["logs"][1]["error"]), (&json!("success"), &Value::Null));

    let check = async |query: &str, expected: Vec<&str>, next: Value| {
        let page = api.check(get(&format!("/api/functions/a/logs?{query}"), &token), 200, "").await.json();
        assert_eq!((ids(&page), &page["next"]), (expected, &next), "{query}");
    };
    check("limit=1", vec![&bad], json!(bad)).await;
    check(&format!("limit=1&before={bad}"), vec![&good], Value::Null).await;
    check("status=success", vec![&good], Value::Null).await;
    check("status=error", vec![&bad], Value::Null).await;
    for query in ["limit=0", "limit=9999", "before=x", "status=great", "follow=maybe", "color=red"] {
        api.check(get(&format!("/api/functions/a/logs?{query}"), &token), 422, "the parameter").await;
    }
    api.check(get(&format!("/api/functions/a/logs?follow=true&before={bad}"), &token), 422, "exclude").await;
    api.check(get("/api/functions/b/logs", &token), 404, "not_found").await;
}

#[tokio::test]
async fn the_story_of_a_call() {
    let api = Api::start().await;
    let (ada, token) = api.user("ada@example.com").await;
    let (_, other) = api.user("bob@example.com").await;
    let function = api.function(ada, "a").await;
    let path = |id: InvocationId| format!("/api/invocations/{id}");
    let id = api.record(&function, Outcome::TimedOut).await;
    let story = api.check(get(&path(id), &token), 200, "").await.json();
    assert_eq!(story["function"], json!({"id": function.id, "name": "a"}));
    assert_eq!((&story["id"], &story["version"], &story["status"]), (&json!(id), &json!(1), &json!("error")));
    assert_eq!((&story["outcome"], &story["error"]), (&json!("timed_out"), &json!("it broke")));
    assert_eq!(story["cold"], json!({"is": false, "cause": null}));
    assert_eq!((&story["phases"]["fnMs"], &story["phases"]["coldMs"]), (&json!(1.5), &Value::Null));
    assert_eq!(story["limits"], json!({"timeoutMs": 5000, "memoryMb": 128, "hit": ["timeout"]}));
    assert_eq!(story["logs"], json!({"stdout": "hello", "stderr": "", "truncated": false}));
    let good = api.record(&function, Outcome::Success).await;
    assert_eq!(api.check(get(&path(good), &token), 200, "").await.json()["limits"]["hit"], json!([]));
    // Somebody else's is not there, in the same words as what is not there.
    let unknown = get(&path(InvocationId::new()), &other);
    for request in [get(&path(id), &other), unknown] {
        api.check(request, 404, "there is no record of this call yet: try again in a moment").await;
    }
    api.check(get(&path(uuid::Uuid::nil().into()), &token), 404, "refused, which is not recorded").await;
    api.check(get("/api/invocations/a", &token), 404, "X-Request-Id").await;
    api.check(get(&path(id), ""), 401, "unauthorized").await;
}

#[tokio::test]
async fn following_the_records() {
    let api = Api::start().await;
    let (ada, token) = api.user("ada@example.com").await;
    let function = api.function(ada, "a").await;
    let old = api.record(&function, Outcome::Success).await.to_string();
    let older_than_new = InvocationId::new();
    let response = api.router.clone().oneshot(get("/api/functions/a/logs?follow=true", &token)).await.unwrap();
    assert_eq!(response.headers()["content-type"], "text/event-stream");
    let mut body = response.into_body().into_data_stream();
    let mut next = async || {
        let chunk = tokio::time::timeout(std::time::Duration::from_secs(20), body.next()).await.unwrap();
        String::from_utf8(chunk.unwrap().unwrap().to_vec()).unwrap()
    };
    let first = next().await;
    assert!(first.starts_with("event: invocation\ndata: {") && first.contains(&old), "{first}");
    let new = api.record(&function, Outcome::Crashed).await.to_string();
    let second = next().await;
    assert!(second.contains(&new) && second.contains("it broke"), "{second}");
    // A record that reaches the store after a younger one is not missed.
    let mut late = api.state.store.records(one(ada, &function)).await.unwrap().records.remove(0);
    late.id = older_than_new;
    api.state.store.insert_records(&[late]).await.unwrap();
    assert!(next().await.contains(&older_than_new.to_string()));
    api.state.close.cancel();
    let end = tokio::time::timeout(std::time::Duration::from_secs(20), body.next()).await.unwrap();
    assert!(end.is_none(), "the stream ends when the gateway stops");
}

#[tokio::test]
async fn a_follower_sees_what_is_new_and_all_of_it() {
    let api = Api::start().await;
    let (ada, token) = api.user("ada@example.com").await;
    let function = api.function(ada, "a").await;
    let begun_early = InvocationId::new();
    let mut last = String::new();
    for _ in 0..60 {
        last = api.record(&function, Outcome::Success).await.to_string();
    }
    let response = api.router.clone().oneshot(get("/api/functions/a/logs?follow=true&limit=1", &token)).await.unwrap();
    let mut body = response.into_body().into_data_stream();
    let mut next = async || {
        let chunk = tokio::time::timeout(std::time::Duration::from_secs(20), body.next()).await.unwrap();
        String::from_utf8(chunk.unwrap().unwrap().to_vec()).unwrap()
    };
    assert!(next().await.contains(&last));
    // The record of a call that took long: more than a page of others was there before it.
    let mut late = api.state.store.records(one(ada, &function)).await.unwrap().records.remove(0);
    late.id = begun_early;
    api.state.store.insert_records(&[late]).await.unwrap();
    let second = next().await;
    assert!(second.contains(&begun_early.to_string()), "{second}");
    let new = api.record(&function, Outcome::Success).await.to_string();
    let third = next().await;
    assert!(third.contains(&new), "{third}");
}

#[tokio::test]
async fn nobody_follows_with_all_seats() {
    let api = Api::start().await;
    let (ada, token) = api.user("ada@example.com").await;
    let (bob, other) = api.user("bob@example.com").await;
    api.function(ada, "a").await;
    api.function(bob, "a").await;
    let follow = |token: &str| api.router.clone().oneshot(get("/api/functions/a/logs?follow=true", token));
    let mut hers = Vec::new();
    for _ in 0..4 {
        hers.push(follow(&token).await.unwrap());
    }
    assert_eq!(
        (follow(&token).await.unwrap().status().as_u16(), follow(&other).await.unwrap().status().as_u16()),
        (429, 200)
    );
    hers.pop();
    let followed = async { while follow(&token).await.unwrap().status() != 200 {} };
    tokio::time::timeout(std::time::Duration::from_secs(20), followed).await.expect("who leaves gives the seat back");
}

fn one(owner: UserId, function: &Function) -> store::RecordQuery {
    store::RecordQuery { owner, function: function.id, limit: 1, before: None, success: None }
}
