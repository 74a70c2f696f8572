//! Upcasting: stored events of older versions are brought to the present version when they are read. Nothing in the log is
//! ever rewritten, and readers see the newest version only.

use std::sync::Arc;

use serde_json::{Map, Value};

/// One step: from one version of an event to the next.
#[derive(Debug, Clone, Copy)]
pub struct Upcaster {
    /// The event's name.
    pub event_type: &'static str,
    /// The version that it reads.
    pub from: &'static str,
    /// The version that it makes.
    pub to: &'static str,
    /// Changes the event's payload.
    pub upcast: fn(&mut Map<String, Value>),
}

/// The upcasters of several aggregates, each for its own type: two types may have events of one name. Cheap to clone.
#[derive(Debug, Clone, Default)]
pub struct Upcasters(Arc<[(&'static str, Upcaster)]>);

impl Upcasters {
    /// Those of one type of aggregate.
    pub fn of(aggregate_type: &'static str, upcasters: &[Upcaster]) -> Self {
        Self(upcasters.iter().map(|upcaster| (aggregate_type, *upcaster)).collect())
    }

    /// Adds those of another type, which must not be among these.
    #[must_use]
    pub fn merge(self, other: &Self) -> Self {
        Self(self.0.iter().chain(other.0.iter()).copied().collect())
    }

    /// The newest version of an event and its payload, as JSON text; `None` where the stored one is the newest. A payload
    /// that is not an object tagged by the event's name stays as it is, and fails where it is decoded.
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
