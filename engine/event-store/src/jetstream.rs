//! JetStream as transport: the relay that writes the stream, and the reading end.
//!
//! Sequence equals position. The stream is dedicated, only the relay writes it, and each message is published with
//! `Nats-Expected-Last-Sequence: position-1`, so the server itself refuses whatever would break the order. The protocol
//! needs no lock: of two relays at once one is refused and goes back to the stream's tail. See NATS ADR-8 and the
//! JetStream publish headers for the meaning of the two headers.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use async_nats::jetstream::consumer::pull::OrderedConfig;
use async_nats::jetstream::consumer::{DeliverPolicy, pull};
use async_nats::jetstream::{self, message::PublishMessage, stream};
use async_nats::{ConnectOptions, HeaderMap, ToServerAddrs, header};
use futures::StreamExt;
use opentelemetry::KeyValue;
use opentelemetry::trace::SpanKind;
use percent_encoding::percent_decode_str;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::error::Error;
use crate::event::RecordedEvent;
use crate::log::Log;
use crate::metrics::METRICS;
use crate::settings::Settings;
use crate::tail::Tail;
use crate::trace::{self, Span};

/// Messages that are sent before an answer is waited for.
const RELAY_WINDOW: i64 = 512;
/// How often an idle relay looks for events of writers that cannot wake it.
const RELAY_POLL: Duration = Duration::from_millis(200);
/// Pause after a window that was not full.
const RELAY_GATHER: Duration = Duration::from_millis(5);
/// How long a failed relay or reader waits before it tries again.
pub(crate) const RETRY: Duration = Duration::from_millis(300);
/// How often a relay that fails again and again says why.
const SAY_EVERY: Duration = Duration::from_secs(30);
/// How long NATS may take to say whether there is a stream.
const REMOVED_WITHIN: Duration = Duration::from_secs(5);
/// How long NATS may take to answer a check of the settings.
const CHECKED_WITHIN: Duration = Duration::from_secs(5);
/// First server whose streams can begin at a given sequence; older ones ignore the wish in silence.
const SERVER_MIN: (u32, u32) = (2, 10);
/// Which log a stream belongs to, in the stream's metadata.
const INCARNATION: &str = "docket_incarnation";

/// The connection to NATS and the one stream on it.
#[derive(Clone)]
pub(crate) struct Bus {
    client: async_nats::Client,
    context: jetstream::Context,
    stream: String,
    bytes_max: i64,
    replicas: usize,
    incarnation: String,
    /// Why the relay cannot publish, as long as it cannot.
    trouble: Arc<Mutex<Option<String>>>,
}

impl Bus {
    /// Connects. A server that is away is no failure: commands and queries do without it, and the connection is retried
    /// for ever. A server that is too old is refused.
    pub(crate) async fn connect(settings: &Settings, incarnation: String) -> Result<Self, Error> {
        let urls = settings.nats_urls().collect::<Vec<_>>();
        let client = with_credentials(&urls)?
            .name("docket")
            .retry_on_initial_connect()
            .connection_timeout(Duration::from_secs(5))
            .request_timeout(Some(Duration::from_secs(5)))
            .reconnect_delay_callback(|attempts| Duration::from_millis(50 * attempts.min(20) as u64))
            .connect(&urls[..])
            .await
            .map_err(|e| Error::Settings(format!("nats_url: {e}")))?;
        let context = jetstream::context::ContextBuilder::new()
            .timeout(Duration::from_secs(5))
            .ack_timeout(Duration::from_secs(5))
            .build(client.clone());
        let bus = Self {
            client,
            context,
            stream: settings.nats_stream.clone(),
            bytes_max: settings.nats_stream_bytes_max,
            replicas: settings.nats_replicas,
            incarnation,
            trouble: Arc::default(),
        };
        match tokio::time::timeout(Duration::from_secs(3), bus.client.flush()).await {
            Ok(Ok(())) => bus.check_version()?,
            _ => {
                let servers: Vec<_> = urls.iter().filter_map(|url| url.rsplit(['@', '/']).next()).collect();
                tracing::warn!(?servers, "NATS is away: going on without it, projections read the log");
            }
        }
        Ok(bus)
    }

