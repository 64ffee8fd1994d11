//! What an idle sandbox is worth to whoever called it last, so that the least valuable ones make room first. Pure.

use std::cmp::Ordering;
use std::time::Duration;

/// Less than this counts as this: what was used just now is not worth everything, and no start is for nothing.
const LEAST: Duration = Duration::from_millis(1);

/// The worth of an idle sandbox; the larger is kept longer.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Worth {
    /// It is one of those that are to be kept whether or not anybody calls.
    kept: bool,
    /// Seconds of a cold start that its next call would wait, by the memory that it takes until then: by each MiB and
    /// each second for which nobody has missed it.
    saves: f64,
}

impl Worth {
    /// That of one which nobody has used for `idle`, whose next start takes about `start`, and that is granted
    /// `memory_mb`.
    pub(crate) fn new(idle: Duration, start: Duration, memory_mb: u64, kept: bool) -> Self {
        let takes = idle.max(LEAST).as_secs_f64() * memory_mb.max(1) as f64;
        Self { kept, saves: start.max(LEAST).as_secs_f64() / takes }
    }

    /// Which of two is worth less.
    pub(crate) fn order(&self, other: &Self) -> Ordering {
        self.kept.cmp(&other.kept).then(self.saves.total_cmp(&other.saves))
    }
}

/// For how many looks in a row a server that no call is in for `idle` holds on to memory that others wait for. Each
/// server decides by itself, so those that are missed least go first, and those that are to be kept last.
pub(crate) fn patience(idle: Duration, kept: bool) -> u32 {
    match idle.as_secs() {
        _ if kept => 12,
        60.. => 1,
        10.. => 2,
        _ => 3,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Each: seconds idle, milliseconds of a start, MiB, whether it is kept.
    type One = (u64, u64, u64, bool);

    fn check(less: One, more: One) {
        let worth = |(idle, start, memory_mb, kept): One| {
            Worth::new(Duration::from_secs(idle), Duration::from_millis(start), memory_mb, kept)
        };
        assert_eq!(worth(less).order(&worth(more)), Ordering::Less, "{less:?} {more:?}");
        assert_eq!(worth(more).order(&worth(less)), Ordering::Greater, "{less:?} {more:?}");
    }

    #[test]
    fn the_least_valuable() {
        // Who was used longer ago; who starts sooner; who takes more room.
        check((60, 100, 128, false), (10, 100, 128, false));
        check((10, 5, 128, false), (10, 400, 128, false));
        check((10, 100, 512, false), (10, 100, 128, false));
        // A dear start weighs as much as its multiple of time, or of memory.
        check((10, 100, 128, false), (20, 400, 128, false));
        check((50, 400, 128, false), (10, 100, 128, false));
        check((10, 100, 128, false), (10, 400, 256, false));
        // What is to be kept is worth more than anything that is not.
        check((0, 10_000, 16, false), (3600, 1, 1024, true));
        check((60, 100, 128, true), (10, 100, 128, true));
    }

    #[test]
    fn servers_that_are_missed_least_go_first() {
        let rounds = |seconds, kept| patience(Duration::from_secs(seconds), kept);
        assert_eq!([rounds(100, false), rounds(10, false), rounds(0, false), rounds(100, true)], [1, 2, 3, 12]);
    }
}
