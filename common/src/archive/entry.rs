//! One entry of a tar: its header block, and the extended headers before it, as one thing that is checked.

use std::io::Read;

use tar::Header;

use super::Caps;
use super::path::{self, Target};
use super::pax::{self, Extended};
use super::refused::{Refused, Stop};
use super::stream::{BLOCK, Stream, cut_off, too_large};

/// An entry whose name and kind can be taken. Its data is next in the stream.
#[derive(Debug)]
pub(super) struct Entry {
    /// Its clean path; `None` for the archive's own root.
    pub(super) path: Option<String>,
    /// What it is.
    pub(super) kind: Kind,
    /// Bytes of data; 0 for all but files.
    pub(super) size: u64,
}

/// What an entry is.
#[derive(Debug)]
pub(super) enum Kind {
    Directory,
    File {
        executable: bool,
    },
    Link(Target),
    /// Another name of an earlier file, given by its clean path.
    HardLink(String),
}

/// Reads entries from a stream, up to the cap on their number.
pub(super) struct Entries<'c> {
    caps: &'c Caps,
    left: u32,
}

impl<'c> Entries<'c> {
    pub(super) fn new(caps: &'c Caps) -> Self {
        Self { caps, left: caps.archive_max_entries }
    }

    /// The next entry; `None` at the tar's end mark.
    pub(super) fn next<R: Read>(&mut self, stream: &mut Stream<'_, R>) -> Result<Option<Entry>, Stop> {
        let mut extended = Extended::default();
        loop {
            let block = stream.block()?.ok_or_else(cut_off)?;
            if block.iter().all(|&byte| byte == 0) {
                return if extended.seen.is_empty() { Ok(None) } else { Err(cut_off().into()) };
            }
            check_sum(&block)?;
            let header = Header::from_byte_slice(&block);
            let kind = header.entry_type().as_byte();
            match kind {
                b'x' | b'L' | b'K' => {
                    let body = self.extended_header(stream, header)?;
                    if extended.seen.contains(&kind) {
                        return Err(Refused::entry(header.path_bytes(), "two extended headers for one entry").into());
                    }
                    extended.seen.push(kind);
                    match kind {
                        b'x' => extended.take_records(&body)?,
                        b'L' => extended.path = extended.path.or_else(|| Some(before_nul(body))),
                        _ => extended.link = extended.link.or_else(|| Some(before_nul(body))),
                    }
                }
                b'g' => {
                    self.count()?;
                    pax::check_global(&self.extended_header(stream, header)?)?;
                }
                _ => {
                    self.count()?;
                    let entry = read(header, &extended, self.caps)?;
                    if !stream.has_room(entry.size) {
                        return Err(too_large(self.caps).into());
                    }
                    return Ok(Some(entry));
                }
            }
        }
    }

    fn count(&mut self) -> Result<(), Refused> {
        self.left = self.left.checked_sub(1).ok_or_else(|| too_many(self.caps))?;
        Ok(())
    }

    fn extended_header<R: Read>(&self, stream: &mut Stream<'_, R>, header: &Header) -> Result<Vec<u8>, Stop> {
        let size = number(header.entry_size(), header, "size")?;
        if size > self.caps.header_bytes() {
            let most = self.caps.archive_max_header_kb;
            return Err(Refused::entry(header.path_bytes(), format!("an extended header over {most} KiB")).into());
        }
        stream.body(size as usize)
    }
}

pub(super) fn too_many(caps: &Caps) -> Refused {
    Refused::whole(format!("it has more than {} files, folders and links", caps.archive_max_entries))
}

fn read(header: &Header, extended: &Extended, caps: &Caps) -> Result<Entry, Refused> {
    let name = extended.path.clone().unwrap_or_else(|| header.path_bytes().into_owned());
    let refuse = |reason: String| Refused::entry(&name, reason);
    let path = path::clean(&name, caps).map_err(refuse)?;
    let size = extended.size.map_or_else(|| number(header.entry_size(), header, "size"), Ok)?;
    let mode = number(header.mode().map(u64::from), header, "mode")?;
    let target = || extended.link.clone().or_else(|| header.link_name_bytes().map(std::borrow::Cow::into_owned));
    let kind = match header.entry_type().as_byte() {
        // Before `5` was invented, a folder was a file whose name ends with a slash.
        0 | b'0' if name.ends_with(b"/") => Kind::Directory,
        0 | b'0' | b'7' => Kind::File { executable: mode & 0o111 != 0 },
        b'1' => match path::clean(&target().unwrap_or_default(), caps) {
            Ok(Some(target)) => Kind::HardLink(target),
            Ok(None) => return Err(refuse("a hard link to the archive's root".into())),
            Err(reason) => return Err(refuse(format!("a hard link to {reason}"))),
        },
        b'2' => Kind::Link(Target::parse(&target().unwrap_or_default(), caps).map_err(refuse)?),
        b'3' | b'4' => return Err(refuse("a device".into())),
        b'5' => Kind::Directory,
        b'6' => return Err(refuse("a named pipe".into())),
        b'S' => return Err(refuse("a sparse file".into())),
        other => return Err(refuse(format!("an entry of the unknown kind `{}`", other.escape_ascii()))),
    };
    if path.is_none() && !matches!(kind, Kind::Directory) {
        return Err(refuse("a file in place of the archive's root".into()));
    }
    // A folder with setgid hands its group on to new files; ordinary in shared folders, and no privilege.
    let special = if matches!(kind, Kind::Directory) { 0o4000 } else { 0o6000 };
    if mode & special != 0 {
        return Err(refuse("a setuid or setgid bit: remove it with `chmod a-s`".into()));
    }
    if size != 0 && !matches!(kind, Kind::File { .. }) {
        return Err(refuse("data in an entry that is no file".into()));
    }
    Ok(Entry { path, kind, size })
}

fn number(value: std::io::Result<u64>, header: &Header, what: &str) -> Result<u64, Refused> {
    value.map_err(|_| Refused::entry(header.path_bytes(), format!("a {what} that is not a number")))
}

/// The checksum of a header block is the sum of its bytes, its own field taken as spaces.
fn check_sum(block: &[u8; BLOCK]) -> Result<(), Refused> {
    const FIELD: std::ops::Range<usize> = 148..156;
    let byte = |(at, byte): (usize, &u8)| u32::from(if FIELD.contains(&at) { b' ' } else { *byte });
    let sum: u32 = block.iter().enumerate().map(byte).sum();
    match Header::from_byte_slice(block).cksum() {
        Ok(written) if written == sum => Ok(()),
        _ => Err(Refused::whole("a header with a wrong checksum: it is not a tar, or it is damaged")),
    }
}

fn before_nul(mut body: Vec<u8>) -> Vec<u8> {
    if body.last() == Some(&0) {
        body.pop();
    }
    body
}
