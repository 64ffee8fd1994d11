//! A node's control stream: it registers, says twice a second how it is, and gets orders. When it is silent it gets no
//! new calls, when the stream ends none at all.

use std::io;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use common::conduit::Conduit;
use common::digest::Digest;
use common::error::Chain;
use common::protocol::{AgentMessage, GatewayMessage, Hello, Kind, MAX_FRAME_BYTES, VERSION};
use futures_util::{SinkExt as _, StreamExt as _};
use tokio::sync::{mpsc, watch};
use tokio::time::{Instant, sleep_until, timeout};
use tokio_util::codec::{Framed, FramedParts, LengthDelimitedCodec};
use tokio_util::sync::CancellationToken;

use super::calls::Calls;
use super::health::{LOST_AFTER, Pulse};
use super::roster::Stranger;
use super::stock::NodeLink;
use super::{Fleet, roster};

/// How long a node may take to take an order.
const SEND_DEADLINE: Duration = Duration::from_secs(5);

type Frames = Framed<Conduit, LengthDelimitedCodec>;

/// Tells one control stream of a node from the next.
static STREAMS: AtomicU64 = AtomicU64::new(0);

/// Why a control stream ended.
#[derive(Debug, thiserror::Error)]
enum End {
    #[error("the node closed it")]
    Closed,
    #[error("the node has said nothing for {} s", LOST_AFTER.as_secs())]
    Silent,
    #[error("a newer stream of the same node took its place")]
    Replaced,
    #[error("the node was removed from the fleet")]
    Removed,
    #[error("this gateway stops")]
    Stopping,
    #[error("the node did not register first")]
    NotRegistered,
    #[error("the stream broke")]
    Broken(#[from] io::Error),
    #[error("the node said what is not in the protocol")]
    Garbled(#[from] serde_json::Error),
}

/// All that can happen on a control stream.
enum Event {
    Said(AgentMessage),
    Order(GatewayMessage),
    Shortage,
    Silence,
    /// A successor accepts agents, or no longer does.
    Succession,
    /// The fleet trusts other authorities.
    Authorities,
}

/// Serves one stream from its registration to its end. The node has `shown` a certificate of this authority.
pub(super) async fn run(
    stream: Conduit,
    rest: BytesMut,
    (hello, shown): (&Hello, Option<Digest>),
    fleet: &Fleet,
    calls: &Calls,
    stop: CancellationToken,
) {
    let mut parts = FramedParts::new::<Bytes>(stream, codec());
    parts.read_buf = rest;
    let mut frames = Framed::from_parts(parts);
    let this = STREAMS.fetch_add(1, Ordering::Relaxed);
    let node = hello.node;
    let Some(link) = fleet.link_of(node, hello.epoch, Kind::Control) else {
        tracing::warn!(%node, "a control stream of an earlier life of the node, which is linked, or of a copy of it");
        return;
    };
    link.shows(shown);
    let end = match register(&mut frames, &link, this, fleet, calls, hello.protocol, &stop).await {
        Ok(mut orders) => serve(&mut frames, &link, this, fleet, &mut orders, &stop).await,
        Err(end) => end,
    };
    fleet.lost(node, this, matches!(end, End::Silent));
    match end {
        End::Stopping | End::Replaced => tracing::debug!(%node, %end, "control stream ended"),
        end => tracing::warn!(%node, error = %Chain(&end), "node lost"),
    }
}

/// Says why a node is not taken.
pub(super) async fn refuse(stream: Conduit, refusal: GatewayMessage) {
    let mut frames = Framed::new(stream, codec());
    if let Err(error) = say(&mut frames, &refusal).await {
        tracing::debug!(%error, "a refused node did not wait for the reason");
    }
}

fn codec() -> LengthDelimitedCodec {
    LengthDelimitedCodec::builder().max_frame_length(MAX_FRAME_BYTES).new_codec()
}

async fn register(
    frames: &mut Frames,
    link: &std::sync::Arc<NodeLink>,
    this: u64,
    fleet: &Fleet,
    calls: &Calls,
    protocol: u32,
    stop: &CancellationToken,
) -> Result<mpsc::Receiver<GatewayMessage>, End> {
    let first = tokio::select! {
        first = timeout(LOST_AFTER, hear(frames)) => first.map_err(|_| End::Silent)??,
        () = stop.cancelled() => return Err(End::Stopping),
    };
    let AgentMessage::Register { name, max_connections, deployments, labels, learns_authorities } = first else {
        return Err(End::NotRegistered);
    };
    link.max_connections.store(max_connections, Ordering::Relaxed);
    link.learns_authorities.store(learns_authorities, Ordering::Relaxed);
    say(frames, &GatewayMessage::Welcome { protocol: VERSION }).await?;
    let unwanted = fleet.unwanted(deployments, |id| calls.routes.now().serves(id));
    if !unwanted.is_empty() {
        say(frames, &GatewayMessage::Retire { deployments: unwanted }).await?;
    }
    tracing::info!(node = %link.node, name, max_connections, "node linked");
    let (noting, store, node) = (fleet.clone(), calls.store.clone(), link.node);
    // The database is on nobody's way here.
    fleet.0.stocks.tasks().spawn(async move { roster::note_linked(&noting, &*store, node, &name, &labels).await });
    fleet.register(link, this, protocol).ok_or(End::Replaced)
}

async fn serve(
    frames: &mut Frames,
    link: &NodeLink,
    this: u64,
    fleet: &Fleet,
    orders: &mut mpsc::Receiver<GatewayMessage>,
    stop: &CancellationToken,
) -> End {
    let (mut last, mut pulse) = (Instant::now(), Pulse::Steady);
    let (mut has_successor, mut authorities) = (fleet.has_successor(), fleet.authorities());
    // What came before this stream is told, too.
    has_successor.mark_changed();
    authorities.mark_changed();
    loop {
        let event = tokio::select! {
            said = hear(frames) => said.map(Event::Said),
            () = sleep_until(last + pulse.until()) => Ok(Event::Silence),
            order = orders.recv() => order.map(Event::Order).ok_or_else(|| no_orders(link)),
            () = link.ring.notified() => Ok(Event::Shortage),
            Ok(()) = has_successor.changed() => Ok(Event::Succession),
            Ok(()) = authorities.changed() => Ok(Event::Authorities),
            () = link.pass.gone.cancelled() => Err(End::Removed),
            () = stop.cancelled() => Err(End::Stopping),
        };
        let done = match event {
            Ok(Event::Said(AgentMessage::Heartbeat(state))) => {
                (last, pulse) = (Instant::now(), Pulse::Steady);
                fleet.heard(link.node, this, state);
                Ok(())
            }
            Ok(Event::Said(AgentMessage::Metrics { text })) => {
                fleet.told(link.node, this, text);
                Ok(())
            }
            Ok(Event::Said(AgentMessage::Register { .. })) => Err(End::NotRegistered),
            Ok(Event::Order(order)) => say(frames, &order).await,
            Ok(Event::Shortage) => match link.take_wanted() {
                0 => Ok(()),
                connections => say(frames, &GatewayMessage::Dial { connections }).await,
            },
            Ok(Event::Silence) => {
                pulse = Pulse::after(last.elapsed());
                match pulse {
                    Pulse::Lost => Err(End::Silent),
                    Pulse::Suspected => {
                        fleet.suspect(link.node, this);
                        Ok(())
                    }
                    Pulse::Steady => Ok(()),
                }
            }
            Ok(Event::Succession) if *has_successor.borrow_and_update() => {
                say(frames, &GatewayMessage::Successor).await
            }
            Ok(Event::Succession) => Ok(()),
            Ok(Event::Authorities) => tell_authorities(frames, &mut authorities).await,
            Err(end) => Err(end),
        };
        if let Err(end) = done {
            if let End::Removed = end {
                // So that its log says why; whether it is read does not matter.
                say(frames, &GatewayMessage::Refused { reason: Stranger::Removed.to_string() }).await.ok();
            }
            return end;
        }
    }
}

/// Nothing is told where all nodes are on this machine.
async fn tell_authorities(frames: &mut Frames, authorities: &mut watch::Receiver<Vec<String>>) -> Result<(), End> {
    let certificates = authorities.borrow_and_update().clone();
    if certificates.is_empty() { Ok(()) } else { say(frames, &GatewayMessage::Authorities { certificates }).await }
}

/// Why nobody gives orders any more. One that was removed is told so, whichever of the two is noticed first.
fn no_orders(link: &NodeLink) -> End {
    if link.pass.gone.is_cancelled() { End::Removed } else { End::Replaced }
}

async fn hear(frames: &mut Frames) -> Result<AgentMessage, End> {
    let frame = frames.next().await.ok_or(End::Closed)??;
    Ok(serde_json::from_slice(&frame)?)
}

async fn say(frames: &mut Frames, message: &GatewayMessage) -> Result<(), End> {
    let frame = Bytes::from(serde_json::to_vec(message)?);
    timeout(SEND_DEADLINE, frames.send(frame)).await.map_err(|_| End::Silent)?.map_err(End::Broken)
}
