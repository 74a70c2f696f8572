//! Snapshots of aggregates. With SQLite they wait for the next append transaction: a separate commit would block the
//! only writer until the disk has synced.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use kernel::stream::StreamId;

/// Maximum number of waiting snapshots, and of their bytes. A snapshot that exceeds a limit is dropped; its aggregate
/// loads more slowly until its next snapshot.
const WAITING_MAX: usize = 64;
const WAITING_BYTES_MAX: usize = 4 << 20;

/// The state of an aggregate at a version.
#[derive(Debug)]
pub(crate) struct Snapshot {
    pub(crate) stream: StreamId,
    /// Sequence of the last event in the state.
    pub(crate) version: i64,
    /// Version of the state's serialized form.
    pub(crate) state_version: i64,
    /// The state, as JSON.
    pub(crate) payload: String,
}

/// The waiting snapshots, the newest one of each stream. Clones share them. Losing them in a crash only makes loads
/// slower.
#[derive(Clone, Default)]
pub(crate) struct WaitingSnapshots(Arc<Mutex<Waiting>>);

#[derive(Default)]
struct Waiting {
    by_stream: HashMap<StreamId, Snapshot>,
    bytes: usize,
}

impl WaitingSnapshots {
    /// Keeps a snapshot until the next `take`, unless a newer one of its stream already waits.
    pub(crate) fn put(&self, snapshot: Snapshot) {
        let mut waiting = self.lock();
        let Waiting { by_stream, bytes } = &mut *waiting;
        let others = by_stream.len();
        match by_stream.entry(snapshot.stream.clone()) {
            Entry::Occupied(known) if known.get().version >= snapshot.version => {}
            Entry::Occupied(mut known) => {
                *bytes = *bytes - known.get().payload.len() + snapshot.payload.len();
                known.insert(snapshot);
            }
            Entry::Vacant(_) if others >= WAITING_MAX || *bytes + snapshot.payload.len() > WAITING_BYTES_MAX => {}
            Entry::Vacant(free) => {
                *bytes += snapshot.payload.len();
                free.insert(snapshot);
            }
        }
    }

    /// Removes and returns all waiting snapshots.
    pub(crate) fn take(&self) -> impl Iterator<Item = Snapshot> + use<> {
        std::mem::take(&mut *self.lock()).by_stream.into_values()
    }

    fn lock(&self) -> MutexGuard<'_, Waiting> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn snapshot(id: usize, version: i64, bytes: usize) -> Snapshot {
        let stream = StreamId::new("t", &id.to_string());
        Snapshot { stream, version, state_version: 1, payload: "x".repeat(bytes) }
    }

    #[test]
    fn the_newest_snapshot_of_a_stream_is_kept() {
        let waiting = WaitingSnapshots::default();
        for version in [5, 15, 10] {
            waiting.put(snapshot(1, version, 3));
        }
        assert_eq!(waiting.take().map(|snapshot| snapshot.version).collect::<Vec<_>>(), [15]);
        assert_eq!(waiting.take().count(), 0);
    }

    #[test]
    fn waiting_snapshots_are_bounded() {
        let waiting = WaitingSnapshots::default();
        (0..2 * WAITING_MAX).for_each(|id| waiting.put(snapshot(id, 1, 1)));
        assert_eq!(waiting.take().count(), WAITING_MAX);
        (0..4).for_each(|id| waiting.put(snapshot(id, 1, WAITING_BYTES_MAX / 2)));
        assert_eq!(waiting.take().count(), 2);
    }
}
