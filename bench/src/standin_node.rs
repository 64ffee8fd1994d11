//! A node without sandboxes: it links with a gateway as an agent does and answers every call at once, and it answers
//! the same on sockets of its own, for a proxy that is compared. A process of its own, so that its cost is not the
//! gateway's.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use bytes::Bytes;
use common::ids::NodeId;
use common::labels::Labels;
use common::protocol::{
    AgentMessage, BuildEvent, GatewayMessage, HEARTBEAT_MS, Hello, Kind, MAX_FRAME_BYTES, NodeState, ORDER,
    ORDER_BUILD, OUTCOME, TIMING, VERSION,
};
use futures_util::{SinkExt as _, StreamExt as _};
use http::header::CONTENT_TYPE;
use http::{HeaderValue, Request, Response};
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt as _};
use tokio::net::{TcpListener, UnixListener, UnixStream};
use tokio::task::LocalSet;
use tokio_util::codec::{Framed, LengthDelimitedCodec};

/// Work connections that it opens by itself, and most that it opens.
const CONNECTIONS: (u32, u32) = (4, 1024);

/// How long the gateway's socket is waited for, and how often it is tried.
const GATEWAY: (Duration, Duration) = (Duration::from_secs(60), Duration::from_millis(20));

/// What every call is answered.
const BODY: &[u8] = br#"{"hello":"Ada","this":"is what a small function might say","of":["some","hundred","bytes"]}"#;

/// Where it answers.
#[derive(Debug, clap::Args)]
pub(crate) struct Arguments {
    /// The gateway's link socket.
    #[arg(long)]
    link: PathBuf,
    /// A Unix socket to answer on.
    #[arg(long)]
    socket: Option<PathBuf>,
    /// A TCP address to answer on.
    #[arg(long)]
    address: Option<SocketAddr>,
}

/// Serves until the gateway is gone.
pub(crate) fn serve(arguments: &Arguments) -> Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let local = LocalSet::new();
    local.block_on(&runtime, async {
        if let Some(path) = &arguments.socket {
            tokio::task::spawn_local(answer_unix(UnixListener::bind(path)?));
        }
        if let Some(address) = arguments.address {
            tokio::task::spawn_local(answer_tcp(TcpListener::bind(address).await?));
        }
        link(&arguments.link).await
    })
}

async fn answer_unix(listener: UnixListener) {
    while let Ok((stream, _)) = listener.accept().await {
        tokio::task::spawn_local(answer_all(stream, true));
    }
}

async fn answer_tcp(listener: TcpListener) {
    while let Ok((stream, _)) = listener.accept().await {
        // It only costs latency when it fails.
        let _ = stream.set_nodelay(true);
        tokio::task::spawn_local(answer_all(stream, true));
    }
}

/// On the link nothing is dated, since the edge does that.
async fn answer_all(stream: impl AsyncRead + AsyncWrite + Unpin + 'static, dated: bool) {
    let service = service_fn(|request| std::future::ready(Ok::<_, Infallible>(answer(&request))));
    let mut builder = http1::Builder::new();
    builder.max_headers(128).header_read_timeout(None).auto_date_header(dated);
    // That the other side closes is its ordinary end.
    let _ = builder.serve_connection(TokioIo::new(stream), service).await;
}

fn answer(request: &Request<Incoming>) -> Response<Full<Bytes>> {
    if request.headers().get(ORDER).is_some_and(|order| order == ORDER_BUILD) {
        let mut line = serde_json::to_vec(&BuildEvent::Built { build_ms: 0, cached: true }).expect("words and numbers");
        line.push(b'\n');
        return Response::new(Full::from(line));
    }
    let mut response = Response::new(Full::new(Bytes::from_static(BODY)));
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    if request.headers().contains_key(ORDER) {
        headers.insert(OUTCOME, HeaderValue::from_static("success"));
        headers.insert(TIMING, HeaderValue::from_static("fn;dur=0.1"));
    }
    response
}

async fn link(socket: &Path) -> Result<()> {
    let node = NodeId::new();
    let control = tokio::time::timeout(GATEWAY.0, async {
        loop {
            match dial(socket, node, Kind::Control).await {
                Ok(stream) => return stream,
                Err(_) => tokio::time::sleep(GATEWAY.1).await,
            }
        }
    });
    let control = control.await.context("no gateway at the link socket")?;
    let mut frames =
        Framed::new(control, LengthDelimitedCodec::builder().max_frame_length(MAX_FRAME_BYTES).new_codec());
    let register = AgentMessage::Register {
        name: "standin".into(),
        max_connections: CONNECTIONS.1,
        deployments: vec![],
        labels: Labels::default(),
        learns_authorities: false,
    };
    frames.send(Bytes::from(serde_json::to_vec(&register)?)).await?;
    let opened = Rc::new(std::cell::Cell::new(0));
    let open = |count: u32| {
        for _ in 0..count.min(CONNECTIONS.1.saturating_sub(opened.get())) {
            opened.set(opened.get() + 1);
            let (socket, opened) = (socket.to_owned(), opened.clone());
            tokio::task::spawn_local(async move {
                if let Ok(stream) = dial(&socket, node, Kind::Work).await {
                    answer_all(stream, false).await;
                }
                opened.set(opened.get() - 1);
            });
        }
    };
    open(CONNECTIONS.0);
    let mut beat = tokio::time::interval(Duration::from_millis(HEARTBEAT_MS));
    loop {
        tokio::select! {
            _ = beat.tick() => {
                let heartbeat = AgentMessage::Heartbeat(NodeState::default());
                frames.send(Bytes::from(serde_json::to_vec(&heartbeat)?)).await?;
            }
            frame = frames.next() => match frame {
                None => return Ok(()),
                Some(frame) => match serde_json::from_slice(&frame?)? {
                    GatewayMessage::Dial { connections } => open(connections),
                    GatewayMessage::Refused { reason } => bail!(reason),
                    GatewayMessage::Welcome { .. }
                    | GatewayMessage::Retire { .. }
                    | GatewayMessage::Keep { .. }
                    | GatewayMessage::Tell
                    | GatewayMessage::Authorities { .. }
                    | GatewayMessage::Successor => {}
                }
            }
        }
    }
}

async fn dial(socket: &Path, node: NodeId, kind: Kind) -> Result<UnixStream> {
    let mut stream = UnixStream::connect(socket).await?;
    let mut line = serde_json::to_vec(&Hello { protocol: VERSION, node, kind, epoch: 0 })?;
    line.push(b'\n');
    stream.write_all(&line).await?;
    Ok(stream)
}
