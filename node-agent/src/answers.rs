//! Answers that are kept for who asks again: of each call that came with an `Idempotency-Key`, that it began, before it
//! begins, and its answer, before that leaves. So a call runs once, whatever dies meanwhile: this process loses nothing
//! that was written, the machine at most the last 100 ms, as of records.
//!
//! A file for each key, which the file system finds, replaces and removes one by one; a log of them all would have to be
//! compacted. Which are there is known in memory.

use std::collections::{HashMap, HashSet};
use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use common::digest::Digest;
use common::ids::{FunctionId, InvocationId};
use http::Response;
use tokio::sync::{Notify, watch};
use tokio::time::{Instant, timeout_at};
use tokio_util::sync::CancellationToken;

use crate::metrics::Metrics;

mod file;
mod index;
#[cfg(test)]
mod tests;

use file::Head;
use index::{Bounds, Entry, Index};

/// How much is kept.
#[derive(Clone, Copy, Debug, clap::Args)]
#[group(id = "agent_answers")]
pub struct AnswersArgs {
    /// Most that answers take on disk which are kept for calls with an `Idempotency-Key`, in MiB; beyond it the oldest go.
    #[arg(long, env = "IDEMPOTENCY_MAX_MB", default_value_t = 256, value_parser = clap::value_parser!(u32).range(1..))]
    pub idempotency_max_mb: u32,
    /// Most of that which one function's answers take, in MiB.
    #[arg(long, env = "IDEMPOTENCY_FUNCTION_MAX_MB", default_value_t = 32, value_parser = clap::value_parser!(u32).range(1..))]
    pub idempotency_function_max_mb: u32,
}

/// How long an answer is kept.
const KEPT_FOR: Duration = Duration::from_secs(24 * 60 * 60);
/// Most repeats that wait for one call.
const MAX_WAITING: usize = 64;
/// How long what was written waits to be synced, together with what comes meanwhile.
const SYNC_DELAY: Duration = Duration::from_millis(50);
/// How often it is looked for answers that were kept long enough.
const EXPIRY_ROUND: Duration = Duration::from_secs(60);

/// A call, as it is known by its key.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Asked {
    pub(crate) key: Digest,
    /// Tells its request from another one with the same key.
    pub(crate) print: Digest,
    pub(crate) function: FunctionId,
    pub(crate) id: InvocationId,
}

/// What becomes of a call with a key.
pub(crate) enum Claim {
    /// It is the first: it runs.
    First(Turn),
    /// It ran before, under this id, and this was its answer; `None` where that is lost, or cannot be read.
    Repeat(InvocationId, Option<Response<Bytes>>),
    /// The key came with another request before.
    Reused,
    /// The first one is still under way.
    UnderWay,
}

/// The answers of this node.
pub(crate) struct Answers {
    directory: PathBuf,
    bounds: Bounds,
    state: Mutex<State>,
    /// Something was written.
    written: Notify,
    metrics: Arc<Metrics>,
}

struct State {
    running: HashMap<Digest, Running>,
    ended: Index,
    /// Files that are not synced yet.
    unsynced: HashSet<Digest>,
}

struct Running {
    print: Digest,
    /// Dropped when the call ends, which wakes those who wait for it.
    over: watch::Sender<()>,
}

/// What a look at a key finds.
enum Look {
    Settled(Claim),
    Wait(watch::Receiver<()>),
}

impl Answers {
    /// Opens the answers in `directory`. What an earlier process began and did not end may have run.
    pub(crate) fn open(directory: &Path, args: AnswersArgs, metrics: Arc<Metrics>) -> io::Result<Arc<Self>> {
        let mib = |count: u32| u64::from(count) * 1024 * 1024;
        let bounds = Bounds { total: mib(args.idempotency_max_mb), function: mib(args.idempotency_function_max_mb) };
        Self::with_bounds(directory, bounds, metrics)
    }

    fn with_bounds(directory: &Path, bounds: Bounds, metrics: Arc<Metrics>) -> io::Result<Arc<Self>> {
        std::fs::create_dir_all(directory)?;
        let mut ended = Index::default();
        for (key, head, bytes) in file::list(directory)? {
            ended.insert(key, entry(&head, bytes));
        }
        let state = Mutex::new(State { running: HashMap::new(), ended, unsynced: HashSet::new() });
        let answers = Self { directory: directory.to_owned(), bounds, state, written: Notify::new(), metrics };
        answers.trim(&mut answers.lock());
        Ok(Arc::new(answers))
    }

    /// What becomes of a call: if it is the first with its key, that is on disk when this returns. A repeat of one that
    /// runs waits for it, at most `patience`.
    ///
    /// # Errors
    /// The disk is full or broken; nothing has begun.
    pub(crate) async fn claim(self: &Arc<Self>, asked: Asked, patience: Duration) -> io::Result<Claim> {
        let deadline = Instant::now() + patience;
        let claim = loop {
            match self.look(asked)? {
                Look::Settled(claim) => break claim,
                Look::Wait(mut over) => {
                    // Nothing is ever sent: it ends, or the time does.
                    if timeout_at(deadline, over.changed()).await.is_err() {
                        break Claim::UnderWay;
                    }
                }
            }
        };
        let word = match &claim {
            Claim::First(_) => "first",
            Claim::Repeat(..) => "repeat",
            Claim::Reused => "reused",
            Claim::UnderWay => "under_way",
        };
        self.metrics.answers_calls.with_label_values(&[word]).inc();
        Ok(claim)
    }

