//! The record spool: every record is in a file of this machine before its call is answered, and stays there
//! until the store has it. Appending is one `write`; a background task syncs at most 100 ms later and ships in
//! batches. What was shipped but not yet marked so when the process died is shipped again, which is harmless.
//!
//! When the spool is full because the store was away for long, the oldest records go, with an error in the log
//! and in `dartcloud_agent_spool_dropped_records_total`: calls go on.

use std::collections::BTreeMap;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use common::invocation::Record;
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

use crate::metrics::Metrics;

mod begun;
mod segment;
mod shipper;
mod sink;
#[cfg(test)]
mod tests;

pub(crate) use begun::Begun;
pub(crate) use sink::{LinkSink, Ship, StoreSink};

use begun::Journal;
use segment::Segment;

/// How large the spool may become.
#[derive(Clone, Copy, Debug, clap::Args)]
#[group(id = "agent_spool")]
pub struct SpoolArgs {
    /// Most that unshipped records take on disk, in MiB; beyond it the oldest are dropped.
    #[arg(long, env = "SPOOL_MAX_MB", default_value_t = 1024, value_parser = clap::value_parser!(u32).range(64..))]
    pub spool_max_mb: u32,
}

/// When a segment is full and the next one begins, in bytes.
const SEGMENT_BYTES: u64 = 16 * 1024 * 1024;
/// How long an appended record waits to be synced, together with those that come meanwhile.
const SYNC_DELAY: Duration = Duration::from_millis(50);

/// The spool cannot be opened or written.
#[derive(Debug, thiserror::Error)]
#[error("the record spool at {path} cannot be {what}: make room on the disk, or set DATA_DIR to another one")]
pub(crate) struct SpoolError {
    path: PathBuf,
    what: &'static str,
    #[source]
    source: io::Error,
}

impl SpoolError {
    /// The failure below.
    pub(crate) fn into_source(self) -> io::Error {
        self.source
    }
}

/// The records that the store does not have yet.
pub(crate) struct Spool {
    directory: PathBuf,
    max_bytes: u64,
    segment_bytes: u64,
    state: Mutex<State>,
    /// Streams under way.
    journal: Mutex<Journal>,
    /// Something was appended.
    appended: Notify,
    metrics: Arc<Metrics>,
}

struct State {
    /// Those that hold records, by number, the one that is written to included.
    segments: BTreeMap<u64, Segment>,
    /// The newest segment's file.
    file: Arc<File>,
    /// Files with bytes that are not synced yet.
    unsynced: Vec<Arc<File>>,
    /// Whether a segment's name is not synced yet.
    new_name: bool,
}

impl State {
    fn newest(&self) -> u64 {
        *self.segments.last_key_value().expect("a spool always has a segment to write to").0
    }

    fn bytes(&self) -> u64 {
        self.segments.values().map(|segment| segment.bytes).sum()
    }

    fn sync_soon(&mut self, file: &Arc<File>) {
        if !self.unsynced.iter().any(|other| Arc::ptr_eq(other, file)) {
            self.unsynced.push(Arc::clone(file));
        }
    }

    fn records(&self) -> u64 {
        self.segments.values().map(|segment| segment.unshipped).sum()
    }
}

impl Spool {
    /// Opens the spool in `directory`: cuts off a torn end, counts what is still to ship, begins a segment.
    pub(crate) fn open(directory: &Path, args: &SpoolArgs, metrics: Arc<Metrics>) -> Result<Self, SpoolError> {
        let max_bytes = u64::from(args.spool_max_mb) * 1024 * 1024;
        Self::with_sizes(directory, max_bytes, SEGMENT_BYTES, metrics)
    }

    fn with_sizes(
        directory: &Path,
        max_bytes: u64,
        segment_bytes: u64,
        metrics: Arc<Metrics>,
    ) -> Result<Self, SpoolError> {
        let opened = (|| {
            std::fs::create_dir_all(directory)?;
            let position = segment::read_position(directory);
            let mut segments = BTreeMap::new();
            let mut next = position.segment + 1;
            for number in segment::list(directory)? {
                next = number + 1;
                let from = if number == position.segment { position.offset } else { 0 };
                let found = segment::recover(directory, number, from)?;
                metrics.spool_corrupt.inc_by(found.corrupt);
                if number < position.segment || found.segment.is_shipped() {
                    std::fs::remove_file(segment::path(directory, number))?;
                } else {
                    segments.insert(number, found.segment);
                }
            }
            let file = Arc::new(segment::create(directory, next)?);
            segments.insert(next, Segment::default());
            Ok(State { segments, file, unsynced: Vec::new(), new_name: true })
        })();
        let failed = |source| SpoolError { path: directory.into(), what: "opened", source };
        let state = opened.map_err(failed)?;
        let (left_behind, corrupt) = Journal::left_behind(directory).map_err(failed)?;
        metrics.spool_corrupt.inc_by(corrupt);
        metrics.spool_max_bytes.set(i64::try_from(max_bytes).unwrap_or(i64::MAX));
        let spool = Self {
            directory: directory.to_owned(),
            max_bytes,
            segment_bytes,
            state: Mutex::new(state),
            journal: Mutex::new(Journal::next(directory).map_err(failed)?),
            appended: Notify::new(),
            metrics,
        };
        spool.show(&spool.lock());
        spool.take_over(&left_behind)?;
        Ok(spool)
    }

