//! Push subscribers that reconnect, called listeners here. Each subscribes to its channels over a WebSocket, an event
//! stream or long polls, moves from process to process, and records what it received.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use futures::{SinkExt, StreamExt};
use serde_json::{Value, json};
use tokio::task::JoinHandle;
use tokio_tungstenite::connect_async;
use tokio_tungstenite::tungstenite::Message;

use crate::process::POLL;

/// Pause before a listener reconnects.
const PAUSE: Duration = Duration::from_millis(200);
/// Longest time that a reconnecting listener stays on a connection that brings no progress.
const STAY_MAX: Duration = Duration::from_secs(2);
/// Time without data after which a listener gives its connection up.
const SILENCE: Duration = Duration::from_secs(30);

/// Transport of a listener.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Transport {
    /// `/ws`, with one subscription per channel.
    Socket,
    /// `/v1/live`.
    Stream,
    /// `/v1/poll`.
    Poll,
}

/// What a listener received on one channel since a snapshot.
#[derive(Debug, Clone, Default)]
pub struct Span {
    /// Position of the snapshot.
    pub since: u64,
    /// The order's version in the snapshot, on a channel of one order.
    pub version: Option<u64>,
    /// Positions of the changes after the snapshot, in the order in which they were received.
    pub changes: Vec<u64>,
    /// Position up to which the listener has received everything.
    pub through: u64,
}

/// What a listener received on one channel.
#[derive(Debug, Clone, Default)]
pub struct Received {
    /// The log's incarnation, where the transport sends it.
    pub epoch: String,
    /// One span for the first snapshot and one for each later snapshot.
    pub spans: Vec<Span>,
    /// Gaps that a later snapshot closed: (position before, position of the snapshot).
    pub resets: Vec<(u64, u64)>,
    /// Violations of the protocol's guarantees.
    pub faults: Vec<String>,
}

impl Received {
    /// Returns the position up to which the listener has received everything.
    pub fn through(&self) -> u64 {
        self.spans.last().map_or(0, |span| span.through)
    }

    fn change(&mut self, position: u64, previous: u64, data: &Value) {
        let whole = data["view"].is_null() || data["view"]["version"] == data["version"];
        if data["position"] != position || !whole {
            self.faults.push(format!("the change at {position} is inconsistent: {data}"));
        }
        let Some(span) = self.spans.last_mut() else {
            self.faults.push(format!("the change at {position} arrived before a snapshot"));
            return;
        };
        if position <= span.through {
            self.faults.push(format!(
                "the change at {position} arrived twice or late: everything was received up to {}",
                span.through
            ));
        }
        if previous > span.through {
            self.faults.push(format!(
                "the change at {previous} is missing before {position}: everything was received up to {}",
                span.through
            ));
        }
        span.changes.push(position);
        span.through = position;
    }

    /// The position of a new snapshot may be lower than the last one. What was received beyond it is then void and is
    /// sent again.
    fn snapshot(&mut self, position: u64, data: &Value) {
        if let Some(last) = self.spans.last() {
            self.resets.push((last.through, position));
        }
        let version = data["view"]["version"].as_u64();
        self.spans.push(Span { since: position, version, changes: vec![], through: position });
    }

    fn advance_to(&mut self, position: u64) {
        if let Some(span) = self.spans.last_mut() {
            span.through = span.through.max(position);
        }
    }

    /// Returns the differences from what a channel with changes at these positions must deliver.
    fn differences(&self, channel: &str, expected: &[u64]) -> Vec<String> {
        let mut differences = self.faults.clone();
        for span in &self.spans {
            let due = |position: &&u64| **position > span.since && **position <= span.through;
            let due: Vec<u64> = expected.iter().filter(due).copied().collect();
            if span.changes != due {
                let missing: Vec<_> = due.iter().filter(|position| !span.changes.contains(position)).collect();
                let wrong: Vec<_> = span.changes.iter().filter(|position| !due.contains(position)).collect();
                differences.push(format!(
                    "after the snapshot at {}, received up to {}: missing {missing:?}, unexpected {wrong:?}",
                    span.since, span.through
                ));
            }
            let before = expected.iter().filter(|position| **position <= span.since).count() as u64;
            if channel.starts_with("order:") && span.version != Some(before) {
                differences
                    .push(format!("the snapshot at {} has version {:?}, not {before}", span.since, span.version));
            }
        }
        if self.through() < expected.last().copied().unwrap_or(0) {
            differences.push(format!("received only up to {}", self.through()));
        }
        differences
    }
}

/// Returns the position up to which a cursor covers everything in the checkpoint group of the built-in contexts. In
/// `2.EPOCH.core=7+NAME`, that is 7; of the events after 7, the cursor covers some.
pub fn cursor_position(cursor: &str) -> Option<u64> {
    cursor.split('.').find_map(|part| part.strip_prefix("core="))?.split('+').next()?.parse().ok()
}

type Channels = Arc<Mutex<HashMap<String, Received>>>;

