//! Upcasting of events when they are read.

use kernel::upcast::Upcasters;

use crate::event::RecordedEvent;

/// Converts an event to its newest version.
pub(crate) fn upcast(upcasters: &Upcasters, mut event: RecordedEvent) -> RecordedEvent {
    let RecordedEvent { aggregate_type, event_type, event_version, payload, .. } = &event;
    if let Some((version, payload)) = upcasters.upcast(aggregate_type, event_type, event_version, payload) {
        event.event_version = version.into();
        event.payload = payload;
    }
    event
}
