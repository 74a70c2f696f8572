//! The pump: stream → fold → rows and checkpoint in one transaction → signal.
//!
//! Each group has a task of its own, and one process pumps a group at a time. It takes the group's checkpoints under a new
//! fence; every commit compares position and fence, so a pump that was replaced writes nothing.

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
    CheckpointGroup, Generation, LIVE, bump_fence, by_position, checkpoints, invalidate_others, prepare_group,
};
use crate::group_fold::{Batch, GroupFold};
use crate::metrics::METRICS;
use crate::progress::{HINT, Progress};
use crate::rebuild;
use crate::registry::{Group, projecting};
use crate::settings::Settings;
use crate::state::FoldError;

/// How often operators' decisions about dead letters are looked for.
const LOOK_FOR_DECISIONS: Duration = Duration::from_secs(1);
/// How long a pump stands back when the database holds what only a newer release can fill.
const STAND_BACK: Duration = Duration::from_secs(3);
/// After which time it does so again.
const STAND_BACK_AGAIN: Duration = Duration::from_secs(300);

/// Projects every group for ever: leads, catches up, follows; after a failure begins again from the checkpoints. Builds what
/// this release has newer than the database, in the background.
pub async fn run(store: Store, settings: Settings, progress: Progress, stop: CancellationToken) {
    let groups = 0..progress.registry().groups().len();
    let tasks = groups.map(|at| {
        let (store, settings, progress, stop) = (store.clone(), settings.clone(), progress.clone(), stop.clone());
        // A task each: one whose fold does not return holds up no other.
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
                // Between two commits at the worst: what is not committed comes again.
                () = stop.cancelled() => {}
            }
        })
    });
    futures::future::join_all(tasks).await;
}

async fn lead(store: &Store, group: &Group, settings: &Settings, progress: &Progress) {
    let mut stood_back = false;
    loop {
        let mut leadership = store.lead(&projecting(group.name)).await;
        let mut pump = Pump::new(store.clone(), group, settings.clone(), progress.clone());
        tracing::info!(group = group.name, "projections: leading");
        let still_leading = async {
            while leadership.check().await.is_ok() {
                tokio::time::sleep(Duration::from_secs(2)).await;
            }
        };
        let outcome = tokio::select! {
            outcome = catch_panic(pump.follow(!stood_back)) => outcome,
            () = still_leading => Err(Error::Fenced),
        };
        drop(leadership);
        stood_back = match outcome {
            Err(Error::Newer { projection, version, known }) => {
                tracing::warn!(
                    projection,
                    projection.version = version,
                    known,
                    "projections: a newer release may lead"
                );
                tokio::time::sleep(STAND_BACK).await;
                true
            }
            Err(Error::Fenced) => {
                tracing::info!(group = group.name, "projections: the checkpoints were taken over, reading them again");
                false
            }
            Err(error) => {
                tracing::error!(group = group.name, %error, "projections: starting over from the checkpoints");
                pump.report(&error).await;
                // Only a rebuild helps, and it waits for these.
                if matches!(error, Error::Ahead { .. } | Error::OtherLog { .. })
                    && let Err(error) = pump.grant_decisions().await
                {
                    tracing::warn!(%error, "projections: decisions about dead letters wait");
                }
                tokio::time::sleep(Duration::from_millis(settings.retry_delay_ms)).await;
                false
            }
            Ok(()) => false,
        };
    }
}

/// Lines for whoever follows one request through the logs.
fn log_projected(events: &[RecordedEvent]) {
    if tracing::enabled!(tracing::Level::DEBUG) {
        for event in events {
            tracing::debug!(
                request_id = event.metadata_text("request_id"),
                aggregate.r#type = &*event.aggregate_type,
                aggregate.id = &*event.aggregate_id,
                event.r#type = &*event.event_type,
                event.position = event.position,
                "projected"
            );
        }
    }
}

/// Streams of a batch that cannot be projected, and for whom they are parked.
struct Failing {
    streams: Vec<FoldError>,
    in_group_only: bool,
}

/// How far a batch was projected.
enum Projected {
    /// To this position.
    To(i64),
    /// Not at all.
    Failing(Failing),
}

struct Pump<'a> {
    store: Store,
    group: &'a Group,
    settings: Settings,
    progress: Progress,
    fence: i64,
    fold: GroupFold,
    /// Position of the event that failed last, and how often it did.
    failing: (i64, i64),
    /// What a newer release has built in the database, if it has.
    beside_newer: Option<(String, i64, i64)>,
}

