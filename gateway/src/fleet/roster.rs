//! Who belongs to the fleet, by the database: read at the start, and whenever this gateway or another changes it. The
//! invoke path and the doors see what was read last.

use std::time::Duration;

use common::error::Chain;
use common::ids::{GatewayId, NodeId};
use common::labels::Labels;
use store::Store;
use store::fleet::Duty;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

use super::Fleet;

/// How often it is noted which nodes are linked, and read which are linked to others, if nothing happens.
const NOTE: Duration = Duration::from_secs(10);

/// The least time between two notes.
const NOTE_PAUSE: Duration = Duration::from_secs(1);

/// For how long a note of another gateway holds, in seconds: one may be missed.
pub(crate) const LEASE_SECONDS: u32 = 25;

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
    read(fleet, &mut *fleet.0.reading.lock().await, store).await
}

/// The same, unless what is known has this number of the database's already.
///
/// # Errors
/// The database does not answer; what was read last stays.
pub(crate) async fn catch_up(fleet: &Fleet, store: &dyn Store, number: i64) -> Result<(), store::Error> {
    let mut turn = fleet.0.reading.lock().await;
    if *turn == Some(number) { Ok(()) } else { read(fleet, &mut turn, store).await }
}

async fn read(fleet: &Fleet, turn: &mut Option<i64>, store: &dyn Store) -> Result<(), store::Error> {
    // Before the nodes, which may be newer than the number, but never older.
    let number = store.changes().await?.nodes;
    fleet.know(store.nodes().await?);
    *turn = Some(number);
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
        fleet.0.links.notify_one();
        reload(fleet, store).await
    };
    if let Err(error) = noted.await {
        tracing::warn!(%node, error = %Chain(&error), "it cannot be noted that a node is linked");
    }
}

/// Notes who is linked to this gateway until `end`.
pub(crate) async fn run(fleet: Fleet, store: std::sync::Arc<dyn Store>, gateway: GatewayId, end: CancellationToken) {
    let mut answers = true;
    loop {
        let due = async {
            tokio::time::sleep(NOTE_PAUSE).await;
            // Whether it is time or news makes no difference.
            timeout(NOTE - NOTE_PAUSE, fleet.0.links.notified()).await.ok();
        };
        tokio::select! {
            () = due => {}
            () = end.cancelled() => return,
        }
        let linked: Vec<_> = fleet.nodes().iter().map(|node| node.link.node).collect();
        let noted = async {
            store.nodes_seen(gateway, &linked).await?;
            for (node, authority) in fleet.moved() {
                store.node_moved(node, authority).await?;
                tracing::info!(%node, %authority, "it is noted of which authority the node has a certificate");
            }
            // When others saw a node last is no change that is told, and the homes want to know it.
            reload(&fleet, &*store).await
        };
        let done = noted.await;
        // Once, and not each time.
        if let (Err(error), true) = (&done, answers) {
            tracing::warn!(error = %Chain(error), "it cannot be noted which nodes are linked: what is known of them stays");
        }
        answers = done.is_ok();
    }
}
