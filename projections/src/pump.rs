//! The pump: stream → fold → rows and checkpoint in one transaction → signal. And the rebuild.
//!
//! One process pumps at a time. It takes the checkpoints under a new epoch; every commit compares position and epoch, so
//! a pump that has lost its place writes nothing.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use event_store::db::{Tx, Value};
use event_store::error::Error;
use event_store::event::RecordedEvent;
use event_store::now_us;
use event_store::store::Store;
use serde::{Deserialize, Serialize};
use tokio_util::sync::CancellationToken;

use crate::order::{FoldError, ORDER, OrderState};
use crate::progress::{HINT, Progress};
use crate::projection::{Change, Projection, all};

/// How much is projected at once.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Settings {
    /// Orders kept in memory between batches; others are folded again from the log when they change.
    pub orders_in_memory_max: usize,
    /// Wait after a failure, before the same events are tried again, in milliseconds.
    pub retry_delay_ms: u64,
}

impl Default for Settings {
    fn default() -> Self {
        Self { orders_in_memory_max: 10_000, retry_delay_ms: 500 }
    }
}

/// Why a batch was not projected; nothing of it was written.
#[derive(Debug, thiserror::Error)]
pub enum PumpError {
    /// The database is away.
    #[error(transparent)]
    Store(#[from] Error),
    /// An event does not apply.
    #[error(transparent)]
    Fold(#[from] FoldError),
    /// Another process projects now.
    #[error("another process has taken over")]
    Fenced,
    /// The read models know events that the log does not have: the log is another one, or an older copy.
    #[error(
        "the read models are at position {position}, the log ends at {head}: it was restored or replaced. Stop the server and run `docket replay --all`"
    )]
    Ahead {
        /// The furthest checkpoint.
        position: i64,
        /// Position of the last event.
        head: i64,
    },
    /// Another process holds the lead.
    #[error("a running server projects: stop it (or its `project` role) first")]
    Busy,
}

/// Projections that are at the same position and move together.
#[derive(Clone)]
struct Lane {
    position: i64,
    projections: Vec<&'static Projection>,
}

/// Projects for ever: leads, catches up, follows; after a failure begins again from the checkpoints.
pub async fn run(store: Store, settings: Settings, progress: Progress, stop: CancellationToken) {
    tokio::select! {
        () = lead(&store, &settings, &progress, &stop) => {}
        // Between two commits at the worst: what is not committed comes again.
        () = stop.cancelled() => {}
    }
}

async fn lead(store: &Store, settings: &Settings, progress: &Progress, stop: &CancellationToken) {
    while !stop.is_cancelled() {
        let mut leadership = store.lead("projections").await;
        let mut pump = Pump::new(store.clone(), settings, progress.clone());
        tracing::info!("projections: leading");
        let still_leading = async {
            while leadership.check().await.is_ok() {
                tokio::time::sleep(Duration::from_secs(2)).await;
            }
        };
        let outcome = tokio::select! {
            outcome = pump.follow() => outcome,
            () = still_leading => Err(PumpError::Fenced),
        };
        if let Err(error) = outcome {
            tracing::error!(%error, "projections: starting over from the checkpoints");
            pump.report(&error).await;
            if let PumpError::Ahead { .. } = error {
                // Waiting would only let new events take the positions that the read models know as others.
                return;
            }
            tokio::time::sleep(Duration::from_millis(settings.retry_delay_ms)).await;
        }
    }
}

