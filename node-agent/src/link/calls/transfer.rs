//! Files between this node and its gateways: archives and packed builds. What comes is checked, and fetched once more if it
//! came damaged.

use std::io;
use std::path::Path;
use std::time::Duration;

use common::digest::{Digest, Hasher};
use common::error::Chain;
use common::ids::DeploymentId;
use common::protocol::{DEPLOYMENT, calls};
use futures_util::TryStreamExt as _;
use http::header::CONTENT_LENGTH;
use http::{HeaderName, Method};
use http_body_util::{BodyExt as _, StreamBody};
use tokio::fs::File;
use tokio::io::AsyncWriteExt as _;
use tokio::time::timeout;
use tokio_util::io::ReaderStream;

use super::{CallError, Calls, empty, found, named, request, within};
use crate::build::packed;

/// How long a file may take to be moved, its turn included.
const TRANSFER_DEADLINE: Duration = Duration::from_secs(600);
/// How long a transfer may stand still.
const CHUNK_DEADLINE: Duration = Duration::from_secs(30);
/// How much is read from a file at once, in bytes.
const READ_BYTES: usize = 64 * 1024;

impl Calls {
    /// Fetches an archive into `into`; false when there is none. Its digest is checked.
    pub(crate) async fn fetch_archive(&self, digest: Digest, into: &Path, max_bytes: u64) -> Result<bool, CallError> {
        let fetched = self.archive_once(digest, into, max_bytes).await;
        if came_damaged(&fetched) { self.archive_once(digest, into, max_bytes).await } else { fetched }
    }

    async fn archive_once(&self, digest: Digest, into: &Path, max_bytes: u64) -> Result<bool, CallError> {
        let path = calls::archive(digest);
        match within(TRANSFER_DEADLINE, self.fetch(&path, None, into, max_bytes)).await? {
            Some(got) if got != digest => Err(CallError::Digest(digest)),
            fetched => Ok(fetched.is_some()),
        }
    }

    /// Fetches a packed build of a deployment into `into`; false when there is none. It is checked by its stamp.
    pub(crate) async fn fetch_build(
        &self,
        of: DeploymentId,
        digest: Digest,
        into: &Path,
        max_bytes: u64,
    ) -> Result<bool, CallError> {
        let fetched = self.build_once(of, digest, into, max_bytes).await;
        if came_damaged(&fetched) { self.build_once(of, digest, into, max_bytes).await } else { fetched }
    }

    async fn build_once(
        &self,
        of: DeploymentId,
        digest: Digest,
        into: &Path,
        max_bytes: u64,
    ) -> Result<bool, CallError> {
        let path = calls::build(digest);
        let fetched = within(TRANSFER_DEADLINE, self.fetch(&path, Some(of), into, max_bytes)).await?;
        if fetched.is_some() {
            check_stamp(into).await?;
        }
        Ok(fetched.is_some())
    }

    /// Stores a packed build of a deployment.
    pub(crate) async fn put_build(&self, of: DeploymentId, digest: Digest, file: &Path) -> Result<(), CallError> {
        within(TRANSFER_DEADLINE, async {
            let path = calls::build(digest);
            let put = || {
                let file = std::fs::File::open(file)?;
                let length = file.metadata()?.len();
                let chunks = ReaderStream::with_capacity(File::from_std(file), READ_BYTES);
                let body = StreamBody::new(chunks.map_ok(http_body::Frame::data)).boxed_unsync();
                let mut request = request(Method::PUT, &path, body);
                request.headers_mut().insert(CONTENT_LENGTH, length.into());
                request.headers_mut().insert(DEPLOYMENT, named(of));
                Ok(request)
            };
            match found(self.send(&put).await?).await? {
                Some(_) => Ok(()),
                None => Err(CallError::Refused { status: 404, reason: "this gateway stores no builds".into() }),
            }
        })
        .await
    }

    async fn fetch(
        &self,
        path: &str,
        of: Option<DeploymentId>,
        into: &Path,
        max_bytes: u64,
    ) -> Result<Option<Digest>, CallError> {
        let get = || {
            let mut request = request(Method::GET, path, empty());
            request.headers_mut().extend(of.map(|of| (HeaderName::from_static(DEPLOYMENT), named(of))));
            Ok(request)
        };
        let answer = self.send(&get).await?;
        let Some(answer) = found(answer).await? else { return Ok(None) };
        let mut body = answer.into_body();
        let mut file = File::create(into).await.map_err(CallError::File)?;
        let (mut hasher, mut length) = (Hasher::default(), 0);
        while let Some(frame) = timeout(CHUNK_DEADLINE, body.frame()).await.map_err(|_| CallError::Deadline)? {
            let Ok(chunk) = frame.map_err(CallError::Broken)?.into_data() else { continue };
            length += chunk.len() as u64;
            if length > max_bytes {
                return Err(CallError::TooLarge(max_bytes));
            }
            hasher.update(&chunk);
            file.write_all(&chunk).await.map_err(CallError::File)?;
        }
        file.flush().await.map_err(CallError::File)?;
        Ok(Some(hasher.finish()))
    }
}

/// Whether what came was damaged, so that it is fetched once more; the log says so.
fn came_damaged(fetched: &Result<bool, CallError>) -> bool {
    let damage = fetched.as_ref().err().filter(|error| error.is_of_transfer());
    if let Some(error) = damage {
        tracing::warn!(error = %Chain(error), "a file is fetched once more");
    }
    damage.is_some()
}

async fn check_stamp(packed: &Path) -> Result<(), CallError> {
    let file = packed.to_owned();
    let checked = tokio::task::spawn_blocking(move || packed::open(&file).map(drop)).await;
    checked.unwrap_or_else(|error| Err(io::Error::other(error))).map_err(|error| match error.kind() {
        io::ErrorKind::InvalidData => CallError::Damaged,
        _ => CallError::File(error),
    })
}
