//! The operator's nodes: the token by which a machine joins, who is there and how busy, and what each may do.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use axum::Json;
use axum::extract::State as Extract;
use common::error::Code;
use common::ids::NodeId;
use common::labels::Labels;
use http::StatusCode;
use serde::Serialize;
use store::fleet::{Duty, Node};

use super::State;
use super::auth::rfc3339;
use super::caller::Operator;
use super::error::Failure;
use super::request::{Fields, Key, Origin};
use crate::fleet::health::Health;
use crate::fleet::{Linked, roster};

/// What a machine needs in order to join.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Invited {
    token: String,
    url: String,
    /// The line to type on the machine.
    command: String,
    expires_at: String,
}

/// `POST /api/nodes/tokens`.
pub(crate) async fn invite(
    Extract(state): Extract<Arc<State>>,
    Operator(operator): Operator,
    Origin(origin): Origin,
) -> Result<(StatusCode, Json<Invited>), Failure> {
    let invitation = match &state.enrolment {
        Some(enrolment) => enrolment.invite(operator, host_of(&origin)).await?,
        None => None,
    };
    let invitation = invitation.ok_or_else(no_port)?;
    let (token, url) = (invitation.token.to_string(), invitation.url.to_string());
    let command = format!("dartcloud node join {url} {token}");
    let expires_at = rfc3339(invitation.expires_at);
    Ok((StatusCode::CREATED, Json(Invited { token, url, command, expires_at })))
}

/// There is no port for nodes of other machines.
pub(super) fn no_port() -> Failure {
    let sentence =
        "this gateway has no port for other machines: set NODE_ADDR, such as 0.0.0.0:9443, and start it again";
    Failure::new(Code::Conflict, sentence)
}

/// The host in `http://host:port`.
fn host_of(origin: &str) -> &str {
    let authority = origin.split_once("://").map_or(origin, |(_, authority)| authority);
    let end = authority.rfind(':').filter(|end| !authority[*end..].contains(']')).unwrap_or(authority.len());
    &authority[..end]
}

/// A node as the operator sees it. What only a node can say that is linked to this gateway is `null` of others.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct View {
    id: NodeId,
    name: String,
    labels: Labels,
    /// `linked`, `suspected`, `ejected`, `no_engine` (its Docker Engine does not answer), `cordoned`, `draining`, `elsewhere` (linked to other gateways only), `lost`.
    state: &'static str,
    /// Whether it is on the gateway's own machine.
    local: bool,
    protocol: Option<u32>,
    /// Calls and builds under way.
    busy: Option<u32>,
    /// Versions that are warm there.
    warm: Option<usize>,
    /// Of a node that is drained: of those, the ones that go on there until another node has them warm.
    moving: Option<usize>,
    /// Of a node that is drained: of those, the ones that no other node can take; in the end, those that were not moved.
    stranded: Option<usize>,
    memory_used_mb: Option<u64>,
    memory_total_mb: Option<u64>,
    /// When it was linked last.
    last_seen: Option<String>,
    certificate_expires_at: Option<String>,
}

/// Every node.
#[derive(Serialize)]
pub(crate) struct Page {
    nodes: Vec<View>,
}

/// `GET /api/nodes`.
pub(crate) async fn list(Extract(state): Extract<Arc<State>>, _: Operator) -> Result<Json<Page>, Failure> {
    let linked: HashMap<_, _> = state.fleet.nodes().iter().map(|node| (node.link.node, node.clone())).collect();
    let links = state.store.node_links(roster::LEASE_SECONDS).await?;
    let elsewhere: HashSet<_> =
        links.into_iter().filter(|(_, gateway)| *gateway != state.gateway).map(|(node, _)| node).collect();
    let kept = state.store.nodes().await?;
    let kept = kept.into_iter().filter(|node| node.duty != Duty::Removed);
    let nodes = kept.map(|node| view(&state, linked.get(&node.id), elsewhere.contains(&node.id), node)).collect();
    Ok(Json(Page { nodes }))
}

/// How a node that is linked here is.
#[derive(Clone, Copy)]
struct Condition {
    health: Health,
    has_engine: bool,
}

impl Condition {
    fn of(linked: &Linked) -> Self {
        // An older agent does not say.
        Self { health: linked.health, has_engine: linked.state.engine_answers != Some(false) }
    }
}

/// The word for a node.
fn word(condition: Option<Condition>, is_elsewhere: bool, duty: Duty) -> &'static str {
    let health = condition.map(|condition| condition.health);
    match (health, duty) {
        (None, _) if !is_elsewhere => "lost",
        (None, Duty::Active) => "elsewhere",
        (Some(Health::Well), Duty::Active) if condition.is_some_and(|condition| !condition.has_engine) => "no_engine",
        (Some(Health::Well), Duty::Active) => "linked",
        (Some(Health::Suspected), Duty::Active) => "suspected",
        (Some(Health::Ejected), Duty::Active) => "ejected",
        (_, duty) => duty.word(),
    }
}

