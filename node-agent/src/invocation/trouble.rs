//! What can go wrong in a call of a server, and what becomes of it: the outcome, the client's answer, the record's
//! error. Pure; nothing that the function printed ever stands in an answer.

use std::time::Duration;

use common::error::{Code, PublicError};
use common::function::DeploymentSpec;
use common::invocation::{ExecutionError, Outcome};
use common::stream::Late;

use super::Form;
use super::result::{failed, judge};
use crate::sandbox::{Exit, How, PORT, ResultFile};
use crate::server::{End, NoServer};

/// What went wrong.
#[derive(Debug)]
pub(super) enum Trouble {
    /// There is no server.
    NoServer(NoServer),
    /// The server ended, and how.
    Ended(How),
    /// Its sandbox was lost.
    Lost,
    /// It closed the connection before its answer was whole.
    HungUp,
    /// It takes no connection any more.
    Unreachable,
    /// The call took too long, or was silent for too long.
    Late(Late),
    /// It answered something that cannot be handed on; the reason.
    BadAnswer(String),
    /// The client's own request ended early.
    BrokenRequest,
}

/// What it comes to.
#[derive(Debug)]
pub(super) struct Verdict {
    pub(super) outcome: Outcome,
    pub(super) public: PublicError,
    pub(super) failure: ExecutionError,
    /// As the record has it.
    pub(super) exit_code: i32,
}

impl Trouble {
    /// The trouble of a call whose server ended so, if it did.
    pub(super) fn of_end(end: Option<&End>, otherwise: Self) -> Self {
        match end {
            Some(End::Ended(how)) => Self::Ended(how.clone()),
            Some(End::Lost(_) | End::Unneeded) => Self::Lost,
            None => otherwise,
        }
    }

    pub(super) fn verdict(&self, spec: &DeploymentSpec) -> Verdict {
        match self {
            Self::NoServer(NoServer::NoSandbox(reason)) => Verdict {
                outcome: Outcome::NoSandbox,
                public: PublicError::new(Code::NoSandbox, "No sandbox is free on this node; try again"),
                failure: error("sandbox", format!("No sandbox could be had: {reason}"), Code::NoSandbox.word()),
                exit_code: 0,
            },
            Self::NoServer(NoServer::Unstartable(reason)) => Verdict {
                outcome: Outcome::Unstartable,
                public: unstartable(),
                failure: error(
                    "sandbox",
                    format!("The function cannot be started: {reason}"),
                    Code::FunctionCrashed.word(),
                ),
                exit_code: 0,
            },
            Self::NoServer(NoServer::Deaf(limit, _)) => crashed(deaf(*limit)),
            Self::NoServer(NoServer::Ended(end, _)) => match &**end {
                End::Ended(How::Exited(0)) => crashed(
                    "Function execution failed: it exited before it took a call; a function of the http contract is a \
                     server that listens on $PORT until it is stopped"
                        .to_owned(),
                ),
                End::Ended(how) => of_process(how, spec),
                End::Lost(_) | End::Unneeded => lost(),
            },
            Self::Ended(How::Exited(0)) => {
                crashed("Function execution failed: the server exited during the call; its logs say more".to_owned())
            }
            Self::Ended(how) => of_process(how, spec),
            Self::Lost => lost(),
            Self::HungUp => crashed(
                "Function execution failed: it closed the connection before its answer was whole; its logs say more"
                    .to_owned(),
            ),
            Self::Unreachable => {
                crashed(format!("Function execution failed: it takes no connections on $PORT ({PORT}) any more"))
            }
            Self::Late(Late::Total) => of_process(&How::TimedOut, spec),
            Self::Late(Late::Silent) => {
                let ms = spec.contract.idle_timeout_ms().unwrap_or_default();
                let message = format!("Function execution timed out (silent for {ms}ms)");
                let timed_out = failed(Outcome::TimedOut, -1, message.clone(), "execution", message, "-1".to_owned());
                of_file_contract(timed_out)
            }
            Self::BadAnswer(reason) => {
                let message = format!("The function gave no valid answer: {reason}");
                let code = Code::InvalidResult.word().to_owned();
                of_file_contract(failed(Outcome::InvalidResult, 0, message.clone(), "result", message, code))
            }
            Self::BrokenRequest => Verdict {
                outcome: Outcome::BadRequest,
                public: PublicError::new(Code::BadRequest, "The request body ended early"),
                failure: error("request", "The request body ended early".to_owned(), Code::BadRequest.word()),
                exit_code: 0,
            },
        }
    }
}

fn deaf(limit: Duration) -> String {
    let ms = limit.as_millis();
    format!(
        "Function execution failed: it does not listen: a function of the http contract has to listen on $PORT \
         ({PORT}), on 127.0.0.1 or on all addresses, within {ms} ms of its start"
    )
}

