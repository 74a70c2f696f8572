//! A change as subscribers get it. It is encoded once, whoever and how many they are.

use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::sync::{Arc, OnceLock};

use axum::extract::ws::Utf8Bytes;
use domain::order::Order;
use event_store::event::RecordedEvent;
use kernel::aggregate::Aggregate;
use projection_engine::state::{FoldError, Versioned, occurred_at, rfc3339};
use projections::orders::view::{OrderView, payload_view};
use serde::Serialize;
use serde_json::{Map, Value};

/// A change of an order.
pub struct Publication {
    /// Position of the event.
    pub position: i64,
    /// JSON text of `data`, with the order after the event as `view`.
    pub data: String,
    before: Option<Arc<Versioned<Order>>>,
    after: Arc<Versioned<Order>>,
    recorded: RecordedHead,
    patched: OnceLock<String>,
}

/// What of an event comes before its payload and its view.
struct RecordedHead {
    event_type: String,
    occurred_at: String,
    payload: Value,
}

#[derive(Serialize)]
struct Data<'a> {
    #[serde(rename = "type")]
    event_type: &'a str,
    order_id: &'a str,
    version: i64,
    position: i64,
    occurred_at: &'a str,
    payload: &'a Value,
    #[serde(skip_serializing_if = "Option::is_none")]
    view: Option<OrderView<'a>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    patch: Option<Value>,
}

impl Publication {
    /// Folds an event into the order that it changes, and tells of it.
    ///
    /// # Errors
    /// The event does not apply.
    pub fn of(
        before: Option<Arc<Versioned<Order>>>,
        event: &RecordedEvent,
    ) -> Result<(Self, Arc<Versioned<Order>>), FoldError> {
        let mut after = before.as_deref().cloned().unwrap_or_default();
        let change = after.apply(event)?;
        let recorded = RecordedHead {
            event_type: event.event_type.to_string(),
            occurred_at: rfc3339(occurred_at(event)),
            payload: payload_view(&change, after.state.currency),
        };
        let after = Arc::new(after);
        let data = encode(&recorded, &after, Some(OrderView(&after)), None);
        let patched = OnceLock::new();
        Ok((Self { position: event.position, data, before, after: after.clone(), recorded, patched }, after))
    }

    /// About how many bytes it has: its text, and the order that it was made of.
    pub fn bytes(&self) -> usize {
        self.data.len() + self.after.state.weight()
    }

    /// Whether there is an order to tell of.
    pub fn has_order(&self) -> bool {
        self.after.exists()
    }

    /// The owner of the order.
    pub fn customer_id(&self) -> &str {
        self.after.state.owner()
    }

    /// The order.
    pub fn order_id(&self) -> &str {
        &self.after.id
    }

    /// Position of the order's change before this one; 0 before the first.
    pub fn previous_of_order(&self) -> i64 {
        self.before.as_ref().map_or(0, |before| before.position)
    }

    /// Whether it makes the order a sale.
    pub fn is_sale(&self) -> bool {
        self.after.state.is_confirmed() && !self.before.as_ref().is_some_and(|before| before.state.is_confirmed())
    }

    /// JSON text of `data` with, in place of `view`, the merge patch (RFC 7396) that makes the view of it from the one
    /// before.
    pub fn patched(&self) -> &str {
        self.patched.get_or_init(|| {
            let view = |order: &Versioned<Order>| serde_json::to_value(OrderView(order)).unwrap_or_default();
            let before = self.before.as_deref().map_or(Value::Object(Map::new()), view);
            encode(&self.recorded, &self.after, None, Some(merge_patch(&before, &view(&self.after))))
        })
    }
}

fn encode(recorded: &RecordedHead, after: &Versioned<Order>, view: Option<OrderView>, patch: Option<Value>) -> String {
    let data = Data {
        event_type: &recorded.event_type,
        order_id: &after.id,
        version: after.version,
        position: after.position,
        occurred_at: &recorded.occurred_at,
        payload: &recorded.payload,
        view,
        patch,
    };
    // A struct of strings and numbers always serializes.
    serde_json::to_string(&data).unwrap_or_default()
}

/// The patch of RFC 7396 that makes `after` of `before`. What is null in `after` is as good as absent: the RFC has no
/// way to say it.
fn merge_patch(before: &Value, after: &Value) -> Value {
    let (Value::Object(before), Value::Object(after)) = (before, after) else { return after.clone() };
    let mut patch = Map::new();
    for (name, value) in after {
        match before.get(name) {
            Some(known) if known == value => {}
            Some(known) if known.is_object() && value.is_object() => {
                patch.insert(name.clone(), merge_patch(known, value));
            }
            _ => {
                patch.insert(name.clone(), value.clone());
            }
        }
    }
    for name in before.keys().filter(|name| !after.contains_key(*name)) {
        patch.insert(name.clone(), Value::Null);
    }
    Value::Object(patch)
}

