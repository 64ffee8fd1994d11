//! How a node is: by its silence, and by how its calls end. Pure.

use std::time::{Duration, Instant};

use common::ids::FunctionId;

use super::recent::Recent;

/// A node that is silent for so long gets no new work while another one can take it.
const SUSPECTED_AFTER: Duration = Duration::from_secs(2);

/// A node that is silent for so long is gone.
pub(super) const LOST_AFTER: Duration = Duration::from_secs(10);

/// Failures in a row that eject a node.
const MAX_IN_A_ROW: u32 = 5;

/// Calls of ten seconds of which, if they are as many, no more than half may fail.
const MIN_CALLS: u32 = 20;

/// For how long a node is ejected the first time, and the longest; each time twice as long as before.
const EJECTED_FOR: (Duration, Duration) = (Duration::from_secs(5), Duration::from_secs(60));

/// A node that was not ejected for so long begins anew.
const FORGIVEN_AFTER: Duration = Duration::from_secs(5 * 60);

/// What a node's silence means.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Pulse {
    Steady,
    Suspected,
    Lost,
}

impl Pulse {
    /// That of a node that was silent for so long.
    pub(super) fn after(silence: Duration) -> Self {
        match silence {
            silence if silence >= LOST_AFTER => Self::Lost,
            silence if silence >= SUSPECTED_AFTER => Self::Suspected,
            _ => Self::Steady,
        }
    }

    /// After how much silence it changes.
    pub(super) fn until(self) -> Duration {
        if self == Self::Steady { SUSPECTED_AFTER } else { LOST_AFTER }
    }
}

/// How a linked node is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Health {
    Well,
    Suspected,
    Ejected,
}

/// What a call ended with for which its node is to blame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Failure {
    /// No answer came.
    Lost,
    /// The node had no sandbox for this function, which is not the function's own fault.
    NoSandbox(FunctionId),
}

/// How far a node is trusted with calls.
#[derive(Debug)]
pub(super) struct Trust {
    recent: Recent,
    last: Option<Failure>,
    /// Set while it is ejected.
    until: Option<Instant>,
    /// How often it was in a short time, and when that ended last.
    ejected: u32,
    released: Option<Instant>,
}

impl Trust {
    pub(super) fn new(begin: Instant) -> Self {
        Self { recent: Recent::new(begin), last: None, until: None, ejected: 0, released: None }
    }

    /// Takes in the count of the node's calls so far. Whether it has just done its time.
    pub(super) fn look(&mut self, now: Instant, calls: u32) -> bool {
        self.recent.look(now, calls);
        let is_over = self.until.is_some_and(|until| now >= until);
        if is_over {
            (self.until, self.released) = (None, Some(now));
        }
        is_over
    }

    /// Takes in that a call failed; `in_a_row` counts those without a success between. Whether the node is to be
    /// ejected.
    pub(super) fn failed(&mut self, now: Instant, calls: u32, failure: Failure, in_a_row: &mut u32) -> bool {
        // A function for which there is never a sandbox says nothing of the node when it is called again.
        let is_repeat = matches!(failure, Failure::NoSandbox(_)) && self.last == Some(failure) && *in_a_row > 0;
        self.last = Some(failure);
        // What was under way when it was ejected says nothing new.
        if is_repeat || self.is_ejected() {
            return false;
        }
        *in_a_row = in_a_row.saturating_add(1);
        self.recent.look(now, calls);
        self.recent.mark(now);
        let (calls, failed) = self.recent.look(now, calls);
        *in_a_row >= MAX_IN_A_ROW || (calls >= MIN_CALLS && failed.saturating_mul(2) > calls)
    }

    /// Ejects the node; for how long.
    pub(super) fn eject(&mut self, now: Instant) -> Duration {
        if self.released.is_none_or(|released| now.saturating_duration_since(released) >= FORGIVEN_AFTER) {
            self.ejected = 0;
        }
        let (first, longest) = EJECTED_FOR;
        let time = first.saturating_mul(1 << self.ejected.min(8)).min(longest);
        self.ejected += 1;
        self.until = Some(now + time);
        time
    }

