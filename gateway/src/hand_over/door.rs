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

use super::line::{Line, Word};
use super::steps::{self, Event, Stage, Step};
use super::{DOOR, Estate, elder};
use crate::fleet::Fleet;
use crate::fleet::calls::Calls;

/// How long the door waits after a failed accept: out of descriptors, most likely.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// How long whoever is refused may take to ask.
const REFUSAL: Duration = Duration::from_secs(1);

/// The bound socket, and what it gives away.
pub(crate) struct Door {
    listener: UnixListener,
    path: PathBuf,
    giver: Arc<Giver>,
    /// Cancelled once the gateway before this one is gone: until then this one gives its place to nobody.
    alone: CancellationToken,
}

/// What the parts of this gateway hear of a hand-over.
#[derive(Clone)]
pub(crate) struct Given {
    /// Set once a successor accepts clients: whoever is connected here is not hurried.
    pub(crate) to_successor: Arc<AtomicBool>,
    /// Cancelled then: nobody is accepted any more.
    pub(crate) close: CancellationToken,
    /// Cancelled then, too: the successor answers on the ops listener.
    pub(crate) end_ops: CancellationToken,
    /// Unset then: the file of the link's socket is the successor's.
    pub(crate) has_link: Arc<AtomicBool>,
}

/// Who gives.
pub(crate) struct Giver {
    /// Gone once it is given.
    pub(crate) estate: Mutex<Option<Estate>>,
    /// Which gateway this is.
    pub(crate) gateway: GatewayId,
    pub(crate) fleet: Fleet,
    /// What a successor's questions are answered from.
    pub(crate) calls: Arc<Calls>,
    pub(crate) given: Given,
    /// What they are answered on, until `end`.
    pub(crate) tasks: TaskTracker,
    pub(crate) end: CancellationToken,
}

impl Door {
    /// Binds the socket for this user alone; one of a gateway before is replaced. Call it on the control runtime.
    pub(crate) fn bind(data_dir: &Path, giver: Giver, alone: CancellationToken) -> io::Result<Self> {
        let path = data_dir.join(DOOR);
        let next = path.with_extension("next");
        match std::fs::remove_file(&next) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        let listener = UnixListener::bind(&next)?;
        std::fs::set_permissions(&next, std::fs::Permissions::from_mode(0o600))?;
        std::fs::rename(&next, &path)?;
        Ok(Self { listener, path, giver: Arc::new(giver), alone })
    }

    /// Gives the place to whoever asks first, until `stop`. Once it is given, the line to the successor is kept to the end,
    /// and returned: what closes it is this process' last deed.
    pub(crate) async fn run(self, stop: CancellationToken) -> Option<Line> {
        let Self { listener, path, giver, alone } = self;
        let mut talk: Option<Pin<Box<dyn Future<Output = Option<Line>> + Send>>> = None;
        let given = loop {
            tokio::select! {
                accepted = listener.accept() => match accepted {
                    Ok((stream, _)) if !is_own(&stream) => tracing::warn!("somebody else asks for this gateway's place"),
                    Ok((stream, _)) if talk.is_some() || !alone.is_cancelled() => refuse(Line::new(stream)).await,
                    Ok((stream, _)) => talk = Some(Box::pin(Arc::clone(&giver).talk(stream))),
                    Err(error) => {
                        tracing::warn!(%error, "no successor can be accepted");
                        tokio::time::sleep(ACCEPT_PAUSE).await;
                    }
                },
                line = async { talk.as_mut().expect("looked at before").await }, if talk.is_some() => {
                    talk = None;
                    if let Some(line) = line {
                        break line;
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
        giver.end.cancelled().await;
        Some(given)
    }
}

/// Whether the other end is a program of this user.
fn is_own(stream: &UnixStream) -> bool {
    stream.peer_cred().is_ok_and(|peer| peer.uid() == rustix::process::geteuid().as_raw())
}

async fn refuse(mut line: Line) {
    // Whoever has not asked yet would not hear the answer.
    tokio::time::timeout(REFUSAL, line.hear::<Word>()).await.ok();
    let reason = "another one is taking it, or the one before still ends: try again in a moment".to_owned();
    if let Err(error) = line.say(&Word::Refused { reason }, &[]).await {
        tracing::debug!(%error, "a refused successor did not wait for the reason");
    }
}

impl Giver {
    /// One hand-over, from the first word on; the line, if the place was given.
    async fn talk(self: Arc<Self>, stream: UnixStream) -> Option<Line> {
        let pid = stream.peer_cred().ok().and_then(|peer| peer.pid());
        let (mut line, mut stage) = (Line::new(stream), Stage::Met);
        loop {
            let event = match tokio::time::timeout(stage.patience(), line.hear::<Word>()).await {
                Err(_) => Event::Late,
                Ok(Ok(Some(Word::Take { version }))) => Event::Asked(version),
                Ok(Ok(Some(Word::Ready))) => Event::Ready,
                Ok(Ok(Some(Word::Serving))) => Event::Serving,
                Ok(Ok(None)) => Event::Gone,
                Ok(Err(error)) if error.kind() == io::ErrorKind::ConnectionReset => Event::Gone,
                Ok(Ok(Some(_)) | Err(_)) => Event::Garbled,
            };
            let step;
            (stage, step) = steps::next(stage, event);
            let done = match step {
                Step::Hand => {
                    tracing::info!(pid, "a successor asks for this gateway's place");
                    self.hand(&mut line).await
                }
                Step::GiveDoors => {
                    tracing::info!(pid, "the successor is ready: agents are told to link to it");
                    let nodes = self.fleet.give_doors();
                    line.say(&Word::Doors { nodes }, &[]).await
                }
                Step::GiveWay => {
                    self.give_way(pid);
                    return Some(line);
                }
                Step::GoOn(why) => {
                    tracing::warn!(pid, %why, "the hand-over failed: this gateway goes on");
                    self.fleet.take_doors_back();
                    // So that its log says why; whether it is read does not matter.
                    line.say(&Word::Refused { reason: why.to_string() }, &[]).await.ok();
                    return None;
                }
            };
            if let Err(error) = done {
                tracing::warn!(pid, error = %Chain(&error), "the hand-over failed: this gateway goes on");
                self.fleet.take_doors_back();
                return None;
            }
        }
    }

    async fn hand(&self, line: &mut Line) -> io::Result<()> {
        let (ours, theirs) = StdUnixStream::pair()?;
        let (calls, end) = (Arc::clone(&self.calls), self.end.clone());
        self.tasks.spawn(async move {
            tokio::select! { () = elder::answer(ours, |question| calls.know(question)) => {}, () = end.cancelled() => {} }
        });
        let copied = self.estate.lock().unwrap_or_else(PoisonError::into_inner).as_ref().map(Estate::try_clone);
        let mut estate = copied.ok_or(io::ErrorKind::NotFound)??;
        estate.questions = Some(theirs);
        let (pieces, descriptors): (Vec<_>, Vec<_>) = estate.pieces().into_iter().unzip();
        line.say(&Word::Sockets { pieces, gateway: self.gateway }, &descriptors).await
    }

    fn give_way(&self, pid: Option<i32>) {
        tracing::info!(pid, "the successor has this gateway's place: what is here is answered, and then this one ends");
        self.given.to_successor.store(true, Ordering::Release);
        self.given.has_link.store(false, Ordering::Release);
        self.given.close.cancel();
        self.given.end_ops.cancel();
        drop(self.estate.lock().unwrap_or_else(PoisonError::into_inner).take());
    }
}
