//! The most recent events in memory: those that this process has just appended, for readers close to the end of the
//! log.
//!
//! This is only a shortcut. Positions have no gaps, so a reader detects whether the next event is here, and otherwise
//! reads the database.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard};

use crate::event::RecordedEvent;

/// Maximum number of events kept.
const EVENTS_MAX: usize = 4_096;
/// Maximum total size of the payloads kept, in bytes.
const BYTES_MAX: usize = 8 << 20;

/// The most recent events. Cheap to clone; clones share the events.
#[derive(Clone, Default)]
pub(crate) struct RecentEvents(Arc<Mutex<Inner>>);

#[derive(Default)]
struct Inner {
    events: VecDeque<RecordedEvent>,
    bytes: usize,
}

impl RecentEvents {
    /// Adds committed events, in order of position. If another process has appended in between, the events before that
    /// gap are dropped.
    pub(crate) fn push(&self, events: impl IntoIterator<Item = RecordedEvent>) {
        let mut inner = self.lock();
        for event in events {
            if inner.events.back().is_some_and(|last| last.position + 1 != event.position) {
                *inner = Inner::default();
            }
            inner.bytes += event.payload.len();
            inner.events.push_back(event);
        }
        while inner.events.len() > EVENTS_MAX || inner.bytes > BYTES_MAX {
            let Some(first) = inner.events.pop_front() else { return };
            inner.bytes -= first.payload.len();
        }
    }

    /// Returns the events after a position, at least one and at most `limit`; `None` when the database must be read.
    pub(crate) fn after(&self, position: i64, limit: usize) -> Option<Vec<RecordedEvent>> {
        let inner = self.lock();
        let first = inner.events.front()?.position;
        let skip = usize::try_from(position + 1 - first).ok()?;
        let events: Vec<_> = inner.events.iter().skip(skip).take(limit).cloned().collect();
        (!events.is_empty()).then_some(events)
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.0.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn event(position: i64, bytes: usize) -> RecordedEvent {
        RecordedEvent {
            position,
            aggregate_type: "".into(),
            aggregate_id: "".into(),
            sequence: 1,
            event_type: "".into(),
            event_version: "".into(),
            payload: "x".repeat(bytes),
            metadata: String::new(),
            recorded_at: 0,
        }
    }

    fn positions(recent: &RecentEvents, after: i64) -> Option<Vec<i64>> {
        recent.after(after, 100).map(|events| events.iter().map(|event| event.position).collect())
    }

    #[test]
    fn only_events_without_a_gap_are_returned() {
        let recent = RecentEvents::default();
        assert_eq!(positions(&recent, 0), None);
        recent.push([event(5, 1), event(6, 1)]);
        assert_eq!(positions(&recent, 3), None, "position 4 is missing");
        assert_eq!(positions(&recent, 4), Some(vec![5, 6]));
        assert_eq!(positions(&recent, 6), None, "no event follows");
        recent.push([event(9, 1)]);
        assert_eq!(positions(&recent, 6), None, "another process appended 7 and 8");
        assert_eq!(positions(&recent, 8), Some(vec![9]));
    }

    #[test]
    fn the_number_and_size_of_events_are_bounded() {
        let recent = RecentEvents::default();
        recent.push((1..=EVENTS_MAX as i64 + 10).map(|position| event(position, 1)));
        assert_eq!(recent.lock().events.len(), EVENTS_MAX);
        recent.push([event(EVENTS_MAX as i64 + 11, BYTES_MAX)]);
        assert!(recent.lock().bytes <= BYTES_MAX);
    }
}
