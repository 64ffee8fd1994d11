//! The order to build a version, and the events that come back. What one node cannot run, for its own fault, another is
//! asked for, once.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::{Buf as _, Bytes, BytesMut};
use common::error::Chain;
use common::function::DeploymentSpec;
use common::ids::DeploymentId;
use common::protocol::{self, BuildEvent};
use futures_util::Stream;
use http::{HeaderValue, Request, Response, StatusCode};
use http_body_util::{BodyExt as _, Either, Full};
use hyper::body::Incoming;
use tokio::sync::mpsc;
use tokio::time::timeout;

use super::stock::{Lease, NodeLink};
use super::{Fleet, NoNode, lock};
use crate::edge::placement::{Seat, Wanted};

/// How long a node may be silent during a build. It ends builds by itself long before.
const SILENCE: Duration = Duration::from_secs(20 * 60);

/// Longest line of a build's answer, in bytes; a node cuts what is longer.
const MAX_LINE_BYTES: usize = 256 * 1024;

/// Events that wait for whoever reads them; then the node waits.
const MAX_EVENTS: usize = 64;

/// What a node says while it builds. The last event is never [`BuildEvent::Log`]; when the node is lost it is
/// [`BuildEvent::Error`]. Dropping this ends the build's connection.
pub(crate) struct BuildEvents {
    events: mpsc::Receiver<BuildEvent>,
    _pending: Pending,
}

impl Stream for BuildEvents {
    type Item = BuildEvent;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<BuildEvent>> {
        self.events.poll_recv(cx)
    }
}

/// Keeps a version at hand while it is built.
struct Pending {
    fleet: Fleet,
    id: DeploymentId,
}

impl Drop for Pending {
    fn drop(&mut self) {
        lock(&self.fleet.0.pending).remove(&self.id);
    }
}

/// A node that is to build, and the connection to it.
struct Builder {
    link: Arc<NodeLink>,
    lease: Lease,
    _seat: Option<Seat>,
}

