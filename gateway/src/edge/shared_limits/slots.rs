//! A function's concurrency over all gateways: each holds some of its slots by the ledger, and lets calls into those
//! without asking. What a gateway did not use for a moment it gives back.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use common::ids::FunctionId;
use dashmap::DashMap;

use super::ledger::{Ledger, LedgerError};

/// How often unused slots are given back.
pub(super) const GIVES_BACK: Duration = Duration::from_millis(200);
/// How long a call without a slot waits for others to give some back, before it asks once more.
const WAITS: Duration = Duration::from_millis(250);
/// How often slots that stay in use are asked for all the same, so that the ledger does not forget them.
const RENEWS: Duration = Duration::from_secs(10 * 60);
/// The share of a function's slots that are asked for beyond what is needed at once, and their number at most.
const STEP_SHARE: u32 = 10;
const MAX_STEP: u32 = 100;

/// What this gateway holds of one function's slots.
#[derive(Default)]
struct Held {
    slots: AtomicU32,
    /// How many of them calls are in.
    used: AtomicU32,
    /// Most of them at once since the last look.
    peak: AtomicU32,
    /// The concurrency that was last asked for.
    limit: AtomicU32,
    /// Until when nobody asks again, in milliseconds since `epoch`.
    refused_until: AtomicU64,
    /// When the ledger was last asked, in milliseconds since `epoch`.
    asked: AtomicU64,
    asking: tokio::sync::Mutex<()>,
}

/// A call's slot; given back when it is dropped.
pub(crate) struct Slot(Arc<Held>);

/// All that this gateway holds.
pub(super) struct Slots {
    functions: DashMap<FunctionId, Arc<Held>>,
    epoch: Instant,
}

impl Slots {
    pub(super) fn new() -> Self {
        Self { functions: DashMap::new(), epoch: Instant::now() }
    }

    /// A slot for a call of `function`, of which `limit` calls may be under way; `None` when all are taken. `may_ask`
    /// counts a question, or forbids it.
    pub(super) async fn take(
        &self,
        function: FunctionId,
        limit: u32,
        ledger: &Ledger,
        may_ask: impl Fn() -> bool,
    ) -> Result<Option<Slot>, LedgerError> {
        let held = self.of(function);
        if let Some(slot) = held.take() {
            return Ok(Some(slot));
        }
        let _turn = held.asking.lock().await;
        held.limit.store(limit, Ordering::Relaxed);
        for attempt in 0..2 {
            if let Some(slot) = held.take() {
                return Ok(Some(slot));
            }
            if self.now_ms() < held.refused_until.load(Ordering::Relaxed) {
                return Ok(None);
            }
            if attempt > 0 {
                tokio::time::sleep(WAITS).await;
            }
            if !may_ask() {
                return Err(LedgerError::Away);
            }
            let used = held.used.load(Ordering::Relaxed);
            let slots = ledger.hold(function, wanted(used.saturating_add(1), limit), limit).await?;
            held.asked.store(self.now_ms(), Ordering::Relaxed);
            held.slots.store(slots, Ordering::SeqCst);
        }
        let slot = held.take();
        if slot.is_none() {
            held.refused_until.store(self.now_ms() + millis(WAITS), Ordering::Relaxed);
        }
        Ok(slot)
    }

    /// Gives back what was not used since the last time, and forgets functions that hold nothing. Where somebody asks
    /// at this moment, nothing is unused.
    pub(super) async fn give_back(&self, ledger: &Ledger) -> Result<(), LedgerError> {
        let all: Vec<_> = self.functions.iter().map(|entry| (*entry.key(), Arc::clone(entry.value()))).collect();
        for (function, held) in all {
            let Ok(_turn) = held.asking.try_lock() else { continue };
            let used = held.used.load(Ordering::Relaxed);
            let peak = held.peak.swap(used, Ordering::Relaxed).max(used);
            let slots = held.slots.load(Ordering::Relaxed);
            let asked = held.asked.load(Ordering::Relaxed);
            if peak < slots || (slots > 0 && self.now_ms() - asked > millis(RENEWS)) {
                // From here on nobody takes what is given back; who has just taken of it keeps it.
                held.slots.store(peak, Ordering::SeqCst);
                let kept = peak.max(held.used.load(Ordering::SeqCst)).min(slots);
                let left = ledger.hold(function, kept, held.limit.load(Ordering::Relaxed)).await?;
                held.asked.store(self.now_ms(), Ordering::Relaxed);
                held.slots.store(left, Ordering::SeqCst);
            }
        }
        let idle = |held: &Held| held.slots.load(Ordering::Relaxed) == 0 && held.used.load(Ordering::Relaxed) == 0;
        self.functions.retain(|_, held| Arc::strong_count(held) > 1 || !idle(held));
        Ok(())
    }

    /// The ledger was away, and may have lost what stood in it: everything is asked for anew.
    pub(super) fn forget(&self) {
        self.functions.iter().for_each(|held| held.slots.store(0, Ordering::Relaxed));
    }

    fn of(&self, function: FunctionId) -> Arc<Held> {
        if let Some(held) = self.functions.get(&function) {
            return Arc::clone(&held);
        }
        Arc::clone(&self.functions.entry(function).or_default())
    }

    fn now_ms(&self) -> u64 {
        millis(self.epoch.elapsed())
    }
}

impl Held {
    /// One of the slots that are held, if one is free.
    fn take(self: &Arc<Self>) -> Option<Slot> {
        // In this order, as `give_back` has it the other way round: one of the two sees the other.
        let used = self.used.fetch_add(1, Ordering::SeqCst) + 1;
        if used > self.slots.load(Ordering::SeqCst) {
            self.used.fetch_sub(1, Ordering::AcqRel);
            return None;
        }
        self.peak.fetch_max(used, Ordering::Relaxed);
        Some(Slot(Arc::clone(self)))
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        self.0.used.fetch_sub(1, Ordering::AcqRel);
    }
}

/// How many slots are asked for when so many calls need one. Pure.
fn wanted(calls: u32, limit: u32) -> u32 {
    calls.saturating_add((limit / STEP_SHARE).min(MAX_STEP)).min(limit)
}

fn millis(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_asked_for() {
        let check = |calls, limit, expected| assert_eq!(wanted(calls, limit), expected, "{calls} of {limit}");
        check(1, 1, 1);
        check(1, 10, 2);
        check(10, 10, 10);
        check(1, 1000, 101);
        check(1, 5000, 101);
        check(990, 1000, 1000);
    }

    #[test]
    fn who_finds_none_takes_none_away() {
        let held = Arc::new(Held { slots: AtomicU32::new(2), ..Held::default() });
        let (one, two) = (held.take().unwrap(), held.take().unwrap());
        assert!(held.take().is_none() && held.take().is_none());
        drop(one);
        assert!(held.take().is_some());
        drop(two);
        assert_eq!((held.used.load(Ordering::Relaxed), held.peak.load(Ordering::Relaxed)), (0, 2));
    }
}
