//! Which answers are on disk, and which of them go when there is no room. Pure.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use common::digest::Digest;
use common::ids::{FunctionId, InvocationId};

/// What a file takes on disk is a multiple of this, in bytes. It also bounds how many there are.
const BLOCK_BYTES: u64 = 4096;

/// How much there is room for, in bytes.
#[derive(Clone, Copy, Debug)]
pub(super) struct Bounds {
    pub(super) total: u64,
    /// Of one function.
    pub(super) function: u64,
}

/// What is known of an answer.
#[derive(Clone, Copy, Debug)]
pub(super) struct Entry {
    pub(super) print: Digest,
    pub(super) function: FunctionId,
    /// The call that it answers.
    pub(super) id: InvocationId,
    pub(super) began_ms: u64,
    pub(super) bytes: u64,
}

impl Entry {
    fn room(&self) -> u64 {
        self.bytes.div_ceil(BLOCK_BYTES) * BLOCK_BYTES
    }
}

/// All of them, in the order in which they were put in.
#[derive(Debug, Default)]
pub(super) struct Index {
    entries: HashMap<Digest, (u64, Entry)>,
    ages: BTreeMap<u64, Digest>,
    functions: HashMap<FunctionId, Share>,
    bytes: u64,
    next: u64,
}

#[derive(Debug, Default)]
struct Share {
    ages: BTreeSet<u64>,
    bytes: u64,
}

impl Index {
    pub(super) fn get(&self, key: &Digest) -> Option<&Entry> {
        self.entries.get(key).map(|(_, entry)| entry)
    }

    /// What they take on disk.
    pub(super) fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Puts an answer in as the newest.
    pub(super) fn insert(&mut self, key: Digest, entry: Entry) {
        self.remove(&key);
        let age = self.next;
        self.next += 1;
        let share = self.functions.entry(entry.function).or_default();
        share.ages.insert(age);
        share.bytes += entry.room();
        self.bytes += entry.room();
        self.ages.insert(age, key);
        self.entries.insert(key, (age, entry));
    }

    /// Takes the oldest out, if it began at `limit_ms` or before.
    pub(super) fn take_older(&mut self, limit_ms: u64) -> Option<Digest> {
        let key = *self.ages.first_key_value()?.1;
        let is_old = self.get(&key).is_some_and(|entry| entry.began_ms <= limit_ms);
        is_old.then(|| self.remove(&key)).map(|()| key)
    }

    /// Takes one out that there is no room for: the oldest of the newest one's function if that has more than its
    /// share, else the oldest of all. The newest stays.
    pub(super) fn take_surplus(&mut self, bounds: Bounds) -> Option<Digest> {
        let newest = *self.ages.last_key_value()?.1;
        let share = self.functions.get(&self.entries.get(&newest)?.1.function)?;
        let age = if share.bytes > bounds.function && share.ages.len() > 1 {
            *share.ages.first()?
        } else if self.bytes > bounds.total && self.ages.len() > 1 {
            *self.ages.first_key_value()?.0
        } else {
            return None;
        };
        let key = *self.ages.get(&age)?;
        self.remove(&key);
        Some(key)
    }

    fn remove(&mut self, key: &Digest) {
        let Some((age, entry)) = self.entries.remove(key) else { return };
        self.ages.remove(&age);
        self.bytes -= entry.room();
        if let Some(share) = self.functions.get_mut(&entry.function) {
            share.ages.remove(&age);
            share.bytes -= entry.room();
            if share.ages.is_empty() {
                self.functions.remove(&entry.function);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Inserts answers of (function, blocks) one after another, under bounds in blocks; these are left.
    fn check(inserted: &[(usize, u64)], bounds: (u64, u64), left: &[usize]) {
        let functions = [FunctionId::new(), FunctionId::new()];
        let bounds = Bounds { total: bounds.0 * BLOCK_BYTES, function: bounds.1 * BLOCK_BYTES };
        let (mut index, mut keys) = (Index::default(), Vec::new());
        for (number, (function, blocks)) in inserted.iter().enumerate() {
            let key = Digest::of(&[u8::try_from(number).unwrap()]);
            let (began_ms, bytes) = (number as u64, blocks * BLOCK_BYTES - 1);
            let (function, id) = (functions[*function], InvocationId::new());
            index.insert(key, Entry { print: key, function, id, began_ms, bytes });
            keys.push(key);
            while index.take_surplus(bounds).is_some() {}
        }
        let found: Vec<_> = (0..keys.len()).filter(|number| index.get(&keys[*number]).is_some()).collect();
        assert_eq!(found, left, "{inserted:?}");
        let blocks: u64 = left.iter().map(|number| inserted[*number].1).sum();
        assert_eq!(index.bytes(), blocks * BLOCK_BYTES);
    }

    #[test]
    fn the_oldest_go() {
        check(&[], (4, 2), &[]);
        check(&[(0, 1), (0, 1), (1, 1), (1, 1)], (4, 2), &[0, 1, 2, 3]);
        check(&[(0, 1), (1, 1), (0, 1), (0, 1)], (4, 2), &[1, 2, 3]);
        check(&[(0, 2), (1, 2), (1, 1)], (4, 4), &[1, 2]);
        // One that is larger than all there is goes with the next.
        check(&[(0, 1), (0, 9)], (4, 2), &[1]);
        check(&[(0, 1), (0, 9), (1, 1)], (4, 2), &[2]);
    }

    #[test]
    fn what_is_old_goes() {
        let mut index = Index::default();
        let key = |number: u8| Digest::of(&[number]);
        for number in 0..3 {
            let (function, id) = (FunctionId::new(), InvocationId::new());
            let entry = Entry { print: key(0), function, id, began_ms: number.into(), bytes: u64::from(number) };
            index.insert(key(number), entry);
        }
        assert_eq!([1, 1, 1].map(|limit| index.take_older(limit)), [Some(key(0)), Some(key(1)), None]);
        assert_eq!((index.bytes(), index.functions.len()), (BLOCK_BYTES, 1));
    }
}
