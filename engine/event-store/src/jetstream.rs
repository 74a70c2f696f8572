//! NATS JetStream as transport of events: the relay publishes the log to a JetStream stream, and readers consume it.
//!
//! The sequence of a message equals the position of its event. The stream is dedicated: only the relay writes to it.
//! Each message is published with `Nats-Expected-Last-Sequence: position-1`, so the NATS server refuses every message
//! that would break the order. The protocol needs no lock: when two relays run at once, the server refuses the messages
//! of one of them, and that relay starts again from the end of the stream. For the headers
//! `Nats-Expected-Last-Sequence` and `Nats-Msg-Id` see NATS ADR-8 and the JetStream documentation of publish headers.

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
use crate::recent_events::RecentEvents;
use crate::settings::Settings;
use crate::trace::{self, Span};

/// Number of messages that are sent before the relay waits for an acknowledgement.
const RELAY_WINDOW: i64 = 512;
/// Interval at which an idle relay reads the log, to find events of writers that cannot wake it.
const RELAY_POLL: Duration = Duration::from_millis(200);
/// Pause after a window that was not full.
const RELAY_PAUSE: Duration = Duration::from_millis(5);
/// Pause before a failed relay or reader tries again.
pub(crate) const RETRY: Duration = Duration::from_millis(300);
/// Minimum interval between two log lines about a relay that keeps failing.
const LOG_INTERVAL: Duration = Duration::from_secs(30);
/// Maximum time for NATS to answer whether the stream exists, before it is removed.
const REMOVED_WITHIN: Duration = Duration::from_secs(5);
/// Maximum time for NATS to answer each request of a settings check.
const CHECKED_WITHIN: Duration = Duration::from_secs(5);
/// First NATS server version whose streams can start at a given sequence. Older servers silently ignore `first_seq`.
const SERVER_MIN: (u32, u32) = (2, 10);
/// Key of the stream's metadata that holds the incarnation of the log to which the stream belongs.
const INCARNATION_KEY: &str = "docket_incarnation";

/// The connection to NATS and its JetStream stream.
#[derive(Clone)]
pub(crate) struct Bus {
    client: async_nats::Client,
    context: jetstream::Context,
    stream: String,
    bytes_max: i64,
    replicas: usize,
    incarnation: String,
    /// Reason why the relay cannot publish; `None` while it can.
    problem: Arc<Mutex<Option<String>>>,
}

