//! A node that is drained hands over what is warm there: each version is made warm on another node first, a few at a
//! time, and goes on here until then. Pure; `warmth` does what it says.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use common::ids::{DeploymentId, NodeId};

/// How long it may take in all; then everything goes elsewhere, warm or not.
const LIMIT: Duration = Duration::from_secs(30);

/// Versions of a node that are made warm elsewhere at a time.
const MOVES_AT_ONCE: usize = 4;

/// Where a version goes, and with how many sandboxes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Move {
    pub(super) to: NodeId,
    pub(super) sandboxes: u32,
    /// Whether it had none there before.
    pub(super) is_new: bool,
}

/// How a move stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Standing {
    UnderWay,
    Done,
    /// That node takes it no more.
    Failed,
}

/// What the fleet looks like to a node that hands over.
pub(super) trait Outlook {
    /// Whether a version is still warm there, and called.
    fn is_left(&self, version: DeploymentId) -> bool;
    /// Where it could go.
    fn successor(&self, version: DeploymentId) -> Option<Move>;
    fn standing(&self, version: DeploymentId, to: &Move) -> Standing;
}

/// How far a node is with it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Progress {
    /// Versions that are still to be moved.
    pub(crate) moving: usize,
    /// Of those, the ones that no other node could take; in the end, those that were not moved.
    pub(crate) stranded: usize,
}

/// A node's handing over, from its drain on; its end stays to be seen.
#[derive(Debug)]
pub(super) struct Handover {
    until: Instant,
    /// What is still here, and where it is being made warm.
    left: BTreeMap<DeploymentId, Option<Move>>,
    /// What was moved.
    moved: Vec<(DeploymentId, Move)>,
    stranded: usize,
}

impl Handover {
    /// That of a node on which these versions are warm.
    pub(super) fn new(now: Instant, warm: impl Iterator<Item = DeploymentId>) -> Self {
        let left = warm.map(|version| (version, None)).collect();
        Self { until: now + LIMIT, left, moved: Vec::new(), stranded: 0 }
    }

    /// Takes in how things are. Whether the progress is another than before.
    pub(super) fn look(&mut self, now: Instant, outlook: &impl Outlook) -> bool {
        let before = self.progress();
        self.left.retain(|version, step| {
            let standing = step.as_ref().map(|to| outlook.standing(*version, to));
            match standing {
                Some(Standing::Failed) => *step = None,
                Some(Standing::Done) => self.moved.extend(step.map(|to| (*version, to))),
                Some(Standing::UnderWay) | None => {}
            }
            standing != Some(Standing::Done) && outlook.is_left(*version)
        });
        if now >= self.until {
            // What was over before stays as it ended.
            if before.moving > 0 {
                self.stranded = self.left.len();
            }
            self.left.clear();
            return self.progress() != before;
        }
        if before.moving == 0 {
            return false;
        }
        let mut room = MOVES_AT_ONCE.saturating_sub(self.left.values().flatten().count());
        self.stranded = 0;
        for (version, step) in self.left.iter_mut().filter(|(_, step)| step.is_none()) {
            if room == 0 {
                break;
            }
            *step = outlook.successor(*version);
            match step {
                Some(_) => room -= 1,
                None => self.stranded += 1,
            }
        }
        self.progress() != before
    }

    /// The versions that the node still gets calls of, sorted.
    pub(super) fn left(&self) -> impl Iterator<Item = DeploymentId> {
        self.left.keys().copied()
    }

    /// What is to be kept warm where it goes, until all is over: what is seldom called would be cold there before.
    pub(super) fn moves(&self) -> impl Iterator<Item = (DeploymentId, Move)> {
        let moved = if self.left.is_empty() { &[] } else { &self.moved[..] };
        let under_way = self.left.iter().filter_map(|(version, step)| Some((*version, (*step)?)));
        moved.iter().copied().chain(under_way)
    }

    /// What is not warm yet where it goes, though something of it may be there.
    pub(super) fn arriving(&self) -> impl Iterator<Item = (DeploymentId, NodeId)> {
        let moves = self.left.iter().filter_map(|(version, step)| Some((*version, (*step)?)));
        moves.filter(|(_, to)| to.is_new).map(|(version, to)| (version, to.to))
    }

