//! The runner's one loop. It wakes for: a word of the agent, room in the agent's socket, output, an ended child,
//! the end of a process's time.

use std::fs::File;
use std::io::{self, ErrorKind, Read, Write};
use std::os::unix::net::UnixStream;

use runner::wire::{self, MAX_OUTPUT_BYTES, Order, Run};

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
        spare: Keeper::default(),
        buffer: vec![0; MAX_OUTPUT_BYTES].into_boxed_slice(),
    };
    let served = service.run();
    service.spare.end();
    if let Some(mut job) = service.job.take() {
        job.bury(children)?;
    }
    served
}

struct Service<'a> {
    agent: &'a UnixStream,
    children: &'a File,
    inbox: Vec<u8>,
    outbox: Vec<u8>,
    job: Option<Job>,
    spare: Keeper,
    buffer: Box<[u8]>,
}

/// What a sleep ended with.
#[derive(Default)]
struct Events {
    agent: bool,
    child: bool,
    outputs: [bool; 2],
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
        let mut watched = [job::watch(self.agent), job::watch(self.children), NONE, NONE];
        let mut timeout_ms = -1;
        if !self.outbox.is_empty() {
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
        system::poll(&mut watched, timeout_ms)?;
        let ready = |slot: usize| watched[slot].revents & !libc::POLLOUT != 0;
        let none = watched.iter().all(|slot| slot.revents == 0);
        Ok(Events { agent: ready(0), child: ready(1), outputs: [ready(2), ready(3)], none })
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
            // The agent waits for the end of one run before it asks for anything else.
            if self.job.is_some() {
                return Err(ErrorKind::InvalidData.into());
            }
            match order {
                Order::Keep(spare) => self.spare.keep(spare),
                Order::Run(run) => self.start(&run),
            }
        }
        Ok(true)
    }

    fn start(&mut self, run: &Run) {
        let started = match self.spare.take(run) {
            Some(job) => Ok(job),
            None => Job::start(run),
        };
        match started {
            Ok(job) => self.job = Some(job),
            Err(error) => {
                self.spare.renew();
                wire::encode_done(&mut self.outbox, &job::refusal(&error));
            }
        }
    }

    fn reap(&mut self) -> io::Result<()> {
        let Some(job) = &mut self.job else {
            // Between two runs only a spare lives.
            while let Waited::Ended { pid, .. } = system::reap()? {
                self.spare.note(pid);
            }
            return Ok(());
        };
        if !job.reap()? {
            return Ok(());
        }
        if let Some(job) = self.job.take() {
            let done = job.finish(self.children, &mut self.buffer, &mut self.outbox)?;
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
        // One run's flood is not kept as memory for all the runs that print a line.
        self.outbox.shrink_to(MAX_OUTPUT_BYTES);
        Ok(true)
    }
}

fn again(error: &io::Error) -> bool {
    matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted)
}
