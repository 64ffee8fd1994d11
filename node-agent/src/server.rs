//! Servers: functions of the http contract. A deployment has at most one on a node; all calls of a cold one share its
//! start, and many calls are in it at once. It ends when it was idle for long, when its deployment is retired, when
//! calls of others wait for its memory, or by itself; its sandbox is never used again.

use std::collections::HashMap;
use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use common::error::Chain;
use common::function::DeploymentSpec;
use common::ids::{DeploymentId, InvocationId};
use common::phases::ColdCause;
use futures_util::FutureExt as _;
use futures_util::future::{BoxFuture, Shared};
use runner::wire::Stream;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::build::Builds;
use crate::sandbox::{Cold, How, Ice, Keeps, Sandboxes};

mod connection;
mod keeper;
mod printed;
mod seat;

pub(crate) use connection::{CallBody, Connection};
pub(crate) use printed::Excerpt;
pub(crate) use seat::Seat;

use keeper::{Ask, Keeper};
use printed::Printed;

/// How long a server may take until it listens, at least; a function's own time limit may be longer. Frameworks take
/// their time to load, the more so on a busy machine.
const LISTEN_LIMIT: Duration = Duration::from_secs(30);
/// How long a call whose connection broke waits to know whether the server ended.
const END_LIMIT: Duration = Duration::from_secs(1);
/// Most connections that a server keeps for the next calls.
const MAX_IDLE: usize = 64;
/// Most questions that wait for a keeper; each is a call's, which waits with it.
const MAX_ASKS: usize = 1024;
/// How often a call that finds a server at its end looks for the next one.
const ATTEMPTS: usize = 3;

/// A call gets no server.
#[derive(Clone, Debug, thiserror::Error)]
pub(crate) enum NoServer {
    /// No sandbox could be had.
    #[error("No sandbox could be had: {0}")]
    NoSandbox(Arc<str>),
    /// It can have none, by its own fault.
    #[error("The function cannot be started: {0}")]
    Unstartable(Arc<str>),
    /// It was started, and took no connection in this time.
    #[error("the server did not listen within {} ms", .0.as_millis())]
    Deaf(Duration, Told),
    /// It was started, and ended before it took one.
    #[error("the server ended before it listened")]
    Ended(Arc<End>, Told),
}

/// What a server printed that never took a call: for the record of one of those that waited for it.
pub(crate) type Told = Arc<Mutex<Excerpt>>;

/// How a server ended.
#[derive(Debug)]
pub(crate) enum End {
    /// By itself.
    Ended(How),
    /// Nobody needed it.
    Unneeded,
    /// Its sandbox is lost; the reason.
    Lost(String),
}

type Start = Shared<BoxFuture<'static, Result<Arc<Server>, NoServer>>>;

/// The servers of a node.
pub(crate) struct Servers {
    sandboxes: Arc<Sandboxes>,
    builds: Arc<Builds>,
    running: Mutex<HashMap<DeploymentId, Entry>>,
    tasks: TaskTracker,
    stop: CancellationToken,
}

/// A server that starts or runs.
#[derive(Clone)]
struct Entry {
    token: Token,
    start: Start,
}

/// Tells a server from the one before it.
type Token = Arc<()>;

/// A server that runs.
#[derive(Debug)]
pub(crate) struct Server {
    deployment: DeploymentId,
    /// Why it had to be started.
    cause: Option<ColdCause>,
    asks: mpsc::Sender<Ask>,
    /// Its processes, which rest while no call is in it.
    ice: Arc<Ice>,
    idle: Mutex<Vec<Connection>>,
    state: Mutex<State>,
    end: watch::Sender<Option<Arc<End>>>,
}

#[derive(Debug)]
struct State {
    /// Calls that are in it; its start counts as one.
    calls: usize,
    /// Since when there is none.
    since: Instant,
    /// Its deployment gets no more calls.
    retired: bool,
    /// It takes none any more.
    closed: bool,
    printed: Printed,
}

impl Servers {
    pub(crate) fn new(sandboxes: Arc<Sandboxes>, builds: Arc<Builds>) -> Arc<Self> {
        let (running, tasks, stop) = (Mutex::default(), TaskTracker::new(), CancellationToken::new());
        Arc::new(Self { sandboxes, builds, running, tasks, stop })
    }

