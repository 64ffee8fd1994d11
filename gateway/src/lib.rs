//! The gateway: the edge that clients call, the control API, and the fleet of nodes behind them. [`run`] is its whole
//! life.

use std::fs::File;
use std::net::TcpListener;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use common::ops::{Readiness, Shown};
use common::runtime::Runtimes;
use common::settings::Shared;
use prometheus::Registry;
use store::{Store, StoreArgs};
use tokio::runtime::Runtime;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

mod components;
mod config;
mod control;
mod data_dir;
mod edge;
mod error;
mod feed;
mod fleet;
mod hand_over;
mod metrics;
mod sockets;
mod startup;
mod stores;
mod targets;
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
pub use error::{LinkError, NodePortError, SharedLimitsError, StartError, TakeOverError, TlsError};
pub use fleet::config::NodePortArgs;
pub use hand_over::{Ops, Predecessor, Succession};

use components::Components;
use config::Secrets;
use edge::body_room::BodyRoom;
use edge::control_call::ControlCalls;
use edge::identity::Identity;
use edge::limits::Limits;
use edge::tls::Tls;
use edge::{Edge, listener};
use fleet::enrolment::Enrolment;
use fleet::node_port::NodePort;
use hand_over::HandOverSocket;
use metrics::Metrics;
use sockets::{Sockets, open_link};
use startup::{OwnSockets, Startup};
use stores::open_stores;
use targets::Targets;

/// Threads of the control runtime: control API, link, control streams.
const CONTROL_THREADS: usize = 2;

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
    components: Components,
    /// Where a successor asks, if one may.
    hand_over: Option<HandOverSocket>,
    readiness: Readiness,
    /// The data directory is ours for as long as this is open.
    lock: File,
}

/// Runs a gateway until `stop`, or until a successor has its place, and then until it has drained. Blocks the calling
/// thread, which must not be one of a runtime. What is `shown` is ready while calls are taken, and gets pages that tell of
/// nodes.
///
/// # Errors
/// It could not start; the sentence says the fix.
pub fn run(
    settings: Settings,
    shared: Shared,
    store: StoreArgs,
    shown: Shown,
    stop: CancellationToken,
    succession: Succession,
) -> Result<(), StartError> {
    let Shown { registry, readiness, more } = shown;
    let gateway = Gateway::build(settings, &shared, &store, &registry, readiness, stop, succession)?;
    more.bring(Targets::of(&gateway.edge.fleet));
    gateway.serve();
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
        succession: Succession,
    ) -> Result<Self, StartError> {
        let secrets = settings.jwt.secrets()?;
        let place = &shared.place;
        let runtimes = Arc::new(Runtimes::load(place.runtimes_dir.as_deref())?);
        let metrics = Arc::new(Metrics::register(registry)?);
        let tls = Tls::open(&settings.listen.tls, registry)?;
        let control = control_runtime()?;
        let Succession { predecessor, accepts_successor, ops } = succession;
        let Sockets { public: socket, lock, gateway, link, nodes, old } =
            Sockets::acquire(&settings, place, &control, predecessor)?;
        let stores = control.block_on(open_stores(&settings, place, store, old.is_some(), &stop))?;
        let opened = open_node_port(&settings.nodes, nodes, &stores.1, &secrets);
        let (node_port, enrolment) = control.block_on(opened)?.unzip();
        let components = Components::new(gateway, stores, enrolment.clone(), &control, &metrics, stop);
        let identity = Arc::new(Identity::new(&secrets, components.sessions.clone()));
        let shared_limits = settings.redis.open(&settings.limits, control.handle(), registry)?;
        let limits = Arc::new(Limits::new(&settings.limits).over(shared_limits));
        let state = components.state(&settings, shared, (runtimes, identity.clone()), enrolment.clone(), registry)?;
        let link = control.block_on(async {
            // What another one still does, it ends by itself.
            if old.is_none() {
                control::housekeeping::recover(&state, gateway).await?;
            }
            found(&state, &settings.founder).await?;
            // Before the link opens: a node that registers is told what nobody wants.
            components.feed.catch_up().await?;
            Ok::<_, StartError>(open_link(link, &place.link_socket())?)
        })?;
        components.begin(&control, limits.clone(), state.clone());
        let (data_dir, own) = (&place.data_dir, OwnSockets { lock: &lock, public: &socket, ops });
        let startup = Startup { components: &components, data_dir, state: &state, link, node_port, enrolment };
        let hand_over = startup.open(&control, old, accepts_successor, own)?;

        let max_request_bytes = shared.bodies.request_bytes() as u64;
        let edge = Arc::new(Edge {
            routes: components.routes.clone(),
            identity,
            limits,
            fleet: components.fleet.clone(),
            control: ControlCalls::new(control::router(state), control.handle()),
            room: Arc::new(body_room(&settings.limits, max_request_bytes, &metrics)),
            metrics,
            tasks: TaskTracker::new(),
            max_request_bytes,
            max_upload_bytes: control::upload_limit(shared.archives.archive_bytes()),
            draining: AtomicBool::new(false),
            to_successor: components.to_successor.clone(),
        });
        Ok(Self { edge, socket, tls, settings, control, components, hand_over, readiness, lock })
    }

    /// Serves until the stop, and drains.
    fn serve(self) {
        let Self { edge, socket, tls, settings, control, components, hand_over, readiness, lock } = self;
        let Components { tasks, deploys, close, stop, end, .. } = components;
        if let Ok(address) = socket.local_addr() {
            tracing::info!(%address, tls = tls.is_some(), "serving");
        }
        if let Some(tls) = tls.clone() {
            tasks.spawn_on(tls.follow(end.clone()), control.handle());
        }
        let hand_over = hand_over.map(|socket| control.spawn(socket.run(stop.clone())));
        readiness.set(true);
        listener::serve(edge.clone(), socket, tls, &settings.listen, readiness.clone(), close);
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
        let successor = hand_over.and_then(|handed| control.block_on(handed).ok().flatten());
        control.shutdown_timeout(CONTROL_GRACE);
        drop(lock);
        tracing::info!("stopped");
        // Its end tells a successor that nothing goes on here.
        drop(successor);
    }
}

fn body_room(limits: &LimitArgs, max_request_bytes: u64, metrics: &Metrics) -> BodyRoom {
    BodyRoom::new(limits.request_buffer_bytes(), max_request_bytes, metrics.request_buffer.clone())
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

/// Makes the operator's account, if there is to be one.
async fn found(state: &control::State, founder: &Option<Founder>) -> Result<(), StartError> {
    let Some(founder) = founder else { return Ok(()) };
    let founded = control::auth::found(state, founder).await;
    founded.map_err(|failure| StartError::Founder(failure.message().to_owned()))
}

/// Seals the authorities anew if the secret was changed; the node port and who takes nodes in, if the settings name a port.
async fn open_node_port(
    args: &NodePortArgs,
    inherited: Option<TcpListener>,
    store: &Arc<dyn Store>,
    secrets: &Secrets,
) -> Result<Option<(NodePort, Arc<Enrolment>)>, NodePortError> {
    fleet::authority::reseal(&**store, secrets).await?;
    if args.node_addr.is_none() {
        return Ok(None);
    }
    let enrolment = Enrolment::open(store.clone(), secrets.clone(), args.clone()).await?;
    let port = NodePort::open(args, inherited, enrolment.authorities())?;
    Ok(port.map(|port| (port, Arc::new(enrolment))))
}
