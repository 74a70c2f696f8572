//! A change of an aggregate as listeners are shown it. It knows no transport: how it is framed is in [`crate::frames`].

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, OnceLock};

use compact_str::CompactString;
use event_store::event::RecordedEvent;
use kernel::aggregate::Aggregate;
use kernel::stream::StreamId;
use projection_engine::state::{Versioned, occurred_at, rfc3339};
use serde::Serialize;
use serde_json::{Map, Value};

/// Name of a checkpoint group: its read models move together, and it has its own feed and its own part of a cursor. A group
/// that stops does not hold up the others.
pub type Group = &'static str;

/// Which channels a change of a stream can go to, as far as that is known before the stream is folded.
#[derive(Debug, Clone, Copy)]
pub struct Interest {
    /// Channels of every stream, by their names.
    pub names: &'static [&'static str],
    /// Channels of one stream: what comes before the stream's id in their names.
    pub by_stream: &'static [&'static str],
    /// Prefixes of channels whose id follows from the state, such as that of an owner: any open one counts.
    pub by_prefix: &'static [&'static str],
}

impl Interest {
    /// Whether a channel is one of those that a stream's change can go to.
    pub fn includes(&self, channel: &str, stream_id: &str) -> bool {
        self.names.contains(&channel)
            || self.by_stream.iter().any(|prefix| channel.strip_prefix(prefix) == Some(stream_id))
            || self.by_prefix.iter().any(|prefix| channel.starts_with(prefix))
    }
}

/// Where a view is written: as text, or as a value from which a patch is made.
pub enum Json {
    /// JSON text, appended.
    Text(Vec<u8>),
    /// A value.
    Value(Value),
}

impl Json {
    /// Writes a view. What cannot be serialized becomes null.
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

/// Writes the view of an aggregate that clients see.
pub type WriteView<A> = fn(&Versioned<A>, &mut Json);

/// One event of a stream, with the aggregate before and after it.
pub struct Step<'a, A: Aggregate> {
    /// The aggregate before the event; `None` before the first one.
    pub before: Option<&'a Arc<Versioned<A>>>,
    /// The aggregate after the event. It exists.
    pub after: &'a Arc<Versioned<A>>,
    /// The event.
    pub event: &'a A::Event,
    /// The event as the log has it.
    pub recorded: &'a RecordedEvent,
    pub(crate) id_member: &'static str,
    pub(crate) view: WriteView<A>,
}

impl<A: Aggregate> Step<'_, A> {
    /// A publication of this change, on no channel yet. `payload` is the event's content as clients see it.
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
    /// Its name.
    pub name: CompactString,
    /// Position of the publication before this one on the channel, where the stream knows it by itself; 0 before the
    /// first one.
    pub previous: Option<i64>,
}

/// A change, on its way to channels. What it shows is serialized when somebody is there to see it, and then once.
pub struct Publication {
    /// Position of the event.
    pub position: i64,
    /// The aggregate's version after it.
    pub version: i64,
    /// Stream of the event.
    pub stream: StreamId,
    /// Name of the event.
    pub event_type: CompactString,
    /// When it happened, in microseconds since 1970.
    pub occurred_at: i64,
    /// Content of the event, as clients see it.
    pub payload: Value,
    /// The channels that it goes to, each once.
    pub channels: Vec<Target>,
    /// Member of `data` that holds the stream's id.
    id_member: &'static str,
    previous_of_stream: i64,
    /// Bytes that the aggregate takes.
    weight: usize,
    views: Box<dyn Views>,
    data: OnceLock<String>,
    patched: OnceLock<String>,
}

impl Publication {
    /// Also on a channel of several streams.
    #[must_use]
    pub fn on(mut self, channel: impl Into<CompactString>) -> Self {
        self.channels.push(Target { name: channel.into(), previous: None });
        self
    }

    /// Also on a channel of this stream alone, whose publications are all changes of the stream.
    #[must_use]
    pub fn on_own(mut self, channel: impl Into<CompactString>) -> Self {
        self.channels.push(Target { name: channel.into(), previous: Some(self.previous_of_stream) });
        self
    }

    /// How it goes to a channel; `None` where it does not.
    pub fn target(&self, channel: &str) -> Option<&Target> {
        self.channels.iter().find(|target| target.name == channel)
    }

    /// JSON text of `data`, with the aggregate after the event as `view`.
    pub fn data(&self) -> &str {
        self.data.get_or_init(|| self.encode("view", |json| self.views.after(json)))
    }

    /// JSON text of `data` with, in place of `view`, the merge patch (RFC 7396) from the view before to the view after.
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

    /// About how many bytes it holds: its text, and the aggregate from which that was made.
    pub fn bytes(&self) -> usize {
        self.data().len() + self.weight
    }

    /// About how many bytes its text has, or will have.
    pub fn bytes_expected(&self) -> usize {
        self.data.get().map_or(self.weight, String::len)
    }

    /// What `write` panics at becomes null: the fault is in a context, and the other listeners go on.
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
            tracing::error!(stream = %self.stream, position = self.position, member, "a view panicked");
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
    /// Writes nothing where there was no aggregate.
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

/// The patch of RFC 7396 that makes `after` of `before`. A null in `after` counts as absent: the RFC cannot express it.
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
