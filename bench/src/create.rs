//! The case `create`: measures the rate at which orders are created, and the latency of each request.

use std::time::Duration;

use anyhow::{Context, ensure};
use clap::ValueEnum;
use tests::client::token;
use tests::system::TestSystem;
use tests::verify::list_orders;

use crate::generator::{self, Load, Outcome, Target};
use crate::systems::{Peer, Stock, docket, settled};
use crate::table::{self, median};

/// Settings of the case.
#[derive(Debug)]
pub struct Settings {
    /// Number of keep-alive connections.
    pub connections: u32,
    /// Duration of the load before each measurement.
    pub warm_up: Duration,
    /// Duration of each measurement.
    pub measured: Duration,
    /// Number of rounds.
    pub rounds: u32,
    /// Peers that run in each round, in this order.
    pub peers: Vec<Peer>,
}

/// Result of one run of a peer.
struct Run {
    peer: Peer,
    requests_per_second: f64,
    p50_ms: f64,
    p99_ms: f64,
    errors: u64,
    /// Time from the last response until every read model contained every order. NaN for stock, which updates its read
    /// model before it responds.
    settle_seconds: f64,
}

/// Runs the peers in turn, each time on fresh data, and prints the medians.
///
/// # Errors
/// A system does not start, a request is refused, or an acknowledged order is missing afterwards.
pub async fn run(settings: &Settings) -> anyhow::Result<()> {
    let load = Load { connections: settings.connections, warm_up: settings.warm_up, measured: settings.measured };
    let mut runs = vec![];
    for round in 1..=settings.rounds {
        for &peer in &settings.peers {
            let run = measure(peer, load).await.with_context(|| format!("{peer:?}, round {round}"))?;
            eprintln!(
                "round {round}, {}: {:.0} req/s, p50 {:.2} ms, p99 {:.2} ms, {} errors",
                run.peer.title().join(", "),
                run.requests_per_second,
                run.p50_ms,
                run.p99_ms,
                run.errors
            );
            runs.push(run);
        }
    }
    print(settings, &runs);
    let errors: u64 = runs.iter().map(|run| run.errors).sum();
    ensure!(errors == 0, "{errors} requests were refused.");
    Ok(())
}

async fn measure(peer: Peer, load: Load) -> anyhow::Result<Run> {
    let (outcome, settle_seconds) = match peer.mode() {
        None => (stock(load).await?, f64::NAN),
        Some(mode) => with_docket(&docket(mode, &[]).await?, load).await?,
    };
    if let Some(first) = &outcome.first_error {
        eprintln!("First refused request:\n{first}");
    }
    Ok(Run {
        peer,
        requests_per_second: outcome.latencies_us.len() as f64 / load.measured.as_secs_f64(),
        p50_ms: outcome.quantile_ms(0.5),
        p99_ms: outcome.quantile_ms(0.99),
        errors: outcome.errors,
        settle_seconds,
    })
}

async fn stock(load: Load) -> anyhow::Result<Outcome> {
    let stock = Stock::start().await?;
    let target = Target { address: stock.address.clone(), path: "/orders", token: None, body_end: "}" };
    let outcome = tokio::task::spawn_blocking(move || generator::run(&target, load)).await??;
    let counts = stock.counts().await?;
    let acknowledged = outcome.acknowledged;
    ensure!(
        counts == (acknowledged, acknowledged),
        "{acknowledged} requests were acknowledged, but (events, orders) are {counts:?}."
    );
    Ok(outcome)
}

/// Loads a system, and checks that no acknowledged order is missing. Also returns the seconds after the load until all
/// read models had caught up.
///
/// # Errors
/// A request fails, or an acknowledged order is missing.
pub async fn with_docket(system: &TestSystem, load: Load) -> anyhow::Result<(Outcome, f64)> {
    let address = system
        .writer()
        .base()
        .strip_prefix("http://")
        .context("the URL of the writer does not begin with http://")?
        .to_owned();
    let (token, body_end) = (Some(token("bench", "staff")), r#","currency":"USD"}"#);
    let target = Target { address, path: "/v1/orders", token, body_end };
    let outcome = tokio::task::spawn_blocking(move || generator::run(&target, load)).await??;
    let (head, settle) = settled(system).await?;
    let orders = list_orders(system.reader(), "").await.len() as u64;
    let acknowledged = outcome.acknowledged;
    ensure!(
        (head, orders) == (acknowledged, acknowledged),
        "{acknowledged} requests were acknowledged, but there are {head} events and {orders} orders."
    );
    Ok((outcome, settle.as_secs_f64()))
}

fn print(settings: &Settings, runs: &[Run]) {
    let stock_rate = median_of(runs, Peer::Stock, |run| run.requests_per_second);
    let row = |&peer: &Peer| {
        let rates = || runs.iter().filter(|run| run.peer == peer).map(|run| run.requests_per_second);
        let rate = median(rates());
        let numbers = [
            number(rate, 0),
            format!("{:.0} to {:.0}", rates().fold(f64::INFINITY, f64::min), rates().fold(0.0, f64::max)),
            number(median_of(runs, peer, |run| run.p50_ms), 2),
            number(median_of(runs, peer, |run| run.p99_ms), 2),
            runs.iter().filter(|run| run.peer == peer).map(|run| run.errors).sum::<u64>().to_string(),
            number(median_of(runs, peer, |run| run.settle_seconds), 2),
            number(rate / stock_rate, 2),
        ];
        peer.title().into_iter().chain(numbers).collect()
    };
    println!(
        "create: {} connections, {} s after {} s of warm-up, medians of {} rounds",
        settings.connections,
        settings.measured.as_secs(),
        settings.warm_up.as_secs(),
        settings.rounds
    );
    let heads =
        ["peer", "mode", "req/s", "lowest to highest", "p50 ms", "p99 ms", "errors", "settle s", "ratio to stock"];
    let peers = Peer::value_variants().iter().filter(|peer| settings.peers.contains(peer));
    table::print(&heads, &peers.map(row).collect::<Vec<_>>());
}

fn median_of(runs: &[Run], peer: Peer, value: fn(&Run) -> f64) -> f64 {
    median(runs.iter().filter(|run| run.peer == peer).map(value))
}

/// Formats a number; "-" for NaN, a missing value.
fn number(value: f64, decimals: usize) -> String {
    if value.is_nan() { "-".to_owned() } else { format!("{value:.decimals$}") }
}
