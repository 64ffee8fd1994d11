//! What the agent asks of its gateways: archives, builds, deployments, and that they take records. What one does not know,
//! or cannot do now, the next is asked. A few connections are kept for it, each call has a deadline.

use std::future::Future;
use std::io;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use chrono::{DateTime, Utc};
use common::digest::Digest;
use common::function::DeploymentSpec;
use common::ids::{DeploymentId, HolderId};
use common::invocation::Record;
use common::protocol::{Credential, DEPLOYMENT, Kind, Renewal, calls};
use http::header::{CONTENT_TYPE, HOST};
use http::{HeaderValue, Method, Request, Response, StatusCode};
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt as _, Empty, Full, Limited};
use hyper::body::Incoming;
use hyper::client::conn::http1::{self, SendRequest};
use hyper_util::rt::TokioIo;
use tokio::sync::Semaphore;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

mod transfer;

use super::dial::DialError;
use super::gateways::{Gateway, GatewayNumber, Gateways};

/// Most calls under way; others wait their turn.
const MAX_CALLS: usize = 8;
/// How long a small call may take, its turn included.
const CALL_DEADLINE: Duration = Duration::from_secs(10);
/// Largest answer that is not a file, in bytes.
const MAX_ANSWER_BYTES: usize = 1024 * 1024;
/// How much of a refusal's text is kept for the log, in bytes.
const MAX_REASON_BYTES: usize = 500;

