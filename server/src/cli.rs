//! The command line. Commands print data on stdout and everything else on stderr.

mod admin;
mod dev;
mod events;
mod import;
mod modules;
mod operate;
mod reactors;

use std::io::Write;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::anyhow;
use clap::{Args, CommandFactory, Parser, Subcommand, ValueEnum};
use platform::telemetry::redact::redact;
use projection_engine::dead_letters::Decision;

use crate::module::Module;
use crate::program::Program;
use crate::settings::Settings;

/// The command failed; stderr gives the reason.
pub const EXIT_FAILED: u8 = 1;
/// The command line or the settings are invalid.
pub const EXIT_USAGE: u8 = 2;
/// `docket import` finished, but the store does not hold everything that the file says.
pub const EXIT_REJECTED: u8 = 3;

const EXAMPLES: &str = "Examples:
  docket dev                                      run everything in one process; print a token and a curl command
  docket import orders.csv --token \"$TOKEN\"       import orders from a file through the running server
  docket serve --config docket.toml               run a server with production settings
  docket token --sub c-1 --role customer          print a token for a customer
  docket replay --all                             rebuild every read model from the log
  docket verify                                   compare every read model with the log
  docket events export > log.ndjson               export the whole log, to import it into another store";

const EXIT_CODES: &str = "Exit codes:
  0  success
  1  failure; stderr gives the reason
  2  the command line or the settings are invalid
  3  `docket import` finished, but some orders were rejected or differ; stdout lists them

`docket verify` exits with 1 when it finds mismatches.";

/// An event-sourced order backend. It accepts commands, stores events, and serves read models and live updates.
#[derive(Debug, Parser)]
#[command(name = "docket", version, before_help = EXAMPLES, after_help = EXIT_CODES, propagate_version = true)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run everything in one process, without configuration: SQLite in ./data, on the loopback interface only.
    #[command(before_help = "Examples:\n  docket dev\n  docket dev --listen 127.0.0.1:9000 --data /tmp/docket")]
    Dev(Dev),
    /// Run a server as in production: settings come from docket.toml, DOCKET_… variables and flags.
    #[command(
        before_help = "Examples:\n  docket serve --config docket.toml\n  DOCKET_DATABASE_URL=postgres://docket@db/docket DOCKET_NATS_URL=nats://bus:4222 docket serve --roles write"
    )]
    Serve(Serve),
    /// Migrate the database to the schema of this release. Also accepts the database of a cqrs-es program.
    #[command(
        before_help = "Examples:\n  docket migrate\n  DOCKET_DATABASE_URL=postgres://docket@db/docket docket migrate\n  DOCKET_DATABASE_URL=postgres://docket_owner@db/docket docket migrate --grant-to docket"
    )]
    Migrate(Migrate),
    /// Print a token, signed with the server's key.
    #[command(
        before_help = "Examples:\n  docket token --sub c-1 --role customer --ttl 8h\n  TOKEN=$(docket token --sub me --role admin)"
    )]
    Token(Token),
    /// Import orders from a CSV or NDJSON file through a running server. A repeated import creates no duplicates.
    #[command(
        before_help = "Examples:\n  docket import tests/data/grocery-orders-sample.csv --token \"$TOKEN\"\n  docket import orders_export.csv --preset shopify --dry-run\n  docket import sales.csv.gz --map order_ref=\"Order No\",sku=Article --decimal-mark comma --rejects rejected.csv\n  zcat orders.gz | docket import - --url http://127.0.0.1:9000",
        after_help = "Each line is one item of an order. Fields: order_ref, customer_ref, placed_at, status, cancelled_at, cancel_reason,\ncurrency, sku, product_name, department, quantity, unit_price or line_total, store_id, attributes.NAME.\nRequired: order_ref, sku, quantity, a price, and customer_ref or --customer.\n\nAn order is imported whole or not at all. A stored order is compared with the file; differences are listed. The exit\ncode is 0 only when the store holds what the file says. docs/import.md describes layouts and faults."
    )]
    Import(Box<import::arguments::Arguments>),
    /// Rebuild read models from the log, then switch to the new generations. Servers may run meanwhile.
    #[command(
        before_help = "Examples:\n  docket replay --all\n  docket replay sales products\n  docket replay sales --rollback\n  docket replay --all --prune",
        after_help = "A rebuild fills a new generation from the log, catches up, compares it with the generation that serves, and switches to\nit in one transaction. Run the command again to resume an interrupted rebuild. The previous generation is kept until\nthe next rebuild, for --rollback."
    )]
    Replay(Replay),
    /// Compare read models with the log and count mismatches. Writes nothing and stops nothing. Exits with 1 when there
    /// are mismatches.
    #[command(before_help = "Examples:\n  docket verify\n  docket verify order_details --sample 1000")]
    Verify(Verify),
    /// List the read models: generation, position, lag and state.
    #[command(before_help = "Examples:\n  docket projections\n  docket projections --json")]
    Projections(Listing),
    /// List the modules of this program, and what removed modules have left in the database.
    #[command(before_help = "Examples:\n  docket modules\n  docket modules --json\n  docket modules --prune loyalty")]
    Modules(Modules),
    /// Show or settle dead letters: events that cannot be projected, and the streams that are parked at them.
    #[command(subcommand)]
    DeadLetters(DeadLetters),
    /// Show or control reactors and process managers: their positions and their backlogs.
    #[command(subcommand)]
    Reactors(Reactors),
    /// Export, import or follow the log, or mark it as restored from a backup.
    #[command(subcommand)]
    Events(Events),
    /// Check or print the settings.
    #[command(subcommand)]
    Config(ConfigCommand),
    /// Check whether a running server is ready. Exits with 1 when it is not.
    #[command(before_help = "Examples:\n  docket health\n  docket health --url http://127.0.0.1:9000")]
    Health {
        /// URL of the server.
        #[arg(long, default_value = "http://127.0.0.1:8080")]
        url: String,
    },
    /// Print a completion script for a shell.
    #[command(before_help = "Examples:\n  docket completions bash > /etc/bash_completion.d/docket")]
    Completions {
        /// The shell.
        shell: clap_complete::Shell,
    },
}

