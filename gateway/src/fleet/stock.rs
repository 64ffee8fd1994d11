//! Stocks of idle work connections. Each edge thread has one, and the control runtime has one: a connection lives
//! and dies on one thread, and in the common case nobody else touches its stock. A fresh connection waits in its
//! node's reserve, bound to no thread yet, until a stock runs short.

use std::collections::VecDeque;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use common::conduit::Loose;
use common::ids::NodeId;
use common::interrupt::Interrupt;
use http_body_util::{Either, Full};
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use tokio::runtime::Handle;
use tokio::sync::oneshot;
use tokio::time::{Instant, timeout_at};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::edge::body::ClientBody;

mod line;
mod node_link;
#[cfg(test)]
mod tests;

pub(crate) use line::Lease;
use line::Line;
use node_link::Dialled;
pub(crate) use node_link::NodeLink;

/// Most idle connections of a node in one stock, and in its reserve.
const MAX_IDLE: usize = 64;

/// How long a call waits for a connection.
const WAIT: Duration = Duration::from_secs(5);

/// How often a call that waits asks again.
const ASK_AGAIN: Duration = Duration::from_millis(250);

/// The body of an order: a client's, or our own.
pub(crate) type Payload = Either<ClientBody, Full<Bytes>>;

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// All stocks of a gateway.
pub(crate) struct Stocks {
    all: Mutex<Vec<Arc<Stock>>>,
    tasks: TaskTracker,
    stop: CancellationToken,
}

/// One thread's idle connections.
pub(crate) struct Stock {
    runtime: Handle,
    shelves: Mutex<Vec<Shelf>>,
    tasks: TaskTracker,
    stop: CancellationToken,
}

/// One node's connections in a stock.
struct Shelf {
    node: NodeId,
    idle: Vec<Line>,
    waiting: VecDeque<oneshot::Sender<Line>>,
}

impl Stocks {
    pub(crate) fn new() -> Self {
        Self { all: Mutex::default(), tasks: TaskTracker::new(), stop: CancellationToken::new() }
    }

    /// What the connections run under, and whatever else must end before they close.
    pub(crate) fn tasks(&self) -> &TaskTracker {
        &self.tasks
    }

    /// A new stock, for whoever runs on `runtime`.
    pub(crate) fn open(&self, runtime: Handle) -> Arc<Stock> {
        let stock =
            Stock { runtime, shelves: Mutex::default(), tasks: self.tasks.clone(), stop: self.stop.child_token() };
        let stock = Arc::new(stock);
        lock(&self.all).push(stock.clone());
        stock
    }

    /// Takes in a connection that `link`'s agent dialled: for the stock where most calls wait for one, else for
    /// the reserve. One too many is closed.
    pub(crate) fn deliver(&self, link: &Arc<NodeLink>, stream: Loose) {
        let dialled = Dialled { stream, open: link.hold(), era: link.era.load(Ordering::Relaxed) };
        let mut reserve = lock(&link.reserve);
        if reserve.len() >= MAX_IDLE || link.left.load(Ordering::Acquire) {
            return;
        }
        // First into the reserve, then the look at who waits; a call that runs short does it in the other order.
        // So neither overlooks the other.
        reserve.push_back(dialled);
        drop(reserve);
        let shortest = lock(&self.all)
            .iter()
            .map(|stock| (stock.waiting(link.node), stock))
            .max_by_key(|(waiting, _)| *waiting)
            .filter(|(waiting, _)| *waiting > 0)
            .map(|(_, stock)| stock.clone());
        if let Some(stock) = shortest {
            if let Some(dialled) = link.take_reserved() {
                stock.adopt(dialled);
            }
        }
    }

    /// A connection to `link`'s node for `stock`'s thread: an idle one, a fresh one, or one that is waited for.
    /// `None` when there is none in time.
    pub(crate) async fn take(&self, stock: &Arc<Stock>, link: &Arc<NodeLink>) -> Option<Lease> {
        let deadline = Instant::now() + WAIT;
        while let Some(line) = stock.pop(link.node) {
            if let Some(lease) = line.lease(stock).await {
                return Some(lease);
            }
        }
        loop {
            let place = stock.wait(link.node);
            // Whoever sends those away who wait has set it before.
            if link.left.load(Ordering::Acquire) {
                return None;
            }
            if let Some(dialled) = link.take_reserved() {
                stock.adopt(dialled);
            }
            let line = self.waited(place, stock, link, deadline).await?;
            if let Some(lease) = line.lease(stock).await {
                return Some(lease);
            }
        }
    }

    async fn waited(
        &self,
        mut place: oneshot::Receiver<Line>,
        stock: &Arc<Stock>,
        link: &NodeLink,
        deadline: Instant,
    ) -> Option<Line> {
        loop {
            let until = deadline.min(Instant::now() + ASK_AGAIN);
            // An adopted connection is here within one turn of the runtime; only a real shortage asks for more.
            match timeout_at(until, async {
                tokio::select! {
                    biased;
                    line = &mut place => line,
                    () = tokio::task::yield_now() => {
                        if lock(&link.reserve).is_empty() {
                            link.want_one();
                            if link.is_full() {
                                self.shed(link.node, stock);
                            }
                        }
                        (&mut place).await
                    }
                }
            })
            .await
            {
                Ok(line) => return line.ok(),
                Err(_) if Instant::now() >= deadline => return None,
                Err(_) => {}
            }
        }
    }

