//! The node port from outside: what joins, what is refused and told why, and what a node can ask for.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use common::base64;
use common::digest::Digest;
use common::ids::{DeploymentId, NodeId};
use common::join_token::JoinToken;
use common::labels::Labels;
use common::protocol::{
    AgentMessage, Credential, DEPLOYMENT, GATEWAY_NAME, GatewayMessage, Hello, JoinAnswer, JoinRequest, Kind, Renewal,
    VERSION,
};
use common::runtime::Runtimes;
use futures_util::{FutureExt as _, SinkExt as _, StreamExt as _};
use http::{Method, Request, StatusCode};
use http_body_util::Full;
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use rcgen::{CertificateParams, KeyPair};
use rustls::pki_types::{CertificateDer, PrivatePkcs8KeyDer, ServerName};
use rustls::{ClientConfig, RootCertStore};
use store::{Store, StoreArgs};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpSocket, TcpStream};
use tokio::time::{Instant, timeout};
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use tokio_util::codec::{Framed, LengthDelimitedCodec};

mod strangers;

use super::house::{Answer, House, PATIENCE, call, get, post, read};
use super::node::Node;
use crate::fleet::node_port::MAX_HANDSHAKES_EACH;

/// A gateway with a node port, and its operator.
pub(super) struct Door {
    pub(super) house: House,
    pub(super) address: SocketAddr,
    pub(super) token: String,
    pub(super) store: Arc<dyn Store>,
}

/// What a machine has that joined.
pub(super) struct Member {
    node: NodeId,
    certificate: CertificateDer<'static>,
    key: KeyPair,
}

pub(super) type Stream = TlsStream<TcpStream>;

impl Door {
    pub(super) async fn open() -> Self {
        let free = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        let house = House::start(&["--node-addr", &free.to_string(), "--node-certificate-seconds", "60"]).await;
        let (_, token) = house.user("operator@example.org").await;
        let store = store::open(&StoreArgs::default(), &house.data_dir()).await.unwrap();
        Self { house, address: free, token, store }
    }

    pub(super) async fn invite(&self) -> JoinToken {
        let answer = self.house.ask(post("/api/nodes/tokens", &self.token, "")).await.expect(201, "").json();
        let line = answer["command"].as_str().unwrap();
        assert_eq!(line, format!("dartcloud node join https://{} {}", self.address, answer["token"].as_str().unwrap()));
        answer["token"].as_str().unwrap().parse().unwrap()
    }

    /// TLS as `member`, or without a certificate.
    async fn shake(&self, member: Option<&Member>) -> Stream {
        self.shake_over(TcpStream::connect(self.address).await.unwrap(), member).await
    }

    async fn shake_over(&self, tcp: TcpStream, member: Option<&Member>) -> Stream {
        let authority = self.store.authorities().await.unwrap().unwrap().current.certificate;
        self.shake_with(authority, tcp, member).await
    }

    /// The same, by whoever trusts this authority alone.
    pub(super) async fn shake_with(&self, authority: Vec<u8>, tcp: TcpStream, member: Option<&Member>) -> Stream {
        let mut roots = RootCertStore::empty();
        roots.add(CertificateDer::from(authority)).unwrap();
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let config = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_root_certificates(roots);
        let config = match member {
            None => config.with_no_client_auth(),
            Some(member) => {
                let key = PrivatePkcs8KeyDer::from(member.key.serialize_der());
                config.with_client_auth_cert(vec![member.certificate.clone()], key.into()).unwrap()
            }
        };
        let name = ServerName::try_from(GATEWAY_NAME).unwrap();
        TlsConnector::from(Arc::new(config)).connect(name, tcp).await.unwrap()
    }

    pub(super) async fn dial(&self, member: Option<&Member>, hello: &Hello) -> Stream {
        let mut stream = self.shake(member).await;
        let mut line = serde_json::to_vec(hello).unwrap();
        line.push(b'\n');
        stream.write_all(&line).await.unwrap();
        stream
    }

    async fn ask_to_join(&self, protocol: u32, secret: String, key: &KeyPair) -> JoinAnswer {
        let stream = self.dial(None, &Hello { protocol, node: NodeId::new(), kind: Kind::Join, epoch: 0 }).await;
        let request = base64::encode(CertificateParams::default().serialize_request(key).unwrap().der());
        let mut frames = Framed::new(stream, LengthDelimitedCodec::new());
        let request = JoinRequest { secret, name: "a machine".into(), request };
        frames.send(Bytes::from(serde_json::to_vec(&request).unwrap())).await.unwrap();
        serde_json::from_slice(&heard(&mut frames).await).unwrap()
    }

