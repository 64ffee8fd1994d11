//! The fleet: the nodes that are linked, the connections to them, and the orders that they get. Agents dial us;
//! we never dial them.

use std::cell::{OnceCell, RefCell};
use std::collections::{BTreeSet, HashMap, HashSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use arc_swap::{ArcSwap, ArcSwapOption};
use chrono::Utc;
use common::digest::Digest;
use common::function::DeploymentSpec;
use common::ids::{DeploymentId, NodeId};
use common::labels::Labels;
use common::protocol::{GatewayMessage, NodeState, Warm};
use store::fleet::{Duty, Node as KnownNode};
use tokio::runtime::Handle;
use tokio::sync::{Notify, mpsc, watch};
use tokio::time::timeout;

use crate::edge::placement::{Load, Rankings, Seat, Wanted};
use crate::edge::routes::LeftOut;
use crate::hand_over::PredecessorClient;
use crate::metrics::Metrics;

mod attendance;
pub(crate) mod authorities;
pub(crate) mod authority;
mod build;
pub(crate) mod calls;
pub(crate) mod config;
mod control_stream;
pub(crate) mod enrolment;
mod handover;
pub(crate) mod health;
mod homes;
pub(crate) mod link;
pub(crate) mod node_port;
mod pass;
mod picture;
mod recent;
pub(crate) mod reception;
mod retries;
pub(crate) mod roster;
mod rotation;
pub(crate) mod scrape;
pub(crate) mod stock;
mod succession;
pub(crate) mod warmth;

pub(crate) use build::BuildEvents;
use handover::Handover;
use health::Trust;
use homes::Homes;
use pass::Pass;
pub(crate) use picture::Linked;
use picture::Picture;
use retries::Retries;
use scrape::Asker;
use stock::{Lease, NodeLink, Stock, Stocks};

/// Most orders that wait to be sent on one control stream.
const MAX_ORDERS: usize = 256;

/// How long a call or a build waits for a node when none is linked.
const NODE_DEADLINE: Duration = Duration::from_secs(3);

/// Longest time of a deploy, from its version's row to its place in the routes.
const DEPLOY_LIMIT: chrono::TimeDelta = chrono::TimeDelta::minutes(20);

/// No node can take a call or a build.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum NoNode {
    #[error("no node is linked that takes it: try again in a moment, or start a node agent")]
    Linked,
    #[error("the node that keeps the answers of this `Idempotency-Key` is away or drained: try again later")]
    Home,
    #[error("no node that takes calls has the labels {0}, which `node_selector` asks for")]
    Labelled(Labels),
}

/// The nodes that are linked. Cheap to clone.
#[derive(Clone)]
pub(crate) struct Fleet(Arc<Inner>);

struct Inner {
    nodes: Mutex<HashMap<NodeId, Node>>,
    /// What the nodes may ask for; kept while a node is away. Never locked before `nodes` is.
    passes: Mutex<HashMap<NodeId, Arc<Pass>>>,
    /// Who belongs to the fleet, as the database said last.
    roster: ArcSwap<HashMap<NodeId, KnownNode>>,
    /// Held while the roster is read and put in, so that an older reading never replaces a newer one. What it holds is
    /// the database's number of the roster.
    reading: tokio::sync::Mutex<Option<i64>>,
    /// The nodes that have registered, as the invoke path reads them.
    picture: ArcSwap<Picture>,
    /// Calls under way on all nodes.
    load: Arc<Load>,
    /// Where answers are kept for who asks again.
    homes: Homes,
    /// Calls that went to a second node.
    retries: Mutex<Retries>,
    changed: Notify,
    /// A node was linked or lost, which the database is to know.
    links: Notify,
    stocks: Stocks,
    /// The stock of the control runtime, from which builds are ordered.
    control: Arc<Stock>,
    /// Versions that are being built: the route table does not have them yet.
    pending: Mutex<HashMap<DeploymentId, Arc<DeploymentSpec>>>,
    /// Versions that are made warm before they serve.
    warming: Mutex<HashMap<DeploymentId, Arc<DeploymentSpec>>>,
    /// The certificates of the authorities that the fleet trusts; none where all nodes are on this machine.
    authorities: watch::Sender<Vec<String>>,
    /// Whether a successor accepts agents, and this gateway none.
    has_successor: watch::Sender<bool>,
    /// The gateway whose place this one has taken, until that one has ended.
    predecessor: ArcSwapOption<PredecessorClient>,
    metrics: Arc<Metrics>,
}

