//! Unmodified third-party clients follow orders: npm's `centrifuge` and `eventsource`, PyPI's `centrifuge-python`, and
//! a browser.

use std::collections::HashMap;
use std::path::Path;
use std::process::Stdio;
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tests::client::{signed, token};
use tests::follower::{Follower, Kind};
use tests::process::{profile_directory, target_directory};
use tests::proxy::Proxy;
use tests::socket::Socket;
use tests::system::{Builder, Mode, TestSystem};
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::process::Command;

tests::stories![
    settings = own_servers;
    a_stock_client_sees_each_change_once,
    stock_clients_resume_after_a_crash,
    readers_of_a_large_order_are_not_disconnected,
    an_event_source_survives_refusals,
];

/// Starts servers for each system, because one of the stories kills PostgreSQL.
fn own_servers(builder: Builder) -> Builder {
    builder.own_servers()
}

/// Returns a token that is valid for `seconds` seconds.
fn short(subject: &str, role: &str, seconds: i64) -> String {
    let now = jiff::Timestamp::now().as_second();
    signed(&json!({"sub": subject, "role": role, "iss": "docket", "aud": "docket", "iat": now, "exp": now + seconds}))
}

/// Seconds that a socket stays open after its token has expired, as the harness sets them.
const GRACE: i64 = 2;

/// A client that answers pings and never refreshes its token loses the connection at the end of the grace time.
#[tokio::test]
async fn an_expired_token_closes_the_socket() {
    let system = TestSystem::embedded().await;
    let now = jiff::Timestamp::now();
    let socket = Socket::connect(system.reader(), &short("c", "customer", 2)).await;
    assert_eq!(socket.closed().await, 4401);
    let lasted = now.duration_until(jiff::Timestamp::now()).as_secs();
    // A token expires at a whole second, and the server accepts it for five more, because clocks differ.
    assert!((1 + GRACE..2 + GRACE + 10).contains(&lasted), "closed after {lasted} s");
}

/// Clients that refresh their token keep the connection.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn stock_clients_refresh_their_tokens() {
    let system = TestSystem::embedded().await;
    system.post("/v1/orders").json(json!({"order_id": "fresh", "customer_id": "ada"})).send().await.expect(201);
    system.settled().await;
    let mut followers = vec![];
    for (kind, seconds) in [(Kind::Npm, 5), (Kind::Python, 5), (Kind::EventSource, 3), (Kind::Browser, 8)] {
        let tokens = format!("{},{}", short("ada", "customer", seconds), token("ada", "customer"));
        let mut follower = Follower::start(kind, system.reader().base(), &tokens, &["order:fresh"]);
        assert_eq!(follower.next().await["event"], "snapshot", "{kind:?}");
        followers.push((kind, follower));
    }
    for (kind, follower) in &mut followers {
        // A WebSocket client asks for a fresh token in time. An event stream ends with its token and is opened again
        // with another one.
        let told = if matches!(kind, Kind::Npm | Kind::Python) { "token" } else { "auth_expired" };
        assert_eq!(follower.next().await["event"], told, "{kind:?}");
    }
    // Waits until the server would have closed a socket whose client sent no fresh token.
    tokio::time::sleep(Duration::from_secs(8 + GRACE as u64 + 1)).await;
    add(&system, "fresh", "pen").await;
    for (kind, follower) in &mut followers {
        let line = follower.next().await;
        assert_eq!((&line["event"], &line["data"]["version"]), (&json!("pub"), &json!(2)), "{kind:?}: {line}");
    }
}

/// Seconds for which the token of the disconnected client is valid: enough to connect with it.
const TOKEN_SECONDS: i64 = 8;

