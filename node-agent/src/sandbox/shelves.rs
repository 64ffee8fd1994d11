//! How many blank sandboxes to keep ready, and which. Pure: it knows neither containers nor clocks, and whoever
//! drives it does what it says.
//!
//! Of each kind there are as many as were taken in the busiest recent second, and a few at least; all of them
//! together keep within a budget of memory.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

/// What remains of a rate after a second without takers.
const DECAY: f64 = 0.9;
/// Most blanks of one kind.
const MOST: usize = 256;
/// The memory of a blank before one was measured, in MiB.
const GUESS_MB: u64 = 8;
/// The pause after a failed start; doubled each time.
const FIRST_PAUSE: Duration = Duration::from_secs(1);
/// The longest pause.
const LONGEST_PAUSE: Duration = Duration::from_secs(60);

/// The blanks of every kind.
#[derive(Debug)]
pub(crate) struct Shelves<B> {
    shelves: Vec<Shelf<B>>,
    least: usize,
    budget_mb: u64,
    closed: bool,
}

#[derive(Debug)]
struct Shelf<B> {
    /// The oldest first.
    ready: VecDeque<B>,
    starting: usize,
    taken: u32,
    /// Takers a second.
    rate: f64,
    blank_mb: u64,
    failures: u32,
    not_before: Option<Instant>,
}

impl<B> Shelves<B> {
    /// Empty shelves for `kinds` kinds; none is ever filled when `least` is 0.
    pub(crate) fn new(kinds: usize, least: usize, budget_mb: u64) -> Self {
        let shelf = || Shelf {
            ready: VecDeque::new(),
            starting: 0,
            taken: 0,
            rate: 0.0,
            blank_mb: GUESS_MB,
            failures: 0,
            not_before: None,
        };
        Self { shelves: (0..kinds).map(|_| shelf()).collect(), least, budget_mb, closed: false }
    }

    /// The oldest blank of this kind that `works`, and those before it that do not.
    pub(crate) fn take(&mut self, kind: usize, works: impl Fn(&B) -> bool) -> (Option<B>, Vec<B>) {
        let mut broken = Vec::new();
        let Some(shelf) = self.shelves.get_mut(kind) else { return (None, broken) };
        shelf.taken = shelf.taken.saturating_add(1);
        while let Some(blank) = shelf.ready.pop_front() {
            if works(&blank) {
                return (Some(blank), broken);
            }
            broken.push(blank);
        }
        (None, broken)
    }

    /// A second has passed: the blanks that are too many now, or do not work.
    pub(crate) fn tick(&mut self, works: impl Fn(&B) -> bool) -> Vec<B> {
        let least = self.least;
        let mut gone = Vec::new();
        for shelf in &mut self.shelves {
            shelf.rate = f64::from(std::mem::take(&mut shelf.taken)).max(shelf.rate * DECAY);
            let (kept, broken): (VecDeque<_>, VecDeque<_>) =
                std::mem::take(&mut shelf.ready).into_iter().partition(&works);
            shelf.ready = kept;
            gone.extend(broken);
            // One more than wanted is no reason to act: rates waver.
            while shelf.ready.len() > shelf.target(least) + 1 {
                gone.extend(shelf.ready.pop_front());
            }
        }
        gone
    }

    /// The kinds to start a blank of, one after the other, so that at most `at_once` start.
    pub(crate) fn plan(&mut self, now: Instant, at_once: usize) -> Vec<usize> {
        let mut starts = Vec::new();
        if self.closed {
            return starts;
        }
        let least = self.least;
        while self.shelves.iter().map(|shelf| shelf.starting).sum::<usize>() < at_once {
            let free_mb = self.budget_mb.saturating_sub(self.shelves.iter().map(Shelf::memory_mb).sum());
            let hungry = self
                .shelves
                .iter()
                .enumerate()
                .filter(|(_, shelf)| shelf.not_before.is_none_or(|time| time <= now) && shelf.blank_mb <= free_mb)
                .map(|(kind, shelf)| (shelf.target(least).saturating_sub(shelf.count()), shelf.count(), kind))
                .filter(|(missing, ..)| *missing > 0)
                // Who has least is served first.
                .min_by_key(|(_, count, _)| *count);
            let Some((.., kind)) = hungry else { break };
            self.shelves[kind].starting += 1;
            starts.push(kind);
        }
        starts
    }

    /// A start that was planned succeeded; the blank uses `used_mb`. It comes back when nothing is kept any more.
    pub(crate) fn started(&mut self, kind: usize, blank: B, used_mb: u64) -> Option<B> {
        let Some(shelf) = self.shelves.get_mut(kind) else { return Some(blank) };
        shelf.starting -= 1;
        (shelf.failures, shelf.not_before) = (0, None);
        shelf.blank_mb = used_mb.max(1);
        if self.closed {
            return Some(blank);
        }
        shelf.ready.push_back(blank);
        None
    }

