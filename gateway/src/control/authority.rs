//! The operator's view of the fleet's authority: whom the fleet trusts, how many nodes have certificates of which, and the
//! exchange of one for another while nodes stay joined.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::sync::atomic::Ordering;

use axum::Json;
use axum::extract::State as Extract;
use chrono::{DateTime, Utc};
use common::digest::Digest;
use common::error::Code;
use common::ids::NodeId;
use serde::Serialize;
use store::fleet::Node;

use super::State;
use super::auth::rfc3339;
use super::caller::Operator;
use super::error::Failure;
use super::nodes::no_port;
use super::request::Parameters;
use crate::fleet::authority::{Authority, AuthorityError};
use crate::fleet::enrolment::Enrolment;
use crate::fleet::roster;

/// Most nodes that a sentence names.
const MAX_NAMED: usize = 10;

/// An authority that the fleet trusts.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Trusted {
    /// SHA-256 of its certificate, which join tokens pin.
    fingerprint: Digest,
    /// Whether it certifies; else it has another in its place.
    current: bool,
    valid_from: Option<String>,
    valid_until: Option<String>,
    /// How many nodes have shown certificates of it.
    nodes: usize,
}

/// A node that depends on the authority before.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
struct Waiting {
    id: NodeId,
    name: String,
    /// `away`, `elsewhere` (linked to other gateways only), `older` (its agent cannot learn of another authority), `soon`.
    why: Why,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
enum Why {
    Away,
    Elsewhere,
    Older,
    Soon,
}

impl Why {
    fn sentence(self) -> &'static str {
        match self {
            Self::Away => "not linked",
            Self::Elsewhere => "linked to another gateway",
            Self::Older => "its agent is of an older version: upgrade it",
            Self::Soon => "in a moment it has another certificate",
        }
    }
}

/// Where the fleet is with its authorities.
#[derive(Serialize)]
pub(crate) struct Standing {
    /// The one that certifies first.
    authorities: Vec<Trusted>,
    /// Who depends on the one before; nobody where there is none.
    waiting: Vec<Waiting>,
}

/// `GET /api/nodes/authority`.
pub(crate) async fn show(Extract(state): Extract<Arc<State>>, _: Operator) -> Result<Json<Standing>, Failure> {
    standing(&state, enrolment(&state)?).await.map(Json)
}

/// `POST /api/nodes/authority/rotate`: another authority certifies from now on; the one before is trusted until the end. If a
/// rotation is under way, it goes on.
pub(crate) async fn rotate(Extract(state): Extract<Arc<State>>, _: Operator) -> Result<Json<Standing>, Failure> {
    let enrolment = enrolment(&state)?;
    enrolment.rotate(&state.fleet).await.map_err(|error| match error {
        AuthorityError::Store(error) => Failure::from(error),
        error => {
            Failure::caused(Code::Internal, "no authority can be made here: the gateway's log has the cause", error)
        }
    })?;
    standing(&state, enrolment).await.map(Json)
}

/// `POST /api/nodes/authority/finish`: the authority before is trusted no more. While nodes depend on it, `?force=true` leaves
/// them behind.
pub(crate) async fn finish(
    Extract(state): Extract<Arc<State>>,
    _: Operator,
    parameters: Parameters,
) -> Result<Json<Standing>, Failure> {
    let force = parameters.only(&["force"])?.get("force", "true or false")?.unwrap_or(false);
    let enrolment = enrolment(&state)?;
    let is_over = enrolment.finish(&state.fleet, force).await?;
    let standing = standing(&state, enrolment).await?;
    if is_over { Ok(Json(standing)) } else { Err(Failure::new(Code::Conflict, refusal(&standing.waiting))) }
}

fn enrolment(state: &State) -> Result<&Enrolment, Failure> {
    state.enrolment.as_deref().ok_or_else(no_port)
}

