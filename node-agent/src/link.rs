//! The links to all gateways. To each a control stream, a stock of work connections on which the gateway is the client, and
//! calls on which the agent is. The agent dials all of them; it listens nowhere.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::AtomicU32;
use std::time::{Duration, Instant};

use async_trait::async_trait;
use bytes::Bytes;
use common::error::Chain;
use common::ids::DeploymentId;
use common::labels::Labels;
use common::ops::Readiness;
use common::protocol::{NodeState, Warm};
use http::{Request, Response};
use hyper::body::Incoming;
use prometheus::Registry;
use tokio_util::sync::CancellationToken;
use tokio_util::task::{AbortOnDropHandle, TaskTracker};

use crate::backoff::Backoff;
use crate::metrics::Metrics;
use crate::renewal::Notices;

pub(crate) mod calls;
mod control;
pub(crate) mod dial;
pub(crate) mod gateways;
#[cfg(test)]
pub(crate) mod tests;
mod work;

use control::End;
pub(crate) use dial::Way;
use gateways::Gateway;
pub(crate) use gateways::{GatewayNumber, Gateways};
pub(crate) use work::Hold;

/// How many connections an agent opens.
#[derive(Clone, Copy, Debug, clap::Args)]
#[group(id = "agent_link")]
pub struct LinkArgs {
    /// Most work connections open at once, to all gateways together, which is also the most calls under way on this node.
    #[arg(long, env = "LINK_MAX_CONNECTIONS", default_value_t = 1024, value_parser = clap::value_parser!(u32).range(1..=65_536))]
    pub link_max_connections: u32,
    /// Idle work connections that are kept open to each gateway for the next calls.
    #[arg(long, env = "LINK_IDLE_CONNECTIONS", default_value_t = 4, value_parser = clap::value_parser!(u32).range(1..=64))]
    pub link_idle_connections: u32,
}

/// The first and the longest wait between two attempts to reach the gateway.
const RETRY: (Duration, Duration) = (Duration::from_millis(50), Duration::from_secs(3));

/// The wait after a refusal, which somebody has to do something about.
const REFUSED_RETRY: Duration = Duration::from_secs(15);

/// The wait before it is looked whether an address still leads to a gateway that another one led to.
const ALIAS_RETRY: Duration = Duration::from_secs(30);

/// How often the gateways' names are looked up, and how soon again if that failed.
const LOOK_UP: Duration = Duration::from_secs(30);
const LOOK_UP_RETRY: Duration = Duration::from_secs(3);

/// How long a gateway may be away before its wishes are forgotten, if there are others.
const WISHES_LIMIT: Duration = Duration::from_secs(60);

/// How long a gateway has to notice that we leave, before idle connections close under it.
pub(crate) const LEAVE_GRACE: Duration = Duration::from_millis(250);

/// Attempts in a row that fail without a word in the log: a gateway that starts at the same time, or again, is soon
/// there.
const WARN_AFTER: u32 = 3;

/// The body of an answer on a work connection.
pub(crate) type AnswerBody = http_body_util::combinators::UnsyncBoxBody<Bytes, Cut>;

/// An answer that will not be whole; its connection is closed.
#[derive(Clone, Copy, Debug, thiserror::Error)]
#[error("the answer is cut off")]
pub(crate) struct Cut;

/// What the gateway can have from this node.
#[async_trait]
pub(crate) trait Orders: Send + Sync + 'static {
    /// Does what the request says.
    async fn answer(&self, request: Request<Incoming>) -> Response<AnswerBody>;
    /// What the node has and does now.
    fn state(&self) -> NodeState;
    /// These deployments get no more calls.
    fn retire(&self, deployments: &[DeploymentId]);
    /// Sandboxes of these are to be kept for this gateway, and of no others.
    fn keep(&self, gateway: GatewayNumber, warm: &[Warm]);
}

/// The links, as they are set up.
pub(crate) struct Links {
    /// Whom they lead to.
    pub(crate) gateways: Arc<Gateways>,
    /// The machine's name, for people.
    pub(crate) name: String,
    /// What the operator says of it.
    pub(crate) labels: Labels,
    /// How many connections.
    pub(crate) args: LinkArgs,
    /// Who does what gateways ask.
    pub(crate) orders: Arc<dyn Orders>,
    /// Set while a gateway has welcomed us.
    pub(crate) readiness: Readiness,
    /// Where connections are counted.
    pub(crate) metrics: Arc<Metrics>,
    /// All metrics, for gateways that ask; `None` where nobody is to.
    pub(crate) told: Option<Registry>,
    /// What whoever renews the certificate is to know, and says.
    pub(crate) notices: Arc<Notices>,
}