    /// A start that was planned failed: the next one of this kind comes after a pause.
    pub(crate) fn failed(&mut self, kind: usize, now: Instant) {
        let Some(shelf) = self.shelves.get_mut(kind) else { return };
        shelf.starting -= 1;
        let pause = FIRST_PAUSE.saturating_mul(1 << shelf.failures.min(16)).min(LONGEST_PAUSE);
        shelf.failures = shelf.failures.saturating_add(1);
        shelf.not_before = Some(now + pause);
    }

    /// How many are ready.
    pub(crate) fn ready(&self) -> usize {
        self.shelves.iter().map(|shelf| shelf.ready.len()).sum()
    }

    /// Keeps nothing from now on: all that are ready.
    pub(crate) fn close(&mut self) -> Vec<B> {
        self.closed = true;
        self.shelves.iter_mut().flat_map(|shelf| shelf.ready.drain(..)).collect()
    }
}

impl<B> Shelf<B> {
    fn count(&self) -> usize {
        self.ready.len() + self.starting
    }

    fn memory_mb(&self) -> u64 {
        self.count() as u64 * self.blank_mb
    }

    fn target(&self, least: usize) -> usize {
        if least == 0 {
            return 0;
        }
        let recent = self.rate.max(self.taken.into()).ceil() as usize;
        recent.clamp(least, MOST.max(least))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ALL: usize = usize::MAX;

    /// Fills the shelves, each blank of `used_mb`, and tells how many there are of each kind.
    fn fill(shelves: &mut Shelves<u32>, used_mb: u64) -> Vec<usize> {
        loop {
            let starts = shelves.plan(Instant::now(), 2);
            assert!(starts.len() <= 2);
            if starts.is_empty() {
                return shelves.shelves.iter().map(|shelf| shelf.ready.len()).collect();
            }
            for kind in starts {
                assert_eq!(shelves.started(kind, 0, used_mb), None);
            }
        }
    }

    #[test]
    fn a_few_of_each_kind_and_as_many_as_are_taken() {
        let mut shelves = Shelves::new(2, 2, 1000);
        assert_eq!(fill(&mut shelves, 3), [2, 2]);
        for _ in 0..10 {
            shelves.take(1, |_| true);
        }
        assert_eq!(fill(&mut shelves, 3), [2, 10]);
        assert!(shelves.tick(|_| true).is_empty());
        let mut gone = 0;
        for _ in 0..100 {
            gone += shelves.tick(|_| true).len();
        }
        assert_eq!((gone, shelves.ready()), (7, 5), "what nobody takes any more goes, but for one");
    }

    #[test]
    fn none_where_none_is_wanted() {
        let mut shelves = Shelves::<u32>::new(1, 0, 1000);
        shelves.take(0, |_| true);
        assert_eq!(shelves.plan(Instant::now(), ALL), [0; 0]);
    }

    #[test]
    fn memory_is_shared() {
        let mut shelves = Shelves::new(2, 50, 100);
        assert_eq!(fill(&mut shelves, 10), [5, 5]);
        let mut shelves = Shelves::new(3, 1, 2);
        assert_eq!(fill(&mut shelves, 1), [0, 0, 0], "not even one fits");
    }

    #[test]
    fn what_does_not_work_is_not_given() {
        let mut shelves = Shelves::new(1, 3, 100);
        shelves.plan(Instant::now(), ALL);
        for blank in 0..3 {
            shelves.started(0, blank, 1);
        }
        assert_eq!(shelves.take(0, |blank| *blank == 1), (Some(1), vec![0]));
        assert_eq!(shelves.tick(|_| false), [2]);
    }

    #[test]
    fn a_failure_has_a_pause() {
        let (mut shelves, now) = (Shelves::<u32>::new(1, 1, 100), Instant::now());
        for pause in [1, 2, 4, 8, 16, 32, 60, 60] {
            assert_eq!(shelves.plan(now + Duration::from_secs(1000), ALL), [0]);
            shelves.failed(0, now);
            assert_eq!(shelves.plan(now + Duration::from_secs(pause) - Duration::from_millis(1), ALL), [0; 0]);
        }
    }

    #[test]
    fn closed_is_closed() {
        let mut shelves = Shelves::new(1, 2, 100);
        shelves.plan(Instant::now(), ALL);
        shelves.started(0, 1, 1);
        assert_eq!(shelves.close(), [1]);
        assert_eq!(shelves.started(0, 2, 1), Some(2));
        assert_eq!(shelves.plan(Instant::now(), ALL), [0; 0]);
    }
}
