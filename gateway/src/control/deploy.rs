//! `POST /api/functions/deploy`: the upload, its check, and the client that follows the rest, if it stays.

use std::sync::Arc;
use std::time::Duration;

use axum::Json;
use axum::extract::{FromRequestParts as _, Request, State as Extract};
use axum::response::sse::Event;
use axum::response::{IntoResponse, Response};
use common::archive;
use common::error::Code;
use common::ids::{InvocationId, UserId};
use futures_util::stream;
use http::StatusCode;
use http::header::ACCEPT;
use prometheus::{Histogram, HistogramOpts, IntCounterVec, Opts, Registry};
use store::artifacts::Incoming;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};
use tokio::task::{JoinError, JoinHandle};
use tokio::time::Instant;

use super::State;
use super::build_log::FOLLOWER_QUEUE;
use super::caller::Caller;
use super::error::{Failure, request_id};
use super::lanes::Lanes;
use super::plan::Plan;
use super::release::{Release, Released};
use super::request::Origin;
use super::sse;
use super::upload::{self, Upload};
use crate::edge::shares::{Share, Shares};

/// Deploys from the first byte of an upload to the answer, waiting ones included.
const MAX_DEPLOYS: usize = 64;
/// Those of one user.
const MAX_DEPLOYS_EACH: u32 = 8;
/// Archives that are checked at once.
const CHECKS: usize = 2;

/// How many deploys may be at each step, and how they ended.
pub(crate) struct Deploys {
    all: Arc<Semaphore>,
    shares: Arc<Shares<UserId>>,
    checking: Semaphore,
    /// A permit is a build.
    pub(crate) building: Semaphore,
    /// Whose turn it is.
    pub(crate) lanes: Lanes,
    outcomes: IntCounterVec,
    seconds: Histogram,
}

impl Deploys {
    /// Room for `builds` builds at once.
    pub(crate) fn new(builds: u32, registry: &Registry) -> Result<Self, prometheus::Error> {
        let outcomes = IntCounterVec::new(
            Opts::new("dartcloud_control_deploys_total", "Deploys of sound archives by how they ended"),
            &["outcome"],
        )?;
        let seconds = Histogram::with_opts(
            HistogramOpts::new("dartcloud_control_deploy_seconds", "Time from a sound archive to the deploy's end")
                .buckets(vec![0.1, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0, 900.0]),
        )?;
        registry.register(Box::new(outcomes.clone()))?;
        registry.register(Box::new(seconds.clone()))?;
        Ok(Self {
            all: Arc::new(Semaphore::new(MAX_DEPLOYS)),
            shares: Shares::new(MAX_DEPLOYS_EACH),
            checking: Semaphore::new(CHECKS),
            building: Semaphore::new(builds as usize),
            lanes: Lanes::default(),
            outcomes,
            seconds,
        })
    }

    /// Counts a deploy's end.
    pub(crate) fn observe(&self, took: Duration, result: Result<&Released, Code>) {
        let outcome = result.map_or_else(Code::word, |_| "active");
        self.outcomes.with_label_values(&[outcome]).inc();
        self.seconds.observe(took.as_secs_f64());
    }

    fn admit(&self, owner: UserId) -> Result<Ticket, Failure> {
        let yours = || Failure::new(Code::Busy, "you have as many deploys under way as you may: let one finish first");
        let share = self.shares.take(owner).ok_or_else(yours)?;
        let busy = |_| Failure::new(Code::Busy, "too many deploys at once: try again in a moment");
        let permit = Arc::clone(&self.all).try_acquire_owned().map_err(busy)?;
        Ok(Ticket { _permit: permit, _share: share })
    }
}

/// The right to one deploy.
struct Ticket {
    _permit: OwnedSemaphorePermit,
    _share: Share<UserId>,
}

