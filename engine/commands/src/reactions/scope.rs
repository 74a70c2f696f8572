//! The data that a reaction may read: states that include the effects of earlier reactions of the batch, and the log.

use std::collections::HashMap;
use std::sync::Arc;

use event_store::aggregates::Loaded;
use event_store::append::{DeadlineChanges, StreamCheck, StreamWrite};
use event_store::error::Error;
use event_store::event::{NewEvent, RecordedEvent};
use kernel::aggregate::Aggregate;
use kernel::stream::StreamId;

use crate::decider::Decider;
use crate::repositories::{AnyLoaded, Memory};
use crate::step::AnyStep;

/// The largest number of events that one call of [`Scope::read_stream`] returns.
const READ_MAX: i64 = 10_000;

/// The streams that a batch of reactions has read or written, with the uncommitted events of the batch applied.
pub struct Scope {
    decider: Arc<Decider>,
    /// In the order in which the batch first used them.
    streams: Vec<Touched>,
    places: HashMap<StreamId, usize>,
    deadlines: DeadlineChanges,
    /// Number and bytes of the events that the batch has decided.
    size: (usize, usize),
}

/// A stream that a batch has read or written.
struct Touched {
    stream: StreamId,
    /// Version of the stream in the log.
    base: i64,
    /// State of the aggregate with the events of the batch applied.
    state: AnyLoaded,
    memory: Memory,
    /// Events that the batch has decided for this stream.
    events: Vec<NewEvent>,
    /// Number of the decided events. It remains after [`Scope::take`] has removed the events.
    appended: i64,
}

/// The writes of a batch of reactions, and the versions on which they depend.
pub(crate) struct Writes {
    pub(crate) writes: Vec<StreamWrite>,
    pub(crate) checks: Vec<StreamCheck>,
    pub(crate) deadlines: DeadlineChanges,
}

impl Scope {
    /// Creates a scope on the committed log.
    pub fn new(decider: Arc<Decider>) -> Self {
        let (streams, places, deadlines) = (Vec::new(), HashMap::new(), DeadlineChanges::default());
        Self { decider, streams, places, deadlines, size: (0, 0) }
    }

    /// Returns the state of an aggregate, including the effects of earlier reactions of the batch. The batch is
    /// appended only if the aggregate has not changed since then.
    ///
    /// # Errors
    /// The database is unavailable, or an event of the aggregate does not decode.
    pub async fn load<A: Aggregate>(&mut self, id: &str) -> Result<Arc<Loaded<A>>, Error> {
        let stream = StreamId::new(A::TYPE, id);
        if let Some(loaded) = self.state_of(&stream).and_then(|state| state.clone().downcast().ok()) {
            return Ok(loaded);
        }
        let repository = self.decider.repositories().of::<A>();
        let loaded = match repository.cached(id) {
            Some(loaded) => loaded,
            None => repository.load(id).await?,
        };
        self.touch(stream, loaded.version, loaded.clone(), Memory::of::<A>());
        Ok(loaded)
    }

    /// Returns the events of one aggregate with `after < sequence <= to`, in order, at most 10,000. The append does not
    /// depend on them, because recorded events never change.
    ///
    /// # Errors
    /// The database is unavailable.
    pub async fn read_stream(
        &self,
        aggregate_type: &str,
        id: &str,
        after: i64,
        to: i64,
    ) -> Result<Vec<RecordedEvent>, Error> {
        self.decider.store().read_stream(aggregate_type, id, after, to, READ_MAX).await
    }

    pub(crate) fn decider(&self) -> &Arc<Decider> {
        &self.decider
    }

    /// Returns the state of a stream that the batch has used.
    pub(crate) fn state_of(&self, stream: &StreamId) -> Option<&AnyLoaded> {
        self.places.get(stream).map(|place| &self.streams[*place].state)
    }

    fn touch(&mut self, stream: StreamId, base: i64, state: AnyLoaded, memory: Memory) {
        self.places.insert(stream.clone(), self.streams.len());
        self.streams.push(Touched { stream, base, state, memory, events: Vec::new(), appended: 0 });
    }

    /// Records the state on which a step was decided. The append checks that the stream is still at this version.
    pub(crate) fn add_dependency(&mut self, step: &dyn AnyStep, stream: &StreamId, state: &AnyLoaded) {
        if !self.places.contains_key(stream) {
            self.touch(stream.clone(), step.version(), state.clone(), step.memory());
        }
    }

    /// Applies the decided events and deadlines of a step. The batch must have used its stream before.
    pub(crate) fn apply(&mut self, step: &dyn AnyStep, stream: &StreamId, events: Vec<NewEvent>) {
        let Some(touched) = self.places.get(stream).map(|place| &mut self.streams[*place]) else { return };
        touched.state = step.pending();
        touched.appended += events.len() as i64;
        self.size.0 += events.len();
        self.size.1 += events.iter().map(|event| event.payload.len() + event.metadata.len()).sum::<usize>();
        touched.events.extend(events);
        let DeadlineChanges { schedule, unschedule } = step.deadlines();
        for removed in &unschedule {
            self.deadlines.schedule.retain(|set| set.key != *removed);
        }
        for set in &schedule {
            self.deadlines.schedule.retain(|other| other.key != set.key);
        }
        self.deadlines.unschedule.extend(unschedule);
        self.deadlines.schedule.extend(schedule);
    }

    /// Returns every stream that the batch has used.
    pub(crate) fn stream_ids(&self) -> Vec<StreamId> {
        self.streams.iter().map(|touched| touched.stream.clone()).collect()
    }

    /// Whether this process has changed a stream after the batch read it.
    pub(crate) fn is_stale(&self) -> bool {
        let repositories = self.decider.repositories();
        self.streams.iter().any(|touched| {
            let version = (touched.memory.version)(repositories, &touched.stream.aggregate_id);
            version.is_some_and(|version| version != touched.base)
        })
    }

    /// Removes the streams from the caches, so that the next decision reads the log.
    pub(crate) fn evict(&self) {
        for touched in &self.streams {
            (touched.memory.evict)(self.decider.repositories(), &touched.stream.aggregate_id);
        }
    }

    /// Removes and returns the writes of the batch and the versions on which they depend.
    pub(crate) fn take(&mut self) -> Writes {
        let (mut writes, mut checks) = (Vec::new(), Vec::new());
        for touched in &mut self.streams {
            let (stream, version) = (touched.stream.clone(), touched.base);
            match std::mem::take(&mut touched.events) {
                events if events.is_empty() => checks.push(StreamCheck { stream, version }),
                events => writes.push(StreamWrite { stream, expected_version: version, events, lineage: None }),
            }
        }
        Writes { writes, checks, deadlines: std::mem::take(&mut self.deadlines) }
    }

    /// Caches the states of the written streams. The batch must be durable.
    pub(crate) async fn put_in_cache(&self) {
        for touched in self.streams.iter().filter(|touched| touched.appended > 0) {
            let id = &touched.stream.aggregate_id;
            (touched.memory.put)(self.decider.repositories(), id, &touched.state, touched.appended).await;
        }
    }

    /// Returns the number and the bytes of the events that the batch has decided.
    pub(crate) fn size(&self) -> (usize, usize) {
        self.size
    }
}
