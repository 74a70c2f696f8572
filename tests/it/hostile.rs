//! Hostile input. Every row of the corpus must give a 4xx problem, a protocol error or a closed connection, in bounded
//! time and memory, and the server must keep working.
//!
//! The short form runs each row once and each memory row for a few seconds. `DOCKET_HOSTILE_SECONDS` selects the long
//! form: the memory rows and the mutations run for that many seconds each. `DOCKET_HOSTILE_SEED` repeats a run of
//! mutations.

mod corpus;
mod memory;
mod mutations;

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use futures::StreamExt;
use serde_json::{Value, json};
use tests::client::token;
use tests::raw::{Outcome, Until, exchange, exchange_frames};
use tests::system::{Builder, TestSystem};

use self::corpus::{Expect, ExpectFrames, Frames, ORDER, Row};

tests::stories![
    settings = without_rate;
    hostile_requests_are_refused,
    hostile_frames_are_refused,
    mutated_requests_do_no_harm,
];

/// Time limit of a response on a busy machine.
const DEADLINE: Duration = Duration::from_secs(10);
/// Number of rows that run concurrently.
const CONCURRENT_ROWS: usize = 8;
/// Minimum number of requests in the corpus.
const ROWS_MIN: usize = 300;

/// Disables the rate limit, which would answer 429 instead of the tested response, and makes PostgreSQL durable,
/// because without `fsync` Docket is never `ready`.
fn without_rate(builder: Builder) -> Builder {
    builder.durable().setting("DOCKET_RATE_PER_SECOND_CUSTOMER", "0")
}

/// Returns the duration of each part of the long form; None in the short form.
fn long_form() -> Option<Duration> {
    let seconds = std::env::var("DOCKET_HOSTILE_SECONDS").ok()?;
    Some(Duration::from_secs(seconds.parse().expect("DOCKET_HOSTILE_SECONDS is a number of seconds")))
}

/// Creates a draft that rows may use, and two more orders, so that a list has a second page.
async fn prepare(system: &TestSystem) {
    for id in [ORDER, "hostile-2", "hostile-3"] {
        let item = json!({"sku": "pen", "quantity": 1, "unit_price": "1.00"});
        let order = json!({"order_id": id, "customer_id": "c-1", "items": [item]});
        system.post("/v1/orders").json(order).send().await.expect(201);
    }
    system.settled().await;
}

/// Returns every request of the corpus for a running system.
async fn requests(system: &TestSystem) -> Vec<Row> {
    let document = system.get("/openapi.json").anonymous().send().await.expect(200).json();
    let page = system.get("/v1/orders?sort=total&limit=1").send().await.expect(200).json();
    let cursor = page["next_cursor"].as_str().expect("a second page").to_owned();
    let polled = system.get("/v1/poll?channel=orders&wait=0").send().await.expect(200).json();
    let epoch = polled["cursor"].as_str().and_then(|cursor| cursor.split('.').nth(1)).expect("a cursor").to_owned();
    corpus::requests(&token("attacker", "admin"), &document, &cursor, &epoch)
}

