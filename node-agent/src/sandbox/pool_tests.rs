//! The pool's decisions, as data: sandboxes here are numbers.

use super::*;

const MB: u64 = 100;

struct Bench {
    pool: Pool<u32>,
    now: Instant,
    next: u32,
}

impl Bench {
    fn new(total_mb: u64) -> Self {
        Self { pool: Pool::new(total_mb, 100), now: Instant::now(), next: 0 }
    }

    fn wait(&mut self, deployment: DeploymentId, calls: usize) -> Vec<Ticket> {
        (0..calls).map(|_| self.pool.enqueue(deployment, MB, 10).unwrap()).collect()
    }

    fn start(&mut self, deployment: DeploymentId) -> Next<u32> {
        self.next += 1;
        self.now += Duration::from_secs(1);
        self.pool.started(deployment, self.next, Duration::from_millis(100), self.now)
    }

    fn starts(&mut self) -> Vec<DeploymentId> {
        let plan = self.pool.plan(self.now);
        assert_eq!(plan.removals, []);
        plan.starts
    }

    /// An idle sandbox of a deployment of its own.
    fn idle(&mut self) -> DeploymentId {
        let deployment = DeploymentId::new();
        let ticket = self.wait(deployment, 1)[0];
        assert_eq!(self.starts(), [deployment]);
        self.pool.leave(deployment, ticket);
        assert_eq!(self.start(deployment), Next::Kept);
        deployment
    }
}

#[test]
fn starts_grow_by_doubling() {
    let check = |live: usize, starting: usize, waiting: usize, concurrency: usize, expected: usize| {
        let waiters = (0..waiting as u64).map(Ticket).collect();
        let share = Share::<u32> { busy: live, starting, waiters, ..Share::new(MB, concurrency) };
        assert_eq!(share.wanted(), expected, "{live} live, {starting} starting, {waiting} waiting, of {concurrency}");
    };
    check(0, 0, 0, 10, 0);
    check(0, 0, 1, 10, 1);
    check(0, 0, 50, 10, 1);
    check(0, 1, 50, 10, 0);
    check(1, 0, 50, 10, 1);
    check(2, 0, 50, 10, 2);
    check(2, 1, 50, 10, 1);
    check(4, 0, 50, 10, 4);
    check(4, 0, 3, 10, 3);
    check(4, 0, 50, 5, 1);
    check(8, 2, 50, 10, 0);
    check(20, 0, 50, 10, 0);
    check(20, 0, 50, 100, STARTS_AT_ONCE);
    check(20, 3, 50, 100, STARTS_AT_ONCE - 3);
    check(20, STARTS_AT_ONCE, 50, 100, 0);
}

#[test]
fn waiters_share_one_start_in_order() {
    let mut bench = Bench::new(1000);
    let deployment = DeploymentId::new();
    let tickets = bench.wait(deployment, 3);
    assert_eq!(bench.starts(), [deployment]);
    assert_eq!(bench.starts(), []);
    assert_eq!(bench.start(deployment), Next::Grant(tickets[0], 1));
    assert_eq!(bench.pool.give_back(deployment, 1, bench.now), Next::Grant(tickets[1], 1));
    bench.pool.leave(deployment, tickets[2]);
    assert_eq!(bench.pool.give_back(deployment, 1, bench.now), Next::Kept);
    assert_eq!(bench.pool.take(deployment), Some(1));
    assert_eq!(bench.pool.take(deployment), None);
    assert_eq!(bench.pool.counts(), (1, vec![deployment], [MB, 0]));
    assert_eq!(bench.pool.several().count(), 0);
    bench.wait(deployment, 1);
    assert_eq!(bench.starts(), [deployment]);
    bench.start(deployment);
    assert_eq!(bench.pool.several().collect::<Vec<_>>(), [(deployment, 2)]);
}

#[test]
fn a_failed_start_fails_all_that_wait_for_it() {
    let mut bench = Bench::new(1000);
    let deployment = DeploymentId::new();
    let tickets = bench.wait(deployment, 2);
    assert_eq!(bench.starts(), [deployment]);
    assert_eq!(bench.pool.start_failed(deployment, bench.now), tickets);
    assert_eq!(bench.pool.counts(), (0, vec![], [0, 0]));
    assert_eq!(bench.starts(), []);
}

#[test]
fn a_failed_start_fails_nobody_whom_a_busy_sandbox_will_serve() {
    let mut bench = Bench::new(1000);
    let deployment = bench.idle();
    let sandbox = bench.pool.take(deployment).unwrap();
    let tickets = bench.wait(deployment, 2);
    assert_eq!(bench.starts(), [deployment]);
    assert_eq!(bench.pool.start_failed(deployment, bench.now), []);
    assert_eq!(bench.starts(), [], "not again at once");
    assert_eq!(bench.pool.give_back(deployment, sandbox, bench.now), Next::Grant(tickets[0], sandbox));
    bench.now += START_PAUSE;
    assert_eq!(bench.starts(), [deployment], "who still waits gets a start");
    bench.pool.broken(deployment);
    assert_eq!(bench.pool.start_failed(deployment, bench.now), tickets[1..]);
    assert_eq!(bench.starts(), []);
}

