//! Loads aggregates: hot ones from a bounded cache, the rest through the stock cqrs-es repositories.

use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;

use cqrs_es::persist::{PersistedEventRepository, SerializedEvent};
use cqrs_es::{Aggregate, DomainEvent};
use quick_cache::Weighter;
use quick_cache::sync::Cache;

use crate::error::Error;
use crate::log::Database;
use crate::metrics::{HITS, MISSES};
use crate::settings::Settings;
use crate::store::Store;
use crate::upcast::{Upcasters, lift_serialized};

/// An aggregate at a version.
pub struct Loaded<A> {
    /// Its state.
    pub state: A,
    /// Its version: the sequence of its last event, 0 where there is none.
    pub version: i64,
}

/// One kind of aggregate, with its hot ones in memory. What the cache says may be stale, because other processes write
/// too; an append on a stale version is refused, so staleness costs a retry and never an event.
pub struct Aggregates<A: Aggregate> {
    store: Store,
    cache: Cache<String, Arc<Loaded<A>>, ByBytes<A>>,
    snapshot_every_events: i64,
}

/// Bytes for which each aggregate has room in the cache; a larger one takes the place of several.
const BYTES_PER_AGGREGATE: usize = 4_096;

struct ByBytes<A>(fn(&A) -> usize);

impl<A> Clone for ByBytes<A> {
    fn clone(&self) -> Self {
        Self(self.0)
    }
}

impl<A> Weighter<String, Arc<Loaded<A>>> for ByBytes<A> {
    fn weight(&self, _: &String, loaded: &Arc<Loaded<A>>) -> u64 {
        (self.0)(&loaded.state).max(BYTES_PER_AGGREGATE) as u64
    }
}

impl<A: Aggregate + Clone + 'static> Aggregates<A>
where
    A::Event: DomainEvent,
{
    pub(crate) fn new(store: Store, settings: &Settings, bytes: fn(&A) -> usize) -> Self {
        let most = settings.cache_aggregates_max;
        let cache = Cache::with_weighter(most, most.saturating_mul(BYTES_PER_AGGREGATE) as u64, ByBytes(bytes));
        Self { store, cache, snapshot_every_events: settings.snapshot_every_events }
    }

    /// The aggregate as last seen in this process, if it is hot.
    pub fn cached(&self, id: &str) -> Option<Arc<Loaded<A>>> {
        let found = self.cache.get(id);
        if found.is_some() { &HITS } else { &MISSES }.fetch_add(1, Relaxed);
        found
    }

    /// The aggregate as the log has it now: its snapshot and the events after it.
    pub async fn load(&self, id: &str) -> Result<Arc<Loaded<A>>, Error> {
        let upcasters = &self.store.log().upcasters;
        let loaded = Arc::new(match &self.store.log().database {
            Database::Postgres(log) => {
                let repository = postgres_es::PostgresEventRepository::new(log.pool.clone());
                // The appender's way out of a server that says nothing is this one's, too.
                let loaded = async { Ok(load::<A>(&repository, upcasters, id).await) };
                log.primary.answered(loaded).await??
            }
            Database::Sqlite(log) => {
                let repository = sqlite_es::SqliteEventRepository::new(log.read.clone());
                load::<A>(&repository, upcasters, id).await?
            }
        });
        if loaded.version > 0 {
            self.cache.insert(id.to_owned(), loaded.clone());
        }
        Ok(loaded)
    }

    /// Keeps the state that an append led to, and, each time the stream has grown by the set number of events, a
    /// snapshot of it. A snapshot that cannot be written costs a longer load, nothing else.
    pub async fn keep(&self, id: &str, state: A, version: i64, appended: i64) {
        let due = version / self.snapshot_every_events > (version - appended) / self.snapshot_every_events;
        let loaded = Arc::new(Loaded { state, version });
        self.cache.insert(id.to_owned(), loaded.clone());
        if due {
            let saved = match serde_json::to_string(&loaded.state) {
                Ok(payload) => {
                    self.store.log().save_snapshot(A::TYPE, id, version, &payload).await.map_err(|e| e.to_string())
                }
                Err(error) => Err(error.to_string()),
            };
            if let Err(error) = saved {
                tracing::warn!(id, snapshot.version = version, error, "snapshot not saved");
            }
        }
    }

    /// Drops what the cache says of an aggregate.
    pub fn forget(&self, id: &str) {
        self.cache.remove(id);
    }
}

async fn load<A: Aggregate>(
    repository: &impl PersistedEventRepository,
    upcasters: &Upcasters,
    id: &str,
) -> Result<Loaded<A>, Error> {
    let stored = |reason: String| Error::Stored(format!("{} {id}: {reason}", A::TYPE));
    let failed = |e: cqrs_es::persist::PersistenceError| match e {
        // A pool without a connection is among the unknown ones.
        cqrs_es::persist::PersistenceError::ConnectionError(e)
        | cqrs_es::persist::PersistenceError::UnknownError(e) => Error::Database(sqlx::Error::Protocol(e.to_string())),
        e => Error::Stored(format!("{} {id}: {e}", A::TYPE)),
    };
    let snapshot = repository.get_snapshot::<A>(id).await.map_err(failed)?;
    // A snapshot of an older shape of the state is passed over: the events say the same.
    let start = snapshot.and_then(|s| Some((serde_json::from_value(s.aggregate).ok()?, s.current_sequence)));
    let (mut state, mut version) = match start {
        Some((state, version)) => (state, version),
        None => (A::default(), 0),
    };
    let events = match version {
        0 => repository.get_events::<A>(id).await,
        version => repository.get_last_events::<A>(id, version).await,
    };
    for event in events.map_err(failed)? {
        let SerializedEvent { sequence, payload, event_type, .. } = lift_serialized(upcasters, event);
        let event =
            serde_json::from_value(payload).map_err(|e| stored(format!("event {sequence} ({event_type}): {e}")))?;
        state.apply(event);
        version = sequence;
    }
    Ok(Loaded { state, version: version as i64 })
}
