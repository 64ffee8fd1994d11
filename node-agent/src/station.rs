//! Which node this machine is, and how it reaches its gateways: by what it got when it joined, or as the gateway's own.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use arc_swap::ArcSwap;
use common::ids::NodeId;
use rustls::ClientConfig;

use crate::identity::Identity;
use crate::link::Way;
use crate::{Settings, StartError, unusable};

/// Who this machine is, and where its gateways are.
pub(crate) struct Station {
    pub(crate) node: NodeId,
    pub(crate) ways: Vec<Way>,
    /// Of a machine that joined a fleet, with what connections show of it.
    pub(crate) identity: Option<(Identity, Arc<ArcSwap<ClientConfig>>)>,
}

pub(crate) fn station(settings: &Settings, data_dir: &Path, socket: PathBuf) -> Result<Station, StartError> {
    let identity = if settings.is_local { None } else { Identity::load(data_dir)? };
    let Some(identity) = identity else {
        if !settings.gateway_url.is_empty() && !settings.is_local {
            return Err(StartError::NotJoined);
        }
        return Ok(Station { node: node_id(data_dir)?, ways: vec![Way::Unix(socket)], identity: None });
    };
    let config = Arc::new(ArcSwap::from_pointee(identity.tls()?));
    let urls = if settings.gateway_url.is_empty() { identity.urls() } else { settings.gateway_url.clone() };
    let ways = urls.into_iter().map(|url| Way::Tls { url, config: Arc::clone(&config) }).collect();
    Ok(Station { node: identity.node, ways, identity: Some((identity, config)) })
}

/// This machine's id: made once, then read.
pub(crate) fn node_id(data_dir: &Path) -> Result<NodeId, StartError> {
    let path = data_dir.join("node-id");
    match std::fs::read_to_string(&path) {
        Ok(text) => text.trim().parse().map_err(|_| StartError::NodeId(path)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            let (node, next) = (NodeId::new(), data_dir.join("node-id.next"));
            let written = std::fs::write(&next, format!("{node}\n")).and_then(|()| std::fs::rename(&next, &path));
            written.map(|()| node).map_err(unusable(path))
        }
        Err(error) => Err(unusable(path)(error)),
    }
}

/// What this machine is called.
#[must_use]
pub fn machine_name() -> String {
    let name = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    if name.trim().is_empty() { "node".to_owned() } else { name.trim().to_owned() }
}
