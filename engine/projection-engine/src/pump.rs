//! The pump: reads events from the stream, folds them, writes rows and checkpoints in one transaction, and notifies
//! other processes.
//!
//! Each checkpoint group has its own task, and one process at a time pumps a group. The pump raises the fence of the
//! group's checkpoints when it starts. Every commit compares position and fence, so a pump that was replaced can no
//! longer write.

use std::collections::HashSet;
use std::time::{Duration, Instant};

use event_store::db::Tx;
use event_store::error::Error as StoreError;
use event_store::event::RecordedEvent;
use event_store::store::Store;
use event_store::trace;
use kernel::stream::StreamId;
use opentelemetry::KeyValue;
use opentelemetry::trace::SpanKind;
use tokio_util::sync::CancellationToken;

use crate::dead_letters::{self, Scope};
use crate::error::{Error, catch_panic};
use crate::exclusions::Exclusions;
use crate::fold::Partial;
use crate::generation::{
    Generation, GenerationSet, LIVE, bump_fence, by_position, checkpoints, invalidate_others, prepare_group,
};
use crate::group_fold::{Batch, GroupFold};
use crate::metrics::METRICS;
use crate::progress::{POSITION_TOPIC, Progress};
use crate::projection::AnyProjection;
use crate::rebuild;
use crate::registry::{Group, projection_role};
use crate::settings::Settings;
use crate::state::FoldError;

/// Interval at which the pump looks for operators' decisions about dead letters.
const DECISION_POLL_INTERVAL: Duration = Duration::from_secs(1);
/// Time for which the pump gives up leadership when a live generation is of a newer release, so that the newer release
/// can lead.
const YIELD_TIME: Duration = Duration::from_secs(3);
/// Time after which the pump gives up leadership again for that reason.
const YIELD_AGAIN_AFTER: Duration = Duration::from_secs(300);

/// Projects every checkpoint group until `stop` is cancelled: waits for leadership, catches up and follows the log.
/// After a failure the pump restarts from the checkpoints. Rebuilds outdated projections in the background.
pub async fn run(store: Store, settings: Settings, progress: Progress, stop: CancellationToken) {
    let groups = 0..progress.registry().groups().len();
    let tasks = groups.map(|at| {
        let (store, settings, progress, stop) = (store.clone(), settings.clone(), progress.clone(), stop.clone());
        // One task per group, so that a fold that does not return blocks no other group.
        tokio::spawn(async move {
            let group = &progress.registry().groups()[at];
            let work = async {
                tokio::join!(
                    lead(&store, group, &settings, &progress),
                    rebuild::upgrade(&store, progress.registry(), group, &settings)
                )
            };
            tokio::select! {
                _ = work => {}
                // Events that are not committed are projected again after the next start.
                () = stop.cancelled() => {}
            }
        })
    });
    futures::future::join_all(tasks).await;
}

async fn lead(store: &Store, group: &Group, settings: &Settings, progress: &Progress) {
    let mut has_yielded = false;
    loop {
        let mut leadership = store.lead(&projection_role(group.name)).await;
        let mut pump = Pump::new(store.clone(), group, settings.clone(), progress.clone());
        tracing::info!(group = group.name, "This process now projects the checkpoint group.");
        let still_leading = async {
            while leadership.check().await.is_ok() {
                tokio::time::sleep(Duration::from_secs(2)).await;
            }
        };
        let outcome = tokio::select! {
            outcome = catch_panic(pump.follow(!has_yielded)) => outcome,
            () = still_leading => Err(Error::Fenced),
        };
        drop(leadership);
        has_yielded = match outcome {
            Err(Error::Newer { projection, version, known }) => {
                tracing::warn!(
                    projection,
                    projection.version = version,
                    known,
                    "A read model was built by a newer release. Pausing so that the newer release can take over."
                );
                tokio::time::sleep(YIELD_TIME).await;
                true
            }
            Err(Error::Fenced) => {
                tracing::info!(group = group.name, "The checkpoints were taken over. Reading them again.");
                false
            }
            Err(error) => {
                tracing::error!(group = group.name, %error, "Projecting failed. Restarting from the checkpoints.");
                pump.report(&error).await;
                // Only a rebuild resolves this, and a rebuild does not start before open decisions are carried out.
                if matches!(error, Error::Ahead { .. } | Error::OtherLog { .. })
                    && let Err(error) = pump.settle_without_projecting().await
                {
                    tracing::warn!(%error, "Could not carry out the decisions about dead letters. Retrying.");
                }
                tokio::time::sleep(Duration::from_millis(settings.retry_delay_ms)).await;
                // A newer release cannot help either, so this process does not pause for it again.
                has_yielded && matches!(error, Error::Ahead { .. } | Error::OtherLog { .. })
            }
            Ok(()) => false,
        };
    }
}

