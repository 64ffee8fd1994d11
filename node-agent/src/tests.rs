//! The whole agent over real Docker, against a gateway's end of the link: builds, calls, records, and the stop. It
//! needs root, the Engine, the image `local/debian:bookworm`, and the static runner in `RUNNER_PATH`.

use std::collections::{BTreeMap, HashMap};
use std::convert::Infallible;
use std::process::Command;
use std::sync::Mutex;

use clap::Parser as _;
use common::digest::Digest;
use common::function::Limits;
use common::ids::FunctionId;
use common::invocation::{Outcome, Record};
use common::phases::ColdCause;
use common::protocol::{
    AUTH_US, BuildEvent, DEPLOYMENT, FORM, FORM_ENVELOPE, FORM_HTTP, GATE_US, GatewayMessage, Kind, OUTCOME, TIMING,
    TOOK_US,
};
use http::Method;
use http_body_util::Full;
use hyper::client::conn::http1::SendRequest;
use hyper_util::rt::TokioIo;
use serde_json::{Value, json};

use super::*;
use crate::link::tests::{Control, Gateway};
use crate::station::node_id;

const DEADLINE: Duration = Duration::from_secs(120);

/// A language whose build needs no network: the recipe prints, fails on demand, and leaves `out/main`.
const RUNTIME: &str = r#"
priority = 1
detect = [["main"]]
entrypoints = ["main"]

[build]
images = ["local/debian:bookworm", "debian:bookworm-slim"]
command = ["sh", "-c", "echo building; test ! -e broken || { echo no good >&2; exit 3; }; mkdir out; cp main out/main"]
output = "out"

[run]
images = ["local/debian:bookworm", "debian:bookworm-slim"]
command = ["sh", "/function/{entrypoint}"]
"#;

/// Does as the request's path says.
const FUNCTION: &str = r#"
echo "said $GREETING"
case "$(cat /request.json)" in
    *'"path":"/crash"'*) echo '{"body":{"error":"broke"}}' > /result.json; exit 3 ;;
    *'"path":"/hang"'*) sleep 60 ;;
    *'"path":"/nothing"'*) ;;
    *) printf '{"body":{"got":%s},"statusCode":201,"headers":{"x-fn":"1"}}' "$(cat /request.json)" > /result.json ;;
esac
"#;

#[derive(clap::Parser)]
struct Flags {
    #[command(flatten)]
    settings: Settings,
    #[command(flatten)]
    shared: Shared,
    #[command(flatten)]
    store: StoreArgs,
}

/// What the gateway's end keeps.
#[derive(Default)]
struct GatewayEnd {
    archives: Mutex<HashMap<Digest, Bytes>>,
    builds: Mutex<HashMap<String, Bytes>>,
    deployments: Mutex<HashMap<DeploymentId, DeploymentSpec>>,
    records: Mutex<Vec<Record>>,
}