/// Checks that the server is ready, accepts commands, and has logged no error or panic.
async fn check_server_alive(system: &TestSystem, after: &str) -> Vec<String> {
    let mut faults = Vec::new();
    let ready = system.get("/health/ready").anonymous().send().await;
    if ready.status != 200 || ready.json()["status"] != "ready" {
        faults.push(format!("after {after} the server is not ready: {}", String::from_utf8_lossy(&ready.body)));
    }
    let created = system.post("/v1/orders").json(json!({"customer_id": "c-1"})).send().await;
    if created.status != 201 {
        faults.push(format!("after {after} no order is accepted: {}", String::from_utf8_lossy(&created.body)));
    }
    let log = system.dockets[0].log();
    let bad = log.lines().find(|line| line.contains("panicked") || line.contains(r#""level":"error""#));
    faults.extend(bad.map(|line| format!("after {after} the log contains: {line}")));
    faults
}

/// Fails the test if there are faults, and lists all of them.
#[track_caller]
fn assert_no_faults(faults: &[String]) {
    assert!(faults.is_empty(), "{} faults:\n{}", faults.len(), faults.join("\n"));
}

async fn hostile_requests_are_refused(system: TestSystem) {
    prepare(&system).await;
    let mut families: BTreeMap<&str, Vec<Row>> = BTreeMap::new();
    for row in requests(&system).await {
        families.entry(row.family).or_default().push(row);
    }
    let rows: usize = families.values().map(Vec::len).sum();
    assert!(rows >= ROWS_MIN, "the corpus has {rows} requests, fewer than {ROWS_MIN}");
    let address = system.dockets[0].address();
    let mut faults = Vec::new();
    for (family, rows) in families {
        let (count, started) = (rows.len(), Instant::now());
        let found: Vec<Option<String>> = futures::stream::iter(rows)
            .map(|row| fault(address, row))
            .buffer_unordered(CONCURRENT_ROWS)
            .collect()
            .await;
        faults.extend(found.into_iter().flatten());
        faults.extend(check_server_alive(&system, family).await);
        println!("{family}: {count} requests in {:.1} s", started.elapsed().as_secs_f64());
    }
    assert_no_faults(&faults);
}

/// Runs a row and returns what is wrong with its outcome.
async fn fault(address: &str, row: Row) -> Option<String> {
    let until = if matches!(row.expect, Expect::One(_)) { Until::End } else { Until::Answer };
    let outcome = exchange(address, &row.bytes, row.cut, until, DEADLINE).await;
    let is_right = match (&outcome, row.expect) {
        (Outcome::Silent, _) => false,
        (Outcome::Closed, expect) => matches!(expect, Expect::Bare(_) | Expect::Gone),
        (Outcome::Answered(answer), expect) => {
            let is_client_error = (400..500).contains(&answer.status);
            match expect {
                Expect::Problem(statuses) => {
                    is_client_error && answer.is_problem() && (statuses.is_empty() || statuses.contains(&answer.status))
                }
                Expect::Bare(_) => is_client_error && (answer.body.is_empty() || answer.is_problem()),
                Expect::Fine(_) => answer.status < 400 || (is_client_error && answer.is_problem()),
                Expect::One(_) => answer.answers == 1 && answer.status < 500,
                Expect::Lines => answer.status == 200 && lines_fault(&row, &answer.body).is_none(),
                Expect::Behind => {
                    answer.status == 503
                        && answer.is_problem()
                        && String::from_utf8_lossy(&answer.body).contains("projection-behind")
                }
                Expect::Gone => answer.status < 500,
            }
        }
    };
    if is_right {
        return None;
    }
    let came = match &outcome {
        Outcome::Answered(answer) => {
            let body: String = String::from_utf8_lossy(&answer.body).chars().take(300).collect();
            let lines = if row.expect == Expect::Lines { lines_fault(&row, &answer.body) } else { None };
            format!("{} ({} responses) {}", answer.status, answer.answers, lines.unwrap_or(body))
        }
        other => format!("{other:?}"),
    };
    Some(format!("{}: {}: got {came}, expected {:?}", row.family, row.what, row.expect))
}

/// Checks the results of a bulk request. Each line that is not blank has one result, in order, which is a 4xx problem.
fn lines_fault(row: &Row, results: &[u8]) -> Option<String> {
    let body = row.bytes.windows(4).position(|four| four == b"\r\n\r\n").map_or(0, |at| at + 4);
    let is_blank = |line: &&[u8]| line.iter().all(u8::is_ascii_whitespace);
    let sent: Vec<&[u8]> = row.bytes[body..].split(|byte| *byte == b'\n').filter(|line| !is_blank(line)).collect();
    let got: Vec<&[u8]> = results.split(|byte| *byte == b'\n').filter(|line| !line.is_empty()).collect();
    if sent.len() != got.len() {
        return Some(format!("{} results for {} lines", got.len(), sent.len()));
    }
    sent.iter().zip(got).find_map(|(sent, got)| {
        let result: Value = serde_json::from_slice(got).unwrap_or_default();
        let status = result["status"].as_u64().unwrap_or_default();
        let is_refused = (400..500).contains(&status)
            && result["problem"]["status"] == status
            && result["problem"]["title"].is_string();
        let shown: String = String::from_utf8_lossy(sent).chars().take(150).collect();
        (!is_refused).then(|| format!("the result of the line {shown} is {}", String::from_utf8_lossy(got)))
    })
}

async fn hostile_frames_are_refused(system: TestSystem) {
    prepare(&system).await;
    let address = system.dockets[0].address();
    let admin = token("attacker", "admin");
    let mut families: BTreeMap<&str, Vec<Frames>> = BTreeMap::new();
    for row in corpus::frames() {
        families.entry(row.family).or_default().push(row);
    }
    let mut faults = Vec::new();
    for (family, rows) in families {
        let (count, started) = (rows.len(), Instant::now());
        let found: Vec<Option<String>> = futures::stream::iter(rows)
            .map(|row| frames_fault(address, &admin, row))
            .buffer_unordered(CONCURRENT_ROWS)
            .collect()
            .await;
        faults.extend(found.into_iter().flatten());
        faults.extend(check_server_alive(&system, family).await);
        println!("{family}: {count} conversations in {:.1} s", started.elapsed().as_secs_f64());
    }
    assert_no_faults(&faults);
}

/// Runs a row of frames and returns what is wrong with its outcome.
async fn frames_fault(address: &str, token: &str, row: Frames) -> Option<String> {
    let trace = exchange_frames(address, token, &row.bytes, DEADLINE).await;
    let is_right = !trace.is_silent
        && match row.expect {
            ExpectFrames::Closed(codes) => trace.closed.is_some_and(|code| codes.contains(&code)),
            ExpectFrames::Error(codes) => {
                trace.is_alive && trace.errors.iter().any(|code| codes.is_empty() || codes.contains(code))
            }
            ExpectFrames::Refused => trace.closed.is_some() || (trace.is_alive && !trace.errors.is_empty()),
            ExpectFrames::Fine(_) => trace.is_alive && trace.errors.is_empty(),
        };
    (!is_right).then(|| format!("{}: {}: got {trace:?}, expected {:?}", row.family, row.what, row.expect))
}

/// Seeded mutations of the corpus: the server must answer none with a 5xx and must keep working.
async fn mutated_requests_do_no_harm(system: TestSystem) {
    prepare(&system).await;
    let rows = requests(&system).await;
    mutations::run(&system, &rows).await;
    assert_no_faults(&check_server_alive(&system, "the mutations").await);
}
