//! Builds: an archive becomes a directory that sandboxes can run. What is in the cache or in the artifact store is
//! not built again, and all who want the same build at once share one run.

use std::collections::HashMap;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use common::archive::Caps;
use common::digest::Digest;
use common::error::Chain;
use common::function::DeploymentSpec;
use common::ids::InvocationId;
use common::protocol::BuildEvent;
use common::runtime::{Recipe, Runtimes};
use common::settings::MIB;
use futures_util::Stream;
use tokio::sync::{Semaphore, SemaphorePermit, mpsc};
use tokio::time::timeout;
use tokio_util::task::TaskTracker;
use tracing::Instrument as _;

use crate::build_cache::{BuildCache, BuildHandle};
use crate::link::calls::Calls;
use crate::metrics::Metrics;
use crate::sandbox::{BuildArgs, BuildJob, MAX_BUILD_ENTRIES, Sandboxes};

mod claim;
mod failure;
pub(crate) mod packed;
mod run;
pub(crate) mod tree;
mod unpacked;

use failure::{BuildFailure, transfer};
use run::{End, How, Run};
use tree::Extent;
use unpacked::{Unpacked, unpack};

/// How long an invocation waits for a build that is not here; the build goes on without it.
const READY_DEADLINE: Duration = Duration::from_secs(60);
/// Stored builds that are fetched and unpacked at once; others wait for as long as these take. A node that comes back to
/// many functions would else need the disk and the processors for all of them together.
const FETCHES_AT_ONCE: usize = 4;
/// Lines of a build's log that wait to be passed on.
const LINES_QUEUE: usize = 256;

/// What a build may leave behind.
fn max_extent(args: &BuildArgs) -> Extent {
    Extent { bytes: u64::from(args.build_disk_mb) * MIB as u64, entries: u64::from(MAX_BUILD_ENTRIES) }
}

/// What a packed build may be: it was made from a sealed tree, so only its size is bounded again.
fn packed_caps(args: &BuildArgs) -> Caps {
    Caps {
        max_archive_mb: args.build_disk_mb,
        archive_max_unpacked_mb: args.build_disk_mb,
        archive_max_ratio: u32::MAX,
        archive_max_entries: MAX_BUILD_ENTRIES,
        archive_max_path_bytes: 4000,
        archive_max_depth: 1000,
        ..Caps::default()
    }
}

/// A build is not here for an invocation.
#[derive(Debug, thiserror::Error)]
pub(crate) enum NotReady {
    /// No runtime file bears the deployment's runtime name.
    #[error("this node has no runtime `{0}`: add its file to RUNTIMES_DIR on every node")]
    UnknownRuntime(String),
    /// The build's own command failed when it was run again.
    #[error("the build failed: {0}")]
    Failed(String),
    /// It could not be run.
    #[error("the build could not be run: {0}")]
    Error(String),
    /// It takes too long.
    #[error("the build is not on this node yet")]
    Deadline,
}

impl NotReady {
    /// Whether it is the function's own fault, on this node as on any other.
    pub(crate) fn is_of_function(&self) -> bool {
        matches!(self, Self::Failed(_))
    }
}

/// What a builder needs.
pub(crate) struct Parts {
    pub(crate) runtimes: Arc<Runtimes>,
    pub(crate) calls: Arc<Calls>,
    pub(crate) cache: BuildCache,
    pub(crate) sandboxes: Arc<Sandboxes>,
    /// What an archive may be.
    pub(crate) caps: Caps,
    /// How builds are run, and what they may leave.
    pub(crate) args: BuildArgs,
    pub(crate) metrics: Arc<Metrics>,
}

/// Makes builds, and knows those that are made.
pub(crate) struct Builds {
    parts: Parts,
    turns: Semaphore,
    fetches: Semaphore,
    running: Mutex<HashMap<Digest, Arc<Run>>>,
    tasks: TaskTracker,
}

impl Builds {
    pub(crate) fn new(parts: Parts) -> Arc<Self> {
        let turns = Semaphore::new(parts.args.build_concurrent as usize);
        let fetches = Semaphore::new(FETCHES_AT_ONCE);
        Arc::new(Self { parts, turns, fetches, running: Mutex::default(), tasks: TaskTracker::new() })
    }

    /// The build of a deployment, for an invocation: from the cache as a rule.
    pub(crate) async fn ready(
        self: &Arc<Self>,
        spec: &Arc<DeploymentSpec>,
        id: InvocationId,
    ) -> Result<BuildHandle, NotReady> {
        let digest = self.digest(spec).ok_or_else(|| NotReady::UnknownRuntime(spec.runtime.to_string()))?;
        if let Some(build) = self.parts.cache.get(digest) {
            return Ok(build);
        }
        let run = self.join(spec, digest, id);
        match timeout(READY_DEADLINE, run.ended()).await {
            Ok(End::Ready { build, .. }) => Ok(build),
            Ok(End::Failed(reason)) => Err(NotReady::Failed(reason)),
            Ok(End::Error(reason)) => Err(NotReady::Error(reason)),
            Err(_) => Err(NotReady::Deadline),
        }
    }

