//! What every link connection meets, whichever door it came by: its first line says what it is for, and whoever
//! dialled must be who he says, and belong to the fleet.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use bytes::BytesMut;
use common::conduit::Conduit;
use common::digest::Digest;
use common::error::Chain;
use common::ids::NodeId;
use common::protocol::{GatewayMessage, Hello, Kind, MAX_HELLO_BYTES, VERSION};
use tokio::io::AsyncReadExt as _;
use tokio::sync::{Semaphore, watch};
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

use super::calls::{Asker, Calls};
use super::roster::Stranger;
use super::{Fleet, control_stream, enrolment, roster};

/// How long an agent may take for its first line.
const HELLO_DEADLINE: Duration = Duration::from_secs(5);

/// Most link connections that are open or opening, work connections aside.
const MAX_CONNECTIONS: usize = 8192;

/// Who dialled.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Dialler {
    /// A program of this machine and user.
    Local,
    /// The node that a certificate of the fleet names, and the digest of the authority that it is of.
    Node(NodeId, Digest),
    /// Somebody without a certificate.
    Stranger,
}

/// Takes in link connections.
pub(crate) struct Reception {
    fleet: Fleet,
    calls: Arc<Calls>,
    room: Arc<Semaphore>,
}

/// Why a connection was turned away.
#[derive(Debug, thiserror::Error)]
pub(super) enum Turned {
    #[error("too many connections have shown no certificate yet, in all or from its address")]
    Crowded,
    #[error("no TLS handshake in time")]
    NoHandshake,
    #[error("the TLS handshake failed")]
    Handshake(#[source] io::Error),
    #[error("the certificate names no node")]
    Certificate,
    #[error("no hello in time")]
    Late,
    #[error("the connection broke off")]
    Broken(#[from] io::Error),
    #[error("the hello is not one")]
    Garbled(#[source] serde_json::Error),
    #[error("the hello is over its limit")]
    TooLong,
    #[error("the agent speaks protocol {0}")]
    Protocol(u32),
    #[error("the agent spoke first on a work connection")]
    SpokeFirst,
    #[error("it is of a former life of the node {0}")]
    Former(NodeId),
    #[error("the node {node} says that it is the node {claimed}")]
    Imposter { node: NodeId, claimed: NodeId },
    #[error("the node {0} may not be here")]
    Foreign(NodeId, #[source] Stranger),
    #[error("an agent without a certificate wants more than to join")]
    NoCertificate,
    #[error("an agent wants to join where nobody can")]
    NoJoining,
}

impl Turned {
    /// What the agent is told, if it is for its operator to mend.
    fn sentence(&self) -> Option<String> {
        match self {
            Self::Protocol(theirs) => Some(format!(
                "this gateway speaks protocol {VERSION}, the agent {theirs}: bring both to the same version"
            )),
            Self::Foreign(_, stranger) => Some(stranger.to_string()),
            Self::Imposter { node, .. } => Some(format!("this node's certificate is of the node {node}")),
            Self::NoCertificate => Some("this agent has no certificate: let its machine join first".into()),
            Self::NoJoining => Some("this gateway takes no nodes in here".into()),
            _ => None,
        }
    }
}

impl Reception {
    pub(crate) fn new(fleet: Fleet, calls: Arc<Calls>) -> Self {
        Self { fleet, calls, room: Arc::new(Semaphore::new(MAX_CONNECTIONS)) }
    }

    /// Whether a successor has the doors, and when that changes.
    pub(super) fn has_successor(&self) -> watch::Receiver<bool> {
        self.fleet.has_successor()
    }

    /// Serves a connection to its end, or hands it on.
    pub(super) async fn receive(&self, stream: Conduit, dialler: Dialler, stop: CancellationToken) {
        let Ok(_place) = self.room.try_acquire() else {
            return tracing::warn!("too many link connections: one is closed");
        };
        if let Err(turned) = self.welcome(stream, dialler, stop).await {
            self.turn_away(&turned);
        }
    }

    /// Counts and logs a connection that is not served.
    pub(super) fn turn_away(&self, turned: &Turned) {
        match turned {
            // Somebody looked whether we are there.
            Turned::Broken(error) => tracing::debug!(%error, "a link connection broke off"),
            // As many as somebody likes: they are counted, and fill no log.
            Turned::Crowded => {
                self.fleet.0.metrics.links_refused.inc();
                tracing::debug!(error = %turned, "a link connection was turned away");
            }
            error => {
                self.fleet.0.metrics.links_refused.inc();
                tracing::warn!(error = %Chain(error), "a link connection was turned away");
            }
        }
    }

    async fn welcome(&self, mut stream: Conduit, dialler: Dialler, stop: CancellationToken) -> Result<(), Turned> {
        let hello = tokio::select! {
            hello = timeout(HELLO_DEADLINE, read_hello(&mut stream)) => hello.map_err(|_| Turned::Late)?,
            () = stop.cancelled() => return Ok(()),
        };
        let (hello, rest) = hello?;
        if let Err(turned) = self.check(&hello, dialler).await {
            match (turned.sentence(), hello.kind) {
                (Some(reason), Kind::Control) => {
                    control_stream::refuse(stream, GatewayMessage::Refused { reason }).await;
                }
                (Some(reason), Kind::Join) => enrolment::refuse(stream, reason).await,
                _ => {}
            }
            return Err(turned);
        }
        let (fleet, calls) = (&self.fleet, &self.calls);
        match hello.kind {
            Kind::Control => {
                let shown = if let Dialler::Node(_, authority) = dialler { Some(authority) } else { None };
                control_stream::run(stream, rest, (&hello, shown), fleet, calls, stop).await;
            }
            Kind::Calls => {
                let asker =
                    Asker { node: hello.node, pass: fleet.pass_of(hello.node), is_local: dialler == Dialler::Local };
                calls.clone().serve(stream, rest, asker, stop).await;
            }
            Kind::Work if !rest.is_empty() => return Err(Turned::SpokeFirst),
            Kind::Work => {
                let link = fleet.link_of(hello.node, hello.epoch, Kind::Work).ok_or(Turned::Former(hello.node))?;
                fleet.0.stocks.deliver(&link, stream.loosen()?);
            }
            Kind::Join => {
                let Some(enrolment) = &calls.enrolment else { return Err(Turned::NoJoining) };
                enrolment.welcome(fleet, stream, rest).await;
            }
        }
        Ok(())
    }

    /// Whether whoever dialled may have what the hello asks for.
    async fn check(&self, hello: &Hello, dialler: Dialler) -> Result<(), Turned> {
        // This version, and the one before.
        if hello.protocol != VERSION && hello.protocol.checked_add(1) != Some(VERSION) {
            return Err(Turned::Protocol(hello.protocol));
        }
        match (dialler, hello.kind) {
            (Dialler::Stranger, Kind::Join) => Ok(()),
            (Dialler::Stranger, _) => Err(Turned::NoCertificate),
            (Dialler::Local | Dialler::Node(..), Kind::Join) => Err(Turned::NoJoining),
            (Dialler::Local, _) => Ok(()),
            (Dialler::Node(node, _), _) if node != hello.node => Err(Turned::Imposter { node, claimed: hello.node }),
            (Dialler::Node(node, _), _) => {
                let admitted = roster::admit(&self.fleet, &*self.calls.store, node).await;
                admitted.map_err(|stranger| Turned::Foreign(node, stranger))
            }
        }
    }
}

/// Reads the first line, and what came with it.
async fn read_hello(stream: &mut Conduit) -> Result<(Hello, BytesMut), Turned> {
    let mut buffer = BytesMut::with_capacity(512);
    loop {
        if let Some(end) = buffer.iter().position(|byte| *byte == b'\n') {
            let line = buffer.split_to(end + 1);
            return Ok((serde_json::from_slice(&line).map_err(Turned::Garbled)?, buffer));
        }
        if buffer.len() >= MAX_HELLO_BYTES {
            return Err(Turned::TooLong);
        }
        if stream.read_buf(&mut buffer).await? == 0 {
            return Err(io::Error::from(io::ErrorKind::UnexpectedEof).into());
        }
    }
}
