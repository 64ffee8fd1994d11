//! The stock of work connections: on each the agent is an HTTP/1.1 server and the gateway its client. A few idle
//! ones are kept open, more are opened when the gateway asks, up to a limit.

use std::convert::Infallible;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use bytes::Bytes;
use common::conduit::Conduit;
use common::protocol::Kind;
use http_body::{Body, Frame, SizeHint};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use prometheus::IntGauge;
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tokio_util::task::task_tracker::TaskTrackerToken;

use super::gateways::{Gateway, Gateways};
use super::{AnswerBody, Cut, Link, LinkArgs, Orders, Stops};

/// Most header lines of a request: what the edge lets through, and the link's own.
const MAX_HEADERS: usize = 128;
/// A connection that failed, or ended sooner than this without a request, was not wanted: its place stays empty
/// for as long.
const UNWANTED: Duration = Duration::from_secs(1);
/// How long connections outlive the control stream that they belong to: a gateway that stops still sends what it
/// has accepted.
const ORPHAN_GRACE: Duration = Duration::from_secs(60);

/// All work connections of this agent to one gateway.
pub(super) struct Work {
    shared: Arc<Shared>,
}

struct Shared {
    gateways: Arc<Gateways>,
    gateway: Arc<Gateway>,
    /// Connections to all gateways, as each stock counts its own.
    all_open: Arc<AtomicU32>,
    args: LinkArgs,
    orders: Arc<dyn Orders>,
    connections: IntGauge,
    stops: Stops,
    tasks: TaskTracker,
}

/// The connections of one control stream; dropping it lets them run out.
pub(super) struct Session {
    stock: Arc<Stock>,
    over: CancellationToken,
}

struct Stock {
    shared: Arc<Shared>,
    /// Connections, and places of those that were not wanted a moment ago.
    open: AtomicU32,
    /// Connections with a request under way.
    busy: AtomicU32,
    /// How many more the gateway asked for.
    wanted: AtomicU32,
    /// Any of these changed.
    changed: Notify,
}

impl Work {
    pub(super) fn new(link: &Link, stops: Stops) -> Self {
        let shared = Shared {
            gateways: Arc::clone(&link.all.gateways),
            gateway: Arc::clone(&link.gateway),
            all_open: Arc::clone(&link.open),
            args: link.all.args,
            orders: Arc::clone(&link.all.orders),
            connections: link.all.metrics.link_connections.clone(),
            stops,
            tasks: TaskTracker::new(),
        };
        Self { shared: Arc::new(shared) }
    }

    /// Opens a stock for the gateway that has just welcomed us.
    pub(super) fn begin(&self) -> Session {
        let stock = Arc::new(Stock {
            shared: Arc::clone(&self.shared),
            open: AtomicU32::new(0),
            busy: AtomicU32::new(0),
            wanted: AtomicU32::new(0),
            changed: Notify::new(),
        });
        let over = self.shared.stops.leave.child_token();
        self.shared.tasks.spawn(Arc::clone(&stock).replenish(over.clone()));
        Session { stock, over }
    }

    /// Waits until all connections are closed.
    pub(super) async fn finish(self) {
        self.shared.tasks.close();
        self.shared.tasks.wait().await;
    }
}

impl Session {
    /// The gateway asks for more connections.
    pub(super) fn want(&self, connections: u32) {
        let limit = self.stock.shared.args.link_max_connections;
        self.stock.wanted.fetch_add(connections.min(limit), Ordering::Relaxed);
        self.stock.changed.notify_one();
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        self.over.cancel();
    }
}

impl Stock {
    /// Opens what is missing, until the control stream is over.
    async fn replenish(self: Arc<Self>, over: CancellationToken) {
        while !over.is_cancelled() {
            for _ in 0..self.missing() {
                self.open.fetch_add(1, Ordering::Relaxed);
                self.shared.all_open.fetch_add(1, Ordering::Relaxed);
                self.shared.tasks.spawn(Arc::clone(&self).hold_place(over.clone()));
            }
            tokio::select! { () = self.changed.notified() => {}, () = over.cancelled() => {} }
        }
    }

    fn missing(&self) -> u32 {
        let open = self.open.load(Ordering::Relaxed);
        let idle = open.saturating_sub(self.busy.load(Ordering::Relaxed));
        let wanted = self.wanted.swap(0, Ordering::Relaxed);
        let elsewhere = self.shared.all_open.load(Ordering::Relaxed).saturating_sub(open);
        missing(&self.shared.args, (open, elsewhere), idle, wanted)
    }

    /// One connection, from the dial to its end, and the pause after one that nobody wanted.
    async fn hold_place(self: Arc<Self>, over: CancellationToken) {
        let started = Instant::now();
        let served = Arc::new(AtomicBool::new(false));
        let result = match self.shared.gateway.dialer.dial(Kind::Work).await {
            Ok(stream) => self.serve(stream, &served, &over).await,
            Err(error) => Err(error.into()),
        };
        if let Err(error) = result {
            tracing::debug!(error, "a work connection ended");
        }
        if !served.load(Ordering::Relaxed) && started.elapsed() < UNWANTED {
            tokio::select! { () = tokio::time::sleep(UNWANTED) => {}, () = over.cancelled() => {} }
        }
        self.open.fetch_sub(1, Ordering::Relaxed);
        self.shared.all_open.fetch_sub(1, Ordering::Relaxed);
        self.changed.notify_one();
    }

