//! From a blueprint to a running container with a runner that has dialled, and back to nothing. What a sandbox takes
//! of the machine is a value, its [`Claim`]: whatever goes wrong on the way, dropping that gives it all back.

use std::collections::HashMap;
use std::io;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use common::ids::{NodeId, SandboxId};
use tokio::runtime::Handle;
use tokio_util::task::TaskTracker;

use super::cgroup::Group;
use super::docker::{DockerError, Engine, Image};
use super::fence::Fence;
use super::frost::{Frost, Ice, Warmth};
use super::mounts::{Ground, MountError, Room};
use super::runner_link::{Link, Threshold};
use super::spec::{self, Bind, Blueprint, Limits};
use super::{SandboxArgs, Sandboxes};

/// How long a runner may take from its container's start until it dials.
const DIAL_LIMIT: Duration = Duration::from_secs(20);
/// How often it is looked for what nobody knows to be left behind: an Engine that was asked to make a container and was
/// not waited for, since it took too long or the call was given up, may make it later all the same.
const SWEEP: Duration = Duration::from_secs(60);
/// How often it is looked whether there is something to sweep up.
const ROUND: Duration = Duration::from_secs(1);
/// User ids from the first one on.
const UIDS: u32 = 100_000;

/// A sandbox could not be started. What each means for the operator is in its sentence.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Fault {
    #[error(transparent)]
    Docker(#[from] DockerError),
    #[error(transparent)]
    Mount(#[from] MountError),
    #[error("the sandbox's socket: {0}")]
    Link(#[source] io::Error),
    #[error("the sandbox's runner did not dial within {} s", DIAL_LIMIT.as_secs())]
    Silent,
    #[error("the sandbox ended before its runner dialled: {0}")]
    Ended(String),
    #[error(
        "what is mounted for a sandbox does not appear in it: mount the agent's data directory `rshared` where the \
         agent runs in a container, and use an image without symbolic links at /function and /result.json"
    )]
    Unfurnished,
    #[error("the function's environment is too large")]
    Environment,
    #[error("the build's work directory: {0}")]
    Work(#[source] io::Error),
    #[error(
        "the network cannot be closed towards this machine ({0}): install iptables and let the agent run as root in the \
         machine's own network, or make a network with rules of your own and name it by SANDBOX_NETWORK"
    )]
    Fence(#[source] io::Error),
    #[error("the runtime is unknown on this node: add its file")]
    Runtime,
    #[error("the sandbox's memory cannot be limited: {0}")]
    Memory(#[source] io::Error),
}

impl Fault {
    /// Whether it is the function's own.
    pub(crate) fn is_of_function(&self) -> bool {
        matches!(self, Self::Environment)
    }
}

/// All that sandboxes are made from.
#[derive(Debug)]
pub(crate) struct Site {
    pub(crate) node: NodeId,
    pub(crate) engine: Engine,
    pub(crate) ground: Ground,
    runner: PathBuf,
    names: Mutex<Names>,
    /// The network that the operator named for those that have one.
    named_network: Option<String>,
    /// Held while the node's own network is looked for, and made.
    making_network: tokio::sync::Mutex<()>,
    pub(super) fence: Fence,
    pub(super) frost: Frost,
    /// Something could not be removed, and is to be swept up.
    littered: AtomicBool,
    swept: Mutex<Instant>,
    tasks: TaskTracker,
    runtime: Handle,
}

/// What no two sandboxes that live have in common.
#[derive(Debug)]
struct Names {
    first_uid: u32,
    next_uid: u32,
    taken: HashMap<SandboxId, u32>,
}

/// What a sandbox takes of the machine. Dropping it gives that back, in the background.
#[derive(Debug)]
pub(crate) struct Claim {
    site: Arc<Site>,
    id: SandboxId,
    uid: u32,
    room: Room,
    cleared: bool,
}

/// A container whose runner waits for work.
#[derive(Debug)]
pub(crate) struct Sandbox {
    // First of all: what is frozen does not notice that its link is gone.
    warmth: Warmth,
    pub(crate) link: Link,
    group: Option<Group>,
    memory_mb: u32,
    // After the link, so that the runner ends itself while Docker is still asked to.
    claim: Claim,
}

/// What differs between sandboxes.
pub(crate) struct Wish {
    pub(crate) image: Image,
    pub(crate) limits: Limits,
    pub(crate) network: Option<String>,
    pub(crate) mounts: Vec<Bind>,
}

impl Site {
    pub(crate) fn new(node: NodeId, engine: Engine, ground: Ground, runner: PathBuf, args: &SandboxArgs) -> Self {
        // Two agents on one machine seldom begin at the same id.
        let offset = u32::try_from(node.uuid().as_u128() % u128::from(UIDS)).unwrap_or(0);
        let names = Mutex::new(Names { first_uid: args.sandbox_first_uid, next_uid: offset, taken: HashMap::new() });
        Self {
            node,
            engine,
            ground,
            runner,
            names,
            named_network: args.sandbox_network.clone(),
            making_network: tokio::sync::Mutex::default(),
            fence: Fence::new(node, &args.sandbox_network_allow),
            frost: Frost::new(args.sandbox_freeze_after_ms),
            littered: AtomicBool::new(false),
            swept: Mutex::new(Instant::now()),
            tasks: TaskTracker::new(),
            runtime: Handle::current(),
        }
    }

    fn names(&self) -> MutexGuard<'_, Names> {
        self.names.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn lives(&self, sandbox: &str) -> bool {
        sandbox.parse().is_ok_and(|id: SandboxId| self.names().taken.contains_key(&id))
    }

    /// Removals that run in the background.
    pub(crate) fn tasks(&self) -> &TaskTracker {
        &self.tasks
    }

    /// The network, where one is `wanted`.
    pub(crate) async fn network(&self, wanted: bool) -> Result<Option<String>, Fault> {
        if !wanted {
            return Ok(None);
        }
        if let Some(name) = &self.named_network {
            return Ok(Some(name.clone()));
        }
        let _turn = self.making_network.lock().await;
        self.fence.stand().await.map_err(Fault::Fence)?;
        Ok(Some(self.engine.network(self.node, self.fence.bridge()).await?))
    }

    /// Has the rules around the network stand again where something swept them away.
    pub(crate) async fn hold_fence(&self) {
        match self.fence.hold().await {
            Ok(false) => {}
            Ok(true) => tracing::warn!("the rules around the sandboxes' network had been swept away, and stand again"),
            Err(error) => tracing::error!(
                %error,
                "the rules around the sandboxes' network are gone and cannot be put up: they may reach this machine"
            ),
        }
    }

    /// Takes a directory and a user id.
    pub(crate) fn claim(self: &Arc<Self>) -> Result<Claim, Fault> {
        let id = SandboxId::new();
        let uid = self.names().take(id);
        let claim = Claim { site: Arc::clone(self), id, uid, room: self.ground.room(id), cleared: false };
        claim.room.make()?;
        Ok(claim)
    }

    /// Removes containers of ours that no claim stands for, when some are known to be there, and now and then.
    async fn sweep(&self) {
        {
            let mut swept = self.swept.lock().unwrap_or_else(PoisonError::into_inner);
            if !self.littered.swap(false, Ordering::Relaxed) && swept.elapsed() < SWEEP {
                return;
            }
            *swept = Instant::now();
        }
        let removed = async {
            for (container, sandbox) in self.engine.list(self.node).await? {
                if !self.lives(&sandbox) {
                    self.engine.remove(&container).await?;
                }
            }
            Ok::<_, DockerError>(())
        };
        if let Err(error) = removed.await {
            tracing::warn!(%error, "sandboxes are left behind; trying again");
            self.littered.store(true, Ordering::Relaxed);
        }
    }

    /// As if the last sweep were long ago.
    #[cfg(test)]
    pub(crate) fn age(&self) {
        *self.swept.lock().unwrap() = Instant::now().checked_sub(SWEEP).unwrap();
    }
}

impl Sandboxes {
    /// Sweeps up what is left behind, until the node closes. A loop of its own: while the Engine hangs, a sweep takes
    /// half a minute, and nothing else shall wait for it.
    pub(super) async fn keep_swept(self: Arc<Self>) {
        let mut round = tokio::time::interval(ROUND);
        round.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                _ = round.tick() => {}
                () = self.stop.cancelled() => return,
            }
            self.site.sweep().await;
        }
    }
}