#[test]
fn the_queue_and_the_memory_have_an_end() {
    let mut pool = Pool::<u32>::new(100, 1);
    assert_eq!(pool.enqueue(DeploymentId::new(), 101, 1), Err(NoPlace::TooLarge));
    let deployment = DeploymentId::new();
    let ticket = pool.enqueue(deployment, 100, 1).unwrap();
    assert_eq!(pool.enqueue(DeploymentId::new(), 1, 1), Err(NoPlace::QueueFull));
    pool.leave(deployment, ticket);
    pool.leave(deployment, ticket);
    assert!(pool.enqueue(DeploymentId::new(), 1, 1).is_ok());
}

#[test]
fn the_least_recently_used_of_others_is_evicted() {
    let mut bench = Bench::new(300);
    let (first, second, third) = (bench.idle(), bench.idle(), bench.idle());
    let used = bench.pool.take(first).unwrap();
    bench.now += Duration::from_secs(1);
    assert_eq!(bench.pool.give_back(first, used, bench.now), Next::Kept);
    let deployment = DeploymentId::new();
    let ticket = bench.wait(deployment, 1)[0];
    let plan = bench.pool.plan(bench.now);
    assert_eq!((plan.starts, plan.removals), (vec![], vec![(2, MB)]));
    // Its memory is on its way, so nobody else is evicted for the same call, and nothing starts before it is there.
    assert_eq!(bench.pool.plan(bench.now), Plan { starts: vec![], removals: vec![] });
    bench.pool.removed(MB);
    assert_eq!(bench.starts(), [deployment]);
    assert_eq!(bench.start(deployment), Next::Grant(ticket, 4));
    assert_eq!(bench.pool.take(second), None);
    assert!(bench.pool.take(first).is_some() && bench.pool.take(third).is_some());
}

#[test]
fn nobody_is_evicted_in_vain() {
    let mut bench = Bench::new(300);
    let (busy, _idle) = (bench.idle(), bench.idle());
    bench.pool.take(busy).unwrap();
    bench.pool.enqueue(DeploymentId::new(), 3 * MB, 1).unwrap();
    assert_eq!(bench.pool.plan(bench.now), Plan { starts: vec![], removals: vec![] });
}

#[test]
fn who_has_several_gives_one_up_for_who_has_none() {
    let mut bench = Bench::new(200);
    let rich = DeploymentId::new();
    bench.wait(rich, 5);
    assert_eq!(bench.starts(), [rich]);
    bench.start(rich);
    assert_eq!(bench.starts(), [rich]);
    bench.start(rich);
    let poor = DeploymentId::new();
    bench.wait(poor, 1);
    assert_eq!(bench.starts(), []);
    assert_eq!(bench.pool.give_back(rich, 1, bench.now), Next::Remove(1, MB));
    // One was enough.
    assert!(matches!(bench.pool.give_back(rich, 2, bench.now), Next::Grant(_, 2)));
    bench.pool.removed(MB);
    assert_eq!(bench.starts(), [poor]);
}

#[test]
fn the_retired_leave_when_they_are_free() {
    let mut bench = Bench::new(1000);
    let deployment = bench.idle();
    let busy = bench.pool.take(deployment).unwrap();
    assert_eq!(bench.pool.retire(deployment), []);
    assert_eq!(bench.pool.give_back(deployment, busy, bench.now), Next::Remove(busy, MB));
    assert_eq!(bench.pool.counts(), (0, vec![], [MB, 0]));
    bench.pool.removed(MB);
    assert_eq!(bench.pool.counts(), (0, vec![], [0, 0]));
    let deployment = bench.idle();
    assert_eq!(bench.pool.retire(deployment), [(2, MB)]);
    assert_eq!(bench.pool.retire(DeploymentId::new()), []);
}

#[test]
fn the_idle_expire() {
    let mut bench = Bench::new(1000);
    let (old, young) = (bench.idle(), bench.idle());
    let (now, limit) = (bench.now, Duration::from_secs(1));
    assert_eq!(bench.pool.expire(|since, _, _| expired(since, now, limit)), [(1, MB)]);
    assert_eq!((bench.pool.take(old), bench.pool.take(young)), (None, Some(2)));
}

