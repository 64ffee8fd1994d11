//! One call of a function: how it ended, and the record that is kept of it.

use std::collections::BTreeMap;

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};

use crate::error::Code;
use crate::ids::{DeploymentId, FunctionId, InvocationId, NodeId};
use crate::phases::Phases;

/// How an invocation ended. A closed set: it is a metric label.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Outcome {
    /// Exited with 0 and gave a valid result.
    Success,
    /// Exited with another code, or by a signal.
    Crashed,
    /// Exited with 0 and gave no result, or one that is not JSON or has no `body`.
    InvalidResult,
    /// The kernel ended it for want of memory.
    OutOfMemory,
    /// Ran into its time limit.
    TimedOut,
    /// The request could not be handed to the function: its body is not what its content type says.
    BadRequest,
    /// No sandbox could be had in time; the function did not run.
    NoSandbox,
    /// It did not run and never will like this, by its own fault: it cannot be built, or asks for what no sandbox has.
    Unstartable,
    /// The client left before the function answered; a server's call ends then.
    ClientGone,
}

impl Outcome {
    /// Every outcome.
    pub const ALL: [Self; 9] = [
        Self::Success,
        Self::Crashed,
        Self::InvalidResult,
        Self::OutOfMemory,
        Self::TimedOut,
        Self::BadRequest,
        Self::NoSandbox,
        Self::Unstartable,
        Self::ClientGone,
    ];

    /// The word in headers, metrics and the table of records.
    #[must_use]
    pub fn word(self) -> &'static str {
        match self {
            Self::Success => "success",
            Self::Crashed => "crashed",
            Self::InvalidResult => "invalid_result",
            Self::OutOfMemory => "out_of_memory",
            Self::TimedOut => "timed_out",
            Self::BadRequest => "bad_request",
            Self::NoSandbox => "no_sandbox",
            Self::Unstartable => "unstartable",
            Self::ClientGone => "client_gone",
        }
    }

    /// The outcome behind `word`.
    #[must_use]
    pub fn from_word(word: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|outcome| outcome.word() == word)
    }

    /// The public error that a failed invocation is answered with; `None` for a success, and where nobody is left to
    /// answer.
    #[must_use]
    pub fn code(self) -> Option<Code> {
        match self {
            Self::Success | Self::ClientGone => None,
            Self::Crashed | Self::Unstartable => Some(Code::FunctionCrashed),
            Self::InvalidResult => Some(Code::InvalidResult),
            Self::OutOfMemory => Some(Code::OutOfMemory),
            Self::TimedOut => Some(Code::Timeout),
            Self::BadRequest => Some(Code::BadRequest),
            Self::NoSandbox => Some(Code::NoSandbox),
        }
    }
}

/// The row of `function_invocations`: what is kept of one call. The request's body never is.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Record {
    /// The call; a resent record with the same id is dropped.
    pub id: InvocationId,
    /// What was called.
    pub function: FunctionId,
    /// The version that answered.
    pub deployment: DeploymentId,
    /// Where it ran.
    pub node: NodeId,
    /// How it ended.
    pub outcome: Outcome,
    /// From the request's arrival at the agent to its outcome, in milliseconds, rounded up.
    pub duration_ms: u32,
    /// What went wrong, Base64 of UTF-8 text; `None` for a success.
    pub error: Option<String>,
    /// What the function printed and how it ran, in the seed's structure.
    pub logs: Logs,
    /// Which request it was, in the seed's structure.
    pub request_info: RequestInfo,
    /// The result's `body` as JSON, Base64; `None` for a failure.
    pub result: Option<String>,
    /// Whether a sandbox had to be started for it.
    pub cold: bool,
    /// The function's largest resident set, in bytes; 0 when it did not run.
    pub peak_memory_bytes: u64,
    /// When the request arrived at the agent.
    pub created_at: DateTime<Utc>,
    /// What its time went into. An older agent does not say.
    #[serde(default)]
    pub phases: Phases,
}

/// The `logs` column. Its names are the seed's, so they stay in snake case in the API as well.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Logs {
    /// What the function printed; `None` when it did not run.
    pub container: Option<ContainerLogs>,
    /// What went wrong, by the step it went wrong in.
    pub errors: Vec<ExecutionError>,
    /// When and under which limits it ran.
    pub metadata: Option<Metadata>,
}

/// A function's own output.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct ContainerLogs {
    /// Standard output, lossily decoded as UTF-8, up to the cap.
    pub stdout: String,
    /// Standard error, the same.
    pub stderr: String,
    /// The exit code; 128 + n after signal n; −1 after a timeout.
    pub exit_code: i32,
    /// When it ended, RFC 3339.
    pub timestamp: String,
    /// Whether stdout or stderr was longer than the cap.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub truncated: bool,
}

/// One thing that went wrong.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ExecutionError {
    /// `request`, `sandbox`, `execution` or `result`.
    pub phase: String,
    /// What happened, as a sentence.
    pub message: String,
    /// The exit code, or an error's word.
    pub code: String,
}

/// When and under which limits a function ran.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Metadata {
    /// The function's id.
    pub function_uuid: FunctionId,
    /// RFC 3339.
    pub start_time: String,
    /// RFC 3339.
    pub end_time: String,
    /// The time limit, in milliseconds.
    pub timeout_ms: u32,
    /// The memory limit, in MiB.
    pub memory_limit_mb: u32,
    /// The status that a server answered with.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub status_code: Option<u16>,
}

/// Which request an invocation was; never its body. Credentials in `headers` are replaced by `[redacted]`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct RequestInfo {
    /// Header names in lower case.
    pub headers: BTreeMap<String, String>,
    /// The query's parameters; the last value of a repeated one.
    pub query: BTreeMap<String, String>,
    /// `GET`, `POST`, …
    pub method: String,
    /// The path that the function sees.
    pub path: String,
    /// The request's content type, if it had one.
    pub content_type: Option<String>,
    /// RFC 3339.
    pub timestamp: String,
}
