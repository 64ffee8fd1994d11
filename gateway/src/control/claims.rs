//! What this gateway does while no other gateway of the fleet may. The claims are in the store; one whose gateway died
//! ends by itself.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use store::Store;
use store::claims::{Claim, Holder};
use tokio::sync::Notify;

/// How long a claim lasts that nobody renews, in seconds; and how often it is renewed.
const CLAIM_SECONDS: u32 = 60;
const RENEWAL: Duration = Duration::from_secs(15);
/// How often a claim is tried again that another gateway holds. Of one of this gateway's the end is told.
const PAUSE: Duration = Duration::from_millis(500);

/// Claims of this gateway.
pub(crate) struct Claims {
    store: Arc<dyn Store>,
    /// Rung when one is given up.
    given_up: Notify,
}

/// A claim that is ours.
pub(crate) struct Claimed<'a> {
    claims: &'a Claims,
    what: Claim,
    holder: Holder,
    given_up: bool,
}

impl Claims {
    pub(crate) fn new(store: Arc<dyn Store>) -> Self {
        Self { store, given_up: Notify::new() }
    }

    /// Claims `what`, unless somebody else holds it.
    pub(crate) async fn take(&self, what: Claim) -> Result<Option<Claimed<'_>>, store::Error> {
        let holder = Holder::new();
        // Before the store is asked: whoever is cut off while it answers leaves nothing behind.
        let mut claimed = Claimed { claims: self, what, holder, given_up: false };
        claimed.given_up = !self.store.claim(what, holder, CLAIM_SECONDS).await?;
        Ok(if claimed.given_up { None } else { Some(claimed) })
    }

    /// Claims `what`, once nobody else holds it. The caller has a deadline.
    pub(crate) async fn wait(&self, what: Claim) -> Result<Claimed<'_>, store::Error> {
        loop {
            let mut given_up = std::pin::pin!(self.given_up.notified());
            // From here on a ring is heard.
            given_up.as_mut().enable();
            if let Some(claimed) = self.take(what).await? {
                return Ok(claimed);
            }
            tokio::select! {
                () = given_up => {}
                () = tokio::time::sleep(PAUSE) => {}
            }
        }
    }
}

impl Claimed<'_> {
    /// Does `work` while the claim is held, and gives it up.
    pub(crate) async fn during<T>(mut self, work: impl Future<Output = T>) -> T {
        let done = tokio::select! {
            done = work => done,
            never = self.renew() => match never {},
        };
        give_up(&*self.claims.store, self.what, self.holder).await;
        self.given_up = true;
        self.claims.given_up.notify_waiters();
        done
    }

    async fn renew(&self) -> Infallible {
        loop {
            tokio::time::sleep(RENEWAL).await;
            match self.claims.store.claim(self.what, self.holder, CLAIM_SECONDS).await {
                Ok(true) => {}
                Ok(false) => {
                    tracing::warn!(claim = ?self.what, "another gateway took over a claim that was not renewed in time")
                }
                Err(error) => tracing::warn!(%error, claim = ?self.what, "a claim could not be renewed"),
            }
        }
    }
}

impl Drop for Claimed<'_> {
    /// Whoever held it was cut off: the next one does not have to wait for its end.
    fn drop(&mut self) {
        if let (false, Ok(runtime)) = (self.given_up, tokio::runtime::Handle::try_current()) {
            let (store, what, holder) = (Arc::clone(&self.claims.store), self.what, self.holder);
            runtime.spawn(async move { give_up(&*store, what, holder).await });
        }
    }
}

async fn give_up(store: &dyn Store, what: Claim, holder: Holder) {
    if let Err(error) = store.give_up(what, holder).await {
        tracing::warn!(%error, claim = ?what, "a claim ends later than it could");
    }
}
