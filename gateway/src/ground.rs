//! What a gateway stands on: its public socket and its data directory, found anew, or taken from the gateway before; and
//! its stores.

use std::fs::File;
use std::net::{SocketAddr, TcpListener};
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use common::error::Chain;
use common::ids::GatewayId;
use common::settings::Place;
use store::artifacts::Artifacts;
use store::{Store, StoreArgs};
use tokio::runtime::Runtime;
use tokio_util::sync::CancellationToken;

use crate::config::Settings;
use crate::data_dir;
use crate::error::{LinkError, StartError};
use crate::fleet::link::Link;
use crate::hand_over::{Before, Predecessor, bound_at, bound_to};

/// How long a database may take to come up.
const STORE_DEADLINE: Duration = Duration::from_secs(60);

/// How long to wait before the database is tried again.
const STORE_PAUSE: Duration = Duration::from_secs(1);

/// The sockets that are there before a gateway is, and what it does them for.
pub(crate) struct Ground {
    /// Where clients are accepted.
    pub(crate) socket: TcpListener,
    /// The data directory is ours for as long as this is open.
    pub(crate) lock: File,
    /// Which gateway this is.
    pub(crate) gateway: GatewayId,
    /// Where agents are accepted, if the gateway before did.
    pub(crate) link: Option<UnixListener>,
    pub(crate) nodes: Option<TcpListener>,
    /// The gateway before, if it gives its place.
    pub(crate) before: Option<Before>,
}

impl Ground {
    /// Found anew, or taken. Call it in the context of `control`.
    pub(crate) fn find(
        settings: &Settings,
        place: &Place,
        control: &Runtime,
        predecessor: Option<Predecessor>,
    ) -> Result<Self, StartError> {
        let address = settings.listen_addr();
        let Some(predecessor) = predecessor else {
            let socket = bind(address)?;
            // Before anything is opened: what a start clears away may be another gateway's work.
            let (lock, gateway) = data_dir::take(&place.data_dir)?;
            return Ok(Self { socket, lock, gateway, link: None, nodes: None, before: None });
        };
        let _context = control.enter();
        let (estate, before) = predecessor.divide()?;
        let socket = bound_at(estate.public, address).map_or_else(|| bind(address), Ok)?;
        let link = bound_to(estate.link, &place.link_socket());
        // The one before still has deploys of its own under its id.
        let gateway = GatewayId::new();
        Ok(Self { socket, lock: estate.lock, gateway, link, nodes: estate.nodes, before: Some(before) })
    }
}

fn bind(address: SocketAddr) -> Result<TcpListener, StartError> {
    let bound = TcpListener::bind(address).and_then(|socket| socket.set_nonblocking(true).map(|()| socket));
    bound.map_err(|source| StartError::Address { address, source })
}

/// The link's door on this machine. Call it on the control runtime.
pub(crate) fn open_link(inherited: Option<UnixListener>, path: &Path) -> Result<Link, LinkError> {
    inherited.map_or_else(|| Link::bind(path), |listener| Link::inherit(listener, path))
}

/// Opens the artifact store and the database. What another process is writing stays, if one still writes.
pub(crate) async fn open_stores(
    settings: &Settings,
    place: &Place,
    args: &StoreArgs,
    is_shared: bool,
    stop: &CancellationToken,
) -> Result<(Artifacts, Arc<dyn Store>), StartError> {
    let functions = settings.functions_dir.clone().unwrap_or_else(|| place.data_dir.join("functions"));
    let artifacts = if is_shared {
        Artifacts::inherit(&settings.artifacts, functions).await?
    } else {
        Artifacts::connect(&settings.artifacts, functions).await?
    };
    Ok((artifacts, open_store(args, &place.data_dir, stop).await?))
}

/// Opens the database, which may still be starting.
async fn open_store(args: &StoreArgs, data_dir: &Path, stop: &CancellationToken) -> Result<Arc<dyn Store>, StartError> {
    let started = Instant::now();
    let store = loop {
        match store::open(args, data_dir).await {
            Ok(store) => break store,
            Err(error @ store::Error::Unavailable(_)) if started.elapsed() < STORE_DEADLINE => {
                tracing::warn!(error = %Chain(&error), "no database yet: trying again");
            }
            Err(error) => return Err(error.into()),
        }
        tokio::select! {
            () = tokio::time::sleep(STORE_PAUSE) => {}
            () = stop.cancelled() => return Err(StartError::Stopped),
        }
    };
    Ok(store)
}
