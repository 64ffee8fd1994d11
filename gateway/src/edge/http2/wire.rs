//! The bytes of a connection of HTTP/2: whether any pass, and a close that waits until the client has all of them.

use std::future::Future as _;
use std::io::{self, IoSlice};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::{Sleep, sleep};

use super::{CONNECTION_WINDOW, Tally};
use crate::edge::listener::STALL;

/// What a client may still send once our side is closed, in bytes: bodies as far as it was let, and as much again.
const MAX_REST: usize = 2 * CONNECTION_WINDOW as usize;

/// A connection that notes when bytes pass, and that is closed only when the client has all of them.
pub(super) struct Wire<I> {
    io: I,
    tally: Arc<Tally>,
    /// Set once our side is closed.
    rest: Option<Rest>,
}

/// What may still come from a client that has heard the end.
struct Rest {
    until: Pin<Box<Sleep>>,
    bytes: usize,
}

impl Rest {
    fn begin() -> Self {
        Self { until: Box::pin(sleep(STALL)), bytes: MAX_REST }
    }
}

impl<I> Wire<I> {
    pub(super) fn new(io: I, tally: &Arc<Tally>) -> Self {
        Self { io, tally: tally.clone(), rest: None }
    }

    fn note(&self, written: Poll<io::Result<usize>>) -> Poll<io::Result<usize>> {
        if matches!(written, Poll::Ready(Ok(1..))) {
            self.tally.moved.store(true, Ordering::Relaxed);
        }
        written
    }
}

impl<I: AsyncRead + Unpin> AsyncRead for Wire<I> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, into: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let before = into.filled().len();
        let read = Pin::new(&mut self.io).poll_read(cx, into);
        if into.filled().len() > before {
            self.tally.moved.store(true, Ordering::Relaxed);
        }
        read
    }
}

impl<I: AsyncRead + AsyncWrite + Unpin> AsyncWrite for Wire<I> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.io).poll_write(cx, bytes);
        self.note(written)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.io).poll_write_vectored(cx, slices);
        self.note(written)
    }

    fn is_write_vectored(&self) -> bool {
        self.io.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_flush(cx)
    }

    /// Closes our side, and reads what still comes until the client closes its own. A client that takes its last answer
    /// slowly goes on giving us windows; a socket that is closed with such a thing unread, or that gets one later, is reset,
    /// and the system throws away what it has not sent.
    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let Self { io, tally, rest } = &mut *self;
        if rest.is_none() {
            ready!(Pin::new(&mut *io).poll_shutdown(cx))?;
        }
        let rest = rest.get_or_insert_with(Rest::begin);
        let mut bytes = [0; 1024];
        while rest.bytes > 0 && rest.until.as_mut().poll(cx).is_pending() {
            let mut into = ReadBuf::new(&mut bytes);
            let read = ready!(Pin::new(&mut *io).poll_read(cx, &mut into));
            // However it ends, it is at its end.
            if read.is_err() || into.filled().is_empty() {
                break;
            }
            tally.moved.store(true, Ordering::Relaxed);
            rest.bytes = rest.bytes.saturating_sub(into.filled().len());
        }
        Poll::Ready(Ok(()))
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    use tokio::time::timeout;

    use super::*;

    #[tokio::test]
    async fn bytes_of_both_directions_are_noted() {
        let (io, mut client) = tokio::io::duplex(8);
        let tally = Arc::<Tally>::default();
        let mut wire = Wire::new(io, &tally);
        let moved = || tally.moved.swap(false, Ordering::Relaxed);
        assert!(!moved());
        wire.write_all(b"bytes").await.unwrap();
        assert!(moved() && !moved(), "since it was asked last");
        client.write_all(b"bytes").await.unwrap();
        wire.read_exact(&mut [0; 5]).await.unwrap();
        assert!(moved());
    }

    #[tokio::test]
    async fn a_connection_is_closed_when_the_client_has_read_it() {
        let close = |buffer: usize| {
            let (io, client) = tokio::io::duplex(buffer);
            let mut wire = Wire::new(io, &Arc::default());
            (client, tokio::spawn(async move { wire.shutdown().await }))
        };
        let (mut client, closed) = close(8);
        assert_eq!(client.read(&mut [0]).await.unwrap(), 0, "our side is closed");
        // More than fits unread.
        client.write_all(&[7; 100]).await.unwrap();
        assert!(!closed.is_finished());
        drop(client);
        timeout(STALL, closed).await.unwrap().unwrap().unwrap();

        let (_client, closed) = close(8);
        timeout(4 * STALL, closed).await.expect("who never closes is waited for without end").unwrap().unwrap();

        let (mut client, closed) = close(64 * 1024);
        let flood = vec![7; 2 * MAX_REST];
        client.write_all(&flood).await.unwrap_err();
        timeout(STALL, closed).await.expect("who sends on is listened to without end").unwrap().unwrap();
    }
}
