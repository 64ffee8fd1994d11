//! Nodes that take no calls, lose them, or come back as another life of themselves.

use std::sync::atomic::Ordering;

use common::ids::NodeId;
use common::labels::Labels;
use common::protocol::{AgentMessage, Kind};
use serde_json::json;
use tokio::io::AsyncReadExt as _;

use super::house::{House, get, post, until};
use super::node::{Manner, Node, dial, frames, say};

/// Says what the operator lets a node do, once the database knows it.
pub(super) async fn order(house: &House, token: &str, node: NodeId, what: &str) {
    let known = async {
        while house.ask(post(&format!("/api/nodes/{node}/{what}"), token, "")).await.status != 204 {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(super::house::PATIENCE, known).await.expect("the node is known");
}

#[tokio::test]
async fn what_never_left_goes_to_another_node() {
    let (house, well) = House::with_node(&[]).await;
    let (handle, token) = house.user("operator@example.com").await;
    house.deploy(&token, "hello", "{}").await;
    let path = format!("/f/{handle}/hello");
    let deaf = Node::join_as(&house.socket, Manner { is_deaf: true, ..Manner::default() }).await;
    house.until_nodes(2).await;
    order(&house, &token, well.state.node, "cordon").await;
    let call = house.ask(get(&path, &token));
    let pull = async {
        until("the call waits for a connection", || deaf.state.asked.load(Ordering::Relaxed) > 0).await;
        order(&house, &token, well.state.node, "uncordon").await;
        deaf.cut.cancel();
    };
    let (answer, ()) = tokio::join!(call, pull);
    assert_eq!(answer.expect(200, "").json()["node"], json!(well.state.node));
    house.until_metric(r#"dartcloud_gateway_retries_total{result="sent"} 1"#).await;
    house.stopped().await;
}

#[tokio::test]
async fn what_runs_once_goes_to_no_other() {
    let (house, _well) = House::with_node(&[]).await;
    let (handle, token) = house.user("operator@example.com").await;
    house.deploy(&token, "hello", "{}").await;
    let path = format!("/f/{handle}/hello");
    let deaf = Node::join_as(&house.socket, Manner { is_deaf: true, ..Manner::default() }).await;
    house.until_nodes(2).await;
    let ask = async |key: u32| {
        let mut request = post(&path, &token, "x");
        request.headers_mut().insert("idempotency-key", format!("k{key}").parse().unwrap());
        house.ask(request).await
    };
    for key in 0.. {
        let mut call = std::pin::pin!(ask(key));
        tokio::select! {
            answer = &mut call => drop(answer.expect(200, "")),
            () = until("one waits", || deaf.state.asked.load(Ordering::Relaxed) > 0) => {
                deaf.cut.cancel();
                call.await.expect(503, "no_node");
                break;
            }
        }
    }
    house.until_metric(r#"dartcloud_gateway_retries_total{result="sent"} 0"#).await;
    house.stopped().await;
}

#[tokio::test]
async fn a_former_life_is_fenced() {
    let house = House::start(&[]).await;
    let (handle, token) = house.user("operator@example.com").await;
    let node = Node::join_as(&house.socket, Manner { epoch: 1, ..Manner::default() }).await;
    house.until_nodes(1).await;
    house.deploy(&token, "hello", "{}").await;
    let path = format!("/f/{handle}/hello/hang");
    let call = house.ask(get(&path, &token));
    let comes_back = async {
        until("the call is there", || node.state.hanging.load(Ordering::Relaxed) == 1).await;
        let hello = common::protocol::Hello { epoch: 2, ..node.state.hello(Kind::Control) };
        let mut control = frames(dial(&house.socket, &hello).await);
        let register = AgentMessage::Register {
            name: "peer".into(),
            max_connections: 100,
            deployments: vec![],
            labels: Labels::default(),
            learns_authorities: false,
        };
        assert!(say(&mut control, &register).await);
        control
    };
    let (lost, _control) = tokio::join!(call, comes_back);
    lost.expect(502, "node_lost");
    let ended = || node.state.ended.load(Ordering::Relaxed) == node.state.dialled.load(Ordering::Relaxed);
    until("its connections are closed", ended).await;
    house.until_nodes(1).await;
    // And none of that life is taken any more.
    for kind in [Kind::Work, Kind::Control] {
        let mut stale = dial(&house.socket, &node.state.hello(kind)).await;
        assert_eq!(stale.read(&mut [0]).await.unwrap(), 0, "{kind:?}");
    }
    house.until_metric("dartcloud_gateway_links_refused_total 1").await;
    house.stopped().await;
}

#[tokio::test]
async fn a_node_that_loses_calls_is_ejected() {
    let (house, _one) = House::with_node(&[]).await;
    let _two = Node::join(&house.socket).await;
    house.until_nodes(2).await;
    let (handle, token) = house.user("operator@example.com").await;
    house.deploy(&token, "hello", "{}").await;
    let path = format!("/f/{handle}/hello");
    let home = house.ask(get(&path, &token)).await.expect(200, "").json()["node"].clone();
    for _ in 0..5 {
        house.until_metric("dartcloud_gateway_nodes_ejected 0").await;
        house.ask(get(&format!("{path}/die"), &token)).await.expect(502, "node_lost");
    }
    house.until_metric("dartcloud_gateway_nodes_ejected 1").await;
    let elsewhere = house.ask(get(&path, &token)).await.expect(200, "").json()["node"].clone();
    assert_ne!(elsewhere, home);
    let nodes = house.ask(get("/api/nodes", &token)).await.expect(200, "").json();
    let states: Vec<_> = nodes["nodes"].as_array().unwrap().iter().map(|node| (&node["id"], &node["state"])).collect();
    assert!(states.contains(&(&home, &json!("ejected"))), "{states:?}");
    // The other one may fail as it likes: it is the only one left.
    for _ in 0..6 {
        house.ask(get(&format!("{path}/die"), &token)).await.expect(502, "node_lost");
    }
    assert!(house.metrics().contains("dartcloud_gateway_ejections_total 1\n"));
    house.stopped().await;
}

#[tokio::test]
async fn a_refusal_reaches_who_still_uploads() {
    let (house, node) = House::with_node(&[]).await;
    let (handle, token) = house.user("ann@example.com").await;
    house.deploy(&token, "hello", r#"{"contract":"http","access":"public"}"#).await;
    node.cut.cancel();
    house.until_nodes(0).await;
    // More than the sockets between here and there hold.
    let body = vec![b'x'; 16 << 20];
    let head = format!("POST /f/{handle}/hello HTTP/1.1\r\nHost: a\r\nContent-Length: {}\r\n\r\n", body.len());
    let answer = house.raw(&[head.as_bytes(), &body].concat()).await;
    assert!(answer.starts_with("HTTP/1.1 503 "), "{answer}");
    house.stopped().await;
}
