//! The order to build a version, and the events that come back.

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

use super::stock::Lease;
use super::{Fleet, NoNode, lock};

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
    let (link, seat) = fleet.placed(spec).await.ok_or_else(|| fleet.refusal(spec))?;
    lock(&fleet.0.pending).insert(spec.deployment, Arc::new(spec.clone()));
    let pending = Pending { fleet: fleet.clone(), id: spec.deployment };
    let lease = fleet.0.stocks.take(&fleet.0.control, &link).await.ok_or(NoNode::Linked)?;
    let body = Bytes::from(serde_json::to_vec(spec).expect("a spec has string keys only"));
    let (sender, events) = mpsc::channel(MAX_EVENTS);
    let node = link.node;
    fleet.0.stocks.tasks().spawn(async move {
        let _seat = seat;
        let read = tokio::select! {
            read = follow(lease, body, &sender) => read,
            () = sender.closed() => return,
        };
        if let Err(error) = read {
            tracing::warn!(%node, error = %Chain(&error), "a build broke off");
            // The reader may have left by now, which is no loss.
            sender.send(BuildEvent::Error { reason: error.to_string() }).await.ok();
        }
    });
    Ok(BuildEvents { events, _pending: pending })
}

async fn follow(mut lease: Lease, body: Bytes, events: &mpsc::Sender<BuildEvent>) -> Result<(), Broken> {
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
    let whole = read(answer, events).await?;
    if whole {
        lease.give_back();
    }
    Ok(())
}

/// Reads lines until the last event; whether the answer then ended as it should.
async fn read(answer: Response<Incoming>, events: &mpsc::Sender<BuildEvent>) -> Result<bool, Broken> {
    let mut body = answer.into_body();
    let mut buffer = BytesMut::new();
    loop {
        while let Some(end) = buffer.iter().position(|byte| *byte == b'\n') {
            let line = buffer.split_to(end);
            buffer.advance(1);
            let event: BuildEvent =
                serde_json::from_slice(&line).map_err(|error| Broken::Garbled(error.to_string()))?;
            let is_last = !matches!(event, BuildEvent::Log { .. });
            if events.send(event).await.is_err() {
                return Ok(false);
            }
            if is_last {
                let rest = timeout(Duration::from_secs(1), body.frame()).await;
                return Ok(matches!(rest, Ok(None)));
            }
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
