//! The room in which the bodies of calls wait until they are whole, so that who sends slowly holds neither a place in
//! the function's concurrency nor a connection to a node. A body that is here with its head costs nothing.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use bytes::{Bytes, BytesMut};
use common::error::{Code, PublicError};
use http_body::Body as _;
use http_body_util::BodyExt as _;
use prometheus::IntGauge;

use super::body::ClientBody;

/// What each body has for itself, in bytes; only what is beyond it counts, so that small ones pass in a crowd.
const FREE_BYTES: u64 = 16 * 1024;

/// The room of a gateway.
pub(crate) struct BodyRoom {
    /// In bytes.
    limit: u64,
    taken: AtomicU64,
    gauge: IntGauge,
}

/// What one body takes of the room; given back when it is dropped.
struct Share {
    room: Arc<BodyRoom>,
    bytes: u64,
}

/// A whole body, with its share.
struct Gathered {
    bytes: BytesMut,
    share: Share,
}

/// Nothing is left of the room.
#[derive(Debug, PartialEq, Eq)]
struct RoomFull;

impl BodyRoom {
    /// Room for `limit` bytes, all of them free.
    pub(crate) fn new(limit: u64, gauge: IntGauge) -> Self {
        Self { limit, taken: AtomicU64::new(0), gauge }
    }

    /// Reads a body to its end.
    ///
    /// # Errors
    /// It is cut short, or there is no room for it.
    pub(crate) async fn gather(self: &Arc<Self>, mut body: ClientBody) -> Result<Bytes, PublicError> {
        if body.is_end_stream() {
            return Ok(Bytes::new());
        }
        let Some(first) = next(&mut body).await? else { return Ok(Bytes::new()) };
        if body.is_end_stream() {
            return Ok(first);
        }
        let mut gathered = Gathered { bytes: BytesMut::from(first), share: Share { room: self.clone(), bytes: 0 } };
        loop {
            if gathered.share.grow(gathered.bytes.len() as u64).is_err() {
                body.discard().await;
                let sentence = "more large bodies are on their way in than there is room for: try again in a moment";
                return Err(PublicError::new(Code::Overloaded, sentence));
            }
            let Some(chunk) = next(&mut body).await? else { break };
            gathered.bytes.extend_from_slice(&chunk);
        }
        if gathered.share.bytes == 0 {
            return Ok(gathered.bytes.freeze());
        }
        // The share is given back with the last of the bytes.
        Ok(Bytes::from_owner(gathered))
    }
}

async fn next(body: &mut ClientBody) -> Result<Option<Bytes>, PublicError> {
    match body.frame().await {
        Some(Ok(frame)) => Ok(frame.into_data().ok()),
        Some(Err(cut)) => Err(cut.public()),
        None => Ok(None),
    }
}

impl Share {
    /// Covers a body of `length` bytes.
    fn grow(&mut self, length: u64) -> Result<(), RoomFull> {
        let more = length.saturating_sub(FREE_BYTES).saturating_sub(self.bytes);
        if more == 0 {
            return Ok(());
        }
        if self.room.taken.fetch_add(more, Ordering::Relaxed) + more > self.room.limit {
            self.room.taken.fetch_sub(more, Ordering::Relaxed);
            return Err(RoomFull);
        }
        self.bytes += more;
        self.room.gauge.add(i64::try_from(more).unwrap_or(i64::MAX));
        Ok(())
    }
}

impl Drop for Share {
    fn drop(&mut self) {
        self.room.taken.fetch_sub(self.bytes, Ordering::Relaxed);
        self.room.gauge.sub(i64::try_from(self.bytes).unwrap_or(i64::MAX));
    }
}

impl AsRef<[u8]> for Gathered {
    fn as_ref(&self) -> &[u8] {
        &self.bytes
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shares_come_back() {
        let room = Arc::new(BodyRoom::new(100, IntGauge::new("room", "room").unwrap()));
        let share = || Share { room: room.clone(), bytes: 0 };
        let (mut one, mut other) = (share(), share());
        assert_eq!(one.grow(FREE_BYTES), Ok(()));
        assert_eq!((one.grow(FREE_BYTES + 40), one.grow(FREE_BYTES + 90)), (Ok(()), Ok(())));
        assert_eq!((other.grow(FREE_BYTES + 11), other.grow(FREE_BYTES + 10)), (Err(RoomFull), Ok(())));
        drop(one);
        assert_eq!((room.gauge.get(), other.grow(FREE_BYTES + 100)), (10, Ok(())));
        drop(other);
        assert_eq!((room.gauge.get(), room.taken.load(Ordering::Relaxed)), (0, 0));
    }
}
