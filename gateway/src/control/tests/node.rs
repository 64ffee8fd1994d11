//! A node as far as the gateway can tell: it dials the link, registers, and answers build orders as it is told.

use std::convert::Infallible;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use common::function::DeploymentSpec;
use common::ids::{DeploymentId, NodeId};
use common::labels::Labels;
use common::protocol::{AgentMessage, BuildEvent, GatewayMessage, HEARTBEAT_MS, Hello, Kind, NodeState, VERSION};
use futures_util::{SinkExt as _, StreamExt as _, stream};
use http::{Request, Response};
use http_body::Frame;
use http_body_util::{BodyExt as _, StreamBody};
use hyper::body::Incoming;
use hyper_util::rt::TokioIo;
use tokio::io::AsyncWriteExt as _;
use tokio::net::UnixStream;
use tokio::sync::{Semaphore, mpsc};
use tokio_util::codec::{Framed, LengthDelimitedCodec};
use tokio_util::task::AbortOnDropHandle;

/// What the node says of a build.
type Script = Box<dyn Fn(&DeploymentSpec) -> Vec<BuildEvent> + Send + Sync>;

/// A node; dropped, it is gone.
pub(super) struct Node {
    inner: Arc<Inner>,
    _control: AbortOnDropHandle<()>,
}

struct Inner {
    id: NodeId,
    socket: PathBuf,
    script: Mutex<Script>,
    /// A build takes a permit before it says anything; there are plenty until [`Node::hold`].
    gate: Semaphore,
    /// Builds that have been ordered.
    orders: Mutex<Vec<DeploymentSpec>>,
    retired: Mutex<Vec<DeploymentId>>,
}

const PLENTY: u32 = 1000;

impl Node {
    /// Dials `socket`. Builds succeed after one line, `hello from the build`.
    pub(super) fn dial(socket: &Path) -> Self {
        let script: Script = Box::new(|_| {
            vec![
                BuildEvent::Log { line: "hello from the build".into() },
                BuildEvent::Built { build_ms: 12, cached: false },
            ]
        });
        let inner = Arc::new(Inner {
            id: NodeId::new(),
            socket: socket.to_owned(),
            script: Mutex::new(script),
            gate: Semaphore::new(PLENTY as usize),
            orders: Mutex::default(),
            retired: Mutex::default(),
        });
        let control = tokio::spawn(control(Arc::clone(&inner)));
        Self { inner, _control: AbortOnDropHandle::new(control) }
    }

    /// What it says of builds from now on.
    pub(super) fn says(&self, script: impl Fn(&DeploymentSpec) -> Vec<BuildEvent> + Send + Sync + 'static) {
        *self.inner.script.lock().unwrap() = Box::new(script);
    }

    /// Builds wait from now on.
    pub(super) async fn hold(&self) {
        self.inner.gate.acquire_many(PLENTY).await.unwrap().forget();
    }

    /// Builds that wait go on, and later ones do not wait.
    pub(super) fn go_on(&self) {
        self.inner.gate.add_permits(PLENTY as usize);
    }

    pub(super) fn orders(&self) -> Vec<DeploymentSpec> {
        self.inner.orders.lock().unwrap().clone()
    }

    pub(super) fn retired(&self) -> Vec<DeploymentId> {
        self.inner.retired.lock().unwrap().clone()
    }
}

async fn hello(inner: &Inner, kind: Kind) -> UnixStream {
    let mut stream = UnixStream::connect(&inner.socket).await.unwrap();
    let mut line = serde_json::to_vec(&Hello { protocol: VERSION, node: inner.id, kind, epoch: 0 }).unwrap();
    line.push(b'\n');
    stream.write_all(&line).await.unwrap();
    stream
}

async fn control(inner: Arc<Inner>) {
    let mut frames = Framed::new(hello(&inner, Kind::Control).await, LengthDelimitedCodec::new());
    let frame = |message: &AgentMessage| Bytes::from(serde_json::to_vec(message).unwrap());
    let register = AgentMessage::Register {
        name: "test".into(),
        max_connections: 64,
        deployments: Vec::new(),
        labels: Labels::default(),
        learns_authorities: false,
    };
    frames.send(frame(&register)).await.unwrap();
    let mut work = tokio::task::JoinSet::new();
    for _ in 0..4 {
        work.spawn(serve(Arc::clone(&inner)));
    }
    let mut beat = tokio::time::interval(Duration::from_millis(HEARTBEAT_MS));
    loop {
        let message = tokio::select! {
            message = frames.next() => message,
            _ = beat.tick() => {
                frames.send(frame(&AgentMessage::Heartbeat(NodeState::default()))).await.unwrap();
                continue;
            }
        };
        let Some(Ok(message)) = message else { return };
        match serde_json::from_slice(&message).unwrap() {
            GatewayMessage::Retire { deployments } => inner.retired.lock().unwrap().extend(deployments),
            GatewayMessage::Dial { connections } => {
                (0..connections).for_each(|_| drop(work.spawn(serve(Arc::clone(&inner)))));
            }
            GatewayMessage::Welcome { .. }
            | GatewayMessage::Keep { .. }
            | GatewayMessage::Tell
            | GatewayMessage::Authorities { .. }
            | GatewayMessage::Successor => {}
            GatewayMessage::Refused { reason } => panic!("{reason}"),
        }
    }
}

/// One work connection.
async fn serve(inner: Arc<Inner>) {
    let stream = hello(&inner, Kind::Work).await;
    let service = hyper::service::service_fn(|request: Request<Incoming>| {
        let inner = Arc::clone(&inner);
        async move {
            let spec = request.into_body().collect().await.unwrap().to_bytes();
            let spec: DeploymentSpec = serde_json::from_slice(&spec).unwrap();
            inner.orders.lock().unwrap().push(spec.clone());
            let (lines, body) = mpsc::channel(1);
            tokio::spawn(async move {
                let _permit = inner.gate.acquire().await.unwrap();
                let events = (inner.script.lock().unwrap())(&spec);
                for event in events {
                    let mut line = serde_json::to_vec(&event).unwrap();
                    line.push(b'\n');
                    if lines.send(line).await.is_err() {
                        return;
                    }
                }
            });
            let body = stream::unfold(body, |mut body| async {
                let line = body.recv().await?;
                Some((Ok::<_, Infallible>(Frame::data(Bytes::from(line))), body))
            });
            Ok::<_, Infallible>(Response::new(StreamBody::new(Box::pin(body))))
        }
    });
    // The gateway closes it when it likes.
    let _ = hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(stream), service).await;
}