impl GatewayEnd {
    fn add(&self, files: &[(&str, &str)]) -> DeploymentSpec {
        let mut tar = tar::Builder::new(flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast()));
        for (name, text) in files {
            let mut header = tar::Header::new_gnu();
            header.set_size(text.len() as u64);
            header.set_mode(0o644);
            tar.append_data(&mut header, name, text.as_bytes()).unwrap();
        }
        let archive = Bytes::from(tar.into_inner().unwrap().finish().unwrap());
        let digest = Digest::of(&archive);
        self.archives.lock().unwrap().insert(digest, archive);
        let spec = DeploymentSpec {
            deployment: DeploymentId::new(),
            function: FunctionId::new(),
            version: 1,
            runtime: "shell".parse().unwrap(),
            entrypoint: "main".into(),
            archive: digest,
            archive_root: None,
            limits: Limits { timeout_ms: 1500, memory_mb: 32, concurrency: 4, min_warm: 0 },
            env: BTreeMap::from([("GREETING".to_owned(), "hello".to_owned())]),
            contract: common::function::Contract::File,
            egress: false,
            stale_while_cold_ms: 0,
            node_selector: common::labels::Labels::NONE,
        };
        self.deployments.lock().unwrap().insert(spec.deployment, spec.clone());
        spec
    }

    async fn answer(&self, request: Request<Incoming>) -> Response<Full<Bytes>> {
        let (method, path) = (request.method().clone(), request.uri().path().to_owned());
        let body = request.into_body().collect().await.unwrap().to_bytes();
        let (_, kind, key) = {
            let mut words = path.splitn(3, '/');
            (words.next(), words.next().unwrap().to_owned(), words.next().unwrap_or_default().to_owned())
        };
        let found = match (&method, kind.as_str()) {
            (&Method::GET, "archives") => self.archives.lock().unwrap().get(&key.parse().unwrap()).cloned(),
            (&Method::GET, "builds") => self.builds.lock().unwrap().get(&key).cloned(),
            (&Method::GET, "deployments") => {
                let spec = self.deployments.lock().unwrap().get(&key.parse().unwrap()).cloned();
                spec.map(|spec| serde_json::to_vec(&spec).unwrap().into())
            }
            (&Method::PUT, "builds") => {
                self.builds.lock().unwrap().insert(key, body);
                Some(Bytes::new())
            }
            (&Method::POST, "records") => {
                self.records.lock().unwrap().extend(serde_json::from_slice::<Vec<Record>>(&body).unwrap());
                Some(Bytes::new())
            }
            _ => None,
        };
        let status = if found.is_some() { 200 } else { 404 };
        Response::builder().status(status).body(Full::new(found.unwrap_or_default())).unwrap()
    }

    async fn serve(self: Arc<Self>, stream: tokio::net::UnixStream) {
        let service = hyper::service::service_fn(|request| async { Ok::<_, Infallible>(self.answer(request).await) });
        // A connection that the agent cuts is no concern of this end.
        let _ = hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(stream), service).await;
    }
}

/// An agent that runs, and a work connection to it.
struct Running {
    data: tempfile::TempDir,
    work: SendRequest<Full<Bytes>>,
    stop: CancellationToken,
    agent: tokio::task::JoinHandle<Result<(), StartError>>,
    gateway: tokio::task::JoinHandle<()>,
}

impl Running {
    async fn start(kept: &Arc<GatewayEnd>) -> Self {
        let mut gateway = Gateway::new();
        let data = tempfile::tempdir().unwrap();
        let runtimes = data.path().join("runtimes");
        std::fs::create_dir(&runtimes).unwrap();
        std::fs::write(runtimes.join("shell.toml"), RUNTIME).unwrap();
        let runtimes = runtimes.to_str().unwrap();
        let flags = ["agent", "--runtimes-dir", runtimes, "--sandbox-memory-mb", "256", "--max-request-mb", "1"];
        let Flags { mut settings, mut shared, store } = Flags::parse_from(flags);
        shared.place.data_dir = data.path().to_owned();
        shared.place.link_socket = Some(gateway.socket());
        let runner = std::env::var_os("RUNNER_PATH").expect("set RUNNER_PATH to the static `dartcloud-runner`");
        settings.sandbox.runner_path = Some(runner.into());
        let stop = CancellationToken::new();
        let agent = run(settings, shared, store, Registry::new(), Readiness::default(), stop.clone());
        let agent = tokio::spawn(agent);
        let mut control = Control::of(gateway.next(Kind::Control).await);
        control.hear().await;
        control.say(&GatewayMessage::Welcome { protocol: common::protocol::VERSION }).await;
        let work = gateway.next_work().await;
        let kept = Arc::clone(kept);
        let gateway = tokio::spawn(async move {
            let heard = async {
                loop {
                    control.hear().await;
                }
            };
            let served = async {
                loop {
                    tokio::spawn(Arc::clone(&kept).serve(gateway.next(Kind::Calls).await));
                }
            };
            tokio::select! { () = heard => {}, () = served => {} }
        });
        Self { data, work, stop, agent, gateway }
    }

