//! Frost: the processes of sandboxes that rest are frozen, so that nothing in them takes a processor's time between
//! calls, and thawed by the first byte of a call. Neither goes by way of the Engine: a write to the group's freezer
//! takes a tenth of a millisecond, `docker pause` fifty.
//!
//! Whoever uses a sandbox says when it works and when it rests; this module alone freezes. What is frozen cannot act,
//! and under some versions of runc and of control groups cannot even die, so dropping [`Warmth`] thaws for good.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::{Duration, Instant};

use prometheus::IntCounter;

use super::Sandboxes;
use super::cgroup::Freezer;

/// How often it is looked for what to freeze: as often as the delay, within these bounds.
const ROUND: (Duration, Duration) = (Duration::from_millis(10), Duration::from_millis(250));
/// Most processes of a sandbox whose server may be frozen: the runner and the server. Where there are more, one may
/// watch over the others by the clock, and would take those that stood still for dead: gunicorn does after 30 s, and
/// kills the worker that has the call which thawed it.
const MOST_PROCESSES: usize = 2;

/// Which sandboxes may be frozen, and when.
#[derive(Debug)]
pub(crate) struct Frost {
    /// How long one rests before it is frozen; `None`: never.
    after: Option<Duration>,
    known: Mutex<Vec<Weak<Ice>>>,
    /// That it cannot be done was said.
    said: AtomicBool,
}

/// A sandbox as frost sees it.
#[derive(Debug)]
pub(crate) struct Ice {
    /// `None` where it can never be frozen.
    freezer: Option<Freezer>,
    phase: Mutex<Phase>,
}

/// A sandbox's own hold on its frost. Dropping it thaws the sandbox, which is not frozen again.
#[derive(Debug)]
pub(crate) struct Warmth(Arc<Ice>);

/// What the processes of a sandbox do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    /// They work, or are about to.
    Works,
    /// They wait for the next call, since then.
    Rests(Instant, Keeps),
    /// They stand still.
    Frozen,
    /// They are about to end.
    Ends,
}

/// What waits in a sandbox that rests.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Keeps {
    /// Processes of ours, or such as do nothing before their call.
    Nothing,
    /// A function's server.
    Server,
}

impl Phase {
    /// What it is from `now` on, in a sandbox of so many `processes`.
    fn next(self, now: Instant, after: Duration, processes: impl FnOnce() -> usize) -> Self {
        match self {
            Self::Rests(since, _) if now.saturating_duration_since(since) < after => self,
            Self::Rests(_, Keeps::Nothing) => Self::Frozen,
            Self::Rests(_, Keeps::Server) if processes() <= MOST_PROCESSES => Self::Frozen,
            // It is looked at again later.
            Self::Rests(_, keeps) => Self::Rests(now, keeps),
            Self::Works | Self::Frozen | Self::Ends => self,
        }
    }
}

impl Frost {
    /// Freezes what rests for so many milliseconds; 0: nothing ever.
    pub(crate) fn new(after_ms: u64) -> Self {
        let after = (after_ms > 0).then(|| Duration::from_millis(after_ms));
        Self { after, known: Mutex::default(), said: AtomicBool::new(false) }
    }

    /// A sandbox that works; `pid` is one of its processes.
    pub(crate) fn warmth(&self, pid: u32) -> Warmth {
        let freezer = self.after.and_then(|_| match Freezer::of(pid) {
            Ok(freezer) => Some(freezer),
            Err(error) => {
                if !self.said.swap(true, Ordering::Relaxed) {
                    tracing::warn!(%error, "idle sandboxes are not frozen: this agent may not use their freezer");
                }
                None
            }
        });
        let ice = Arc::new(Ice { freezer, phase: Mutex::new(Phase::Works) });
        if ice.freezer.is_some() {
            self.lock().push(Arc::downgrade(&ice));
        }
        Warmth(ice)
    }

    fn lock(&self) -> MutexGuard<'_, Vec<Weak<Ice>>> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// All that there are, without those that are gone.
    fn all(&self) -> Vec<Arc<Ice>> {
        let mut all = Vec::new();
        self.lock().retain(|ice| match ice.upgrade() {
            Some(ice) => {
                all.push(ice);
                true
            }
            None => false,
        });
        all
    }

