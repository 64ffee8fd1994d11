//! Sandboxes: hardened containers in which functions and builds run. This module leases them by deployment; how one
//! is made is said in [`spec`], when one is started or removed in [`pool`], how many wait blank in [`shelves`].
//!
//! A call that finds a warm or a blank sandbox never waits for Docker. All calls that wait for one deployment share
//! its starts.

mod args;
mod blank;
mod blanks;
mod cgroup;
mod command;
mod disk;
mod dispatch;
mod docker;
mod farewell;
mod fence;
mod frost;
mod function;
mod lease;
mod metrics;
mod mount_table;
mod mounts;
mod pool;
mod program;
mod pulse;
mod runner_link;
mod shelves;
mod site;
mod spec;
mod usage;
mod workshop;
mod worth;

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use common::ids::{DeploymentId, NodeId};
use common::names::RuntimeName;
use common::phases::ColdCause;
use common::protocol::Warm;
use common::runtime::Runtimes;
use prometheus::Registry;
use tokio::sync::{Notify, Semaphore};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

pub use args::{BuildArgs, SandboxArgs};
pub use disk::{Disk, release};
pub use docker::DockerError;
pub(crate) use docker::EngineFacts;
pub(crate) use frost::{Ice, Keeps};
pub use lease::{Cold, Exit, Gone, How, Lease, ResultFile};
pub(crate) use lease::{PORT, Serving, Word};
pub use mounts::{Build, MountError};
pub use workshop::{BuildError, BuildExit, BuildJob, MAX_BUILD_ENTRIES};
pub(crate) use worth::patience;

use blanks::Blanks;
use cgroup::Freezer;
use dispatch::State;
use docker::Engine;
use metrics::Metrics;
use mounts::Ground;
use site::{Fault, Site};

/// Containers started at once; more only make each other slower.
const STARTS_AT_ONCE: usize = 4;
/// How long [`Sandboxes::close`] waits for the removal of what is left.
const CLOSE_LIMIT: Duration = Duration::from_secs(30);

