//! How much is let in: a rate per client, a slower one for who is not known yet, and each function's concurrency.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::num::NonZeroU32;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::Duration;

use common::error::{Code, PublicError};
use common::ids::UserId;
use governor::clock::{Clock as _, DefaultClock};
use governor::{DefaultKeyedRateLimiter, Quota, RateLimiter};

use super::placement::Seat;
use super::shared_limits::{SharedLimits, Slot};

/// Rates.
#[derive(Clone, Copy, Debug, clap::Args)]
pub struct LimitArgs {
    /// Requests a second of one client, with bursts of twice as many.
    #[arg(long, env = "RATE_LIMIT_PER_CLIENT", default_value = "1000")]
    pub rate_limit_per_client: NonZeroU32,
    /// Attempts a minute, from one address, to register, to log in, to refresh or to log out.
    #[arg(long, env = "RATE_LIMIT_LOGIN", default_value = "30")]
    pub rate_limit_login: NonZeroU32,
    /// Room for bodies of calls that are on their way in, over all of them, in MiB; the first 16 KiB of each are free. A
    /// client gets as much of it as it leaves to the others.
    #[arg(long, env = "REQUEST_BUFFER_MB", default_value = "256")]
    pub request_buffer_mb: NonZeroU32,
}

impl LimitArgs {
    pub(crate) fn request_buffer_bytes(&self) -> u64 {
        u64::from(self.request_buffer_mb.get()) * common::settings::MIB as u64
    }
}

/// How often clients that were silent for a while are forgotten.
pub(crate) const SWEEP: Duration = Duration::from_secs(2);

/// Most clients that are told apart; beyond it, addresses share a limit with their neighbourhood.
const MAX_CLIENTS: usize = 100_000;

/// Whom a rate counts for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Client {
    /// Somebody whose token was taken.
    User(UserId),
    /// Somebody unknown, by address.
    Address(IpAddr),
}

impl std::fmt::Display for Client {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::User(user) => write!(f, "user:{user}"),
            Self::Address(address) => write!(f, "address:{address}"),
        }
    }
}

/// The rates of all clients.
pub(crate) struct Limits {
    clients: Rate,
    logins: Rate,
    /// The same over several gateways, where Redis counts them.
    pub(crate) shared: Option<Arc<SharedLimits>>,
}

struct Rate {
    limiter: DefaultKeyedRateLimiter<Client>,
    clock: DefaultClock,
    crowded: AtomicBool,
}

impl Limits {
    pub(crate) fn new(args: &LimitArgs) -> Self {
        let per_client = args.rate_limit_per_client;
        let burst = per_client.saturating_add(per_client.get());
        Self {
            clients: Rate::new(Quota::per_second(per_client).allow_burst(burst)),
            logins: Rate::new(Quota::per_minute(args.rate_limit_login)),
            shared: None,
        }
    }

    /// The same, over all gateways.
    pub(crate) fn over(self, shared: Option<Arc<SharedLimits>>) -> Self {
        Self { shared, ..self }
    }

    /// Counts a request of `client`.
    ///
    /// # Errors
    /// It is over its rate.
    pub(crate) fn client(&self, client: Client) -> Result<(), PublicError> {
        self.clients.check(client).map_err(rate_limited)
    }

    /// Counts an attempt of `client`, an address, to register, log in, refresh or log out.
    ///
    /// # Errors
    /// The address is over its rate.
    pub(crate) fn login(&self, client: Client) -> Result<(), PublicError> {
        self.logins.check(client).map_err(login_limited)
    }

    /// Forgets clients that were silent; call it every [`SWEEP`].
    pub(crate) fn sweep(&self) {
        self.clients.sweep();
        self.logins.sweep();
    }
}

impl Rate {
    fn new(quota: Quota) -> Self {
        Self { limiter: RateLimiter::keyed(quota), clock: DefaultClock::default(), crowded: AtomicBool::new(false) }
    }

    /// `Err` says how long to wait.
    fn check(&self, client: Client) -> Result<(), Duration> {
        let client = neighbourhood(client, self.crowded.load(Ordering::Relaxed));
        self.limiter.check_key(&client).map_err(|until| until.wait_time_from(self.clock.now()))
    }

    fn sweep(&self) {
        self.limiter.retain_recent();
        self.limiter.shrink_to_fit();
        self.crowded.store(self.limiter.len() > MAX_CLIENTS, Ordering::Relaxed);
    }
}

/// A client is over its rate, for so long.
pub(crate) fn rate_limited(wait: Duration) -> PublicError {
    limited(wait, "too many requests: slow down")
}

/// An address tries too often to get in.
pub(crate) fn login_limited(wait: Duration) -> PublicError {
    limited(wait, "too many attempts from this address: wait a moment")
}

