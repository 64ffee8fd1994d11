//! Bodies on their way through: a client's, which has a size and may not stand still, and the answer's.

use std::future::Future as _;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::{Buf as _, Bytes};
use common::error::{Code, PublicError};
use common::stream::Pace;
use http::HeaderMap;
use http::header::EXPECT;
use http_body::{Body, Frame, SizeHint};
use hyper::body::Incoming;
use tokio::time::{Instant, Sleep};

use super::limits::Permit;
use super::stream::Watch;
use crate::fleet::stock::Lease;

/// How long a client's body may stand still.
const IDLE: Duration = Duration::from_secs(30);

/// How much of a refused body is read and thrown away, in bytes, so that the client gets to read why it was
/// refused instead of a reset connection.
const MAX_DISCARDED: u64 = 16 * 1024 * 1024;

/// How long that may take.
const DISCARD_DEADLINE: Duration = Duration::from_secs(3);

/// What of an answer the buffers of a connection take as a rule, in bytes.
const BUFFERED: u64 = 64 * 1024;

/// Why a client's body ended early.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Cut {
    /// It is over its limit.
    #[error("the body is over its limit of {limit} bytes")]
    TooLarge {
        /// The limit, in bytes.
        limit: u64,
    },
    /// It stood still, or took too long as a whole.
    #[error("the body came too slowly")]
    TooSlow,
    /// The client went away, or broke the framing.
    #[error("the body is not complete")]
    Broken(#[source] hyper::Error),
}

impl Cut {
    /// What the client is told, if it is still there.
    pub(crate) fn public(&self) -> PublicError {
        match self {
            Self::TooLarge { limit } => too_large(*limit),
            Self::TooSlow => PublicError::new(Code::RequestTimeout, "the request's body came too slowly"),
            Self::Broken(_) => PublicError::new(Code::BadRequest, "the request's body is not complete"),
        }
    }
}

/// The refusal of a body over `limit` bytes.
pub(crate) fn too_large(limit: u64) -> PublicError {
    let mib = limit / (1024 * 1024);
    PublicError::new(Code::TooLarge, format!("the request's body is over the limit of {mib} MiB"))
}

/// A client's body, with its limits. Trailers are left out.
pub(crate) struct ClientBody {
    inner: Incoming,
    limit: u64,
    seen: u64,
    time: Time,
    /// The client sends nothing before it is asked to go on, which the first read does.
    waits: bool,
    clock: Option<Clock>,
}

/// How long a body may take.
enum Time {
    /// So long as a whole; and it may not stand still.
    Own(Duration),
    /// As long as its call in all, also when the answer is there before: that may go the other way meanwhile.
    Call(Pace),
}

/// Started when the body makes us wait for the first time: most never do.
struct Clock {
    sleep: Pin<Box<Sleep>>,
    progress: Instant,
    end: Instant,
}

impl ClientBody {
    /// The body of the request with these `headers`, of which at most `limit` bytes pass, and which takes at most
    /// `deadline`.
    pub(crate) fn new(inner: Incoming, headers: &HeaderMap, limit: u64, deadline: Duration) -> Self {
        let (time, waits) = (Time::Own(deadline), headers.contains_key(EXPECT));
        Self { inner, limit, seen: 0, time, waits, clock: None }
    }

    /// Lets more of it pass, and gives it more time.
    pub(crate) fn allow(&mut self, limit: u64, deadline: Duration) {
        (self.limit, self.time) = (limit, Time::Own(deadline));
    }

    /// Lets all of it pass, in the time of its call.
    pub(crate) fn stream(&mut self, pace: Pace) {
        (self.limit, self.time) = (u64::MAX, Time::Call(pace));
    }

    /// Whether there is something, and the client did not say how much.
    pub(crate) fn is_of_unknown_length(&self) -> bool {
        !self.inner.is_end_stream() && self.inner.size_hint().exact().is_none()
    }

    /// Whether the client says itself that it is too large.
    pub(crate) fn is_declared_too_large(&self) -> bool {
        self.inner.size_hint().lower() > self.limit
    }

    /// Reads on for a moment without keeping anything, so that a refusal reaches a client that is still sending.
    pub(crate) async fn discard(mut self) {
        if self.waits {
            return;
        }
        self.time = Time::Own(DISCARD_DEADLINE);
        self.limit = self.limit.max(MAX_DISCARDED);
        let rest = async {
            use http_body_util::BodyExt as _;
            while let Some(Ok(_)) = self.frame().await {}
        };
        if tokio::time::timeout(DISCARD_DEADLINE, rest).await.is_err() {
            tracing::debug!("a refused body did not end in time");
        }
    }

    fn poll_clock(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let now = Instant::now();
        let (end, idle) = match &self.time {
            Time::Own(deadline) => (now + *deadline, Some(IDLE)),
            Time::Call(pace) => (pace.end(), None),
        };
        let next = |end: Instant, progress: Instant| idle.map_or(end, |idle| end.min(progress + idle));
        let clock = self.clock.get_or_insert_with(|| Clock {
            sleep: Box::pin(tokio::time::sleep_until(next(end, now))),
            progress: now,
            end,
        });
        loop {
            ready!(clock.sleep.as_mut().poll(cx));
            // The timer is not touched by every chunk; when it rings, it looks whether there was one.
            let next = next(clock.end, clock.progress);
            if next <= Instant::now() {
                return Poll::Ready(());
            }
            clock.sleep.as_mut().reset(next);
        }
    }
}

