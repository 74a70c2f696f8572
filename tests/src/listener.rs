//! Listeners that come back: each follows its channels over a socket, a stream of events or polls, on one process after
//! the other, and remembers what it was told.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use futures::{SinkExt, StreamExt};
use serde_json::{Value, json};
use tokio::task::JoinHandle;
use tokio_tungstenite::connect_async;
use tokio_tungstenite::tungstenite::Message;

use crate::process::POLL;

/// Before a listener comes back.
const PAUSE: Duration = Duration::from_millis(200);
/// A silence after which a listener gives its connection up.
const SILENCE: Duration = Duration::from_secs(30);

/// How a listener listens.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Transport {
    /// `/ws`, a subscription a channel.
    Socket,
    /// `/v1/live`.
    Stream,
    /// `/v1/poll`.
    Poll,
}

/// What a listener was told of one channel.
#[derive(Debug, Clone, Default)]
pub struct Told {
    /// The log's incarnation, where the transport names it.
    pub epoch: String,
    /// Position of the first snapshot.
    pub since: u64,
    /// Position up to which everything is known.
    pub through: u64,
    /// Positions of the changes, as they came.
    pub changes: Vec<u64>,
    /// Gaps that a fresh snapshot filled: after one position, up to another one.
    pub resets: Vec<(u64, u64)>,
    /// What must not happen.
    pub faults: Vec<String>,
}

impl Told {
    fn change(&mut self, position: u64, previous: u64) {
        if position <= self.through {
            self.faults.push(format!("{position} came again, or late: known up to {}", self.through));
        }
        if previous > self.through {
            self.faults.push(format!("{previous} is missing before {position}: known up to {}", self.through));
        }
        self.changes.push(position);
        self.through = position;
    }

    fn snapshot(&mut self, position: u64) {
        match self.since {
            0 => self.since = position.max(1),
            _ => self.resets.push((self.through, position)),
        }
        self.through = self.through.max(position);
    }
}

type Channels = Arc<Mutex<HashMap<String, Told>>>;

/// A running listener; ends when dropped.
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
}

impl Listener {
    /// Starts to listen on the first of `bases`; whenever that ends, on the next.
    pub fn start(transport: Transport, bases: Vec<String>, token: &str, names: &[&str]) -> Self {
        let channels: Channels = Arc::default();
        let names = names.iter().map(|name| (*name).to_owned()).collect();
        let run = Run { transport, bases, token: token.to_owned(), names, channels: channels.clone() };
        Self { channels, task: tokio::spawn(run.forever()) }
    }

    /// What it was told of a channel so far.
    pub fn told(&self, channel: &str) -> Told {
        self.channels.lock().expect("not poisoned").get(channel).cloned().unwrap_or_default()
    }

    /// Waits until it has a snapshot of every channel.
    ///
    /// # Panics
    /// If that takes longer than a minute.
    pub async fn listening(&self, channels: &[&str]) {
        let started = Instant::now();
        while channels.iter().any(|channel| self.told(channel).since == 0) {
            assert!(started.elapsed() < Duration::from_secs(60), "no snapshot of {channels:?} in a minute");
            tokio::time::sleep(POLL).await;
        }
    }

    /// Waits until it was told of the last of `expected`, positions of a channel's changes; then demands that it was told
    /// of each that follows its first snapshot, once and in order, or had it in a fresh snapshot.
    ///
    /// # Panics
    /// With what it was told.
    pub async fn ends_with(&self, channel: &str, expected: &[u64], deadline: Duration) -> Told {
        let started = Instant::now();
        let last = expected.last().copied().unwrap_or(0);
        while self.told(channel).through < last && started.elapsed() < deadline {
            tokio::time::sleep(POLL).await;
        }
        let told = self.told(channel);
        let in_a_reset = |position: u64| told.resets.iter().any(|(after, to)| (after + 1..=*to).contains(&position));
        let expected: Vec<_> =
            expected.iter().copied().filter(|position| *position > told.since && !in_a_reset(*position)).collect();
        // The first snapshot of an empty log is at 0, and is remembered as 1.
        let changes: Vec<_> = told.changes.iter().copied().filter(|position| *position > told.since).collect();
        assert_eq!(changes, expected, "{channel}: {:?}", (told.since, told.through, &told.resets));
        assert_eq!(told.faults, Vec::<String>::new(), "{channel}");
        told
    }
}

