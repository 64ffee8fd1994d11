//! One call of a function, from the request on a work connection to its answer: the request is read, a sandbox
//! leased, the function run, the record written to the spool, and only then the answer given. So it is under the file
//! contract; a call of a server goes its own way, in [`streamed`], and one that runs once however often it comes makes a
//! detour through [`once`].

use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use chrono::{DateTime, Utc};
use common::error::Chain;
use common::error::{Code, PublicError};
use common::function::{Contract, DeploymentSpec};
use common::ids::{DeploymentId, InvocationId, NodeId};
use common::invocation::{ExecutionError, Outcome, Record};
use common::phases::{Phases, micros};
use common::protocol::TOOK_US;
use common::settings::BodyLimits;
use http::{HeaderName, Request, Response, request as http_request};
use http_body_util::{BodyExt as _, LengthLimitError, Limited};
use hyper::body::{Body, Incoming};
use tokio::time::timeout;
use tokio_util::task::TaskTracker;
use tracing::Instrument as _;

use crate::answers::Answers;
use crate::build::Builds;
use crate::deployments::{Deployments, LookupError};
use crate::link::AnswerBody;
use crate::metrics::Metrics;
use crate::sandbox::{Exit, How, Lease, Sandboxes};
use crate::server::Servers;
use crate::spool::Spool;

mod answer;
mod bodies;
mod entire;
mod once;
mod order;
mod phases;
mod pump;
mod record;
mod request;
mod result;
mod stale;
mod story;
mod streamed;
mod trouble;

pub(crate) use answer::whole;
use answer::{refusal, respond};
pub(crate) use bodies::BodiesArgs;
use bodies::{Bodies, NoRoom, Room};
use entire::Entire;
pub(crate) use order::Form;
use order::Order;
pub(crate) use phases::PhaseMetrics;
use record::{Begun, Ran};
use request::Handed;
use result::{Reply, Verdict};
use stale::Stale;
pub(crate) use stale::StaleArgs;
use streamed::Arrival;

/// How long a request's body may take; the gateway has its own, shorter patience with clients.
const BODY_DEADLINE: Duration = Duration::from_secs(300);

/// How long the body of a request is read that is refused before.
const REFUSED_BODY: Duration = Duration::from_secs(3);

/// What invocations need.
pub(crate) struct Parts {
    pub(crate) node: NodeId,
    pub(crate) bodies: BodyLimits,
    pub(crate) held: BodiesArgs,
    pub(crate) stale: StaleArgs,
    pub(crate) deployments: Arc<Deployments>,
    pub(crate) builds: Arc<Builds>,
    pub(crate) sandboxes: Arc<Sandboxes>,
    pub(crate) servers: Arc<Servers>,
    pub(crate) spool: Arc<Spool>,
    pub(crate) answers: Arc<Answers>,
    pub(crate) metrics: Arc<Metrics>,
}

/// Runs invocations.
pub(crate) struct Invocations {
    parts: Parts,
    held: Bodies,
    stale: Stale,
    tasks: TaskTracker,
}

/// A call whose request was read.
struct Call {
    order: Order,
    spec: Arc<DeploymentSpec>,
    handed: Handed,
    room: Room,
    arrived: DateTime<Utc>,
    clock: Instant,
}

/// What a call came to, its record written.
struct Done {
    outcome: Outcome,
    /// Whether the function had its chance to see the call.
    is_handed_over: bool,
    answer: Result<Reply, PublicError>,
    phases: Phases,
}

impl Invocations {
    pub(crate) fn new(parts: Parts) -> Arc<Self> {
        let (held, stale) = (Bodies::new(parts.held), Stale::new(parts.stale));
        Arc::new(Self { parts, held, stale, tasks: TaskTracker::new() })
    }

    /// Answers a call. Once its request is read, it runs and is recorded whether or not anybody waits for the
    /// answer.
    pub(crate) async fn answer(self: &Arc<Self>, request: Request<Incoming>) -> Response<AnswerBody> {
        let arrival = (Instant::now(), Utc::now());
        let order = match Order::of(request.headers()) {
            Ok(order) => order,
            Err(reason) => {
                tracing::error!(reason, "an order that this version does not know");
                let error = PublicError::new(Code::Internal, "This node does not know such an order");
                return refusal(&error, "", None).map(whole);
            }
        };
        let mut response = match order.once {
            None => self.answer_each_time(order, request, arrival).await,
            Some(key) => once::answer(self, order, key, request, arrival).await.map(whole),
        };
        // So that the gateway can tell our time from the link's.
        response.headers_mut().insert(HeaderName::from_static(TOOK_US), micros(arrival.0.elapsed()).into());
        response
    }

    async fn answer_each_time(
        self: &Arc<Self>,
        order: Order,
        request: Request<Incoming>,
        arrival: Arrival,
    ) -> Response<AnswerBody> {
        let spec = match self.parts.deployments.get(order.deployment).await {
            Ok(spec) => spec,
            Err(error) => {
                // So that the refusal reaches a gateway that is still sending.
                drop(timeout(REFUSED_BODY, self.read(request.into_body())).await);
                return refusal(&unknown(&error), &order.id.to_string(), None).map(whole);
            }
        };
        match stale::Wish::of(&order, &spec, &request) {
            Some(wish) => stale::answer(self, wish, order, spec, request, arrival).await,
            None => self.answer_by_contract(order, spec, request, arrival).await,
        }
    }

