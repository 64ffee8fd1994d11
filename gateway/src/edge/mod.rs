//! The edge: what every request meets on its way in. [`Edge::steps`] is the list.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use common::digest::Digest;
use common::error::{Code, PublicError};
use common::function::Access;
use common::ids::{InvocationId, UserId};
use common::protocol::{FORM_ENVELOPE, FORM_HTTP};
use http::header::{AUTHORIZATION, CONTENT_TYPE};
use http::request::Parts;
use http::uri::PathAndQuery;
use http::{HeaderValue, Method, Request, Response, Uri, Version};
use http_body_util::{Either, Full};
use hyper::body::Incoming;
use hyper::upgrade::OnUpgrade;
use tokio_util::task::TaskTracker;

use crate::fleet::Fleet;
use crate::fleet::stock::NodeLink;
use crate::metrics::{Kind, Metrics};

pub(crate) mod body;
pub(crate) mod body_room;
pub(crate) mod control_call;
mod forward;
mod gate;
mod http2;
pub(crate) mod identity;
pub(crate) mod limits;
pub(crate) mod listener;
mod once;
pub(crate) mod peer;
pub mod placement;
mod prompt;
pub(crate) mod proxies;
mod receipt;
pub(crate) mod routes;
pub(crate) mod seats;
pub(crate) mod sessions;
pub(crate) mod shared_limits;
pub(crate) mod shares;
pub(crate) mod stopwatch;
pub(crate) mod stream;
pub(crate) mod tls;
mod verified;

use body::{AnswerBody, ClientBody};
use body_room::BodyRoom;
use control_call::ControlCalls;
use forward::Invocation;
use identity::{Denied, Identity};
use limits::{Client, Limits, Permit};
use peer::Peer;
use receipt::{Answer, Receipt};
use routes::{Route, Routes, Target};
use stream::Streaming;

/// The id of the request, in the extensions of every request of the control API.
#[derive(Clone, Copy, Debug)]
pub(crate) struct RequestId(pub(crate) InvocationId);

/// All that a request meets.
pub(crate) struct Edge {
    pub(crate) routes: Arc<Routes>,
    pub(crate) identity: Arc<Identity>,
    pub(crate) limits: Arc<Limits>,
    pub(crate) fleet: Fleet,
    pub(crate) control: ControlCalls,
    pub(crate) metrics: Arc<Metrics>,
    /// Calls whose client went away.
    pub(crate) tasks: TaskTracker,
    /// Where the bodies of calls become whole.
    pub(crate) room: Arc<BodyRoom>,
    /// Largest body of a call, in bytes.
    pub(crate) max_request_bytes: u64,
    /// Largest upload to the control API, in bytes.
    pub(crate) max_upload_bytes: u64,
    /// Set while the gateway stops: clients are asked to go elsewhere.
    pub(crate) draining: AtomicBool,
    /// Set before that, if a successor has its place: then nobody who is silent is hurried.
    pub(crate) to_successor: Arc<AtomicBool>,
}

/// A function, and how it is called.
struct Call {
    route: Arc<Route>,
    target: Uri,
    form: &'static str,
    /// Set for a real request to a server.
    streaming: Option<Streaming>,
    /// What an `Idempotency-Key` makes of it.
    once: Option<Box<Digest>>,
    /// Whom the rate counts for.
    client: Client,
}

impl Edge {
    /// Answers one request.
    pub(crate) async fn answer(&self, peer: &Peer, request: Request<Incoming>) -> Response<AnswerBody> {
        let mut receipt = Receipt::begin(&self.metrics, request.method().clone());
        let behind = peer.behind(request.headers());
        // HTTP/2 has a word of its own for it.
        let closes = request.version() != Version::HTTP_2;
        let result = self.steps(behind.as_ref().unwrap_or(peer), request, &mut receipt).await;
        receipt.finish(result, closes && self.draining.load(Ordering::Acquire))
    }

    async fn steps(
        &self,
        peer: &Peer,
        request: Request<Incoming>,
        receipt: &mut Receipt<'_>,
    ) -> Result<Answer, PublicError> {
        let (mut parts, body) = request.into_parts();
        let mut body = ClientBody::new(body, &parts.headers, self.max_request_bytes, forward::UPLOAD_DEADLINE);
        // What can be said of a request before its body is read. A refusal lets the client finish sending first.
        let upgrade = gate::wants_websocket(&parts);
        let admitted = gate::admit(&mut parts, &peer.address_text, peer.scheme);
        let decided = admitted.and_then(|()| self.decide(peer, &mut parts, receipt));
        let decided = match decided.and_then(|decision| decision.stream(peer, &mut parts, upgrade)) {
            Ok(decision) => self.admit_shared(&decision).await.map(|()| decision),
            refused => refused,
        };
        let decision = match decided {
            // A refusal counts, too: else guessing names and tokens would cost nothing.
            Err(error) if error.code != Code::RateLimited => {
                Err(self.limits.client(Client::Address(peer.address)).err().unwrap_or(error))
            }
            Ok(Decision::Call(Call { streaming: None, .. })) if body.is_declared_too_large() => {
                Err(body::too_large(self.max_request_bytes))
            }
            decided => decided,
        };
        match decision {
            Err(error) => {
                receipt.watch.refused();
                body.discard().await;
                Err(error)
            }
            Ok(Decision::Home) => Ok(Answer::Own(home())),
            Ok(Decision::Control { client, .. }) => {
                parts.extensions.insert(RequestId(receipt.id));
                body.allow(self.max_upload_bytes, control_call::UPLOAD_DEADLINE);
                self.control.answer(client, parts, body).await.map(Answer::Control)
            }
            Ok(Decision::Call(call)) => self.call(call, parts, body, receipt).await,
        }
    }

