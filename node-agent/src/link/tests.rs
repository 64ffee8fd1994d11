//! The link against a gateway's end of it: real sockets, frames and HTTP.

use std::collections::VecDeque;
use std::path::PathBuf;
use std::sync::Mutex;

use common::digest::Digest;
use common::function::{DeploymentSpec, Limits};
use common::ids::NodeId;
use common::protocol::{AgentMessage, GatewayMessage, Hello, Kind, MAX_HELLO_BYTES, VERSION};
use futures_util::{SinkExt as _, StreamExt as _};
use http_body_util::{BodyExt as _, Full};
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use prometheus::Registry;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::{Notify, Semaphore};
use tokio::time::timeout;
use tokio_util::codec::{Framed, LengthDelimitedCodec};

use super::calls::{CallError, Calls};
use super::*;

mod succession;
mod tells;

const DEADLINE: Duration = Duration::from_secs(20);

/// A gateway's end: accepts, reads the hello, and keeps what came.
pub(crate) struct Gateway {
    listener: UnixListener,
    directory: tempfile::TempDir,
    waiting: VecDeque<(Kind, UnixStream)>,
}

impl Gateway {
    pub(crate) fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let listener = UnixListener::bind(directory.path().join("link.sock")).unwrap();
        Self { listener, directory, waiting: VecDeque::new() }
    }

    pub(crate) fn socket(&self) -> PathBuf {
        self.directory.path().join("link.sock")
    }

    fn gateways(&self) -> Arc<Gateways> {
        Gateways::new(NodeId::new(), vec![Way::Unix(self.socket())])
    }

    /// The next connection of a kind.
    pub(crate) async fn next(&mut self, kind: Kind) -> UnixStream {
        timeout(DEADLINE, async {
            loop {
                if let Some(at) = self.waiting.iter().position(|(other, _)| *other == kind) {
                    return self.waiting.remove(at).unwrap().1;
                }
                let mut stream = self.listener.accept().await.unwrap().0;
                let hello = read_hello(&mut stream).await;
                assert_eq!(hello.protocol, VERSION);
                self.waiting.push_back((hello.kind, stream));
            }
        })
        .await
        .expect("a connection in time")
    }

    /// A control stream, registered and welcomed.
    async fn welcome(&mut self) -> Control {
        let mut control = Control::of(self.next(Kind::Control).await);
        assert!(matches!(control.hear().await, AgentMessage::Register { max_connections: 8, .. }));
        control.say(&GatewayMessage::Welcome { protocol: VERSION }).await;
        control
    }

    pub(crate) async fn next_work(&mut self) -> hyper::client::conn::http1::SendRequest<Full<Bytes>> {
        let stream = self.next(Kind::Work).await;
        let (sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.unwrap();
        tokio::spawn(connection);
        sender
    }
}

async fn read_hello(stream: &mut UnixStream) -> Hello {
    let mut line = Vec::new();
    loop {
        let byte = stream.read_u8().await.unwrap();
        if byte == b'\n' {
            return serde_json::from_slice(&line).unwrap();
        }
        line.push(byte);
        assert!(line.len() < MAX_HELLO_BYTES);
    }
}

pub(crate) struct Control(Framed<UnixStream, LengthDelimitedCodec>);

impl Control {
    pub(crate) fn of(stream: UnixStream) -> Self {
        Self(Framed::new(stream, LengthDelimitedCodec::new()))
    }

    pub(crate) async fn hear(&mut self) -> AgentMessage {
        let frame = timeout(DEADLINE, self.0.next()).await.unwrap().unwrap().unwrap();
        serde_json::from_slice(&frame).unwrap()
    }

    pub(crate) async fn say(&mut self, message: &GatewayMessage) {
        self.0.send(Bytes::from(serde_json::to_vec(message).unwrap())).await.unwrap();
    }
}

/// Answers with the path; `/slow` only when `go` is given.
struct Echo {
    begun: Notify,
    go: Semaphore,
    retired: Mutex<Vec<DeploymentId>>,
    retirement: Notify,
}

