//! Who gives way to whom: which idle sandboxes make room for calls, and which are kept, and started, whether or not
//! anybody calls.

use std::time::Instant;

use common::ids::DeploymentId;

use super::super::worth::Worth;
use super::Pool;

/// What becomes of a sandbox that is to be kept and is not there.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Refill<S> {
    /// There are as many as are to be.
    Full,
    /// One is to be started.
    Start,
    /// There is no memory for one; these are to be removed, and then there may be.
    NoRoom(Vec<(S, u64)>),
}

impl<S> Pool<S> {
    /// Keeps so many sandboxes of a deployment from now on, whether or not anybody calls.
    pub(crate) fn keep(&mut self, deployment: DeploymentId, count: usize) {
        match count {
            0 => self.kept.remove(&deployment),
            _ => self.kept.insert(deployment, count),
        };
    }

    /// How many sandboxes of a deployment are to be kept.
    pub(crate) fn kept(&self, deployment: DeploymentId) -> usize {
        self.kept.get(&deployment).copied().unwrap_or(0)
    }

    /// Whether a deployment has fewer sandboxes than are to be kept.
    pub(crate) fn is_short(&self, deployment: DeploymentId) -> bool {
        let there = self.deployments.get(&deployment).map_or(0, |share| share.live() + share.starting);
        !self.closed && there < self.kept(deployment)
    }

    /// Plans a start for a deployment that is short. Nobody who waits for a call gives way to it, nor does what is
    /// kept of others.
    pub(crate) fn refill(
        &mut self,
        deployment: DeploymentId,
        memory_mb: u64,
        concurrency: usize,
        now: Instant,
    ) -> Refill<S> {
        if !self.is_short(deployment) {
            return Refill::Full;
        }
        if self.others_starve(deployment) {
            return Refill::NoRoom(Vec::new());
        }
        if self.used_mb + memory_mb > self.total_mb {
            return Refill::NoRoom(self.make_room(deployment, memory_mb, now, false));
        }
        self.used_mb += memory_mb;
        self.share(deployment, memory_mb, concurrency).starting += 1;
        Refill::Start
    }

    /// Whether calls of another deployment wait, which has no sandbox and, for want of memory, gets none.
    pub(crate) fn others_starve(&self, deployment: DeploymentId) -> bool {
        let free_mb = (self.total_mb + self.leaving_mb).saturating_sub(self.used_mb);
        self.waiting > 0
            && self.deployments.iter().any(|(other, share)| {
                *other != deployment
                    && !share.waiters.is_empty()
                    && share.live() + share.starting == 0
                    && share.memory_mb > free_mb
            })
    }

    /// Evicts idle sandboxes of others, the least valuable first, so that `memory_mb` fit; none if even all of them were
    /// not enough, for then nobody would gain. What is to be kept goes last, and only `for_a_call`.
    pub(super) fn make_room(
        &mut self,
        deployment: DeploymentId,
        memory_mb: u64,
        now: Instant,
        for_a_call: bool,
    ) -> Vec<(S, u64)> {
        let missing = (self.used_mb - self.leaving_mb + memory_mb).saturating_sub(self.total_mb);
        let mut idle = Vec::new();
        for (other, share) in self.deployments.iter().filter(|(other, _)| **other != deployment) {
            let spare = share.spare(self.kept(*other));
            for (place, (since, _)) in share.idle.iter().enumerate().take(if for_a_call { usize::MAX } else { spare }) {
                let idle_for = now.saturating_duration_since(*since);
                let worth = Worth::new(idle_for, share.start, share.memory_mb, place >= spare);
                idle.push((worth, *other, share.memory_mb));
            }
        }
        // Of one deployment, the least recently used stays first.
        idle.sort_by(|(one, ..), (other, ..)| one.order(other));
        let mut freed_mb = 0;
        let enough = idle.iter().take_while(|(.., memory_mb)| {
            let more = freed_mb < missing;
            freed_mb += if more { memory_mb } else { &0 };
            more
        });
        let victims: Vec<_> = enough.map(|(_, other, _)| *other).collect();
        if freed_mb < missing {
            return Vec::new();
        }
        let mut removals = Vec::new();
        for victim in victims {
            let oldest = self.deployments.get_mut(&victim).and_then(|share| share.idle.pop_front());
            removals.extend(self.part_with(victim, oldest.into_iter().map(|(_, sandbox)| sandbox).collect()));
        }
        removals
    }
}