impl Bus {
    /// Connects to NATS. A server that does not answer is no error: commands and queries work without NATS, and the
    /// client keeps trying to connect. A server that is too old is refused.
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
            problem: Arc::default(),
        };
        match tokio::time::timeout(Duration::from_secs(3), bus.client.flush()).await {
            Ok(Ok(())) => bus.check_version()?,
            _ => {
                let servers: Vec<_> = urls.iter().filter_map(|url| url.rsplit(['@', '/']).next()).collect();
                tracing::warn!(?servers, "NATS did not answer. Starting without it; projections read the log.");
            }
        }
        Ok(bus)
    }

    /// Checks that a NATS server with JetStream answers.
    pub(crate) async fn check(&self) -> Result<(), Error> {
        let away = |_| Error::Nats("no server answered".to_owned());
        tokio::time::timeout(CHECKED_WITHIN, self.client.flush()).await.map_err(away)?.map_err(nats)?;
        self.check_version()?;
        let account = tokio::time::timeout(CHECKED_WITHIN, self.context.query_account()).await.map_err(away)?;
        account.map(drop).map_err(|error| Error::Nats(format!("JetStream did not answer: {error}")))
    }

    /// Returns the reason why events do not reach the JetStream stream; `None` while they do.
    pub(crate) fn problem(&self) -> Option<String> {
        if !self.is_connected() {
            return Some("NATS is not connected".to_owned());
        }
        self.problem.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn set_problem(&self, why: Option<String>) {
        *self.problem.lock().unwrap_or_else(PoisonError::into_inner) = why;
    }

    /// Clears the relay's error, because another process publishes now.
    pub(crate) fn clear_problem(&self) {
        self.set_problem(None);
    }

    /// Returns whether the client is connected to NATS.
    pub(crate) fn is_connected(&self) -> bool {
        self.client.connection_state() == async_nats::connection::State::Connected
    }

    fn check_version(&self) -> Result<(), Error> {
        check_version(&self.client.server_info().version)
    }

    /// Opens the JetStream stream, or creates it. A new stream starts after the position `head`; readers get the events
    /// up to `head` from the log.
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
                        metadata: [(INCARNATION_KEY.to_owned(), self.incarnation.clone())].into(),
                        ..Default::default()
                    })
                    .await
                    .map_err(nats)?;
                if first > 1 && made.cached_info().config.first_sequence != Some(first) {
                    return Err(Error::Settings(
                        "the NATS server ignores first_seq: Docket needs nats-server 2.10 or newer".into(),
                    ));
                }
                tracing::info!(stream = self.stream, first, "Created the JetStream stream.");
                made
            }
        };
        match found.cached_info().config.metadata.get(INCARNATION_KEY) {
            Some(owner) if *owner == self.incarnation => self.ensure_replicas(found).await,
            _ => Err(Error::Settings(format!(
                "the JetStream stream `{0}` belongs to another store. Give this store its own name in nats_stream. If that \
                 other store no longer exists, or this store was restored from its backup, delete the stream instead \
                 (`nats stream rm {0}`)",
                self.stream
            ))),
        }
    }

    /// Sets the stream's number of replicas to `nats_replicas`.
    async fn ensure_replicas(&self, stream: stream::Stream) -> Result<stream::Stream, Error> {
        let config = stream.cached_info().config.clone();
        if config.num_replicas == self.replicas {
            return Ok(stream);
        }
        let config = stream::Config { num_replicas: self.replicas, ..config };
        self.context.update_stream(config).await.map_err(nats)?;
        self.context.get_stream(&self.stream).await.map_err(nats)
    }

    /// Deletes the JetStream stream if it belongs to this log, or, with `force`, in any case. Returns whether the
    /// stream existed.
    pub(crate) async fn remove(&self, force: bool) -> Result<bool, Error> {
        let away = |_| Error::Nats("no server in nats_url answered in time".to_owned());
        let found = tokio::time::timeout(REMOVED_WITHIN, self.context.get_stream(&self.stream)).await.map_err(away)?;
        match found {
            Ok(found)
                if force || found.cached_info().config.metadata.get(INCARNATION_KEY) == Some(&self.incarnation) =>
            {
                self.context.delete_stream(&self.stream).await.map_err(nats)?;
                Ok(true)
            }
            Ok(_) => Err(Error::Settings(format!(
                "the JetStream stream `{}` belongs to another incarnation of a log. If it belongs to this store, which was \
                 restored earlier, run `docket events restored --delete-stream`. If it belongs to another store, give this \
                 store its own name in nats_stream",
                self.stream
            ))),
            Err(error) if error.to_string().contains("stream not found") => Ok(false),
            Err(error) => Err(nats(error)),
        }
    }

    /// Reads the JetStream stream from position `from`.
    pub(crate) async fn messages(&self, from: i64) -> Result<pull::Ordered, Error> {
        self.check_version()?;
        let stream = self.context.get_stream(&self.stream).await.map_err(nats)?;
        let owner = stream.cached_info().config.metadata.get(INCARNATION_KEY);
        if owner != Some(&self.incarnation) {
            return Err(Error::Nats(format!("the JetStream stream `{}` belongs to another store", self.stream)));
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

    /// Publishes a message to all processes, including this one. Delivery is not guaranteed.
    pub(crate) async fn broadcast(&self, topic: &str, message: Vec<u8>) {
        let subject = self.notice_subject(topic);
        if self.is_connected()
            && let Err(error) = self.client.publish(subject, message.into()).await
        {
            tracing::debug!(%error, topic, "Could not publish the notification.");
        }
    }

    /// Returns the subject of a topic. The subject contains the incarnation, so that two stores that share NATS and
    /// have the same stream name do not receive each other's messages.
    fn notice_subject(&self, topic: &str) -> String {
        format!("{}.hint.{}.{topic}", self.stream, self.incarnation)
    }

    /// Subscribes to the messages of all processes on a topic.
    pub(crate) async fn listen(&self, topic: &str) -> Result<impl futures::Stream<Item = Vec<u8>> + use<>, Error> {
        let subscription = self.client.subscribe(self.notice_subject(topic)).await.map_err(nats)?;
        Ok(subscription.map(|message| message.payload.into()))
    }

    /// Publishes the log to the JetStream stream until `stop`. The relay keeps no state of its own: it reads the end of
    /// the stream and continues from there, so a crash between commit and publication loses no event.
    pub(crate) async fn relay(
        &self,
        log: &Log,
        recent: &RecentEvents,
        head: watch::Receiver<i64>,
        stop: &CancellationToken,
    ) {
        let mut last_logged = None;
        while !stop.is_cancelled() {
            let outcome = tokio::select! {
                outcome = self.relay_from_tail(log, recent, head.clone()) => outcome,
                () = stop.cancelled() => return,
            };
            if let Err(error) = outcome {
                METRICS.relay_failures.add(1, &[]);
                // A relay that keeps failing logs the reason only once in `LOG_INTERVAL`.
                if last_logged.is_none_or(|at: Instant| at.elapsed() >= LOG_INTERVAL) {
                    last_logged = Some(Instant::now());
                    tracing::warn!(%error, "Relay failed. It starts again from the end of the JetStream stream.");
                }
                // The database has its own health check.
                if !matches!(error, Error::Database(_)) {
                    self.set_problem(Some(error.to_string()));
                }
                tokio::time::sleep(RETRY).await;
            }
        }
    }

    /// Reads the end of the JetStream stream, checks that its last message is an event of this log, and publishes what
    /// follows until an error occurs.
    async fn relay_from_tail(
        &self,
        log: &Log,
        recent: &RecentEvents,
        mut head: watch::Receiver<i64>,
    ) -> Result<(), Error> {
        let (log_head, _) = log.head().await?;
        let stream = self.stream(log_head).await?;
        let mut tail = stream.cached_info().state.last_sequence as i64;
        METRICS.stream_position.record(tail, &[]);
        if tail > log_head {
            return Err(Error::CorruptData(format!(
                "the JetStream stream `{}` ends at {tail}, after the log's head {log_head}: the log was restored. Stop the \
                 servers and run `docket events restored`, which deletes the stream",
                self.stream
            )));
        }
        self.check_tail(&stream, log, tail).await?;
        self.set_problem(None);
        loop {
            let events = match recent.after(tail, RELAY_WINDOW as usize) {
                Some(events) => events,
                None => log.read(tail, RELAY_WINDOW).await?,
            };
            if events.is_empty() {
                // The timeout makes the relay poll for events of writers that cannot wake it. A closed sender only
                // means shutdown.
                let _ = tokio::time::timeout(RELAY_POLL, head.changed()).await;
                continue;
            }
            tail = self.publish(&events, tail).await?;
            METRICS.relay_published.add(events.len() as u64, &[]);
            METRICS.relay_position.record(tail, &[]);
            METRICS.stream_position.record(tail, &[]);
            if events.len() < RELAY_WINDOW as usize {
                // Each read of the log costs a query, so the events of a busy log are collected into larger windows.
                tokio::time::sleep(RELAY_PAUSE).await;
            }
        }
    }

    /// Checks that the last message of the stream is the log's event at that position. After a refusal because of a
    /// wrong last sequence this distinguishes a message that a relay of this store has already sent from one of another
    /// writer.
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
        Err(Error::CorruptData(format!(
            "at position {tail} the JetStream stream `{}` has event {}, but the log has event {}: the log was restored or \
             replaced, or another program writes to the stream. Stop the servers and run `docket events restored`, which \
             deletes the stream",
            self.stream,
            sent.as_deref().unwrap_or("(without id)"),
            ours.as_deref().unwrap_or("(none)")
        )))
    }

    /// Publishes a window of events and waits only for the last acknowledgement. Each message is refused unless the one
    /// before it was stored, so the last acknowledgement covers all. Returns the new end of the stream.
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

    /// Builds the message of an event, and its span if the event's request is traced.
    fn message(&self, event: &RecordedEvent) -> Result<(String, HeaderMap, bytes::Bytes, Option<Span>), Error> {
        let payload = event.to_message().map_err(|e| Error::CorruptData(format!("event {}: {e}", event.position)))?;
        let mut headers = HeaderMap::new();
        headers.insert(header::NATS_MESSAGE_ID, event.id());
        headers.insert(header::NATS_EXPECTED_LAST_SEQUENCE, (event.position - 1).to_string());
        if let Some(id) = event.metadata_text("request_id") {
            headers.insert("X-Request-Id", id);
        }
        let subject = format!("{}.events.{}.{}", self.stream, event.aggregate_type, event.event_type);
        let span = trace::event_span("publish", SpanKind::Producer, event);
        if let Some(span) = &span {
            let system = KeyValue::new("messaging.system", "nats");
            span.set_attributes([system, KeyValue::new("messaging.destination.name", subject.clone())]);
            trace::inject(span, &mut headers);
        }
        Ok((subject, headers, payload.into(), span))
    }
}

