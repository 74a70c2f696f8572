//! `docket-bench`: loads Docket and its peer through their front doors and prints tables. The only place that measures.
//!
//! It never links a Docket crate: the harness of the crate `tests` starts the systems, `generator` speaks HTTP to them.

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
  docket-bench create                             stock, embedded and scaled in turn, three rounds, medians
  docket-bench create --peers stock --rounds 1    the peer alone
  docket-bench import tests/data/grocery-orders-sample.csv --expected tests/data/grocery-orders-sample.expected.json
  docket-bench rebuild log.ndjson.gz
  docket-bench push
  docket-bench react
  docket-bench operations
  docket-bench all orders.csv.gz --expected orders.expected.json

Build first: cargo build --profile dist -p server -p bench; for `react` also -p loyalty -p toy";

const EXIT_CODES: &str = "Exit codes:
  0  measured, and every check held
  1  a request failed, a count or a report was wrong, or a system did not start
  2  the command line cannot be used";

/// Measures Docket against an order API on stock axum, cqrs-es and postgres-es.
#[derive(Debug, Parser)]
#[command(name = "docket-bench", bin_name = "docket-bench", version, before_help = EXAMPLES, after_help = EXIT_CODES)]
struct Cli {
    #[command(subcommand)]
    case: Case,
}

#[derive(Debug, Subcommand)]
enum Case {
    /// Creates orders over keep-alive connections, each sending its next request when the last one is answered.
    #[command(
        before_help = "Examples:\n  docket-bench create --seconds 20\n  docket-bench create --peers stock,scaled --connections 128"
    )]
    Create(Create),
    /// Imports a file with `docket import`, times it, and compares the reports with what they must be.
    #[command(
        before_help = "Examples:\n  docket-bench import orders.csv.gz --expected orders.expected.json\n  docket-bench import orders.csv.gz --expected orders.expected.json --peers scaled"
    )]
    Import(Import),
    /// Rebuilds read models from a whole log in PostgreSQL, beside the rate at which COPY reads the same rows.
    #[command(
        before_help = "Examples:\n  docket events export --output log.ndjson.gz\n  docket-bench rebuild log.ndjson.gz"
    )]
    Rebuild {
        /// What `docket events export` wrote, plain or gzip.
        log: PathBuf,
    },
    /// Live updates: what idle sockets cost, how long a change takes to everybody, and how many deliveries a second hold.
    #[command(before_help = "Examples:\n  docket-bench push\n  docket-bench push --sockets 1000 --seconds 3")]
    Push(Push),
    /// Reactors: how long a reaction takes from its event at a steady load, and what idle reactors cost.
    #[command(before_help = "Examples:\n  docket-bench react\n  docket-bench react --events 2000 --seconds 60")]
    React(React),
    /// The load of `create` with logs, metrics and traces off, and with all of them on.
    #[command(before_help = "Examples:\n  docket-bench operations --rounds 5")]
    Operations(Operations),
    /// Create and import with their defaults.
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
    /// Seconds of load before each run is measured.
    #[arg(long, default_value_t = 2, value_parser = clap::value_parser!(u64).range(0..=60))]
    warm_up: u64,
    /// How often each peer runs, in turn.
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..=20))]
    rounds: u32,
    /// Who runs, in this order.
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
    /// How often each runs, in turn.
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..=20))]
    rounds: u32,
}

#[derive(Debug, Args)]
struct React {
    /// Events per second in the log, those of the reactions included.
    #[arg(long, default_value_t = 1_000, value_parser = clap::value_parser!(u32).range(10..=20_000))]
    events: u32,
    /// Measured seconds of each run.
    #[arg(long, default_value_t = 20, value_parser = clap::value_parser!(u64).range(1..=600))]
    seconds: u64,
}

#[derive(Debug, Args)]
struct Push {
    /// Idle sockets, and subscribers of the fan-out; each takes a file handle here and one in the server.
    #[arg(long, default_value_t = 10_000, value_parser = clap::value_parser!(u32).range(1..=20_000))]
    sockets: u32,
    /// Subscribers while as much is published as they take.
    #[arg(long, default_value_t = 1_000, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    subscribers: u32,
    /// Measured seconds of each run.
    #[arg(long, default_value_t = 10, value_parser = clap::value_parser!(u64).range(1..=600))]
    seconds: u64,
    /// How often each runs, in turn.
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..=20))]
    rounds: u32,
}

#[derive(Debug, Args)]
struct Import {
    #[command(flatten)]
    input: Input,
    /// Who runs, in this order; stock has no import.
    #[arg(long, value_enum, value_delimiter = ',', default_value = "embedded,scaled")]
    peers: Vec<Peer>,
}

#[derive(Debug, Args)]
struct Input {
    /// CSV as `docket import` takes it, plain or gzip.
    file: PathBuf,
    /// What the reports must say after it.
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
