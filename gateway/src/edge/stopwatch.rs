//! Where a request's time goes at the edge: marks on its way, and the phases that they come to.

use std::time::{Duration, Instant};

use common::phases::micros;

/// Runs from a request's head on. One look at the clock per mark.
pub(crate) struct Stopwatch {
    started: Instant,
    marks: Marks,
}

/// Microseconds from the head to each place on the way; `None` where the request did not come.
#[derive(Clone, Copy, Default)]
struct Marks {
    routed: Option<u64>,
    admitted: Option<u64>,
    refused: Option<u64>,
}

/// The gateway's phases of a request, in microseconds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Phases {
    pub(crate) gate: Option<u64>,
    pub(crate) auth: Option<u64>,
    pub(crate) link: Option<u64>,
}

/// Who ended it.
#[derive(Clone, Copy, Debug)]
pub(crate) enum End {
    /// The edge refused it, or lost the node.
    Refused,
    /// A node answered, and had it for so many microseconds, if it says so.
    Answered(Option<u64>),
}

impl Stopwatch {
    pub(crate) fn start() -> Self {
        Self { started: Instant::now(), marks: Marks::default() }
    }

    /// The route is known, or for a call by envelope what will find it: the caller has to be known first.
    pub(crate) fn routed(&mut self) {
        self.marks.routed = Some(micros(self.elapsed()));
    }

    /// Identity and limits let it through.
    pub(crate) fn admitted(&mut self) {
        self.marks.admitted = Some(micros(self.elapsed()));
    }

    /// It is refused. What is still read of its body is no phase.
    pub(crate) fn refused(&mut self) {
        self.marks.refused = Some(micros(self.elapsed()));
    }

    pub(crate) fn elapsed(&self) -> Duration {
        self.started.elapsed()
    }

    /// What a node is told for its record.
    pub(crate) fn so_far(&self) -> Phases {
        settle(self.marks, End::Answered(None), 0)
    }

    /// What the marks come to, `total` microseconds after the head.
    pub(crate) fn phases(&self, end: End, total: u64) -> Phases {
        settle(self.marks, end, total)
    }
}

/// The phases never come to more than `total`. A refusal ends the phase in which it was spoken.
fn settle(Marks { routed, admitted, refused }: Marks, end: End, total: u64) -> Phases {
    let refusal = match end {
        End::Refused => Some(refused.unwrap_or(total)),
        End::Answered(_) => None,
    };
    let between = |from: Option<u64>, to: Option<u64>| Some(to?.saturating_sub(from?));
    let link = match end {
        End::Refused => between(admitted, refusal),
        End::Answered(took) => between(took, between(admitted, Some(total))),
    };
    Phases { gate: routed.or(refusal), auth: between(routed, admitted.or(refusal)), link }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(marks: [Option<u64>; 3], end: End, expected: [Option<u64>; 3]) {
        let [routed, admitted, refused] = marks;
        let [gate, auth, link] = expected;
        let settled = settle(Marks { routed, admitted, refused }, end, 100);
        assert_eq!(settled, Phases { gate, auth, link }, "{marks:?} {end:?}");
    }

    #[test]
    fn of_answers() {
        check([Some(10), Some(30), None], End::Answered(Some(50)), [Some(10), Some(20), Some(20)]);
        check([Some(10), Some(30), None], End::Answered(None), [Some(10), Some(20), None]);
        // Another clock may run a little faster.
        check([Some(10), Some(30), None], End::Answered(Some(71)), [Some(10), Some(20), Some(0)]);
    }

    #[test]
    fn of_refusals() {
        check([None, None, Some(10)], End::Refused, [Some(10), None, None]);
        check([Some(10), None, Some(30)], End::Refused, [Some(10), Some(20), None]);
        check([Some(10), Some(30), Some(60)], End::Refused, [Some(10), Some(20), Some(30)]);
        check([Some(10), Some(30), None], End::Refused, [Some(10), Some(20), Some(70)]);
        check([None, None, None], End::Refused, [Some(100), None, None]);
    }
}
