//! `stale_while_cold_ms`: a function may ask that a GET which would have to wait for its start gets the last answer at
//! once, while the call itself runs in the background and replaces that answer. Only what anyone may see is kept, in
//! memory and for a version alone: an answer never outlives its version, or the agent.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use bytes::Bytes;
use common::function::{Contract, DeploymentSpec};
use common::ids::{DeploymentId, InvocationId};
use common::invocation::Outcome;
use common::phases::Phases;
use common::protocol::{OUTCOME, TIMING, TOOK_US};
use common::stream::names_websocket;
use futures_util::stream;
use http::header::{AGE, CACHE_CONTROL, PRAGMA, RANGE, SET_COOKIE, VARY};
use http::{HeaderMap, HeaderName, HeaderValue, Method, Request, Response, StatusCode, request as http_request};
use http_body_util::{BodyExt as _, StreamBody};
use hyper::body::{Body, Frame, Incoming};

use super::answer::ORIGINAL_REQUEST;
use super::entire::{self, Entire};
use super::request::CREDENTIALS;
use super::streamed::Arrival;
use super::{Form, Invocations, Order, whole};
use crate::link::{AnswerBody, Cut};

/// How much is kept.
#[derive(Clone, Copy, Debug, clap::Args)]
pub struct StaleArgs {
    /// Memory for answers that are kept for functions with `stale_while_cold_ms`, in MiB; beyond it the oldest go.
    #[arg(long, env = "STALE_MAX_MB", default_value_t = 32, value_parser = clap::value_parser!(u32).range(1..=65_536))]
    pub stale_max_mb: u32,
}

/// Largest body that is kept, in bytes.
const MAX_BODY_BYTES: u64 = 1024 * 1024;
/// What an answer takes beside its parts, in bytes: generously, so that empty ones are bounded, too.
const OVERHEAD_BYTES: usize = 512;
const X_DARTCLOUD_STALE: HeaderName = HeaderName::from_static("x-dartcloud-stale");

/// A request that an answer of before would do for.
pub(super) struct Wish {
    key: Key,
    /// How old that may be.
    limit: Duration,
}

/// A version, and the path with its query.
type Key = (DeploymentId, Box<str>);

impl Wish {
    pub(super) fn of<B: Body>(order: &Order, spec: &DeploymentSpec, request: &Request<B>) -> Option<Self> {
        let limit = Duration::from_millis(spec.stale_while_cold_ms.into());
        let is_one = !limit.is_zero()
            && order.form == Form::Http
            && request.method() == Method::GET
            && request.body().is_end_stream()
            && is_anyones(request.headers());
        let target = request.uri().path_and_query()?.as_str();
        is_one.then(|| Self { key: (spec.deployment, target.into()), limit })
    }
}

/// Whether a request is one that anybody might send, and that takes any answer.
fn is_anyones(headers: &HeaderMap) -> bool {
    let wants_fresh = names(headers, CACHE_CONTROL, &["no-cache", "no-store", "max-age=0"]);
    let is_special = wants_fresh || headers.contains_key(PRAGMA) || headers.contains_key(RANGE);
    !is_special && !names_websocket(headers) && CREDENTIALS.iter().all(|name| !headers.contains_key(*name))
}

/// Whether an answer is one that anybody may see.
fn may_be_kept(status: StatusCode, headers: &HeaderMap) -> bool {
    let is_success = headers.get(OUTCOME).is_some_and(|word| word == Outcome::Success.word());
    let forbids = names(headers, CACHE_CONTROL, &["private", "no-store", "no-cache", "must-revalidate"]);
    is_success
        && status == StatusCode::OK
        && !forbids
        && !headers.contains_key(SET_COOKIE)
        && !headers.contains_key(VARY)
}

/// Whether a list header has one of these words, with or without a value of its own.
fn names(headers: &HeaderMap, name: HeaderName, words: &[&str]) -> bool {
    let bare = |item: &str, word: &str| {
        let item = item.trim();
        item.eq_ignore_ascii_case(word) || item.split('=').next().is_some_and(|head| head.eq_ignore_ascii_case(word))
    };
    headers.get_all(name).iter().any(|value| {
        // What cannot be read may say anything.
        value.to_str().map_or(true, |text| text.split(',').any(|item| words.iter().any(|word| bare(item, word))))
    })
}

/// Answers a call that an answer of before would do for.
pub(super) async fn answer(
    invocations: &Arc<Invocations>,
    wish: Wish,
    order: Order,
    spec: Arc<DeploymentSpec>,
    request: Request<Incoming>,
    arrival: Arrival,
) -> Response<AnswerBody> {
    let (stale, id) = (&invocations.stale, order.id);
    let is_warming = stale.lock().warming.contains(&spec.deployment);
    if is_warming || is_cold(invocations, &spec) {
        let kept = stale.lock().get(&wish, Instant::now());
        if let Some(kept) = kept {
            invocations.parts.metrics.stale_answers.inc();
            warm_up(invocations, wish, order, spec, request.into_parts().0, arrival);
            return kept.map(whole);
        }
    }
    let response = invocations.answer_by_contract(order, spec, request, arrival).await;
    let small = response.body().size_hint().exact().is_some_and(|bytes| bytes <= MAX_BODY_BYTES);
    if !small || !may_be_kept(response.status(), response.headers()) {
        return response;
    }
    let (head, body) = response.into_parts();
    // It is all there, as its size was known, so this waits for nothing.
    match body.collect().await {
        Ok(body) => {
            let response = Response::from_parts(head, body.to_bytes());
            stale.lock().put(wish.key, id, &response, Instant::now());
            response.map(whole)
        }
        Err(cut) => {
            let frames = stream::iter([Err::<Frame<Bytes>, Cut>(cut)]);
            Response::from_parts(head, StreamBody::new(frames).boxed_unsync())
        }
    }
}

