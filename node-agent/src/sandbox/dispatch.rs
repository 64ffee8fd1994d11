//! The pool put to work: calls come and wait, sandboxes start, are handed on and removed, as [`Pool`] decides.

use std::collections::HashMap;
use std::sync::{Arc, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use common::function::DeploymentSpec;
use common::ids::DeploymentId;
use common::phases::ColdCause;
use tokio::sync::oneshot;

use super::blank::Blank;
use super::farewell::Farewells;
use super::function::Function;
use super::lease::{Cold, Lease};
use super::mounts::Build;
use super::pool::{self, Next, NoPlace, Pool, Refill, Ticket};
use super::site::Fault;
use super::{LeaseError, Sandboxes};

/// How often idle sandboxes are looked at.
const ROUND: Duration = Duration::from_secs(1);

#[derive(Debug)]
pub(super) struct State {
    pub(super) pool: Pool<Box<Function>>,
    pub(super) waiters: HashMap<Ticket, oneshot::Sender<Result<Lease, LeaseError>>>,
    /// What a deployment's next sandbox is made from; as long as it has or starts one.
    recipes: HashMap<DeploymentId, Recipe>,
    pub(super) farewells: Farewells,
    pub(super) closing: bool,
}

#[derive(Clone)]
struct Recipe {
    spec: Arc<DeploymentSpec>,
    build: Build,
}

impl std::fmt::Debug for Recipe {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Recipe({})", self.spec.deployment)
    }
}

impl Sandboxes {
    /// A sandbox for one call of `spec`, whose build is at `build`: an idle one, or the next that starts or becomes
    /// free. `build` is kept as long as a sandbox may use it.
    ///
    /// # Errors
    /// There is none, in time or at all.
    pub async fn lease(self: &Arc<Self>, spec: &Arc<DeploymentSpec>, build: Build) -> Result<Lease, LeaseError> {
        let deployment = spec.deployment;
        let mut gone = Vec::new();
        let waiting = {
            let mut state = self.lock();
            if state.closing {
                return Err(LeaseError::Closing);
            }
            let found = loop {
                match state.pool.take(deployment) {
                    Some(function) if function.is_ready() => break Some(function),
                    // Its runner died while it was idle.
                    Some(function) => {
                        state.farewells.note(deployment, ColdCause::Died);
                        gone.push((function, state.pool.broken(deployment)));
                    }
                    None => break None,
                }
            };
            match found {
                Some(function) => Ok(Lease::new(self, function, None)),
                None => Err(self.enqueue(&mut state, spec, build)),
            }
        };
        for (function, memory_mb) in gone {
            self.remove(function, memory_mb);
        }
        match waiting {
            Ok(lease) => Ok(lease),
            Err(place) => {
                let place = place?;
                self.advance();
                place.wait(self.args.wait()).await
            }
        }
    }

    pub(super) fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn enqueue(
        self: &Arc<Self>,
        state: &mut State,
        spec: &Arc<DeploymentSpec>,
        build: Build,
    ) -> Result<QueuePlace, LeaseError> {
        if self.runtimes.get(&spec.runtime).is_none() {
            return Err(LeaseError::UnknownRuntime(spec.runtime.clone()));
        }
        let (deployment, memory_mb) = (spec.deployment, spec.limits.memory_mb);
        let ticket =
            state.pool.enqueue(deployment, memory_mb.into(), spec.limits.concurrency as usize).map_err(|refusal| {
                match refusal {
                    NoPlace::QueueFull => LeaseError::QueueFull(self.args.sandbox_queue),
                    NoPlace::TooLarge => LeaseError::TooLarge { memory_mb, total_mb: self.total_mb },
                }
            })?;
        state.recipes.entry(deployment).or_insert_with(|| Recipe { spec: Arc::clone(spec), build });
        let (tell, told) = oneshot::channel();
        state.waiters.insert(ticket, tell);
        Ok(QueuePlace { sandboxes: Arc::clone(self), deployment, ticket, told })
    }

    /// Does what the pool wants done for those who wait.
    fn advance(self: &Arc<Self>) {
        let (starts, removals) = {
            let mut state = self.lock();
            if state.closing {
                return;
            }
            let State { pool, recipes, farewells, .. } = &mut *state;
            let plan = pool.plan(Instant::now());
            for (function, _) in &plan.removals {
                farewells.note(function.spec.deployment, ColdCause::Memory);
            }
            let start = |deployment: DeploymentId| {
                let cause = farewells.cause(deployment, pool.live(deployment));
                (deployment, recipes.get(&deployment).cloned(), cause)
            };
            (plan.starts.into_iter().map(start).collect::<Vec<_>>(), plan.removals)
        };
        self.evict(removals);
        for (deployment, recipe, cause) in starts {
            let sandboxes = Arc::clone(self);
            // Who waits for it is told of a failure.
            let start = async move { drop(sandboxes.start(deployment, recipe, cause).await) };
            self.tasks.spawn_on(start, &self.runtime);
        }
    }

