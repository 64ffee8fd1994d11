//! The channel between a gateway and its successor: frames of JSON on a Unix socket, with descriptors beside one of them.

use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::time::Duration;

use bytes::{Buf as _, BytesMut};
use common::ids::GatewayId;
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage, SendFlags,
    recvmsg, sendmsg,
};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncWriteExt as _, Interest};
use tokio::net::UnixStream;
use tokio::time::timeout;

use super::Piece;

/// The version of what is said here. A gateway hands over to one that speaks the same.
pub(super) const VERSION: u32 = 1;

/// Longest frame, in bytes: a version with its whole environment fits.
const MAX_FRAME_BYTES: usize = 2 * 1024 * 1024;

/// Most descriptors beside a frame.
const MAX_DESCRIPTORS: usize = 8;

/// How long the other side may take to take a frame.
const SEND_DEADLINE: Duration = Duration::from_secs(5);

/// What the two say to each other. Beside `Sockets` are the descriptors that it names.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "word")]
pub(super) enum Message {
    /// The successor asks for the place.
    Take { version: u32 },
    /// The successor's parts are made.
    Ready,
    /// The successor accepts clients.
    Serving,
    /// The gateway that runs gives all that accepts; and says which gateway it is.
    Sockets { pieces: Vec<Piece>, gateway: GatewayId },
    /// It accepts no agents any more, of which it has so many.
    #[serde(rename = "doors")]
    AgentsReleased { nodes: usize },
    /// It keeps its place.
    Refused { reason: String },
}

/// One end of it.
pub(crate) struct Channel {
    stream: UnixStream,
    inbox: BytesMut,
    descriptors: Vec<OwnedFd>,
}

impl Channel {
    pub(super) fn new(stream: UnixStream) -> Self {
        Self { stream, inbox: BytesMut::new(), descriptors: Vec::new() }
    }

    /// Sends a frame, and descriptors beside its first byte.
    pub(super) async fn send(&mut self, frame: &impl Serialize, beside: &[BorrowedFd<'_>]) -> io::Result<()> {
        let body = serde_json::to_vec(frame)?;
        let length = u32::try_from(body.len()).map_err(io::Error::other)?;
        let bytes = [&length.to_be_bytes(), body.as_slice()].concat();
        let sent = async {
            let stream = &self.stream;
            let sent = stream.async_io(Interest::WRITABLE, || send_with(stream, &bytes, beside)).await?;
            self.stream.write_all(&bytes[sent..]).await
        };
        timeout(SEND_DEADLINE, sent).await.map_err(|_| io::ErrorKind::TimedOut)?
    }

    /// The next frame; `None` when the other side is gone. May be dropped and called again.
    pub(super) async fn receive<T: DeserializeOwned>(&mut self) -> io::Result<Option<T>> {
        loop {
            if let Some((length, rest)) = self.inbox.split_first_chunk() {
                let length = u32::from_be_bytes(*length) as usize;
                if length > MAX_FRAME_BYTES {
                    return Err(io::Error::new(io::ErrorKind::InvalidData, "a frame is over its limit"));
                }
                if let Some(body) = rest.get(..length) {
                    let frame = serde_json::from_slice(body)?;
                    self.inbox.advance(size_of::<u32>() + length);
                    return Ok(Some(frame));
                }
            }
            let (stream, descriptors) = (&self.stream, &mut self.descriptors);
            let mut buffer = [0; 4096];
            let read = stream.async_io(Interest::READABLE, || receive_with(stream, &mut buffer, descriptors)).await?;
            if read == 0 {
                return Ok(None);
            }
            self.inbox.extend_from_slice(&buffer[..read]);
        }
    }

    /// The descriptors that came so far.
    pub(super) fn take_descriptors(&mut self) -> Vec<OwnedFd> {
        std::mem::take(&mut self.descriptors)
    }
}

fn send_with(stream: &UnixStream, bytes: &[u8], beside: &[BorrowedFd<'_>]) -> io::Result<usize> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_DESCRIPTORS))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    if !beside.is_empty() && !control.push(SendAncillaryMessage::ScmRights(beside)) {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "too many descriptors for one frame"));
    }
    Ok(sendmsg(stream, &[IoSlice::new(bytes)], &mut control, SendFlags::NOSIGNAL)?)
}

fn receive_with(stream: &UnixStream, buffer: &mut [u8], descriptors: &mut Vec<OwnedFd>) -> io::Result<usize> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_DESCRIPTORS))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let got = recvmsg(stream, &mut [IoSliceMut::new(buffer)], &mut control, RecvFlags::CMSG_CLOEXEC)?;
    for message in control.drain() {
        if let RecvAncillaryMessage::ScmRights(came) = message {
            descriptors.extend(came);
        }
    }
    // Nobody sends more than one frame's.
    descriptors.truncate(MAX_DESCRIPTORS);
    Ok(got.bytes)
}

#[cfg(test)]
mod tests {
    use std::io::Read as _;
    use std::os::fd::AsFd as _;

    use super::*;

    #[tokio::test]
    async fn frames_and_descriptors_cross() {
        let (one, two) = UnixStream::pair().unwrap();
        let (mut one, mut two) = (Channel::new(one), Channel::new(two));
        let (passed, mut kept) = std::os::unix::net::UnixStream::pair().unwrap();
        one.send(&Message::Take { version: 7 }, &[]).await.unwrap();
        one.send(&Message::Ready, &[passed.as_fd()]).await.unwrap();
        drop(passed);
        // More than one read takes.
        let reason = "x".repeat(100_000);
        let refused = Message::Refused { reason: reason.clone() };
        let (said, heard) = tokio::join!(one.send(&refused, &[]), async {
            assert!(matches!(two.receive().await.unwrap(), Some(Message::Take { version: 7 })));
            assert!(matches!(two.receive().await.unwrap(), Some(Message::Ready)));
            two.receive::<Message>().await.unwrap()
        });
        said.unwrap();
        assert!(matches!(heard, Some(Message::Refused { reason: came }) if came == reason));
        let came = two.take_descriptors();
        assert_eq!(came.len(), 1);
        drop(came);
        assert_eq!(kept.read(&mut [0]).unwrap(), 0, "the descriptor was the only one");
        drop(one);
        assert!(two.receive::<Message>().await.unwrap().is_none());
    }

    #[tokio::test]
    async fn what_is_no_frame_is_an_error() {
        let check = async |bytes: &[u8]| {
            let (mut one, two) = UnixStream::pair().unwrap();
            one.write_all(bytes).await.unwrap();
            drop(one);
            assert!(Channel::new(two).receive::<Message>().await.is_err(), "{bytes:?}");
        };
        check(&[0, 0, 0, 2, b'?', b'?']).await;
        check(&[0xff; 4]).await;
    }
}
