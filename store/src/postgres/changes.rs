//! `changes`, and the channel on which Postgres says that one of its numbers grew.

use sqlx::PgPool;
use sqlx::postgres::PgListener;

use crate::Error;
use crate::changes::{CHANGES, Changes};

/// Where the triggers say it.
const CHANNEL: &str = "dartcloud_changes";

/// A connection that listens; made when it is first used, and again when it was lost.
pub(crate) struct Ear {
    /// Its own, since it holds the connection for as long as it lives.
    pool: PgPool,
    listener: Option<PgListener>,
}

impl Ear {
    pub(super) fn new(pool: PgPool) -> Self {
        Self { pool, listener: None }
    }

    /// Waits for a word. To have begun to listen counts as one, for what was said before was not heard.
    pub(crate) async fn hear(&mut self) -> Result<(), Error> {
        if let Some(mut listener) = self.listener.take() {
            // `None` is a connection that was lost and is there again.
            listener.try_recv().await?;
            self.listener = Some(listener);
        } else {
            let mut listener = PgListener::connect_with(&self.pool).await?;
            listener.listen(CHANNEL).await?;
            self.listener = Some(listener);
        }
        Ok(())
    }
}

pub(super) async fn numbers(pool: &PgPool) -> Result<Changes, Error> {
    Ok(sqlx::query_as(CHANGES).fetch_one(pool).await?)
}
