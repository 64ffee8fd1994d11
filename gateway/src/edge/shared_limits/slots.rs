//! A function's concurrency over all gateways: each holds some of its slots by the ledger, and lets calls into those
//! without asking. What a gateway did not use for a moment it gives back.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use common::ids::FunctionId;
use dashmap::DashMap;

use super::ledger::{Ledger, LedgerError};
use crate::edge::limits::Admission;

/// How often unused slots are given back.
pub(super) const GIVES_BACK: Duration = Duration::from_millis(200);
/// How long a call without a slot waits for others to give some back, before it asks once more.
const WAITS: Duration = Duration::from_millis(250);
/// The share of a function's slots that are asked for beyond what is needed at once, and their number at most.
const STEP_SHARE: u32 = 10;
const MAX_STEP: u32 = 100;

/// What this gateway holds of one function's slots.
#[derive(Default)]
pub(super) struct Held {
    slots: AtomicU32,
    /// Most calls at once since the last look.
    peak: AtomicU32,
    /// The concurrency that was last asked for.
    limit: AtomicU32,
    /// Until when nobody asks again, in milliseconds since `epoch`.
    refused_until: AtomicU64,
    asking: tokio::sync::Mutex<()>,
}

/// All that this gateway holds.
pub(super) struct Slots {
    functions: DashMap<FunctionId, (Arc<Held>, Arc<Admission>)>,
    epoch: Instant,
}

impl Slots {
    pub(super) fn new() -> Self {
        Self { functions: DashMap::new(), epoch: Instant::now() }
    }

    /// Whether a call that `admission` counts already has a slot. `asked` is told of each question.
    pub(super) async fn hold(
        &self,
        function: FunctionId,
        admission: &Arc<Admission>,
        limit: u32,
        ledger: &Ledger,
        asked: impl Fn(),
    ) -> Result<bool, LedgerError> {
        let held = self.of(function, admission);
        if held.has_room(admission) {
            return Ok(true);
        }
        let _turn = held.asking.lock().await;
        held.limit.store(limit, Ordering::Relaxed);
        for attempt in 0..2 {
            if held.has_room(admission) {
                return Ok(true);
            }
            if self.now_ms() < held.refused_until.load(Ordering::Relaxed) {
                return Ok(false);
            }
            if attempt > 0 {
                tokio::time::sleep(WAITS).await;
            }
            asked();
            let slots = ledger.hold(function, wanted(admission.calls(), limit), limit).await?;
            held.slots.store(slots, Ordering::Relaxed);
        }
        let has_room = held.has_room(admission);
        if !has_room {
            let until = self.now_ms() + u64::try_from(WAITS.as_millis()).unwrap_or(u64::MAX);
            held.refused_until.store(until, Ordering::Relaxed);
        }
        Ok(has_room)
    }

    /// Gives back what was not used since the last time, and forgets functions that hold nothing.
    pub(super) async fn give_back(&self, ledger: &Ledger) -> Result<(), LedgerError> {
        let all: Vec<_> = self.functions.iter().map(|entry| (*entry.key(), entry.value().clone())).collect();
        for (function, (held, admission)) in all {
            let _turn = held.asking.lock().await;
            let slots = held.slots.load(Ordering::Relaxed);
            let used = held.peak.swap(admission.calls(), Ordering::Relaxed).max(admission.calls());
            if used < slots {
                let left = ledger.hold(function, used, held.limit.load(Ordering::Relaxed)).await?;
                held.slots.store(left, Ordering::Relaxed);
            }
        }
        let idle =
            |held: &Held, admission: &Admission| held.slots.load(Ordering::Relaxed) == 0 && admission.calls() == 0;
        self.functions.retain(|_, (held, admission)| Arc::strong_count(held) > 1 || !idle(held, admission));
        Ok(())
    }

    /// The ledger was away, and may have lost what stood in it: everything is asked for anew.
    pub(super) fn forget(&self) {
        self.functions.iter().for_each(|entry| entry.value().0.slots.store(0, Ordering::Relaxed));
    }

    fn of(&self, function: FunctionId, admission: &Arc<Admission>) -> Arc<Held> {
        if let Some(entry) = self.functions.get(&function) {
            return Arc::clone(&entry.0);
        }
        let entry = self.functions.entry(function).or_insert_with(|| (Arc::default(), Arc::clone(admission)));
        Arc::clone(&entry.0)
    }

    fn now_ms(&self) -> u64 {
        u64::try_from(self.epoch.elapsed().as_millis()).unwrap_or(u64::MAX)
    }
}

impl Held {
    /// Whether all calls under way have a slot.
    fn has_room(&self, admission: &Admission) -> bool {
        let calls = admission.calls();
        self.peak.fetch_max(calls, Ordering::Relaxed);
        calls <= self.slots.load(Ordering::Relaxed)
    }
}

/// How many slots are asked for when so many calls are under way. Pure.
fn wanted(calls: u32, limit: u32) -> u32 {
    calls.saturating_add((limit / STEP_SHARE).min(MAX_STEP)).min(limit)
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
}
