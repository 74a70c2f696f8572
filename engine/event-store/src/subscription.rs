//! The stream as readers see it: every event after a position, in order, once, whatever happens to the transport.

use std::time::{Duration, Instant};

use async_nats::jetstream::consumer::pull;
use futures::StreamExt;
use tokio::sync::watch;

use crate::error::Error;
use crate::event::RecordedEvent;
use crate::jetstream::Bus;
use crate::log::Log;
use crate::tail::Tail;
use crate::upcast::upcast;

/// Events in one batch, at most.
const BATCH_MAX: usize = 2_000;
/// How long a reader trusts a silent transport before it looks into the log itself.
const SILENCE: Duration = Duration::from_millis(500);

/// A busy stream is taken in fewer, larger pieces, because each costs its reader a transaction: the shortest time from
/// one batch to the next, after a small one and after a large one. The first event after a pause does not wait.
const GATHER: Duration = Duration::from_millis(5);
const GATHER_MANY: Duration = Duration::from_millis(40);
/// Events that make a batch a large one.
const MANY: usize = 100;

/// How long the bus may take to hand over the stream, and how long it is left alone when it did not.
const BUS_WITHIN: Duration = Duration::from_secs(1);
const BUS_AGAIN: Duration = Duration::from_secs(3);

/// How a subscriber takes a busy stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Pace {
    /// In fewer, larger pieces.
    Gathered,
    /// As it comes.
    AtOnce,
}

/// Where the events come from at the moment.
enum Source {
    /// The log, woken by the appender of this process.
    Log,
    /// JetStream, which continues where the log was read to.
    Stream(Box<futures::stream::ReadyChunks<pull::Ordered>>),
}

/// A reader of the stream. Positions are dense, so it sees a gap or a repeat at once: a gap is filled from the log, a
/// repeat is dropped. When the transport is dead or silent, or says what the log does not, the log is read instead.
pub struct Subscription {
    log: Log,
    tail: Tail,
    bus: Option<Bus>,
    head: watch::Receiver<i64>,
    source: Source,
    last: i64,
    pace: Pace,
    /// When the next batch may be taken.
    next_at: Instant,
    /// When the bus may be asked again, after it did not answer.
    bus_from: Instant,
}

impl Subscription {
    pub(crate) fn new(
        log: Log,
        tail: Tail,
        bus: Option<Bus>,
        head: watch::Receiver<i64>,
        after: i64,
        pace: Pace,
    ) -> Self {
        Self {
            log,
            tail,
            bus,
            head,
            source: Source::Log,
            last: after,
            pace,
            next_at: Instant::now(),
            bus_from: Instant::now(),
        }
    }

    /// As if the log had been read up to a position and the stream were to go on.
    #[cfg(test)]
    pub(crate) async fn follow_stream_from(&mut self, position: i64) {
        let bus = self.bus.as_ref().expect("a bus");
        let messages = messages(bus, position + 1).await.expect("a stream");
        self.source = Source::Stream(Box::new(messages.ready_chunks(BATCH_MAX)));
    }

    /// The next events, at least one. Cancel-safe: what was not returned comes again.
    ///
    /// # Errors
    /// The database is away; the same call may succeed later.
    pub async fn next(&mut self) -> Result<Vec<RecordedEvent>, Error> {
        tokio::time::sleep_until(self.next_at.into()).await;
        loop {
            let batch = match &mut self.source {
                Source::Log => self.read_log().await?,
                Source::Stream(messages) => {
                    let chunk = tokio::time::timeout(SILENCE, messages.next()).await;
                    self.take_chunk(chunk.ok()).await?
                }
            };
            if let Some(event) = batch.last() {
                self.last = event.position;
                // The stream hands over what it has fetched ahead, so a long pause there would only slow it down.
                let pause = match (self.pace, &self.source, batch.len()) {
                    (Pace::AtOnce, ..) | (_, _, BATCH_MAX..) => Duration::ZERO,
                    (_, Source::Log, MANY..) => GATHER_MANY,
                    _ => GATHER,
                };
                self.next_at = Instant::now() + pause;
                return Ok(batch);
            }
        }
    }

