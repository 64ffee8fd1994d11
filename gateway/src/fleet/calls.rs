//! What agents ask of us: archives, builds, deployments, and that we take their records.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use common::conduit::Conduit;
use common::digest::Digest;
use common::error::Chain;
use common::function::DeploymentSpec;
use common::ids::{DeploymentId, HolderId, NodeId};
use common::invocation::Record;
use common::protocol::{DEPLOYMENT, Renewal, calls};
use common::runtime::Runtimes;
use futures_util::TryStreamExt as _;
use http::{HeaderValue, Method, Request, Response, StatusCode};
use http_body::Frame;
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt as _, Full, Limited, StreamBody};
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use store::Store;
use store::artifacts::{Artifact, Artifacts};
use store::claims::Claim;
use tokio::io::AsyncReadExt as _;
use tokio::time::timeout;
use tokio_util::io::ReaderStream;
use tokio_util::sync::CancellationToken;

use super::Fleet;
use super::enrolment::{Enrolment, Refusal};
use super::pass::Pass;
use crate::edge::routes::Routes;
use crate::hand_over::{Answer, Question, What};

/// How long a call's body may stand still.
const CHUNK_DEADLINE: Duration = Duration::from_secs(30);

/// Largest batch of records, in bytes. One record may hold a result of `MAX_RESPONSE_MB` in Base64.
const MAX_RECORDS_BYTES: usize = 64 * 1024 * 1024;

/// Largest request for a certificate, in bytes.
const MAX_RENEWAL_BYTES: usize = 16 * 1024;

/// Largest packed build, in bytes.
const MAX_BUILD_BYTES: u64 = 2 * 1024 * 1024 * 1024;

/// How much is read from a file at once, in bytes.
const READ_BYTES: usize = 64 * 1024;

type AnswerBody = UnsyncBoxBody<Bytes, std::io::Error>;

/// What the answers are made from.
pub(crate) struct Calls {
    pub(crate) store: Arc<dyn Store>,
    pub(crate) artifacts: Artifacts,
    pub(crate) routes: Arc<Routes>,
    pub(crate) fleet: Fleet,
    /// By which a build is known for what it is.
    pub(crate) runtimes: Arc<Runtimes>,
    /// How nodes of other machines get their certificates; `None` where there is no node port.
    pub(crate) enrolment: Option<Arc<Enrolment>>,
}

/// Whose calls they are.
pub(super) struct Asker {
    pub(super) node: NodeId,
    pub(super) pass: Arc<Pass>,
    /// Whether it is this machine's own agent, which could read the files themselves.
    pub(super) is_local: bool,
}

