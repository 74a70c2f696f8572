//! `docket-bench`: measures Docket and comparable systems through their public interfaces, and prints tables. All
//! benchmarks are in this program.
//!
//! It links none of Docket's own crates. The test harness (crate `tests`) starts the systems, and `generator` sends
//! HTTP requests to them.

mod create;
mod generator;
mod import;
mod operations;
mod push;
mod react;
mod rebuild;
mod sockets;
mod systems;
mod table;

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use clap::{Args, Parser, Subcommand};

use crate::generator::Load;
use crate::systems::Peer;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

const EXAMPLES: &str = "Examples:
  docket-bench create                             run stock, embedded and scaled in turn, three rounds, medians
  docket-bench create --peers stock --rounds 1    run only stock
  docket-bench import tests/data/grocery-orders-sample.csv --expected tests/data/grocery-orders-sample.expected.json
  docket-bench rebuild log.ndjson.gz
  docket-bench push
  docket-bench react
  docket-bench operations
  docket-bench all orders.csv.gz --expected orders.expected.json

First build the programs: cargo build --profile dist -p server -p bench; for `react` also -p loyalty -p toy";

const EXIT_CODES: &str = "Exit codes:
  0  success: every check passed
  1  a request failed, a count or a report was wrong, or a system did not start
  2  the command line is invalid";

/// Compares Docket with an order API on stock axum, cqrs-es and postgres-es.
#[derive(Debug, Parser)]
#[command(name = "docket-bench", bin_name = "docket-bench", version, before_help = EXAMPLES, after_help = EXIT_CODES)]
struct Cli {
    #[command(subcommand)]
    case: Case,
}

#[derive(Debug, Subcommand)]
enum Case {
    /// Measure how fast orders are created over keep-alive connections, each with one request in flight.
    #[command(
        before_help = "Examples:\n  docket-bench create --seconds 20\n  docket-bench create --peers stock,scaled --connections 128"
    )]
    Create(Create),
    /// Measure `docket import` with a whole file, and compare the reports with the expected figures.
    #[command(
        before_help = "Examples:\n  docket-bench import orders.csv.gz --expected orders.expected.json\n  docket-bench import orders.csv.gz --expected orders.expected.json --peers scaled"
    )]
    Import(Import),
    /// Measure rebuilds of read models from a whole log in PostgreSQL, and compare them with COPY of the same rows.
    #[command(
        before_help = "Examples:\n  docket events export --output log.ndjson.gz\n  docket-bench rebuild log.ndjson.gz"
    )]
    Rebuild {
        /// File that `docket events export` has written, plain or gzip.
        log: PathBuf,
    },
    /// Measure live updates: memory per idle socket, latency of a change to all subscribers, and deliveries per second.
    #[command(before_help = "Examples:\n  docket-bench push\n  docket-bench push --sockets 1000 --seconds 3")]
    Push(Push),
    /// Measure reactors: latency of reactions at a steady load, and the cost of idle reactors.
    #[command(before_help = "Examples:\n  docket-bench react\n  docket-bench react --events 2000 --seconds 60")]
    React(React),
    /// Measure the load of `create` with logs, metrics and traces off, with each one on, and with all on.
    #[command(before_help = "Examples:\n  docket-bench operations --rounds 5")]
    Operations(Operations),
    /// Run `create` and `import` with their defaults.
    #[command(before_help = "Examples:\n  docket-bench all orders.csv.gz --expected orders.expected.json")]
    All {
        #[command(flatten)]
        input: Input,
    },
}

#[derive(Debug, Args)]
struct Create {
    /// Keep-alive HTTP/1.1 connections.
    #[arg(long, default_value_t = 64, value_parser = clap::value_parser!(u32).range(1..=15_000))]
    connections: u32,
    /// Measured seconds of each run.
    #[arg(long, default_value_t = 10, value_parser = clap::value_parser!(u64).range(1..=600))]
    seconds: u64,
    /// Seconds of load before each measurement.
    #[arg(long, default_value_t = 2, value_parser = clap::value_parser!(u64).range(0..=60))]
    warm_up: u64,
    /// Number of rounds; in each round every peer runs once.
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..=20))]
    rounds: u32,
    /// Peers to run, in this order.
    #[arg(long, value_enum, value_delimiter = ',', default_value = "stock,embedded,scaled")]
    peers: Vec<Peer>,
}

