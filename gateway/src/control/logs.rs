//! `GET /api/functions/{id}/logs`: the records of a function's calls, newest first, or as they come.

use std::collections::{HashSet, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use axum::Json;
use axum::extract::State as Extract;
use axum::response::sse::Event;
use axum::response::{IntoResponse, Response};
use common::error::Code;
use common::ids::InvocationId;
use common::invocation::{Logs, Outcome, Record, RequestInfo};
use futures_util::stream::{self, Stream};
use prometheus::IntGauge;
use serde::Serialize;
use store::RecordQuery;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::Instant;

use super::State;
use super::auth::rfc3339;
use super::caller::Caller;
use super::error::Failure;
use super::functions::owned;
use super::request::{Key, Parameters};
use super::sse;

/// Followers at once; each asks the store once a second.
const MAX_FOLLOWERS: usize = 64;
/// How long one follower may stay.
const FOLLOW_LIFETIME: Duration = Duration::from_secs(60 * 60);
/// The pause between two looks at the store.
const FOLLOW_PAUSE: Duration = Duration::from_secs(1);
/// Records of one look's first query.
const FOLLOW_PAGE: u32 = 50;
/// Queries of one look, when calls come faster than one page a second.
const FOLLOW_PAGES: usize = 20;

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
fn decoded(text: String) -> String {
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
    gauge: IntGauge,
}

impl Followers {
    /// Nobody yet.
    pub(crate) fn new(registry: &prometheus::Registry) -> Result<Self, prometheus::Error> {
        let gauge = IntGauge::new("dartcloud_control_log_followers", "Clients that follow a function's log")?;
        registry.register(Box::new(gauge.clone()))?;
        Ok(Self { room: Arc::new(Semaphore::new(MAX_FOLLOWERS)), gauge })
    }

    fn admit(&self) -> Result<Seat, Failure> {
        let full = |_| Failure::new(Code::Busy, "too many clients follow logs: try again in a moment");
        let permit = Arc::clone(&self.room).try_acquire_owned().map_err(full)?;
        self.gauge.inc();
        Ok(Seat { gauge: self.gauge.clone(), _permit: permit })
    }
}

struct Seat {
    gauge: IntGauge,
    _permit: OwnedSemaphorePermit,
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
    let function = owned(&state, owner, &key).await?.id;
    let query = RecordQuery { owner, function, limit, before, success };
    if follow {
        let seat = state.followers.admit()?;
        return Ok(sse::answer(follow_from(state, query, seat).await?));
    }
    // One more than asked for tells whether there is a next page.
    let mut records = state.store.records(RecordQuery { limit: limit + 1, ..query }).await?;
    let more = records.len() > limit as usize;
    records.truncate(limit as usize);
    let next = records.last().filter(|_| more).map(|last| last.id);
    Ok(Json(Page { logs: records.into_iter().map(Entry::from).collect(), next }).into_response())
}

/// A client that follows: what it has seen, and what is found but not sent yet.
struct Follow {
    state: Arc<State>,
    query: RecordQuery,
    seen: HashSet<InvocationId>,
    found: VecDeque<Record>,
    ends: Instant,
    _seat: Seat,
}

/// `event: invocation` for each record: first the last `limit` ones, oldest first, then each as it reaches the store.
async fn follow_from(
    state: Arc<State>,
    query: RecordQuery,
    seat: Seat,
) -> Result<impl Stream<Item = Event> + Send, Failure> {
    let records = state.store.records(query).await?;
    let follow = Follow {
        seen: records.iter().map(|record| record.id).collect(),
        found: records.into_iter().rev().collect(),
        ends: Instant::now() + FOLLOW_LIFETIME,
        query,
        state,
        _seat: seat,
    };
    Ok(stream::unfold(follow, |mut follow| async {
        loop {
            if let Some(record) = follow.found.pop_front() {
                let event = sse::json("invocation", &Entry::from(record));
                return Some((event, follow));
            }
            tokio::select! {
                () = tokio::time::sleep(FOLLOW_PAUSE) => {}
                () = follow.state.stop.cancelled() => return None,
                () = tokio::time::sleep_until(follow.ends) => return None,
            }
            if let Err(error) = follow.look().await {
                tracing::debug!(%error, "a follower's look at the store failed: it looks again");
            }
        }
    }))
}

impl Follow {
    /// Finds what is new. Records reach the store late and out of order, so what is new is what was not among the
    /// newest at the last look, and not what has the highest id.
    async fn look(&mut self) -> Result<(), store::Error> {
        let mut newest = Vec::new();
        let mut before = None;
        for _ in 0..FOLLOW_PAGES {
            let query = RecordQuery { limit: FOLLOW_PAGE, before, ..self.query };
            let page = self.state.store.records(query).await?;
            before = page.last().map(|record| record.id);
            let whole = page.len() == FOLLOW_PAGE as usize;
            let met = page.iter().any(|record| self.seen.contains(&record.id));
            newest.extend(page);
            if met || !whole {
                break;
            }
        }
        let ids = newest.iter().map(|record| record.id).collect();
        newest.reverse();
        newest.retain(|record| !self.seen.contains(&record.id));
        self.seen = ids;
        self.found.extend(newest);
        Ok(())
    }
}
