//! The fork server: an interpreter that has started, knows nothing of the function, and is forked to make the process
//! that is ready before its call. It lives through the calls, and what makes that safe is its program's part: a process
//! of the function cannot read or write it. What such a process can do is to kill or to stop it; then there is another.

use std::fs::File;
use std::io::{self, Read};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::time::Duration;

use runner::wire::Spare;

use crate::process::{Command, Process};
use crate::spare::Ready;
use crate::system::{self, Pid};

/// How long a call waits for its process. A fork server that has just been started answers late where a bare start would
/// be as slow, and one that a call has stopped is not asked.
const ANSWER_LIMIT: Duration = Duration::from_secs(1);

/// A fork server that runs.
pub(crate) struct ForkServer {
    pub(crate) pid: Pid,
    link: UnixStream,
    /// Our ends of what the process that was asked for has open.
    asked: Option<Ends>,
}

struct Ends {
    stdout: File,
    stderr: File,
    call: File,
}

impl ForkServer {
    /// Starts one. What itself prints is nobody's.
    pub(crate) fn start(wanted: &Spare) -> io::Result<Self> {
        let (link, theirs) = UnixStream::pair()?;
        link.set_read_timeout(Some(ANSWER_LIMIT))?;
        let command = Command { argv: &wanted.argv, env: &wanted.env, cwd: &wanted.cwd };
        let process = Process::start(&command, false, Some(&OwnedFd::from(theirs).into()))?;
        Ok(Self { pid: process.pid, link, asked: None })
    }

    /// Asks for a process.
    ///
    /// # Errors
    /// It is dead or stopped.
    pub(crate) fn ask(&mut self) -> io::Result<()> {
        if system::is_stopped(self.pid) {
            return Err(io::ErrorKind::NotConnected.into());
        }
        let (stdout, print) = system::pipe()?;
        let (stderr, complain) = system::pipe()?;
        let (hear, call) = system::pipe()?;
        for end in [&stdout, &stderr] {
            system::never_wait(end)?;
        }
        system::never_wait(&call)?;
        system::send_with(&self.link, b".", [print.as_fd(), complain.as_fd(), hear.as_fd()])?;
        self.asked = Some(Ends { stdout, stderr, call: call.into() });
        Ok(())
    }

    /// The process that was asked for.
    ///
    /// # Errors
    /// There is none in time.
    pub(crate) fn answer(&mut self) -> io::Result<Ready> {
        let Ends { stdout, stderr, call } = self.asked.take().ok_or(io::ErrorKind::NotFound)?;
        let mut pid = [0; 4];
        self.link.read_exact(&mut pid)?;
        let pid = Some(Pid::from_ne_bytes(pid)).filter(|pid| *pid > 1).ok_or(io::ErrorKind::InvalidData)?;
        Ok(Ready { process: Process { pid, stdout, stderr }, call })
    }
}
