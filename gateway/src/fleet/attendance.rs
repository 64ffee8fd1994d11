//! Which nodes are here, and how they are: what their streams and the ends of their calls say of it.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use common::ids::NodeId;
use common::labels::Labels;
use common::protocol::{GatewayMessage, Kind, NodeState};
use tokio::sync::mpsc;

use super::health::{self, Failure, Health, Trust};
use super::stock::NodeLink;
use super::{Control, Fleet, MAX_ORDERS, Node, lock};

/// Tells a node's labels from those before.
static LABELLED: AtomicU64 = AtomicU64::new(1);

impl Node {
    fn new(link: Arc<NodeLink>) -> Self {
        let trust = Trust::new(Instant::now());
        let (state, load) = (Arc::default(), Arc::default());
        let (labels, labelled) = (Arc::default(), 0);
        Self { link, control: None, state, load, is_suspected: false, trust, handover: None, labels, labelled }
    }

    pub(super) fn label(&mut self, labels: Labels) {
        if *self.labels != labels {
            (self.labels, self.labelled) = (Arc::new(labels), LABELLED.fetch_add(1, Ordering::Relaxed));
        }
    }

    pub(super) fn health(&self) -> Health {
        match (self.is_suspected, self.trust.is_ejected()) {
            (true, _) => Health::Suspected,
            (false, true) => Health::Ejected,
            (false, false) => Health::Well,
        }
    }

    pub(super) fn listens_to(&self, stream: u64) -> bool {
        self.control.as_ref().is_some_and(|control| control.stream == stream)
    }
}

impl Fleet {
    /// The link for a connection of this life of a node. A control stream of another life than the last ends the last:
    /// all its connections close. Any other connection of another life is not taken, nor is a control stream of an earlier
    /// life while a later one has its own: it was read late, or is a copy of the machine.
    pub(super) fn link_of(&self, node: NodeId, epoch: u64, kind: Kind) -> Option<Arc<NodeLink>> {
        let fresh = || {
            let mut fresh = Node::new(Arc::new(NodeLink::new(node, epoch, self.pass_of(node))));
            fresh.label(self.labels(node));
            fresh
        };
        let mut nodes = lock(&self.0.nodes);
        let entry = nodes.entry(node).or_insert_with(fresh);
        if entry.link.epoch == epoch {
            return Some(entry.link.clone());
        }
        // Where a clock was set back, the life before has ended, or is lost soon.
        let is_former = epoch < entry.link.epoch && entry.control.is_some();
        if kind != Kind::Control || is_former {
            return None;
        }
        let former = std::mem::replace(entry, fresh()).link;
        let link = entry.link.clone();
        self.redraw(&nodes);
        drop(nodes);
        former.gone.cancel();
        self.0.stocks.forget(&former);
        tracing::info!(%node, "a new life of the node: what is left of the former one is closed");
        Some(link)
    }

    /// The node takes calls from now on; its orders. `None` when the link was given up meanwhile.
    pub(super) fn register(
        &self,
        link: &Arc<NodeLink>,
        stream: u64,
        protocol: u32,
    ) -> Option<mpsc::Receiver<GatewayMessage>> {
        let (orders, inbox) = mpsc::channel(MAX_ORDERS);
        let mut nodes = lock(&self.0.nodes);
        let node = nodes.get_mut(&link.node).filter(|node| Arc::ptr_eq(&node.link, link))?;
        let control = Control { stream, orders, kept: None, protocol, askers: Vec::new() };
        if node.control.replace(control).is_some() {
            // The agent gives up those of the stream before, and whoever uses one at that moment would lose a call.
            self.0.stocks.dial_anew(link);
        }
        node.is_suspected = false;
        self.redraw(&nodes);
        Some(inbox)
    }

    pub(super) fn heard(&self, node: NodeId, stream: u64, mut state: NodeState) {
        // Placement looks versions up in it.
        state.warm.sort_unstable();
        let now = Instant::now();
        lock(&self.0.retries).look(now, self.0.load.begun());
        let mut nodes = lock(&self.0.nodes);
        let Some(entry) = nodes.get_mut(&node).filter(|entry| entry.listens_to(stream)) else { return };
        let was_suspected = std::mem::take(&mut entry.is_suspected);
        let was_ejected = entry.trust.look(now, entry.load.begun());
        if was_suspected || was_ejected {
            tracing::info!(%node, was_suspected, was_ejected, "the node gets calls again");
        }
        if entry.load.heard(state.busy) | (*entry.state != state) | was_suspected | was_ejected {
            entry.state = Arc::new(state);
            self.redraw(&nodes);
        }
    }

    /// The node is silent: it gets no new work while another one can take it.
    pub(super) fn suspect(&self, node: NodeId, stream: u64) {
        let mut nodes = lock(&self.0.nodes);
        let Some(entry) = nodes.get_mut(&node).filter(|entry| entry.listens_to(stream)) else { return };
        entry.is_suspected = true;
        self.redraw(&nodes);
        tracing::warn!(%node, "the node is silent: new calls go to others");
    }

    /// The node's control stream ended: unless there is a newer one, it gets no more calls. Those that it has may end
    /// while their connections hold; with `cut` these close now.
    pub(super) fn lost(&self, node: NodeId, stream: u64, cut: bool) {
        let mut nodes = lock(&self.0.nodes);
        if !nodes.get(&node).is_some_and(|entry| entry.listens_to(stream)) {
            return;
        }
        let Some(entry) = nodes.remove(&node) else { return };
        self.redraw(&nodes);
        drop(nodes);
        self.0.links.notify_one();
        if cut {
            entry.link.gone.cancel();
        }
        self.0.stocks.forget(&entry.link);
    }

    /// A call of a node failed for which the node is to blame: after too many, it is ejected for a while.
    pub(crate) fn failed(&self, link: &Arc<NodeLink>, failure: Failure) {
        let now = Instant::now();
        let mut nodes = lock(&self.0.nodes);
        let (mut count, mut ejected) = (0, 0);
        for node in nodes.values().filter(|node| node.control.is_some()) {
            count += 1;
            ejected += usize::from(node.trust.is_ejected());
        }
        // It may have come back as another since.
        let Some(node) = nodes.get_mut(&link.node).filter(|node| Arc::ptr_eq(&node.link, link)) else { return };
        let mut in_a_row = link.failed_in_a_row.load(Ordering::Relaxed);
        let is_over = node.trust.failed(now, node.load.begun(), failure, &mut in_a_row);
        link.failed_in_a_row.store(in_a_row, Ordering::Relaxed);
        if !is_over || !health::may_eject(count, ejected) {
            return;
        }
        let time = node.trust.eject(now);
        self.0.metrics.fleet.ejections.inc();
        self.redraw(&nodes);
        tracing::warn!(node = %link.node, seconds = time.as_secs(), "too many calls of the node fail: others get them");
    }
}
