//! Which node gets a call, a build, a sandbox that is kept warm: a pure choice between what is known of the nodes.
//!
//! Each function ranks all nodes, by rendezvous hashing weighted with their memory, so its ranking stays when other
//! nodes come and go. Of the first [`RANKED`] it gets one whose Engine answers, or has it warm; of those one that
//! carries no more than its share, by its CPUs; of those one that has the version warm, else one whose memory has room
//! for it, else one that has its build; of those the first.

use std::collections::HashSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use common::function::DeploymentSpec;
use common::ids::{DeploymentId, NodeId};
use common::labels::Labels;
use common::protocol::NodeState;
use store::fleet::Duty;

mod ranking;

use ranking::hash;
pub(crate) use ranking::home;
pub use ranking::{Ranking, Rankings};

/// How much more than the mean a node may carry before calls go elsewhere, in percent.
const BOUND_PERCENT: u64 = 125;

/// Nodes that a function's calls are placed on as long as one of them has room. Sandboxes that are kept warm are there.
pub const RANKED: usize = 16;

/// Calls that are under way on a node.
#[derive(Debug, Default)]
pub struct Load {
    /// Those of this gateway, at this moment.
    sent: AtomicU32,
    /// Those of other gateways, by the last heartbeat.
    others: AtomicU32,
    /// How many calls this gateway has sent so far; it wraps.
    begun: AtomicU32,
}

impl Load {
    /// Takes in what a heartbeat says of calls under way. Whether a view that knows it is out of date.
    pub fn heard(&self, busy: u32) -> bool {
        let others = busy.saturating_sub(self.sent.load(Ordering::Relaxed));
        self.others.swap(others, Ordering::Relaxed) != others
    }

    /// How many calls this gateway has sent so far, while there was more than one node.
    pub(crate) fn begun(&self) -> u32 {
        self.begun.load(Ordering::Relaxed)
    }

    fn now(&self) -> u64 {
        u64::from(self.sent.load(Ordering::Relaxed)) + u64::from(self.others.load(Ordering::Relaxed))
    }
}

/// A call's place on its node, for as long as this is held.
#[derive(Debug)]
pub struct Seat {
    node: Arc<Load>,
    fleet: Arc<Load>,
}

impl Drop for Seat {
    fn drop(&mut self) {
        for load in [&self.node, &self.fleet] {
            load.sent.fetch_sub(1, Ordering::Relaxed);
        }
    }
}

/// What placement sees of a node.
#[derive(Clone, Debug)]
pub struct Candidate {
    /// Which.
    pub node: NodeId,
    /// What it said last; what is warm is sorted.
    pub state: Arc<NodeState>,
    /// What it carries.
    pub load: Arc<Load>,
    /// What the operator lets it do.
    pub duty: Duty,
    /// Whether it gets nothing new while there is another: it is silent, or its calls fail.
    pub is_avoided: bool,
    /// Of one that is drained, the versions that it still gets calls of until they are warm elsewhere; sorted.
    pub hands_over: Vec<DeploymentId>,
    /// Versions that it is to take over and that are not warm yet, whatever it says.
    pub takes_over: Vec<DeploymentId>,
    /// What it is or has, as the operator says.
    pub labels: Arc<Labels>,
    /// Another number for other labels.
    pub labelled: u64,
    /// Versions that it was told to build or run, so that their builds are at hand there, as a rule.
    pub placed: Arc<HashSet<DeploymentId>>,
}

impl Candidate {
    fn is_active(&self) -> bool {
        self.duty == Duty::Active
    }

    fn hands_over(&self, deployment: DeploymentId) -> bool {
        self.hands_over.binary_search(&deployment).is_ok()
    }

    /// Whether it gets such calls.
    fn takes(&self, wanted: &Wanted<'_>) -> bool {
        (self.is_active() || self.hands_over(wanted.deployment)) && self.labels.have(wanted.selector)
    }

    fn has_warm(&self, deployment: DeploymentId) -> bool {
        self.state.warm.binary_search(&deployment).is_ok() && !self.takes_over.contains(&deployment)
    }

    /// Whether it has no need of an Engine that is away.
    fn can_run(&self, deployment: DeploymentId) -> bool {
        self.state.engine_answers != Some(false) || self.has_warm(deployment)
    }
}

/// What is to be placed.
#[derive(Clone, Copy, Debug)]
pub struct Wanted<'a> {
    key: u128,
    deployment: DeploymentId,
    memory_mb: u64,
    selector: &'a Labels,
}

impl<'a> Wanted<'a> {
    /// A call or a build of a version.
    #[must_use]
    pub fn of(spec: &'a DeploymentSpec) -> Self {
        let memory_mb = spec.limits.memory_mb.into();
        Self { key: key(spec), deployment: spec.deployment, memory_mb, selector: &spec.node_selector }
    }
}

