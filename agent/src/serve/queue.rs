//! The bounded queue of one subscriber.
//!
//! Decides what happens when it is full: the queue is emptied and closed at once, so that a
//! subscriber that does not read holds no memory, and the publisher never waits.

use std::collections::VecDeque;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};

use tokio_stream::Stream;

use crate::model::HopEvent;

/// Why a subscription ended from the agent's side.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ended {
    /// Its queue was full when an event came.
    TooSlow,
    /// The agent is stopping.
    Stopping,
}

/// The publisher's end.
#[derive(Debug)]
pub(super) struct Queue {
    cap: usize,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    events: VecDeque<Arc<HopEvent>>,
    ended: Option<Ended>,
    /// Whether the reader went away.
    abandoned: bool,
    waker: Option<Waker>,
}

/// What became of an offered event.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Offer {
    Taken,
    /// The queue was full; it is closed now.
    Overflowed,
    /// Nobody reads any more.
    Gone,
}

impl Queue {
    pub(super) fn new(cap: usize) -> (Arc<Self>, Subscription) {
        let queue = Arc::new(Self {
            cap,
            state: Mutex::default(),
        });
        (Arc::clone(&queue), Subscription { queue })
    }

    pub(super) fn offer(&self, event: &Arc<HopEvent>) -> Offer {
        let mut state = self.lock();
        if state.abandoned || state.ended.is_some() {
            return Offer::Gone;
        }
        let outcome = if state.events.len() >= self.cap {
            state.events = VecDeque::new();
            state.ended = Some(Ended::TooSlow);
            Offer::Overflowed
        } else {
            state.events.push_back(Arc::clone(event));
            Offer::Taken
        };
        wake(state);
        outcome
    }

    pub(super) fn close(&self) {
        let mut state = self.lock();
        state.ended.get_or_insert(Ended::Stopping);
        wake(state);
    }

    pub(super) fn is_gone(&self) -> bool {
        let state = self.lock();
        state.abandoned || state.ended.is_some()
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Wakes the reader after the lock is released, so that it does not run into it.
fn wake(mut state: MutexGuard<'_, State>) {
    let waker = state.waker.take();
    drop(state);
    if let Some(waker) = waker {
        waker.wake();
    }
}

/// The reader's end: a stream of events that ends with the reason that the agent gave.
#[derive(Debug)]
pub struct Subscription {
    queue: Arc<Queue>,
}

impl Stream for Subscription {
    type Item = Result<Arc<HopEvent>, Ended>;

    fn poll_next(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let mut state = self.queue.lock();
        if let Some(event) = state.events.pop_front() {
            return Poll::Ready(Some(Ok(event)));
        }
        if state.abandoned {
            return Poll::Ready(None);
        }
        if let Some(ended) = state.ended {
            // The reason is told once, then the stream is over.
            state.abandoned = true;
            return Poll::Ready(Some(Err(ended)));
        }
        state.waker = Some(cx.waker().clone());
        Poll::Pending
    }
}

impl Drop for Subscription {
    fn drop(&mut self) {
        let mut state = self.queue.lock();
        state.abandoned = true;
        state.events = VecDeque::new();
    }
}
