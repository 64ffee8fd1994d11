//! The gateway: the edge that clients call, the control API, and the fleet of nodes behind them. [`run`] is its whole
//! life.

use std::fs::File;
use std::net::{SocketAddr, TcpListener};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::{Duration, Instant};

use common::error::Chain;
use common::ops::Readiness;
use common::runtime::Runtimes;
use common::settings::{Place, Shared};
use prometheus::Registry;
use store::artifacts::Artifacts;
use store::{Store, StoreArgs};
use tokio::runtime::Runtime;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

mod config;
mod control;
mod data_dir;
mod edge;
mod error;
mod feed;
mod fleet;
mod metrics;
#[cfg(test)]
mod tests;

pub use config::{Founder, JwtArgs, Settings};
pub use control::config::{ControlArgs, PublicUrl, Registration};
pub use edge::limits::LimitArgs;
pub use edge::listener::ListenArgs;
pub use edge::placement;
pub use edge::proxies::{InvalidProxies, Proxies};
pub use edge::shared_limits::RedisArgs;
pub use edge::tls::TlsArgs;
pub use error::{LinkError, NodePortError, SharedLimitsError, StartError, TlsError};
pub use fleet::config::NodePortArgs;

use config::Secrets;
use edge::body_room::BodyRoom;
use edge::control_call::ControlCalls;
use edge::identity::Identity;
use edge::limits::{Limits, SWEEP};
use edge::routes::Routes;
use edge::tls::Tls;
use edge::{Edge, listener};
use feed::Feed;
use fleet::authority::Authority;
use fleet::calls::Calls;
use fleet::enrolment::Enrolment;
use fleet::link::Link;
use fleet::node_port::NodePort;
use fleet::reception::Reception;
use fleet::{Fleet, roster};
use metrics::Metrics;

/// Threads of the control runtime: control API, link, control streams.
const CONTROL_THREADS: usize = 2;

/// How long a database may take to come up.
const STORE_DEADLINE: Duration = Duration::from_secs(60);

/// How long to wait before the database is tried again.
const STORE_PAUSE: Duration = Duration::from_secs(1);

/// How long control calls and link connections may take to end once the edge has drained; deploys may take
/// [`control::STOP_GRACE`] more.
const CONTROL_GRACE: Duration = Duration::from_secs(5);

/// A gateway that is put together and has bound its sockets.
struct Gateway {
    edge: Arc<Edge>,
    socket: TcpListener,
    tls: Option<Arc<Tls>>,
    settings: Settings,
    control: Runtime,
    /// Everything on the control runtime but control calls and deploys.
    tasks: TaskTracker,
    deploys: TaskTracker,
    /// Ends the link, after the edge has drained.
    end: CancellationToken,
    readiness: Readiness,
    stop: CancellationToken,
    /// The data directory is ours for as long as this is open.
    lock: File,
}

/// Runs a gateway until `stop`, and then until it has drained. Blocks the calling thread, which must not be one of
/// a runtime. `readiness` is set while calls are taken.
///
/// # Errors
/// It could not start; the sentence says the fix.
pub fn run(
    settings: Settings,
    shared: Shared,
    store: StoreArgs,
    registry: Registry,
    readiness: Readiness,
    stop: CancellationToken,
) -> Result<(), StartError> {
    Gateway::build(settings, &shared, &store, &registry, readiness, stop)?.serve();
    Ok(())
}