/// A call failed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum CallError {
    /// Nobody to ask.
    #[error("no gateway is known")]
    NoGateway,
    /// No connection.
    #[error(transparent)]
    Dial(#[from] DialError),
    /// The connection broke.
    #[error("a call to the gateway broke off")]
    Broken(#[source] hyper::Error),
    /// It took too long.
    #[error("the gateway did not answer a call in time")]
    Deadline,
    /// An answer that is neither success nor 404.
    #[error("the gateway answered {status}: {reason}")]
    Refused {
        /// The status.
        status: u16,
        /// The beginning of its body.
        reason: String,
    },
    /// An answer that is none.
    #[error("the gateway's answer cannot be read: {0}")]
    Answer(String),
    /// The file is not what its digest says.
    #[error("the gateway sent a file that is not {0}")]
    Digest(Digest),
    /// The build is cut or changed.
    #[error("the gateway sent a build that is not whole")]
    Damaged,
    /// The file is larger than it may be.
    #[error("the gateway sent more than {0} bytes")]
    TooLarge(u64),
    /// The file on this machine cannot be read or written.
    #[error("a file on this node cannot be read or written")]
    File(#[source] io::Error),
}

impl CallError {
    /// Whether the file may come whole the next time.
    fn is_of_transfer(&self) -> bool {
        matches!(self, Self::Broken(_) | Self::Digest(_) | Self::Damaged)
    }
}

type CallBody = UnsyncBoxBody<Bytes, io::Error>;

/// A gateway, and which of its processes.
type Process = (GatewayNumber, u64);

/// The client.
pub(crate) struct Calls {
    gateways: Arc<Gateways>,
    /// By the process to which they lead: the one before knows nothing of what the next has placed here.
    idle: Mutex<Vec<(Process, SendRequest<CallBody>)>>,
    turns: Semaphore,
    tasks: TaskTracker,
    stop: CancellationToken,
}

impl Calls {
    /// A client that opens connections as it needs them.
    pub(crate) fn new(gateways: Arc<Gateways>) -> Arc<Self> {
        Arc::new(Self {
            gateways,
            idle: Mutex::new(Vec::new()),
            turns: Semaphore::new(MAX_CALLS),
            tasks: TaskTracker::new(),
            stop: CancellationToken::new(),
        })
    }

    /// Closes all connections.
    pub(crate) async fn close(&self) {
        self.stop.cancel();
        self.tasks.close();
        self.tasks.wait().await;
    }

    /// A deployment, or `None` when nothing serves it any more.
    pub(crate) async fn deployment(&self, id: DeploymentId) -> Result<Option<DeploymentSpec>, CallError> {
        within(CALL_DEADLINE, async {
            let path = calls::deployment(id);
            let answer = self.send(&|| Ok(request(Method::GET, &path, empty()))).await?;
            let Some(answer) = found(answer).await? else { return Ok(None) };
            let bytes = whole(answer).await?;
            serde_json::from_slice(&bytes).map(Some).map_err(|error| CallError::Answer(error.to_string()))
        })
        .await
    }

    /// Claims the right to build from a deployment's archive, or renews it; false while somebody else has it. An older
    /// gateway gives it to everybody.
    pub(crate) async fn claim(&self, of: DeploymentId, archive: Digest, holder: HolderId) -> Result<bool, CallError> {
        match self.about_claim(Method::PUT, of, archive, holder).await {
            Err(CallError::Refused { status: 409, .. }) => Ok(false),
            other => other.map(|()| true),
        }
    }

    /// Gives that right up.
    pub(crate) async fn give_up(&self, of: DeploymentId, archive: Digest, holder: HolderId) -> Result<(), CallError> {
        self.about_claim(Method::DELETE, of, archive, holder).await
    }

    async fn about_claim(
        &self,
        method: Method,
        of: DeploymentId,
        archive: Digest,
        holder: HolderId,
    ) -> Result<(), CallError> {
        within(CALL_DEADLINE, async {
            let path = calls::claim(archive, holder);
            let make = || {
                let mut request = request(method.clone(), &path, empty());
                request.headers_mut().insert(DEPLOYMENT, named(of));
                Ok(request)
            };
            found(self.send(&make).await?).await.map(drop)
        })
        .await
    }

    /// Hands over records.
    pub(crate) async fn post_records(&self, records: &[Record]) -> Result<(), CallError> {
        let json = Bytes::from(serde_json::to_vec(records).expect("a record has string keys only"));
        within(CALL_DEADLINE, async {
            let body = || Full::new(json.clone()).map_err(|never| match never {}).boxed_unsync();
            let post = || {
                let mut request = request(Method::POST, calls::RECORDS, body());
                request.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
                Ok(request)
            };
            found(self.send(&post).await?)
                .await?
                .map(|_| ())
                .ok_or_else(|| CallError::Refused { status: 404, reason: "this gateway takes no records".into() })
        })
        .await
    }

    /// What the gateway's clock says.
    pub(crate) async fn clock(&self) -> Result<DateTime<Utc>, CallError> {
        within(CALL_DEADLINE, async {
            let answer = self.send(&|| Ok(request(Method::GET, calls::CLOCK, empty()))).await?;
            let Some(answer) = found(answer).await? else {
                return Err(CallError::Refused { status: 404, reason: "this gateway is older".into() });
            };
            let bytes = whole(answer).await?;
            let time = DateTime::parse_from_rfc3339(&String::from_utf8_lossy(&bytes));
            time.map(Into::into).map_err(|error| CallError::Answer(error.to_string()))
        })
        .await
    }

    /// A certificate for the key of a signing request, of one of the authorities that this node trusts.
    pub(crate) async fn renew_certificate(
        &self,
        request: String,
        trusts: Vec<Digest>,
    ) -> Result<Credential, CallError> {
        let json = Bytes::from(serde_json::to_vec(&Renewal { request, trusts }).expect("a renewal is words"));
        within(CALL_DEADLINE, async {
            let body = || Full::new(json.clone()).map_err(|never| match never {}).boxed_unsync();
            let answer = self.send(&|| Ok(self::request(Method::POST, calls::CERTIFICATE, body()))).await?;
            let Some(answer) = found(answer).await? else {
                return Err(CallError::Refused { status: 404, reason: "this gateway gives no certificates".into() });
            };
            let bytes = whole(answer).await?;
            serde_json::from_slice(&bytes).map_err(|error| CallError::Answer(error.to_string()))
        })
        .await
    }

    /// Sends what `make` makes to one gateway after the other, until one does it. All calls may be repeated.
    async fn send(
        &self,
        make: &(dyn Fn() -> io::Result<Request<CallBody>> + Sync),
    ) -> Result<Response<Incoming>, CallError> {
        let _turn = self.turns.acquire().await.expect("the semaphore is never closed");
        let mut best = None;
        for gateway in self.gateways.order() {
            let answer = self.ask(&gateway, make).await;
            let says = says(&answer);
            if says == Says::Done {
                return answer;
            }
            if best.as_ref().is_none_or(|(before, _)| *before < says) {
                best = Some((says, answer));
            }
        }
        best.map_or(Err(CallError::NoGateway), |(_, answer)| answer)
    }

    /// Asks one gateway: on an idle connection first, and once more on a fresh one when that had gone stale.
    async fn ask(
        &self,
        gateway: &Gateway,
        make: &(dyn Fn() -> io::Result<Request<CallBody>> + Sync),
    ) -> Result<Response<Incoming>, CallError> {
        let process = gateway.process();
        if let Some(mut idle) = self.take_idle(process) {
            if let Ok(answer) = idle.send_request(make().map_err(CallError::File)?).await {
                self.keep(process, idle);
                return Ok(answer);
            }
        }
        let mut fresh = self.connect(gateway).await?;
        let answer = fresh.send_request(make().map_err(CallError::File)?).await.map_err(CallError::Broken)?;
        self.keep(process, fresh);
        Ok(answer)
    }

    async fn connect(&self, gateway: &Gateway) -> Result<SendRequest<CallBody>, CallError> {
        let stream = gateway.dialer.dial(Kind::Calls).await?;
        let (sender, connection) = http1::handshake(TokioIo::new(stream)).await.map_err(CallError::Broken)?;
        let stop = self.stop.clone();
        self.tasks.spawn(async move {
            tokio::select! {
                ended = connection => if let Err(error) = ended { tracing::debug!(%error, "a call connection ended") },
                () = stop.cancelled() => {}
            }
        });
        Ok(sender)
    }

    /// An idle connection is one whose last answer was read to its end; others are not ready and are dropped once
    /// they are closed.
    fn take_idle(&self, of: Process) -> Option<SendRequest<CallBody>> {
        let mut idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner);
        let is_former = |process: &Process| process.0 == of.0 && process.1 != of.1;
        idle.retain(|(process, sender)| !sender.is_closed() && !is_former(process));
        let ready = idle.iter().position(|(process, sender)| *process == of && sender.is_ready())?;
        Some(idle.swap_remove(ready).1)
    }

    fn keep(&self, of: Process, sender: SendRequest<CallBody>) {
        let mut idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner);
        idle.retain(|(_, sender)| !sender.is_closed());
        if idle.len() < MAX_CALLS {
            idle.push((of, sender));
        }
    }
}