    pub(super) fn is_ejected(&self) -> bool {
        self.until.is_some()
    }
}

/// Whether one more of so many nodes may be ejected: never more than half.
pub(super) fn may_eject(nodes: usize, ejected: usize) -> bool {
    (ejected + 1) * 2 <= nodes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn silence() {
        let check = |ms, expected| assert_eq!(Pulse::after(Duration::from_millis(ms)), expected, "{ms}");
        check(0, Pulse::Steady);
        check(1_999, Pulse::Steady);
        check(2_000, Pulse::Suspected);
        check(9_999, Pulse::Suspected);
        check(10_000, Pulse::Lost);
        for pulse in [Pulse::Steady, Pulse::Suspected] {
            assert_ne!(Pulse::after(pulse.until()), pulse);
        }
    }

    /// Lets calls fail 100 ms apart, each after so many that did not; after how many the node is ejected.
    fn check(successes: u32, failures: &[Failure], expected: Option<usize>) {
        let begin = Instant::now();
        let (mut trust, mut calls, mut in_a_row) = (Trust::new(begin), 0, 0);
        trust.look(begin, calls);
        let ejected = (1_u32..).zip(failures).position(|(step, failure)| {
            calls += successes + 1;
            in_a_row = if successes > 0 { 0 } else { in_a_row };
            trust.failed(begin + step * Duration::from_millis(100), calls, *failure, &mut in_a_row)
        });
        assert_eq!(ejected.map(|place| place + 1), expected, "{successes}: {failures:?}");
    }

    #[test]
    fn what_ejects_a_node() {
        let (one, other) = (Failure::NoSandbox(FunctionId::new()), Failure::NoSandbox(FunctionId::new()));
        check(0, &[Failure::Lost; 4], None);
        check(0, &[Failure::Lost; 5], Some(5));
        check(0, &[one; 50], None);
        check(0, &[one, other, one, other, one], Some(5));
        check(0, &[one, one, Failure::Lost, Failure::Lost, Failure::Lost, one], Some(6));
        // Half of the calls are not more than half.
        check(1, &[Failure::Lost; 50], None);
        check(9, &[Failure::Lost; 50], None);
    }

    #[test]
    fn more_than_half_of_many() {
        let begin = Instant::now();
        let mut trust = Trust::new(begin);
        trust.look(begin, 0);
        // Two fail, one does not.
        let ejected = (1_u32..=30).find(|call| {
            call % 3 > 0 && trust.failed(begin + Duration::from_millis(50), *call, Failure::Lost, &mut (call % 3 - 1))
        });
        assert_eq!(ejected, Some(20));
    }

    #[test]
    fn for_how_long() {
        let begin = Instant::now();
        let (mut trust, mut now) = (Trust::new(begin), begin);
        for seconds in [5, 10, 20, 40, 60, 60] {
            let time = trust.eject(now);
            assert_eq!(time, Duration::from_secs(seconds));
            assert!(!trust.failed(now, 0, Failure::Lost, &mut 99), "ejected already");
            assert!(!trust.look(now + time / 2, 0) && trust.is_ejected());
            now += time;
            assert!(trust.look(now, 0) && !trust.is_ejected());
            // The first failure after it is one too many, until a call succeeds.
            assert!(trust.failed(now, 0, Failure::Lost, &mut 5));
        }
        assert_eq!(trust.eject(now + FORGIVEN_AFTER), EJECTED_FOR.0);
    }

    #[test]
    fn never_more_than_half() {
        let most = |nodes| (0..nodes).take_while(|ejected| may_eject(nodes, *ejected)).count();
        assert_eq!([0, 1, 2, 3, 4, 5].map(most), [0, 0, 1, 1, 2, 2]);
    }
}
