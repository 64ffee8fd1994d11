//! Public connections: how many there may be, and for how long.

use tokio::io::AsyncWriteExt as _;
use tokio::net::TcpStream;

use super::house::{House, get};

#[tokio::test]
async fn who_finds_no_seat_is_told_so() {
    let house = House::start(&["--max-connections", "2", "--max-connections-per-address", "2"]).await;
    let first = TcpStream::connect(house.address).await.unwrap();
    let _second = TcpStream::connect(house.address).await.unwrap();
    house.until_metric("dartcloud_gateway_connections 2").await;
    let refused = house.raw(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n").await;
    assert!(refused.starts_with("HTTP/1.1 503") && refused.contains("Retry-After: 1"), "{refused}");
    house.until_metric("dartcloud_gateway_connections_refused_total 1").await;
    drop(first);
    house.until_metric("dartcloud_gateway_connections 1").await;
    house.ask(get("/", "")).await.expect(200, "");
    house.stopped().await;
}

#[tokio::test]
async fn who_does_not_read_holds_no_connection() {
    let (house, _node) = House::with_node(&[]).await;
    let (handle, token) = house.user("ann@example.com").await;
    house.deploy(&token, "hello", "{}").await;
    house.until_metric("dartcloud_gateway_connections 0").await;
    let mut deaf = TcpStream::connect(house.address).await.unwrap();
    let head = format!("GET /f/{handle}/hello/large HTTP/1.1\r\nHost: a\r\nAuthorization: Bearer {token}\r\n\r\n");
    deaf.write_all(head.as_bytes()).await.unwrap();
    house.until_metric("dartcloud_gateway_connections 1").await;
    house.until_metric("dartcloud_gateway_connections 0").await;
    house.stopped().await;
}