    /// Closes an idle connection in the richest other stock: the agent is at its limit, and will dial a new one
    /// for the thread that has none.
    fn shed(&self, node: NodeId, poor: &Arc<Stock>) {
        let richest = lock(&self.all)
            .iter()
            .filter(|stock| !Arc::ptr_eq(stock, poor))
            .map(|stock| (stock.idle(node), stock))
            .max_by_key(|(idle, _)| *idle)
            .map(|(_, stock)| stock.clone());
        drop(richest.and_then(|stock| stock.pop(node)));
    }

    /// How many of a node's connections have a call or a build.
    pub(crate) fn in_use(&self, link: &NodeLink) -> u32 {
        let idle: usize = lock(&self.all).iter().map(|stock| stock.idle(link.node)).sum();
        let unused = u32::try_from(idle + lock(&link.reserve).len()).unwrap_or(u32::MAX);
        link.open.load(Ordering::Relaxed).saturating_sub(unused)
    }

    /// Closes what is idle of a node that is gone, and sends those away who wait for it.
    pub(crate) fn forget(&self, link: &NodeLink) {
        link.left.store(true, Ordering::Release);
        lock(&link.reserve).clear();
        let stocks = lock(&self.all).clone();
        for stock in stocks {
            lock(&stock.shelves).retain(|shelf| shelf.node != link.node);
        }
    }

    /// Closes what is idle of a node, and what is in use once that is over: its agent dials anew.
    pub(crate) fn dial_anew(&self, link: &NodeLink) {
        link.era.fetch_add(1, Ordering::Relaxed);
        lock(&link.reserve).clear();
        let stocks = lock(&self.all).clone();
        for stock in stocks {
            stock.with(link.node, |shelf| shelf.idle.retain(|line| !line.is_over()));
        }
    }

    /// Closes every connection and waits for the end of what drives them.
    pub(crate) async fn close(&self) {
        self.stop.cancel();
        lock(&self.all).clear();
        self.tasks.close();
        self.tasks.wait().await;
    }
}

impl Stock {
    fn with<T>(&self, node: NodeId, act: impl FnOnce(&mut Shelf) -> T) -> T {
        let mut shelves = lock(&self.shelves);
        let place = shelves.iter().position(|shelf| shelf.node == node).unwrap_or_else(|| {
            shelves.push(Shelf { node, idle: Vec::new(), waiting: VecDeque::new() });
            shelves.len() - 1
        });
        act(&mut shelves[place])
    }

    /// An idle connection; one that is ready, if there is one: where an answer was there before the end of its request,
    /// that is still on the way, for as long as the client likes.
    fn pop(&self, node: NodeId) -> Option<Line> {
        self.with(node, |shelf| {
            loop {
                let ready = shelf.idle.iter().rposition(Line::is_ready);
                let line = match ready {
                    Some(place) => shelf.idle.swap_remove(place),
                    None => shelf.idle.pop()?,
                };
                if !line.is_over() {
                    return Some(line);
                }
            }
        })
    }

    fn put(&self, line: Line) {
        if line.is_over() {
            return;
        }
        self.with(line.node(), |shelf| {
            let mut line = line;
            while let Some(place) = shelf.waiting.pop_front() {
                match place.send(line) {
                    Ok(()) => return,
                    Err(back) => line = back,
                }
            }
            if shelf.idle.len() < MAX_IDLE {
                shelf.idle.push(line);
            }
        });
    }

    fn wait(&self, node: NodeId) -> oneshot::Receiver<Line> {
        let (place, waited) = oneshot::channel();
        self.with(node, |shelf| {
            shelf.waiting.retain(|place| !place.is_closed());
            shelf.waiting.push_back(place);
        });
        waited
    }

    fn waiting(&self, node: NodeId) -> usize {
        self.with(node, |shelf| shelf.waiting.iter().filter(|place| !place.is_closed()).count())
    }

    fn idle(&self, node: NodeId) -> usize {
        self.with(node, |shelf| shelf.idle.len())
    }

    /// Binds a connection to this stock's thread and drives it there.
    fn adopt(self: &Arc<Self>, dialled: Dialled) {
        let (stock, stop) = (self.clone(), self.stop.clone());
        let drive = async move {
            let Dialled { stream, open, era } = dialled;
            let stream = match stream.bind() {
                Ok(stream) => stream,
                Err(error) => return tracing::warn!(%error, "a work connection cannot be watched"),
            };
            let Ok((sender, connection)) = http1::handshake(TokioIo::new(stream)).await else { return };
            let connection = connection.with_upgrades();
            stock.put(Line::new(sender, open.0.clone(), era));
            drop(stock);
            let gone = open.0.gone.clone();
            let mut stop = Interrupt::new(async move {
                tokio::select! { () = stop.cancelled() => {}, () = gone.cancelled() => {} }
            });
            tokio::select! {
                biased;
                result = connection => if let Err(error) = result { tracing::debug!(%error, "work connection") },
                () = stop.come() => {}
            }
            drop(open);
        };
        self.tasks.spawn_on(drive, &self.runtime);
    }
}
