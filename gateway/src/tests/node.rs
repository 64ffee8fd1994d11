//! A peer of the link protocol: it dials, registers, builds everything at once, and answers calls by their path.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use common::ids::NodeId;
use common::labels::Labels;
use common::protocol::{
    AgentMessage, BuildEvent, GatewayMessage, HEARTBEAT_MS, Hello, Kind, NodeState, ORDER, ORDER_BUILD, OUTCOME,
    TIMING, TOOK_US, VERSION, Warm,
};
use futures_util::{SinkExt as _, StreamExt as _};
use http::{Request, Response};
use http_body_util::{BodyExt as _, Full};
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper_util::rt::TokioIo;
use serde_json::json;
use tokio::io::AsyncWriteExt as _;
use tokio::net::UnixStream;
use tokio::sync::{Notify, Semaphore};
use tokio_util::codec::{Framed, LengthDelimitedCodec};
use tokio_util::sync::CancellationToken;

/// Work connections that it opens by itself.
const BASE: usize = 2;

pub(super) struct Node {
    pub(super) state: Arc<Peer>,
    /// Ends everything at once, as a power cut does.
    pub(super) cut: CancellationToken,
}

/// How it differs from others.
#[derive(Clone, Copy, Default)]
pub(super) struct Manner {
    pub(super) epoch: u64,
    /// Whether it opens no work connections.
    pub(super) is_deaf: bool,
    /// What its heartbeats say of its metrics.
    pub(super) tells: Option<bool>,
}

pub(super) struct Peer {
    socket: PathBuf,
    pub(super) node: NodeId,
    manner: Manner,
    /// Work connections that the gateway asked for.
    pub(super) asked: AtomicUsize,
    cut: CancellationToken,
    /// Calls of `/hang` that arrived.
    pub(super) hanging: AtomicUsize,
    /// Calls of `/hang` that were answered to their end.
    pub(super) finished: AtomicUsize,
    /// Lets calls of `/hang` go on.
    pub(super) go: Semaphore,
    /// Work connections that were opened.
    pub(super) dialled: AtomicUsize,
    /// Work connections that ended.
    pub(super) ended: AtomicUsize,
    /// What its heartbeats say.
    pub(super) says: Mutex<NodeState>,
    /// What it was told last to keep warm.
    pub(super) told: Mutex<Vec<Warm>>,
    /// Deployments that the gateway retired.
    pub(super) retired: Mutex<Vec<String>>,
    /// How often it was asked for its metrics.
    pub(super) scraped: AtomicUsize,
    /// Whether it answers that only when it is told to `speak`.
    pub(super) hush: AtomicBool,
    pub(super) speak: Notify,
}

impl Drop for Node {
    fn drop(&mut self) {
        self.cut.cancel();
    }
}

pub(super) async fn dial(socket: &Path, hello: &Hello) -> UnixStream {
    let mut stream = UnixStream::connect(socket).await.unwrap();
    let mut line = serde_json::to_vec(hello).unwrap();
    line.push(b'\n');
    stream.write_all(&line).await.unwrap();
    stream
}

pub(super) fn frames(stream: UnixStream) -> Framed<UnixStream, LengthDelimitedCodec> {
    Framed::new(stream, LengthDelimitedCodec::new())
}

pub(super) async fn say(frames: &mut Framed<UnixStream, LengthDelimitedCodec>, message: &AgentMessage) -> bool {
    frames.send(Bytes::from(serde_json::to_vec(message).unwrap())).await.is_ok()
}

impl Node {
    pub(super) async fn join(socket: &Path) -> Self {
        Self::join_as(socket, Manner::default()).await
    }

    pub(super) async fn join_as(socket: &Path, manner: Manner) -> Self {
        let cut = CancellationToken::new();
        let peer = Arc::new(Peer {
            socket: socket.to_owned(),
            node: NodeId::new(),
            manner,
            asked: AtomicUsize::new(0),
            cut: cut.clone(),
            hanging: AtomicUsize::new(0),
            finished: AtomicUsize::new(0),
            go: Semaphore::new(0),
            dialled: AtomicUsize::new(0),
            ended: AtomicUsize::new(0),
            says: Mutex::default(),
            told: Mutex::default(),
            retired: Mutex::default(),
            scraped: AtomicUsize::new(0),
            hush: AtomicBool::new(false),
            speak: Notify::new(),
        });
        let control = dial(socket, &peer.hello(Kind::Control)).await;
        tokio::spawn(until_cut(cut.clone(), peer.clone().control(control)));
        for _ in 0..if manner.is_deaf { 0 } else { BASE } {
            tokio::spawn(until_cut(cut.clone(), peer.clone().work()));
        }
        Self { state: peer, cut }
    }
}

async fn until_cut(cut: CancellationToken, work: impl Future<Output = ()>) {
    tokio::select! { () = work => {}, () = cut.cancelled() => {} }
}