    /// Does a build order; the events end with the one that says how it ended.
    pub(crate) fn order(
        self: &Arc<Self>,
        spec: &Arc<DeploymentSpec>,
        id: InvocationId,
    ) -> impl Stream<Item = BuildEvent> + Send + use<> {
        let run = match self.digest(spec) {
            Some(digest) => self.join(spec, digest, id),
            None => Run::over(End::Error(NotReady::UnknownRuntime(spec.runtime.to_string()).to_string())),
        };
        run.order();
        run.events()
    }

    /// Waits until no build runs.
    pub(crate) async fn finish(&self) {
        self.tasks.close();
        self.tasks.wait().await;
    }

    fn digest(&self, spec: &DeploymentSpec) -> Option<Digest> {
        self.parts.runtimes.build_digest(spec.archive, &spec.runtime, &spec.entrypoint)
    }

    /// The run that makes `digest`: the one that is under way, or a new one.
    fn join(self: &Arc<Self>, spec: &Arc<DeploymentSpec>, digest: Digest, id: InvocationId) -> Arc<Run> {
        let mut running = self.running.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(run) = running.get(&digest) {
            tracing::info!(request_id = %id, build = %digest, "waits for the same build, which is under way");
            return Arc::clone(run);
        }
        let run = Run::begun();
        running.insert(digest, Arc::clone(&run));
        let span = tracing::info_span!("build", request_id = %id, deployment = %spec.deployment);
        let (builds, spec, shared) = (Arc::clone(self), Arc::clone(spec), Arc::clone(&run));
        let obtaining = self.tasks.spawn(
            async move {
                let end = builds.obtain(&spec, digest, &shared).await;
                builds.count(&end);
                end
            }
            .instrument(span),
        );
        let (builds, shared) = (Arc::clone(self), Arc::clone(&run));
        self.tasks.spawn(async move {
            let end = obtaining.await.unwrap_or_else(|_| End::Error("the build was interrupted by a bug".into()));
            builds.running.lock().unwrap_or_else(PoisonError::into_inner).remove(&digest);
            shared.finish(end);
        });
        run
    }

    fn count(&self, end: &End) {
        let result = match end {
            End::Ready { how: How::Cached, .. } => "cached",
            End::Ready { how: How::Fetched, .. } => "fetched",
            End::Ready { how: How::Built, took, .. } => {
                self.parts.metrics.build_seconds.observe(took.as_secs_f64());
                "built"
            }
            End::Failed(_) => "failed",
            End::Error(_) => "error",
        };
        self.parts.metrics.builds.with_label_values(&[result]).inc();
    }

    async fn obtain(self: &Arc<Self>, spec: &Arc<DeploymentSpec>, digest: Digest, run: &Arc<Run>) -> End {
        let started = Instant::now();
        let ready = |build, how| End::Ready { build, how, took: started.elapsed() };
        if let Some(build) = self.parts.cache.get(digest) {
            return ready(build, How::Cached);
        }
        let mut made = self.fetch_or_build(spec, digest, run).await;
        if matches!(&made, Err(BuildFailure::DiskFull(_))) && self.parts.cache.evict_unused() {
            tracing::warn!(build = %digest, "the disk is full: builds that are not in use are removed for this one");
            made = self.fetch_or_build(spec, digest, run).await;
        }
        match made {
            Ok((build, how)) => {
                if matches!(how, How::Built) {
                    tracing::info!(build = %digest, ms = started.elapsed().as_millis(), "built");
                }
                ready(build, how)
            }
            Err(BuildFailure::User(reason)) => {
                tracing::info!(build = %digest, %reason, "a build failed");
                End::Failed(reason)
            }
            Err(failure) => {
                let error = Chain(&failure);
                tracing::error!(%error, build = %digest, "a build could not be run");
                End::Error(Chain(&failure).to_string())
            }
        }
    }

    async fn fetch_or_build(
        self: &Arc<Self>,
        spec: &Arc<DeploymentSpec>,
        digest: Digest,
        run: &Arc<Run>,
    ) -> Result<(BuildHandle, How), BuildFailure> {
        match self.fetch(spec, digest).await {
            Ok(Some(build)) => return Ok((build, How::Fetched)),
            Ok(None) => {}
            Err(full @ BuildFailure::DiskFull(_)) => return Err(full),
            Err(error) => {
                let error = Chain(&error);
                tracing::warn!(%error, build = %digest, "a stored build cannot be used: building it again");
            }
        }
        let (unpacked, turn) = self.unpacked(spec).await?;
        if unpacked.recipe.is_none() {
            return Ok((self.finished(spec, digest, run, unpacked, turn).await?, How::Built));
        }
        // Who waits for another node's build keeps no other build from its turn.
        drop(turn);
        let finished = async { self.finished(spec, digest, run, unpacked, self.turn().await).await };
        self.claimed(spec, digest, run, finished).await
    }