/// A client that was disconnected beyond its token's expiry still holds the old token: it asks for a fresh one and
/// reconnects.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn stock_clients_reconnect_after_their_token_expired() {
    let mut system = TestSystem::embedded().await;
    system.post("/v1/orders").json(json!({"order_id": "away", "customer_id": "ada"})).send().await.expect(201);
    system.settled().await;
    let mut followers = vec![];
    for kind in [Kind::Npm, Kind::Python] {
        let tokens = format!("{},{}", short("ada", "customer", -20), token("ada", "customer"));
        let mut late = Follower::start(kind, system.reader().base(), &tokens, &["order:away"]);
        assert_eq!(late.next().await["event"], "token", "{kind:?}");
        assert_eq!(late.next().await["event"], "snapshot", "{kind:?}");
        let tokens = format!("{},{}", short("ada", "customer", TOKEN_SECONDS), token("ada", "customer"));
        let mut away = Follower::start(kind, system.reader().base(), &tokens, &["order:away"]);
        assert_eq!(away.next().await["event"], "snapshot", "{kind:?}");
        followers.push((kind, away));
    }
    system.terminate().await;
    // The server accepts a token for five more seconds, because clocks differ.
    tokio::time::sleep(Duration::from_secs(TOKEN_SECONDS as u64 + 6)).await;
    system.start().await;
    add(&system, "away", "pen").await;
    for (kind, follower) in &mut followers {
        assert_eq!(follower.next().await["event"], "token", "{kind:?}");
        let mut line = follower.next().await;
        if line["event"] == "recovered" {
            line = follower.next().await;
        }
        assert_eq!((&line["event"], &line["data"]["version"]), (&json!("pub"), &json!(2)), "{kind:?}: {line}");
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
    let base = system.reader().base();
    let mut one = Follower::start(Kind::Npm, base, &staff, &["order:live-1"]);
    let mut all = Follower::start(Kind::Npm, base, &staff, &["orders"]);
    let snapshot = one.next().await["data"].clone();
    assert_eq!(snapshot["type"], "snapshot", "{snapshot}");
    assert_eq!((&snapshot["view"]["version"], &snapshot["view"]["total"]), (&json!(2), &json!("1.00")));
    assert_eq!(all.next().await["data"]["type"], "snapshot");

    system.post("/v1/orders").json(body("live-2")).send().await.expect(201);
    for number in 0..20 {
        add(&system, "live-1", &format!("sku-{number}")).await;
        add(&system, "live-2", &format!("sku-{number}")).await;
    }
    system.post("/v1/orders/live-1/confirm").send().await.expect(200);

    for version in 3..=23 {
        let data = change(&mut one, "order:live-1").await;
        let kind = if version == 23 { "OrderConfirmed" } else { "ItemAdded" };
        assert_eq!(
            (&data["type"], data["version"].as_u64(), &data["order_id"]),
            (&json!(kind), Some(version), &json!("live-1")),
            "{data}"
        );
        assert_eq!(data["view"]["version"].as_u64(), Some(version), "the view must be that after the change: {data}");
    }
    let (mut versions, mut last_position) = (vec![], 0);
    while versions.last() != Some(&23) {
        let data = change(&mut all, "orders").await;
        let position = data["position"].as_u64().expect("a position");
        assert!(position > last_position, "positions must increase: {data}");
        last_position = position;
        if data["order_id"] == "live-1" {
            versions.push(data["version"].as_u64().expect("a version"));
        }
    }
    assert_eq!(versions, (3..=23).collect::<Vec<u64>>());
}

/// Returns the next change that a client reports. It must be a change on this channel.
async fn change(follower: &mut Follower, channel: &str) -> Value {
    let line = follower.next().await;
    assert_eq!((&line["event"], &line["channel"]), (&json!("pub"), &json!(channel)), "{line}");
    line["data"].clone()
}

async fn stock_clients_resume_after_a_crash(mut system: TestSystem) {
    system.post("/v1/orders").json(json!({"order_id": "live-3", "customer_id": "ada"})).send().await.expect(201);
    system.settled().await;
    let ada = token("ada", "customer");
    let mut followers = vec![];
    for kind in [Kind::Npm, Kind::Python, Kind::EventSource, Kind::Browser] {
        let mut follower = Follower::start(kind, system.reader().base(), &ada, &["order:live-3"]);
        let line = follower.next().await;
        assert_eq!(
            (&line["event"], &line["data"]["view"]["version"]),
            (&json!("snapshot"), &json!(1)),
            "{kind:?}: {line}"
        );
        followers.push((kind, follower));
    }
    add(&system, "live-3", "pen").await;
    for (kind, follower) in &mut followers {
        assert_eq!(change(follower, "order:live-3").await["version"], 2, "{kind:?}");
    }
    for sku in ["ink", "paper"] {
        add(&system, "live-3", sku).await;
    }
    system.kill9();
    system.restart().await;
    for number in 0..5 {
        add(&system, "live-3", &format!("sku-{number}")).await;
    }
    for (kind, follower) in &mut followers {
        for version in 3..=9 {
            let mut line = follower.next().await;
            while line["event"] == "recovered" {
                line = follower.next().await;
            }
            assert_eq!(
                (&line["event"], &line["data"]["version"]),
                (&json!("pub"), &json!(version)),
                "{kind:?}: {line}"
            );
        }
    }
}

