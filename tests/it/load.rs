//! Overload: clients that send and do not read, that send too much, and too many clients at once.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use futures::future::join_all;
use serde_json::{Value, json};
use tests::client::{Client, token};
use tests::process::POLL;
use tests::system::{Mode, TestSystem};
use tests::wait::until_true;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

tests::stories![
    a_half_duplex_client_gets_every_result_in_order,
    a_client_that_never_reads_costs_little_memory,
    bulk_commands_are_rate_limited,
    bulk_requests_of_one_principal_are_counted,
    eight_bulk_requests_do_not_delay_other_clients,
    a_command_without_changes_returns_the_position_of_its_order,
];

/// Number of lines that a client sends before it reads.
const LINES: usize = 200_000;
/// Time limit of a wait in a test.
const DEADLINE: Duration = Duration::from_secs(120);

/// A raw request to `/v1/commands` with a chunked body.
struct Bulk(TcpStream);

impl Bulk {
    async fn open(client: &Client, token: &str) -> Self {
        let address = client.base().trim_start_matches("http://");
        let mut stream = TcpStream::connect(address).await.expect("the server listens");
        let head = format!(
            "POST /v1/commands HTTP/1.1\r\nhost: {address}\r\nauthorization: Bearer {token}\r\nconnection: close\r\n\
             content-type: application/x-ndjson\r\ntransfer-encoding: chunked\r\n\r\n"
        );
        stream.write_all(head.as_bytes()).await.expect("the head is sent");
        Self(stream)
    }

    /// Sends lines without reading.
    async fn send(&mut self, lines: &str) -> std::io::Result<()> {
        self.0.write_all(format!("{:x}\r\n{lines}\r\n", lines.len()).as_bytes()).await
    }

    async fn end(&mut self) {
        self.0.write_all(b"0\r\n\r\n").await.expect("the last chunk is sent");
    }

    /// Reads the whole response and returns its status and the results.
    async fn read(mut self) -> (u16, Vec<Value>) {
        let mut bytes = vec![];
        self.0.read_to_end(&mut bytes).await.expect("a complete response");
        let head = bytes.windows(4).position(|four| four == b"\r\n\r\n").expect("the response has a head") + 4;
        let status = std::str::from_utf8(&bytes[9..12]).expect("a status").parse().expect("a status");
        let (mut body, mut rest) = (vec![], &bytes[head..]);
        while let Some(end) = rest.windows(2).position(|two| two == b"\r\n") {
            let size = std::str::from_utf8(&rest[..end]).ok().and_then(|size| usize::from_str_radix(size, 16).ok());
            let size = size.expect("the size of a chunk");
            body.extend_from_slice(&rest[end + 2..end + 2 + size]);
            rest = &rest[end + 4 + size..];
            if size == 0 {
                break;
            }
        }
        let lines = body.split(|byte| *byte == b'\n').filter(|line| !line.is_empty());
        (status, lines.map(|line| serde_json::from_slice(line).expect("a result is JSON")).collect())
    }
}

fn create(id: &str, customer: &str) -> Value {
    let item = json!({"sku": "pen", "quantity": 1, "unit_price": "1.00"});
    json!({"order_id": id, "customer_id": customer, "items": [item]})
}

async fn a_half_duplex_client_gets_every_result_in_order(system: TestSystem) {
    system.post("/v1/orders").json(create("one", "ada")).send().await.expect(201);
    let mut bulk = Bulk::open(system.writer(), &token("feed", "staff")).await;
    // Most lines change nothing and are quick. In between are a refusal and lines with unknown commands.
    let line = |number: usize| match number % 1_000 {
        0 => {
            json!({"type": "change_item", "id": number, "order_id": "one", "sku": "pen", "quantity": 1 + number / 1_000})
        }
        1 => json!({"type": "confirm_order", "id": number, "order_id": "nobody"}),
        _ => json!({"type": "rename", "id": number, "order_id": "one"}),
    };
    for first in (0..LINES).step_by(1_000) {
        let lines: String = (first..first + 1_000).map(|number| line(number).to_string() + "\n").collect();
        let sent = tokio::time::timeout(DEADLINE, bulk.send(&lines)).await.expect("the server keeps reading");
        sent.expect("the connection is open");
    }
    bulk.end().await;
    let (status, results) = tokio::time::timeout(DEADLINE, bulk.read()).await.expect("the response ends in time");
    assert_eq!((status, results.len()), (200, LINES));
    for (number, result) in results.iter().enumerate() {
        let expected = [200, 404, 422][(number % 1_000).min(2)];
        assert_eq!((&result["id"], &result["status"]), (&json!(number), &json!(expected)), "{result}");
    }
}

