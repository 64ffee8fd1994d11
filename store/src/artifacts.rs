//! The artifact store: archives and packed builds as files, each under its digest. A file is there whole or
//! not at all: it is written under `incoming/`, synced, and renamed.

use std::io;
use std::path::{Path, PathBuf};

use common::digest::{Digest, Hasher};
use tempfile::TempPath;
use tokio::fs::File;
use tokio::io::{AsyncWriteExt as _, BufWriter};

const ARCHIVES: &str = "archives";
const BUILDS: &str = "builds";
const INCOMING: &str = "incoming";

/// Bytes that are gathered before they are written: each write is a trip to another thread.
const BUFFER_BYTES: usize = 256 * 1024;

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
    root: PathBuf,
    file: BufWriter<File>,
    /// Removes the file when it is dropped.
    path: TempPath,
    hasher: Hasher,
    len: u64,
}

impl Artifacts {
    /// Opens `root`, makes its folders and empties `incoming/`. One process owns a directory of artifacts.
    ///
    /// # Errors
    /// The directory cannot be made or written.
    pub fn open(root: PathBuf) -> io::Result<Self> {
        let incoming = root.join(INCOMING);
        match std::fs::remove_dir_all(&incoming) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        for folder in [ARCHIVES, BUILDS, INCOMING] {
            std::fs::create_dir_all(root.join(folder))?;
        }
        // The folders' own names have to last as the files in them do.
        std::fs::File::open(&root)?.sync_all()?;
        Ok(Self { root })
    }

    /// Opens `root` to read from it, beside the process that owns it.
    #[must_use]
    pub fn beside(root: PathBuf) -> Self {
        Self { root }
    }

    /// Everything that is there, in no order.
    ///
    /// # Errors
    /// A folder is there and cannot be read.
    pub async fn list(&self) -> io::Result<Vec<Artifact>> {
        let root = self.root.clone();
        blocking(move || {
            let mut found = Vec::new();
            for folder in [ARCHIVES, BUILDS] {
                let entries = match std::fs::read_dir(root.join(folder)) {
                    Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
                    entries => entries?,
                };
                for entry in entries {
                    let name = entry?.file_name();
                    let digest = name.to_str().and_then(|name| name.strip_suffix(".tar.gz")?.parse().ok());
                    found.extend(digest.map(|digest| match folder {
                        ARCHIVES => Artifact::Archive(digest),
                        _ => Artifact::Build(digest),
                    }));
                }
            }
            Ok(found)
        })
        .await
    }

    /// Begins a file.
    ///
    /// # Errors
    /// The disk is full, or not writable.
    pub async fn begin(&self) -> io::Result<Incoming> {
        let folder = self.root.join(INCOMING);
        let (file, path) = blocking(move || Ok(tempfile::NamedTempFile::new_in(folder)?.into_parts())).await?;
        let file = BufWriter::with_capacity(BUFFER_BYTES, File::from_std(file));
        Ok(Incoming { root: self.root.clone(), file, path, hasher: Hasher::default(), len: 0 })
    }

    /// Opens an artifact for reading, with its length in bytes; `None` if it is not there.
    ///
    /// # Errors
    /// The file is there and cannot be read.
    pub async fn read(&self, artifact: Artifact) -> io::Result<Option<(File, u64)>> {
        let file = match File::open(artifact.path(&self.root)).await {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(error),
        };
        let len = file.metadata().await?.len();
        Ok(Some((file, len)))
    }

    /// Whether an artifact is there.
    pub async fn has(&self, artifact: Artifact) -> bool {
        tokio::fs::try_exists(artifact.path(&self.root)).await.unwrap_or(false)
    }
}

impl Incoming {
    /// Appends, and hashes on the way.
    ///
    /// # Errors
    /// The disk is full.
    pub async fn write(&mut self, chunk: &[u8]) -> io::Result<()> {
        self.file.write_all(chunk).await?;
        self.hasher.update(chunk);
        self.len += chunk.len() as u64;
        Ok(())
    }

    /// Bytes so far.
    #[must_use]
    #[allow(clippy::len_without_is_empty, reason = "nobody asks")]
    pub fn len(&self) -> u64 {
        self.len
    }

    /// SHA-256 of the bytes so far.
    #[must_use]
    pub fn digest(&self) -> Digest {
        self.hasher.clone().finish()
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
    pub async fn flush(&mut self) -> io::Result<()> {
        self.file.flush().await
    }

    /// Syncs it to disk and gives it its name. One that exists already is left as it is.
    ///
    /// # Errors
    /// The disk is full, or the bytes of an archive are not those that its digest names.
    pub async fn keep(mut self, artifact: Artifact) -> io::Result<()> {
        if matches!(artifact, Artifact::Archive(digest) if digest != self.digest()) {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "the archive is not the one that its digest names"));
        }
        self.flush().await?;
        self.file.get_ref().sync_all().await?;
        let Self { root, path, .. } = self;
        blocking(move || {
            let target = artifact.path(&root);
            match path.persist_noclobber(&target) {
                Err(error) if error.error.kind() != io::ErrorKind::AlreadyExists => return Err(error.error),
                _ => {}
            }
            // Also when it exists: who put it there may not have come to this yet.
            std::fs::File::open(root.join(artifact.folder()))?.sync_all()
        })
        .await
    }
}

impl Artifact {
    fn folder(self) -> &'static str {
        match self {
            Self::Archive(_) => ARCHIVES,
            Self::Build(_) => BUILDS,
        }
    }

    fn path(self, root: &Path) -> PathBuf {
        let (Self::Archive(digest) | Self::Build(digest)) = self;
        root.join(self.folder()).join(format!("{digest}.tar.gz"))
    }
}

async fn blocking<T: Send + 'static>(work: impl FnOnce() -> io::Result<T> + Send + 'static) -> io::Result<T> {
    tokio::task::spawn_blocking(work).await.map_err(io::Error::other)?
}
