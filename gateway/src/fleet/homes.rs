//! Which node has the answers that belong to a key: the same one for as long as it is known, so that a call which ran
//! there is not run elsewhere. A node that is away stays the home of its keys for a while, in which their calls are
//! answered 503; after that it counts as lost, and what it kept with it.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;
use common::digest::Digest;
use common::ids::NodeId;

use crate::edge::placement;

/// How long a node may be away: a restart of the agent or of its machine fits in.
const AWAY_LIMIT: Duration = Duration::from_secs(10 * 60);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Home {
    node: NodeId,
    /// `None` while it is linked.
    away_since: Option<Instant>,
}

impl Home {
    fn is_known(&self, now: Instant) -> bool {
        self.away_since.is_none_or(|since| now.saturating_duration_since(since) < AWAY_LIMIT)
    }
}

/// The nodes that are linked, or were a short while ago, here or at another gateway.
#[derive(Default)]
pub(super) struct Homes(ArcSwap<Vec<Home>>);

impl Homes {
    /// Notes which nodes are linked now, and how long ago any gateway saw each that is known. One at a time: the fleet
    /// calls it under its lock.
    pub(super) fn note(
        &self,
        linked: impl Iterator<Item = NodeId>,
        seen: impl Iterator<Item = (NodeId, Duration)>,
        now: Instant,
    ) {
        let noted = noted(&self.0.load(), linked, seen, now);
        self.0.store(Arc::new(noted));
    }

    /// Whether `node` is away for longer than a moment.
    pub(super) fn is_away(&self, node: NodeId, moment: Duration, now: Instant) -> bool {
        let homes = self.0.load();
        let since = homes.iter().find(|home| home.node == node).and_then(|home| home.away_since);
        since.is_some_and(|since| now.saturating_duration_since(since) > moment)
    }

    /// The home of `key` among the nodes that `may` be one.
    pub(super) fn of(&self, key: &Digest, now: Instant, may: impl Fn(NodeId) -> bool) -> Option<NodeId> {
        of(&self.0.load(), key, now, may)
    }
}

fn noted(
    before: &[Home],
    linked: impl Iterator<Item = NodeId>,
    seen: impl Iterator<Item = (NodeId, Duration)>,
    now: Instant,
) -> Vec<Home> {
    let seen = seen.filter(|(_, ago)| *ago < AWAY_LIMIT).filter_map(|(node, ago)| Some((node, now.checked_sub(ago)?)));
    let mut away: BTreeMap<_, _> = seen.collect();
    for home in before {
        let since = home.away_since.unwrap_or(now);
        // It is away from when the last gateway lost it.
        away.entry(home.node).and_modify(|seen| *seen = since.max(*seen)).or_insert(since);
    }
    let mut homes: BTreeMap<_, _> = away.into_iter().map(|(node, since)| (node, Some(since))).collect();
    homes.extend(linked.map(|node| (node, None)));
    let mut homes: Vec<_> = homes.into_iter().map(|(node, away_since)| Home { node, away_since }).collect();
    homes.retain(|home| home.is_known(now));
    homes
}

fn of(homes: &[Home], key: &Digest, now: Instant, may: impl Fn(NodeId) -> bool) -> Option<NodeId> {
    let (first, _) = key.bytes().split_first_chunk().expect("a digest has 32 bytes");
    let known = homes.iter().filter(|home| home.is_known(now)).map(|home| home.node).filter(|node| may(*node));
    placement::home(known, u128::from_be_bytes(*first))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_home_waits_for_its_node_and_is_given_up_later() {
        let nodes: Vec<_> = (0..3).map(|_| NodeId::new()).collect();
        let begin = Instant::now();
        let noted =
            |before: &[Home], linked: &[NodeId], now| noted(before, linked.iter().copied(), std::iter::empty(), now);
        let all = noted(&[], &nodes, begin);
        let keys: Vec<_> = (0..300).map(|n: u32| Digest::of(&n.to_be_bytes())).collect();
        let places =
            |homes: &[Home], now| keys.iter().map(|key| of(homes, key, now, |_| true).unwrap()).collect::<Vec<_>>();
        let before = places(&all, begin);
        for node in &nodes {
            let share = before.iter().filter(|home| *home == node).count();
            assert!((60..140).contains(&share), "{share} of 300 keys are at one node of three");
        }

        // Away, and noted again meanwhile: its keys wait for it.
        let without = &nodes[1..];
        let away = noted(&noted(&all, without, begin), without, begin + AWAY_LIMIT / 2);
        assert_eq!(places(&away, begin + AWAY_LIMIT / 2), before);
        assert_eq!(places(&noted(&away, &nodes, begin + AWAY_LIMIT / 2), begin + 2 * AWAY_LIMIT), before);
        // Lost: its keys move, and no others. Nobody need note anything for that.
        let after = places(&away, begin + AWAY_LIMIT);
        for (before, after) in before.iter().zip(&after) {
            assert!(*after != nodes[0] && (before == after || *before == nodes[0]));
        }
        assert_eq!(noted(&away, without, begin + AWAY_LIMIT).len(), 2);
        assert_eq!(of(&[], &keys[0], begin, |_| true), None);
        assert_eq!(of(&all, &keys[0], begin, |node| node == nodes[2]), Some(nodes[2]));
        assert_eq!(of(&all, &keys[0], begin, |_| false), None);
    }

    #[test]
    fn a_gateway_that_starts_knows_the_homes_of_the_others() {
        let (here, there) = (NodeId::new(), NodeId::new());
        let begin = Instant::now();
        let check = |before: &[Home], ago: Duration, now: Instant, expected: usize| {
            let homes = noted(before, [here].into_iter(), [(here, Duration::ZERO), (there, ago)].into_iter(), now);
            assert_eq!(homes.len(), expected, "{homes:?}");
            homes
        };
        let soon = begin + AWAY_LIMIT;
        let known = check(&[], Duration::ZERO, soon, 2);
        check(&[], AWAY_LIMIT, soon, 1);
        // As long as another gateway sees it, it is not lost.
        let known = check(&known, Duration::ZERO, soon + AWAY_LIMIT * 2 / 3, 2);
        check(&known, Duration::ZERO, soon + AWAY_LIMIT * 4 / 3, 2);
        check(&known, AWAY_LIMIT, soon + AWAY_LIMIT * 2, 1);
    }
}
