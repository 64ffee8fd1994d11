//! The agent protocol: all that gateway and agent say to each other.
//!
//! The agent dials every connection, and each begins with one line of JSON, a [`Hello`], that says what it is for:
//!
//! - [`Kind::Control`]: length-prefixed JSON frames both ways ([`AgentMessage`], [`GatewayMessage`]).
//! - [`Kind::Work`]: HTTP/1.1 on which the *gateway* is the client. A request bears [`ORDER`]: an invocation is
//!   the client's request with the headers below; a build is a `POST` of a
//!   [`DeploymentSpec`](crate::function::DeploymentSpec) answered by lines of [`BuildEvent`].
//! - [`Kind::Calls`]: HTTP/1.1 on which the *agent* is the client: archives, builds, deployments, records, and its
//!   own certificate (see [`calls`]).
//! - [`Kind::Join`]: one frame each way, [`JoinRequest`] and [`JoinAnswer`].
//!
//! On one machine a connection is a Unix socket. Between machines it is TLS, with a certificate of the gateway's own
//! authority at both ends; then who dials is what the certificate says, and a [`Hello`] must agree with it. Only
//! [`Kind::Join`] goes without a certificate.

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};

use crate::digest::Digest;
use crate::ids::{DeploymentId, NodeId};
use crate::labels::Labels;

pub mod calls;

/// The protocol's version. A gateway takes this one and the one before.
pub const VERSION: u32 = 1;

/// Longest [`Hello`] line, in bytes, its newline included.
pub const MAX_HELLO_BYTES: usize = 4096;

/// Longest frame of a control stream, in bytes.
pub const MAX_FRAME_BYTES: usize = 1024 * 1024;

/// Most of a node's metrics, in bytes: in a frame each quote and each end of a line takes two.
pub const MAX_METRICS_BYTES: usize = MAX_FRAME_BYTES / 2 - 1024;

/// The name that a gateway's certificate is for, whatever address leads to it.
pub const GATEWAY_NAME: &str = "gateway.dartcloud.internal";

/// The first line of every link connection.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hello {
    /// [`VERSION`] of the agent.
    pub protocol: u32,
    /// Who dials; of a [`Kind::Join`] it says nothing.
    pub node: NodeId,
    /// What the connection is for.
    pub kind: Kind,
    /// Which life of the agent this is: its connections of an earlier one get no more calls. An older agent does not say.
    #[serde(default)]
    pub epoch: u64,
}

/// What a link connection is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Kind {
    /// Heartbeats, state and orders.
    Control,
    /// Requests of the gateway to the agent.
    Work,
    /// Requests of the agent to the gateway.
    Calls,
    /// The wish to become a node of the fleet.
    Join,
}

/// What a machine says that wants to become a node.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct JoinRequest {
    /// The secret of its [`JoinToken`](crate::join_token::JoinToken), as Base64.
    pub secret: String,
    /// The machine's name, for people.
    pub name: String,
    /// A certificate signing request for the key that it made, DER as Base64.
    pub request: String,
}

/// What a machine hears that wants to become a node.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "type")]
pub enum JoinAnswer {
    /// It is one.
    Joined(Credential),
    /// It is not; the sentence says why and what to do.
    Refused {
        /// For whoever typed the command.
        reason: String,
    },
}

/// A node's certificate, as the gateway hands it out.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Credential {
    /// Whose it is.
    pub node: NodeId,
    /// The certificate, DER as Base64.
    pub certificate: String,
    /// The digest of the authority that it is of: one that the node trusts. An older gateway does not say, and has one.
    #[serde(default)]
    pub authority: Option<Digest>,
    /// For how long from now, in seconds.
    pub lifetime_seconds: u32,
    /// What the gateway's clock says.
    pub now: DateTime<Utc>,
}

/// The body of a request to [`calls::CERTIFICATE`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Renewal {
    /// A certificate signing request for a key that the node made, DER as Base64.
    pub request: String,
    /// The digests of the authorities that the node trusts. An older agent does not say, and trusts one.
    #[serde(default)]
    pub trusts: Vec<Digest>,
}

/// What an agent says on its control stream.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "type")]
pub enum AgentMessage {
    /// Who the node is; first on every control stream.
    Register {
        /// The machine's name, for people.
        name: String,
        /// Most link connections that the agent opens.
        max_connections: u32,
        /// The deployments that it has sandboxes of: those that nobody wants are answered by `Retire`.
        deployments: Vec<DeploymentId>,
        /// What the operator says of the node. An older agent does not say.
        #[serde(default)]
        labels: Labels,
        /// Whether it learns by `Authorities` whom to trust. An older agent does not.
        #[serde(default)]
        learns_authorities: bool,
    },
    /// Every [`HEARTBEAT_MS`].
    Heartbeat(NodeState),
    /// The answer to `Tell`.
    Metrics {
        /// As Prometheus reads them; `None` where they are over [`MAX_METRICS_BYTES`].
        text: Option<String>,
    },
}

