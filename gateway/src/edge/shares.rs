//! What each one has of something that all share, be it a user or a client, so that nobody has all of it.

use std::collections::HashMap;
use std::hash::Hash;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// Everybody's shares of one thing.
pub(crate) struct Shares<K> {
    /// Most of one of them.
    most: u32,
    taken: Mutex<HashMap<K, u32>>,
}

/// One of them; given back when it is dropped.
pub(crate) struct Share<K: Copy + Eq + Hash> {
    shares: Arc<Shares<K>>,
    owner: K,
}

impl<K: Copy + Eq + Hash> Shares<K> {
    /// At most `most` for each.
    pub(crate) fn new(most: u32) -> Arc<Self> {
        Arc::new(Self { most, taken: Mutex::default() })
    }

    /// One more for `owner`, unless he has all that are his.
    pub(crate) fn take(self: &Arc<Self>, owner: K) -> Option<Share<K>> {
        let mut taken = self.lock();
        let of_owner = taken.entry(owner).or_default();
        if *of_owner >= self.most {
            return None;
        }
        *of_owner += 1;
        Some(Share { shares: Arc::clone(self), owner })
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<K, u32>> {
        self.taken.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<K: Copy + Eq + Hash> Drop for Share<K> {
    fn drop(&mut self) {
        let mut taken = self.shares.lock();
        let Some(of_owner) = taken.get_mut(&self.owner) else { return };
        *of_owner -= 1;
        if *of_owner == 0 {
            taken.remove(&self.owner);
        }
    }
}

#[cfg(test)]
mod tests {
    use common::ids::UserId;

    use super::*;

    #[test]
    fn each_has_his_own() {
        let shares = Shares::new(2);
        let (ann, bob) = (UserId::new(), UserId::new());
        let hers = [shares.take(ann).unwrap(), shares.take(ann).unwrap()];
        assert!(shares.take(ann).is_none());
        assert!(shares.take(bob).is_some());
        drop(hers);
        assert!(shares.take(ann).is_some());
        assert!(shares.lock().is_empty(), "who has nothing is not remembered");
    }
}
