//! A segment of the spool on disk: entries of length, checksum and JSON. Reading one yields what is whole and
//! skips what is not.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use common::invocation::Record;
use serde::Serialize;

/// Length and CRC-32 of an entry's JSON, both little-endian.
const HEAD_BYTES: usize = 8;
/// Largest entry's JSON, in bytes; a larger length is damage. Two outputs of 64 KiB, each byte escaped to six, and
/// the rest of a record come to no more.
pub(super) const MAX_ENTRY_BYTES: usize = 2 * 1024 * 1024;
const POSITION_FILE: &str = "position";

/// What is known of a segment without reading it again.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Segment {
    /// Bytes of entries in it.
    pub(super) bytes: u64,
    /// How many of these are shipped.
    pub(super) shipped: u64,
    /// Whole entries that are not shipped.
    pub(super) unshipped: u64,
}

impl Segment {
    /// Whether nothing of it is left to ship.
    pub(super) fn is_shipped(&self) -> bool {
        self.shipped >= self.bytes
    }

    /// Notes that `records` entries before `offset` are shipped.
    pub(super) fn mark(&mut self, offset: u64, records: u64) {
        self.shipped = self.shipped.max(offset);
        self.unshipped = if self.is_shipped() { 0 } else { self.unshipped.saturating_sub(records) };
    }
}

/// A place in the spool, in the order of writing.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Position {
    pub(super) segment: u64,
    pub(super) offset: u64,
}

/// What a scan of bytes found.
#[derive(Debug, Default)]
pub(super) struct Scan {
    pub(super) records: Vec<Record>,
    /// Bytes up to the end of the last entry that was looked at: where the next scan goes on.
    pub(super) end: usize,
    /// Places where something was that is no entry.
    pub(super) corrupt: u64,
    /// Whether the bytes end within an entry.
    pub(super) torn: bool,
}

/// What was found in a segment that an earlier process left.
pub(super) struct Recovered {
    pub(super) segment: Segment,
    pub(super) corrupt: u64,
}

/// A record, or what is said of one, as it lies in a file.
pub(super) fn encode(record: &impl Serialize) -> Vec<u8> {
    let mut entry = vec![0; HEAD_BYTES];
    serde_json::to_writer(&mut entry, record).expect("a record has string keys only, so it always serialises");
    let json = &entry[HEAD_BYTES..];
    let length = u32::try_from(json.len()).expect("the parts of a record are capped far below 4 GiB").to_le_bytes();
    let checksum = crc32fast::hash(json).to_le_bytes();
    entry[..4].copy_from_slice(&length);
    entry[4..HEAD_BYTES].copy_from_slice(&checksum);
    entry
}

/// Reads at most `max` records from the beginning of `bytes`. `whole` says that nothing follows these bytes.
pub(super) fn scan(bytes: &[u8], max: usize, whole: bool) -> Scan {
    let mut scan = Scan::default();
    while scan.records.len() < max && scan.end < bytes.len() {
        let rest = &bytes[scan.end..];
        match entry(rest) {
            Entry::Whole { length, json } => {
                match serde_json::from_slice(json) {
                    Ok(record) => scan.records.push(record),
                    Err(_) => scan.corrupt += 1,
                }
                scan.end += length;
            }
            Entry::Short if !whole => break,
            Entry::Short | Entry::Damaged => match next_entry(rest) {
                Some(distance) => {
                    scan.corrupt += 1;
                    scan.end += distance;
                }
                None if matches!(entry(rest), Entry::Short) => {
                    scan.torn = true;
                    break;
                }
                None => {
                    scan.corrupt += 1;
                    scan.end = bytes.len();
                }
            },
        }
    }
    scan
}

pub(super) enum Entry<'a> {
    Whole { length: usize, json: &'a [u8] },
    Short,
    Damaged,
}

