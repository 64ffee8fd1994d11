//! How much memory the requests take that this node holds: a body as it is read, then the request file that is made
//! of it, until the call is over; and, apart from these, the answers, until the link has taken them. So who does not read
//! his answer keeps nobody's request away. What is small is not counted; its number is bounded by the link's connections.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::{Buf as _, Bytes};
use common::error::{Code, PublicError};
use hyper::body::{Body, Frame};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::timeout;

/// Up to this size, in KiB, a request or an answer costs nothing.
const FREE_KIB: usize = 16;
/// How long an answer waits for memory, if it lies somewhere meanwhile.
const ANSWER_PATIENCE: Duration = Duration::from_secs(10);

/// What requests may take together, and answers.
#[derive(Clone, Copy, Debug, clap::Args)]
pub struct BodiesArgs {
    /// Memory for the requests of all calls that this node reads or runs, in MiB, and as much again for their answers; a
    /// call beyond it is answered 503, an answer waits.
    #[arg(long, env = "INVOCATION_BODIES_MB", default_value_t = 256, value_parser = clap::value_parser!(u32).range(1..=65_536))]
    pub invocation_bodies_mb: u32,
}

/// There is no room for a request or an answer now.
#[derive(Debug, thiserror::Error)]
#[error("the requests, or the answers, that this node holds take all of INVOCATION_BODIES_MB")]
pub(super) struct NoRoom;

impl NoRoom {
    pub(super) fn public(&self) -> PublicError {
        tracing::warn!("a call was refused: {self}");
        PublicError::new(Code::NoSandbox, "This node has no memory left for a call of this size; try again")
    }
}

/// The memory of all requests, and that of all answers, counted in KiB.
pub(super) struct Bodies {
    requests: Arc<Semaphore>,
    answers: Arc<Semaphore>,
    /// Of each.
    total: u32,
}

/// The memory of one request or answer; dropping it gives it back.
pub(super) struct Room {
    free: Arc<Semaphore>,
    total: u32,
    permit: Option<OwnedSemaphorePermit>,
}

impl Bodies {
    pub(super) fn new(args: BodiesArgs) -> Self {
        let total = args.invocation_bodies_mb * 1024;
        let memory = || Arc::new(Semaphore::new(total as usize));
        Self { requests: memory(), answers: memory(), total }
    }

    /// Room for a request of which nothing has come yet.
    pub(super) fn room(&self) -> Room {
        Room { free: Arc::clone(&self.requests), total: self.total, permit: None }
    }

    /// Room for an answer of which nothing has come yet.
    pub(super) fn answer_room(&self) -> Room {
        Room { free: Arc::clone(&self.answers), total: self.total, permit: None }
    }

    /// Room for an answer of this size, which lies elsewhere until there is some.
    pub(super) async fn wait_for_answer_room(&self, bytes: usize) -> Result<Room, NoRoom> {
        let mut room = self.answer_room();
        let wanted = counted_kib(bytes).min(self.total);
        if wanted > 0 {
            let had = timeout(ANSWER_PATIENCE, Arc::clone(&self.answers).acquire_many_owned(wanted)).await;
            room.permit = Some(had.map_err(|_| NoRoom)?.expect("the semaphore is never closed"));
        }
        Ok(room)
    }
}

/// How much of a request or an answer is counted.
fn counted_kib(bytes: usize) -> u32 {
    u32::try_from((bytes / 1024).saturating_sub(FREE_KIB)).unwrap_or(u32::MAX)
}

impl Room {
    /// Makes it as large as the request. One that is larger than all there is takes all, and so goes alone.
    pub(super) fn fit(&mut self, bytes: usize) -> Result<(), NoRoom> {
        let wanted = counted_kib(bytes).min(self.total);
        let held = self.permit.as_ref().map_or(0, |permit| u32::try_from(permit.num_permits()).unwrap_or(u32::MAX));
        if wanted > held {
            let more = Arc::clone(&self.free).try_acquire_many_owned(wanted - held).map_err(|_| NoRoom)?;
            match &mut self.permit {
                Some(permit) => permit.merge(more),
                none => *none = Some(more),
            }
        } else if let Some(permit) = &mut self.permit {
            drop(permit.split((held - wanted) as usize));
        }
        Ok(())
    }

    /// `bytes`, which have the room for as long as anybody has them.
    pub(super) fn around(self, bytes: Bytes) -> Bytes {
        match self.permit {
            Some(permit) => Bytes::from_owner(Roomed { bytes, _permit: permit }),
            None => bytes,
        }
    }

    /// `body`, which takes room as it comes.
    pub(super) fn counting<B>(&mut self, body: B) -> Counting<'_, B> {
        Counting { body, room: self, bytes: 0 }
    }
}

