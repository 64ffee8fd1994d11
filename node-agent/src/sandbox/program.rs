//! The runner's program, where the Engine finds it: what it mounts into sandboxes are paths of the host, and an agent in
//! a container shares only its data directory with that.

use std::fs::{self, Permissions};
use std::io::{self, Write as _};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use super::{SandboxArgs, SandboxesError};

/// Its name in the data directory.
const NAME: &str = "dartcloud-runner";

/// The program that comes with the agent.
pub(super) fn find(args: &SandboxArgs) -> Result<PathBuf, SandboxesError> {
    let beside = || std::env::current_exe().ok().map(|path| path.with_file_name(NAME));
    let path = args.runner_path.clone().or_else(beside).unwrap_or_else(|| NAME.into());
    match path.canonicalize() {
        Ok(found) if found.is_file() => Ok(found),
        _ => Err(SandboxesError::NoRunner(path)),
    }
}

/// Copies it into `data_dir`, and says where it is. An earlier one is replaced as a whole: what runs keeps its own.
pub(super) fn install(program: &Path, data_dir: &Path) -> Result<PathBuf, SandboxesError> {
    let copied = || -> io::Result<PathBuf> {
        let data_dir = data_dir.canonicalize()?;
        let mut copy = tempfile::NamedTempFile::new_in(&data_dir)?;
        copy.write_all(&fs::read(program)?)?;
        copy.as_file().set_permissions(Permissions::from_mode(0o755))?;
        // A program that is open for writing cannot be started.
        let copy = copy.into_temp_path();
        let path = data_dir.join(NAME);
        copy.persist(&path).map_err(|error| error.error)?;
        Ok(path)
    };
    copied().map_err(|cause| SandboxesError::Runner { data_dir: data_dir.to_owned(), cause })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn replaced_as_a_whole() {
        let data = tempfile::tempdir().unwrap();
        let program = data.path().join("given");
        for content in ["one", "another"] {
            fs::write(&program, content).unwrap();
            let path = install(&program, data.path()).unwrap();
            assert_eq!(fs::read_to_string(&path).unwrap(), content);
            assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o755);
        }
        assert_eq!(fs::read_dir(data.path()).unwrap().count(), 2, "nothing else is left");
    }
}