    /// What follows in the log: from memory where this process appended it just now, else from the database.
    async fn read_on(&mut self) -> Result<Vec<RecordedEvent>, Error> {
        match self.tail.after(self.last, BATCH_MAX) {
            Some(events) => Ok(events),
            None => Ok(self.log.read(self.last, BATCH_MAX as i64).await?),
        }
    }

    /// Reads on in the log; at its end, embedded: waits to be woken, scaled: goes over to the stream.
    async fn read_log(&mut self) -> Result<Vec<RecordedEvent>, Error> {
        self.head.borrow_and_update();
        let batch = self.read_on().await?;
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
                        tracing::debug!(%error, "reading the log while the stream is away");
                        self.bus_from = Instant::now() + BUS_AGAIN;
                    }
                }
            }
            _ => {}
        }
        if batch.is_empty() {
            // A timeout is the poll for writers that cannot wake us.
            let _ = tokio::time::timeout(SILENCE, self.head.changed()).await;
        }
        Ok(batch)
    }

    async fn take_chunk(
        &mut self,
        chunk: Option<Option<Vec<Result<async_nats::jetstream::Message, pull::OrderedError>>>>,
    ) -> Result<Vec<RecordedEvent>, Error> {
        let Some(chunk) = chunk else {
            // Silent: either nothing happened, or the relay is dead. The log knows.
            let batch = self.log.read(self.last, BATCH_MAX as i64).await?;
            if !batch.is_empty() {
                self.source = Source::Log;
            }
            return Ok(batch);
        };
        let batch = self.gather(chunk.unwrap_or_default()).await?;
        match batch.last() {
            // Only repeats, or the end of the stream: start over from the log.
            None => self.source = Source::Log,
            Some(last) if !holds(&self.log, last).await? => {
                tracing::warn!(position = last.position, "the stream is not of this log: reading the log itself");
                self.leave();
                return Ok(Vec::new());
            }
            Some(_) => {}
        }
        Ok(batch)
    }

    /// Back to the log, for a while.
    fn leave(&mut self) {
        self.source = Source::Log;
        self.bus_from = Instant::now() + BUS_AGAIN;
    }

    /// What of the messages is new, without a gap.
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
                // The relay may be of an older release.
                .map(|event| upcast(&self.log.upcasters, event));
            let event = match event {
                Ok(event) => event,
                Err(error) => {
                    tracing::warn!(error, "the stream failed: back to the log");
                    self.source = Source::Log;
                    return Ok(batch);
                }
            };
            while event.position > last + 1 {
                let missing = self.log.read(last, (event.position - 1 - last).min(BATCH_MAX as i64)).await?;
                if batch.len() >= BATCH_MAX {
                    // Far behind the stream's first message: the log is read on from here.
                    self.source = Source::Log;
                    return Ok(batch);
                }
                let Some(end) = missing.last() else {
                    tracing::warn!(
                        position = event.position,
                        last,
                        "the stream goes beyond the log: reading the log itself"
                    );
                    self.leave();
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

/// Whether the log has this event where the stream has it. A log that was restored lacks what the stream still has at its
/// end, so the last event of a batch speaks for those before it.
async fn holds(log: &Log, event: &RecordedEvent) -> Result<bool, Error> {
    let known = log.read_stored(event.position - 1, 1).await?;
    Ok(known.first().is_some_and(|known| known.position == event.position && known.id() == event.id()))
}

async fn messages(bus: &Bus, from: i64) -> Result<pull::Ordered, Error> {
    let silent = |_| Error::Nats(format!("no answer for {BUS_WITHIN:?}"));
    tokio::time::timeout(BUS_WITHIN, bus.messages(from)).await.map_err(silent)?
}
