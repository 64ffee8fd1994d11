//! The process that is ready before its call: an interpreter, say, that has started and has not loaded the function's
//! code. It is a fresh process all the same, for one call and no other, and there is none while a call runs. Where a
//! [`ForkServer`] makes them, that one stays.

use std::fs::File;
use std::io::{self, Write};
use std::time::Instant;

use runner::wire::{Run, Spare};

use crate::fork_server::ForkServer;
use crate::job::Job;
use crate::process::{Command, Process};
use crate::system::{self, Pid};

/// Which process to keep ready, and the one that is.
#[derive(Default)]
pub(crate) struct Keeper {
    wanted: Option<Spare>,
    server: Option<ForkServer>,
    ready: Option<Ready>,
    /// One is to be started. Only once after each order and each call: one that dies at once is not started again
    /// and again.
    due: bool,
}

/// A process that waits for its call.
pub(crate) struct Ready {
    pub(crate) process: Process,
    /// The writing end of its call descriptor.
    pub(crate) call: File,
}

impl Keeper {
    /// Keeps such a process from now on.
    pub(crate) fn keep(&mut self, wanted: Spare) {
        self.end();
        self.wanted = Some(wanted).filter(|wanted| !wanted.argv.is_empty());
        self.due = true;
    }

    /// A call is over, so that there may be one again.
    pub(crate) fn renew(&mut self) {
        self.due = true;
    }

    /// Whether [`Keeper::start`] has something to do.
    pub(crate) fn is_due(&self) -> bool {
        self.due && self.wanted.is_some()
    }

    /// Starts the process that is due, or asks the fork server for it. That it does not start is no error: its call
    /// starts one the ordinary way, and tells why that fails.
    pub(crate) fn start(&mut self) {
        self.due = false;
        let Some(wanted) = &self.wanted else { return };
        if !wanted.fork {
            self.ready = Ready::start(wanted).ok();
            return;
        }
        if self.server.as_mut().is_some_and(|server| server.ask().is_ok()) {
            return;
        }
        // A function killed or stopped it.
        self.server.take().inspect(|server| system::kill_all(server.pid));
        self.server = ForkServer::start(wanted).ok();
        self.server.take_if(|server| server.ask().is_err());
    }

    /// The process for `run`, told what to do; `None` when there is none that will do it, and then none lives.
    pub(crate) fn take(&mut self, run: &Run) -> Option<Job> {
        let started = Instant::now();
        let job = if run.call.is_empty() || run.merged { None } else { self.give(run, started) };
        self.due = false;
        if job.is_none() {
            self.end();
        }
        job
    }

    fn give(&mut self, run: &Run, started: Instant) -> Option<Job> {
        if self.due && self.server.is_some() {
            // Even now it is faster than a start.
            self.start();
        }
        let mut ready = self.ready.take().or_else(|| self.server.as_mut()?.answer().ok())?;
        // A pipe takes all of it at once or, when its reader is dead, nothing.
        if ready.call.write(&run.call).is_ok_and(|n| n == run.call.len()) {
            return Some(Job::of(ready.process, run, started));
        }
        self.ready = Some(ready);
        None
    }

    /// Whether nothing lives but the fork server.
    pub(crate) fn is_all_that_lives(&self) -> bool {
        self.server.as_ref().is_some_and(|server| system::is_only_child(server.pid))
    }

    /// `pid` was reaped.
    pub(crate) fn note(&mut self, pid: Pid) {
        self.ready.take_if(|ready| ready.process.pid == pid);
        self.server.take_if(|server| server.pid == pid);
    }

    /// Ends the process and the fork server, if there are such. Whoever reaps next takes them off the kernel's list.
    pub(crate) fn end(&mut self) {
        let ready = self.ready.take().map(|ready| ready.process.pid);
        let server = self.server.take().map(|server| server.pid);
        ready.into_iter().chain(server).for_each(system::kill_all);
    }
}

impl Ready {
    fn start(wanted: &Spare) -> io::Result<Self> {
        let (theirs, ours) = system::pipe()?;
        system::never_wait(&ours)?;
        let command = Command { argv: &wanted.argv, env: &wanted.env, cwd: &wanted.cwd };
        let process = Process::start(&command, false, Some(&theirs))?;
        Ok(Self { process, call: ours.into() })
    }
}
