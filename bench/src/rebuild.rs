//! The case `rebuild`: measures rebuilds from a whole log, and the rate at which PostgreSQL returns the same rows.

use std::path::Path;
use std::time::Instant;

use anyhow::{Context, ensure};
use serde_json::Value;
use sqlx::postgres::PgConnection;
use sqlx::{Connection, Executor};
use tests::system::{Mode, TestSystem};
use tokio::io::{AsyncBufReadExt, BufReader};

use crate::systems::peak_kib;
use crate::table;

/// Arguments of `docket replay`, one run each.
const RUNS: [&[&str]; 2] = [&["order_summaries"], &["--all"]];

/// Imports a file of `docket events export` into PostgreSQL, reads the log once with `COPY`, rebuilds, and prints a
/// table.
///
/// # Errors
/// The import or a rebuild fails.
pub async fn run(log: &Path) -> anyhow::Result<()> {
    let log = log.canonicalize().with_context(|| format!("cannot find {}", log.display()))?;
    let system = TestSystem::builder(Mode::Scaled).durable().stopped().await;
    system.cli(&["events", "import", log.to_str().context("the file's name is not UTF-8")?]).await;
    let mut connection = PgConnection::connect(system.database_url()).await?;
    let (events,): (i64,) = sqlx::query_as("select count(*) from events").fetch_one(&mut connection).await?;
    connection.execute("vacuum analyze events").await?;
    let copied = copy(system.database_url()).await?;
    let mut rows = vec![row("PostgreSQL", "COPY events TO STDOUT", events, copied, None, copied)];
    for what in RUNS {
        let (seconds, peak) = rebuild(&system, what).await?;
        rows.push(row("docket replay", what[0], events, seconds, Some(peak), copied));
    }
    println!("rebuild: {events} events in PostgreSQL");
    table::print(&["what", "of", "seconds", "events/s", "peak MiB", "ratio to COPY"], &rows);
    Ok(())
}

fn row(what: &str, of: &str, events: i64, seconds: f64, peak_mib: Option<f64>, copied: f64) -> Vec<String> {
    vec![
        what.to_owned(),
        of.to_owned(),
        format!("{seconds:.2}"),
        format!("{:.0}", events as f64 / seconds),
        peak_mib.map_or("-".to_owned(), |mib| format!("{mib:.0}")),
        format!("{:.2}", copied / seconds),
    ]
}

/// Returns the seconds that `COPY` needs to return every row to a reader that discards them.
async fn copy(url: &str) -> anyhow::Result<f64> {
    let started = Instant::now();
    let mut child = tokio::process::Command::new("psql")
        .args([url, "--no-psqlrc", "--quiet", "--command", "copy events to stdout"])
        .stdout(std::process::Stdio::null())
        .spawn()
        .context("cannot run psql; install the client programs of PostgreSQL")?;
    ensure!(child.wait().await?.success(), "psql failed.");
    Ok(started.elapsed().as_secs_f64())
}

/// Runs `docket replay`. Returns the seconds that it reports, and its peak memory in MiB.
async fn rebuild(system: &TestSystem, what: &[&str]) -> anyhow::Result<(f64, f64)> {
    let mut child = system.spawn_cli(&[&["replay", "--json"], what].concat());
    let id = child.id().context("docket replay has ended already")?;
    let mut lines = BufReader::new(child.stdout.take().context("stdout is not piped")?).lines();
    let (mut peak, mut seconds) = (0.0_f64, None);
    while let Some(line) = lines.next_line().await? {
        peak = peak.max(peak_kib(format!("/proc/{id}")).unwrap_or(0.0));
        let line: Value = serde_json::from_str(&line)?;
        seconds = line["seconds"].as_f64().or(seconds);
    }
    ensure!(child.wait().await?.success(), "docket replay {what:?} failed.");
    Ok((seconds.context("docket replay printed no summary")?, peak / 1024.0))
}
