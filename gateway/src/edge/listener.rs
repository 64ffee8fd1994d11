//! The chassis and the engine: Pingora owns the listening socket, the threads and their lives; hyper speaks HTTP/1.1
//! on each connection, or HTTP/2 where the client chose it under TLS.
//!
//! While the gateway stops, what is in flight is answered, every answer asks for another connection, and connections
//! that are silent are closed a moment later; where a successor accepts clients, only when they have been silent for as
//! long as any may.

use std::convert::Infallible;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener};
use std::num::NonZeroU32;
use std::os::fd::IntoRawFd as _;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use common::error::Chain;
use common::interrupt::Interrupt;
use common::ops::Readiness;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use pingora::apps::ServerApp;
use pingora::protocols::Stream;
use pingora::server::configuration::ServerConf;
use pingora::server::{ListenFds, RunArgs, Server, ShutdownSignal, ShutdownSignalWatch, ShutdownWatch};
use pingora::services::listening::Service;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::watch;
use tokio::time::{Instant, sleep, sleep_until, timeout};
use tokio_rustls::server::TlsStream;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::gate::{MAX_HEAD_BYTES, MAX_HEADER_LINES};
use super::peer::Peer;
use super::prompt::Prompt;
use super::proxies::Proxies;
use super::seats::{Seated, Seats, raise_descriptors};
use super::tls::{self, Tls, TlsArgs};
use super::{Edge, http2};

/// How long a client has for the whole head of a request, and how long a connection may be silent between two.
pub(crate) const HEAD_DEADLINE: Duration = Duration::from_secs(10);

/// The engine's own limit of a head, in bytes: twice ours, so that in nearly all cases it is the gate that refuses,
/// with a sentence.
const ENGINE_HEAD_BYTES: usize = 2 * MAX_HEAD_BYTES;

/// How long silent connections stay open once the gateway stops, so that a request that is on its way is answered; and
/// how long it waits at least for those that were accepted a moment ago, where a successor accepts the next.
const SETTLE: Duration = Duration::from_millis(500);

/// How long a client may not read what it is sent. A test does not wait for long.
pub(crate) const STALL: Duration = Duration::from_secs(if cfg!(test) { 2 } else { 30 });

/// A request stays on the thread that took its connection. Pingora finds the threads of a runtime by numbers that the
/// system gives out again, so within one process only its first server may do without stealing: tests have many.
const WORK_STEALING: bool = cfg!(test);

/// The public listener.
#[derive(Clone, Debug, clap::Args)]
pub struct ListenArgs {
    /// Address of the public listener.
    #[arg(long, env = "BIND_ADDR", default_value_t = IpAddr::V4(Ipv4Addr::LOCALHOST), value_parser = common::options::ip_address)]
    pub bind_addr: IpAddr,
    /// Port of the public listener: functions and API.
    #[arg(long, env = "PORT", default_value_t = 8080)]
    pub port: u16,
    /// Threads that serve the public listener. Default: one for each core.
    #[arg(long, env = "EDGE_THREADS")]
    pub edge_threads: Option<std::num::NonZeroUsize>,
    /// How long calls that are in flight may take to finish once the gateway is told to stop, or another has its place, in
    /// seconds.
    #[arg(long, env = "DRAIN_SECONDS", default_value_t = 10)]
    pub drain_seconds: u32,
    /// Most public connections at once; at most half of the files that the system lets us open.
    #[arg(long, env = "MAX_CONNECTIONS", default_value = "8192")]
    pub max_connections: NonZeroU32,
    /// Most of them from one address. Default: half of them, since a proxy before us is one address. Does not hold for
    /// those that `TRUSTED_PROXIES` names.
    #[arg(long, env = "MAX_CONNECTIONS_PER_ADDRESS")]
    pub max_connections_per_address: Option<NonZeroU32>,
    /// Proxies before us, as addresses and networks with commas between. Of what they send, `X-Forwarded-For` says who
    /// the client is, and `X-Forwarded-Proto` what it spoke; of all others both are thrown away.
    #[arg(long, env = "TRUSTED_PROXIES")]
    pub trusted_proxies: Option<Proxies>,
    /// TLS.
    #[command(flatten)]
    pub tls: TlsArgs,
}

impl ListenArgs {
    fn threads(&self) -> usize {
        let cores = || std::thread::available_parallelism().map_or(1, std::num::NonZeroUsize::get);
        self.edge_threads.map_or_else(cores, std::num::NonZeroUsize::get)
    }

