//! An operator stops a busy process.

use std::time::Duration;

use tests::load::{Load, Shape};
use tests::system::TestSystem;
use tests::verify::{outcomes_are_true, read_models_equal_the_fold};

tests::stories![a_busy_process_stops_in_time];

/// Shorter than the half minute that process managers commonly grant.
const STOP_MAX: Duration = Duration::from_secs(20);

async fn a_busy_process_stops_in_time(mut system: TestSystem) {
    let load = Load::start(system.writer(), Shape { name: "stop", clients: 16, orders: 8, commands_each: 100_000 });
    load.acknowledged(300).await;
    for (status, took) in system.terminate().await {
        assert!(status.success(), "{status}");
        assert!(took < STOP_MAX, "{took:?}");
    }
    let sent = load.stop().await;
    system.start().await;
    let log = read_models_equal_the_fold(&system).await;
    outcomes_are_true(&log, &sent);
}
