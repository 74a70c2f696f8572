//! The texts that transports send: frames of the Centrifuge protocol, and events of `/v1/live` and `/v1/poll`.

use axum::body::Bytes;

use crate::publication::Publication;

/// Appends a push with a publication, in the Centrifuge protocol.
pub fn push_frame(text: &mut String, channel: &str, previous: i64, publication: &Publication, patched: bool) {
    text.push_str(r#"{"push":{"channel":"#);
    push_json_text(text, channel);
    text.push_str(r#","pub":"#);
    push_publication(text, previous, publication, patched);
    text.push_str("}}");
}

/// Appends a publication, in the Centrifuge protocol. A client whose position is at or after `tags.prev` has missed
/// nothing.
pub fn push_publication(text: &mut String, previous: i64, publication: &Publication, patched: bool) {
    let data = if patched { publication.patched() } else { publication.data() };
    text.push_str(r#"{"data":"#);
    text.push_str(data);
    text.push_str(r#","offset":"#);
    text.push_str(&publication.position.to_string());
    text.push_str(r#","tags":{"prev":""#);
    text.push_str(&previous.to_string());
    text.push_str(r#""}}"#);
}

/// Returns a push with an ephemeral event, in the Centrifuge protocol.
pub fn ephemeral_frame(channel: &str, event: &str, data: &str) -> String {
    let field = if event == "pub" { "data" } else { "info" };
    let mut text = String::with_capacity(channel.len() + data.len() + 64);
    text.push_str(r#"{"push":{"channel":"#);
    push_json_text(&mut text, channel);
    text.push_str(&format!(r#","{event}":{{"{field}":{data}}}}}}}"#));
    text
}

/// Returns a push that ends a subscription, in the Centrifuge protocol.
pub fn unsubscribe_frame(channel: &str, code: u32, reason: &str) -> String {
    let mut text = String::from(r#"{"push":{"channel":"#);
    push_json_text(&mut text, channel);
    text.push_str(&format!(r#","unsubscribe":{{"code":{code},"reason":"{reason}"}}}}}}"#));
    text
}

/// Appends a text as a JSON string. Most names need no escape, and are copied.
fn push_json_text(json: &mut String, text: &str) {
    if text.bytes().any(|byte| byte < 0x20 || byte == b'"' || byte == b'\\') {
        // A text always serializes.
        json.push_str(&serde_json::to_string(text).unwrap_or_default());
    } else {
        json.push('"');
        json.push_str(text);
        json.push('"');
    }
}

const LINE: &str = "data: ";
const END: &str = "\n\n";

/// An event of `/v1/live` and `/v1/poll`: the `data` line of a server-sent event, which contains the JSON object that a
/// poll returns. Cheap to clone.
#[derive(Debug, Clone, PartialEq)]
pub struct EventText {
    /// The `data` line and the empty line after it.
    line: Bytes,
    /// Byte offset in `line` at which the value of the member `data` begins.
    data_at: usize,
}

impl EventText {
    /// Creates an event with JSON text as its data.
    pub fn new(event: &str, channel: Option<&str>, offset: Option<i64>, previous: Option<i64>, data: &str) -> Self {
        let mut line = String::with_capacity(data.len() + channel.map_or(0, str::len) + 96);
        line.push_str(LINE);
        push_head(&mut line, event, channel, offset, previous);
        let data_at = line.len();
        line.push_str(data);
        line.push('}');
        line.push_str(END);
        Self { line: line.into(), data_at }
    }

    /// Returns a copy of the change with another previous position.
    #[must_use]
    pub fn with_previous(&self, channel: &str, offset: i64, previous: i64) -> Self {
        let data = &self.line[self.data_at..self.line.len() - END.len() - 1];
        Self::new("pub", Some(channel), Some(offset), Some(previous), std::str::from_utf8(data).unwrap_or("null"))
    }

    /// Returns the last lines of the server-sent event: its `data` line and the empty line.
    pub fn data_line(&self) -> &Bytes {
        &self.line
    }

    /// Returns the JSON object.
    pub fn json(&self) -> Bytes {
        self.line.slice(LINE.len()..self.line.len() - END.len())
    }
}

fn push_head(text: &mut String, event: &str, channel: Option<&str>, offset: Option<i64>, previous: Option<i64>) {
    text.push_str(r#"{"event":""#);
    text.push_str(event);
    text.push('"');
    if let Some(channel) = channel {
        text.push_str(r#","channel":"#);
        push_json_text(text, channel);
    }
    for (name, number) in [(r#","offset":"#, offset), (r#","prev":"#, previous)] {
        if let Some(number) = number {
            text.push_str(name);
            text.push_str(&number.to_string());
        }
    }
    text.push_str(r#","data":"#);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_channel_name_is_escaped_in_every_frame() {
        let name = r#"counter:a"b\c é"#;
        let frames = [
            ephemeral_frame(name, "join", "{}"),
            unsubscribe_frame(name, 2000, "permission denied"),
            String::from_utf8(EventText::new("pub", Some(name), Some(1), Some(0), "{}").json().to_vec()).unwrap(),
        ];
        for frame in frames {
            let frame: serde_json::Value = serde_json::from_str(&frame).unwrap();
            let shown = if frame["push"].is_object() { &frame["push"]["channel"] } else { &frame["channel"] };
            assert_eq!(shown, name);
        }
    }

    #[test]
    fn an_event_is_available_as_json_and_as_a_data_line() {
        let event = EventText::new("pub", Some("counter:17"), Some(9), Some(4), r#"{"a":1}"#);
        let json = r#"{"event":"pub","channel":"counter:17","offset":9,"prev":4,"data":{"a":1}}"#;
        assert_eq!(event.json(), json);
        assert_eq!(*event.data_line(), format!("data: {json}\n\n"));
        assert_eq!(event.json().as_ptr(), event.data_line()[6..].as_ptr(), "both share the same bytes");
        assert_eq!(event.with_previous("counter:17", 9, 2).json(), json.replace("\"prev\":4", "\"prev\":2"));
        let reset = EventText::new("reset", None, None, None, "{}");
        assert_eq!(reset.json(), r#"{"event":"reset","data":{}}"#);
    }
}