    fn evict(self: &Arc<Self>, functions: Vec<(Box<Function>, u64)>) {
        for (function, memory_mb) in functions {
            tracing::debug!(sandbox = %function.id(), "evicted");
            self.metrics.evictions.inc();
            self.remove(function, memory_mb);
        }
    }

    /// Starts sandboxes of a deployment, one after the other, until it has as many as are to be kept.
    ///
    /// # Errors
    /// It has fewer, and there is no memory for one more, or its start failed.
    pub(crate) async fn refill(self: &Arc<Self>, spec: &Arc<DeploymentSpec>, build: Build) -> Result<(), LeaseError> {
        let (deployment, memory_mb) = (spec.deployment, spec.limits.memory_mb.into());
        loop {
            let (refill, cause) = {
                let mut state = self.lock();
                let concurrency = spec.limits.concurrency as usize;
                let refill = state.pool.refill(deployment, memory_mb, concurrency, Instant::now());
                if let Refill::NoRoom(removals) = &refill {
                    let victims = removals.iter().map(|(function, _)| function.spec.deployment);
                    victims.for_each(|victim| state.farewells.note(victim, ColdCause::Memory));
                }
                (refill, state.farewells.cause(deployment, state.pool.live(deployment)))
            };
            match refill {
                Refill::Full => return Ok(()),
                Refill::NoRoom(removals) => {
                    self.evict(removals);
                    return Err(LeaseError::NoRoom);
                }
                Refill::Start => {}
            }
            let recipe = Recipe { spec: Arc::clone(spec), build: Arc::clone(&build) };
            let sandboxes = Arc::clone(self);
            // A task of its own: whoever stops waiting for it leaves no start half done.
            let start = async move { sandboxes.start(deployment, Some(recipe), cause).await };
            match self.tasks.spawn_on(start, &self.runtime).await {
                Ok(started) => started?,
                Err(_) => return Err(LeaseError::Closing),
            }
        }
    }

    /// Starts a sandbox that was planned, because of `cause`.
    async fn start(
        self: &Arc<Self>,
        deployment: DeploymentId,
        recipe: Option<Recipe>,
        cause: Option<ColdCause>,
    ) -> Result<(), LeaseError> {
        let wanted = Instant::now();
        let started = match recipe {
            Some(recipe) => self.start_one(&recipe).await.map_err(|fault| LeaseError::of(&fault)),
            None => Err(LeaseError::StartFailed("nobody waits for it any more".into())),
        };
        let done = match started {
            Ok(function) => {
                self.metrics.started.inc();
                let took = wanted.elapsed();
                let next = self.lock().pool.started(deployment, Box::new(function), took, Instant::now());
                self.proceed(deployment, next, Some(Cold { took, cause }));
                Ok(())
            }
            Err(error) => {
                self.metrics.failed.inc();
                tracing::warn!(%deployment, %error, "no sandbox could be started");
                let waiters: Vec<_> = {
                    let mut state = self.lock();
                    let tickets = state.pool.start_failed(deployment, Instant::now());
                    state.forget();
                    tickets.iter().filter_map(|ticket| state.waiters.remove(ticket)).collect()
                };
                for waiter in waiters {
                    // Who no longer listens needs no answer.
                    let _ = waiter.send(Err(error.clone()));
                }
                Err(error)
            }
        };
        self.advance();
        done
    }

    async fn start_one(&self, recipe: &Recipe) -> Result<Function, Fault> {
        let Recipe { spec, build } = recipe;
        let runtime = self.runtimes.get(&spec.runtime).ok_or(Fault::Runtime)?;
        let stage = self.site.ground.stage(build)?;
        // A network cannot be had later.
        let blank = if spec.egress { None } else { self.blanks.take(&spec.runtime) };
        if let Some(blank) = blank {
            match Function::furnish(blank, &self.args, spec, runtime, Arc::clone(&stage)).await {
                Ok(function) => {
                    self.metrics.from_blank.inc();
                    return Ok(function);
                }
                Err(fault) => tracing::warn!(%fault, "a blank sandbox was of no use; starting another one"),
            }
        }
        self.site.engine.answering().await?;
        // Before its turn: a pull may take minutes, and is nobody else's concern.
        let image = self.site.engine.image(&runtime.run.images).await?;
        let _turn = self.starts.acquire().await;
        let timer = self.metrics.start_seconds.start_timer();
        let (memory_mb, egress) = (spec.limits.memory_mb, spec.egress);
        let started = async {
            let blank = Blank::start(&self.site, &self.args, runtime, image, memory_mb, egress).await?;
            Function::furnish(blank, &self.args, spec, runtime, stage).await
        };
        let function = started.await;
        match &function {
            Ok(_) => timer.observe_duration(),
            Err(_) => drop(timer.stop_and_discard()),
        }
        function
    }

