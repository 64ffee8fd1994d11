//! Where a successor asks for this gateway's place: a Unix socket in the data directory, for programs of the same user.

use std::io;
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::net::UnixStream as StdUnixStream;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use common::error::Chain;
use common::ids::GatewayId;
use tokio::net::{UnixListener, UnixStream};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::channel::{Channel, Message};
use super::steps::{self, Event, Stage, Step};
use super::{InheritedSockets, SOCKET, predecessor_client};
use crate::fleet::Fleet;
use crate::fleet::calls::Calls;

/// How long to wait after a failed accept: out of descriptors, most likely.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// How long whoever is refused may take to ask.
const REFUSAL: Duration = Duration::from_secs(1);

/// The bound socket, and what it gives away.
pub(crate) struct HandOverSocket {
    listener: UnixListener,
    path: PathBuf,
    hand_over: Arc<HandOver>,
    /// Cancelled once this gateway's own predecessor is gone: until then this one gives its place to nobody.
    predecessor_gone: CancellationToken,
}

/// What the parts of this gateway hear of a hand-over.
#[derive(Clone)]
pub(crate) struct HandOverSignals {
    /// Set once a successor accepts clients: whoever is connected here is not hurried.
    pub(crate) to_successor: Arc<AtomicBool>,
    /// Cancelled then: nobody is accepted any more.
    pub(crate) close: CancellationToken,
    /// Cancelled then, too: the successor answers on the ops listener.
    pub(crate) end_ops: CancellationToken,
    /// Unset then: the file of the link's socket is the successor's.
    pub(crate) has_link: Arc<AtomicBool>,
}

/// What is handed over, and who is told of it.
pub(crate) struct HandOver {
    /// Gone once they are handed over.
    pub(crate) sockets: Mutex<Option<InheritedSockets>>,
    /// Which gateway this is.
    pub(crate) gateway: GatewayId,
    pub(crate) fleet: Fleet,
    /// What a successor's questions are answered from.
    pub(crate) calls: Arc<Calls>,
    pub(crate) signals: HandOverSignals,
    /// What they are answered on, until `end`.
    pub(crate) tasks: TaskTracker,
    pub(crate) end: CancellationToken,
}

impl HandOverSocket {
    /// Binds the socket for this user alone; one of a predecessor is replaced. Call it on the control runtime.
    pub(crate) fn bind(data_dir: &Path, hand_over: HandOver, predecessor_gone: CancellationToken) -> io::Result<Self> {
        let path = data_dir.join(SOCKET);
        let next = path.with_extension("next");
        match std::fs::remove_file(&next) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        let listener = UnixListener::bind(&next)?;
        std::fs::set_permissions(&next, std::fs::Permissions::from_mode(0o600))?;
        std::fs::rename(&next, &path)?;
        Ok(Self { listener, path, hand_over: Arc::new(hand_over), predecessor_gone })
    }

    /// Gives the place to whoever asks first, until `stop`. Once it is given, the channel to the successor is kept to the end,
    /// and returned: what closes it is this process' last deed.
    pub(crate) async fn run(self, stop: CancellationToken) -> Option<Channel> {
        let Self { listener, path, hand_over, predecessor_gone } = self;
        let mut serving: Option<Pin<Box<dyn Future<Output = Option<Channel>> + Send>>> = None;
        let successor = loop {
            tokio::select! {
                accepted = listener.accept() => match accepted {
                    Ok((stream, _)) if !is_own(&stream) => tracing::warn!("somebody else asks for this gateway's place"),
                    Ok((stream, _)) if serving.is_some() || !predecessor_gone.is_cancelled() => refuse(Channel::new(stream)).await,
                    Ok((stream, _)) => serving = Some(Box::pin(Arc::clone(&hand_over).serve(stream))),
                    Err(error) => {
                        tracing::warn!(%error, "no successor can be accepted");
                        tokio::time::sleep(ACCEPT_PAUSE).await;
                    }
                },
                channel = async { serving.as_mut().expect("looked at before").await }, if serving.is_some() => {
                    serving = None;
                    if let Some(channel) = channel {
                        break channel;
                    }
                }
                () = stop.cancelled() => {
                    if let Err(error) = std::fs::remove_file(&path) {
                        tracing::debug!(%error, "the hand-over's socket was gone already");
                    }
                    return None;
                }
            }
        };
        // Whoever comes now comes too late, and is not left waiting for an answer.
        drop(listener);
        hand_over.end.cancelled().await;
        Some(successor)
    }
}