/// A server's process ends as any function's does.
fn of_process(how: &How, spec: &DeploymentSpec) -> Verdict {
    let exit = Exit {
        how: how.clone(),
        stdout: Vec::new(),
        stderr: Vec::new(),
        truncated: false,
        peak_memory_bytes: 0,
        duration: Duration::ZERO,
        result: ResultFile::Empty,
    };
    of_file_contract(judge(&exit, Form::Http, &spec.limits, 0))
}

fn of_file_contract(verdict: super::result::Verdict) -> Verdict {
    let unnamed = || PublicError::new(Code::FunctionCrashed, "Function execution failed; its logs say more");
    let public = verdict.answer.err().unwrap_or_else(unnamed);
    let failure = verdict.failure.unwrap_or_else(|| error("execution", public.message.clone(), public.code.word()));
    Verdict { outcome: verdict.outcome, public, failure, exit_code: verdict.exit_code }
}

fn crashed(message: String) -> Verdict {
    let code = Code::FunctionCrashed.word().to_owned();
    of_file_contract(failed(Outcome::Crashed, 1, message.clone(), "execution", message, code))
}

/// The answer to a call whose function never gets a sandbox, and why is its owner's to know.
pub(super) fn unstartable() -> PublicError {
    PublicError::new(Code::FunctionCrashed, "The function cannot be started; the record of this call says why")
}

fn lost() -> Verdict {
    let public = "The function's sandbox was lost during the call; it may have run";
    Verdict {
        outcome: Outcome::Crashed,
        public: PublicError::new(Code::NodeLost, public),
        failure: error(
            "execution",
            "Function execution failed: its sandbox was lost".to_owned(),
            Code::NodeLost.word(),
        ),
        exit_code: 1,
    }
}

fn error(phase: &str, message: String, code: &str) -> ExecutionError {
    ExecutionError { phase: phase.to_owned(), message, code: code.to_owned() }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use common::function::{Contract, Limits};

    use super::*;
    use crate::server::Told;

    fn check(trouble: Trouble, outcome: Outcome, code: Code, part: &str) {
        let spec = DeploymentSpec {
            deployment: common::ids::DeploymentId::new(),
            function: common::ids::FunctionId::new(),
            version: 1,
            runtime: "native".parse().unwrap(),
            entrypoint: "main".into(),
            archive: common::digest::Digest::of(b""),
            archive_root: None,
            contract: Contract::Http { idle_timeout_ms: 700 },
            limits: Limits { timeout_ms: 5000, memory_mb: 128, concurrency: 10, min_warm: 0 },
            env: std::collections::BTreeMap::new(),
            egress: false,
            stale_while_cold_ms: 0,
            node_selector: common::labels::Labels::NONE,
        };
        let verdict = trouble.verdict(&spec);
        assert_eq!((verdict.outcome, verdict.public.code), (outcome, code), "{trouble:?}");
        assert!(verdict.public.message.contains(part), "{} has no {part}", verdict.public.message);
    }

    #[test]
    fn what_trouble_comes_to() {
        use Code::{FunctionCrashed, InvalidResult, NoSandbox, NodeLost, OutOfMemory, Timeout};
        let ended = |how| Trouble::NoServer(NoServer::Ended(Arc::new(End::Ended(how)), Told::default()));
        let deaf = NoServer::Deaf(Duration::from_secs(10), Told::default());
        check(Trouble::NoServer(deaf), Outcome::Crashed, FunctionCrashed, "listen on $PORT");
        check(ended(How::Exited(0)), Outcome::Crashed, FunctionCrashed, "listens on $PORT");
        check(ended(How::Exited(3)), Outcome::Crashed, FunctionCrashed, "exit code 3");
        check(ended(How::OutOfMemory), Outcome::OutOfMemory, OutOfMemory, "128 MiB");
        check(Trouble::NoServer(NoServer::NoSandbox("x".into())), Outcome::NoSandbox, NoSandbox, "try again");
        let unstartable = NoServer::Unstartable("its environment is too large".into());
        check(Trouble::NoServer(unstartable), Outcome::Unstartable, FunctionCrashed, "cannot be started");
        check(Trouble::Ended(How::Exited(0)), Outcome::Crashed, FunctionCrashed, "exited during the call");
        check(Trouble::Ended(How::Signaled(11)), Outcome::Crashed, FunctionCrashed, "signal 11");
        check(Trouble::Ended(How::OutOfMemory), Outcome::OutOfMemory, OutOfMemory, "128 MiB");
        check(Trouble::Lost, Outcome::Crashed, NodeLost, "lost");
        check(Trouble::HungUp, Outcome::Crashed, FunctionCrashed, "closed the connection");
        check(Trouble::Unreachable, Outcome::Crashed, FunctionCrashed, "$PORT");
        check(Trouble::Late(Late::Total), Outcome::TimedOut, Timeout, "timed out (5000ms)");
        check(Trouble::Late(Late::Silent), Outcome::TimedOut, Timeout, "silent for 700ms");
        check(Trouble::BadAnswer("no".into()), Outcome::InvalidResult, InvalidResult, "no");
        check(Trouble::BrokenRequest, Outcome::BadRequest, Code::BadRequest, "ended early");
    }
}
