//! A node, as the stocks know it: whether it takes calls, and what of its work connections is open.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use common::conduit::Loose;
use common::digest::Digest;
use common::ids::NodeId;
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

use super::lock;
use crate::fleet::pass::Pass;

/// A node, as the stocks know it.
pub(crate) struct NodeLink {
    pub(crate) node: NodeId,
    /// Which life of the node it leads to.
    pub(crate) epoch: u64,
    pub(crate) pass: Arc<Pass>,
    /// Cancelled when the node is lost, removed, or has a new life: every work connection closes at once.
    pub(crate) gone: CancellationToken,
    /// Whether no call may begin any more.
    pub(super) left: AtomicBool,
    /// Calls in a row that failed by the node's fault.
    pub(crate) failed_in_a_row: AtomicU32,
    /// Grows when work connections are to be dialled anew: those of before get no more calls.
    pub(super) era: AtomicU64,
    /// Work connections that are open; the agent has a limit for them.
    pub(super) open: AtomicU32,
    /// That limit.
    pub(crate) max_connections: AtomicU32,
    /// The authority of the certificate that it has shown last; none on this machine.
    shown: Mutex<Option<Digest>>,
    /// Whether it can be told of another authority; an older agent cannot.
    pub(crate) learns_authorities: AtomicBool,
    /// Connections that were asked for and that the control stream has not sent for yet.
    wanted: AtomicU32,
    /// Rung when `wanted` grows.
    pub(crate) ring: Notify,
    pub(super) reserve: Mutex<VecDeque<Dialled>>,
}

/// A connection that was dialled and is bound to no thread yet.
pub(super) struct Dialled {
    pub(super) stream: Loose,
    pub(super) open: Open,
    pub(super) era: u64,
}

/// Counts a connection for as long as it is open.
pub(crate) struct Open(pub(super) Arc<NodeLink>);

impl Drop for Open {
    fn drop(&mut self) {
        self.0.open.fetch_sub(1, Ordering::Relaxed);
    }
}

impl NodeLink {
    pub(crate) fn new(node: NodeId, epoch: u64, pass: Arc<Pass>) -> Self {
        Self {
            node,
            epoch,
            gone: pass.gone.child_token(),
            pass,
            left: AtomicBool::new(false),
            failed_in_a_row: AtomicU32::new(0),
            era: AtomicU64::new(0),
            open: AtomicU32::new(0),
            max_connections: AtomicU32::new(u32::MAX),
            shown: Mutex::default(),
            learns_authorities: AtomicBool::new(false),
            wanted: AtomicU32::new(0),
            ring: Notify::new(),
            reserve: Mutex::default(),
        }
    }

    /// Counts a connection as long as it is open: one that was dialled, or has become a WebSocket's and is driven no more.
    pub(crate) fn hold(self: &Arc<Self>) -> Open {
        self.open.fetch_add(1, Ordering::Relaxed);
        Open(self.clone())
    }

    /// How many connections to ask the agent for, since the last time this was asked.
    pub(crate) fn take_wanted(&self) -> u32 {
        self.wanted.swap(0, Ordering::Relaxed)
    }

    /// A call of it did not fail.
    pub(crate) fn succeeded(&self) {
        // As a rule there is nothing to write, which other threads would have to read again.
        if self.failed_in_a_row.load(Ordering::Relaxed) > 0 {
            self.failed_in_a_row.store(0, Ordering::Relaxed);
        }
    }

    /// It shows a certificate of this authority.
    pub(crate) fn shows(&self, authority: Option<Digest>) {
        *lock(&self.shown) = authority;
    }

    /// Of which authority the certificate is that it has shown last.
    pub(crate) fn shown(&self) -> Option<Digest> {
        *lock(&self.shown)
    }

    pub(super) fn want_one(&self) {
        self.wanted.fetch_add(1, Ordering::Relaxed);
        self.ring.notify_one();
    }

    pub(super) fn is_full(&self) -> bool {
        self.open.load(Ordering::Relaxed) >= self.max_connections.load(Ordering::Relaxed)
    }

    pub(super) fn take_reserved(&self) -> Option<Dialled> {
        lock(&self.reserve).pop_front()
    }
}
