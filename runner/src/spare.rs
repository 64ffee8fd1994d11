//! The process that is ready before its call: an interpreter, say, that has started and has not loaded the function's
//! code. It is a fresh process all the same, for one call and no other, and there is none while a call runs.

use std::fs::File;
use std::io::{self, Write};
use std::time::Instant;

use runner::wire::{Run, Spare};

use crate::job::Job;
use crate::process::{Command, Process};
use crate::system::{self, Pid};

/// Which process to keep ready, and the one that is.
#[derive(Default)]
pub(crate) struct Keeper {
    wanted: Option<Spare>,
    ready: Option<Ready>,
    /// One is to be started. Only once after each order and each call: one that dies at once is not started again
    /// and again.
    due: bool,
}

struct Ready {
    process: Process,
    /// The writing end of its call descriptor.
    call: File,
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

    /// Starts the process that is due. That it does not start is no error: its call starts one the ordinary way, and
    /// tells why that fails.
    pub(crate) fn start(&mut self) {
        self.due = false;
        self.ready = self.wanted.as_ref().and_then(|wanted| Ready::start(wanted).ok());
    }

    /// The process for `run`, told what to do; `None` when there is none that will do it.
    pub(crate) fn take(&mut self, run: &Run) -> Option<Job> {
        self.due = false;
        let started = Instant::now();
        let mut ready = self.ready.take()?;
        // A pipe takes all of it at once or, when its reader is dead, nothing.
        let told =
            !run.call.is_empty() && !run.merged && ready.call.write(&run.call).is_ok_and(|n| n == run.call.len());
        if !told {
            ready.end();
            return None;
        }
        Some(Job::of(ready.process, run, started))
    }

    /// `pid` was reaped.
    pub(crate) fn note(&mut self, pid: Pid) {
        self.ready.take_if(|ready| ready.process.pid == pid);
    }

    /// Ends the process, if there is one.
    pub(crate) fn end(&mut self) {
        if let Some(ready) = self.ready.take() {
            ready.end();
        }
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

    /// Kills it. Whoever reaps next takes it off the kernel's list.
    fn end(self) {
        system::kill_all(self.process.pid);
    }
}
