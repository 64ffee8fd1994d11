//! One deploy after its archive was found sound: its turn, its row, its build, and the moment from which it serves.
//! It runs to its end whether or not its client still listens.

use std::sync::Arc;
use std::time::Duration;

use common::digest::Digest;
use common::error::{Code, Fault};
use common::ids::{DeploymentId, FunctionId, GatewayId, InvocationId, UserId};
use common::names::{FunctionName, RuntimeName};
use common::protocol::BuildEvent;
use futures_util::{Stream, StreamExt as _};
use serde::Serialize;
use store::artifacts::{Artifact, Incoming};
use store::claims::Claim;
use store::{Function, NewDeployment, PendingDeployment};
use tokio::sync::mpsc;
use tokio::time::{Instant, MissedTickBehavior};

use super::State;
use super::auth::rfc3339;
use super::build_log::BuildLog;
use super::error::Failure;
use super::functions::{self, reload_routes};
use super::lanes::LanePlace;
use super::plan::Plan;
use crate::edge::routes::LeftOut;
use crate::fleet::NoNode;

/// How long a deploy that is under way may go on once the gateway stops.
pub(crate) const STOP_GRACE: Duration = Duration::from_secs(20);
/// How long a line of the log may wait for others before it goes to the store.
const LOG_PAUSE: Duration = Duration::from_secs(1);

/// A deploy that waits for its turn.
pub(crate) struct Release {
    pub(crate) state: Arc<State>,
    pub(crate) request: InvocationId,
    pub(crate) owner: UserId,
    pub(crate) name: FunctionName,
    pub(crate) plan: Plan,
    pub(crate) archive: Incoming,
    /// What the function's URL begins with.
    pub(crate) base: String,
    pub(crate) place: LanePlace,
    pub(crate) deadline: Instant,
}

/// The answer of a deploy that serves.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Released {
    id: FunctionId,
    name: FunctionName,
    version: u32,
    deployment_id: DeploymentId,
    status: &'static str,
    /// Whether the function is new.
    pub(crate) is_first_deployment: bool,
    runtime: RuntimeName,
    url: String,
    created_at: String,
    build_ms: u64,
    build_cached: bool,
    messages: Vec<String>,
}

/// What a node says of a build that succeeded.
struct Built {
    build_ms: u64,
    cached: bool,
}

impl Release {
    /// Waits for its turn, then does it all. Each line of the log goes to `follower` as it comes.
    pub(crate) async fn run(self, follower: mpsc::Sender<String>) -> Result<Released, Failure> {
        let (state, request) = (Arc::clone(&self.state), self.request);
        let started = Instant::now();
        let result = self.take_turn(follower).await;
        state.deploys.observe(started.elapsed(), result.as_ref().map_err(Failure::code));
        match &result {
            Ok(released) => tracing::info!(
                request_id = %request, function = %released.id, deployment = %released.deployment_id,
                version = released.version, build_ms = released.build_ms, "deployed"
            ),
            Err(failure) => failure.log(request),
        }
        result
    }

