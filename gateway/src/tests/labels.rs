//! Functions that want nodes with certain labels, and nodes that get them.

use common::ids::NodeId;
use http::Method;
use serde_json::json;

use super::failure::order;
use super::house::{Answer, House, call, get, post, upload};
use super::node::Node;

async fn label(house: &House, token: &str, node: NodeId, labels: &str) -> Answer {
    house.ask(call(Method::PATCH, &format!("/api/nodes/{node}"), token, labels)).await
}

#[tokio::test]
async fn a_function_runs_where_its_labels_are() {
    let (house, one) = House::with_node(&[]).await;
    let two = Node::join(&house.socket).await;
    house.until_nodes(2).await;
    let (handle, token) = house.user("operator@example.com").await;
    // Once both are known.
    for node in [&one, &two] {
        order(&house, &token, node.state.node, "uncordon").await;
    }
    let settings = r#"{"node_selector": {"gpu": "true"}}"#;
    let refused = house.ask(upload(&token, "learns", settings)).await.expect(503, "no_node");
    assert!(refused.text.contains("gpu=true"), "{}", refused.text);

    let gpu = async |node: &Node, value: &str| {
        let labels = format!(r#"{{"labels": {{"gpu": {value}}}}}"#);
        label(&house, &token, node.state.node, &labels).await.expect(204, "");
    };
    gpu(&two, "\"true\"").await;
    let shown = house.ask(get("/api/nodes", &token)).await.expect(200, "").json();
    let shown = shown["nodes"].as_array().unwrap().iter().find(|node| node["id"] == json!(two.state.node)).unwrap();
    assert_eq!(shown["labels"], json!({"gpu": "true"}));
    house.deploy(&token, "learns", settings).await;
    house.deploy(&token, "any", "{}").await;
    let function = house.ask(get("/api/functions/learns", &token)).await.expect(200, "").json();
    assert_eq!(function["nodeSelector"], json!({"gpu": "true"}));
    let path = format!("/f/{handle}/learns");
    for key in 0..8 {
        let mut request = post(&path, &token, "x");
        // Some run once, which have a home of their own.
        if key > 3 {
            request.headers_mut().insert("idempotency-key", format!("k{key}").parse().unwrap());
        }
        assert_eq!(house.ask(request).await.expect(200, "").json()["node"], json!(two.state.node));
    }

    gpu(&one, "\"true\"").await;
    gpu(&two, "null").await;
    assert_eq!(house.ask(get(&path, &token)).await.expect(200, "").json()["node"], json!(one.state.node));
    gpu(&one, "\"false\"").await;
    let refused = house.ask(get(&path, &token)).await.expect(503, "no_node");
    assert!(refused.text.contains("gpu=true"), "{}", refused.text);
    house.ask(get(&format!("/f/{handle}/any"), &token)).await.expect(200, "");
    house.stopped().await;
}

#[tokio::test]
async fn labels_that_are_none() {
    let (house, node) = House::with_node(&[]).await;
    let (_, token) = house.user("operator@example.com").await;
    let (_, other) = house.user("other@example.com").await;
    order(&house, &token, node.state.node, "uncordon").await;
    let node = node.state.node;
    label(&house, &other, node, r#"{"labels": {"a": "b"}}"#).await.expect(403, "forbidden");
    label(&house, &token, NodeId::new(), r#"{"labels": {"a": "b"}}"#).await.expect(404, "not_found");
    for labels in ["{}", r#"{"labels": ["a"]}"#, r#"{"labels": {"a": 1}}"#, r#"{"labels": {"a b": "c"}}"#] {
        label(&house, &token, node, labels).await.expect(422, "invalid");
    }
    house.ask(upload(&token, "f", r#"{"node_selector": {"a b": "c"}}"#)).await.expect(422, "invalid");
    house.stopped().await;
}