    /// When to look at the latest; `None` once it is over.
    pub(super) fn until(&self) -> Option<Instant> {
        (!self.left.is_empty()).then_some(self.until)
    }

    pub(super) fn progress(&self) -> Progress {
        Progress { moving: self.left.len(), stranded: self.stranded }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A fleet with one other node.
    #[derive(Default)]
    struct Fleet {
        /// What is no longer warm here.
        gone: Vec<DeploymentId>,
        has_room: bool,
        warm: Vec<DeploymentId>,
        is_lost: bool,
        other: Option<NodeId>,
    }

    impl Outlook for Fleet {
        fn is_left(&self, version: DeploymentId) -> bool {
            !self.gone.contains(&version)
        }

        fn successor(&self, _: DeploymentId) -> Option<Move> {
            self.has_room.then_some(Move { to: self.other?, sandboxes: 2, is_new: true })
        }

        fn standing(&self, version: DeploymentId, to: &Move) -> Standing {
            assert_eq!(Some(to.to), self.other);
            match self.warm.contains(&version) {
                _ if self.is_lost => Standing::Failed,
                true => Standing::Done,
                false => Standing::UnderWay,
            }
        }
    }

    fn versions<const N: usize>() -> [DeploymentId; N] {
        [(); N].map(|()| DeploymentId::new())
    }

    fn check(handover: &Handover, kept: usize, moving: usize, stranded: usize) {
        assert_eq!((handover.moves().count(), handover.left().count()), (kept, moving));
        assert_eq!(handover.progress(), Progress { moving, stranded });
        assert_eq!(handover.until().is_some(), moving > 0);
    }

    #[test]
    fn some_at_a_time_until_all_are_warm_elsewhere() {
        let (begin, all) = (Instant::now(), versions::<6>());
        let mut handover = Handover::new(begin, all.into_iter());
        let mut fleet = Fleet { has_room: true, other: Some(NodeId::new()), ..Fleet::default() };
        check(&handover, 0, 6, 0);
        assert!(!handover.look(begin, &fleet));
        check(&handover, MOVES_AT_ONCE, 6, 0);
        fleet.warm = all[..3].to_vec();
        assert!(handover.look(begin, &fleet));
        check(&handover, 6, 3, 0);
        assert_eq!(handover.arriving().count(), 3);
        assert!(handover.left().eq(all[3..].iter().copied()));
        fleet.gone = vec![all[3]];
        assert!(handover.look(begin, &fleet));
        check(&handover, 5, 2, 0);
        fleet.warm = all.to_vec();
        assert!(handover.look(begin, &fleet));
        check(&handover, 0, 0, 0);
        assert!(!handover.look(begin + LIMIT, &fleet));
        check(&handover, 0, 0, 0);
    }

    #[test]
    fn what_nobody_takes_goes_on_until_the_end() {
        let (begin, all) = (Instant::now(), versions::<3>());
        let mut handover = Handover::new(begin, all.into_iter());
        let mut fleet = Fleet { other: Some(NodeId::new()), ..Fleet::default() };
        assert!(handover.look(begin, &fleet));
        check(&handover, 0, 3, 3);
        // Room that was not there at first.
        fleet.has_room = true;
        assert!(handover.look(begin, &fleet));
        check(&handover, 3, 3, 0);
        fleet.warm = vec![all[0]];
        assert!(handover.look(begin + LIMIT, &fleet));
        check(&handover, 0, 0, 2);
        assert!(!handover.look(begin + 2 * LIMIT, &fleet));
        check(&handover, 0, 0, 2);
    }

    #[test]
    fn a_node_that_is_lost_meanwhile_takes_nothing() {
        let (begin, all) = (Instant::now(), versions::<1>());
        let mut handover = Handover::new(begin, all.into_iter());
        let mut fleet = Fleet { has_room: true, other: Some(NodeId::new()), ..Fleet::default() };
        handover.look(begin, &fleet);
        check(&handover, 1, 1, 0);
        (fleet.is_lost, fleet.has_room) = (true, false);
        assert!(handover.look(begin, &fleet));
        check(&handover, 0, 1, 1);
    }
}
