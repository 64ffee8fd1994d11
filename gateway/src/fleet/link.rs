//! The link's door on this machine: a Unix socket on which its agent dials in.

use std::os::unix::fs::{FileTypeExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use tokio::net::UnixListener;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::reception::{Dialler, Reception};

/// How long the door waits after a failed accept: out of descriptors, most likely.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// The socket cannot be had.
#[derive(Debug, thiserror::Error)]
#[error("cannot listen on the link socket {}: {reason}", path.display())]
pub struct LinkError {
    path: PathBuf,
    reason: String,
}

/// The bound socket. Its file goes when this is dropped.
pub(crate) struct Link {
    listener: UnixListener,
    path: PathBuf,
}

impl Drop for Link {
    fn drop(&mut self) {
        if let Err(error) = std::fs::remove_file(&self.path) {
            tracing::debug!(%error, path = %self.path.display(), "the link socket's file was gone already");
        }
    }
}

impl Link {
    /// Binds the socket at `path` for this user alone. A file that a dead gateway left is replaced. Call it on the
    /// control runtime.
    ///
    /// # Errors
    /// The path is too long, not writable, or another gateway listens there.
    pub(crate) fn bind(path: &Path) -> Result<Self, LinkError> {
        let refuse = |reason: String| LinkError { path: path.to_owned(), reason };
        if let Ok(metadata) = std::fs::symlink_metadata(path) {
            if !metadata.file_type().is_socket() {
                return Err(refuse("there is a file that is not a socket: set LINK_SOCKET".into()));
            }
            if std::os::unix::net::UnixStream::connect(path).is_ok() {
                return Err(refuse("another gateway listens there: stop it, or set DATA_DIR or LINK_SOCKET".into()));
            }
            std::fs::remove_file(path).map_err(|error| refuse(error.to_string()))?;
        }
        let listener = UnixListener::bind(path).map_err(|error| refuse(error.to_string()))?;
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600))
            .map_err(|error| refuse(error.to_string()))?;
        Ok(Self { listener, path: path.to_owned() })
    }

    /// Takes connections until `stop`, and waits for those that are not work connections, which the stocks own.
    pub(crate) async fn run(self, reception: Arc<Reception>, stop: CancellationToken) {
        let tasks = TaskTracker::new();
        loop {
            let accepted = tokio::select! {
                accepted = self.listener.accept() => accepted,
                () = stop.cancelled() => break,
            };
            let stream = match accepted {
                Ok((stream, _)) => stream,
                Err(error) => {
                    tracing::warn!(%error, "no link connection can be accepted");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                    continue;
                }
            };
            let (reception, stop) = (reception.clone(), stop.clone());
            tasks.spawn(async move { reception.receive(stream.into(), Dialler::Local, stop).await });
        }
        tasks.close();
        tasks.wait().await;
    }
}
