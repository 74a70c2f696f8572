//! What a command or a reaction asks of the log: one append, whole or absent.

use std::collections::HashSet;

use compact_str::CompactString;
use kernel::stream::StreamId;
use opentelemetry::Context;

use crate::error::Error;
use crate::event::NewEvent;

/// Changes that commit together or not at all. All conditions are checked before anything is applied.
#[derive(Debug, Default)]
pub struct Append {
    /// The streams that it writes, each once.
    pub writes: Vec<StreamWrite>,
    /// Streams that it rests on and does not write, each once.
    pub checks: Vec<StreamCheck>,
    /// The checkpoint that it moves, where a reactor appends.
    pub reaction: Option<ReactionMove>,
    /// The record of the request's idempotency key, where it has one.
    pub idempotency: Option<Idempotency>,
    /// The principal, as a number: sources share the appender's time equally.
    pub source: u64,
    /// Waits until the queue has room, however long that takes, and is never shed.
    pub is_patient: bool,
    /// Span of the append, where the request is traced: it is linked with that of the transaction.
    pub trace: Option<Context>,
}

/// Events for one stream.
#[derive(Debug)]
pub struct StreamWrite {
    /// The stream.
    pub stream: StreamId,
    /// The version on which the events were decided; 0 where the stream must not exist.
    pub expected_version: i64,
    /// The events, at least one.
    pub events: Vec<NewEvent>,
    /// Its place in a chain of writes of which each was decided on the one before; `None` where nothing is decided on it
    /// before it is committed.
    pub lineage: Option<Lineage>,
}

/// The place of a write in a chain of writes. A write that fails breaks its chain: what was decided on it fails, even
/// where the version numbers match, because a foreign event may have taken the number.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Lineage {
    /// Number of the chain, unique in the process.
    pub id: u64,
    /// Number of this write, unique in its chain.
    pub ticket: u64,
    /// Ticket of the write that this one was decided on; `None` where it was decided on committed state.
    pub predecessor: Option<u64>,
}

/// A condition: the stream ends at this version.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StreamCheck {
    /// The stream.
    pub stream: StreamId,
    /// This version exists and the next one does not; 0: the stream does not exist.
    pub version: i64,
}

/// The answer to record under an idempotency key. Its version and position are filled in when the append commits.
#[derive(Debug, Clone)]
pub struct Idempotency {
    /// The principal.
    pub scope: String,
    /// The key as the client sent it.
    pub key: String,
    /// Hash of method, path and body.
    pub request_hash: String,
    /// Status of the answer.
    pub status: u16,
    /// The stream that the answer is about: one that the append writes, or, where the command changed nothing, one that
    /// it checks.
    pub stream: StreamId,
    /// Version and position of the answer where the append does not write `stream`.
    pub unchanged: Option<Unchanged>,
    /// The answer itself, where it does not follow from the other fields.
    pub answer: Option<String>,
}

/// Where a stream ends that a command did not change.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Unchanged {
    /// The stream's version.
    pub version: i64,
    /// Position of the event at that version.
    pub position: i64,
}

/// What a reaction does besides its events. It applies only where the reactor's checkpoint is at `from` under `fence`.
#[derive(Debug, Clone, Default)]
pub struct ReactionMove {
    /// Name of the reactor.
    pub reactor: CompactString,
    /// Its partition.
    pub partition: i64,
    /// Position of the checkpoint before.
    pub from: i64,
    /// Position of the checkpoint after; `from` for a retry from the backlog.
    pub to: i64,
    /// Fence of the checkpoint.
    pub fence: i64,
    /// Events that go into the backlog, or stay there with other values.
    pub park: Vec<BacklogEntry>,
    /// Events of the backlog that are done. Each must be there, so that a retry has its effect once.
    pub settle: Vec<BacklogKey>,
    /// Deadlines that it sets and removes.
    pub deadlines: DeadlineChanges,
}

/// Deadlines that are set and removed.
#[derive(Debug, Clone, Default)]
pub struct DeadlineChanges {
    /// Deadlines to set; one of the same name is replaced.
    pub schedule: Vec<Deadline>,
    /// Deadlines to remove, where they are there. They are removed before others are set.
    pub unschedule: Vec<DeadlineKey>,
}

/// An event in a reactor's backlog.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct BacklogKey {
    /// What the reactor keeps in order.
    pub key: CompactString,
    /// Position of the event.
    pub position: i64,
}

