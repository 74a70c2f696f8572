//! An event that cannot be projected parks its stream; every other stream continues.

use std::sync::atomic::Ordering::Relaxed;

use projection_engine::dead_letters::{DeadLetter, Decided, Decision, decide, list};
use testkit::counter::{added, noted, undecodable};

use crate::rig::{OTHER, PANICS, Rig, row};

async fn letters(rig: &Rig) -> Vec<DeadLetter> {
    list(rig.store().db()).await.unwrap()
}

/// Waits until all decisions are applied.
async fn carried_out(rig: &Rig) {
    rig.until("the decision", async || {
        letters(rig).await.iter().all(|letter| letter.state != "retry" && letter.state != "discard")
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_event_that_does_not_decode_parks_its_stream_in_every_group() {
    let rig = Rig::new().await;
    rig.append("a", vec![added(1), undecodable(), added(4)]).await;
    rig.append("b", vec![added(10)]).await;
    let projector = rig.start().await;
    rig.settled().await;
    assert_eq!(rig.sums().await, [row("a", 1, 1), row("b", 10, 1)]);
    assert_eq!(rig.last().await, [row("a", 1, 1), row("b", 10, 1)]);
    let parked = letters(&rig).await;
    assert_eq!(parked.len(), 1, "{parked:?}");
    assert_eq!((parked[0].position, &parked[0].group, &*parked[0].state), (2, &None, "parked"));
    assert!(parked[0].reason.contains("not a number"), "{parked:?}");

    // A retry of the same event fails again.
    let retried = decide(rig.store(), &rig.registry, 2, Decision::Retry).await.unwrap();
    assert_eq!(retried, Decided::Requested);
    carried_out(&rig).await;
    let again = letters(&rig).await;
    assert!(again.iter().all(|letter| letter.position == 2 && letter.state == "parked"), "{again:?}");
    assert_eq!(rig.sums().await[0], row("a", 1, 1));

    // Without the event, the stream continues in every group.
    decide(rig.store(), &rig.registry, 2, Decision::Discard).await.unwrap();
    carried_out(&rig).await;
    rig.until("the rest of the stream", async || {
        rig.sums().await[0] == row("a", 5, 3) && rig.last().await[0] == row("a", 4, 3)
    })
    .await;
    assert_eq!(rig.total().await, 15);
    projector.stop().await;
    rig.assert_verified().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_fold_that_panics_parks_its_stream_in_its_own_group() {
    let rig = Rig::new().await;
    rig.append("a", vec![added(1), noted(2, "panic")]).await;
    rig.append("b", vec![added(10)]).await;
    let projector = rig.start().await;
    rig.settled().await;
    assert_eq!(rig.sums().await, [row("a", 1, 1), row("b", 10, 1)]);
    assert_eq!(rig.last().await, [row("a", 2, 2), row("b", 10, 1)], "the other group is not affected");
    let parked = letters(&rig).await;
    assert_eq!(parked.len(), 1, "{parked:?}");
    assert_eq!((parked[0].position, parked[0].group.as_deref()), (2, Some("core")));
    assert!(parked[0].reason.contains("the note says so"), "{parked:?}");

    // After the fault is removed, a retry brings the stream up to date.
    PANICS.store(false, Relaxed);
    decide(rig.store(), &rig.registry, 2, Decision::Retry).await.unwrap();
    rig.until("the end of the parking", async || letters(&rig).await.is_empty()).await;
    assert_eq!((rig.sums().await, rig.total().await), (vec![row("a", 3, 2), row("b", 10, 1)], 13));
    projector.stop().await;
    rig.assert_verified().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_streams_of_one_batch_park_together() {
    let rig = Rig::new().await;
    for number in 0..20 {
        rig.append(&format!("bad-{number:02}"), vec![added(1), undecodable()]).await;
        rig.append(&format!("good-{number:02}"), vec![added(2)]).await;
    }
    rig.project().await;
    assert_eq!(letters(&rig).await.len(), 20);
    assert_eq!((rig.sums().await.len(), rig.total().await), (40, 20 + 40));
    rig.assert_verified().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_parked_stream_outlives_its_projector() {
    let rig = Rig::new().await;
    rig.append("a", vec![undecodable()]).await;
    rig.project().await;
    rig.append("a", vec![added(2)]).await;
    rig.append("b", vec![added(3)]).await;
    rig.project().await;
    assert_eq!(rig.sums().await, [row("b", 3, 1)], "later events of a parked stream wait");
    assert_eq!(letters(&rig).await.len(), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_decision_about_no_dead_letter_changes_nothing() {
    let rig = Rig::new().await;
    rig.append("a", vec![added(1)]).await;
    rig.project().await;
    for decision in [Decision::Retry, Decision::Discard] {
        for position in [1, 99] {
            assert_eq!(decide(rig.store(), &rig.registry, position, decision).await.unwrap(), Decided::NoSuch);
        }
    }
    assert!(letters(&rig).await.is_empty());
    assert_eq!(rig.group(OTHER).projections.len(), 1);
}
