//! The file of a backup, as it is written and read: a `tar.gz` that begins with what it is (`backup.json`), goes on with
//! rows and artifacts, and ends with what was in it (`manifest.json`). Nothing of it is ever whole in memory but one
//! entry of rows.

use std::io::{self, Write as _};
use std::path::{Path, PathBuf};

use bytes::{Buf as _, BytesMut};
use common::digest::{Digest, Hasher};
use flate2::Compression;
use flate2::write::{GzDecoder, GzEncoder};
use tempfile::TempPath;
use tokio::fs::File;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncSeekExt as _, AsyncWriteExt as _};

use super::BackupError;
use super::manifest::{Contained, Entry};

/// A tar's unit, in bytes.
const BLOCK: usize = 512;

/// How much is read at once, in bytes.
const CHUNK: usize = 256 * 1024;
/// What is inflated at once, in bytes as they are packed: what it may become is a thousand times as much.
const PACKED: usize = 16 * 1024;
/// Largest entry that is read as one text: a chunk of rows is far smaller.
const MAX_TEXT_BYTES: usize = 256 * 1024 * 1024;

/// A backup that is being written. Dropped before [`finish`](Writer::finish), it leaves nothing.
pub(super) struct Writer {
    gzip: GzEncoder<Vec<u8>>,
    file: File,
    /// Removes the file when it is dropped.
    temporary: TempPath,
    target: PathBuf,
    contents: Vec<Contained>,
    made_at: u64,
}

impl Writer {
    /// Begins the file `target`, which only its owner will be able to read: password hashes are in it.
    pub(super) async fn create(target: &Path, made_at: u64) -> Result<Self, BackupError> {
        if tokio::fs::try_exists(target).await.unwrap_or(false) {
            return Err(BackupError::Exists(target.display().to_string()));
        }
        let folder = target.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
        // Made in the place where it will lie, with mode 0600.
        let made = tempfile::Builder::new().prefix(".backup-").tempfile_in(folder);
        let (file, temporary) = made.map_err(BackupError::writing(target))?.into_parts();
        Ok(Self {
            gzip: GzEncoder::new(Vec::new(), Compression::fast()),
            file: File::from_std(file),
            temporary,
            target: target.to_owned(),
            contents: Vec::new(),
            made_at,
        })
    }

    /// Appends an entry that is at hand.
    pub(super) async fn append(&mut self, entry: &Entry, bytes: &[u8], rows: u64) -> Result<(), BackupError> {
        self.begin(entry, bytes.len() as u64).await?;
        self.write(bytes).await?;
        self.end(entry, bytes.len() as u64, Digest::of(bytes), rows).await
    }

    /// Appends `len` bytes that are still to be read.
    pub(super) async fn copy(
        &mut self,
        entry: &Entry,
        mut from: impl AsyncRead + Unpin,
        len: u64,
    ) -> Result<(), BackupError> {
        self.begin(entry, len).await?;
        let (mut left, mut hasher, mut chunk) = (len, Hasher::default(), vec![0; CHUNK]);
        while left > 0 {
            let room = chunk.len().min(usize::try_from(left).unwrap_or(usize::MAX));
            let read = from.read(&mut chunk[..room]).await.map_err(BackupError::reading(entry.path()))?;
            if read == 0 {
                return Err(BackupError::reading(entry.path())(io::ErrorKind::UnexpectedEof.into()));
            }
            hasher.update(&chunk[..read]);
            self.write(&chunk[..read]).await?;
            left -= read as u64;
        }
        self.end(entry, len, hasher.finish(), 0).await
    }

    /// What was written so far, but for the first entry.
    pub(super) fn contents(&self) -> &[Contained] {
        &self.contents
    }

    /// Ends the file, syncs it to disk and gives it its name.
    pub(super) async fn finish(mut self) -> Result<(), BackupError> {
        self.write(&[0; 2 * BLOCK]).await?;
        let failed = BackupError::writing(&self.target);
        let done = async {
            self.gzip.try_finish()?;
            self.drain().await?;
            self.file.flush().await?;
            self.file.sync_all().await?;
            let (temporary, target) = (self.temporary, self.target);
            tokio::task::spawn_blocking(move || {
                temporary.persist_noclobber(&target)?;
                let folder = target.parent().filter(|folder| !folder.as_os_str().is_empty());
                std::fs::File::open(folder.unwrap_or(Path::new(".")))?.sync_all()
            })
            .await
            .map_err(io::Error::other)?
        };
        done.await.map_err(failed)
    }

    async fn begin(&mut self, entry: &Entry, len: u64) -> Result<(), BackupError> {
        let mut header = tar::Header::new_ustar();
        header.set_path(entry.path()).map_err(BackupError::writing(&self.target))?;
        header.set_size(len);
        header.set_mode(0o600);
        header.set_mtime(self.made_at);
        header.set_cksum();
        self.write(header.as_bytes()).await
    }

