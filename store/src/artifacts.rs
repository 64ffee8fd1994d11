//! The artifact store: archives and packed builds as files, each under its digest. A file is there whole or
//! not at all: it is written under `incoming/`, synced, and renamed.

use std::path::{Path, PathBuf};

use common::digest::Digest;

/// What is kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Artifact {
    /// An uploaded `tar.gz`, under its own SHA-256.
    Archive(Digest),
    /// A packed build, under the digest of what it was made from.
    Build(Digest),
}

/// A directory of artifacts.
#[derive(Clone, Debug)]
pub struct Artifacts {
    root: PathBuf,
}

/// A file that is being written; dropped before [`keep`](Incoming::keep), it leaves nothing.
pub struct Incoming {
    path: PathBuf,
}

impl Artifacts {
    /// Opens `root`, makes its folders and empties `incoming/`.
    ///
    /// # Errors
    /// The directory cannot be made or written.
    pub fn open(root: PathBuf) -> std::io::Result<Self> {
        Ok(Self { root })
    }

    /// Begins a file.
    ///
    /// # Errors
    /// The disk is full, or not writable.
    pub async fn begin(&self) -> std::io::Result<Incoming> {
        Ok(Incoming { path: self.root.clone() })
    }

    /// Opens an artifact for reading, with its length in bytes; `None` if it is not there.
    ///
    /// # Errors
    /// The file is there and cannot be read.
    pub async fn read(&self, _artifact: Artifact) -> std::io::Result<Option<(tokio::fs::File, u64)>> {
        unimplemented!()
    }

    /// Whether an artifact is there.
    pub async fn has(&self, _artifact: Artifact) -> bool {
        unimplemented!()
    }
}

impl Incoming {
    /// Appends, and hashes on the way.
    ///
    /// # Errors
    /// The disk is full.
    pub async fn write(&mut self, _chunk: &[u8]) -> std::io::Result<()> {
        unimplemented!()
    }

    /// Bytes so far.
    #[must_use]
    pub fn len(&self) -> u64 {
        unimplemented!()
    }

    /// SHA-256 of the bytes so far.
    #[must_use]
    pub fn digest(&self) -> Digest {
        unimplemented!()
    }

    /// Where it lies, for a check before it is kept. Call [`flush`](Self::flush) first.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Writes out what is buffered, so that [`path`](Self::path) shows all of it.
    ///
    /// # Errors
    /// The disk is full.
    pub async fn flush(&mut self) -> std::io::Result<()> {
        unimplemented!()
    }

    /// Syncs it to disk and gives it its name. One that exists already is left as it is.
    ///
    /// # Errors
    /// The disk is full.
    pub async fn keep(self, _artifact: Artifact) -> std::io::Result<()> {
        unimplemented!()
    }
}