    /// Routes, identity and rate: where the request goes, and whether it may.
    fn decide(&self, peer: &Peer, parts: &mut Parts, receipt: &mut Receipt<'_>) -> Result<Decision, PublicError> {
        let address = Client::Address(peer.address);
        let mut call = match Target::of(parts.uri.path()) {
            Target::Home => {
                self.limits.client(address)?;
                return Ok(Decision::Home);
            }
            Target::Unknown => {
                return Err(PublicError::new(
                    Code::NotFound,
                    "nothing is here: functions are at /f/, the API at /api/",
                ));
            }
            Target::Control => {
                receipt.kind = Kind::Control;
                return self.admit_control(peer, parts);
            }
            Target::Http { handle, name, rest } => {
                receipt.kind = Kind::Http;
                let table = self.routes.now();
                let route = table.by_path(handle, name).ok_or_else(not_found)?;
                receipt.watch.routed();
                let caller = self.authorise(route, parts)?;
                Call {
                    route: route.clone(),
                    target: target(rest, parts.uri.query()),
                    form: FORM_HTTP,
                    streaming: None,
                    once: None,
                    client: caller.map_or(address, Client::User),
                }
            }
            Target::Envelope { key } => {
                receipt.kind = Kind::Envelope;
                if parts.method != Method::POST {
                    return Err(PublicError::new(Code::MethodNotAllowed, "an invocation is a POST"));
                }
                receipt.watch.routed();
                let caller = self.identity.bearer(&parts.headers).map_err(unauthorized)?;
                let route = self.routes.now().by_key(caller, key).cloned().ok_or_else(not_found)?;
                Call {
                    route,
                    target: Uri::from_static("/"),
                    form: FORM_ENVELOPE,
                    streaming: None,
                    once: None,
                    client: Client::User(caller),
                }
            }
        };
        self.limits.client(call.client)?;
        call.once = once::key(&parts.headers, call.route.spec.function, call.client)?;
        // A credential of the platform is for the platform: no function sees one, its own caller's or one that came astray.
        // That its session has ended another gateway may not know yet.
        if call.form == FORM_ENVELOPE
            || call.route.access == Access::Private
            || matches!(self.identity.bearer(&parts.headers), Ok(_) | Err(Denied::Ended))
        {
            parts.headers.remove(AUTHORIZATION);
        }
        Ok(Decision::Call(call))
    }

    /// The caller, where a function has to know him. Somebody else's function is not there.
    fn authorise(&self, route: &Route, parts: &Parts) -> Result<Option<UserId>, PublicError> {
        match route.access {
            Access::Public => Ok(None),
            Access::Private => match self.identity.bearer(&parts.headers).map_err(unauthorized)? {
                caller if caller == route.owner => Ok(Some(caller)),
                _ => Err(not_found()),
            },
        }
    }

    /// The control API authenticates by itself; here a good token only says whose rate counts.
    fn admit_control(&self, peer: &Peer, parts: &Parts) -> Result<Decision, PublicError> {
        let address = Client::Address(peer.address);
        // To log out is one, too: it costs the database the same, and asks for no token.
        let enters = matches!(
            parts.uri.path(),
            "/api/auth/register" | "/api/auth/login" | "/api/auth/refresh" | "/api/auth/logout"
        );
        if enters {
            self.limits.login(address)?;
        }
        let client = self.identity.bearer(&parts.headers).map_or(address, Client::User);
        self.limits.client(client)?;
        Ok(Decision::Control { client, enters: enters.then_some(address) })
    }

    /// The rates again, where they hold over several gateways.
    async fn admit_shared(&self, decision: &Decision) -> Result<(), PublicError> {
        let Some(shared) = &self.limits.shared else { return Ok(()) };
        match decision {
            Decision::Home => Ok(()),
            Decision::Control { client, enters } => {
                if let Some(address) = enters {
                    shared.login(*address).await?;
                }
                shared.client(*client).await
            }
            Decision::Call(call) => shared.client(call.client).await,
        }
    }