/// What decides a version's ranking of the nodes: all versions of a function have the same.
#[must_use]
pub fn key(spec: &DeploymentSpec) -> u128 {
    spec.function.uuid().as_u128()
}

/// The nodes at one moment, made anew when one of them says something.
#[derive(Debug, Default)]
pub struct View {
    nodes: Vec<Candidate>,
    /// Of each node; 0 of one that gets nothing new.
    weights: Vec<f64>,
    /// Of each node; 0 of one that gets nothing new.
    cpus: Vec<u64>,
    all_cpus: u64,
    /// Of all nodes together.
    load: Arc<Load>,
    /// Tells views whose rankings differ.
    order: u64,
}

/// How good a node is; the largest is best, and among equals the first in the ranking.
#[derive(PartialEq, Eq, PartialOrd, Ord)]
struct Fitness {
    /// Its Docker Engine answers, or no start is needed.
    can_run: bool,
    has_share_left: bool,
    is_warm: bool,
    space: Space,
    has_build: bool,
}

/// Whether a node's memory has room for one more sandbox.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Space {
    No,
    /// If idle sandboxes go.
    AfterRemoval,
    Free,
}

impl View {
    /// The view of `nodes`, whose loads together are `load`.
    #[must_use]
    pub fn new(nodes: Vec<Candidate>, load: Arc<Load>) -> Self {
        let others =
            nodes.iter().fold(0, |sum: u32, node| sum.saturating_add(node.load.others.load(Ordering::Relaxed)));
        load.others.store(others, Ordering::Relaxed);
        let avoids = nodes.iter().any(|node| node.is_active() && !node.is_avoided);
        let gets_calls = |node: &Candidate| node.is_active() || !node.hands_over.is_empty();
        let is_taken = |node: &&Candidate| gets_calls(node) && !(avoids && node.is_avoided);
        let active = || nodes.iter().filter(is_taken);
        let mut known = weights(active().map(|node| node.state.memory_total_mb))
            .into_iter()
            .zip(known_or_mean(active().map(|node| u64::from(node.state.cpus.unwrap_or(0)))));
        let size = |node| if is_taken(&node) { known.next() } else { None };
        let (weights, cpus): (Vec<_>, Vec<_>) = nodes.iter().map(size).map(Option::unwrap_or_default).unzip();
        let order = nodes.iter().zip(&weights).fold(0, |order: u64, (node, weight)| {
            let facts = u128::from(weight.to_bits()) | (u128::from(node.labelled) << 64);
            order.rotate_left(5).wrapping_add(hash(node.node, facts))
        });
        Self { all_cpus: cpus.iter().sum(), nodes, weights, cpus, load, order }
    }

    /// The place of the best node for `wanted`. `None` when there is none at all.
    #[must_use]
    pub fn choose(&self, wanted: &Wanted<'_>, rankings: &mut Rankings) -> Option<usize> {
        if let [node] = &self.nodes[..] {
            return (node.takes(wanted) || self.last_resort(wanted, None).is_some()).then_some(0);
        }
        self.best(wanted, rankings.of(self, wanted), None)
    }

    /// The same without the node `failed`.
    #[must_use]
    pub fn choose_other(&self, wanted: &Wanted<'_>, failed: NodeId) -> Option<usize> {
        let without = |(node, weight)| (node, if node == failed { 0.0 } else { weight });
        let ranking = Ranking::of(self.weighted(wanted.selector).map(without), wanted.key);
        self.best(wanted, ranking, Some(failed))
    }

    fn best(&self, wanted: &Wanted<'_>, ranking: Ranking, failed: Option<NodeId>) -> Option<usize> {
        // One call more than now is always allowed, else an idle fleet would take none.
        let bound = (self.load.now() + 1).saturating_mul(BOUND_PERCENT);
        let mut best: Option<(Fitness, usize)> = None;
        for place in ranking.places() {
            let Some(fitness) = self.fitness(place, wanted, bound) else { continue };
            // One that is warm can run it.
            if fitness.has_share_left && fitness.is_warm {
                return Some(place);
            }
            if best.as_ref().is_none_or(|(other, _)| fitness > *other) {
                best = Some((fitness, place));
            }
        }
        let Some((fitness, place)) = best else { return self.last_resort(wanted, failed) };
        if fitness.can_run && fitness.has_share_left {
            return Some(place);
        }
        // A function that fills all of its own: from a place on that is its own, too, so that its calls stay together.
        let (count, start) = (self.nodes.len(), hash(self.nodes[0].node, wanted.key) as usize);
        let mut round = (0..count).map(|step| (start % count + step) % count);
        let may = |node: &Candidate| failed != Some(node.node) && node.takes(wanted) && node.can_run(wanted.deployment);
        Some(round.find(|place| may(&self.nodes[*place]) && self.has_share_left(*place, bound)).unwrap_or(place))
    }