/// Why a call failed. The sentence goes to the agent's log.
#[derive(Debug, thiserror::Error)]
enum CallError {
    #[error("there is no such thing")]
    NotFound,
    #[error("there is no such call")]
    Unknown,
    #[error("the body is not what this call takes: {0}")]
    Invalid(String),
    #[error("it was not placed on this node")]
    NotPlaced,
    #[error("somebody else builds from this archive")]
    Taken,
    #[error("there is no certificate for this node")]
    Certificate(#[from] Refusal),
    #[error("the body stood still")]
    Slow,
    #[error("the body is over {0} bytes")]
    TooLarge(u64),
    #[error("the artifact store failed")]
    Artifacts(#[from] std::io::Error),
    #[error("the store failed")]
    Store(#[from] store::Error),
}

impl CallError {
    fn status(&self) -> StatusCode {
        match self {
            Self::NotFound | Self::Unknown => StatusCode::NOT_FOUND,
            Self::NotPlaced | Self::Certificate(Refusal::Removed) => StatusCode::FORBIDDEN,
            Self::Certificate(Refusal::Store(_) | Refusal::Late) => StatusCode::SERVICE_UNAVAILABLE,
            Self::Taken => StatusCode::CONFLICT,
            Self::Invalid(_) | Self::Certificate(_) => StatusCode::UNPROCESSABLE_ENTITY,
            Self::Slow => StatusCode::REQUEST_TIMEOUT,
            Self::TooLarge(_) => StatusCode::PAYLOAD_TOO_LARGE,
            Self::Store(store::Error::Unavailable(_)) => StatusCode::SERVICE_UNAVAILABLE,
            Self::Artifacts(_) | Self::Store(_) => StatusCode::INTERNAL_SERVER_ERROR,
        }
    }
}

impl Asker {
    /// Whether it may have what was placed on it.
    fn may(&self, is_placed: impl FnOnce(&Pass) -> bool) -> Result<(), CallError> {
        if self.is_local || is_placed(&self.pass) { Ok(()) } else { Err(CallError::NotPlaced) }
    }
}

impl Calls {
    /// Serves one connection to its end.
    pub(super) async fn serve(self: Arc<Self>, stream: Conduit, rest: BytesMut, asker: Asker, stop: CancellationToken) {
        let (read, write) = tokio::io::split(stream);
        let stream = tokio::io::join(std::io::Cursor::new(rest).chain(read), write);
        let gone = asker.pass.gone.clone();
        let asker = Arc::new(asker);
        let service = hyper::service::service_fn(move |request| {
            let (calls, asker) = (self.clone(), asker.clone());
            async move { Ok::<_, Infallible>(calls.answer(request, &asker).await) }
        });
        // An agent keeps its connections for as long as it lives: no deadline for the next head.
        let connection = http1::Builder::new()
            .timer(TokioTimer::new())
            .header_read_timeout(None)
            .serve_connection(TokioIo::new(stream), service);
        let mut connection = std::pin::pin!(connection);
        let ended = tokio::select! {
            ended = connection.as_mut() => ended,
            () = gone.cancelled() => return,
            () = stop.cancelled() => {
                connection.as_mut().graceful_shutdown();
                timeout(CHUNK_DEADLINE, connection).await.unwrap_or(Ok(()))
            }
        };
        if let Err(error) = ended {
            tracing::debug!(%error, "a call connection ended");
        }
    }

    async fn answer(&self, request: Request<Incoming>, asker: &Asker) -> Response<AnswerBody> {
        let path = request.uri().path().to_owned();
        match self.act(request, &path, asker).await {
            Ok(answer) => answer,
            Err(error) => {
                if error.status().is_server_error() || matches!(error, CallError::NotPlaced) {
                    tracing::warn!(node = %asker.node, path, error = %Chain(&error), "an agent's call failed");
                }
                text(error.status(), error.to_string())
            }
        }
    }

    async fn act(
        &self,
        request: Request<Incoming>,
        path: &str,
        asker: &Asker,
    ) -> Result<Response<AnswerBody>, CallError> {
        if request.method() == Method::POST && path == calls::RECORDS {
            return self.take_records(request.into_body(), asker).await;
        }
        if request.method() == Method::GET && path == calls::CLOCK {
            return Ok(text(StatusCode::OK, chrono::Utc::now().to_rfc3339()));
        }
        if request.method() == Method::POST && path == calls::CERTIFICATE {
            return self.renew(request.into_body(), asker).await;
        }
        if let (&Method::GET, Some(id)) = (request.method(), path.strip_prefix(calls::DEPLOYMENTS)) {
            let id = id.parse().map_err(|_| CallError::NotFound)?;
            let spec = self.permit(What::Deployment(id), asker).await?.ok_or(CallError::NotFound)?;
            return Ok(json(&spec));
        }
        let digest = |text: &str| text.parse::<Digest>().map_err(|_| CallError::NotFound);
        let of = |request: &Request<Incoming>| -> Option<DeploymentId> {
            request.headers().get(DEPLOYMENT).and_then(|id| id.to_str().ok()?.parse().ok())
        };
        if let (&Method::GET, Some(text)) = (request.method(), path.strip_prefix(calls::ARCHIVES)) {
            let archive = digest(text)?;
            self.permit(What::Archive(archive), asker).await?;
            return self.send(Artifact::Archive(archive)).await;
        }
        if let Some((text, holder)) = path.strip_prefix(calls::CLAIMS).and_then(|rest| rest.split_once('/')) {
            let (archive, deployment) = (digest(text)?, of(&request));
            let holder = holder.parse().map_err(|_| CallError::NotFound)?;
            self.permit(What::Build(deployment), asker).await?;
            self.permit(What::Archive(archive), asker).await?;
            return self.claim(request.method(), archive, holder).await;
        }
        if let Some(text) = path.strip_prefix(calls::BUILDS) {
            let build = digest(text)?;
            self.permit_build(of(&request), build, asker).await?;
            let artifact = Artifact::Build(build);
            match *request.method() {
                Method::GET => return self.send(artifact).await,
                Method::PUT => return self.keep(artifact, request.into_body()).await,
                _ => {}
            }
        }
        Err(CallError::Unknown)
    }

    /// Whether the asker may have something, and the version where it asks for that. What this gateway does not know, the
    /// one may whose place it has just taken.
    async fn permit(&self, what: What, asker: &Asker) -> Result<Option<DeploymentSpec>, CallError> {
        let refused = match self.known(what, asker) {
            Err(refused @ (CallError::NotFound | CallError::NotPlaced)) => refused,
            known => return known,
        };
        let Some(predecessor) = self.fleet.predecessor() else { return Err(refused) };
        let question = Question { node: asker.node, is_local: asker.is_local, what };
        match predecessor.ask(question).await {
            Some(Answer { may: true, spec }) => Ok(spec),
            _ => Err(refused),
        }
    }

    /// Whether the asker may fetch or store `build`, as a build of `deployment`: it is one of what was placed on it.
    async fn permit_build(
        &self,
        deployment: Option<DeploymentId>,
        build: Digest,
        asker: &Asker,
    ) -> Result<(), CallError> {
        if asker.is_local {
            return Ok(());
        }
        let deployment = deployment.ok_or(CallError::NotPlaced)?;
        let spec = self.permit(What::Deployment(deployment), asker).await?.ok_or(CallError::NotFound)?;
        let own = self.runtimes.build_digest(spec.archive, &spec.runtime, &spec.entrypoint);
        if own == Some(build) { Ok(()) } else { Err(CallError::NotPlaced) }
    }

    /// Whether this gateway knows that the asker may.
    fn known(&self, what: What, asker: &Asker) -> Result<Option<DeploymentSpec>, CallError> {
        match what {
            What::Deployment(id) => {
                asker.may(|pass| pass.has(id))?;
                self.deployment(id).map(Some)
            }
            What::Archive(archive) => {
                asker.may(|pass| pass.has_any(|id| self.archive_of(*id) == Some(archive))).map(|()| None)
            }
            What::Build(deployment) => asker.may(|pass| deployment.is_some_and(|id| pass.has(id))).map(|()| None),
        }
    }

    /// Answers a successor.
    pub(crate) fn know(&self, Question { node, is_local, what }: Question) -> Answer {
        let asker = Asker { node, pass: self.fleet.pass_of(node), is_local };
        let known = self.known(what, &asker);
        Answer { may: known.is_ok(), spec: known.ok().flatten() }
    }

    fn deployment(&self, id: DeploymentId) -> Result<DeploymentSpec, CallError> {
        let served = self.routes.now().by_deployment(id).map(|route| route.spec.clone());
        served.or_else(|| self.fleet.pending(id).map(|spec| (*spec).clone())).ok_or(CallError::NotFound)
    }

    /// The archive of a version that serves or is being built.
    fn archive_of(&self, id: DeploymentId) -> Option<Digest> {
        let served = self.routes.now().by_deployment(id).map(|route| route.spec.archive);
        served.or_else(|| self.fleet.pending(id).map(|spec| spec.archive))
    }

    async fn renew(&self, body: Incoming, asker: &Asker) -> Result<Response<AnswerBody>, CallError> {
        let enrolment = self.enrolment.as_ref().filter(|_| !asker.is_local).ok_or(CallError::Unknown)?;
        let body = timeout(CHUNK_DEADLINE, Limited::new(body, MAX_RENEWAL_BYTES).collect()).await;
        let bytes = body.map_err(|_| CallError::Slow)?.map_err(|error| CallError::Invalid(error.to_string()))?;
        let renewal: Renewal =
            serde_json::from_slice(&bytes.to_bytes()).map_err(|error| CallError::Invalid(error.to_string()))?;
        let has = self.fleet.roster().get(&asker.node).and_then(|node| node.authority);
        let credential = enrolment.renew(asker.node, has, &renewal).await?;
        let json = serde_json::to_vec(&credential).expect("a credential is words and numbers");
        Ok(Response::new(full(json.into())))
    }

    async fn take_records(&self, body: Incoming, asker: &Asker) -> Result<Response<AnswerBody>, CallError> {
        let body = timeout(CHUNK_DEADLINE, Limited::new(body, MAX_RECORDS_BYTES).collect()).await;
        let bytes = body.map_err(|_| CallError::Slow)?.map_err(|error| CallError::Invalid(error.to_string()))?;
        let mut records: Vec<Record> =
            serde_json::from_slice(&bytes.to_bytes()).map_err(|error| CallError::Invalid(error.to_string()))?;
        if !asker.is_local {
            // Of the node, too, the certificate has the last word.
            records.iter_mut().for_each(|record| record.node = asker.node);
        }
        self.store.insert_records(&records).await?;
        let mut answer = Response::new(full(Bytes::new()));
        *answer.status_mut() = StatusCode::NO_CONTENT;
        Ok(answer)
    }

    /// Lets one at a time build from an archive, of the nodes and of those that deploy it.
    async fn claim(
        &self,
        method: &Method,
        archive: Digest,
        holder: HolderId,
    ) -> Result<Response<AnswerBody>, CallError> {
        let claim = Claim::Archive(archive);
        match *method {
            Method::PUT => {
                if !self.store.claim(claim, holder.into(), calls::CLAIM_SECONDS).await? {
                    return Err(CallError::Taken);
                }
            }
            Method::DELETE => self.store.give_up(claim, holder.into()).await?,
            _ => return Err(CallError::Unknown),
        }
        let mut answer = Response::new(full(Bytes::new()));
        *answer.status_mut() = StatusCode::NO_CONTENT;
        Ok(answer)
    }

    async fn send(&self, artifact: Artifact) -> Result<Response<AnswerBody>, CallError> {
        let (file, length) = self.artifacts.read(artifact).await?.ok_or(CallError::NotFound)?;
        let chunks = ReaderStream::with_capacity(file.take(length), READ_BYTES);
        let mut answer = Response::new(StreamBody::new(chunks.map_ok(Frame::data)).boxed_unsync());
        answer.headers_mut().insert(http::header::CONTENT_LENGTH, length.into());
        Ok(answer)
    }

    async fn keep(&self, artifact: Artifact, mut body: Incoming) -> Result<Response<AnswerBody>, CallError> {
        let mut incoming = self.artifacts.begin().await?;
        while let Some(frame) = timeout(CHUNK_DEADLINE, body.frame()).await.map_err(|_| CallError::Slow)? {
            let frame = frame.map_err(|error| CallError::Invalid(error.to_string()))?;
            let Ok(data) = frame.into_data() else { continue };
            incoming.write(&data).await?;
            if incoming.len() > MAX_BUILD_BYTES {
                return Err(CallError::TooLarge(MAX_BUILD_BYTES));
            }
        }
        incoming.keep(artifact).await?;
        let mut answer = Response::new(full(Bytes::new()));
        *answer.status_mut() = StatusCode::CREATED;
        Ok(answer)
    }
}

fn json(spec: &DeploymentSpec) -> Response<AnswerBody> {
    let mut answer = Response::new(full(serde_json::to_vec(spec).expect("a spec has string keys only").into()));
    answer.headers_mut().insert(http::header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    answer
}

fn full(bytes: Bytes) -> AnswerBody {
    Full::new(bytes).map_err(|never| match never {}).boxed_unsync()
}

fn text(status: StatusCode, sentence: String) -> Response<AnswerBody> {
    let mut answer = Response::new(full(sentence.into()));
    *answer.status_mut() = status;
    answer
}