    /// Takes a sandbox back from a lease.
    pub(super) fn give_back(self: &Arc<Self>, function: Box<Function>, sound: bool) {
        let deployment = function.spec.deployment;
        let (next, others_wait) = {
            let mut state = self.lock();
            let next = if sound && function.is_ready() {
                state.pool.give_back(deployment, function, Instant::now())
            } else {
                state.farewells.note(deployment, ColdCause::Died);
                let memory_mb = state.pool.broken(deployment);
                Next::Remove(function, memory_mb)
            };
            (next, state.pool.has_waiters())
        };
        self.proceed(deployment, next, None);
        if others_wait {
            // It may be its memory that they wait for.
            self.advance();
        }
    }

    fn proceed(self: &Arc<Self>, deployment: DeploymentId, next: Next<Box<Function>>, cold: Option<Cold>) {
        match next {
            Next::Kept => {}
            Next::Remove(function, memory_mb) => self.remove(function, memory_mb),
            Next::Grant(ticket, function) => {
                let waiter = self.lock().waiters.remove(&ticket);
                let lease = Lease::new(self, function, cold);
                // A lease that nobody takes comes back by its drop.
                match waiter.map(|waiter| waiter.send(Ok(lease))) {
                    Some(Ok(())) => {}
                    Some(Err(unheard)) => drop(unheard),
                    None => tracing::debug!(%deployment, "a call left in the moment of its turn"),
                }
            }
        }
    }

    /// Removes a sandbox in the background; its memory is free when it is gone.
    pub(super) fn remove(self: &Arc<Self>, function: Box<Function>, memory_mb: u64) {
        let sandboxes = Arc::clone(self);
        let removal = async move {
            function.remove().await;
            {
                let mut state = sandboxes.lock();
                state.pool.removed(memory_mb);
                state.forget();
            }
            sandboxes.left.notify_one();
            sandboxes.advance();
        };
        self.tasks.spawn_on(removal, &self.runtime);
    }

    /// Counts a sandbox that goes because nobody called it.
    pub(crate) fn note_idle_removal(&self) {
        self.metrics.idle_removals.inc();
    }

    /// Removes what is idle for too long or has died, until the node closes.
    pub(super) async fn keep_house(self: Arc<Self>) {
        let mut round = tokio::time::interval(ROUND);
        loop {
            tokio::select! {
                _ = round.tick() => {}
                () = self.stop.cancelled() => return,
            }
            let (now, limit) = (Instant::now(), self.args.idle());
            let frozen = self.site.frost.frozen();
            // Who waits after a start that failed gets another one.
            self.advance();
            let removals = {
                let mut state = self.lock();
                self.metrics.show(state.pool.states(), self.blanks.ready(), frozen);
                let State { pool, farewells, .. } = &mut *state;
                let gone = pool
                    .expire(|since, function, kept| !kept && pool::expired(since, now, limit) || !function.is_ready());
                for (function, _) in &gone {
                    let why = if function.is_ready() { ColdCause::Idle } else { ColdCause::Died };
                    if why == ColdCause::Idle {
                        self.note_idle_removal();
                    }
                    farewells.note(function.spec.deployment, why);
                }
                gone
            };
            for (function, memory_mb) in removals {
                self.remove(function, memory_mb);
            }
            self.site.hold_fence().await;
        }
    }
}

impl State {
    pub(super) fn new(total_mb: u64, queue: usize) -> Self {
        let (waiters, recipes) = (HashMap::new(), HashMap::new());
        let farewells = Farewells::new(chrono::Utc::now());
        Self { pool: Pool::new(total_mb, queue), waiters, recipes, farewells, closing: false }
    }

    /// Drops the recipes of deployments that have no sandbox and no call.
    fn forget(&mut self) {
        let Self { pool, recipes, .. } = self;
        recipes.retain(|deployment, _| pool.knows(*deployment));
    }
}

/// A call's place in the queue. Dropping it, as the call's future is dropped, leaves the queue.
struct QueuePlace {
    sandboxes: Arc<Sandboxes>,
    deployment: DeploymentId,
    ticket: Ticket,
    told: oneshot::Receiver<Result<Lease, LeaseError>>,
}

impl QueuePlace {
    async fn wait(mut self, limit: Duration) -> Result<Lease, LeaseError> {
        let since = Instant::now();
        match tokio::time::timeout(limit, &mut self.told).await {
            Ok(Ok(granted)) => granted.map(|lease| lease.queued_for(since.elapsed())),
            Ok(Err(_)) => Err(LeaseError::Closing),
            Err(_) => Err(LeaseError::TimedOut(limit)),
        }
    }
}

impl Drop for QueuePlace {
    fn drop(&mut self) {
        let mut state = self.sandboxes.lock();
        if state.waiters.remove(&self.ticket).is_some() {
            state.pool.leave(self.deployment, self.ticket);
            state.forget();
        }
    }
}