#[async_trait]
impl Orders for Echo {
    async fn answer(&self, request: Request<Incoming>) -> Response<AnswerBody> {
        let path = request.uri().path().to_owned();
        if path == "/slow" {
            self.begun.notify_one();
            self.go.acquire().await.unwrap().forget();
        }
        Response::new(Full::new(Bytes::from(path)).map_err(|never| match never {}).boxed_unsync())
    }

    fn state(&self) -> NodeState {
        NodeState { busy: 3, ..NodeState::default() }
    }

    fn retire(&self, deployments: &[DeploymentId]) {
        self.retired.lock().unwrap().extend(deployments);
        self.retirement.notify_one();
    }

    fn keep(&self, _: GatewayNumber, _: &[Warm]) {}
}

struct Agent {
    orders: Arc<Echo>,
    stops: Stops,
    readiness: Readiness,
    notices: Arc<Notices>,
    task: tokio::task::JoinHandle<()>,
}

fn start(gateway: &Gateway) -> Agent {
    start_with(gateway.gateways())
}

fn start_with(gateways: Arc<Gateways>) -> Agent {
    let orders = Arc::new(Echo {
        begun: Notify::new(),
        go: Semaphore::new(0),
        retired: Mutex::default(),
        retirement: Notify::new(),
    });
    let (stops, readiness, registry) = (Stops::default(), Readiness::default(), Registry::new());
    let notices = Arc::<Notices>::default();
    let links = Links {
        gateways,
        labels: Labels::default(),
        name: "test".into(),
        args: LinkArgs { link_max_connections: 8, link_idle_connections: 2 },
        orders: Arc::clone(&orders) as Arc<dyn Orders>,
        readiness: readiness.clone(),
        metrics: Metrics::new(&registry).unwrap(),
        told: Some(registry),
        notices: Arc::clone(&notices),
    };
    let task = tokio::spawn(links.run(stops.clone()));
    Agent { orders, stops, readiness, notices, task }
}

async fn get(sender: &mut hyper::client::conn::http1::SendRequest<Full<Bytes>>, path: &str) -> (Bytes, bool) {
    let request = Request::get(path).header("host", "x").body(Full::default()).unwrap();
    let answer = sender.send_request(request).await.unwrap();
    let closes = answer.headers().get("connection").is_some_and(|value| value == "close");
    (answer.into_body().collect().await.unwrap().to_bytes(), closes)
}

#[tokio::test]
async fn connections_are_kept_and_more_are_opened_when_they_are_taken() {
    let mut gateway = Gateway::new();
    let agent = start(&gateway);
    let mut control = gateway.welcome().await;
    assert!(matches!(control.hear().await, AgentMessage::Heartbeat(state) if state.busy == 3));
    let (mut first, mut second) = (gateway.next_work().await, gateway.next_work().await);
    assert_eq!(get(&mut first, "/a").await.0, "/a");
    assert_eq!(get(&mut first, "/b").await.0, "/b");
    let slow = tokio::spawn(async move { get(&mut second, "/slow").await.0 });
    agent.orders.begun.notified().await;
    // One of two is taken, so a third is opened without being asked for.
    let mut third = gateway.next_work().await;
    assert_eq!(get(&mut third, "/c").await.0, "/c");
    control.say(&GatewayMessage::Dial { connections: 100 }).await;
    let mut more = Vec::new();
    for _ in 3..8 {
        more.push(gateway.next_work().await);
    }
    agent.orders.go.add_permits(1);
    assert_eq!(slow.await.unwrap(), "/slow");
    let retired = DeploymentId::new();
    control.say(&GatewayMessage::Retire { deployments: vec![retired] }).await;
    timeout(DEADLINE, agent.orders.retirement.notified()).await.unwrap();
    assert_eq!(*agent.orders.retired.lock().unwrap(), [retired]);
    assert!(agent.readiness.get());
    agent.stops.leave.cancel();
    agent.stops.finish.cancel();
    timeout(DEADLINE, agent.task).await.unwrap().unwrap();
}

