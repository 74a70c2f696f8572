//! Upcasting: stored events of older versions are converted to the current version when they are read. The log is never
//! rewritten, and readers see only the current version.

use std::sync::Arc;

use serde_json::{Map, Value};

/// One upcasting step: from one version of an event to the next.
#[derive(Debug, Clone, Copy)]
pub struct Upcaster {
    /// Name of the event.
    pub event_type: &'static str,
    /// Version that the step reads.
    pub from: &'static str,
    /// Version that the step produces.
    pub to: &'static str,
    /// Function that changes the event's payload in place.
    pub upcast: fn(&mut Map<String, Value>),
}

/// Upcasters of several aggregate types. They are kept by type, because two types may have events with the same name.
/// Cheap to clone.
#[derive(Debug, Clone, Default)]
pub struct Upcasters(Arc<[(&'static str, Upcaster)]>);

impl Upcasters {
    /// Creates the set of upcasters of one aggregate type.
    pub fn of(aggregate_type: &'static str, upcasters: &[Upcaster]) -> Self {
        Self(upcasters.iter().map(|upcaster| (aggregate_type, *upcaster)).collect())
    }

    /// Adds the upcasters of another set. The two sets must not share an aggregate type.
    #[must_use]
    pub fn merge(self, other: &Self) -> Self {
        Self(self.0.iter().chain(other.0.iter()).copied().collect())
    }

    /// Returns the current version of an event and its payload as JSON text; `None` if no upcaster applies, that is, if
    /// the stored version is current. A payload that is not an object tagged with the event's name also returns `None`;
    /// decoding it fails later.
    pub fn upcast(
        &self,
        aggregate_type: &str,
        event_type: &str,
        event_version: &str,
        payload: &str,
    ) -> Option<(&'static str, String)> {
        let mut version = None;
        let mut tagged: Option<Value> = None;
        for (_, upcaster) in
            self.0.iter().filter(|(of, upcaster)| *of == aggregate_type && upcaster.event_type == event_type)
        {
            if upcaster.from != version.unwrap_or(event_version) {
                continue;
            }
            if tagged.is_none() {
                tagged = serde_json::from_str(payload).ok();
            }
            let Some(Value::Object(payload)) = tagged.as_mut().and_then(|tagged| tagged.get_mut(event_type)) else {
                return None;
            };
            (upcaster.upcast)(payload);
            version = Some(upcaster.to);
        }
        Some((version?, tagged?.to_string()))
    }
}