    /// Makes sure that a server with JetStream answers.
    pub(crate) async fn check(&self) -> Result<(), Error> {
        let away = |_| Error::Nats("no server of nats_url answers".to_owned());
        tokio::time::timeout(CHECKED_WITHIN, self.client.flush()).await.map_err(away)?.map_err(nats)?;
        self.check_version()?;
        let account = tokio::time::timeout(CHECKED_WITHIN, self.context.query_account()).await.map_err(away)?;
        account.map(drop).map_err(|error| Error::Nats(format!("JetStream does not answer: {error}")))
    }

    /// Why events do not get into the stream, if they do not.
    pub(crate) fn trouble(&self) -> Option<String> {
        if !self.is_connected() {
            return Some("not connected".to_owned());
        }
        self.trouble.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn in_trouble(&self, why: Option<String>) {
        *self.trouble.lock().unwrap_or_else(PoisonError::into_inner) = why;
    }

    /// It is for another process to publish.
    pub(crate) fn out_of_trouble(&self) {
        self.in_trouble(None);
    }

    /// Whether the connection stands.
    pub(crate) fn is_connected(&self) -> bool {
        self.client.connection_state() == async_nats::connection::State::Connected
    }

    fn check_version(&self) -> Result<(), Error> {
        check_version(&self.client.server_info().version)
    }

    /// The stream, made if it is not there: a new one begins after what the log holds, and readers take the rest from
    /// the log.
    async fn stream(&self, head: i64) -> Result<stream::Stream, Error> {
        self.check_version()?;
        let found = match self.context.get_stream(&self.stream).await {
            Ok(found) => found,
            Err(_) => {
                let first = head as u64 + 1;
                let made = self
                    .context
                    .create_stream(stream::Config {
                        name: self.stream.clone(),
                        subjects: vec![format!("{}.events.>", self.stream)],
                        max_bytes: self.bytes_max,
                        num_replicas: self.replicas,
                        discard: stream::DiscardPolicy::Old,
                        first_sequence: (first > 1).then_some(first),
                        allow_direct: true,
                        metadata: [(INCARNATION.to_owned(), self.incarnation.clone())].into(),
                        ..Default::default()
                    })
                    .await
                    .map_err(nats)?;
                if first > 1 && made.cached_info().config.first_sequence != Some(first) {
                    return Err(Error::Settings(
                        "the NATS server ignores first_seq: docket needs nats-server 2.10 or newer".into(),
                    ));
                }
                tracing::info!(stream = self.stream, first, "the stream is made");
                made
            }
        };
        match found.cached_info().config.metadata.get(INCARNATION) {
            Some(owner) if *owner == self.incarnation => self.with_replicas(found).await,
            _ => Err(Error::Settings(format!(
                "the JetStream stream `{0}` belongs to another store: give this store its own name in nats_stream, or, \
                 where that other store is gone or is what this one was before it was restored, delete the stream \
                 (`nats stream rm {0}`)",
                self.stream
            ))),
        }
    }

    /// Gives the stream as many replicas as the settings say.
    async fn with_replicas(&self, stream: stream::Stream) -> Result<stream::Stream, Error> {
        let config = stream.cached_info().config.clone();
        if config.num_replicas == self.replicas {
            return Ok(stream);
        }
        let config = stream::Config { num_replicas: self.replicas, ..config };
        self.context.update_stream(config).await.map_err(nats)?;
        self.context.get_stream(&self.stream).await.map_err(nats)
    }

    /// Removes the stream, if there is one and it is this log's, or `of_anybody`; whether it was there.
    pub(crate) async fn remove(&self, of_anybody: bool) -> Result<bool, Error> {
        let away = |_| Error::Nats("no answer".to_owned());
        let found = tokio::time::timeout(REMOVED_WITHIN, self.context.get_stream(&self.stream)).await.map_err(away)?;
        match found {
            Ok(found)
                if of_anybody || found.cached_info().config.metadata.get(INCARNATION) == Some(&self.incarnation) =>
            {
                self.context.delete_stream(&self.stream).await.map_err(nats)?;
                Ok(true)
            }
            Ok(_) => Err(Error::Settings(format!(
                "a JetStream stream `{}` of another incarnation is there. If it is of this store, which was restored before, run \
                 `docket events restored --delete-stream`; if it is another store's, give this one its own name in nats_stream",
                self.stream
            ))),
            Err(error) if error.to_string().contains("stream not found") => Ok(false),
            Err(error) => Err(nats(error)),
        }
    }

    /// Reads the stream from a position on.
    pub(crate) async fn messages(&self, from: i64) -> Result<pull::Ordered, Error> {
        self.check_version()?;
        let stream = self.context.get_stream(&self.stream).await.map_err(nats)?;
        let owner = stream.cached_info().config.metadata.get(INCARNATION);
        if owner != Some(&self.incarnation) {
            return Err(Error::Nats(format!("the stream `{}` belongs to another store", self.stream)));
        }
        let consumer = stream
            .create_consumer(OrderedConfig {
                deliver_policy: DeliverPolicy::ByStartSequence { start_sequence: from as u64 },
                ..Default::default()
            })
            .await
            .map_err(nats)?;
        consumer.messages().await.map_err(nats)
    }

    /// Tells the other processes something that may be lost. It reaches this process as well.
    pub(crate) async fn broadcast(&self, topic: &str, message: Vec<u8>) {
        let subject = self.notice_subject(topic);
        if self.is_connected()
            && let Err(error) = self.client.publish(subject, message.into()).await
        {
            tracing::debug!(%error, topic, "not told");
        }
    }

    /// Two stores may have one NATS, and a name of their streams that is not decided yet: neither hears the other.
    fn notice_subject(&self, topic: &str) -> String {
        format!("{}.hint.{}.{topic}", self.stream, self.incarnation)
    }

    /// What processes tell under a topic.
    pub(crate) async fn listen(&self, topic: &str) -> Result<impl futures::Stream<Item = Vec<u8>> + use<>, Error> {
        let subscription = self.client.subscribe(self.notice_subject(topic)).await.map_err(nats)?;
        Ok(subscription.map(|message| message.payload.into()))
    }

    /// Publishes the log to the stream, for ever. Everything it knows it reads from the stream's own tail, so a crash
    /// between commit and publish loses nothing.
    pub(crate) async fn relay(&self, log: &Log, end: &Tail, head: watch::Receiver<i64>, stop: &CancellationToken) {
        let mut said = None;
        while !stop.is_cancelled() {
            let outcome = tokio::select! {
                outcome = self.relay_from_tail(log, end, head.clone()) => outcome,
                () = stop.cancelled() => return,
            };
            if let Err(error) = outcome {
                METRICS.relay_failures.add(1, &[]);
                // Not with every try.
                if said.is_none_or(|at: Instant| at.elapsed() >= SAY_EVERY) {
                    said = Some(Instant::now());
                    tracing::warn!(%error, "relay: going back to the stream's tail");
                }
                // A database that is away is told of by its own check.
                if !matches!(error, Error::Database(_)) {
                    self.in_trouble(Some(error.to_string()));
                }
                tokio::time::sleep(RETRY).await;
            }
        }
    }

    /// Finds where the stream ends, makes sure that it ends in our event, and goes on from there until something fails.
    async fn relay_from_tail(&self, log: &Log, end: &Tail, mut head: watch::Receiver<i64>) -> Result<(), Error> {
        let (log_head, _) = log.head().await?;
        let stream = self.stream(log_head).await?;
        let mut tail = stream.cached_info().state.last_sequence as i64;
        METRICS.stream_position.record(tail, &[]);
        if tail > log_head {
            return Err(Error::Stored(format!(
                "the stream `{}` is at {tail}, beyond the log's head {log_head}: the log was restored; stop the servers and \
                 run `docket events restored`, which deletes the stream",
                self.stream
            )));
        }
        self.check_tail(&stream, log, tail).await?;
        self.in_trouble(None);
        loop {
            let events = match end.after(tail, RELAY_WINDOW as usize) {
                Some(events) => events,
                None => log.read(tail, RELAY_WINDOW).await?,
            };
            if events.is_empty() {
                // A timeout is the poll for writers that cannot wake us; a closed sender only means shutdown.
                let _ = tokio::time::timeout(RELAY_POLL, head.changed()).await;
                continue;
            }
            tail = self.publish(&events, tail).await?;
            METRICS.relay_published.add(events.len() as u64, &[]);
            METRICS.relay_position.record(tail, &[]);
            METRICS.stream_position.record(tail, &[]);
            if events.len() < RELAY_WINDOW as usize {
                // Each look into the log costs a query: a busy log is taken in larger pieces.
                tokio::time::sleep(RELAY_GATHER).await;
            }
        }
    }

    /// The message at the tail must be the log's event of that position: after a wrong-last-sequence this tells "we
    /// sent it before" from "somebody else writes here".
    async fn check_tail(&self, stream: &stream::Stream, log: &Log, tail: i64) -> Result<(), Error> {
        let info = &stream.cached_info().state;
        if tail == 0 || info.messages == 0 {
            return Ok(());
        }
        let message = stream.get_raw_message(tail as u64).await.map_err(nats)?;
        let sent = message.headers.get(header::NATS_MESSAGE_ID).map(ToString::to_string);
        let ours = log.read(tail - 1, 1).await?.first().map(RecordedEvent::id);
        if sent == ours {
            return Ok(());
        }
        Err(Error::Stored(format!(
            "position {tail} of the stream `{}` is event {}, in the log it is {}: the log was restored or replaced, or \
             somebody else writes to the stream; stop the servers and run `docket events restored`, which deletes the stream",
            self.stream,
            sent.as_deref().unwrap_or("none of ours"),
            ours.as_deref().unwrap_or("none")
        )))
    }

    /// Sends a window of events and waits for the answer to the last one only: each is refused unless the one before it
    /// was stored, so the last one's answer speaks for all. Gives the new tail.
    async fn publish(&self, events: &[RecordedEvent], tail: i64) -> Result<i64, Error> {
        let Some((last, before)) = events.split_last() else { return Ok(tail) };
        for event in before {
            let (subject, headers, payload, _span) = self.message(event)?;
            self.client.publish_with_headers(subject, headers, payload).await.map_err(nats)?;
        }
        let (subject, headers, payload, _span) = self.message(last)?;
        let message = PublishMessage::build().headers(headers).payload(payload);
        let ack = self.context.send_publish(subject, message).await.map_err(nats)?.await.map_err(nats)?;
        if ack.sequence as i64 != last.position {
            return Err(Error::Nats(format!("event {} was stored at sequence {}", last.position, ack.sequence)));
        }
        Ok(last.position)
    }

    /// The message of an event, and its span, where the event's request is traced.
    fn message(&self, event: &RecordedEvent) -> Result<(String, HeaderMap, bytes::Bytes, Option<Span>), Error> {
        let payload = event.to_message().map_err(|e| Error::Stored(format!("event {}: {e}", event.position)))?;
        let mut headers = HeaderMap::new();
        headers.insert(header::NATS_MESSAGE_ID, event.id());
        headers.insert(header::NATS_EXPECTED_LAST_SEQUENCE, (event.position - 1).to_string());
        if let Some(id) = event.metadata_text("request_id") {
            headers.insert("X-Request-Id", id);
        }
        let subject = format!("{}.events.{}.{}", self.stream, event.aggregate_type, event.event_type);
        let span = trace::of_event("publish", SpanKind::Producer, event);
        if let Some(span) = &span {
            let system = KeyValue::new("messaging.system", "nats");
            span.describe([system, KeyValue::new("messaging.destination.name", subject.clone())]);
            trace::inject(span, &mut headers);
        }
        Ok((subject, headers, payload.into(), span))
    }
}

/// User and password, or a token, that stand in the URL: the client does not look there itself.
fn with_credentials(urls: &[&str]) -> Result<ConnectOptions, Error> {
    let options = ConnectOptions::new();
    let addresses = urls.to_server_addrs().map_err(|e| Error::Settings(format!("nats_url: {e}")))?;
    let decoded = |text: &str| percent_decode_str(text).decode_utf8_lossy().into_owned();
    for address in addresses {
        match (address.username(), address.password()) {
            (Some(user), Some(password)) => return Ok(options.user_and_password(decoded(user), decoded(password))),
            (Some(token), None) => return Ok(options.token(decoded(token))),
            _ => {}
        }
    }
    Ok(options)
}

fn nats(error: impl std::fmt::Display) -> Error {
    Error::Nats(error.to_string())
}

fn check_version(version: &str) -> Result<(), Error> {
    let mut parts = version.split(['.', '-']).map(|part| part.parse::<u32>().unwrap_or(0));
    let found = (parts.next().unwrap_or(0), parts.next().unwrap_or(0));
    if version.is_empty() || found >= SERVER_MIN {
        return Ok(());
    }
    Err(Error::Settings(format!(
        "nats-server {version} is too old: docket needs 2.10 or newer (older ones ignore first_seq, and a recreated \
         stream would give events other positions)"
    )))
}

#[cfg(test)]
mod tests {
    use super::*;

