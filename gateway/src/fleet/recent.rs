//! How many of the last ten seconds' calls were of some kind. Pure; whoever counts calls tells the count now and then.

use std::time::Instant;

/// How far back it is looked, in seconds.
const SECONDS: usize = 10;

/// Two counts over the last ten seconds.
#[derive(Clone, Debug)]
pub(super) struct Recent {
    begin: Instant,
    slots: [Option<Slot>; SECONDS],
}

#[derive(Clone, Copy, Debug)]
struct Slot {
    second: u64,
    /// The count of calls at the first look in this second.
    calls: u32,
    marked: u32,
}

impl Recent {
    pub(super) fn new(begin: Instant) -> Self {
        Self { begin, slots: [None; SECONDS] }
    }

    /// Takes in the count of all calls so far, which may wrap. Says how many of them were recent, as far as it was
    /// told, and how many were marked.
    pub(super) fn look(&mut self, now: Instant, calls: u32) -> (u32, u32) {
        let second = self.second(now);
        let place = &mut self.slots[Self::place(second)];
        if place.is_none_or(|slot| slot.second != second) {
            *place = Some(Slot { second, calls, marked: 0 });
        }
        let kept = || self.slots.iter().flatten().filter(|slot| slot.second + SECONDS as u64 > second);
        let before = kept().min_by_key(|slot| slot.second).map_or(calls, |slot| slot.calls);
        (calls.wrapping_sub(before), kept().map(|slot| slot.marked).sum())
    }

    /// Marks one of the calls of now, which was looked at before.
    pub(super) fn mark(&mut self, now: Instant) {
        let second = self.second(now);
        if let Some(slot) = &mut self.slots[Self::place(second)] {
            slot.marked += 1;
        }
    }

    fn second(&self, now: Instant) -> u64 {
        now.saturating_duration_since(self.begin).as_secs()
    }

    fn place(second: u64) -> usize {
        (second % SECONDS as u64) as usize
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn ten_seconds_and_no_more() {
        let begin = Instant::now();
        let mut recent = Recent::new(begin);
        let mut check = |ms: u64, calls: u32, marks: u32, expected: (u32, u32)| {
            let now = begin + Duration::from_millis(ms);
            assert_eq!(recent.look(now, calls), expected, "after {ms} ms");
            (0..marks).for_each(|_| recent.mark(now));
        };
        // The count wraps, and what was before the first look is not known.
        check(0, u32::MAX - 9, 1, (0, 0));
        check(900, u32::MAX, 1, (9, 1));
        check(5_000, 10, 3, (20, 2));
        check(9_999, 20, 0, (30, 5));
        check(10_000, 30, 0, (20, 3));
        check(15_000, 31, 0, (11, 0));
        check(90_000, 99, 0, (0, 0));
    }
}
