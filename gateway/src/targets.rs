//! The pages of the ops listener that are about nodes: `/sd` names to Prometheus those that it is to scrape through this
//! gateway, and `/nodes/{id}/metrics` has what one of them tells.

use bytes::Bytes;
use common::ids::NodeId;
use common::ops::{self, Pages};
use futures_util::FutureExt as _;
use futures_util::future::{BoxFuture, ready};
use http::header::CONTENT_TYPE;
use http::uri::Authority;
use http::{HeaderValue, Response, StatusCode};
use http_body_util::Full;
use serde_json::{Value, json};

use crate::fleet::Fleet;
use crate::fleet::scrape::{Scraped, Untold};

/// The pages, once there is a fleet.
pub(crate) struct Targets(Fleet);

impl Targets {
    pub(crate) fn of(fleet: &Fleet) -> Self {
        Self(fleet.clone())
    }
}

impl Pages for Targets {
    fn answer(&self, path: &str, host: &str) -> Option<BoxFuture<'static, Response<Full<Bytes>>>> {
        if path == "/sd" {
            return Some(ready(discovery(host, &self.0.scraped())).boxed());
        }
        let id = path.strip_prefix("/nodes/")?.strip_suffix("/metrics")?;
        let (fleet, id) = (self.0.clone(), id.parse().map_err(|_| Untold::Unknown));
        Some(async move { told(&fleet, id).await }.boxed())
    }
}

async fn told(fleet: &Fleet, id: Result<NodeId, Untold>) -> Response<Full<Bytes>> {
    let told = match id {
        Ok(id) => fleet.metrics_of(id).await,
        Err(untold) => Err(untold),
    };
    match told {
        Ok(text) => ops::text(StatusCode::OK, text),
        Err(untold @ Untold::Unknown) => ops::text(StatusCode::NOT_FOUND, format!("{untold}\n")),
        Err(untold) => ops::text(StatusCode::SERVICE_UNAVAILABLE, format!("{untold}\n")),
    }
}

fn discovery(host: &str, nodes: &[Scraped]) -> Response<Full<Bytes>> {
    if host.parse::<Authority>().is_err() {
        let sentence = "no Host, by which the nodes' metrics would be found here too\n";
        return ops::text(StatusCode::BAD_REQUEST, sentence);
    }
    let targets: Value = nodes.iter().map(|node| target(host, node)).collect();
    let mut response = Response::new(Full::new(targets.to_string().into()));
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    response
}

/// What Prometheus needs to know of a node. It is the same `instance` through whichever gateway.
fn target(host: &str, node: &Scraped) -> Value {
    let Scraped { id, name, is_only } = node;
    let instance = if *is_only && !name.is_empty() { name.clone() } else { format!("{name} ({id})") };
    json!({
        "targets": [host],
        "labels": {"instance": instance, "node": name, "__metrics_path__": format!("/nodes/{id}/metrics")},
    })
}

#[cfg(test)]
mod tests {
    use http_body_util::BodyExt as _;

    use super::*;

    async fn check(host: &str, nodes: &[Scraped], status: u16, expected: Value) {
        let answer = discovery(host, nodes);
        assert_eq!(answer.status(), status, "{host:?}");
        let body = answer.into_body().collect().await.unwrap().to_bytes();
        if status == 200 {
            assert_eq!(serde_json::from_slice::<Value>(&body).unwrap(), expected);
        }
    }

    #[tokio::test]
    async fn prometheus_finds_nodes_where_it_asked() {
        let node = |name: &str, is_only| Scraped { id: NodeId::new(), name: name.into(), is_only };
        let nodes = [node("web-1", true), node("web \"2\"", false), node("", true)];
        let of = |at: usize, instance: &str| {
            let (id, name) = (nodes[at].id, &nodes[at].name);
            let path = format!("/nodes/{id}/metrics");
            let labels = json!({"instance": instance, "node": name, "__metrics_path__": path});
            json!({"targets": ["[::1]:9464"], "labels": labels})
        };
        let named = |at: usize| format!("{} ({})", nodes[at].name, nodes[at].id);
        let expected = json!([of(0, "web-1"), of(1, &named(1)), of(2, &named(2))]);
        check("[::1]:9464", &nodes, 200, expected).await;
        check("gateway", &[], 200, json!([])).await;
        check("", &nodes, 400, Value::Null).await;
        check("a b", &nodes, 400, Value::Null).await;
    }
}
