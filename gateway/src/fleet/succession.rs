//! The fleet at a hand-over: who accepts agents, and how many have come over.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;

use super::Fleet;
use crate::hand_over::PredecessorClient;

impl Fleet {
    /// Leaves whoever dials from now on to a successor, and has each agent told to link to it; how many nodes are linked.
    pub(crate) fn release_agents(&self) -> usize {
        self.0.has_successor.send_replace(true);
        self.nodes().iter().count()
    }

    /// Accepts agents again, if a successor was to.
    pub(crate) fn take_agents_back(&self) {
        self.0.has_successor.send_if_modified(std::mem::take);
    }

    /// Whether a successor accepts agents, and when that changes.
    pub(super) fn has_successor(&self) -> watch::Receiver<bool> {
        self.0.has_successor.subscribe()
    }

    /// How many nodes are linked, once there are so many, or the time for it is over.
    pub(crate) async fn linked(&self, wanted: usize, patience: Duration) -> usize {
        let count = || self.nodes().iter().count();
        self.once_linked(patience, || (count() >= wanted).then_some(())).await;
        count()
    }

    /// Knows the gateway whose place this one takes, or that it has ended.
    pub(crate) fn follow(&self, predecessor: Option<Arc<PredecessorClient>>) {
        self.0.predecessor.store(predecessor);
    }

    /// The gateway whose place this one has taken, until that one has ended.
    pub(crate) fn predecessor(&self) -> Option<Arc<PredecessorClient>> {
        self.0.predecessor.load_full()
    }
}