/// Why a build's answer ended without a word of the node.
#[derive(Debug, thiserror::Error)]
enum Broken {
    #[error("the node was lost during the build")]
    Lost(#[source] hyper::Error),
    #[error("the node answered {0} to a build order")]
    Status(StatusCode),
    #[error("the node said nothing for too long")]
    Silent,
    #[error("the node's answer cannot be read: {0}")]
    Garbled(String),
    #[error("the node's answer has no end")]
    Unfinished,
}

pub(super) async fn order(fleet: &Fleet, spec: &DeploymentSpec) -> Result<BuildEvents, NoNode> {
    let placed = fleet.placed(spec).await.ok_or_else(|| fleet.refusal(spec, None))?;
    lock(&fleet.0.pending).insert(spec.deployment, Arc::new(spec.clone()));
    let pending = Pending { fleet: fleet.clone(), id: spec.deployment };
    let builder = connect(fleet, placed).await.ok_or(NoNode::Linked)?;
    let (sender, events) = mpsc::channel(MAX_EVENTS);
    let (asking, spec) = (fleet.clone(), spec.clone());
    fleet.0.stocks.tasks().spawn(async move {
        tokio::select! {
            last = build(&asking, &spec, builder, &sender) => {
                // The reader may have left by now, which is no loss.
                sender.send(last).await.ok();
            }
            () = sender.closed() => {}
        }
    });
    Ok(BuildEvents { events, _pending: pending })
}

async fn connect(fleet: &Fleet, (link, seat): (Arc<NodeLink>, Option<Seat>)) -> Option<Builder> {
    let lease = fleet.0.stocks.take(&fleet.0.control, &link).await?;
    Some(Builder { link, lease, _seat: seat })
}

/// Another node than the one that could not; a build that may still run there makes the same.
async fn elsewhere(fleet: &Fleet, spec: &DeploymentSpec, failed: &NodeLink) -> Option<Builder> {
    let placed = {
        let picture = fleet.nodes();
        let place = picture.view.choose_other(&Wanted::of(spec), failed.node)?;
        picture.seated(place, spec.deployment)
    };
    if placed.0.node == failed.node { None } else { connect(fleet, placed).await }
}

/// The build's last event. A build that failed for the function's fault fails on every node.
async fn build(fleet: &Fleet, spec: &DeploymentSpec, first: Builder, events: &mpsc::Sender<BuildEvent>) -> BuildEvent {
    let failed = Arc::clone(&first.link);
    let last = ask(first, spec, events).await;
    let BuildEvent::Error { reason } = &last else { return last };
    let Some(second) = elsewhere(fleet, spec, &failed).await else { return last };
    tracing::warn!(deployment = %spec.deployment, node = %failed.node, other = %second.link.node, reason,
        "a build could not be run: another node is asked");
    let line = "the node could not run the build: another one begins anew".to_owned();
    // Who does not read has left.
    events.send(BuildEvent::Log { line }).await.ok();
    match ask(second, spec, events).await {
        BuildEvent::Error { reason: other } => BuildEvent::Error { reason: format!("{reason}; another node: {other}") },
        last => last,
    }
}

/// What one node makes of it.
async fn ask(builder: Builder, spec: &DeploymentSpec, events: &mpsc::Sender<BuildEvent>) -> BuildEvent {
    let body = Bytes::from(serde_json::to_vec(spec).expect("a spec has string keys only"));
    match follow(builder.lease, body, events).await {
        Ok(last) => last,
        Err(error) => {
            tracing::warn!(node = %builder.link.node, error = %Chain(&error), "a build broke off");
            BuildEvent::Error { reason: error.to_string() }
        }
    }
}

async fn follow(mut lease: Lease, body: Bytes, events: &mpsc::Sender<BuildEvent>) -> Result<BuildEvent, Broken> {
    let mut request = Request::post("/").body(Either::Right(Full::new(body))).expect("a fixed request is valid");
    let headers = request.headers_mut();
    headers.insert(protocol::ORDER, HeaderValue::from_static(protocol::ORDER_BUILD));
    headers.insert(http::header::HOST, HeaderValue::from_static("node"));
    headers.insert(http::header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    let answer = timeout(SILENCE, lease.sender.send_request(request)).await.map_err(|_| Broken::Silent)?;
    let answer = answer.map_err(Broken::Lost)?;
    if answer.status() != StatusCode::OK {
        return Err(Broken::Status(answer.status()));
    }
    let (last, whole) = read(answer, events).await?;
    if whole {
        lease.give_back();
    }
    Ok(last)
}

/// Passes lines on until the last event; that, and whether the answer then ended as it should.
async fn read(answer: Response<Incoming>, events: &mpsc::Sender<BuildEvent>) -> Result<(BuildEvent, bool), Broken> {
    let mut body = answer.into_body();
    let mut buffer = BytesMut::new();
    loop {
        while let Some(end) = buffer.iter().position(|byte| *byte == b'\n') {
            let line = buffer.split_to(end);
            buffer.advance(1);
            let event: BuildEvent =
                serde_json::from_slice(&line).map_err(|error| Broken::Garbled(error.to_string()))?;
            if !matches!(event, BuildEvent::Log { .. }) {
                let rest = timeout(Duration::from_secs(1), body.frame()).await;
                return Ok((event, matches!(rest, Ok(None))));
            }
            // Whoever does not read has left, and ends all of this.
            events.send(event).await.ok();
        }
        if buffer.len() > MAX_LINE_BYTES {
            return Err(Broken::Garbled(format!("a line is over {MAX_LINE_BYTES} bytes")));
        }
        match timeout(SILENCE, body.frame()).await.map_err(|_| Broken::Silent)? {
            None => return Err(Broken::Unfinished),
            Some(frame) => {
                if let Ok(data) = frame.map_err(Broken::Lost)?.into_data() {
                    buffer.extend_from_slice(&data);
                }
            }
        }
    }
}