impl<'a> Pump<'a> {
    fn new(store: Store, group: &'a Group, settings: Settings, progress: Progress) -> Self {
        let fold = GroupFold::new(&store, group, settings.aggregates_in_memory_max, Exclusions::default());
        Self { store, group, settings, progress, fence: 0, fold, failing: (0, 0), beside_newer: None }
    }

    /// Follows the log. With `stand_back` it gives way where a newer release is at work.
    async fn follow(&mut self, stand_back: bool) -> Result<(), Error> {
        prepare_group(&self.store, self.group).await?;
        let mut groups = self.acquire(stand_back).await?;
        let Some(slowest) = groups.first() else {
            // Nothing here is of this release's version: the upgrade takes over the checkpoints.
            self.grant_decisions().await?;
            tokio::time::sleep(STAND_BACK).await;
            return Ok(());
        };
        let mut stream = self.store.subscribe(slowest.position);
        let (began, mut looked) = (Instant::now(), Instant::now());
        loop {
            // The newer release may have been away just when this one stood back.
            if let Some((projection, version, known)) = self.beside_newer.clone()
                && began.elapsed() >= STAND_BACK_AGAIN
            {
                return Err(Error::Newer { projection, version, known });
            }
            // One call is waited for across the looks at decisions, so that its own deadlines count.
            let events = {
                let mut next = std::pin::pin!(stream.next());
                loop {
                    if looked.elapsed() >= LOOK_FOR_DECISIONS {
                        self.apply_decisions(&mut groups).await?;
                        looked = Instant::now();
                    }
                    if let Ok(events) = tokio::time::timeout(LOOK_FOR_DECISIONS, next.as_mut()).await {
                        break events?;
                    }
                }
            };
            let mut events = &events[..];
            while let (Some(last), Some(slowest)) = (events.last(), groups.first()) {
                // A checkpoint group that has caught up with another one may have seen the rest of the batch already.
                let skip = (slowest.position + 1 - events[0].position).max(0) as usize;
                if slowest.position >= last.position {
                    break;
                }
                events = &events[skip..];
                match self.project_batch(&mut groups, events).await? {
                    Projected::To(position) => self.store.notify_position(HINT, position).await,
                    Projected::Failing(failing) => self.wait_or_park(failing).await?,
                }
            }
        }
    }

    /// Takes the live checkpoints under a new fence. The slowest come first.
    async fn acquire(&mut self, stand_back: bool) -> Result<Vec<CheckpointGroup>, Error> {
        let database_epoch = self.store.db().epoch();
        let mut tx = self.store.db().begin().await?;
        self.fence = bump_fence(&mut tx, self.group.name, &[LIVE]).await?;
        let rows = checkpoints(&mut tx).await?;
        // After the checkpoints, which another pump may have moved until now.
        let head = self.store.head().await?;
        let letters = dead_letters::of_this_log(&mut tx, &self.store).await?;
        let mut generations = Vec::new();
        self.beside_newer = None;
        for &projection in &self.group.projections {
            let Some(row) = rows.iter().find(|row| row.projection == projection.name() && row.state == LIVE) else {
                continue;
            };
            row.check_belongs_to(&self.store, head).await?;
            let (version, known) = (row.version, projection.version());
            if version > known && stand_back {
                return Err(Error::Newer { projection: row.projection.clone(), version, known });
            }
            if version > known {
                self.beside_newer = Some((row.projection.clone(), version, known));
            }
            if version == known {
                generations.push((Generation { projection, number: row.generation }, row.position));
            }
        }
        tx.commit().await?;
        self.fold.clear();
        self.fold.exclusions = dead_letters::partition(&letters, self.group.name).0;
        for (generation, position) in &generations {
            self.progress.committed(&[generation.projection.name()], *position, database_epoch);
        }
        Ok(by_position(generations))
    }

    /// Projects events into the slowest checkpoint group, which the first event follows; stops where the next one is and
    /// joins it there.
    async fn project_batch(
        &mut self,
        groups: &mut Vec<CheckpointGroup>,
        events: &[RecordedEvent],
    ) -> Result<Projected, Error> {
        let next = groups.get(1).map_or(i64::MAX, |group| group.position);
        let end = events.iter().position(|event| event.position > next).unwrap_or(events.len());
        let events = &events[..end];
        let slowest = &mut groups[0];
        if let Some(last) = events.last() {
            let started = Instant::now();
            let _spans: Vec<_> =
                events.iter().filter_map(|event| trace::of_event("project", SpanKind::Consumer, event)).collect();
            let (batch, failed) = self.fold.fold(events).await?;
            if !failed.is_empty() {
                return Ok(Projected::Failing(Failing { streams: failed, in_group_only: false }));
            }
            let database_epoch = self.store.db().epoch();
            // Before the transaction begins: whatever a fold does, it holds no lock.
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
            // Checkpoint groups meet where all have been: one behind the others counts what they have counted before.
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
            self.progress.committed(&names, last.position, database_epoch);
        }
        let position = groups[0].position;
        if position == next {
            let caught_up = groups.remove(0);
            groups[0].generations.extend(caught_up.generations);
        }
        Ok(Projected::To(position))
    }

