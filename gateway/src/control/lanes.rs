//! One deploy of a function at a time: deploys of the same function queue up in its lane, those of others pass by.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use common::ids::UserId;
use common::names::FunctionName;
use tokio::sync::OwnedMutexGuard;

/// Whose function, and which.
pub(crate) type LaneKey = (UserId, FunctionName);

/// Deploys in one lane, the running one included.
pub(crate) const MAX_IN_LANE: usize = 5;

/// Every lane that somebody is in. Cheap to clone.
#[derive(Clone, Default)]
pub(crate) struct Lanes(Arc<Mutex<HashMap<LaneKey, Lane>>>);

#[derive(Default)]
struct Lane {
    turn: Arc<tokio::sync::Mutex<()>>,
    inside: usize,
}

/// A place in a lane; dropping it leaves the lane.
pub(crate) struct LanePlace {
    lanes: Lanes,
    key: LaneKey,
    turn: Arc<tokio::sync::Mutex<()>>,
}

/// The lane is ours; dropping it lets the next one in.
pub(crate) struct Turn {
    // Dropped in this order: the turn ends before the place is given up.
    _turn: OwnedMutexGuard<()>,
    _place: LanePlace,
}

/// The lane has [`MAX_IN_LANE`] deploys already.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("too many deploys of this function wait already")]
pub(crate) struct LaneFull;

impl Lanes {
    /// Takes a place in the lane of `key`.
    pub(crate) fn enter(&self, key: LaneKey) -> Result<LanePlace, LaneFull> {
        let mut lanes = self.lock();
        let lane = lanes.entry(key.clone()).or_default();
        if lane.inside >= MAX_IN_LANE {
            return Err(LaneFull);
        }
        lane.inside += 1;
        let turn = Arc::clone(&lane.turn);
        Ok(LanePlace { lanes: self.clone(), key, turn })
    }

    /// Places that are taken, over all lanes.
    #[cfg(test)]
    pub(crate) fn taken(&self) -> usize {
        self.lock().values().map(|lane| lane.inside).sum()
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<LaneKey, Lane>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl LanePlace {
    /// Waits until all who came earlier have left.
    pub(crate) async fn turn(self) -> Turn {
        let turn = Arc::clone(&self.turn).lock_owned().await;
        Turn { _turn: turn, _place: self }
    }
}

impl Drop for LanePlace {
    fn drop(&mut self) {
        let mut lanes = self.lanes.lock();
        if let Some(lane) = lanes.get_mut(&self.key) {
            lane.inside -= 1;
            if lane.inside == 0 {
                lanes.remove(&self.key);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt as _;

    use super::*;

    #[tokio::test]
    async fn one_at_a_time_in_order_and_never_too_many() {
        let lanes = Lanes::default();
        let owner = UserId::new();
        let key = |name: &str| (owner, name.parse().unwrap());
        let first = lanes.enter(key("a")).unwrap().turn().await;
        let mut waiting: Vec<_> = (1..MAX_IN_LANE).map(|_| Box::pin(lanes.enter(key("a")).unwrap().turn())).collect();
        assert!(waiting.iter_mut().all(|turn| turn.now_or_never().is_none()));
        assert_eq!(lanes.enter(key("a")).err(), Some(LaneFull));
        assert!(lanes.enter(key("b")).unwrap().turn().now_or_never().is_some(), "another function's lane is free");
        drop(first);
        let second = waiting.remove(0).now_or_never();
        assert!(second.is_some() && waiting.iter_mut().all(|turn| turn.now_or_never().is_none()));
        drop((second, waiting));
        assert!(lanes.lock().is_empty(), "nobody is in a lane, so there is none");
    }
}