    pub(super) async fn join(&self) -> Member {
        let (token, key) = (self.invite().await, KeyPair::generate().unwrap());
        match self.ask_to_join(VERSION, token.secret(), &key).await {
            JoinAnswer::Joined(credential) => Member::of(&credential, key),
            JoinAnswer::Refused { reason } => panic!("{reason}"),
        }
    }

    async fn refused(&self, protocol: u32, secret: String, part: &str) {
        match self.ask_to_join(protocol, secret, &KeyPair::generate().unwrap()).await {
            JoinAnswer::Refused { reason } => assert!(reason.contains(part), "{reason}"),
            JoinAnswer::Joined(credential) => panic!("{credential:?}, expected: {part}"),
        }
    }

    /// A control stream that says `hello` and registers, and what it hears first.
    pub(super) async fn control(&self, member: Option<&Member>, hello: &Hello) -> (Control, GatewayMessage) {
        let mut control = Framed::new(self.dial(member, hello).await, LengthDelimitedCodec::new());
        let register = AgentMessage::Register {
            name: "a machine".into(),
            max_connections: 8,
            deployments: vec![],
            labels: Labels::default(),
            learns_authorities: false,
        };
        control.send(Bytes::from(serde_json::to_vec(&register).unwrap())).await.unwrap();
        let first = serde_json::from_slice(&heard(&mut control).await).unwrap();
        (control, first)
    }

    async fn turned_away(&self, member: Option<&Member>, hello: &Hello, part: &str) {
        match self.control(member, hello).await.1 {
            GatewayMessage::Refused { reason } => assert!(reason.contains(part), "{reason}"),
            other => panic!("{other:?}, expected: {part}"),
        }
    }

    /// A call of the node's own.
    pub(super) async fn asks(&self, member: &Member, request: Request<Full<Bytes>>) -> Answer {
        let stream = self.dial(Some(member), &member.hello(Kind::Calls)).await;
        let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await.unwrap();
        tokio::spawn(connection);
        read(sender.send_request(request).await.unwrap()).await
    }

    async fn nodes(&self) -> Vec<serde_json::Value> {
        let answer = self.house.ask(get("/api/nodes", &self.token)).await.expect(200, "").json();
        answer["nodes"].as_array().unwrap().clone()
    }
}

pub(super) type Control = Framed<Stream, LengthDelimitedCodec>;

pub(super) async fn heard(frames: &mut Control) -> Bytes {
    timeout(PATIENCE, frames.next()).await.unwrap().unwrap().unwrap().freeze()
}

/// Waits until the gateway closes a connection that it had nothing to say on.
pub(super) async fn closed(stream: &mut Stream) {
    let mut rest = [0; 16];
    assert!(matches!(timeout(PATIENCE, stream.read(&mut rest)).await.unwrap(), Ok(0) | Err(_)));
}

impl Member {
    pub(super) fn of(credential: &Credential, key: KeyPair) -> Self {
        let certificate = CertificateDer::from(base64::decode(&credential.certificate).unwrap());
        Self { node: credential.node, certificate, key }
    }

