//! A rebuild fills a new generation next to the live one, and switches to it in one transaction.

use std::time::Duration;

use projection_engine::error::Error;
use projection_engine::rebuild::{RebuildStart, Switched, plan, prune, rebuild};
use projection_engine::registry::{CORE, Registry};
use testkit::counter::{added, undecodable};

use crate::rig::{LAST, OTHER, Rig, SUMS, SUMS_DOUBLED, TOTAL, group, row, settings};

fn switched(name: &'static str, generation: i64) -> Switched {
    Switched { name, generation, differences: Some(0) }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_rebuild_gives_the_same_rows() {
    let rig = Rig::new().await;
    for number in 0..30 {
        rig.append(&format!("{}", number % 4), vec![added(number), added(1)]).await;
    }
    rig.project().await;
    let before = (rig.sums().await, rig.total().await);
    let core = rig.group(CORE);
    let rebuilt =
        rebuild(rig.store(), core, &settings(), &core.projections, RebuildStart::Log, |_, _, _| {}).await.unwrap();
    assert_eq!(rebuilt.projections, [switched("sums", 2), switched("total", 2)]);
    assert_eq!((rebuilt.events, rebuilt.missing, rebuilt.position), (60, 0, 60));
    assert_eq!((rig.sums().await, rig.total().await), before);
    rig.assert_verified().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_rebuild_does_not_disturb_a_running_projector() {
    let rig = Rig::new().await;
    rig.append("a", (0..500).map(added).collect()).await;
    let projector = rig.start().await;
    rig.settled().await;
    let core = rig.group(CORE);
    let rebuilding = async {
        for generation in 2..=4 {
            let outcome =
                rebuild(rig.store(), core, &settings(), &core.projections, RebuildStart::Log, |_, _, _| {}).await;
            assert_eq!(outcome.unwrap().projections[0].generation, generation);
        }
    };
    let appending = async {
        for number in 0..300 {
            rig.append(&format!("{}", number % 3), vec![added(1)]).await;
        }
    };
    tokio::join!(rebuilding, appending);
    rig.settled().await;
    assert_eq!(rig.total().await, (0..500).sum::<i64>() + 300);
    projector.stop().await;
    rig.assert_verified().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_rebuild_that_was_cancelled_continues_where_it_stopped() {
    let rig = Rig::new().await;
    for _ in 0..30 {
        rig.append("a", (0..500).map(added).collect()).await;
    }
    rig.project().await;
    let core = rig.group(CORE);
    let mut furthest = 0;
    {
        let progress = |_: &str, position: i64, _: i64| furthest = furthest.max(position);
        let settings = settings();
        let work = rebuild(rig.store(), core, &settings, &core.projections, RebuildStart::Log, progress);
        let mut work = std::pin::pin!(work);
        // The rebuild is dropped as soon as it has written something. This has the effect of a kill.
        loop {
            tokio::select! {
                biased;
                done = work.as_mut() => panic!("the rebuild ended before it was cancelled: {done:?}"),
                () = tokio::time::sleep(Duration::from_millis(1)) => {}
            }
            let building = "select max(position) from checkpoints where state = 'building' and $1 = 0 and position > 0";
            let written: Vec<(Option<i64>,)> = rig.rows(building, 0).await;
            if written[0].0.is_some() {
                break;
            }
        }
    }
    let planned = plan(rig.store(), core, &core.projections, RebuildStart::Log).await.unwrap();
    assert!(planned.iter().all(|one| one.generation == 2 && one.position > 0), "{planned:?}");
    let rebuilt =
        rebuild(rig.store(), core, &settings(), &core.projections, RebuildStart::Log, |_, _, _| {}).await.unwrap();
    assert_eq!(rebuilt.projections, [switched("sums", 2), switched("total", 2)]);
    assert_eq!(rebuilt.events, 15_000 - planned[0].position);
    rig.assert_verified().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_old_generation_can_serve_again_until_it_is_pruned() {
    let rig = Rig::new().await;
    rig.append("a", vec![added(1)]).await;
    rig.project().await;
    let other = rig.group(OTHER);
    let run = async |from| rebuild(rig.store(), other, &settings(), &other.projections, from, |_, _, _| {}).await;
    assert!(matches!(run(RebuildStart::Older).await, Err(Error::NoOlder(name)) if name == "last"));
    run(RebuildStart::Log).await.unwrap();
    rig.append("a", vec![added(2)]).await;
    rig.project().await;
    let back = run(RebuildStart::Older).await.unwrap();
    assert_eq!(back.projections, [switched("last", 1)]);
    assert_eq!((back.events, rig.last().await), (1, vec![row("a", 2, 2)]));
    assert_eq!(prune(rig.store(), other, &other.projections, true).await.unwrap(), [("last", 2)], "a dry run");
    assert_eq!(prune(rig.store(), other, &other.projections, false).await.unwrap(), [("last", 2)]);
    assert!(matches!(run(RebuildStart::Older).await, Err(Error::NoOlder(_))));
    rig.assert_verified().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_rebuild_skips_no_event_that_nobody_has_discarded() {
    let rig = Rig::new().await;
    let position = rig.append("a", vec![undecodable()]).await;
    rig.project().await;
    let core = rig.group(CORE);
    let outcome = rebuild(rig.store(), core, &settings(), &core.projections, RebuildStart::Log, |_, _, _| {}).await;
    assert!(matches!(outcome, Err(Error::Parked { position: at, .. }) if at == position), "{outcome:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_newer_version_is_built_by_the_projector() {
    let rig = Rig::new().await;
    rig.append("a", vec![added(3)]).await;
    rig.project().await;
    let newer = vec![group(CORE, vec![&SUMS_DOUBLED, &TOTAL]), group(OTHER, vec![&LAST])];
    let newer = Rig { registry: Registry::new(newer).unwrap(), ..rig };
    let projector = newer.start().await;
    newer.until("the newer version", async || newer.sums().await == [row("a", 6, 1)]).await;
    newer.append("a", vec![added(1)]).await;
    newer.until("the next event in it", async || newer.sums().await == [row("a", 8, 2)]).await;
    assert_eq!(newer.total().await, 4);
    projector.stop().await;
    newer.assert_verified().await;
    // The older release cannot compute the rows of the newer version.
    let rig = Rig { registry: Registry::new(vec![group(CORE, vec![&SUMS, &TOTAL])]).unwrap(), ..newer };
    let core = rig.group(CORE);
    let outcome = rebuild(rig.store(), core, &settings(), &core.projections, RebuildStart::Log, |_, _, _| {}).await;
    assert!(matches!(outcome, Err(Error::Newer { version: 2, known: 1, .. })), "{outcome:?}");
}
