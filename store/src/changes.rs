//! How a gateway learns that another changed what it keeps a picture of: numbers that grow in the very transaction of a
//! change, so that who compares them misses nothing, and a word from Postgres that it is time to compare.

use crate::Error;
use crate::postgres::Ear;

/// How often each thing that gateways keep a picture of has changed. Read it before the picture.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, sqlx::FromRow)]
pub struct Changes {
    /// Which functions serve, and by which versions.
    pub routes: i64,
    /// The nodes, and what they may do.
    pub nodes: i64,
    /// The authorities that the fleet trusts.
    pub authority: i64,
    /// The sessions that have ended. That one is past its time is no change.
    pub sessions: i64,
}

/// Of either database.
pub(crate) const CHANGES: &str = "SELECT (SELECT number FROM changes WHERE what = 'routes') AS routes,
  (SELECT number FROM changes WHERE what = 'nodes') AS nodes,
  (SELECT number FROM changes WHERE what = 'authority') AS authority,
  (SELECT number FROM changes WHERE what = 'sessions') AS sessions";

/// Who listens for the word. It is only a word: it may be missed, or come for nothing.
pub struct Watch(pub(crate) Option<Ear>);

impl Watch {
    /// Waits until there may be a change. Where nobody says a word, it waits for ever.
    ///
    /// # Errors
    /// Nothing can be heard now; ask again after a pause.
    pub async fn changed(&mut self) -> Result<(), Error> {
        match &mut self.0 {
            Some(ear) => ear.hear().await,
            None => std::future::pending().await,
        }
    }
}
