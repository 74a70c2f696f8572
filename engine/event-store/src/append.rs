//! An append: the changes that a command or a reaction commits together or not at all.

use std::collections::HashSet;

use compact_str::CompactString;
use kernel::stream::StreamId;
use opentelemetry::Context;

use crate::error::Error;
use crate::event::NewEvent;

/// Changes that commit together or not at all. All conditions are checked before any change is applied.
#[derive(Debug, Default)]
pub struct Append {
    /// The streams to write, each at most once.
    pub writes: Vec<StreamWrite>,
    /// Streams that the append depends on but does not write, each at most once.
    pub checks: Vec<StreamCheck>,
    /// The checkpoint to move, if the caller is a reactor.
    pub reaction: Option<ReactionMove>,
    /// The idempotency record of the request, if the request has a key.
    pub idempotency: Option<Idempotency>,
    /// Number of the principal. Sources share the appender's time equally.
    pub source: u64,
    /// True when the append waits for room in the queue without a time limit and is never shed.
    pub waits_for_capacity: bool,
    /// Trace context of the append, if its request is traced. Its span is linked with the transaction's span.
    pub trace: Option<Context>,
}

/// Events for one stream.
#[derive(Debug)]
pub struct StreamWrite {
    /// The stream.
    pub stream: StreamId,
    /// The version on which the events were decided; 0 when the stream must not exist.
    pub expected_version: i64,
    /// The events; at least one.
    pub events: Vec<NewEvent>,
    /// Link to the uncommitted write on which this write was decided; `None` when no other write is decided on this one
    /// before it commits.
    pub lineage: Option<Lineage>,
}

/// The position of a write in a chain of writes, each decided on the uncommitted result of the one before it. When a
/// write fails, the writes that depend on it fail too, even when their expected versions match: an event of another
/// writer may have taken the version number.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Lineage {
    /// Number of the chain, unique in the process.
    pub id: u64,
    /// Number of this write, unique in its chain.
    pub ticket: u64,
    /// Ticket of the write on which this one was decided; `None` when it was decided on committed state.
    pub predecessor: Option<u64>,
}

/// A condition: the stream is at this version.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StreamCheck {
    /// The stream.
    pub stream: StreamId,
    /// The last version of the stream; 0 when the stream must not exist.
    pub version: i64,
}

/// The answer to record under an idempotency key. Version and position are filled in at commit.
#[derive(Debug, Clone)]
pub struct Idempotency {
    /// The principal.
    pub scope: String,
    /// The key that the client sent.
    pub key: String,
    /// Hash of the request's method, path and body.
    pub request_hash: String,
    /// HTTP status of the answer.
    pub status: u16,
    /// The stream that the answer describes: one that the append writes, or, when the command changed nothing, one that
    /// the append checks.
    pub stream: StreamId,
    /// Version and position of the answer; required when the append does not write `stream`.
    pub unchanged: Option<Unchanged>,
    /// Body of the answer; `None` when it follows from the other fields.
    pub answer: Option<String>,
}

/// The end of a stream that a command did not change.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Unchanged {
    /// The stream's version.
    pub version: i64,
    /// Position of the event that has this version.
    pub position: i64,
}

/// The changes that a reaction makes to its reactor's rows. They apply only when the reactor's checkpoint is at
/// position `from` with the fence `fence`.
#[derive(Debug, Clone, Default)]
pub struct ReactionMove {
    /// Name of the reactor.
    pub reactor: CompactString,
    /// Partition of the reactor.
    pub partition: i64,
    /// Position of the checkpoint before the append.
    pub from: i64,
    /// Position of the checkpoint after the append; equal to `from` for a retry from the backlog.
    pub to: i64,
    /// Expected fence of the checkpoint.
    pub fence: i64,
    /// Events to add to the backlog, or whose backlog rows get new values.
    pub park: Vec<BacklogEntry>,
    /// Events of the backlog that are settled. Each must still be in the backlog, so that a retry takes effect only
    /// once.
    pub settle: Vec<BacklogKey>,
    /// Deadlines to set and remove.
    pub deadlines: DeadlineChanges,
}

/// Deadlines to set and remove.
#[derive(Debug, Clone, Default)]
pub struct DeadlineChanges {
    /// Deadlines to set; one with the same key is replaced.
    pub schedule: Vec<Deadline>,
    /// Deadlines to remove, if they exist. They are removed before others are set.
    pub unschedule: Vec<DeadlineKey>,
}

/// Identifies an event in a reactor's backlog.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct BacklogKey {
    /// The reactor's ordering key: events with the same key are handled in order.
    pub key: CompactString,
    /// Position of the event.
    pub position: i64,
}

/// An event that a reactor has not settled.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BacklogEntry {
    /// The event.
    pub event: BacklogKey,
    /// Number of attempts so far.
    pub attempts: i64,
    /// Time of the next attempt, in microseconds since 1970; `None` when an operator must start it, or when the event
    /// waits for an earlier event of its key.
    pub due_at: Option<i64>,
    /// Reason for which the last attempt failed.
    pub reason: Option<String>,
}

/// Identifies a deadline.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct DeadlineKey {
    /// Type of the process that set the deadline.
    pub process: CompactString,
    /// Id of the process.
    pub id: CompactString,
    /// Name of the deadline, unique within the process.
    pub name: CompactString,
}

/// A deadline of a process.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Deadline {
    /// Identifies the deadline.
    pub key: DeadlineKey,
    /// Time when it is due, in microseconds since 1970.
    pub due_at: i64,
}

/// The result of an append.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Appended {
    /// Version of each written stream after the append, in the order of the writes.
    pub versions: Vec<i64>,
    /// Position of the append's last event. For an append without events: the position in [`Idempotency::unchanged`],
    /// or 0.
    pub position: i64,
}

impl Append {
    /// Returns the number of events.
    pub fn events(&self) -> usize {
        self.writes.iter().map(|write| write.events.len()).sum()
    }

    /// Checks that the append does not contradict itself.
    ///
    /// # Errors
    /// [`Error::Malformed`]: the caller has a programming error.
    pub fn check(&self) -> Result<(), Error> {
        let malformed = |reason| Err(Error::Malformed(reason));
        if self.writes.is_empty() && self.idempotency.is_none() && self.reaction.is_none() {
            return malformed("it contains no write, idempotency record or reaction");
        }
        if self.writes.iter().any(|write| write.events.is_empty()) {
            return malformed("a write contains no event");
        }
        if self.writes.len() + self.checks.len() > 1 {
            let mut streams = HashSet::with_capacity(self.writes.len() + self.checks.len());
            let named =
                self.writes.iter().map(|write| &write.stream).chain(self.checks.iter().map(|check| &check.stream));
            for stream in named {
                if !streams.insert(stream) {
                    return malformed("it names a stream more than once");
                }
            }
        }
        if let Some(idempotency) = &self.idempotency
            && idempotency.unchanged.is_none()
            && !self.writes.iter().any(|write| write.stream == idempotency.stream)
        {
            return malformed("its idempotency record describes a stream that it does not write, and gives no version");
        }
        if self.reaction.as_ref().is_some_and(|reaction| reaction.to < reaction.from) {
            return malformed("it moves a checkpoint backwards");
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
    fn a_malformed_append_is_refused() {
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
