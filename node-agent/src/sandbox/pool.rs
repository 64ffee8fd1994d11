//! Which sandboxes there are, who waits for one, and what is to be done about it. Pure: it knows neither containers
//! nor clocks, and whoever drives it does what it says.
//!
//! A sandbox is starting, idle, busy or leaving. Its memory counts from the moment its start is planned until it has
//! left for good.

use std::collections::{HashMap, VecDeque};
use std::time::{Duration, Instant};

use common::ids::DeploymentId;

use super::STARTS_AT_ONCE;

mod room;

pub(crate) use room::Refill;

/// After a start that failed, a deployment that has sandboxes gets no other for so long.
const START_PAUSE: Duration = Duration::from_secs(1);

/// A call that waits.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct Ticket(u64);

/// All sandboxes of a node.
#[derive(Debug)]
pub(crate) struct Pool<S> {
    total_mb: u64,
    used_mb: u64,
    leaving_mb: u64,
    queue: usize,
    waiting: usize,
    last_ticket: u64,
    /// Nothing is kept any more.
    closed: bool,
    deployments: HashMap<DeploymentId, Share<S>>,
    /// How many sandboxes a deployment is to have, called or not; only where that is not 0.
    kept: HashMap<DeploymentId, usize>,
}

/// The sandboxes of one deployment.
#[derive(Debug)]
struct Share<S> {
    memory_mb: u64,
    concurrency: usize,
    /// The least recently used first.
    idle: VecDeque<(Instant, S)>,
    busy: usize,
    starting: usize,
    waiters: VecDeque<Ticket>,
    /// About what one start takes.
    start: Duration,
    /// When a start failed, if it was the last that ended.
    failed: Option<Instant>,
    /// It gets no more calls, so what becomes idle leaves.
    retired: bool,
}

/// Why a call may not even wait.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum NoPlace {
    /// Too many wait.
    QueueFull,
    /// All the memory of this node is less than one such sandbox takes.
    TooLarge,
}

/// What is to be done now.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Plan<S> {
    /// A sandbox to start for each of these.
    pub(crate) starts: Vec<DeploymentId>,
    /// To remove, with the memory to give back when it is gone.
    pub(crate) removals: Vec<(S, u64)>,
}

/// What becomes of a sandbox that nobody uses any more.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Next<S> {
    /// This call waits for it; it stays busy.
    Grant(Ticket, S),
    /// It is idle now.
    Kept,
    /// To remove, with the memory to give back when it is gone.
    Remove(S, u64),
}

impl<S> Pool<S> {
    pub(crate) fn new(total_mb: u64, queue: usize) -> Self {
        Self {
            total_mb,
            used_mb: 0,
            leaving_mb: 0,
            queue,
            waiting: 0,
            last_ticket: 0,
            closed: false,
            deployments: HashMap::new(),
            kept: HashMap::new(),
        }
    }

    /// The idle sandbox that was used last, which is busy from now on.
    pub(crate) fn take(&mut self, deployment: DeploymentId) -> Option<S> {
        let share = self.deployments.get_mut(&deployment)?;
        let (_, sandbox) = share.idle.pop_back()?;
        share.busy += 1;
        share.retired = false;
        Some(sandbox)
    }

    /// Lets a call wait. Ask [`Pool::plan`] then.
    pub(crate) fn enqueue(
        &mut self,
        deployment: DeploymentId,
        memory_mb: u64,
        concurrency: usize,
    ) -> Result<Ticket, NoPlace> {
        if memory_mb > self.total_mb {
            return Err(NoPlace::TooLarge);
        }
        if self.waiting >= self.queue {
            return Err(NoPlace::QueueFull);
        }
        self.waiting += 1;
        self.last_ticket += 1;
        let ticket = Ticket(self.last_ticket);
        self.share(deployment, memory_mb, concurrency).waiters.push_back(ticket);
        Ok(ticket)
    }

    /// The deployment's share, which gets calls from now on.
    fn share(&mut self, deployment: DeploymentId, memory_mb: u64, concurrency: usize) -> &mut Share<S> {
        let share = self.deployments.entry(deployment).or_insert_with(|| Share::new(memory_mb, concurrency));
        share.retired = false;
        share
    }

    /// A call waits no longer. One that got its sandbox meanwhile is fine.
    pub(crate) fn leave(&mut self, deployment: DeploymentId, ticket: Ticket) {
        if let Some(share) = self.deployments.get_mut(&deployment) {
            let before = share.waiters.len();
            share.waiters.retain(|waiter| *waiter != ticket);
            self.waiting -= before - share.waiters.len();
        }
        self.forget(deployment);
    }

    /// A start that was planned succeeded, and took so long.
    pub(crate) fn started(&mut self, deployment: DeploymentId, sandbox: S, took: Duration, now: Instant) -> Next<S> {
        if let Some(share) = self.deployments.get_mut(&deployment) {
            share.start = if share.start.is_zero() { took } else { (share.start + took) / 2 };
            share.failed = None;
            share.starting -= 1;
            share.busy += 1;
        }
        self.give_back(deployment, sandbox, now)
    }