    /// A place for a call, in the server that runs or in one that is started for it.
    ///
    /// # Errors
    /// There is none to be had.
    pub(crate) async fn enter(
        self: &Arc<Self>,
        spec: &Arc<DeploymentSpec>,
        id: InvocationId,
    ) -> Result<Seat, NoServer> {
        let since = Instant::now();
        for _ in 0..ATTEMPTS {
            let entry = self.entry(spec, id);
            let waits = entry.start.peek().is_none();
            match entry.start.clone().await {
                Ok(server) => match server.seat(waits.then(|| since.elapsed())) {
                    Some(seat) => return Ok(seat),
                    // It is about to end.
                    None => self.forget(spec.deployment, &entry.token),
                },
                Err(error) => return Err(error),
            }
        }
        Err(NoServer::NoSandbox("the server ended as soon as it had started, again and again".into()))
    }

    /// Whether the deployment's server runs.
    pub(crate) fn has(&self, deployment: DeploymentId) -> bool {
        self.lock().get(&deployment).is_some_and(|entry| matches!(entry.start.peek(), Some(Ok(_))))
    }

    /// Calls that are in servers, or wait for one.
    pub(crate) fn calls(&self) -> u32 {
        // Who began a start may have left, and then nobody has looked yet whether it is done.
        let calls = |entry: &Entry| match entry.start.clone().now_or_never() {
            Some(Ok(server)) => server.lock().calls,
            Some(Err(_)) => 0,
            // How many wait for its start is not known; it is not none.
            None => 1,
        };
        u32::try_from(self.lock().values().map(calls).sum::<usize>()).unwrap_or(u32::MAX)
    }

    /// Starts the server of a deployment that is to be kept, unless it runs.
    ///
    /// # Errors
    /// It does not start.
    pub(crate) async fn hold(self: &Arc<Self>, spec: &Arc<DeploymentSpec>) -> Result<(), NoServer> {
        let start = self.entry(spec, InvocationId::new()).start;
        start.await.map(drop)
    }

    /// The deployment gets no more calls: its server ends after those that are under way, also if it still starts.
    pub(crate) fn retire(&self, deployment: DeploymentId) {
        let Some(entry) = self.lock().get(&deployment).cloned() else { return };
        self.tasks.spawn(async move {
            if let Ok(server) = entry.start.await {
                server.lock().retired = true;
            }
        });
    }