    /// The body, concurrency, placement and forwarding.
    async fn call(
        &self,
        call: Call,
        parts: Parts,
        mut body: ClientBody,
        receipt: &mut Receipt<'_>,
    ) -> Result<Answer, PublicError> {
        let Call { route, target, form, streaming, once, client } = call;
        // Before its body is asked for, and again when it is here.
        let limit = route.spec.limits.concurrency;
        if route.admission.is_full(limit) {
            receipt.watch.refused();
            body.discard().await;
            return Err(busy(limit));
        }
        receipt.watch.admitted();
        let body = match &streaming {
            Some(streaming) => {
                body.stream(streaming.pace().clone());
                Either::Left(body)
            }
            // A node reads the whole body before it does anything, so nothing is lost by reading it here, and whoever
            // sends slowly holds nothing that others need.
            None => Either::Right(Full::new(self.room.gather(client, body).await?)),
        };
        let (link, permit) = match self.seat(&route, once.as_deref()).await {
            Ok(seated) => seated,
            Err(refused) => {
                receipt.watch.refused();
                forward::discard(body).await;
                return Err(refused);
            }
        };
        let (id, so_far) = (receipt.id_text.clone(), receipt.watch.so_far());
        let invocation = Invocation { route, parts, body, target, form, id, once, so_far, permit, streaming };
        forward::forward(&self.fleet, &self.tasks, link, invocation).await.map(Answer::Node)
    }

    /// A place among the function's calls, and one on a node.
    async fn seat(&self, route: &Arc<Route>, once: Option<&Digest>) -> Result<(Arc<NodeLink>, Permit), PublicError> {
        let limit = route.spec.limits.concurrency;
        let (slot, limit_here) = match &self.limits.shared {
            None => (None, limit),
            Some(shared) => shared.hold(route).await.ok_or_else(|| busy(limit))?,
        };
        let mut permit = route.admission.admit(limit_here).ok_or_else(|| busy(limit))?;
        permit.fill(slot);
        let placed = match once {
            None => self.fleet.placed(&route.spec).await,
            Some(key) => self.fleet.home(key, &route.spec).await,
        };
        let Some((link, seat)) = placed else {
            return Err(PublicError::new(Code::NoNode, self.fleet.refusal(&route.spec, once).to_string()));
        };
        permit.sit(seat);
        Ok((link, permit))
    }
}

fn busy(limit: u32) -> PublicError {
    let sentence = format!("the function has {limit} calls under way, which is its limit: try again");
    PublicError::new(Code::ConcurrencyLimited, sentence)
}

enum Decision {
    Home,
    /// Whose rate it counts for, and the address of who wants to get in or out.
    Control {
        client: Client,
        enters: Option<Client>,
    },
    Call(Call),
}

impl Decision {
    /// Gives a real request to a server what it has beyond others. Elsewhere a wish for a WebSocket is ignored.
    fn stream(
        mut self,
        peer: &Peer,
        parts: &mut Parts,
        upgrade: Result<bool, PublicError>,
    ) -> Result<Self, PublicError> {
        if let Self::Call(call) = &mut self {
            // What is to be kept is read whole.
            if call.form == FORM_HTTP && call.once.is_none() {
                call.streaming = Streaming::of(&call.route.spec, forward::START_ALLOWANCE, &peer.cut);
            }
            if let Some(streaming) = &mut call.streaming {
                if upgrade? {
                    streaming.upgrade = parts.extensions.remove::<OnUpgrade>();
                    streaming.seated.clone_from(&peer.seated);
                }
            }
        }
        Ok(self)
    }
}

fn not_found() -> PublicError {
    PublicError::new(Code::NotFound, "there is no such function, or no version of it serves yet")
}

fn unauthorized(denied: Denied) -> PublicError {
    PublicError::new(Code::Unauthorized, denied.to_string())
}

/// `rest?query`, where no rest is the root.
fn target(rest: &str, query: Option<&str>) -> Uri {
    let rest = if rest.is_empty() { "/" } else { rest };
    let text = match query {
        Some(query) => format!("{rest}?{query}"),
        None if rest == "/" => return Uri::from_static("/"),
        None => rest.to_owned(),
    };
    // A part of a valid target that begins with a slash is a valid target.
    PathAndQuery::from_maybe_shared(bytes::Bytes::from(text)).map_or_else(|_| Uri::from_static("/"), Uri::from)
}

fn home() -> Response<AnswerBody> {
    let text = concat!(
        r#"{"name":"Dart Cloud","version":""#,
        env!("CARGO_PKG_VERSION"),
        r#"","api":"/api","health":"/api/health","functions":"/f/{owner}/{name}"}"#,
        "\n"
    );
    let mut response = Response::new(AnswerBody::Own(Some(text.into())));
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    response
}
