//! The case `operations`: measures what logs, metrics and traces cost. It runs the load of `create` with all of them
//! off, with each one on, and with all of them on.

use std::collections::HashMap;
use std::time::Duration;

use anyhow::Context;
use axum::Router;
use axum::body::Bytes;
use axum::routing::post;
use tests::system::{Mode, TestSystem};

use crate::create::with_docket;
use crate::generator::Load;
use crate::systems::{Peer, docket};
use crate::table::{self, median};

/// Interval between scrapes of the metrics, shorter than that of a usual Prometheus.
const SCRAPE_EVERY: Duration = Duration::from_secs(1);

/// The part that is turned on.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Enabled {
    Nothing,
    Metrics,
    Logs,
    Traces,
    Everything,
}

const ALL: [Enabled; 5] = [Enabled::Nothing, Enabled::Metrics, Enabled::Logs, Enabled::Traces, Enabled::Everything];

/// Measures each variant in turn, embedded and scaled, and prints the medians.
///
/// # Errors
/// A system does not start, or an acknowledged order is missing afterwards.
pub async fn run(load: Load, rounds: u32) -> anyhow::Result<()> {
    let receiver = receiver().await?;
    let mut rates: HashMap<(usize, usize), Vec<f64>> = HashMap::new();
    let modes = [(Mode::Embedded, Peer::Embedded), (Mode::Scaled, Peer::Scaled)];
    for round in 1..=rounds {
        for (row, (mode, _)) in modes.into_iter().enumerate() {
            for (column, enabled) in ALL.into_iter().enumerate() {
                let rate = measure(mode, enabled, &receiver, load).await?;
                eprintln!("round {round}, {mode:?}, {enabled:?}: {rate:.0} req/s");
                rates.entry((row, column)).or_default().push(rate);
            }
        }
    }
    println!(
        "operations: {} connections, {} s after {} s of warm-up, medians of {rounds} rounds",
        load.connections,
        load.measured.as_secs(),
        load.warm_up.as_secs()
    );
    let rows = modes.into_iter().enumerate().map(|(row, (_, peer))| {
        let [_, title] = peer.title();
        let rate = |column: usize| median(rates[&(row, column)].iter().copied());
        let ratios = (1..ALL.len()).map(|column| format!("{:.2}", rate(column) / rate(0)));
        [title, format!("{:.0}", rate(0))].into_iter().chain(ratios).collect()
    });
    let heads = ["mode", "all off, req/s", "metrics", "logs", "traces", "all on"];
    table::print(&heads, &rows.collect::<Vec<_>>());
    Ok(())
}

/// Returns requests per second. With logs on, the access log and all other lines are written as JSON to a rotating
/// file, and errors also to a second file. With metrics on, they are scraped. With traces on, a tenth of the requests
/// is sampled.
async fn measure(mode: Mode, enabled: Enabled, receiver: &str, load: Load) -> anyhow::Result<f64> {
    let folder = tempfile::tempdir()?;
    let file = |name: &str| folder.path().join(name).display().to_string();
    let has = |part| enabled == part || enabled == Enabled::Everything;
    let mut settings = vec![("DOCKET_LOG_FORMAT", "off".to_owned())];
    settings.push(("DOCKET_METRICS", has(Enabled::Metrics).to_string()));
    if has(Enabled::Logs) {
        settings.push(("DOCKET_LOG_LEVEL", "http".to_owned()));
        settings.push(("DOCKET_LOG_FILE", file("docket.log")));
        settings.push(("DOCKET_LOG_ERROR_FILE", file("errors.log")));
    } else {
        settings.push(("DOCKET_LOG_LEVEL", "error".to_owned()));
        settings.push(("DOCKET_ACCESS_LOG", "off".to_owned()));
    }
    if has(Enabled::Traces) {
        settings.push(("DOCKET_OTLP_ENDPOINT", receiver.to_owned()));
        settings.push(("DOCKET_TRACE_RATIO", "0.1".to_owned()));
    }
    let system = docket(mode, &settings).await?;
    let load_it = with_docket(&system, load);
    let (outcome, _) = match has(Enabled::Metrics) {
        false => load_it.await?,
        true => tokio::select! {
            outcome = load_it => outcome?,
            () = scrape(&system) => unreachable!("scrape never returns"),
        },
    };
    Ok(outcome.latencies_us.len() as f64 / load.measured.as_secs_f64())
}

async fn scrape(system: &TestSystem) {
    loop {
        tokio::time::sleep(SCRAPE_EVERY).await;
        system.dockets[0].metrics().await;
    }
}

/// Starts an OTLP receiver that discards what it receives. Returns its URL.
async fn receiver() -> anyhow::Result<String> {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.context("cannot bind a free port")?;
    let url = format!("http://{}", listener.local_addr()?);
    let app = Router::new().route("/v1/traces", post(async |_: Bytes| {}));
    tokio::spawn(async move { axum::serve(listener, app).await });
    Ok(url)
}
