//! One control stream, from the registration to its end.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use common::conduit::Conduit;
use common::ops;
use common::protocol::{
    AgentMessage, GatewayMessage, HEARTBEAT_MS, Kind, MAX_FRAME_BYTES, MAX_METRICS_BYTES, NodeState,
};
use futures_util::{SinkExt as _, StreamExt as _};
use tokio::sync::watch;
use tokio::time::{MissedTickBehavior, interval, timeout};
use tokio_util::codec::{Framed, LengthDelimitedCodec};
use tokio_util::sync::CancellationToken;

use super::dial::{DialError, explain_refusal};
use super::gateways::Visit;
use super::work::{Session, Work};
use super::{ALIAS_RETRY, Link, REFUSED_RETRY};
use crate::backoff::Backoff;

/// How long the gateway may take to welcome us, or to take a frame.
const ANSWER_DEADLINE: Duration = Duration::from_secs(5);

/// Why a control stream ended.
#[derive(Debug, thiserror::Error)]
pub(super) enum ControlError {
    #[error(transparent)]
    Dial(#[from] DialError),
    #[error("the gateway refused this node: {0}")]
    Refused(String),
    #[error("the gateway closed the control stream")]
    Closed,
    #[error("the control stream failed")]
    Stream(#[from] io::Error),
    #[error("the gateway did not answer on the control stream in time")]
    Deadline,
    #[error("another address leads to the same gateway")]
    Alias,
}

impl ControlError {
    /// Whether the gateway is there and will not have this node.
    pub(super) fn is_refusal(&self) -> bool {
        matches!(self, Self::Refused(_) | Self::Dial(DialError::Refused(_) | DialError::Foreign(_)))
    }
}

impl ControlError {
    /// How long to wait, where it is not for the gateway to come up.
    pub(super) fn pause(&self) -> Option<Duration> {
        match self {
            Self::Alias => Some(ALIAS_RETRY),
            error if error.is_refusal() => Some(REFUSED_RETRY),
            _ => None,
        }
    }
}

type Frames = Framed<Conduit, LengthDelimitedCodec>;

/// How a control stream ends that did not fail.
pub(super) enum End {
    /// This agent left.
    Left,
    /// Another stream takes its place: another process has the gateway's, or this node shows another certificate. This one
    /// still has calls, and goes on.
    Succeeded(Box<Stream>),
}

/// A control stream on which the gateway has welcomed us.
pub(super) struct Stream {
    frames: Frames,
    session: Session,
    /// Whether this node has another authority's certificate than the stream was dialled with.
    moved: watch::Receiver<()>,
    _visit: Visit,
}

enum Event {
    Heard(Option<io::Result<bytes::BytesMut>>),
    HeartbeatDue,
    Moved,
    Leave,
}

/// What the gateway's word means for the stream.
enum Obeyed {
    GoesOn,
    Answers(AgentMessage),
    HasSuccessor,
}

/// Registers and serves until the stream ends (an error), until `leave`, or until the gateway has a successor. A welcome
/// resets `backoff`.
pub(super) async fn run(
    link: &Link,
    work: &Work,
    leave: &CancellationToken,
    backoff: &mut Backoff,
) -> Result<End, ControlError> {
    // Before the dial, so that nothing is missed.
    let moved = link.all.notices.moved();
    let joined = tokio::select! { joined = join(link) => joined, () = leave.cancelled() => return Ok(End::Left) };
    let (frames, mut visit) = joined?;
    tracing::info!(gateway = %link.gateway.dialer.way, node = %link.gateway.dialer.node, "linked with the gateway");
    visit.welcome();
    backoff.reset();
    let mut stream = Stream { frames, session: work.begin(), moved, _visit: visit };
    if !stream.serve(link, leave, false).await? {
        return Ok(End::Left);
    }
    link.gateway.succeeded();
    Ok(End::Succeeded(Box::new(stream)))
}

impl Stream {
    /// Serves the process whose place was taken, until it ends.
    pub(super) async fn finish(mut self, link: Arc<Link>, leave: CancellationToken) {
        if let Err(error) = self.serve(&link, &leave, true).await {
            tracing::debug!(%error, "the process of before has ended");
        }
    }

    /// Serves until `leave`, or until another stream is to take this one's place, and then says so.
    async fn serve(&mut self, link: &Link, leave: &CancellationToken, is_former: bool) -> Result<bool, ControlError> {
        let mut heartbeat = interval(Duration::from_millis(HEARTBEAT_MS));
        heartbeat.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            let event = tokio::select! {
                frame = self.frames.next() => Event::Heard(frame),
                _ = heartbeat.tick() => Event::HeartbeatDue,
                Ok(()) = self.moved.changed(), if !is_former => Event::Moved,
                () = leave.cancelled() => Event::Leave,
            };
            match event {
                Event::Heard(None) => return Err(ControlError::Closed),
                Event::Heard(Some(frame)) => match obey(link, &self.session, &frame?, is_former)? {
                    Obeyed::HasSuccessor if !is_former => {
                        tracing::info!(gateway = %link.gateway.dialer.way, "another process takes the gateway's place");
                        return Ok(true);
                    }
                    Obeyed::Answers(answer) => say(&mut self.frames, &answer).await?,
                    Obeyed::HasSuccessor | Obeyed::GoesOn => {}
                },
                Event::HeartbeatDue => {
                    // The process of before is asked for nothing any more.
                    let tells = tells(link).map(|tells| tells && !is_former);
                    let state = NodeState { tells, ..link.all.orders.state() };
                    say(&mut self.frames, &AgentMessage::Heartbeat(state)).await?;
                }
                Event::Moved => {
                    tracing::info!(gateway = %link.gateway.dialer.way, "linking anew with the new authority's certificate");
                    return Ok(true);
                }
                Event::Leave => return Ok(false),
            }
        }
    }
}

async fn join(link: &Link) -> Result<(Frames, Visit), ControlError> {
    let stream = link.gateway.dialer.dial(Kind::Control).await?;
    let all = &link.all;
    let visit = all.gateways.visit(&link.gateway, &stream, &all.readiness).ok_or(ControlError::Alias)?;
    let codec = LengthDelimitedCodec::builder().max_frame_length(MAX_FRAME_BYTES).new_codec();
    let mut frames = Framed::new(stream, codec);
    let register = AgentMessage::Register {
        name: all.name.clone(),
        max_connections: all.args.link_max_connections,
        deployments: all.orders.state().warm,
        labels: all.labels.clone(),
        learns_authorities: true,
    };
    say(&mut frames, &register).await?;
    let first = timeout(ANSWER_DEADLINE, frames.next()).await.map_err(|_| ControlError::Deadline)?;
    let frame = first.ok_or(ControlError::Closed)?.map_err(explain_refusal)?;
    match serde_json::from_slice(&frame).map_err(io::Error::from)? {
        GatewayMessage::Welcome { .. } => Ok((frames, visit)),
        GatewayMessage::Refused { reason } => Err(ControlError::Refused(reason)),
        GatewayMessage::Dial { .. }
        | GatewayMessage::Retire { .. }
        | GatewayMessage::Keep { .. }
        | GatewayMessage::Tell
        | GatewayMessage::Authorities { .. }
        | GatewayMessage::Successor => {
            Err(io::Error::new(io::ErrorKind::InvalidData, "an order came before the welcome").into())
        }
    }
}

/// Does what a gateway says.
fn obey(link: &Link, session: &Session, frame: &[u8], is_former: bool) -> Result<Obeyed, ControlError> {
    match serde_json::from_slice(frame) {
        Ok(GatewayMessage::Welcome { .. }) => {}
        Ok(GatewayMessage::Dial { connections }) => session.want(connections),
        Ok(GatewayMessage::Retire { deployments }) => link.all.orders.retire(&deployments),
        // What is to be kept, the successor says.
        Ok(GatewayMessage::Keep { .. }) if is_former => {}
        Ok(GatewayMessage::Keep { warm }) => link.all.orders.keep(link.gateway.number, &warm),
        // The same.
        Ok(GatewayMessage::Authorities { .. }) if is_former => {}
        Ok(GatewayMessage::Authorities { certificates }) => link.all.notices.authorities_are(certificates),
        Ok(GatewayMessage::Tell) => return Ok(Obeyed::Answers(metrics(link))),
        Ok(GatewayMessage::Refused { reason }) => return Err(ControlError::Refused(reason)),
        Ok(GatewayMessage::Successor) => return Ok(Obeyed::HasSuccessor),
        // A newer gateway may say what we do not know yet; what we must know, it does not send to our version.
        Err(error) => tracing::debug!(%error, "an order that this version does not know"),
    }
    Ok(Obeyed::GoesOn)
}

/// Whether this gateway is the one to be asked for our metrics.
fn tells(link: &Link) -> Option<bool> {
    link.all.told.as_ref().map(|_| link.all.gateways.teller() == Some(link.gateway.number))
}

fn metrics(link: &Link) -> AgentMessage {
    let text = match link.all.told.as_ref().map(ops::metrics) {
        Some(Ok(text)) if text.len() <= MAX_METRICS_BYTES => Some(text),
        Some(Ok(text)) => {
            tracing::error!(bytes = text.len(), "the metrics are too many for the link");
            None
        }
        Some(Err(error)) => {
            tracing::error!(%error, "the metrics cannot be written");
            None
        }
        None => None,
    };
    AgentMessage::Metrics { text }
}

async fn say(frames: &mut Frames, message: &AgentMessage) -> Result<(), ControlError> {
    let frame = serde_json::to_vec(message).map_err(io::Error::from)?;
    let sent = timeout(ANSWER_DEADLINE, frames.send(Bytes::from(frame))).await;
    sent.map_err(|_| ControlError::Deadline)?.map_err(ControlError::Stream)
}
