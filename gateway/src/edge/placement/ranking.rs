//! Rankings: the order in which a key puts the nodes, by weighted rendezvous hashing.

use std::collections::HashMap;

use common::ids::{DeploymentId, NodeId};

use super::{RANKED, View, Wanted};

/// Rankings that a thread keeps: about 100 bytes each.
const MAX_RANKINGS: usize = 16_384;

/// The first nodes in the order that a key puts them in.
#[derive(Clone, Copy, Debug)]
pub struct Ranking {
    places: [u32; RANKED],
    count: usize,
}

impl Ranking {
    /// The ranking of `nodes`, each with its weight, without those that have none: a node with twice the weight is first
    /// for twice the keys. When a node comes or goes, only its own keys move.
    pub fn of(nodes: impl Iterator<Item = (NodeId, f64)>, key: u128) -> Self {
        let (mut scores, mut places, mut count) = ([0.0; RANKED], [0; RANKED], 0);
        for (place, (node, weight)) in (0..).zip(nodes).filter(|(_, (_, weight))| *weight > 0.0) {
            let score = score(node, weight, key);
            let rank = scores[..count].partition_point(|other| *other >= score);
            if rank == RANKED {
                continue;
            }
            count = (count + 1).min(RANKED);
            scores[rank..count].rotate_right(1);
            places[rank..count].rotate_right(1);
            (scores[rank], places[rank]) = (score, place);
        }
        Self { places, count }
    }

    /// The places of the nodes, the best first.
    pub fn places(&self) -> impl Iterator<Item = usize> {
        self.places.into_iter().take(self.count).map(|place| place as usize)
    }
}

/// The rankings that one thread has made of the nodes as they are: in a large fleet one costs more than a call.
#[derive(Debug, Default)]
pub struct Rankings {
    order: u64,
    by_key: HashMap<(u128, Option<DeploymentId>), Ranking>,
}

impl Rankings {
    pub(super) fn of(&mut self, view: &View, wanted: &Wanted<'_>) -> Ranking {
        if self.order != view.order {
            self.by_key.clear();
            self.order = view.order;
        }
        // Versions of a function differ in what they want of a node, if at all.
        let key = (wanted.key, (!wanted.selector.is_empty()).then_some(wanted.deployment));
        if let Some(ranking) = self.by_key.get(&key) {
            return *ranking;
        }
        if self.by_key.len() >= MAX_RANKINGS {
            self.by_key.clear();
        }
        let ranking = view.ranking(wanted);
        self.by_key.insert(key, ranking);
        ranking
    }
}

/// The node that something with the hash `key` is at, whatever that node carries or has.
pub(crate) fn home(nodes: impl Iterator<Item = NodeId>, key: u128) -> Option<NodeId> {
    nodes.max_by_key(|node| hash(*node, key))
}

/// Weighted rendezvous hashing: each node draws a number between 0 and 1 for the key.
pub(super) fn score(node: NodeId, weight: f64, key: u128) -> f64 {
    let drawn = ((hash(node, key) >> 12) as f64 + 0.5) / (1_u64 << 52) as f64;
    weight / -drawn.ln()
}

pub(super) fn hash(node: NodeId, key: u128) -> u64 {
    let node = node.uuid().as_u128();
    let mixed = (node ^ key.rotate_left(64)).wrapping_mul(0x9e37_79b9_7f4a_7c15_f39c_c060_5ced_c835);
    let folded = (mixed >> 64) as u64 ^ mixed as u64;
    // The finisher of MurmurHash3, whose output bits each depend on all input bits.
    let folded = (folded ^ (folded >> 33)).wrapping_mul(0xff51_afd7_ed55_8ccd);
    folded ^ (folded >> 33)
}
