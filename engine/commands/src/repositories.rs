//! The aggregates of every kind, each kind with a cache of its hot ones.

use std::any::{Any, TypeId};
use std::collections::HashMap;
use std::sync::{Arc, PoisonError, RwLock};

use event_store::aggregates::{AggregateRepository, Loaded};
use event_store::store::Store;
use futures::FutureExt;
use futures::future::BoxFuture;
use kernel::aggregate::Aggregate;

/// A repository for each kind of aggregate, made when it is first asked for.
pub struct Repositories {
    store: Store,
    by_kind: RwLock<HashMap<TypeId, Arc<dyn Any + Send + Sync>>>,
}

impl Repositories {
    pub(crate) fn new(store: Store) -> Self {
        Self { store, by_kind: RwLock::default() }
    }

    /// Aggregates of one kind.
    pub fn of<A: Aggregate>(&self) -> Arc<AggregateRepository<A>> {
        let kind = TypeId::of::<A>();
        let known = self.by_kind.read().unwrap_or_else(PoisonError::into_inner).get(&kind).cloned();
        let known = known.unwrap_or_else(|| {
            let mut all = self.by_kind.write().unwrap_or_else(PoisonError::into_inner);
            all.entry(kind).or_insert_with(|| Arc::new(AggregateRepository::<A>::new(self.store.clone()))).clone()
        });
        match known.downcast() {
            Ok(repository) => repository,
            // The key is the type.
            Err(_) => Arc::new(AggregateRepository::<A>::new(self.store.clone())),
        }
    }
}

/// An aggregate at a version, [`Loaded`] without its type.
pub type AnyLoaded = Arc<dyn Any + Send + Sync>;

/// The memory of aggregates of one kind, for whoever does not know their type.
#[derive(Clone, Copy)]
pub struct Memory {
    /// The version in memory, where there is one.
    pub(crate) version: fn(&Repositories, &str) -> Option<i64>,
    /// Keeps a state, made of so many events that are durable now.
    pub(crate) keep: for<'a> fn(&'a Repositories, &'a str, &'a AnyLoaded, i64) -> BoxFuture<'a, ()>,
    /// Removes an aggregate: the next decision reads the log.
    pub(crate) evict: fn(&Repositories, &str),
}

impl Memory {
    /// That of a kind.
    pub(crate) fn of<A: Aggregate>() -> Self {
        Self {
            version: |repositories, id| repositories.of::<A>().cached(id).map(|loaded| loaded.version),
            keep: |repositories, id, state, appended| {
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
