//! The runner's one loop. It wakes for: a word of the agent, room in the agent's socket, output, an ended child,
//! the end of a process's time; and with a server, for its connections.

use std::fs::File;
use std::io::{self, ErrorKind, Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;

use runner::wire::{self, MAX_OUTPUT_BYTES, Order, Run, ServerOrder};

use crate::dial::{Dial, Dialled};
use crate::job::{self, Job};
use crate::spare::Keeper;
use crate::system::{self, Waited};

/// Serves the agent until it closes the connection; whatever runs then is killed.
///
/// # Errors
/// The agent speaks another language, or the kernel refuses something; nothing of the function runs then either.
pub(crate) fn serve(agent: &UnixStream, children: &File) -> io::Result<()> {
    agent.set_nonblocking(true)?;
    let mut service = Service {
        agent,
        children,
        inbox: Vec::new(),
        outbox: Vec::new(),
        job: None,
        port: None,
        dial: None,
        passing: None,
        spare: Keeper::default(),
        buffer: vec![0; MAX_OUTPUT_BYTES].into_boxed_slice(),
    };
    let served = service.run();
    service.spare.end();
    if let Some(mut job) = service.job.take() {
        job.bury(children, &mut service.spare)?;
    }
    served
}

struct Service<'a> {
    agent: &'a UnixStream,
    children: &'a File,
    inbox: Vec<u8>,
    outbox: Vec<u8>,
    job: Option<Job>,
    /// Where the job listens, when it is a server.
    port: Option<u16>,
    /// A connection that is being made.
    dial: Option<Dial>,
    /// A connection that is handed to the agent next, when the outbox is empty.
    passing: Option<OwnedFd>,
    spare: Keeper,
    buffer: Box<[u8]>,
}

/// What a sleep ended with.
#[derive(Default)]
struct Events {
    agent: bool,
    child: bool,
    outputs: [bool; 2],
    dial: bool,
    /// Nothing happened for as long as the sleep was to last.
    none: bool,
}

