//! The node agent: builds archives, keeps sandboxes, runs invocations, and ships their records. [`run`] is the one
//! place where its parts meet.

use std::fs::{DirBuilder, File, Permissions};
use std::io;
use std::net::SocketAddr;
use std::os::unix::fs::{DirBuilderExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use common::function::DeploymentSpec;
use common::ids::{DeploymentId, InvocationId};
use common::ops::Readiness;
use common::protocol::{INVOCATION, NodeState, ORDER, ORDER_BUILD, ORDER_INVOKE, Warm};
use common::runtime::{InvalidRuntime, Runtimes};
use common::settings::Shared;
use futures_util::StreamExt as _;
use http::{Request, Response, StatusCode};
use http_body::Frame;
use http_body_util::{BodyExt as _, Limited, StreamBody};
use hyper::body::Incoming;
use prometheus::Registry;
use store::StoreArgs;
use tokio::time::{Instant, timeout_at};
use tokio_util::sync::CancellationToken;
use tokio_util::task::AbortOnDropHandle;

use answers::Answers;
use build::Builds;
use build_cache::BuildCache;
use deployments::Deployments;
use invocation::Invocations;
use kept::Kept;
use link::calls::Calls;
use link::{AnswerBody, Cut, GatewayNumber, Gateways, LEAVE_GRACE, Links, Orders, Stops};
use metrics::Metrics;
use renewal::Renewal;
use sandbox::Sandboxes;
use server::Servers;
use spool::{LinkSink, Ship, Spool, SpoolError, StoreSink};

mod answers;
mod backoff;
mod build;
mod build_cache;
mod config;
mod deployments;
pub mod doctor;
pub mod enrol;
pub mod identity;
mod invocation;
mod kept;
mod link;
mod metrics;
pub mod program;
mod renewal;
pub mod sandbox;
mod server;
mod spool;
mod station;

pub use answers::AnswersArgs;
pub use build_cache::BuildCacheArgs;
pub use config::Settings;
pub use link::LinkArgs;
pub use sandbox::check_engine;
pub use spool::SpoolArgs;
pub use station::machine_name;
use station::{Station, station};

/// How long calls under way have to finish after the stop.
const DRAIN_DEADLINE: Duration = Duration::from_secs(30);
/// How long calls that were cut off have to write their records.
const RECORD_GRACE: Duration = Duration::from_secs(2);
/// Largest build order, in bytes: a deployment with its whole environment.
const MAX_ORDER_BYTES: usize = 1024 * 1024;

/// The agent cannot start; the sentence says what to do.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The data directory is of no use.
    #[error("cannot use {path} (under DATA_DIR): give this node a directory that it may write")]
    DataDir {
        /// What could not be used.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The data directory is somebody else's.
    #[error("another node agent uses {0}: stop it, or give this one another DATA_DIR")]
    Locked(PathBuf),
    /// The file holds something else than a node id.
    #[error("{0} does not hold a node id: remove it, and this machine becomes a new node")]
    NodeId(PathBuf),
    /// A runtime's file cannot be used.
    #[error("RUNTIMES_DIR cannot be used")]
    Runtimes(#[from] InvalidRuntime),
    /// The settings of the store cannot be used.
    #[error("the store's settings cannot be used")]
    Store(#[from] store::Error),
    /// The process has an agent already.
    #[error("the metrics cannot be registered: only one agent can run in a process")]
    Metrics(#[from] prometheus::Error),
    /// The place in a fleet is of no use.
    #[error(transparent)]
    Identity(#[from] identity::IdentityError),
    /// A gateway of another machine is named, and there is no certificate for it.
    #[error("GATEWAY_URL is set, but this machine has not joined a fleet: run the line of `dartcloud node token` here")]
    NotJoined,
    /// Metrics and probes have no place.
    #[error("cannot listen on {address} (OPS_ADDR): name a free one")]
    Ops {
        /// Where.
        address: SocketAddr,
        /// Why.
        source: io::Error,
    },
    /// The end could not be asked for.
    #[error("signals cannot be watched")]
    Signals(#[source] io::Error),
    /// Sandboxes cannot be had here.
    #[error(transparent)]
    Sandbox(#[from] sandbox::SandboxesError),
}

/// Runs a node agent until `stop`, then drains: calls under way are answered, their records kept.
///
/// # Errors
/// The agent cannot start; once it runs it does not fail.
pub async fn run(
    settings: Settings,
    shared: Shared,
    store: StoreArgs,
    registry: Registry,
    readiness: Readiness,
    stop: CancellationToken,
) -> Result<(), StartError> {
    let Shared { place, bodies, archives } = shared;
    let data_dir = &place.data_dir;
    let _lock = lock(data_dir)?;
    let Station { node, ways, identity } = station(&settings, data_dir, place.link_socket())?;
    let metrics = Metrics::new(&registry)?;
    let runtimes = Arc::new(Runtimes::load(place.runtimes_dir.as_deref())?);
    let gateways = Gateways::new(node, ways);
    let calls = Calls::new(Arc::clone(&gateways));
    let (notices, _renewal) = Renewal::start(identity, data_dir, &calls, &metrics, &stop);
    let sink = sink(&store, &calls).await?;
    let spool = Arc::new(within(data_dir, "spool", |path| Spool::open(path, &settings.spool, Arc::clone(&metrics)))?);
    let answers = within(data_dir, "answers", |path| Answers::open(path, settings.answers, Arc::clone(&metrics)))?;
    within(data_dir, "builds", sandbox::release)?;
    let cache = within(data_dir, "builds", |path| {
        BuildCache::open(path.to_owned(), settings.build_cache.bytes(), Arc::clone(&metrics))
    })?;
    let sandboxes = Sandboxes::open(&settings.sandbox, node, data_dir, Arc::clone(&runtimes), &registry).await?;
    let deployments = Arc::new(Deployments::new(Arc::clone(&calls)));
    let builds = Builds::new(build::Parts {
        runtimes,
        calls: Arc::clone(&calls),
        cache,
        sandboxes: Arc::clone(&sandboxes),
        caps: archives,
        args: settings.sandbox.build.clone(),
        metrics: Arc::clone(&metrics),
    });
    let servers = Servers::new(Arc::clone(&sandboxes), Arc::clone(&builds));
    let invocations = Invocations::new(invocation::Parts {
        node,
        bodies,
        held: settings.bodies,
        stale: settings.stale,
        deployments: Arc::clone(&deployments),
        builds: Arc::clone(&builds),
        sandboxes: Arc::clone(&sandboxes),
        servers: Arc::clone(&servers),
        spool: Arc::clone(&spool),
        answers: Arc::clone(&answers),
        metrics: Arc::clone(&metrics),
    });
    let kept = Kept::new(Arc::clone(&deployments), Arc::clone(&builds), Arc::clone(&sandboxes), Arc::clone(&servers));
    let agent = Arc::new(Agent {
        deployments,
        builds,
        invocations,
        servers,
        kept,
        sandboxes,
        spool,
        answers,
        calls,
        metrics: Arc::clone(&metrics),
        cpus: std::thread::available_parallelism().ok().and_then(|cpus| u32::try_from(cpus.get()).ok()),
    });
    let links = Links {
        gateways,
        name: settings.node_name.unwrap_or_else(machine_name),
        labels: settings.node_labels,
        args: settings.link,
        orders: Arc::clone(&agent) as Arc<dyn Orders>,
        readiness,
        metrics,
        // In one process with the gateway they are its own, too.
        told: (!settings.is_local).then_some(registry),
        notices,
    };
    agent.serve(links, sink, stop).await;
    Ok(())
}

/// Where records go: into the database, if we have its URL, else over the link.
async fn sink(store: &StoreArgs, calls: &Arc<Calls>) -> Result<Arc<dyn Ship>, StartError> {
    Ok(match store::record_sink(store).await? {
        Some(store) => Arc::new(StoreSink(store)),
        None => Arc::new(LinkSink(Arc::clone(calls))),
    })
}

/// The parts, once they are made.
struct Agent {
    deployments: Arc<Deployments>,
    builds: Arc<Builds>,
    invocations: Arc<Invocations>,
    servers: Arc<Servers>,
    kept: Arc<Kept>,
    sandboxes: Arc<Sandboxes>,
    spool: Arc<Spool>,
    answers: Arc<Answers>,
    calls: Arc<Calls>,
    metrics: Arc<Metrics>,
    /// Those that it may use, if that can be told.
    cpus: Option<u32>,
}

impl Agent {
    /// Runs the parts that run by themselves, and on `stop` ends all, each after those that need it.
    async fn serve(&self, links: Links, sink: Arc<dyn Ship>, stop: CancellationToken) {
        let (stops, stop_spool) = (Stops::default(), CancellationToken::new());
        let mut linked = AbortOnDropHandle::new(tokio::spawn(links.run(stops.clone())));
        let spooled = AbortOnDropHandle::new(tokio::spawn(Arc::clone(&self.spool).run(sink, stop_spool.clone())));
        let answered = AbortOnDropHandle::new(tokio::spawn(Arc::clone(&self.answers).run(stop_spool.clone())));
        stop.cancelled().await;
        let deadline = Instant::now() + DRAIN_DEADLINE;
        self.kept.close();
        stops.leave.cancel();
        tokio::time::sleep(LEAVE_GRACE).await;
        stops.finish.cancel();
        if timeout_at(deadline, &mut linked).await.is_err() {
            tracing::warn!("some calls or builds did not finish in time: their connections are cut");
            stops.abort.cancel();
        }
        // A call whose client is gone still has its record to write.
        let deadline = deadline.max(Instant::now() + RECORD_GRACE);
        if timeout_at(deadline, self.invocations.finish()).await.is_err() {
            tracing::warn!("some calls did not finish in time: they leave no record");
        }
        if timeout_at(deadline, self.builds.finish()).await.is_err() {
            tracing::warn!("a build did not finish in time");
        }
        stop_spool.cancel();
        if let Err(error) = spooled.await {
            tracing::error!(%error, "the record spool ended early");
        }
        if let Err(error) = answered.await {
            tracing::error!(%error, "the keeping of answers ended early");
        }
        self.calls.close().await;
        self.servers.close().await;
        self.sandboxes.close().await;
    }

    async fn build(&self, request: Request<Incoming>) -> Response<AnswerBody> {
        let id = request.headers().get(INVOCATION).and_then(|value| value.to_str().ok()?.parse().ok());
        let id = id.unwrap_or_else(InvocationId::new);
        let body = Limited::new(request.into_body(), MAX_ORDER_BYTES).collect().await;
        let spec = match body.map(|body| serde_json::from_slice::<DeploymentSpec>(&body.to_bytes())) {
            Ok(Ok(spec)) => Arc::new(spec),
            Ok(Err(error)) => return rejected(&error.to_string()),
            Err(error) => return rejected(&error.to_string()),
        };
        self.deployments.learn(&spec);
        let lines = self.builds.order(&spec, id).map(|event| {
            let mut line = serde_json::to_vec(&event).expect("a build event is words and numbers");
            line.push(b'\n');
            Ok::<_, Cut>(Frame::data(Bytes::from(line)))
        });
        let mut response = Response::new(StreamBody::new(lines).boxed_unsync());
        let kind = http::HeaderValue::from_static("application/x-ndjson");
        response.headers_mut().insert(http::header::CONTENT_TYPE, kind);
        response
    }
}

#[async_trait]
impl Orders for Agent {
    async fn answer(&self, request: Request<Incoming>) -> Response<AnswerBody> {
        match request.headers().get(ORDER).map(http::HeaderValue::as_bytes) {
            Some(order) if order == ORDER_INVOKE.as_bytes() => self.invocations.answer(request).await,
            Some(order) if order == ORDER_BUILD.as_bytes() => self.build(request).await,
            _ => rejected("an order that this version does not know"),
        }
    }

    fn state(&self) -> NodeState {
        let (counts, kept) = (self.sandboxes.counts(), self.kept.full());
        self.metrics.kept_versions.set(i64::try_from(kept.len()).unwrap_or(i64::MAX));
        NodeState {
            busy: counts.busy.saturating_add(self.servers.calls()),
            warm: counts.warm,
            memory_total_mb: counts.memory_total_mb,
            memory_used_mb: counts.memory_used_mb,
            spooled_records: self.spool.pending(),
            kept: Some(kept),
            memory_idle_mb: Some(counts.memory_idle_mb),
            cpus: self.cpus,
            several: Some(counts.several),
            engine_answers: Some(self.sandboxes.engine_answers()),
            // Which gateway is asked, the links know.
            tells: None,
        }
    }

    fn retire(&self, deployments: &[DeploymentId]) {
        for deployment in deployments {
            // Before its sandboxes, so that none is started in their place.
            self.kept.retire(*deployment);
            self.deployments.forget(*deployment);
            self.invocations.forget(*deployment);
            self.servers.retire(*deployment);
            self.sandboxes.retire(*deployment);
        }
    }

    fn keep(&self, gateway: GatewayNumber, warm: &[Warm]) {
        self.kept.want(gateway, warm);
    }
}

/// Only a gateway of another version sends what is rejected here.
fn rejected(reason: &str) -> Response<AnswerBody> {
    tracing::error!(reason, "an order was rejected");
    let mut response = Response::new(invocation::whole(Bytes::from(reason.to_owned())));
    *response.status_mut() = StatusCode::BAD_REQUEST;
    response
}

fn unusable<E: Into<Unusable>>(path: PathBuf) -> impl FnOnce(E) -> StartError {
    move |error| StartError::DataDir { path, source: error.into().0 }
}

/// Opens the part of the data directory that is called `name`. There is code in it, or what calls brought and got: nobody
/// else of this machine looks into it, also where an earlier version let him.
fn within<T, E: Into<Unusable>>(
    data_dir: &Path,
    name: &str,
    open: impl FnOnce(&Path) -> Result<T, E>,
) -> Result<T, StartError> {
    let path = data_dir.join(name);
    let closed = make(&path).and_then(|()| std::fs::set_permissions(&path, Permissions::from_mode(0o700)));
    closed.map_err(unusable(path.clone()))?;
    open(&path).map_err(unusable(path))
}

/// Why a part of the data directory is of no use.
struct Unusable(io::Error);

impl From<io::Error> for Unusable {
    fn from(error: io::Error) -> Self {
        Self(error)
    }
}

impl From<SpoolError> for Unusable {
    fn from(error: SpoolError) -> Self {
        Self(error.into_source())
    }
}

/// Makes the data directory ours alone, until the file is closed.
fn lock(data_dir: &Path) -> Result<File, StartError> {
    let path = data_dir.join("agent.lock");
    let opened = make(data_dir).and_then(|()| File::options().write(true).create(true).truncate(false).open(&path));
    let file = opened.map_err(unusable(path))?;
    match rustix::fs::flock(&file, rustix::fs::FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok(file),
        Err(_) => Err(StartError::Locked(data_dir.to_owned())),
    }
}

/// Makes a directory, for this user alone, if there is none.
fn make(directory: &Path) -> io::Result<()> {
    DirBuilder::new().recursive(true).mode(0o700).create(directory)
}

#[cfg(test)]
mod tests;
