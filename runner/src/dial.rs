//! A connection to the function's server, on the loopback of the sandbox: tried until the server listens, then handed
//! to the agent. One at a time, and never does the runner wait for it.

use std::io::{self, ErrorKind};
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use crate::{job, system};

/// How long a server that does not listen yet is left alone between two attempts.
const PAUSE: Duration = Duration::from_millis(5);

/// An attempt that goes on.
pub(crate) struct Dial {
    port: u16,
    deadline: Instant,
    /// Why the last attempt failed.
    last: i32,
    state: State,
}

enum State {
    /// Until the next attempt.
    Pause(Instant),
    /// The kernel is at it: the server's queue is full.
    Connecting(OwnedFd),
}

/// What became of it.
pub(crate) enum Dialled {
    /// This connection.
    Connected(OwnedFd),
    /// None; the system's error number.
    Failed(i32),
}

impl Dial {
    pub(crate) fn new(port: u16, timeout_ms: u32) -> Self {
        let now = Instant::now();
        let deadline = now + Duration::from_millis(u64::from(timeout_ms));
        Self { port, deadline, last: libc::ETIMEDOUT, state: State::Pause(now) }
    }

    /// What to poll for, and for how long at most.
    pub(crate) fn watch(&self) -> (Option<libc::pollfd>, i32) {
        match &self.state {
            State::Pause(until) => (None, job::ms_until((*until).min(self.deadline))),
            State::Connecting(socket) => {
                let watched = libc::pollfd { events: libc::POLLOUT, ..job::watch(socket) };
                (Some(watched), job::ms_until(self.deadline))
            }
        }
    }

    /// Goes on, after a sleep; `ready` says that the polled descriptor is.
    pub(crate) fn go_on(&mut self, ready: bool) -> Option<Dialled> {
        let now = Instant::now();
        match std::mem::replace(&mut self.state, State::Pause(now)) {
            State::Connecting(socket) if ready => match system::connect_error(&socket) {
                Ok(()) => return Some(Dialled::Connected(socket)),
                Err(error) => self.rest(&error),
            },
            State::Pause(until) if now >= until => match self.attempt() {
                Ok((socket, true)) => return Some(Dialled::Connected(socket)),
                Ok((socket, false)) => self.state = State::Connecting(socket),
                Err(error) => self.rest(&error),
            },
            unchanged => self.state = unchanged,
        }
        (now >= self.deadline).then_some(Dialled::Failed(self.last))
    }

    /// By IPv4, then by IPv6: a server that was told `localhost` listens on either.
    fn attempt(&self) -> io::Result<(OwnedFd, bool)> {
        let refused = match system::connect(SocketAddr::from((Ipv4Addr::LOCALHOST, self.port))) {
            Err(error) if error.kind() == ErrorKind::ConnectionRefused => error,
            other => return other,
        };
        system::connect(SocketAddr::from((Ipv6Addr::LOCALHOST, self.port))).map_err(|_| refused)
    }

    fn rest(&mut self, error: &io::Error) {
        self.last = error.raw_os_error().unwrap_or(libc::ECONNREFUSED);
        self.state = State::Pause(Instant::now() + PAUSE);
    }
}