impl Peer {
    pub(super) fn hello(&self, kind: Kind) -> Hello {
        Hello { protocol: VERSION, node: self.node, kind, epoch: self.manner.epoch }
    }

    async fn control(self: Arc<Self>, stream: UnixStream) {
        let mut frames = frames(stream);
        let register = AgentMessage::Register {
            name: "peer".into(),
            max_connections: 100,
            deployments: vec![],
            labels: Labels::default(),
            learns_authorities: false,
        };
        assert!(say(&mut frames, &register).await);
        let mut beat = tokio::time::interval(Duration::from_millis(HEARTBEAT_MS));
        loop {
            tokio::select! {
                _ = beat.tick() => {
                    let tells = self.manner.tells;
                    let state = NodeState { tells, ..self.says.lock().unwrap().clone() };
                    if !say(&mut frames, &AgentMessage::Heartbeat(state)).await {
                        return;
                    }
                }
                () = self.speak.notified() => {
                    let text = format!("peer_told {}\n", self.scraped.load(Ordering::Relaxed));
                    if !say(&mut frames, &AgentMessage::Metrics { text: Some(text) }).await {
                        return;
                    }
                }
                frame = frames.next() => match frame {
                    Some(Ok(frame)) => match serde_json::from_slice(&frame).unwrap() {
                        GatewayMessage::Dial { connections } => {
                            self.asked.fetch_add(connections as usize, Ordering::Relaxed);
                            let connections = if self.manner.is_deaf { 0 } else { connections };
                            for _ in 0..connections {
                                tokio::spawn(until_cut(self.cut.clone(), self.clone().work()));
                            }
                        }
                        GatewayMessage::Retire { deployments } => {
                            self.retired.lock().unwrap().extend(deployments.iter().map(ToString::to_string));
                        }
                        GatewayMessage::Keep { warm } => *self.told.lock().unwrap() = warm,
                        GatewayMessage::Tell => {
                            self.scraped.fetch_add(1, Ordering::Relaxed);
                            if !self.hush.load(Ordering::Relaxed) {
                                self.speak.notify_one();
                            }
                        }
                        GatewayMessage::Welcome { .. }
                        | GatewayMessage::Authorities { .. }
                        | GatewayMessage::Successor => {}
                        GatewayMessage::Refused { reason } => panic!("{reason}"),
                    },
                    _ => return,
                }
            }
        }
    }

    async fn work(self: Arc<Self>) {
        self.dialled.fetch_add(1, Ordering::Relaxed);
        let stream = dial(&self.socket, &self.hello(Kind::Work)).await;
        let peer = self.clone();
        let service = hyper::service::service_fn(move |request| peer.clone().obey(request));
        http1::Builder::new()
            .max_headers(128)
            .header_read_timeout(None)
            .serve_connection(TokioIo::new(stream), service)
            .await
            .ok();
        self.ended.fetch_add(1, Ordering::Relaxed);
    }

    async fn obey(self: Arc<Self>, request: Request<Incoming>) -> Result<Response<Full<Bytes>>, &'static str> {
        if request.headers()[ORDER] == ORDER_BUILD {
            let log = serde_json::to_string(&BuildEvent::Log { line: "built".into() }).unwrap();
            let built = serde_json::to_string(&BuildEvent::Built { build_ms: 1, cached: false }).unwrap();
            return Ok(Response::new(Full::from(format!("{log}\n{built}\n"))));
        }
        let (parts, body) = request.into_parts();
        let path = parts.uri.path();
        let Ok(body) = body.collect().await else { return Err("the body broke off") };
        match path {
            "/die" => return Err("the plug is pulled"),
            "/hang" => {
                self.hanging.fetch_add(1, Ordering::Relaxed);
                self.go.acquire().await.unwrap().forget();
                self.finished.fetch_add(1, Ordering::Relaxed);
            }
            _ => {}
        }
        let headers: BTreeMap<_, _> =
            parts.headers.iter().map(|(name, value)| (name.as_str(), value.to_str().unwrap())).collect();
        let seen = json!({
            "node": self.node,
            "method": parts.method.as_str(),
            "target": parts.uri.to_string(),
            "headers": headers,
            "body": String::from_utf8_lossy(&body.to_bytes()),
        });
        let seen = if path == "/large" { json!("x".repeat(16 << 20)) } else { seen };
        let (status, outcome) = if path == "/crash" { (502, "crashed") } else { (200, "success") };
        let answer = Response::builder()
            .status(status)
            .header(OUTCOME, outcome)
            .header(TIMING, "queue;dur=0.002, fn;dur=0.001")
            .header(TOOK_US, "4")
            .header("x-own", "kept")
            .header("service-worker-allowed", "/")
            .body(Full::from(seen.to_string()));
        Ok(answer.unwrap())
    }
}
