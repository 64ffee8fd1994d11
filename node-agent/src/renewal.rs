//! Renews this node's certificate at two thirds of its life, over the link that is up. Connections that are open stay
//! so; the next ones show the new certificate.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use common::error::Chain;
use rustls::ClientConfig;
use tokio_util::sync::CancellationToken;
use tokio_util::task::AbortOnDropHandle;

use crate::backoff::Backoff;
use crate::identity::{FreshKey, Identity, IdentityError};
use crate::link::calls::{CallError, Calls};
use crate::metrics::Metrics;

/// The first and the longest wait after an attempt that failed.
const RETRY: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(10 * 60));

/// A certificate that has to be renewed again and again.
pub(crate) struct Renewal {
    identity: Identity,
    data_dir: PathBuf,
    /// How connections show this node from now on.
    config: Arc<ArcSwap<ClientConfig>>,
    calls: Arc<Calls>,
    metrics: Arc<Metrics>,
}

/// The certificate is as old as before.
#[derive(Debug, thiserror::Error)]
enum RenewalError {
    #[error("the gateway gave none")]
    Call(#[from] CallError),
    #[error(transparent)]
    Identity(#[from] IdentityError),
}

impl Renewal {
    /// Renews until `stop`, or until the handle is dropped.
    pub(crate) fn start(
        (identity, config): (Identity, Arc<ArcSwap<ClientConfig>>),
        data_dir: &Path,
        calls: &Arc<Calls>,
        metrics: &Arc<Metrics>,
        stop: &CancellationToken,
    ) -> AbortOnDropHandle<()> {
        let (calls, metrics) = (Arc::clone(calls), Arc::clone(metrics));
        let renewal = Self { identity, config, data_dir: data_dir.to_owned(), calls, metrics };
        AbortOnDropHandle::new(tokio::spawn(renewal.run(stop.clone())))
    }

    async fn run(mut self, stop: CancellationToken) {
        let mut backoff = Backoff::new(RETRY.0, RETRY.1);
        loop {
            self.metrics.certificate_expires.set(self.identity.expires_at().timestamp());
            tokio::select! {
                () = tokio::time::sleep(self.identity.until_renewal()) => {}
                () = stop.cancelled() => return,
            }
            let renewed = tokio::select! { renewed = self.renew() => renewed, () = stop.cancelled() => return };
            match renewed {
                Ok(()) => {
                    tracing::info!(node = %self.identity.node, "this node's certificate is renewed");
                    backoff.reset();
                }
                Err(error) => {
                    tracing::warn!(error = %Chain(&error), "this node's certificate is not renewed yet: trying again");
                    tokio::select! { () = backoff.wait() => {}, () = stop.cancelled() => return }
                }
            }
        }
    }

    async fn renew(&mut self) -> Result<(), RenewalError> {
        let key = FreshKey::make()?;
        let credential = self.calls.renew_certificate(key.request()?).await?;
        let identity = self.identity.renewed(&key, credential);
        let config = identity.tls()?;
        identity.keep(&self.data_dir)?;
        self.config.store(Arc::new(config));
        self.identity = identity;
        Ok(())
    }
}
