//! Which node keeps which versions warm. The spread is pure; a node is told its part whenever that changes: when nodes
//! come and go, when the routes are swapped, when a version with `min_warm` is about to serve, and when a node that is
//! drained hands over what it has.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use common::function::{Contract, DeploymentSpec};
use common::ids::{DeploymentId, NodeId};
use common::labels::Labels;
use common::protocol::{GatewayMessage, MAX_KEPT, NodeState, Warm};
use store::fleet::Duty;
use tokio::time::{sleep_until, timeout};
use tokio_util::sync::CancellationToken;

use super::handover::{Handover, Move, Outlook, Standing};
use super::{Fleet, Node, Picture, lock};
use crate::edge::placement::{self, Ranking, Wanted};
use crate::edge::routes::{Routes, Table};

/// How long a new version waits to be warm before it serves all the same.
const PATIENCE: Duration = Duration::from_secs(10);

/// What a version wants of the fleet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Wish {
    deployment: DeploymentId,
    /// What decides where its calls go.
    key: u128,
    /// On all nodes together.
    sandboxes: u32,
    /// On one node.
    most: u32,
    /// The labels that a node must have.
    selector: Labels,
}

impl Wish {
    /// That of a version, if it has one.
    pub(crate) fn of(spec: &DeploymentSpec) -> Option<Self> {
        let (sandboxes, most) = (spec.limits.min_warm, most(spec));
        let (deployment, key) = (spec.deployment, placement::key(spec));
        (sandboxes > 0).then(|| Self { deployment, key, sandboxes, most, selector: spec.node_selector.clone() })
    }
}

/// How many sandboxes of a version a node has at most.
fn most(spec: &DeploymentSpec) -> u32 {
    match spec.contract {
        Contract::File => spec.limits.concurrency,
        // A node has one server of a version.
        Contract::Http { .. } => 1,
    }
}

/// A node that keeps something: which, its memory, its labels.
type Keeper = (NodeId, u64, Arc<Labels>);

/// What each of `nodes` is to keep: the sandboxes of a version go in turn to the nodes on which its calls are placed.
fn spread(nodes: &[Keeper], wishes: &[Wish]) -> Vec<Vec<Warm>> {
    let mut parts = vec![Vec::new(); nodes.len()];
    let weights = placement::weights(nodes.iter().map(|(_, memory_mb, _)| *memory_mb));
    for wish in wishes {
        let has = |labels: &Labels| labels.have(&wish.selector);
        let weighted = nodes.iter().zip(&weights);
        let weighted = weighted.map(|((node, _, labels), weight)| (*node, if has(labels) { *weight } else { 0.0 }));
        let ranking = Ranking::of(weighted, wish.key);
        let count = ranking.places().count() as u32;
        for (rank, place) in (0..).zip(ranking.places()) {
            let sandboxes = (wish.sandboxes / count + u32::from(rank < wish.sandboxes % count)).min(wish.most);
            if sandboxes > 0 {
                parts[place].push(Warm { deployment: wish.deployment, sandboxes });
            }
        }
    }
    parts
}

/// A version that is warm before it serves. It is kept so until this is dropped; by then the routes have it, or it will
/// never serve.
pub(crate) struct Warming {
    fleet: Fleet,
    deployment: DeploymentId,
}

impl Drop for Warming {
    fn drop(&mut self) {
        lock(&self.fleet.0.warming).remove(&self.deployment);
        self.fleet.0.changed.notify_waiters();
    }
}

impl Fleet {
    /// Has a version warmed that is about to serve, and waits for that, within reason. `None` for one that need not be
    /// warm.
    pub(crate) async fn warm_up(&self, spec: &DeploymentSpec) -> Option<Warming> {
        Wish::of(spec)?;
        let deployment = spec.deployment;
        lock(&self.0.warming).insert(deployment, Arc::new(spec.clone()));
        let warming = Warming { fleet: self.clone(), deployment };
        self.0.changed.notify_waiters();
        let warm = async {
            loop {
                // Before the look, so that no change falls between the two.
                let changed = self.0.changed.notified();
                if self.is_warm(deployment) {
                    return;
                }
                changed.await;
            }
        };
        if timeout(PATIENCE, warm).await.is_err() {
            tracing::warn!(%deployment, "it is not warm in time, and serves all the same");
        }
        Some(warming)
    }

    /// Whether every node that is to keep a version warm does, as far as it tells.
    fn is_warm(&self, deployment: DeploymentId) -> bool {
        let nodes = lock(&self.0.nodes);
        let mut keepers = nodes
            .values()
            .filter(|node| {
                let told = node.control.as_ref().and_then(|control| control.kept.as_deref());
                told.unwrap_or_default().iter().any(|warm| warm.deployment == deployment)
            })
            .peekable();
        let told = |kept: &Option<Vec<DeploymentId>>| kept.as_ref().is_none_or(|kept| kept.contains(&deployment));
        keepers.peek().is_some() && keepers.all(|node| told(&node.state.kept))
    }

