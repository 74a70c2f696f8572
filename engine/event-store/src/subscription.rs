//! Subscriptions to the log: a reader gets every event after a position, in order, exactly once, even when the
//! transport fails.

use std::time::{Duration, Instant};

use async_nats::jetstream::consumer::pull;
use futures::StreamExt;
use tokio::sync::watch;

use crate::error::Error;
use crate::event::RecordedEvent;
use crate::jetstream::Bus;
use crate::log::Log;
use crate::recent_events::RecentEvents;
use crate::upcast::upcast;

/// Maximum number of events in one batch.
const BATCH_MAX: usize = 2_000;
/// Time without messages or notifications after which a reader reads the log itself.
const IDLE_TIMEOUT: Duration = Duration::from_millis(500);

/// A busy log is read in fewer, larger batches, because each batch costs its reader a transaction. These are the
/// minimum times between two batches, after a small batch and after a large one. The first event after a pause does not
/// wait.
const BATCH_PAUSE: Duration = Duration::from_millis(5);
const LARGE_BATCH_PAUSE: Duration = Duration::from_millis(40);
/// Number of events that makes a batch a large one.
const LARGE_BATCH_EVENTS: usize = 100;

/// Maximum time for NATS to open the JetStream stream, and time for which it is not tried again after a failure.
const NATS_TIMEOUT: Duration = Duration::from_secs(1);
const NATS_RETRY_INTERVAL: Duration = Duration::from_secs(3);

/// How a subscriber receives the events of a busy log.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Batching {
    /// In fewer, larger batches.
    Batched,
    /// Without a pause between batches.
    Immediate,
}

/// Current source of the events.
enum Source {
    /// The log. The appender of this process wakes the reader.
    Log,
    /// The JetStream stream, from the position up to which the log was read.
    Stream(Box<futures::stream::ReadyChunks<pull::Ordered>>),
}

/// A subscription to the log. Positions have no gaps, so it detects missing and repeated events: it reads missing ones
/// from the log and drops repeated ones. When the transport fails, is silent, or delivers an event that the log does
/// not have, the subscription reads the log instead.
pub struct Subscription {
    log: Log,
    recent: RecentEvents,
    bus: Option<Bus>,
    head: watch::Receiver<i64>,
    source: Source,
    last: i64,
    batching: Batching,
    /// Earliest time of the next batch.
    next_at: Instant,
    /// Earliest time of the next attempt to use NATS.
    bus_from: Instant,
}

impl Subscription {
    pub(crate) fn new(
        log: Log,
        recent: RecentEvents,
        bus: Option<Bus>,
        head: watch::Receiver<i64>,
        after: i64,
        batching: Batching,
    ) -> Self {
        Self {
            log,
            recent,
            bus,
            head,
            source: Source::Log,
            last: after,
            batching,
            next_at: Instant::now(),
            bus_from: Instant::now(),
        }
    }

    /// Puts the subscription into the state in which it has read the log up to a position and follows the JetStream
    /// stream.
    #[cfg(test)]
    pub(crate) async fn follow_stream_from(&mut self, position: i64) {
        let bus = self.bus.as_ref().expect("NATS is configured");
        let messages = messages(bus, position + 1).await.expect("the stream exists");
        self.source = Source::Stream(Box::new(messages.ready_chunks(BATCH_MAX)));
    }

    /// Waits for the next events and returns at least one. Cancel-safe: events that were not returned are returned by
    /// the next call.
    ///
    /// # Errors
    /// The database is unavailable. A later call may succeed.
    pub async fn next(&mut self) -> Result<Vec<RecordedEvent>, Error> {
        tokio::time::sleep_until(self.next_at.into()).await;
        loop {
            let batch = match &mut self.source {
                Source::Log => self.read_log().await?,
                Source::Stream(messages) => {
                    let chunk = tokio::time::timeout(IDLE_TIMEOUT, messages.next()).await;
                    self.take_chunk(chunk.ok()).await?
                }
            };
            if let Some(event) = batch.last() {
                self.last = event.position;
                // The JetStream client has already fetched further messages, so a long pause would only cause delay.
                let pause = match (self.batching, &self.source, batch.len()) {
                    (Batching::Immediate, ..) | (_, _, BATCH_MAX..) => Duration::ZERO,
                    (_, Source::Log, LARGE_BATCH_EVENTS..) => LARGE_BATCH_PAUSE,
                    _ => BATCH_PAUSE,
                };
                self.next_at = Instant::now() + pause;
                return Ok(batch);
            }
        }
    }

    /// Reads the next events of the log: from memory if this process appended them recently, otherwise from the
    /// database.
    async fn read_next(&mut self) -> Result<Vec<RecordedEvent>, Error> {
        match self.recent.after(self.last, BATCH_MAX) {
            Some(events) => Ok(events),
            None => Ok(self.log.read(self.last, BATCH_MAX as i64).await?),
        }
    }

