//! Calls with an `Idempotency-Key`, as nodes get them.

use std::collections::BTreeSet;

use serde_json::Value;

use super::house::{House, get, post};
use super::node::Node;

#[tokio::test]
async fn a_key_has_its_node() {
    let (house, one) = House::with_node(&[]).await;
    let two = Node::join(&house.socket).await;
    house.until_nodes(2).await;
    let (handle, token) = house.user("ann@example.com").await;
    house.deploy(&token, "hello", "{}").await;
    let path = format!("/f/{handle}/hello");
    let ask = async |key: &str| {
        let mut request = post(&path, &token, "x");
        request.headers_mut().insert("idempotency-key", key.parse().unwrap());
        request.headers_mut().insert("dartcloud-once", "not the client's to say".parse().unwrap());
        house.ask(request).await
    };
    let mut homes = Vec::new();
    for key in 0..30 {
        let (seen, again) = (ask(&format!("k{key}")).await.json(), ask(&format!("\"k{key}\"")).await.json());
        let of = |seen: &Value| (seen["node"].clone(), seen["headers"]["dartcloud-once"].clone());
        assert_eq!(of(&seen), of(&again));
        homes.push(of(&seen));
    }
    let digests: BTreeSet<_> = homes.iter().map(|(_, once)| once.as_str().unwrap()).collect();
    let nodes: BTreeSet<_> = homes.iter().map(|(node, _)| node.as_str().unwrap()).collect();
    assert_eq!((digests.len(), nodes.len()), (30, 2), "{homes:?}");
    assert!(house.ask(get(&path, &token)).await.json()["headers"].get("dartcloud-once").is_none());
    ask("a b").await.expect(400, "bad_request");

    // What may have run on a node that is away runs on no other; its neighbour's keys are none of that.
    two.cut.cancel();
    house.until_nodes(1).await;
    let left = house.ask(get(&path, &token)).await.json()["node"].clone();
    let place = |away: bool| homes.iter().position(|(node, _)| (*node != left) == away).unwrap();
    ask(&format!("k{}", place(false))).await.expect(200, "");
    ask(&format!("k{}", place(true))).await.expect(503, "no_node");
    drop(one);
    house.stopped().await;
}
