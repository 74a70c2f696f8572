//! Verification finds every row that differs from the log, and says what differs.

use projection_engine::registry::CORE;
use projection_engine::verify::{Extent, verify};
use testkit::counter::added;

use crate::rig::{Rig, settings};

async fn projected() -> Rig {
    let rig = Rig::new().await;
    rig.append("a", vec![added(1), added(2)]).await;
    rig.append("b", vec![added(10)]).await;
    rig.project().await;
    rig
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn equal_rows_are_counted_and_nothing_is_found() {
    let rig = projected().await;
    let found = rig.verify(CORE).await;
    let seen: Vec<_> =
        found.projections.iter().map(|one| (one.name, one.position, one.rows, one.differences)).collect();
    assert_eq!((seen, found.missing_events), (vec![("sums", 3, 2, 0), ("total", 3, 1, 0)], 0));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_changed_a_missing_and_an_additional_row_are_found() {
    let rig = projected().await;
    rig.execute("update sums_g1 set sum = 4 where id = 'a'").await;
    rig.execute("delete from sums_g1 where id = 'b'").await;
    rig.execute("insert into sums_g1 (id, sum, version) values ('c', 1, 1)").await;
    let found = rig.verify(CORE).await;
    let sums = &found.projections[0];
    assert_eq!((sums.differences, found.projections[1].differences), (3, 0), "{found:#?}");
    let keys: Vec<_> = sums.first.iter().map(|one| &*one.key).collect();
    assert_eq!(keys, ["a", "b", "c"]);
    assert!(
        sums.first[0].what.iter().any(|what| what.contains("sum") && what.contains('4') && what.contains('3')),
        "{sums:#?}"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_wrong_sum_over_all_streams_is_found() {
    let rig = projected().await;
    rig.execute("update total_g1 set sum = sum + 1").await;
    assert_eq!(rig.verify(CORE).await.projections[1].differences, 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_sample_checks_rows_of_streams_and_no_sums() {
    let rig = Rig::new().await;
    for number in 0..400 {
        rig.append(&format!("{number}"), vec![added(1)]).await;
    }
    rig.project().await;
    rig.execute("update sums_g1 set sum = 2").await;
    let core = rig.group(CORE);
    let settings = settings();
    let found =
        verify(rig.store(), core, &settings, &core.projections, Extent::Sample(10), 3, |_, _| {}).await.unwrap();
    let (sums, total) = (&found.projections[0], &found.projections[1]);
    // The same stream can be drawn twice.
    assert!(sums.checked && (3..=10).contains(&sums.rows), "{found:#?}");
    assert_eq!((sums.differences, sums.first.len()), (sums.rows, 3), "{found:#?}");
    assert!(!total.checked, "{found:#?}");
}