/// Changes on one channel that follow each other, queued as one.
pub struct Batch {
    /// The channel.
    pub channel: Arc<str>,
    /// What was published together with it has the same number: the position up to which all is told then.
    pub round: i64,
    /// Each change, with the position of the one before it on this channel.
    pub changes: Vec<(i64, Arc<Publication>)>,
    frame: OnceLock<Utf8Bytes>,
    patch_frame: OnceLock<Utf8Bytes>,
    bytes: usize,
    /// Bytes of all batches that somebody still holds.
    held: Arc<AtomicUsize>,
}

impl Drop for Batch {
    fn drop(&mut self) {
        self.held.fetch_sub(self.bytes, Relaxed);
    }
}

impl Batch {
    /// Not empty, in order. Counts in `held` for as long as somebody holds it.
    pub fn new(channel: Arc<str>, round: i64, changes: Vec<(i64, Arc<Publication>)>, held: &Arc<AtomicUsize>) -> Self {
        let (frame, patch_frame) = Default::default();
        let bytes = changes.iter().map(|(_, publication)| publication.bytes()).sum();
        held.fetch_add(bytes, Relaxed);
        Self { channel, round, changes, frame, patch_frame, bytes, held: held.clone() }
    }

    /// Position before the first: nothing of this channel lies between.
    pub fn follows(&self) -> i64 {
        self.changes.first().map_or(0, |(previous, _)| *previous)
    }

    /// Position of the first.
    pub fn first(&self) -> i64 {
        self.changes.first().map_or(0, |(_, publication)| publication.position)
    }

    /// Position of the last.
    pub fn last(&self) -> i64 {
        self.changes.last().map_or(0, |(_, publication)| publication.position)
    }

    /// About how many bytes wait with it.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// All of it as one frame of the Centrifuge protocol.
    pub fn frame(&self, patched: bool) -> Utf8Bytes {
        let frame = if patched { &self.patch_frame } else { &self.frame };
        frame.get_or_init(|| self.frame_after(i64::MIN, patched)).clone()
    }

    /// The changes after a position, as one frame.
    pub fn frame_after(&self, position: i64, patched: bool) -> Utf8Bytes {
        let data: usize = self.changes.iter().map(|(_, publication)| publication.data.len()).sum();
        let mut frame = String::with_capacity(data + self.changes.len() * 128);
        for (previous, publication) in self.changes.iter().filter(|(_, change)| change.position > position) {
            if !frame.is_empty() {
                frame.push('\n');
            }
            // No channel's name holds what JSON escapes.
            frame.push_str(r#"{"push":{"channel":""#);
            frame.push_str(&self.channel);
            frame.push_str(r#"","pub":"#);
            push_publication(&mut frame, *previous, publication, patched);
            frame.push_str("}}");
        }
        frame.into()
    }
}

/// A publication of the Centrifuge protocol. `tags.prev` lets a client see that it has missed nothing: it holds a
/// position not before that one.
pub fn push_publication(text: &mut String, previous: i64, publication: &Publication, patched: bool) {
    let data = if patched { publication.patched() } else { &publication.data };
    text.push_str(r#"{"data":"#);
    text.push_str(data);
    text.push_str(r#","offset":"#);
    text.push_str(&publication.position.to_string());
    text.push_str(r#","tags":{"prev":""#);
    text.push_str(&previous.to_string());
    text.push_str(r#""}}"#);
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    /// What a client does with a patch: the algorithm of RFC 7396, section 2.
    fn apply(target: Value, patch: &Value) -> Value {
        let Value::Object(patch) = patch else { return patch.clone() };
        let mut target = match target {
            Value::Object(target) => target,
            _ => Map::new(),
        };
        for (name, value) in patch {
            match value {
                Value::Null => drop(target.remove(name)),
                value => {
                    let known = target.remove(name).unwrap_or_default();
                    target.insert(name.clone(), apply(known, value));
                }
            }
        }
        Value::Object(target)
    }

    #[test]
    fn a_patch_makes_the_one_of_the_other() {
        let cases = [
            (json!({}), json!({"a": 1, "b": {"c": [1]}})),
            (json!({"a": 1, "b": {"c": 1, "d": 2}}), json!({"a": 1, "b": {"c": 2}})),
            (json!({"lines": [1, 2], "gone": true}), json!({"lines": [1, 2, 3]})),
            (json!({"a": {"b": 1}}), json!({"a": "text"})),
            (json!({"a": 1}), json!({"a": 1})),
        ];
        for (before, after) in cases {
            let patch = merge_patch(&before, &after);
            assert_eq!(apply(before.clone(), &patch), after, "{before} by {patch}");
        }
        assert_eq!(merge_patch(&json!({"a": 1, "b": 2}), &json!({"a": 1, "b": 3})), json!({"b": 3}));
    }
}
