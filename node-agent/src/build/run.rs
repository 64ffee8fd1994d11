//! One run of a build, which any number of callers follow: each gets the whole log from its beginning.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use common::protocol::BuildEvent;
use futures_util::{Stream, stream};
use tokio::sync::Notify;

use crate::build_cache::BuildHandle;

/// Most of a log that is kept and passed on, in bytes.
const MAX_LOG_BYTES: usize = 1024 * 1024;
/// Longest line, in bytes.
const MAX_LINE_BYTES: usize = 8 * 1024;

/// How a run ended.
#[derive(Clone, Debug)]
pub(super) enum End {
    /// The build is here.
    Ready { build: BuildHandle, how: How, took: Duration },
    /// The user's to mend.
    Failed(String),
    /// The platform's to mend.
    Error(String),
}

/// Where a build came from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum How {
    /// It was on this node.
    Cached,
    /// It was in the artifact store.
    Fetched,
    /// It was made now.
    Built,
}

impl End {
    fn event(&self) -> BuildEvent {
        match self {
            Self::Ready { how, took, .. } => BuildEvent::Built {
                build_ms: u64::try_from(took.as_millis()).unwrap_or(u64::MAX),
                cached: *how != How::Built,
            },
            Self::Failed(reason) => BuildEvent::Failed { reason: reason.clone() },
            Self::Error(reason) => BuildEvent::Error { reason: reason.clone() },
        }
    }
}

/// A run, under way or over.
pub(super) struct Run {
    state: Mutex<State>,
    changed: Notify,
}

#[derive(Default)]
struct State {
    lines: Vec<String>,
    bytes: usize,
    end: Option<End>,
    /// Whether it was ordered by a gateway, which has claimed the archive for it.
    is_ordered: bool,
}

enum Step {
    Line(String),
    End(End),
}

impl Run {
    /// A run that begins now.
    pub(super) fn begun() -> Arc<Self> {
        Arc::new(Self { state: Mutex::default(), changed: Notify::new() })
    }

    /// A run that never began.
    pub(super) fn over(end: End) -> Arc<Self> {
        let run = Self::begun();
        run.finish(end);
        run
    }

    /// Adds a line to the log; beyond the cap one line says that the rest is cut.
    pub(super) fn log(&self, mut line: String) {
        line.truncate((0..=MAX_LINE_BYTES.min(line.len())).rev().find(|at| line.is_char_boundary(*at)).unwrap_or(0));
        let mut state = self.lock();
        if state.bytes > MAX_LOG_BYTES {
            return;
        }
        state.bytes += line.len() + 1;
        if state.bytes > MAX_LOG_BYTES {
            line = format!("… the rest of the log is cut: it is longer than {} KiB", MAX_LOG_BYTES / 1024);
        }
        state.lines.push(line);
        drop(state);
        self.changed.notify_waiters();
    }

    /// Notes that a gateway orders it.
    pub(super) fn order(&self) {
        self.lock().is_ordered = true;
        self.changed.notify_waiters();
    }

    /// Waits until a gateway orders it.
    pub(super) async fn ordered(&self) {
        self.wait_for(|state| state.is_ordered.then_some(())).await;
    }

    /// Ends the run; who follows it gets the end.
    pub(super) fn finish(&self, end: End) {
        self.lock().end = Some(end);
        self.changed.notify_waiters();
    }

    /// Waits for the end.
    pub(super) async fn ended(&self) -> End {
        self.wait_for(|state| state.end.clone()).await
    }

    /// The log and the end, from the beginning.
    pub(super) fn events(self: Arc<Self>) -> impl Stream<Item = BuildEvent> + Send + use<> {
        stream::unfold((self, Some(0)), |(run, seen)| async move {
            let seen = seen?;
            let step = run.wait_for(|state| match state.lines.get(seen) {
                Some(line) => Some(Step::Line(line.clone())),
                None => state.end.clone().map(Step::End),
            });
            match step.await {
                Step::Line(line) => Some((BuildEvent::Log { line }, (run, Some(seen + 1)))),
                Step::End(end) => Some((end.event(), (run, None))),
            }
        })
    }

    async fn wait_for<T>(&self, pick: impl Fn(&State) -> Option<T>) -> T {
        loop {
            // Made before the look, so that a change between the look and the wait is not missed.
            let changed = self.changed.notified();
            if let Some(picked) = pick(&self.lock()) {
                return picked;
            }
            changed.await;
        }
    }

    /// The state is only touched by code that cannot panic half way, so a poisoned lock is as good as any.
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use futures_util::StreamExt as _;

    use super::*;

    #[tokio::test]
    async fn all_who_follow_get_the_whole_log() {
        let run = Run::begun();
        run.log("one".into());
        let early = tokio::spawn(Arc::clone(&run).events().collect::<Vec<_>>());
        run.log("two".into());
        run.finish(End::Failed("no".into()));
        let late: Vec<_> = Arc::clone(&run).events().collect().await;
        let line = |text: &str| BuildEvent::Log { line: text.into() };
        assert_eq!(late, [line("one"), line("two"), BuildEvent::Failed { reason: "no".into() }]);
        assert_eq!(early.await.unwrap(), late);
        assert!(matches!(run.ended().await, End::Failed(_)));
    }

    #[tokio::test]
    async fn a_long_log_is_cut_once() {
        let run = Run::begun();
        for _ in 0..MAX_LOG_BYTES / MAX_LINE_BYTES + 10 {
            run.log("ü".repeat(MAX_LINE_BYTES));
        }
        run.finish(End::Error("x".into()));
        let events: Vec<_> = Arc::clone(&run).events().collect().await;
        let cut = events.iter().filter(|event| matches!(event, BuildEvent::Log { line } if line.contains("is cut")));
        assert_eq!(cut.count(), 1);
        assert!(events.len() <= MAX_LOG_BYTES / MAX_LINE_BYTES + 3);
    }
}
