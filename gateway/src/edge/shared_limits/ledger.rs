//! The ledger that all gateways of a fleet keep in Redis: what rate clients have used, how many calls of a function each
//! gateway may have under way, and which gateways there are. Every entry ends by itself.

use std::time::Duration;

use common::ids::FunctionId;
use redis::aio::{ConnectionManager, ConnectionManagerConfig};
use redis::{Client, RedisError, Script};
use uuid::Uuid;

/// How long Redis may take to answer, and to be connected to: a call waits as long, once.
const ANSWERS_WITHIN: Duration = Duration::from_millis(100);
const CONNECTS_WITHIN: Duration = Duration::from_millis(500);
/// Longest pause before it is dialled again.
const MAX_PAUSE: Duration = Duration::from_secs(1);

/// For how long a gateway that says nothing keeps what it holds.
const SILENCE: Duration = Duration::from_secs(5);
/// After which time a function's entry goes that nobody touched: longer than any call may take.
const FORGOTTEN: Duration = Duration::from_secs(2 * 60 * 60);

/// The generic cell rate algorithm, for many permits at once. Times are microseconds of Redis' own clock, so that those
/// of the gateways do not matter.
const TAKE: &str = r"
local time = redis.call('TIME')
local now = time[1] * 1000000 + time[2]
local interval, burst, wanted = tonumber(ARGV[1]), tonumber(ARGV[2]), tonumber(ARGV[3])
local due = math.max(tonumber(redis.call('GET', KEYS[1]) or 0), now)
local free = math.floor((now + burst * interval - due) / interval)
if free < 1 then
  return {0, math.ceil(due + interval - burst * interval - now)}
end
local taken = math.min(free, wanted)
due = due + taken * interval
redis.call('SET', KEYS[1], string.format('%.3f', due), 'PX', math.ceil((due - now) / 1000) + 1)
return {taken, 0}
";

/// A gateway's claim on a function's concurrency, in place of the one before: as much as others leave of it.
const HOLD: &str = r"
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local me, wanted, limit = ARGV[1], tonumber(ARGV[2]), tonumber(ARGV[3])
local entries = redis.call('HGETALL', KEYS[1])
for i = 1, #entries, 2 do
  if entries[i] ~= me then
    local seen = redis.call('ZSCORE', KEYS[2], entries[i])
    if seen and tonumber(seen) > now - ARGV[4] then
      limit = limit - entries[i + 1]
    else
      redis.call('HDEL', KEYS[1], entries[i])
    end
  end
end
local held = math.max(0, math.min(wanted, limit))
if held == 0 then
  redis.call('HDEL', KEYS[1], me)
else
  redis.call('HSET', KEYS[1], me, held)
  redis.call('PEXPIRE', KEYS[1], ARGV[5])
end
return held
";

/// A gateway says that it is there, and hears how many are.
const PRESENT: &str = r"
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
redis.call('ZADD', KEYS[1], now, ARGV[1])
redis.call('ZREMRANGEBYSCORE', KEYS[1], '-inf', now - ARGV[2])
redis.call('PEXPIRE', KEYS[1], ARGV[2])
return redis.call('ZCARD', KEYS[1])
";

/// The set of gateways.
const GATEWAYS: &str = "dartcloud:gateways";

/// The ledger says nothing.
#[derive(Debug, thiserror::Error)]
pub(crate) enum LedgerError {
    /// Redis does not answer, or not what was asked.
    #[error("Redis does not answer")]
    Silent(#[from] RedisError),
    /// It did not a moment ago, so nobody asks.
    #[error("Redis did not answer a moment ago")]
    Away,
}

/// A rate, as Redis counts it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Pace {
    /// Time for one permit, in microseconds.
    pub(crate) interval_us: f64,
    /// Most permits at once.
    pub(crate) burst: u32,
}

/// What became of a wish for permits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Taken {
    /// So many; at least one.
    Permits(u32),
    /// None, until then.
    Wait(Duration),
}

/// A connection to the ledger, which mends itself.
pub(crate) struct Ledger {
    connection: ConnectionManager,
    take: Script,
    hold: Script,
    present: Script,
    /// This gateway, for as long as it runs.
    me: String,
}

impl Ledger {
    /// A ledger at `url`; connects when it is first asked. Must be called within a runtime.
    ///
    /// # Errors
    /// It is no URL of Redis.
    pub(crate) fn open(url: &str) -> Result<Self, LedgerError> {
        let config = ConnectionManagerConfig::new()
            .set_response_timeout(Some(ANSWERS_WITHIN))
            .set_connection_timeout(Some(CONNECTS_WITHIN))
            .set_number_of_retries(0)
            .set_max_delay(MAX_PAUSE);
        let connection = ConnectionManager::new_lazy_with_config(Client::open(url)?, config)?;
        let [take, hold, present] = [TAKE, HOLD, PRESENT].map(Script::new);
        Ok(Self { connection, take, hold, present, me: Uuid::now_v7().simple().to_string() })
    }

    /// Takes up to `wanted` permits of `client`'s rate.
    ///
    /// # Errors
    /// Redis does not answer; it may have counted them.
    pub(crate) async fn take(&self, client: &str, pace: Pace, wanted: u32) -> Result<Taken, LedgerError> {
        let mut call = self.take.key(format!("dartcloud:rate:{client}"));
        call.arg(pace.interval_us).arg(pace.burst).arg(wanted);
        let (taken, wait_us): (u32, u64) = call.invoke_async(&mut self.connection.clone()).await?;
        Ok(if taken > 0 { Taken::Permits(taken) } else { Taken::Wait(Duration::from_micros(wait_us)) })
    }

    /// Claims `wanted` of the `limit` calls that a function may have under way, in place of what this gateway claimed
    /// before; the answer is how many it may have.
    ///
    /// # Errors
    /// Redis does not answer; the claim may stand.
    pub(crate) async fn hold(&self, function: FunctionId, wanted: u32, limit: u32) -> Result<u32, LedgerError> {
        let mut call = self.hold.key(format!("dartcloud:calls:{function}"));
        call.key(GATEWAYS).arg(&self.me).arg(wanted).arg(limit).arg(millis(SILENCE)).arg(millis(FORGOTTEN));
        Ok(call.invoke_async(&mut self.connection.clone()).await?)
    }

    /// Says that this gateway is there; how many there are, this one included. Call it more often than every
    /// [`SILENCE`].
    ///
    /// # Errors
    /// Redis does not answer.
    pub(crate) async fn present(&self) -> Result<u32, LedgerError> {
        let mut call = self.present.key(GATEWAYS);
        call.arg(&self.me).arg(millis(SILENCE));
        Ok(call.invoke_async(&mut self.connection.clone()).await?)
    }
}

fn millis(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}