impl Gateway {
    /// The one place where the parts meet.
    fn build(
        settings: Settings,
        shared: &Shared,
        store: &StoreArgs,
        registry: &Registry,
        readiness: Readiness,
        stop: CancellationToken,
    ) -> Result<Self, StartError> {
        let secrets = settings.jwt.secrets()?;
        let identity = Arc::new(Identity::new(&secrets));
        let place = &shared.place;
        let runtimes = Arc::new(Runtimes::load(place.runtimes_dir.as_deref())?);
        let metrics = Arc::new(Metrics::register(registry)?);
        let tls = Tls::open(&settings.listen.tls, registry)?;
        let socket = bind(settings.listen_addr())?;
        // Before anything is opened: what a start clears away may be another gateway's work.
        let (lock, gateway) = data_dir::take(&place.data_dir)?;
        let control = control_runtime()?;
        let artifacts = control.block_on(open_artifacts(&settings, place))?;
        let store = control.block_on(open_store(store, &place.data_dir, &stop))?;
        let routes = Arc::new(Routes::new());
        let fleet = Fleet::new(control.handle().clone(), metrics.clone());
        let shared_limits = settings.redis.open(&settings.limits, control.handle(), registry)?;
        let limits = Arc::new(Limits::new(&settings.limits).over(shared_limits));
        let feed = Feed::new(&routes, &fleet, &store, &metrics);
        let (tasks, deploys, end) = (TaskTracker::new(), TaskTracker::new(), CancellationToken::new());

        let (node_port, enrolment) = control.block_on(open_node_port(&settings.nodes, &store, &secrets))?.unzip();
        let parts = control::Parts {
            gateway,
            store: store.clone(),
            enrolment: enrolment.clone(),
            artifacts: artifacts.clone(),
            runtimes,
            ceilings: settings.ceilings,
            caps: shared.archives,
            identity: identity.clone(),
            fleet: fleet.clone(),
            routes: routes.clone(),
            tasks: deploys.clone(),
            stop: stop.clone(),
        };
        let state = control::State::start(settings.control.clone(), parts, registry)
            .map_err(|error| StartError::Control(error.into()))?;
        let link = control.block_on(async {
            control::housekeeping::recover(&state).await?;
            found(&state, &settings.founder).await?;
            // Before the link opens: a node that registers is told what nobody wants.
            feed.catch_up().await?;
            Ok::<_, StartError>(Link::bind(&place.link_socket())?)
        })?;
        let calls = Calls { store: store.clone(), artifacts, routes: routes.clone(), fleet: fleet.clone(), enrolment };
        let reception = Arc::new(Reception::new(fleet.clone(), Arc::new(calls)));
        let handle = control.handle();
        tasks.spawn_on(link.run(reception.clone(), end.clone()), handle);
        if let Some(port) = node_port {
            tasks.spawn_on(port.run(reception, end.clone()), handle);
        }
        tasks.spawn_on(fleet::warmth::run(fleet.clone(), routes.clone(), end.clone()), handle);
        tasks.spawn_on(roster::run(fleet.clone(), store, gateway, end.clone()), handle);
        tasks.spawn_on(feed.run(end.clone()), handle);
        tasks.spawn_on(sweep(limits.clone(), end.clone()), handle);
        tasks.spawn_on(control::housekeeping::run(state.clone()), handle);

        let max_request_bytes = shared.bodies.request_bytes() as u64;
        let edge = Arc::new(Edge {
            routes,
            identity,
            limits,
            fleet,
            control: ControlCalls::new(control::router(state), control.handle()),
            room: Arc::new(body_room(&settings.limits, max_request_bytes, &metrics)),
            metrics,
            tasks: TaskTracker::new(),
            max_request_bytes,
            max_upload_bytes: control::upload_limit(shared.archives.archive_bytes()),
            draining: AtomicBool::new(false),
        });
        Ok(Self { edge, socket, tls, settings, control, tasks, deploys, end, readiness, stop, lock })
    }

    /// Serves until the stop, and drains.
    fn serve(self) {
        let Self { edge, socket, tls, settings, control, tasks, deploys, end, readiness, stop, lock } = self;
        if let Ok(address) = socket.local_addr() {
            tracing::info!(%address, tls = tls.is_some(), "serving");
        }
        if let Some(tls) = tls.clone() {
            tasks.spawn_on(tls.follow(end.clone()), control.handle());
        }
        readiness.set(true);
        listener::serve(edge.clone(), socket, tls, &settings.listen, readiness.clone(), stop.clone());
        // Whatever ended the edge, nothing is to go on without it.
        stop.cancel();
        readiness.set(false);
        control.block_on(async {
            edge.control.tasks.close();
            deploys.close();
            let answered = async {
                edge.control.tasks.wait().await;
                deploys.wait().await;
            };
            if tokio::time::timeout(control::STOP_GRACE + CONTROL_GRACE, answered).await.is_err() {
                tracing::warn!("control calls are cut off");
            }
            end.cancel();
            tasks.close();
            let ended = async {
                tasks.wait().await;
                edge.fleet.close().await;
            };
            if tokio::time::timeout(CONTROL_GRACE, ended).await.is_err() {
                tracing::warn!("link connections are cut off");
            }
        });
        control.shutdown_timeout(CONTROL_GRACE);
        drop(lock);
        tracing::info!("stopped");
    }
}