    /// A start that was planned failed: these waited for it, and wait no longer. Where others are busy or start, calls wait
    /// for those: an Engine that is away fails no call that a sandbox becomes free for.
    pub(crate) fn start_failed(&mut self, deployment: DeploymentId, now: Instant) -> Vec<Ticket> {
        let Some(share) = self.deployments.get_mut(&deployment) else { return Vec::new() };
        share.starting -= 1;
        share.failed = Some(now);
        self.used_mb -= share.memory_mb;
        if share.live() + share.starting > 0 {
            return Vec::new();
        }
        self.waiting -= share.waiters.len();
        let waiters = std::mem::take(&mut share.waiters).into();
        self.forget(deployment);
        waiters
    }

    /// A busy sandbox is free again.
    pub(crate) fn give_back(&mut self, deployment: DeploymentId, sandbox: S, now: Instant) -> Next<S> {
        let (others_starve, closed) = (self.others_starve(deployment), self.closed);
        let Some(share) = self.deployments.get_mut(&deployment) else { return Next::Remove(sandbox, 0) };
        // Who has several gives one up for who has none.
        let give_up = others_starve && share.busy + share.idle.len() > 1;
        if !give_up && !closed {
            if let Some(ticket) = share.waiters.pop_front() {
                self.waiting -= 1;
                return Next::Grant(ticket, sandbox);
            }
            if !share.retired {
                share.busy -= 1;
                share.idle.push_back((now, sandbox));
                return Next::Kept;
            }
        }
        Next::Remove(sandbox, self.broken(deployment))
    }

    /// A busy sandbox is of no more use; tells the memory to give back when it is gone.
    pub(crate) fn broken(&mut self, deployment: DeploymentId) -> u64 {
        let Some(share) = self.deployments.get_mut(&deployment) else { return 0 };
        let memory_mb = share.memory_mb;
        share.busy -= 1;
        self.leaving_mb += memory_mb;
        self.forget(deployment);
        memory_mb
    }

    /// A sandbox that was to be removed is gone.
    pub(crate) fn removed(&mut self, memory_mb: u64) {
        self.leaving_mb -= memory_mb;
        self.used_mb -= memory_mb;
    }

    /// The deployment gets no more calls: its idle sandboxes leave now, the others when they are free.
    pub(crate) fn retire(&mut self, deployment: DeploymentId) -> Vec<(S, u64)> {
        self.kept.remove(&deployment);
        let Some(share) = self.deployments.get_mut(&deployment) else { return Vec::new() };
        share.retired = true;
        let idle = std::mem::take(&mut share.idle).into_iter().map(|(_, sandbox)| sandbox).collect();
        self.part_with(deployment, idle)
    }

    /// Takes out the idle sandboxes that `unwanted` says so of, by the time since when they are idle and by whether they
    /// are to be kept all the same.
    pub(crate) fn expire(&mut self, unwanted: impl Fn(Instant, &S, bool) -> bool) -> Vec<(S, u64)> {
        let mut removals = Vec::new();
        for deployment in self.deployments.keys().copied().collect::<Vec<_>>() {
            let to_keep = self.kept(deployment);
            let Some(share) = self.deployments.get_mut(&deployment) else { continue };
            let spare = share.spare(to_keep);
            let (mut gone, mut stays) = (Vec::new(), VecDeque::new());
            for (place, (since, sandbox)) in std::mem::take(&mut share.idle).into_iter().enumerate() {
                if unwanted(since, &sandbox, place >= spare) {
                    gone.push(sandbox);
                } else {
                    stays.push_back((since, sandbox));
                }
            }
            share.idle = stays;
            removals.extend(self.part_with(deployment, gone));
        }
        removals
    }

    /// Keeps nothing from now on: what is idle leaves, and what is busy or starting leaves as it becomes free.
    pub(crate) fn close(&mut self) -> Vec<(S, u64)> {
        self.closed = true;
        self.expire(|_, _, _| true)
    }

    /// Whether calls wait, so that [`Pool::plan`] may have something to say.
    pub(crate) fn has_waiters(&self) -> bool {
        self.waiting > 0
    }

    /// Whether no sandbox takes any memory.
    pub(crate) fn is_empty(&self) -> bool {
        self.used_mb == 0
    }

