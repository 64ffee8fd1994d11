//! What gateway and agent both know of a call that streams: how long it may take and be silent, and how bytes go both
//! ways once it has been upgraded.

use std::io;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use http::header::{CONNECTION, UPGRADE};
use http::{HeaderMap, HeaderValue};
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt as _, ReadBuf, split};
use tokio::time::{Instant, sleep_until, timeout};

/// How long one side of an upgraded connection may go on once the other has ended. Neither a client that is gone nor
/// one that waits for an answer says which it is, and no protocol that we know sends for long after that.
const LAST_WORD: Duration = Duration::from_secs(1);

/// The one protocol that a call may be upgraded to.
pub const WEBSOCKET: &str = "websocket";

/// The time of one call: how long it may take in all, and how long nothing may come from either side. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Pace(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    begun: Instant,
    total: Duration,
    silence: Duration,
    /// When something came last, in milliseconds after the beginning.
    heard_ms: AtomicU64,
}

/// Why a call is over time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Late {
    /// It took too long in all.
    Total,
    /// It was silent for too long.
    Silent,
}

impl Pace {
    /// The time of a call that begins now.
    #[must_use]
    pub fn begin(total: Duration, silence: Duration) -> Self {
        Self(Arc::new(Inner { begun: Instant::now(), total, silence, heard_ms: AtomicU64::new(0) }))
    }

    /// Something came.
    pub fn heard(&self) {
        let ms = u64::try_from(self.0.begun.elapsed().as_millis()).unwrap_or(u64::MAX);
        self.0.heard_ms.store(ms, Ordering::Relaxed);
    }

    /// When its time in all is over.
    #[must_use]
    pub fn end(&self) -> Instant {
        self.0.begun + self.0.total
    }

    /// Waits until the call is over time.
    pub async fn over(&self) -> Late {
        loop {
            let heard = Duration::from_millis(self.0.heard_ms.load(Ordering::Relaxed));
            let now = self.0.begun.elapsed();
            match due(self.0.total, self.0.silence, heard, now) {
                Ok(due) => sleep_until(self.0.begun + due).await,
                Err(late) => return late,
            }
        }
    }
}

/// When to look again, counted from the beginning, as `now` is; or why there is nothing to wait for.
fn due(total: Duration, silence: Duration, heard: Duration, now: Duration) -> Result<Duration, Late> {
    if now >= total {
        return Err(Late::Total);
    }
    if now >= heard + silence {
        return Err(Late::Silent);
    }
    Ok(total.min(heard + silence))
}

/// Copies bytes both ways until one side has ended or failed (the other may have its last word, for a moment), or the
/// time is over.
///
/// # Errors
/// Why it is over time.
pub async fn tunnel(
    client: impl AsyncRead + AsyncWrite + Unpin,
    server: impl AsyncRead + AsyncWrite + Unpin,
    pace: &Pace,
) -> Result<(), Late> {
    let (client, server) = (Paced { inner: client, pace }, Paced { inner: server, pace });
    let ((client_reads, client_writes), (server_reads, server_writes)) = (split(client), split(server));
    let mut up = pin!(carry(client_reads, server_writes));
    let mut down = pin!(carry(server_reads, client_writes));
    let carried = async {
        tokio::select! {
            () = &mut up => timeout(LAST_WORD, down).await.is_ok(),
            () = &mut down => timeout(LAST_WORD, up).await.is_ok(),
        }
    };
    tokio::select! {
        _ = carried => Ok(()),
        late = pace.over() => Err(late),
    }
}

/// Copies one way until the end, and passes that on. That a side broke the connection off is an end as good as any.
async fn carry(mut from: impl AsyncRead + Unpin, mut to: impl AsyncWrite + Unpin) {
    if let Err(error) = tokio::io::copy(&mut from, &mut to).await {
        tracing::trace!(%error, "a side of a tunnel");
    }
    if let Err(error) = to.shutdown().await {
        tracing::trace!(%error, "a side of a tunnel");
    }
}

/// A side of a tunnel, whose words are heard.
struct Paced<'a, T> {
    inner: T,
    pace: &'a Pace,
}

