//! The record of a call, from what is known when it ended. Pure.

use std::time::Duration;

use chrono::{DateTime, SecondsFormat, Utc};
use common::base64;
use common::function::DeploymentSpec;
use common::ids::{InvocationId, NodeId};
use common::invocation::{ContainerLogs, ExecutionError, Logs, Metadata, Outcome, Record, RequestInfo};
use common::phases::{Phases, micros};

use http::StatusCode;

use super::request::storable;
use super::result::Verdict;
use crate::sandbox::Exit;
use crate::server::Excerpt;

/// Most that a record keeps of stdout, of stderr, and of the result, in bytes each.
pub(crate) const MAX_KEPT_BYTES: usize = 64 * 1024;
/// Longest error sentence that a record keeps, in bytes.
const MAX_MESSAGE_BYTES: usize = 8 * 1024;

/// What is known of a call from its beginning.
pub(crate) struct Begun<'a> {
    pub(crate) id: InvocationId,
    pub(crate) node: NodeId,
    pub(crate) spec: &'a DeploymentSpec,
    pub(crate) info: RequestInfo,
    pub(crate) arrived: DateTime<Utc>,
    /// All but the total.
    pub(crate) phases: Phases,
}

/// What is known of a function that ran.
pub(crate) struct Ran<'a> {
    pub(crate) exit: &'a Exit,
    pub(crate) verdict: &'a Verdict,
}

/// The record of a function that ran, and ended at `now`, `took` after the request arrived.
pub(crate) fn of_run(begun: Begun<'_>, ran: &Ran<'_>, took: Duration, now: DateTime<Utc>) -> Record {
    let Ran { exit, verdict } = ran;
    let (stdout, stdout_cut) = printed(&exit.stdout);
    let (stderr, stderr_cut) = printed(&exit.stderr);
    let container = ContainerLogs {
        stdout,
        stderr,
        exit_code: verdict.exit_code,
        timestamp: rfc3339(now),
        truncated: exit.truncated || stdout_cut || stderr_cut,
    };
    let metadata = Metadata {
        function_uuid: begun.spec.function,
        start_time: rfc3339(now - exit.duration),
        end_time: rfc3339(now),
        timeout_ms: begun.spec.limits.timeout_ms,
        memory_limit_mb: begun.spec.limits.memory_mb,
        status_code: None,
    };
    let result = verdict.body.as_ref().map(|body| {
        let bytes = body.get().as_bytes();
        base64::encode(&bytes[..bytes.len().min(MAX_KEPT_BYTES)])
    });
    let failure = verdict.failure.clone();
    let mut record = record(begun, verdict.outcome, failure, took);
    record.logs.container = Some(container);
    record.logs.metadata = Some(metadata);
    record.result = result;
    record.peak_memory_bytes = exit.peak_memory_bytes;
    record
}

/// What is known of a call of a server.
pub(crate) struct Called<'a> {
    pub(crate) outcome: Outcome,
    pub(crate) failure: Option<ExecutionError>,
    /// As the record has it.
    pub(crate) exit_code: i32,
    /// What the server printed meanwhile; `None` when there was none.
    pub(crate) printed: Option<&'a Excerpt>,
    pub(crate) status: Option<StatusCode>,
    /// How long the call was in the server.
    pub(crate) served: Duration,
}

/// The record of a call of a server, that ended at `now`, `took` after the request arrived. The answer went by and
/// is not kept.
pub(crate) fn of_call(begun: Begun<'_>, called: Called<'_>, took: Duration, now: DateTime<Utc>) -> Record {
    let Called { outcome, failure, exit_code, printed: excerpt, status, served } = called;
    let container = excerpt.map(|excerpt| {
        let (stdout, stdout_cut) = printed(&excerpt.stdout);
        let (stderr, stderr_cut) = printed(&excerpt.stderr);
        let truncated = excerpt.truncated || stdout_cut || stderr_cut;
        ContainerLogs { stdout, stderr, exit_code, timestamp: rfc3339(now), truncated }
    });
    let metadata = Metadata {
        function_uuid: begun.spec.function,
        start_time: rfc3339(now - served),
        end_time: rfc3339(now),
        timeout_ms: begun.spec.limits.timeout_ms,
        memory_limit_mb: begun.spec.limits.memory_mb,
        status_code: status.map(|status| status.as_u16()),
    };
    let mut record = record(begun, outcome, failure, took);
    record.logs.metadata = container.as_ref().map(|_| metadata);
    record.logs.container = container;
    record
}

/// The record of a call whose function did not run, or was lost while it ran.
pub(crate) fn of_failure(begun: Begun<'_>, outcome: Outcome, failure: ExecutionError, took: Duration) -> Record {
    record(begun, outcome, Some(failure), took)
}

