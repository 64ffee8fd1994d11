//! A deploy's log on its way: each line to whoever follows, all of them in batches to the store, the end of them into
//! the answer of a failed build. However much a build prints, what is kept has an end.

use std::collections::VecDeque;
use std::sync::Arc;

use common::ids::DeploymentId;
use store::{LogLine, Store};
use tokio::sync::mpsc;

/// Most lines of one build that are kept.
const MAX_LINES: usize = 10_000;
/// Most bytes of one build's lines that are kept.
const MAX_BYTES: usize = 1024 * 1024;
/// Longest line, in bytes; the rest of it is cut.
const MAX_LINE_BYTES: usize = 8 * 1024;
/// The end of the log that a failed build's answer shows, in bytes.
const TAIL_BYTES: usize = 64 * 1024;
/// Lines that go to the store together.
const BATCH: usize = 200;
/// Lines that a follower may lag behind: all that can come, since a slow follower must not slow the build.
pub(crate) const FOLLOWER_QUEUE: usize = MAX_LINES + 16;

const CUT: &str = "… (the log is longer than is kept: the rest is not shown)";

/// The log of one deploy.
pub(crate) struct BuildLog {
    store: Arc<dyn Store>,
    deployment: DeploymentId,
    follower: mpsc::Sender<String>,
    batch: Vec<LogLine>,
    bounds: Bounds,
    tail: Tail,
}

impl BuildLog {
    /// An empty log.
    pub(crate) fn new(store: Arc<dyn Store>, deployment: DeploymentId, follower: mpsc::Sender<String>) -> Self {
        Self { store, deployment, follower, batch: Vec::new(), bounds: Bounds::default(), tail: Tail::default() }
    }

    /// A line that the build printed.
    pub(crate) async fn build(&mut self, line: &str) {
        if let Some(line) = self.bounds.admit(line) {
            self.add("build", line).await;
        }
    }

    /// A line about the deploy itself; there are few of them, so all are kept.
    pub(crate) async fn deploy(&mut self, line: &str) {
        self.add("deploy", clean(line)).await;
    }

    async fn add(&mut self, source: &'static str, line: String) {
        // Who hung up misses it; the queue holds all that can come.
        let _ = self.follower.try_send(line.clone());
        self.tail.push(line.clone());
        self.batch.push(LogLine { source, message: line });
        if self.batch.len() >= BATCH {
            self.flush().await;
        }
    }

    /// Brings what has gathered to the store. A log that cannot be kept does not fail the deploy.
    pub(crate) async fn flush(&mut self) {
        if self.batch.is_empty() {
            return;
        }
        if let Err(error) = self.store.append_log(self.deployment, &self.batch).await {
            tracing::warn!(deployment = %self.deployment, %error, lines = self.batch.len(), "log lines are lost");
        }
        self.batch.clear();
    }

    /// The end of the log.
    pub(crate) fn tail(&self) -> String {
        self.tail.text()
    }
}

/// What one build may still print.
#[derive(Default)]
struct Bounds {
    lines: usize,
    bytes: usize,
    cut: bool,
}

impl Bounds {
    /// The line as it is kept; `None` once there were too many, after one that says so.
    fn admit(&mut self, line: &str) -> Option<String> {
        if self.cut {
            return None;
        }
        let line = clean(line);
        self.lines += 1;
        self.bytes += line.len();
        if self.lines < MAX_LINES && self.bytes < MAX_BYTES {
            return Some(line);
        }
        self.cut = true;
        Some(CUT.to_owned())
    }
}

/// A line that every store and terminal takes: no control characters but tabs, and not without end.
fn clean(line: &str) -> String {
    let mut end = line.len().min(MAX_LINE_BYTES);
    while !line.is_char_boundary(end) {
        end -= 1;
    }
    let mut kept: String = line[..end].chars().filter(|c| !c.is_control() || matches!(c, '\t' | '\u{1b}')).collect();
    if end < line.len() {
        kept.push('…');
    }
    kept
}

/// The last lines, up to [`TAIL_BYTES`].
#[derive(Default)]
struct Tail {
    lines: VecDeque<String>,
    bytes: usize,
}

impl Tail {
    fn push(&mut self, line: String) {
        self.bytes += line.len() + 1;
        self.lines.push_back(line);
        while self.bytes > TAIL_BYTES {
            let Some(gone) = self.lines.pop_front() else { return };
            self.bytes -= gone.len() + 1;
        }
    }

    fn text(&self) -> String {
        self.lines.iter().map(String::as_str).collect::<Vec<_>>().join("\n")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_clean() {
        let check = |line: &str, expected: &str| assert_eq!(clean(line), expected);
        check("plain ü", "plain ü");
        check("a\0b\r\n\tc", "ab\tc");
        check("\u{1b}[31mred", "\u{1b}[31mred");
        check(&"x".repeat(MAX_LINE_BYTES + 1), &format!("{}…", "x".repeat(MAX_LINE_BYTES)));
        check(&"ü".repeat(MAX_LINE_BYTES), &format!("{}…", "ü".repeat(MAX_LINE_BYTES / 2)));
    }

    #[test]
    fn a_build_that_floods_is_cut_and_told_so_once() {
        let check = |line: &str, lines: usize| {
            let mut bounds = Bounds::default();
            let kept: Vec<_> = (0..20_000).filter_map(|_| bounds.admit(line)).collect();
            assert_eq!(kept.len(), lines);
            assert_eq!(kept.iter().filter(|line| *line == CUT).count(), 1);
            assert_eq!(kept.last().unwrap(), CUT);
        };
        check("", MAX_LINES);
        check(&"x".repeat(1024), 1024);
    }

    #[test]
    fn the_tail_is_the_end() {
        let mut tail = Tail::default();
        for number in 0..100_000 {
            tail.push(number.to_string());
        }
        let text = tail.text();
        assert!(text.len() <= TAIL_BYTES && text.len() > TAIL_BYTES - 10, "{}", text.len());
        assert!(text.ends_with("\n99999"));
    }
}