/// Milliseconds between two heartbeats. A gateway suspects a node after several that did not come.
pub const HEARTBEAT_MS: u64 = 500;

/// What a node has and does; placement decides by it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeState {
    /// Invocations under way.
    pub busy: u32,
    /// Sandboxes, by deployment, that are warm or busy.
    pub warm: Vec<DeploymentId>,
    /// Memory that sandboxes may use on this node, in MiB; 0 before the first heartbeat, which is unknown.
    pub memory_total_mb: u64,
    /// Memory that its sandboxes are granted, in MiB.
    pub memory_used_mb: u64,
    /// Records in the spool that the store does not have yet.
    pub spooled_records: u64,
    /// Of what `Keep` names, that of which all sandboxes are there; an agent that does not know `Keep` says nothing.
    #[serde(default)]
    pub kept: Option<Vec<DeploymentId>>,
    /// Of the memory in use, that of idle sandboxes, which go when others need it, in MiB. An older agent does not say.
    #[serde(default)]
    pub memory_idle_mb: Option<u64>,
    /// CPUs that the agent, and so its sandboxes, may use. An older agent does not say.
    #[serde(default)]
    pub cpus: Option<u32>,
    /// Of the versions that are warm, those with several sandboxes, and how many. An older agent does not say.
    #[serde(default)]
    pub several: Option<Vec<Warm>>,
    /// Whether it is this gateway, of those that it is linked with, that Prometheus is to ask for its metrics. An agent
    /// that does not know `Tell` says nothing, nor one whose metrics are the gateway's own.
    #[serde(default)]
    pub tells: Option<bool>,
    /// Whether its Docker Engine answers, without which it starts nothing. An older agent does not say.
    #[serde(default)]
    pub engine_answers: Option<bool>,
}

impl NodeState {
    /// How many sandboxes of a version are warm or busy, as far as it is known.
    #[must_use]
    pub fn sandboxes(&self, deployment: DeploymentId) -> u32 {
        let several = self.several.iter().flatten().find(|several| several.deployment == deployment);
        several.map_or_else(|| self.warm.contains(&deployment).into(), |several| several.sandboxes)
    }
}

/// Most entries of one `Keep`, so that it fits a frame.
pub const MAX_KEPT: usize = 4096;

/// A version that is to have sandboxes on a node, whether or not anybody calls.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Warm {
    /// Which.
    pub deployment: DeploymentId,
    /// How many.
    pub sandboxes: u32,
}

/// What a gateway says on a control stream.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "type")]
pub enum GatewayMessage {
    /// The answer to `Register`.
    Welcome {
        /// [`VERSION`] of the gateway.
        protocol: u32,
    },
    /// Open this many more [`Kind::Work`] connections, as far as the agent's limit allows.
    Dial {
        /// How many.
        connections: u32,
    },
    /// These deployments get no more calls: let their sandboxes finish, then remove them.
    Retire {
        /// Which.
        deployments: Vec<DeploymentId>,
    },
    /// Keep sandboxes of these versions, at most [`MAX_KEPT`], and no longer of any that is not named. An agent that does
    /// not know this order passes it over, and keeps none.
    Keep {
        /// Which, and how many.
        warm: Vec<Warm>,
    },
    /// The gateway will not have this agent; the sentence says why and what to do.
    Refused {
        /// For the agent's log.
        reason: String,
    },
    /// Say what your metrics are.
    Tell,
    /// The authorities that the fleet trusts, first the one that certifies, of which a node is to have a certificate. An agent
    /// that does not know this order passes it over.
    Authorities {
        /// Their certificates, DER as Base64: one, or while one takes another's place, two.
        certificates: Vec<String>,
    },
    /// Another process takes this gateway's place, and whoever dials from now on: link to it as well, by the same address.
    /// This one goes on with the calls that it has, and closes the stream when it ends. An agent that does not know this
    /// order passes it over, and dials when the stream ends.
    Successor,
}