/// An event that a reactor has not settled.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BacklogEntry {
    /// Which event.
    pub event: BacklogKey,
    /// How often it was tried.
    pub attempts: i64,
    /// When it is tried again, in microseconds since 1970; `None`: when an operator decides so.
    pub due_at: Option<i64>,
    /// Why the last try failed.
    pub reason: Option<String>,
}

/// Names a deadline.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct DeadlineKey {
    /// Type of the process that set it.
    pub process: CompactString,
    /// Id of the process.
    pub id: CompactString,
    /// Its name within the process.
    pub name: CompactString,
}

/// A deadline of a process.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Deadline {
    /// Which deadline.
    pub key: DeadlineKey,
    /// When it is due, in microseconds since 1970.
    pub due_at: i64,
}

/// Where an append is in the log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Appended {
    /// The version of each written stream after it, in the order of the writes.
    pub versions: Vec<i64>,
    /// Position of its last event; of an append without events the position in [`Idempotency::unchanged`], or 0.
    pub position: i64,
}

impl Append {
    /// Number of events.
    pub fn events(&self) -> usize {
        self.writes.iter().map(|write| write.events.len()).sum()
    }

    /// Makes sure that it asks for something that can be done.
    ///
    /// # Errors
    /// [`Error::Malformed`]: the caller has a programming error.
    pub fn check(&self) -> Result<(), Error> {
        let malformed = |reason| Err(Error::Malformed(reason));
        if self.writes.is_empty() && self.idempotency.is_none() && self.reaction.is_none() {
            return malformed("it writes nothing");
        }
        if self.writes.iter().any(|write| write.events.is_empty()) {
            return malformed("a write has no event");
        }
        if self.writes.len() + self.checks.len() > 1 {
            let mut streams = HashSet::with_capacity(self.writes.len() + self.checks.len());
            let named =
                self.writes.iter().map(|write| &write.stream).chain(self.checks.iter().map(|check| &check.stream));
            for stream in named {
                if !streams.insert(stream) {
                    return malformed("it names a stream twice");
                }
            }
        }
        if let Some(idempotency) = &self.idempotency
            && idempotency.unchanged.is_none()
            && !self.writes.iter().any(|write| write.stream == idempotency.stream)
        {
            return malformed("its answer is about a stream that it does not write, and names no version");
        }
        if self.reaction.as_ref().is_some_and(|reaction| reaction.to < reaction.from) {
            return malformed("it moves a checkpoint back");
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn write(id: &str, events: usize) -> StreamWrite {
        let event = NewEvent { event_type: "E", event_version: "1", payload: "{}".into(), metadata: "{}".into() };
        StreamWrite { stream: StreamId::new("t", id), expected_version: 0, events: vec![event; events], lineage: None }
    }

    fn idempotency(id: &str, unchanged: Option<Unchanged>) -> Option<Idempotency> {
        let (scope, key, request_hash) = ("s".into(), "k".into(), "h".into());
        let stream = StreamId::new("t", id);
        Some(Idempotency { scope, key, request_hash, status: 200, stream, unchanged, answer: None })
    }

    #[test]
    fn an_append_that_makes_no_sense_is_refused() {
        let check = |id: &str| StreamCheck { stream: StreamId::new("t", id), version: 1 };
        let reaction = ReactionMove { from: 2, to: 1, ..ReactionMove::default() };
        let refused = [
            Append::default(),
            Append { checks: vec![check("a")], ..Append::default() },
            Append { writes: vec![write("a", 0)], ..Append::default() },
            Append { writes: vec![write("a", 1), write("a", 1)], ..Append::default() },
            Append { writes: vec![write("a", 1)], checks: vec![check("a")], ..Append::default() },
            Append { writes: vec![write("a", 1)], idempotency: idempotency("b", None), ..Append::default() },
            Append { reaction: Some(reaction), ..Append::default() },
        ];
        for append in refused {
            assert!(matches!(append.check(), Err(Error::Malformed(_))), "{append:?}");
        }
        let unchanged = Some(Unchanged { version: 1, position: 1 });
        let taken = [
            Append { writes: vec![write("a", 1), write("b", 2)], checks: vec![check("c")], ..Append::default() },
            Append { writes: vec![write("a", 1)], idempotency: idempotency("a", None), ..Append::default() },
            Append { checks: vec![check("a")], idempotency: idempotency("a", unchanged), ..Append::default() },
            Append { reaction: Some(ReactionMove::default()), ..Append::default() },
        ];
        for append in taken {
            append.check().unwrap();
        }
    }
}