#[derive(Debug, Args)]
struct Common {
    /// Settings file. Without this option, docket.toml in the current folder is read if it exists.
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Folder of a SQLite store, as given to `docket dev --data`.
    #[arg(long, value_name = "FOLDER")]
    data: Option<PathBuf>,
}

#[derive(Debug, Args)]
struct Dev {
    /// Loopback address and port to listen on.
    #[arg(long, value_name = "ADDR:PORT")]
    listen: Option<String>,
    /// Folder of the database and of the signing key.
    #[arg(long, value_name = "FOLDER")]
    data: Option<PathBuf>,
}

#[derive(Debug, Args)]
struct Serve {
    #[command(flatten)]
    common: Common,
    /// Address and port to listen on.
    #[arg(long, value_name = "ADDR:PORT")]
    listen: Option<String>,
    /// Roles of this process, separated by commas: write, react, project, read.
    #[arg(long, value_name = "ROLES")]
    roles: Option<String>,
}

#[derive(Debug, Args)]
struct Migrate {
    #[command(flatten)]
    common: Common,
    /// After the migration, grant this PostgreSQL role exactly the privileges that a server needs: servers that connect
    /// with it can append events, but not change or delete them. Repeat this with each release.
    #[arg(long, value_name = "ROLE", value_parser = clap::builder::NonEmptyStringValueParser::new())]
    grant_to: Option<String>,
}

#[derive(Debug, Args)]
struct Token {
    #[command(flatten)]
    common: Common,
    /// Subject of the token; for the role customer, the customer's id.
    #[arg(long)]
    sub: String,
    /// Role of the token.
    #[arg(long, value_enum)]
    role: RoleName,
    /// How long the token is valid, e.g. 30m, 8h, 7d.
    #[arg(long, default_value = "1h", value_parser = parse_ttl)]
    ttl: Duration,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum RoleName {
    Customer,
    Staff,
    Admin,
}

#[derive(Debug, Args)]
struct Replay {
    #[command(flatten)]
    common: Common,
    /// Names of read models; --all selects every read model.
    #[arg(value_name = "PROJECTION|--all", required_unless_present = "all", conflicts_with = "all")]
    projections: Vec<String>,
    /// Select every read model.
    #[arg(long)]
    all: bool,
    /// Print what would be done, but change nothing.
    #[arg(long)]
    dry_run: bool,
    /// Start at the first event instead of resuming an interrupted rebuild. Use this after stored events were
    /// corrected.
    #[arg(long, conflicts_with_all = ["prune", "rollback"])]
    fresh: bool,
    /// Switch back to the previous generation, after it has caught up with the log.
    #[arg(long, conflicts_with = "prune")]
    rollback: bool,
    /// Remove generations that do not serve.
    #[arg(long)]
    prune: bool,
    /// Print progress and result as lines of JSON.
    #[arg(long, conflicts_with_all = ["prune", "dry_run"])]
    json: bool,
}

#[derive(Debug, Args)]
struct Verify {
    #[command(flatten)]
    common: Common,
    /// Names of read models; without names, every read model is verified.
    projections: Vec<String>,
    /// Check only this many streams, drawn at random. This is fast for a log of any length, but cannot check read
    /// models that are sums over many streams.
    #[arg(long, value_name = "STREAMS", value_parser = clap::value_parser!(u32).range(1..))]
    sample: Option<u32>,
    /// Print at most this many mismatches of each read model.
    #[arg(long, value_name = "N", default_value_t = 10)]
    first: usize,
    /// Print the result as JSON.
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Args)]
struct Listing {
    #[command(flatten)]
    common: Common,
    /// Print as JSON.
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Args)]
struct Modules {
    #[command(flatten)]
    common: Common,
    /// Print as JSON.
    #[arg(long, conflicts_with = "prune")]
    json: bool,
    /// Remove what a module that this program does not have has left: read models, reactors, checkpoints, dead letters.
    #[arg(long, value_name = "MODULE")]
    prune: Option<String>,
}