    /// Reads the next events of the log. At the end of the log it switches to the JetStream stream, or, without NATS,
    /// waits to be woken.
    async fn read_log(&mut self) -> Result<Vec<RecordedEvent>, Error> {
        self.head.borrow_and_update();
        let batch = self.read_next().await?;
        if batch.len() == BATCH_MAX {
            return Ok(batch);
        }
        let after = batch.last().map_or(self.last, |event| event.position);
        match &self.bus {
            Some(bus) if bus.is_connected() && self.bus_from <= Instant::now() => {
                match messages(bus, after + 1).await {
                    Ok(messages) => {
                        self.source = Source::Stream(Box::new(messages.ready_chunks(BATCH_MAX)));
                        return Ok(batch);
                    }
                    Err(error) => {
                        tracing::debug!(%error, "The JetStream stream is unavailable. Reading the log instead.");
                        self.bus_from = Instant::now() + NATS_RETRY_INTERVAL;
                    }
                }
            }
            _ => {}
        }
        if batch.is_empty() {
            // The timeout makes the reader poll for events of writers that cannot wake it.
            let _ = tokio::time::timeout(IDLE_TIMEOUT, self.head.changed()).await;
        }
        Ok(batch)
    }

    async fn take_chunk(
        &mut self,
        chunk: Option<Option<Vec<Result<async_nats::jetstream::Message, pull::OrderedError>>>>,
    ) -> Result<Vec<RecordedEvent>, Error> {
        let Some(chunk) = chunk else {
            // No messages: either nothing was appended, or the relay has failed. The log shows which.
            let batch = self.log.read(self.last, BATCH_MAX as i64).await?;
            if !batch.is_empty() {
                self.source = Source::Log;
            }
            return Ok(batch);
        };
        let batch = self.gather(chunk.unwrap_or_default()).await?;
        match batch.last() {
            // The messages were only repeats, or the stream ended: read the log again.
            None => self.source = Source::Log,
            Some(last) if !log_contains(&self.log, last).await? => {
                tracing::warn!(
                    position = last.position,
                    "The JetStream stream has an event that is not in the log. Reading the log instead."
                );
                self.fall_back_to_log();
                return Ok(Vec::new());
            }
            Some(_) => {}
        }
        Ok(batch)
    }

    /// Switches to the log and leaves NATS alone for a while.
    fn fall_back_to_log(&mut self) {
        self.source = Source::Log;
        self.bus_from = Instant::now() + NATS_RETRY_INTERVAL;
    }

    /// Returns the new events among the messages. Missing events are read from the log.
    async fn gather(
        &mut self,
        chunk: Vec<Result<async_nats::jetstream::Message, pull::OrderedError>>,
    ) -> Result<Vec<RecordedEvent>, Error> {
        let mut batch = Vec::new();
        let mut last = self.last;
        for message in chunk {
            let event = message
                .map_err(|e| e.to_string())
                .and_then(|message| RecordedEvent::from_message(&message.payload).map_err(|e| e.to_string()))
                // The relay may run an older release.
                .map(|event| upcast(&self.log.upcasters, event));
            let event = match event {
                Ok(event) => event,
                Err(error) => {
                    tracing::warn!(error, "Reading the JetStream stream failed. Reading the log instead.");
                    self.source = Source::Log;
                    return Ok(batch);
                }
            };
            while event.position > last + 1 {
                let missing = self.log.read(last, (event.position - 1 - last).min(BATCH_MAX as i64)).await?;
                if batch.len() >= BATCH_MAX {
                    // The first message of the stream is far ahead, so the log is read from here.
                    self.source = Source::Log;
                    return Ok(batch);
                }
                let Some(end) = missing.last() else {
                    tracing::warn!(
                        position = event.position,
                        last,
                        "The JetStream stream is ahead of the log. Reading the log instead."
                    );
                    self.fall_back_to_log();
                    return Ok(batch);
                };
                last = end.position;
                batch.extend(missing);
            }
            if event.position == last + 1 {
                last = event.position;
                batch.push(event);
            }
        }
        Ok(batch)
    }
}

/// Returns whether the log has this event at the same position as the JetStream stream. A log restored from a backup
/// lacks events at its end, so it is enough to check the last event of a batch.
async fn log_contains(log: &Log, event: &RecordedEvent) -> Result<bool, Error> {
    let known = log.read_stored(event.position - 1, 1).await?;
    Ok(known.first().is_some_and(|known| known.position == event.position && known.id() == event.id()))
}

async fn messages(bus: &Bus, from: i64) -> Result<pull::Ordered, Error> {
    let silent = |_| Error::Nats(format!("no answer within {NATS_TIMEOUT:?}"));
    tokio::time::timeout(NATS_TIMEOUT, bus.messages(from)).await.map_err(silent)?
}
