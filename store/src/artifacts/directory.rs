//! Artifacts as files of a directory.

use std::io;
use std::path::PathBuf;

use futures_util::stream::{self, Stream};
use tempfile::TempPath;
use tokio::fs::{File, ReadDir};

use super::{Artifact, ArtifactEntry, FOLDERS, Reader, blocking};

#[derive(Clone, Debug)]
pub(super) struct Directory {
    root: PathBuf,
}

/// How far a listing has come.
struct Listing {
    root: PathBuf,
    /// The folders that are not begun.
    folders: std::slice::Iter<'static, &'static str>,
    open: Option<(&'static str, ReadDir)>,
}

impl Directory {
    pub(super) fn open(root: PathBuf) -> io::Result<Self> {
        for folder in FOLDERS {
            std::fs::create_dir_all(root.join(folder))?;
        }
        // The folders' own names have to last as the files in them do.
        std::fs::File::open(&root)?.sync_all()?;
        Ok(Self::at(root))
    }

    /// One that may not be there.
    pub(super) fn at(root: PathBuf) -> Self {
        Self { root }
    }

    pub(super) async fn read(&self, artifact: Artifact) -> io::Result<Option<(Reader, u64)>> {
        let file = match File::open(self.path(artifact)).await {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(error),
        };
        let len = file.metadata().await?.len();
        Ok(Some((Box::pin(file), len)))
    }

    pub(super) async fn has(&self, artifact: Artifact) -> io::Result<bool> {
        tokio::fs::try_exists(self.path(artifact)).await
    }

    pub(super) async fn keep(&self, artifact: Artifact, file: &File, path: TempPath) -> io::Result<()> {
        file.sync_all().await?;
        let (target, folder) = (self.path(artifact), self.root.join(artifact.folder()));
        blocking(move || {
            match artifact {
                Artifact::Archive(_) => match path.persist_noclobber(&target) {
                    Err(error) if error.error.kind() != io::ErrorKind::AlreadyExists => return Err(error.error),
                    _ => {}
                },
                Artifact::Build(_) => path.persist(&target)?,
            }
            // Also when it exists: who put it there may not have come to this yet.
            std::fs::File::open(folder)?.sync_all()
        })
        .await
    }

    pub(super) async fn remove(&self, artifact: Artifact) -> io::Result<()> {
        match tokio::fs::remove_file(self.path(artifact)).await {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            _ => Ok(()),
        }
    }

    pub(super) fn list(&self) -> impl Stream<Item = io::Result<ArtifactEntry>> + Send + use<> {
        let listing = Listing { root: self.root.clone(), folders: FOLDERS.iter(), open: None };
        stream::try_unfold(listing, |mut listing| async move { Ok(listing.next().await?.map(|kept| (kept, listing))) })
    }

    fn path(&self, artifact: Artifact) -> PathBuf {
        self.root.join(artifact.folder()).join(artifact.file_name())
    }
}

impl Listing {
    async fn next(&mut self) -> io::Result<Option<ArtifactEntry>> {
        loop {
            let Some((folder, entries)) = &mut self.open else {
                let Some(folder) = self.folders.next() else { return Ok(None) };
                match tokio::fs::read_dir(self.root.join(folder)).await {
                    Ok(entries) => self.open = Some((folder, entries)),
                    // Nothing was ever kept there.
                    Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                    Err(error) => return Err(error),
                }
                continue;
            };
            let Some(entry) = entries.next_entry().await? else {
                self.open = None;
                continue;
            };
            let Some(artifact) = entry.file_name().to_str().and_then(|name| Artifact::named(folder, name)) else {
                continue;
            };
            match entry.metadata().await {
                Ok(metadata) => {
                    return Ok(Some(ArtifactEntry { artifact, since: metadata.modified()?, bytes: metadata.len() }));
                }
                // Somebody removed it meanwhile.
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) => return Err(error),
            }
        }
    }
}