impl Claim {
    pub(crate) fn uid(&self) -> u32 {
        self.uid
    }

    pub(crate) fn room(&self) -> &Room {
        &self.room
    }

    /// Starts the container and waits for its runner.
    pub(crate) async fn occupy(self, wish: Wish) -> Result<Sandbox, Fault> {
        let site = &self.site;
        let threshold = Threshold::open(&self.room.link(), self.uid).map_err(Fault::Link)?;
        let container = spec::container(&Blueprint {
            node: site.node,
            sandbox: self.id,
            image: wish.image.id,
            uid: self.uid,
            limits: wish.limits,
            network: wish.network,
            runner: site.runner.clone(),
            link: self.room.link(),
            mounts: wish.mounts,
        });
        let name = name(self.id);
        site.engine.start(&name, container).await?;
        let link = tokio::select! {
            link = tokio::time::timeout(DIAL_LIMIT, threshold.accept()) => match link {
                Ok(link) => link.map_err(Fault::Link)?,
                Err(_) => return Err(Fault::Silent),
            },
            end = site.engine.end(&name) => return Err(Fault::Ended(end)),
        };
        let group = Group::of(link.pid());
        if let Err(error) = &group {
            tracing::warn!(%error, "a sandbox's control group cannot be read: want of memory will look like a crash");
        }
        let warmth = site.frost.warmth(link.pid());
        Ok(Sandbox { warmth, link, group: group.ok(), memory_mb: wish.limits.memory_mb, claim: self })
    }