    async fn turn(&self) -> SemaphorePermit<'_> {
        self.turns.acquire().await.expect("the semaphore is never closed")
    }

    /// The build from the artifact store, if some node has stored it. One without a recipe never is: its archive
    /// is there anyway.
    async fn fetch(
        self: &Arc<Self>,
        spec: &DeploymentSpec,
        digest: Digest,
    ) -> Result<Option<BuildHandle>, BuildFailure> {
        if self.parts.runtimes.get(&spec.runtime).is_none_or(|runtime| runtime.build.is_none()) {
            return Ok(None);
        }
        let _turn = self.fetches.acquire().await.expect("the semaphore is never closed");
        let place = self.parts.cache.workplace()?;
        let (packed, tree) = (place.path().join("build.tar.gz"), place.path().join("tree"));
        let max_bytes = max_extent(&self.parts.args).bytes;
        let fetched = self.parts.calls.fetch_build(spec.deployment, digest, &packed, max_bytes).await;
        if !fetched.map_err(transfer(BuildFailure::Fetch))? {
            return Ok(None);
        }
        let builds = Arc::clone(self);
        let build = tokio::task::spawn_blocking(move || {
            let args = &builds.parts.args;
            unpack(packed::open(&packed)?, None, &tree, &packed_caps(args))?;
            let extent = tree::seal(&tree, max_extent(args))?;
            let build = builds.parts.cache.insert(digest, &tree, extent)?;
            drop(place);
            Ok::<_, BuildFailure>(build)
        });
        build.await?.map(Some)
    }

    async fn finished(
        self: &Arc<Self>,
        spec: &DeploymentSpec,
        digest: Digest,
        run: &Run,
        unpacked: Unpacked<'_>,
        _turn: SemaphorePermit<'_>,
    ) -> Result<BuildHandle, BuildFailure> {
        let Unpacked { place, work, recipe } = unpacked;
        let mut disk = None;
        if let Some(recipe) = recipe {
            disk = self.parts.sandboxes.disk(&work).await;
            self.run_recipe(&spec.entrypoint, recipe, &work, run).await?;
        }
        let output = recipe.and_then(|recipe| recipe.output.clone());
        let (builds, packed) = (Arc::clone(self), place.path().join("build.tar.gz"));
        let packing = recipe.is_some().then(|| packed.clone());
        let sealed = tokio::task::spawn_blocking(move || {
            let tree = tree::output(&work, output.as_deref())?;
            let extent = tree::seal(&tree, max_extent(&builds.parts.args))?;
            if let Some(packed) = packing {
                tree::pack(&tree, &packed)?;
                packed::stamp(&packed)?;
            }
            Ok::<_, BuildFailure>((tree, extent))
        });
        let (tree, extent) = sealed.await??;
        if recipe.is_some() {
            self.parts
                .calls
                .put_build(spec.deployment, digest, &packed)
                .await
                .map_err(transfer(BuildFailure::Store))?;
        }
        let builds = Arc::clone(self);
        let inserted = tokio::task::spawn_blocking(move || {
            let (mut tree, mut extent) = (tree, extent);
            if let Some(disk) = disk {
                // A rename does not lead from one file system to another.
                drop(disk);
                tree = place.path().join("tree");
                unpack(packed::open(&packed)?, None, &tree, &packed_caps(&builds.parts.args))?;
                extent = tree::measure(&tree)?;
            }
            let build = builds.parts.cache.insert(digest, &tree, extent)?;
            drop(place);
            Ok::<_, BuildFailure>(build)
        });
        inserted.await?
    }

    /// Runs the recipe's command in a sandbox of its own; its lines become the run's log.
    async fn run_recipe(&self, entrypoint: &str, recipe: &Recipe, work: &Path, run: &Run) -> Result<(), BuildFailure> {
        let job = BuildJob {
            images: recipe.images.clone(),
            command: recipe.build_command(entrypoint),
            env: recipe.env.clone(),
            network: recipe.network,
            work: work.to_owned(),
        };
        let (lines, mut printed) = mpsc::channel(LINES_QUEUE);
        let logging = async {
            while let Some(line) = printed.recv().await {
                run.log(line);
            }
        };
        let (exit, ()) = tokio::join!(self.parts.sandboxes.build(job, lines), logging);
        match exit?.failure(&self.parts.args) {
            None => Ok(()),
            Some(reason) => Err(BuildFailure::User(reason)),
        }
    }
}