pub(super) fn entry(bytes: &[u8]) -> Entry<'_> {
    let Some((head, rest)) = bytes.split_at_checked(HEAD_BYTES) else { return Entry::Short };
    let word = |at: usize| u32::from_le_bytes([head[at], head[at + 1], head[at + 2], head[at + 3]]);
    let length = word(0) as usize;
    if length == 0 || length > MAX_ENTRY_BYTES {
        return Entry::Damaged;
    }
    match rest.get(..length) {
        None => Entry::Short,
        Some(json) if crc32fast::hash(json) == word(4) => Entry::Whole { length: HEAD_BYTES + length, json },
        Some(_) => Entry::Damaged,
    }
}

/// Where after a damaged place the next whole entry begins. JSON text read as a length is far over the limit, so
/// hardly any place needs its checksum computed.
pub(super) fn next_entry(bytes: &[u8]) -> Option<usize> {
    (1..bytes.len()).find(|at| matches!(entry(&bytes[*at..]), Entry::Whole { .. }))
}

/// The segments in `directory`, in order.
pub(super) fn list(directory: &Path) -> io::Result<Vec<u64>> {
    let mut numbers = Vec::new();
    for entry in std::fs::read_dir(directory)? {
        let name = entry?.file_name();
        let number =
            name.to_str().and_then(|name| name.strip_suffix(".seg")).and_then(|hex| u64::from_str_radix(hex, 16).ok());
        numbers.extend(number);
    }
    numbers.sort_unstable();
    Ok(numbers)
}

/// Where a segment lies.
pub(super) fn path(directory: &Path, number: u64) -> PathBuf {
    directory.join(format!("{number:016x}.seg"))
}

/// Makes a segment that must not exist yet. Records hold headers and output, so the file is its owner's only.
pub(super) fn create(directory: &Path, number: u64) -> io::Result<File> {
    use std::os::unix::fs::OpenOptionsExt as _;
    OpenOptions::new().write(true).create_new(true).mode(0o600).open(path(directory, number))
}

/// Counts what a segment of an earlier process still has to ship from `from` on, and cuts off a torn end.
pub(super) fn recover(directory: &Path, number: u64, from: u64) -> io::Result<Recovered> {
    let path = path(directory, number);
    let bytes = std::fs::read(&path)?;
    let from = usize::try_from(from).unwrap_or(usize::MAX).min(bytes.len());
    let scan = scan(&bytes[from..], usize::MAX, true);
    let end = from + scan.end;
    if scan.torn {
        OpenOptions::new().write(true).open(&path)?.set_len(end as u64)?;
        tracing::info!(segment = %path.display(), cut_bytes = bytes.len() - end, "cut off an unfinished record");
    }
    if scan.corrupt > 0 {
        tracing::error!(segment = %path.display(), places = scan.corrupt, "damaged records in the spool are skipped");
    }
    let unshipped = scan.records.len() as u64;
    let shipped = if unshipped == 0 { end } else { from } as u64;
    let segment = Segment { bytes: end as u64, shipped, unshipped };
    Ok(Recovered { segment, corrupt: scan.corrupt })
}

/// `length` bytes of a segment from `offset` on.
pub(super) fn read(directory: &Path, number: u64, offset: u64, length: usize) -> io::Result<Vec<u8>> {
    let mut bytes = vec![0; length];
    File::open(path(directory, number))?.read_exact_at(&mut bytes, offset)?;
    Ok(bytes)
}

/// Where shipping goes on; the beginning when nothing is written down, so that rather too much is sent again.
pub(super) fn read_position(directory: &Path) -> Position {
    let text = std::fs::read_to_string(directory.join(POSITION_FILE)).unwrap_or_default();
    let mut words = text.split_whitespace().map(str::parse);
    match (words.next(), words.next()) {
        (Some(Ok(segment)), Some(Ok(offset))) => Position { segment, offset },
        _ => Position::default(),
    }
}

/// Writes down where shipping goes on, by a rename, so that the file is always whole.
pub(super) fn write_position(directory: &Path, position: Position) -> io::Result<()> {
    let next = directory.join("position.next");
    std::fs::write(&next, format!("{} {}\n", position.segment, position.offset))?;
    std::fs::rename(next, directory.join(POSITION_FILE))
}
