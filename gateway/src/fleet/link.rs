//! The link's door on this machine: a Unix socket on which its agent dials in.

use std::io;
use std::os::fd::AsFd as _;
use std::os::unix::fs::{FileTypeExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
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

/// The bound socket. Its file goes when this is dropped, unless it is another process'.
pub(crate) struct Link {
    listener: UnixListener,
    path: PathBuf,
    is_ours: Arc<AtomicBool>,
}

impl Drop for Link {
    fn drop(&mut self) {
        if !self.is_ours.load(Ordering::Acquire) {
            return;
        }
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
        Ok(Self { listener, path: path.to_owned(), is_ours: Arc::new(AtomicBool::new(true)) })
    }

    /// The socket at `path` that the gateway before this one has bound, and whose file is that one's as yet. Call it on the
    /// control runtime.
    ///
    /// # Errors
    /// It cannot be watched.
    pub(crate) fn inherit(listener: std::os::unix::net::UnixListener, path: &Path) -> Result<Self, LinkError> {
        let watched = listener.set_nonblocking(true).and_then(|()| UnixListener::from_std(listener));
        let listener = watched.map_err(|error| LinkError { path: path.to_owned(), reason: error.to_string() })?;
        Ok(Self { listener, path: path.to_owned(), is_ours: Arc::default() })
    }

    /// Whether the socket's file is ours, for who knows when that changes.
    pub(crate) fn is_ours(&self) -> Arc<AtomicBool> {
        Arc::clone(&self.is_ours)
    }

    /// The socket once more, for a successor.
    pub(crate) fn share(&self) -> io::Result<std::os::unix::net::UnixListener> {
        Ok(self.listener.as_fd().try_clone_to_owned()?.into())
    }

    /// Takes connections until `stop`, while no successor does, and waits for those that are not work connections, which
    /// the stocks own.
    pub(crate) async fn run(self, reception: Arc<Reception>, stop: CancellationToken) {
        let (tasks, mut has_successor) = (TaskTracker::new(), reception.has_successor());
        loop {
            let accepts = !*has_successor.borrow_and_update();
            let accepted = tokio::select! {
                // In this order, so that nobody is accepted who was told to go to the successor.
                biased;
                () = stop.cancelled() => break,
                Ok(()) = has_successor.changed() => continue,
                accepted = self.listener.accept(), if accepts => accepted,
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