/// Header of a request on a [`Kind::Work`] connection: [`ORDER_INVOKE`] or [`ORDER_BUILD`].
pub const ORDER: &str = "dartcloud-order";
/// The request is an invocation. Its method, path, query, headers and body are the client's.
pub const ORDER_INVOKE: &str = "invoke";
/// The request is a build.
pub const ORDER_BUILD: &str = "build";
/// Header of an invocation: the deployment's id.
pub const DEPLOYMENT: &str = "dartcloud-deployment";
/// Header of an invocation: its id, which is the client's request id.
pub const INVOCATION: &str = "dartcloud-invocation";
/// Header of an invocation: [`FORM_HTTP`] or [`FORM_ENVELOPE`].
pub const FORM: &str = "dartcloud-form";
/// The client's request is the function's request, and the function's answer is the client's.
pub const FORM_HTTP: &str = "http";
/// The request's body is `{body, query, headers, method, path}`, the answer `{"success":true,"result":…}`.
pub const FORM_ENVELOPE: &str = "envelope";
/// Header of an invocation's answer: [`Outcome::word`](crate::invocation::Outcome::word). The answer's status,
/// headers and body are what the client gets; for a failure that is the finished error body.
pub const OUTCOME: &str = "dartcloud-outcome";
/// Header of an invocation: how long the gateway's [`GATE`](crate::phases::GATE) took, in microseconds. This and
/// the next are for the record; an older gateway does not say.
pub const GATE_US: &str = "dartcloud-gate-us";
/// Header of an invocation: the same of [`AUTH`](crate::phases::AUTH).
pub const AUTH_US: &str = "dartcloud-auth-us";
/// Header of an invocation: a digest of its `Idempotency-Key`, of the function, and of whose the key is. A call that bears
/// it runs once; who repeats it gets the first answer. An older agent runs it each time.
pub const ONCE: &str = "dartcloud-once";
/// Header of an invocation's answer: its phases at the agent, in the form of `Server-Timing`.
pub const TIMING: &str = "dartcloud-timing";
/// Header of an invocation's answer: how long the agent had the call, in microseconds. An older agent does not say.
pub const TOOK_US: &str = "dartcloud-took-us";
/// Every header that begins so is ours: dropped from what clients and functions send.
pub const OWN_HEADER_PREFIX: &str = "dartcloud-";

/// One line of a build's answer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "type")]
pub enum BuildEvent {
    /// A line that the build printed, without its newline.
    Log {
        /// The text.
        line: String,
    },
    /// The build is ready on the node; the last line.
    Built {
        /// How long it took, in milliseconds; near 0 when it was cached.
        build_ms: u64,
        /// Whether the node had it already.
        cached: bool,
    },
    /// The build's own command failed, or ran out of time, memory or output: the user's to mend. The last line.
    Failed {
        /// One sentence.
        reason: String,
    },
    /// The node could not run the build: the platform's to mend. The last line.
    Error {
        /// One sentence, for the log.
        reason: String,
    },
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_hello_fits_its_limit() {
        let hello = Hello { protocol: VERSION, node: NodeId::new(), kind: Kind::Control, epoch: u64::MAX };
        let line = serde_json::to_string(&hello).unwrap();
        assert!(line.len() < MAX_HELLO_BYTES);
        assert_eq!(serde_json::from_str::<Hello>(&line).unwrap(), hello);
    }

    #[test]
    fn what_an_older_agent_does_not_say_is_unknown() {
        let older =
            r#"{"type":"heartbeat","busy":1,"warm":[],"memory_total_mb":2,"memory_used_mb":1,"spooled_records":0}"#;
        let AgentMessage::Heartbeat(state) = serde_json::from_str(older).unwrap() else { unreachable!() };
        let said = (&state.kept, state.memory_idle_mb, state.cpus, &state.several, state.tells);
        assert_eq!((said, state.engine_answers), ((&None, None, None, &None, None), None));
        let hello = format!(r#"{{"protocol":1,"node":"{}","kind":"work"}}"#, NodeId::new());
        assert_eq!(serde_json::from_str::<Hello>(&hello).unwrap().epoch, 0);
        assert!(serde_json::from_str::<Renewal>(r#"{"request":"AAAA"}"#).unwrap().trusts.is_empty());
        let older = r#"{"type":"register","name":"one","max_connections":1,"deployments":[]}"#;
        let register = serde_json::from_str(older).unwrap();
        assert!(matches!(register, AgentMessage::Register { learns_authorities: false, .. }));
        // An older gateway passes over what it does not know.
        let newer = older.replace("\"busy\"", "\"unheard_of\":[1],\"busy\"");
        assert!(serde_json::from_str::<AgentMessage>(&newer).is_ok());
    }

    #[test]
    fn sandboxes_of_a_version() {
        let [one, two, none] = [(); 3].map(|()| DeploymentId::new());
        let older = NodeState { warm: vec![one, two], ..NodeState::default() };
        let newer = NodeState { several: Some(vec![Warm { deployment: two, sandboxes: 3 }]), ..older.clone() };
        let check = |state: &NodeState, expected| {
            assert_eq!([one, two, none].map(|deployment| state.sandboxes(deployment)), expected, "{state:?}");
        };
        check(&older, [1, 1, 0]);
        check(&newer, [1, 3, 0]);
    }
}