    /// The other half of the descriptors is for nodes, files and the database.
    fn seats(&self, descriptors: u32) -> Seats {
        let most = self.max_connections.get().min(descriptors / 2);
        if most < self.max_connections.get() {
            tracing::warn!(descriptors, most, "MAX_CONNECTIONS is more than the limit of open files allows");
        }
        let most_each = self.max_connections_per_address.map_or(most.div_ceil(2), NonZeroU32::get);
        Seats::new(most, most_each)
    }
}

/// Serves `edge` on `socket` until `stop`, then until all connections are closed or the time for that is over.
/// Blocks the calling thread, which must not be one of a runtime.
pub(crate) fn serve(
    edge: Arc<Edge>,
    socket: TcpListener,
    tls: Option<Arc<Tls>>,
    args: &ListenArgs,
    readiness: Readiness,
    stop: CancellationToken,
) {
    let (close, closing) = watch::channel(false);
    let grace = Duration::from_secs(args.drain_seconds.into());
    let connections = TaskTracker::new();
    let seats = Arc::new(args.seats(raise_descriptors()));
    let proxies = Arc::new(args.trusted_proxies.clone().unwrap_or_default());
    let app = EdgeApp { edge: edge.clone(), tls, seats, proxies, connections: connections.clone(), grace };
    // Pingora's own configuration is for its own proxy; here it gives threads and sockets only.
    let conf = ServerConf {
        threads: args.threads(),
        work_stealing: WORK_STEALING,
        grace_period_seconds: Some(0),
        graceful_shutdown_timeout_seconds: Some(1),
        ..ServerConf::default()
    };
    let mut server = Server::new_with_opt_and_conf(None, conf);
    server.bootstrap();
    server.add_service(Public { socket: Some(socket), app: Some(app), closing });
    let drain = Drain { edge, connections, close, readiness, stop, grace };
    server.run(RunArgs { shutdown_signal: Box::new(drain) });
}

/// The public service: Pingora's listening service, on a socket that is bound already (so that a port in use is an
/// error with a sentence, before anything starts), with a stop signal of our own.
struct Public {
    socket: Option<TcpListener>,
    app: Option<EdgeApp>,
    closing: watch::Receiver<bool>,
}

#[async_trait]
impl pingora::services::Service for Public {
    async fn start_service(&mut self, fds: Option<ListenFds>, _: ShutdownWatch, listeners_per_fd: usize) {
        let (Some(socket), Some(app), Some(fds)) = (self.socket.take(), self.app.take(), fds) else { return };
        let address = match socket.local_addr() {
            Ok(address) => address.to_string(),
            Err(error) => return tracing::error!(%error, "the public socket has no address"),
        };
        fds.lock().add(address.clone(), socket.into_raw_fd());
        let mut listening = Service::new("edge".to_owned(), app);
        listening.add_tcp(&address);
        pingora::services::Service::start_service(&mut listening, Some(fds), self.closing.clone(), listeners_per_fd)
            .await;
    }

    fn name(&self) -> &str {
        "edge"
    }
}

/// Waits for the stop, then for the connections; only then Pingora is told, which ends its threads at once.
struct Drain {
    edge: Arc<Edge>,
    connections: TaskTracker,
    close: watch::Sender<bool>,
    readiness: Readiness,
    stop: CancellationToken,
    grace: Duration,
}

#[async_trait]
impl ShutdownSignalWatch for Drain {
    async fn recv(&self) -> ShutdownSignal {
        self.stop.cancelled().await;
        // First, so that whoever sees that we are not ready is also asked to go elsewhere.
        self.edge.draining.store(true, Ordering::Release);
        self.readiness.set(false);
        // From here on nothing is accepted.
        self.close.send_replace(true);
        if self.edge.to_successor.load(Ordering::Acquire) {
            sleep(SETTLE.min(self.grace)).await;
        }
        self.connections.close();
        self.edge.tasks.close();
        let quiet = async {
            self.connections.wait().await;
            self.edge.tasks.wait().await;
        };
        if timeout(self.grace, quiet).await.is_err() {
            let connections = self.connections.len();
            tracing::warn!(connections, "calls are cut off: they took longer than DRAIN_SECONDS to finish");
        }
        ShutdownSignal::FastShutdown
    }
}

/// What happens on each connection.
struct EdgeApp {
    edge: Arc<Edge>,
    tls: Option<Arc<Tls>>,
    seats: Arc<Seats>,
    proxies: Arc<Proxies>,
    connections: TaskTracker,
    grace: Duration,
}

