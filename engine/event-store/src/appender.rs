//! Group commit: one task writes the waiting appends of all requests in one transaction.
//!
//! Positions come from one counter, which is updated inside that transaction, so they have no gaps and follow commit
//! order. This serializes all appends; sharing a transaction among many appends makes up for the lost parallelism. The
//! appends of a batch are independent: one that fails its conditions gets its error, and the others still commit.

use std::sync::Arc;
use std::time::{Duration, Instant};

use compact_str::CompactString;
use opentelemetry::KeyValue;
use opentelemetry::trace::TraceContextExt;
use tokio::runtime::Handle;
use tokio::sync::{oneshot, watch};

use crate::append::{Append, Appended};
use crate::error::{AppendError, Error};
use crate::event::{RecordedEvent, metadata_text};
use crate::log::Log;
use crate::metrics::METRICS;
use crate::plan::{Committed, Lineages};
use crate::queue::{Limits, Queue, Refused};
use crate::recent_events::RecentEvents;
use crate::settings::Settings;
use crate::trace;

/// A queued append and the channel for its result.
pub(crate) struct Pending {
    pub(crate) append: Append,
    reply: oneshot::Sender<Reply>,
}

/// Time at which the result was known, and the result of the append.
type Reply = (Instant, Result<Appended, AppendError>);

/// Sends the result. A failure to send is ignored: the requester no longer waits.
fn answer(reply: oneshot::Sender<Reply>, at: Instant, outcome: Result<Appended, AppendError>) {
    let _ = reply.send((at, outcome));
}

/// Queues appends for the one task that writes. After the last clone is dropped, that task writes the queued appends
/// and stops.
#[derive(Clone)]
pub(crate) struct Appender(Arc<Inner>);

struct Inner {
    queue: Arc<Queue<Pending>>,
    log: Log,
    /// Runtime of the appender's thread.
    runtime: Handle,
}

impl Drop for Inner {
    fn drop(&mut self) {
        self.queue.close();
    }
}

impl Appender {
    /// Starts the task. `head` receives each new head of the log.
    pub(crate) fn start(
        log: Log,
        settings: &Settings,
        head: watch::Sender<i64>,
        recent: RecentEvents,
        tracker: &tokio_util::task::TaskTracker,
    ) -> std::io::Result<Self> {
        let queue = Arc::new(Queue::new(Limits {
            commands_max: settings.append_queue_max,
            batch_events_max: settings.append_batch_events_max,
            wait_max: settings.append_wait_max(),
        }));
        let committer = Committer { log: log.clone(), head, recent, lineages: Lineages::default() };
        let task = tracker.track_future(run(committer, queue.clone()));
        // The task has its own thread: a commit takes several steps, and on the shared runtime each step would wait
        // behind all requests that are ready to run.
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let inner = Inner { queue, log, runtime: runtime.handle().clone() };
        std::thread::Builder::new().name("appender".into()).spawn(move || runtime.block_on(task))?;
        Ok(Self(Arc::new(inner)))
    }

    /// Tries an append between two batches. Runs on the appender's thread, because the connection belongs to its
    /// runtime.
    pub(crate) async fn probe(&self) -> Result<(), Error> {
        let log = self.0.log.clone();
        self.0.runtime.spawn(async move { log.probe().await }).await.map_err(|_| Error::Closing)?
    }

    /// Returns whether an append of this source would be shed now.
    pub(crate) fn is_overloaded(&self, source: u64) -> bool {
        self.0.queue.is_overloaded(source)
    }

    /// Returns whether answers wait for the processor rather than for the database.
    pub(crate) fn is_short_of_processor(&self) -> bool {
        self.0.queue.is_short_of_processor()
    }

    pub(crate) async fn append(&self, append: Append) -> Result<Appended, AppendError> {
        let started = Instant::now();
        let outcome = self.enqueue_and_wait(append).await;
        METRICS.wait.record(started.elapsed().as_secs_f64(), &[]);
        outcome
    }

    async fn enqueue_and_wait(&self, append: Append) -> Result<Appended, AppendError> {
        append.check()?;
        let queue = &self.0.queue;
        let (reply, answered) = oneshot::channel();
        let (source, events, waits_for_capacity) = (append.source, append.events(), append.waits_for_capacity);
        let pending = Pending { append, reply };
        match waits_for_capacity {
            true => queue.push_when_free(source, events, pending).await.ok_or(Error::Closing)?,
            false => queue.push(source, events, pending).map_err(|refused| match refused {
                Refused::Full(_) => Error::Overloaded,
                Refused::Closed => Error::Closing,
            })?,
        }
        let _in_flight = queue.enter();
        let (at, outcome) = answered.await.map_err(|_| Error::Closing)?;
        queue.record_scheduling_delay(at.elapsed());
        outcome
    }
}

/// The database did not answer within this time.
struct Timeout(Duration);

/// The state of the writing task: where batches are written, and who is notified of committed events.
struct Committer {
    log: Log,
    head: watch::Sender<i64>,
    recent: RecentEvents,
    lineages: Lineages,
}

