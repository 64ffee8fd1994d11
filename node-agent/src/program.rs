//! An agent as a process of its own: its ops listener and its signals around [`run`](crate::run).

use common::ops::{self, Shown};
use common::settings::Shared;
use store::StoreArgs;
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::{Settings, StartError};

/// Runs an agent until SIGTERM or SIGINT, and until it has drained.
///
/// # Errors
/// The agent cannot start.
pub async fn serve(settings: Settings, shared: Shared, store: StoreArgs) -> Result<(), StartError> {
    let address = shared.place.ops_addr;
    let stop = CancellationToken::new();
    let (shown, tasks) = (Shown::default(), TaskTracker::new());
    let listener = TcpListener::bind(address).await.map_err(|source| StartError::Ops { address, source })?;
    let stop_ops = CancellationToken::new();
    let served = ops::serve(listener, shown.clone(), stop_ops.clone());
    tasks.spawn(served);
    let mut terminated = signal(SignalKind::terminate()).map_err(StartError::Signals)?;
    let mut interrupted = signal(SignalKind::interrupt()).map_err(StartError::Signals)?;
    let stopping = stop.clone();
    tasks.spawn(async move {
        tokio::select! {
            _ = terminated.recv() => {}
            _ = interrupted.recv() => {}
            () = stopping.cancelled() => return,
        }
        tracing::info!("stopping: calls under way are answered first");
        stopping.cancel();
    });
    let Shown { registry, readiness, .. } = shown;
    let ran = crate::run(settings, shared, store, registry, readiness, stop.clone()).await;
    stop.cancel();
    stop_ops.cancel();
    tasks.close();
    tasks.wait().await;
    ran
}