/// Empties the named projections' tables and fills them from the log, up to its present head. Readers see it happen.
///
/// # Errors
/// [`PumpError::Busy`] while a server projects; an event that does not apply stops it, and nothing is skipped.
pub async fn rebuild(
    store: &Store,
    settings: &Settings,
    projections: &[&'static Projection],
    mut on_progress: impl FnMut(i64, i64),
) -> Result<i64, PumpError> {
    let _leadership =
        tokio::time::timeout(Duration::from_secs(2), store.lead("projections")).await.map_err(|_| PumpError::Busy)?;
    let mut pump = Pump::new(store.clone(), settings, Progress::default());
    pump.acquire().await?;
    pump.clear(projections).await?;
    let head = store.head().await?;
    let mut lanes = pump.acquire().await?;
    while let Some(lane) = lanes.first().cloned().filter(|lane| lane.position < head) {
        let events = store.read(lane.position, 2_000).await?;
        on_progress(pump.take(&mut lanes, &events).await?, head);
    }
    Ok(head)
}

struct Pump {
    store: Store,
    progress: Progress,
    epoch: i64,
    /// Orders as the last committed batch left them. Only ever a shortcut: an entry that is not exactly the version
    /// before the next event is folded again from the log.
    orders: quick_cache::sync::Cache<String, Arc<OrderState>>,
}

impl Pump {
    fn new(store: Store, settings: &Settings, progress: Progress) -> Self {
        Self { store, progress, epoch: 0, orders: quick_cache::sync::Cache::new(settings.orders_in_memory_max) }
    }

    async fn follow(&mut self) -> Result<(), PumpError> {
        let mut lanes = self.acquire().await?;
        let (Some(slowest), Some(furthest)) = (lanes.first(), lanes.last()) else { return Ok(()) };
        let head = self.store.head().await?;
        if furthest.position > head {
            return Err(PumpError::Ahead { position: furthest.position, head });
        }
        let mut stream = self.store.subscribe(slowest.position);
        loop {
            let mut events = &stream.next().await?[..];
            while let (Some(last), Some(lane)) = (events.last(), lanes.first()) {
                // A lane that has caught up with another one may have seen the rest of the batch already.
                let skip = (lane.position + 1 - events[0].position).max(0) as usize;
                if lane.position >= last.position {
                    break;
                }
                events = &events[skip..];
                let position = self.take(&mut lanes, events).await?;
                self.store.hint(HINT, position).await;
            }
        }
    }

    /// Takes the checkpoints under a new epoch. The slowest lane comes first.
    async fn acquire(&mut self) -> Result<Vec<Lane>, PumpError> {
        #[derive(sqlx::FromRow)]
        struct Row {
            projection: String,
            position: i64,
            epoch: i64,
        }
        let mut tx = self.store.db().begin().await?;
        for projection in all() {
            let sql = "insert into checkpoints (projection, position, epoch, generation, updated_at, state)
                       values ($1, 0, 0, 1, $2, 'live') on conflict (projection) do nothing";
            tx.execute(sql, vec![projection.name.into(), now_us().into()]).await?;
        }
        tx.execute("update checkpoints set epoch = (select max(epoch) + 1 from checkpoints)", vec![]).await?;
        let rows: Vec<Row> = tx.fetch_all("select projection, position, epoch from checkpoints", vec![]).await?;
        tx.commit().await?;
        self.orders.clear();
        self.epoch = rows.first().map_or(0, |row| row.epoch);
        let mut lanes: Vec<Lane> = Vec::new();
        for projection in all() {
            let Some(row) = rows.iter().find(|row| row.projection == projection.name) else { continue };
            self.progress.committed(&[projection.name], row.position);
            match lanes.iter_mut().find(|lane| lane.position == row.position) {
                Some(lane) => lane.projections.push(projection),
                None => lanes.push(Lane { position: row.position, projections: vec![projection] }),
            }
        }
        lanes.sort_by_key(|lane| lane.position);
        Ok(lanes)
    }

    async fn clear(&self, projections: &[&'static Projection]) -> Result<(), PumpError> {
        let mut tx = self.store.db().begin().await?;
        for projection in projections {
            for table in projection.tables {
                tx.execute(&format!("delete from {}", table.name), vec![]).await?;
            }
            let sql = "update checkpoints set position = 0, updated_at = $1 where projection = $2 and epoch = $3";
            let values = vec![now_us().into(), projection.name.into(), self.epoch.into()];
            if tx.execute(sql, values).await? != 1 {
                return Err(PumpError::Fenced);
            }
        }
        Ok(tx.commit().await?)
    }

    /// Projects events into the slowest lane, which the first event follows; stops where the next lane stands and joins
    /// it there. Gives the lane's new position.
    async fn take(&mut self, lanes: &mut Vec<Lane>, events: &[RecordedEvent]) -> Result<i64, PumpError> {
        let next_lane = lanes.get(1).map_or(i64::MAX, |lane| lane.position);
        let end = events.iter().position(|event| event.position > next_lane).unwrap_or(events.len());
        let events = &events[..end];
        let lane = &mut lanes[0];
        if let Some(last) = events.last() {
            let changes = self.fold(events).await?;
            self.write(lane, &changes, last.position).await?;
            for change in &changes {
                self.orders.insert(change.after.order_id.clone(), change.after.clone());
            }
            lane.position = last.position;
            let names: Vec<_> = lane.projections.iter().map(|projection| projection.name).collect();
            self.progress.committed(&names, last.position);
        }
        let position = lanes[0].position;
        if position == next_lane {
            let caught_up = lanes.remove(0);
            lanes[0].projections.extend(caught_up.projections);
        }
        Ok(position)
    }

    /// What the events do, order by order.
    async fn fold(&self, events: &[RecordedEvent]) -> Result<Vec<Change>, PumpError> {
        let mut streams: HashMap<&str, Vec<&RecordedEvent>> = HashMap::new();
        let mut arrival = Vec::new();
        for event in events.iter().filter(|event| event.aggregate_type == ORDER) {
            let stream = streams.entry(&event.aggregate_id).or_default();
            if stream.is_empty() {
                arrival.push(&*event.aggregate_id);
            }
            stream.push(event);
        }
        let before = self.before(&arrival, &streams, events[0].position).await?;
        let mut changes = Vec::with_capacity(arrival.len());
        for id in arrival {
            let before = before.get(id).cloned();
            let mut after = before.as_deref().cloned().unwrap_or_default();
            for event in &streams[id] {
                after.apply(event)?;
            }
            changes.push(Change { before, after: Arc::new(after) });
        }
        Ok(changes)
    }

    /// The orders as they were before a batch: from memory, or folded from the log in one query.
    async fn before<'a>(
        &self,
        ids: &[&'a str],
        streams: &HashMap<&str, Vec<&RecordedEvent>>,
        first_position: i64,
    ) -> Result<HashMap<&'a str, Arc<OrderState>>, PumpError> {
        let mut before = HashMap::new();
        let mut missing = HashMap::new();
        for id in ids.iter().copied() {
            let version = streams[id][0].sequence - 1;
            if version == 0 {
                continue;
            }
            match self.orders.get(id) {
                Some(state) if state.version == version => {
                    before.insert(id, state);
                }
                _ => {
                    missing.insert(id.to_owned(), id);
                }
            }
        }
        if !missing.is_empty() {
            let ids: Vec<String> = missing.keys().cloned().collect();
            let mut states: HashMap<&str, OrderState> = HashMap::new();
            for event in self.store.read_streams(ORDER, &ids, first_position).await? {
                if let Some(id) = missing.get(&event.aggregate_id) {
                    states.entry(id).or_default().apply(&event)?;
                }
            }
            before.extend(states.into_iter().map(|(id, state)| (id, Arc::new(state))));
        }
        Ok(before)
    }

    /// Rows and checkpoint, in one transaction.
    async fn write(&self, lane: &Lane, changes: &[Change], position: i64) -> Result<(), PumpError> {
        let mut tx = self.store.db().begin().await?;
        self.advance(&mut tx, lane, position).await?;
        for projection in &lane.projections {
            for (table, rows) in (projection.fold)(changes) {
                tx.write(table, rows).await?;
            }
        }
        Ok(tx.commit().await?)
    }

    /// Compare and set: the checkpoints must stand where this pump left them, under its own epoch.
    async fn advance(&self, tx: &mut Tx, lane: &Lane, position: i64) -> Result<(), PumpError> {
        let mut values: Vec<Value> = vec![position.into(), now_us().into(), self.epoch.into(), lane.position.into()];
        let names: Vec<_> = lane
            .projections
            .iter()
            .map(|projection| {
                values.push(projection.name.into());
                format!("${}", values.len())
            })
            .collect();
        let sql = format!(
            "update checkpoints set position = $1, updated_at = $2, state = 'live', last_error = null
             where epoch = $3 and position = $4 and projection in ({})",
            names.join(", ")
        );
        match tx.execute(&sql, values).await? as usize == lane.projections.len() {
            true => Ok(()),
            false => Err(PumpError::Fenced),
        }
    }

    /// Writes down why it failed, for operators; a pump that was fenced has no say.
    async fn report(&self, error: &PumpError) {
        if !matches!(error, PumpError::Fold(_) | PumpError::Ahead { .. }) {
            return;
        }
        let sql = "update checkpoints set state = 'failed', last_error = $1 where epoch = $2";
        let written = async {
            let mut tx = self.store.db().begin().await?;
            tx.execute(sql, vec![error.to_string().into(), self.epoch.into()]).await?;
            tx.commit().await
        };
        if let Err(error) = written.await {
            tracing::warn!(%error, "the failure could not be written down");
        }
    }
}