impl Run {
    async fn forever(self) {
        let http = reqwest::Client::new();
        let mut cursor = None;
        for base in self.bases.iter().cycle() {
            match self.transport {
                Transport::Socket => drop(self.socket(base).await),
                Transport::Stream => drop(self.stream(&http, base, &mut cursor).await),
                Transport::Poll => while self.poll(&http, base, &mut cursor).await.is_some() {},
            }
            tokio::time::sleep(PAUSE).await;
        }
    }

    fn told(&self, channel: &str, what: impl FnOnce(&mut Told)) {
        what(self.channels.lock().expect("not poisoned").entry(channel.to_owned()).or_default());
    }

    /// One connection, to its end.
    async fn socket(&self, base: &str) -> Option<()> {
        let (mut socket, _) = connect_async(format!("{}/ws", base.replacen("http", "ws", 1))).await.ok()?;
        let mut hello = json!({"id": 1, "connect": {"token": self.token}}).to_string();
        let mut by_id = HashMap::new();
        for (channel, id) in self.names.iter().zip(2..) {
            let known = self.channels.lock().expect("not poisoned").get(channel).cloned();
            let body = match known {
                None => json!({"channel": channel}),
                Some(Told { through, epoch, .. }) => {
                    json!({"channel": channel, "recover": true, "offset": through, "epoch": epoch})
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
                    // The read models are not there yet, or the database is away.
                    return None;
                }
                if let Some(reply) = line.get("subscribe") {
                    let channel = by_id.get(&line["id"].as_u64()?)?;
                    let epoch = reply["epoch"].as_str()?.to_owned();
                    self.told(channel, |told| told.epoch = epoch);
                    let offset = reply["offset"].as_u64()?;
                    match reply["recovered"] == true {
                        true => {
                            for publication in reply["publications"].as_array()? {
                                self.publication(channel, publication)?;
                            }
                            self.told(channel, |told| told.through = told.through.max(offset));
                        }
                        false => self.told(channel, |told| told.snapshot(offset)),
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
        self.told(channel, |told| told.change(position, previous));
        Some(())
    }

    /// A cursor says how far all channels are known.
    fn known_through(&self, cursor: &str) -> Option<()> {
        // `7+2`: of what follows 7, some is known.
        let position = cursor.split_once('.')?.0.split('+').next()?.parse().ok()?;
        let mut channels = self.channels.lock().expect("not poisoned");
        channels.values_mut().for_each(|told| told.through = told.through.max(position));
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
                self.told(channel, |told| told.snapshot(position));
            }
            "pub" => {
                let (position, previous) = (event["offset"].as_u64()?, event["prev"].as_u64()?);
                self.told(channel, |told| told.change(position, previous));
            }
            _ => {}
        }
        Some(())
    }

    /// One stream, to its end. A cut in the middle of an event loses it: its id was not there.
    async fn stream(&self, http: &reqwest::Client, base: &str, cursor: &mut Option<String>) -> Option<()> {
        let mut request = http.get(format!("{base}/v1/live?{}", self.query())).bearer_auth(&self.token);
        if let Some(id) = &*cursor {
            request = request.header("last-event-id", id);
        }
        let answer = request.send().await.ok()?.error_for_status().ok()?;
        let mut body = answer.bytes_stream();
        let mut text = String::new();
        // A change without an id is not known yet: the next connection tells it again.
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
                    self.known_through(&id)?;
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
        self.known_through(next)?;
        *cursor = Some(next.to_owned());
        Some(())
    }
}
