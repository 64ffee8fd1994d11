//! The room in which the bodies of calls wait until they are whole, so that who sends slowly holds neither a place in
//! the function's concurrency nor a connection to a node. A body that is here with its head costs nothing. Each client
//! gets as much of the room as it leaves to the others.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::{Bytes, BytesMut};
use common::error::{Code, PublicError};
use http_body::Body as _;
use http_body_util::BodyExt as _;
use prometheus::IntGauge;

use super::body::ClientBody;
use super::limits::{Client, neighbourhood};

/// What each body has for itself, in bytes; only what is beyond it counts, so that small ones pass in a crowd.
const FREE_BYTES: u64 = 16 * 1024;

/// The room of a gateway.
pub(crate) struct BodyRoom {
    /// In bytes.
    limit: u64,
    /// What each client may have at least while there is room, in bytes: a whole body.
    least: u64,
    taken: Mutex<Taken>,
    gauge: IntGauge,
}

/// What is taken of the room, in bytes.
#[derive(Default)]
struct Taken {
    all: u64,
    by_client: HashMap<Client, u64>,
}

/// What one body takes of the room; given back when it is dropped.
struct Share {
    room: Arc<BodyRoom>,
    client: Client,
    bytes: u64,
}

/// A whole body, with its share.
struct Gathered {
    bytes: BytesMut,
    share: Share,
}

/// Nothing is left of the room, or not for this client.
#[derive(Debug, PartialEq, Eq)]
struct RoomFull;

impl BodyRoom {
    /// Room for `limit` bytes, all of them free, for bodies of at most `largest`.
    pub(crate) fn new(limit: u64, largest: u64, gauge: IntGauge) -> Self {
        // A single body always fits.
        Self { limit: limit.max(largest), least: largest, taken: Mutex::default(), gauge }
    }

    /// Reads a body of `client` to its end.
    ///
    /// # Errors
    /// It is cut short, or there is no room for it.
    pub(crate) async fn gather(self: &Arc<Self>, client: Client, mut body: ClientBody) -> Result<Bytes, PublicError> {
        if body.is_end_stream() {
            return Ok(Bytes::new());
        }
        let Some(first) = next(&mut body).await? else { return Ok(Bytes::new()) };
        if body.is_end_stream() {
            return Ok(first);
        }
        let mut gathered = Gathered { bytes: BytesMut::from(first), share: self.share(client) };
        loop {
            if gathered.share.grow(gathered.bytes.len() as u64).is_err() {
                // Others need not wait until the client has read why.
                drop(gathered);
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

    fn share(self: &Arc<Self>, client: Client) -> Share {
        Share { room: self.clone(), client: neighbourhood(client, false), bytes: 0 }
    }

    fn lock(&self) -> MutexGuard<'_, Taken> {
        self.taken.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether a client may have `theirs` of the room, where that makes `all`. Who has much leaves as much free, so that
    /// somebody else gets his, too; of many, each gets less.
    fn allows(&self, theirs: u64, all: u64) -> bool {
        all <= self.limit && (theirs <= self.limit - all || theirs <= self.least)
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
        let mut taken = self.room.lock();
        let theirs = taken.by_client.get(&self.client).copied().unwrap_or_default() + more;
        if !self.room.allows(theirs, taken.all + more) {
            return Err(RoomFull);
        }
        taken.all += more;
        taken.by_client.insert(self.client, theirs);
        drop(taken);
        self.bytes += more;
        self.room.gauge.add(i64::try_from(more).unwrap_or(i64::MAX));
        Ok(())
    }
}

impl Drop for Share {
    fn drop(&mut self) {
        // A small body never had anything of the room.
        if self.bytes == 0 {
            return;
        }
        let mut taken = self.room.lock();
        taken.all -= self.bytes;
        if let Some(theirs) = taken.by_client.get_mut(&self.client) {
            *theirs -= self.bytes;
            if *theirs == 0 {
                taken.by_client.remove(&self.client);
            }
        }
        drop(taken);
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
    use common::ids::UserId;

    use super::*;

    fn room(limit: u64, largest: u64) -> Arc<BodyRoom> {
        Arc::new(BodyRoom::new(limit, largest, IntGauge::new("room", "room").unwrap()))
    }

    #[test]
    fn shares_come_back() {
        let room = room(100, 100);
        let share = || room.share(Client::User(UserId::new()));
        let (mut one, mut other) = (share(), share());
        assert_eq!(one.grow(FREE_BYTES), Ok(()));
        assert!(room.lock().by_client.is_empty(), "small bodies are nobody's");
        assert_eq!((one.grow(FREE_BYTES + 40), one.grow(FREE_BYTES + 90)), (Ok(()), Ok(())));
        assert_eq!((other.grow(FREE_BYTES + 11), other.grow(FREE_BYTES + 10)), (Err(RoomFull), Ok(())));
        drop(one);
        assert_eq!((room.gauge.get(), other.grow(FREE_BYTES + 100)), (10, Ok(())));
        drop(other);
        assert_eq!((room.gauge.get(), room.lock().all), (0, 0));
        assert!(room.lock().by_client.is_empty(), "who has nothing is not remembered");
    }

    #[test]
    fn what_a_client_gets() {
        let room = room(1000, 60);
        let check = |theirs, others, expected| {
            assert_eq!(room.allows(theirs, theirs + others), expected, "{theirs} beside {others}");
        };
        // As much as it leaves.
        check(500, 0, true);
        check(501, 0, false);
        check(250, 500, true);
        check(251, 500, false);
        check(100, 800, true);
        check(101, 800, false);
        // A whole body, as long as there is room.
        check(60, 920, true);
        check(60, 940, true);
        check(60, 941, false);
        check(61, 920, false);
    }

    #[test]
    fn all_bodies_of_a_client_count_together() {
        let room = room(1000, 60);
        let ann = Client::User(UserId::new());
        let near = |last: u16| Client::Address(std::net::Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, last).into());
        let mut hers = [room.share(ann), room.share(ann)];
        assert_eq!(hers.each_mut().map(|share| share.grow(FREE_BYTES + 250)), [Ok(()), Ok(())]);
        assert_eq!(hers[0].grow(FREE_BYTES + 251), Err(RoomFull));
        // One network is one client.
        let mut others = [room.share(near(1)), room.share(near(2))];
        assert_eq!(others.each_mut().map(|share| share.grow(FREE_BYTES + 200)), [Ok(()), Err(RoomFull)]);
        drop(hers);
        assert_eq!(others[1].grow(FREE_BYTES + 200), Ok(()));
    }
}
