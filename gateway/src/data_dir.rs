//! The data directory: one gateway's at a time, and where it keeps which gateway it is.

use std::fs::{DirBuilder, File};
use std::io;
use std::os::unix::fs::DirBuilderExt as _;
use std::path::Path;

use common::ids::GatewayId;

use crate::error::StartError;

/// The name of the file that says which gateway has the directory.
const GATEWAY_ID: &str = "gateway-id";

/// Makes the directory, for this user alone if it is new, and makes it ours until the file is closed; and which gateway
/// we are.
pub(crate) fn take(data_dir: &Path) -> Result<(File, GatewayId), StartError> {
    Ok((lock(data_dir)?, gateway_id(data_dir)?))
}

/// Makes the directory, for this user alone if it is new, and keeps gateways out of it until the file is closed.
pub(crate) fn lock(data_dir: &Path) -> Result<File, StartError> {
    let made = DirBuilder::new().recursive(true).mode(0o700).create(data_dir);
    let open = || File::options().write(true).create(true).truncate(false).open(data_dir.join("gateway.lock"));
    let file = made.and_then(|()| open()).map_err(unusable(data_dir))?;
    match rustix::fs::flock(&file, rustix::fs::FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok(file),
        Err(_) => Err(StartError::Locked(data_dir.display().to_string())),
    }
}

/// Notes that another gateway has the directory now: what the one before left unfinished bears that one's id.
pub(crate) fn belongs_to(data_dir: &Path, gateway: GatewayId) -> Result<(), StartError> {
    let path = data_dir.join(GATEWAY_ID);
    note(&path, gateway).map_err(unusable(&path))
}

/// Which gateway this is: made once, then read. One whose file was lost or damaged is a new one, and that is all right:
/// what the old one left unfinished fails when it is overdue.
fn gateway_id(data_dir: &Path) -> Result<GatewayId, StartError> {
    let path = data_dir.join(GATEWAY_ID);
    let kept = match std::fs::read_to_string(&path) {
        Ok(text) => text.trim().parse().ok(),
        Err(error) if error.kind() == io::ErrorKind::NotFound => None,
        Err(error) => return Err(unusable(&path)(error)),
    };
    if let Some(id) = kept {
        return Ok(id);
    }
    let id = GatewayId::new();
    note(&path, id).map(|()| id).map_err(unusable(&path))
}

fn note(path: &Path, id: GatewayId) -> io::Result<()> {
    let next = path.with_extension("next");
    std::fs::write(&next, format!("{id}\n")).and_then(|()| std::fs::rename(&next, path))
}

/// A part of the disk that is of no use.
pub(crate) fn unusable(path: &Path) -> impl FnOnce(io::Error) -> StartError {
    let path = path.display().to_string();
    |source| StartError::Directory { path, source }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_gateway_stays_itself() {
        let directory = tempfile::tempdir().unwrap();
        let id = gateway_id(directory.path()).unwrap();
        assert_eq!(gateway_id(directory.path()).unwrap(), id);
        std::fs::write(directory.path().join("gateway-id"), "?").unwrap();
        assert_ne!(gateway_id(directory.path()).unwrap(), id);
        belongs_to(directory.path(), id).unwrap();
        assert_eq!(gateway_id(directory.path()).unwrap(), id);
        assert_eq!(std::fs::read_dir(directory.path()).unwrap().count(), 1, "nothing temporary is left");
    }
}