/// Changes of 300 KB, one after another, on two channels of each client. Three changes fill the send buffer of a
/// client.
async fn readers_of_a_large_order_are_not_disconnected(system: TestSystem) {
    const CHANGES: usize = 60;
    let item = |number: u32| json!({"sku": format!("sku-{number}"), "quantity": 1, "unit_price": "1.00", "name": "x".repeat(200)});
    let items: Vec<_> = (0..1_000).map(item).collect();
    let order = json!({"type": "create_order", "order_id": "large", "customer_id": "ada", "items": items});
    let created = system.post("/v1/commands").body("application/x-ndjson", order.to_string() + "\n").send().await;
    assert!(!String::from_utf8_lossy(&created.expect(200).body).contains("problem"));
    system.settled().await;
    let staff = token("clerk", "staff");
    let mut followers = vec![];
    for kind in [Kind::Npm, Kind::Python, Kind::EventSource] {
        let mut follower = Follower::start(kind, system.reader().base(), &staff, &["orders", "order:large"]);
        for _ in 0..2 {
            assert_eq!(follower.next().await["event"], "snapshot", "{kind:?}");
        }
        followers.push((kind, follower));
    }
    let changes = async {
        for quantity in 2..2 + CHANGES {
            let change = json!({"quantity": quantity});
            system.put("/v1/orders/large/items/sku-1").json(change).send().await.expect(200);
        }
    };
    let followed = futures::future::join_all(followers.iter_mut().map(async |(kind, follower)| {
        let mut told = HashMap::<String, Vec<u64>>::new();
        for _ in 0..2 * CHANGES {
            let line = follower.next().await;
            assert_eq!(line["event"], "pub", "{kind:?}: {}", &line.to_string()[..200.min(line.to_string().len())]);
            let channel = line["channel"].as_str().expect("a channel").to_owned();
            told.entry(channel).or_default().push(line["data"]["version"].as_u64().expect("a version"));
        }
        told
    }));
    let ((), followed) = tokio::join!(changes, followed);
    for told in followed {
        let versions: Vec<u64> = (1_002..1_002 + CHANGES as u64).collect();
        assert_eq!((&told["orders"], &told["order:large"]), (&versions, &versions));
    }
}

/// An `EventSource` stops permanently when a response is not an event stream. When a customer has too many connections
/// or the database is unavailable, the client must keep reconnecting, and must then receive every change.
async fn an_event_source_survives_refusals(mut system: TestSystem) {
    system.post("/v1/orders").json(json!({"order_id": "patient", "customer_id": "ada"})).send().await.expect(201);
    system.settled().await;
    let ada = token("ada", "customer");
    let proxy = Proxy::start(system.dockets[0].address()).await;
    let mut followers = vec![];
    for kind in [Kind::EventSource, Kind::Browser] {
        let mut follower = Follower::start(kind, &proxy.base(), &ada, &["order:patient"]);
        assert_eq!(follower.next().await["event"], "snapshot", "{kind:?}");
        followers.push((kind, follower));
    }
    // While the two clients are disconnected, further sockets take their places under the customer's limit of 64.
    let mut sockets = vec![];
    for _ in 0..62 {
        sockets.push(Socket::connect(system.reader(), &ada).await);
    }
    tokio::join!(proxy.cut(Duration::from_secs(1)), async {
        tokio::time::sleep(Duration::from_millis(500)).await;
        for _ in 0..2 {
            sockets.push(Socket::connect(system.reader(), &ada).await);
        }
    });
    refused_for_a_while(&system, &ada, 429).await;
    drop(sockets);
    add(&system, "patient", "pen").await;
    for (kind, follower) in &mut followers {
        assert_eq!(change(follower, "order:patient").await["version"], 2, "{kind:?}");
    }
    if system.mode == Mode::Scaled {
        system.postgres.as_mut().expect("a scaled system").kill9();
        proxy.cut(Duration::from_secs(1)).await;
        refused_for_a_while(&system, &ada, 503).await;
        system.postgres.as_mut().expect("a scaled system").restart().await;
        let item = json!({"sku": "ink", "quantity": 1, "unit_price": "1.00"});
        let again = || system.post("/v1/orders/patient/items").key("ink").json(item.clone()).send();
        while again().await.status == 503 {
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
        for (kind, follower) in &mut followers {
            assert_eq!(change(follower, "order:patient").await["version"], 3, "{kind:?}");
        }
    }
}

/// Checks for five seconds, longer than a client's reconnect delay, that subscriptions are refused.
async fn refused_for_a_while(system: &TestSystem, token: &str, status: u16) {
    let until = Instant::now() + Duration::from_secs(5);
    while Instant::now() < until {
        system.get("/v1/poll?channel=order:patient&wait=0").token(token).send().await.expect(status);
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
}

/// Conformance to RFC 6455: no case of the Autobahn suite fails. The compression cases are left out, because
/// compression is not supported.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_autobahn_suite_finds_no_fault() {
    let suite = target_directory().join("tools/autobahn");
    assert!(suite.join("suite").is_dir(), "{} is missing; install it with: tests/run install", suite.display());
    let echo = profile_directory().join("examples/echo");
    let mut server = Command::new(&echo).stdout(Stdio::piped()).kill_on_drop(true).spawn().expect("echo is built");
    let mut address = String::new();
    let stdout = server.stdout.take().expect("standard output is piped");
    BufReader::new(stdout).read_line(&mut address).await.expect("the server prints its address");
    let reports = tempfile::tempdir().expect("a temporary directory");
    let run = Path::new(env!("CARGO_MANIFEST_DIR")).join("autobahn/run");
    let url = format!("ws://{}/", address.trim());
    let output = Command::new(run).arg(&suite).arg(url).arg(reports.path()).output().await.expect("the suite runs");
    let text = String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
    println!("{text}");
    assert!(output.status.success() && text.contains("301 of 301 cases passed"), "{}:\n{text}", output.status);
}
