//! The task that keeps one server: it alone speaks with the runner. It hands connections out, gathers what the server
//! prints, and ends it when nobody needs it any more.

use std::collections::VecDeque;
use std::io;
use std::net::TcpStream;
use std::sync::Arc;
use std::time::Duration;

use runner::wire::ServerOrder;
use tokio::sync::{mpsc, oneshot};
use tokio::time::{MissedTickBehavior, interval};
use tokio_util::sync::CancellationToken;

use super::{End, Server};
use crate::sandbox::{Sandboxes, Serving, Word, patience};

/// How often it is looked whether the server is still needed.
const ROUND: Duration = Duration::from_millis(250);

/// What a call may want of the keeper.
#[derive(Debug)]
pub(super) enum Ask {
    /// A connection, while the server is given this long to take it.
    Connect(Duration, oneshot::Sender<io::Result<TcpStream>>),
    /// That all that was printed so far is known.
    Flush(oneshot::Sender<()>),
}

/// The keeper, with what it owes.
pub(super) struct Keeper {
    serving: Serving,
    server: Arc<Server>,
    asks: mpsc::Receiver<Ask>,
    /// Connections that are waited for; the first is asked for.
    connects: VecDeque<(Duration, oneshot::Sender<io::Result<TcpStream>>)>,
    /// Who waits for the flush that is asked for, and for the next one.
    flushes: [Vec<oneshot::Sender<()>>; 2],
}

impl Keeper {
    pub(super) fn new(serving: Serving, server: Arc<Server>, asks: mpsc::Receiver<Ask>) -> Self {
        Self { serving, server, asks, connects: VecDeque::new(), flushes: [Vec::new(), Vec::new()] }
    }

    /// Keeps the server until it ends, nobody needs it, or `stop`. Then its sandbox is given up.
    pub(super) async fn run(mut self, sandboxes: &Sandboxes, stop: &CancellationToken) {
        let end = self.keep(sandboxes, stop).await;
        if let End::Lost(reason) = &end {
            tracing::warn!(deployment = %self.server.deployment, reason, "a server's sandbox is lost");
        }
        self.server.ended(end);
    }

    async fn keep(&mut self, sandboxes: &Sandboxes, stop: &CancellationToken) -> End {
        let mut round = interval(ROUND);
        round.set_missed_tick_behavior(MissedTickBehavior::Delay);
        // Looks in a row at which others waited for memory.
        let mut hungry = 0;
        loop {
            let done = tokio::select! {
                word = self.serving.hear() => match word {
                    Ok(Word::Ended(how)) => return End::Ended(how),
                    Ok(word) => self.take(word).await,
                    Err(error) => Err(error),
                },
                ask = self.asks.recv() => match ask {
                    Some(ask) => self.obey(ask).await,
                    None => return End::Unneeded,
                },
                _ = round.tick() => {
                    let deployment = self.server.deployment;
                    let mut is_idle = false;
                    let unneeded = |idle: Duration| {
                        let kept = sandboxes.is_kept(deployment);
                        hungry = if sandboxes.others_starve(deployment) { hungry + 1 } else { 0 };
                        is_idle = !kept && idle >= sandboxes.idle();
                        is_idle || hungry >= patience(idle, kept)
                    };
                    if self.server.close_if_unneeded(unneeded) {
                        if is_idle {
                            sandboxes.note_idle_removal();
                        }
                        return End::Unneeded;
                    }
                    Ok(())
                }
                () = stop.cancelled() => return End::Unneeded,
            };
            if let Err(error) = done {
                return End::Lost(error.to_string());
            }
        }
    }

    async fn obey(&mut self, ask: Ask) -> io::Result<()> {
        match ask {
            Ask::Connect(patience, tell) => {
                self.connects.push_back((patience, tell));
                if self.connects.len() == 1 { self.connect_next().await } else { Ok(()) }
            }
            Ask::Flush(tell) => {
                let under_way = !self.flushes[0].is_empty();
                self.flushes[usize::from(under_way)].push(tell);
                if under_way { Ok(()) } else { self.serving.ask(&ServerOrder::Flush).await }
            }
        }
    }

    /// Asks for the connection that is waited for longest, if that is still so.
    async fn connect_next(&mut self) -> io::Result<()> {
        while self.connects.front().is_some_and(|(_, tell)| tell.is_closed()) {
            self.connects.pop_front();
        }
        let Some((patience, _)) = self.connects.front() else { return Ok(()) };
        let timeout_ms = u32::try_from(patience.as_millis()).unwrap_or(u32::MAX);
        self.serving.ask(&ServerOrder::Connect { timeout_ms }).await
    }

    async fn take(&mut self, word: Word) -> io::Result<()> {
        let connected = match word {
            Word::Printed(stream, bytes) => {
                self.server.printed(stream, &bytes);
                return Ok(());
            }
            Word::Flushed => return self.flushed().await,
            Word::Connected(stream) => Ok(stream),
            Word::Unconnected(errno) => Err(io::Error::from_raw_os_error(errno)),
            Word::Ended(how) => return Err(io::Error::other(format!("a second end: {how:?}"))),
        };
        // A connection that nobody asked for closes here.
        if let Some((_, tell)) = self.connects.pop_front() {
            // Who no longer listens needs none.
            let _ = tell.send(connected);
        }
        self.connect_next().await
    }

    async fn flushed(&mut self) -> io::Result<()> {
        let [now, next] = &mut self.flushes;
        for tell in now.drain(..) {
            // Who no longer listens need not know.
            let _ = tell.send(());
        }
        std::mem::swap(now, next);
        if self.flushes[0].is_empty() { Ok(()) } else { self.serving.ask(&ServerOrder::Flush).await }
    }
}