    pub(super) fn hello(&self, kind: Kind) -> Hello {
        Hello { protocol: VERSION, node: self.node, kind, epoch: 0 }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_token_is_good_once_and_not_for_long() {
    let door = Door::open().await;
    let (token, key) = (door.invite().await, KeyPair::generate().unwrap());
    let first = door.ask_to_join(VERSION, token.secret(), &key).await;
    assert!(matches!(&first, JoinAnswer::Joined(credential) if credential.lifetime_seconds == 60), "{first:?}");
    door.refused(VERSION, token.secret(), "used before").await;
    let user = door.store.user_by_email("operator@example.org").await.unwrap().unwrap();
    let old = JoinToken::new([1; 32], Digest::of(b"any"));
    door.store.add_join_token(old.hash(), user.id, 0).await.unwrap();
    door.refused(VERSION, old.secret(), "too old").await;
    door.refused(VERSION, JoinToken::new([2; 32], Digest::of(b"any")).secret(), "no such token").await;
    door.refused(VERSION, "not a secret".into(), "no such token").await;
    door.refused(VERSION + 1, door.invite().await.secret(), "bring both to the same version").await;
    assert_eq!(door.nodes().await.len(), 1);
    door.house.stopped().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn only_the_operator_has_nodes() {
    let door = Door::open().await;
    let (_, other) = door.house.user("other@example.org").await;
    let path = format!("/api/nodes/{}", NodeId::new());
    for request in [
        get("/api/nodes", &other),
        post("/api/nodes/tokens", &other, ""),
        get("/api/nodes/authority", &other),
        post("/api/nodes/authority/rotate", &other, ""),
        post("/api/nodes/authority/finish?force=true", &other, ""),
        post(&format!("{path}/drain"), &other, ""),
        call(Method::DELETE, &path, &other, ""),
    ] {
        door.house.ask(request).await.expect(403, "forbidden");
    }
    door.house.ask(get("/api/nodes", "")).await.expect(401, "unauthorized");
    for id in [&path[11..], "nonsense"] {
        let path = format!("/api/nodes/{id}/cordon");
        door.house.ask(post(&path, &door.token, "")).await.expect(404, "not_found");
    }
    door.house.stopped().await;
    let house = House::start(&[]).await;
    let (_, operator) = house.user("operator@example.org").await;
    let answer = house.ask(post("/api/nodes/tokens", &operator, "")).await.expect(409, "conflict");
    assert!(answer.text.contains("NODE_ADDR"), "{}", answer.text);
    house.ask(get("/api/nodes/authority", &operator)).await.expect(409, "conflict");
    house.stopped().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_is_who_its_certificate_says() {
    let door = Door::open().await;
    let (one, other) = (door.join().await, door.join().await);
    assert_ne!(one.node, other.node);
    let (_stream, first) = door.control(Some(&one), &one.hello(Kind::Control)).await;
    assert_eq!(first, GatewayMessage::Welcome { protocol: VERSION });
    door.turned_away(Some(&one), &other.hello(Kind::Control), "certificate is of the node").await;
    door.turned_away(None, &one.hello(Kind::Control), "let its machine join first").await;
    closed(&mut door.dial(Some(&one), &other.hello(Kind::Work)).await).await;
    closed(&mut door.dial(None, &one.hello(Kind::Calls)).await).await;
    door.house.until_metric("dartcloud_gateway_links_refused_total 4").await;
    door.house.stopped().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_protocol_before_is_taken_and_others_get_a_sentence() {
    let door = Door::open().await;
    let member = door.join().await;
    let hello = |protocol| Hello { protocol, ..member.hello(Kind::Control) };
    let (_stream, first) = door.control(Some(&member), &hello(VERSION - 1)).await;
    assert_eq!(first, GatewayMessage::Welcome { protocol: VERSION });
    door.turned_away(Some(&member), &hello(VERSION + 1), "bring both to the same version").await;
    door.house.stopped().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_removed_node_is_out_at_once() {
    let door = Door::open().await;
    let member = door.join().await;
    let (mut control, _) = door.control(Some(&member), &member.hello(Kind::Control)).await;
    let mut work = door.dial(Some(&member), &member.hello(Kind::Work)).await;
    let mut calls = door.dial(Some(&member), &member.hello(Kind::Calls)).await;
    door.house.until_nodes(1).await;
    let path = format!("/api/nodes/{}", member.node);
    // A connection that was asked for a moment ago is on its way to a thread.
    door.asks(&member, call(Method::GET, "/nonsense", "", "")).await;
    let begun = Instant::now();
    door.house.ask(call(Method::DELETE, &path, &door.token, "")).await.expect(204, "");
    let reason = loop {
        // What it was told before comes first.
        if let GatewayMessage::Refused { reason } = serde_json::from_slice(&heard(&mut control).await).unwrap() {
            break reason;
        }
    };
    assert!(reason.contains("removed"), "{reason}");
    assert!(control.next().await.is_none_or(|frame| frame.is_err()));
    closed(&mut calls).await;
    closed(&mut work).await;
    assert!(begun.elapsed() < Duration::from_secs(5), "{:?}", begun.elapsed());
    door.turned_away(Some(&member), &member.hello(Kind::Control), "removed from the fleet").await;
    closed(&mut door.dial(Some(&member), &member.hello(Kind::Work)).await).await;
    assert!(door.nodes().await.is_empty());
    door.house.ask(call(Method::DELETE, &path, &door.token, "")).await.expect(404, "not_found");
    door.house.stopped().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_certificate_is_renewed() {
    let door = Door::open().await;
    let member = door.join().await;
    let key = KeyPair::generate().unwrap();
    let request = base64::encode(CertificateParams::default().serialize_request(&key).unwrap().der());
    let renewal = serde_json::to_string(&Renewal { request, trusts: vec![] }).unwrap();
    let answer = door.asks(&member, post("/certificate", "", &renewal)).await;
    assert_eq!(answer.status, StatusCode::OK, "{answer:?}");
    let renewed = Member::of(&serde_json::from_str(&answer.text).unwrap(), key);
    assert!(renewed.node == member.node && renewed.certificate != member.certificate);
    // Until the old one ends both are good: the answer could have been lost.
    for member in [&renewed, &member] {
        let (_stream, first) = door.control(Some(member), &member.hello(Kind::Control)).await;
        assert_eq!(first, GatewayMessage::Welcome { protocol: VERSION });
    }
    let answer = door.asks(&member, post("/certificate", "", r#"{"request":"AAAA"}"#)).await;
    assert_eq!(answer.status, StatusCode::UNPROCESSABLE_ENTITY);
    door.house.stopped().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_gets_what_was_placed_on_it_and_nothing_else() {
    let door = Door::open().await;
    let local = Node::join(&door.house.socket).await;
    door.house.until_nodes(1).await;
    let id = door.house.deploy(&door.token, "f", "{}").await;
    let function = door.store.serving().await.unwrap().into_iter().find(|function| function.id.to_string() == id);
    let spec = function.unwrap().active.unwrap().spec;
    local.cut.cancel();
    door.house.until_nodes(0).await;

    let member = door.join().await;
    let (control, _) = door.control(Some(&member), &member.hello(Kind::Control)).await;
    door.house.until_nodes(1).await;
    let deployment = format!("/deployments/{}", spec.deployment);
    let archive = format!("/archives/{}", spec.archive);
    let runtimes = Runtimes::load(None).unwrap();
    let own = runtimes.build_digest(spec.archive, &spec.runtime, &spec.entrypoint).unwrap();
    let build_as = |of: DeploymentId, build: Digest, method: Method| {
        let mut request = call(method, &format!("/builds/{build}"), "", "");
        request.headers_mut().insert(DEPLOYMENT, of.to_string().parse().unwrap());
        request
    };
    let build = |of: DeploymentId, method: Method| build_as(of, own, method);
    for request in [
        call(Method::GET, &deployment, "", ""),
        call(Method::GET, &archive, "", ""),
        call(Method::GET, &format!("/builds/{own}"), "", ""),
        build(spec.deployment, Method::GET),
        build(spec.deployment, Method::PUT),
    ] {
        let answer = door.asks(&member, request).await;
        assert_eq!(answer.status, StatusCode::FORBIDDEN, "{answer:?}");
    }
    // A call comes; what it needs, the node may have. Nobody answers it here.
    let invoked = door.house.ask(post("/api/functions/f/invoke", &door.token, "{}"));
    let placed = async {
        while door.asks(&member, call(Method::GET, &deployment, "", "")).await.status != StatusCode::OK {}
        assert_eq!(door.asks(&member, call(Method::GET, &archive, "", "")).await.status, StatusCode::OK);
        assert_eq!(door.asks(&member, build(spec.deployment, Method::GET)).await.status, StatusCode::NOT_FOUND);
        assert_eq!(door.asks(&member, build(spec.deployment, Method::PUT)).await.status, StatusCode::CREATED);
        let other = format!("/archives/{}", Digest::of(b"another"));
        assert_eq!(door.asks(&member, call(Method::GET, &other, "", "")).await.status, StatusCode::FORBIDDEN);
        let other = build(DeploymentId::new(), Method::PUT);
        assert_eq!(door.asks(&member, other).await.status, StatusCode::FORBIDDEN);
        // Nor does what was placed on it open the way to another's build.
        for method in [Method::GET, Method::PUT] {
            let other = build_as(spec.deployment, Digest::of(b"another build"), method);
            assert_eq!(door.asks(&member, other).await.status, StatusCode::FORBIDDEN);
        }
    };
    let (answer, ()) = tokio::join!(invoked, timeout(PATIENCE, placed).map(Result::unwrap));
    answer.expect(503, "no_node");
    // Once another version serves, calls may still be on their way to this one; with the next, none is.
    drop(control);
    door.house.until_nodes(0).await;
    let _local = Node::join(&door.house.socket).await;
    door.house.until_nodes(1).await;
    for expected in [StatusCode::OK, StatusCode::FORBIDDEN] {
        door.house.deploy(&door.token, "f", "{}").await;
        let answer = door.asks(&member, call(Method::GET, &deployment, "", "")).await;
        assert_eq!(answer.status, expected, "{answer:?}");
    }
    door.house.stopped().await;
}