/// What a gateway's answer means for a call that others could be asked for. Of several that did not do it, the greatest
/// says most: that one could not be asked is more than that another knows of nothing, and that more than that a third was
/// not the one who placed it here.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Says {
    NotYours,
    Unknown,
    Trouble,
    Done,
}

fn says(answer: &Result<Response<Incoming>, CallError>) -> Says {
    match answer.as_ref().map(Response::status) {
        Ok(StatusCode::FORBIDDEN) => Says::NotYours,
        Ok(StatusCode::NOT_FOUND) => Says::Unknown,
        Ok(status) if status.is_server_error() => Says::Trouble,
        // What is wrong with the call itself is so at every gateway.
        Ok(_) | Err(CallError::File(_)) => Says::Done,
        Err(_) => Says::Trouble,
    }
}

async fn within<T>(deadline: Duration, call: impl Future<Output = Result<T, CallError>>) -> Result<T, CallError> {
    timeout(deadline, call).await.unwrap_or(Err(CallError::Deadline))
}

fn named(deployment: DeploymentId) -> HeaderValue {
    HeaderValue::try_from(deployment.to_string()).expect("an id is a valid header value")
}

fn empty() -> CallBody {
    Empty::new().map_err(|never| match never {}).boxed_unsync()
}

fn request(method: Method, path: &str, body: CallBody) -> Request<CallBody> {
    let mut request = Request::new(body);
    *request.method_mut() = method;
    *request.uri_mut() = path.parse().expect("paths of calls are made of digests and ids");
    request.headers_mut().insert(HOST, HeaderValue::from_static("gateway"));
    request
}

/// All of an answer that is not a file.
async fn whole(answer: Response<Incoming>) -> Result<Bytes, CallError> {
    let body = Limited::new(answer.into_body(), MAX_ANSWER_BYTES).collect().await;
    body.map(|body| body.to_bytes()).map_err(|error| CallError::Answer(error.to_string()))
}

/// The answer of a success, `None` of a 404.
async fn found(answer: Response<Incoming>) -> Result<Option<Response<Incoming>>, CallError> {
    let status = answer.status();
    if status.is_success() {
        return Ok(Some(answer));
    }
    let reason = Limited::new(answer.into_body(), MAX_ANSWER_BYTES).collect().await;
    if status == StatusCode::NOT_FOUND {
        return Ok(None);
    }
    let reason = reason.map(|body| String::from_utf8_lossy(&body.to_bytes()).into_owned()).unwrap_or_default();
    let reason = reason.chars().take(MAX_REASON_BYTES).collect();
    Err(CallError::Refused { status: status.as_u16(), reason })
}