    /// Tells each node its part, unless it knows it. When to do so again, if nothing happens before.
    fn deal(&self, table: &Table) -> Option<Instant> {
        let mut wishes = table.wishes().to_vec();
        wishes.extend(lock(&self.0.warming).values().filter_map(|spec| Wish::of(spec)));
        wishes.sort_by_key(|wish| wish.deployment);
        wishes.dedup();
        let mut nodes = lock(&self.0.nodes);
        let until = self.hand_over(&mut nodes, table);
        let moves: Vec<_> =
            nodes.values().filter_map(|node| node.handover.as_ref()).flat_map(Handover::moves).collect();
        let mut linked: Vec<_> = nodes
            .iter_mut()
            .filter_map(|(id, node)| {
                let keeper = (*id, node.state.memory_total_mb, node.labels.clone());
                Some((keeper, &node.link, &node.handover, node.control.as_mut()?))
            })
            .collect();
        linked.sort_by_key(|((id, ..), ..)| *id);
        // What gets no new calls keeps nothing for them.
        let is_active = |(id, ..): &Keeper| self.duty(*id).unwrap_or_default() == Duty::Active;
        let active: Vec<_> = linked.iter().map(|(keeper, ..)| keeper.clone()).filter(is_active).collect();
        let mut parts: HashMap<_, _> = active.iter().map(|(id, ..)| *id).zip(spread(&active, &wishes)).collect();
        for (deployment, Move { to, sandboxes, .. }) in moves {
            let Some(part) = parts.get_mut(&to) else { continue };
            match part.iter_mut().find(|warm| warm.deployment == deployment) {
                Some(warm) => warm.sandboxes = warm.sandboxes.max(sandboxes),
                None => part.push(Warm { deployment, sandboxes }),
            }
        }
        for ((id, ..), link, handover, control) in linked {
            let mut warm = parts.remove(&id).unwrap_or_default();
            // What is handed over stays warm until then.
            let told = |version| control.kept.iter().flatten().find(|kept| kept.deployment == version).copied();
            let stays = |version| told(version).unwrap_or(Warm { deployment: version, sandboxes: 1 });
            warm.extend(handover.iter().flat_map(Handover::left).map(stays));
            if warm.len() > MAX_KEPT {
                tracing::warn!(node = %id, versions = warm.len(), "more are to be kept warm than a node can be told");
                warm.truncate(MAX_KEPT);
            }
            if control.kept.as_ref() == Some(&warm) {
                continue;
            }
            warm.iter().for_each(|warm| link.pass.place(warm.deployment));
            // A node that takes no orders now is told at the next change.
            if control.orders.try_send(GatewayMessage::Keep { warm: warm.clone() }).is_ok() {
                control.kept = Some(warm);
            }
        }
        until
    }

    /// Looks how far the nodes are that hand over. When to look again, if nothing happens before.
    fn hand_over(&self, nodes: &mut HashMap<NodeId, Node>, table: &Table) -> Option<Instant> {
        let (now, picture) = (Instant::now(), self.nodes());
        let leaving: Vec<_> = nodes.iter_mut().filter_map(|(id, node)| Some((*id, node.handover.take()?))).collect();
        let (mut is_other, mut until) = (false, None);
        for (id, mut handover) in leaving {
            let Some(from) = nodes.get(&id) else { continue };
            let sight = Sight { fleet: self, nodes: &*nodes, picture: &picture, table, from: &from.state };
            if handover.look(now, &sight) {
                is_other = true;
                if handover.until().is_none() {
                    let stranded = handover.progress().stranded;
                    tracing::info!(node = %id, stranded, "the drained node gets no calls any more");
                }
            }
            until = [until, handover.until()].into_iter().flatten().min();
            if let Some(node) = nodes.get_mut(&id) {
                node.handover = Some(handover);
            }
        }
        if is_other {
            self.redraw(nodes);
        }
        until
    }
}

/// The fleet, as a node sees it that hands over.
struct Sight<'a> {
    fleet: &'a Fleet,
    nodes: &'a HashMap<NodeId, Node>,
    picture: &'a Picture,
    table: &'a Table,
    /// What that node said last.
    from: &'a NodeState,
}

