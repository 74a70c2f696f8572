//! Limits the memory of request bodies that are still arriving, per sender and for the whole process. A client that
//! sends slowly holds memory for as long as a body may take to arrive.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::hash::{BuildHasher, RandomState};
use std::sync::{LazyLock, Mutex, MutexGuard, PoisonError};

use axum::http::Extensions;

use crate::auth;
use crate::problem::{BODY_LIMIT, Problem, TOO_MANY_BODIES};

/// Maximum bytes of unfinished bodies of one sender, and of all senders.
const SENDER_BYTES_MAX: usize = 32 * 1024 * 1024;
const ALL_BYTES_MAX: usize = 128 * 1024 * 1024;

static BODY_MEMORY: LazyLock<BodyMemory> = LazyLock::new(BodyMemory::default);

#[derive(Default)]
struct BodyMemory {
    /// Randomly keyed, so that no client can choose a subject whose hash collides with that of another subject.
    hasher: RandomState,
    held: Mutex<Held>,
}

#[derive(Default)]
struct Held {
    all: usize,
    senders: HashMap<u64, usize>,
}

/// The counted bytes of one body. Dropping the value releases them.
pub(crate) struct BodyReservation {
    sender: u64,
    bytes: usize,
}

impl BodyReservation {
    /// Creates a count of 0 bytes for the principal in the request's extensions.
    pub(crate) fn new(extensions: &Extensions) -> Self {
        Self { sender: BODY_MEMORY.hasher.hash_one(auth::subject(extensions)), bytes: 0 }
    }

    /// Counts more bytes.
    ///
    /// # Errors
    /// 429 if the limit of the sender is reached, 503 if the limit of the process is reached.
    pub(crate) fn add(&mut self, bytes: usize) -> Result<(), Problem> {
        let mut held = BODY_MEMORY.lock();
        let of_sender = held.senders.get(&self.sender).copied().unwrap_or(0) + bytes;
        if of_sender > SENDER_BYTES_MAX {
            return Err(Problem::new(TOO_MANY_BODIES)
                .detail("You are sending more than 32 MiB in unfinished requests. Try again when they have completed.")
                .retry_after(1));
        }
        if held.all + bytes > ALL_BYTES_MAX {
            return Err(Problem::new(BODY_LIMIT)
                .detail("The server is receiving too many request bodies at once. Try again shortly.")
                .retry_after(1));
        }
        held.all += bytes;
        held.senders.insert(self.sender, of_sender);
        self.bytes += bytes;
        Ok(())
    }
}

impl Drop for BodyReservation {
    fn drop(&mut self) {
        let mut held = BODY_MEMORY.lock();
        held.all -= self.bytes;
        if let Entry::Occupied(mut of_sender) = held.senders.entry(self.sender) {
            *of_sender.get_mut() -= self.bytes;
            if *of_sender.get() == 0 {
                of_sender.remove();
            }
        }
    }
}

impl BodyMemory {
    fn lock(&self) -> MutexGuard<'_, Held> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sender_has_a_limit_and_releases_its_bytes() {
        let mut first = BodyReservation::new(&Extensions::new());
        first.add(SENDER_BYTES_MAX).unwrap();
        let mut second = BodyReservation::new(&Extensions::new());
        assert_eq!(second.add(1).unwrap_err().slug(), "too-many-bodies");
        drop(first);
        second.add(1).unwrap();
    }
}
