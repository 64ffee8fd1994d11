//! Why a build cannot be had: for the function's fault, or for this node's.

use std::io;

use common::archive::UnpackError;
use common::digest::Digest;

use super::tree::Unfit;
use crate::link::calls::CallError;
use crate::sandbox::LeaseError;

/// Why a run did not end in a build.
#[derive(Debug, thiserror::Error)]
pub(super) enum BuildFailure {
    #[error("{0}")]
    User(String),
    #[error("the archive could not be fetched")]
    Fetch(#[source] CallError),
    #[error("the archive {0} is not in the artifact store")]
    NoArchive(Digest),
    #[error("the build could not be stored")]
    Store(#[source] CallError),
    #[error("the image to run it in cannot be had")]
    Image(#[from] LeaseError),
    #[error("the build's sandbox failed")]
    Sandbox(#[from] crate::sandbox::BuildError),
    #[error("the build's files could not be handled")]
    Io(#[source] io::Error),
    #[error("this node's disk is full: free some of it, or set BUILD_CACHE_MB lower")]
    DiskFull(#[source] io::Error),
    #[error("a step of the build was interrupted")]
    Interrupted(#[from] tokio::task::JoinError),
}

impl From<io::Error> for BuildFailure {
    fn from(error: io::Error) -> Self {
        match error.kind() {
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => Self::DiskFull(error),
            _ => Self::Io(error),
        }
    }
}

/// What a transfer that failed means to a build.
pub(super) fn transfer(otherwise: fn(CallError) -> BuildFailure) -> impl FnOnce(CallError) -> BuildFailure {
    move |error| match error {
        CallError::File(error) => error.into(),
        error => otherwise(error),
    }
}

impl From<Unfit> for BuildFailure {
    fn from(unfit: Unfit) -> Self {
        match unfit {
            Unfit::Content(text) => Self::User(text),
            Unfit::Io(error) => error.into(),
        }
    }
}

impl From<UnpackError> for BuildFailure {
    fn from(error: UnpackError) -> Self {
        match error {
            UnpackError::Refused(refused) => Self::User(refused.to_string()),
            UnpackError::Read(error) => error.into(),
            UnpackError::Write { source, .. } => source.into(),
        }
    }
}