fn bind(address: SocketAddr) -> Result<TcpListener, StartError> {
    let bound = TcpListener::bind(address).and_then(|socket| socket.set_nonblocking(true).map(|()| socket));
    bound.map_err(|source| StartError::Address { address, source })
}

fn body_room(limits: &LimitArgs, max_request_bytes: u64, metrics: &Metrics) -> BodyRoom {
    // A single body always fits.
    BodyRoom::new(limits.request_buffer_bytes().max(max_request_bytes), metrics.request_buffer.clone())
}

fn control_runtime() -> Result<Runtime, StartError> {
    let mut builder = tokio::runtime::Builder::new_multi_thread();
    builder.worker_threads(CONTROL_THREADS).thread_name("control").enable_all().build().map_err(StartError::Threads)
}

/// Keeps gateways out of a data directory for as long as the file is open, as a gateway itself does.
///
/// # Errors
/// A gateway uses it, or it cannot be used.
pub fn hold(data_dir: &Path) -> Result<File, StartError> {
    data_dir::lock(data_dir)
}

/// Whether a secret of the settings opens what a fleet's authority is sealed under.
///
/// # Errors
/// There is no secret, or it cannot be read.
pub fn opens(jwt: &JwtArgs, sealed: &store::fleet::Authority) -> Result<bool, StartError> {
    let Secrets { current, previous } = jwt.secrets()?;
    Ok([Some(current), previous].iter().flatten().any(|secret| fleet::authority::opens(secret, sealed)))
}

async fn open_artifacts(settings: &Settings, place: &Place) -> Result<Artifacts, StartError> {
    let functions = settings.functions_dir.clone().unwrap_or_else(|| place.data_dir.join("functions"));
    Ok(Artifacts::connect(&settings.artifacts, functions).await?)
}

/// Makes the operator's account, if there is to be one.
async fn found(state: &control::State, founder: &Option<Founder>) -> Result<(), StartError> {
    let Some(founder) = founder else { return Ok(()) };
    let founded = control::auth::found(state, founder).await;
    founded.map_err(|failure| StartError::Founder(failure.message().to_owned()))
}

/// Opens the database, which may still be starting.
async fn open_store(args: &StoreArgs, data_dir: &Path, stop: &CancellationToken) -> Result<Arc<dyn Store>, StartError> {
    let started = Instant::now();
    let store = loop {
        match store::open(args, data_dir).await {
            Ok(store) => break store,
            Err(error @ store::Error::Unavailable(_)) if started.elapsed() < STORE_DEADLINE => {
                tracing::warn!(error = %Chain(&error), "no database yet: trying again");
            }
            Err(error) => return Err(error.into()),
        }
        tokio::select! {
            () = tokio::time::sleep(STORE_PAUSE) => {}
            () = stop.cancelled() => return Err(StartError::Stopped),
        }
    };
    Ok(store)
}

/// Seals the authority anew if the secret was changed; the node port and who takes nodes in, if the settings name a port.
async fn open_node_port(
    args: &NodePortArgs,
    store: &Arc<dyn Store>,
    secrets: &Secrets,
) -> Result<Option<(NodePort, Arc<Enrolment>)>, NodePortError> {
    fleet::authority::reseal(&**store, secrets).await?;
    if args.node_addr.is_none() {
        return Ok(None);
    }
    let authority = Authority::open(&**store, &secrets.current).await?;
    let port = NodePort::bind(args, &authority)?;
    Ok(port.map(|port| (port, Arc::new(Enrolment::new(authority, store.clone(), args.clone())))))
}

/// Keeps the limits, until `end`.
async fn sweep(limits: Arc<Limits>, end: CancellationToken) {
    let shared = async {
        if let Some(shared) = &limits.shared {
            shared.clone().run(end.clone()).await;
        }
    };
    let own = async {
        while !end.is_cancelled() {
            tokio::select! { () = tokio::time::sleep(SWEEP) => limits.sweep(), () = end.cancelled() => {} }
        }
    };
    tokio::join!(shared, own);
}