    async fn answer_by_contract(
        self: &Arc<Self>,
        order: Order,
        spec: Arc<DeploymentSpec>,
        request: Request<Incoming>,
        arrival: Arrival,
    ) -> Response<AnswerBody> {
        match spec.contract {
            Contract::Http { .. } => streamed::answer(self, order, spec, request, arrival).await,
            Contract::File => self.answer_by_files(order, spec, request, arrival).await.map(whole),
        }
    }

    async fn answer_by_files(
        self: &Arc<Self>,
        order: Order,
        spec: Arc<DeploymentSpec>,
        request: Request<Incoming>,
        arrival: Arrival,
    ) -> Response<Bytes> {
        let (head, body) = request.into_parts();
        match self.read(body).await {
            Ok((body, room)) => self.run_by_files(Entire { order, spec, head, body, room, arrival }).await,
            Err(error) => self.unreadable(&error, order.id),
        }
    }

    /// The whole body, and the memory that it takes.
    async fn read(&self, body: Incoming) -> Result<(Bytes, Room), PublicError> {
        let mut room = self.held.room();
        let body = read_body(room.counting(body), &self.parts.bodies).await?;
        Ok((body, room))
    }

    /// The answer to a request that nothing can be run for.
    fn unreadable(&self, error: &PublicError, id: InvocationId) -> Response<Bytes> {
        if error.code == Code::NoSandbox {
            return refusal(error, &id.to_string(), None);
        }
        self.parts.metrics.invocations.with_label_values(&[Outcome::BadRequest.word()]).inc();
        refusal(error, &id.to_string(), Some(Outcome::BadRequest))
    }

    async fn run_by_files(self: &Arc<Self>, call: Entire) -> Response<Bytes> {
        let Entire { order, spec, head, body, mut room, arrival: (clock, arrived) } = call;
        let id = order.id;
        // What the function gets may be several times as large.
        let fitted = hand(&head, &body, &order, arrived).and_then(|handed| match room.fit(handed.json.len()) {
            Ok(()) => Ok(handed),
            Err(full) => Err(full.public()),
        });
        drop(body);
        let handed = match fitted {
            Ok(handed) => handed,
            Err(error) => return self.unreadable(&error, id),
        };
        let call = Call { order, spec, handed, room, arrived, clock };
        let invocations = Arc::clone(self);
        let span = tracing::info_span!("invocation", request_id = %id);
        let run = self.tasks.spawn(async move { invocations.run(call).await }.instrument(span));
        match run.await {
            Ok(Ok(done)) => respond(done, id),
            Ok(Err(error)) => refusal(&error, &id.to_string(), None),
            Err(_) => refusal(&panicked(), &id.to_string(), None),
        }
    }

    /// The deployment gets no more calls.
    pub(crate) fn forget(&self, deployment: DeploymentId) {
        self.stale.forget(deployment);
    }

    /// Waits until no call runs.
    pub(crate) async fn finish(&self) {
        self.tasks.close();
        self.tasks.wait().await;
    }

    async fn run(self: Arc<Self>, call: Call) -> Result<Done, PublicError> {
        let read = Instant::now();
        let (id, form, clock) = (call.order.id, call.order.form, call.clock);
        let (Handed { json, info }, spec, _room) = (call.handed, call.spec, call.room);
        let phases = call.order.phases;
        let mut begun = Begun { id, node: self.parts.node, spec: &spec, info, arrived: call.arrived, phases };
        let mut lease = match self.lease(&spec, id).await {
            Ok(lease) => lease,
            Err((outcome, failure)) => {
                begun.phases.queue_us = Some(micros(read.elapsed()));
                return self.fail(begun, outcome, failure, clock);
            }
        };
        let leased = Instant::now();
        phases::waited(&mut begun.phases, leased - read, &lease);
        let cap = self.parts.bodies.response_bytes();
        let (exit, room) = match run_function(&mut lease, &spec, &json, cap, &self.held).await {
            Ok(ran) => ran,
            Err(failure) => {
                begun.phases.fn_us = Some(micros(leased.elapsed()));
                return self.fail(begun, Outcome::Crashed, failure, clock);
            }
        };
        begun.phases.fn_us = Some(micros(exit.duration));
        // The next call may have the sandbox while this one's record is written.
        drop(lease);
        let verdict = result::judge(&exit, form, &spec.limits, cap);
        let (took, now) = (clock.elapsed(), Utc::now());
        let record = record::of_run(begun, &Ran { exit: &exit, verdict: &verdict }, took, now);
        self.keep(&record, took)?;
        let Verdict { outcome, answer, .. } = verdict;
        let answer = answer.map(|reply| Reply { body: room.around(reply.body), ..reply });
        let is_handed_over = !matches!(exit.how, How::SpawnFailed(_));
        Ok(Done { outcome, is_handed_over, answer, phases: record.phases })
    }