    async fn end(&mut self, entry: &Entry, len: u64, digest: Digest, rows: u64) -> Result<(), BackupError> {
        let padding = len.next_multiple_of(BLOCK as u64) - len;
        self.write(&[0; BLOCK][..usize::try_from(padding).unwrap_or_default()]).await?;
        self.contents.push(Contained { path: entry.path(), bytes: len, sha256: digest, rows });
        Ok(())
    }

    async fn write(&mut self, bytes: &[u8]) -> Result<(), BackupError> {
        let failed = BackupError::writing(&self.target);
        let written = async {
            self.gzip.write_all(bytes)?;
            self.drain().await
        };
        written.await.map_err(failed)
    }

    /// Writes what came out of gzip.
    async fn drain(&mut self) -> io::Result<()> {
        let packed = std::mem::take(self.gzip.get_mut());
        self.file.write_all(&packed).await
    }
}

/// A backup that is being read, from its beginning.
pub(super) struct Reader<'f> {
    file: &'f mut File,
    gzip: GzDecoder<Vec<u8>>,
    /// What came out of gzip and was not looked at yet.
    ready: BytesMut,
    chunk: Vec<u8>,
    /// Bytes of the current entry that were not read yet, and the padding behind them.
    left: u64,
    padding: usize,
}

/// Opens a backup.
pub(super) async fn open(path: &Path) -> Result<File, BackupError> {
    File::open(path).await.map_err(BackupError::reading(path.display()))
}

impl<'f> Reader<'f> {
    pub(super) async fn new(file: &'f mut File) -> Result<Self, BackupError> {
        file.rewind().await.map_err(BackupError::reading("the backup"))?;
        let gzip = GzDecoder::new(Vec::new());
        Ok(Self { file, gzip, ready: BytesMut::new(), chunk: vec![0; PACKED], left: 0, padding: 0 })
    }

    /// The next entry and its length; `None` at the end. What was not read of the one before is passed over.
    pub(super) async fn next(&mut self) -> Result<Option<(Entry, u64)>, BackupError> {
        while self.next_bytes().await?.is_some() {}
        self.fill(BLOCK).await?;
        let block = self.ready.split_to(BLOCK);
        if block.iter().all(|byte| *byte == 0) {
            return Ok(None);
        }
        let header = tar::Header::from_byte_slice(&block);
        let (path, size) = (header.path(), header.entry_size());
        let (path, size) = path.and_then(|path| Ok((path, size?))).map_err(|_| BackupError::damaged("a header"))?;
        let entry = path.to_str().and_then(Entry::at).ok_or_else(|| BackupError::damaged("a name"))?;
        self.left = size;
        let whole = size.checked_next_multiple_of(BLOCK as u64).ok_or_else(|| BackupError::damaged("a length"))?;
        self.padding = usize::try_from(whole - size).unwrap_or_default();
        Ok(Some((entry, size)))
    }

    /// The next bytes of the entry; `None` at its end.
    pub(super) async fn next_bytes(&mut self) -> Result<Option<BytesMut>, BackupError> {
        if self.left == 0 {
            self.fill(self.padding).await?;
            self.ready.advance(std::mem::take(&mut self.padding));
            return Ok(None);
        }
        self.fill(1).await?;
        let take = self.ready.len().min(usize::try_from(self.left).unwrap_or(usize::MAX));
        self.left -= take as u64;
        Ok(Some(self.ready.split_to(take)))
    }

    /// The whole entry, as text.
    pub(super) async fn text(&mut self) -> Result<String, BackupError> {
        let mut text = Vec::new();
        while let Some(bytes) = self.next_bytes().await? {
            text.extend_from_slice(&bytes);
            if text.len() > MAX_TEXT_BYTES {
                return Err(BackupError::damaged("a length"));
            }
        }
        String::from_utf8(text).map_err(|_| BackupError::damaged("a text"))
    }

    /// Reads what follows the last entry: the end of the tar, and gzip's checksum of all.
    pub(super) async fn end(mut self) -> Result<(), BackupError> {
        loop {
            let more = self.pull().await?;
            if self.ready.iter().any(|byte| *byte != 0) {
                return Err(BackupError::damaged("its end"));
            }
            self.ready.clear();
            if !more {
                return Ok(());
            }
        }
    }

    async fn fill(&mut self, bytes: usize) -> Result<(), BackupError> {
        while self.ready.len() < bytes {
            if !self.pull().await? {
                return Err(BackupError::CutOff);
            }
        }
        Ok(())
    }

    /// Reads on; whether there was anything.
    async fn pull(&mut self) -> Result<bool, BackupError> {
        let read = self.file.read(&mut self.chunk).await.map_err(BackupError::reading("the backup"))?;
        if read == 0 {
            // What gzip still has comes out, or it is told that its end is missing.
            self.gzip.try_finish().map_err(|_| BackupError::CutOff)?;
        } else {
            self.gzip.write_all(&self.chunk[..read]).map_err(|_| BackupError::damaged("its compression"))?;
        }
        let unpacked = std::mem::take(self.gzip.get_mut());
        self.ready.extend_from_slice(&unpacked);
        Ok(read > 0 || !unpacked.is_empty())
    }
}
