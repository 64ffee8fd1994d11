//! `GET /api/invocations/{request id}`: the story of one call: where it ran, what its time went into, which limits it
//! hit, and what it printed.

use std::sync::Arc;

use axum::Json;
use axum::extract::State as Extract;
use chrono::{DateTime, TimeDelta, Utc};
use common::error::Code;
use common::ids::{DeploymentId, FunctionId, InvocationId, NodeId};
use common::invocation::{Outcome, Record, RequestInfo};
use common::names::FunctionName;
use common::phases::{ColdCause, Phases};
use serde::Serialize;
use store::RecordedCall;

use super::State;
use super::auth::rfc3339;
use super::caller::Caller;
use super::error::Failure;
use super::logs::decoded;
use super::request::Key;

/// How long after a call its record may still be on its way from the node; by far most take a second.
const ON_ITS_WAY: TimeDelta = TimeDelta::seconds(60);

/// The answer. What nobody measured is `null`.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Story {
    id: InvocationId,
    function: Function,
    version: u32,
    deployment_id: DeploymentId,
    node: NodeId,
    status: &'static str,
    outcome: &'static str,
    cold: Cold,
    phases: Milliseconds,
    limits: Limits,
    peak_memory_bytes: u64,
    created_at: String,
    request_info: RequestInfo,
    logs: Printed,
    error: Option<String>,
}

#[derive(Serialize)]
struct Function {
    id: FunctionId,
    name: FunctionName,
}

#[derive(Serialize)]
struct Cold {
    is: bool,
    cause: Option<ColdCause>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Milliseconds {
    gate_ms: Option<f64>,
    auth_ms: Option<f64>,
    queue_ms: Option<f64>,
    cold_ms: Option<f64>,
    fn_ms: Option<f64>,
    /// At the node, from the request's arrival to the outcome: `queue`, `cold`, `fn` and what lies between them.
    total_ms: Option<f64>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Limits {
    timeout_ms: u32,
    memory_mb: u32,
    hit: Vec<&'static str>,
}

#[derive(Serialize)]
struct Printed {
    stdout: String,
    stderr: String,
    truncated: bool,
}

/// The handler.
pub(crate) async fn story(
    Extract(state): Extract<Arc<State>>,
    Caller(owner): Caller,
    Key(key): Key,
) -> Result<Json<Story>, Failure> {
    let Ok(id) = key.parse::<InvocationId>() else {
        return Err(Failure::new(Code::NotFound, "a call is asked for by the X-Request-Id of its answer, a UUID"));
    };
    match state.store.recorded_call(owner, id).await? {
        Some(call) => Ok(Json(Story::from(call))),
        None => Err(Failure::new(Code::NotFound, absent(id, Utc::now()))),
    }
}

/// Why there is no record, as far as the id alone says: what is somebody else's must not be told from what is not
/// there.
fn absent(id: InvocationId, now: DateTime<Utc>) -> &'static str {
    match id.made_at() {
        Some(made) if (now - made).abs() < ON_ITS_WAY => {
            "there is no record of this call yet: try again in a moment; calls that were refused are not recorded"
        }
        _ => "there is no record of this call: it is not one of yours, or it was refused, which is not recorded",
    }
}

/// The limits that a call ran into.
fn hit(record: &Record) -> Vec<&'static str> {
    let truncated = record.logs.container.as_ref().is_some_and(|printed| printed.truncated);
    [
        (record.outcome == Outcome::TimedOut, "timeout"),
        (record.outcome == Outcome::OutOfMemory, "memory"),
        (truncated, "output"),
    ]
    .into_iter()
    .filter_map(|(was_hit, limit)| was_hit.then_some(limit))
    .collect()
}

impl From<Phases> for Milliseconds {
    fn from(phases: Phases) -> Self {
        let ms = |us: Option<u64>| us.map(|us| us as f64 / 1000.0);
        Self {
            gate_ms: ms(phases.gate_us),
            auth_ms: ms(phases.auth_us),
            queue_ms: ms(phases.queue_us),
            cold_ms: ms(phases.cold_us),
            fn_ms: ms(phases.fn_us),
            total_ms: ms(phases.total_us),
        }
    }
}

impl From<RecordedCall> for Story {
    fn from(call: RecordedCall) -> Self {
        let RecordedCall { record, name, version, limits } = call;
        let hit = hit(&record);
        let printed = record.logs.container.unwrap_or_default();
        Self {
            id: record.id,
            function: Function { id: record.function, name },
            version,
            deployment_id: record.deployment,
            node: record.node,
            status: if record.outcome == Outcome::Success { "success" } else { "error" },
            outcome: record.outcome.word(),
            cold: Cold { is: record.cold, cause: record.phases.cold_cause },
            phases: record.phases.into(),
            limits: Limits { timeout_ms: limits.timeout_ms, memory_mb: limits.memory_mb, hit },
            peak_memory_bytes: record.peak_memory_bytes,
            created_at: rfc3339(record.created_at),
            request_info: record.request_info,
            logs: Printed { stdout: printed.stdout, stderr: printed.stderr, truncated: printed.truncated },
            error: record.error.map(decoded),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_there_may_be_on_its_way() {
        let id = InvocationId::new();
        let made = id.made_at().unwrap();
        let check = |id, seconds, sentence: &str| {
            let said = absent(id, made + TimeDelta::seconds(seconds));
            assert!(said.contains(sentence) && said.contains("refused"), "{seconds}: {said}");
        };
        check(id, 0, "try again in a moment");
        check(id, 59, "try again in a moment");
        // The clock of the gateway that made the id may be a little ahead.
        check(id, -3, "try again in a moment");
        check(id, 60, "not one of yours");
        check(uuid::Uuid::nil().into(), 0, "not one of yours");
    }
}