/// Bytes in their room.
struct Roomed {
    bytes: Bytes,
    _permit: OwnedSemaphorePermit,
}

impl AsRef<[u8]> for Roomed {
    fn as_ref(&self) -> &[u8] {
        &self.bytes
    }
}

/// A body that ends with [`NoRoom`] when there is none for it.
pub(super) struct Counting<'a, B> {
    body: B,
    room: &'a mut Room,
    bytes: usize,
}

impl<B> Body for Counting<'_, B>
where
    B: Body + Unpin,
    B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
{
    type Data = B::Data;
    type Error = Box<dyn std::error::Error + Send + Sync>;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<B::Data>, Self::Error>>> {
        let frame = match Pin::new(&mut self.body).poll_frame(cx) {
            Poll::Ready(Some(Ok(frame))) => frame,
            other => return other.map_err(Into::into),
        };
        if let Some(data) = frame.data_ref() {
            self.bytes += data.remaining();
            let bytes = self.bytes;
            if let Err(full) = self.room.fit(bytes) {
                return Poll::Ready(Some(Err(full.into())));
            }
        }
        Poll::Ready(Some(Ok(frame)))
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> hyper::body::SizeHint {
        self.body.size_hint()
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt as _;
    use http_body_util::{BodyExt as _, Full};

    use super::*;

    const MIB: usize = 1024 * 1024;

    fn bodies(megabytes: u32) -> Bodies {
        Bodies::new(BodiesArgs { invocation_bodies_mb: megabytes })
    }

    fn taken_kib(bodies: &Bodies) -> [usize; 2] {
        [&bodies.requests, &bodies.answers].map(|free| bodies.total as usize - free.available_permits())
    }

    fn check(bodies: &Bodies, requests_kib: usize) {
        assert_eq!(taken_kib(bodies), [requests_kib, 0]);
    }

    #[test]
    fn small_requests_are_free_and_large_ones_give_back() {
        let bodies = bodies(1);
        let (mut small, mut large, mut other) = (bodies.room(), bodies.room(), bodies.room());
        small.fit(FREE_KIB * 1024).unwrap();
        check(&bodies, 0);
        large.fit(MIB / 2).unwrap();
        check(&bodies, 512 - 16);
        large.fit(MIB * 3 / 4).unwrap();
        assert!(other.fit(MIB / 2).is_err());
        assert!(other.fit(MIB / 8).is_ok());
        check(&bodies, 768 - 16 + 128 - 16);
        large.fit(MIB / 4).unwrap();
        assert!(other.fit(MIB / 2).is_ok());
        drop((large, other));
        check(&bodies, 0);
        // As large as it likes, if it is alone.
        small.fit(6 * MIB).unwrap();
        check(&bodies, 1024);
        assert!(bodies.room().fit(MIB / 2).is_err());
    }

    #[tokio::test]
    async fn an_answer_has_its_room_until_its_last_byte_is_gone() {
        let bodies = bodies(1);
        let check = |expected| assert_eq!(taken_kib(&bodies), [0, expected]);
        let bytes = || Bytes::from(vec![7; MIB * 3 / 4]);
        let small = bodies.wait_for_answer_room(FREE_KIB * 1024).await.unwrap();
        check(0);
        assert_eq!(small.around(Bytes::from_static(b"x")), "x");
        let first = bodies.wait_for_answer_room(MIB * 3 / 4).await.unwrap().around(bytes());
        check(768 - 16);
        assert_eq!((first.len(), first[0]), (MIB * 3 / 4, 7));
        let second = bodies.wait_for_answer_room(MIB * 3 / 4);
        let rest = first.slice(1..);
        drop(first);
        check(768 - 16);
        let (second, ()) = tokio::join!(second, async { drop(rest) });
        check(768 - 16);
        // Another one waits, and no request does.
        assert!(bodies.wait_for_answer_room(MIB * 3 / 4).now_or_never().is_none());
        bodies.room().fit(MIB).unwrap();
        drop(second);
        check(0);
        // As large as it likes, if it is alone.
        let whole = bodies.wait_for_answer_room(6 * MIB).await.unwrap();
        check(1024);
        drop(whole);
    }

    #[tokio::test]
    async fn a_body_takes_room_as_it_comes() {
        let bodies = bodies(1);
        let body = || Full::new(Bytes::from(vec![0; MIB / 2]));
        let (mut first, mut second, mut third) = (bodies.room(), bodies.room(), bodies.room());
        assert_eq!(first.counting(body()).collect().await.unwrap().to_bytes().len(), MIB / 2);
        second.counting(body()).collect().await.unwrap();
        assert!(third.counting(body()).collect().await.unwrap_err().is::<NoRoom>());
        drop(first);
        third.counting(body()).collect().await.unwrap();
    }
}