async fn standing(state: &State, enrolment: &Enrolment) -> Result<Standing, Failure> {
    let (authorities, now) = (enrolment.authorities().load_full(), Utc::now());
    let nodes = state.store.nodes().await?;
    let trusted = |authority: &Authority, is_current| {
        let time = |seconds| DateTime::from_timestamp(seconds, 0).map(rfc3339);
        let (from, until) = authority.validity().unzip();
        let fingerprint = authority.pin();
        Trusted {
            fingerprint,
            current: is_current,
            valid_from: from.and_then(time),
            valid_until: until.and_then(time),
            nodes: count(&nodes, fingerprint, is_current && authorities.former.is_some(), now),
        }
    };
    let trusted = authorities.all().enumerate().map(|(at, authority)| trusted(authority, at == 0)).collect();
    let Some(former) = authorities.former.as_ref().map(Authority::pin) else {
        return Ok(Standing { authorities: trusted, waiting: Vec::new() });
    };
    let links = state.store.node_links(roster::LEASE_SECONDS).await?;
    let linked: HashSet<_> = links.into_iter().map(|(node, _)| node).collect();
    let here = state.fleet.nodes();
    let here: HashMap<_, _> =
        here.iter().map(|node| (node.link.node, node.link.learns_authorities.load(Ordering::Relaxed))).collect();
    let waiting = nodes.iter().filter(|node| node.depends_on(former, now)).map(|node| Waiting {
        id: node.id,
        name: node.name.clone(),
        why: why(here.get(&node.id).copied(), linked.contains(&node.id)),
    });
    Ok(Standing { authorities: trusted, waiting: waiting.collect() })
}

/// How many nodes have shown a certificate of an authority; where it `has_former`, what nothing is noted of is not its own.
fn count(nodes: &[Node], authority: Digest, has_former: bool, now: DateTime<Utc>) -> usize {
    let is_of = |node: &Node| node.authority.map_or(!has_former, |of| of == authority);
    nodes.iter().filter(|node| node.is_certified(now) && is_of(node)).count()
}

/// Why a node depends on the authority before: whether its agent, if it is linked here, learns of another.
fn why(here: Option<bool>, is_linked: bool) -> Why {
    match (here, is_linked) {
        (Some(true), _) => Why::Soon,
        (Some(false), _) => Why::Older,
        (None, true) => Why::Elsewhere,
        (None, false) => Why::Away,
    }
}

/// Why the rotation does not end.
fn refusal(waiting: &[Waiting]) -> String {
    let named = waiting.iter().take(MAX_NAMED).map(|node| format!("{} ({})", node.name, node.why.sentence()));
    let mut named: Vec<_> = named.collect();
    if waiting.len() > MAX_NAMED {
        named.push(format!("{} more", waiting.len() - MAX_NAMED));
    }
    format!(
        "nodes still need the authority before: {}; remove those that will not come back, or let `force` leave them behind, \
         and they have to join again",
        named.join(", ")
    )
}

#[cfg(test)]
mod tests {
    use chrono::TimeDelta;
    use common::labels::Labels;
    use store::fleet::{CertificateFacts, Duty};

    use super::*;

    #[test]
    fn how_many_have_a_certificate_of_it() {
        let (one, two, now) = (Digest::of(b"one"), Digest::of(b"two"), Utc::now());
        let node = |authority, seconds, duty| {
            let expires_at = now + TimeDelta::seconds(seconds);
            Node {
                id: NodeId::new(),
                name: "n".into(),
                labels: Labels::NONE,
                given_labels: Labels::NONE,
                duty,
                certificate: Some(CertificateFacts { serial: "01".into(), expires_at }),
                authority,
                last_seen_at: None,
            }
        };
        let local = Node { certificate: None, ..node(None, 60, Duty::Active) };
        let nodes = [
            node(Some(one), 60, Duty::Active),
            node(Some(two), 60, Duty::Draining),
            node(None, 60, Duty::Active),
            node(Some(one), 60, Duty::Removed),
            node(Some(one), -60, Duty::Active),
            local,
        ];
        let check = |authority, has_former, expected| {
            assert_eq!(count(&nodes, authority, has_former, now), expected, "{authority} {has_former}");
        };
        // Before any rotation, and of the one before.
        check(one, false, 2);
        check(two, true, 1);
    }

    #[test]
    fn why_a_node_waits() {
        let check = |here, is_linked, expected| assert_eq!(why(here, is_linked), expected);
        check(Some(true), true, Why::Soon);
        check(Some(false), false, Why::Older);
        check(None, true, Why::Elsewhere);
        check(None, false, Why::Away);
    }

    #[test]
    fn the_refusal_names_nodes() {
        let node = |name: &str, why| Waiting { id: NodeId::new(), name: name.into(), why };
        let said = refusal(&[node("a", Why::Away), node("b", Why::Older)]);
        assert!(said.contains("before: a (not linked), b (its agent is of an older version: upgrade it); "), "{said}");
        let many: Vec<_> = (0..12).map(|number| node(&format!("n{number}"), Why::Soon)).collect();
        let said = refusal(&many);
        assert!(said.contains("n9 (") && said.contains(", 2 more;") && !said.contains("n10"), "{said}");
    }
}
