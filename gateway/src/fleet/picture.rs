//! The picture of the nodes that take calls, as the invoke path and placement see it: immutable, and drawn anew when
//! something of it is another.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Instant;

use chrono::Utc;
use common::ids::{DeploymentId, NodeId};
use common::labels::Labels;
use common::protocol::NodeState;
use store::fleet::Duty;

use super::handover::{Handover, Progress};
use super::health::Health;
use super::stock::NodeLink;
use super::{Fleet, Node};
use crate::edge::placement::{Candidate, Seat, View};

/// A node that takes calls.
#[derive(Clone)]
pub(crate) struct Linked {
    pub(crate) link: Arc<NodeLink>,
    /// What it said last.
    pub(crate) state: Arc<NodeState>,
    /// What the operator lets it do.
    pub(crate) duty: Duty,
    /// What it speaks.
    pub(crate) protocol: u32,
    pub(crate) health: Health,
    /// Of one that is drained.
    pub(crate) handover: Option<Progress>,
    pub(super) labels: Arc<Labels>,
}

/// The nodes that take calls, at one moment.
#[derive(Default)]
pub(crate) struct Picture {
    pub(super) nodes: Vec<Linked>,
    /// The same nodes in the same order, as placement sees them.
    pub(super) view: View,
}

impl Picture {
    pub(crate) fn iter(&self) -> std::slice::Iter<'_, Linked> {
        self.nodes.iter()
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.nodes.is_empty()
    }

    /// Gives a call or a build of a version to the node at `place`.
    pub(super) fn seated(&self, place: usize, deployment: DeploymentId) -> (Arc<NodeLink>, Option<Seat>) {
        let link = &self.nodes[place].link;
        link.pass.place(deployment);
        (link.clone(), self.view.seat(place))
    }
}

impl Fleet {
    /// Draws the picture anew, and wakes who waits for another one.
    pub(super) fn redraw(&self, nodes: &HashMap<NodeId, Node>) {
        let linked = nodes.values().filter_map(|node| Some((node, node.control.as_ref()?.protocol)));
        let arriving: Vec<_> = nodes.values().flat_map(|node| &node.handover).flat_map(Handover::arriving).collect();
        let mut seen: Vec<_> = linked
            .map(|(node, protocol)| {
                let (link, state, load) = (node.link.clone(), node.state.clone(), node.load.clone());
                let duty = self.duty(link.node).unwrap_or_default();
                let health = node.health();
                let is_avoided = health != Health::Well;
                let hands_over = node.handover.iter().flat_map(Handover::left).collect();
                let handover = node.handover.as_ref().map(Handover::progress);
                let (id, labels, labelled) = (link.node, node.labels.clone(), node.labelled);
                let linked =
                    Linked { link, state: state.clone(), duty, protocol, health, handover, labels: labels.clone() };
                let placed = node.link.pass.placed();
                let takes_over = arriving.iter().filter(|(_, to)| *to == id).map(|(version, _)| *version).collect();
                let node = id;
                let candidate =
                    Candidate { node, state, load, duty, is_avoided, hands_over, takes_over, labels, labelled, placed };
                (linked, candidate)
            })
            .collect();
        seen.sort_unstable_by_key(|(_, candidate)| candidate.node);
        let (nodes, candidates): (Vec<_>, Vec<_>) = seen.into_iter().unzip();
        let view = View::new(candidates, self.0.load.clone());
        let count = |health| nodes.iter().filter(|node| node.health == health).count();
        self.0.metrics.fleet.nodes(nodes.len(), count(Health::Suspected), count(Health::Ejected));
        let roster = self.0.roster.load();
        let seen = roster.values().filter(|node| node.duty != Duty::Removed);
        let seen =
            seen.filter_map(|node| Some((node.id, (Utc::now() - node.last_seen_at?).to_std().unwrap_or_default())));
        self.0.homes.note(nodes.iter().map(|node| node.link.node), seen, Instant::now());
        self.0.picture.store(Arc::new(Picture { nodes, view }));
        self.0.changed.notify_waiters();
    }
}
