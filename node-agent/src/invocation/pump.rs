//! Carries a server's answer to the client as it comes, and writes the record before the last of it.

use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use common::stream::Pace;
use http_body::{Body, Frame};
use http_body_util::BodyExt as _;
use hyper::body::Incoming;
use tokio::sync::mpsc;

use super::story::Story;
use super::trouble::Trouble;
use crate::link::Cut;
use crate::server::Connection;

/// Parts of an answer that wait for the link.
const AHEAD: usize = 2;

/// What goes to the client.
enum Part {
    Data(Bytes),
    /// All was there. A pump that is gone without it has cut the answer off.
    End,
}

/// An answer's body, as the link takes it.
pub(super) struct Pumped {
    parts: mpsc::Receiver<Part>,
    ended: bool,
}

impl Body for Pumped {
    type Data = Bytes;
    type Error = Cut;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Cut>>> {
        if self.ended {
            return Poll::Ready(None);
        }
        let part = ready!(self.parts.poll_recv(cx));
        self.ended = !matches!(part, Some(Part::Data(_)));
        Poll::Ready(match part {
            Some(Part::Data(bytes)) => Some(Ok(Frame::data(bytes))),
            Some(Part::End) => None,
            None => Some(Err(Cut)),
        })
    }
}

/// Pumps `answer` in the background; the body that comes out.
pub(super) fn pumped(story: Story, answer: Incoming, connection: Connection, pace: Pace) -> Pumped {
    let (tell, parts) = mpsc::channel(AHEAD);
    let tasks = story.invocations().tasks.clone();
    tasks.spawn(async move { pump(story, answer, connection, &pace, &tell).await });
    Pumped { parts, ended: false }
}

/// What a pump waited for.
enum Event {
    Answer(Option<Result<Frame<Bytes>, hyper::Error>>),
    Over(Ending),
}

/// Why a pump stops before the answer's end.
enum Ending {
    Left,
    Trouble(Trouble),
}

async fn pump(story: Story, mut answer: Incoming, connection: Connection, pace: &Pace, tell: &mpsc::Sender<Part>) {
    let over = async {
        tokio::select! {
            late = pace.over() => Ending::Trouble(Trouble::Late(late)),
            () = tell.closed() => Ending::Left,
        }
    };
    let mut over = std::pin::pin!(over);
    let ending = loop {
        let event = tokio::select! {
            frame = answer.frame() => Event::Answer(frame),
            ending = &mut over => Event::Over(ending),
        };
        let last = match event {
            Event::Over(ending) => break ending,
            Event::Answer(None) => None,
            Event::Answer(Some(Err(_))) => break broken(&story).await,
            Event::Answer(Some(Ok(frame))) => {
                pace.heard();
                // Trailers are left out, as those of requests are.
                let Ok(data) = frame.into_data() else { continue };
                if !answer.is_end_stream() {
                    tokio::select! {
                        sent = tell.send(Part::Data(data)) => match sent {
                            Ok(()) => continue,
                            Err(_) => break Ending::Left,
                        },
                        ending = &mut over => break ending,
                    }
                }
                Some(data)
            }
        };
        return finish(story, last, connection, tell).await;
    };
    // First the connection, so that the function knows as soon as can be.
    drop((answer, connection));
    match ending {
        Ending::Left => story.leave().await,
        // The answer is cut off either way.
        Ending::Trouble(trouble) => drop(story.fail(trouble).await),
    }
}

/// The record, then the last of the answer.
async fn finish(story: Story, last: Option<Bytes>, connection: Connection, tell: &mpsc::Sender<Part>) {
    if let Some(seat) = story.seat() {
        seat.keep(connection);
    }
    if story.succeed().await.is_err() {
        return;
    }
    if let Some(data) = last {
        // A client that left in this moment misses nothing that it wanted.
        let _ = tell.send(Part::Data(data)).await;
    }
    let _ = tell.send(Part::End).await;
}

async fn broken(story: &Story) -> Ending {
    let end = match story.seat() {
        Some(seat) => seat.end_now().await,
        None => None,
    };
    Ending::Trouble(Trouble::of_end(end.as_deref(), Trouble::HungUp))
}
