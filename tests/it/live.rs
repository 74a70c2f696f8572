//! An unmodified third-party client, npm's `centrifuge`, follows an order and the list of orders.

use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use serde_json::{Value, json};
use tests::client::{signed, token};
use tests::process::find_on_path;
use tests::socket::Socket;
use tests::system::TestSystem;
use tokio::io::{AsyncBufReadExt, BufReader, Lines};
use tokio::process::{Child, ChildStdout, Command};

tests::stories![a_stock_client_sees_each_change_once, a_stock_client_rides_out_a_crash];

/// A client that answers pings and never refreshes its token loses the connection, 25 s after the token's end.
#[tokio::test]
async fn an_expired_token_closes_the_socket() {
    let system = TestSystem::embedded().await;
    let now = jiff::Timestamp::now().as_second();
    let claims = json!({
        "sub": "c", "role": "customer", "iss": "docket", "aud": "docket", "jti": "short", "iat": now, "nbf": now, "exp": now + 2,
    });
    let socket = Socket::connect(system.reader(), &signed(&claims)).await;
    assert_eq!(socket.closed().await, 4401);
    let lasted = jiff::Timestamp::now().as_second() - now;
    assert!((26..35).contains(&lasted), "closed after {lasted} s");
}

const LINE_DEADLINE: Duration = Duration::from_secs(40);

/// A running `follow.mjs`; it prints a JSON line for each thing that the client library reports.
struct Follower {
    _child: Child,
    lines: Lines<BufReader<ChildStdout>>,
}

impl Follower {
    /// Starts the client and waits until each channel is subscribed; the snapshots in the channels' order.
    async fn start(system: &TestSystem, token: &str, channels: &[&str]) -> (Self, Vec<Value>) {
        let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("centrifuge");
        let installed = directory.join("node_modules/centrifuge").is_dir();
        assert!(installed, "the npm client is missing; install it with: (cd tests/centrifuge && npm ci)");
        let url = format!("{}/ws", system.reader().base().replacen("http", "ws", 1));
        let mut command =
            Command::new(find_on_path("node").expect("node is missing; install it with: apt-get install -y nodejs"));
        command.arg(directory.join("follow.mjs")).arg(url).arg(token).args(channels);
        let mut child =
            command.stdout(Stdio::piped()).stdin(Stdio::null()).kill_on_drop(true).spawn().expect("node starts");
        let lines = BufReader::new(child.stdout.take().expect("piped")).lines();
        let mut follower = Self { _child: child, lines };
        let mut snapshots = vec![Value::Null; channels.len()];
        while snapshots.iter().any(Value::is_null) {
            let line = follower.next().await;
            assert_eq!(line["event"], "subscribed", "{line}");
            let channel = channels.iter().position(|channel| line["channel"] == *channel).expect("a channel of ours");
            snapshots[channel] = line["data"].clone();
        }
        (follower, snapshots)
    }

    async fn next(&mut self) -> Value {
        let line = tokio::time::timeout(LINE_DEADLINE, self.lines.next_line())
            .await
            .expect("the client reports nothing for long");
        serde_json::from_str(&line.expect("node runs").expect("node runs on")).expect("JSON")
    }

    /// The next publication of this channel. An unexpected report of it (an error, a lost subscription) is a failure.
    async fn publication(&mut self, channel: &str) -> Value {
        loop {
            let line = self.next().await;
            if line["channel"] == channel {
                assert_eq!(line["event"], "publication", "{line}");
                return line["data"].clone();
            }
        }
    }
}

async fn add(system: &TestSystem, order: &str, sku: &str) {
    let item = json!({"sku": sku, "quantity": 1, "unit_price": "1.00", "category": "OFFICE"});
    system.post(&format!("/v1/orders/{order}/items")).json(item).send().await.expect(200);
}

async fn a_stock_client_sees_each_change_once(system: TestSystem) {
    let body = |id: &str| json!({"order_id": id, "customer_id": "ada"});
    system.post("/v1/orders").json(body("live-1")).send().await.expect(201);
    add(&system, "live-1", "pen").await;
    system.settled().await;

    let staff = token("clerk", "staff");
    let (mut one, snapshots) = Follower::start(&system, &staff, &["order:live-1"]).await;
    let (mut all, _) = Follower::start(&system, &staff, &["orders"]).await;
    assert_eq!(snapshots[0]["type"], "snapshot", "{}", snapshots[0]);
    assert_eq!((&snapshots[0]["view"]["version"], &snapshots[0]["view"]["total"]), (&json!(2), &json!("1.00")));

    system.post("/v1/orders").json(body("live-2")).send().await.expect(201);
    for number in 0..20 {
        add(&system, "live-1", &format!("sku-{number}")).await;
        add(&system, "live-2", &format!("sku-{number}")).await;
    }
    system.post("/v1/orders/live-1/confirm").send().await.expect(200);

    for version in 3..=23 {
        let data = one.publication("order:live-1").await;
        let kind = if version == 23 { "OrderConfirmed" } else { "ItemAdded" };
        assert_eq!(
            (&data["type"], data["version"].as_u64(), &data["order_id"]),
            (&json!(kind), Some(version), &json!("live-1")),
            "{data}"
        );
        assert_eq!(data["view"]["version"].as_u64(), Some(version), "the row after the change: {data}");
    }
    let (mut versions, mut last_position) = (vec![], 0);
    while versions.last() != Some(&23) {
        let data = all.publication("orders").await;
        let position = data["position"].as_u64().expect("a position");
        assert!(position > last_position, "in order, none twice: {data}");
        last_position = position;
        if data["order_id"] == "live-1" {
            versions.push(data["version"].as_u64().expect("a version"));
        }
    }
    assert_eq!(versions, (3..=23).collect::<Vec<u64>>());
}

async fn a_stock_client_rides_out_a_crash(mut system: TestSystem) {
    system.post("/v1/orders").json(json!({"order_id": "live-3", "customer_id": "ada"})).send().await.expect(201);
    system.settled().await;
    let ada = token("ada", "customer");
    let (mut follower, snapshots) = Follower::start(&system, &ada, &["order:live-3"]).await;
    assert_eq!(snapshots[0]["view"]["version"], 1);
    add(&system, "live-3", "pen").await;
    assert_eq!(follower.publication("order:live-3").await["version"], 2);
    add(&system, "live-3", "ink").await;
    system.kill9();
    system.restart().await;
    for number in 0..5 {
        add(&system, "live-3", &format!("sku-{number}")).await;
    }
    // Either each change that follows, or an explicit fresh snapshot: never a silent gap, never a repeat.
    let mut version = 2;
    while version < 8 {
        let line = follower.next().await;
        let next = match line["event"].as_str() {
            Some("publication") => {
                assert_eq!(line["data"]["version"], version + 1, "{line}");
                version + 1
            }
            Some("subscribed") if line["data"]["type"] == "snapshot" => {
                line["data"]["view"]["version"].as_u64().expect("a version")
            }
            _ => continue,
        };
        assert!(next >= version, "{line}");
        version = next;
    }
}