async fn run(mut committer: Committer, queue: Arc<Queue<Pending>>) {
    while let Some((batch, behind)) = queue.take().await {
        METRICS.queue.record(behind as u64, &[]);
        METRICS.batch_size.record(batch.len() as u64, &[]);
        let events = batch.iter().map(|pending| pending.append.events()).sum();
        let outcome = committer.write(batch).await;
        queue.written(events);
        if let Err(Timeout(waited)) = outcome {
            // The queued commands have waited as long as the batch. If they were tried now, each would time out again.
            for next in queue.drain() {
                answer(next.reply, Instant::now(), Err(Error::Timeout(waited).into()));
            }
        }
    }
}

impl Committer {
    /// Writes a batch. If the database refuses the data of the batch, writes each append alone, so that only the append
    /// that caused the error fails.
    ///
    /// # Errors
    /// The database did not answer in time.
    async fn write(&mut self, batch: Vec<Pending>) -> Result<(), Timeout> {
        let appends: Vec<&Append> = batch.iter().map(|pending| &pending.append).collect();
        let traces = appends.iter().filter_map(|append| append.trace.as_ref());
        let span = trace::shared_span("commit", traces.clone().map(|trace| trace.span().span_context().clone()));
        if let Some(span) = &span {
            span.set_attributes([KeyValue::new("docket.append.commands", appends.len() as i64)]);
            traces.for_each(|of| of.span().add_link(span.context().span().span_context().clone(), vec![]));
        }
        let started = Instant::now();
        let outcome = self.log.append(&appends, &self.lineages).await;
        METRICS.commit.record(started.elapsed().as_secs_f64(), &[]);
        drop(span);
        match outcome {
            Ok(committed) => {
                drop(appends);
                self.committed(batch, committed);
                Ok(())
            }
            Err(error) if batch.len() > 1 && error.is_data_error() => {
                for pending in batch {
                    Box::pin(self.write(vec![pending])).await?;
                }
                Ok(())
            }
            Err(error) => {
                METRICS.failures.add(1, &[]);
                tracing::error!(%error, commands = batch.len(), "Append failed.");
                for pending in batch {
                    self.lineages.record(&pending.append, false);
                    answer(pending.reply, Instant::now(), Err(error.for_append().into()));
                }
                if let Error::Timeout(waited) = error { Err(Timeout(waited)) } else { Ok(()) }
            }
        }
    }

    /// Passes the committed events to readers, then the results to the requesters.
    fn committed(&mut self, batch: Vec<Pending>, committed: Committed) {
        let mut answers = Vec::with_capacity(batch.len());
        let mut events = 0;
        for (Pending { append, reply }, outcome) in batch.into_iter().zip(committed.outcomes) {
            self.lineages.record(&append, outcome.is_ok());
            if let Ok(appended) = &outcome {
                events += append.events() as u64;
                log_appended(&append, appended);
                self.recent.push(into_recorded_events(append, appended.position, committed.recorded_at));
            }
            if matches!(outcome, Err(AppendError::Conflict { .. })) {
                METRICS.conflicts.add(1, &[]);
            }
            answers.push((reply, outcome));
        }
        METRICS.events.add(events, &[]);
        self.head.send_if_modified(|known| {
            let newer = committed.head > *known;
            *known = committed.head.max(*known);
            newer
        });
        let at = Instant::now();
        for (reply, outcome) in answers {
            answer(reply, at, outcome);
        }
    }
}

/// Logs one line per event, so that a request can be followed through the logs.
fn log_appended(append: &Append, appended: &Appended) {
    if tracing::enabled!(tracing::Level::DEBUG) {
        let events =
            append.writes.iter().flat_map(|write| write.events.iter().map(move |event| (&write.stream, event)));
        let first = appended.position - append.events() as i64 + 1;
        for ((stream, event), position) in events.zip(first..) {
            tracing::debug!(
                request_id = metadata_text(&event.metadata, "request_id"),
                aggregate.r#type = &*stream.aggregate_type,
                aggregate.id = &*stream.aggregate_id,
                event.r#type = event.event_type,
                event.position = position,
                "Event appended."
            );
        }
    }
}

/// Converts the events of a committed append; `last` is the position of the last one.
fn into_recorded_events(append: Append, last: i64, recorded_at: i64) -> impl Iterator<Item = RecordedEvent> {
    let first = last - append.events() as i64 + 1;
    let events = append.writes.into_iter().flat_map(|write| {
        let (stream, sequences) = (write.stream, write.expected_version + 1..);
        write.events.into_iter().zip(sequences).map(move |(event, sequence)| (stream.clone(), sequence, event))
    });
    events.zip(first..).map(move |((stream, sequence, event), position)| RecordedEvent {
        position,
        aggregate_type: stream.aggregate_type,
        aggregate_id: stream.aggregate_id,
        sequence,
        event_type: CompactString::const_new(event.event_type),
        event_version: CompactString::const_new(event.event_version),
        payload: event.payload,
        metadata: event.metadata,
        recorded_at,
    })
}
