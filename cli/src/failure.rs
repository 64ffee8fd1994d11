//! How a command fails: one sentence on standard error, and an exit code that scripts can tell apart.

use std::io;
use std::process::ExitCode;

use crate::output;

/// Exit code of a wrong command line or configuration (`EX_USAGE`).
const USAGE: u8 = 64;

/// The command line, the configuration or a file of the user's is wrong; the sentence says the fix.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub(crate) struct Usage(pub(crate) String);

/// A [`Usage`] as an error of a command.
pub(crate) fn wrong(sentence: impl Into<String>) -> anyhow::Error {
    Usage(sentence.into()).into()
}

/// What clap has to say: help and version are no failure.
pub(crate) fn usage(error: &clap::Error) -> ExitCode {
    // A closed terminal cannot be told that it is closed.
    let _ = error.print();
    if error.use_stderr() { ExitCode::from(USAGE) } else { ExitCode::SUCCESS }
}

/// Says what went wrong, with its causes.
pub(crate) fn report(error: &anyhow::Error) -> ExitCode {
    let closed = |cause: &io::Error| cause.kind() == io::ErrorKind::BrokenPipe;
    if error.downcast_ref::<output::Closed>().is_some_and(|output::Closed(cause)| closed(cause)) {
        // `dartcloud list | head` has read all that it wants.
        return ExitCode::SUCCESS;
    }
    output::note(format_args!("dartcloud: {error:#}"));
    if error.is::<Usage>() { ExitCode::from(USAGE) } else { ExitCode::FAILURE }
}
