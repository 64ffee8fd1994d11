//! `GET /api/functions/{id}/logs`: the records of a function's calls, newest first, or as they come.

use std::collections::{HashSet, VecDeque};
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use axum::Json;
use axum::extract::State as Extract;
use axum::response::sse::Event;
use axum::response::{IntoResponse, Response};
use common::error::Code;
use common::ids::{InvocationId, UserId};
use common::invocation::{Logs, Outcome, Record, RequestInfo};
use futures_util::stream::{self, Stream};
use prometheus::IntGauge;
use serde::Serialize;
use store::{RecordPage, RecordQuery};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::Instant;

use super::State;
use super::auth::rfc3339;
use super::caller::Caller;
use super::error::Failure;
use super::functions::owned;
use super::request::{Key, Parameters};
use super::sse;
use crate::edge::shares::{Share, Shares};

/// Pages that are read at once; each may have 2 MiB, and as much again as an answer.
pub(crate) const MAX_LOG_READS: usize = 4;
/// Followers at once; each asks the store once a second.
const MAX_FOLLOWERS: usize = 64;
/// Followers of one user.
const MAX_FOLLOWERS_EACH: u32 = 4;
/// How long one follower may stay.
const FOLLOW_LIFETIME: Duration = Duration::from_secs(60 * 60);
/// The pause between two looks at the store.
const FOLLOW_PAUSE: Duration = Duration::from_secs(1);
/// Records of one look's first query.
const FOLLOW_PAGE: u32 = 250;
/// Queries of one look, when calls come faster than one page a second; each answer has 2 MiB at most.
const FOLLOW_PAGES: usize = 4;
/// Every so many looks one goes back as far as a call may have begun whose record still comes.
const DEEP_EVERY: u32 = 5;
/// What a call may take beside its time limit until its record is in the store: its upload, its wait for a sandbox,
/// and the record's way.
const RECORD_SLACK: Duration = Duration::from_secs(4 * 60);

/// A record as its owner sees it.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Entry {
    id: InvocationId,
    status: &'static str,
    success: bool,
    outcome: &'static str,
    duration_ms: u32,
    cold: bool,
    peak_memory_bytes: u64,
    /// Decoded.
    error: Option<String>,
    logs: Logs,
    request_info: RequestInfo,
    created_at: String,
}

impl From<Record> for Entry {
    fn from(record: Record) -> Self {
        let success = record.outcome == Outcome::Success;
        Self {
            id: record.id,
            status: if success { "success" } else { "error" },
            success,
            outcome: record.outcome.word(),
            duration_ms: record.duration_ms,
            cold: record.cold,
            peak_memory_bytes: record.peak_memory_bytes,
            error: record.error.map(decoded),
            logs: record.logs,
            request_info: record.request_info,
            created_at: rfc3339(record.created_at),
        }
    }
}

/// The text behind Base64; what is not Base64 is shown as it is.
pub(super) fn decoded(text: String) -> String {
    match common::base64::decode(&text) {
        Ok(bytes) => String::from_utf8_lossy(&bytes).into_owned(),
        Err(_) => text,
    }
}

#[derive(Serialize)]
struct Page {
    logs: Vec<Entry>,
    /// The `before` of the next page; `null` on the last one.
    next: Option<InvocationId>,
}

/// The room that followers share.
pub(crate) struct Followers {
    room: Arc<Semaphore>,
    shares: Arc<Shares<UserId>>,
    gauge: IntGauge,
}

impl Followers {
    /// Nobody yet.
    pub(crate) fn new(registry: &prometheus::Registry) -> Result<Self, prometheus::Error> {
        let gauge = IntGauge::new("dartcloud_control_log_followers", "Clients that follow a function's log")?;
        registry.register(Box::new(gauge.clone()))?;
        Ok(Self { room: Arc::new(Semaphore::new(MAX_FOLLOWERS)), shares: Shares::new(MAX_FOLLOWERS_EACH), gauge })
    }

    fn admit(&self, owner: UserId) -> Result<Seat, Failure> {
        let yours = || Failure::new(Code::Busy, "you follow logs with as many clients as you may: end one of them");
        let share = self.shares.take(owner).ok_or_else(yours)?;
        let full = |_| Failure::new(Code::Busy, "too many clients follow logs: try again in a moment");
        let permit = Arc::clone(&self.room).try_acquire_owned().map_err(full)?;
        self.gauge.inc();
        Ok(Seat { gauge: self.gauge.clone(), _permit: permit, _share: share })
    }
}

struct Seat {
    gauge: IntGauge,
    _permit: OwnedSemaphorePermit,
    _share: Share<UserId>,
}

impl Drop for Seat {
    fn drop(&mut self) {
        self.gauge.dec();
    }
}