    async fn lease(&self, spec: &Arc<DeploymentSpec>, id: InvocationId) -> Result<Lease, (Outcome, ExecutionError)> {
        let failed = |error: &(dyn std::error::Error + 'static), is_of_function| {
            tracing::warn!(error = %Chain(error), deployment = %spec.deployment, "no sandbox for a call");
            let (outcome, code) = match is_of_function {
                true => (Outcome::Unstartable, Code::FunctionCrashed),
                false => (Outcome::NoSandbox, Code::NoSandbox),
            };
            let message = format!("No sandbox could be had: {error}");
            (outcome, ExecutionError { phase: "sandbox".to_owned(), message, code: code.word().to_owned() })
        };
        let build = self.parts.builds.ready(spec, id).await;
        let build = build.map_err(|error| failed(&error, error.is_of_function()))?;
        let lease = self.parts.sandboxes.lease(spec, build).await;
        lease.map_err(|error| failed(&error, error.is_of_function()))
    }

    fn fail(
        &self,
        begun: Begun<'_>,
        outcome: Outcome,
        failure: ExecutionError,
        clock: Instant,
    ) -> Result<Done, PublicError> {
        let took = clock.elapsed();
        let public = match outcome {
            Outcome::NoSandbox => PublicError::new(Code::NoSandbox, "No sandbox is free on this node; try again"),
            Outcome::Unstartable => trouble::unstartable(),
            _ => PublicError::new(Code::NodeLost, "The function's sandbox was lost during the call; it may have run"),
        };
        let record = record::of_failure(begun, outcome, failure, took);
        self.keep(&record, took)?;
        let is_handed_over = !matches!(outcome, Outcome::NoSandbox | Outcome::Unstartable);
        Ok(Done { outcome, is_handed_over, answer: Err(public), phases: record.phases })
    }

    /// Writes the record to the spool. Without that there is no answer: who got one must find its record.
    fn keep(&self, record: &Record, took: Duration) -> Result<(), PublicError> {
        self.parts.metrics.invocations.with_label_values(&[record.outcome.word()]).inc();
        self.parts.metrics.invocation_seconds.observe(took.as_secs_f64());
        self.parts.metrics.phases.observe(&record.phases);
        self.parts.spool.append(record).map_err(|error| {
            let error = Chain(&error);
            tracing::error!(%error, "a call's record could not be written");
            PublicError::new(
                Code::Internal,
                "The call ran, but its record could not be written; the node's log has the cause",
            )
        })
    }
}

/// Runs the function; the lease keeps the deadline. Its result stays its own until there is memory for it here.
async fn run_function(
    lease: &mut Lease,
    spec: &DeploymentSpec,
    json: &[u8],
    cap: usize,
    held: &Bodies,
) -> Result<(Exit, Room), ExecutionError> {
    let lost = |error: &(dyn std::error::Error + 'static)| {
        tracing::warn!(error = %Chain(error), deployment = %spec.deployment, "a sandbox was lost during a call");
        let message = format!("Function execution failed: {error}");
        ExecutionError { phase: "execution".to_owned(), message, code: Code::NodeLost.word().to_owned() }
    };
    let finished = lease.run(json).await.map_err(|gone| lost(&gone))?;
    let room = held.wait_for_answer_room(finished.result_bytes(cap)).await.map_err(|full| lost(&full))?;
    let exit = lease.settle(finished, cap).map_err(|gone| lost(&gone))?;
    Ok((exit, room))
}

fn panicked() -> PublicError {
    PublicError::new(Code::Internal, "The node failed at this call; its log has the cause")
}

fn unknown(error: &LookupError) -> PublicError {
    match error {
        LookupError::Gone => PublicError::new(Code::NotFound, "There is no such function"),
        LookupError::Call(_) => {
            let error = Chain(error);
            tracing::warn!(%error, "a call of a deployment that could not be looked up");
            PublicError::new(Code::NoSandbox, "This node does not know the function yet; try again")
        }
    }
}

fn hand(head: &http_request::Parts, body: &[u8], order: &Order, now: DateTime<Utc>) -> Result<Handed, PublicError> {
    match order.form {
        Form::Http => request::from_http(head, body, order.id, now),
        Form::Envelope => request::from_envelope(head, body, order.id, now),
    }
}

async fn read_body<B>(body: B, limits: &BodyLimits) -> Result<Bytes, PublicError>
where
    B: Body,
    B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
{
    let collected = timeout(BODY_DEADLINE, Limited::new(body, limits.request_bytes()).collect()).await;
    match collected {
        Ok(Ok(body)) => Ok(body.to_bytes()),
        Ok(Err(error)) if error.is::<LengthLimitError>() => {
            let text = format!("The request body is larger than {} MiB", limits.max_request_mb);
            Err(PublicError::new(Code::TooLarge, text))
        }
        Ok(Err(error)) => Err(match error.downcast_ref::<NoRoom>() {
            Some(full) => full.public(),
            None => PublicError::new(Code::BadRequest, "The request body ended early"),
        }),
        Err(_) => Err(PublicError::new(Code::RequestTimeout, "The request body came too slowly")),
    }
}
