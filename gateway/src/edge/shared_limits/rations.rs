//! Clients' rates over all gateways: permits come from the ledger some at a time, and are used up here without asking.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use dashmap::DashMap;

use super::ledger::{Ledger, LedgerError, Pace, Taken};
use crate::edge::limits::Client;

/// How long permits may lie unused: so long others miss them.
const KEEPS: Duration = Duration::from_secs(1);
/// For how long a client whose rate is used up is refused without asking again, at most.
const REFUSED: Duration = Duration::from_millis(100);
/// Most permits at a time, and the share of a second's that they are.
const MAX_LEASE: u32 = 100;
const LEASE_SHARE: u32 = 10;

/// One rate, and what of it lies here.
pub(super) struct Rations {
    /// What the ledger knows this rate by.
    name: &'static str,
    pace: Pace,
    lease: u32,
    clients: DashMap<Client, Arc<Ration>>,
}

struct Ration {
    /// One asks for all.
    asking: tokio::sync::Mutex<()>,
    lot: Mutex<Lot>,
}

/// Permits of one client.
#[derive(Clone, Copy, Debug)]
struct Lot {
    left: u32,
    /// Until when this holds.
    until: Instant,
    /// There are none before.
    none_before: Option<Instant>,
}

/// What a look at a lot says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Look {
    Used,
    Ask,
    Refused(Duration),
}

impl Lot {
    /// Uses up one. Pure.
    fn use_one(&mut self, now: Instant) -> Look {
        if now >= self.until {
            return Look::Ask;
        }
        if let Some(free) = self.none_before {
            return Look::Refused(free - now);
        }
        if self.left == 0 {
            return Look::Ask;
        }
        self.left -= 1;
        Look::Used
    }

    /// What is known after the ledger answered; one permit is used at once.
    fn after(taken: Taken, now: Instant) -> Self {
        match taken {
            Taken::Permits(permits) => Self { left: permits - 1, until: now + KEEPS, none_before: None },
            Taken::Wait(wait) => Self { left: 0, until: now + wait.min(REFUSED), none_before: Some(now + wait) },
        }
    }
}

impl Rations {
    /// A rate of `permits` in `period`, with bursts of `burst`.
    pub(super) fn new(name: &'static str, permits: u32, period: Duration, burst: u32) -> Self {
        let interval_us = period.as_secs_f64() * 1e6 / f64::from(permits);
        let a_second = (1e6 / interval_us) as u32;
        let lease = (a_second / LEASE_SHARE).clamp(1, MAX_LEASE);
        Self { name, pace: Pace { interval_us, burst }, lease, clients: DashMap::new() }
    }

    /// Uses a permit of `client`'s; `Err` says how long there is none. `may_ask` counts a question, or forbids it.
    pub(super) async fn take(
        &self,
        client: Client,
        ledger: &Ledger,
        may_ask: impl Fn() -> bool,
    ) -> Result<Result<(), Duration>, LedgerError> {
        let ration = self.of(client);
        let look = ration.lot().use_one(Instant::now());
        if let Some(settled) = look.settled() {
            return Ok(settled);
        }
        let _turn = ration.asking.lock().await;
        let look = ration.lot().use_one(Instant::now());
        if let Some(settled) = look.settled() {
            return Ok(settled);
        }
        if !may_ask() {
            return Err(LedgerError::Away);
        }
        let taken = ledger.take(&format!("{}:{client}", self.name), self.pace, self.lease).await?;
        *ration.lot() = Lot::after(taken, Instant::now());
        Ok(match taken {
            Taken::Permits(_) => Ok(()),
            Taken::Wait(wait) => Err(wait),
        })
    }

    fn of(&self, client: Client) -> Arc<Ration> {
        if let Some(ration) = self.clients.get(&client) {
            return Arc::clone(&ration);
        }
        let lot = Lot { left: 0, until: Instant::now(), none_before: None };
        let new = || Arc::new(Ration { asking: tokio::sync::Mutex::default(), lot: Mutex::new(lot) });
        Arc::clone(&self.clients.entry(client).or_insert_with(new))
    }

    /// Forgets clients that were silent.
    pub(super) fn sweep(&self, now: Instant) {
        self.clients.retain(|_, ration| Arc::strong_count(ration) > 1 || ration.lot().until > now);
        self.clients.shrink_to_fit();
    }
}

impl Look {
    fn settled(self) -> Option<Result<(), Duration>> {
        match self {
            Self::Used => Some(Ok(())),
            Self::Refused(wait) => Some(Err(wait)),
            Self::Ask => None,
        }
    }
}

impl Ration {
    fn lot(&self) -> MutexGuard<'_, Lot> {
        self.lot.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Looks at what `taken` left, at these milliseconds.
    fn check(taken: Taken, at_ms: &[u64], expected: &[Look]) {
        let start = Instant::now();
        let mut lot = Lot::after(taken, start);
        let looks: Vec<_> = at_ms.iter().map(|ms| lot.use_one(start + Duration::from_millis(*ms))).collect();
        assert_eq!(looks, expected, "{taken:?}");
    }

    #[test]
    fn permits_are_used_up_and_grow_old() {
        use Look::{Ask, Refused, Used};
        check(Taken::Permits(3), &[0, 1, 2], &[Used, Used, Ask]);
        check(Taken::Permits(3), &[0, 1000], &[Used, Ask]);
        check(Taken::Permits(1), &[0], &[Ask]);
        let left = |ms| Refused(Duration::from_millis(ms));
        check(Taken::Wait(Duration::from_millis(30)), &[0, 20, 30], &[left(30), left(10), Ask]);
        // The wait that is told is the whole one.
        check(Taken::Wait(Duration::from_secs(9)), &[0, 99, 100], &[left(9000), left(8901), Ask]);
    }

    #[test]
    fn leases_are_a_tenth_of_a_second() {
        let check = |permits, period, expected| {
            assert_eq!(
                Rations::new("", permits, Duration::from_secs(period), 1).lease,
                expected,
                "{permits}/{period} s"
            );
        };
        check(1000, 1, 100);
        check(100_000, 1, 100);
        check(50, 1, 5);
        check(5, 1, 1);
        check(30, 60, 1);
    }
}
