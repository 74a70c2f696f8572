//! The pump: stream → fold → rows and checkpoint in one transaction → signal.
//!
//! One process pumps at a time. It takes the checkpoints under a new epoch; every commit compares position and epoch, so
//! a pump that has lost its place writes nothing.

use std::time::{Duration, Instant};

use event_store::db::Tx;
use event_store::error::Error as StoreError;
use event_store::event::RecordedEvent;
use event_store::store::Store;
use event_store::trace;
use opentelemetry::trace::SpanKind;
use tokio_util::sync::CancellationToken;

use crate::dead_letters::{self, LeftOut};
use crate::error::{Error, guarded};
use crate::fold::Fold;
use crate::generation::{LIVE, Lane, Member, checkpoints, lanes, outdate_others, prepare, take_over};
use crate::metrics::METRICS;
use crate::order::{FoldError, ORDER, OrderState};
use crate::progress::{HINT, Progress};
use crate::projection::{Change, all};
use crate::rebuild;
use crate::settings::Settings;

/// How often operators' decisions about dead letters are looked for.
const LOOK_FOR_DECISIONS: Duration = Duration::from_secs(1);
/// How long a pump stands back when the database holds what only a newer release can fill.
const STAND_BACK: Duration = Duration::from_secs(3);
/// After which time it does so again.
const STAND_BACK_AGAIN: Duration = Duration::from_secs(300);

/// Projects for ever: leads, catches up, follows; after a failure begins again from the checkpoints. Builds what this
/// release has newer than the database, in the background.
pub async fn run(store: Store, settings: Settings, progress: Progress, stop: CancellationToken) {
    let work = async { tokio::join!(lead(&store, &settings, &progress), rebuild::upgrade(&store, &settings)) };
    tokio::select! {
        _ = work => {}
        // Between two commits at the worst: what is not committed comes again.
        () = stop.cancelled() => {}
    }
}