/// The handler.
pub(crate) async fn logs(
    Extract(state): Extract<Arc<State>>,
    Caller(owner): Caller,
    Key(key): Key,
    parameters: Parameters,
) -> Result<Response, Failure> {
    let parameters = parameters.only(&["limit", "before", "status", "follow"])?;
    let limit = parameters.limit()?;
    let before = parameters.get("before", "the id of a call: the `next` of the page before")?;
    let success = parameters.choose("status", "`success` or `error`", |text| match text {
        "success" => Some(true),
        "error" => Some(false),
        _ => None,
    })?;
    let follow = parameters.get::<bool>("follow", "`true` or `false`")?.unwrap_or(false);
    if follow && before.is_some() {
        return Err(Failure::new(Code::Invalid, "the parameters `before` and `follow` exclude each other"));
    }
    let function = owned(&state, owner, &key).await?;
    let query = RecordQuery { owner, function: function.id, limit, before, success };
    if follow {
        let seat = state.followers.admit(owner)?;
        let timeout = function.active.map_or(0, |active| active.spec.limits.timeout_ms);
        let events = follow_from(state, query, Duration::from_millis(timeout.into()), seat).await?;
        return Ok(sse::answer(events));
    }
    // Until the answer is made: what is read and what is made of it are large at the same time.
    let _turn = state.log_reads.acquire().await;
    let RecordPage { records, more } = state.store.records(query).await?;
    let next = records.last().filter(|_| more).map(|last| last.id);
    Ok(Json(Page { logs: records.into_iter().map(Entry::from).collect(), next }).into_response())
}

/// A page, when it is its turn.
async fn read(state: &State, query: RecordQuery) -> Result<RecordPage, store::Error> {
    // The semaphore is never closed, so this waits and does not fail.
    let _turn = state.log_reads.acquire().await;
    state.store.records(query).await
}

/// A client that follows: what it has seen, and what is found but not sent yet.
struct Follow {
    state: Arc<State>,
    query: RecordQuery,
    /// Of what is younger than `floor`.
    seen: HashSet<InvocationId>,
    /// What is older is not new, whatever it is.
    floor: InvocationId,
    /// How long after a call has begun its record may still come.
    reach: Duration,
    looks: u32,
    found: VecDeque<Record>,
    ends: Instant,
    _seat: Seat,
}

/// `event: invocation` for each record: first the last `limit` ones, oldest first, then each as it reaches the store.
async fn follow_from(
    state: Arc<State>,
    query: RecordQuery,
    timeout: Duration,
    seat: Seat,
) -> Result<impl Stream<Item = Event> + Send, Failure> {
    let mut follow = Follow {
        seen: HashSet::new(),
        floor: oldest_of(timeout + RECORD_SLACK),
        reach: timeout + RECORD_SLACK,
        looks: 0,
        found: VecDeque::new(),
        ends: Instant::now() + FOLLOW_LIFETIME,
        query,
        state,
        _seat: seat,
    };
    let (old, whole) = follow.newest(|page, floor| page.last().is_some_and(|last| last.id < floor)).await?;
    if !whole {
        follow.floor = old.last().map_or(follow.floor, |last| last.id);
    }
    // In this order: what comes between the two is shown.
    let shown = read(&follow.state, query).await?.records;
    follow.seen.extend(old.iter().chain(&shown).map(|record| record.id));
    follow.found.extend(shown.into_iter().rev());
    Ok(stream::unfold(follow, |mut follow| async {
        loop {
            if Instant::now() >= follow.ends {
                return None;
            }
            if let Some(record) = follow.found.pop_front() {
                let event = sse::json("invocation", &Entry::from(record));
                return Some((event, follow));
            }
            tokio::select! {
                () = tokio::time::sleep(FOLLOW_PAUSE) => {}
                () = follow.state.close.cancelled() => return None,
                () = tokio::time::sleep_until(follow.ends) => return None,
            }
            if let Err(error) = follow.look().await {
                tracing::debug!(%error, "a follower's look at the store failed: it looks again");
            }
        }
    }))
}

/// The id of a call that began so long ago.
fn oldest_of(age: Duration) -> InvocationId {
    let then = SystemTime::now() - age;
    let millis = then.duration_since(UNIX_EPOCH).map_or(0, |since| since.as_millis());
    uuid::Builder::from_unix_timestamp_millis(u64::try_from(millis).unwrap_or(u64::MAX), &[0; 10]).into_uuid().into()
}

impl Follow {
    /// Finds what is new. Records reach the store late and out of order: the one of a call that took long has an early
    /// id, and many may have come before it. So now and then it looks back as far as such a call can have begun.
    async fn look(&mut self) -> Result<(), store::Error> {
        self.looks += 1;
        self.floor = self.floor.max(oldest_of(self.reach));
        let mut newest = if self.looks % DEEP_EVERY == 0 {
            let (newest, whole) = self.newest(|page, floor| page.last().is_some_and(|last| last.id < floor)).await?;
            if let Some(last) = newest.last().filter(|_| !whole) {
                // Further back than it came no look comes.
                self.floor = last.id;
            }
            self.seen.retain(|id| *id >= self.floor);
            newest
        } else {
            self.newest(|page, _| page.iter().any(|record| self.seen.contains(&record.id))).await?.0
        };
        newest.retain(|record| record.id >= self.floor && !self.seen.contains(&record.id));
        newest.reverse();
        self.seen.extend(newest.iter().map(|record| record.id));
        self.found.extend(newest);
        Ok(())
    }

    /// The newest records up to the first page that is `last`, given the floor; and whether there was one, or no more.
    async fn newest(
        &self,
        last: impl Fn(&[Record], InvocationId) -> bool,
    ) -> Result<(Vec<Record>, bool), store::Error> {
        let (mut newest, mut before) = (Vec::new(), None);
        for _ in 0..FOLLOW_PAGES {
            let query = RecordQuery { limit: FOLLOW_PAGE, before, ..self.query };
            let page = read(&self.state, query).await?;
            before = page.records.last().map(|record| record.id);
            let whole = !page.more || last(&page.records, self.floor);
            newest.extend(page.records);
            if whole {
                return Ok((newest, true));
            }
        }
        Ok((newest, false))
    }
}
