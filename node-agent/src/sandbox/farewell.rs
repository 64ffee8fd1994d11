//! Why a deployment has to have a sandbox started: how it parted with its last one. Pure.

use std::collections::BTreeMap;

use chrono::{DateTime, SubsecRound as _, Utc};
use common::ids::DeploymentId;
use common::phases::ColdCause;

/// Most deployments whose last parting is kept; beyond it, the oldest version's goes.
const MAX_KEPT: usize = 10_000;

/// How deployments parted with their last sandboxes, since the agent started.
#[derive(Debug)]
pub(crate) struct Farewells {
    since: DateTime<Utc>,
    last: BTreeMap<DeploymentId, ColdCause>,
    /// Something was dropped for want of room: who is not in `last` may have been there.
    forgetful: bool,
}

impl Farewells {
    /// None yet, of an agent that starts now.
    pub(crate) fn new(since: DateTime<Utc>) -> Self {
        // To the millisecond, as ids have it.
        Self { since: since.trunc_subsecs(3), last: BTreeMap::new(), forgetful: false }
    }

    /// Keeps why `deployment` parted with a sandbox. What was kept of an earlier one goes.
    pub(crate) fn note(&mut self, deployment: DeploymentId, why: ColdCause) {
        self.last.insert(deployment, why);
        if self.last.len() > MAX_KEPT {
            self.last.pop_first();
            self.forgetful = true;
        }
    }

    /// Why a sandbox is started for `deployment`, which has `live` others; `None` when that is not known.
    pub(crate) fn cause(&self, deployment: DeploymentId, live: usize) -> Option<ColdCause> {
        if live > 0 {
            return Some(ColdCause::AllBusy);
        }
        match self.last.get(&deployment) {
            Some(why) => Some(*why),
            None if self.forgetful => None,
            None if deployment.made_at()? < self.since => Some(ColdCause::AgentStarted),
            None => Some(ColdCause::FirstCall),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn causes() {
        let check = |life: Duration, noted: &[ColdCause], live, expected| {
            let deployment = DeploymentId::new();
            let mut farewells = Farewells::new(deployment.made_at().unwrap() - life);
            noted.iter().for_each(|why| farewells.note(deployment, *why));
            farewells.note(DeploymentId::new(), ColdCause::Retired);
            assert_eq!(farewells.cause(deployment, live), Some(expected), "{noted:?} {live}");
        };
        let old = Duration::from_secs(60);
        check(old, &[], 0, ColdCause::FirstCall);
        check(old, &[], 1, ColdCause::AllBusy);
        check(old, &[ColdCause::Idle], 0, ColdCause::Idle);
        check(old, &[ColdCause::Idle], 2, ColdCause::AllBusy);
        check(old, &[ColdCause::Idle, ColdCause::Memory], 0, ColdCause::Memory);
        check(old, &[ColdCause::Memory, ColdCause::Died], 0, ColdCause::Died);
    }

    #[test]
    fn an_agent_younger_than_the_version_does_not_know_its_first_call() {
        let deployment = DeploymentId::new();
        let made = deployment.made_at().unwrap();
        let cause = |since| Farewells::new(since).cause(deployment, 0);
        assert_eq!(cause(made + Duration::from_millis(1)), Some(ColdCause::AgentStarted));
        assert_eq!(cause(made), Some(ColdCause::FirstCall));
        // An id that says no time.
        assert_eq!(Farewells::new(made).cause(uuid::Uuid::nil().into(), 0), None);
    }

    #[test]
    fn what_is_forgotten_is_not_made_up() {
        let mut farewells = Farewells::new(DateTime::UNIX_EPOCH);
        let oldest = DeploymentId::new();
        farewells.note(oldest, ColdCause::Idle);
        let others: Vec<_> = (0..MAX_KEPT).map(|_| DeploymentId::new()).collect();
        others.iter().for_each(|other| farewells.note(*other, ColdCause::Memory));
        assert_eq!((farewells.cause(oldest, 0), farewells.cause(oldest, 1)), (None, Some(ColdCause::AllBusy)));
        assert_eq!(farewells.cause(others[0], 0), Some(ColdCause::Memory));
        assert_eq!(farewells.cause(DeploymentId::new(), 0), None);
    }
}
