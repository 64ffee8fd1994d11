//! An archive, unpacked where it becomes a build.

use std::fs::{File, Permissions};
use std::io::Read;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use common::archive::{self, Caps};
use common::function::DeploymentSpec;
use common::runtime::Recipe;
use tempfile::TempDir;
use tokio::sync::SemaphorePermit;

use super::Builds;
use super::failure::{BuildFailure, transfer};

/// An archive that becomes a build.
pub(super) struct Unpacked<'a> {
    pub(super) place: TempDir,
    pub(super) work: PathBuf,
    /// What is to be run, if anything.
    pub(super) recipe: Option<&'a Recipe>,
}

impl Builds {
    /// The archive, unpacked in a turn of this build.
    pub(super) async fn unpacked(
        &self,
        spec: &DeploymentSpec,
    ) -> Result<(Unpacked<'_>, SemaphorePermit<'_>), BuildFailure> {
        let turn = self.turn().await;
        // A version that could not run for want of its image must not become the one that serves.
        self.parts.sandboxes.prepare(&spec.runtime).await?;
        let place = self.parts.cache.workplace()?;
        let work = place.path().join("work");
        self.unpack_archive(spec, place.path(), &work).await?;
        let recipe = self.parts.runtimes.get(&spec.runtime).and_then(|runtime| runtime.build.as_ref());
        let recipe = recipe.filter(|recipe| recipe.applies(|file| work.join(file).symlink_metadata().is_ok()));
        Ok((Unpacked { place, work, recipe }, turn))
    }

    async fn unpack_archive(&self, spec: &DeploymentSpec, place: &Path, work: &Path) -> Result<(), BuildFailure> {
        let file = place.join("archive.tar.gz");
        let caps = self.parts.caps;
        let fetched = self.parts.calls.fetch_archive(spec.archive, &file, caps.archive_bytes()).await;
        if !fetched.map_err(transfer(BuildFailure::Fetch))? {
            return Err(BuildFailure::NoArchive(spec.archive));
        }
        let (root, work) = (spec.archive_root.clone(), work.to_owned());
        let unpacked = tokio::task::spawn_blocking(move || {
            unpack(File::open(&file)?, root.as_deref(), &work, &caps)?;
            std::fs::remove_file(file)?;
            Ok::<_, BuildFailure>(())
        });
        unpacked.await?
    }
}

pub(super) fn unpack(archive: impl Read, root: Option<&str>, into: &Path, caps: &Caps) -> Result<(), BuildFailure> {
    std::fs::create_dir(into)?;
    // Whatever the agent's umask says: a sandbox's user looks into it.
    std::fs::set_permissions(into, Permissions::from_mode(0o755))?;
    Ok(archive::unpack(archive, root, into, caps)?)
}
