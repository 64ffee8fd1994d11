//! What a server prints, while many calls are under way. Nothing tells which of them it is about, and a copy for each
//! would make a thousand records of one line; so it goes, once, to the record of the call that ends next. A call that is
//! alone has all that was printed for it, and so has one that the server dies of.

use std::collections::VecDeque;

use runner::wire::Stream;

/// What was printed since the last call ended.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Excerpt {
    /// Its standard output.
    pub(crate) stdout: Vec<u8>,
    /// Its standard error.
    pub(crate) stderr: Vec<u8>,
    /// Whether there was more.
    pub(crate) truncated: bool,
}

/// Both streams; of each the last bytes up to a cap.
#[derive(Debug)]
pub(super) struct Printed {
    cap: usize,
    streams: [VecDeque<u8>; 2],
    truncated: bool,
}

impl Printed {
    pub(super) fn new(cap: usize) -> Self {
        Self { cap, streams: [VecDeque::new(), VecDeque::new()], truncated: false }
    }

    pub(super) fn add(&mut self, stream: Stream, bytes: &[u8]) {
        let kept = &mut self.streams[usize::from(stream == Stream::Stderr)];
        let over = (kept.len() + bytes.len()).saturating_sub(self.cap);
        self.truncated |= over > 0;
        kept.drain(..over.min(kept.len()));
        kept.extend(&bytes[bytes.len().saturating_sub(self.cap)..]);
    }

    /// All of it; from here on it is new again.
    pub(super) fn take(&mut self) -> Excerpt {
        let [stdout, stderr] = self.streams.each_mut().map(|kept| std::mem::take(kept).into());
        Excerpt { stdout, stderr, truncated: std::mem::take(&mut self.truncated) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(printed: &mut Printed, stdout: &str, stderr: &str, truncated: bool) {
        let expected = Excerpt { stdout: stdout.into(), stderr: stderr.into(), truncated };
        assert_eq!(printed.take(), expected);
    }

    #[test]
    fn everything_is_told_once() {
        let printed = &mut Printed::new(8);
        printed.add(Stream::Stdout, b"start ");
        printed.add(Stream::Stdout, b"a");
        printed.add(Stream::Stderr, b"b");
        check(printed, "start a", "b", false);
        check(printed, "", "", false);
        printed.add(Stream::Stdout, b"c");
        check(printed, "c", "", false);
    }

    #[test]
    fn the_last_is_kept() {
        let printed = &mut Printed::new(4);
        printed.add(Stream::Stdout, b"abc");
        printed.add(Stream::Stdout, b"def");
        printed.add(Stream::Stderr, b"0123456789");
        check(printed, "cdef", "6789", true);
        check(printed, "", "", false);
    }
}
