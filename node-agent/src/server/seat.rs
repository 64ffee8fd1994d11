//! A call's place in a server: from here it has its connection, and what the server printed.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::oneshot;
use tokio::time::timeout;

use super::{Ask, Connection, End, Excerpt, Server};
use crate::sandbox::Cold;

/// How long a server that listens may take to take a connection.
const CONNECT_LIMIT: Duration = Duration::from_secs(5);
/// How long a call waits to know what was printed during it.
const FLUSH_LIMIT: Duration = Duration::from_millis(200);

/// A call's place in a server.
#[derive(Debug)]
pub(crate) struct Seat {
    pub(super) server: Arc<Server>,
    /// The server's start, if this call waited for it.
    pub(crate) cold: Option<Cold>,
}

impl Seat {
    /// A connection to the server: a kept one, unless a `new` one is wanted.
    ///
    /// # Errors
    /// The server takes none.
    pub(crate) async fn connection(&self, new: bool) -> io::Result<Connection> {
        loop {
            let kept = if new { None } else { self.server.idle().pop() };
            let Some(mut connection) = kept else { return self.server.dial(CONNECT_LIMIT).await };
            if connection.is_fresh() && connection.is_ready().await {
                return Ok(connection);
            }
        }
    }

    /// Keeps a connection whose answer was read to its end.
    pub(crate) fn keep(&self, connection: Connection) {
        self.server.keep(connection);
    }

    /// Waits a moment for what was printed up to now.
    pub(crate) async fn flush(&self) {
        let (tell, told) = oneshot::channel();
        let flushed = async {
            if self.server.asks.send(Ask::Flush(tell)).await.is_ok() {
                // A server that ended has said everything.
                let _ = told.await;
            }
        };
        if timeout(FLUSH_LIMIT, flushed).await.is_err() {
            tracing::debug!("a call's output was not all there in time");
        }
    }

    /// What the server printed and no call has had yet.
    pub(crate) fn take_printed(&self) -> Excerpt {
        self.server.lock().printed.take()
    }

    /// How the server ended, if it does so about now.
    pub(crate) async fn end_now(&self) -> Option<Arc<End>> {
        self.server.end_now().await
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        self.server.leave();
    }
}