impl Outlook for Sight<'_> {
    fn is_left(&self, version: DeploymentId) -> bool {
        self.from.warm.binary_search(&version).is_ok() && self.table.serves(version)
    }

    /// With as many sandboxes there as the two have now, for it may get the calls of both.
    fn successor(&self, version: DeploymentId) -> Option<Move> {
        let spec = &self.table.by_deployment(version)?.spec;
        let to = &self.picture.nodes[self.picture.view.successor(&Wanted::of(spec))?];
        let there = to.state.sandboxes(version);
        let sandboxes = self.from.sandboxes(version).saturating_add(there).min(most(spec));
        Some(Move { to: to.link.node, sandboxes, is_new: there == 0 })
    }

    fn standing(&self, version: DeploymentId, Move { to, sandboxes, .. }: &Move) -> Standing {
        let is_active = self.fleet.duty(*to).unwrap_or_default() == Duty::Active;
        let node = self.nodes.get(to).filter(|_| is_active);
        let Some((state, control)) = node.and_then(|node| Some((&node.state, node.control.as_ref()?))) else {
            return Standing::Failed;
        };
        let is_told =
            control.kept.iter().flatten().any(|warm| warm.deployment == version && warm.sandboxes >= *sandboxes);
        let is_full = state.kept.as_ref().is_some_and(|kept| kept.contains(&version));
        // It may have said so before it heard how many.
        let are_there = state.several.is_none() || state.sandboxes(version) >= *sandboxes;
        if is_told && is_full && are_there { Standing::Done } else { Standing::UnderWay }
    }
}

/// Keeps the nodes told until `end`.
pub(crate) async fn run(fleet: Fleet, routes: Arc<Routes>, end: CancellationToken) {
    loop {
        // Before the look, so that no change falls between the two.
        let (changed, swapped) = (fleet.0.changed.notified(), routes.swapped());
        let until = fleet.deal(&routes.now());
        let overdue = async {
            match until {
                Some(until) => sleep_until(until.into()).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            () = changed => {}
            () = swapped => {}
            () = overdue => {}
            () = end.cancelled() => return,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::cmp::Reverse;

    use super::*;
    use crate::edge::placement::RANKED;

    fn wish(sandboxes: u32, most: u32) -> Wish {
        let (deployment, key) = (DeploymentId::new(), DeploymentId::new().uuid().as_u128());
        Wish { deployment, key, sandboxes, most, selector: Labels::NONE }
    }

    fn node(labels: &str) -> Keeper {
        (NodeId::new(), 1024, Arc::new(labels.parse().unwrap()))
    }

    fn check(nodes: usize, sandboxes: u32, most: u32, expected: &[u32]) {
        let nodes: Vec<_> = (0..nodes).map(|_| node("")).collect();
        let wish = wish(sandboxes, most);
        let parts = spread(&nodes, std::slice::from_ref(&wish));
        let mut counts: Vec<_> = parts.iter().map(|part| part.iter().map(|warm| warm.sandboxes).sum::<u32>()).collect();
        // The node that gets most is where placement sends calls.
        let home = Ranking::of(nodes.iter().map(|(node, ..)| (*node, 1.0)), wish.key).places().next();
        assert_eq!(home.map(|home| counts[home]), counts.iter().max().copied(), "{counts:?}");
        counts.sort_unstable_by_key(|count| Reverse(*count));
        assert_eq!(counts, expected, "{sandboxes} on {} nodes", nodes.len());
    }

    #[test]
    fn a_version_is_spread_over_the_nodes() {
        check(0, 3, 10, &[]);
        check(1, 3, 10, &[3]);
        check(3, 1, 10, &[1, 0, 0]);
        check(3, 5, 10, &[2, 2, 1]);
        check(2, 9, 3, &[3, 3]);
        // A server is there once on a node.
        check(1, 3, 1, &[1]);
        check(3, 2, 1, &[1, 1, 0]);
        // Calls look at no more nodes than that, as a rule.
        check(18, 17, 10, &[&[2][..], &[1; RANKED - 1], &[0, 0]].concat());
    }

    #[test]
    fn only_nodes_with_the_labels_keep_it() {
        let nodes = ["gpu=true", "zone=a", "gpu=true,zone=a"].map(node);
        let check = |selector: &str, expected: [u32; 3]| {
            let wish = Wish { selector: selector.parse().unwrap(), ..wish(6, 10) };
            let parts = spread(&nodes, &[wish]);
            let counts: Vec<_> = parts.iter().map(|part| part.iter().map(|warm| warm.sandboxes).sum::<u32>()).collect();
            assert_eq!(counts, expected, "{selector}");
        };
        check("", [2, 2, 2]);
        check("gpu=true", [3, 0, 3]);
        check("gpu=true,zone=a", [0, 0, 6]);
        check("gpu=false", [0, 0, 0]);
    }

    #[test]
    fn a_node_that_goes_moves_its_own_alone() {
        let nodes: Vec<_> = (0..4).map(|_| node("")).collect();
        let wishes: Vec<_> = (0..100).map(|_| wish(1, 1)).collect();
        let (before, after) = (spread(&nodes, &wishes), spread(&nodes[1..], &wishes));
        for (before, after) in before[1..].iter().zip(&after) {
            assert!(before.iter().all(|warm| after.contains(warm)));
        }
    }
}
