//! Limits that hold over all gateways of a fleet, where `REDIS_URL` is set: rates and concurrency are leased from the
//! ledger there, some at a time. Without an answer each gateway goes on with its share of every limit, and counts that:
//! Redis fails no call.

use std::num::NonZeroU32;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;
use common::error::{Chain, PublicError};
use common::ids::FunctionId;
use common::settings::secret;
use prometheus::{IntCounter, IntCounterVec, IntGauge, Opts, Registry};
use tokio::runtime::Handle;
use tokio_util::sync::CancellationToken;

use super::limits::{Client, LimitArgs, Limits, login_limited, neighbourhood, rate_limited};
use super::routes::Route;

mod ledger;
mod rations;
mod slots;
#[cfg(test)]
mod tests;

use ledger::{Ledger, LedgerError};
use rations::Rations;
pub(crate) use slots::Slot;
use slots::{GIVES_BACK, Slots};

/// How often a gateway says that it is there, and looks whether the ledger is.
const PRESENT: Duration = Duration::from_secs(1);

/// Where the ledger is.
#[derive(Clone, Default, clap::Args)]
pub struct RedisArgs {
    /// Redis, so that limits hold over several gateways: `redis://[:password@]host[:port]`. Without it each gateway
    /// counts for itself.
    #[arg(long, env = "REDIS_URL", hide_env_values = true)]
    pub redis_url: Option<String>,
    /// A file that holds `REDIS_URL`.
    #[arg(long, env = "REDIS_URL_FILE")]
    pub redis_url_file: Option<PathBuf>,
}

impl std::fmt::Debug for RedisArgs {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("RedisArgs").field("redis_url_file", &self.redis_url_file).finish_non_exhaustive()
    }
}

/// What is held here of the limits of all gateways.
pub(crate) struct SharedLimits {
    ledger: Ledger,
    /// Where the ledger is asked from, so that a call that is cut off does not cut off its question.
    runtime: Handle,
    args: LimitArgs,
    clients: Rations,
    logins: Rations,
    slots: Slots,
    answers: AtomicBool,
    /// Whether it was ever asked.
    was_asked: AtomicBool,
    gateways: AtomicU32,
    /// What counts while the ledger does not answer.
    share: ArcSwap<Share>,
    metrics: Metrics,
}

/// This gateway's share of the rates.
struct Share {
    gateways: u32,
    limits: Limits,
}

struct Metrics {
    up: IntGauge,
    gateways: IntGauge,
    rate_leases: IntCounter,
    slot_leases: IntCounter,
    alone: IntCounter,
}

