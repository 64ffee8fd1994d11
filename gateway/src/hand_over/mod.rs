//! A gateway's place, handed over to a new process on the same data directory without a call that fails.
//!
//! 1. The successor dials the [`HandOverSocket`] of the gateway that runs, its predecessor, and gets
//!    [`InheritedSockets`]: every socket that accepts, and the lock of the data directory. It opens its store and makes its
//!    parts, and accepts nothing.
//! 2. It says that it is ready. From then on it alone accepts agents, and each agent that is linked hears that it is to
//!    link to the successor as well.
//! 3. Once as many nodes are linked to it, it accepts clients and says so. The predecessor accepts nobody any more,
//!    drains, and ends.
//!
//! Until the third step is done, whatever goes wrong leaves the gateway that runs as it was. Nobody's connection is lost,
//! since both have the same sockets: what nobody has accepted yet waits there for whoever does.

use std::fs::File;
use std::io;
use std::net::{SocketAddr, TcpListener};
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;

use serde::{Deserialize, Serialize};
use tokio_util::sync::CancellationToken;

mod channel;
mod predecessor;
mod predecessor_client;
mod socket;
mod steps;

pub(crate) use predecessor::{LINKING, OldProcess, are_enough};
pub use predecessor::{Predecessor, TakeOverError};
pub(crate) use predecessor_client::{Answer, PredecessorClient, Question, What};
pub(crate) use socket::{HandOver, HandOverSignals, HandOverSocket};

/// The name of the hand-over's socket under the data directory.
const SOCKET: &str = "hand-over.sock";

/// Whose place a gateway takes, and whether another may take its own.
pub struct Succession {
    pub(crate) predecessor: Option<Predecessor>,
    pub(crate) accepts_successor: bool,
    pub(crate) ops: Option<Ops>,
}

/// The ops listener, which belongs to the program around a gateway.
pub struct Ops {
    /// The socket, for a successor.
    pub socket: TcpListener,
    /// Cancelled once this process is the one that answers there.
    pub begin: CancellationToken,
    /// Cancelled once another one is.
    pub end: CancellationToken,
}

impl Succession {
    /// A gateway that takes nobody's place and gives its own to nobody.
    #[must_use]
    pub fn none() -> Self {
        Self { predecessor: None, accepts_successor: false, ops: None }
    }

    /// A gateway that takes this place, if there is one, and that a successor finds.
    #[must_use]
    pub fn of(predecessor: Option<Predecessor>, ops: Option<Ops>) -> Self {
        Self { predecessor, accepts_successor: true, ops }
    }
}

/// What a successor inherits.
pub(crate) struct InheritedSockets {
    /// Whoever has this open keeps all others out of the data directory.
    pub(crate) lock: File,
    /// Where clients are accepted.
    pub(crate) public: TcpListener,
    /// Where agents of this machine are.
    pub(crate) link: UnixListener,
    /// Where agents of other machines are.
    pub(crate) nodes: Option<TcpListener>,
    /// Where metrics are asked for.
    pub(crate) ops: Option<TcpListener>,
    /// Where the successor asks for what only its predecessor knows.
    pub(crate) questions: Option<UnixStream>,
}

/// What one descriptor of them is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Piece {
    Lock,
    Public,
    Link,
    Nodes,
    Ops,
    Questions,
}

impl InheritedSockets {
    /// The same sockets once more, without a channel for questions.
    fn try_clone(&self) -> io::Result<Self> {
        let copy = |socket: &Option<TcpListener>| socket.as_ref().map(TcpListener::try_clone).transpose();
        Ok(Self {
            lock: self.lock.try_clone()?,
            public: self.public.try_clone()?,
            link: self.link.try_clone()?,
            nodes: copy(&self.nodes)?,
            ops: copy(&self.ops)?,
            questions: None,
        })
    }

