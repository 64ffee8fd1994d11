//! The stop: what is in flight is answered, what is silent is closed, and nothing waits for nothing.

use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use tokio::io::AsyncReadExt as _;
use tokio::net::TcpStream;

use super::house::{House, get, read, until};
use crate::StartError;

#[tokio::test]
async fn a_call_in_flight_is_answered() {
    let (house, node) = House::with_node(&[]).await;
    let (handle, token) = house.user("ann@example.com").await;
    house.deploy(&token, "slow", "{}").await;
    let mut busy = house.connect().await;
    let call = tokio::spawn(busy.send_request(get(&format!("/f/{handle}/slow/hang"), &token)));
    until("the call hangs", || node.state.hanging.load(Ordering::Relaxed) == 1).await;
    // One that is open and silent, and one that was used once.
    let mut silent = TcpStream::connect(house.address).await.unwrap();
    let mut used = house.connect().await;
    assert_eq!(read(used.send_request(get("/", "")).await.unwrap()).await.status, 200);
    house.begin_stop();
    until("not ready", || !house.readiness.get()).await;
    // It is still there for who is connected, and says goodbye.
    used.ready().await.unwrap();
    let last = read(used.send_request(get("/", "")).await.unwrap()).await;
    assert_eq!((last.status.as_u16(), last.headers["connection"].to_str().unwrap()), (200, "close"));
    assert_eq!(silent.read(&mut [0]).await.unwrap(), 0);
    node.state.go.add_permits(1);
    let answered = read(call.await.unwrap().unwrap()).await;
    assert_eq!((answered.status.as_u16(), answered.headers["connection"].to_str().unwrap()), (200, "close"));
    house.stopped().await;
}

#[tokio::test]
async fn an_idle_gateway_stops_at_once() {
    let (house, _node) = House::with_node(&["--drain-seconds", "15"]).await;
    let _silent = TcpStream::connect(house.address).await.unwrap();
    house.until_metric("dartcloud_gateway_connections 1").await;
    let started = Instant::now();
    house.stopped().await;
    assert!(started.elapsed() < Duration::from_secs(5), "{:?}", started.elapsed());
}

#[tokio::test]
async fn a_call_that_does_not_end_is_cut_off() {
    let (house, node) = House::with_node(&["--drain-seconds", "1"]).await;
    let (handle, token) = house.user("ann@example.com").await;
    house.deploy(&token, "slow", "{}").await;
    let mut busy = house.connect().await;
    let call = tokio::spawn(busy.send_request(get(&format!("/f/{handle}/slow/hang"), &token)));
    until("the call hangs", || node.state.hanging.load(Ordering::Relaxed) == 1).await;
    house.stopped().await;
    assert!(call.await.unwrap().is_err());
}

#[tokio::test]
async fn a_second_gateway_is_refused_before_it_does_damage() {
    let house = House::start(&[]).await;
    let upload = house.data_dir().join("functions/incoming/upload");
    std::fs::write(&upload, "half of an archive").unwrap();
    let refused = house.second().await;
    assert!(matches!(refused, Err(StartError::Locked(_))), "{refused:?}");
    assert!(upload.exists());
    house.ask(get("/", "")).await.expect(200, "");
    house.stopped().await;
}
