//! What one client may have of what all share, so that something is left for the others.

use std::time::Duration;

use bytes::Bytes;
use futures_util::StreamExt as _;
use futures_util::stream::FuturesUnordered;
use http::{Method, Request, StatusCode};
use http_body_util::Full;
use tokio::io::AsyncWriteExt as _;
use tokio::net::TcpStream;

use super::house::{House, PATIENCE, call, post};

/// Calls that may change something of one client, as `edge/control_call` has it.
const CHANGES_EACH: usize = 64;

/// The head of a request that `client` sends through a trusted proxy, and none of the body that it speaks of.
fn bodiless(client: &str) -> Vec<u8> {
    let head = format!(
        "POST /api/functions/deploy HTTP/1.1\r\nHost: a\r\nX-Forwarded-For: {client}\r\n\
         Content-Type: application/json\r\nContent-Length: 10\r\n\r\n"
    );
    head.into_bytes()
}

/// A request that a trusted proxy sends for `client`.
fn of(client: &str, mut request: Request<Full<Bytes>>) -> Request<Full<Bytes>> {
    request.headers_mut().insert("x-forwarded-for", client.parse().unwrap());
    request
}

fn logout_of(client: &str) -> Request<Full<Bytes>> {
    of(client, post("/api/auth/logout", "", r#"{"refreshToken":"none"}"#))
}

#[tokio::test]
async fn who_sends_no_bodies_leaves_the_api_to_others() {
    let flags = ["--trusted-proxies", "127.0.0.1", "--rate-limit-login", "10000"];
    let house = House::start(&flags).await;
    let head = bodiless("198.51.100.7");
    let mut held: FuturesUnordered<_> = (0..=CHANGES_EACH).map(|_| house.raw(&head)).collect();
    // All but one wait for their bodies.
    let first = tokio::time::timeout(PATIENCE, held.next()).await.unwrap().unwrap();
    assert!(first.starts_with("HTTP/1.1 429") && first.contains("retry-after: 1"), "{first}");
    house.ask(logout_of("198.51.100.7")).await.expect(429, "rate_limited");
    house.ask(logout_of("198.51.100.8")).await.expect(204, "");
    // Who has a token is himself, wherever he calls from.
    let (_, token) = house.user("ann@example.com").await;
    let hers = call(Method::DELETE, "/api/functions/none", &token, "");
    house.ask(of("198.51.100.7", hers)).await.expect(404, "not_found");
    // The places come back.
    drop(held);
    let freed = async {
        while house.ask(logout_of("198.51.100.7")).await.status != StatusCode::NO_CONTENT {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(PATIENCE, freed).await.unwrap();
    house.stopped().await;
}

#[tokio::test]
async fn who_sends_bodies_slowly_leaves_room_for_others() {
    let flags = ["--max-request-mb", "1", "--request-buffer-mb", "4", "--trusted-proxies", "127.0.0.1"];
    let (house, _node) = House::with_node(&flags).await;
    let (handle, token) = house.user("ann@example.com").await;
    house.deploy(&token, "open", r#"{"access":"public"}"#).await;
    let path = format!("/f/{handle}/open");
    let length = 1024 * 1024;
    let head =
        format!("POST {path} HTTP/1.1\r\nHost: a\r\nX-Forwarded-For: 198.51.100.7\r\nContent-Length: {length}\r\n\r\n");
    let (mut slow, nearly_all) = (Vec::new(), "x".repeat(length - 1));
    for _ in 0..2 {
        let mut stream = TcpStream::connect(house.address).await.unwrap();
        stream.write_all((head.clone() + &nearly_all).as_bytes()).await.unwrap();
        slow.push(stream);
    }
    house.until_metric(&format!("dartcloud_gateway_request_buffer_bytes {}", 2 * (length - 1 - 16 * 1024))).await;
    let body = "x".repeat(length);
    house.ask(of("198.51.100.7", post(&path, "", &body))).await.expect(503, "overloaded");
    house.ask(of("198.51.100.7", post(&path, "", "small"))).await.expect(200, "");
    house.ask(of("198.51.100.8", post(&path, "", &body))).await.expect(200, "");
    drop(slow);
    house.until_metric("dartcloud_gateway_request_buffer_bytes 0").await;
    house.ask(of("198.51.100.7", post(&path, "", &body))).await.expect(200, "");
    house.stopped().await;
}
