//! A change of an aggregate, in the form that clients see. It is independent of transports; [`crate::frames`] does the
//! framing.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, OnceLock};

use compact_str::CompactString;
use event_store::event::RecordedEvent;
use kernel::aggregate::Aggregate;
use kernel::stream::StreamId;
use projection_engine::state::{Versioned, occurred_at, rfc3339};
use serde::Serialize;
use serde_json::{Map, Value};

/// Name of a checkpoint group. The read models of a group advance together. Each group has its own feed and its own
/// part of a cursor, so a group that stops does not delay the others.
pub type Group = &'static str;

/// The channels that a change of a stream can go to, as far as they can be determined before the stream is folded.
#[derive(Debug, Clone, Copy)]
pub struct Interest {
    /// Names of channels that every stream can publish on.
    pub names: &'static [&'static str],
    /// Prefixes of channels of one stream; the stream's id follows the prefix.
    pub by_stream: &'static [&'static str],
    /// Prefixes of channels whose id depends on the state, such as the owner's id. Every channel with such a prefix
    /// counts as a possible target.
    pub by_prefix: &'static [&'static str],
}

impl Interest {
    /// Whether a change of the stream can go to the channel.
    pub fn includes(&self, channel: &str, stream_id: &str) -> bool {
        self.names.contains(&channel)
            || self.by_stream.iter().any(|prefix| channel.strip_prefix(prefix) == Some(stream_id))
            || self.by_prefix.iter().any(|prefix| channel.starts_with(prefix))
    }
}

/// Output of a view: text that clients receive, or a value from which a patch is computed.
pub enum Json {
    /// JSON text; views are appended to it.
    Text(Vec<u8>),
    /// A JSON value; a view replaces it.
    Value(Value),
}

impl Json {
    /// Writes a view. A view that cannot be serialized becomes null.
    pub fn write(&mut self, view: &impl Serialize) {
        match self {
            Self::Text(text) => {
                let end = text.len();
                if serde_json::to_writer(&mut *text, view).is_err() {
                    text.truncate(end);
                    text.extend_from_slice(b"null");
                }
            }
            Self::Value(value) => *value = serde_json::to_value(view).unwrap_or_default(),
        }
    }

    fn member(&mut self, before: &str, name: &str, value: &(impl Serialize + ?Sized)) {
        self.raw(&[before, name, "\":"]);
        self.write(&value);
    }

    fn raw(&mut self, parts: &[&str]) {
        if let Self::Text(text) = self {
            parts.iter().for_each(|part| text.extend_from_slice(part.as_bytes()));
        }
    }

    fn len(&self) -> usize {
        if let Self::Text(text) = self { text.len() } else { 0 }
    }

    fn truncate(&mut self, len: usize) {
        if let Self::Text(text) = self {
            text.truncate(len);
        }
    }
}

/// Function that writes the view of an aggregate that clients see.
pub type WriteView<A> = fn(&Versioned<A>, &mut Json);

/// One event of a stream, with the aggregate before and after it.
pub struct Step<'a, A: Aggregate> {
    /// The aggregate before the event; `None` for the first event of a stream.
    pub before: Option<&'a Arc<Versioned<A>>>,
    /// The aggregate after the event. The aggregate always exists.
    pub after: &'a Arc<Versioned<A>>,
    /// The decoded event.
    pub event: &'a A::Event,
    /// The event as stored in the log.
    pub recorded: &'a RecordedEvent,
    pub(crate) id_member: &'static str,
    pub(crate) view: WriteView<A>,
}

impl<A: Aggregate> Step<'_, A> {
    /// Creates a publication of this change, without channels. `payload` is the event's content as clients see it.
    pub fn publication(&self, payload: Value) -> Publication {
        let states = States { before: self.before.cloned(), after: self.after.clone(), view: self.view };
        Publication {
            position: self.recorded.position,
            version: self.recorded.sequence,
            stream: StreamId::new(A::TYPE, &self.recorded.aggregate_id),
            event_type: self.recorded.event_type.clone(),
            occurred_at: occurred_at(self.recorded),
            payload,
            channels: Vec::with_capacity(4),
            id_member: self.id_member,
            previous_of_stream: self.before.map_or(0, |before| before.position),
            weight: self.after.state.weight(),
            views: Box::new(states),
            data: OnceLock::new(),
            patched: OnceLock::new(),
        }
    }
}

