//! The steps of a hand-over at the gateway that runs: what each message of a successor means, and how long the next one may
//! take.

use std::time::Duration;

use super::channel::VERSION;

/// How far a hand-over has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Stage {
    /// Somebody dialled.
    Connected,
    /// It has the sockets and makes its parts. Nothing has changed for anybody.
    Preparing,
    /// It accepts agents. Clients are still accepted here.
    Linking,
}

/// What can happen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Event {
    /// It asks for the place, and speaks this version.
    Asked(u32),
    /// Its parts are made.
    Ready,
    /// It accepts clients.
    Serving,
    /// It said something else.
    Garbled,
    /// It is gone.
    Gone,
    /// It said nothing for too long.
    Late,
}

/// What is to be done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Step {
    /// Give it the sockets.
    SendSockets,
    /// Accept no more agents, and tell those that are linked.
    ReleaseAgents,
    /// Accept nobody any more, and end with what is here.
    Drain,
    /// Go on as if it had not come.
    Abort(Why),
}

/// Why a hand-over fails.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum Why {
    #[error("this gateway hands over by version {ours}, the successor by {0}: stop the one, then start the other", ours = VERSION)]
    Version(u32),
    #[error("the successor went away")]
    Gone,
    #[error("the successor took too long")]
    Late,
    #[error("the successor said what is not in the protocol")]
    Garbled,
}

impl Stage {
    /// How long the next message may take. A database may take a minute to answer the successor.
    pub(super) fn patience(self) -> Duration {
        Duration::from_secs(match self {
            Self::Connected => 5,
            Self::Preparing => 120,
            Self::Linking => 30,
        })
    }
}

/// What an event means at a stage, and the stage after it.
pub(super) fn next(stage: Stage, event: Event) -> (Stage, Step) {
    match (stage, event) {
        (Stage::Connected, Event::Asked(VERSION)) => (Stage::Preparing, Step::SendSockets),
        (Stage::Connected, Event::Asked(other)) => (stage, Step::Abort(Why::Version(other))),
        (Stage::Preparing, Event::Ready) => (Stage::Linking, Step::ReleaseAgents),
        (Stage::Linking, Event::Serving) => (stage, Step::Drain),
        (_, Event::Gone) => (stage, Step::Abort(Why::Gone)),
        (_, Event::Late) => (stage, Step::Abort(Why::Late)),
        _ => (stage, Step::Abort(Why::Garbled)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What the last of these events leads to.
    fn check(events: &[Event], expected: Step) {
        let (mut stage, mut step) = (Stage::Connected, None);
        for event in events {
            let (after, next) = super::next(stage, *event);
            assert!(!matches!(step, Some(Step::Abort(_) | Step::Drain)), "{events:?} go on after the end");
            (stage, step) = (after, Some(next));
        }
        assert_eq!(step, Some(expected), "{events:?}");
    }

    #[test]
    fn a_hand_over() {
        use Event::*;
        check(&[Asked(VERSION)], Step::SendSockets);
        check(&[Asked(VERSION), Ready], Step::ReleaseAgents);
        check(&[Asked(VERSION), Ready, Serving], Step::Drain);
    }

    #[test]
    fn whatever_else_comes_leaves_the_gateway_as_it_was() {
        use Event::*;
        check(&[Asked(VERSION + 1)], Step::Abort(Why::Version(VERSION + 1)));
        check(&[Ready], Step::Abort(Why::Garbled));
        check(&[Asked(VERSION), Serving], Step::Abort(Why::Garbled));
        check(&[Asked(VERSION), Asked(VERSION)], Step::Abort(Why::Garbled));
        check(&[Asked(VERSION), Ready, Ready], Step::Abort(Why::Garbled));
        for end in [(Gone, Why::Gone), (Late, Why::Late), (Garbled, Why::Garbled)] {
            check(&[end.0], Step::Abort(end.1));
            check(&[Asked(VERSION), end.0], Step::Abort(end.1));
            check(&[Asked(VERSION), Ready, end.0], Step::Abort(end.1));
        }
    }
}
