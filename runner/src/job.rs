//! One run: a process, its output, its time limit, and the end of all that it started.

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::process::ExitStatusExt;
use std::process::ExitStatus;
use std::time::{Duration, Instant};

use runner::wire::{Done, How, MAX_OUTPUT_BYTES, Run, Serve, Stream};

use crate::output::Output;
use crate::process::{Command, Process};
use crate::scratch;
use crate::spare::Keeper;
use crate::system::{self, Pid, Waited};

/// How long killed processes may take to vanish. One that hangs in the kernel for longer costs the sandbox.
const KILL_LIMIT: Duration = Duration::from_secs(5);
/// A pipe holds at most 1 MiB when its last writer is dead.
const MAX_PIPE_BYTES: usize = 1024 * 1024;

/// A process that runs.
pub(crate) struct Job {
    pid: Pid,
    started: Instant,
    /// A server has none.
    deadline: Option<Instant>,
    timed_out: bool,
    /// How and with which peak memory it ended.
    ended: Option<(ExitStatus, u64, Duration)>,
    pub(crate) outputs: [Output; 2],
}

/// A start that failed, as the answer to it.
pub(crate) fn refusal(error: &io::Error) -> Done {
    let errno = error.raw_os_error().unwrap_or(libc::EINVAL);
    Done { how: How::SpawnFailed(errno), peak_rss_bytes: 0, duration_us: 0, truncated: false, clean: true }
}

impl Job {
    /// Starts the process.
    pub(crate) fn start(run: &Run) -> io::Result<Self> {
        let started = Instant::now();
        let command = Command { argv: &run.argv, env: &run.env, cwd: &run.cwd };
        let process = Process::start(&command, run.merged, None)?;
        Ok(Self::of(process, run, started))
    }

    /// `run`, for which `process` was started before.
    pub(crate) fn of(process: Process, run: &Run, started: Instant) -> Self {
        let Process { pid, stdout, stderr } = process;
        Self {
            pid,
            started,
            deadline: Some(started + Duration::from_millis(u64::from(run.timeout_ms))),
            timed_out: false,
            ended: None,
            outputs: [
                Output::new(Stream::Stdout, stdout, run.output_cap_bytes),
                Output::new(Stream::Stderr, stderr, run.output_cap_bytes),
            ],
        }
    }

    /// Starts a server.
    pub(crate) fn serve(serve: &Serve) -> io::Result<Self> {
        let Serve { argv, env, cwd, output_cap_bytes, .. } = serve.clone();
        let mut job =
            Self::start(&Run { argv, env, cwd, output_cap_bytes, timeout_ms: 0, merged: false, call: Vec::new() })?;
        job.deadline = None;
        job.outputs = job.outputs.map(|output| output.endless(output_cap_bytes));
        Ok(job)
    }

    /// How long the service may sleep, for `poll`; without end where nothing is due.
    pub(crate) fn sleep_ms(&self) -> i32 {
        self.deadline.map_or(-1, ms_until)
    }

    /// Kills everything when the time is over.
    ///
    /// # Errors
    /// What was killed does not die.
    pub(crate) fn keep_time(&mut self) -> io::Result<()> {
        let now = Instant::now();
        if self.deadline.is_none_or(|deadline| now < deadline) {
            return Ok(());
        }
        if self.timed_out {
            return Err(io::ErrorKind::TimedOut.into());
        }
        self.timed_out = true;
        self.deadline = Some(now + KILL_LIMIT);
        system::kill_all(self.pid);
        Ok(())
    }

    /// Takes all ended children off the kernel's list; `true` when the process itself was among them.
    pub(crate) fn reap(&mut self, spare: &mut Keeper) -> io::Result<bool> {
        while let Waited::Ended { pid, status, peak_rss_bytes } = system::reap()? {
            spare.note(pid);
            self.note(pid, status, peak_rss_bytes);
        }
        Ok(self.ended.is_some())
    }

    /// Ends what the process left running, takes the rest of its output and empties the sandbox's writable places.
    pub(crate) fn finish(
        mut self,
        children: &File,
        spare: &mut Keeper,
        buffer: &mut [u8],
        outbox: &mut Vec<u8>,
    ) -> io::Result<Done> {
        let alone = self.bury(children, spare)?;
        for output in &mut self.outputs {
            output.finish(buffer, outbox, MAX_PIPE_BYTES.max(MAX_OUTPUT_BYTES));
        }
        let (status, peak_rss_bytes, duration) = self.ended.unwrap_or_default();
        let how = match (self.timed_out, status.code(), status.signal()) {
            (true, ..) => How::TimedOut,
            (_, Some(code), _) => How::Exited(code),
            (_, _, signal) => How::Signaled(signal.unwrap_or_default()),
        };
        Ok(Done {
            how,
            peak_rss_bytes,
            duration_us: u64::try_from(duration.as_micros()).unwrap_or(u64::MAX),
            truncated: self.outputs.iter().any(Output::truncated),
            // Outside a sandbox these places are everybody's.
            clean: alone && (!system::is_first() || scratch::empty_all()),
        })
    }

    /// Kills and reaps until no child is left but the fork server of `spare`; `false` when one would not die in time.
    /// Most processes leave none, and then this is one system call, or a few where there is a fork server. One that
    /// does leave something costs the fork server its life, for everything is killed at once.
    pub(crate) fn bury(&mut self, children: &File, spare: &mut Keeper) -> io::Result<bool> {
        let mut given_up = None;
        loop {
            match system::reap()? {
                Waited::Childless => return Ok(true),
                Waited::Ended { pid, status, peak_rss_bytes } => {
                    spare.note(pid);
                    self.note(pid, status, peak_rss_bytes);
                }
                Waited::Running if given_up.is_none() && spare.is_all_that_lives() => return Ok(true),
                Waited::Running => {
                    let now = Instant::now();
                    let until = *given_up.get_or_insert_with(|| {
                        system::kill_all(self.pid);
                        now + KILL_LIMIT
                    });
                    if now >= until {
                        return Ok(false);
                    }
                    let mut watched = [watch(children)];
                    system::poll(&mut watched, 10)?;
                    settle(children);
                }
            }
        }
    }

    fn note(&mut self, pid: Pid, status: i32, peak_rss_bytes: u64) {
        if pid == self.pid && self.ended.is_none() {
            self.ended = Some((ExitStatus::from_raw(status), peak_rss_bytes, self.started.elapsed()));
        }
    }
}

/// The time left until `deadline`, for `poll`.
pub(crate) fn ms_until(deadline: Instant) -> i32 {
    let left = deadline.saturating_duration_since(Instant::now());
    i32::try_from(left.as_micros().div_ceil(1000)).unwrap_or(i32::MAX)
}

/// `descriptor`, to be polled for something to read.
pub(crate) fn watch(descriptor: &impl AsRawFd) -> libc::pollfd {
    libc::pollfd { fd: descriptor.as_raw_fd(), events: libc::POLLIN, revents: 0 }
}

/// Makes the descriptor of [`system::watch_children`] unreadable until the next child ends.
pub(crate) fn settle(mut children: &File) {
    // Nothing to read is as good as read.
    let _ = io::Read::read(&mut children, &mut [0; 8]);
}
