//! A gateway in this process, users and functions on it, and a client.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use bytes::Bytes;
use clap::Parser as _;
use common::ops::{More, Readiness};
use common::settings::Shared;
use http::{HeaderMap, Method, Request, StatusCode};
use http_body_util::{BodyExt as _, Full};
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use prometheus::{Registry, TextEncoder};
use rustls::ClientConfig;
use rustls::pki_types::ServerName;
use serde_json::Value;
use store::StoreArgs;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use tokio_util::sync::CancellationToken;

use super::node::Node;
use crate::targets::Targets;
use crate::{Gateway, Settings, StartError, Succession};

/// How long any one wait of a test may take.
pub(super) const PATIENCE: Duration = Duration::from_secs(20);

#[derive(clap::Parser)]
struct Arguments {
    #[command(flatten)]
    shared: Shared,
    #[command(flatten)]
    store: StoreArgs,
    #[command(flatten)]
    settings: Settings,
}

impl Arguments {
    fn of(data_dir: &Path, flags: &[&str]) -> Self {
        let data_dir = data_dir.display().to_string();
        let fixed = [
            "test",
            "--data-dir",
            &data_dir,
            "--port",
            "0",
            "--edge-threads",
            "2",
            "--jwt-secret",
            "a secret of tests, long enough for HS256",
        ];
        Self::parse_from(fixed.iter().chain(flags))
    }
}

pub(super) struct House {
    pub(super) address: SocketAddr,
    pub(super) socket: PathBuf,
    pub(super) registry: Registry,
    pub(super) readiness: Readiness,
    /// Pages of the ops listener, which there is none of here.
    pub(super) pages: More,
    /// How its users shake hands, where it speaks TLS.
    pub(super) tls: Option<Arc<ClientConfig>>,
    stop: CancellationToken,
    to_successor: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
    directory: tempfile::TempDir,
}

/// An answer, read to its end.
#[derive(Debug)]
pub(super) struct Answer {
    pub(super) status: StatusCode,
    pub(super) headers: HeaderMap,
    pub(super) text: String,
}

impl Answer {
    pub(super) fn json(&self) -> Value {
        serde_json::from_str(&self.text).unwrap_or_else(|error| panic!("{error}: {}", self.text))
    }

    /// Expects a status and, of an error, its word in a complete error body.
    #[track_caller]
    pub(super) fn expect(self, status: u16, code: &str) -> Self {
        assert_eq!(self.status.as_u16(), status, "{self:?}");
        let id = self.headers["x-request-id"].to_str().unwrap().to_owned();
        assert_eq!(id.len(), 36);
        if status >= 400 {
            let body = self.json();
            assert_eq!((&body["code"], &body["request_id"]), (&code.into(), &id.into()), "{body}");
        }
        self
    }
}

impl House {
    /// A gateway with these flags, and a node that is linked.
    pub(super) async fn with_node(flags: &[&str]) -> (Self, Node) {
        let house = Self::start(flags).await;
        let node = Node::join(&house.socket).await;
        house.until_nodes(1).await;
        (house, node)
    }

