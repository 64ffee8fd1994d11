//! What only this gateway's predecessor knows, while it drains: which versions it has placed on which nodes, and those that
//! it builds. A node that was given such a version asks us for it, and we ask the predecessor.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use common::digest::Digest;
use common::function::DeploymentSpec;
use common::ids::{DeploymentId, NodeId};
use serde::{Deserialize, Serialize};
use tokio::net::UnixStream;
use tokio::sync::Mutex;
use tokio::time::timeout;

use super::channel::Channel;

/// How long an answer may take.
const DEADLINE: Duration = Duration::from_secs(2);

/// Whether a node may have something.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Question {
    /// Who asks.
    pub(crate) node: NodeId,
    /// Whether it is this machine's own.
    pub(crate) is_local: bool,
    /// For what.
    pub(crate) what: What,
}

/// What a node may be given to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum What {
    /// The version itself.
    Deployment(DeploymentId),
    /// An archive.
    Archive(Digest),
    /// The build of a version.
    Build(Option<DeploymentId>),
}

/// The answer.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Answer {
    /// Whether it may.
    pub(crate) may: bool,
    /// The version, where that was asked for.
    pub(crate) spec: Option<DeploymentSpec>,
}

/// Asks the predecessor.
pub(crate) struct PredecessorClient(Arc<Mutex<Option<Channel>>>);

impl PredecessorClient {
    /// On the end of the questions' channel that was inherited.
    pub(super) fn new(questions: std::os::unix::net::UnixStream) -> io::Result<Self> {
        Ok(Self(Arc::new(Mutex::new(Some(channel(questions)?)))))
    }

    /// Asks, one after the other. `None` when it does not answer.
    pub(crate) async fn ask(&self, question: Question) -> Option<Answer> {
        let place = Arc::clone(&self.0);
        let asked = async move {
            let mut place = place.lock().await;
            // Out of its place until the answer is here: a question that was given up would have the next one's answer.
            let mut channel = place.take()?;
            let answer = async {
                channel.send(&question, &[]).await?;
                channel.receive().await
            };
            match answer.await {
                Ok(answer) => {
                    *place = Some(channel);
                    answer
                }
                Err(error) => {
                    tracing::debug!(%error, "the predecessor cannot be asked");
                    None
                }
            }
        };
        // A task of its own, which goes on when whoever asks leaves: then only a late answer ends the asking.
        tokio::spawn(timeout(DEADLINE, asked)).await.ok()?.ok().flatten()
    }
}

/// Answers a successor's questions, until it is gone.
pub(super) async fn answer(questions: std::os::unix::net::UnixStream, know: impl Fn(Question) -> Answer) {
    let answered = async {
        let mut channel = channel(questions)?;
        while let Some(question) = channel.receive().await? {
            channel.send(&know(question), &[]).await?;
        }
        Ok::<_, io::Error>(())
    };
    if let Err(error) = answered.await {
        tracing::debug!(%error, "a successor asks no more");
    }
}

fn channel(stream: std::os::unix::net::UnixStream) -> io::Result<Channel> {
    stream.set_nonblocking(true)?;
    Ok(Channel::new(UnixStream::from_std(stream)?))
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixStream;

    use futures_util::future::poll_immediate;

    use super::*;

    #[tokio::test]
    async fn the_predecessor_is_asked_until_it_is_gone() {
        let (ours, theirs) = UnixStream::pair().unwrap();
        let placed = DeploymentId::new();
        let may = move |question: Question| Answer { may: question.what == What::Build(Some(placed)), spec: None };
        let answers = tokio::spawn(answer(ours, may));
        let client = PredecessorClient::new(theirs).unwrap();
        let ask = async |what: What| {
            let question = Question { node: NodeId::new(), is_local: false, what };
            client.ask(question).await.map(|answer| answer.may)
        };
        assert_eq!(ask(What::Build(Some(placed))).await, Some(true));
        assert_eq!(ask(What::Build(None)).await, Some(false));
        // Who leaves in the middle takes nothing away.
        assert_eq!(poll_immediate(ask(What::Build(Some(placed)))).await, None, "answered at once");
        assert_eq!(ask(What::Deployment(placed)).await, Some(false));
        answers.abort();
        answers.await.unwrap_err();
        assert_eq!(ask(What::Build(Some(placed))).await, None);
        assert_eq!(ask(What::Build(Some(placed))).await, None);
    }
}
