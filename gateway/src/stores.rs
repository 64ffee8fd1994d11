//! The artifact store and the database of a gateway, opened at its start.

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use common::error::Chain;
use common::settings::Place;
use store::artifacts::Artifacts;
use store::{Store, StoreArgs};
use tokio_util::sync::CancellationToken;

use crate::config::Settings;
use crate::error::StartError;

/// How long a database may take to come up.
const STORE_DEADLINE: Duration = Duration::from_secs(60);

/// How long to wait before the database is tried again.
const STORE_PAUSE: Duration = Duration::from_secs(1);

/// Opens the artifact store and the database. What another process is writing stays, if one still writes.
pub(crate) async fn open_stores(
    settings: &Settings,
    place: &Place,
    args: &StoreArgs,
    is_shared: bool,
    stop: &CancellationToken,
) -> Result<(Artifacts, Arc<dyn Store>), StartError> {
    let functions = settings.functions_dir.clone().unwrap_or_else(|| place.data_dir.join("functions"));
    let artifacts = if is_shared {
        Artifacts::inherit(&settings.artifacts, functions).await?
    } else {
        Artifacts::connect(&settings.artifacts, functions).await?
    };
    Ok((artifacts, open_store(args, &place.data_dir, stop).await?))
}

/// Opens the database, which may still be starting.
async fn open_store(args: &StoreArgs, data_dir: &Path, stop: &CancellationToken) -> Result<Arc<dyn Store>, StartError> {
    let started = Instant::now();
    let store = loop {
        match store::open(args, data_dir).await {
            Ok(store) => break store,
            Err(error @ store::Error::Unavailable(_)) if started.elapsed() < STORE_DEADLINE => {
                tracing::warn!(error = %Chain(&error), "no database yet: trying again");
            }
            Err(error) => return Err(error.into()),
        }
        tokio::select! {
            () = tokio::time::sleep(STORE_PAUSE) => {}
            () = stop.cancelled() => return Err(StartError::Stopped),
        }
    };
    Ok(store)
}
