//! The sessions that have ended while access tokens of theirs may still be good: one immutable picture that is swapped in
//! whole. Who verifies a token looks at it and never waits for the database.

use std::collections::HashSet;
use std::sync::Arc;

use arc_swap::ArcSwap;
use common::ids::SessionId;
use store::Store;

/// The picture, and the one way to replace it.
#[derive(Default)]
pub(crate) struct EndedSessions {
    picture: ArcSwap<HashSet<SessionId>>,
    /// Held while they are read and put in, so that an older reading never replaces a newer one.
    /// What it holds is the database's number of them.
    reading: tokio::sync::Mutex<Option<i64>>,
}

impl EndedSessions {
    /// Whether a session has ended. As a rule none has, and then nothing is hashed either.
    pub(crate) fn has(&self, session: SessionId) -> bool {
        self.picture.load().contains(&session)
    }

    /// Reads the store and swaps the picture; those that are past their time are in it no more.
    ///
    /// # Errors
    /// The store does not answer; the picture stays as it was.
    pub(crate) async fn reload(&self, store: &dyn Store) -> Result<(), store::Error> {
        self.read(&mut *self.reading.lock().await, store).await
    }

    /// The same, unless the picture has this number of the store's already.
    ///
    /// # Errors
    /// The store does not answer; the picture stays as it was.
    pub(crate) async fn catch_up(&self, store: &dyn Store, number: i64) -> Result<(), store::Error> {
        let mut turn = self.reading.lock().await;
        if *turn == Some(number) { Ok(()) } else { self.read(&mut turn, store).await }
    }

    async fn read(&self, turn: &mut Option<i64>, store: &dyn Store) -> Result<(), store::Error> {
        // Before the sessions, which may be newer than the number, but never older.
        let number = store.changes().await?.sessions;
        self.put(store.ended_sessions().await?);
        *turn = Some(number);
        Ok(())
    }

    /// Swaps the picture.
    pub(super) fn put(&self, ended: Vec<SessionId>) {
        self.picture.store(Arc::new(ended.into_iter().collect()));
    }
}