    async fn take_turn(self, follower: mpsc::Sender<String>) -> Result<Released, Failure> {
        let Self { state, owner, name, plan, archive, base, place, deadline, .. } = self;
        let clock = Clock { state: &state, deadline };
        // First the function's own turn: who waits for another version of the same function takes no builder's place.
        let _turn = clock.limit(place.turn(), waited).await?;
        // Then the archive's: who comes second, at any gateway, finds the build there.
        let claimed = clock.limit(state.claims.wait(Claim::Archive(archive.digest())), waited).await??;
        let made = claimed.during(make(&state, &clock, (owner, name, &plan), archive, follower)).await?;
        let Made { pending, mut log, built } = made;
        let deployment = pending.spec.deployment;
        // So that nobody meets a cold version who had a warm one before. It stays warm until the routes have it.
        let _warming = if built.is_ok() { state.fleet.warm_up(&pending.spec).await } else { None };
        let activated = match built {
            Ok(built) => activate(&state, &pending, &mut log, built).await,
            Err(failure) => Err(failure),
        };
        let (function, built) = match activated {
            Ok(activated) => activated,
            Err(failure) => return Err(abandon(&state, &pending, log, failure).await),
        };
        log.flush().await;
        if let Err(failure) = reload_routes(&state).await {
            // It serves: what is not read now, the feed tells.
            tracing::warn!(%deployment, ?failure, "a new version serves, but the routes could not be read");
        }
        // Another gateway may have activated a later version meanwhile; then ours is the one that nobody needs.
        if function.active.as_ref().is_none_or(|active| active.spec.deployment != deployment) {
            let on_its_way = state.routes.now().by_deployment(deployment).is_some();
            let forgotten = if on_its_way { Vec::new() } else { vec![deployment] };
            state.fleet.let_go(&LeftOut { retired: vec![deployment], forgotten });
        }
        Ok(released(function, pending, built, &base, plan.messages))
    }
}

/// A version that has a row, and a build if that went well.
struct Made {
    pending: PendingDeployment,
    log: BuildLog,
    built: Result<Built, Failure>,
}

/// Keeps the archive, gives the version its row, and has it built. From its row on a sweep knows the archive; until then
/// the claim keeps it.
async fn make(
    state: &State,
    clock: &Clock<'_>,
    (owner, name, plan): (UserId, FunctionName, &Plan),
    archive: Incoming,
    follower: mpsc::Sender<String>,
) -> Result<Made, Failure> {
    let _builder = clock.limit(state.deploys.building.acquire(), waited).await?;
    let digest = archive.digest();
    archive.keep(Artifact::Archive(digest)).await.map_err(Failure::artifacts)?;
    let pending = state.store.create_deployment(new_deployment(state.gateway, owner, name, digest, plan)).await?;
    let mut log = BuildLog::new(Arc::clone(&state.store), pending.spec.deployment, follower);
    for message in &plan.messages {
        log.deploy(message).await;
    }
    let built = build(state, clock, &pending, &mut log).await;
    Ok(Made { pending, log, built })
}

/// A deploy's time went by before its turn came.
fn waited() -> Failure {
    Failure::new(Code::Busy, "other deploys took all of this one's time: try again")
}

fn new_deployment(
    gateway: GatewayId,
    owner: UserId,
    name: FunctionName,
    archive: Digest,
    plan: &Plan,
) -> NewDeployment {
    NewDeployment {
        id: DeploymentId::new(),
        gateway,
        function_if_new: FunctionId::new(),
        owner,
        name,
        runtime: plan.detected.runtime.clone(),
        entrypoint: plan.detected.entrypoint.clone(),
        archive,
        archive_root: plan.archive_root.clone(),
        access: plan.access,
        contract: plan.contract,
        limits: plan.limits,
        env: plan.env.clone(),
        egress: plan.egress,
        stale_while_cold_ms: plan.stale_while_cold_ms,
        node_selector: plan.node_selector.clone(),
    }
}

fn released(
    function: Function,
    pending: PendingDeployment,
    built: Built,
    base: &str,
    messages: Vec<String>,
) -> Released {
    Released {
        id: function.id,
        version: pending.spec.version,
        deployment_id: pending.spec.deployment,
        status: "active",
        is_first_deployment: pending.is_first,
        runtime: pending.spec.runtime,
        url: functions::url(base, &function),
        created_at: rfc3339(function.created_at),
        build_ms: built.build_ms,
        build_cached: built.cached,
        messages,
        name: function.name,
    }
}

