//! The note beside SQLite's file that everything in it was copied to Postgres, so that nobody goes on with the old one, or
//! backs it up, by mistake.

use std::io;
use std::path::{Path, PathBuf};

use sqlx::postgres::PgConnectOptions;

use crate::Error;

fn path(data_dir: &Path) -> PathBuf {
    data_dir.join("moved-to-postgres")
}

/// Leaves it.
pub(crate) fn note(data_dir: &Path, to: &PgConnectOptions) -> io::Result<()> {
    let database = to.get_database().unwrap_or(to.get_username());
    std::fs::write(path(data_dir), format!("`{database}` at {}\n", to.get_host()))
}

/// Takes it away: the file is the database again.
pub(crate) fn forget(data_dir: &Path) -> io::Result<()> {
    match std::fs::remove_file(path(data_dir)) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

/// Whether the file is the database still.
///
/// # Errors
/// [`Error::Settings`]: it was moved.
pub(crate) fn check(data_dir: &Path) -> Result<(), Error> {
    let path = path(data_dir);
    match std::fs::read_to_string(&path) {
        Ok(database) => Err(Error::Settings(format!(
            "what {} held was moved to the Postgres database {}: set DATABASE_URL or POSTGRES_*, or remove {} to go back \
             to the file as it was",
            data_dir.display(),
            database.trim(),
            path.display()
        ))),
        // Of a directory that is none, whoever opens the database says so.
        Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => Ok(()),
        Err(error) => Err(Error::Settings(format!(
            "{} cannot be read ({error}), so it is not known to which database this one was moved: let this user read it",
            path.display()
        ))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_that_was_moved_is_not_used() {
        let directory = tempfile::tempdir().unwrap();
        check(directory.path()).unwrap();
        forget(directory.path()).unwrap();
        note(directory.path(), &PgConnectOptions::new_without_pgpass().host("db.example").database("x")).unwrap();
        let error = check(directory.path()).unwrap_err().to_string();
        assert!(error.contains("`x` at db.example") && error.contains("DATABASE_URL"), "{error}");
        forget(directory.path()).unwrap();
        check(directory.path()).unwrap();
        std::fs::create_dir(path(directory.path())).unwrap();
        assert!(check(directory.path()).unwrap_err().to_string().contains("cannot be read"));
    }
}