    /// What to do for those who wait.
    pub(crate) fn plan(&mut self, now: Instant) -> Plan<S> {
        let mut plan = Plan { starts: Vec::new(), removals: Vec::new() };
        if self.waiting == 0 || self.closed {
            return plan;
        }
        // Who has no sandbox at all is served first, then who has waited longest.
        let mut hungry: Vec<_> = self
            .deployments
            .iter()
            .filter_map(|(id, share)| Some((share.live() + share.starting > 0, *share.waiters.front()?, *id)))
            .collect();
        hungry.sort_unstable();
        for (.., deployment) in hungry {
            let Some(share) = self.deployments.get(&deployment) else { continue };
            let memory_mb = share.memory_mb;
            let wanted = if share.rests(now) { 0 } else { share.wanted() };
            for _ in 0..wanted {
                if self.used_mb + memory_mb > self.total_mb {
                    let freed = self.make_room(deployment, memory_mb, now, true);
                    plan.removals.extend(freed);
                    break;
                }
                self.used_mb += memory_mb;
                if let Some(share) = self.deployments.get_mut(&deployment) {
                    share.starting += 1;
                }
                plan.starts.push(deployment);
            }
        }
        plan
    }

    /// Calls under way, deployments with a sandbox that is idle or busy, and the memory in use and of that the idle, in
    /// MiB.
    pub(crate) fn counts(&self) -> (usize, Vec<DeploymentId>, [u64; 2]) {
        let busy = self.deployments.values().map(|share| share.busy).sum();
        let warm = self.deployments.iter().filter(|(_, share)| share.live() > 0).map(|(id, _)| *id).collect();
        let idle_mb = self.deployments.values().map(|share| share.memory_mb * share.idle.len() as u64).sum();
        (busy, warm, [self.used_mb, idle_mb])
    }

    /// The deployments with several sandboxes that are idle or busy, and how many.
    pub(crate) fn several(&self) -> impl Iterator<Item = (DeploymentId, usize)> {
        self.deployments.iter().map(|(id, share)| (*id, share.live())).filter(|(_, live)| *live > 1)
    }

    /// Whether the deployment has a sandbox, or a call that waits for one.
    pub(crate) fn knows(&self, deployment: DeploymentId) -> bool {
        self.deployments.contains_key(&deployment)
    }

    /// How many of the deployment's sandboxes are idle or busy.
    pub(crate) fn live(&self, deployment: DeploymentId) -> usize {
        self.deployments.get(&deployment).map_or(0, Share::live)
    }

    /// How many sandboxes are starting, idle and busy.
    pub(crate) fn states(&self) -> [usize; 3] {
        let of = |count: fn(&Share<S>) -> usize| self.deployments.values().map(count).sum();
        [of(|share| share.starting), of(|share| share.idle.len()), of(|share| share.busy)]
    }

    /// Counts sandboxes that were just taken out of the idle ones as leaving.
    fn part_with(&mut self, deployment: DeploymentId, sandboxes: Vec<S>) -> Vec<(S, u64)> {
        let memory_mb = self.deployments.get(&deployment).map_or(0, |share| share.memory_mb);
        self.leaving_mb += memory_mb * sandboxes.len() as u64;
        self.forget(deployment);
        sandboxes.into_iter().map(|sandbox| (sandbox, memory_mb)).collect()
    }

    /// Drops the share of a deployment that has nothing.
    fn forget(&mut self, deployment: DeploymentId) {
        let empty = |share: &Share<S>| share.live() + share.starting + share.waiters.len() == 0;
        if self.deployments.get(&deployment).is_some_and(empty) {
            self.deployments.remove(&deployment);
        }
    }
}

impl<S> Share<S> {
    fn new(memory_mb: u64, concurrency: usize) -> Self {
        Self {
            memory_mb,
            concurrency,
            idle: VecDeque::new(),
            busy: 0,
            starting: 0,
            waiters: VecDeque::new(),
            start: Duration::ZERO,
            failed: None,
            retired: false,
        }
    }

    /// How many of the idle ones, from the least recently used on, are more than are to be kept.
    fn spare(&self, kept: usize) -> usize {
        self.live().saturating_sub(kept).min(self.idle.len())
    }

    fn live(&self) -> usize {
        self.idle.len() + self.busy
    }

    /// Whether it is too soon for a start after one that failed. Who has no sandbox at all does not wait.
    fn rests(&self, now: Instant) -> bool {
        self.live() > 0 && self.failed.is_some_and(|failed| !expired(failed, now, START_PAUSE))
    }

    /// How many sandboxes to start: one for the first calls, which share it; then, while calls still wait, as many
    /// again as there are; never more than wait, nor than the function's concurrency, nor than start at once: the others
    /// would only stand in line before another function's first start.
    fn wanted(&self) -> usize {
        let unserved = self.waiters.len().saturating_sub(self.starting);
        let doubling = self.live().clamp(1, STARTS_AT_ONCE).saturating_sub(self.starting);
        let allowed = self.concurrency.saturating_sub(self.live() + self.starting);
        unserved.min(doubling).min(allowed)
    }
}

/// Whether something that is idle since `since` has been so for `limit`.
pub(crate) fn expired(since: Instant, now: Instant, limit: Duration) -> bool {
    now.saturating_duration_since(since) >= limit
}

#[cfg(test)]
#[path = "pool_tests.rs"]
mod tests;
