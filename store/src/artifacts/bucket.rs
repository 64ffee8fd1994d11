//! Artifacts as objects of an S3 bucket. What is not uploaded to its end has no name there.

use std::io;
use std::path::Path as File;
use std::sync::Arc;
use std::time::Duration;

use common::error::Chain;
use futures_util::stream::BoxStream;
use futures_util::{StreamExt as _, TryStreamExt as _};
use object_store::path::{Path, PathPart};
use object_store::{Error, MultipartUpload, ObjectStore, ObjectStoreExt as _, PutPayload};
use tokio::io::AsyncReadExt as _;
use tokio::time::timeout;
use tokio_util::io::StreamReader;

use super::{Artifact, ArtifactEntry, ArtifactsError, FOLDERS, Reader};

/// How much is uploaded, and held in memory, at once, in bytes. A service takes 10,000 parts.
const PART_BYTES: u64 = 8 * 1024 * 1024;
/// How long an upload may take as a whole.
const UPLOAD_DEADLINE: Duration = Duration::from_secs(300);
/// How long a question that moves no file may take.
const QUESTION_DEADLINE: Duration = Duration::from_secs(60);
/// What is written to see whether we may write.
const PROBE: &str = "probe";

#[derive(Clone, Debug)]
pub(super) struct Bucket {
    objects: Arc<dyn ObjectStore>,
    prefix: Path,
}

impl Bucket {
    /// One that may not be there, nor be written.
    pub(super) fn at(objects: Arc<dyn ObjectStore>, prefix: Path) -> Self {
        Self { objects, prefix }
    }

    /// Connects, and tries whether it may write.
    pub(super) async fn open(objects: Arc<dyn ObjectStore>, prefix: Path) -> Result<Self, ArtifactsError> {
        let bucket = Self::at(objects, prefix);
        let probe = bucket.probe();
        match timeout(QUESTION_DEADLINE, bucket.objects.put(&probe, PutPayload::default())).await {
            Ok(Ok(_)) => Ok(bucket),
            Ok(Err(error @ Error::NotFound { .. })) => Err(ArtifactsError::NoBucket(other(error))),
            Ok(Err(error @ (Error::PermissionDenied { .. } | Error::Unauthenticated { .. }))) => {
                Err(ArtifactsError::Forbidden(other(error)))
            }
            Ok(Err(error)) => Err(ArtifactsError::Service(other(error))),
            Err(late) => Err(ArtifactsError::Service(late.into())),
        }
    }

    /// Whether it answers.
    pub(super) async fn ping(&self) -> io::Result<()> {
        // It was put there at the start; without it the bucket is another one, or gone.
        let found = self.question(self.objects.head(&self.probe())).await?;
        found.map(|_| ()).ok_or_else(|| io::Error::new(io::ErrorKind::NotFound, "the bucket is gone, or was emptied"))
    }

    pub(super) async fn read(&self, artifact: Artifact) -> io::Result<Option<(Reader, u64)>> {
        let path = self.path(artifact);
        let Some(found) = self.question(self.objects.get(&path)).await? else { return Ok(None) };
        let len = found.meta.size;
        Ok(Some((Box::pin(StreamReader::new(found.into_stream().map_err(other))), len)))
    }

    pub(super) async fn has(&self, artifact: Artifact) -> io::Result<bool> {
        Ok(self.question(self.objects.head(&self.path(artifact))).await?.is_some())
    }

    /// Uploads a file, a part at a time.
    pub(super) async fn put(&self, artifact: Artifact, file: &File, len: u64) -> io::Result<()> {
        let path = self.path(artifact);
        let mut file = tokio::fs::File::open(file).await?;
        if len <= PART_BYTES {
            let part = next_part(&mut file).await?;
            return timeout(UPLOAD_DEADLINE, self.objects.put(&path, part)).await?.map(|_| ()).map_err(other);
        }
        let begun = timeout(QUESTION_DEADLINE, self.objects.put_multipart(&path)).await?;
        let mut upload = begun.map_err(other)?;
        let ended =
            timeout(UPLOAD_DEADLINE, parts(&mut *upload, &mut file, len)).await.unwrap_or_else(|late| Err(late.into()));
        if ended.is_err() {
            // What is left of it has no name; the service forgets it by the bucket's own rules.
            match timeout(QUESTION_DEADLINE, upload.abort()).await {
                Ok(Ok(())) => {}
                Ok(Err(error)) => {
                    tracing::warn!(error = %Chain(&error), "an upload that failed leaves its parts behind");
                }
                Err(_) => tracing::warn!("an upload that failed leaves its parts behind"),
            }
        }
        ended
    }

    pub(super) async fn remove(&self, artifact: Artifact) -> io::Result<()> {
        self.question(self.objects.delete(&self.path(artifact))).await.map(|_| ())
    }

    /// Every artifact. What bears no artifact's name is somebody else's.
    pub(super) fn list(&self) -> BoxStream<'static, io::Result<ArtifactEntry>> {
        let bucket = self.clone();
        let of_folder = move |folder: &'static str| {
            let prefix = bucket.prefix.clone().join(folder);
            bucket.objects.list(Some(&prefix)).map_err(other).try_filter_map(move |object| async move {
                let artifact = object.location.filename().and_then(|name| Artifact::named(folder, name));
                Ok(artifact.map(|artifact| ArtifactEntry {
                    artifact,
                    since: object.last_modified.into(),
                    bytes: object.size,
                }))
            })
        };
        futures_util::stream::iter(FOLDERS).flat_map(of_folder).boxed()
    }

    /// `None`: there is no such object.
    async fn question<T>(&self, asked: impl Future<Output = Result<T, Error>>) -> io::Result<Option<T>> {
        match timeout(QUESTION_DEADLINE, asked).await? {
            Ok(answer) => Ok(Some(answer)),
            Err(Error::NotFound { .. }) => Ok(None),
            Err(error) => Err(other(error)),
        }
    }

    fn path(&self, artifact: Artifact) -> Path {
        self.prefix.clone().join(artifact.folder()).join(PathPart::from(artifact.file_name()))
    }

    fn probe(&self) -> Path {
        self.prefix.clone().join(PROBE)
    }
}

async fn parts(upload: &mut dyn MultipartUpload, file: &mut tokio::fs::File, len: u64) -> io::Result<()> {
    for _ in 0..len.div_ceil(PART_BYTES) {
        let part = next_part(file).await?;
        upload.put_part(part).await.map_err(other)?;
    }
    upload.complete().await.map(|_| ()).map_err(other)
}

async fn next_part(file: &mut tokio::fs::File) -> io::Result<PutPayload> {
    let mut part = Vec::new();
    file.take(PART_BYTES).read_to_end(&mut part).await?;
    Ok(part.into())
}

fn other(error: Error) -> io::Error {
    io::Error::other(error)
}