/// Logs one line per event at debug level, so that a request can be followed through the logs.
fn log_projected(events: &[RecordedEvent]) {
    if tracing::enabled!(tracing::Level::DEBUG) {
        for event in events {
            tracing::debug!(
                request_id = event.metadata_text("request_id"),
                aggregate.r#type = &*event.aggregate_type,
                aggregate.id = &*event.aggregate_id,
                event.r#type = &*event.event_type,
                event.position = event.position,
                "Event projected."
            );
        }
    }
}

/// Streams of a batch that cannot be projected.
struct Failing {
    streams: Vec<FoldError>,
    /// Whether the streams are to be parked for this group only.
    in_group_only: bool,
}

/// The outcome of projecting a batch.
enum Projected {
    /// The batch is projected up to this position.
    To(i64),
    /// Nothing of the batch is projected.
    Failing(Failing),
}

struct Pump<'a> {
    store: Store,
    group: &'a Group,
    settings: Settings,
    progress: Progress,
    fence: i64,
    fold: GroupFold,
    /// Position of the event that failed last, and its number of failed attempts.
    failing: (i64, i64),
    /// Set when a newer release has built a live generation: the projection, its version there and its version in this
    /// release.
    newer_release: Option<(String, i64, i64)>,
}

impl<'a> Pump<'a> {
    fn new(store: Store, group: &'a Group, settings: Settings, progress: Progress) -> Self {
        let fold = GroupFold::new(&store, group, settings.aggregates_in_memory_max, Exclusions::default());
        Self { store, group, settings, progress, fence: 0, fold, failing: (0, 0), newer_release: None }
    }

    /// Follows the log. With `yield_to_newer`, returns [`Error::Newer`] when a live generation is of a newer release.
    async fn follow(&mut self, yield_to_newer: bool) -> Result<(), Error> {
        prepare_group(&self.store, self.group).await?;
        let mut sets = self.acquire(yield_to_newer).await?;
        let Some(slowest) = sets.first() else {
            // No live generation is of this release's version. The rebuild in the background replaces them.
            self.settle_without_projecting().await?;
            tokio::time::sleep(YIELD_TIME).await;
            return Ok(());
        };
        let mut stream = self.store.subscribe(slowest.position);
        let (began, mut looked) = (Instant::now(), Instant::now());
        loop {
            // Perhaps no process of the newer release was running when this pump gave up leadership before.
            if let Some((projection, version, known)) = self.newer_release.clone()
                && began.elapsed() >= YIELD_AGAIN_AFTER
            {
                return Err(Error::Newer { projection, version, known });
            }
            // One `next` future is kept across the checks for decisions, so that its internal deadlines are not
            // restarted.
            let events = {
                let mut next = std::pin::pin!(stream.next());
                loop {
                    if looked.elapsed() >= DECISION_POLL_INTERVAL {
                        self.apply_decisions(&mut sets).await?;
                        looked = Instant::now();
                    }
                    if let Ok(events) = tokio::time::timeout(DECISION_POLL_INTERVAL, next.as_mut()).await {
                        break events?;
                    }
                }
            };
            let mut events = &events[..];
            while let (Some(last), Some(slowest)) = (events.last(), sets.first()) {
                // The slowest generation set may already contain the first events of the batch, or all of them.
                let skip = (slowest.position + 1 - events[0].position).max(0) as usize;
                if slowest.position >= last.position {
                    break;
                }
                events = &events[skip..];
                match self.project_batch(&mut sets, events).await? {
                    Projected::To(position) => self.store.notify_position(POSITION_TOPIC, position).await,
                    Projected::Failing(failing) => self.wait_or_park(failing).await?,
                }
            }
        }
    }