impl Body for ClientBody {
    type Data = Bytes;
    type Error = Cut;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Cut>>> {
        loop {
            let Poll::Ready(frame) = Pin::new(&mut self.inner).poll_frame(cx) else {
                ready!(self.poll_clock(cx));
                return Poll::Ready(Some(Err(self.late())));
            };
            if let Time::Call(pace) = &self.time {
                pace.heard();
            }
            if let Some(clock) = &mut self.clock {
                clock.progress = Instant::now();
            }
            let data = match frame {
                None if self.seen > self.limit => return Poll::Ready(Some(Err(Cut::TooLarge { limit: self.limit }))),
                None => return Poll::Ready(None),
                Some(Err(error)) => return Poll::Ready(Some(Err(Cut::Broken(error)))),
                Some(Ok(frame)) => match frame.into_data() {
                    Ok(data) => data,
                    Err(_trailers) => continue,
                },
            };
            self.seen += data.remaining() as u64;
            if self.seen <= self.limit {
                return Poll::Ready(Some(Ok(Frame::data(data))));
            }
            if self.seen > self.limit.saturating_add(MAX_DISCARDED) {
                return Poll::Ready(Some(Err(Cut::TooLarge { limit: self.limit })));
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        self.inner.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.inner.size_hint()
    }
}

impl ClientBody {
    fn late(&self) -> Cut {
        if self.seen > self.limit { Cut::TooLarge { limit: self.limit } } else { Cut::TooSlow }
    }
}

/// The body of an answer.
pub(crate) enum AnswerBody {
    /// Our own words.
    Own(Option<Bytes>),
    /// A node's; its connection goes back when the last byte is through.
    Node(NodeBody),
    /// The control API's.
    Control(axum::body::Body),
}

/// What a node answers, and the connection on which it does.
pub(crate) struct NodeBody {
    inner: Incoming,
    lease: Option<Lease>,
    /// A server's answer has its time, and its place until the last byte.
    watch: Option<Watch>,
    /// The place of a process' answer that its client has to take first.
    permit: Option<Permit>,
}

impl NodeBody {
    pub(crate) fn new(inner: Incoming, lease: Lease, watch: Option<Watch>) -> Self {
        let mut body = Self { inner, lease: Some(lease), watch, permit: None };
        if body.inner.is_end_stream() {
            body.give_back();
        }
        body
    }

    /// The answer of a process that has ended. What no buffer takes keeps a connection of the node until the client has
    /// read it, so it keeps the call's place, too: who reads slowly takes of one function's, not of the node's.
    pub(crate) fn whole(inner: Incoming, lease: Lease, permit: Option<Permit>) -> Self {
        let is_large = inner.size_hint().upper().is_none_or(|bytes| bytes > BUFFERED);
        let mut body = Self::new(inner, lease, None);
        body.permit = permit.filter(|_| is_large && body.lease.is_some());
        body
    }

    fn give_back(&mut self) {
        (self.watch, self.permit) = (None, None);
        if let Some(lease) = self.lease.take() {
            lease.give_back();
        }
    }
}

/// An answer broke off.
#[derive(Debug, thiserror::Error)]
pub(crate) enum AnswerError {
    /// The node's.
    #[error("the node's answer broke off")]
    Node(#[source] hyper::Error),
    /// The control API's.
    #[error("the control API's answer broke off")]
    Control(#[source] axum::Error),
}

impl Body for AnswerBody {
    type Data = Bytes;
    type Error = AnswerError;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, AnswerError>>> {
        match self.get_mut() {
            Self::Own(bytes) => Poll::Ready(bytes.take().map(|bytes| Ok(Frame::data(bytes)))),
            Self::Control(body) => {
                Pin::new(body).poll_frame(cx).map(|frame| frame.map(|frame| frame.map_err(AnswerError::Control)))
            }
            Self::Node(body) => {
                let frame = ready!(Pin::new(&mut body.inner).poll_frame(cx));
                match &frame {
                    None => body.give_back(),
                    Some(Ok(_)) if body.inner.is_end_stream() => body.give_back(),
                    Some(Ok(_)) => {
                        if let Some(watch) = &body.watch {
                            watch.heard();
                        }
                    }
                    Some(Err(_)) => (body.lease, body.watch, body.permit) = (None, None, None),
                }
                Poll::Ready(frame.map(|frame| frame.map_err(AnswerError::Node)))
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Self::Own(bytes) => bytes.is_none(),
            Self::Control(body) => body.is_end_stream(),
            Self::Node(body) => body.inner.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Self::Own(bytes) => SizeHint::with_exact(bytes.as_ref().map_or(0, |bytes| bytes.len() as u64)),
            Self::Control(body) => body.size_hint(),
            Self::Node(body) => body.inner.size_hint(),
        }
    }
}
