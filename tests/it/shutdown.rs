//! Shutdown of a busy process.

use std::time::Duration;

use tests::client::{Client, token};
use tests::load::{Load, Shape};
use tests::system::{Mode, TestSystem};
use tests::verify::{assert_outcomes_match_log, read_models_equal_the_fold};
use tests::wait::until_within;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

tests::stories![a_busy_process_stops_in_time];

/// Time limit for a process to stop: shorter than the 30 seconds that process managers usually allow.
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
    assert_outcomes_match_log(&log, &sent);
}

/// While a request is still running, readiness on the metrics address reports that the process is draining.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_draining_process_reports_that_it_drains() {
    let system = TestSystem::builder(Mode::Scaled).start().await;
    let docket = &system.dockets[0];
    let mut slow = TcpStream::connect(docket.address()).await.expect("the server listens");
    let body = r#"{"order_id":"slow","customer_id":"c"}"#;
    let (first, rest) = body.split_at(10);
    let head = format!(
        "POST /v1/orders HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {}\r\ncontent-type: application/json\r\n\
         content-length: {}\r\n\r\n{first}",
        token("me", "admin"),
        body.len()
    );
    slow.write_all(head.as_bytes()).await.expect("the request is sent");
    tokio::time::sleep(Duration::from_millis(200)).await;
    let operators = Client::new(format!("http://{}", docket.metrics_address()));
    docket.signal("TERM");
    let draining = until_within(Duration::from_secs(5), "the process reports that it is draining", async || {
        let ready = operators.get("/health/ready").anonymous().send().await;
        (ready.status == 503).then(|| ready.json())
    })
    .await;
    assert_eq!(draining["status"], "draining");
    slow.write_all(rest.as_bytes()).await.expect("the request is sent");
    let mut answer = [0; 12];
    slow.read_exact(&mut answer).await.expect("a response");
    assert_eq!(&answer, b"HTTP/1.1 201");
    until_within(STOP_MAX, "the process ends", async || {
        TcpStream::connect(docket.metrics_address()).await.is_err().then_some(())
    })
    .await;
}
