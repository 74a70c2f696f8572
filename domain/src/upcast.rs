//! How events of older versions are lifted to the present one. [`upcasters`] is the list of them.

use cqrs_es::persist::{EventUpcaster, SerializedEvent};
use serde_json::{Map, Value};

/// One step: from one version of an event to the next.
struct Step {
    event_type: &'static str,
    from: &'static str,
    to: &'static str,
    /// What it does to the payload.
    lift: fn(&mut Map<String, Value>),
}

impl EventUpcaster for Step {
    fn can_upcast(&self, event_type: &str, event_version: &str) -> bool {
        event_type == self.event_type && event_version == self.from
    }

    fn upcast(&self, mut event: SerializedEvent) -> SerializedEvent {
        // Stored tagged by the event's name. What has no such payload stays, and fails where it is decoded.
        if let Some(Value::Object(payload)) = event.payload.get_mut(self.event_type) {
            (self.lift)(payload);
            self.to.clone_into(&mut event.event_version);
        }
        event
    }
}

/// Every step, in order.
pub fn upcasters() -> Vec<Box<dyn EventUpcaster>> {
    vec![
        // Version 1 left out what was not known; version 2 says null.
        Box::new(Step {
            event_type: "ItemAdded",
            from: "1",
            to: "2",
            lift: |payload| {
                for field in ["name", "category"] {
                    payload.entry(field).or_insert(Value::Null);
                }
            },
        }),
    ]
}