fn record(begun: Begun<'_>, outcome: Outcome, failure: Option<ExecutionError>, took: Duration) -> Record {
    let failure =
        failure.map(|failure| ExecutionError { message: storable(&failure.message, MAX_MESSAGE_BYTES), ..failure });
    Record {
        id: begun.id,
        function: begun.spec.function,
        deployment: begun.spec.deployment,
        node: begun.node,
        outcome,
        duration_ms: u32::try_from(took.as_micros().div_ceil(1000)).unwrap_or(u32::MAX),
        error: failure.as_ref().map(|failure| base64::encode(&failure.message)),
        logs: Logs { container: None, errors: failure.into_iter().collect(), metadata: None },
        request_info: begun.info,
        result: None,
        cold: begun.phases.cold_us.is_some(),
        peak_memory_bytes: 0,
        created_at: begun.arrived,
        phases: Phases { total_us: Some(micros(took)), ..begun.phases },
    }
}

/// What was printed, as text that a database takes, and whether it was cut.
fn printed(bytes: &[u8]) -> (String, bool) {
    let kept = &bytes[..bytes.len().min(MAX_KEPT_BYTES)];
    (String::from_utf8_lossy(kept).replace('\0', "\u{fffd}"), kept.len() < bytes.len())
}

fn rfc3339(time: DateTime<Utc>) -> String {
    time.to_rfc3339_opts(SecondsFormat::Millis, true)
}

#[cfg(test)]
mod tests {
    use common::function::Limits;

    use super::*;
    use crate::invocation::Form;
    use crate::invocation::result::judge;
    use crate::sandbox::{How, ResultFile};

    fn spec() -> DeploymentSpec {
        DeploymentSpec {
            deployment: common::ids::DeploymentId::new(),
            function: common::ids::FunctionId::new(),
            version: 1,
            runtime: "native".parse().unwrap(),
            entrypoint: "main".into(),
            archive: common::digest::Digest::of(b""),
            archive_root: None,
            limits: Limits { timeout_ms: 5000, memory_mb: 128, concurrency: 10, min_warm: 0 },
            env: std::collections::BTreeMap::new(),
            contract: common::function::Contract::File,
            egress: false,
            stale_while_cold_ms: 0,
            node_selector: common::labels::Labels::NONE,
        }
    }

    fn run(how: How, result: ResultFile, stdout: Vec<u8>) -> Record {
        let spec = spec();
        let exit = Exit {
            how,
            stdout,
            stderr: b"e\0e".to_vec(),
            truncated: false,
            peak_memory_bytes: 7,
            duration: Duration::from_millis(20),
            result,
        };
        let verdict = judge(&exit, Form::Http, &spec.limits, 1024);
        let begun = Begun {
            id: InvocationId::new(),
            node: NodeId::new(),
            spec: &spec,
            info: RequestInfo::default(),
            arrived: Utc::now(),
            phases: Phases { cold_us: Some(400), ..Phases::default() },
        };
        let ran = Ran { exit: &exit, verdict: &verdict };
        of_run(begun, &ran, Duration::from_micros(20_001), Utc::now())
    }

    #[test]
    fn of_a_success() {
        let record = run(How::Exited(0), ResultFile::Bytes(br#"{"body":{"a":1}}"#.to_vec()), b"out".to_vec());
        assert_eq!(record.outcome, Outcome::Success);
        assert_eq!(base64::decode(&record.result.unwrap()).unwrap(), br#"{"a":1}"#);
        assert_eq!((record.error, record.duration_ms, record.cold, record.peak_memory_bytes), (None, 21, true, 7));
        assert_eq!((record.phases.cold_us, record.phases.total_us), (Some(400), Some(20_001)));
        let container = record.logs.container.unwrap();
        assert_eq!((container.stdout.as_str(), container.stderr.as_str()), ("out", "e\u{fffd}e"));
        assert_eq!((container.exit_code, container.truncated), (0, false));
        assert!(record.logs.errors.is_empty());
    }

    #[test]
    fn of_a_timeout() {
        let record = run(How::TimedOut, ResultFile::Empty, vec![b'x'; MAX_KEPT_BYTES + 1]);
        let sentence = "Function execution timed out (5000ms)";
        assert_eq!(base64::decode(&record.error.unwrap()).unwrap(), sentence.as_bytes());
        let expected = ExecutionError { phase: "execution".into(), message: sentence.into(), code: "-1".into() };
        assert_eq!(record.logs.errors, [expected]);
        let container = record.logs.container.unwrap();
        assert_eq!((container.exit_code, container.truncated, container.stdout.len()), (-1, true, MAX_KEPT_BYTES));
        assert_eq!(record.result, None);
    }

    #[test]
    fn a_large_result_is_cut() {
        let result = format!(r#"{{"body":"{}"}}"#, "y".repeat(2 * MAX_KEPT_BYTES));
        let record = run(How::Exited(0), ResultFile::Bytes(result.into_bytes()), Vec::new());
        assert_eq!(base64::decode(&record.result.unwrap()).unwrap().len(), MAX_KEPT_BYTES);
    }
}
