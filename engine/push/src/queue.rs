//! The queue of a connection: bounded, and never waited for by the hub.

use std::collections::VecDeque;
use std::future::poll_fn;
use std::sync::{Arc, Mutex, MutexGuard};
use std::task::Poll;
use std::time::{Duration, Instant};

use futures::task::AtomicWaker;

use crate::batch::{Batch, Ephemeral};
use crate::connections::{CloseHandle, CloseReason};

/// Messages that may wait for one connection. What was published together counts as one.
pub const QUEUE_MESSAGES_MAX: usize = 256;
/// Where so many bytes wait for one connection, and half of what may wait in the process, its reader is waited for.
const BACKPRESSURE_BYTES: usize = 1024 * 1024;
/// How long a reader is waited for that takes nothing.
pub const READER_WAIT: Duration = Duration::from_millis(40);

/// What is queued for a connection.
#[derive(Clone)]
pub enum Delivery {
    /// Changes from the log.
    Changes(Arc<Batch>),
    /// Something that is in no log.
    Ephemeral(Arc<Ephemeral>),
}

impl Delivery {
    /// Bytes that wait with it.
    pub fn bytes(&self) -> usize {
        match self {
            Self::Changes(batch) => batch.bytes(),
            Self::Ephemeral(ephemeral) => ephemeral.bytes(),
        }
    }

    /// Whether it was published together with the one after it.
    fn is_of_one_round_with(&self, next: Option<&Self>) -> bool {
        matches!((self, next), (Self::Changes(this), Some(Self::Changes(next))) if is_of_one_round(this, next))
    }
}

/// The end of a connection's queue that the hub writes to.
#[derive(Clone)]
pub struct Queue(Arc<Shared>);

/// The end of a connection's queue that the connection reads; dropped, it takes nothing more.
pub struct Deliveries(Arc<Shared>);

struct Shared {
    waiting: Mutex<Waiting>,
    connection: AtomicWaker,
    close: CloseHandle,
}

#[derive(Default)]
struct Waiting {
    deliveries: VecDeque<Delivery>,
    messages: usize,
    bytes: usize,
    /// Since when the hub waits for its reader, who has taken nothing since.
    awaited: Option<Instant>,
    /// Nobody reads it any more.
    closed: bool,
}

/// A connection's queue, bounded by the messages that wait in it: a connection that lets more wait is closed.
pub fn queue(close: CloseHandle) -> (Queue, Deliveries) {
    let shared = Arc::new(Shared { waiting: Mutex::default(), connection: AtomicWaker::new(), close });
    (Queue(shared.clone()), Deliveries(shared))
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Waiting> {
        self.waiting.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }
}

impl Waiting {
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
    /// Queues a delivery; whether much waits now.
    pub fn push(&self, delivery: Delivery, bytes: usize) -> bool {
        let mut waiting = self.0.lock();
        if waiting.closed {
            return false;
        }
        if !waiting.deliveries.back().is_some_and(|last| last.is_of_one_round_with(Some(&delivery))) {
            if waiting.messages == QUEUE_MESSAGES_MAX {
                drop(waiting);
                self.cut_off(CloseReason::Slow);
                return false;
            }
            waiting.messages += 1;
        }
        waiting.bytes += bytes;
        waiting.deliveries.push_back(delivery);
        let is_much = waiting.is_much(true);
        drop(waiting);
        self.0.connection.wake();
        is_much
    }

    /// Closes the connection and drops what waits for it: from here on something is missing, so nothing more may come.
    pub fn cut_off(&self, reason: CloseReason) {
        self.0.close.close(reason);
        self.0.lock().close();
        self.0.connection.wake();
    }

    /// Position of the first change that waits.
    pub fn behind_at(&self) -> Option<i64> {
        self.0.lock().deliveries.iter().find_map(|delivery| match delivery {
            Delivery::Changes(batch) => Some(batch.first()),
            Delivery::Ephemeral(_) => None,
        })
    }

    /// Whether much waits for its reader, and the reader has taken something within [`READER_WAIT`].
    pub fn is_backpressured(&self, bytes_count: bool) -> bool {
        let mut waiting = self.0.lock();
        waiting.is_much(bytes_count) && waiting.awaited.get_or_insert_with(Instant::now).elapsed() < READER_WAIT
    }
}

impl Deliveries {
    /// The next one; never comes where nothing more is queued.
    pub async fn next(&mut self) -> Delivery {
        poll_fn(|context| {
            // Registered first: what is queued in between wakes this task.
            self.0.connection.register(context.waker());
            self.try_next().map_or(Poll::Pending, Poll::Ready)
        })
        .await
    }

    /// The next one, if there is one.
    pub fn try_next(&mut self) -> Option<Delivery> {
        self.0.lock().take()
    }

    /// The next one, if a group published it together with `batch`.
    pub fn try_next_of_round(&mut self, batch: &Batch) -> Option<Arc<Batch>> {
        let mut waiting = self.0.lock();
        match waiting.deliveries.front() {
            Some(Delivery::Changes(next)) if is_of_one_round(batch, next) => {
                let next = next.clone();
                waiting.take();
                Some(next)
            }
            _ => None,
        }
    }

    /// Whether nothing that was meant for it may be missing.
    pub fn is_whole(&self) -> bool {
        !self.0.close.is_closed()
    }

    /// Whether nothing waits.
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

/// Whether a group published both together.
fn is_of_one_round(this: &Batch, other: &Batch) -> bool {
    (this.group, this.round) == (other.group, other.round)
}
