//! Packed builds bear a stamp: the SHA-256 of the rest as their last bytes. A build's name says what it was made from,
//! and not what came of it, so only this shows whether it travelled whole.

use std::fs::File;
use std::io::{self, Read, Seek as _, Write as _};
use std::path::Path;

use common::digest::{Digest, Hasher};

/// How long a stamp is, in bytes.
const STAMP_BYTES: u64 = 32;
/// How much is hashed at once, in bytes.
const CHUNK_BYTES: usize = 64 * 1024;

/// Stamps a file that was just packed.
///
/// # Errors
/// The disk is full.
pub(crate) fn stamp(path: &Path) -> io::Result<()> {
    let mut file = File::options().read(true).append(true).open(path)?;
    let digest = hash(&mut file)?;
    file.write_all(digest.bytes())
}

/// The file without its stamp.
///
/// # Errors
/// [`io::ErrorKind::InvalidData`]: it is cut or changed.
pub(crate) fn open(path: &Path) -> io::Result<impl Read + Send + use<>> {
    let mut file = File::open(path)?;
    let damaged = || io::Error::new(io::ErrorKind::InvalidData, "the packed build is cut or changed");
    let len = file.metadata()?.len().checked_sub(STAMP_BYTES).ok_or_else(damaged)?;
    let digest = hash(&mut (&mut file).take(len))?;
    let mut stamp = [0; STAMP_BYTES as usize];
    file.read_exact(&mut stamp)?;
    if *digest.bytes() != stamp {
        return Err(damaged());
    }
    file.rewind()?;
    Ok(file.take(len))
}

fn hash(file: &mut impl Read) -> io::Result<Digest> {
    let (mut hasher, mut chunk) = (Hasher::default(), vec![0; CHUNK_BYTES]);
    loop {
        match file.read(&mut chunk)? {
            0 => return Ok(hasher.finish()),
            read => hasher.update(&chunk[..read]),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What is read of a stamped file after `change`.
    fn check(change: impl FnOnce(&mut Vec<u8>), expected: Result<&[u8], io::ErrorKind>) {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("build");
        std::fs::write(&path, b"packed").unwrap();
        stamp(&path).unwrap();
        let mut bytes = std::fs::read(&path).unwrap();
        change(&mut bytes);
        std::fs::write(&path, bytes).unwrap();
        let mut read = Vec::new();
        let opened = open(&path).map(|mut file| file.read_to_end(&mut read).unwrap()).map_err(|error| error.kind());
        assert_eq!(opened.map(|_| read.as_slice()), expected);
    }

    #[test]
    fn only_what_is_whole_is_opened() {
        check(|_| {}, Ok(b"packed"));
        check(|bytes| bytes[2] ^= 1, Err(io::ErrorKind::InvalidData));
        check(|bytes| *bytes.last_mut().unwrap() ^= 1, Err(io::ErrorKind::InvalidData));
        check(|bytes| bytes.truncate(20), Err(io::ErrorKind::InvalidData));
        check(|bytes| bytes.truncate(37), Err(io::ErrorKind::InvalidData));
        check(|bytes| bytes.push(0), Err(io::ErrorKind::InvalidData));
        check(Vec::clear, Err(io::ErrorKind::InvalidData));
    }
}
