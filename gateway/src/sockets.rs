//! The listening sockets of a gateway and the lock of its data directory: bound anew, or inherited from its predecessor.

use std::fs::File;
use std::net::{SocketAddr, TcpListener};
use std::os::unix::net::UnixListener;
use std::path::Path;

use common::ids::GatewayId;
use common::settings::Place;
use tokio::runtime::Runtime;

use crate::config::Settings;
use crate::data_dir;
use crate::error::{LinkError, StartError};
use crate::fleet::link::Link;
use crate::hand_over::{OldProcess, Predecessor, bound_at, bound_to};

/// Them, and whom they are of.
pub(crate) struct Sockets {
    /// Where clients are accepted.
    pub(crate) public: TcpListener,
    /// The data directory is ours for as long as this is open.
    pub(crate) lock: File,
    /// Which gateway this is.
    pub(crate) gateway: GatewayId,
    /// Where agents are accepted, if they are inherited.
    pub(crate) link: Option<UnixListener>,
    pub(crate) nodes: Option<TcpListener>,
    /// The predecessor, if there is one.
    pub(crate) old: Option<OldProcess>,
}

impl Sockets {
    /// Binds them, or inherits them.
    pub(crate) fn acquire(
        settings: &Settings,
        place: &Place,
        control: &Runtime,
        predecessor: Option<Predecessor>,
    ) -> Result<Self, StartError> {
        let address = settings.listen_addr();
        let Some(predecessor) = predecessor else {
            let public = bind(address)?;
            // Before anything is opened: what a start clears away may be another gateway's work.
            let (lock, gateway) = data_dir::take(&place.data_dir)?;
            return Ok(Self { public, lock, gateway, link: None, nodes: None, old: None });
        };
        let _context = control.enter();
        let (inherited, old) = predecessor.divide()?;
        let public = bound_at(inherited.public, address).map_or_else(|| bind(address), Ok)?;
        let link = bound_to(inherited.link, &place.link_socket());
        // The predecessor still has deploys of its own under its id.
        let gateway = GatewayId::new();
        Ok(Self { public, lock: inherited.lock, gateway, link, nodes: inherited.nodes, old: Some(old) })
    }
}

fn bind(address: SocketAddr) -> Result<TcpListener, StartError> {
    let bound = TcpListener::bind(address).and_then(|socket| socket.set_nonblocking(true).map(|()| socket));
    bound.map_err(|source| StartError::Address { address, source })
}

/// The link's socket on this machine. Call it on the control runtime.
pub(crate) fn open_link(inherited: Option<UnixListener>, path: &Path) -> Result<Link, LinkError> {
    inherited.map_or_else(|| Link::bind(path), |listener| Link::inherit(listener, path))
}
