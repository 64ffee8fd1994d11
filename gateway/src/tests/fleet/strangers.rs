//! Who opens the node port's connections and says nothing, or nonsense.

use super::*;

#[tokio::test(flavor = "multi_thread")]
async fn who_says_nothing_leaves_the_port_to_others() {
    let door = Door::open().await;
    let mut silent = Vec::new();
    for _ in 0..=MAX_HANDSHAKES_EACH {
        silent.push(TcpStream::connect(door.address).await.unwrap());
    }
    door.house.until_metric("dartcloud_gateway_links_refused_total 1").await;
    let elsewhere = TcpSocket::new_v4().unwrap();
    elsewhere.bind("127.0.0.2:0".parse().unwrap()).unwrap();
    let stream = elsewhere.connect(door.address).await.unwrap();
    let _stranger = timeout(PATIENCE, door.shake_over(stream, None)).await.unwrap();
    // All seats come back.
    drop(silent);
    let refused = MAX_HANDSHAKES_EACH + 1;
    door.house.until_metric(&format!("dartcloud_gateway_links_refused_total {refused}")).await;
    timeout(PATIENCE, door.shake(None)).await.unwrap();
    door.house.stopped().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn half_open_connections_are_closed() {
    let door = Door::open().await;
    let mut silent = TcpStream::connect(door.address).await.unwrap();
    let mut shaken = door.shake(None).await;
    let mut broken = TcpStream::connect(door.address).await.unwrap();
    broken.write_all(b"GET / HTTP/1.1\r\n\r\n").await.unwrap();
    let end = |mut stream: TcpStream| async move {
        let mut rest = Vec::new();
        timeout(PATIENCE, stream.read_to_end(&mut rest)).await.unwrap().ok();
    };
    let begun = Instant::now();
    end(broken).await;
    assert!(begun.elapsed() < Duration::from_secs(4), "{:?}", begun.elapsed());
    let mut byte = [0];
    let silence = timeout(PATIENCE, silent.read(&mut byte));
    let (silence, ()) = tokio::join!(silence, closed(&mut shaken));
    assert!(matches!(silence.unwrap(), Ok(0) | Err(_)));
    // Meanwhile, and after it, others come in.
    door.join().await;
    door.house.stopped().await;
}
