//! A client's stream whose writes have a deadline: who does not read his answer would else keep what it is made from,
//! a node's connection among it, for as long as he likes.

use std::future::Future as _;
use std::io::{self, IoSlice};
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::{Instant, Sleep};

/// A stream that fails once a write has stood still for a while.
pub(crate) struct Prompt<S> {
    inner: S,
    stall: Duration,
    /// Made at the first write that has to wait: most streams have none.
    sleep: Option<Pin<Box<Sleep>>>,
    /// A write waits, and `sleep` runs for it.
    waits: bool,
}

impl<S> Prompt<S> {
    /// `stall` is how long a write may make no progress.
    pub(crate) fn new(inner: S, stall: Duration) -> Self {
        Self { inner, stall, sleep: None, waits: false }
    }

    /// What a write came to, if it came to anything in time.
    fn in_time<T>(&mut self, cx: &mut Context<'_>, written: Poll<io::Result<T>>) -> Poll<io::Result<T>> {
        if written.is_ready() {
            self.waits = false;
            return written;
        }
        let stall = self.stall;
        let sleep = self.sleep.get_or_insert_with(|| Box::pin(tokio::time::sleep(stall)));
        if !self.waits {
            self.waits = true;
            sleep.as_mut().reset(Instant::now() + stall);
        }
        sleep.as_mut().poll(cx).map(|()| Err(io::Error::new(io::ErrorKind::TimedOut, "the client does not read")))
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Prompt<S> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, into: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_read(cx, into)
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Prompt<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.inner).poll_write(cx, bytes);
        self.in_time(cx, written)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.inner).poll_write_vectored(cx, slices);
        self.in_time(cx, written)
    }

    fn is_write_vectored(&self) -> bool {
        self.inner.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let flushed = Pin::new(&mut self.inner).poll_flush(cx);
        self.in_time(cx, flushed)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let closed = Pin::new(&mut self.inner).poll_shutdown(cx);
        self.in_time(cx, closed)
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

    use super::*;

    #[tokio::test]
    async fn who_does_not_read_is_cut_off() {
        let (ours, _theirs) = tokio::io::duplex(1);
        let mut stream = Prompt::new(ours, Duration::from_millis(20));
        let error = stream.write_all(&[7; 3]).await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::TimedOut);
    }

    #[tokio::test]
    async fn each_write_has_its_own_time() {
        let (ours, mut theirs) = tokio::io::duplex(1);
        let stall = Duration::from_secs(600);
        let mut stream = Prompt::new(ours, stall);
        let ends = async |stream: &mut Prompt<tokio::io::DuplexStream>| {
            let waiting = std::future::poll_fn(|cx| Poll::Ready(Pin::new(&mut *stream).poll_write(cx, b"x"))).await;
            assert!(waiting.is_pending());
            stream.sleep.as_ref().unwrap().deadline()
        };
        stream.write_u8(7).await.unwrap();
        let first = ends(&mut stream).await;
        assert_eq!(ends(&mut stream).await, first, "a write that waits on has no more time");
        theirs.read_u8().await.unwrap();
        stream.write_u8(7).await.unwrap();
        assert!(ends(&mut stream).await > first, "one that got through has");
    }
}