fn view(state: &State, linked: Option<&Linked>, is_elsewhere: bool, node: Node) -> View {
    // The node says twice a second what it has under way; what we have just sent it, we know better.
    let busy = |linked: &Linked| linked.state.busy.max(state.fleet.in_use(&linked.link));
    let handover = linked.and_then(|linked| linked.handover);
    let labels = node.all_labels();
    View {
        id: node.id,
        name: node.name,
        labels,
        state: word(linked.map(Condition::of), is_elsewhere, node.duty),
        local: node.certificate.is_none(),
        protocol: linked.map(|linked| linked.protocol),
        busy: linked.map(busy),
        warm: linked.map(|linked| linked.state.warm.len()),
        moving: handover.map(|handover| handover.moving),
        stranded: handover.map(|handover| handover.stranded),
        memory_used_mb: linked.map(|linked| linked.state.memory_used_mb),
        memory_total_mb: linked.map(|linked| linked.state.memory_total_mb),
        last_seen: node.last_seen_at.map(rfc3339),
        certificate_expires_at: node.certificate.map(|certificate| rfc3339(certificate.expires_at)),
    }
}

/// `POST /api/nodes/{id}/cordon`: no calls but for what is warm there and nowhere else.
pub(crate) async fn cordon(state: Extract<Arc<State>>, _: Operator, key: Key) -> Result<StatusCode, Failure> {
    change(&state, &key, Duty::Cordoned).await
}

/// `POST /api/nodes/{id}/uncordon`: everything again.
pub(crate) async fn uncordon(state: Extract<Arc<State>>, _: Operator, key: Key) -> Result<StatusCode, Failure> {
    change(&state, &key, Duty::Active).await
}

/// `POST /api/nodes/{id}/drain`: no calls any more, but for what is warm there, until another node has it warm. What is
/// under way goes on; the list says how much that is.
pub(crate) async fn drain(state: Extract<Arc<State>>, _: Operator, key: Key) -> Result<StatusCode, Failure> {
    change(&state, &key, Duty::Draining).await
}

/// `DELETE /api/nodes/{id}`: its certificate is worth nothing from now on, and its connections close.
pub(crate) async fn remove(state: Extract<Arc<State>>, _: Operator, key: Key) -> Result<StatusCode, Failure> {
    let id = node_id(&key)?;
    let is_local = state.fleet.roster().get(&id).is_some_and(|node| node.certificate.is_none());
    if is_local && state.fleet.nodes().iter().any(|node| node.link.node == id) {
        let sentence = "this node is on the gateway's own machine, where it needs no certificate: stop its agent first";
        return Err(Failure::new(Code::Conflict, sentence));
    }
    change(&state, &key, Duty::Removed).await
}

/// `PATCH /api/nodes/{id}` `{"labels": {"gpu": "true", "zone": null}}`: gives a node labels, which win over what its agent
/// says, and takes them away.
pub(crate) async fn label(
    Extract(state): Extract<Arc<State>>,
    _: Operator,
    key: Key,
    mut fields: Fields,
) -> Result<StatusCode, Failure> {
    let (id, changes) = (node_id(&key)?, fields.texts("labels")?);
    let known = state.store.nodes().await?.into_iter().find(|node| node.id == id && node.duty != Duty::Removed);
    let before = known.ok_or_else(|| Failure::not_found("the node"))?.given_labels;
    let labels = before.clone().changed(changes).map_err(|error| Failure::new(Code::Invalid, error.to_string()))?;
    if !state.store.label_node(id, &before, &labels).await? {
        return Err(Failure::new(Code::Conflict, "somebody else gave the node labels at the same moment: try again"));
    }
    roster::reload(&state.fleet, &*state.store).await?;
    tracing::info!(node = %id, %labels, "the operator labels a node");
    Ok(StatusCode::NO_CONTENT)
}

async fn change(state: &State, key: &Key, duty: Duty) -> Result<StatusCode, Failure> {
    let id = node_id(key)?;
    state.store.set_duty(id, duty).await.map_err(|error| match error {
        store::Error::NotFound => Failure::not_found("the node"),
        error => error.into(),
    })?;
    // This gateway knows at once, the others as soon as the database tells them.
    roster::reload(&state.fleet, &*state.store).await?;
    tracing::info!(node = %id, duty = duty.word(), "the operator says what a node may do");
    Ok(StatusCode::NO_CONTENT)
}

fn node_id(Key(key): &Key) -> Result<NodeId, Failure> {
    key.parse().map_err(|_| Failure::not_found("the node"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_word_for_a_node() {
        let check = |condition, is_elsewhere, duty, expected| assert_eq!(word(condition, is_elsewhere, duty), expected);
        let with = |health, has_engine| Some(Condition { health, has_engine });
        check(None, false, Duty::Active, "lost");
        check(None, false, Duty::Draining, "lost");
        check(None, true, Duty::Active, "elsewhere");
        check(None, true, Duty::Draining, "draining");
        check(with(Health::Well, true), true, Duty::Active, "linked");
        check(with(Health::Well, false), true, Duty::Active, "no_engine");
        check(with(Health::Well, false), true, Duty::Draining, "draining");
        check(with(Health::Ejected, false), false, Duty::Active, "ejected");
        check(with(Health::Suspected, true), false, Duty::Cordoned, "cordoned");
    }

    #[test]
    fn the_host_of_an_origin() {
        let check = |origin: &str, expected: &str| assert_eq!(host_of(origin), expected);
        check("http://gateway.example:8080", "gateway.example");
        check("http://gateway.example", "gateway.example");
        check("http://[::1]:8080", "[::1]");
        check("http://[::1]", "[::1]");
    }
}
