//! The gateway that runs, as its successor deals with it.

use std::io;
use std::net::{SocketAddr, TcpListener};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use common::ids::GatewayId;
use tokio::net::UnixStream;
use tokio::time::timeout;

use super::channel::{Channel, Message, VERSION};
use super::{InheritedSockets, PredecessorClient, SOCKET, bound_at};

/// How long the gateway that runs may take for a message.
const ANSWER: Duration = Duration::from_secs(10);

/// How long nodes may take to link themselves to the successor.
pub(crate) const LINKING: Duration = Duration::from_secs(5);

/// A gateway does not get the place of the one that runs.
#[derive(Debug, thiserror::Error)]
pub enum TakeOverError {
    /// It cannot be asked.
    #[error("the gateway that runs cannot be asked for its place")]
    Channel(#[source] io::Error),
    /// It keeps its place.
    #[error("the gateway that runs keeps its place: {0}")]
    Refused(String),
    /// It ended, or was told to.
    #[error("the gateway that runs went away before it gave its place: start this one again")]
    Gone,
    /// It says nothing.
    #[error("the gateway that runs does not answer: stop it, and start this one again")]
    Late,
    /// It speaks otherwise.
    #[error("what the gateway that runs says is not in the protocol: stop it, and start this one again")]
    Garbled,
    /// Nobody would run a call.
    #[error(
        "no node has linked itself to this gateway, so the one that runs keeps its place: older agents do not know how; \
         stop it, and start this one again"
    )]
    NoNodes,
}

/// A gateway that gives its place.
pub struct Predecessor {
    channel: Channel,
    gateway: GatewayId,
    sockets: InheritedSockets,
}

/// The same, once its sockets are inherited: until it has drained.
pub(crate) struct OldProcess {
    channel: Channel,
    /// Which gateway it is.
    pub(crate) gateway: GatewayId,
    /// Tells what only it knows.
    pub(crate) client: Option<Arc<PredecessorClient>>,
}

impl Predecessor {
    /// Asks the gateway that runs on a data directory for its place; `None` when none runs.
    ///
    /// # Errors
    /// It keeps its place.
    pub async fn find(data_dir: &Path) -> Result<Option<Self>, TakeOverError> {
        let stream = match UnixStream::connect(data_dir.join(SOCKET)).await {
            Ok(stream) => stream,
            Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused) => {
                return Ok(None);
            }
            Err(error) => return Err(TakeOverError::Channel(error)),
        };
        let mut channel = Channel::new(stream);
        channel.send(&Message::Take { version: VERSION }, &[]).await.map_err(TakeOverError::Channel)?;
        let Message::Sockets { pieces, gateway } = receive(&mut channel).await? else {
            return Err(TakeOverError::Garbled);
        };
        let sockets = InheritedSockets::of(&pieces, channel.take_descriptors()).ok_or(TakeOverError::Garbled)?;
        Ok(Some(Self { channel, gateway, sockets }))
    }

    /// Its ops listener, if it is where the settings want it.
    pub fn ops(&mut self, wanted: SocketAddr) -> Option<TcpListener> {
        bound_at(self.sockets.ops.take()?, wanted)
    }

    /// What it gave, and it itself. Call it on a runtime.
    pub(crate) fn divide(self) -> Result<(InheritedSockets, OldProcess), TakeOverError> {
        let Self { channel, gateway, mut sockets } = self;
        let client =
            sockets.questions.take().map(PredecessorClient::new).transpose().map_err(TakeOverError::Channel)?;
        Ok((sockets, OldProcess { channel, gateway, client: client.map(Arc::new) }))
    }
}

impl OldProcess {
    /// Says that the successor can take agents. From now on it alone accepts them; how many nodes there are.
    pub(crate) async fn ready(&mut self) -> Result<usize, TakeOverError> {
        self.channel.send(&Message::Ready, &[]).await.map_err(TakeOverError::Channel)?;
        match receive(&mut self.channel).await? {
            Message::AgentsReleased { nodes } => Ok(nodes),
            _ => Err(TakeOverError::Garbled),
        }
    }

    /// Says that the successor takes clients, which is the end of the other.
    pub(crate) async fn serving(&mut self) -> Result<(), TakeOverError> {
        self.channel.send(&Message::Serving, &[]).await.map_err(TakeOverError::Channel)
    }

    /// Waits until it is gone.
    pub(crate) async fn gone(&mut self) {
        // It has nothing more to say, so whatever comes is its end.
        self.channel.receive::<Message>().await.ok();
    }
}

async fn receive(channel: &mut Channel) -> Result<Message, TakeOverError> {
    match timeout(ANSWER, channel.receive()).await {
        Err(_) => Err(TakeOverError::Late),
        Ok(Ok(Some(Message::Refused { reason }))) => Err(TakeOverError::Refused(reason)),
        Ok(Ok(Some(message))) => Ok(message),
        Ok(Ok(None)) => Err(TakeOverError::Gone),
        Ok(Err(error)) if error.kind() == io::ErrorKind::ConnectionReset => Err(TakeOverError::Gone),
        Ok(Err(_)) => Err(TakeOverError::Garbled),
    }
}

/// Whether a successor may take clients that so many nodes are linked to, of as many as there were: one at least, where
/// there were any.
pub(crate) fn are_enough(linked: usize, before: usize) -> bool {
    linked > 0 || before == 0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_successor_without_nodes_takes_no_clients() {
        let check = |linked: usize, before: usize, expected: bool| assert_eq!(are_enough(linked, before), expected);
        check(0, 0, true);
        check(2, 2, true);
        check(1, 2, true);
        check(0, 2, false);
    }
}
