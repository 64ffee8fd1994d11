//! The right to use a function's sandbox for one call, and how that call ended.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use common::phases::ColdCause;

use super::Sandboxes;
use super::function::{Finished, Function};

mod serving;

pub(crate) use serving::{PORT, Serving, Word, server};

/// How much longer than the function the runner may take: it kills, waits for the dead, and reports.
const REPORT_LIMIT: Duration = Duration::from_secs(15);

/// How one call of a function ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Exit {
    /// In what way its process ended.
    pub how: How,
    /// What it printed, up to `SANDBOX_OUTPUT_KB`.
    pub stdout: Vec<u8>,
    /// The same of its standard error.
    pub stderr: Vec<u8>,
    /// Whether it printed more.
    pub truncated: bool,
    /// Its largest resident set, in bytes; 0 when it did not start.
    pub peak_memory_bytes: u64,
    /// From the start to the end of the process.
    pub duration: Duration,
    /// What it left in `/result.json`.
    pub result: ResultFile,
}

/// In what way a function's process ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum How {
    /// With this exit code.
    Exited(i32),
    /// By this signal.
    Signaled(i32),
    /// It ran into its time limit.
    TimedOut,
    /// The kernel killed in its sandbox for want of memory, and it did not survive that.
    OutOfMemory,
    /// It could not be started; the reason.
    SpawnFailed(String),
}

/// What a function left in `/result.json`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ResultFile {
    /// Nothing.
    Empty,
    /// More than may be taken.
    TooLarge,
    /// This.
    Bytes(Vec<u8>),
}

/// The sandbox went away under the call, or the exchange with it failed. Whether the function ran is not known.
#[derive(Debug, thiserror::Error)]
#[error("the sandbox is gone: {0}")]
pub struct Gone(#[source] io::Error);

/// The right to use a function's sandbox for one call after another. Dropping it gives the sandbox back, or ends it
/// where a call was broken off or left something behind.
#[derive(Debug)]
pub struct Lease {
    sandboxes: Arc<Sandboxes>,
    /// Taken out by `drop` alone.
    function: Option<Box<Function>>,
    /// Whether the sandbox is as a call may find it.
    sound: bool,
    cold: Option<Cold>,
    queued: Duration,
}

/// The start of a sandbox that a call waited for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cold {
    /// How long it took.
    pub took: Duration,
    /// Why there was none; `None` when that is not known any more.
    pub cause: Option<ColdCause>,
}

impl Lease {
    pub(crate) fn new(sandboxes: &Arc<Sandboxes>, function: Box<Function>, cold: Option<Cold>) -> Self {
        let sandboxes = Arc::clone(sandboxes);
        Self { sandboxes, function: Some(function), sound: true, cold, queued: Duration::ZERO }
    }

    #[cfg(test)]
    pub(crate) fn sandbox(&self) -> common::ids::SandboxId {
        self.function.as_ref().expect("only `drop` takes it").id()
    }

    pub(crate) fn queued_for(mut self, queued: Duration) -> Self {
        self.queued = queued;
        self
    }

    /// The start of this sandbox, if it was started while this call waited and nobody used it before.
    #[must_use]
    pub fn cold(&self) -> Option<Cold> {
        self.cold
    }

    /// How long the call waited, for a start or for its turn.
    #[must_use]
    pub fn queued(&self) -> Duration {
        self.queued
    }

    /// Runs the function once: `request_json` is its `/request.json`. What it leaves in `/result.json` stays there, as the
    /// function's own memory, until [`Lease::settle`]. It takes at most the function's time limit and 15 seconds.
    ///
    /// # Errors
    /// The sandbox is gone, or the request does not fit into `SANDBOX_EXCHANGE_MB`. The lease is of no more use.
    pub(crate) async fn run(&mut self, request_json: &[u8]) -> Result<Finished, Gone> {
        let Some(function) = self.function.as_mut().filter(|_| self.sound) else {
            return Err(Gone(io::ErrorKind::NotConnected.into()));
        };
        // Until the end is known: whoever drops this future half-way leaves a sandbox that nobody may use.
        self.sound = false;
        let limit = Duration::from_millis(function.spec.limits.timeout_ms.into()) + REPORT_LIMIT;
        match tokio::time::timeout(limit, function.call(request_json)).await {
            Ok(finished) => finished.map_err(Gone),
            Err(_) => Err(Gone(io::ErrorKind::TimedOut.into())),
        }
    }

    /// How a run ended, and its result, if that is at most `result_cap` bytes. Without this the sandbox is not used again.
    ///
    /// # Errors
    /// The result cannot be read. The lease is of no more use.
    pub(crate) fn settle(&mut self, finished: Finished, result_cap: usize) -> Result<Exit, Gone> {
        let Some(function) = self.function.as_mut() else { return Err(Gone(io::ErrorKind::NotConnected.into())) };
        let (exit, clean) = function.settle(finished, result_cap).map_err(Gone)?;
        self.sound = clean;
        Ok(exit)
    }

    /// Both.
    #[cfg(test)]
    pub(crate) async fn invoke(&mut self, request_json: &[u8], result_cap: usize) -> Result<Exit, Gone> {
        let finished = self.run(request_json).await?;
        self.settle(finished, result_cap)
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        if let Some(function) = self.function.take() {
            self.sandboxes.give_back(function, self.sound);
        }
    }
}
