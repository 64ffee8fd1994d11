//! Renews this node's certificate at two thirds of its life, or when the fleet has a new authority, over the link that is
//! up. Connections that are open stay so; the next ones show the new certificate.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use common::error::Chain;
use rand::RngExt as _;
use rustls::ClientConfig;
use tokio::sync::watch;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tokio_util::task::AbortOnDropHandle;

use crate::backoff::Backoff;
use crate::identity::{FreshKey, Identity, IdentityError};
use crate::link::calls::{CallError, Calls};
use crate::metrics::Metrics;

/// The first and the longest wait after an attempt that failed.
const RETRY: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(10 * 60));

/// How long, in seconds, after this node has heard of a new authority it asks for a certificate of it: by then every gateway
/// trusts it, and not all nodes ask at once.
const MOVE_AFTER: (f64, f64) = (3.0, 10.0);

/// How long until that is asked for again where a gateway did not know the new authority.
const MOVE_AGAIN: Duration = Duration::from_secs(60);

/// What the links and the renewal tell each other.
#[derive(Default)]
pub(crate) struct Notices {
    /// What a gateway said last of the authorities that the fleet trusts.
    authorities: watch::Sender<Vec<String>>,
    moved: watch::Sender<()>,
}

impl Notices {
    /// A gateway says which authorities the fleet trusts.
    pub(crate) fn authorities_are(&self, certificates: Vec<String>) {
        self.authorities.send_replace(certificates);
    }

    /// What was said of that last, and when it is said again.
    pub(crate) fn authorities(&self) -> watch::Receiver<Vec<String>> {
        self.authorities.subscribe()
    }

    /// This node has a certificate of another authority than before.
    pub(crate) fn has_moved(&self) {
        self.moved.send_replace(());
    }

    /// Changes when that is so: what shows the one before is to be replaced.
    pub(crate) fn moved(&self) -> watch::Receiver<()> {
        self.moved.subscribe()
    }
}

/// A certificate that has to be renewed again and again.
pub(crate) struct Renewal {
    identity: Identity,
    data_dir: PathBuf,
    /// How connections show this node from now on.
    config: Arc<ArcSwap<ClientConfig>>,
    calls: Arc<Calls>,
    metrics: Arc<Metrics>,
    notices: Arc<Notices>,
    /// When a certificate of the fleet's new authority is asked for.
    moves_at: Option<Instant>,
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
    /// Renews until `stop`, or until the handle is dropped, if there is a certificate; and what the links tell of it and are
    /// told.
    pub(crate) fn start(
        identity: Option<(Identity, Arc<ArcSwap<ClientConfig>>)>,
        data_dir: &Path,
        calls: &Arc<Calls>,
        metrics: &Arc<Metrics>,
        stop: &CancellationToken,
    ) -> (Arc<Notices>, Option<AbortOnDropHandle<()>>) {
        let notices = Arc::<Notices>::default();
        let renewal = identity.map(|(identity, config)| {
            let (calls, metrics, data_dir) = (Arc::clone(calls), Arc::clone(metrics), data_dir.to_owned());
            let (notices, said) = (Arc::clone(&notices), notices.authorities());
            let renewal = Self { identity, config, data_dir, calls, metrics, notices, moves_at: None };
            AbortOnDropHandle::new(tokio::spawn(renewal.run(said, stop.clone())))
        });
        (notices, renewal)
    }

    async fn run(mut self, mut said: watch::Receiver<Vec<String>>, stop: CancellationToken) {
        let mut backoff = Backoff::new(RETRY.0, RETRY.1);
        loop {
            self.metrics.certificate_expires.set(self.identity.expires_at().timestamp());
            tokio::select! {
                () = tokio::time::sleep(self.until_due()) => {}
                Ok(()) = said.changed() => {
                    let authorities = said.borrow_and_update().clone();
                    if let Err(error) = self.learn(&authorities) {
                        tracing::warn!(error = %Chain(&error), "the fleet's new authority cannot be taken in");
                    }
                    continue;
                }
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

    fn until_due(&self) -> Duration {
        let until_moved = self.moves_at.map(|at| at.saturating_duration_since(Instant::now()));
        self.identity.until_renewal().min(until_moved.unwrap_or(Duration::MAX))
    }

    /// Takes in what a gateway says of the authorities.
    fn learn(&mut self, authorities: &[String]) -> Result<(), IdentityError> {
        if let Some(identity) = self.identity.trusting(authorities) {
            let config = identity.tls()?;
            identity.keep(&self.data_dir)?;
            self.config.store(Arc::new(config));
            tracing::info!(node = %identity.node, "the fleet's authorities are others");
            self.identity = identity;
        }
        let is_behind = authorities.first().is_some_and(|newest| self.identity.may_move_to(newest));
        let after = || Instant::now() + Duration::from_secs_f64(rand::rng().random_range(MOVE_AFTER.0..MOVE_AFTER.1));
        self.moves_at = is_behind.then(|| self.moves_at.unwrap_or_else(after));
        Ok(())
    }

    async fn renew(&mut self) -> Result<(), RenewalError> {
        let key = FreshKey::make()?;
        let credential = self.calls.renew_certificate(key.request()?, self.identity.trusted()?).await?;
        let identity = self.identity.renewed(&key, credential);
        let config = identity.tls()?;
        identity.keep(&self.data_dir)?;
        self.config.store(Arc::new(config));
        if identity.has_moved_from(&self.identity) {
            self.notices.has_moved();
            self.moves_at = None;
        } else {
            self.moves_at = self.moves_at.map(|_| Instant::now() + MOVE_AGAIN);
        }
        self.identity = identity;
        Ok(())
    }
}
