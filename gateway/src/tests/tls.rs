//! TLS on the public port: one gate for both protocols, certificates that change, and who does not shake hands.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures_util::future::join_all;
use http::{Request, Uri};
use http_body_util::{BodyExt as _, Full};
use hyper::client::conn::http2;
use hyper_util::rt::{TokioExecutor, TokioIo};
use rcgen::{CertifiedKey, generate_simple_self_signed};
use rustls::pki_types::CertificateDer;
use rustls::{ClientConfig, RootCertStore};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use super::house::{House, PATIENCE, get, post, read, until};
use super::node::Node;

const HTTP1: &[&[u8]] = &[b"http/1.1"];
pub(super) const BOTH: &[&[u8]] = &[b"h2", b"http/1.1"];

/// A certificate and its key as files, and clients that believe all that ever lay there.
pub(super) struct Files {
    directory: tempfile::TempDir,
    roots: RootCertStore,
}

impl Files {
    pub(super) fn new() -> Self {
        let mut files = Self { directory: tempfile::tempdir().unwrap(), roots: RootCertStore::empty() };
        files.renew();
        files
    }

    /// Puts a fresh certificate into them.
    fn renew(&mut self) -> CertificateDer<'static> {
        let CertifiedKey { cert, signing_key } = generate_simple_self_signed(["cloud.example".to_owned()]).unwrap();
        self.write("cert.pem", &cert.pem());
        self.write("key.pem", &signing_key.serialize_pem());
        self.roots.add(cert.der().clone()).unwrap();
        cert.der().clone()
    }

    fn write(&self, name: &str, text: &str) {
        std::fs::write(self.path().join(name), text).unwrap();
    }

    fn path(&self) -> &Path {
        self.directory.path()
    }

    pub(super) fn client(&self, protocols: &[&[u8]]) -> Arc<ClientConfig> {
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let builder = ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions().unwrap();
        let mut config = builder.with_root_certificates(self.roots.clone()).with_no_client_auth();
        config.alpn_protocols = protocols.iter().map(|protocol| protocol.to_vec()).collect();
        Arc::new(config)
    }

    /// A gateway that serves with them.
    pub(super) async fn house(&self, flags: &[&str]) -> House {
        let paths = ["cert.pem", "key.pem"].map(|name| self.path().join(name).display().to_string());
        let tls = ["--tls-cert-file", &paths[0], "--tls-key-file", &paths[1]];
        let mut house = House::start(&[&tls[..], flags].concat()).await;
        house.tls = Some(self.client(HTTP1));
        house
    }
}

pub(super) async fn http2(house: &House, files: &Files) -> http2::SendRequest<Full<Bytes>> {
    let stream = house.shake(files.client(BOTH)).await.unwrap();
    assert_eq!(stream.get_ref().1.alpn_protocol(), Some(&b"h2"[..]));
    let (sender, connection) = http2::handshake(TokioExecutor::new(), TokioIo::new(stream)).await.unwrap();
    tokio::spawn(connection);
    sender
}

/// The same request as HTTP/2 has it.
pub(super) fn named(mut request: Request<Full<Bytes>>) -> Request<Full<Bytes>> {
    let host = request.headers_mut().remove("host").unwrap();
    let uri = format!("https://{}{}", host.to_str().unwrap(), request.uri());
    *request.uri_mut() = uri.parse::<Uri>().unwrap();
    request
}

#[tokio::test]
async fn one_gate_for_both_protocols() {
    let files = Files::new();
    let house = files.house(&[]).await;
    let node = Node::join(&house.socket).await;
    house.until_nodes(1).await;
    let (handle, token) = house.user("ann@example.com").await;
    let id = house.deploy(&token, "hello", "{}").await;
    let mut sender = http2(&house, &files).await;
    let path = |rest: &str| format!("/f/{handle}/hello{rest}");

    let mut call = post(&path("/a?b=c"), &token, r#"{"n":1}"#);
    call.headers_mut().insert("x-forwarded-for", "1.1.1.1".parse().unwrap());
    call.headers_mut().append("cookie", "a=1".parse().unwrap());
    let mut seen = Vec::new();
    for answer in [house.ask(call.clone()).await, {
        let mut call = named(call);
        call.headers_mut().append("cookie", "b=2".parse().unwrap());
        read(sender.send_request(call).await.unwrap()).await
    }] {
        let answer = answer.expect(200, "");
        assert!(answer.headers.get("connection").is_none() && answer.headers.contains_key("server-timing"));
        let mut json = answer.json();
        json["headers"].as_object_mut().unwrap().retain(|name, _| !name.starts_with("dartcloud-"));
        seen.push(json);
    }
    assert_eq!(seen[1]["headers"]["cookie"], "a=1; b=2");
    seen[1]["headers"]["cookie"] = "a=1".into();
    assert_eq!(seen[0], seen[1]);
    let headers = &seen[0]["headers"];
    assert_eq!((&headers["x-forwarded-for"], &headers["x-forwarded-proto"]), (&"127.0.0.1".into(), &"https".into()));

    let api = get(&format!("/api/functions/{id}"), &token);
    let described = read(sender.send_request(named(api)).await.unwrap()).await.expect(200, "");
    assert!(described.text.contains(&format!("https://cloud.example/f/{handle}/hello")), "{}", described.text);
    for (refused, status, code) in [
        (get("/f/%2e%2e/x", ""), 400, "bad_request"),
        (get(&path(""), ""), 401, "unauthorized"),
        (get("/nowhere", ""), 404, "not_found"),
        (call_with_lines(101), 431, "headers_too_large"),
        (get(&format!("/{}", "y".repeat(9 * 1024)), ""), 414, "uri_too_long"),
    ] {
        read(sender.send_request(named(refused)).await.unwrap()).await.expect(status, code);
    }
    let calls = (0..100).map(|_| sender.send_request(named(get(&path("/many"), &token)))).collect::<Vec<_>>();
    for answer in join_all(calls).await {
        read(answer.unwrap()).await;
    }
    drop(node);
    house.stopped().await;
}

fn call_with_lines(lines: usize) -> Request<Full<Bytes>> {
    let mut request = get("/", "");
    for line in 0..lines {
        let name = http::HeaderName::try_from(format!("x-{line}")).unwrap();
        request.headers_mut().insert(name, "y".parse().unwrap());
    }
    request
}

#[tokio::test]
async fn a_new_certificate_is_for_new_connections() {
    let mut files = Files::new();
    let house = files.house(&[]).await;
    let mut old = http2(&house, &files).await;
    let shown = async |files: &Files| {
        let stream = house.shake(files.client(BOTH)).await.unwrap();
        stream.get_ref().1.peer_certificates().unwrap()[0].clone().into_owned()
    };
    let until_shown = async |files: &Files, certificate: &CertificateDer<'_>| {
        let until = Instant::now() + PATIENCE;
        while shown(files).await != *certificate {
            assert!(Instant::now() < until, "the new certificate is never shown");
        }
    };
    let second = files.renew();
    until_shown(&files, &second).await;
    read(old.send_request(named(get("/", ""))).await.unwrap()).await.expect(200, "");
    files.write("key.pem", "not a key");
    house.until_metric("dartcloud_gateway_tls_files_unusable 1").await;
    assert_eq!(shown(&files).await, second, "what cannot be used changes nothing");
    let third = files.renew();
    house.until_metric("dartcloud_gateway_tls_files_unusable 0").await;
    until_shown(&files, &third).await;
    read(old.send_request(named(get("/", ""))).await.unwrap()).await.expect(200, "");
    house.stopped().await;
}

