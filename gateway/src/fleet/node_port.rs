//! The link's door to other machines: a TCP port with TLS. What a connection is for, and whether it may, is the
//! reception's to see.

use std::io;
use std::net::SocketAddr;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use common::conduit::{Conduit, Socket};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::timeout;
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::authorities::Authorities;
use super::authority::{AuthorityError, node_of};
use super::config::NodePortArgs;
use super::reception::{Dialler, Reception, Turned};
use crate::edge::seats::Seats;
use crate::hand_over::bound_at;

/// How long a handshake may take.
const HANDSHAKE_DEADLINE: Duration = Duration::from_secs(5);

/// Most connections that have not shown a certificate yet. One beyond that is closed at once, and an agent dials again.
const MAX_HANDSHAKES: u32 = 1024;

/// Those of one address, so that a stranger who says nothing leaves seats for others. A fleet that comes back from behind
/// one address needs no more: a node gives its seat back within milliseconds, and dials again if it got none.
pub(crate) const MAX_HANDSHAKES_EACH: u32 = 256;

/// How long the door waits after a failed accept: out of descriptors, most likely.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// The bound port.
pub(crate) struct NodePort {
    listener: std::net::TcpListener,
    authorities: Arc<ArcSwap<Authorities>>,
}

/// The node port cannot be had.
#[derive(Debug, thiserror::Error)]
pub enum NodePortError {
    /// The port is taken, or not ours to take.
    #[error("cannot listen on {address}: stop what listens there, or set NODE_ADDR")]
    Address {
        /// Which.
        address: SocketAddr,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The authority cannot be had.
    #[error("the node port cannot be opened")]
    Authority(#[source] Box<dyn std::error::Error + Send + Sync>),
}

impl From<AuthorityError> for NodePortError {
    fn from(error: AuthorityError) -> Self {
        Self::Authority(error.into())
    }
}

impl NodePort {
    /// Binds the port, if the settings name one, unless the gateway before this one has it bound there.
    ///
    /// # Errors
    /// It is taken.
    pub(crate) fn open(
        args: &NodePortArgs,
        bound: Option<std::net::TcpListener>,
        authorities: Arc<ArcSwap<Authorities>>,
    ) -> Result<Option<Self>, NodePortError> {
        let Some(address) = args.node_addr else { return Ok(None) };
        let bound = bound.and_then(|bound| bound_at(bound, address));
        let bound = bound.map_or_else(|| std::net::TcpListener::bind(address), Ok);
        let listener = bound.and_then(|listener| listener.set_nonblocking(true).map(|()| listener));
        let listener = listener.map_err(|source| NodePortError::Address { address, source })?;
        Ok(Some(Self { listener, authorities }))
    }

    /// The port once more, for a successor.
    pub(crate) fn share(&self) -> io::Result<std::net::TcpListener> {
        self.listener.try_clone()
    }

    /// Takes connections until `stop`, while no successor does, and waits for those that are not work connections, which
    /// the stocks own.
    pub(crate) async fn run(self, reception: Arc<Reception>, stop: CancellationToken) {
        let listener = match TcpListener::from_std(self.listener) {
            Ok(listener) => listener,
            Err(error) => return tracing::error!(%error, "the node port cannot be watched"),
        };
        let (tasks, mut has_successor) = (TaskTracker::new(), reception.has_successor());
        let seats = Arc::new(Seats::new(MAX_HANDSHAKES, MAX_HANDSHAKES_EACH));
        loop {
            let accepts = !*has_successor.borrow_and_update();
            let accepted = tokio::select! {
                // In this order, so that nobody is accepted who was told to go to the successor.
                biased;
                () = stop.cancelled() => break,
                Ok(()) = has_successor.changed() => continue,
                accepted = listener.accept(), if accepts => accepted,
            };
            let (stream, peer) = match accepted {
                Ok(accepted) => accepted,
                Err(error) => {
                    tracing::warn!(%error, "no node connection can be accepted");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                    continue;
                }
            };
            let Some(seat) = seats.take(peer.ip(), false) else {
                reception.turn_away(&Turned::Crowded);
                continue;
            };
            let (authorities, reception, stop) = (self.authorities.load_full(), reception.clone(), stop.clone());
            tasks.spawn(async move {
                let shaken = tokio::select! {
                    shaken = shake(&authorities, stream) => shaken,
                    () = stop.cancelled() => return,
                };
                match shaken {
                    // Whoever has shown a certificate makes room for the next; a stranger keeps his seat.
                    Ok((stream, node, Some(trusted))) => {
                        drop(seat);
                        receive_while(&trusted, &reception, stream, node, &stop).await;
                    }
                    Ok((stream, stranger, None)) => reception.receive(stream, stranger, stop).await,
                    Err(turned) => reception.turn_away(&turned),
                }
            });
        }
        tasks.close();
        tasks.wait().await;
    }
}

/// Who dialled, and until when his certificate is trusted if he has one.
async fn shake(
    authorities: &Authorities,
    stream: TcpStream,
) -> Result<(Conduit, Dialler, Option<CancellationToken>), Turned> {
    let (socket, tls) = (Socket::new(stream)?, TlsAcceptor::from(Arc::clone(&authorities.tls)));
    let shaken = timeout(HANDSHAKE_DEADLINE, tls.accept(socket)).await.map_err(|_| Turned::NoHandshake)?;
    let stream = shaken.map_err(Turned::Handshake)?;
    let (dialler, trusted) = match stream.get_ref().1.peer_certificates() {
        None | Some([]) => (Dialler::Stranger, None),
        Some([certificate, ..]) => {
            let node = node_of(certificate).ok_or(Turned::Certificate)?;
            let authority = authorities.of(certificate);
            (Dialler::Node(node, authority.pin()), Some(authority.trusted.clone()))
        }
    };
    Ok((Conduit::Tls(Box::new(stream.into())), dialler, trusted))
}

/// Serves a connection until `stop`, or until its certificate is `trusted` no more.
async fn receive_while(
    trusted: &CancellationToken,
    reception: &Reception,
    stream: Conduit,
    dialler: Dialler,
    stop: &CancellationToken,
) {
    let stop = stop.child_token();
    let mut received = pin!(reception.receive(stream, dialler, stop.clone()));
    tokio::select! {
        () = received.as_mut() => {}
        () = trusted.cancelled() => {
            stop.cancel();
            received.await;
        }
    }
}