/// A channel that a publication goes to.
#[derive(Debug, Clone, PartialEq)]
pub struct Target {
    /// Name of the channel.
    pub name: CompactString,
    /// Position of the previous publication on the channel; 0 for the first one. Set only where it follows from the
    /// stream alone.
    pub previous: Option<i64>,
}

/// A change of an aggregate, with the channels that it goes to. It is serialized lazily and at most once.
pub struct Publication {
    /// Position of the event in the log.
    pub position: i64,
    /// The aggregate's version after the event.
    pub version: i64,
    /// Stream of the event.
    pub stream: StreamId,
    /// Name of the event.
    pub event_type: CompactString,
    /// When the event happened, in microseconds since 1970.
    pub occurred_at: i64,
    /// Content of the event, as clients see it.
    pub payload: Value,
    /// The channels of the publication, each once.
    pub channels: Vec<Target>,
    /// Member of `data` that holds the stream's id.
    id_member: &'static str,
    previous_of_stream: i64,
    /// Size of the aggregate in bytes.
    weight: usize,
    views: Box<dyn Views>,
    data: OnceLock<String>,
    patched: OnceLock<String>,
}

impl Publication {
    /// Adds a channel that several streams publish on.
    #[must_use]
    pub fn on(mut self, channel: impl Into<CompactString>) -> Self {
        self.channels.push(Target { name: channel.into(), previous: None });
        self
    }

    /// Adds a channel of this stream alone. The channel must receive every change of the stream.
    #[must_use]
    pub fn on_stream_channel(mut self, channel: impl Into<CompactString>) -> Self {
        self.channels.push(Target { name: channel.into(), previous: Some(self.previous_of_stream) });
        self
    }

    /// Returns the target with this channel name; `None` if the publication does not go to the channel.
    pub fn target(&self, channel: &str) -> Option<&Target> {
        self.channels.iter().find(|target| target.name == channel)
    }

    /// Returns the JSON text of `data`, with the aggregate after the event as `view`.
    pub fn data(&self) -> &str {
        self.data.get_or_init(|| self.encode("view", |json| self.views.after(json)))
    }

    /// Returns the JSON text of `data` with `patch` in place of `view`: the merge patch (RFC 7396) from the view before
    /// the event to the view after it.
    pub fn patched(&self) -> &str {
        self.patched.get_or_init(|| {
            let value = |write: &dyn Fn(&mut Json)| {
                let mut json = Json::Value(Value::Object(Map::new()));
                write(&mut json);
                if let Json::Value(value) = json { value } else { Value::Null }
            };
            self.encode("patch", |json| {
                let before = value(&|json| self.views.before(json));
                json.write(&merge_patch(&before, &value(&|json| self.views.after(json))));
            })
        })
    }

    /// Returns the approximate size in bytes: the serialized text and the aggregate behind it.
    pub fn bytes(&self) -> usize {
        self.data().len() + self.weight
    }

    /// Returns the length of the serialized text in bytes, or an estimate before it is serialized.
    pub fn bytes_expected(&self) -> usize {
        self.data.get().map_or(self.weight, String::len)
    }

