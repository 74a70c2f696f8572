//! The case `react`: measures the latency from an event to its reaction, and the cost of idle reactors.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use jiff::Timestamp;
use serde_json::{Value, json};
use sqlx::{Connection, PgConnection};
use tests::client::{Client, token};
use tests::system::{Mode, TestSystem};

use crate::systems::{Peer, settled};
use crate::table;

/// Number of concurrent senders.
const SENDERS: u32 = 32;
/// Events per order: created, item added, confirmed, points granted, expiry scheduled.
const EVENTS_AN_ORDER: f64 = 5.0;
/// The program whose reactions are measured, and the program whose reactors are idle.
const LOYALTY: &str = "docket-loyalty";
const TOY: &str = "docket-toy";
/// The environment variable that sets the number of idle reactors of the second program.
const IDLE: &str = "TOY_IDLE_REACTORS";

/// Settings of the case.
#[derive(Debug)]
pub struct Settings {
    /// Rate of events in the log, per second.
    pub events_per_second: u32,
    /// Duration of each measurement.
    pub measured: Duration,
}

/// Measures latency and idle cost, and prints two tables.
///
/// # Errors
/// A system does not start, a request is refused, or a reaction is missing.
pub async fn run(settings: &Settings) -> anyhow::Result<()> {
    let mut rows = Vec::new();
    for peer in [Peer::Embedded, Peer::Scaled] {
        rows.push(latency(peer, settings).await.with_context(|| format!("{peer:?}"))?);
    }
    println!("react: {} s", settings.measured.as_secs());
    let heads = ["peer", "mode", "events/s", "reactions", "p50 ms", "p99 ms", "most ms", "durable within 10 ms"];
    table::print(&heads, &rows);
    println!();
    let mut rows = Vec::new();
    for peer in [Peer::Embedded, Peer::Scaled] {
        for reactors in [0, 10] {
            rows.push(idle(peer, reactors, settings.measured).await.with_context(|| format!("{peer:?}"))?);
        }
    }
    println!("idle for {} s", settings.measured.as_secs());
    table::print(&["peer", "mode", "reactors", "processor %", "connections", "MiB"], &rows);
    Ok(())
}

async fn start(peer: Peer, program: &str, idle: u32) -> anyhow::Result<TestSystem> {
    let mode = peer.mode().context("stock has no reactors")?;
    let builder = TestSystem::builder(mode).durable().program(program);
    Ok(builder.setting(IDLE, &idle.to_string()).start().await)
}

async fn latency(peer: Peer, settings: &Settings) -> anyhow::Result<Vec<String>> {
    let system = start(peer, LOYALTY, 0).await?;
    let client = Client::new(system.writer().base().to_owned()).with_token(token("bench", "staff"));
    let orders = f64::from(settings.events_per_second) / EVENTS_AN_ORDER;
    let pause = Duration::from_secs_f64(f64::from(SENDERS) / orders);
    let until = Instant::now() + settings.measured;
    let senders: Vec<_> = (0..SENDERS)
        .map(|sender| {
            let client = client.clone();
            tokio::spawn(async move {
                // The senders start at different times within the pause, so that orders arrive evenly.
                tokio::time::sleep(pause * sender / SENDERS).await;
                let mut next = Instant::now();
                for number in 0.. {
                    if next > until {
                        break;
                    }
                    order(&client, &format!("o-{sender}-{number}"), &format!("c-{}", number % 50)).await;
                    next += pause;
                    tokio::time::sleep_until(next.into()).await;
                }
            })
        })
        .collect();
    for sender in senders {
        sender.await?;
    }
    let within = 10.0 / 1_000.0;
    let waited = Instant::now();
    let events = loop {
        settled(&system).await?;
        let events = events(&system).await?;
        let of = |name: &str| events.iter().filter(|event| event["type"] == name).count();
        if of("PointsGranted") == of("OrderConfirmed") && of("ExpiryScheduled") == of("OrderConfirmed") {
            break events;
        }
        ensure!(waited.elapsed() < Duration::from_secs(30), "Reactions are missing.");
        tokio::time::sleep(Duration::from_millis(200)).await;
    };
    let metrics = system.dockets[0].metrics().await;
    let mut latencies = latencies_ms(&events)?;
    latencies.sort_by(f64::total_cmp);
    let quantile = |share: f64| latencies[((latencies.len() - 1) as f64 * share).round() as usize];
    let rate = events.len() as f64 / settings.measured.as_secs_f64();
    let [name, mode] = peer.title();
    Ok(vec![
        name,
        mode,
        format!("{rate:.0}"),
        latencies.len().to_string(),
        format!("{:.2}", quantile(0.5)),
        format!("{:.2}", quantile(0.99)),
        format!("{:.2}", quantile(1.0)),
        format!("{:.2} %", 100.0 * share_within(&metrics, within)),
    ])
}