#[test]
fn a_closed_pool_keeps_nothing() {
    let mut bench = Bench::new(1000);
    let (first, second) = (bench.idle(), bench.idle());
    let busy = bench.pool.take(first).unwrap();
    bench.wait(first, 2);
    assert_eq!(bench.starts(), [first]);
    assert_eq!(bench.pool.close(), [(2, MB)]);
    assert_eq!(bench.starts(), []);
    assert_eq!(bench.pool.give_back(first, busy, bench.now), Next::Remove(busy, MB));
    assert_eq!(bench.start(first), Next::Remove(3, MB));
    (0..3).for_each(|_| bench.pool.removed(MB));
    assert!(bench.pool.is_empty() && bench.pool.take(second).is_none());
}

#[test]
fn what_becomes_idle_makes_room_for_who_waits() {
    let mut bench = Bench::new(100);
    let first = bench.idle();
    let busy = bench.pool.take(first).unwrap();
    let second = DeploymentId::new();
    bench.wait(second, 1);
    assert_eq!(bench.starts(), []);
    assert_eq!(bench.pool.give_back(first, busy, bench.now), Next::Kept);
    assert!(bench.pool.has_waiters());
    assert_eq!(bench.pool.plan(bench.now), Plan { starts: vec![], removals: vec![(busy, MB)] });
    bench.pool.removed(MB);
    assert_eq!(bench.starts(), [second]);
}

#[test]
fn the_least_valuable_makes_room() {
    let mut bench = Bench::new(300);
    let (dear, cheap) = (bench.idle(), DeploymentId::new());
    bench.wait(cheap, 1);
    bench.starts();
    let next = bench.pool.started(cheap, 7, Duration::from_millis(1), bench.now);
    assert!(matches!(next, Next::Grant(_, 7)));
    assert_eq!(bench.pool.give_back(cheap, 7, bench.now), Next::Kept);
    bench.now += Duration::from_secs(10);
    let third = bench.idle();
    bench.now += Duration::from_secs(1);
    bench.wait(DeploymentId::new(), 1);
    // It would be there again at once.
    assert_eq!(bench.pool.plan(bench.now).removals, [(7, MB)]);
    assert!(bench.pool.take(dear).is_some() && bench.pool.take(third).is_some());
}

#[test]
fn what_is_to_be_kept_is_started_and_does_not_expire() {
    let mut bench = Bench::new(1000);
    let (deployment, now) = (DeploymentId::new(), bench.now);
    let refill = |bench: &mut Bench| bench.pool.refill(deployment, MB, 10, now);
    assert_eq!(refill(&mut bench), Refill::Full);
    bench.pool.keep(deployment, 2);
    assert_eq!(
        (refill(&mut bench), refill(&mut bench), refill(&mut bench)),
        (Refill::Start, Refill::Start, Refill::Full)
    );
    assert_eq!((bench.start(deployment), bench.start(deployment)), (Next::Kept, Next::Kept));
    assert_eq!(bench.pool.expire(|_, _, kept| !kept), []);
    // One of them is dead.
    assert_eq!(bench.pool.expire(|_, sandbox, kept| !kept || *sandbox == 2), [(2, MB)]);
    assert_eq!(refill(&mut bench), Refill::Start);
    assert_eq!(bench.start(deployment), Next::Kept);
    // Of more than are to be kept, the one goes that was used longest ago.
    bench.pool.keep(deployment, 1);
    assert_eq!(bench.pool.expire(|_, _, kept| !kept), [(1, MB)]);
    bench.pool.retire(deployment);
    assert_eq!((bench.pool.kept(deployment), bench.pool.is_short(deployment)), (0, false));
}

#[test]
fn what_is_to_be_kept_makes_room_last() {
    let mut bench = Bench::new(300);
    let kept = bench.idle();
    bench.pool.keep(kept, 1);
    bench.now += Duration::from_secs(1000);
    let (other, third) = (bench.idle(), bench.idle());
    // For another that is to be kept: not what is kept already.
    let wanted = DeploymentId::new();
    bench.pool.keep(wanted, 3);
    assert_eq!(bench.pool.refill(wanted, 3 * MB, 1, bench.now), Refill::NoRoom(vec![]));
    assert_eq!(bench.pool.refill(wanted, MB, 1, bench.now), Refill::NoRoom(vec![(2, MB)]));
    bench.pool.removed(MB);
    assert_eq!(bench.pool.refill(wanted, MB, 1, bench.now), Refill::Start);
    // For calls: after all others.
    bench.pool.enqueue(DeploymentId::new(), 2 * MB, 1).unwrap();
    assert_eq!(bench.pool.refill(wanted, MB, 1, bench.now), Refill::NoRoom(vec![]), "calls come first");
    assert_eq!(bench.pool.plan(bench.now).removals, [(3, MB), (1, MB)]);
    assert_eq!((bench.pool.live(other), bench.pool.live(third), bench.pool.live(kept)), (0, 0, 0));
}
