//! Raw bytes on the public port: what hyper and the gate make of them together.

use std::time::Duration;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use super::house::{House, PATIENCE};

async fn check(house: &House, request: &str, expected: &str) {
    let answer = house.raw(request.as_bytes()).await;
    let status = answer.split(' ').nth(1).unwrap_or("nothing");
    assert_eq!(status, expected, "{request:?}: {answer}");
}

#[tokio::test]
async fn one_reading_or_none() {
    let house = House::start(&[]).await;
    let get = |rest: &str| format!("GET / HTTP/1.1\r\n{rest}\r\n");
    let with = |rest: &str| format!("POST /x HTTP/1.1\r\nHost: a\r\n{rest}");
    for (request, expected) in [
        (get("Host: a\r\n"), "200"),
        (get(""), "400"),
        (get("Host: a\r\nHost: a\r\n"), "400"),
        (get("Host:\r\n"), "400"),
        (get("Host: a b\r\n"), "400"),
        (get("Host: a\r\n folded: x\r\n"), "400"),
        (get("Host : a\r\n"), "400"),
        (get("Host: a\r\nX: a\0b\r\n"), "400"),
        ("GET http://b/ HTTP/1.1\r\nHost: a\r\n\r\n".into(), "400"),
        ("GET http://a/ HTTP/1.1\r\nHost: a\r\n\r\n".into(), "200"),
        ("GET /f/../x HTTP/1.1\r\nHost: a\r\n\r\n".into(), "400"),
        ("GET /f/%2e%2e/x HTTP/1.1\r\nHost: a\r\n\r\n".into(), "400"),
        ("GET /f/a%00 HTTP/1.1\r\nHost: a\r\n\r\n".into(), "400"),
        ("GET x HTTP/1.1\r\nHost: a\r\n\r\n".into(), "400"),
        ("TRACE / HTTP/1.1\r\nHost: a\r\n\r\n".into(), "405"),
        ("CONNECT a:80 HTTP/1.1\r\nHost: a:80\r\n\r\n".into(), "405"),
        ("OPTIONS * HTTP/1.1\r\nHost: a\r\n\r\n".into(), "400"),
        ("GET / HTTP/1.0\r\n\r\n".into(), "400"),
        ("GET / HTTP/1.0\r\nHost: a\r\n\r\n".into(), "200"),
        ("GET / HTTP/3.0\r\nHost: a\r\n\r\n".into(), "400"),
        // A client that speaks HTTP/2 unasked is cut off.
        ("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".into(), "nothing"),
        (with("Content-Length: 1\r\nContent-Length: 2\r\n\r\nab"), "400"),
        // Equal lengths are one length, and hyper passes on one.
        (with("Content-Length: 1\r\nContent-Length: 1\r\n\r\na"), "404"),
        (with("Content-Length: +1\r\n\r\na"), "400"),
        (with("Transfer-Encoding: gzip\r\n\r\n"), "400"),
        (with("Transfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n"), "400"),
        (with("Transfer-Encoding: chunked\r\n\r\n0\r\n\r\n"), "404"),
        (with("Expect: else\r\n\r\n"), "400"),
        (with("Upgrade: websocket\r\nConnection: upgrade\r\n\r\n"), "404"),
    ] {
        check(&house, &request, expected).await;
    }
    house.stopped().await;
}

#[tokio::test]
async fn sizes() {
    let house = House::start(&[]).await;
    let lines = |count: usize| (0..count).map(|n| format!("X-{n}: y\r\n")).collect::<String>();
    let head = |rest: String| format!("GET / HTTP/1.1\r\nHost: a\r\n{rest}\r\n");
    check(&house, &head(lines(99)), "200").await;
    check(&house, &head(lines(101)), "431").await;
    check(&house, &head(format!("X: {}\r\n", "y".repeat(31 * 1024))), "200").await;
    check(&house, &head(format!("X: {}\r\n", "y".repeat(33 * 1024))), "431").await;
    check(&house, &head(format!("X: {}\r\n", "y".repeat(63 * 1024))), "431").await;
    check(&house, &format!("GET /{} HTTP/1.1\r\nHost: a\r\n\r\n", "y".repeat(9 * 1024)), "414").await;
    house.stopped().await;
}

/// The gate's own refusals are complete errors; a lying length neither hides a second request nor reaches a node.
#[tokio::test]
async fn a_refusal_says_why() {
    let house = House::start(&[]).await;
    let answer = house.raw(b"GET /%2e%2e HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n").await;
    assert!(answer.contains("x-request-id: ") && answer.contains("content-type: application/json"), "{answer}");
    let smuggled = "POST /x HTTP/1.1\r\nHost: a\r\nContent-Length: 6\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\nGET / HTTP/1.1\r\nHost: a\r\n\r\n";
    let answer = house.raw(smuggled.as_bytes()).await;
    assert_eq!(answer.matches("HTTP/1.1 ").count(), 1, "{answer}");
    house.stopped().await;
}

/// Ten seconds for a head, however often a byte comes.
#[tokio::test]
async fn a_head_that_drips_is_cut_off() {
    let house = House::start(&[]).await;
    let mut stream = tokio::net::TcpStream::connect(house.address).await.unwrap();
    stream.write_all(b"GET / HTTP/1.1\r\nHost: a\r\nX: ").await.unwrap();
    let (mut read, mut write) = stream.split();
    let mut drip = tokio::time::interval(Duration::from_millis(500));
    let mut answer = Vec::new();
    let closed = async {
        loop {
            tokio::select! {
                _ = drip.tick() => if write.write_all(b"x").await.is_err() { break },
                got = read.read_buf(&mut answer) => if matches!(got, Ok(0) | Err(_)) { break },
            }
        }
    };
    tokio::time::timeout(PATIENCE, closed).await.unwrap();
    assert!(!String::from_utf8_lossy(&answer).contains(" 200 "));
    house.stopped().await;
}

/// A refusal does not ask a client that waits to send its body after all.
#[tokio::test]
async fn nobody_is_asked_to_send_what_is_refused() {
    let house = House::start(&[]).await;
    let head = "POST /f/a/b HTTP/1.1\r\nHost: a\r\nExpect: 100-continue\r\nContent-Length: 5\r\n\r\n";
    check(&house, head, "404").await;
    house.stopped().await;
}