    /// A gateway with these flags.
    pub(super) async fn start(flags: &[&str]) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let Arguments { shared, store, settings } = Arguments::of(&directory.path().join("data"), flags);
        let (registry, readiness, stop) = (Registry::new(), Readiness::default(), CancellationToken::new());
        let pages = More::default();
        let socket = shared.place.link_socket();
        let (bound, binds) = tokio::sync::oneshot::channel();
        let thread = std::thread::spawn({
            let (registry, readiness, stop) = (registry.clone(), readiness.clone(), stop.clone());
            let pages = pages.clone();
            move || {
                let gateway = Gateway::build(settings, &shared, &store, &registry, readiness, stop, Succession::none());
                let gateway = gateway.unwrap();
                pages.bring(Targets::of(&gateway.edge.fleet));
                let to_successor = gateway.edge.to_successor.clone();
                bound.send((gateway.socket.local_addr().unwrap(), to_successor)).unwrap();
                gateway.serve();
            }
        });
        let (address, to_successor) = tokio::time::timeout(PATIENCE, binds).await.unwrap().unwrap();
        let thread = Some(thread);
        Self { address, socket, registry, readiness, pages, tls: None, stop, to_successor, thread, directory }
    }

    /// Where the gateway keeps everything.
    pub(super) fn data_dir(&self) -> PathBuf {
        self.directory.path().join("data")
    }

    /// What becomes of a second gateway on the same directory.
    pub(super) async fn second(&self) -> Result<(), StartError> {
        let Arguments { shared, store, settings } = Arguments::of(&self.data_dir(), &[]);
        let build = move || {
            let (registry, stop) = (Registry::new(), CancellationToken::new());
            let readiness = Readiness::default();
            Gateway::build(settings, &shared, &store, &registry, readiness, stop, Succession::none()).map(drop)
        };
        tokio::task::spawn_blocking(build).await.unwrap()
    }

    /// Tells the gateway to stop.
    pub(super) fn begin_stop(&self) {
        self.stop.cancel();
    }

    /// The same, as if a successor accepted clients.
    pub(super) fn begin_succession(&self) {
        self.to_successor.store(true, Ordering::Release);
        self.begin_stop();
    }

    /// Waits until the gateway has stopped.
    pub(super) async fn stopped(mut self) {
        self.stop.cancel();
        let thread = self.thread.take().unwrap();
        let join = tokio::task::spawn_blocking(move || thread.join());
        tokio::time::timeout(PATIENCE, join).await.unwrap().unwrap().unwrap();
        assert!(!self.socket.exists());
    }

    pub(super) fn metrics(&self) -> String {
        TextEncoder::new().encode_to_string(&self.registry.gather()).unwrap()
    }

    /// Waits until the metrics have this line.
    pub(super) async fn until_metric(&self, line: &str) {
        until(line, || self.metrics().lines().any(|one| one == line)).await;
    }

    pub(super) async fn until_nodes(&self, count: usize) {
        self.until_metric(&format!("dartcloud_gateway_nodes {count}")).await;
    }

    pub(super) async fn connect(&self) -> http1::SendRequest<Full<Bytes>> {
        match &self.tls {
            None => converse(TcpStream::connect(self.address).await.unwrap()).await,
            Some(tls) => converse(self.shake(tls.clone()).await.unwrap()).await,
        }
    }

    /// A connection that has shaken hands.
    pub(super) async fn shake(&self, tls: Arc<ClientConfig>) -> std::io::Result<TlsStream<TcpStream>> {
        let stream = TcpStream::connect(self.address).await?;
        let name = ServerName::try_from("cloud.example").unwrap();
        tokio::time::timeout(PATIENCE, TlsConnector::from(tls).connect(name, stream)).await?
    }

    /// One request on a connection of its own.
    pub(super) async fn ask(&self, request: Request<Full<Bytes>>) -> Answer {
        let mut sender = self.connect().await;
        read(tokio::time::timeout(PATIENCE, sender.send_request(request)).await.unwrap().unwrap()).await
    }

    /// Bytes as they are, and all that comes back until the gateway closes, or until a whole head is there.
    pub(super) async fn raw(&self, bytes: &[u8]) -> String {
        let mut stream = TcpStream::connect(self.address).await.unwrap();
        stream.write_all(bytes).await.unwrap();
        let mut answer = Vec::new();
        let whole = async {
            while !answer.windows(4).any(|end| end == b"\r\n\r\n") {
                if stream.read_buf(&mut answer).await.unwrap() == 0 {
                    break;
                }
            }
        };
        tokio::time::timeout(PATIENCE, whole).await.unwrap();
        String::from_utf8_lossy(&answer).into_owned()
    }

    /// Registers somebody, and gives his handle and token.
    pub(super) async fn user(&self, email: &str) -> (String, String) {
        let body = format!(r#"{{"email":"{email}","password":"correct horse"}}"#);
        let post = |path: &str| call(Method::POST, path, "", &body);
        let user = self.ask(post("/api/auth/register")).await.expect(201, "").json();
        let token = self.ask(post("/api/auth/login")).await.expect(200, "").json();
        (user["handle"].as_str().unwrap().to_owned(), token["accessToken"].as_str().unwrap().to_owned())
    }

    /// Deploys a function with these settings, and gives its id.
    pub(super) async fn deploy(&self, token: &str, name: &str, settings: &str) -> String {
        let answer = self.ask(upload(token, name, settings)).await;
        let answer = if answer.status == 200 { answer.expect(200, "") } else { answer.expect(201, "") };
        answer.json()["id"].as_str().unwrap().to_owned()
    }
}