/// Why there are no shared limits.
#[derive(Debug, thiserror::Error)]
pub enum SharedLimitsError {
    /// The URL, or its file, cannot be used.
    #[error("REDIS_URL cannot be used: {0}; it looks like redis://:password@host:6379")]
    Url(String),
    /// Its metrics are there already.
    #[error("the metrics of shared limits cannot be registered")]
    Metrics(#[from] prometheus::Error),
}

impl RedisArgs {
    /// The limits that these settings ask for, if they name a Redis. Asks it for nothing yet.
    ///
    /// # Errors
    /// The URL is none, or its file cannot be read.
    pub(crate) fn open(
        &self,
        args: &LimitArgs,
        runtime: &Handle,
        registry: &Registry,
    ) -> Result<Option<Arc<SharedLimits>>, SharedLimitsError> {
        let url = secret(self.redis_url.as_deref(), "REDIS_URL", self.redis_url_file.as_deref());
        let Some(url) = url.map_err(SharedLimitsError::Url)? else { return Ok(None) };
        SharedLimits::new(&url, args, runtime, Metrics::register(registry)?).map(|shared| Some(Arc::new(shared)))
    }
}

impl Metrics {
    fn register(registry: &Registry) -> Result<Self, prometheus::Error> {
        let up = IntGauge::new("dartcloud_limits_redis_up", "1 while Redis answers, where limits are shared by it.")?;
        let gateways = IntGauge::new("dartcloud_limits_gateways", "Gateways that share the limits.")?;
        let alone = "Requests whose limit was this gateway's share, because Redis did not answer.";
        let alone = IntCounter::new("dartcloud_limits_alone_total", alone)?;
        let leases = Opts::new("dartcloud_limits_leases_total", "Questions to Redis for permits, by what they are of.");
        let leases = IntCounterVec::new(leases, &["of"])?;
        let (rate_leases, slot_leases) =
            (leases.with_label_values(&["rate"]), leases.with_label_values(&["concurrency"]));
        registry.register(Box::new(up.clone()))?;
        registry.register(Box::new(gateways.clone()))?;
        registry.register(Box::new(alone.clone()))?;
        registry.register(Box::new(leases))?;
        Ok(Self { up, gateways, rate_leases, slot_leases, alone })
    }
}

impl SharedLimits {
    fn new(url: &str, args: &LimitArgs, runtime: &Handle, metrics: Metrics) -> Result<Self, SharedLimitsError> {
        let _entered = runtime.enter();
        let ledger = Ledger::open(url).map_err(|error| SharedLimitsError::Url(Chain(&error).to_string()))?;
        let (per_client, logins) = (args.rate_limit_per_client.get(), args.rate_limit_login.get());
        Ok(Self {
            ledger,
            runtime: runtime.clone(),
            args: *args,
            clients: Rations::new("client", per_client, Duration::from_secs(1), per_client.saturating_mul(2)),
            logins: Rations::new("login", logins, Duration::from_secs(60), logins),
            slots: Slots::new(),
            answers: AtomicBool::new(false),
            was_asked: AtomicBool::new(false),
            gateways: AtomicU32::new(1),
            share: ArcSwap::from_pointee(Share { gateways: 1, limits: Limits::new(args) }),
            metrics,
        })
    }

    /// Counts a request of `client`.
    ///
    /// # Errors
    /// It is over its rate.
    pub(crate) async fn client(self: &Arc<Self>, client: Client) -> Result<(), PublicError> {
        match self.take(client, |shared| &shared.clients).await {
            Some(taken) => taken.map_err(rate_limited),
            None => self.share.load().limits.client(client),
        }
    }

    /// Counts an attempt of `client`, an address, to register, log in or refresh.
    ///
    /// # Errors
    /// It is over its rate.
    pub(crate) async fn login(self: &Arc<Self>, client: Client) -> Result<(), PublicError> {
        match self.take(client, |shared| &shared.logins).await {
            Some(taken) => taken.map_err(login_limited),
            None => self.share.load().limits.login(client),
        }
    }

    async fn take(self: &Arc<Self>, client: Client, of: fn(&Self) -> &Rations) -> Option<Result<(), Duration>> {
        let (shared, client) = (Arc::clone(self), neighbourhood(client, false));
        self.ask(async move {
            let may_ask = || shared.may_ask(&shared.metrics.rate_leases);
            of(&shared).take(client, &shared.ledger, may_ask).await
        })
        .await
    }

    /// The slot of a call of `route` among those of all gateways, and how many calls this gateway may have under way;
    /// `None` when all slots are taken. Without an answer there is no slot, and this gateway has its share.
    pub(crate) async fn hold(self: &Arc<Self>, route: &Route) -> Option<(Option<Slot>, u32)> {
        self.hold_of(route.spec.function, route.spec.limits.concurrency).await
    }

    async fn hold_of(self: &Arc<Self>, function: FunctionId, limit: u32) -> Option<(Option<Slot>, u32)> {
        let shared = Arc::clone(self);
        let taken = self.ask(async move {
            let may_ask = || shared.may_ask(&shared.metrics.slot_leases);
            shared.slots.take(function, limit, &shared.ledger, may_ask).await
        });
        match taken.await {
            Some(slot) => slot.map(|slot| (Some(slot), limit)),
            None => Some((None, share(limit, self.gateways.load(Ordering::Relaxed)))),
        }
    }

