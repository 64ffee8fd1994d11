//! What Prometheus gets of nodes through the gateway: whom it finds, what they tell, and why one does not.

use std::sync::atomic::Ordering;
use std::time::Duration;

use bytes::Bytes;
use common::ids::NodeId;
use futures_util::future::join_all;
use http_body_util::BodyExt as _;
use serde_json::{Value, json};
use tokio::time::timeout;

use super::house::{House, PATIENCE, until};
use super::node::{Manner, Node};

/// A page of the ops listener: its status and its text.
async fn page(house: &House, path: &str) -> (u16, String) {
    let answer = house.pages.answer(path, "ops.example:9464").expect("there is this page");
    let answer = timeout(PATIENCE, answer).await.unwrap();
    let (parts, body) = answer.into_parts();
    let text: Bytes = body.collect().await.unwrap().to_bytes();
    (parts.status.as_u16(), String::from_utf8_lossy(&text).into_owned())
}

fn path(node: NodeId) -> String {
    format!("/nodes/{node}/metrics")
}

async fn check_refused(house: &House, node: NodeId, status: u16, part: &str) {
    let (got, sentence) = page(house, &path(node)).await;
    assert!(got == status && sentence.contains(part), "{got}: {sentence}");
}

/// Those that `/sd` names.
async fn found(house: &House) -> Vec<String> {
    let (status, text) = page(house, "/sd").await;
    assert_eq!(status, 200, "{text}");
    let targets: Vec<Value> = serde_json::from_str(&text).unwrap();
    assert!(targets.iter().all(|target| target["targets"] == json!(["ops.example:9464"])), "{text}");
    let place = |target: &Value| target["labels"]["__metrics_path__"].as_str().unwrap().to_owned();
    targets.iter().map(place).collect()
}

#[tokio::test]
async fn a_node_tells_once_for_all_who_ask() {
    let house = House::start(&[]).await;
    let telling = Node::join_as(&house.socket, Manner { tells: Some(true), ..Manner::default() }).await;
    let elsewhere = Node::join_as(&house.socket, Manner { tells: Some(false), ..Manner::default() }).await;
    let older = Node::join(&house.socket).await;
    house.until_nodes(3).await;
    let until_known = async || {
        // Until the database knows each of the nodes, and they have said how they are.
        while page(&house, &path(elsewhere.state.node)).await.0 != 200
            || page(&house, &path(older.state.node)).await.0 == 404
            || found(&house).await.is_empty()
        {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    timeout(PATIENCE, until_known()).await.unwrap();
    assert_eq!(found(&house).await, [path(telling.state.node)]);
    check_refused(&house, older.state.node, 503, "of an older version").await;
    check_refused(&house, NodeId::new(), 404, "no such node").await;
    assert_eq!(page(&house, "/nodes/nobody/metrics").await.0, 404);
    for nowhere in ["/nodes/", "/nodes", "/sd/", "/metrics"] {
        assert!(house.pages.answer(nowhere, "a").is_none(), "{nowhere}");
    }

    // Four ask while it is asked already.
    let asked = telling.state.scraped.load(Ordering::Relaxed);
    telling.state.hush.store(true, Ordering::Relaxed);
    let node = path(telling.state.node);
    let four = join_all((0..4).map(|_| page(&house, &node)));
    let go = async {
        until("it is asked", || telling.state.scraped.load(Ordering::Relaxed) == asked + 1).await;
        telling.state.speak.notify_one();
    };
    let (answers, ()) = tokio::join!(four, go);
    let text = format!("peer_told {}\n", asked + 1);
    assert!(answers.iter().all(|answer| *answer == (200, text.clone())), "{answers:?}");

    // One that says nothing is given up, and asked anew.
    check_refused(&house, telling.state.node, 503, "did not tell").await;
    let again = tokio::join!(page(&house, &node), async {
        until("it is asked again", || telling.state.scraped.load(Ordering::Relaxed) == asked + 3).await;
        telling.state.speak.notify_one();
    });
    assert_eq!(again.0.0, 200, "{again:?}");

    // One that goes meanwhile is not waited for.
    let lost = tokio::join!(page(&house, &node), async {
        until("it is asked", || telling.state.scraped.load(Ordering::Relaxed) == asked + 4).await;
        telling.cut.cancel();
    });
    assert!(lost.0.0 == 503 && lost.0.1.contains("ended before"), "{lost:?}");
    check_refused(&house, telling.state.node, 503, "not linked").await;
    house.stopped().await;
}