    /// Gives everything back. An error is logged, and what is left is swept up later.
    async fn clear(mut self) {
        self.cleared = true;
        let (site, id) = (Arc::clone(&self.site), self.id);
        if let Err(error) = site.engine.remove(&name(id)).await {
            tracing::warn!(sandbox = %id, %error, "the container is left behind for now");
            site.littered.store(true, Ordering::Relaxed);
        }
        site.names().taken.remove(&id);
        if let Err(error) = self.room.remove() {
            tracing::warn!(sandbox = %id, %error, "the sandbox's directory is left behind");
        }
    }
}

impl Drop for Claim {
    fn drop(&mut self) {
        if self.cleared {
            return;
        }
        let claim = Self {
            site: Arc::clone(&self.site),
            id: self.id,
            uid: self.uid,
            room: self.site.ground.room(self.id),
            cleared: true,
        };
        self.site.tasks.spawn_on(claim.clear(), &self.site.runtime);
    }
}

impl Sandbox {
    pub(crate) fn id(&self) -> SandboxId {
        self.claim.id
    }

    pub(crate) fn room(&self) -> &Room {
        &self.claim.room
    }

    /// Whether its processes run, rest or are frozen.
    pub(crate) fn ice(&self) -> &Arc<Ice> {
        self.warmth.ice()
    }

    /// Whether the kernel killed in it for want of memory since this was asked last.
    pub(crate) fn ran_out_of_memory(&mut self) -> bool {
        self.group.as_mut().is_some_and(Group::ran_out_of_memory)
    }

    /// The memory that it uses, in bytes, where that can be read.
    pub(crate) fn memory_used(&self) -> Option<u64> {
        self.group.as_ref().and_then(|group| group.memory_used().ok())
    }

    /// Lets it use as much memory as a deployment grants. The Engine learns of it in the background: what it shows
    /// is true a moment later, and no call waits for that.
    pub(crate) fn limit_memory(&mut self, memory_mb: u32) -> io::Result<()> {
        if memory_mb == self.memory_mb {
            return Ok(());
        }
        let group = self.group.as_ref().ok_or_else(|| io::Error::other("its control group cannot be found"))?;
        group.limit_memory(u64::from(memory_mb) * 1024 * 1024)?;
        self.memory_mb = memory_mb;
        let (site, id) = (Arc::clone(&self.claim.site), self.claim.id);
        let told = async move {
            if let Err(error) = site.engine.limit_memory(&name(id), memory_mb).await {
                // Most often it is gone already.
                tracing::debug!(sandbox = %id, %error, "the Engine was not told of a sandbox's memory");
            }
        };
        self.claim.site.tasks.spawn_on(told, &self.claim.site.runtime);
        Ok(())
    }

    /// Ends it and waits until it is gone.
    pub(crate) async fn remove(self) {
        let Self { warmth, link, claim, .. } = self;
        drop(warmth);
        drop(link);
        claim.clear().await;
    }
}

impl Names {
    /// A user id for `id`: the next that no sandbox has. They go round, so one that was just given up, whose container
    /// Docker may not have removed yet, is not given out again soon.
    fn take(&mut self, id: SandboxId) -> u32 {
        loop {
            let uid = self.first_uid + self.next_uid % UIDS;
            self.next_uid = self.next_uid.wrapping_add(1);
            if !self.taken.values().any(|taken| *taken == uid) {
                self.taken.insert(id, uid);
                return uid;
            }
        }
    }
}

fn name(id: SandboxId) -> String {
    format!("dartcloud-{id}")
}