async fn order(client: &Client, id: &str, customer: &str) {
    let items = json!([{"sku": "pen", "quantity": 1, "unit_price": "5.00"}]);
    let body = json!({"order_id": id, "customer_id": customer, "items": items});
    client.post("/v1/orders").json(body).send().await.expect(201);
    client.post(&format!("/v1/orders/{id}/confirm")).send().await.expect(200);
}

async fn events(system: &TestSystem) -> anyhow::Result<Vec<Value>> {
    let log = system.cli(&["events", "export"]).await;
    log.lines().map(|line| Ok(serde_json::from_str(line)?)).collect()
}

/// Returns the time from the recording of each event to the recording of each event that it caused, in milliseconds.
fn latencies_ms(events: &[Value]) -> anyhow::Result<Vec<f64>> {
    let time = |event: &Value| -> anyhow::Result<i64> {
        Ok(event["time"].as_str().context("an event has no time")?.parse::<Timestamp>()?.as_microsecond())
    };
    let mut recorded = HashMap::new();
    for event in events {
        recorded.insert(event["id"].as_str().context("an event has no id")?, time(event)?);
    }
    let mut latencies = Vec::new();
    for event in events {
        let cause = event["data"]["metadata"]["causation_id"].as_str().unwrap_or_default();
        if let Some(caused) = recorded.get(cause) {
            latencies.push((time(event)? - caused) as f64 / 1_000.0);
        }
    }
    Ok(latencies)
}

/// Returns the share of reactions that were durable within `seconds`, from the server's own histogram.
fn share_within(metrics: &str, seconds: f64) -> f64 {
    let sum = |of: &dyn Fn(&str) -> bool| -> f64 {
        let lines = metrics.lines().filter(|line| line.starts_with("docket_reaction_latency_seconds_") && of(line));
        lines.filter_map(|line| line.rsplit_once(' ')?.1.parse::<f64>().ok()).sum()
    };
    let bound = format!("le=\"{seconds}\"");
    let within = sum(&|line| line.contains("_bucket") && line.contains(&bound));
    within / sum(&|line| line.starts_with("docket_reaction_latency_seconds_count"))
}

async fn idle(peer: Peer, reactors: u32, measured: Duration) -> anyhow::Result<Vec<String>> {
    let system = start(peer, TOY, reactors).await?;
    // By then the work of the start is done.
    tokio::time::sleep(Duration::from_secs(5)).await;
    let before = system.dockets[0].cpu_time();
    tokio::time::sleep(measured).await;
    let used = system.dockets[0].cpu_time() - before;
    let connections = match system.mode {
        Mode::Embedded => "-".to_owned(),
        Mode::Scaled => {
            let mut connection = PgConnection::connect(system.database_url()).await?;
            let sql = "select count(*) from pg_stat_activity where application_name like 'docket%'";
            let (count,): (i64,) = sqlx::query_as(sql).fetch_one(&mut connection).await?;
            count.to_string()
        }
    };
    let [name, mode] = peer.title();
    Ok(vec![
        name,
        mode,
        reactors.to_string(),
        format!("{:.2}", 100.0 * used.as_secs_f64() / measured.as_secs_f64()),
        connections,
        format!("{:.0}", system.dockets[0].memory_kib() as f64 / 1024.0),
    ])
}