/// A running listener; it ends when the value is dropped.
pub struct Listener {
    channels: Channels,
    task: JoinHandle<()>,
}

impl Drop for Listener {
    fn drop(&mut self) {
        self.task.abort();
    }
}

struct Run {
    transport: Transport,
    bases: Vec<String>,
    token: String,
    names: Vec<String>,
    channels: Channels,
    /// Time after which the listener leaves a connection itself.
    stay: Option<Duration>,
}

impl Listener {
    /// Starts to listen on the first of `bases`. Whenever a connection ends, the listener uses the next base.
    pub fn start(transport: Transport, bases: Vec<String>, token: &str, names: &[&str]) -> Self {
        Self::run(transport, bases, token, names, None)
    }

    /// Starts a listener that moves to the next of `bases` once it has stayed for `stay` and made progress, so that it
    /// resumes all the time.
    pub fn reconnecting(transport: Transport, bases: Vec<String>, token: &str, names: &[&str], stay: Duration) -> Self {
        Self::run(transport, bases, token, names, Some(stay))
    }

    fn run(transport: Transport, bases: Vec<String>, token: &str, names: &[&str], stay: Option<Duration>) -> Self {
        let channels: Channels = Arc::default();
        let names = names.iter().map(|name| (*name).to_owned()).collect();
        let run = Run { transport, bases, token: token.to_owned(), names, channels: channels.clone(), stay };
        Self { channels, task: tokio::spawn(run.forever()) }
    }

    /// Returns what the listener has received on a channel.
    pub fn received(&self, channel: &str) -> Received {
        self.channels.lock().expect("the lock is not poisoned").get(channel).cloned().unwrap_or_default()
    }

    /// Waits until the listener has a snapshot of every channel.
    ///
    /// # Panics
    /// If that takes longer than a minute.
    pub async fn listening(&self, channels: &[&str]) {
        let started = Instant::now();
        while channels.iter().any(|channel| self.received(channel).spans.is_empty()) {
            assert!(started.elapsed() < Duration::from_secs(60), "no snapshot of all of {channels:?} within a minute");
            tokio::time::sleep(POLL).await;
        }
    }

    /// Waits until the listener has received the last of `expected`, the positions of a channel's changes. Then checks
    /// that it received each change after its first snapshot once and in order, or in a later snapshot.
    ///
    /// # Panics
    /// With the differences.
    pub async fn expect_changes(&self, channel: &str, expected: &[u64], deadline: Duration) -> Received {
        self.try_expect_changes(channel, expected, deadline).await.unwrap_or_else(|difference| panic!("{difference}"))
    }

    /// Checks a channel as [`Self::expect_changes`] does, for callers that collect the differences of several
    /// listeners.
    ///
    /// # Errors
    /// The differences.
    pub async fn try_expect_changes(
        &self,
        channel: &str,
        expected: &[u64],
        deadline: Duration,
    ) -> Result<Received, String> {
        let started = Instant::now();
        let last = expected.last().copied().unwrap_or(0);
        while self.received(channel).through() < last && started.elapsed() < deadline {
            tokio::time::sleep(POLL).await;
        }
        let received = self.received(channel);
        let differences = received.differences(channel, expected);
        if differences.is_empty() { Ok(received) } else { Err(format!("{channel}: {}", differences.join("; "))) }
    }
}

impl Run {
    async fn forever(self) {
        let http = reqwest::Client::new();
        let mut cursor = None;
        let (mut pace, mut known) = (self.stay, 0);
        for base in self.bases.iter().cycle() {
            let connection = async {
                match self.transport {
                    Transport::Socket => drop(self.socket(base).await),
                    Transport::Stream => drop(self.stream(&http, base, &mut cursor).await),
                    Transport::Poll => while self.poll(&http, base, &mut cursor).await.is_some() {},
                }
            };
            let Some(stay) = pace else {
                connection.await;
                tokio::time::sleep(PAUSE).await;
                continue;
            };
            let _ = tokio::time::timeout(stay, connection).await;
            let now = self.channels.lock().expect("the lock is not poisoned").values().map(Received::through).sum();
            // A busy process may need longer for its first response.
            pace = if now == known { Some((stay * 2).min(STAY_MAX)) } else { self.stay };
            known = now;
            tokio::time::sleep(POLL).await;
        }
    }

    fn received(&self, channel: &str, what: impl FnOnce(&mut Received)) {
        what(self.channels.lock().expect("the lock is not poisoned").entry(channel.to_owned()).or_default());
    }