fn is_cold(invocations: &Invocations, spec: &DeploymentSpec) -> bool {
    match spec.contract {
        Contract::File => !invocations.parts.sandboxes.has(spec.deployment),
        Contract::Http { .. } => !invocations.parts.servers.has(spec.deployment),
    }
}

/// Runs the call itself, unless another one of its version does that already. It has an id and a record of its own: who
/// got the answer of before is not the one that it runs for.
fn warm_up(
    invocations: &Arc<Invocations>,
    wish: Wish,
    order: Order,
    spec: Arc<DeploymentSpec>,
    head: http_request::Parts,
    arrival: Arrival,
) {
    let deployment = spec.deployment;
    if !invocations.stale.lock().warming.insert(deployment) {
        return;
    }
    let own = Arc::clone(invocations);
    invocations.tasks.spawn(async move {
        let id = InvocationId::new();
        let order = Order { id, phases: Phases::default(), ..order };
        let warming = Warming { invocations: &own, deployment };
        let call = Entire { order, spec, head, body: Bytes::new(), room: own.held.room(), arrival };
        let response = entire::answer(&own, call).await;
        if response.body().len() as u64 <= MAX_BODY_BYTES && may_be_kept(response.status(), response.headers()) {
            own.stale.lock().put(wish.key, id, &response, Instant::now());
        }
        drop(warming);
    });
}

/// A version whose sandbox is started for an answer of before.
struct Warming<'a> {
    invocations: &'a Invocations,
    deployment: DeploymentId,
}

impl Drop for Warming<'_> {
    fn drop(&mut self) {
        self.invocations.stale.lock().warming.remove(&self.deployment);
    }
}

/// The answers of before.
pub(super) struct Stale(Mutex<Shelf>);

struct Shelf {
    max_bytes: usize,
    answers: HashMap<Key, Entry>,
    /// In the order in which they came.
    ages: BTreeMap<u64, Key>,
    next: u64,
    bytes: usize,
    /// Versions whose sandboxes are being started for an answer of before.
    warming: HashSet<DeploymentId>,
}

struct Entry {
    age: u64,
    since: Instant,
    bytes: usize,
    /// The call that it was the answer to.
    id: InvocationId,
    answer: Response<Bytes>,
}

impl Stale {
    pub(super) fn new(args: StaleArgs) -> Self {
        Self(Mutex::new(Shelf::new(args.stale_max_mb as usize * 1024 * 1024)))
    }

    /// A version gets no more calls.
    pub(super) fn forget(&self, deployment: DeploymentId) {
        let mut shelf = self.lock();
        let gone: Vec<_> = shelf.answers.keys().filter(|(of, _)| *of == deployment).cloned().collect();
        for key in gone {
            shelf.remove(&key);
        }
    }

    fn lock(&self) -> MutexGuard<'_, Shelf> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Shelf {
    fn new(max_bytes: usize) -> Self {
        let (answers, ages, warming) = (HashMap::new(), BTreeMap::new(), HashSet::new());
        Self { max_bytes, answers, ages, next: 0, bytes: 0, warming }
    }

    /// An answer that does for `wish`, and says how old it is.
    fn get(&self, wish: &Wish, now: Instant) -> Option<Response<Bytes>> {
        let kept = self.answers.get(&wish.key)?;
        let age = now.saturating_duration_since(kept.since);
        if age > wish.limit {
            return None;
        }
        let mut answer = kept.answer.clone();
        let headers = answer.headers_mut();
        headers.insert(AGE, age.as_secs().into());
        headers.insert(X_DARTCLOUD_STALE, HeaderValue::from_static("cold"));
        let id = HeaderValue::try_from(kept.id.to_string()).expect("a UUID is a valid header value");
        headers.insert(ORIGINAL_REQUEST, id);
        headers.insert(TIMING, HeaderValue::from_static("stale;desc=\"cold\""));
        Some(answer)
    }

    fn put(&mut self, key: Key, id: InvocationId, answer: &Response<Bytes>, now: Instant) {
        self.remove(&key);
        let mut answer = answer.clone();
        // Its bytes may be a small part of what was read.
        *answer.body_mut() = Bytes::copy_from_slice(answer.body());
        answer.headers_mut().remove(TIMING);
        answer.headers_mut().remove(TOOK_US);
        let lines: usize = answer.headers().iter().map(|(name, value)| name.as_str().len() + value.len()).sum();
        let bytes = OVERHEAD_BYTES + key.1.len() + lines + answer.body().len();
        let age = self.next;
        self.next += 1;
        self.bytes += bytes;
        self.ages.insert(age, key.clone());
        self.answers.insert(key, Entry { age, since: now, bytes, id, answer });
        while self.bytes > self.max_bytes {
            let Some((_, oldest)) = self.ages.pop_first() else { break };
            self.remove(&oldest);
        }
    }

    fn remove(&mut self, key: &Key) {
        if let Some(kept) = self.answers.remove(key) {
            self.ages.remove(&kept.age);
            self.bytes -= kept.bytes;
        }
    }
}

#[cfg(test)]
#[path = "stale_tests.rs"]
mod tests;