    async fn serve(
        self: &Arc<Self>,
        stream: Conduit,
        served: &Arc<AtomicBool>,
        over: &CancellationToken,
    ) -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
        let _counted = Counted::new(&self.shared.connections);
        let upgraded = TaskTracker::new();
        let service = service_fn(|mut request| {
            served.store(true, Ordering::Relaxed);
            self.shared.gateways.asked_by(self.shared.gateway.number);
            let busy = Arc::new(Busy::new(self));
            let cut = self.shared.stops.abort.clone();
            request.extensions_mut().insert(Hold { cut, _busy: Arc::clone(&busy), _open: upgraded.token() });
            async move {
                let response = busy.0.shared.orders.answer(request).await;
                Ok::<_, Infallible>(response.map(|body| Held { body, _busy: busy }))
            }
        });
        let mut connection = pin!(
            http1::Builder::new()
                .max_headers(MAX_HEADERS)
                // The edge dates what it sends.
                .auto_date_header(false)
                // An idle connection waits for its next request as long as it takes.
                .header_read_timeout(None)
                .serve_connection(TokioIo::new(stream), service)
                .with_upgrades()
        );
        // An upgraded connection is another's now, and still takes its place here.
        let until_left = async {
            upgraded.close();
            upgraded.wait().await;
        };
        let stops = &self.shared.stops;
        let last_call = async {
            let orphaned = async {
                over.cancelled().await;
                tokio::time::sleep(ORPHAN_GRACE).await;
            };
            tokio::select! { () = stops.finish.cancelled() => {}, () = orphaned => {} }
        };
        tokio::select! {
            // First, so that an answer that is ready at the same moment already says that it is the last.
            biased;
            () = last_call => connection.as_mut().graceful_shutdown(),
            ended = connection.as_mut() => {
                ended?;
                until_left.await;
                return Ok(());
            }
        }
        tokio::select! {
            ended = async { connection.await?; until_left.await; Ok(()) } => ended,
            () = stops.abort.cancelled() => Err("cut off at the end of the drain".into()),
        }
    }
}

/// How many connections to open: up to the base of idle ones, and what was asked for, within the limit. What is open to
/// other gateways counts, but leaves this one its base.
fn missing(args: &LinkArgs, (open, elsewhere): (u32, u32), idle: u32, wanted: u32) -> u32 {
    let base = args.link_idle_connections.saturating_sub(idle);
    let room = args.link_max_connections.saturating_sub(open.saturating_add(elsewhere));
    let own = args.link_idle_connections.min(args.link_max_connections).saturating_sub(open);
    base.saturating_add(wanted).min(room.max(own))
}

/// A connection, in the gauge.
struct Counted(IntGauge);

impl Counted {
    fn new(gauge: &IntGauge) -> Self {
        gauge.inc();
        Self(gauge.clone())
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.0.dec();
    }
}

/// A connection with a request under way: until the last byte of the answer is handed over.
struct Busy(Arc<Stock>);

impl Busy {
    fn new(stock: &Arc<Stock>) -> Self {
        stock.busy.fetch_add(1, Ordering::Relaxed);
        stock.changed.notify_one();
        Self(Arc::clone(stock))
    }
}

impl Drop for Busy {
    fn drop(&mut self) {
        self.0.busy.fetch_sub(1, Ordering::Relaxed);
    }
}

/// A request's hold on its connection, among its extensions: who upgrades the connection keeps it to the end.
#[derive(Clone)]
pub(crate) struct Hold {
    /// Cancelled when everything is to be closed now.
    pub(crate) cut: CancellationToken,
    _busy: Arc<Busy>,
    _open: TaskTrackerToken,
}

/// An answer's body that keeps its connection busy.
struct Held {
    body: AnswerBody,
    _busy: Arc<Busy>,
}

impl Body for Held {
    type Data = Bytes;
    type Error = Cut;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Cut>>> {
        Pin::new(&mut self.body).poll_frame(cx)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(open: u32, idle: u32, wanted: u32, expected: u32) {
        check_beside(0, open, idle, wanted, expected);
    }

    fn check_beside(elsewhere: u32, open: u32, idle: u32, wanted: u32, expected: u32) {
        let args = LinkArgs { link_max_connections: 10, link_idle_connections: 4 };
        let got = missing(&args, (open, elsewhere), idle, wanted);
        assert_eq!(got, expected, "{open} open, {elsewhere} elsewhere, {idle} idle, {wanted} wanted");
    }

    #[test]
    fn what_is_missing() {
        check(0, 0, 0, 4);
        check(4, 4, 0, 0);
        check(4, 3, 0, 1);
        check(4, 4, 3, 3);
        check(8, 0, 5, 2);
        check(10, 0, 5, 0);
        check(4, 4, u32::MAX, 6);
        check_beside(4, 4, 4, 9, 2);
        check_beside(10, 4, 0, 5, 0);
        check_beside(10, 1, 0, 5, 3);
        check_beside(u32::MAX, 0, 0, 0, 4);
    }
}