    use kernel::stream::StreamId;

    use crate::append::{Append, StreamWrite};
    use crate::event::NewEvent;
    use crate::migrations::Migrations;
    use crate::plan::Lineages;
    use crate::subscription::{Pace, Subscription};

    #[test]
    fn servers_before_2_10_are_refused() {
        assert!(check_version("2.9.25").unwrap_err().to_string().contains("2.9.25 is too old"));
        for version in ["2.10.0", "2.15.1", "3.0.0-beta.1", ""] {
            assert!(check_version(version).is_ok(), "{version}");
        }
    }

    /// A log in SQLite and a real server: the protocol does not care which database is behind it.
    struct Rig {
        log: Log,
        nats: ::tests::nats::Nats,
        settings: Settings,
        head: watch::Sender<i64>,
        stop: CancellationToken,
        _folder: tempfile::TempDir,
    }

    impl Rig {
        async fn new() -> Self {
            let folder = tempfile::tempdir().unwrap();
            let nats = ::tests::nats::Nats::start().await;
            let settings = Settings {
                database_url: format!("sqlite:{}", folder.path().join("log.db").display()),
                nats_url: nats.url(),
                ..Settings::default()
            };
            let (log, db) = Log::open(&settings, Default::default(), crate::sqlite::Access::Owner).await.unwrap();
            log.migrate(&db, Migrations::of_repository()).await.unwrap();
            Self { log, nats, settings, head: watch::channel(0).0, stop: CancellationToken::new(), _folder: folder }
        }

