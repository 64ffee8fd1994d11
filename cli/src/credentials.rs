//! The credentials file: which server, and as whom. `dartcloud login` writes the user's, `dartcloud dev` writes
//! one in its data directory.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::Context as _;
use rustix::fs::{FlockOperation, flock};
use serde::{Deserialize, Serialize};

/// The file's name.
pub(crate) const FILE: &str = "credentials.json";

/// How long another command may hold the file, and how often it is asked for.
const LOCK_TRIES: u32 = 600;
const LOCK_PAUSE: Duration = Duration::from_millis(100);

/// What the file holds.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Credentials {
    /// The server's base URL.
    pub(crate) url: String,
    pub(crate) email: String,
    /// Only `dartcloud dev` keeps it: its operator is an account of this machine's own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) password: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) access_token: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) refresh_token: Option<String>,
}

/// The user's own file: under `$XDG_CONFIG_HOME` or `~/.config`.
pub(crate) fn user_file() -> Option<PathBuf> {
    let from = |name: &str| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    let config = from("XDG_CONFIG_HOME").or_else(|| from("HOME").map(|home| home.join(".config")))?;
    Some(config.join("dartcloud").join(FILE))
}

/// Reads the file at `path`; `None` when there is none.
///
/// # Errors
/// It cannot be read, or is not a credentials file.
pub(crate) fn load(path: &Path) -> anyhow::Result<Option<Credentials>> {
    let text = match fs::read(path) {
        Ok(text) => text,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error).with_context(|| format!("cannot read {}", path.display())),
    };
    let credentials = serde_json::from_slice(&text)
        .with_context(|| format!("{} is damaged: run `dartcloud login`", path.display()))?;
    Ok(Some(credentials))
}

/// Writes the file at `path` in one step, readable for its owner alone.
///
/// # Errors
/// The directory or the file cannot be written.
pub(crate) fn save(path: &Path, credentials: &Credentials) -> anyhow::Result<()> {
    write(path, credentials).with_context(|| format!("cannot write {}", path.display()))
}

fn write(path: &Path, credentials: &Credentials) -> io::Result<()> {
    let directory = path.parent().unwrap_or(Path::new("."));
    DirBuilder::new().recursive(true).mode(0o700).create(directory)?;
    // tempfile creates with mode 0600, and the rename keeps it.
    let mut file = tempfile::NamedTempFile::new_in(directory)?;
    file.write_all(&serde_json::to_vec_pretty(credentials)?)?;
    file.as_file().sync_all()?;
    file.persist(path)?;
    Ok(())
}

/// Holds the credentials at `path` for one command, until the value is dropped: a refresh token that two commands
/// use is taken for stolen.
///
/// # Errors
/// Another command has held it for a minute, or the lock file cannot be made.
pub(crate) async fn lock(path: &Path) -> anyhow::Result<File> {
    let path = path.with_extension("lock");
    let open = || OpenOptions::new().write(true).create(true).truncate(false).mode(0o600).open(&path);
    let file = open().with_context(|| format!("cannot open {}", path.display()))?;
    for _ in 0..LOCK_TRIES {
        match flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => return Ok(file),
            Err(rustix::io::Errno::WOULDBLOCK) => tokio::time::sleep(LOCK_PAUSE).await,
            Err(error) => return Err(error).with_context(|| format!("cannot lock {}", path.display())),
        }
    }
    anyhow::bail!("another dartcloud command holds {}: wait for it, or end it", path.display())
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    fn credentials(password: Option<&str>) -> Credentials {
        Credentials {
            url: "http://127.0.0.1:8080".into(),
            email: "a@example.org".into(),
            password: password.map(str::to_owned),
            access_token: Some("access".into()),
            refresh_token: Some("refresh".into()),
        }
    }

    #[test]
    fn only_the_owner_reads_them() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("new/dartcloud").join(FILE);
        let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
        assert!(load(&path).unwrap().is_none());
        for password in [None, Some("secret")] {
            save(&path, &credentials(password)).unwrap();
            assert_eq!(mode(&path), 0o600);
            assert_eq!(mode(path.parent().unwrap()), 0o700);
            assert!(load(&path).unwrap() == Some(credentials(password)));
        }
        assert_eq!(fs::read_dir(path.parent().unwrap()).unwrap().count(), 1, "nothing temporary is left");
    }

    #[test]
    fn names_are_those_of_the_api() {
        let json = serde_json::to_value(credentials(None)).unwrap();
        let names: Vec<_> = json.as_object().unwrap().keys().cloned().collect();
        assert_eq!(names, ["accessToken", "email", "refreshToken", "url"]);
    }

    #[test]
    fn a_damaged_file_says_the_fix() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join(FILE);
        fs::write(&path, "{").unwrap();
        let error = load(&path).err().unwrap();
        assert!(format!("{error:#}").contains("run `dartcloud login`"));
    }
}