    async fn build(&mut self, spec: &DeploymentSpec) -> Vec<BuildEvent> {
        let order = Request::post("/").header("host", "node").header(ORDER, ORDER_BUILD);
        let order = order.body(Full::new(serde_json::to_vec(spec).unwrap().into())).unwrap();
        let answer = self.send(order).await.into_body();
        answer
            .split(|byte| *byte == b'\n')
            .filter(|line| !line.is_empty())
            .map(|line| serde_json::from_slice(line).unwrap())
            .collect()
    }

    /// A call: form, path and body in; status, outcome and body out.
    async fn call(&mut self, spec: &DeploymentSpec, form: &str, path: &str, body: Bytes) -> (u16, String, Value) {
        let request = Request::post(path)
            .header("host", "example.test")
            .header("content-type", "application/json")
            .header("authorization", "Bearer secret")
            .header(ORDER, ORDER_INVOKE)
            .header(DEPLOYMENT, spec.deployment.to_string())
            .header(INVOCATION, InvocationId::new().to_string())
            .header(FORM, form)
            .header(GATE_US, "7")
            // As an older gateway says nothing.
            .header(AUTH_US, "");
        let answer = self.send(request.body(Full::new(body)).unwrap()).await;
        let outcome = answer.headers().get(OUTCOME).map_or("", |value| value.to_str().unwrap()).to_owned();
        assert!(answer.headers()[TOOK_US].to_str().unwrap().parse::<u64>().unwrap() > 0);
        if outcome == "success" {
            assert!(answer.headers()[TIMING].to_str().unwrap().contains("fn;dur="));
            assert_eq!(answer.headers().contains_key("x-fn"), form == FORM_HTTP);
        }
        let status = answer.status().as_u16();
        (status, outcome, serde_json::from_slice(answer.body()).unwrap())
    }

    async fn send(&mut self, request: Request<Full<Bytes>>) -> Response<Bytes> {
        tokio::time::timeout(DEADLINE, async {
            self.work.ready().await.unwrap();
            let (head, body) = self.work.send_request(request).await.unwrap().into_parts();
            Response::from_parts(head, body.collect().await.unwrap().to_bytes())
        })
        .await
        .expect("an answer in time")
    }

    async fn stop(self) {
        let node = node_id(self.data.path()).unwrap();
        self.stop.cancel();
        tokio::time::timeout(DEADLINE, self.agent).await.unwrap().unwrap().unwrap();
        self.gateway.abort();
        let label = format!("label=dartcloud.node={node}");
        let left = Command::new("docker").args(["ps", "-aq", "--filter", &label]).output().unwrap();
        assert!(left.status.success() && left.stdout.is_empty(), "a container is left behind: {left:?}");
    }
}

