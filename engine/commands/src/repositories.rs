//! The aggregates of every kind, each kind with a cache of its hot ones.

use std::any::{Any, TypeId};
use std::collections::HashMap;
use std::sync::{Arc, PoisonError, RwLock};

use event_store::aggregates::AggregateRepository;
use event_store::store::Store;
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
