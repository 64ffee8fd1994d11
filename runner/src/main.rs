//! The runner: PID 1 of every sandbox. It dials the agent, then starts one process after another as the agent asks,
//! holds each to its time and output limits, and leaves nothing of it behind.
//!
//! `dartcloud-runner SOCKET`. It ends when the agent closes the connection.

mod dial;
mod fork_server;
mod job;
mod output;
mod process;
mod scratch;
mod service;
mod spare;
mod system;

use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::UnixStream;
use std::process::ExitCode;

/// Called without a socket's path, as `sysexits.h` numbers it.
const EX_USAGE: u8 = 64;
/// The agent did not answer the dial.
const EX_UNAVAILABLE: u8 = 69;
/// The system refused something that the runner cannot do without.
const EX_OSERR: u8 = 71;

fn main() -> ExitCode {
    let Some(socket) = std::env::args_os().nth(1).filter(|path| !path.as_bytes().is_empty()) else {
        return ExitCode::from(EX_USAGE);
    };
    system::close_inherited();
    // Before all else: a function has the runner's user id, and must neither read its memory nor take its descriptors.
    if system::become_undumpable().is_err() || system::adopt_orphans().is_err() {
        return ExitCode::from(EX_OSERR);
    }
    let Ok(children) = system::watch_children() else { return ExitCode::from(EX_OSERR) };
    // Rust opens every descriptor close-on-exec, so a function inherits none of these.
    let Ok(agent) = UnixStream::connect(socket) else { return ExitCode::from(EX_UNAVAILABLE) };
    match service::serve(&agent, &children) {
        Ok(()) => ExitCode::SUCCESS,
        Err(_) => ExitCode::from(EX_OSERR),
    }
}
