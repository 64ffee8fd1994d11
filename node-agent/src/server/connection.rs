//! One HTTP/1.1 connection to a function's server. Dropping it closes it, in whatever state it is.

use std::net::TcpStream as StdTcpStream;
use std::time::{Duration, Instant};

use bytes::Bytes;
use http_body_util::combinators::UnsyncBoxBody;
use hyper::client::conn::http1::{self, SendRequest};
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_util::task::AbortOnDropHandle;

/// How long a connection is kept for the next call. Servers close theirs after a while (gunicorn 2 s, Node.js and
/// uvicorn 5 s), and one that is closed just then would cost a call.
const KEEP: Duration = Duration::from_secs(1);
/// How long a connection may take to be ready again.
const READY: Duration = Duration::from_millis(100);
/// Largest head of an answer, in bytes, and most that is read at once.
const MAX_BUFFER_BYTES: usize = 128 * 1024;

/// The body of a request to a function.
pub(crate) type CallBody = UnsyncBoxBody<Bytes, Box<dyn std::error::Error + Send + Sync>>;

/// A connection.
#[derive(Debug)]
pub(crate) struct Connection {
    pub(crate) sender: SendRequest<CallBody>,
    driver: AbortOnDropHandle<()>,
    since: Instant,
}

impl Connection {
    /// Speaks HTTP on a connection that is made.
    pub(super) async fn new(stream: StdTcpStream) -> std::io::Result<Self> {
        let stream = TokioIo::new(TcpStream::from_std(stream)?);
        let handshake = http1::Builder::new().max_buf_size(MAX_BUFFER_BYTES).handshake(stream);
        let (sender, connection) = handshake.await.map_err(std::io::Error::other)?;
        let driver = AbortOnDropHandle::new(tokio::spawn(async move {
            if let Err(error) = connection.with_upgrades().await {
                tracing::debug!(%error, "a connection to a function ended");
            }
        }));
        Ok(Self { sender, driver, since: Instant::now() })
    }

    /// Whether it may take another call, as far as one can tell without waiting.
    pub(super) fn is_fresh(&self) -> bool {
        !self.sender.is_closed() && !self.driver.is_finished() && self.since.elapsed() < KEEP
    }

    /// Whether it is ready for another call; its last answer was read to the end a moment ago.
    pub(super) async fn is_ready(&mut self) -> bool {
        self.sender.is_ready() || matches!(timeout(READY, self.sender.ready()).await, Ok(Ok(())))
    }

    /// It rests from now on.
    pub(super) fn rest(&mut self) {
        self.since = Instant::now();
    }
}