#[derive(Debug, Subcommand)]
enum DeadLetters {
    /// List the dead letters in the order of the log.
    #[command(before_help = "Examples:\n  docket dead-letters list --json")]
    List(Listing),
    /// Show one dead letter, with the events of its stream that wait.
    #[command(before_help = "Examples:\n  docket dead-letters show 4711")]
    Show(DeadLetter),
    /// Project the parked stream again. Use this after the cause was corrected.
    #[command(before_help = "Examples:\n  docket dead-letters retry 4711")]
    Retry(DeadLetter),
    /// Omit the event from the read models and from every rebuild, permanently. Its stream continues after it.
    #[command(before_help = "Examples:\n  docket dead-letters discard 4711")]
    Discard(DeadLetter),
}

#[derive(Debug, Args)]
struct DeadLetter {
    #[command(flatten)]
    common: Common,
    /// Position of the event in the log.
    position: i64,
}

#[derive(Debug, Subcommand)]
enum Reactors {
    /// List the reactors: position, lag, backlog, and whether each one is held.
    #[command(before_help = "Examples:\n  docket reactors list\n  docket reactors list --json")]
    List(Listing),
    /// Show the backlog of a reactor: the first event of each key, why it failed, and when it is retried.
    #[command(before_help = "Examples:\n  docket reactors show loyalty-points")]
    Show(OneReactor),
    /// Skip the first event of a key permanently. The next event of the key is tried now.
    #[command(before_help = "Examples:\n  docket reactors skip loyalty-points --key c-1 --position 4711")]
    Skip(Skipped),
    /// Retry the backlog now: the first event of each key, and after it has succeeded the events behind it.
    #[command(
        before_help = "Examples:\n  docket reactors retry loyalty-points\n  docket reactors retry loyalty-points --key c-1"
    )]
    Retry(Retried),
    /// Hold a reactor: it handles no event until it is released. Events wait in the log.
    #[command(before_help = "Examples:\n  docket reactors hold loyalty-points --reason 'the provider is down'")]
    Hold(Held),
    /// Release a held reactor. It resumes from its checkpoint.
    #[command(
        before_help = "Examples:\n  docket reactors release loyalty-points\n  docket reactors release loyalty-points --at-head"
    )]
    Release(Released),
}

#[derive(Debug, Args)]
struct OneReactor {
    #[command(flatten)]
    common: Common,
    /// Name of the reactor, as `docket reactors list` prints it.
    reactor: String,
    /// Print as lines of JSON.
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Args)]
struct Retried {
    #[command(flatten)]
    common: Common,
    /// Name of the reactor, as `docket reactors list` prints it.
    reactor: String,
    /// Retry only the events of this key.
    #[arg(long)]
    key: Option<String>,
}

#[derive(Debug, Args)]
struct Skipped {
    #[command(flatten)]
    common: Common,
    /// Name of the reactor, as `docket reactors list` prints it.
    reactor: String,
    /// Key of the event, as `docket reactors show` prints it.
    #[arg(long)]
    key: String,
    /// Position of the event in the log.
    #[arg(long)]
    position: i64,
}

#[derive(Debug, Args)]
struct Released {
    #[command(flatten)]
    common: Common,
    /// Name of the reactor, as `docket reactors list` prints it.
    reactor: String,
    /// Resume at the end of the log: skip all events that the reactor has not handled, and empty its backlog.
    #[arg(long)]
    at_head: bool,
}