async fn lead(store: &Store, settings: &Settings, progress: &Progress) {
    let mut stood_back = false;
    loop {
        let mut leadership = store.lead("projections").await;
        let mut pump = Pump::new(store.clone(), settings.clone(), progress.clone());
        tracing::info!("projections: leading");
        let still_leading = async {
            while leadership.check().await.is_ok() {
                tokio::time::sleep(Duration::from_secs(2)).await;
            }
        };
        let outcome = tokio::select! {
            outcome = guarded(pump.follow(!stood_back)) => outcome,
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
                tracing::info!("projections: the checkpoints were taken over, reading them again");
                false
            }
            Err(error) => {
                tracing::error!(%error, "projections: starting over from the checkpoints");
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
fn tell(events: &[RecordedEvent]) {
    if tracing::enabled!(tracing::Level::DEBUG) {
        for event in events {
            tracing::debug!(
                request_id = event.metadata_text("request_id"),
                order.id = &*event.aggregate_id,
                event.r#type = &*event.event_type,
                event.position = event.position,
                "projected"
            );
        }
    }
}

struct Pump {
    store: Store,
    settings: Settings,
    progress: Progress,
    epoch: i64,
    fold: Fold,
    /// Position of the event that failed last, and how often it did.
    failing: (i64, i64),
    /// What a newer release has built in the database, if it has.
    beside_newer: Option<(String, i64, i64)>,
}

impl Pump {
    fn new(store: Store, settings: Settings, progress: Progress) -> Self {
        let fold = Fold::new(store.clone(), settings.orders_in_memory_max, LeftOut::default());
        Self { store, settings, progress, epoch: 0, fold, failing: (0, 0), beside_newer: None }
    }

    /// Follows the log. With `stand_back` it gives way where a newer release is at work.
    async fn follow(&mut self, stand_back: bool) -> Result<(), Error> {
        prepare(&self.store).await?;
        let mut lanes = self.acquire(stand_back).await?;
        let Some(slowest) = lanes.first() else {
            // Nothing here is of this release's version: the upgrade will take over the checkpoints.
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
                        self.carry_out_decisions(&mut lanes).await?;
                        looked = Instant::now();
                    }
                    if let Ok(events) = tokio::time::timeout(LOOK_FOR_DECISIONS, next.as_mut()).await {
                        break events?;
                    }
                }
            };
            let mut events = &events[..];
            while let (Some(last), Some(lane)) = (events.last(), lanes.first()) {
                // A lane that has caught up with another one may have seen the rest of the batch already.
                let skip = (lane.position + 1 - events[0].position).max(0) as usize;
                if lane.position >= last.position {
                    break;
                }
                events = &events[skip..];
                match self.take(&mut lanes, events).await {
                    Ok(position) => self.store.hint(HINT, position).await,
                    Err(Error::Fold(failed)) => {
                        let failing = self.fold.failing(events, failed).await;
                        self.wait_or_park(failing).await?;
                    }
                    Err(error) => return Err(error),
                }
            }
        }
    }

    /// Takes the live checkpoints under a new epoch. The slowest lane comes first.
    async fn acquire(&mut self, stand_back: bool) -> Result<Vec<Lane>, Error> {
        let database_epoch = self.store.db().epoch();
        let mut tx = self.store.db().begin().await?;
        self.epoch = take_over(&mut tx, &[LIVE]).await?;
        let rows = checkpoints(&mut tx).await?;
        // After the checkpoints, which another pump may have moved until now.
        let head = self.store.head().await?;
        let (left_out, _) = dead_letters::sort_out(dead_letters::of_this_log(&mut tx, &self.store).await?);
        let mut members = Vec::new();
        self.beside_newer = None;
        for projection in all() {
            let Some(row) = rows.iter().find(|row| row.projection == projection.name && row.state == LIVE) else {
                continue;
            };
            row.is_of(&self.store, head).await?;
            let (version, known) = (row.version, projection.version);
            if version > known && stand_back {
                return Err(Error::Newer { projection: row.projection.clone(), version, known });
            }
            if version > known {
                self.beside_newer = Some((row.projection.clone(), version, known));
            }
            if version == known {
                members.push((Member { projection, generation: row.generation }, row.position));
            }
        }
        tx.commit().await?;
        self.fold.forget();
        self.fold.left_out = left_out;
        for (member, position) in &members {
            self.progress.committed(&[member.projection.name], *position, database_epoch);
        }
        Ok(lanes(members))
    }

    /// Projects events into the slowest lane, which the first event follows; stops where the next lane stands and joins
    /// it there. Gives the lane's new position.
    async fn take(&mut self, lanes: &mut Vec<Lane>, events: &[RecordedEvent]) -> Result<i64, Error> {
        let next_lane = lanes.get(1).map_or(i64::MAX, |lane| lane.position);
        let end = events.iter().position(|event| event.position > next_lane).unwrap_or(events.len());
        let events = &events[..end];
        let lane = &mut lanes[0];
        if let Some(last) = events.last() {
            let started = Instant::now();
            let _spans: Vec<_> =
                events.iter().filter_map(|event| trace::of_event("project", SpanKind::Consumer, event)).collect();
            let changes = self.fold.changes(events).await?;
            let database_epoch = self.store.db().epoch();
            match lane.commit(&self.store, self.epoch, &changes, last).await {
                Err(Error::Store(error)) if error.is_about_the_data() => {
                    return Err(self.culprit(lane, events, &changes).await?.map_or(error.into(), Error::Fold));
                }
                outcome => outcome?,
            }
            METRICS.batch.record(started.elapsed().as_secs_f64(), &[]);
            // Lanes meet where all have been: a lane behind the others counts what they have counted before.
            if next_lane == i64::MAX {
                METRICS.events.add(events.len() as u64, &[]);
                METRICS.business(&changes);
                tell(events);
            }
            self.fold.keep(&changes);
            lane.position = last.position;
            let names: Vec<_> = lane.members.iter().map(|member| member.projection.name).collect();
            self.progress.committed(&names, last.position, database_epoch);
        }
        let position = lanes[0].position;
        if position == next_lane {
            let caught_up = lanes.remove(0);
            lanes[0].members.extend(caught_up.members);
        }
        Ok(position)
    }

    /// Which order's row it is that the database refuses.
    async fn culprit(
        &self,
        lane: &Lane,
        events: &[RecordedEvent],
        changes: &[Change],
    ) -> Result<Option<FoldError>, Error> {
        for change in changes {
            let mut tx = self.store.db().begin().await?;
            let alone = std::slice::from_ref(change);
            if let Err(Error::Store(error)) = lane.write(&mut tx, self.epoch, alone, None).await
                && error.is_about_the_data()
                && let Some(event) = events.iter().find(|event| event.aggregate_id == change.after.order_id)
            {
                return Ok(Some(FoldError::new(event, error.to_string())));
            }
        }
        Ok(None)
    }

    /// After a failure: waits, a little longer each time; after the last attempt parks the orders, all of a batch at once.
    async fn wait_or_park(&mut self, failing: Vec<FoldError>) -> Result<(), Error> {
        let Some(first) = failing.first() else { return Ok(()) };
        let attempts = if self.failing.0 == first.position { self.failing.1 + 1 } else { 1 };
        self.failing = (first.position, attempts);
        if attempts < self.settings.attempts_max {
            tracing::warn!(failed = %first, orders = failing.len(), attempts, "projections: trying again");
            let doubled = self.settings.retry_delay_ms.saturating_mul(1 << (attempts - 1).min(6));
            tokio::time::sleep(Duration::from_millis(doubled)).await;
            return Ok(());
        }
        let mut tx = self.store.db().begin().await?;
        let own = "update checkpoints set last_error = null where state = 'live' and epoch = $1";
        if tx.execute(own, vec![self.epoch.into()]).await? == 0 {
            return Err(Error::Fenced);
        }
        for failed in &failing {
            tracing::error!(%failed, attempts, "projections: the order is parked, see `docket dead-letters`");
            dead_letters::park(&mut tx, failed, attempts).await?;
        }
        tx.commit().await?;
        let parked = failing.into_iter().map(|failed| (failed.order_id, failed.position));
        self.fold.left_out.parked.extend(parked);
        Ok(())
    }

    /// Retries and discards what operators asked for, once every lane is at the same position.
    ///
    /// # Errors
    /// [`Error::Fenced`] also where nothing was asked for.
    async fn carry_out_decisions(&mut self, lanes: &mut [Lane]) -> Result<(), Error> {
        let live = "select coalesce(max(epoch), 0) from checkpoints where state = 'live'";
        let epochs: Vec<(i64,)> = self.store.db().fetch_all(live, vec![]).await?;
        if epochs.first().is_some_and(|(epoch,)| *epoch != self.epoch) {
            // A rebuild has switched: without a new event nothing else would tell.
            return Err(Error::Fenced);
        }
        let [lane] = lanes else { return Ok(()) };
        let mut tx = self.store.db().begin().await?;
        let (left_out, asked) = dead_letters::sort_out(dead_letters::rows(&mut tx).await?);
        drop(tx);
        self.fold.left_out = left_out;
        for row in asked {
            self.carry_out(lane, &row).await?;
        }
        Ok(())
    }

    /// The same where no generation is moved by this release: all are about to be built anew, by what was decided.
    async fn grant_decisions(&self) -> Result<(), Error> {
        let mut tx = self.store.db().begin_durably().await?;
        tx.lock_checkpoints().await?;
        let (_, asked) = dead_letters::sort_out(dead_letters::rows(&mut tx).await?);
        for row in asked.iter().filter(|_| self.beside_newer.is_none()) {
            dead_letters::settle(&mut tx, row).await?;
            outdate_others(&mut tx, &[], row.position).await?;
        }
        Ok(tx.commit().await?)
    }

    /// Brings a parked order to the lane's position: what its events from the parked one on change is written in one
    /// transaction with the end of the parking. An event that fails parks the order again.
    async fn carry_out(&mut self, lane: &Lane, row: &dead_letters::Row) -> Result<(), Error> {
        self.fold.left_out.parked.remove(&row.aggregate_id);
        if row.state == "discard" {
            self.fold.left_out.discarded.insert(row.position, row.event.clone());
        }
        let ids = [row.aggregate_id.clone()];
        let mut order = OrderState::default();
        let mut before = None;
        let mut failed = None;
        for event in self.store.read_streams(ORDER, &ids, lane.position + 1).await? {
            if event.position == row.position && order.version > 0 {
                before = Some(order.clone().into());
            }
            if let Err(error) = self.fold.apply(&mut order, &event) {
                // What lies before the parked event is in the rows.
                let earlier = error.position < row.position;
                failed = Some(if earlier { row.failed(format!("{error}, before it")) } else { error });
                break;
            }
        }
        let changes: Vec<_> = match order.position >= row.position {
            true => Change::of(before, order.into()).into_iter().collect(),
            false => Vec::new(),
        };
        let mut tx = self.store.db().begin_durably().await?;
        match lane.write(&mut tx, self.epoch, &changes, None).await {
            Err(Error::Store(error)) if error.is_about_the_data() => {
                drop(tx);
                let mut tx = self.store.db().begin().await?;
                dead_letters::park(&mut tx, &row.failed(error.to_string()), 1).await?;
                self.fold.left_out.parked.insert(row.aggregate_id.clone(), row.position);
                return Ok(tx.commit().await?);
            }
            outcome => outcome?,
        }
        if failed.as_ref().is_none_or(|failed| failed.position != row.position) {
            dead_letters::settle(&mut tx, row).await?;
            outdate_others(&mut tx, &lane.members, row.position).await?;
        }
        if let Some(failed) = &failed {
            dead_letters::park(&mut tx, failed, 1).await?;
            self.fold.left_out.parked.insert(row.aggregate_id.clone(), failed.position);
        }
        tx.commit().await?;
        self.fold.keep(&changes);
        self.store.hint(HINT, lane.position).await;
        tracing::info!(order_id = row.aggregate_id, position = row.position, wish = row.state, "dead letter");
        Ok(())
    }

    /// Writes down why it failed, for operators; a pump that was fenced has no say.
    async fn report(&self, error: &Error) {
        let (condition, epoch) = match error {
            Error::Ahead { .. } | Error::OtherLog { .. } => ("state = 'live'", None),
            Error::Fold(_) | Error::Panicked(_) => ("epoch = $2", Some(self.epoch)),
            _ => return,
        };
        let sql = format!("update checkpoints set last_error = $1 where {condition}");
        let values = std::iter::once(error.to_string().into()).chain(epoch.map(Into::into)).collect();
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