async fn a_client_that_never_reads_costs_little_memory(system: TestSystem) {
    let docket = &system.dockets[0];
    let before = docket.memory_kib();
    let long = json!({"type": "add_item", "order_id": "one", ("x".repeat(900_000)): 1}).to_string() + "\n";
    let mut bulk = Bulk::open(system.writer(), &token("feed", "staff")).await;
    let sending = tokio::spawn(async move {
        for _ in 0..900 {
            bulk.send(&long).await.expect("the server keeps reading");
        }
        bulk
    });
    let mut most = 0;
    while !sending.is_finished() {
        most = most.max(docket.memory_kib());
        tokio::time::sleep(POLL).await;
    }
    let bulk = sending.await.expect("the sender does not fail");
    let grown = most.saturating_sub(before) / 1024;
    println!("memory grew by {grown} MiB for a client that sent 900 lines of 900 KB and read nothing");
    assert!(grown < 150, "memory grew by {grown} MiB for a client that sent 900 lines of 900 KB and read nothing");
    drop(bulk);
    system.get("/v1/orders").send().await.expect(200);
}

async fn bulk_commands_are_rate_limited(system: TestSystem) {
    let ada = token("ada", "customer");
    let lines: String = (0..450)
        .map(|number| {
            let mut line = create(&format!("o-{number}"), "ada");
            line["type"] = "create_order".into();
            line.to_string() + "\n"
        })
        .collect();
    let began = Instant::now();
    let bulk = system.post("/v1/commands").token(&ada).body("application/x-ndjson", lines);
    let (answer, single) = tokio::join!(bulk.send(), async {
        tokio::time::sleep(Duration::from_secs(1)).await;
        system.post("/v1/orders").token(&ada).json(create("single", "ada")).send().await
    });
    let took = began.elapsed();
    let results = String::from_utf8_lossy(&answer.expect(200).body).into_owned();
    assert_eq!(
        results.lines().filter(|line| line.contains("\"status\":201")).count(),
        450,
        "no command may be refused"
    );
    assert!(
        took > Duration::from_millis(2_500),
        "450 commands at a rate of 100 per second with a burst of 150 took only {took:?}"
    );
    single.expect(201);
}

async fn bulk_requests_of_one_principal_are_counted(system: TestSystem) {
    let (feed, other) = (token("feed", "staff"), token("other", "staff"));
    let mut open = vec![];
    for number in 0..8 {
        let mut bulk = Bulk::open(system.writer(), &feed).await;
        bulk.send(&format!("{}\n", json!({"type": "confirm_order", "order_id": "nobody", "id": number})))
            .await
            .expect("the line is sent");
        let mut first = [0; 12];
        bulk.0.read_exact(&mut first).await.expect("the response begins");
        assert_eq!(&first, b"HTTP/1.1 200");
        open.push(bulk);
    }
    let one_more = || system.post("/v1/commands").body("application/x-ndjson", "{}\n".to_owned());
    let refused = one_more().token(&feed).send().await;
    assert_eq!(refused.header("retry-after"), Some("1"));
    refused.expect_problem(429, "too-many-bulk-requests");
    one_more().token(&other).send().await.expect(200);
    drop(open);
    until_true("the closed requests no longer count", async || one_more().token(&feed).send().await.status != 429)
        .await;
}

/// Returns the 95th percentile of the times. (The machine is shared with other tests, which cause the slowest
/// requests.)
fn p95(mut took: Vec<Duration>) -> Duration {
    took.sort_unstable();
    took[took.len() * 95 / 100]
}

async fn one_after_the_other(system: &TestSystem, prefix: &str, count: usize) -> Vec<Duration> {
    let mut took = vec![];
    for number in 0..count {
        let began = Instant::now();
        let order = create(&format!("{prefix}-{number}"), "ada");
        system.post("/v1/orders").token(&token("eve", "staff")).json(order).send().await.expect(201);
        took.push(began.elapsed());
    }
    took
}