#[tokio::test]
async fn who_does_not_shake_hands() {
    let files = Files::new();
    let house = files.house(&["--max-connections", "2", "--max-connections-per-address", "2"]).await;
    let results = |result: &str| format!("dartcloud_gateway_tls_handshakes_total{{result=\"{result}\"}} 1");
    let plain = house.raw(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n").await;
    assert!(plain.starts_with("HTTP/1.1 400 ") && plain.contains("Connection: close"), "{plain}");
    house.until_metric(&results("plain")).await;
    assert_eq!(house.raw(b"\x16\x03\x01\x00\x05hello").await.find("HTTP"), None);
    house.until_metric(&results("failed")).await;
    house.until_metric("dartcloud_gateway_connections 0").await;
    // Half a hello, and then nothing; and one that never says anything.
    let mut slow = TcpStream::connect(house.address).await.unwrap();
    slow.write_all(b"\x16\x03\x01").await.unwrap();
    let mut silent = TcpStream::connect(house.address).await.unwrap();
    house.until_metric("dartcloud_gateway_connections 2").await;
    // Connections count from their first moment.
    assert!(house.shake(files.client(BOTH)).await.is_err());
    house.until_metric("dartcloud_gateway_connections_refused_total 1").await;
    for stream in [&mut slow, &mut silent] {
        let closed = tokio::time::timeout(PATIENCE, stream.read(&mut [0])).await.unwrap();
        assert!(matches!(closed, Ok(0) | Err(_)), "{closed:?}");
    }
    house.until_metric("dartcloud_gateway_tls_handshakes_total{result=\"slow\"} 2").await;
    house.ask(get("/", "")).await.expect(200, "");
    house.stopped().await;
}

#[tokio::test]
async fn a_stream_that_is_not_read_is_cut_and_no_other() {
    let files = Files::new();
    let house = files.house(&[]).await;
    let node = Node::join(&house.socket).await;
    house.until_nodes(1).await;
    let (handle, token) = house.user("ann@example.com").await;
    house.deploy(&token, "hello", "{}").await;
    let mut sender = http2(&house, &files).await;
    let call = |rest: &str| named(get(&format!("/f/{handle}/hello{rest}"), &token));
    let deaf = sender.send_request(call("/large")).await.unwrap();
    until("the node's connection is given up", || node.state.ended.load(Ordering::Relaxed) == 1).await;
    read(sender.send_request(call("/")).await.unwrap()).await.expect(200, "");
    assert!(deaf.into_body().collect().await.is_err());
    house.stopped().await;
}

#[tokio::test]
async fn a_stop_loses_no_stream_and_waits_for_no_silence() {
    let files = Files::new();
    let house = files.house(&["--drain-seconds", "15"]).await;
    let node = Node::join(&house.socket).await;
    house.until_nodes(1).await;
    let (handle, token) = house.user("ann@example.com").await;
    house.deploy(&token, "slow", "{}").await;
    let mut busy = http2(&house, &files).await;
    let hang = named(get(&format!("/f/{handle}/slow/hang"), &token));
    let call = tokio::spawn(busy.send_request(hang));
    until("the call hangs", || node.state.hanging.load(Ordering::Relaxed) == 1).await;
    let idle = http2(&house, &files).await;
    let _silent = TcpStream::connect(house.address).await.unwrap();
    house.begin_stop();
    // It says goodbye, and takes nothing more.
    until("the idle connection ends", || idle.is_closed()).await;
    node.state.go.add_permits(1);
    let answered = read(call.await.unwrap().unwrap()).await;
    assert_eq!(answered.status, 200);
    let answered = Instant::now();
    house.stopped().await;
    assert!(answered.elapsed() < Duration::from_secs(8), "{:?}", answered.elapsed());
}