    /// The streams of a batch whose rows the database refuses, or whose projections panic.
    async fn find_rejected_streams(
        &self,
        group: &CheckpointGroup,
        events: &[RecordedEvent],
        batch: &Batch,
    ) -> Result<Vec<FoldError>, Error> {
        let mut tried = HashSet::new();
        let mut rejected = Vec::new();
        for (first, stream) in events.iter().map(RecordedEvent::stream).enumerate() {
            if !tried.insert(stream.clone()) {
                continue;
            }
            if let Some(error) = self.try_rows(group, batch, &stream).await? {
                let own: Vec<_> = events[first..].iter().filter(|event| event.stream() == stream).cloned().collect();
                rejected.push(self.find_rejected_event(group, &own, &stream, &error).await?);
            }
        }
        Ok(rejected)
    }

    /// The first of a stream's events after which its rows are refused: those before it are projected, in batches of any size.
    async fn find_rejected_event(
        &self,
        group: &CheckpointGroup,
        events: &[RecordedEvent],
        stream: &StreamId,
        error: &Error,
    ) -> Result<FoldError, Error> {
        for end in 1..events.len() {
            let (batch, _) = self.fold.fold(&events[..end]).await?;
            if let Some(error) = self.try_rows(group, &batch, stream).await? {
                return Ok(FoldError::new(&events[end - 1], error.to_string()));
            }
        }
        Ok(FoldError::new(&events[events.len() - 1], error.to_string()))
    }

    /// Writes a stream's rows without keeping them; the error where it is about the stream.
    async fn try_rows(
        &self,
        group: &CheckpointGroup,
        batch: &Batch,
        stream: &StreamId,
    ) -> Result<Option<Error>, Error> {
        let written = match group.rows(batch, Some(stream)) {
            Ok(rows) => {
                let mut tx = self.store.db().begin().await?;
                group.write(&mut tx, self.fence, rows, None).await
            }
            Err(error) => Err(error),
        };
        Ok(written.err().filter(is_about_one_stream))
    }

    /// After a failure: waits, a little longer each time; after the last attempt parks the streams, all of a batch at once.
    async fn wait_or_park(&mut self, failing: Failing) -> Result<(), Error> {
        let Some(first) = failing.streams.first() else { return Ok(()) };
        let attempts = if self.failing.0 == first.position { self.failing.1 + 1 } else { 1 };
        self.failing = (first.position, attempts);
        if attempts < self.settings.attempts_max {
            tracing::warn!(failed = %first, streams = failing.streams.len(), attempts, "projections: trying again");
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
            tracing::error!(%failed, group = self.group.name, attempts, "projections: the stream is parked, see `docket dead-letters`");
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
            // Parking has not helped: whatever it is, it does not keep the database busy.
            tokio::time::sleep(Duration::from_millis(self.settings.retry_delay_ms)).await;
        }
        let parked = failing.streams.into_iter().map(|failed| (failed.stream, failed.position));
        self.fold.exclusions.parked.extend(parked);
        Ok(())
    }