impl Service<'_> {
    fn run(&mut self) -> io::Result<()> {
        loop {
            let events = self.sleep()?;
            if events.agent && !self.listen()? {
                return Ok(());
            }
            if let Some(job) = &mut self.job {
                for (output, ready) in job.outputs.iter_mut().zip(events.outputs) {
                    if ready {
                        output.pump(&mut self.buffer, &mut self.outbox);
                    }
                }
                job.keep_time()?;
            }
            self.go_on_dialling(events.dial);
            if events.child {
                job::settle(self.children);
                self.reap()?;
            }
            if !self.speak()? {
                return Ok(());
            }
            // Last of all: a call that waits already starts its own process just as fast.
            if events.none && self.job.is_none() && self.spare.is_due() {
                self.spare.start();
            }
        }
    }

    fn sleep(&self) -> io::Result<Events> {
        const NONE: libc::pollfd = libc::pollfd { fd: -1, events: 0, revents: 0 };
        let mut watched = [job::watch(self.agent), job::watch(self.children), NONE, NONE, NONE];
        let mut timeout_ms = -1;
        if !self.outbox.is_empty() || self.passing.is_some() {
            watched[0].events |= libc::POLLOUT;
        }
        if let Some(job) = &self.job {
            timeout_ms = job.sleep_ms();
            // What was printed waits in its pipe until the agent has taken what it was sent before.
            for (output, slot) in job.outputs.iter().zip(&mut watched[2..]).filter(|_| self.outbox.is_empty()) {
                *slot = output.pipe().map_or(NONE, job::watch);
            }
        } else if self.spare.is_due() && self.outbox.is_empty() {
            timeout_ms = 0;
        }
        if let Some(dial) = &self.dial {
            let (descriptor, due_ms) = dial.watch();
            watched[4] = descriptor.unwrap_or(NONE);
            timeout_ms = if timeout_ms < 0 { due_ms } else { timeout_ms.min(due_ms) };
        }
        system::poll(&mut watched, timeout_ms)?;
        let ready = |slot: usize| watched[slot].revents & !libc::POLLOUT != 0;
        let none = watched.iter().all(|slot| slot.revents == 0);
        let dial = watched[4].revents != 0;
        Ok(Events { agent: ready(0), child: ready(1), outputs: [ready(2), ready(3)], dial, none })
    }

    /// Reads what the agent says; `false` when it hung up.
    fn listen(&mut self) -> io::Result<bool> {
        let mut agent = self.agent;
        match agent.read(&mut self.buffer) {
            Ok(0) => return Ok(false),
            Ok(count) => self.inbox.extend_from_slice(&self.buffer[..count]),
            Err(error) if again(&error) => return Ok(true),
            Err(error) if error.kind() == ErrorKind::ConnectionReset => return Ok(false),
            Err(error) => return Err(error),
        }
        let malformed = |error| io::Error::new(ErrorKind::InvalidData, error);
        while let Some((body, used)) = wire::split(&self.inbox).map_err(malformed)? {
            let order = Order::decode(body).map_err(malformed)?;
            self.inbox.drain(..used);
            match order {
                Order::Server(ServerOrder::Connect { timeout_ms }) => self.begin_dialling(timeout_ms)?,
                Order::Server(ServerOrder::Flush) => self.flush(),
                // The agent waits for the end of one process before it asks for another.
                _ if self.job.is_some() => return Err(ErrorKind::InvalidData.into()),
                Order::Keep(spare) => self.spare.keep(spare),
                Order::Run(run) => self.start(&run),
                Order::Server(ServerOrder::Serve(serve)) => {
                    self.port = Some(serve.port);
                    self.started(Job::serve(&serve));
                }
            }
        }
        Ok(true)
    }

    fn start(&mut self, run: &Run) {
        let started = match self.spare.take(run) {
            Some(job) => Ok(job),
            None => Job::start(run),
        };
        self.started(started);
    }

    fn started(&mut self, started: io::Result<Job>) {
        match started {
            Ok(job) => self.job = Some(job),
            Err(error) => {
                self.spare.renew();
                wire::encode_done(&mut self.outbox, &job::refusal(&error));
            }
        }
    }

    fn begin_dialling(&mut self, timeout_ms: u32) -> io::Result<()> {
        if self.dial.is_some() || self.passing.is_some() {
            return Err(ErrorKind::InvalidData.into());
        }
        match (self.port, &self.job) {
            (Some(port), Some(_)) => self.dial = Some(Dial::new(port, timeout_ms)),
            // It ended before the question came; the agent is told so already.
            _ => wire::encode_unconnected(&mut self.outbox, libc::ECONNREFUSED),
        }
        Ok(())
    }

    fn go_on_dialling(&mut self, ready: bool) {
        match self.dial.as_mut().and_then(|dial| dial.go_on(ready)) {
            None => return,
            Some(Dialled::Connected(socket)) => self.passing = Some(socket),
            Some(Dialled::Failed(errno)) => wire::encode_unconnected(&mut self.outbox, errno),
        }
        self.dial = None;
    }

    /// Takes what is in the pipes now, and no more: a server that never stops printing does not hold this up.
    fn flush(&mut self) {
        if let Some(job) = &mut self.job {
            for output in &mut job.outputs {
                for _ in 0..MAX_FLUSH_ROUNDS {
                    if !output.pump(&mut self.buffer, &mut self.outbox) {
                        break;
                    }
                }
            }
        }
        wire::encode_flushed(&mut self.outbox);
    }

    fn reap(&mut self) -> io::Result<()> {
        let Some(job) = &mut self.job else {
            // Between two runs only a spare lives, and the fork server that made it.
            while let Waited::Ended { pid, .. } = system::reap()? {
                self.spare.note(pid);
            }
            return Ok(());
        };
        if !job.reap(&mut self.spare)? {
            return Ok(());
        }
        if let Some(job) = self.job.take() {
            if self.dial.take().is_some() {
                wire::encode_unconnected(&mut self.outbox, libc::ECONNREFUSED);
            }
            let done = job.finish(self.children, &mut self.spare, &mut self.buffer, &mut self.outbox)?;
            wire::encode_done(&mut self.outbox, &done);
            self.spare.renew();
        }
        Ok(())
    }

    /// Writes what the agent has room for; `false` when it hung up.
    fn speak(&mut self) -> io::Result<bool> {
        let mut agent = self.agent;
        while !self.outbox.is_empty() {
            match agent.write(&self.outbox) {
                Ok(count) => drop(self.outbox.drain(..count)),
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) if again(&error) => return Ok(true),
                Err(error) if matches!(error.kind(), ErrorKind::BrokenPipe | ErrorKind::ConnectionReset) => {
                    return Ok(false);
                }
                Err(error) => return Err(error),
            }
        }
        if !self.pass()? {
            return Ok(false);
        }
        // One run's flood is not kept as memory for all the runs that print a line.
        self.outbox.shrink_to(MAX_OUTPUT_BYTES);
        Ok(true)
    }

    /// Hands the agent a connection that was made, after all that was to be said before; `false` when it hung up.
    fn pass(&mut self) -> io::Result<bool> {
        if !self.outbox.is_empty() {
            return Ok(true);
        }
        let Some(socket) = self.passing.take() else { return Ok(true) };
        let mut frame = Vec::new();
        wire::encode_connected(&mut frame);
        match system::send_with(self.agent, &frame, [socket.as_fd()]) {
            Ok(count) => self.outbox.extend_from_slice(&frame[count..]),
            Err(error) if again(&error) => self.passing = Some(socket),
            Err(error) if matches!(error.kind(), ErrorKind::BrokenPipe | ErrorKind::ConnectionReset) => {
                return Ok(false);
            }
            Err(error) => return Err(error),
        }
        Ok(true)
    }
}

/// A pipe of 64 KiB is empty after one.
const MAX_FLUSH_ROUNDS: usize = 4;

fn again(error: &io::Error) -> bool {
    matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted)
}
