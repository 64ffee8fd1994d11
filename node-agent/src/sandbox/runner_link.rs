//! The connection to one sandbox's runner. The agent listens, the runner dials, and then nobody can dial again: the
//! socket is gone before the first byte of a function runs.

use std::fs;
use std::io::{self, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use bytes::{Buf, BytesMut};
use runner::wire::{self, Malformed, Report};
use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, recvmsg};
use tokio::io::{AsyncReadExt, AsyncWriteExt, Interest};
use tokio::net::{UnixListener, UnixStream};

use super::spec::SOCKET;

/// The socket before the runner has dialled.
#[derive(Debug)]
pub(crate) struct Threshold {
    listener: UnixListener,
    directory: fs::File,
    uid: u32,
}

/// The connection.
#[derive(Debug)]
pub(crate) struct Link {
    stream: UnixStream,
    inbox: BytesMut,
    /// A descriptor whose word has not been read yet.
    passed: Option<OwnedFd>,
    /// The runner's process id, as the host counts.
    pid: u32,
}

impl Threshold {
    /// Listens in `directory` for the one program that runs as `uid` there.
    pub(crate) fn open(directory: &Path, uid: u32) -> io::Result<Self> {
        let handle = fs::File::open(directory)?;
        // By way of the directory's descriptor: the address of a socket has 108 bytes, a data directory may have more.
        let path = within(&handle);
        let listener = UnixListener::bind(&path)?;
        std::os::unix::fs::lchown(&path, Some(uid), Some(uid))?;
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600))?;
        Ok(Self { listener, directory: handle, uid })
    }

    /// Waits for the runner, then shuts the door. The caller sets the deadline.
    pub(crate) async fn accept(self) -> io::Result<Link> {
        let (stream, _) = self.listener.accept().await?;
        fs::remove_file(within(&self.directory))?;
        let peer = stream.peer_cred()?;
        let pid = peer.pid().and_then(|pid| u32::try_from(pid).ok());
        match pid {
            Some(pid) if peer.uid() == self.uid => Ok(Link { stream, inbox: BytesMut::new(), passed: None, pid }),
            _ => Err(io::Error::new(io::ErrorKind::PermissionDenied, "somebody else than the runner dialled")),
        }
    }
}

fn within(directory: &fs::File) -> String {
    format!("/proc/self/fd/{}/{SOCKET}", directory.as_raw_fd())
}

impl Link {
    /// The runner's process id, as the host counts.
    pub(crate) fn pid(&self) -> u32 {
        self.pid
    }

    /// Whether the runner is still there and silent, as it is between two runs. Costs no system call.
    pub(crate) fn is_idle(&self) -> bool {
        let mut byte = [0; 1];
        self.inbox.is_empty()
            && matches!(self.stream.try_read(&mut byte), Err(error) if error.kind() == io::ErrorKind::WouldBlock)
    }

    /// Sends an order; `frame` is an encoded [`wire::Order`].
    pub(crate) async fn send(&mut self, frame: &[u8]) -> io::Result<()> {
        self.stream.write_all(frame).await
    }

    /// The runner's next word.
    pub(crate) async fn receive(&mut self) -> io::Result<Report> {
        loop {
            let malformed = |error| io::Error::new(io::ErrorKind::InvalidData, error);
            if let Some((body, used)) = wire::split(&self.inbox).map_err(malformed)? {
                let report = Report::decode(body).map_err(malformed)?;
                self.inbox.advance(used);
                return Ok(report);
            }
            self.inbox.reserve(READ_BYTES);
            if self.stream.read_buf(&mut self.inbox).await? == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
        }
    }
}

impl Link {
    /// A server's runner's next word, and the descriptor that came with it. What was read is kept when this is
    /// dropped half-way.
    pub(crate) async fn hear(&mut self) -> io::Result<(Report, Option<OwnedFd>)> {
        loop {
            let malformed = |error| io::Error::new(io::ErrorKind::InvalidData, error);
            if let Some((body, used)) = wire::split(&self.inbox).map_err(malformed)? {
                let report = Report::decode(body).map_err(malformed)?;
                self.inbox.advance(used);
                let passed = if report == Report::Connected { self.passed.take() } else { None };
                return Ok((report, passed));
            }
            let mut buffer = [0; READ_BYTES];
            let stream = &self.stream;
            let read = stream.async_io(Interest::READABLE, || receive_with(stream, &mut buffer)).await?;
            if read.0 == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            self.inbox.extend_from_slice(&buffer[..read.0]);
            // One is asked for at a time, so a second is not the runner's to send.
            if read.1.is_some() && std::mem::replace(&mut self.passed, read.1).is_some() {
                return Err(io::ErrorKind::InvalidData.into());
            }
        }
    }
}

/// Reads, and takes at most one descriptor; what the kernel has more of it closes.
fn receive_with(stream: &UnixStream, buffer: &mut [u8]) -> io::Result<(usize, Option<OwnedFd>)> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let got = recvmsg(stream, &mut [IoSliceMut::new(buffer)], &mut control, RecvFlags::CMSG_CLOEXEC)?;
    let mut passed = None;
    for message in control.drain() {
        if let RecvAncillaryMessage::ScmRights(descriptors) = message {
            passed = descriptors.last();
        }
    }
    Ok((got.bytes, passed))
}

/// Room for one read; a run that prints a line needs less.
const READ_BYTES: usize = 4096;

/// A frame, made once and sent often.
pub(crate) fn encode(order: impl FnOnce(&mut Vec<u8>) -> Result<(), Malformed>) -> io::Result<Vec<u8>> {
    let mut frame = Vec::new();
    order(&mut frame).map_err(|error| io::Error::new(io::ErrorKind::InvalidInput, error))?;
    Ok(frame)
}
