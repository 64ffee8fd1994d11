//! Who the client is, with a proxy before the gateway and without.

use bytes::Bytes;
use http::Request;
use http_body_util::Full;
use tokio::net::TcpStream;

use super::house::{House, get};

fn forwarded(path: &str, token: &str, client: &str) -> Request<Full<Bytes>> {
    let mut request = get(path, token);
    request.headers_mut().insert("x-forwarded-for", client.parse().unwrap());
    request.headers_mut().insert("x-forwarded-proto", "https".parse().unwrap());
    request
}

#[tokio::test]
async fn a_function_sees_whom_a_proxy_speaks_for() {
    let (house, _node) = House::with_node(&["--trusted-proxies", "127.0.0.0/8"]).await;
    let (handle, token) = house.user("ann@example.com").await;
    let id = house.deploy(&token, "hello", "{}").await;
    let call = forwarded(&format!("/f/{handle}/hello"), &token, "1.1.1.1, 198.51.100.7, 127.0.0.2");
    let seen = house.ask(call).await.expect(200, "").json();
    let headers = &seen["headers"];
    assert_eq!((&headers["x-forwarded-for"], &headers["x-forwarded-proto"]), (&"198.51.100.7".into(), &"https".into()));
    let described = house.ask(forwarded(&format!("/api/functions/{id}"), &token, "198.51.100.7")).await.expect(200, "");
    assert!(described.text.contains(&format!("https://cloud.example/f/{handle}/hello")), "{}", described.text);
    house.stopped().await;
}

#[tokio::test]
async fn rates_count_for_clients_behind_a_trusted_proxy() {
    let rate = ["--rate-limit-per-client", "1"];
    let house = House::start(&[&rate[..], &["--trusted-proxies", "127.0.0.1"]].concat()).await;
    for client in 1..=20 {
        house.ask(forwarded("/", "", &format!("198.51.100.{client}"))).await.expect(200, "");
    }
    house.stopped().await;
    // Nobody else chooses his address.
    let house = House::start(&rate).await;
    let mut refused = false;
    for client in 1..=20 {
        refused |= house.ask(forwarded("/", "", &format!("198.51.100.{client}"))).await.status == 429;
    }
    assert!(refused);
    house.stopped().await;
}

#[tokio::test]
async fn a_trusted_proxy_has_the_connections_of_many() {
    let flags = ["--max-connections-per-address", "1", "--trusted-proxies", "127.0.0.1"];
    let house = House::start(&flags).await;
    let _first = TcpStream::connect(house.address).await.unwrap();
    house.until_metric("dartcloud_gateway_connections 1").await;
    house.ask(get("/", "")).await.expect(200, "");
    house.stopped().await;
}