    /// Writes a record to the spool: when this returns, a crash of this process does not lose it; 100 ms later
    /// nor does one of the machine.
    ///
    /// # Errors
    /// The disk is full or broken. The record is not kept, and the spool is as before.
    pub(crate) fn append(&self, record: &Record) -> Result<(), SpoolError> {
        let entry = segment::encode(record);
        let appended = self.write(&mut self.lock(), &entry);
        appended.map_err(|source| SpoolError { path: self.directory.clone(), what: "written", source })?;
        self.appended.notify_waiters();
        Ok(())
    }

    fn write(&self, state: &mut State, entry: &[u8]) -> io::Result<()> {
        let written = state.segments[&state.newest()].bytes;
        if written > 0 && written + entry.len() as u64 > self.segment_bytes {
            self.rotate(state)?;
        }
        let newest = state.newest();
        let segment = state.segments.entry(newest).or_default();
        // What a failed write leaves is overwritten by the next entry, or cut off at the next start.
        state.file.write_all_at(entry, segment.bytes)?;
        segment.bytes += entry.len() as u64;
        segment.unshipped += 1;
        let file = Arc::clone(&state.file);
        state.sync_soon(&file);
        self.show(state);
        Ok(())
    }

    fn rotate(&self, state: &mut State) -> io::Result<()> {
        let next = state.newest() + 1;
        state.file = Arc::new(segment::create(&self.directory, next)?);
        state.new_name = true;
        state.segments.insert(next, Segment::default());
        while state.bytes() > self.max_bytes && state.segments.len() > 1 {
            let Some((number, dropped)) = state.segments.pop_first() else { break };
            std::fs::remove_file(segment::path(&self.directory, number))?;
            self.metrics.spool_dropped.inc_by(dropped.unshipped);
            let records = dropped.unshipped;
            tracing::error!(records, "the record spool is full: dropped its oldest records; see why the store is away");
        }
        Ok(())
    }

    /// Records that the store does not have yet.
    pub(crate) fn pending(&self) -> u64 {
        self.lock().records()
    }

    /// Syncs and ships until `stop`, then ships what is left, as far as a deadline allows.
    pub(crate) async fn run(self: Arc<Self>, sink: Arc<dyn Ship>, stop: CancellationToken) {
        let stop_syncing = CancellationToken::new();
        let syncing = self.sync_until(stop_syncing.clone());
        let shipping = async {
            shipper::run(&self, &*sink, &stop).await;
            stop_syncing.cancel();
        };
        tokio::join!(syncing, shipping);
    }

    async fn sync_until(&self, stop: CancellationToken) {
        while !stop.is_cancelled() {
            let appended = self.appended.notified();
            if self.has_unsynced() {
                tokio::select! { () = tokio::time::sleep(SYNC_DELAY) => {}, () = stop.cancelled() => {} }
                self.sync().await;
            } else {
                tokio::select! { () = appended => {}, () = stop.cancelled() => {} }
            }
        }
        self.sync().await;
    }

    fn has_unsynced(&self) -> bool {
        !self.lock().unsynced.is_empty()
    }

    async fn sync(&self) {
        let (files, new_name) = {
            let mut state = self.lock();
            (std::mem::take(&mut state.unsynced), std::mem::take(&mut state.new_name))
        };
        let directory = self.directory.clone();
        let synced = tokio::task::spawn_blocking(move || {
            files.iter().try_for_each(|file| file.sync_data())?;
            if new_name { File::open(&directory)?.sync_all() } else { Ok(()) }
        });
        match synced.await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => tracing::error!(%error, "the record spool could not be synced to disk"),
            Err(error) => tracing::error!(%error, "syncing the record spool was interrupted"),
        }
    }

    fn show(&self, state: &State) {
        self.metrics.spool_records.set(i64::try_from(state.records()).unwrap_or(i64::MAX));
        self.metrics.spool_bytes.set(i64::try_from(state.bytes()).unwrap_or(i64::MAX));
    }

    /// The state is only touched by code that cannot panic half way, so a poisoned lock is as good as any.
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
