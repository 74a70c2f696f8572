//! Many clients, few orders, and crashes during the load.

use tests::load::{Load, Shape};
use tests::system::TestSystem;
use tests::verify::{assert_outcomes_match_log, read_models_equal_the_fold};

tests::stories![a_crash_under_load_loses_nothing];

async fn a_crash_under_load_loses_nothing(mut system: TestSystem) {
    let shape = Shape { name: "crash", clients: 64, orders: 8, commands_each: 60 };
    let load = Load::start(system.writer(), shape);
    load.acknowledged(500).await;
    system.kill9();
    system.restart().await;
    load.acknowledged(1200).await;
    system.kill9();
    system.restart().await;
    let sent = load.finish().await;
    let log = read_models_equal_the_fold(&system).await;
    assert_outcomes_match_log(&log, &sent);
}
