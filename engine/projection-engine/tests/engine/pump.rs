//! Events become rows once and in order, also when the projector is aborted or replaced.

use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::time::Duration;

use projection_engine::change::Change;
use projection_engine::progress::Progress;
use projection_engine::projection::Observer;
use projection_engine::registry::{CORE, Group, Registry};
use testkit::counter::{Counter, added};
use tokio_util::sync::CancellationToken;

use crate::rig::{Rig, SUMS, row};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn events_become_rows_in_every_group() {
    let rig = Rig::new().await;
    rig.append("a", vec![added(1), added(2)]).await;
    rig.append("b", vec![added(10)]).await;
    let projector = rig.start().await;
    rig.settled().await;
    assert_eq!(rig.sums().await, [row("a", 3, 2), row("b", 10, 1)]);
    assert_eq!(rig.last().await, [row("a", 2, 2), row("b", 10, 1)]);
    // The projector also projects events that are appended while it runs, and reports its position.
    let position = rig.append("a", vec![added(4)]).await;
    assert_eq!(projector.progress.wait_for("sums", position, Duration::from_secs(60)).await, position);
    assert_eq!((rig.sums().await[0].clone(), rig.total().await), (row("a", 7, 3), 17));
    let (status, head) = projector.progress.status(rig.store()).await.unwrap();
    let seen: Vec<_> = status.iter().map(|one| (&*one.name, one.group, one.state)).collect();
    assert_eq!(seen, [("sums", CORE, "live"), ("total", CORE, "live"), ("last", "other", "live")]);
    assert_eq!((head, status[0].position, status[0].lag_events), (4, 4, 0));
    projector.stop().await;
    rig.assert_verified().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_aborted_projector_loses_and_repeats_no_event() {
    let rig = Rig::new().await;
    for round in 1..=40 {
        let projector = rig.start().await;
        for id in ["a", "b", "c"] {
            rig.append(id, vec![added(1), added(round)]).await;
        }
        // Each round aborts the projector after another delay.
        tokio::time::sleep(Duration::from_micros(round as u64 * 311)).await;
        projector.abort().await;
    }
    rig.project().await;
    let sum = 40 + (1..=40).sum::<i64>();
    assert_eq!(rig.sums().await, [row("a", sum, 80), row("b", sum, 80), row("c", sum, 80)]);
    assert_eq!(rig.total().await, 3 * sum);
    rig.assert_verified().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_projector_whose_fence_was_raised_reads_its_checkpoints_again() {
    let rig = Rig::new().await;
    let projector = rig.start().await;
    rig.append("a", vec![added(1)]).await;
    rig.settled().await;
    // Another process raises the fence: the next commit of the running projector must fail.
    rig.execute("update checkpoints set epoch = epoch + 1").await;
    rig.append("a", vec![added(2)]).await;
    rig.settled().await;
    assert_eq!((rig.sums().await, rig.total().await), (vec![row("a", 3, 2)], 3));
    projector.stop().await;
}

/// A reader that takes an old position for the present one would start a subscriber before changes that were published
/// to nobody.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn concurrent_refreshes_never_move_a_position_back() {
    let rig = Rig::new().await;
    let projector = rig.start().await;
    let (reader, stop) = (Progress::new(rig.registry.clone()), CancellationToken::new());
    let refreshing: Vec<_> = (0..8)
        .map(|_| {
            let (reader, store, stop) = (reader.clone(), rig.store().clone(), stop.clone());
            tokio::spawn(async move {
                while !stop.is_cancelled() {
                    reader.refresh(store.db()).await.unwrap();
                }
            })
        })
        .collect();
    let mut changes = reader.changes();
    let watching = tokio::spawn(async move {
        let mut last = 0;
        while changes.changed().await.is_ok() {
            let now = changes.borrow_and_update().slowest(CORE);
            assert!(now >= last, "the position went from {last} back to {now}");
            last = now;
        }
        last
    });
    for _ in 0..300 {
        rig.append("a", vec![added(1)]).await;
    }
    let head = rig.settled().await;
    rig.until("the reader knows the head", async || reader.slowest(CORE) == head).await;
    stop.cancel();
    for task in refreshing {
        task.await.unwrap();
    }
    drop(reader);
    assert_eq!(watching.await.unwrap(), head);
    projector.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_small_cache_folds_the_same_states() {
    let rig = Rig::new().await;
    for number in 0..50 {
        rig.append(&format!("{}", number % 7), vec![added(number)]).await;
    }
    rig.project().await;
    for number in 50..100 {
        rig.append(&format!("{}", number % 7), vec![added(number)]).await;
    }
    // A new projector starts with an empty cache, so each state is folded again from the whole stream.
    rig.project().await;
    assert_eq!(rig.total().await, (0..100).sum::<i64>());
    rig.assert_verified().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn observers_see_each_change_once() {
    static SEEN: AtomicUsize = AtomicUsize::new(0);
    fn count(changes: &[Change<Counter>]) {
        let versions =
            |change: &Change<Counter>| change.after.version - change.before.as_ref().map_or(0, |before| before.version);
        SEEN.fetch_add(changes.iter().map(versions).sum::<i64>() as usize, Relaxed);
    }
    static OBSERVER: Observer<Counter> = Observer(count);
    let rig = Rig::new().await;
    let group = Group { name: CORE, projections: vec![&SUMS], observers: vec![&OBSERVER] };
    let rig = Rig { registry: Registry::new(vec![group]).unwrap(), ..rig };
    rig.append("a", vec![added(1), added(2)]).await;
    rig.append("b", vec![added(3)]).await;
    rig.project().await;
    // A second projector has no new events for the observer.
    rig.project().await;
    assert_eq!(SEEN.load(Relaxed), 3);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn read_models_beyond_the_log_stop_with_a_reason() {
    let rig = Rig::new().await;
    rig.append("a", vec![added(1)]).await;
    rig.project().await;
    rig.execute("update checkpoints set position = 7").await;
    let projector = rig.start().await;
    rig.until("the failure", async || {
        let (status, _) = projector.progress.status(rig.store()).await.unwrap();
        status
            .iter()
            .all(|one| one.state == "failed" && one.last_error.as_ref().is_some_and(|e| e.contains("replay --all")))
    })
    .await;
    projector.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_time_of_the_first_event_is_the_time_of_creation_also_at_the_epoch() {
    let rig = Rig::new().await;
    let at = |by: i64, time: &str| {
        let metadata = serde_json::json!({"event_id": format!("e-{by}"), "occurred_at": time}).to_string();
        event_store::event::NewEvent { metadata, ..added(by) }
    };
    rig.append("a", vec![at(1, "1970-01-01T00:00:00Z"), at(2, "2020-01-01T00:00:00Z")]).await;
    let events = rig.store().read_stream("counter", "a", 0, i64::MAX, i64::MAX).await.unwrap();
    let mut state = projection_engine::state::Versioned::<Counter>::default();
    for event in &events {
        state.apply(event).unwrap();
    }
    assert_eq!((state.created_at, state.updated_at), (0, 1_577_836_800_000_000));
    assert_eq!((&*state.id, state.version), ("a", 2));
}
