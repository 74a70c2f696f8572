//! Loads aggregates: recently used ones from a bounded cache, the others from their snapshots and events.

use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;

use kernel::aggregate::Aggregate;
use kernel::stream::StreamId;
use quick_cache::Weighter;
use quick_cache::sync::Cache;

use crate::error::Error;
use crate::metrics::{HITS, MISSES};
use crate::settings::Settings;
use crate::snapshots::Snapshot;
use crate::store::Store;

/// An aggregate's state at a version.
pub struct Loaded<A> {
    /// The state.
    pub state: A,
    /// Sequence of the last event in the state; 0 when there is no event.
    pub version: i64,
}

/// Loads and caches the aggregates of one type. The cache may be stale, because other processes append too. An append
/// on a stale version is refused, so a stale entry costs a retry and never loses an event.
pub struct AggregateRepository<A: Aggregate> {
    store: Store,
    cache: Cache<String, Arc<Loaded<A>>, ByWeight>,
    snapshot_every_events: i64,
}

/// Bytes of cache budgeted for each aggregate. A larger aggregate counts as several.
const BYTES_PER_AGGREGATE: usize = 4_096;
/// Maximum number of events in one read of a stream.
const EVENTS_AT_ONCE: i64 = 10_000;

#[derive(Clone)]
struct ByWeight;

impl<A: Aggregate> Weighter<String, Arc<Loaded<A>>> for ByWeight {
    fn weight(&self, _: &String, loaded: &Arc<Loaded<A>>) -> u64 {
        loaded.state.weight().max(BYTES_PER_AGGREGATE) as u64
    }
}

impl<A: Aggregate> AggregateRepository<A> {
    /// Creates the repository, with an empty cache.
    pub fn new(store: Store) -> Self {
        let Settings { cache_aggregates_max: most, snapshot_every_events, .. } = *store.settings();
        let cache = Cache::with_weighter(most, most.saturating_mul(BYTES_PER_AGGREGATE) as u64, ByWeight);
        Self { store, cache, snapshot_every_events }
    }

    /// Returns the cached aggregate, if there is one. It may be stale.
    pub fn cached(&self, id: &str) -> Option<Arc<Loaded<A>>> {
        let found = self.cache.get(id);
        if found.is_some() { &HITS } else { &MISSES }.fetch_add(1, Relaxed);
        found
    }

    /// Loads the aggregate from the log, from its snapshot and the events after it, and caches it.
    ///
    /// # Errors
    /// The database is unavailable, or an event cannot be deserialized.
    pub async fn load(&self, id: &str) -> Result<Arc<Loaded<A>>, Error> {
        let loaded = Arc::new(self.read(id).await?);
        if loaded.version > 0 {
            self.cache.insert(id.to_owned(), loaded.clone());
        }
        Ok(loaded)
    }

    /// Caches the state after an append of `appended` events. Also saves a snapshot each time the stream has grown by
    /// `snapshot_every_events`. A failure to save a snapshot only makes the next load slower.
    pub async fn put(&self, id: &str, loaded: Arc<Loaded<A>>, appended: i64) {
        let version = loaded.version;
        let due = version / self.snapshot_every_events > (version - appended) / self.snapshot_every_events;
        self.cache.insert(id.to_owned(), loaded.clone());
        if due && let Err(error) = self.save(id, &loaded).await {
            tracing::warn!(
                aggregate.r#type = A::TYPE,
                aggregate.id = id,
                snapshot.version = version,
                error,
                "Could not save the snapshot."
            );
        }
    }

    async fn save(&self, id: &str, loaded: &Loaded<A>) -> Result<(), String> {
        let payload = serde_json::to_string(&loaded.state).map_err(|error| error.to_string())?;
        let (stream, version) = (StreamId::new(A::TYPE, id), loaded.version);
        let snapshot = Snapshot { stream, version, state_version: A::STATE_VERSION, payload };
        self.store.log().save_snapshot(snapshot).await.map_err(|error| error.to_string())
    }

    /// Removes an aggregate from the cache.
    pub fn evict(&self, id: &str) {
        self.cache.remove(id);
    }

    async fn read(&self, id: &str) -> Result<Loaded<A>, Error> {
        let log = self.store.log();
        // A snapshot that cannot be deserialized is ignored: the events lead to the same state.
        let snapshot = log.snapshot(A::TYPE, id, A::STATE_VERSION).await?;
        let snapshot = snapshot.and_then(|(state, version)| Some((serde_json::from_str(&state).ok()?, version)));
        let (mut state, mut version): (A, i64) = snapshot.unwrap_or_default();
        loop {
            let events = log.read_stream(A::TYPE, id, version, i64::MAX, EVENTS_AT_ONCE).await?;
            for event in &events {
                let stored = |reason: serde_json::Error| {
                    Error::CorruptData(format!(
                        "{} {id}: event {} ({}): {reason}",
                        A::TYPE,
                        event.sequence,
                        event.event_type
                    ))
                };
                state.evolve(&serde_json::from_str(&event.payload).map_err(stored)?);
                version = event.sequence;
            }
            if (events.len() as i64) < EVENTS_AT_ONCE {
                return Ok(Loaded { state, version });
            }
        }
    }
}
