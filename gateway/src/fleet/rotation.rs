//! How the fleet's authority is exchanged while nodes stay joined. A second one takes its place at once, and the first is
//! trusted on; nodes learn of it on their control streams, and get certificates of it. Then the trust in the first ends.

use std::sync::Arc;

use common::base64;
use common::digest::Digest;
use common::error::Chain;
use common::ids::NodeId;
use tokio::sync::watch;

use super::authorities::Authorities;
use super::authority::{AuthorityError, make};
use super::enrolment::Enrolment;
use super::{Fleet, lock};

impl Enrolment {
    /// Puts another authority in the place of the one that the fleet has, unless the one before is trusted still.
    ///
    /// # Errors
    /// The database fails, or none can be made.
    pub(crate) async fn rotate(&self, fleet: &Fleet) -> Result<(), AuthorityError> {
        let kept = self.store.authorities().await?.ok_or(store::Error::NotFound)?;
        // Whoever is quicker does the same.
        if kept.former.is_none()
            && self.store.rotate_authority(&kept.current.certificate, make(&self.secrets.current)?).await?
        {
            tracing::info!("the fleet has a new authority, of which nodes get certificates");
        }
        Ok(self.reload(fleet).await?)
    }

    /// Ends the trust in the authority before, if there is one; false where nodes need it and there is no `force`.
    ///
    /// # Errors
    /// The database fails.
    pub(crate) async fn finish(&self, fleet: &Fleet, force: bool) -> Result<bool, store::Error> {
        let kept = self.store.authorities().await?.ok_or(store::Error::NotFound)?;
        if let Some(former) = kept.former {
            if self.store.end_former_authority(&former.certificate, force).await? {
                tracing::info!(force, "the trust in the fleet's authority before has ended");
            }
        }
        self.reload(fleet).await?;
        Ok(self.authorities.load().former.is_none())
    }

    async fn reload(&self, fleet: &Fleet) -> Result<(), store::Error> {
        self.read(fleet, &mut *self.reading.lock().await).await
    }

    /// Reads the authorities, unless what is known has this number of the database's already.
    ///
    /// # Errors
    /// The database does not answer; what was read last stays.
    pub(crate) async fn catch_up(&self, fleet: &Fleet, number: i64) -> Result<(), store::Error> {
        let mut turn = self.reading.lock().await;
        if *turn == Some(number) { Ok(()) } else { self.read(fleet, &mut turn).await }
    }

    async fn read(&self, fleet: &Fleet, turn: &mut Option<i64>) -> Result<(), store::Error> {
        // Before the authorities, which may be newer than the number, but never older.
        let number = self.store.changes().await?.authority;
        let (kept, before) = (self.store.authorities().await?, self.authorities.load_full());
        if let Some(kept) = kept.filter(|kept| !before.are(kept)) {
            match Authorities::unseal(kept, &self.secrets, self.args.names()) {
                Ok(next) => self.take(fleet, &before, next),
                // To try it again changes nothing.
                Err(error) => tracing::error!(
                    error = %Chain(&error),
                    "the fleet's new authority cannot be used here: start this gateway with the JWT_SECRET of the others"
                ),
            }
        }
        fleet.tell_authorities(self.authorities.load().certificates());
        *turn = Some(number);
        Ok(())
    }

    /// Trusts these from now on, and no others.
    fn take(&self, fleet: &Fleet, before: &Authorities, mut next: Authorities) {
        next.go_on(before);
        let next = Arc::new(next);
        self.authorities.store(Arc::clone(&next));
        if before.end(&next) {
            fleet.dial_anew();
        }
        let (authority, rotating) = (next.current.pin(), next.former.is_some());
        tracing::info!(%authority, rotating, "the fleet trusts other authorities");
    }
}

impl Fleet {
    /// The certificates of the authorities that the fleet trusts, and when they change.
    pub(super) fn authorities(&self) -> watch::Receiver<Vec<String>> {
        self.0.authorities.subscribe()
    }

    /// The nodes here that show a certificate of the authority that certifies now, where it is noted that they did of the one
    /// before. What is noted that this gateway does not know, another has noted, which is ahead.
    pub(super) fn moved(&self) -> Vec<(NodeId, Digest)> {
        let known = self.0.authorities.borrow().clone();
        let known: Vec<_> =
            known.iter().filter_map(|one| base64::decode(one).ok()).map(|one| Digest::of(&one)).collect();
        let [current, others @ ..] = known.as_slice() else { return Vec::new() };
        let (roster, nodes) = (self.roster(), self.nodes());
        let is_behind = |noted: Option<Digest>| noted.is_none_or(|noted| others.contains(&noted));
        let shows = nodes.iter().filter(|node| node.link.shown() == Some(*current)).map(|node| node.link.node);
        let behind = shows.filter(|node| roster.get(node).is_some_and(|node| is_behind(node.authority)));
        behind.map(|node| (node, *current)).collect()
    }

    fn tell_authorities(&self, certificates: Vec<String>) {
        self.0.authorities.send_if_modified(|known| {
            let is_new = *known != certificates;
            *known = certificates;
            is_new
        });
    }

    /// Has every node dial its work connections anew: one may be by a certificate that is trusted no more. What is under way
    /// goes on to its end.
    fn dial_anew(&self) {
        for node in lock(&self.0.nodes).values() {
            self.0.stocks.dial_anew(&node.link);
        }
    }
}
