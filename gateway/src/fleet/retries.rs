//! How many calls may go to a second node: a tenth, so that a fleet in trouble does not get twice the calls. Pure.

use std::time::Instant;

use super::recent::Recent;

/// Second attempts of the last ten seconds, in percent of their calls.
const PERCENT: u64 = 10;

/// As many of them are always let through.
const FLOOR: u64 = 10;

/// The second attempts of a gateway.
#[derive(Debug)]
pub(super) struct Retries(Recent);

impl Retries {
    pub(super) fn new(begin: Instant) -> Self {
        Self(Recent::new(begin))
    }

    /// Takes in the count of calls so far.
    pub(super) fn look(&mut self, now: Instant, calls: u32) {
        self.0.look(now, calls);
    }

    /// Whether one more may be made; if so, it counts.
    pub(super) fn allow(&mut self, now: Instant, calls: u32) -> bool {
        let (calls, made) = self.0.look(now, calls);
        let allowed = u64::from(made) < FLOOR + u64::from(calls) * PERCENT / 100;
        if allowed {
            self.0.mark(now);
        }
        allowed
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn check(calls: u32, expected: usize) {
        let begin = Instant::now();
        let mut retries = Retries::new(begin);
        retries.look(begin, 7);
        let now = begin + Duration::from_secs(5);
        let allowed = (0..10_000).filter(|_| retries.allow(now, calls + 7)).count();
        assert_eq!(allowed, expected, "of {calls} calls");
        // Nothing more in the same ten seconds; then the floor again.
        assert!(!retries.allow(now + Duration::from_secs(4), calls + 7));
        assert!(retries.allow(now + Duration::from_secs(10), calls + 7));
    }

    #[test]
    fn a_tenth_and_a_floor() {
        check(0, 10);
        check(9, 10);
        check(100, 20);
        check(5_000, 510);
    }
}
