//! What one client may have of what all share, so that something is left for the others.

use std::time::Duration;

use bytes::Bytes;
use futures_util::StreamExt as _;
use futures_util::stream::FuturesUnordered;
use http::{Method, Request, StatusCode};
use http_body_util::Full;

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

fn logout_of(client: &str) -> Request<Full<Bytes>> {
    let mut request = post("/api/auth/logout", "", r#"{"refreshToken":"none"}"#);
    request.headers_mut().insert("x-forwarded-for", client.parse().unwrap());
    request
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
    let mut hers = call(Method::DELETE, "/api/functions/none", &token, "");
    hers.headers_mut().insert("x-forwarded-for", "198.51.100.7".parse().unwrap());
    house.ask(hers).await.expect(404, "not_found");
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