    /// What it has, as it is sent.
    fn pieces(&self) -> Vec<(Piece, BorrowedFd<'_>)> {
        let mut pieces = vec![
            (Piece::Lock, self.lock.as_fd()),
            (Piece::Public, self.public.as_fd()),
            (Piece::Link, self.link.as_fd()),
        ];
        pieces.extend(self.nodes.as_ref().map(|nodes| (Piece::Nodes, nodes.as_fd())));
        pieces.extend(self.ops.as_ref().map(|ops| (Piece::Ops, ops.as_fd())));
        pieces.extend(self.questions.as_ref().map(|questions| (Piece::Questions, questions.as_fd())));
        pieces
    }

    /// What was sent; `None` when it is not whole.
    fn of(pieces: &[Piece], descriptors: Vec<OwnedFd>) -> Option<Self> {
        if pieces.len() != descriptors.len() {
            return None;
        }
        let mut all: Vec<_> = pieces.iter().copied().zip(descriptors).collect();
        let mut take = |piece: Piece| {
            let at = all.iter().position(|(other, _)| *other == piece)?;
            Some(all.swap_remove(at).1)
        };
        Some(Self {
            lock: take(Piece::Lock)?.into(),
            public: take(Piece::Public)?.into(),
            link: take(Piece::Link)?.into(),
            nodes: take(Piece::Nodes).map(Into::into),
            ops: take(Piece::Ops).map(Into::into),
            questions: take(Piece::Questions).map(Into::into),
        })
    }
}

/// An inherited socket, if it is bound where the settings want it; any port will do for port 0.
pub(crate) fn bound_at(socket: TcpListener, wanted: SocketAddr) -> Option<TcpListener> {
    let address = socket.local_addr().ok()?;
    (address.ip() == wanted.ip() && (wanted.port() == 0 || address.port() == wanted.port())).then_some(socket)
}

/// The same of a Unix socket.
pub(crate) fn bound_to(socket: UnixListener, wanted: &Path) -> Option<UnixListener> {
    let is_there = socket.local_addr().ok()?.as_pathname() == Some(wanted);
    is_there.then_some(socket)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sockets(directory: &Path, nodes: bool) -> InheritedSockets {
        let listener = || TcpListener::bind("127.0.0.1:0").unwrap();
        InheritedSockets {
            lock: File::create(directory.join("lock")).unwrap(),
            public: listener(),
            link: UnixListener::bind(directory.join("link")).unwrap(),
            nodes: nodes.then(listener),
            ops: None,
            questions: None,
        }
    }

    #[test]
    fn inherited_sockets_arrive_whole_or_not_at_all() {
        for nodes in [false, true] {
            let directory = tempfile::tempdir().unwrap();
            let sent = sockets(directory.path(), nodes);
            let (names, descriptors): (Vec<_>, Vec<_>) = sent.pieces().into_iter().unzip();
            let copies = || descriptors.iter().map(|descriptor| descriptor.try_clone_to_owned().unwrap());
            assert!(InheritedSockets::of(&names, copies().skip(1).collect()).is_none(), "one is missing");
            assert!(InheritedSockets::of(&names[1..], copies().skip(1).collect()).is_none(), "the lock is missing");
            let came = InheritedSockets::of(&names, copies().collect()).unwrap();
            assert_eq!(came.public.local_addr().unwrap(), sent.public.local_addr().unwrap());
            assert_eq!(came.nodes.is_some(), nodes);
        }
    }

    #[test]
    fn a_socket_is_taken_where_the_settings_want_it() {
        let directory = tempfile::tempdir().unwrap();
        let sockets = sockets(directory.path(), false);
        let address = sockets.public.local_addr().unwrap();
        let check = |wanted: SocketAddr, expected: bool| {
            assert_eq!(bound_at(sockets.public.try_clone().unwrap(), wanted).is_some(), expected, "{wanted}");
        };
        check(address, true);
        check(SocketAddr::new(address.ip(), 0), true);
        check(SocketAddr::new(address.ip(), address.port() ^ 1), false);
        check(SocketAddr::new("0.0.0.0".parse().unwrap(), address.port()), false);
        assert!(bound_to(sockets.link.try_clone().unwrap(), &directory.path().join("other")).is_none());
        assert!(bound_to(sockets.link, &directory.path().join("link")).is_some());
    }
}