    /// Where `wanted` goes on when a node that has it warm is drained: the best one that has it warm, too, or has room
    /// for it. `None` when there is none.
    #[must_use]
    pub fn successor(&self, wanted: &Wanted<'_>) -> Option<usize> {
        let bound = (self.load.now() + 1).saturating_mul(BOUND_PERCENT);
        let stays =
            |(node, weight): (&Candidate, (NodeId, f64))| if node.is_active() { weight } else { (node.node, 0.0) };
        let weighted = self.nodes.iter().zip(self.weighted(wanted.selector)).map(stays);
        let ranking = Ranking::of(weighted, wanted.key);
        let fit = ranking.places().filter_map(|place| Some((self.fitness(place, wanted, bound)?, place)));
        let fit = fit.filter(|(fitness, _)| fitness.can_run && (fitness.is_warm || fitness.space > Space::No));
        fit.reduce(|best, next| if next.0 > best.0 { next } else { best }).map(|(_, place)| place)
    }

    /// Where no node is active: a cordoned one, for what is warm there.
    fn last_resort(&self, wanted: &Wanted<'_>, failed: Option<NodeId>) -> Option<usize> {
        let takes = |node: &Candidate| {
            node.duty == Duty::Cordoned && node.has_warm(wanted.deployment) && node.labels.have(wanted.selector)
        };
        self.nodes.iter().position(|node| takes(node) && Some(node.node) != failed)
    }

    /// The node at the top of the ranking for `key`.
    #[must_use]
    pub fn home(&self, key: u128) -> Option<NodeId> {
        let ranking = Ranking::of(self.weighted(&Labels::NONE), key);
        ranking.places().next().map(|place| self.nodes[place].node)
    }

    /// Takes a seat on the node at `place`. Nobody counts where there is one node only.
    #[must_use]
    pub fn seat(&self, place: usize) -> Option<Seat> {
        let node = self.nodes.get(place).filter(|_| self.nodes.len() > 1)?;
        let seat = Seat { node: node.load.clone(), fleet: self.load.clone() };
        for load in [&seat.node, &seat.fleet] {
            load.sent.fetch_add(1, Ordering::Relaxed);
            load.begun.fetch_add(1, Ordering::Relaxed);
        }
        Some(seat)
    }

    fn ranking(&self, wanted: &Wanted<'_>) -> Ranking {
        Ranking::of(self.weighted(wanted.selector), wanted.key)
    }

    /// The nodes with their weights; 0 of one that has not the labels.
    fn weighted(&self, selector: &Labels) -> impl Iterator<Item = (NodeId, f64)> {
        let weight = move |(node, weight): (&Candidate, &f64)| {
            (node.node, if node.labels.have(selector) { *weight } else { 0.0 })
        };
        self.nodes.iter().zip(&self.weights).map(weight)
    }

    fn has_share_left(&self, place: usize, bound: u64) -> bool {
        let allowed = bound.saturating_mul(self.cpus[place]).div_ceil(100 * self.all_cpus);
        self.nodes[place].load.now() < allowed
    }

    /// `None` of one that does not get such calls.
    fn fitness(&self, place: usize, wanted: &Wanted<'_>, bound: u64) -> Option<Fitness> {
        let node = self.nodes.get(place).filter(|node| node.takes(wanted))?;
        Some(Fitness {
            can_run: node.can_run(wanted.deployment),
            // What is handed over does not begin cold elsewhere meanwhile.
            has_share_left: self.has_share_left(place, bound) || node.hands_over(wanted.deployment),
            is_warm: node.has_warm(wanted.deployment),
            space: space(&node.state, wanted.memory_mb),
            has_build: node.placed.contains(&wanted.deployment),
        })
    }
}

/// What is unknown counts as room.
fn space(state: &NodeState, memory_mb: u64) -> Space {
    let free = state.memory_total_mb.saturating_sub(state.memory_used_mb);
    if state.memory_total_mb == 0 || memory_mb <= free {
        return Space::Free;
    }
    match state.memory_idle_mb {
        Some(idle) if memory_mb > free.saturating_add(idle) => Space::No,
        _ => Space::AfterRemoval,
    }
}

/// The weights of nodes with so much memory, in MiB. One that has not said yet counts as the mean.
pub fn weights(memory_mb: impl Iterator<Item = u64> + Clone) -> Vec<f64> {
    known_or_mean(memory_mb).into_iter().map(|memory_mb| memory_mb as f64).collect()
}

/// `values`, and in place of each 0, which is unknown, the mean of the others.
fn known_or_mean(values: impl Iterator<Item = u64> + Clone) -> Vec<u64> {
    let known = values.clone().filter(|value| *value > 0);
    let (sum, count) = known.fold((0_u64, 0), |(sum, count), value| (sum.saturating_add(value), count + 1));
    let mean = sum.checked_div(count).unwrap_or(1).max(1);
    values.map(|value| if value == 0 { mean } else { value }).collect()
}

#[cfg(test)]
mod tests;