    /// Whether the ledger may be asked still; a question is counted.
    fn may_ask(&self, questions: &IntCounter) -> bool {
        let answers = self.answers.load(Ordering::Relaxed);
        questions.inc_by(answers.into());
        answers
    }

    /// What the ledger's answer made of it; `None`, counted, when there is none.
    async fn ask<T: Send + 'static>(
        &self,
        question: impl Future<Output = Result<T, LedgerError>> + Send + 'static,
    ) -> Option<T> {
        if !self.answers.load(Ordering::Relaxed) {
            self.metrics.alone.inc();
            return None;
        }
        // Mostly nothing has to be asked, and the first poll has the answer.
        let mut question = Box::pin(question);
        let answer = match futures_util::future::poll_immediate(&mut question).await {
            Some(answer) => Some(answer),
            None => self.runtime.spawn(question).await.ok(),
        };
        match answer? {
            Ok(answer) => Some(answer),
            Err(error) => {
                self.lost(&error);
                self.metrics.alone.inc();
                None
            }
        }
    }

    fn lost(&self, error: &LedgerError) {
        // Who was told not to ask knows nothing new.
        if matches!(error, LedgerError::Away) {
            return;
        }
        let is_first = !self.was_asked.swap(true, Ordering::Relaxed);
        if self.answers.swap(false, Ordering::Relaxed) || is_first {
            let gateways = self.gateways.load(Ordering::Relaxed);
            tracing::warn!(error = %Chain(error), gateways, "limits are this gateway's share until Redis answers");
        }
        self.metrics.up.set(0);
    }

    /// Says that this gateway is there, gives back what it does not need, and forgets who was silent, until `end`.
    pub(crate) async fn run(self: Arc<Self>, end: CancellationToken) {
        let present = async {
            loop {
                self.look().await;
                let now = Instant::now();
                self.clients.sweep(now);
                self.logins.sweep(now);
                self.share.load().limits.sweep();
                tokio::time::sleep(PRESENT).await;
            }
        };
        // Beside it: whatever holds this up, others hear that we are there.
        let give_back = async {
            loop {
                tokio::time::sleep(GIVES_BACK).await;
                if self.answers.load(Ordering::Relaxed) {
                    if let Err(error) = self.slots.give_back(&self.ledger).await {
                        self.lost(&error);
                    }
                }
            }
        };
        tokio::select! { () = present => {}, () = give_back => {}, () = end.cancelled() => {} }
    }

    async fn look(&self) {
        match self.ledger.present().await {
            Ok(gateways) => {
                if !self.answers.load(Ordering::Relaxed) {
                    self.slots.forget();
                    tracing::info!(gateways, "Redis answers: limits hold over all gateways");
                }
                self.was_asked.store(true, Ordering::Relaxed);
                self.answers.store(true, Ordering::Relaxed);
                self.metrics.up.set(1);
                self.metrics.gateways.set(gateways.into());
                self.gateways.store(gateways, Ordering::Relaxed);
                if self.share.load().gateways != gateways {
                    let limits = Limits::new(&shares(&self.args, gateways));
                    self.share.store(Arc::new(Share { gateways, limits }));
                }
            }
            Err(error) => self.lost(&error),
        }
    }
}

/// One gateway's share of a limit, at least 1. Pure.
fn share(limit: u32, gateways: u32) -> u32 {
    (limit / gateways.max(1)).max(1)
}

fn shares(args: &LimitArgs, gateways: u32) -> LimitArgs {
    let of = |limit: NonZeroU32| NonZeroU32::new(share(limit.get(), gateways)).unwrap_or(NonZeroU32::MIN);
    LimitArgs {
        rate_limit_per_client: of(args.rate_limit_per_client),
        rate_limit_login: of(args.rate_limit_login),
        ..*args
    }
}