    /// How many are frozen.
    pub(crate) fn frozen(&self) -> usize {
        self.all().iter().filter(|ice| *ice.lock() == Phase::Frozen).count()
    }
}

impl Ice {
    fn lock(&self) -> MutexGuard<'_, Phase> {
        self.phase.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// It waits for its next call from now on, which may be long.
    pub(crate) fn rest(&self, keeps: Keeps) {
        let mut phase = self.lock();
        if *phase == Phase::Works {
            *phase = Phase::Rests(Instant::now(), keeps);
        }
    }

    /// It has something to do. When this is done, its processes run.
    pub(crate) fn wake(&self) {
        self.become_(Phase::Works);
    }

    fn become_(&self, next: Phase) {
        let mut phase = self.lock();
        if *phase == Phase::Ends {
            return;
        }
        if let (Phase::Frozen, Some(freezer)) = (*phase, &self.freezer) {
            told(freezer.thaw());
        }
        *phase = next;
    }

    /// Freezes it if it rests for long enough; tells whether it did.
    fn pass(&self, now: Instant, after: Duration) -> bool {
        let Some(freezer) = &self.freezer else { return false };
        let mut phase = self.lock();
        let next = phase.next(now, after, || freezer.processes());
        let freezes = next == Phase::Frozen && *phase != Phase::Frozen;
        if freezes {
            told(freezer.freeze());
        }
        *phase = next;
        freezes
    }
}

fn told(done: std::io::Result<()>) {
    if let Err(error) = done {
        // Most often the sandbox ended by itself.
        tracing::debug!(%error, "a sandbox's freezer could not be used");
    }
}

impl Warmth {
    /// The frost of this sandbox, for those who know when it rests.
    pub(crate) fn ice(&self) -> &Arc<Ice> {
        &self.0
    }
}

impl Drop for Warmth {
    fn drop(&mut self) {
        self.0.become_(Phase::Ends);
    }
}

impl Sandboxes {
    /// Freezes what rests, until the node closes.
    pub(super) async fn keep_frost(self: Arc<Self>, freezes: IntCounter) {
        let Some(after) = self.site.frost.after else { return };
        let mut round = tokio::time::interval(after.clamp(ROUND.0, ROUND.1));
        round.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                _ = round.tick() => {}
                () = self.stop.cancelled() => return,
            }
            for ice in self.site.frost.all() {
                if ice.pass(Instant::now(), after) {
                    freezes.inc();
                    // A freeze takes a tenth of a millisecond, and calls wait for this thread.
                    tokio::task::yield_now().await;
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_frozen() {
        let (start, after) = (Instant::now(), Duration::from_secs(1));
        let check = |phase: Phase, seconds: f64, processes: usize, expected: fn(Phase, Instant) -> Phase| {
            let now = start + Duration::from_secs_f64(seconds);
            assert_eq!(phase.next(now, after, || processes), expected(phase, now), "{phase:?} {seconds} {processes}");
        };
        let stays = |phase: Phase, _| phase;
        check(Phase::Works, 1000.0, 2, stays);
        check(Phase::Ends, 1000.0, 2, stays);
        check(Phase::Frozen, 1000.0, 2, stays);
        let [plain, server] = [Keeps::Nothing, Keeps::Server].map(|keeps| Phase::Rests(start, keeps));
        check(plain, 0.9, 2, stays);
        check(plain, 1.0, 9, |_, _| Phase::Frozen);
        check(server, 0.9, 2, stays);
        check(server, 1.0, 2, |_, _| Phase::Frozen);
        check(server, 1.0, 3, |_, now| Phase::Rests(now, Keeps::Server));
    }

    #[test]
    fn what_works_does_not_rest_twice_and_what_ends_stays_so() {
        let warmth = Frost::new(0).warmth(std::process::id());
        let ice = Arc::clone(warmth.ice());
        ice.rest(Keeps::Nothing);
        let first = *ice.lock();
        ice.rest(Keeps::Server);
        assert_eq!(*ice.lock(), first);
        ice.wake();
        assert_eq!(*ice.lock(), Phase::Works);
        drop(warmth);
        ice.rest(Keeps::Nothing);
        ice.wake();
        assert_eq!(*ice.lock(), Phase::Ends);
    }
}
