//! The link to a gateway: a control stream, a stock of work connections on which the gateway is the client, and
//! calls on which the agent is. The agent dials all of them; it listens nowhere.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use common::error::Chain;
use common::ids::DeploymentId;
use common::labels::Labels;
use common::ops::Readiness;
use common::protocol::{NodeState, Warm};
use http::{Request, Response};
use hyper::body::Incoming;
use tokio_util::sync::CancellationToken;

use crate::backoff::Backoff;
use crate::metrics::Metrics;

pub(crate) mod calls;
mod control;
pub(crate) mod dial;
#[cfg(test)]
pub(crate) mod tests;
mod work;

pub(crate) use dial::{Dialer, Way};
pub(crate) use work::Hold;

/// How many connections an agent opens.
#[derive(Clone, Copy, Debug, clap::Args)]
#[group(id = "agent_link")]
pub struct LinkArgs {
    /// Most work connections open at once, which is also the most calls under way on this node.
    #[arg(long, env = "LINK_MAX_CONNECTIONS", default_value_t = 1024, value_parser = clap::value_parser!(u32).range(1..=65_536))]
    pub link_max_connections: u32,
    /// Idle work connections that are kept open for the next calls.
    #[arg(long, env = "LINK_IDLE_CONNECTIONS", default_value_t = 4, value_parser = clap::value_parser!(u32).range(1..=64))]
    pub link_idle_connections: u32,
}

/// The first and the longest wait between two attempts to reach the gateway.
const RETRY: (Duration, Duration) = (Duration::from_millis(50), Duration::from_secs(3));

/// The wait after a refusal, which somebody has to do something about.
const REFUSED_RETRY: Duration = Duration::from_secs(15);

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
    /// Sandboxes of these are to be kept, and of no others.
    fn keep(&self, warm: &[Warm]);
}

/// The link, as it is set up.
pub(crate) struct Link {
    /// Who dials.
    pub(crate) dialer: Dialer,
    /// The machine's name, for people.
    pub(crate) name: String,
    /// What the operator says of it.
    pub(crate) labels: Labels,
    /// How many connections.
    pub(crate) args: LinkArgs,
    /// Who does what the gateway asks.
    pub(crate) orders: Arc<dyn Orders>,
    /// Set while the gateway has welcomed us.
    pub(crate) readiness: Readiness,
    /// Where connections are counted.
    pub(crate) metrics: Arc<Metrics>,
}

/// What the link's owner stops it with, in this order.
#[derive(Clone, Debug, Default)]
pub(crate) struct Stops {
    /// Leave the gateway: end the control stream, so that it sends no more calls.
    pub(crate) leave: CancellationToken,
    /// Close idle work connections, and each other one after its answer.
    pub(crate) finish: CancellationToken,
    /// Close everything now.
    pub(crate) abort: CancellationToken,
}

impl Link {
    /// Keeps the link up until all work connections are closed after `stops.finish`, or until `stops.abort`.
    pub(crate) async fn run(self, stops: Stops) {
        let work = work::Work::new(&self, stops.clone());
        let mut backoff = Backoff::new(RETRY.0, RETRY.1);
        while !stops.leave.is_cancelled() {
            let ended = control::run(&self, &work, &stops.leave).await;
            if self.readiness.get() {
                backoff.reset();
            }
            self.readiness.set(false);
            let Err(error) = ended else { break };
            if error.is_refusal() {
                tracing::error!(error = %Chain(&error), gateway = %self.dialer.way, "not linked: trying again later");
                tokio::select! { () = tokio::time::sleep(REFUSED_RETRY) => {}, () = stops.leave.cancelled() => {} }
                continue;
            }
            if backoff.failures() == WARN_AFTER {
                let cause = Chain(&error);
                tracing::warn!(error = %cause, gateway = %self.dialer.way, "no gateway: trying again until one answers");
            }
            tokio::select! { () = backoff.wait() => {}, () = stops.leave.cancelled() => {} }
        }
        work.finish().await;
    }
}