#[tokio::test]
async fn a_call_under_way_is_answered_after_the_stop() {
    let mut gateway = Gateway::new();
    let agent = start(&gateway);
    let mut control = gateway.welcome().await;
    let mut work = gateway.next_work().await;
    let slow = tokio::spawn(async move { get(&mut work, "/slow").await });
    agent.orders.begun.notified().await;
    agent.stops.leave.cancel();
    let ended = timeout(DEADLINE, async { while let Some(Ok(_)) = control.0.next().await {} }).await;
    assert!(ended.is_ok(), "the control stream ends first");
    agent.stops.finish.cancel();
    agent.orders.go.add_permits(1);
    let (body, closes) = slow.await.unwrap();
    assert_eq!(body, "/slow");
    assert!(closes);
    timeout(DEADLINE, agent.task).await.unwrap().unwrap();
}

#[tokio::test]
async fn the_agent_comes_back_to_a_gateway_that_went_away() {
    let mut gateway = Gateway::new();
    let agent = start(&gateway);
    drop(gateway.welcome().await);
    let mut control = gateway.welcome().await;
    assert!(matches!(control.hear().await, AgentMessage::Heartbeat(_)));
    assert!(agent.readiness.get());
    control.say(&GatewayMessage::Refused { reason: "too old".into() }).await;
    let mut control = Control::of(gateway.next(Kind::Control).await);
    assert!(matches!(control.hear().await, AgentMessage::Register { .. }));
    assert!(!agent.readiness.get());
    agent.stops.leave.cancel();
    agent.stops.finish.cancel();
    timeout(DEADLINE, agent.task).await.unwrap().unwrap();
}

fn spec() -> DeploymentSpec {
    DeploymentSpec {
        deployment: DeploymentId::new(),
        function: common::ids::FunctionId::new(),
        version: 1,
        runtime: "native".parse().unwrap(),
        entrypoint: "main".into(),
        archive: Digest::of(b"archive"),
        archive_root: None,
        limits: Limits { timeout_ms: 1000, memory_mb: 64, concurrency: 1, min_warm: 0 },
        env: std::collections::BTreeMap::new(),
        contract: common::function::Contract::File,
        egress: false,
        stale_while_cold_ms: 0,
        node_selector: common::labels::Labels::NONE,
    }
}

/// Serves what the calls below ask for.
async fn serve_calls(gateway: Gateway, spec: DeploymentSpec) {
    loop {
        let mut stream = gateway.listener.accept().await.unwrap().0;
        if read_hello(&mut stream).await.kind != Kind::Calls {
            continue;
        }
        let spec = spec.clone();
        let service = service_fn(move |request: Request<Incoming>| {
            let spec = spec.clone();
            async move {
                let (method, path) = (request.method().clone(), request.uri().path().to_owned());
                let body = request.into_body().collect().await.unwrap().to_bytes();
                let (status, answer) = if path == format!("/deployments/{}", spec.deployment) {
                    (200, serde_json::to_vec(&spec).unwrap())
                } else if path == format!("/archives/{}", spec.archive) {
                    (200, b"archive".to_vec())
                } else if path == format!("/archives/{}", Digest::of(b"other")) {
                    (200, b"not that".to_vec())
                } else if method == http::Method::PUT {
                    (if body == "packed" { 201 } else { 500 }, Vec::new())
                } else if path == "/records" {
                    (if body == "[]" { 204 } else { 422 }, b"no".to_vec())
                } else {
                    (404, Vec::new())
                };
                let answer = Response::builder().status(status).body(Full::new(Bytes::from(answer)));
                Ok::<_, std::convert::Infallible>(answer.unwrap())
            }
        });
        tokio::spawn(hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(stream), service));
    }
}

#[tokio::test]
async fn calls() {
    let gateway = Gateway::new();
    let (calls, spec) = (Calls::new(gateway.gateways()), spec());
    let serving = tokio::spawn(serve_calls(gateway, spec.clone()));
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("file");
    assert_eq!(calls.deployment(spec.deployment).await.unwrap().as_ref(), Some(&spec));
    assert!(calls.deployment(DeploymentId::new()).await.unwrap().is_none());
    assert!(calls.fetch_archive(spec.archive, &file, 7).await.unwrap());
    assert_eq!(std::fs::read(&file).unwrap(), b"archive");
    assert!(!calls.fetch_archive(Digest::of(b"none"), &file, 7).await.unwrap());
    assert!(matches!(calls.fetch_archive(spec.archive, &file, 6).await, Err(CallError::TooLarge(6))));
    let wrong = calls.fetch_archive(Digest::of(b"other"), &file, 100).await;
    assert!(matches!(wrong, Err(CallError::Digest(_))));
    std::fs::write(&file, "packed").unwrap();
    calls.put_build(spec.deployment, Digest::of(b"build"), &file).await.unwrap();
    assert!(!calls.fetch_build(spec.deployment, Digest::of(b"build"), &file, 100).await.unwrap());
    calls.post_records(&[]).await.unwrap();
    timeout(DEADLINE, calls.close()).await.unwrap();
    serving.abort();
}