fn built(events: &[BuildEvent]) -> Option<bool> {
    match events.last() {
        Some(BuildEvent::Built { cached, .. }) => Some(*cached),
        _ => None,
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn builds_calls_and_records() {
    let kept = Arc::new(GatewayEnd::default());
    let mut agent = Running::start(&kept).await;
    let spec = kept.add(&[("main", FUNCTION)]);
    let events = agent.build(&spec).await;
    assert_eq!(events[0], BuildEvent::Log { line: "building".into() });
    assert_eq!(built(&events), Some(false), "{events:?}");
    assert_eq!(built(&agent.build(&spec).await), Some(true));
    let broken = kept.add(&[("main", FUNCTION), ("broken", "")]);
    let events = agent.build(&broken).await;
    assert!(events.contains(&BuildEvent::Log { line: "no good".into() }), "{events:?}");
    let Some(BuildEvent::Failed { reason }) = events.last() else { panic!("{events:?}") };
    assert!(reason.contains("exited with 3"), "{reason}");

    let (status, outcome, body) = agent.call(&spec, FORM_HTTP, "/a?b=c", br#"{"n":1.0}"#[..].into()).await;
    assert_eq!((status, outcome.as_str()), (201, "success"), "{body}");
    assert_eq!((&body["got"]["body"], &body["got"]["query"]), (&json!({"n": 1.0}), &json!({"b": "c"})));
    let envelope = br#"{"body":{"m":2},"path":"/x"}"#[..].into();
    let (status, _, body) = agent.call(&spec, FORM_ENVELOPE, "/", envelope).await;
    assert_eq!((status, &body["success"], &body["result"]["got"]["body"]), (200, &json!(true), &json!({"m": 2})));
    let failures = [("/crash", 502, "crashed"), ("/hang", 504, "timed_out"), ("/nothing", 502, "invalid_result")];
    for (path, status, outcome) in failures {
        let got = agent.call(&spec, FORM_HTTP, path, Bytes::new()).await;
        assert_eq!((got.0, got.1.as_str()), (status, outcome), "{path}: {}", got.2);
        assert_eq!(got.2["success"], json!(false));
    }
    assert_eq!(agent.call(&spec, FORM_HTTP, "/", b"{"[..].into()).await.0, 400);
    assert_eq!(agent.call(&spec, FORM_HTTP, "/", vec![b' '; (1 << 20) + 1].into()).await.0, 413);
    let unknown = DeploymentSpec { deployment: DeploymentId::new(), ..spec.clone() };
    assert_eq!(agent.call(&unknown, FORM_HTTP, "/", Bytes::new()).await.0, 404);
    agent.stop().await;
    check_records(&kept.records.lock().unwrap(), &spec);

    // Another node finds the build where the first has stored it.
    assert_eq!(kept.builds.lock().unwrap().len(), 1);
    kept.archives.lock().unwrap().clear();
    let mut agent = Running::start(&kept).await;
    assert_eq!(agent.call(&spec, FORM_HTTP, "/", Bytes::new()).await.0, 201);
    agent.stop().await;
}

fn check_records(records: &[Record], spec: &DeploymentSpec) {
    let outcomes: Vec<_> = records.iter().map(|record| record.outcome).collect();
    let expected = [Outcome::Success, Outcome::Success, Outcome::Crashed, Outcome::TimedOut, Outcome::InvalidResult];
    assert_eq!(outcomes, expected);
    let codes: Vec<_> = records.iter().map(|record| record.logs.container.as_ref().unwrap().exit_code).collect();
    assert_eq!(codes, [0, 0, 3, -1, 0]);
    assert!(records[0].cold && !records[1].cold);
    let cause = |record: &Record| record.phases.cold_cause;
    assert_eq!((cause(&records[0]), cause(&records[1])), (Some(ColdCause::FirstCall), None));
    for record in records {
        assert_eq!((record.function, record.deployment), (spec.function, spec.deployment));
        let phases = record.phases;
        assert_eq!((phases.gate_us, phases.auth_us, phases.cold_us.is_some()), (Some(7), None, record.cold));
        let parts = phases.queue_us.unwrap() + phases.cold_us.unwrap_or_default() + phases.fn_us.unwrap();
        assert!(phases.total_us.unwrap() >= parts, "{phases:?}");
        assert_eq!(record.logs.container.as_ref().unwrap().stdout, "said hello\n");
        let text = serde_json::to_string(record).unwrap();
        assert!(!text.contains("secret"), "{text}");
    }
    let error = |record: &Record| common::base64::decode(record.error.as_ref().unwrap()).unwrap();
    assert_eq!(error(&records[2]), b"Function execution failed: exit code 3: broke");
    assert_eq!(error(&records[3]), b"Function execution timed out (1500ms)");
    assert_eq!(records[1].request_info.path, "/x");
}

#[test]
fn a_node_keeps_its_id_and_its_directory() {
    let directory = tempfile::tempdir().unwrap();
    let held = lock(directory.path()).unwrap();
    assert!(matches!(lock(directory.path()), Err(StartError::Locked(_))));
    drop(held);
    lock(directory.path()).unwrap();
    let node = node_id(directory.path()).unwrap();
    assert_eq!(node_id(directory.path()).unwrap(), node);
    std::fs::write(directory.path().join("node-id"), "no").unwrap();
    assert!(matches!(node_id(directory.path()), Err(StartError::NodeId(_))));
}
