//! Unpacking an archive, under the same checks.

use std::fs::{DirBuilder, File, OpenOptions, Permissions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt};
use std::path::Path;

use super::Caps;
use super::path::Target;
use super::refused::{Refused, Stop};
use super::stream::Data;
use super::walk::{Sink, walk};

/// How much of a file is in memory at once, in bytes.
const CHUNK: usize = 64 * 1024;

const DIRECTORY_MODE: u32 = 0o755;
const FILE_MODE: u32 = 0o644;
const EXECUTABLE_MODE: u32 = 0o755;

/// Why an archive was not unpacked. What was written until then is left to the caller to remove.
#[derive(Debug, thiserror::Error)]
pub enum UnpackError {
    /// The archive is at fault.
    #[error(transparent)]
    Refused(Refused),
    /// The archive's bytes could not be read.
    #[error("the archive could not be read")]
    Read(#[source] io::Error),
    /// A file could not be written.
    #[error("cannot write `{path}` of the archive")]
    Write {
        /// The file, relative to the target.
        path: String,
        /// Why.
        source: io::Error,
    },
}

/// Unpacks `archive` into the empty directory `into`, without its top folder `root` if one is named.
///
/// Every file becomes 0644 or, with an executable bit, 0755, every folder 0755, whatever the archive and the umask
/// say; owners and times are those of the moment. Nothing is written through a link: an entry below one is
/// refused, and every file is created anew.
///
/// # Errors
/// What [`check`](super::check()) refuses, an entry outside of `root`, and failures to read or write.
pub fn unpack(archive: impl Read, root: Option<&str>, into: &Path, caps: &Caps) -> Result<(), UnpackError> {
    let mut writer = Writer { root, into, chunk: vec![0; CHUNK] };
    match walk(archive, caps, &mut writer) {
        Ok(_) => Ok(()),
        Err(Stop::Refused(refused)) => Err(UnpackError::Refused(refused)),
        Err(Stop::Read(error)) => Err(UnpackError::Read(error)),
        Err(Stop::Write(path, source)) => Err(UnpackError::Write { path, source }),
    }
}

struct Writer<'a> {
    root: Option<&'a str>,
    into: &'a Path,
    chunk: Vec<u8>,
}

impl Writer<'_> {
    /// `path` below the root; empty for the root itself.
    fn below<'p>(&self, path: &'p str) -> Result<&'p str, Stop> {
        let Some(root) = self.root else { return Ok(path) };
        match path.strip_prefix(root) {
            Some("") => Ok(""),
            Some(rest) if rest.starts_with('/') => Ok(&rest[1..]),
            _ => Err(Refused::entry(path, format!("this is outside of the top folder `{root}`")).into()),
        }
    }

    /// The same for what cannot be the root itself.
    fn inside<'p>(&self, path: &'p str) -> Result<&'p str, Stop> {
        match self.below(path)? {
            "" => Err(Refused::entry(path, "the top folder is not a folder").into()),
            below => Ok(below),
        }
    }
}

impl Sink for Writer<'_> {
    fn directory(&mut self, path: &str) -> Result<(), Stop> {
        let below = self.below(path)?;
        if below.is_empty() {
            return Ok(());
        }
        let target = self.into.join(below);
        DirBuilder::new()
            .mode(DIRECTORY_MODE)
            .create(&target)
            .and_then(|()| std::fs::set_permissions(&target, Permissions::from_mode(DIRECTORY_MODE)))
            .map_err(|error| Stop::Write(below.to_owned(), error))
    }

    fn file<R: Read>(&mut self, path: &str, executable: bool, data: &mut Data<'_, '_, R>) -> Result<(), Stop> {
        let below = self.inside(path)?;
        let failed = |error| Stop::Write(below.to_owned(), error);
        let mode = if executable { EXECUTABLE_MODE } else { FILE_MODE };
        let mut file: File =
            OpenOptions::new().write(true).create_new(true).mode(mode).open(self.into.join(below)).map_err(failed)?;
        loop {
            match data.read(&mut self.chunk)? {
                0 => break,
                read => file.write_all(&self.chunk[..read]).map_err(failed)?,
            }
        }
        file.set_permissions(Permissions::from_mode(mode)).map_err(failed)
    }

    fn link(&mut self, path: &str, target: &Target) -> Result<(), Stop> {
        let below = self.inside(path)?;
        if target.leaves(below) {
            return Err(Refused::entry(path, "a link that leaves the archive's top folder").into());
        }
        std::os::unix::fs::symlink(&target.text, self.into.join(below))
            .map_err(|error| Stop::Write(below.to_owned(), error))
    }

    fn hard_link(&mut self, path: &str, earlier: &str) -> Result<(), Stop> {
        let (below, earlier) = (self.inside(path)?, self.inside(earlier)?);
        std::fs::hard_link(self.into.join(earlier), self.into.join(below))
            .map_err(|error| Stop::Write(below.to_owned(), error))
    }
}