#[derive(Debug, Args)]
struct Held {
    #[command(flatten)]
    common: Common,
    /// Name of the reactor, as `docket reactors list` prints it.
    reactor: String,
    /// Reason for the hold; `docket reactors list` prints it.
    #[arg(long, default_value = "an operator holds it")]
    reason: String,
}

#[derive(Debug, Subcommand)]
enum Events {
    /// Export the log to stdout or to a file, one CloudEvents 1.0 envelope per line.
    #[command(
        before_help = "Examples:\n  docket events export > log.ndjson\n  docket events export --output log.ndjson.gz"
    )]
    Export(Export),
    /// Import an exported log into an empty store. Positions are kept. Use this to move from SQLite to PostgreSQL.
    #[command(
        before_help = "Examples:\n  DOCKET_DATABASE_URL=postgres://docket@db/docket docket events import log.ndjson.gz",
        after_help = "Run the command again to resume an interrupted import. No server may run on the store. A server builds the read models\nfrom the log when it starts. An export contains no idempotency keys and no snapshots."
    )]
    Import(Restore),
    /// Mark the log as restored from a backup, so that no client resumes at a position of the lost log.
    #[command(
        before_help = "Examples:\n  docket events restored --config docket.toml",
        after_help = "The log gets a new incarnation: a client that resumes with a cursor of an earlier one gets a fresh snapshot. When\nnats_url is set, the JetStream stream of the lost log is removed. No server may run on the store."
    )]
    Restored(Restored),
    /// Print the last events of the log; with --follow also new events as they are appended.
    #[command(before_help = "Examples:\n  docket events tail --follow\n  docket events tail --after 4711")]
    Tail(Tail),
}

#[derive(Debug, Args)]
struct Export {
    #[command(flatten)]
    common: Common,
    /// Write to this file instead of stdout. A file whose name ends in .gz is compressed.
    #[arg(long, value_name = "FILE")]
    output: Option<PathBuf>,
}

#[derive(Debug, Args)]
struct Restore {
    #[command(flatten)]
    common: Common,
    /// File that `docket events export` has written, plain or gzip.
    file: PathBuf,
}

#[derive(Debug, Args)]
struct Restored {
    #[command(flatten)]
    common: Common,
    /// Delete the JetStream stream even if it belongs to another incarnation. Use this when the store was restored
    /// before.
    #[arg(long)]
    delete_stream: bool,
}

#[derive(Debug, Args)]
struct Tail {
    #[command(flatten)]
    common: Common,
    /// Print the events after this position. Without this option, print the last ten events.
    #[arg(long)]
    after: Option<i64>,
    /// Keep running, and print new events as they are appended.
    #[arg(long)]
    follow: bool,
}

#[derive(Debug, Subcommand)]
enum ConfigCommand {
    /// Check the settings. Exits with 0 when they are valid; otherwise prints what is wrong.
    #[command(before_help = "Examples:\n  docket config check --config docket.toml\n  docket config check --connect")]
    Check(ConfigCheck),
    /// Print every setting with its value as TOML, without secrets.
    #[command(before_help = "Examples:\n  docket config show > docket.toml.new")]
    Show(Common),
}

#[derive(Debug, Args)]
struct ConfigCheck {
    #[command(flatten)]
    common: Common,
    /// Also connect to the database and to NATS, and print notes about them for the operator.
    #[arg(long)]
    connect: bool,
}

