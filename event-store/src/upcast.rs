//! Old versions of events are lifted when they are read: nothing in the log is ever rewritten, and whoever reads sees the
//! newest version only.

use std::sync::Arc;

use cqrs_es::persist::{EventUpcaster, SerializedEvent};

use crate::event::RecordedEvent;

/// Every upcaster, in the order in which they are tried: from version 1 to 2 before from 2 to 3.
pub type Upcasters = Arc<[Box<dyn EventUpcaster>]>;

/// An event in its newest version. One whose payload is no JSON stays as it is, and fails where it is decoded.
pub(crate) fn lift(upcasters: &Upcasters, mut event: RecordedEvent) -> RecordedEvent {
    for upcaster in upcasters.iter() {
        if upcaster.can_upcast(&event.event_type, &event.event_version)
            && let Some(lifted) = lift_one(&**upcaster, &event)
        {
            event = lifted;
        }
    }
    event
}

fn lift_one(upcaster: &dyn EventUpcaster, event: &RecordedEvent) -> Option<RecordedEvent> {
    let stored = SerializedEvent::new(
        event.aggregate_id.to_string(),
        usize::try_from(event.sequence).ok()?,
        event.aggregate_type.to_string(),
        event.event_type.to_string(),
        event.event_version.to_string(),
        serde_json::from_str(&event.payload).ok()?,
        serde_json::Value::Null,
    );
    let lifted = upcaster.upcast(stored);
    Some(RecordedEvent {
        event_type: lifted.event_type.into(),
        event_version: lifted.event_version.into(),
        payload: lifted.payload.to_string(),
        ..event.clone()
    })
}

/// The same for an event that was loaded with its aggregate.
pub(crate) fn lift_serialized(upcasters: &Upcasters, mut event: SerializedEvent) -> SerializedEvent {
    for upcaster in upcasters.iter() {
        if upcaster.can_upcast(&event.event_type, &event.event_version) {
            event = upcaster.upcast(event);
        }
    }
    event
}