/// A command of another client takes a fraction of the time of a bulk request, on a machine of any speed.
async fn eight_bulk_requests_do_not_delay_other_clients(system: TestSystem) {
    let stop = Arc::new(AtomicBool::new(false));
    let feeds: Vec<_> = (0..8)
        .map(|feed| {
            let (client, stop) = (system.writer().clone(), stop.clone());
            tokio::spawn(async move {
                let mut took = vec![];
                while !stop.load(Ordering::Relaxed) {
                    let lines: String = (0..1_000)
                        .map(|number| {
                            let mut line = create(&format!("f-{feed}-{}-{number}", took.len()), "ada");
                            line["type"] = "create_order".into();
                            line["items"] = (0..20)
                                .map(|sku| json!({"sku": format!("sku-{sku}"), "quantity": 1, "unit_price": "1.00"}))
                                .collect();
                            line.to_string() + "\n"
                        })
                        .collect();
                    let answer =
                        client.post("/v1/commands").token(&token("feed", "staff")).body("application/x-ndjson", lines);
                    let began = Instant::now();
                    let results = answer.send().await.expect(200).body;
                    assert!(!String::from_utf8_lossy(&results).contains("problem"));
                    took.push(began.elapsed());
                }
                took
            })
        })
        .collect();
    let beside = p95(one_after_the_other(&system, "beside", 100).await);
    stop.store(true, Ordering::Relaxed);
    let bulk = join_all(feeds).await.into_iter().flat_map(|feed| feed.expect("the feed does not fail"));
    let mut bulk: Vec<_> = bulk.collect();
    bulk.sort_unstable();
    let bulk = bulk[bulk.len() / 2];
    assert!(beside * 8 < bulk, "{beside:?} beside bulk requests of {bulk:?}");
}

/// More clients than the server can answer in time; each retries at once when it is refused. The target wait is so
/// short that a machine of any speed is overloaded.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn overload_is_refused_and_accepted_commands_are_fast() {
    for mode in [Mode::Embedded, Mode::Scaled] {
        let system = TestSystem::builder(mode).setting("DOCKET_APPEND_WAIT_MS_MAX", "20").start().await;
        let end = Instant::now() + Duration::from_secs(4);
        let clients: Vec<_> = (0..1_000)
            .map(|client| {
                let http = system.writer().clone();
                tokio::spawn(async move {
                    let (mut taken, mut shed, mut number) = (vec![], 0_usize, 0);
                    while Instant::now() < end {
                        number += 1;
                        let began = Instant::now();
                        let order = create(&format!("o-{client}-{number}"), "ada");
                        let answer = http.post("/v1/orders").json(order).send().await;
                        match answer.status {
                            201 => taken.push(began.elapsed()),
                            _ => {
                                assert_eq!(answer.header("retry-after"), Some("1"));
                                // Two orders may share a lock. Then the second waits for the lock no longer than the
                                // limit.
                                let busy = answer.json()["type"] == "/problems/order-busy";
                                answer.expect_problem(503, if busy { "order-busy" } else { "overloaded" });
                                shed += usize::from(!busy);
                            }
                        }
                    }
                    (taken, shed)
                })
            })
            .collect();
        let outcomes = join_all(clients).await.into_iter().map(|client| client.expect("a client does not fail"));
        let (taken, shed): (Vec<_>, Vec<usize>) = outcomes.unzip();
        let (taken, shed) = (taken.concat(), shed.into_iter().sum::<usize>());
        println!("{mode:?}: {} accepted, {shed} shed", taken.len());
        assert!(shed > 0, "{mode:?}: no command was shed, {} were accepted", taken.len());
        assert!(taken.len() > 1_000, "{mode:?}: only {} were accepted", taken.len());
        let quick = p95(taken);
        assert!(quick < Duration::from_secs(1), "{mode:?}: accepted commands wait {quick:?}");
        let metric = r#"docket_commands_total{command="create",result="overloaded"}"#;
        assert_eq!(system.dockets[0].metric(metric).await, Some(shed as f64));
    }
}

async fn a_command_without_changes_returns_the_position_of_its_order(system: TestSystem) {
    let created = system.post("/v1/orders").json(create("own", "ada")).send().await.expect(201);
    for number in 0..5 {
        system.post("/v1/orders").json(create(&format!("other-{number}"), "bob")).send().await.expect(201);
    }
    let same = || system.put("/v1/orders/own/items/pen").json(json!({"quantity": 1}));
    let own = (created.version(), created.position());
    let nothing = same().send().await.expect(200);
    assert_eq!((nothing.version(), nothing.position()), own);
    let keyed = same().key("nothing").send().await.expect(200);
    assert_eq!((keyed.version(), keyed.position()), own);
    system.post("/v1/orders").json(create("later", "bob")).send().await.expect(201);
    let replayed = same().key("nothing").send().await.expect(200);
    assert_eq!(replayed.header("idempotency-replayed"), Some("true"));
    assert_eq!(replayed.body, keyed.body);
    let line = json!({"type": "change_item", "order_id": "own", "sku": "pen", "quantity": 1}).to_string();
    let bulk = system.post("/v1/commands").body("application/x-ndjson", line).send().await.expect(200).json();
    assert_eq!((bulk["version"].as_u64(), bulk["position"].as_u64()), (Some(own.0), Some(own.1)));
}
