//! The metrics of nodes, which Prometheus gets through us: whose are to be had here, and the question to a node, one for
//! all who wait for its answer.

use std::collections::HashMap;
use std::time::Duration;

use bytes::Bytes;
use chrono::{TimeDelta, Utc};
use common::ids::NodeId;
use common::protocol::GatewayMessage;
use store::fleet::Duty;
use tokio::sync::oneshot;
use tokio::time::timeout;

use super::{Fleet, lock};

/// How long a node may take to tell its metrics. Prometheus waits for ten seconds.
const TELL_DEADLINE: Duration = Duration::from_secs(if cfg!(test) { 1 } else { 5 });

/// Most who wait for the metrics of one node.
const MAX_ASKERS: usize = 16;

/// How long a node that is not linked here may have been linked with others, by the database, which is told every ten
/// seconds, and read as often.
const ELSEWHERE: TimeDelta = TimeDelta::seconds(30);

/// Who waits for a node's metrics; `None` where they were too many.
pub(super) type Asker = oneshot::Sender<Option<Bytes>>;

/// Why there are no metrics of a node. The sentence is for the operator.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Untold {
    #[error("there is no such node")]
    Unknown,
    #[error("the node is not linked with this gateway")]
    NotLinked,
    #[error("the node's agent tells no metrics here: it is of an older version, and has them at its own OPS_ADDR")]
    Unable,
    #[error("the node takes no orders, or too many ask for its metrics")]
    Busy,
    #[error("the node's link ended before it told its metrics")]
    Lost,
    #[error("the node did not tell its metrics within {} s", TELL_DEADLINE.as_secs())]
    Late,
    #[error("the node's metrics are too many for the link: its log has the cause")]
    TooMany,
}

/// A node whose metrics are to be had here.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Scraped {
    pub(crate) id: NodeId,
    pub(crate) name: String,
    /// Whether no other node of the fleet has this name.
    pub(crate) is_only: bool,
}

/// How a node stands to this gateway.
#[derive(Clone, Copy, Debug)]
enum Standing {
    /// Linked, and what it says of whom to ask.
    Linked(Option<bool>),
    /// Not linked, and when it was last seen by any gateway.
    Away(Option<TimeDelta>),
}

impl Standing {
    /// Whether Prometheus is to look for the node here. One that is away from all gateways is everybody's, so that it is
    /// missed; one that was never linked is not there yet.
    fn is_ours(self) -> bool {
        match self {
            Self::Linked(tells) => tells == Some(true),
            Self::Away(seen) => seen.is_some_and(|ago| ago > ELSEWHERE),
        }
    }
}

impl Fleet {
    /// The nodes whose metrics are to be had here, in the order of their ids.
    pub(crate) fn scraped(&self) -> Vec<Scraped> {
        let (roster, now) = (self.roster(), Utc::now());
        let linked: HashMap<_, _> = self.nodes().iter().map(|node| (node.link.node, node.state.tells)).collect();
        let kept: Vec<_> = roster.values().filter(|node| node.duty != Duty::Removed).collect();
        let mut names = HashMap::new();
        kept.iter().for_each(|node| *names.entry(&node.name).or_insert(0) += 1);
        let standing =
            |id: &NodeId, seen| linked.get(id).map_or(Standing::Away(seen), |tells| Standing::Linked(*tells));
        let ours = kept.iter().filter(|node| standing(&node.id, node.last_seen_at.map(|at| now - at)).is_ours());
        let mut scraped: Vec<_> = ours
            .map(|node| Scraped { id: node.id, name: node.name.clone(), is_only: names[&node.name] == 1 })
            .collect();
        scraped.sort_unstable_by_key(|node| node.id);
        scraped
    }

    /// What a node tells of itself, as Prometheus reads it.
    ///
    /// # Errors
    /// It is not there, or does not tell.
    pub(crate) async fn metrics_of(&self, node: NodeId) -> Result<Bytes, Untold> {
        let told = self.ask(node)?;
        match timeout(TELL_DEADLINE, told).await {
            Ok(Ok(text)) => text.ok_or(Untold::TooMany),
            Ok(Err(_)) => Err(Untold::Lost),
            Err(_) => Err(Untold::Late),
        }
    }

    /// Asks a node for its metrics, unless it is asked already.
    fn ask(&self, node: NodeId) -> Result<oneshot::Receiver<Option<Bytes>>, Untold> {
        if self.duty(node).is_none_or(|duty| duty == Duty::Removed) {
            return Err(Untold::Unknown);
        }
        let mut nodes = lock(&self.0.nodes);
        let entry = nodes.get_mut(&node).ok_or(Untold::NotLinked)?;
        let control = entry.control.as_mut().ok_or(Untold::NotLinked)?;
        if entry.state.tells.is_none() {
            return Err(Untold::Unable);
        }
        // Those that gave it up do not keep the next from asking anew.
        control.askers.retain(|asker| !asker.is_closed());
        if control.askers.len() >= MAX_ASKERS {
            return Err(Untold::Busy);
        }
        if control.askers.is_empty() {
            control.orders.try_send(GatewayMessage::Tell).map_err(|_| Untold::Busy)?;
        }
        let (asker, told) = oneshot::channel();
        control.askers.push(asker);
        Ok(told)
    }

    /// A node has told its metrics: to all who wait.
    pub(super) fn told(&self, node: NodeId, stream: u64, text: Option<String>) {
        let mut nodes = lock(&self.0.nodes);
        let Some(entry) = nodes.get_mut(&node).filter(|entry| entry.listens_to(stream)) else { return };
        let askers = entry.control.as_mut().map(|control| std::mem::take(&mut control.askers)).unwrap_or_default();
        drop(nodes);
        let text = text.map(Bytes::from);
        for asker in askers {
            // Whoever has gone does not miss it.
            asker.send(text.clone()).ok();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whom_prometheus_finds_here() {
        let check = |standing: Standing, expected: bool| assert_eq!(standing.is_ours(), expected, "{standing:?}");
        let away = |seconds: i64| Standing::Away(Some(TimeDelta::seconds(seconds)));
        check(Standing::Linked(Some(true)), true);
        // Another gateway's.
        check(Standing::Linked(Some(false)), false);
        // Of an older version.
        check(Standing::Linked(None), false);
        check(away(29), false);
        check(away(31), true);
        // Of a clock that is ahead.
        check(away(-60), false);
        check(Standing::Away(None), false);
    }
}