fn limited(wait: Duration, sentence: &'static str) -> PublicError {
    let seconds = u32::try_from(wait.as_millis().div_ceil(1000)).unwrap_or(u32::MAX);
    PublicError { retry_after: Some(seconds.max(1)), ..PublicError::new(Code::RateLimited, sentence) }
}

/// A home has a /64 of IPv6, so a single address there says nothing. In a crowd, only the coarse part counts, so
/// that who has many addresses can neither fill the memory nor get many shares.
pub(crate) fn neighbourhood(client: Client, crowded: bool) -> Client {
    let Client::Address(address) = client else { return client };
    Client::Address(vicinity(address, crowded))
}

/// The same of an address.
pub(crate) fn vicinity(address: IpAddr, crowded: bool) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V4(address) if crowded => {
            let [a, b, ..] = address.octets();
            IpAddr::V4(Ipv4Addr::new(a, b, 0, 0))
        }
        IpAddr::V4(address) => IpAddr::V4(address),
        IpAddr::V6(address) => {
            let [a, b, c, d, ..] = address.segments();
            let (c, d) = if crowded { (0, 0) } else { (c, d) };
            IpAddr::V6(Ipv6Addr::new(a, b, c, d, 0, 0, 0, 0))
        }
    }
}

/// The calls of one function that are under way, over all threads.
#[derive(Default)]
pub(crate) struct Admission(AtomicU32);

/// The right to one call, and once it is placed its seat on a node; given back when it is dropped.
pub(crate) struct Permit {
    admission: Arc<Admission>,
    seat: Option<Seat>,
    /// Its place among the calls of all gateways, where they are counted together.
    slot: Option<Slot>,
}

impl Permit {
    /// Holds the slot, too.
    pub(crate) fn fill(&mut self, slot: Option<Slot>) {
        self.slot = slot;
    }

    /// Holds the seat, too.
    pub(crate) fn sit(&mut self, seat: Option<Seat>) {
        self.seat = seat;
    }
}

impl Admission {
    /// Whether `limit` permits are out. A moment later it may be otherwise.
    pub(crate) fn is_full(&self, limit: u32) -> bool {
        self.0.load(Ordering::Acquire) >= limit
    }

    /// A permit, unless `limit` are out.
    pub(crate) fn admit(self: &Arc<Self>, limit: u32) -> Option<Permit> {
        // One addition and, seldom, one subtraction: cheaper between threads than a loop of comparisons.
        if self.0.fetch_add(1, Ordering::AcqRel) < limit {
            return Some(Permit { admission: self.clone(), seat: None, slot: None });
        }
        self.0.fetch_sub(1, Ordering::AcqRel);
        None
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        self.admission.0.fetch_sub(1, Ordering::AcqRel);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn address(text: &str) -> Client {
        Client::Address(text.parse().unwrap())
    }

    fn limits(rate: NonZeroU32) -> Limits {
        Limits::new(&LimitArgs { rate_limit_per_client: rate, rate_limit_login: rate, request_buffer_mb: rate })
    }

    #[test]
    fn neighbourhoods() {
        let check = |given: &str, crowded, expected: &str| {
            assert_eq!(neighbourhood(address(given), crowded), address(expected), "{given} {crowded}");
        };
        check("192.0.2.7", false, "192.0.2.7");
        check("192.0.2.7", true, "192.0.0.0");
        check("::ffff:192.0.2.7", false, "192.0.2.7");
        check("2001:db8:1:2:3::4", false, "2001:db8:1:2::");
        check("2001:db8:1:2:3::4", true, "2001:db8::");
        let user = Client::User(UserId::new());
        assert_eq!(neighbourhood(user, true), user);
    }

    #[test]
    fn a_burst_of_twice_the_rate_then_429() {
        let per_client = NonZeroU32::new(5).unwrap();
        let limits = limits(per_client);
        let ann = Client::User(UserId::new());
        assert!((0..10).all(|_| limits.client(ann).is_ok()));
        let error = limits.client(ann).unwrap_err();
        assert_eq!((error.code, error.retry_after), (Code::RateLimited, Some(1)));
        assert!(limits.client(Client::User(UserId::new())).is_ok());
    }

    #[test]
    fn logins_by_minute() {
        let two = NonZeroU32::new(2).unwrap();
        let limits = limits(two);
        let here = address("192.0.2.1");
        assert!(limits.login(here).is_ok() && limits.login(here).is_ok());
        assert!(limits.login(here).unwrap_err().retry_after.unwrap() >= 29);
        assert!(limits.login(address("192.0.2.2")).is_ok());
    }

    #[test]
    fn permits_come_back() {
        let admission = Arc::new(Admission::default());
        let permits: Vec<_> = (0..3).map(|_| admission.admit(3).unwrap()).collect();
        assert!(admission.admit(3).is_none());
        drop(permits);
        assert!(admission.admit(1).is_some());
    }
}
