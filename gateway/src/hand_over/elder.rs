//! What only the gateway before this one knows, for as long as it ends: which versions it has placed on which nodes, and
//! those that it builds. A node that was given such a version asks us for it, and we ask the one before.

use std::io;
use std::time::Duration;

use common::digest::Digest;
use common::function::DeploymentSpec;
use common::ids::{DeploymentId, NodeId};
use serde::{Deserialize, Serialize};
use tokio::net::UnixStream;
use tokio::sync::Mutex;
use tokio::time::timeout;

use super::line::Line;

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

/// The gateway before this one.
pub(crate) struct Elder(Mutex<Option<Line>>);

impl Elder {
    /// On the end of the questions' line that the estate had.
    pub(super) fn new(questions: std::os::unix::net::UnixStream) -> io::Result<Self> {
        Ok(Self(Mutex::new(Some(line(questions)?))))
    }

    /// Asks, one after the other. `None` when it does not answer.
    pub(crate) async fn ask(&self, question: Question) -> Option<Answer> {
        let asked = async {
            let mut place = self.0.lock().await;
            // Out of its place until the answer is here: a question that was given up would have the next one's answer.
            let mut line = place.take()?;
            let answer = async {
                line.say(&question, &[]).await?;
                line.hear().await
            };
            match answer.await {
                Ok(answer) => {
                    *place = Some(line);
                    answer
                }
                Err(error) => {
                    tracing::debug!(%error, "the gateway before this one cannot be asked");
                    None
                }
            }
        };
        timeout(DEADLINE, asked).await.ok().flatten()
    }
}

/// Answers a successor's questions, until it is gone.
pub(super) async fn answer(questions: std::os::unix::net::UnixStream, know: impl Fn(Question) -> Answer) {
    let answered = async {
        let mut line = line(questions)?;
        while let Some(question) = line.hear().await? {
            line.say(&know(question), &[]).await?;
        }
        Ok::<_, io::Error>(())
    };
    if let Err(error) = answered.await {
        tracing::debug!(%error, "a successor asks no more");
    }
}

fn line(stream: std::os::unix::net::UnixStream) -> io::Result<Line> {
    stream.set_nonblocking(true)?;
    Ok(Line::new(UnixStream::from_std(stream)?))
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixStream;

    use super::*;

    #[tokio::test]
    async fn the_one_before_is_asked_until_it_is_gone() {
        let (ours, theirs) = UnixStream::pair().unwrap();
        let placed = DeploymentId::new();
        let may = move |question: Question| Answer { may: question.what == What::Build(Some(placed)), spec: None };
        let answers = tokio::spawn(answer(ours, may));
        let elder = Elder::new(theirs).unwrap();
        let ask = async |what: What| {
            let question = Question { node: NodeId::new(), is_local: false, what };
            elder.ask(question).await.map(|answer| answer.may)
        };
        assert_eq!(ask(What::Build(Some(placed))).await, Some(true));
        assert_eq!(ask(What::Build(None)).await, Some(false));
        assert_eq!(ask(What::Deployment(placed)).await, Some(false));
        answers.abort();
        answers.await.unwrap_err();
        assert_eq!(ask(What::Build(Some(placed))).await, None);
        assert_eq!(ask(What::Build(Some(placed))).await, None);
    }
}
