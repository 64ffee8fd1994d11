//! Claims: what one gateway of several does at a time, and which archives are still wanted.

use common::digest::Digest;
use common::ids::{DeploymentId, HolderId};
use common::names::RuntimeName;
use uuid::Uuid;

use crate::Error;

/// What can be claimed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Claim {
    /// To build from an archive, or to remove it.
    Archive(Digest),
    /// To look for artifacts that nobody wants.
    Sweep,
}

impl Claim {
    pub(crate) fn word(self) -> String {
        match self {
            Self::Archive(digest) => format!("archive {digest}"),
            Self::Sweep => "sweep".to_owned(),
        }
    }
}

/// Who claims; a fresh one for each claim.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Holder(pub(crate) Uuid);

impl Holder {
    /// A fresh one.
    #[must_use]
    #[allow(clippy::new_without_default, reason = "two are never alike")]
    pub fn new() -> Self {
        Self(Uuid::now_v7())
    }
}

impl From<HolderId> for Holder {
    /// A node that claims through the gateway.
    fn from(id: HolderId) -> Self {
        Self(id.uuid())
    }
}

/// What a version's build is made from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Source {
    /// The version.
    pub deployment: DeploymentId,
    /// The archive.
    pub archive: Digest,
    /// The language.
    pub runtime: RuntimeName,
    /// The file that starts it.
    pub entrypoint: String,
}

#[derive(sqlx::FromRow)]
pub(crate) struct SourceRow {
    id: Uuid,
    archive: String,
    runtime: String,
    entrypoint: String,
}

/// A page of sources, in the order of their ids; of either database.
pub(crate) const SOURCES: &str =
    "SELECT id, archive, runtime, entrypoint FROM function_deployments WHERE id > $1 ORDER BY id LIMIT $2";

/// Whether a version names an archive; of either database.
pub(crate) const IS_WANTED: &str = "SELECT EXISTS (SELECT 1 FROM function_deployments WHERE archive = $1)";

/// Gives a claim up; of either database.
pub(crate) const GIVE_UP: &str = "DELETE FROM claims WHERE what = $1 AND holder = $2";

impl TryFrom<SourceRow> for Source {
    type Error = Error;

    fn try_from(row: SourceRow) -> Result<Self, Error> {
        Ok(Self {
            deployment: row.id.into(),
            archive: row.archive.parse().map_err(|_| Error::Damaged("archive"))?,
            runtime: row.runtime.parse().map_err(|_| Error::Damaged("runtime"))?,
            entrypoint: row.entrypoint,
        })
    }
}
