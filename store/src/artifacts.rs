//! The artifact store: archives and packed builds, each under its digest, as files of a directory or as objects of an
//! S3 bucket. An artifact is there whole or not at all: it is written under `incoming/`, and then renamed, or uploaded.

use std::io;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::sync::Arc;
use std::time::SystemTime;

use common::digest::{Digest, Hasher};
use futures_util::StreamExt as _;
use futures_util::stream::BoxStream;
use tempfile::TempPath;
use tokio::fs::File;
use tokio::io::{AsyncRead, AsyncWriteExt as _, BufWriter};

mod bucket;
mod directory;
mod settings;

pub use settings::ArtifactArgs;

use bucket::Bucket;
use directory::Directory;
use settings::Location;

const ARCHIVES: &str = "archives";
const BUILDS: &str = "builds";
const INCOMING: &str = "incoming";
const FOLDERS: [&str; 2] = [ARCHIVES, BUILDS];
const SUFFIX: &str = ".tar.gz";

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

/// An artifact as it is listed.
#[derive(Clone, Copy, Debug)]
pub struct ArtifactEntry {
    /// Which.
    pub artifact: Artifact,
    /// Since when.
    pub since: SystemTime,
    /// How large.
    pub bytes: u64,
}

/// An artifact's bytes.
pub type Reader = Pin<Box<dyn AsyncRead + Send>>;