/// Has a node build it.
async fn build(
    state: &State,
    clock: &Clock<'_>,
    pending: &PendingDeployment,
    log: &mut BuildLog,
) -> Result<Built, Failure> {
    let slow = || Failure::new(Code::BuildFailed, "the build did not end in time");
    let no_node = |cause: NoNode| Failure::new(Code::NoNode, cause.to_string());
    let events = clock.limit(state.fleet.build(&pending.spec), slow).await?.map_err(no_node)?;
    clock.limit(follow_build(events, log), slow).await?
}

async fn follow_build(events: impl Stream<Item = BuildEvent>, log: &mut BuildLog) -> Result<Built, Failure> {
    let mut events = std::pin::pin!(events);
    let mut pause = tokio::time::interval(LOG_PAUSE);
    pause.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        let event = tokio::select! {
            event = events.next() => event,
            _ = pause.tick() => {
                log.flush().await;
                continue;
            }
        };
        match event {
            Some(BuildEvent::Log { line }) => log.build(&line).await,
            Some(BuildEvent::Built { build_ms, cached }) => return Ok(Built { build_ms, cached }),
            Some(BuildEvent::Failed { reason }) => return Err(Failure::new(Code::BuildFailed, reason)),
            Some(BuildEvent::Error { reason }) => {
                let sentence = "the node could not run the build: try again; the platform's log has the cause";
                return Err(Failure::caused(Code::NoSandbox, sentence, reason));
            }
            None => {
                return Err(Failure::new(Code::NoNode, "the node went away during the build: deploy again"));
            }
        }
    }
}

/// Makes it the version that serves.
async fn activate(
    state: &State,
    pending: &PendingDeployment,
    log: &mut BuildLog,
    built: Built,
) -> Result<(Function, Built), Failure> {
    match state.store.activate_deployment(pending.spec.deployment, built.build_ms).await {
        Ok(function) => {
            let cached = if built.cached { " (the build was there already)" } else { "" };
            log.deploy(&format!("version {} serves after {} ms{cached}", pending.spec.version, built.build_ms)).await;
            Ok((function, built))
        }
        Err(store::Error::NotFound) => {
            Err(Failure::new(Code::Conflict, "the function was deleted while this version was built"))
        }
        Err(error) => Err(error.into()),
    }
}

/// Ends a deploy that will not serve. The version that serves goes on; a function that is new and failed for our
/// fault is not left behind, unless another gateway has a version of it by now.
async fn abandon(state: &State, pending: &PendingDeployment, mut log: BuildLog, failure: Failure) -> Failure {
    let shown = if failure.code() == Code::BuildFailed { Some(log.tail()) } else { None };
    log.deploy(&format!("version {} failed: {}", pending.spec.version, failure.message())).await;
    log.flush().await;
    let ended = if pending.is_first && failure.code().fault() == Fault::Platform {
        state.store.abandon_deployment(pending.spec.deployment, failure.message()).await
    } else {
        state.store.fail_deployment(pending.spec.deployment, failure.message()).await
    };
    // At the next start it is failed with all that did not finish.
    if let Err(error) = ended {
        tracing::warn!(deployment = %pending.spec.deployment, %error, "a failed version stays `building`");
    }
    match shown {
        Some(log) => failure.with_log(log),
        None => failure,
    }
}

/// How long a deploy may still take.
struct Clock<'a> {
    state: &'a State,
    deadline: Instant,
}

impl Clock<'_> {
    /// Runs `step` until the deploy's deadline (then it fails as `late` says), or until the gateway has stopped for
    /// [`STOP_GRACE`].
    async fn limit<T>(&self, step: impl Future<Output = T>, late: impl FnOnce() -> Failure) -> Result<T, Failure> {
        let stopped = async {
            self.state.stop.cancelled().await;
            tokio::time::sleep(STOP_GRACE).await;
        };
        tokio::select! {
            value = step => Ok(value),
            () = tokio::time::sleep_until(self.deadline) => Err(late()),
            () = stopped => Err(Failure::new(Code::Stopping, "the platform is restarting: deploy again in a moment")),
        }
    }
}
