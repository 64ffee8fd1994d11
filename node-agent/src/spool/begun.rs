//! Streams that have begun and not ended: a journal beside the segments. A stream's beginning is in it before its first
//! byte leaves, as the record that it has should this process not live to write a better one; its end is noted when
//! that better one is in the spool. What the next process finds without an end it ships.
//!
//! One file, so that many streams that begin at once cost one sync; it is written anew when most of it is past.

use std::collections::{BTreeMap, HashMap};
use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::{Arc, MutexGuard, PoisonError};

use common::ids::InvocationId;
use common::invocation::Record;
use serde::{Deserialize, Serialize};

use super::segment::{self, Entry};
use super::{Spool, SpoolError};

const FILE: &str = "begun";
/// How large the journal may be before it is written anew, in bytes; more when so much of it is under way.
const COMPACT_BYTES: u64 = 4 * 1024 * 1024;

/// A stream whose beginning is on disk.
#[derive(Debug)]
pub(crate) struct Begun(InvocationId);

/// The file, and where in it the streams under way stand.
pub(super) struct Journal {
    path: PathBuf,
    file: Arc<File>,
    bytes: u64,
    live: HashMap<InvocationId, FileRange>,
    live_bytes: u64,
}

#[derive(Clone, Copy)]
struct FileRange {
    offset: u64,
    length: u64,
}

#[derive(Serialize)]
#[serde(rename_all = "snake_case")]
enum Line<'a> {
    Begun(&'a Record),
    Ended(InvocationId),
}

#[derive(Deserialize)]
#[serde(rename_all = "snake_case")]
enum ReadLine {
    Begun(Box<Record>),
    Ended(InvocationId),
}

impl Journal {
    /// An empty journal, which does not have its name yet.
    pub(super) fn next(directory: &Path) -> io::Result<Self> {
        let path = directory.join(FILE);
        let file = Arc::new(open(&path.with_extension("next"))?);
        Ok(Self { path, file, bytes: 0, live: HashMap::new(), live_bytes: 0 })
    }

    /// Takes the place of the one before.
    fn take_name(&self) -> io::Result<()> {
        std::fs::rename(self.path.with_extension("next"), &self.path)
    }

    /// What an earlier process began and did not end, in the order of beginning; and how many places are damaged.
    pub(super) fn left_behind(directory: &Path) -> io::Result<(Vec<Record>, u64)> {
        let bytes = match std::fs::read(directory.join(FILE)) {
            Ok(bytes) => bytes,
            Err(error) if error.kind() == io::ErrorKind::NotFound => Vec::new(),
            Err(error) => return Err(error),
        };
        let (mut streams, mut corrupt, mut at) = (BTreeMap::new(), 0, 0);
        while at < bytes.len() {
            let rest = &bytes[at..];
            let Entry::Whole { length, json } = segment::entry(rest) else {
                // A torn end is a stream whose first byte never left.
                let Some(distance) = segment::next_entry(rest) else { break };
                corrupt += 1;
                at += distance;
                continue;
            };
            match serde_json::from_slice(json) {
                Ok(ReadLine::Begun(record)) => drop(streams.insert(record.id, *record)),
                Ok(ReadLine::Ended(id)) => drop(streams.remove(&id)),
                Err(_) => corrupt += 1,
            }
            at += length;
        }
        Ok((streams.into_values().collect(), corrupt))
    }

    fn add(&mut self, line: &Line<'_>) -> io::Result<FileRange> {
        let entry = segment::encode(line);
        // What a failed write leaves is overwritten by the next entry.
        self.file.write_all_at(&entry, self.bytes)?;
        let place = FileRange { offset: self.bytes, length: entry.len() as u64 };
        self.bytes += place.length;
        Ok(place)
    }

    fn begin(&mut self, record: &Record) -> io::Result<()> {
        if self.bytes > COMPACT_BYTES.max(2 * self.live_bytes) {
            self.compact()?;
        }
        let place = self.add(&Line::Begun(record))?;
        self.live_bytes += place.length;
        self.live.insert(record.id, place);
        Ok(())
    }

    fn end(&mut self, id: InvocationId) -> io::Result<()> {
        if let Some(place) = self.live.remove(&id) {
            self.live_bytes -= place.length;
            self.add(&Line::Ended(id))?;
        }
        Ok(())
    }

    /// Writes the streams under way to a new file, which takes the old one's name when it is on disk.
    fn compact(&mut self) -> io::Result<()> {
        let next = self.path.with_extension("next");
        let file = open(&next)?;
        let (mut live, mut bytes) = (HashMap::with_capacity(self.live.len()), 0);
        for (id, place) in &self.live {
            let mut entry = vec![0; usize::try_from(place.length).unwrap_or_default()];
            self.file.read_exact_at(&mut entry, place.offset)?;
            file.write_all_at(&entry, bytes)?;
            live.insert(*id, FileRange { offset: bytes, length: place.length });
            bytes += place.length;
        }
        file.sync_data()?;
        std::fs::rename(&next, &self.path)?;
        (self.file, self.live, self.bytes, self.live_bytes) = (Arc::new(file), live, bytes, bytes);
        Ok(())
    }
}

/// An empty file; like the segments it holds headers, so it is its owner's only.
fn open(path: &Path) -> io::Result<File> {
    OpenOptions::new().read(true).write(true).create(true).truncate(true).mode(0o600).open(path)
}

impl Spool {
    /// Writes down that a stream begins. `record` is what is shipped if its end is never written.
    ///
    /// # Errors
    /// The disk is full or broken.
    pub(crate) fn begin(&self, record: &Record) -> Result<Begun, SpoolError> {
        let file = {
            let mut journal = self.journal();
            let begun = journal.begin(record);
            begun.map_err(|source| SpoolError { path: journal.path.clone(), what: "written", source })?;
            Arc::clone(&journal.file)
        };
        self.lock().sync_soon(&file);
        self.appended.notify_waiters();
        Ok(Begun(record.id))
    }

    /// Takes over what an earlier process left behind, and begins a journal of its own.
    pub(super) fn take_over(&self, streams: &[Record]) -> Result<(), SpoolError> {
        for record in streams {
            self.append(record)?;
        }
        if !streams.is_empty() {
            tracing::warn!(streams = streams.len(), "streams were cut off when the agent before this one ended");
        }
        // Not before what it holds is on disk elsewhere.
        let file = Arc::clone(&self.lock().file);
        let failed = |source| SpoolError { path: self.directory.clone(), what: "opened", source };
        file.sync_data().and_then(|()| self.journal().take_name()).map_err(failed)
    }

    /// The stream's own record is in the spool.
    pub(crate) fn end(&self, Begun(id): Begun) {
        if let Err(error) = self.journal().end(id) {
            // Both records have the same id, so that the other is dropped where the better one is.
            tracing::warn!(%error, request_id = %id, "the end of a stream could not be noted");
        }
    }

    fn journal(&self) -> MutexGuard<'_, Journal> {
        self.journal.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