    /// Runs one connection until it ends.
    async fn socket(&self, base: &str) -> Option<()> {
        let (mut socket, _) = connect_async(format!("{}/ws", base.replacen("http", "ws", 1))).await.ok()?;
        let mut hello = json!({"id": 1, "connect": {"token": self.token}}).to_string();
        let mut by_id = HashMap::new();
        for (channel, id) in self.names.iter().zip(2..) {
            let known = self.channels.lock().expect("the lock is not poisoned").get(channel).cloned();
            let body = match known {
                None => json!({"channel": channel}),
                Some(received) => {
                    json!({"channel": channel, "recover": true, "offset": received.through(), "epoch": received.epoch})
                }
            };
            hello += &format!("\n{}", json!({"id": id, "subscribe": body}));
            by_id.insert(id, channel);
        }
        socket.send(Message::text(hello)).await.ok()?;
        loop {
            let frame = tokio::time::timeout(SILENCE, socket.next()).await.ok()??.ok()?;
            let Message::Text(text) = frame else { continue };
            for line in text.lines() {
                let line: Value = serde_json::from_str(line).ok()?;
                if line.as_object().is_some_and(serde_json::Map::is_empty) {
                    socket.send(Message::text("{}")).await.ok()?;
                }
                if line["error"].is_object() {
                    // The read models do not exist yet, or the database is unavailable.
                    return None;
                }
                if let Some(reply) = line.get("subscribe") {
                    let channel = by_id.get(&line["id"].as_u64()?)?;
                    let epoch = reply["epoch"].as_str()?.to_owned();
                    self.received(channel, |received| received.epoch = epoch);
                    let offset = reply["offset"].as_u64()?;
                    match reply["recovered"] == true {
                        true => {
                            for publication in reply["publications"].as_array()? {
                                self.publication(channel, publication)?;
                            }
                            self.received(channel, |received| received.advance_to(offset));
                        }
                        false => self.received(channel, |received| received.snapshot(offset, &reply["data"])),
                    }
                }
                if line["push"]["pub"].is_object() {
                    self.publication(line["push"]["channel"].as_str()?, &line["push"]["pub"])?;
                }
            }
        }
    }

    fn publication(&self, channel: &str, publication: &Value) -> Option<()> {
        let previous = publication["tags"]["prev"].as_str()?.parse().ok()?;
        let position = publication["offset"].as_u64()?;
        self.received(channel, |received| received.change(position, previous, &publication["data"]));
        Some(())
    }

    /// Records that a cursor covers all channels up to a position.
    fn advance_all_to(&self, cursor: &str) -> Option<()> {
        let position = cursor_position(cursor)?;
        let mut channels = self.channels.lock().expect("the lock is not poisoned");
        channels.values_mut().for_each(|received| received.advance_to(position));
        Some(())
    }

    fn query(&self) -> String {
        self.names.iter().map(|name| format!("channel={name}")).collect::<Vec<_>>().join("&")
    }

    fn event(&self, event: &Value) -> Option<()> {
        let Some(channel) = event["channel"].as_str() else { return Some(()) };
        match event["event"].as_str()? {
            "snapshot" => {
                let position = event["data"]["position"].as_u64()?;
                self.received(channel, |received| received.snapshot(position, &event["data"]));
            }
            "pub" => {
                let (position, previous) = (event["offset"].as_u64()?, event["prev"].as_u64()?);
                self.received(channel, |received| received.change(position, previous, &event["data"]));
            }
            _ => {}
        }
        Some(())
    }

    /// Runs one event stream until it ends. An event that is cut in the middle is lost, because its id was not
    /// received.
    async fn stream(&self, http: &reqwest::Client, base: &str, cursor: &mut Option<String>) -> Option<()> {
        let mut request = http.get(format!("{base}/v1/live?{}", self.query())).bearer_auth(&self.token);
        if let Some(id) = &*cursor {
            request = request.header("last-event-id", id);
        }
        let answer = request.send().await.ok()?.error_for_status().ok()?;
        let mut body = answer.bytes_stream();
        let mut text = String::new();
        // A change without an id is not recorded yet: the next connection sends it again.
        let mut unconfirmed = Vec::new();
        while let Some(Ok(bytes)) = tokio::time::timeout(SILENCE, body.next()).await.ok()? {
            text.push_str(std::str::from_utf8(&bytes).ok()?);
            while let Some((event, rest)) = text.split_once("\n\n") {
                let field = |name: &str| event.lines().find_map(|line| line.strip_prefix(name)).map(str::to_owned);
                unconfirmed.extend(field("data: "));
                if let Some(id) = field("id: ") {
                    for data in unconfirmed.drain(..) {
                        self.event(&serde_json::from_str(&data).ok()?)?;
                    }
                    self.advance_all_to(&id)?;
                    *cursor = Some(id);
                }
                text = rest.to_owned();
            }
        }
        Some(())
    }

    async fn poll(&self, http: &reqwest::Client, base: &str, cursor: &mut Option<String>) -> Option<()> {
        let from = cursor.as_ref().map(|cursor| format!("&cursor={cursor}")).unwrap_or_default();
        let url = format!("{base}/v1/poll?{}&wait=5{from}", self.query());
        let request = http.get(url).bearer_auth(&self.token).timeout(SILENCE);
        let answer: Value = request.send().await.ok()?.error_for_status().ok()?.json().await.ok()?;
        answer["events"].as_array()?.iter().try_for_each(|event| self.event(event))?;
        let next = answer["cursor"].as_str()?;
        self.advance_all_to(next)?;
        *cursor = Some(next.to_owned());
        Some(())
    }
}
