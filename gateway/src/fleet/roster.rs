//! Who belongs to the fleet, by the database: read at the start, every two seconds, and whenever this gateway changes
//! it. The invoke path and the doors see what was read last.

use std::time::Duration;

use common::error::Chain;
use common::ids::NodeId;
use common::labels::Labels;
use store::Store;
use store::fleet::Duty;
use tokio::time::{Instant, timeout};
use tokio_util::sync::CancellationToken;

use super::Fleet;

/// How often the nodes are read: another gateway may have removed one.
const POLL: Duration = Duration::from_secs(2);

/// How often it is noted which nodes are linked.
const NOTE: Duration = Duration::from_secs(10);

/// How long the database may take while a node waits at the door.
const DOOR_DEADLINE: Duration = Duration::from_secs(3);

/// Why a node with a valid certificate is not let in. The sentence goes to the node.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Stranger {
    #[error("this node was removed from the fleet: let it join again with a new token, from an empty DATA_DIR")]
    Removed,
    #[error("the fleet does not know this node: let it join again with a new token, from an empty DATA_DIR")]
    Unknown,
}

/// Reads the nodes, and lets the fleet know.
///
/// # Errors
/// The database does not answer; what was read last stays.
pub(crate) async fn reload(fleet: &Fleet, store: &dyn Store) -> Result<(), store::Error> {
    fleet.know(store.nodes().await?);
    Ok(())
}

/// Whether a node belongs to the fleet. One that was not there at the last look may have joined at another gateway.
pub(super) async fn admit(fleet: &Fleet, store: &dyn Store, node: NodeId) -> Result<(), Stranger> {
    if fleet.duty(node).is_none() {
        match timeout(DOOR_DEADLINE, reload(fleet, store)).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => tracing::warn!(error = %Chain(&error), "the nodes cannot be read"),
            Err(_) => tracing::warn!("the nodes cannot be read in time"),
        }
    }
    match fleet.duty(node) {
        Some(Duty::Removed) => Err(Stranger::Removed),
        Some(_) => Ok(()),
        None => Err(Stranger::Unknown),
    }
}

/// Notes that a node is linked.
pub(super) async fn note_linked(fleet: &Fleet, store: &dyn Store, node: NodeId, name: &str, labels: &Labels) {
    let noted = async {
        store.node_linked(node, name, labels).await?;
        reload(fleet, store).await
    };
    if let Err(error) = noted.await {
        tracing::warn!(%node, error = %Chain(&error), "it cannot be noted that a node is linked");
    }
}

/// Keeps what is known up to date until `end`.
pub(crate) async fn run(fleet: Fleet, store: std::sync::Arc<dyn Store>, end: CancellationToken) {
    let (mut next_note, mut answers) = (Instant::now() + NOTE, true);
    loop {
        tokio::select! {
            () = tokio::time::sleep(POLL) => {}
            () = end.cancelled() => return,
        }
        let mut done = reload(&fleet, &*store).await;
        if Instant::now() >= next_note {
            next_note = Instant::now() + NOTE;
            let linked: Vec<_> = fleet.nodes().iter().map(|node| node.link.node).collect();
            done = done.and(if linked.is_empty() { Ok(()) } else { store.nodes_seen(&linked).await });
        }
        // Once, and not every two seconds.
        if let (Err(error), true) = (&done, answers) {
            tracing::warn!(error = %Chain(error), "the nodes cannot be read: what is known of them stays");
        }
        answers = done.is_ok();
    }
}