    fn look(self: &Arc<Self>, asked: Asked) -> io::Result<Look> {
        let now = now_ms();
        let mut state = self.lock();
        self.expire(&mut state, now);
        if let Some(running) = state.running.get(&asked.key) {
            return Ok(if running.print != asked.print {
                Look::Settled(Claim::Reused)
            } else if running.over.receiver_count() >= MAX_WAITING {
                Look::Settled(Claim::UnderWay)
            } else {
                Look::Wait(running.over.subscribe())
            });
        }
        let path = file::path(&self.directory, asked.key);
        if let Some(known) = state.ended.get(&asked.key) {
            if known.print != asked.print {
                return Ok(Look::Settled(Claim::Reused));
            }
            let first = known.id;
            // Open, it stays whole even if it has to make room meanwhile.
            let file = File::open(path);
            drop(state);
            let answer = file.and_then(file::read).unwrap_or_else(|error| {
                tracing::error!(%error, request_id = %first, "a kept answer could not be read");
                None
            });
            return Ok(Look::Settled(Claim::Repeat(first, answer)));
        }
        let head = Head { function: asked.function, print: asked.print, id: asked.id, began_ms: now };
        let length = file::begin(&path, &head)?;
        let (over, _) = watch::channel(());
        state.running.insert(asked.key, Running { print: asked.print, over });
        self.sync_soon(&mut state, asked.key);
        Ok(Look::Settled(Claim::First(Turn { answers: Arc::clone(self), key: asked.key, head, length, over: false })))
    }

    /// A call has ended, and may have run: its file has `bytes`.
    fn settle(&self, key: Digest, head: &Head, bytes: u64) {
        let mut state = self.lock();
        state.ended.insert(key, entry(head, bytes));
        state.running.remove(&key);
        self.sync_soon(&mut state, key);
        self.trim(&mut state);
    }

    fn sync_soon(&self, state: &mut State, key: Digest) {
        state.unsynced.insert(key);
        self.written.notify_one();
    }

    fn expire(&self, state: &mut State, now_ms: u64) {
        let kept_ms = u64::try_from(KEPT_FOR.as_millis()).unwrap_or(u64::MAX);
        while let Some(key) = state.ended.take_older(now_ms.saturating_sub(kept_ms)) {
            self.remove(key);
        }
        self.show(state);
    }

    /// Lets the oldest go that there is no room for.
    fn trim(&self, state: &mut State) {
        while let Some(key) = state.ended.take_surplus(self.bounds) {
            self.remove(key);
            self.metrics.answers_evicted.inc();
        }
        self.show(state);
    }

    fn remove(&self, key: Digest) {
        match std::fs::remove_file(file::path(&self.directory, key)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                tracing::error!(%error, %key, "a kept answer could not be removed");
            }
            _ => {}
        }
    }

    fn show(&self, state: &State) {
        self.metrics.answers_bytes.set(i64::try_from(state.ended.bytes()).unwrap_or(i64::MAX));
    }

    /// Syncs what is written and removes what was kept long enough, until `stop`.
    pub(crate) async fn run(self: Arc<Self>, stop: CancellationToken) {
        let mut round = tokio::time::interval(EXPIRY_ROUND);
        while !stop.is_cancelled() {
            tokio::select! {
                () = self.written.notified() => {
                    tokio::select! { () = tokio::time::sleep(SYNC_DELAY) => {}, () = stop.cancelled() => {} }
                    self.sync().await;
                }
                _ = round.tick() => self.expire(&mut self.lock(), now_ms()),
                () = stop.cancelled() => {}
            }
        }
        self.sync().await;
    }

    async fn sync(&self) {
        let keys = std::mem::take(&mut self.lock().unsynced);
        let directory = self.directory.clone();
        let synced = tokio::task::spawn_blocking(move || file::sync(&directory, keys));
        match synced.await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => tracing::error!(%error, "kept answers could not be synced to disk"),
            Err(error) => tracing::error!(%error, "syncing kept answers was interrupted"),
        }
    }

    /// The state is only touched by code that cannot panic half way, so a poisoned lock is as good as any.
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A call that runs. Dropped before it said how it ended, it may have run, and its answer is lost.
pub(crate) struct Turn {
    answers: Arc<Answers>,
    key: Digest,
    head: Head,
    /// Length of its file, in bytes.
    length: u64,
    over: bool,
}

impl Turn {
    /// It ran: who repeats it gets this answer.
    pub(crate) fn keep(mut self, answer: &Response<Bytes>) {
        self.over = true;
        let path = file::path(&self.answers.directory, self.key);
        match file::end(&path, self.length, answer) {
            Ok(bytes) => self.length += bytes,
            // Its beginning is there: it is not run again.
            Err(error) => tracing::error!(%error, request_id = %self.head.id, "an answer could not be kept"),
        }
        self.answers.settle(self.key, &self.head, self.length);
    }

    /// It did not run: who repeats it is the first again.
    pub(crate) fn forget(mut self) {
        self.over = true;
        let mut state = self.answers.lock();
        self.answers.remove(self.key);
        state.running.remove(&self.key);
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        if !self.over {
            self.answers.settle(self.key, &self.head, self.length);
        }
    }
}

fn entry(head: &Head, bytes: u64) -> Entry {
    Entry { print: head.print, function: head.function, id: head.id, began_ms: head.began_ms, bytes }
}

fn now_ms() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}