    /// Ends all servers, whatever calls are in them.
    pub(crate) async fn close(&self) {
        self.stop.cancel();
        self.tasks.close();
        self.tasks.wait().await;
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<DeploymentId, Entry>> {
        self.running.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn entry(self: &Arc<Self>, spec: &Arc<DeploymentSpec>, id: InvocationId) -> Entry {
        let mut running = self.lock();
        let entry = running.entry(spec.deployment).or_insert_with(|| {
            // A task of its own, so that it goes on when the call that began it leaves.
            let (servers, spec, token) = (Arc::clone(self), Arc::clone(spec), Token::default());
            let own = Arc::clone(&token);
            let started = self.tasks.spawn(async move {
                let started = servers.start(&spec, id, &own).await;
                if started.is_err() {
                    servers.forget(spec.deployment, &own);
                }
                started
            });
            let start = started.map(|started| {
                started.unwrap_or_else(|error| Err(NoServer::NoSandbox(format!("its start failed: {error}").into())))
            });
            Entry { token, start: start.boxed().shared() }
        });
        entry.clone()
    }

    fn forget(&self, deployment: DeploymentId, token: &Token) {
        let mut running = self.lock();
        if running.get(&deployment).is_some_and(|there| Arc::ptr_eq(&there.token, token)) {
            running.remove(&deployment);
        }
    }

    async fn start(
        self: &Arc<Self>,
        spec: &Arc<DeploymentSpec>,
        id: InvocationId,
        token: &Token,
    ) -> Result<Arc<Server>, NoServer> {
        let why = |error: &(dyn std::error::Error + 'static)| -> Arc<str> {
            tracing::warn!(error = %Chain(error), deployment = %spec.deployment, "no sandbox for a server");
            error.to_string().into()
        };
        let none = |error: &(dyn std::error::Error + 'static)| NoServer::NoSandbox(why(error));
        let build = self.builds.ready(spec, id).await.map_err(|error| match error.is_of_function() {
            true => NoServer::Unstartable(why(&error)),
            false => none(&error),
        })?;
        let lease = self.sandboxes.lease(spec, build).await.map_err(|error| match error.is_of_function() {
            true => NoServer::Unstartable(why(&error)),
            false => none(&error),
        })?;
        let cause = lease.cold().and_then(|cold| cold.cause);
        let mut serving = lease.serve().await.map_err(|error| none(&error))?;
        let ice = serving.ice().map_err(|error| none(&error))?;
        let (asks, inbox) = mpsc::channel(MAX_ASKS);
        let server = Arc::new(Server::new(spec.deployment, cause, asks, ice, self.sandboxes.output_cap()));
        let keeper = Keeper::new(serving, Arc::clone(&server), inbox);
        let (servers, deployment, token) = (Arc::clone(self), spec.deployment, Arc::clone(token));
        self.tasks.spawn(async move {
            keeper.run(&servers.sandboxes, &servers.stop).await;
            servers.forget(deployment, &token);
        });
        let limit = LISTEN_LIMIT.max(Duration::from_millis(spec.limits.timeout_ms.into()));
        match server.dial(limit).await {
            Ok(connection) => {
                server.keep(connection);
                server.leave();
                Ok(server)
            }
            Err(error) => {
                tracing::info!(%error, deployment = %spec.deployment, "a server does not listen");
                let end = server.end_now().await;
                server.shut();
                server.leave();
                let told = Arc::new(Mutex::new(server.lock().printed.take()));
                Err(end.map_or(NoServer::Deaf(limit, Arc::clone(&told)), |end| NoServer::Ended(end, told)))
            }
        }
    }
}

impl Server {
    fn new(
        deployment: DeploymentId,
        cause: Option<ColdCause>,
        asks: mpsc::Sender<Ask>,
        ice: Arc<Ice>,
        output_cap: usize,
    ) -> Self {
        let printed = Printed::new(output_cap);
        let state = State { calls: 1, since: Instant::now(), retired: false, closed: false, printed };
        let (end, _) = watch::channel(None);
        Self { deployment, cause, asks, ice, idle: Mutex::default(), state: Mutex::new(state), end }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A place in it, unless it is about to end.
    fn seat(self: &Arc<Self>, waited: Option<Duration>) -> Option<Seat> {
        let mut state = self.lock();
        if state.closed {
            return None;
        }
        state.calls += 1;
        self.ice.wake();
        let cold = waited.map(|took| Cold { took, cause: self.cause });
        Some(Seat { server: Arc::clone(self), cold })
    }

    fn leave(&self) {
        let mut state = self.lock();
        state.calls -= 1;
        state.since = Instant::now();
        if state.calls == 0 {
            self.ice.rest(Keeps::Server);
        }
    }

    /// Closes it if nobody is in it and nobody will miss it; `unneeded` says so by how long it was idle.
    fn close_if_unneeded(&self, unneeded: impl FnOnce(Duration) -> bool) -> bool {
        let mut state = self.lock();
        let closes = state.calls == 0 && (state.retired || unneeded(state.since.elapsed()));
        state.closed |= closes;
        state.closed && state.calls == 0
    }

    /// Has its keeper end it as soon as nobody is in it.
    fn shut(&self) {
        self.lock().closed = true;
    }

    fn printed(&self, stream: Stream, bytes: &[u8]) {
        self.lock().printed.add(stream, bytes);
    }

    fn ended(&self, end: End) {
        self.shut();
        self.idle().clear();
        self.end.send_replace(Some(Arc::new(end)));
    }

    /// How it ended, if it does so about now.
    async fn end_now(&self) -> Option<Arc<End>> {
        let mut end = self.end.subscribe();
        let ended = timeout(END_LIMIT, end.wait_for(Option::is_some)).await;
        ended.ok()?.ok()?.clone()
    }

    fn idle(&self) -> MutexGuard<'_, Vec<Connection>> {
        self.idle.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A new connection.
    async fn dial(&self, patience: Duration) -> io::Result<Connection> {
        let (tell, told) = oneshot::channel();
        let gone = || io::Error::from(io::ErrorKind::NotConnected);
        self.asks.send(Ask::Connect(patience, tell)).await.map_err(|_| gone())?;
        Connection::new(told.await.map_err(|_| gone())??).await
    }

    fn keep(&self, mut connection: Connection) {
        connection.rest();
        let mut idle = self.idle();
        idle.retain(Connection::is_fresh);
        if idle.len() < MAX_IDLE && connection.is_fresh() {
            idle.push(connection);
        }
    }
}