#[async_trait]
impl ServerApp for EdgeApp {
    async fn process_new(self: &Arc<Self>, stream: Stream, closing: &ShutdownWatch) -> Option<Stream> {
        let _open = self.connections.token();
        let address = address_of(&stream)?.ip();
        let proxies = self.proxies.hold(address).then(|| self.proxies.clone());
        let Some(seat) = self.seats.take(address, proxies.is_some()) else {
            self.edge.metrics.refused.inc();
            // Of a client that waits for a handshake no words are understood.
            if self.tls.is_none() {
                self.seats.refuse(stream).await;
            }
            return None;
        };
        let scheme = if self.tls.is_some() { "https" } else { "http" };
        let seated = Some(Seated::new(seat, &self.edge.metrics));
        let peer = Peer { seated, ..Peer::new(address, scheme, proxies) };
        let farewell = Farewell { closing, to_successor: &self.edge.to_successor, grace: self.grace };
        let ended = match &self.tls {
            None => self.http1(Prompt::new(stream, STALL), &peer, farewell).await,
            Some(tls) => {
                // Boxed, since it is large: connections without TLS are not to pay for it.
                Box::pin(self.secure(tls, stream, peer, farewell)).await
            }
        };
        if let Err(error) = ended {
            tracing::debug!(error = %Chain(&error), "connection");
        }
        None
    }
}

/// How the end comes to a connection: from when on, and how long it may then take.
#[derive(Clone, Copy)]
pub(crate) struct Farewell<'a> {
    closing: &'a ShutdownWatch,
    to_successor: &'a AtomicBool,
    pub(crate) grace: Duration,
}

impl Farewell<'_> {
    /// Waits for its beginning.
    pub(crate) async fn begins(&self) {
        let mut closing = self.closing.clone();
        // Not the guard that `wait_for` returns: it is not to be held while the connection goes on.
        closing.wait_for(|closing| *closing).await.ok();
    }

    /// Once it has begun: how long silent connections stay open from now on. One that was just opened for its first request,
    /// or kept for the next, is closed for its silence by then anyway.
    pub(crate) fn settle(&self) -> Duration {
        if self.to_successor.load(Ordering::Acquire) { self.grace } else { SETTLE.min(self.grace) }
    }
}

impl EdgeApp {
    /// Serves a connection with TLS to its end.
    async fn secure(&self, tls: &Tls, stream: Stream, peer: Peer, farewell: Farewell<'_>) -> hyper::Result<()> {
        let Some(stream) = shake(tls, stream, farewell).await else { return Ok(()) };
        if tls::speaks_http2(&stream) {
            http2::serve(stream, self.edge.clone(), peer, &self.connections, farewell).await
        } else {
            self.http1(stream, &peer, farewell).await
        }
    }

    /// Serves a connection of HTTP/1.1 to its end.
    async fn http1<S>(&self, stream: S, peer: &Peer, farewell: Farewell<'_>) -> hyper::Result<()>
    where
        S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let service = service_fn(|request| async { Ok::<_, Infallible>(self.edge.answer(peer, request).await) });
        // Not `pipeline_flush`: with it, the answer to a head that cannot be parsed is never sent.
        let connection = http1::Builder::new()
            .timer(TokioTimer::new())
            .header_read_timeout(HEAD_DEADLINE)
            .max_buf_size(ENGINE_HEAD_BYTES)
            .serve_connection(TokioIo::new(stream), service)
            .with_upgrades();
        let mut connection = std::pin::pin!(connection);
        let mut cut = Interrupt::new(peer.cut.notified());
        let mut closing = Interrupt::new(farewell.begins());
        tokio::select! {
            biased;
            ended = connection.as_mut() => ended,
            () = cut.come() => Ok(()),
            () = closing.come() => {
                let end = Instant::now() + farewell.grace;
                tokio::select! {
                    ended = connection.as_mut() => ended,
                    () = cut.come() => Ok(()),
                    () = sleep(farewell.settle()) => {
                        // What is in flight is answered, what is silent is closed.
                        connection.as_mut().graceful_shutdown();
                        tokio::select! {
                            ended = connection => ended,
                            () = cut.come() => Ok(()),
                            () = sleep_until(end) => Ok(()),
                        }
                    }
                }
            }
        }
    }
}

/// The handshake, of which a stop does not wait for the end.
async fn shake(tls: &Tls, stream: Stream, farewell: Farewell<'_>) -> Option<TlsStream<Prompt<Stream>>> {
    let late = async {
        farewell.begins().await;
        sleep(farewell.settle()).await;
    };
    tokio::select! {
        biased;
        shaken = tls.shake(stream) => shaken,
        () = late => None,
    }
}

fn address_of(stream: &Stream) -> Option<SocketAddr> {
    stream.get_socket_digest()?.peer_addr()?.as_inet().copied()
}

// hyper's own default; a larger number would cost an allocation for each request.
const _: () = assert!(MAX_HEADER_LINES == 100);
