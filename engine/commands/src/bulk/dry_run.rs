//! A dry run of a bulk request: every line is authorized, parsed and decided, and nothing is appended.
//!
//! A line sees the effects of earlier lines of the same request on its aggregate, as it would in a real run. These
//! states are kept for the aggregates that were used last, up to [`WORKER_BYTES_MAX`] in each worker.

use std::collections::{HashMap, VecDeque};

use kernel::stream::StreamId;

use crate::decider::{Decider, Origin};
use crate::outcome::{Executed, Rejected};
use crate::repositories::AnyLoaded;
use crate::step::AnyStep;

/// Bytes of states that a worker keeps. A request has up to 128 workers.
const WORKER_BYTES_MAX: usize = 256 << 10;
/// Bytes that a state is charged in addition to its weight.
const STATE_OVERHEAD_BYTES: usize = 512;

/// The states after the lines of a dry run.
#[derive(Default)]
pub(crate) struct DryRun {
    /// The last state of each stream, with the bytes that it is charged.
    states: HashMap<StreamId, (AnyLoaded, usize)>,
    /// The streams, the one that was added first at the front.
    streams: VecDeque<StreamId>,
    bytes: usize,
}

impl DryRun {
    /// Decides a command as [`Decider::execute`] would. The returned position is 0.
    ///
    /// # Errors
    /// The refusal of a real run.
    pub(crate) async fn execute(
        &mut self,
        decider: &Decider,
        step: &mut dyn AnyStep,
        origin: &Origin,
    ) -> Result<Executed, Rejected> {
        let stream = step.stream();
        let pending = self.states.get(&stream).map(|(state, _)| state.clone());
        decider.check(step, pending.as_ref(), &origin.principal).await?;
        let version = step.version() + step.events() as i64;
        if step.events() > 0 {
            let pending = step.pending();
            let weight = step.weight(&pending);
            self.keep(stream, pending, weight);
        }
        Ok(Executed { versions: vec![version], position: 0 })
    }

    fn keep(&mut self, stream: StreamId, state: AnyLoaded, weight: usize) {
        let bytes = STATE_OVERHEAD_BYTES + weight;
        match self.states.insert(stream.clone(), (state, bytes)) {
            Some((_, before)) => self.bytes -= before,
            None => self.streams.push_back(stream),
        }
        self.bytes += bytes;
        while self.bytes > WORKER_BYTES_MAX {
            let Some(oldest) = self.streams.pop_front() else { break };
            self.bytes -= self.states.remove(&oldest).map_or(0, |(_, bytes)| bytes);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;

    #[test]
    fn states_are_bounded() {
        let mut run = DryRun::default();
        for number in 0..10_000 {
            run.keep(StreamId::new("order", &format!("o-{number}")), Arc::new(()), 100);
        }
        assert!(run.bytes <= WORKER_BYTES_MAX && run.states.len() == run.streams.len(), "{}", run.bytes);
        let last = StreamId::new("order", "o-9999");
        assert!(run.states.contains_key(&last));
        run.keep(last.clone(), Arc::new(()), WORKER_BYTES_MAX);
        assert!(run.states.is_empty() && run.bytes == 0, "a state that is too large is not kept");
    }
}