#[tokio::test]
async fn each_gateway_has_a_link_and_whoever_can_is_asked() {
    let (mut one, mut two) = (Gateway::new(), Gateway::new());
    let gateways = Gateways::new(NodeId::new(), vec![Way::Unix(one.socket()), Way::Unix(two.socket())]);
    let agent = start_with(Arc::clone(&gateways));
    let first = one.welcome().await;
    let mut second = two.welcome().await;
    let mut work = two.next_work().await;
    assert_eq!(get(&mut work, "/a").await.0, "/a");
    // One gateway goes, for good: the other is still served, and asked.
    drop((first, one));
    assert!(matches!(second.hear().await, AgentMessage::Heartbeat(_)));
    assert!(agent.readiness.get());
    let (calls, spec) = (Calls::new(gateways), spec());
    let serving = tokio::spawn(serve_calls(two, spec.clone()));
    assert_eq!(calls.deployment(spec.deployment).await.unwrap().as_ref(), Some(&spec));
    assert_eq!(get(&mut work, "/b").await.0, "/b");
    calls.close().await;
    serving.abort();
    agent.stops.leave.cancel();
    agent.stops.finish.cancel();
    timeout(DEADLINE, agent.task).await.unwrap().unwrap();
}

#[tokio::test]
async fn a_call_without_a_gateway_fails() {
    let directory = tempfile::tempdir().unwrap();
    let calls = Calls::new(Gateways::new(NodeId::new(), vec![Way::Unix(directory.path().join("none"))]));
    assert!(matches!(calls.deployment(DeploymentId::new()).await, Err(CallError::Dial(_))));
}

/// Fetches a build from a gateway that gives one of these answers after the other.
async fn check_fetch(answers: &[&[u8]], expected: Result<bool, &str>) {
    let gateway = Gateway::new();
    let calls = Calls::new(gateway.gateways());
    let answers: Vec<_> = answers.iter().map(|answer| answer.to_vec()).collect();
    let serving = tokio::spawn(async move {
        for answer in answers {
            let mut stream = gateway.listener.accept().await.unwrap().0;
            read_hello(&mut stream).await;
            let mut head = Vec::new();
            while !head.ends_with(b"\r\n\r\n") {
                head.push(stream.read_u8().await.unwrap());
            }
            let length = if answer == CUT { 1000 } else { answer.len() };
            let begin = format!("HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: {length}\r\n\r\n");
            stream.write_all(begin.as_bytes()).await.unwrap();
            stream.write_all(&answer).await.unwrap();
        }
    });
    let directory = tempfile::tempdir().unwrap();
    let fetched = calls.fetch_build(DeploymentId::new(), Digest::of(b"b"), &directory.path().join("file"), 1000).await;
    assert_eq!(fetched.map_err(|error| error.to_string()), expected.map_err(str::to_owned));
    timeout(DEADLINE, serving).await.unwrap().unwrap();
}

/// A build of which the rest never comes.
const CUT: &[u8] = b"the beginning";

#[tokio::test]
async fn a_build_that_comes_damaged_is_fetched_once_more() {
    let whole = [b"build".as_slice(), Digest::of(b"build").bytes()].concat();
    let changed = [b"BUILD".as_slice(), Digest::of(b"build").bytes()].concat();
    check_fetch(&[&whole], Ok(true)).await;
    check_fetch(&[CUT, &whole], Ok(true)).await;
    check_fetch(&[&changed, &whole], Ok(true)).await;
    check_fetch(&[&changed, &changed], Err("the gateway sent a build that is not whole")).await;
    check_fetch(&[&changed, CUT], Err("a call to the gateway broke off")).await;
}