/// The handler. All that is wrong with the request itself is an ordinary error answer; what comes after is the answer
/// or, for who accepts `text/event-stream`, a stream of the log with the answer at its end.
pub(crate) async fn deploy(Extract(state): Extract<Arc<State>>, request: Request) -> Result<Response, Failure> {
    let (mut parts, body) = request.into_parts();
    let id = request_id(&parts.extensions);
    let streams = sse::accepted(parts.headers.get(ACCEPT));
    let Ok(Origin(origin)) = Origin::from_request_parts(&mut parts, &state).await;
    let admitted = match Caller::from_request_parts(&mut parts, &state).await {
        Ok(Caller(owner)) => admit(&state, owner).map(|ticket| (owner, ticket)),
        Err(failure) => Err(failure),
    };
    let request = Request::from_parts(parts, body);
    let (owner, ticket) = match admitted {
        Ok(admitted) => admitted,
        Err(failure) => return Err(upload::refuse(request, failure).await),
    };
    let Upload { name, settings, archive } =
        upload::receive(request, &state.artifacts, state.caps.archive_bytes()).await?;
    let deadline = Instant::now() + state.args.deploy_timeout();
    let (archive, contents) = checked(&state, archive).await?;
    let plan = Plan::new(&contents, settings, &state.runtimes, &state.ceilings)?;
    drop(contents);
    let place = state.deploys.lanes.enter((owner, name.clone())).map_err(|full| {
        Failure::caused(Code::Conflict, "too many deploys of this function wait already: let them finish first", full)
    })?;
    let base = state.base_url(&origin).to_owned();
    let release = Release { state: Arc::clone(&state), request: id, owner, name, plan, archive, base, place, deadline };
    let (follower, lines) = mpsc::channel(FOLLOWER_QUEUE);
    // The client only follows from here on: when it leaves, the deploy goes on.
    let job = state.tasks.spawn(async move {
        let _ticket = ticket;
        release.run(follower).await
    });
    if streams { Ok(sse::answer(follow(lines, job, id))) } else { ended(job.await).map(IntoResponse::into_response) }
}

fn admit(state: &State, owner: UserId) -> Result<Ticket, Failure> {
    if state.stop.is_cancelled() {
        return Err(Failure::new(Code::Stopping, "the platform is restarting: deploy again in a moment"));
    }
    state.deploys.admit(owner)
}

/// Checks an archive on a thread that may block; it is not unpacked.
async fn checked(state: &State, archive: Incoming) -> Result<(Incoming, archive::Contents), Failure> {
    let gone = |cause: JoinError| Failure::caused(Code::Internal, "the archive could not be checked", cause);
    // The semaphore is never closed, so this waits and does not fail.
    let _permit = state.deploys.checking.acquire().await;
    let caps = state.caps;
    let check = move || {
        let file = std::fs::File::open(archive.path()).map_err(Failure::disk)?;
        let contents = archive::check(std::io::BufReader::new(file), &caps)
            .map_err(|refused| Failure::new(Code::BadArchive, refused.to_string()))?;
        Ok((archive, contents))
    };
    tokio::task::spawn_blocking(check).await.map_err(gone)?
}

type Job = JoinHandle<Result<Released, Failure>>;

fn ended(job: Result<Result<Released, Failure>, JoinError>) -> Result<(StatusCode, Json<Released>), Failure> {
    let gone = |cause| Failure::caused(Code::Internal, "the deploy broke off: the platform's log has the cause", cause);
    let released = job.map_err(gone)??;
    let status = if released.is_first_deployment { StatusCode::CREATED } else { StatusCode::OK };
    Ok((status, Json(released)))
}

/// `event: log` for each line, then `event: result` or `event: error` with the JSON of the plain answer.
fn follow(lines: mpsc::Receiver<String>, job: Job, id: InvocationId) -> impl stream::Stream<Item = Event> + Send {
    stream::unfold(Some((lines, job)), move |following| async move {
        let (mut lines, job) = following?;
        if let Some(line) = lines.recv().await {
            return Some((Event::default().event("log").data(line), Some((lines, job))));
        }
        let last = match ended(job.await) {
            Ok((_, Json(released))) => sse::json("result", &released),
            Err(failure) => {
                failure.log(id);
                Event::default().event("error").data(String::from_utf8_lossy(&failure.body(id)))
            }
        };
        Some((last, None))
    })
}
