//! How many blank sandboxes to keep ready, and which. Pure: it knows neither containers nor clocks, and whoever
//! drives it does what it says.
//!
//! Of each kind there are as many as were taken in the busiest recent second, and a few at least; all of them
//! together keep within a budget of memory. What one of a kind counts as, its price, is measured while it waits, since
//! the process in it starts later than it does. Where prices turn out higher than they seemed, blanks go.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

/// What remains of a rate after a second without takers.
const DECAY: f64 = 0.9;
/// Most blanks of one kind.
const MOST: usize = 256;
/// The price of a blank before one was measured, in MiB.
const GUESS_MB: f64 = 8.0;
/// What remains of a price after a second in which nothing as dear was measured: half of it after 69 seconds. So one
/// that has just started does not make the others cheap, and the first of an image, which counts as its own what it
/// reads of the disk for all of them, does not make them dear for ever.
const FADE: f64 = 0.99;
/// The pause after a failed start; doubled each time.
const FIRST_PAUSE: Duration = Duration::from_secs(1);
/// The longest pause.
const LONGEST_PAUSE: Duration = Duration::from_secs(60);

/// The blanks of every kind.
#[derive(Debug)]
pub(crate) struct Shelves<B> {
    shelves: Vec<Shelf<B>>,
    least: usize,
    budget_mb: f64,
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
    /// The most that was measured lately, in MiB; `None` before anything was.
    price_mb: Option<f64>,
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
            price_mb: None,
            failures: 0,
            not_before: None,
        };
        Self { shelves: (0..kinds).map(|_| shelf()).collect(), least, budget_mb: budget_mb as f64, closed: false }
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

    /// A second has passed: the blanks that are too many now, or do not work. `measure` tells what one uses, in MiB,
    /// if that can be told yet; it is asked of the oldest of each kind alone.
    pub(crate) fn tick(&mut self, works: impl Fn(&B) -> bool, measure: impl Fn(&B) -> Option<u64>) -> Vec<B> {
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
            let used_mb = shelf.ready.front().and_then(&measure);
            shelf.reprice(used_mb);
        }
        gone.extend(self.shrink());
        gone
    }

    /// The blanks that are over the budget: of the kind that takes most of it the oldest, until the others fit.
    fn shrink(&mut self) -> Vec<B> {
        let mut gone = Vec::new();
        while self.memory_mb() > self.budget_mb {
            let filled = self.shelves.iter_mut().filter(|shelf| !shelf.ready.is_empty());
            let largest = filled.max_by(|one, other| one.memory_mb().total_cmp(&other.memory_mb()));
            let Some(shelf) = largest else { break };
            gone.extend(shelf.ready.pop_front());
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
            let free_mb = self.budget_mb - self.memory_mb();
            let hungry = self
                .shelves
                .iter()
                .enumerate()
                .filter(|(_, shelf)| shelf.not_before.is_none_or(|time| time <= now) && shelf.blank_mb() <= free_mb)
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

    /// A start that was planned succeeded. The blank comes back when nothing is kept any more.
    pub(crate) fn started(&mut self, kind: usize, blank: B) -> Option<B> {
        let Some(shelf) = self.shelves.get_mut(kind) else { return Some(blank) };
        shelf.starting -= 1;
        (shelf.failures, shelf.not_before) = (0, None);
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

    fn memory_mb(&self) -> f64 {
        self.shelves.iter().map(Shelf::memory_mb).sum()
    }

    #[cfg(test)]
    pub(crate) fn price_mb(&self, kind: usize) -> Option<f64> {
        self.shelves[kind].price_mb
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

    fn blank_mb(&self) -> f64 {
        self.price_mb.unwrap_or(GUESS_MB)
    }

    fn memory_mb(&self) -> f64 {
        self.count() as f64 * self.blank_mb()
    }

    /// A second has passed, in which a blank was seen to use `used_mb`.
    fn reprice(&mut self, used_mb: Option<u64>) {
        let faded = self.price_mb.unwrap_or(0.0) * FADE;
        match used_mb {
            Some(used_mb) => self.price_mb = Some(faded.max(used_mb.max(1) as f64)),
            // None may be there because the price is over the budget: it fades until one is started and measured anew.
            None if self.count() == 0 && faded > GUESS_MB => self.price_mb = Some(faded),
            None => {}
        }
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

    /// Fills the shelves with blanks that are numbers, what one of their kind uses in MiB, and tells how many there are
    /// of each kind.
    fn fill(shelves: &mut Shelves<u64>, used_mb: &[u64]) -> Vec<usize> {
        loop {
            let starts = shelves.plan(Instant::now(), 2);
            assert!(starts.len() <= 2);
            if starts.is_empty() {
                return shelves.shelves.iter().map(|shelf| shelf.ready.len()).collect();
            }
            for kind in starts {
                assert_eq!(shelves.started(kind, used_mb[kind]), None);
            }
        }
    }

    /// How many there are of each kind, as what one uses is learnt, where more are wanted than fit.
    fn check(budget_mb: u64, used_mb: &[u64], expected: &[usize]) {
        let mut shelves = Shelves::new(used_mb.len(), 50, budget_mb);
        for _ in 0..10 {
            fill(&mut shelves, used_mb);
            shelves.tick(|_| true, |used_mb| Some(*used_mb));
        }
        assert_eq!(fill(&mut shelves, used_mb), expected, "{used_mb:?} in {budget_mb}");
    }

    #[test]
    fn a_few_of_each_kind_and_as_many_as_are_taken() {
        let mut shelves = Shelves::new(2, 2, 1000);
        assert_eq!(fill(&mut shelves, &[3, 3]), [2, 2]);
        for _ in 0..10 {
            shelves.take(1, |_| true);
        }
        assert_eq!(fill(&mut shelves, &[3, 3]), [2, 10]);
        assert!(shelves.tick(|_| true, |_| None).is_empty());
        let mut gone = 0;
        for _ in 0..100 {
            gone += shelves.tick(|_| true, |_| None).len();
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
        check(1000, &[1], &[50]);
        check(100, &[10, 10], &[5, 5]);
        check(100, &[40, 1], &[2, 20]);
        check(60, &[40], &[1]);
        check(30, &[40], &[0]);
        // Not even one fits, as far as is known.
        check(2, &[1, 1, 1], &[0, 0, 0]);
    }

    #[test]
    fn what_is_over_the_budget_goes_once_it_is_known() {
        let mut shelves = Shelves::new(1, 3, 100);
        shelves.plan(Instant::now(), ALL);
        for used_mb in [40, 1, 2] {
            shelves.started(0, used_mb);
        }
        assert_eq!(shelves.tick(|_| true, |_| None), [0; 0]);
        assert_eq!(shelves.tick(|_| true, |used_mb| Some(*used_mb)), [40]);
        // The next one uses less, perhaps because it has only started.
        assert_eq!(shelves.tick(|_| true, |used_mb| Some(*used_mb)), [0; 0]);
        assert_eq!(shelves.plan(Instant::now(), ALL), [0; 0]);
    }

    #[test]
    fn a_kind_that_was_too_dear_is_tried_again() {
        let mut shelves = Shelves::new(1, 1, 64);
        assert_eq!(fill(&mut shelves, &[100]), [1]);
        assert_eq!(shelves.tick(|_| true, |used_mb| Some(*used_mb)), [100]);
        let mut seconds = 0;
        while shelves.plan(Instant::now(), ALL).is_empty() && seconds < 1000 {
            assert!(shelves.tick(|_| true, |_| None).is_empty());
            seconds += 1;
        }
        assert!((40..50).contains(&seconds), "{seconds}");
    }

    #[test]
    fn what_does_not_work_is_not_given() {
        let mut shelves = Shelves::new(1, 3, 100);
        shelves.plan(Instant::now(), ALL);
        for blank in 0..3 {
            shelves.started(0, blank);
        }
        assert_eq!(shelves.take(0, |blank| *blank == 1), (Some(1), vec![0]));
        assert_eq!(shelves.tick(|_| false, |_| None), [2]);
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
        shelves.started(0, 1);
        assert_eq!(shelves.close(), [1]);
        assert_eq!(shelves.started(0, 2), Some(2));
        assert_eq!(shelves.plan(Instant::now(), ALL), [0; 0]);
    }
}