/// Parses the command line, runs the command, and returns the exit code.
pub async fn main(modules: Vec<Module>) -> u8 {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => {
            let _ = error.print();
            return if error.use_stderr() { EXIT_USAGE } else { 0 };
        }
    };
    let program = match Program::new(modules) {
        Ok(program) => program,
        Err(reason) => {
            eprintln!("docket: {reason}");
            return EXIT_USAGE;
        }
    };
    let outcome = match cli.command {
        Command::Dev(dev) => dev::dev(program, dev.listen, dev.data).await,
        Command::Serve(serve) => admin::serve(program, serve).await,
        Command::Migrate(migrate) => admin::migrate(program, migrate).await,
        Command::Token(token) => admin::token(&program, token),
        Command::Import(import) => import::import(*import).await,
        Command::Replay(replay) => operate::replay(program, replay).await,
        Command::Verify(verify) => operate::verify(program, verify).await,
        Command::Projections(listing) => operate::projections(program, listing).await,
        Command::Modules(wanted) => modules::modules(program, wanted).await,
        Command::DeadLetters(DeadLetters::List(listing)) => operate::dead_letters(program, listing).await,
        Command::DeadLetters(DeadLetters::Show(letter)) => operate::show(program, letter).await,
        Command::DeadLetters(DeadLetters::Retry(letter)) => operate::decide(program, letter, Decision::Retry).await,
        Command::DeadLetters(DeadLetters::Discard(letter)) => operate::decide(program, letter, Decision::Discard).await,
        Command::Reactors(Reactors::List(listing)) => reactors::list(program, listing).await,
        Command::Reactors(Reactors::Show(wanted)) => reactors::show(program, wanted).await,
        Command::Reactors(Reactors::Skip(wanted)) => reactors::skip(program, wanted).await,
        Command::Reactors(Reactors::Retry(wanted)) => reactors::retry(program, wanted).await,
        Command::Reactors(Reactors::Hold(wanted)) => reactors::hold(program, wanted).await,
        Command::Reactors(Reactors::Release(wanted)) => reactors::release(program, wanted).await,
        Command::Events(Events::Export(export)) => events::export(&program, export).await,
        Command::Events(Events::Import(restore)) => events::import(&program, restore).await,
        Command::Events(Events::Restored(common)) => events::restored(&program, common).await,
        Command::Events(Events::Tail(tail)) => events::tail(&program, tail).await,
        Command::Config(ConfigCommand::Check(check)) => admin::config_check(program, check).await,
        Command::Config(ConfigCommand::Show(common)) => admin::config_show(&program, common),
        Command::Health { url } => admin::health(&url).await,
        Command::Completions { shell } => {
            // Not written to stdout directly: `generate` panics when stdout is closed.
            let mut script = Vec::new();
            clap_complete::generate(shell, &mut Cli::command(), "docket", &mut script);
            print_line(String::from_utf8_lossy(&script).trim_end());
            Ok(0)
        }
    };
    outcome.unwrap_or_else(|error| {
        eprintln!("docket: {}", redact(&format_error_chain(&error)));
        if error.is::<Usage>() { EXIT_USAGE } else { EXIT_FAILED }
    })
}

/// Returns the text of an error with its causes. Leaves out a cause whose text is already there.
fn format_error_chain(error: &anyhow::Error) -> String {
    error.chain().map(ToString::to_string).fold(String::new(), |mut text, cause| {
        if !text.contains(&cause) {
            text += if text.is_empty() { "" } else { ": " };
            text += &cause;
        }
        text
    })
}

/// Invalid settings or arguments: the exit code is [`EXIT_USAGE`].
#[derive(Debug)]
struct Usage(anyhow::Error);

impl std::fmt::Display for Usage {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:#}", self.0)
    }
}

impl std::error::Error for Usage {}

/// Prints a line on stdout. When the reader has closed stdout, the program ends with exit code 0.
fn print_line(line: impl std::fmt::Display) {
    if let Err(error) = writeln!(std::io::stdout(), "{line}") {
        let broken = error.kind() == std::io::ErrorKind::BrokenPipe;
        if !broken {
            eprintln!("docket: cannot write to stdout: {error}");
        }
        std::process::exit(if broken { 0 } else { EXIT_FAILED.into() });
    }
}

fn load(program: &Program, common: &Common, flags: &[(&str, String)]) -> anyhow::Result<Settings> {
    let mut flags = flags.to_vec();
    if let Some(folder) = &common.data {
        flags.push(("data", folder.display().to_string()));
        flags.push(("database_url", format!("sqlite:{}", folder.join("docket.db").display())));
    }
    Settings::load(common.config.as_deref(), &flags, &program.settings()).map_err(|error| Usage(error).into())
}

/// Returns the program with the modules that the settings select, and applies the settings of these modules.
fn selected(program: Program, settings: &Settings) -> anyhow::Result<Program> {
    let usage = |reason: String| Usage(anyhow!(reason));
    let program = program.select(&settings.server.modules, settings.server.roles()?).map_err(usage)?;
    program.apply(&settings.module_settings).map_err(usage)?;
    Ok(program)
}

fn parse_ttl(text: &str) -> Result<Duration, String> {
    let help = || "give a number and a unit, e.g. 30m, 8h, 7d".to_owned();
    let (number, unit) = text.split_at_checked(text.len().saturating_sub(1)).ok_or_else(help)?;
    let number: u64 = number.parse().map_err(|_| help())?;
    let seconds = match unit {
        "s" => 1,
        "m" => 60,
        "h" => 3_600,
        "d" => 86_400,
        _ => return Err(help()),
    };
    number
        .checked_mul(seconds)
        .filter(|s| (1..=366 * 86_400).contains(s))
        .map(Duration::from_secs)
        .ok_or_else(|| "give a duration from 1 second to 366 days".to_owned())
}