/// Whether the other end is a program of this user.
fn is_own(stream: &UnixStream) -> bool {
    stream.peer_cred().is_ok_and(|peer| peer.uid() == rustix::process::geteuid().as_raw())
}

async fn refuse(mut channel: Channel) {
    // Whoever has not asked yet would not hear the answer.
    tokio::time::timeout(REFUSAL, channel.receive::<Message>()).await.ok();
    let reason = "another one is taking it, or the one before still ends: try again in a moment".to_owned();
    if let Err(error) = channel.send(&Message::Refused { reason }, &[]).await {
        tracing::debug!(%error, "a refused successor did not wait for the reason");
    }
}

impl HandOver {
    /// One hand-over, from the first message on; the channel, if the place was given.
    async fn serve(self: Arc<Self>, stream: UnixStream) -> Option<Channel> {
        let pid = stream.peer_cred().ok().and_then(|peer| peer.pid());
        let (mut channel, mut stage) = (Channel::new(stream), Stage::Connected);
        loop {
            let event = match tokio::time::timeout(stage.patience(), channel.receive::<Message>()).await {
                Err(_) => Event::Late,
                Ok(Ok(Some(Message::Take { version }))) => Event::Asked(version),
                Ok(Ok(Some(Message::Ready))) => Event::Ready,
                Ok(Ok(Some(Message::Serving))) => Event::Serving,
                Ok(Ok(None)) => Event::Gone,
                Ok(Err(error)) if error.kind() == io::ErrorKind::ConnectionReset => Event::Gone,
                Ok(Ok(Some(_)) | Err(_)) => Event::Garbled,
            };
            let step;
            (stage, step) = steps::next(stage, event);
            let done = match step {
                Step::SendSockets => {
                    tracing::info!(pid, "a successor asks for this gateway's place");
                    self.send_sockets(&mut channel).await
                }
                Step::ReleaseAgents => {
                    tracing::info!(pid, "the successor is ready: agents are told to link to it");
                    let nodes = self.fleet.release_agents();
                    channel.send(&Message::AgentsReleased { nodes }, &[]).await
                }
                Step::Drain => {
                    self.drain(pid);
                    return Some(channel);
                }
                Step::Abort(why) => {
                    tracing::warn!(pid, %why, "the hand-over failed: this gateway goes on");
                    self.fleet.take_agents_back();
                    // So that its log says why; whether it is read does not matter.
                    channel.send(&Message::Refused { reason: why.to_string() }, &[]).await.ok();
                    return None;
                }
            };
            if let Err(error) = done {
                tracing::warn!(pid, error = %Chain(&error), "the hand-over failed: this gateway goes on");
                self.fleet.take_agents_back();
                return None;
            }
        }
    }

    async fn send_sockets(&self, channel: &mut Channel) -> io::Result<()> {
        let (ours, theirs) = StdUnixStream::pair()?;
        let (calls, end) = (Arc::clone(&self.calls), self.end.clone());
        self.tasks.spawn(async move {
            tokio::select! { () = predecessor_client::answer(ours, |question| calls.know(question)) => {}, () = end.cancelled() => {} }
        });
        let copied =
            self.sockets.lock().unwrap_or_else(PoisonError::into_inner).as_ref().map(InheritedSockets::try_clone);
        let mut sockets = copied.ok_or(io::ErrorKind::NotFound)??;
        sockets.questions = Some(theirs);
        let (pieces, descriptors): (Vec<_>, Vec<_>) = sockets.pieces().into_iter().unzip();
        channel.send(&Message::Sockets { pieces, gateway: self.gateway }, &descriptors).await
    }

    fn drain(&self, pid: Option<i32>) {
        tracing::info!(pid, "the successor has this gateway's place: what is here is answered, and then this one ends");
        self.signals.to_successor.store(true, Ordering::Release);
        self.signals.has_link.store(false, Ordering::Release);
        self.signals.close.cancel();
        self.signals.end_ops.cancel();
        drop(self.sockets.lock().unwrap_or_else(PoisonError::into_inner).take());
    }
}