/// Sets the user and password, or the token, that a URL contains: the NATS client does not read them from the URL.
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
        "nats-server {version} is too old: Docket needs 2.10 or newer. Older servers ignore first_seq, so the sequences of \
         a recreated stream would not match the positions of events"
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
    use crate::subscription::{Batching, Subscription};

    #[test]
    fn servers_before_2_10_are_refused() {
        assert!(check_version("2.9.25").unwrap_err().to_string().contains("2.9.25 is too old"));
        for version in ["2.10.0", "2.15.1", "3.0.0-beta.1", ""] {
            assert!(check_version(version).is_ok(), "{version}");
        }
    }

    /// A log in SQLite and a real NATS server. The protocol does not depend on the database.
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
            tokio::spawn(async move { bus.relay(&log, &RecentEvents::default(), head, &stop).await });
        }

        /// Waits until the stream ends at a position, then checks that it holds every event of the log exactly once.
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
        // The stream is created before the first event; otherwise it would start after that event.
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
        // The event was published, but the sender crashed before it received the acknowledgement.
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
        // A server that acknowledged five events may come back from a crash with three.
        let events = rig.log.read(0, 3).await.unwrap();
        bus.publish(&events, 0).await.unwrap();
        let later = [RecordedEvent { position: 5, ..rig.log.read(4, 1).await.unwrap().remove(0) }];
        assert!(
            bus.publish(&later, 4).await.is_err(),
            "the server refuses a message that does not follow its last one"
        );
        rig.relay(rig.bus().await);
        rig.holds_the_log(1, 5).await;
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn a_deleted_stream_is_created_again_after_the_head() {
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

    /// The stream belongs to the log as it was before a restore, and contains events that the restored log lacks.
    #[tokio::test(flavor = "multi_thread")]
    async fn an_event_of_the_stream_that_the_log_lacks_is_not_read() {
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
            let mut reader =
                Subscription::new(log, RecentEvents::default(), Some(rig.bus().await), head, from, Batching::Batched);
            // The situation after a pause: the log has been read up to `from`, and the stream is asked for the events
            // that follow.
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
        let refused = bus.relay_from_tail(&rig.log, &RecentEvents::default(), head).await.unwrap_err().to_string();
        assert!(refused.contains("docket events restored"), "{refused}");
    }
}