    /// Raises the fence of the live checkpoints and returns the generation sets that this release updates, slowest
    /// first.
    async fn acquire(&mut self, yield_to_newer: bool) -> Result<Vec<GenerationSet>, Error> {
        let connections_opened = self.store.db().connections_opened();
        let mut tx = self.store.db().begin().await?;
        self.fence = bump_fence(&mut tx, self.group.name, &[LIVE]).await?;
        let rows = checkpoints(&mut tx).await?;
        // The head is read after the fence is raised: before that, another pump could advance the checkpoints past it.
        let head = self.store.head().await?;
        let letters = dead_letters::remove_foreign(&mut tx, &self.store).await?;
        let live = |projection: &&'static dyn AnyProjection| {
            rows.iter()
                .find(|row| row.projection == projection.name() && row.state == LIVE)
                .map(|row| (*projection, row))
        };
        let live: Vec<_> = self.group.projections.iter().filter_map(live).collect();
        // Checked for all projections before anything else fails: a newer release's generations stay as they are, also
        // when the log is another one.
        let newer = live.iter().find(|(projection, row)| row.version > projection.version());
        self.newer_release = newer.map(|(projection, row)| (row.projection.clone(), row.version, projection.version()));
        if let Some((projection, version, known)) = self.newer_release.clone().filter(|_| yield_to_newer) {
            return Err(Error::Newer { projection, version, known });
        }
        let mut generations = Vec::new();
        for (projection, row) in live {
            row.check_belongs_to(&self.store, head).await?;
            if row.version == projection.version() {
                generations.push((Generation { projection, number: row.generation }, row.position));
            }
        }
        tx.commit().await?;
        self.fold.clear();
        self.fold.exclusions = dead_letters::partition(&letters, self.group.name).0;
        for (generation, position) in &generations {
            self.progress.committed(&[generation.projection.name()], *position, connections_opened);
        }
        Ok(by_position(generations))
    }

    /// Projects events into the slowest generation set, whose position is directly before the first event. Stops at the
    /// position of the next set and merges the two sets there.
    async fn project_batch(
        &mut self,
        sets: &mut Vec<GenerationSet>,
        events: &[RecordedEvent],
    ) -> Result<Projected, Error> {
        let next = sets.get(1).map_or(i64::MAX, |set| set.position);
        let end = events.iter().position(|event| event.position > next).unwrap_or(events.len());
        let events = &events[..end];
        let slowest = &mut sets[0];
        if let Some(last) = events.last() {
            let started = Instant::now();
            let _spans: Vec<_> =
                events.iter().filter_map(|event| trace::event_span("project", SpanKind::Consumer, event)).collect();
            let (batch, failed) = self.fold.fold(events).await?;
            if !failed.is_empty() {
                return Ok(Projected::Failing(Failing { streams: failed, in_group_only: false }));
            }
            let connections_opened = self.store.db().connections_opened();
            // The rows are computed before the transaction begins, so that a slow fold holds no database lock.
            let committed = match self.fold.run(|| slowest.rows(&batch, None)) {
                Ok(rows) => slowest.commit(&self.store, self.fence, rows, last).await,
                Err(error) => Err(error),
            };
            match committed {
                Err(error) if is_about_one_stream(&error) => {
                    let streams = self.find_rejected_streams(slowest, events, &batch).await?;
                    if streams.is_empty() {
                        return Err(error);
                    }
                    return Ok(Projected::Failing(Failing { streams, in_group_only: true }));
                }
                outcome => outcome?,
            }
            METRICS.batch.record(started.elapsed().as_secs_f64(), &[]);
            // Only the last set counts and observes: a set that is behind another one projects events that were counted
            // before.
            if next == i64::MAX {
                METRICS.events.add(events.len() as u64, &[KeyValue::new("group", self.group.name)]);
                for observer in &self.group.observers {
                    batch.iter().for_each(|changes| observer.observe(changes));
                }
                log_projected(events);
            }
            self.fold.put(&batch);
            slowest.position = last.position;
            let names: Vec<_> = slowest.generations.iter().map(|generation| generation.projection.name()).collect();
            self.progress.committed(&names, last.position, connections_opened);
        }
        let position = sets[0].position;
        if position == next {
            let caught_up = sets.remove(0);
            sets[0].generations.extend(caught_up.generations);
        }
        Ok(Projected::To(position))
    }

    /// Returns the streams of a batch whose rows the database rejects, or whose projections panic.
    async fn find_rejected_streams(
        &self,
        set: &GenerationSet,
        events: &[RecordedEvent],
        batch: &Batch,
    ) -> Result<Vec<FoldError>, Error> {
        let mut tried = HashSet::new();
        let mut rejected = Vec::new();
        for (first, stream) in events.iter().map(RecordedEvent::stream).enumerate() {
            if !tried.insert(stream.clone()) {
                continue;
            }
            if let Some(error) = self.try_rows(set, batch, &stream).await? {
                let own: Vec<_> = events[first..].iter().filter(|event| event.stream() == stream).cloned().collect();
                rejected.push(self.find_rejected_event(set, &own, &stream, &error).await?);
            }
        }
        Ok(rejected)
    }

    /// Returns an error about the first event of a stream with which the stream's rows are rejected. The search tries
    /// ever longer prefixes of the events, so the events before it can be projected in batches of any size.
    async fn find_rejected_event(
        &self,
        set: &GenerationSet,
        events: &[RecordedEvent],
        stream: &StreamId,
        error: &Error,
    ) -> Result<FoldError, Error> {
        for end in 1..events.len() {
            let (batch, _) = self.fold.fold(&events[..end]).await?;
            if let Some(error) = self.try_rows(set, &batch, stream).await? {
                return Ok(FoldError::new(&events[end - 1], error.to_string()));
            }
        }
        Ok(FoldError::new(&events[events.len() - 1], error.to_string()))
    }

    /// Writes a stream's rows in a transaction that is rolled back. Returns the error if the stream may be its cause.
    async fn try_rows(&self, set: &GenerationSet, batch: &Batch, stream: &StreamId) -> Result<Option<Error>, Error> {
        let written = match set.rows(batch, Some(stream)) {
            Ok(rows) => {
                let mut tx = self.store.db().begin().await?;
                set.write(&mut tx, self.fence, rows, None).await
            }
            Err(error) => Err(error),
        };
        Ok(written.err().filter(is_about_one_stream))
    }

    /// Handles failed streams: waits before the next attempt, twice as long each time. After the last attempt parks all
    /// failed streams of the batch in one transaction.
    async fn wait_or_park(&mut self, failing: Failing) -> Result<(), Error> {
        let Some(first) = failing.streams.first() else { return Ok(()) };
        let attempts = if self.failing.0 == first.position { self.failing.1 + 1 } else { 1 };
        self.failing = (first.position, attempts);
        if attempts < self.settings.attempts_max {
            tracing::warn!(failed = %first, streams = failing.streams.len(), attempts, "Projecting failed. Trying the events again.");
            let doubled = self.settings.retry_delay_ms.saturating_mul(1 << (attempts - 1).min(6));
            tokio::time::sleep(Duration::from_millis(doubled)).await;
            return Ok(());
        }
        let mut tx = self.store.db().begin().await?;
        tx.lock_checkpoints().await?;
        let own = "update checkpoints set last_error = null where state = 'live' and group_name = $1 and epoch = $2";
        if tx.execute(own, vec![self.group.name.into(), self.fence.into()]).await? == 0 {
            return Err(Error::Fenced);
        }
        for failed in &failing.streams {
            tracing::error!(%failed, group = self.group.name, attempts, "Parked the stream. See `docket dead-letters list`.");
            match failing.in_group_only {
                true => dead_letters::park(&mut tx, Scope::Group(self.group.name), failed, attempts).await?,
                false => {
                    let (registry, group) = (self.progress.registry(), self.group.name);
                    dead_letters::park_undecodable(&mut tx, registry, group, failed, attempts).await?;
                }
            }
        }
        tx.commit().await?;
        if attempts > self.settings.attempts_max {
            // The event was parked before and fails again. The wait keeps a repeated failure from loading the database.
            tokio::time::sleep(Duration::from_millis(self.settings.retry_delay_ms)).await;
        }
        let parked = failing.streams.into_iter().map(|failed| (failed.stream, failed.position));
        self.fold.exclusions.parked.extend(parked);
        Ok(())
    }

    /// Carries out the operators' decisions, once all generations of the group are at the same position.
    ///
    /// # Errors
    /// [`Error::Fenced`] when the fence has changed, even if there is no decision.
    async fn apply_decisions(&mut self, sets: &mut [GenerationSet]) -> Result<(), Error> {
        let live = "select coalesce(max(epoch), 0) from checkpoints where state = 'live' and group_name = $1";
        let fences: Vec<(i64,)> = self.store.db().fetch_all(live, vec![self.group.name.into()]).await?;
        if fences.first().is_some_and(|(fence,)| *fence != self.fence) {
            // A rebuild has switched generations. Without new events, this check is the only way to notice it.
            return Err(Error::Fenced);
        }
        let [set] = sets else { return Ok(()) };
        loop {
            let mut tx = self.store.db().begin().await?;
            let mut rows = dead_letters::rows(&mut tx).await?;
            if dead_letters::has_old_decisions(&rows) {
                dead_letters::copy_old_decisions(&mut tx).await?;
                rows = dead_letters::rows(&mut tx).await?;
                tx.commit().await?;
            } else {
                drop(tx);
            }
            let (exclusions, asked) = dead_letters::partition(&rows, self.group.name);
            if exclusions.discarded != self.fold.exclusions.discarded {
                self.fold.clear();
            }
            self.fold.exclusions = exclusions;
            // If a stream is parked at several events, only a decision about the first one can be carried out.
            let others = |row: &dead_letters::Row| dead_letters::other_positions(&rows, self.group.name, row);
            let Some(row) = asked.iter().find(|row| others(row).iter().all(|position| *position > row.position)) else {
                return Ok(());
            };
            let next = others(row).into_iter().min();
            self.apply_decision(set, row, next).await?;
        }
    }

    /// Records the decisions as carried out when the pump cannot update any generation of the group: none is of this
    /// release's version, or the log was restored or replaced. Generations past the event become outdated, and their
    /// rebuild follows the decisions. Does nothing when a newer release has built a live generation.
    async fn settle_without_projecting(&self) -> Result<(), Error> {
        let mut tx = self.store.db().begin_durably().await?;
        tx.lock_checkpoints().await?;
        let rows = dead_letters::rows(&mut tx).await?;
        let (_, asked) = dead_letters::partition(&rows, self.group.name);
        for row in asked.iter().filter(|_| self.newer_release.is_none()) {
            dead_letters::settle(&mut tx, row).await?;
            invalidate_others(&mut tx, self.group.name, &[], row.position).await?;
        }
        Ok(tx.commit().await?)
    }

    /// Carries out a decision: brings the parked stream up to the position of its generation set. The changes of the
    /// stream's events from the parked one on, and the end of the parking, are written in one transaction. An event
    /// that fails parks the stream again. If the stream is also parked at a later event, at position `next`, only the
    /// events before that one are applied.
    async fn apply_decision(
        &mut self,
        set: &GenerationSet,
        row: &dead_letters::Row,
        next: Option<i64>,
    ) -> Result<(), Error> {
        let stream = row.stream();
        self.fold.exclusions.parked.remove(&stream);
        if row.state == "discard" {
            self.fold.exclusions.discarded.insert(row.position, row.event.clone());
        }
        let until = next.map_or(set.position, |next| set.position.min(next - 1));
        let events = self.events_of(row, until).await?;
        let (batch, failed) = match self.fold.run(|| self.fold.fold_since(&stream, &events, row.position)) {
            Some(Partial { changes, reached, failed }) => {
                (Some(Batch::of(changes)).filter(|_| reached >= row.position), failed)
            }
            None => (None, None),
        };
        let failed = failed.map(|error| match error.position < row.position {
            // The rows already contain the events before the parked one, so the stream stays parked at that one.
            true => row.failed(format!("an earlier event of the stream fails: {error}")),
            false => error,
        });
        let rows = match &batch {
            Some(batch) => self.fold.run(|| set.rows(batch, None)),
            None => Ok(Vec::new()),
        };
        let mut tx = self.store.db().begin_durably().await?;
        tx.lock_checkpoints().await?;
        let written = match rows {
            Ok(rows) => set.write(&mut tx, self.fence, rows, None).await,
            Err(error) => Err(error),
        };
        match written {
            Err(error) if is_about_one_stream(&error) => {
                drop(tx);
                let mut tx = self.store.db().begin().await?;
                // Writes no rows but checks the fence: a pump that has replaced this one may already have carried out
                // the decision.
                set.write(&mut tx, self.fence, Vec::new(), None).await?;
                dead_letters::park(&mut tx, Scope::Group(self.group.name), &row.failed(error.to_string()), 1).await?;
                self.fold.exclusions.parked.insert(stream, row.position);
                return Ok(tx.commit().await?);
            }
            outcome => outcome?,
        }
        set.raise_revision(&mut tx).await?;
        match &failed {
            Some(failed) if failed.position == row.position => dead_letters::remove_decision(&mut tx, row).await?,
            _ => {
                dead_letters::settle(&mut tx, row).await?;
                invalidate_others(&mut tx, self.group.name, &set.generations, row.position).await?;
            }
        }
        if let Some(failed) = &failed {
            let attempts = if failed.position == row.position { row.attempts + 1 } else { 1 };
            let (registry, group) = (self.progress.registry(), self.group.name);
            dead_letters::park_undecodable(&mut tx, registry, group, failed, attempts).await?;
            self.fold.exclusions.parked.insert(stream.clone(), failed.position);
        }
        tx.commit().await?;
        // The cached states may contain the discarded event.
        self.fold.clear();
        self.store.notify_position(POSITION_TOPIC, set.position).await;
        tracing::info!(%stream, position = row.position, decision = row.state, "Processed the decision about a dead letter.");
        Ok(())
    }

    /// Returns the events of a parked stream up to a position: the whole stream if its states are folded, otherwise the
    /// events from the parked one on.
    async fn events_of(&self, row: &dead_letters::Row, until: i64) -> Result<Vec<RecordedEvent>, Error> {
        let StreamId { aggregate_type, aggregate_id } = row.stream();
        if self.fold.needs_state(&aggregate_type) {
            return Ok(self.store.read_streams(&aggregate_type, &[aggregate_id.to_string()], until + 1).await?);
        }
        let mut events =
            self.store.read_stream(&aggregate_type, &aggregate_id, row.sequence - 1, i64::MAX, i64::MAX).await?;
        events.retain(|event| event.position <= until);
        Ok(events)
    }

    /// Records an error in the checkpoints, for operators. Errors of a fold are recorded only while this pump's fence
    /// is valid. Errors about another log are recorded without a fence, because the change of the fence was rolled
    /// back.
    async fn report(&self, error: &Error) {
        let (condition, fence) = match error {
            Error::Ahead { .. } | Error::OtherLog { .. } => ("state = 'live'", None),
            Error::Fold(_) | Error::Panicked(_) => ("epoch = $3", Some(self.fence)),
            _ => return,
        };
        let sql = format!("update checkpoints set last_error = $1 where group_name = $2 and {condition}");
        let values =
            [error.to_string().into(), self.group.name.into()].into_iter().chain(fence.map(Into::into)).collect();
        let written = async {
            let mut tx: Tx = self.store.db().begin().await?;
            tx.execute(&sql, values).await?;
            tx.commit().await
        };
        if let Err(error) = written.await {
            let error: StoreError = error;
            tracing::warn!(%error, "Could not record the error in the checkpoints.");
        }
    }
}

/// Whether one stream of a batch may be the cause of an error: the database rejects its rows, or the fold of a
/// projection panics.
fn is_about_one_stream(error: &Error) -> bool {
    match error {
        Error::Store(error) => error.is_data_error(),
        Error::Panicked(_) => true,
        _ => false,
    }
}
