//! HTTP/2 on one connection: its bounds, streams that end alone, and a goodbye that loses nothing.
//!
//! A client that does not read one stream does not hold up the connection, so [`Prompt`](super::prompt::Prompt) sees
//! nothing of it: here each stream has its own time to be read.

use std::convert::Infallible;
use std::future::{Future, poll_fn};
use std::pin::{Pin, pin};
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use common::interrupt::Interrupt;
use http_body::{Body, Frame, SizeHint};
use hyper::rt::Executor;
use hyper::server::conn::http2;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::Notify;
use tokio::time::{Instant, Sleep, sleep, sleep_until};
use tokio_util::task::TaskTracker;

use super::Edge;
use super::body::{AnswerBody, AnswerError};
use super::gate::{MAX_HEAD_BYTES, MAX_HEADER_LINES, MAX_TARGET_BYTES};
use super::listener::{Farewell, HEAD_DEADLINE, STALL};
use super::peer::Peer;
use wire::Wire;

mod wire;

/// Most requests at once on a connection.
const MAX_STREAMS: u32 = 128;

/// The gate's limit of a head, as HTTP/2 counts it: with the target, and 32 bytes a line beside names and values.
const HEAD_BYTES: u32 = (MAX_HEAD_BYTES + MAX_TARGET_BYTES + 32 * MAX_HEADER_LINES) as u32;

/// What a client may send before it is read, of one request, in bytes.
const STREAM_WINDOW: u32 = 256 * 1024;

/// The same of a connection.
const CONNECTION_WINDOW: u32 = 1024 * 1024;

/// What waits to be sent to a client, of one answer, in bytes.
const SEND_BUFFER: usize = 64 * 1024;

/// Requests that a client may take back before they are looked at.
const MAX_TAKEN_BACK: usize = 20;

/// How often a silent client is asked whether it is there, and how long it may take to say so.
const PING: Duration = Duration::from_secs(20);

/// How long a connection may carry no request; up to twice that, since it is only looked at so often.
const IDLE: Duration = Duration::from_secs(60);

/// How long a client may take to hear a goodbye, or to read any of what is left of its answers; where a successor accepts
/// the next, as long as a connection may be silent.
const GOODBYE: Duration = Duration::from_secs(2);

tokio::task_local! {
    /// The stream whose task this is: hyper hands its request and its answer's body to different hands of ours.
    static STREAM: Arc<Course>;
}

/// Serves a connection to its end: the client's, a rest of a minute, a first request that does not come, or, at the
/// farewell, what is in flight then, for its grace at most. The streams are among `tasks`.
///
/// The goodbye is GOAWAY twice, so that nothing is lost that crosses it: first one that only asks for no more streams, and,
/// once the client has answered the PING behind it, one that names the last stream that was begun.
pub(crate) async fn serve<I>(
    io: I,
    edge: Arc<Edge>,
    peer: Peer,
    tasks: &TaskTracker,
    farewell: Farewell<'_>,
) -> hyper::Result<()>
where
    I: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let service = service_fn(move |request| {
        let (edge, peer) = (edge.clone(), peer.clone());
        async move {
            let course = STREAM.with(Arc::clone);
            let peer = Peer { cut: course.cut.clone(), ..peer };
            let answer = edge.answer(&peer, request).await;
            Ok::<_, Infallible>(answer.map(|inner| Watched { inner, course }))
        }
    });
    let streams = Streams { tally: Arc::default(), tasks: tasks.clone() };
    let connection = http2::Builder::new(streams.clone())
        .timer(TokioTimer::new())
        .max_concurrent_streams(MAX_STREAMS)
        .max_header_list_size(HEAD_BYTES)
        .initial_stream_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .max_send_buf_size(SEND_BUFFER)
        .max_pending_accept_reset_streams(MAX_TAKEN_BACK)
        .keep_alive_interval(PING)
        .keep_alive_timeout(PING)
        .serve_connection(TokioIo::new(Wire::new(io, &streams.tally)), service);
    let mut connection = pin!(connection);
    let mut begin = Interrupt::new(farewell.begins());
    let (mut seen, mut patience, first_by) = (0, HEAD_DEADLINE, Instant::now() + HEAD_DEADLINE);
    let closing = loop {
        tokio::select! {
            biased;
            ended = connection.as_mut() => return ended,
            () = begin.come() => break true,
            () = sleep(patience) => if streams.rest(&mut seen) { break false },
        }
        patience = IDLE;
    };
    let mut end = Interrupt::new(async {
        farewell.begins().await;
        sleep(farewell.grace).await;
    });
    let mut patience = GOODBYE;
    if closing {
        let settle = farewell.settle();
        // Who has just come is answered once: many a client takes a goodbye before its first request for a failure.
        tokio::select! {
            biased;
            ended = connection.as_mut() => return ended,
            () = streams.first() => {}
            () = end.come() => return Ok(()),
            () = sleep_until(first_by.min(Instant::now() + settle)) => {}
        }
        patience = settle.clamp(GOODBYE, HEAD_DEADLINE);
    }
    connection.as_mut().graceful_shutdown();
    loop {
        tokio::select! {
            biased;
            ended = connection.as_mut() => return ended,
            () = end.come() => return Ok(()),
            () = sleep(patience) => if streams.are_none() && !streams.moved() { return Ok(()) },
        }
    }
}

/// The streams of a connection.
#[derive(Clone)]
struct Streams {
    tally: Arc<Tally>,
    tasks: TaskTracker,
}