        async fn bus(&self) -> Bus {
            Bus::connect(&self.settings, "one".into()).await.unwrap()
        }

        async fn append(&self, count: usize) {
            let (head, _) = self.log.head().await.unwrap();
            let event = |n: usize| NewEvent {
                event_type: "E",
                event_version: "1",
                payload: "{}".into(),
                metadata: format!(r#"{{"event_id":"e-{}"}}"#, head as usize + n),
            };
            let (stream, events) = (StreamId::new("t", &format!("a-{head}")), (1..=count).map(event).collect());
            let write = StreamWrite { stream, expected_version: 0, events, lineage: None };
            let append = Append { writes: vec![write], ..Append::default() };
            let committed = self.log.append(&[&append], &Lineages::default()).await.unwrap();
            self.head.send_replace(committed.head);
        }

        fn relay(&self, bus: Bus) {
            let (log, head, stop) = (self.log.clone(), self.head.subscribe(), self.stop.clone());
            tokio::spawn(async move { bus.relay(&log, &Tail::default(), head, &stop).await });
        }

        /// Waits until the stream ends at a position, then checks that what it holds is the log, each event once.
        async fn holds_the_log(&self, from: u64, to: u64) {
            let context = self.nats.jetstream().await;
            for _ in 0..200 {
                if let Ok(stream) = context.get_stream("docket").await
                    && stream.cached_info().state.last_sequence == to
                {
                    let state = &stream.cached_info().state;
                    assert_eq!((state.first_sequence, state.messages), (from, to + 1 - from));
                    for sequence in from..=to {
                        let message = stream.get_raw_message(sequence).await.unwrap();
                        let event = RecordedEvent::from_message(&message.payload).unwrap();
                        assert_eq!((event.position, event.id()), (sequence as i64, format!("e-{sequence}")));
                    }
                    return;
                }
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
            panic!("the stream does not end at {to}");
        }
    }

    impl Drop for Rig {
        fn drop(&mut self) {
            self.stop.cancel();
        }
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn two_relays_at_once_publish_each_event_once() {
        let rig = Rig::new().await;
        // Made before the first event, or it would begin after it.
        rig.bus().await.stream(0).await.unwrap();
        rig.relay(rig.bus().await);
        rig.relay(rig.bus().await);
        for _ in 0..50 {
            rig.append(7).await;
        }
        rig.holds_the_log(1, 350).await;
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn an_event_that_was_sent_before_a_crash_is_not_sent_again() {
        let rig = Rig::new().await;
        rig.append(3).await;
        let bus = rig.bus().await;
        let events = rig.log.read(0, 10).await.unwrap();
        bus.stream(0).await.unwrap();
        assert_eq!(bus.publish(&events[..2], 0).await.unwrap(), 2);
        // Sent, but its sender died before it knew.
        bus.publish(&events[2..], 2).await.unwrap();
        rig.relay(rig.bus().await);
        rig.append(2).await;
        rig.holds_the_log(1, 5).await;
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn a_lost_tail_is_sent_again() {
        let rig = Rig::new().await;
        let bus = rig.bus().await;
        rig.append(5).await;
        bus.stream(0).await.unwrap();
        // What a crashed server may do: it acknowledged five events and comes back with three.
        let events = rig.log.read(0, 3).await.unwrap();
        bus.publish(&events, 0).await.unwrap();
        let later = [RecordedEvent { position: 5, ..rig.log.read(4, 1).await.unwrap().remove(0) }];
        assert!(bus.publish(&later, 4).await.is_err(), "the server refuses what does not follow its tail");
        rig.relay(rig.bus().await);
        rig.holds_the_log(1, 5).await;
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn a_deleted_stream_begins_again_after_the_head() {
        let rig = Rig::new().await;
        rig.bus().await.stream(0).await.unwrap();
        rig.relay(rig.bus().await);
        rig.append(4).await;
        rig.holds_the_log(1, 4).await;
        rig.nats.jetstream().await.delete_stream("docket").await.unwrap();
        rig.append(2).await;
        rig.append(1).await;
        let context = rig.nats.jetstream().await;
        let first = loop {
            match context.get_stream("docket").await {
                Ok(stream) if stream.cached_info().state.first_sequence > 4 => {
                    break stream.cached_info().state.first_sequence;
                }
                _ => tokio::time::sleep(Duration::from_millis(50)).await,
            }
        };
        rig.append(2).await;
        rig.holds_the_log(first, 9).await;
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn a_stream_of_another_store_is_left_alone() {
        let rig = Rig::new().await;
        rig.append(1).await;
        let other = Bus::connect(&rig.settings, "another".into()).await.unwrap();
        other.stream(0).await.unwrap();
        let refused = rig.bus().await.stream(0).await.map(|_| ()).unwrap_err().to_string();
        assert!(refused.contains("belongs to another store"), "{refused}");
    }

    /// The stream of before the log was restored, which has grown since.
    #[tokio::test(flavor = "multi_thread")]
    async fn what_the_stream_says_and_the_log_does_not_is_not_read() {
        let rig = Rig::new().await;
        rig.append(5).await;
        let bus = rig.bus().await;
        bus.stream(0).await.unwrap();
        let lost = |mut event: RecordedEvent| {
            event.metadata = event.metadata.replace("e-", "lost-");
            event
        };
        let mut events = rig.log.read(0, 5).await.unwrap();
        let after: Vec<_> = events.split_off(3).into_iter().map(lost).collect();
        bus.publish(&events, 0).await.unwrap();
        bus.publish(&after, 3).await.unwrap();
        for from in [0, 3] {
            let (log, head) = (rig.log.clone(), rig.head.subscribe());
            let mut reader = Subscription::new(log, Tail::default(), Some(rig.bus().await), head, from, Pace::Gathered);
            // As after a pause: the log is read first, so the stream is asked for what follows.
            reader.follow_stream_from(from).await;
            let mut ids = Vec::new();
            while ids.len() < 5 - from as usize {
                ids.extend(reader.next().await.unwrap().iter().map(RecordedEvent::id));
            }
            assert_eq!(ids, (from + 1..=5).map(|n| format!("e-{n}")).collect::<Vec<_>>());
        }
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn a_foreign_message_in_the_stream_stops_the_relay() {
        let rig = Rig::new().await;
        rig.append(1).await;
        let bus = rig.bus().await;
        bus.stream(0).await.unwrap();
        rig.nats.jetstream().await.publish("docket.events.x.y", "not ours".into()).await.unwrap().await.unwrap();
        let head = rig.head.subscribe();
        let refused = bus.relay_from_tail(&rig.log, &Tail::default(), head).await.unwrap_err().to_string();
        assert!(refused.contains("docket events restored"), "{refused}");
    }
}