/// The artifact store cannot be opened. Each sentence says the fix.
#[derive(Debug, thiserror::Error)]
pub enum ArtifactsError {
    /// A setting is wrong.
    #[error("{0}")]
    Settings(String),
    /// The directory cannot be made or written.
    #[error("cannot keep artifacts in {path}: set FUNCTIONS_DIR or DATA_DIR to a directory that this user can write")]
    Directory {
        /// Which.
        path: String,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// There is no such bucket.
    #[error(
        "the bucket of ARTIFACTS_URL does not exist: make it, or correct ARTIFACTS_URL, AWS_REGION or AWS_ENDPOINT_URL"
    )]
    NoBucket(#[source] io::Error),
    /// The service does not let us write.
    #[error(
        "the bucket of ARTIFACTS_URL may not be written: check AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, and that they \
         may get, put, list and delete objects there"
    )]
    Forbidden(#[source] io::Error),
    /// The service does not answer, or answers what nobody understands.
    #[error("the service of ARTIFACTS_URL does not answer as S3 does: check AWS_ENDPOINT_URL, and that it runs")]
    Service(#[source] io::Error),
}

/// Where artifacts are.
#[derive(Clone, Debug)]
pub struct Artifacts {
    /// Where files are written; on the same file system as the directory, if it is one.
    incoming: PathBuf,
    shelf: Shelf,
}

#[derive(Clone, Debug)]
enum Shelf {
    Directory(Directory),
    Bucket(Bucket),
}

/// A file that is being written; dropped before [`keep`](Incoming::keep), it leaves nothing.
pub struct Incoming {
    shelf: Shelf,
    file: BufWriter<File>,
    /// Removes the file when it is dropped.
    path: TempPath,
    hasher: Hasher,
    len: u64,
}

impl Artifacts {
    /// Opens the store that the settings name; without any it is the directory `default`. With a bucket, that
    /// directory has what is being written.
    ///
    /// # Errors
    /// The sentence says the fix.
    pub async fn connect(args: &ArtifactArgs, default: PathBuf) -> Result<Self, ArtifactsError> {
        Self::connect_by(args, default, empty).await
    }

    /// The same, where the process that owns it gives it to this one, and still writes: what it writes stays.
    ///
    /// # Errors
    /// The sentence says the fix.
    pub async fn inherit(args: &ArtifactArgs, default: PathBuf) -> Result<Self, ArtifactsError> {
        Self::connect_by(args, default, |incoming| std::fs::create_dir_all(incoming)).await
    }

    async fn connect_by(
        args: &ArtifactArgs,
        default: PathBuf,
        prepare: fn(&Path) -> io::Result<()>,
    ) -> Result<Self, ArtifactsError> {
        let open = |root: PathBuf| {
            let path = root.display().to_string();
            Self::open_by(root, prepare).map_err(|source| ArtifactsError::Directory { path, source })
        };
        match args.location()? {
            Location::Default => open(default),
            Location::Directory(root) => open(root),
            Location::Bucket { client, prefix } => {
                let incoming = default.join(INCOMING);
                let path = incoming.display().to_string();
                prepare(&incoming).map_err(|source| ArtifactsError::Directory { path, source })?;
                let bucket = Bucket::open(Arc::new(*client), prefix).await?;
                Ok(Self { incoming, shelf: Shelf::Bucket(bucket) })
            }
        }
    }

    /// The store that the settings name, to read from it beside the process that owns it.
    ///
    /// # Errors
    /// A setting is wrong.
    pub fn beside(args: &ArtifactArgs, default: PathBuf) -> Result<Self, ArtifactsError> {
        let shelf = match args.location()? {
            Location::Default => Shelf::Directory(Directory::at(default.clone())),
            Location::Directory(root) => Shelf::Directory(Directory::at(root)),
            Location::Bucket { client, prefix } => Shelf::Bucket(Bucket::at(Arc::new(*client), prefix)),
        };
        Ok(Self { incoming: default.join(INCOMING), shelf })
    }

    /// Opens the directory `root`, makes its folders and empties `incoming/`. One process owns a directory of artifacts.
    ///
    /// # Errors
    /// The directory cannot be made or written.
    pub fn open(root: PathBuf) -> io::Result<Self> {
        Self::open_by(root, empty)
    }

    fn open_by(root: PathBuf, prepare: fn(&Path) -> io::Result<()>) -> io::Result<Self> {
        let incoming = root.join(INCOMING);
        prepare(&incoming)?;
        Ok(Self { incoming, shelf: Shelf::Directory(Directory::open(root)?) })
    }

    /// Removes what a process that is gone was writing before `since`, when this one had not begun.
    ///
    /// # Errors
    /// Something stays.
    pub async fn clear(&self, since: SystemTime) -> io::Result<()> {
        let incoming = self.incoming.clone();
        blocking(move || {
            for entry in std::fs::read_dir(incoming)? {
                let entry = entry?;
                let is_left = |metadata: std::fs::Metadata| Ok(metadata.modified()? < since);
                match entry.metadata().and_then(is_left) {
                    Ok(true) => std::fs::remove_file(entry.path())?,
                    Ok(false) => {}
                    // One of ours that got its name meanwhile.
                    Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                    Err(error) => return Err(error),
                }
            }
            Ok(())
        })
        .await
    }

    /// Whether the store answers.
    ///
    /// # Errors
    /// It does not.
    pub async fn ping(&self) -> io::Result<()> {
        match &self.shelf {
            Shelf::Directory(_) => Ok(()),
            Shelf::Bucket(bucket) => bucket.ping().await,
        }
    }

    /// Begins a file.
    ///
    /// # Errors
    /// The disk is full, or not writable.
    pub async fn begin(&self) -> io::Result<Incoming> {
        let folder = self.incoming.clone();
        let (file, path) = blocking(move || Ok(tempfile::NamedTempFile::new_in(folder)?.into_parts())).await?;
        let file = BufWriter::with_capacity(BUFFER_BYTES, File::from_std(file));
        Ok(Incoming { shelf: self.shelf.clone(), file, path, hasher: Hasher::default(), len: 0 })
    }

    /// Opens an artifact for reading, with its length in bytes; `None` if it is not there.
    ///
    /// # Errors
    /// It is there and cannot be read, or nobody knows whether it is there.
    pub async fn read(&self, artifact: Artifact) -> io::Result<Option<(Reader, u64)>> {
        match &self.shelf {
            Shelf::Directory(directory) => directory.read(artifact).await,
            Shelf::Bucket(bucket) => bucket.read(artifact).await,
        }
    }

    /// Whether an artifact is there.
    ///
    /// # Errors
    /// Nobody knows.
    pub async fn has(&self, artifact: Artifact) -> io::Result<bool> {
        match &self.shelf {
            Shelf::Directory(directory) => directory.has(artifact).await,
            Shelf::Bucket(bucket) => bucket.has(artifact).await,
        }
    }

    /// Removes an artifact. One that is not there is removed already.
    ///
    /// # Errors
    /// It stays.
    pub async fn remove(&self, artifact: Artifact) -> io::Result<()> {
        match &self.shelf {
            Shelf::Directory(directory) => directory.remove(artifact).await,
            Shelf::Bucket(bucket) => bucket.remove(artifact).await,
        }
    }

    /// Every artifact, in no order.
    pub fn list(&self) -> BoxStream<'static, io::Result<ArtifactEntry>> {
        match &self.shelf {
            Shelf::Directory(directory) => directory.list().boxed(),
            Shelf::Bucket(bucket) => bucket.list(),
        }
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

    /// Gives it its name, synced to disk or uploaded. An archive that exists already is left as it is; a build is replaced,
    /// so that one that cannot be read any more is made good.
    ///
    /// # Errors
    /// The disk is full, the service refuses, or the bytes of an archive are not those that its digest names.
    pub async fn keep(mut self, artifact: Artifact) -> io::Result<()> {
        if matches!(artifact, Artifact::Archive(digest) if digest != self.digest()) {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "the archive is not the one that its digest names"));
        }
        self.flush().await?;
        match self.shelf {
            Shelf::Directory(directory) => directory.keep(artifact, self.file.get_ref(), self.path).await,
            Shelf::Bucket(bucket) => {
                if matches!(artifact, Artifact::Archive(_)) && bucket.has(artifact).await? {
                    return Ok(());
                }
                bucket.put(artifact, &self.path, self.len).await
            }
        }
    }
}

impl Artifact {
    fn folder(self) -> &'static str {
        match self {
            Self::Archive(_) => ARCHIVES,
            Self::Build(_) => BUILDS,
        }
    }

    fn file_name(self) -> String {
        let (Self::Archive(digest) | Self::Build(digest)) = self;
        format!("{digest}{SUFFIX}")
    }

    /// The artifact that bears this name in this folder.
    fn named(folder: &str, name: &str) -> Option<Self> {
        let digest = name.strip_suffix(SUFFIX)?.parse().ok()?;
        match folder {
            ARCHIVES => Some(Self::Archive(digest)),
            BUILDS => Some(Self::Build(digest)),
            _ => None,
        }
    }
}

/// Makes a folder, without what a crash left in it.
fn empty(folder: &Path) -> io::Result<()> {
    match std::fs::remove_dir_all(folder) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    std::fs::create_dir_all(folder)
}

async fn blocking<T: Send + 'static>(work: impl FnOnce() -> io::Result<T> + Send + 'static) -> io::Result<T> {
    tokio::task::spawn_blocking(work).await.map_err(io::Error::other)?
}