impl<T: AsyncRead + Unpin> AsyncRead for Paced<'_, T> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let read = Pin::new(&mut self.inner).poll_read(cx, buffer);
        if read.is_ready() {
            self.pace.heard();
        }
        read
    }
}

impl<T: AsyncWrite + Unpin> AsyncWrite for Paced<'_, T> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.inner).poll_write(cx, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_shutdown(cx)
    }
}

/// Whether the headers name one protocol to go over to, and that is WebSocket.
#[must_use]
pub fn names_websocket(headers: &HeaderMap) -> bool {
    let mut protocols = headers.get_all(UPGRADE).iter();
    let (Some(protocol), None) = (protocols.next(), protocols.next()) else { return false };
    let upgrades = |value: &HeaderValue| {
        let options = value.to_str().unwrap_or_default();
        options.split(',').any(|option| option.trim().eq_ignore_ascii_case("upgrade"))
    };
    protocol.as_bytes().trim_ascii().eq_ignore_ascii_case(WEBSOCKET.as_bytes())
        && headers.get_all(CONNECTION).iter().any(upgrades)
}

/// Sets the two headers of [`names_websocket`].
pub fn name_websocket(headers: &mut HeaderMap) {
    headers.insert(CONNECTION, HeaderValue::from_static("upgrade"));
    headers.insert(UPGRADE, HeaderValue::from_static(WEBSOCKET));
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(heard: u64, now: u64, expected: Result<u64, Late>) {
        let ms = Duration::from_millis;
        let got = due(ms(100), ms(30), ms(heard), ms(now));
        assert_eq!(got, expected.map(ms), "heard at {heard}, now {now}");
    }

    #[test]
    fn time_in_all_and_in_silence() {
        check(0, 0, Ok(30));
        check(20, 29, Ok(50));
        check(20, 50, Err(Late::Silent));
        check(90, 95, Ok(100));
        check(99, 100, Err(Late::Total));
        check(0, 100, Err(Late::Total));
    }

    fn check_names(lines: &[(&'static str, &'static str)], expected: bool) {
        let mut headers = HeaderMap::new();
        for (name, value) in lines {
            headers.append(*name, HeaderValue::from_static(value));
        }
        assert_eq!(names_websocket(&headers), expected, "{lines:?}");
    }

    #[test]
    fn what_names_websocket() {
        check_names(&[("upgrade", "websocket"), ("connection", "Upgrade")], true);
        check_names(&[("upgrade", "WebSocket"), ("connection", "keep-alive, upgrade")], true);
        check_names(&[("upgrade", "websocket"), ("connection", "keep-alive"), ("connection", "upgrade")], true);
        check_names(&[("upgrade", "websocket")], false);
        check_names(&[("connection", "upgrade")], false);
        check_names(&[("upgrade", "websocket, h2c"), ("connection", "upgrade")], false);
        check_names(&[("upgrade", "websocket"), ("upgrade", "h2c"), ("connection", "upgrade")], false);
        check_names(&[("upgrade", "h2c"), ("connection", "upgrade")], false);
    }

    #[tokio::test]
    async fn a_tunnel_carries_both_ways_and_ends() {
        let (client, inner_client) = tokio::io::duplex(64);
        let (server, inner_server) = tokio::io::duplex(64);
        let pace = Pace::begin(Duration::from_secs(60), Duration::from_secs(60));
        let carried = async { tunnel(inner_client, inner_server, &pace).await };
        let spoken = async move {
            use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
            let (mut client, mut server) = (client, server);
            let mut word = [0; 4];
            client.write_all(b"ping").await.unwrap();
            server.read_exact(&mut word).await.unwrap();
            server.write_all(b"pong").await.unwrap();
            client.read_exact(&mut word).await.unwrap();
            word
        };
        assert_eq!(tokio::join!(carried, spoken), (Ok(()), *b"pong"));
    }

    #[tokio::test]
    async fn a_silent_tunnel_is_closed() {
        let (_client, inner_client) = tokio::io::duplex(64);
        let (_server, inner_server) = tokio::io::duplex(64);
        let pace = Pace::begin(Duration::from_secs(60), Duration::from_millis(20));
        assert_eq!(tunnel(inner_client, inner_server, &pace).await, Err(Late::Silent));
    }
}