impl Drop for House {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

async fn converse(stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static) -> http1::SendRequest<Full<Bytes>> {
    let (sender, connection) = http1::handshake(TokioIo::new(stream)).await.unwrap();
    tokio::spawn(connection);
    sender
}

/// Waits for a condition.
pub(super) async fn until(what: &str, condition: impl Fn() -> bool) {
    let wait = async {
        while !condition() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    assert!(tokio::time::timeout(PATIENCE, wait).await.is_ok(), "never: {what}");
}

pub(super) async fn read(response: http::Response<hyper::body::Incoming>) -> Answer {
    let (parts, body) = response.into_parts();
    let bytes = tokio::time::timeout(PATIENCE, body.collect()).await.unwrap().unwrap().to_bytes();
    let text = String::from_utf8_lossy(&bytes).into_owned();
    Answer { status: parts.status, headers: parts.headers, text }
}

/// The phases of a `Server-Timing` header in their order, in microseconds.
pub(super) fn timing(headers: &http::HeaderMap) -> Vec<(String, u64)> {
    let text = headers["server-timing"].to_str().unwrap();
    let phase = |part: &str| {
        let (name, rest) = part.split_once(';').unwrap();
        let ms: f64 = rest.rsplit_once("dur=").unwrap().1.parse().unwrap();
        (name.to_owned(), (ms * 1000.0).round() as u64)
    };
    text.split(", ").map(phase).collect()
}

/// A request with a JSON body, or none.
pub(super) fn call(method: Method, path: &str, token: &str, body: &str) -> Request<Full<Bytes>> {
    let mut request = Request::builder().method(method).uri(path).header("host", "cloud.example");
    if !token.is_empty() {
        request = request.header("authorization", format!("Bearer {token}"));
    }
    if !body.is_empty() {
        request = request.header("content-type", "application/json");
    }
    request.body(Full::from(body.to_owned())).unwrap()
}

pub(super) fn get(path: &str, token: &str) -> Request<Full<Bytes>> {
    call(Method::GET, path, token, "")
}

pub(super) fn post(path: &str, token: &str, body: &str) -> Request<Full<Bytes>> {
    call(Method::POST, path, token, body)
}

/// The deploy of an archive with an executable `main`.
pub(super) fn upload(token: &str, name: &str, settings: &str) -> Request<Full<Bytes>> {
    let mut archive = tar::Builder::new(flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast()));
    let mut header = tar::Header::new_gnu();
    header.set_size(3);
    header.set_mode(0o755);
    archive.append_data(&mut header, "main", &b"#!x"[..]).unwrap();
    let archive = archive.into_inner().unwrap().finish().unwrap();
    let field = |name: &str| format!("--edge\r\nContent-Disposition: form-data; name=\"{name}\"");
    let mut form = Vec::new();
    form.extend_from_slice(format!("{}\r\n\r\n{name}\r\n", field("name")).as_bytes());
    form.extend_from_slice(format!("{}\r\n\r\n{settings}\r\n", field("settings")).as_bytes());
    let file = "; filename=\"a.tar.gz\"\r\nContent-Type: application/gzip";
    form.extend_from_slice(format!("{}{file}\r\n\r\n", field("archive")).as_bytes());
    form.extend_from_slice(&archive);
    form.extend_from_slice(b"\r\n--edge--\r\n");
    let mut request = post("/api/functions/deploy", token, "").map(|_| Full::from(form));
    request.headers_mut().insert("content-type", "multipart/form-data; boundary=edge".parse().unwrap());
    request
}
