//! Seats for connections: so many in all, and so many of one address. Who finds none at the public port is told so.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use common::error::{Code, Form, PublicError};
use pingora::protocols::Stream;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::sync::Semaphore;
use tokio::time::timeout;

use super::limits::vicinity;
use crate::metrics::Metrics;

/// Connections that are told at once why they are refused; more are just closed.
const MAX_REFUSALS: usize = 64;

/// How long that may take.
const REFUSAL_DEADLINE: Duration = Duration::from_millis(500);

/// The seats of a listener.
pub(crate) struct Seats {
    most: u32,
    most_each: u32,
    taken: Mutex<Taken>,
    refusals: Semaphore,
}

#[derive(Default)]
struct Taken {
    all: u32,
    by_address: HashMap<IpAddr, u32>,
}

/// One seat; given back when it is dropped.
pub(crate) struct Seat {
    seats: Arc<Seats>,
    address: IpAddr,
}

/// What a client's connection holds to its last byte, also when a WebSocket has become of it: its seat, and its place in
/// the gauge.
pub(crate) struct Seated {
    _seat: Seat,
    metrics: Arc<Metrics>,
}

impl Seated {
    pub(crate) fn new(seat: Seat, metrics: &Arc<Metrics>) -> Arc<Self> {
        metrics.connections.inc();
        Arc::new(Self { _seat: seat, metrics: metrics.clone() })
    }
}

impl Drop for Seated {
    fn drop(&mut self) {
        self.metrics.connections.dec();
    }
}

impl Seats {
    /// `most` seats, of which one address gets at most `most_each`.
    pub(crate) fn new(most: u32, most_each: u32) -> Self {
        Self { most, most_each, taken: Mutex::default(), refusals: Semaphore::new(MAX_REFUSALS) }
    }

    /// A seat, if there is one for this address. A proxy that is believed has the addresses of many.
    pub(crate) fn take(self: &Arc<Self>, address: IpAddr, is_proxy: bool) -> Option<Seat> {
        let address = vicinity(address, false);
        let mut taken = self.lock();
        let of_address = taken.by_address.get(&address).copied().unwrap_or_default();
        if taken.all >= self.most || (of_address >= self.most_each && !is_proxy) {
            return None;
        }
        taken.all += 1;
        taken.by_address.insert(address, of_address + 1);
        Some(Seat { seats: self.clone(), address })
    }

    /// Says that there is no seat, if there is time for that.
    pub(crate) async fn refuse(&self, stream: Stream) {
        let Ok(_turn) = self.refusals.try_acquire() else { return };
        let error = PublicError::new(Code::Overloaded, "there are too many connections: try again in a moment");
        let body = error.body("", Form::Control);
        let head = format!(
            "HTTP/1.1 {} Service Unavailable\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\
             Retry-After: 1\r\nConnection: close\r\n\r\n",
            error.code.status(),
            body.len()
        );
        dismiss(stream, &[head.as_bytes(), &body].concat()).await;
    }

    fn lock(&self) -> MutexGuard<'_, Taken> {
        self.taken.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        let mut taken = self.seats.lock();
        taken.all -= 1;
        let Some(of_address) = taken.by_address.get_mut(&self.address) else { return };
        *of_address -= 1;
        if *of_address == 0 {
            taken.by_address.remove(&self.address);
        }
    }
}

/// Says a last word to a client, if there is time for that.
pub(crate) async fn dismiss(mut stream: Stream, words: &[u8]) {
    let said = async {
        stream.write_all(words).await?;
        stream.shutdown().await?;
        // What is closed with something unread in it is reset, and the answer with it.
        while stream.read(&mut [0; 1024]).await? > 0 {}
        Ok::<_, std::io::Error>(())
    };
    // Whether it was heard is the client's affair.
    timeout(REFUSAL_DEADLINE, said).await.ok();
}

/// Lets this process have as many descriptors as it may, and says how many those are.
pub(crate) fn raise_descriptors() -> u32 {
    let limit = getrlimit(Resource::Nofile);
    let raised = setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, maximum: limit.maximum });
    if let Err(error) = raised {
        tracing::warn!(%error, "the limit of open files cannot be raised");
    }
    // No limit is no number.
    getrlimit(Resource::Nofile).current.map_or(u32::MAX, |limit| u32::try_from(limit).unwrap_or(u32::MAX))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn so_many_in_all_and_of_one_address() {
        let seats = Arc::new(Seats::new(3, 2));
        let take = |address: &str| seats.take(address.parse().unwrap(), false);
        let ann = [take("2001:db8::1").unwrap(), take("2001:db8::2").unwrap()];
        assert!(take("2001:db8::3").is_none(), "the same network has its share");
        let bob = take("192.0.2.1").unwrap();
        assert!(take("192.0.2.2").is_none(), "all seats are taken");
        drop(ann);
        assert!(take("2001:db8::1").is_some());
        drop(bob);
        let proxied = ["192.0.2.9"; 3].map(|proxy| seats.take(proxy.parse().unwrap(), true));
        assert!(proxied.iter().filter(|seat| seat.is_some()).count() == 3, "a proxy has more than its share");
        drop(proxied);
        assert!(seats.lock().by_address.is_empty() && seats.lock().all == 0);
    }
}