#[derive(Debug, Args)]
struct Operations {
    /// Keep-alive HTTP/1.1 connections.
    #[arg(long, default_value_t = 64, value_parser = clap::value_parser!(u32).range(1..=15_000))]
    connections: u32,
    /// Measured seconds of each run.
    #[arg(long, default_value_t = 10, value_parser = clap::value_parser!(u64).range(1..=600))]
    seconds: u64,
    /// Number of rounds; in each round every variant runs once.
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..=20))]
    rounds: u32,
}

#[derive(Debug, Args)]
struct React {
    /// Events per second in the log, including the events of the reactions.
    #[arg(long, default_value_t = 1_000, value_parser = clap::value_parser!(u32).range(10..=20_000))]
    events: u32,
    /// Measured seconds of each run.
    #[arg(long, default_value_t = 20, value_parser = clap::value_parser!(u64).range(1..=600))]
    seconds: u64,
}

#[derive(Debug, Args)]
struct Push {
    /// Number of idle sockets, and of subscribers of the fan-out. Each needs a file handle in the bench and one in the
    /// server.
    #[arg(long, default_value_t = 10_000, value_parser = clap::value_parser!(u32).range(1..=20_000))]
    sockets: u32,
    /// Number of subscribers in the sustained measurement.
    #[arg(long, default_value_t = 1_000, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    subscribers: u32,
    /// Measured seconds of each run.
    #[arg(long, default_value_t = 10, value_parser = clap::value_parser!(u64).range(1..=600))]
    seconds: u64,
    /// Number of rounds; in each round every variant runs once.
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..=20))]
    rounds: u32,
}

#[derive(Debug, Args)]
struct Import {
    #[command(flatten)]
    input: Input,
    /// Peers to run, in this order. Stock has no import.
    #[arg(long, value_enum, value_delimiter = ',', default_value = "embedded,scaled")]
    peers: Vec<Peer>,
}

#[derive(Debug, Args)]
struct Input {
    /// File for `docket import`, plain or gzip.
    file: PathBuf,
    /// JSON file with the figures that the reports must show after the import.
    #[arg(long, value_name = "JSON")]
    expected: PathBuf,
}

impl From<Create> for create::Settings {
    fn from(create: Create) -> Self {
        Self {
            connections: create.connections,
            warm_up: Duration::from_secs(create.warm_up),
            measured: Duration::from_secs(create.seconds),
            rounds: create.rounds,
            peers: create.peers,
        }
    }
}

#[derive(Parser)]
struct Defaults {
    #[command(flatten)]
    create: Create,
}

async fn run(case: Case) -> anyhow::Result<()> {
    match case {
        Case::Create(create) => create::run(&create.into()).await,
        Case::Import(Import { input, peers }) => import::run(&input.file, &input.expected, &peers).await,
        Case::Rebuild { log } => rebuild::run(&log).await,
        Case::Push(push) => {
            let settings = push::Settings {
                sockets: push.sockets as usize,
                subscribers: push.subscribers as usize,
                measured: Duration::from_secs(push.seconds),
                rounds: push.rounds,
            };
            push::run(&settings).await
        }
        Case::React(React { events, seconds }) => {
            react::run(&react::Settings { events_per_second: events, measured: Duration::from_secs(seconds) }).await
        }
        Case::Operations(Operations { connections, seconds, rounds }) => {
            let (warm_up, measured) = (Duration::from_secs(2), Duration::from_secs(seconds));
            operations::run(Load { connections, warm_up, measured }, rounds).await
        }
        Case::All { input } => {
            create::run(&Defaults::parse_from(["docket-bench"]).create.into()).await?;
            println!();
            import::run(&input.file, &input.expected, &[Peer::Embedded, Peer::Scaled]).await
        }
    }
}

#[tokio::main]
async fn main() -> ExitCode {
    let cli = Cli::parse();
    let outcome = match systems::prepare() {
        Ok(()) => run(cli.case).await,
        Err(error) => Err(error),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("docket-bench: {error:#}");
            ExitCode::FAILURE
        }
    }
}
