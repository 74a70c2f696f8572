//! The queue of a connection. It is bounded, and writing to it never blocks the hub.

use std::collections::VecDeque;
use std::future::poll_fn;
use std::sync::{Arc, Mutex, MutexGuard};
use std::task::Poll;
use std::time::{Duration, Instant};

use futures::task::AtomicWaker;

use crate::batch::{Batch, Ephemeral};
use crate::connections::{CloseHandle, CloseReason};

/// Limit of queued messages of one connection. All batches of a publish round count as one message.
pub const QUEUE_MESSAGES_MAX: usize = 256;
/// Queued bytes of one connection above which the feed waits for its reader. Applies only while half of the
/// process-wide limit of queued bytes is used.
const BACKPRESSURE_BYTES: usize = 1024 * 1024;
/// How long the feed waits for a reader that reads nothing.
pub const READER_WAIT: Duration = Duration::from_millis(40);

/// An item in a connection's queue.
#[derive(Clone)]
pub enum Delivery {
    /// Changes from the log.
    Changes(Arc<Batch>),
    /// An ephemeral event, which is not in the log.
    Ephemeral(Arc<Ephemeral>),
}

impl Delivery {
    /// Returns the approximate size in bytes.
    pub fn bytes(&self) -> usize {
        match self {
            Self::Changes(batch) => batch.bytes(),
            Self::Ephemeral(ephemeral) => ephemeral.bytes(),
        }
    }

    /// Whether this delivery and the next one belong to one publish round.
    fn is_of_one_round_with(&self, next: Option<&Self>) -> bool {
        matches!((self, next), (Self::Changes(this), Some(Self::Changes(next))) if is_of_one_round(this, next))
    }
}

/// The write end of a connection's queue, for the hub.
#[derive(Clone)]
pub struct Queue(Arc<Shared>);

/// The read end of a connection's queue. Dropping it closes the queue.
pub struct Deliveries(Arc<Shared>);

struct Shared {
    state: Mutex<QueueState>,
    connection: AtomicWaker,
    close: CloseHandle,
}

#[derive(Default)]
struct QueueState {
    deliveries: VecDeque<Delivery>,
    messages: usize,
    bytes: usize,
    /// Since when the feed waits for the reader; `None` after the reader has read something.
    awaited: Option<Instant>,
    /// True when the read end was dropped or the connection was disconnected. Deliveries are then discarded.
    closed: bool,
}

/// Creates the queue of a connection. `close` closes the connection when more than [`QUEUE_MESSAGES_MAX`] messages are
/// queued.
pub fn queue(close: CloseHandle) -> (Queue, Deliveries) {
    let shared = Arc::new(Shared { state: Mutex::default(), connection: AtomicWaker::new(), close });
    (Queue(shared.clone()), Deliveries(shared))
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, QueueState> {
        self.state.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }
}

impl QueueState {
    fn is_much(&self, bytes_count: bool) -> bool {
        self.messages > QUEUE_MESSAGES_MAX / 2 || (bytes_count && self.bytes > BACKPRESSURE_BYTES)
    }

    fn take(&mut self) -> Option<Delivery> {
        let delivery = self.deliveries.pop_front()?;
        self.messages -= usize::from(!delivery.is_of_one_round_with(self.deliveries.front()));
        self.bytes -= delivery.bytes();
        self.awaited = None;
        Some(delivery)
    }

    fn close(&mut self) {
        *self = Self { closed: true, ..Self::default() };
    }
}

impl Queue {
    /// Queues a delivery. Returns whether the queue is long now.
    pub fn push(&self, delivery: Delivery, bytes: usize) -> bool {
        let mut state = self.0.lock();
        if state.closed {
            return false;
        }
        if !state.deliveries.back().is_some_and(|last| last.is_of_one_round_with(Some(&delivery))) {
            if state.messages == QUEUE_MESSAGES_MAX {
                drop(state);
                self.disconnect(CloseReason::Slow);
                return false;
            }
            state.messages += 1;
        }
        state.bytes += bytes;
        state.deliveries.push_back(delivery);
        let is_much = state.is_much(true);
        drop(state);
        self.0.connection.wake();
        is_much
    }

    /// Closes the connection and discards its queue. The client has missed a change, so it must not receive later ones.
    pub fn disconnect(&self, reason: CloseReason) {
        self.0.close.close(reason);
        self.0.lock().close();
        self.0.connection.wake();
    }

    /// Returns the position of the first queued change.
    pub fn first_position(&self) -> Option<i64> {
        self.0.lock().deliveries.iter().find_map(|delivery| match delivery {
            Delivery::Changes(batch) => Some(batch.first()),
            Delivery::Ephemeral(_) => None,
        })
    }

    /// Whether the queue is long and its reader has read something within [`READER_WAIT`]. `bytes_count` says whether
    /// queued bytes count, besides queued messages.
    pub fn is_backpressured(&self, bytes_count: bool) -> bool {
        let mut state = self.0.lock();
        state.is_much(bytes_count) && state.awaited.get_or_insert_with(Instant::now).elapsed() < READER_WAIT
    }
}

impl Deliveries {
    /// Waits for the next delivery. Cancel-safe. Never returns after the queue is closed.
    pub async fn next(&mut self) -> Delivery {
        poll_fn(|context| {
            // Registered before the check, so that a delivery queued in between wakes this task.
            self.0.connection.register(context.waker());
            self.try_next().map_or(Poll::Pending, Poll::Ready)
        })
        .await
    }

    /// Returns the next delivery, if there is one.
    pub fn try_next(&mut self) -> Option<Delivery> {
        self.0.lock().take()
    }

    /// Returns the next delivery if it is a batch of the same publish round as `batch`.
    pub fn try_next_of_round(&mut self, batch: &Batch) -> Option<Arc<Batch>> {
        let mut state = self.0.lock();
        match state.deliveries.front() {
            Some(Delivery::Changes(next)) if is_of_one_round(batch, next) => {
                let next = next.clone();
                state.take();
                Some(next)
            }
            _ => None,
        }
    }

    /// Whether the queue is complete: false when the connection was asked to close, because deliveries may then be
    /// missing.
    pub fn is_complete(&self) -> bool {
        !self.0.close.is_closed()
    }

    /// Whether the queue is empty.
    pub fn is_empty(&self) -> bool {
        self.0.lock().deliveries.is_empty()
    }

    #[cfg(test)]
    pub(crate) fn messages(&self) -> usize {
        self.0.lock().messages
    }
}

impl Drop for Deliveries {
    fn drop(&mut self) {
        self.0.lock().close();
    }
}

/// Whether two batches belong to one publish round of one group.
fn is_of_one_round(this: &Batch, other: &Batch) -> bool {
    (this.group, this.round) == (other.group, other.round)
}
