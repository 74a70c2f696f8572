//! Repositories of all aggregate types. Each repository caches its hot aggregates.

use std::any::{Any, TypeId};
use std::collections::HashMap;
use std::sync::{Arc, PoisonError, RwLock};

use event_store::aggregates::{AggregateRepository, Loaded};
use event_store::store::Store;
use futures::FutureExt;
use futures::future::BoxFuture;
use kernel::aggregate::Aggregate;

/// One repository for each aggregate type, created on first use.
pub struct Repositories {
    store: Store,
    by_kind: RwLock<HashMap<TypeId, Arc<dyn Any + Send + Sync>>>,
}

impl Repositories {
    pub(crate) fn new(store: Store) -> Self {
        Self { store, by_kind: RwLock::default() }
    }

    /// Returns the repository of an aggregate type.
    pub fn of<A: Aggregate>(&self) -> Arc<AggregateRepository<A>> {
        let kind = TypeId::of::<A>();
        let known = self.by_kind.read().unwrap_or_else(PoisonError::into_inner).get(&kind).cloned();
        let known = known.unwrap_or_else(|| {
            let mut all = self.by_kind.write().unwrap_or_else(PoisonError::into_inner);
            all.entry(kind).or_insert_with(|| Arc::new(AggregateRepository::<A>::new(self.store.clone()))).clone()
        });
        match known.downcast() {
            Ok(repository) => repository,
            // Unreachable: the key of the map is the type.
            Err(_) => Arc::new(AggregateRepository::<A>::new(self.store.clone())),
        }
    }
}

/// A [`Loaded`] aggregate without its static type.
pub type AnyLoaded = Arc<dyn Any + Send + Sync>;

/// Cache operations of one aggregate type, for callers that do not have the static type.
#[derive(Clone, Copy)]
pub struct Memory {
    /// Returns the cached version, if the aggregate is cached.
    pub(crate) version: fn(&Repositories, &str) -> Option<i64>,
    /// Caches a state whose events are durable. The last argument is the number of events that were appended.
    pub(crate) put: for<'a> fn(&'a Repositories, &'a str, &'a AnyLoaded, i64) -> BoxFuture<'a, ()>,
    /// Removes an aggregate from the cache, so that the next decision reads the log.
    pub(crate) evict: fn(&Repositories, &str),
}

impl Memory {
    /// Returns the cache operations of an aggregate type.
    pub(crate) fn of<A: Aggregate>() -> Self {
        Self {
            version: |repositories, id| repositories.of::<A>().cached(id).map(|loaded| loaded.version),
            put: |repositories, id, state, appended| {
                async move {
                    if let Ok(loaded) = state.clone().downcast::<Loaded<A>>() {
                        repositories.of::<A>().put(id, loaded, appended).await;
                    }
                }
                .boxed()
            },
            evict: |repositories, id| repositories.of::<A>().evict(id),
        }
    }
}
