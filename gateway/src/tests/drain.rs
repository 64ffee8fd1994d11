//! A node that is drained: what is warm there goes on there until another node has it warm.

use std::time::Duration;

use common::ids::{DeploymentId, NodeId};
use common::protocol::{DEPLOYMENT, Warm};
use serde_json::{Value, json};

use super::failure::order;
use super::house::{House, PATIENCE, get, until};
use super::node::Node;

/// A house whose operator has a function that is warm on one node.
struct Scene {
    house: House,
    token: String,
    path: String,
    deployment: DeploymentId,
    nodes: Vec<Node>,
}

impl Scene {
    async fn with_nodes(count: usize) -> Self {
        let (house, first) = House::with_node(&[]).await;
        let mut nodes = vec![first];
        while nodes.len() < count {
            nodes.push(Node::join(&house.socket).await);
        }
        house.until_nodes(count).await;
        let (handle, token) = house.user("operator@example.com").await;
        house.deploy(&token, "hello", "{}").await;
        let path = format!("/f/{handle}/hello");
        let answer = house.ask(get(&path, &token)).await.expect(200, "").json();
        let deployment = answer["headers"][DEPLOYMENT].as_str().unwrap().parse().unwrap();
        // Its home first.
        nodes.sort_by_key(|node| answer["node"] != json!(node.state.node));
        nodes[0].state.says.lock().unwrap().warm = vec![deployment];
        let scene = Self { house, token, path, deployment, nodes };
        scene.until_shown(0, |shown| shown["warm"] == 1).await;
        scene
    }

    fn id(&self, place: usize) -> NodeId {
        self.nodes[place].state.node
    }

    async fn order(&self, place: usize, what: &str) {
        order(&self.house, &self.token, self.id(place), what).await;
    }

    /// Waits until the list shows a node so.
    async fn until_shown(&self, place: usize, condition: impl Fn(&Value) -> bool) {
        let shown = async {
            loop {
                let list = self.house.ask(get("/api/nodes", &self.token)).await.expect(200, "").json();
                let node = list["nodes"].as_array().unwrap().iter().find(|node| node["id"] == json!(self.id(place)));
                if node.is_some_and(&condition) {
                    return;
                }
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        };
        tokio::time::timeout(PATIENCE, shown).await.expect("it is shown so");
    }

    /// The place of the node that answers a call.
    async fn call(&self) -> Option<usize> {
        let answer = self.house.ask(get(&self.path, &self.token)).await.expect(200, "").json();
        (0..self.nodes.len()).find(|place| answer["node"] == json!(self.id(*place)))
    }
}

#[tokio::test]
async fn what_is_warm_is_warm_elsewhere_first() {
    let scene = Scene::with_nodes(2).await;
    scene.order(0, "drain").await;
    let one = Warm { deployment: scene.deployment, sandboxes: 1 };
    until("the other node is told", || scene.nodes[1].state.told.lock().unwrap().contains(&one)).await;
    scene.until_shown(0, |shown| shown["state"] == "draining" && shown["moving"] == 1 && shown["stranded"] == 0).await;
    assert_eq!(scene.call().await, Some(0));
    {
        let mut says = scene.nodes[1].state.says.lock().unwrap();
        (says.warm, says.kept) = (vec![scene.deployment], Some(vec![scene.deployment]));
    }
    scene.until_shown(0, |shown| shown["moving"] == 0 && shown["stranded"] == 0).await;
    assert_eq!(scene.call().await, Some(1));
    until("it need not keep it", || scene.nodes[1].state.told.lock().unwrap().is_empty()).await;
    // Once more changes nothing.
    scene.order(0, "drain").await;
    assert_eq!(scene.call().await, Some(1));
    scene.order(0, "uncordon").await;
    scene.until_shown(0, |shown| shown["state"] == "linked" && shown["moving"].is_null()).await;
    scene.house.stopped().await;
}

#[tokio::test]
async fn what_nobody_takes_goes_on_and_an_uncordon_ends_it_all() {
    let scene = Scene::with_nodes(1).await;
    scene.order(0, "drain").await;
    scene.until_shown(0, |shown| shown["moving"] == 1 && shown["stranded"] == 1).await;
    assert_eq!(scene.call().await, Some(0));
    scene.order(0, "uncordon").await;
    scene.until_shown(0, |shown| shown["state"] == "linked" && shown["moving"].is_null()).await;
    assert_eq!(scene.call().await, Some(0));
    scene.house.stopped().await;
}
