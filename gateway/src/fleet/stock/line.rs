//! A work connection that is bound to a thread: idle there, or in use.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use common::ids::NodeId;
use hyper::client::conn::http1::SendRequest;
use tokio::time::timeout;

use super::{NodeLink, Payload, Stock};

/// How long a connection may take to be ready again after the answer before it is given up.
const READY: Duration = Duration::from_millis(100);

/// One that is idle. Dropping it closes it.
pub(super) struct Line {
    sender: SendRequest<Payload>,
    link: Arc<NodeLink>,
    era: u64,
}

impl Line {
    /// One that was dialled in this era of its node.
    pub(super) fn new(sender: SendRequest<Payload>, link: Arc<NodeLink>, era: u64) -> Self {
        Self { sender, link, era }
    }

    pub(super) fn node(&self) -> NodeId {
        self.link.node
    }

    pub(super) fn is_ready(&self) -> bool {
        self.sender.is_ready()
    }

    /// Whether no more calls go this way. The shelf is the node's, whichever link of it this one was dialled for.
    pub(super) fn is_over(&self) -> bool {
        self.sender.is_closed()
            || self.era != self.link.era.load(Ordering::Relaxed)
            || self.link.left.load(Ordering::Acquire)
    }

    /// For a call, once it is ready; `None` when it is not in time.
    pub(super) async fn lease(self, stock: &Arc<Stock>) -> Option<Lease> {
        let Self { mut sender, link, era } = self;
        if !sender.is_ready() && !matches!(timeout(READY, sender.ready()).await, Ok(Ok(()))) {
            return None;
        }
        Some(Lease { sender, link, era, stock: stock.clone() })
    }
}

/// One that is in use. Dropping it closes it.
pub(crate) struct Lease {
    pub(crate) sender: SendRequest<Payload>,
    link: Arc<NodeLink>,
    era: u64,
    stock: Arc<Stock>,
}

impl Lease {
    /// Puts the connection back for the next call.
    pub(crate) fn give_back(self) {
        let Self { sender, link, era, stock } = self;
        stock.put(Line { sender, link, era });
    }
}
