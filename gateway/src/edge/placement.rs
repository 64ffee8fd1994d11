//! Which node gets a call: a pure choice between what is known of the nodes.

use common::ids::{DeploymentId, NodeId};
use common::protocol::NodeState;
use store::fleet::Duty;

/// How much more than the mean a node may carry before calls go elsewhere, in percent.
const BOUND_PERCENT: u64 = 125;

/// What placement sees of a node.
pub(crate) struct Candidate<'a> {
    /// Which.
    pub(crate) node: NodeId,
    /// What it said last.
    pub(crate) state: &'a NodeState,
    /// What the operator lets it do.
    pub(crate) duty: Duty,
}

/// Whether a node may get a call of a deployment: a cordoned one only what is warm there.
fn may(node: &Candidate<'_>, deployment: DeploymentId) -> bool {
    match node.duty {
        Duty::Active => true,
        Duty::Cordoned => node.state.warm.contains(&deployment),
        Duty::Draining | Duty::Removed => false,
    }
}

/// The place of the best node in `nodes`: one that is warm, and among those the one that the deployment's hash
/// names, so that calls of one function stay together; but none that carries more than its share. A cordoned one is the
/// last resort.
pub(crate) fn choose<'a>(
    nodes: impl ExactSizeIterator<Item = Candidate<'a>> + Clone,
    deployment: DeploymentId,
) -> Option<usize> {
    if nodes.len() == 1 {
        return nodes.clone().position(|node| may(&node, deployment));
    }
    let busy: u64 = nodes.clone().map(|node| u64::from(node.state.busy)).sum();
    // One call more than the mean is always allowed, else an idle fleet would take none.
    let bound = (busy + 1).saturating_mul(BOUND_PERCENT).div_ceil(100 * nodes.len().max(1) as u64);
    let rank = |node: &Candidate<'_>| {
        let has_room = u64::from(node.state.busy) < bound;
        let is_warm = node.state.warm.contains(&deployment);
        (node.duty == Duty::Active, has_room, is_warm, weight(node.node, deployment.uuid().as_u128()))
    };
    let able = nodes.enumerate().filter(|(_, node)| may(node, deployment));
    able.max_by_key(|(_, node)| rank(node)).map(|(place, _)| place)
}

/// The node that something with the hash `key` is at, whatever that node carries.
pub(crate) fn home(nodes: impl Iterator<Item = NodeId>, key: u128) -> Option<NodeId> {
    nodes.max_by_key(|node| weight(*node, key))
}

/// Rendezvous hashing: each node draws a number for the key, and the largest wins. When a node comes or goes, only
/// its own keys move.
pub(crate) fn weight(node: NodeId, key: u128) -> u64 {
    let node = node.uuid().as_u128();
    let mixed = (node ^ key.rotate_left(64)).wrapping_mul(0x9e37_79b9_7f4a_7c15_f39c_c060_5ced_c835);
    let folded = (mixed >> 64) as u64 ^ mixed as u64;
    // The finisher of MurmurHash3, whose output bits each depend on all input bits.
    let folded = (folded ^ (folded >> 33)).wrapping_mul(0xff51_afd7_ed55_8ccd);
    folded ^ (folded >> 33)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fleet(count: usize) -> Vec<(NodeId, NodeState)> {
        (0..count).map(|_| (NodeId::new(), NodeState::default())).collect()
    }

    fn chosen(fleet: &[(NodeId, NodeState)], deployment: DeploymentId) -> Option<usize> {
        let duty = Duty::Active;
        choose(fleet.iter().map(|(node, state)| Candidate { node: *node, state, duty }), deployment)
    }

    #[test]
    fn duties() {
        let deployment = DeploymentId::new();
        let (cold, mut warm) = (NodeState::default(), NodeState::default());
        warm.warm.push(deployment);
        let check = |nodes: &[(Duty, &NodeState)], expected: Option<usize>| {
            let candidates = nodes.iter().map(|(duty, state)| Candidate { node: NodeId::new(), state, duty: *duty });
            assert_eq!(choose(candidates, deployment), expected, "{nodes:?}");
        };
        use Duty::{Active, Cordoned, Draining, Removed};
        check(&[(Cordoned, &warm)], Some(0));
        check(&[(Cordoned, &cold)], None);
        check(&[(Draining, &warm)], None);
        check(&[(Cordoned, &warm), (Active, &cold)], Some(1));
        check(&[(Cordoned, &cold), (Cordoned, &warm), (Draining, &warm)], Some(1));
        check(&[(Draining, &warm), (Removed, &warm)], None);
    }

    #[test]
    fn none_and_one() {
        let mut one = fleet(1);
        one[0].1.busy = 1000;
        assert_eq!(chosen(&[], DeploymentId::new()), None);
        assert_eq!(chosen(&one, DeploymentId::new()), Some(0));
    }

    #[test]
    fn the_warm_one_wins_until_it_is_full() {
        let deployment = DeploymentId::new();
        let mut nodes = fleet(3);
        nodes[1].1.warm.push(deployment);
        assert_eq!(chosen(&nodes, deployment), Some(1));
        nodes[1].1.busy = 100;
        assert_ne!(chosen(&nodes, deployment), Some(1));
    }

    #[test]
    fn a_deployment_keeps_its_home() {
        let nodes = fleet(10);
        let deployments: Vec<_> = (0..2000).map(|_| DeploymentId::new()).collect();
        let homes = |nodes: &[(NodeId, NodeState)]| -> Vec<NodeId> {
            deployments.iter().map(|deployment| nodes[chosen(nodes, *deployment).unwrap()].0).collect()
        };
        let (before, after) = (homes(&nodes), homes(&nodes[1..]));
        let moved = before.iter().zip(&after).filter(|(before, after)| before != after).count();
        let lost = before.iter().filter(|home| **home == nodes[0].0).count();
        assert_eq!(moved, lost);
        assert!((100..300).contains(&lost), "{lost} of 2000 were on one node of ten");
    }
}