struct Node {
    link: Arc<NodeLink>,
    /// The control stream; without it the node gets no calls.
    control: Option<Control>,
    state: Arc<NodeState>,
    load: Arc<Load>,
    /// Whether it is silent.
    is_suspected: bool,
    trust: Trust,
    /// Set once it is drained.
    handover: Option<Handover>,
    labels: Arc<Labels>,
    /// Another number for other labels.
    labelled: u64,
}

struct Control {
    /// Which of the node's streams it is: a new one replaces the old.
    stream: u64,
    orders: mpsc::Sender<GatewayMessage>,
    /// What it was told to keep warm.
    kept: Option<Vec<Warm>>,
    /// What the node speaks.
    protocol: u32,
    /// Who waits for its metrics. Whoever was first had it asked.
    askers: Vec<Asker>,
}

thread_local! {
    /// What placement has found out on this thread.
    static RANKINGS: RefCell<Rankings> = RefCell::default();

    /// The stock of an edge thread. Such a thread belongs to one gateway for all its life.
    static STOCK: OnceCell<Arc<Stock>> = const { OnceCell::new() };
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Fleet {
    /// An empty fleet, whose builds are ordered on `control`.
    pub(crate) fn new(control: Handle, metrics: Arc<Metrics>) -> Self {
        let stocks = Stocks::new();
        let control = stocks.open(control);
        Self(Arc::new(Inner {
            nodes: Mutex::default(),
            passes: Mutex::default(),
            roster: ArcSwap::default(),
            reading: tokio::sync::Mutex::default(),
            picture: ArcSwap::default(),
            load: Arc::default(),
            homes: Homes::default(),
            retries: Mutex::new(Retries::new(Instant::now())),
            changed: Notify::new(),
            links: Notify::new(),
            stocks,
            control,
            pending: Mutex::default(),
            warming: Mutex::default(),
            authorities: watch::Sender::new(Vec::new()),
            has_successor: watch::Sender::new(false),
            predecessor: ArcSwapOption::empty(),
            metrics,
        }))
    }

    /// The nodes that take calls.
    pub(crate) fn nodes(&self) -> arc_swap::Guard<Arc<Picture>> {
        self.0.picture.load()
    }

    /// Whether some node takes calls.
    pub(crate) fn is_ready(&self) -> bool {
        !self.nodes().is_empty()
    }

    /// The node for a call or a build of `spec`, once there is one, and the seat on it: a gateway or a node that has
    /// just started is linked within moments. `None` when none is linked in time.
    pub(crate) async fn placed(&self, spec: &DeploymentSpec) -> Option<(Arc<NodeLink>, Option<Seat>)> {
        self.once_linked(NODE_DEADLINE, || self.place(spec)).await
    }

    /// The node for a call that runs once, known by `key`: always the same. `None` when that one is not linked in
    /// time; at once, when it is drained, or away for longer than that.
    pub(crate) async fn home(&self, key: &Digest, spec: &DeploymentSpec) -> Option<(Arc<NodeLink>, Option<Seat>)> {
        let drains = |home| self.nodes().iter().any(|node| node.link.node == home && node.duty == Duty::Draining);
        let home = self.home_of(key, spec);
        if home.is_some_and(|home| drains(home) || self.0.homes.is_away(home, NODE_DEADLINE, Instant::now())) {
            return None;
        }
        self.once_linked(NODE_DEADLINE, || {
            let home = self.home_of(key, spec)?;
            let picture = self.nodes();
            let place = picture.iter().position(|node| node.link.node == home && node.duty != Duty::Draining)?;
            Some(picture.seated(place, spec.deployment))
        })
        .await
    }

    fn home_of(&self, key: &Digest, spec: &DeploymentSpec) -> Option<NodeId> {
        let (selector, roster) = (&spec.node_selector, self.0.roster.load());
        let has_labels = |node| roster.get(&node).is_some_and(|node| node.all_labels().have(selector));
        self.0.homes.of(key, Instant::now(), |node| selector.is_empty() || has_labels(node))
    }

    /// Why no node takes a call or a build of `spec` now; of a call that runs once, with its key.
    pub(crate) fn refusal(&self, spec: &DeploymentSpec, once: Option<&Digest>) -> NoNode {
        if once.is_some_and(|key| self.home_of(key, spec).is_some()) {
            return NoNode::Home;
        }
        let (selector, picture) = (&spec.node_selector, self.nodes());
        let mut active = picture.iter().filter(|node| node.duty == Duty::Active).peekable();
        if active.peek().is_some() && !active.any(|node| node.labels.have(selector)) {
            NoNode::Labelled(selector.clone())
        } else {
            NoNode::Linked
        }
    }

    async fn once_linked<T>(&self, deadline: Duration, look: impl Fn() -> Option<T>) -> Option<T> {
        if let Some(found) = look() {
            return Some(found);
        }
        let placed = async {
            loop {
                // Before the look, so that no change falls between the two.
                let changed = self.0.changed.notified();
                if let Some(found) = look() {
                    return found;
                }
                changed.await;
            }
        };
        timeout(deadline, placed).await.ok()
    }

    fn place(&self, spec: &DeploymentSpec) -> Option<(Arc<NodeLink>, Option<Seat>)> {
        let picture = self.nodes();
        let place = RANKINGS.with_borrow_mut(|rankings| picture.view.choose(&Wanted::of(spec), rankings))?;
        Some(picture.seated(place, spec.deployment))
    }

    /// Another node for a call that `failed` did not take: not a byte of it has left. `None` when there is none, or too
    /// many calls went to a second node lately.
    pub(crate) fn elsewhere(&self, spec: &DeploymentSpec, failed: &NodeLink) -> Option<(Arc<NodeLink>, Option<Seat>)> {
        let picture = self.nodes();
        let place = picture.view.choose_other(&Wanted::of(spec), failed.node)?;
        let is_allowed = lock(&self.0.retries).allow(Instant::now(), self.0.load.begun());
        self.0.metrics.fleet.retry(is_allowed);
        is_allowed.then(|| picture.seated(place, spec.deployment))
    }

    /// A connection to a node for a call on this edge thread; `None` when there is none in time.
    pub(crate) async fn connection(&self, link: &Arc<NodeLink>) -> Option<Lease> {
        let stock = STOCK.with(|stock| stock.get_or_init(|| self.0.stocks.open(Handle::current())).clone());
        self.0.stocks.take(&stock, link).await
    }

    /// Has a node build `spec`, and keeps it at hand for the node's questions until the events are dropped. Call
    /// it on the control runtime.
    ///
    /// # Errors
    /// No node is linked, or none has a connection free.
    pub(crate) async fn build(&self, spec: &DeploymentSpec) -> Result<BuildEvents, NoNode> {
        build::order(self, spec).await
    }

    /// Tells every node which versions get no more calls. One that a call may be on its way to, its nodes may still ask
    /// for.
    pub(crate) fn let_go(&self, LeftOut { retired, forgotten }: &LeftOut) {
        if !forgotten.is_empty() {
            lock(&self.0.passes).values().for_each(|pass| pass.forget(forgotten));
        }
        // What is forgotten, a late call may have brought back there.
        let over: BTreeSet<_> = retired.iter().chain(forgotten).copied().collect();
        if over.is_empty() {
            return;
        }
        let deployments = Vec::from_iter(over);
        for node in lock(&self.0.nodes).values() {
            let Some(control) = &node.control else { continue };
            let order = GatewayMessage::Retire { deployments: deployments.clone() };
            if control.orders.try_send(order).is_err() {
                // When it registers again, it is told what nobody wants.
                tracing::warn!(node = %node.link.node, "the node takes no orders");
            }
        }
    }

    /// A version that is being built, or made warm.
    pub(crate) fn pending(&self, id: DeploymentId) -> Option<Arc<DeploymentSpec>> {
        let building = lock(&self.0.pending).get(&id).cloned();
        building.or_else(|| lock(&self.0.warming).get(&id).cloned())
    }

    /// Closes all connections.
    pub(crate) async fn close(&self) {
        self.0.stocks.close().await;
    }

    /// Takes in what the database says of the nodes. Those that were removed lose every connection at once.
    fn know(&self, known: Vec<KnownNode>) {
        // One without a certificate is on our own machine, and comes back when its agent does.
        let is_removed = |node: &KnownNode| node.duty == Duty::Removed && node.certificate.is_some();
        let removed: Vec<_> = known.iter().filter(|node| is_removed(node)).map(|node| node.id).collect();
        let roster = known.into_iter().map(|node| (node.id, node)).collect();
        let before = self.0.roster.swap(Arc::new(roster));
        let mut nodes = lock(&self.0.nodes);
        let mut passes = lock(&self.0.passes);
        for id in removed {
            if let Some(pass) = passes.remove(&id) {
                pass.gone.cancel();
            }
            if let Some(node) = nodes.remove(&id) {
                self.0.stocks.forget(&node.link);
            }
        }
        drop(passes);
        for (id, node) in nodes.iter_mut() {
            // What was drained when this gateway began has handed over already, and what is cordoned is warm elsewhere.
            let was_active = before.get(id).is_none_or(|before| before.duty == Duty::Active);
            if self.duty(*id) != Some(Duty::Draining) {
                node.handover = None;
            } else if was_active {
                node.handover = Some(Handover::new(Instant::now(), node.state.warm.iter().copied()));
            }
            node.label(self.labels(*id));
        }
        self.redraw(&nodes);
    }

    /// What the database said last of the nodes.
    pub(crate) fn roster(&self) -> Arc<HashMap<NodeId, KnownNode>> {
        self.0.roster.load_full()
    }

    /// What a node may do; `None` when it is not known.
    fn duty(&self, node: NodeId) -> Option<Duty> {
        self.0.roster.load().get(&node).map(|node| node.duty)
    }

    /// How many calls and builds of this gateway a node has.
    pub(crate) fn in_use(&self, link: &NodeLink) -> u32 {
        self.0.stocks.in_use(link)
    }

    fn labels(&self, node: NodeId) -> Labels {
        self.0.roster.load().get(&node).map(KnownNode::all_labels).unwrap_or_default()
    }

    fn pass_of(&self, node: NodeId) -> Arc<Pass> {
        lock(&self.0.passes).entry(node).or_default().clone()
    }

    /// Of `deployments`, those that neither serve nor are being built. What is young may be another gateway's that is about
    /// to serve.
    fn unwanted(&self, deployments: Vec<DeploymentId>, serves: impl Fn(DeploymentId) -> bool) -> Vec<DeploymentId> {
        let mut pending: HashSet<_> = lock(&self.0.pending).keys().copied().collect();
        pending.extend(lock(&self.0.warming).keys());
        let is_young = |id: &DeploymentId| id.made_at().is_none_or(|made_at| Utc::now() - made_at < DEPLOY_LIMIT);
        deployments.into_iter().filter(|id| !pending.contains(id) && !serves(*id) && !is_young(id)).collect()
    }
}