/// One of them.
struct Link {
    all: Arc<Links>,
    gateway: Arc<Gateway>,
    /// Work connections of all links.
    open: Arc<AtomicU32>,
}

/// What the links' owner stops them with, in this order.
#[derive(Clone, Debug, Default)]
pub(crate) struct Stops {
    /// Leave the gateway: end the control stream, so that it sends no more calls.
    pub(crate) leave: CancellationToken,
    /// Close idle work connections, and each other one after its answer.
    pub(crate) finish: CancellationToken,
    /// Close everything now.
    pub(crate) abort: CancellationToken,
}

impl Stops {
    /// For one link of several.
    fn child(&self) -> Self {
        let Self { leave, finish, abort } = self;
        Self { leave: leave.child_token(), finish: finish.child_token(), abort: abort.child_token() }
    }
}

impl Links {
    /// Keeps a link up to each gateway that there is, until all work connections are closed after `stops.finish`, or until
    /// `stops.abort`.
    pub(crate) async fn run(self, stops: Stops) {
        let (all, open, tasks) = (Arc::new(self), Arc::new(AtomicU32::new(0)), TaskTracker::new());
        let mut running: HashMap<GatewayNumber, Stops> = HashMap::new();
        while !stops.leave.is_cancelled() {
            let looked_up = tokio::select! {
                looked_up = all.gateways.look_up() => looked_up,
                () = stops.leave.cancelled() => break,
            };
            let known = all.gateways.all();
            running.retain(|number, stops| {
                let stays = known.iter().any(|gateway| gateway.number == *number);
                if !stays {
                    tasks.spawn(leave(stops.clone()));
                }
                stays
            });
            for gateway in known {
                running.entry(gateway.number).or_insert_with(|| {
                    let stops = stops.child();
                    let link = Arc::new(Link { all: Arc::clone(&all), gateway, open: Arc::clone(&open) });
                    tasks.spawn(link.run(stops.clone()));
                    stops
                });
            }
            let pause = if looked_up { LOOK_UP } else { LOOK_UP_RETRY };
            tokio::select! { () = tokio::time::sleep(pause) => {}, () = stops.leave.cancelled() => {} }
        }
        tasks.close();
        tasks.wait().await;
    }
}

/// Gives up the link to an address that is no gateway's any more.
async fn leave(stops: Stops) {
    stops.leave.cancel();
    tokio::time::sleep(LEAVE_GRACE).await;
    stops.finish.cancel();
}

impl Link {
    async fn run(self: Arc<Self>, stops: Stops) {
        let work = work::Work::new(&self, stops.clone());
        let (mut backoff, mut linked_at) = (Backoff::new(RETRY.0, RETRY.1), Instant::now());
        let gateway = &self.gateway.dialer.way;
        // The process before the one that has the gateway's place. There is one at a time.
        let mut _former = None;
        while !stops.leave.is_cancelled() {
            let ended = control::run(&self, &work, &stops.leave, &mut backoff).await;
            if backoff.failures() == 0 {
                linked_at = Instant::now();
            }
            let error = match ended {
                Ok(End::Left) => break,
                Ok(End::Succeeded(former)) => {
                    let serving = former.finish(Arc::clone(&self), stops.leave.clone());
                    _former = Some(AbortOnDropHandle::new(tokio::spawn(serving)));
                    continue;
                }
                Err(error) => error,
            };
            if linked_at.elapsed() > WISHES_LIMIT && self.all.gateways.is_linked() {
                self.all.orders.keep(self.gateway.number, &[]);
            }
            if let Some(pause) = error.pause() {
                if error.is_refusal() {
                    tracing::error!(error = %Chain(&error), %gateway, "not linked: trying again later");
                }
                tokio::select! { () = tokio::time::sleep(pause) => {}, () = stops.leave.cancelled() => {} }
                continue;
            }
            if backoff.failures() == WARN_AFTER {
                tracing::warn!(error = %Chain(&error), %gateway, "no gateway: trying again until one answers");
            }
            tokio::select! { () = backoff.wait() => {}, () = stops.leave.cancelled() => {} }
        }
        work.finish().await;
        self.all.orders.keep(self.gateway.number, &[]);
    }
}