    /// Serializes `data`, with `write` for the last member. If `write` panics, the member becomes null: the fault is in
    /// a context's code, and must not stop other channels.
    fn encode(&self, member: &str, write: impl FnOnce(&mut Json)) -> String {
        let mut json = Json::Text(Vec::with_capacity(256 + self.weight));
        json.member("{\"", "type", &*self.event_type);
        json.member(",\"", self.id_member, &*self.stream.aggregate_id);
        json.member(",\"", "version", &self.version);
        json.member(",\"", "position", &self.position);
        json.member(",\"", "occurred_at", &rfc3339(self.occurred_at));
        json.member(",\"", "payload", &self.payload);
        json.raw(&[",\"", member, "\":"]);
        let end = json.len();
        if catch_unwind(AssertUnwindSafe(|| write(&mut json))).is_err() {
            tracing::error!(stream = %self.stream, position = self.position, member, "A view function panicked. Clients receive null in its place.");
            json.truncate(end);
            json.raw(&["null"]);
        }
        json.raw(&["}"]);
        match json {
            // JSON text is UTF-8.
            Json::Text(text) => String::from_utf8(text).unwrap_or_default(),
            Json::Value(_) => String::new(),
        }
    }
}

/// The views of an aggregate before and after a change.
trait Views: Send + Sync {
    /// Writes nothing if the aggregate did not exist before the change.
    fn before(&self, json: &mut Json);
    fn after(&self, json: &mut Json);
}

struct States<A> {
    before: Option<Arc<Versioned<A>>>,
    after: Arc<Versioned<A>>,
    view: WriteView<A>,
}

impl<A: Aggregate> Views for States<A> {
    fn before(&self, json: &mut Json) {
        if let Some(before) = &self.before {
            (self.view)(before, json);
        }
    }

    fn after(&self, json: &mut Json) {
        (self.view)(&self.after, json);
    }
}

/// Returns the RFC 7396 merge patch from `before` to `after`. A null in `after` counts as absent, because a merge patch
/// cannot express it.
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

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::testing::{added, publication_of};

    /// Applies a patch as a client does: the algorithm of RFC 7396, section 2.
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
    fn a_patch_applied_to_the_old_view_gives_the_new_one() {
        let cases = [
            (json!({}), json!({"a": 1, "b": {"c": [1]}})),
            (json!({"a": 1, "b": {"c": 1, "d": 2}}), json!({"a": 1, "b": {"c": 2}})),
            (json!({"lines": [1, 2], "gone": true}), json!({"lines": [1, 2, 3]})),
            (json!({"a": {"b": 1}}), json!({"a": "text"})),
            (json!({"a": 1}), json!({"a": 1})),
        ];
        for (before, after) in cases {
            let patch = merge_patch(&before, &after);
            assert_eq!(apply(before.clone(), &patch), after, "{before} patched with {patch}");
        }
        assert_eq!(merge_patch(&json!({"a": 1, "b": 2}), &json!({"a": 1, "b": 3})), json!({"b": 3}));
    }

    #[test]
    fn a_publication_shows_the_event_and_the_state_after_it() {
        let publication = publication_of(&[added("17", 1, 4, 2), added("17", 2, 9, 3)]);
        assert_eq!(
            publication.data(),
            r#"{"type":"Added","counter_id":"17","version":2,"position":9,"occurred_at":"1970-01-01T00:00:00.000001Z","payload":{"by":3},"view":{"id":"17","total":5}}"#
        );
        let patched: Value = serde_json::from_str(publication.patched()).unwrap();
        assert_eq!((&patched["patch"], &patched["view"]), (&json!({"total": 5}), &Value::Null));
        assert_eq!(publication.target("counter:17").unwrap().previous, Some(4));
        assert_eq!(publication.target("counters").unwrap().previous, None);
    }

    #[test]
    fn a_view_that_panics_is_null() {
        let publication = publication_of(&[added("panics", 1, 1, 1)]);
        let data: Value = serde_json::from_str(publication.data()).unwrap();
        assert_eq!((&data["version"], &data["view"]), (&json!(1), &Value::Null));
    }

    #[test]
    fn interest_covers_the_channels_of_a_stream() {
        let interest = Interest { names: &["all"], by_stream: &["one:"], by_prefix: &["of:"] };
        let included = ["all", "one:17", "of:ada"].map(|channel| interest.includes(channel, "17"));
        let others = ["any", "one:18", "one:171", "off:ada"].map(|channel| interest.includes(channel, "17"));
        assert_eq!((included, others), ([true; 3], [false; 4]));
    }
}
