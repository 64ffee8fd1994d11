//! The link's door: a Unix socket on which agents dial in, and the first line that says what each connection is
//! for.

use std::io;
use std::os::unix::fs::{FileTypeExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use bytes::BytesMut;
use common::error::Chain;
use common::protocol::{GatewayMessage, Hello, Kind, MAX_HELLO_BYTES, VERSION};
use tokio::io::AsyncReadExt as _;
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::Semaphore;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::calls::Calls;
use super::{Fleet, control_stream};

/// How long an agent may take for its first line.
const HELLO_DEADLINE: Duration = Duration::from_secs(5);

/// Most link connections that are open or opening, work connections aside.
const MAX_CONNECTIONS: usize = 1024;

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

/// Why a connection was turned away.
#[derive(Debug, thiserror::Error)]
enum Turned {
    #[error("no hello in time")]
    Late,
    #[error("the connection broke off")]
    Broken(#[from] io::Error),
    #[error("the hello is not one")]
    Garbled(#[source] serde_json::Error),
    #[error("the hello is over its limit")]
    TooLong,
    #[error("the agent speaks protocol {0}")]
    Protocol(u32),
    #[error("the agent spoke first on a work connection")]
    SpokeFirst,
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
    pub(crate) async fn run(self, fleet: Fleet, calls: Arc<Calls>, stop: CancellationToken) {
        let tasks = TaskTracker::new();
        let room = Arc::new(Semaphore::new(MAX_CONNECTIONS));
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
            let Ok(place) = room.clone().try_acquire_owned() else {
                tracing::warn!("too many link connections: one is closed");
                continue;
            };
            let (fleet, calls, stop) = (fleet.clone(), calls.clone(), stop.clone());
            tasks.spawn(async move {
                match welcome(stream, &fleet, calls, stop).await {
                    Ok(()) => {}
                    // Somebody looked whether we are there.
                    Err(Turned::Broken(error)) => tracing::debug!(%error, "a link connection broke off"),
                    Err(error) => {
                        tracing::warn!(error = %Chain(&error), "a link connection was turned away");
                    }
                }
                drop(place);
            });
        }
        tasks.close();
        tasks.wait().await;
    }
}

async fn welcome(
    mut stream: UnixStream,
    fleet: &Fleet,
    calls: Arc<Calls>,
    stop: CancellationToken,
) -> Result<(), Turned> {
    let hello = tokio::select! {
        hello = timeout(HELLO_DEADLINE, read_hello(&mut stream)) => hello.map_err(|_| Turned::Late)?,
        () = stop.cancelled() => return Ok(()),
    };
    let (hello, rest) = hello?;
    // This version, and the one before.
    if hello.protocol != VERSION && hello.protocol.checked_add(1) != Some(VERSION) {
        if hello.kind == Kind::Control {
            let reason = format!(
                "this gateway speaks protocol {VERSION}, the agent {}: bring both to the same version",
                hello.protocol
            );
            control_stream::refuse(stream, GatewayMessage::Refused { reason }).await;
        }
        return Err(Turned::Protocol(hello.protocol));
    }
    match hello.kind {
        Kind::Control => control_stream::run(stream, rest, hello.node, fleet, &calls.routes, stop).await,
        Kind::Calls => calls.serve(stream, rest, stop).await,
        Kind::Work if !rest.is_empty() => return Err(Turned::SpokeFirst),
        Kind::Work => fleet.0.stocks.deliver(&fleet.link_of(hello.node), stream.into_std()?),
    }
    Ok(())
}

/// Reads the first line, and what came with it.
async fn read_hello(stream: &mut UnixStream) -> Result<(Hello, BytesMut), Turned> {
    let mut buffer = BytesMut::with_capacity(512);
    loop {
        if let Some(end) = buffer.iter().position(|byte| *byte == b'\n') {
            let line = buffer.split_to(end + 1);
            return Ok((serde_json::from_slice(&line).map_err(Turned::Garbled)?, buffer));
        }
        if buffer.len() >= MAX_HELLO_BYTES {
            return Err(Turned::TooLong);
        }
        if stream.read_buf(&mut buffer).await? == 0 {
            return Err(io::Error::from(io::ErrorKind::UnexpectedEof).into());
        }
    }
}
