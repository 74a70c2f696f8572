//! Comparison of the JetStream stream with the log.

use std::time::{Duration, Instant};

use crate::fold::Event;
use crate::process::POLL;
use crate::system::TestSystem;

/// Time limit for the stream to reach the head of the log.
const REBUILD_DEADLINE: Duration = Duration::from_secs(60);

/// Waits until the stream's last sequence equals the head of the log, then compares each message in the stream with the
/// log.
///
/// # Panics
/// At the first difference.
pub async fn stream_equals_the_log(system: &TestSystem, log: &[Event]) {
    let nats = system.nats.as_ref().expect("a scaled system");
    let jetstream = nats.jetstream().await;
    let (started, head) = (Instant::now(), log.len() as u64);
    let state = loop {
        let found = jetstream.get_stream(nats.stream()).await.map(|stream| stream.cached_info().state.clone());
        match found {
            Ok(state) if state.last_sequence == head => break state,
            found => assert!(started.elapsed() < REBUILD_DEADLINE, "the head is {head}, but the stream is {found:?}"),
        }
        tokio::time::sleep(POLL).await;
    };
    let stream = jetstream.get_stream(nats.stream()).await.expect("the stream exists");
    for sequence in state.first_sequence..=state.last_sequence {
        let message = stream.get_raw_message(sequence).await.expect("the stream has no gaps");
        let id = message.headers.get("Nats-Msg-Id").map(|id| id.as_str());
        let event = &log[usize::try_from(sequence).expect("a position") - 1];
        assert_eq!(id, Some(event.event_id.as_str()), "the message at {sequence}");
    }
}