#[derive(Default)]
struct Tally {
    begun: AtomicU64,
    open: AtomicUsize,
    /// Bytes left for the client, or came from it.
    moved: AtomicBool,
}

impl Streams {
    fn are_none(&self) -> bool {
        self.tally.open.load(Ordering::Relaxed) == 0
    }

    /// Waits until there was one. It wakes nobody: only what polls the connection begins streams, and that polls this, too.
    async fn first(&self) {
        poll_fn(|_| if self.tally.begun.load(Ordering::Relaxed) > 0 { Poll::Ready(()) } else { Poll::Pending }).await;
    }

    /// Whether anything passed since this was asked last. A stream is over before its last bytes are.
    fn moved(&self) -> bool {
        self.tally.moved.swap(false, Ordering::Relaxed)
    }

    /// Whether there is no stream, and was none since `seen` was set.
    fn rest(&self, seen: &mut u64) -> bool {
        let begun = self.tally.begun.load(Ordering::Relaxed);
        std::mem::replace(seen, begun) == begun && self.are_none()
    }
}

struct Open(Arc<Tally>);

impl Drop for Open {
    fn drop(&mut self) {
        self.0.open.fetch_sub(1, Ordering::Relaxed);
    }
}

impl<F> Executor<F> for Streams
where
    F: Future<Output = ()> + Send + 'static,
{
    /// A dropped stream is reset, which is how one is cut. With its connection it ends by itself.
    fn execute(&self, stream: F) {
        self.tally.begun.fetch_add(1, Ordering::Relaxed);
        self.tally.open.fetch_add(1, Ordering::Relaxed);
        let open = Open(self.tally.clone());
        self.tasks.spawn(async move {
            let _open = open;
            let course = Arc::new(Course::default());
            let mut cut = pin!(course.cut.notified());
            let mut stream = pin!(STREAM.scope(course.clone(), stream));
            let mut clock = None;
            poll_fn(|cx| {
                if stream.as_mut().poll(cx).is_ready() || cut.as_mut().poll(cx).is_ready() {
                    return Poll::Ready(());
                }
                course.poll_stall(cx, &mut clock)
            })
            .await;
        });
    }
}

/// How a stream stands.
#[derive(Default)]
struct Course {
    cut: Arc<Notify>,
    /// Since when the client has not taken all that it was sent. hyper asks for more only then.
    unread: Mutex<Option<Instant>>,
}

impl Course {
    fn set_unread(&self, unread: bool) {
        *self.unread.lock().unwrap_or_else(PoisonError::into_inner) = unread.then(Instant::now);
    }

    /// Ready once the client has not read for too long.
    fn poll_stall(&self, cx: &mut Context<'_>, clock: &mut Option<Pin<Box<Sleep>>>) -> Poll<()> {
        let Some(since) = *self.unread.lock().unwrap_or_else(PoisonError::into_inner) else { return Poll::Pending };
        let end = since + STALL;
        let clock = clock.get_or_insert_with(|| Box::pin(tokio::time::sleep_until(end)));
        loop {
            ready!(clock.as_mut().poll(cx));
            // The timer is not touched by every chunk; when it rings, it looks whether one was taken.
            if end <= Instant::now() {
                tracing::debug!("a stream is cut: the client does not read it");
                return Poll::Ready(());
            }
            clock.as_mut().reset(end);
        }
    }
}

/// An answer on its way, which notes whether the client takes it.
struct Watched {
    inner: AnswerBody,
    course: Arc<Course>,
}

impl Body for Watched {
    type Data = Bytes;
    type Error = AnswerError;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, AnswerError>>> {
        let frame = Pin::new(&mut self.inner).poll_frame(cx);
        self.course.set_unread(matches!(frame, Poll::Ready(Some(Ok(_)))));
        frame
    }

    fn is_end_stream(&self) -> bool {
        self.inner.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.inner.size_hint()
    }
}

#[cfg(test)]
mod tests {
    use tokio::time::timeout;

    use super::*;

    #[tokio::test]
    async fn what_a_connection_waits_for() {
        let streams = Streams { tally: Arc::default(), tasks: TaskTracker::new() };
        let mut seen = 0;
        assert!(streams.are_none() && streams.rest(&mut seen), "nothing ever came");
        let go = Arc::new(Notify::new());
        streams.execute({
            let go = go.clone();
            async move { go.notified().await }
        });
        assert!(!streams.are_none() && !streams.rest(&mut seen), "one is open");
        assert!(!streams.rest(&mut seen), "it still is");
        go.notify_one();
        streams.tasks.close();
        streams.tasks.wait().await;
        assert!(streams.are_none() && streams.rest(&mut seen), "none came since");
    }

    #[tokio::test]
    async fn a_stream_is_cut_alone() {
        let streams = Streams { tally: Arc::default(), tasks: TaskTracker::new() };
        let unread = |unread: bool| async move {
            STREAM.with(|course| course.set_unread(unread));
            std::future::pending::<()>().await;
        };
        streams.execute(unread(false));
        streams.execute(unread(true));
        let cut = async {
            while streams.tally.open.load(Ordering::Relaxed) == 2 {
                sleep(Duration::from_millis(10)).await;
            }
        };
        assert!(timeout(4 * STALL, cut).await.is_ok(), "it is never cut");
        assert_eq!(streams.tally.open.load(Ordering::Relaxed), 1);
    }
}
