//! What seldom comes, waited for beside what often wakes. A plain `select!` polls all of its branches at each wake, and
//! polling a notification or a token takes a lock, which for a stop that concerns everybody is everybody's lock.

use std::future::Future;

use futures_util::StreamExt as _;
use futures_util::stream::FuturesUnordered;

/// A future that is polled only when it was woken itself.
pub struct Interrupt<F>(FuturesUnordered<F>);

impl<F: Future> Interrupt<F> {
    /// Waits for `event`, once [`come`](Self::come) is polled.
    pub fn new(event: F) -> Self {
        Self(std::iter::once(event).collect())
    }

    /// What the event came to. It may be dropped and called again; after the event it waits for ever.
    pub async fn come(&mut self) -> F::Output {
        match self.0.next().await {
            Some(output) => output,
            None => std::future::pending().await,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;
    use std::task::{Context, Poll, Waker};

    use super::*;

    #[test]
    fn polled_when_woken_and_not_else() {
        let (polls, waker) = (Cell::new(0), Cell::new(None::<Waker>));
        let event = std::future::poll_fn(|cx| {
            polls.set(polls.get() + 1);
            waker.set(Some(cx.waker().clone()));
            if polls.get() == 2 { Poll::Ready(7) } else { Poll::Pending }
        });
        let mut interrupt = Interrupt::new(event);
        let mut poll = || std::pin::pin!(interrupt.come()).poll(&mut Context::from_waker(Waker::noop()));
        assert!((0..3).all(|_| poll().is_pending()));
        assert_eq!(polls.get(), 1);
        waker.take().unwrap().wake();
        assert_eq!((poll(), poll()), (Poll::Ready(7), Poll::Pending));
    }
}