/// The sandboxes of a node cannot be opened; the sentence says the fix.
#[derive(Debug, thiserror::Error)]
pub enum SandboxesError {
    /// Without an Engine there are no sandboxes.
    #[error(transparent)]
    Docker(#[from] DockerError),
    /// Without mounts neither.
    #[error(transparent)]
    Mount(#[from] MountError),
    /// The runner is what sandboxes consist of.
    #[error("there is no runner at {}: build it (`cargo build -p runner`, static) or set RUNNER_PATH", .0.display())]
    NoRunner(PathBuf),
    /// It has to lie where the Engine finds it.
    #[error("the runner cannot be copied to {}: {cause}", data_dir.display())]
    Runner {
        /// The data directory.
        data_dir: PathBuf,
        /// What the system said.
        cause: std::io::Error,
    },
    /// Two parts of the program call a metric the same.
    #[error("metrics: {0}")]
    Metrics(#[from] prometheus::Error),
}

/// A call gets no sandbox.
#[derive(Clone, Debug, thiserror::Error)]
pub enum LeaseError {
    /// As many calls wait as may.
    #[error("{0} calls wait for a sandbox already; SANDBOX_QUEUE allows no more")]
    QueueFull(u32),
    /// None became free in time.
    #[error("no sandbox became free within {} s", .0.as_secs())]
    TimedOut(Duration),
    /// The start failed for which this call waited.
    #[error("the sandbox could not be started: {0}")]
    StartFailed(Arc<str>),
    /// The function can have no sandbox, here or elsewhere.
    #[error("the function cannot be started: {0}")]
    Unfit(Arc<str>),
    /// The function wants more memory than all sandboxes of this node may have.
    #[error("the function wants {memory_mb} MiB, and SANDBOX_MEMORY_MB is {total_mb}")]
    TooLarge {
        /// What it wants.
        memory_mb: u32,
        /// What there is.
        total_mb: u64,
    },
    /// The function's language is not known here.
    #[error("runtime `{0}` is unknown on this node: add its file")]
    UnknownRuntime(RuntimeName),
    /// What is in use leaves no memory for one that nobody waits for.
    #[error("the sandboxes in use leave no memory for one more")]
    NoRoom,
    /// The node shuts down.
    #[error("the node shuts down")]
    Closing,
}

impl LeaseError {
    pub(super) fn of(fault: &Fault) -> Self {
        let reason = fault.to_string().into();
        if fault.is_of_function() { Self::Unfit(reason) } else { Self::StartFailed(reason) }
    }

    /// Whether it is the function's own fault, and not this node's.
    pub(crate) fn is_of_function(&self) -> bool {
        matches!(self, Self::Unfit(_) | Self::TooLarge { .. })
    }
}

/// What a node's sandboxes do, for the heartbeat.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Leases held, but for those of servers.
    pub busy: u32,
    /// Deployments with a sandbox that is idle or busy.
    pub warm: Vec<DeploymentId>,
    /// Memory that sandboxes may be granted, in MiB.
    pub memory_total_mb: u64,
    /// Memory that they are granted, those that start or leave included, in MiB.
    pub memory_used_mb: u64,
    /// Of that, what idle ones are granted, in MiB.
    pub memory_idle_mb: u64,
    /// Of the deployments, those with several such sandboxes.
    pub several: Vec<Warm>,
}

/// All sandboxes of a node.
#[derive(Debug)]
pub struct Sandboxes {
    site: Arc<Site>,
    args: SandboxArgs,
    runtimes: Arc<Runtimes>,
    metrics: Metrics,
    state: Mutex<State>,
    /// Leases that are held for servers, whether or not a call is in them.
    serving: AtomicUsize,
    blanks: Blanks,
    total_mb: u64,
    starts: Semaphore,
    builds: Semaphore,
    tasks: TaskTracker,
    stop: CancellationToken,
    /// A sandbox has left.
    left: Notify,
    runtime: tokio::runtime::Handle,
}

/// Whether sandboxes can be had here: an Engine that answers and is new enough, and a runner. For those who want to
/// know before they start anything.
///
/// # Errors
/// They cannot; the sentence says the fix.
pub async fn check_engine(args: &SandboxArgs) -> Result<(), SandboxesError> {
    program::find(args)?;
    Engine::connect(&args.docker_host, args.pull()).await?;
    Ok(())
}

/// What the Engine says of itself and of the machine.
pub(crate) async fn examine_engine(args: &SandboxArgs) -> Result<EngineFacts, SandboxesError> {
    Ok(Engine::connect(&args.docker_host, args.pull()).await?.facts().await?)
}

/// Whether the runner is where the settings say, or beside this program.
pub(crate) fn has_runner(args: &SandboxArgs) -> Result<(), SandboxesError> {
    program::find(args).map(drop)
}

impl Sandboxes {
    /// Connects to the Engine, removes what an earlier life of `node` left behind (containers, mounts, directories),
    /// and is ready for leases. `data_dir` must belong to this process alone.
    ///
    /// # Errors
    /// There is no Engine, no right to mount, or no runner.
    pub async fn open(
        args: &SandboxArgs,
        node: NodeId,
        data_dir: &Path,
        runtimes: Arc<Runtimes>,
        registry: &Registry,
    ) -> Result<Arc<Self>, SandboxesError> {
        let runner = program::find(args)?;
        let engine = Engine::connect(&args.docker_host, args.pull()).await?;
        if !args.build.build_ca_file.is_file() {
            let path = args.build.build_ca_file.display();
            tracing::warn!(%path, "BUILD_CA_FILE is not there: builds trust what their images trust");
        }
        // Containers first, since they hold on to the mounts.
        remove_leftovers(&engine, node).await?;
        let ground = Ground::open(data_dir)?;
        let runner = program::install(&runner, data_dir)?;
        let site = Arc::new(Site::new(node, engine, ground, runner, args));
        let total_mb = args.sandbox_memory_mb.unwrap_or_else(three_quarters_of_memory_mb);
        let sandboxes = Arc::new(Self {
            site,
            args: args.clone(),
            blanks: Blanks::new(&runtimes, args),
            runtimes,
            metrics: Metrics::new(registry)?,
            state: Mutex::new(State::new(total_mb, args.sandbox_queue as usize)),
            serving: AtomicUsize::new(0),
            total_mb,
            starts: Semaphore::new(STARTS_AT_ONCE),
            builds: Semaphore::new(args.build.build_concurrent as usize),
            tasks: TaskTracker::new(),
            stop: CancellationToken::new(),
            left: Notify::new(),
            runtime: tokio::runtime::Handle::current(),
        });
        sandboxes.tasks.spawn(Arc::clone(&sandboxes).keep_house());
        sandboxes.tasks.spawn(Arc::clone(&sandboxes).keep_swept());
        sandboxes.tasks.spawn(Arc::clone(&sandboxes).keep_blanks());
        sandboxes.tasks.spawn(Arc::clone(&sandboxes).keep_asking());
        let freezes = sandboxes.metrics.freezes.clone();
        sandboxes.tasks.spawn(Arc::clone(&sandboxes).keep_frost(freezes));
        Ok(sandboxes)
    }

    /// The deployment gets no more calls: its idle sandboxes are removed now, the others as they become free. A
    /// lease of it later is not wrong, only cold.
    pub fn retire(self: &Arc<Self>, deployment: DeploymentId) {
        let removals = {
            let mut state = self.lock();
            if state.pool.knows(deployment) {
                state.farewells.note(deployment, ColdCause::Retired);
            }
            state.pool.retire(deployment)
        };
        for (function, memory_mb) in removals {
            self.remove(function, memory_mb);
        }
    }

    /// What the sandboxes do.
    #[must_use]
    pub fn counts(&self) -> Counts {
        let count = |count| u32::try_from(count).unwrap_or(u32::MAX);
        let ((busy, warm, [memory_used_mb, memory_idle_mb]), mut several) = {
            let state = self.lock();
            let several = state.pool.several().map(|(deployment, live)| Warm { deployment, sandboxes: count(live) });
            (state.pool.counts(), several.collect::<Vec<_>>())
        };
        // So that two heartbeats of the same state are equal.
        several.sort_unstable_by_key(|several| several.deployment);
        let busy = count(busy.saturating_sub(self.serving.load(Ordering::Relaxed)));
        Counts { busy, warm, memory_total_mb: self.total_mb, memory_used_mb, memory_idle_mb, several }
    }

    /// Whether the deployment has a sandbox that is idle or busy.
    pub(crate) fn has(&self, deployment: DeploymentId) -> bool {
        self.lock().pool.live(deployment) > 0
    }

    /// Whether calls of other deployments wait for memory, which an idle server could give them.
    pub(crate) fn others_starve(&self, deployment: DeploymentId) -> bool {
        self.lock().pool.others_starve(deployment)
    }

    /// Keeps so many sandboxes of a deployment from now on, whether or not anybody calls. Those that are missing come
    /// by [`Sandboxes::refill`].
    pub(crate) fn keep(&self, deployment: DeploymentId, count: u32) {
        self.lock().pool.keep(deployment, count as usize);
    }

    /// Whether a deployment has fewer sandboxes than are to be kept.
    pub(crate) fn is_short(&self, deployment: DeploymentId) -> bool {
        self.lock().pool.is_short(deployment)
    }

    /// Whether sandboxes of a deployment are to be kept.
    pub(crate) fn is_kept(&self, deployment: DeploymentId) -> bool {
        self.lock().pool.kept(deployment) > 0
    }

    /// How long something that is idle is kept.
    pub(crate) fn idle(&self) -> Duration {
        self.args.idle()
    }

    /// How much is kept of what a call prints, in bytes.
    pub(crate) fn output_cap(&self) -> usize {
        self.args.sandbox_output_kb as usize * 1024
    }

    /// Sees to it that the image of a runtime is there, so that the first call does not wait for a pull.
    ///
    /// # Errors
    /// The runtime is unknown, or its image cannot be had.
    pub async fn prepare(&self, runtime: &RuntimeName) -> Result<(), LeaseError> {
        let known = self.runtimes.get(runtime).ok_or_else(|| LeaseError::UnknownRuntime(runtime.clone()))?;
        let image = self.site.engine.image(&known.run.images).await;
        image.map(drop).map_err(|error| LeaseError::StartFailed(error.to_string().into()))
    }

    /// Removes all sandboxes and their mounts. Leases should be back by then; those that are not are waited for, up
    /// to half a minute.
    pub async fn close(self: &Arc<Self>) {
        self.stop.cancel();
        self.blanks.close();
        let (waiters, removals) = {
            let mut state = self.lock();
            state.closing = true;
            (std::mem::take(&mut state.waiters), state.pool.close())
        };
        for (_, waiter) in waiters {
            // Who no longer listens needs no answer.
            let _ = waiter.send(Err(LeaseError::Closing));
        }
        for (function, memory_mb) in removals {
            self.remove(function, memory_mb);
        }
        let emptied = async {
            self.tasks.close();
            self.tasks.wait().await;
            while !self.lock().pool.is_empty() {
                self.left.notified().await;
            }
            self.tasks.wait().await;
            self.site.tasks().close();
            self.site.tasks().wait().await;
        };
        if tokio::time::timeout(CLOSE_LIMIT, emptied).await.is_err() {
            tracing::warn!("not all sandboxes are gone; the next start removes them");
        }
        if let Err(error) = self.site.engine.remove_networks(self.site.node).await {
            tracing::warn!(%error, "a network is left behind; the next start removes it");
        }
        if let Err(error) = self.site.fence.fall().await {
            tracing::warn!(%error, "rules for a network that is gone are left behind; the next start renews them");
        }
        if let Err(error) = self.site.ground.close() {
            tracing::warn!(%error, "mounts are left behind; the next start removes them");
        }
    }
}

/// Removes every container and network of `node`: none of them has an agent any more.
async fn remove_leftovers(engine: &Engine, node: NodeId) -> Result<(), DockerError> {
    let containers = engine.list(node).await?;
    for (container, _) in &containers {
        // What that agent froze neither sees that it is gone nor, with some versions of runc, can be killed.
        if let Some(pid) = engine.pid(container).await? {
            if let Err(error) = Freezer::of(pid).and_then(|freezer| freezer.thaw()) {
                tracing::debug!(%error, container, "its freezer cannot be used");
            }
        }
        engine.remove(container).await?;
    }
    engine.remove_networks(node).await?;
    if !containers.is_empty() {
        tracing::info!(containers = containers.len(), "removed what an earlier agent left behind");
    }
    Ok(())
}

fn three_quarters_of_memory_mb() -> u64 {
    let text = std::fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let kilobytes = text.lines().find_map(|line| line.strip_prefix("MemTotal:"));
    let kilobytes = kilobytes.and_then(|rest| rest.trim().trim_end_matches(" kB").parse::<u64>().ok());
    // A machine that does not say has at least one GiB, or it would not run Docker.
    kilobytes.unwrap_or(1024 * 1024) / 1024 * 3 / 4
}

#[cfg(test)]
mod tests;
