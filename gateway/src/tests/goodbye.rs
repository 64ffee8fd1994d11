//! The end of connections of HTTP/2 where a successor takes the next: who has just come, and who reads slowly.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;
use http_body_util::Full;
use hyper::client::conn::http2::{Builder, SendRequest};
use hyper_util::rt::{TokioExecutor, TokioIo};
use rustls::pki_types::ServerName;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, DuplexStream};
use tokio::net::{TcpSocket, TcpStream};
use tokio::sync::watch;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use super::house::{House, get, post, read, until};
use super::node::Node;
use super::tls::{BOTH, Files, http2, named};

/// What a client's system takes for it before it reads, in bytes; the system doubles it.
const TAKEN: u32 = 16 * 1024;

/// What a client lets come before it says more, in bytes; it does so when it has read half of it.
const WINDOW: u32 = 160 * 1024;

/// An answer that fits the window, and of which the second half is more than the system takes.
const ANSWER: usize = 150_000;

/// The bytes of GOAWAY, of the PING behind it, and of the second GOAWAY.
const GOODBYE: usize = 3 * 17;

#[tokio::test]
async fn who_has_just_come_is_answered_once() {
    let files = Files::new();
    let house = files.house(&["--drain-seconds", "15"]).await;
    let mut used = http2(&house, &files).await;
    read(used.send_request(named(get("/", ""))).await.unwrap()).await.expect(200, "");
    let mut fresh = http2(&house, &files).await;
    house.until_metric("dartcloud_gateway_tls_handshakes_total{result=\"done\"} 2").await;
    house.begin_succession();
    until("the used connection ends", || used.is_closed()).await;
    read(fresh.send_request(named(get("/", ""))).await.unwrap()).await.expect(200, "");
    until("then the fresh one does", || fresh.is_closed()).await;
    let last = Instant::now();
    house.stopped().await;
    assert!(last.elapsed() < Duration::from_secs(8), "{:?}", last.elapsed());
}

/// A client that reads when it is let.
struct Reader {
    sender: SendRequest<Full<Bytes>>,
    port: u16,
    reads: watch::Sender<bool>,
    /// How many bytes it has read.
    heard: Arc<AtomicUsize>,
}

impl Reader {
    async fn connect(house: &House, files: &Files) -> Self {
        let socket = TcpSocket::new_v4().unwrap();
        socket.set_recv_buffer_size(TAKEN).unwrap();
        let stream = socket.connect(house.address).await.unwrap();
        let port = stream.local_addr().unwrap().port();
        let name = ServerName::try_from("cloud.example").unwrap();
        let stream = TlsConnector::from(files.client(BOTH)).connect(name, stream).await.unwrap();
        let (reads, may) = watch::channel(true);
        let heard = Arc::<AtomicUsize>::default();
        let mut builder = Builder::new(TokioExecutor::new());
        builder.initial_stream_window_size(WINDOW).initial_connection_window_size(WINDOW);
        let stream = let_through(stream, may, heard.clone());
        let (sender, connection) = builder.handshake(TokioIo::new(stream)).await.unwrap();
        tokio::spawn(connection);
        Self { sender, port, reads, heard }
    }
}

/// The client's end of a connection, on which bytes come while they may.
fn let_through(stream: TlsStream<TcpStream>, mut may: watch::Receiver<bool>, heard: Arc<AtomicUsize>) -> DuplexStream {
    let (near, far) = tokio::io::duplex(1024);
    let (mut from_gateway, mut to_gateway) = tokio::io::split(stream);
    let (mut from_client, mut to_client) = tokio::io::split(far);
    tokio::spawn(async move { tokio::io::copy(&mut from_client, &mut to_gateway).await });
    tokio::spawn(async move {
        let mut bytes = [0; 1024];
        while may.wait_for(|may| *may).await.is_ok() {
            let Ok(length @ 1..) = from_gateway.read(&mut bytes).await else { break };
            heard.fetch_add(length, Ordering::Relaxed);
            if to_client.write_all(&bytes[..length]).await.is_err() {
                break;
            }
        }
        to_client.shutdown().await.ok();
    });
    near
}

/// Whether the system holds a connection of this process whose own side is closed, and not all of which has been sent.
fn is_closing(ours: u16, theirs: u16) -> bool {
    const FIN_WAIT_1: &str = "04";
    let table = std::fs::read_to_string("/proc/net/tcp").unwrap();
    table.lines().any(|line| {
        let fields: Vec<_> = line.split_whitespace().collect();
        let [_, local, remote, state, ..] = fields[..] else { return false };
        let has = |address: &str, port: u16| address.ends_with(&format!(":{port:04X}"));
        has(local, ours) && has(remote, theirs) && state == FIN_WAIT_1
    })
}

#[tokio::test]
async fn who_reads_slowly_gets_the_end() {
    let files = Files::new();
    let house = files.house(&["--drain-seconds", "15"]).await;
    let node = Node::join(&house.socket).await;
    house.until_nodes(1).await;
    let (handle, token) = house.user("ann@example.com").await;
    house.deploy(&token, "slow", "{}").await;
    let Reader { mut sender, port, reads, heard } = Reader::connect(&house, &files).await;
    let hang = named(post(&format!("/f/{handle}/slow/hang"), &token, &"x".repeat(ANSWER)));
    let call = tokio::spawn(sender.send_request(hang));
    until("the call hangs", || node.state.hanging.load(Ordering::Relaxed) == 1).await;
    let before = heard.load(Ordering::Relaxed);
    house.begin_succession();
    until("it has heard the goodbye", || heard.load(Ordering::Relaxed) >= before + GOODBYE).await;
    // Now it does not read, and the gateway is done with it.
    reads.send_replace(false);
    node.state.go.add_permits(1);
    until("the gateway closes its side", || is_closing(house.address.port(), port)).await;
    reads.send_replace(true);
    let answer = read(call.await.unwrap().unwrap()).await.expect(200, "");
    assert_eq!(answer.json()["body"].as_str().unwrap().len(), ANSWER);
    house.stopped().await;
}