    /// Retries and discards what operators asked for, once every checkpoint of the group is at the same position.
    ///
    /// # Errors
    /// [`Error::Fenced`] also where nothing was asked for.
    async fn apply_decisions(&mut self, groups: &mut [CheckpointGroup]) -> Result<(), Error> {
        let live = "select coalesce(max(epoch), 0) from checkpoints where state = 'live' and group_name = $1";
        let fences: Vec<(i64,)> = self.store.db().fetch_all(live, vec![self.group.name.into()]).await?;
        if fences.first().is_some_and(|(fence,)| *fence != self.fence) {
            // A rebuild has switched: without a new event nothing else would tell.
            return Err(Error::Fenced);
        }
        let [group] = groups else { return Ok(()) };
        loop {
            let mut tx = self.store.db().begin().await?;
            let mut rows = dead_letters::rows(&mut tx).await?;
            if dead_letters::asks_every_group(&rows) {
                dead_letters::ask_every_group_again(&mut tx).await?;
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
            // Of a stream that is parked at several events, the first one is decided on first.
            let others = |row: &dead_letters::Row| dead_letters::other_positions(&rows, self.group.name, row);
            let Some(row) = asked.iter().find(|row| others(row).iter().all(|position| *position > row.position)) else {
                return Ok(());
            };
            let next = others(row).into_iter().min();
            self.apply_decision(group, row, next).await?;
        }
    }

    /// The same where no generation is moved by this release: all are about to be built again, by what was decided.
    async fn grant_decisions(&self) -> Result<(), Error> {
        let mut tx = self.store.db().begin_durably().await?;
        tx.lock_checkpoints().await?;
        let rows = dead_letters::rows(&mut tx).await?;
        let (_, asked) = dead_letters::partition(&rows, self.group.name);
        for row in asked.iter().filter(|_| self.beside_newer.is_none()) {
            dead_letters::settle(&mut tx, row).await?;
            invalidate_others(&mut tx, self.group.name, &[], row.position).await?;
        }
        Ok(tx.commit().await?)
    }

    /// Brings a parked stream to the group's position: what its events from the parked one on change is written in one
    /// transaction with the end of the parking. An event that fails parks the stream again. Where the stream is parked at a
    /// later event as well, it is brought up to that one.
    async fn apply_decision(
        &mut self,
        group: &CheckpointGroup,
        row: &dead_letters::Row,
        next: Option<i64>,
    ) -> Result<(), Error> {
        let stream = row.stream();
        self.fold.exclusions.parked.remove(&stream);
        if row.state == "discard" {
            self.fold.exclusions.discarded.insert(row.position, row.event.clone());
        }
        let until = next.map_or(group.position, |next| group.position.min(next - 1));
        let events = self.events_of(row, until).await?;
        let (batch, failed) = match self.fold.run(|| self.fold.since(&stream, &events, row.position)) {
            Some(Partial { changes, reached, failed }) => {
                (Some(Batch::of(changes)).filter(|_| reached >= row.position), failed)
            }
            None => (None, None),
        };
        let failed = failed.map(|error| match error.position < row.position {
            // What is before the parked event is in the rows.
            true => row.failed(format!("{error}, before it")),
            false => error,
        });
        let rows = match &batch {
            Some(batch) => self.fold.run(|| group.rows(batch, None)),
            None => Ok(Vec::new()),
        };
        let mut tx = self.store.db().begin_durably().await?;
        tx.lock_checkpoints().await?;
        let written = match rows {
            Ok(rows) => group.write(&mut tx, self.fence, rows, None).await,
            Err(error) => Err(error),
        };
        match written {
            Err(error) if is_about_one_stream(&error) => {
                drop(tx);
                let mut tx = self.store.db().begin().await?;
                // Only as long as this pump leads: its successor may have settled the row.
                group.write(&mut tx, self.fence, Vec::new(), None).await?;
                dead_letters::park(&mut tx, Scope::Group(self.group.name), &row.failed(error.to_string()), 1).await?;
                self.fold.exclusions.parked.insert(stream, row.position);
                return Ok(tx.commit().await?);
            }
            outcome => outcome?,
        }
        group.raise_revision(&mut tx).await?;
        match &failed {
            Some(failed) if failed.position == row.position => dead_letters::give_up(&mut tx, row).await?,
            _ => {
                dead_letters::settle(&mut tx, row).await?;
                invalidate_others(&mut tx, self.group.name, &group.generations, row.position).await?;
            }
        }
        if let Some(failed) = &failed {
            let attempts = if failed.position == row.position { row.attempts + 1 } else { 1 };
            let (registry, group) = (self.progress.registry(), self.group.name);
            dead_letters::park_undecodable(&mut tx, registry, group, failed, attempts).await?;
            self.fold.exclusions.parked.insert(stream.clone(), failed.position);
        }
        tx.commit().await?;
        // What was discarded may be in the states of before.
        self.fold.clear();
        self.store.notify_position(HINT, group.position).await;
        tracing::info!(%stream, position = row.position, decision = row.state, "dead letter");
        Ok(())
    }

    /// The events of a parked stream up to a position: all of them where its states are folded, else those from the parked
    /// one on.
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

    /// Writes down why it failed, for operators; a pump that was fenced writes nothing.
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
            tracing::warn!(%error, "the failure could not be written down");
        }
    }
}

/// Whether one stream of a batch may be the reason: the database refuses its rows, or its fold panics.
fn is_about_one_stream(error: &Error) -> bool {
    match error {
        Error::Store(error) => error.is_about_the_data(),
        Error::Panicked(_) => true,
        _ => false,
    }
}
