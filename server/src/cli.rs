//! The command line. Data on stdout, the rest on stderr.

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

/// Something failed; stderr says what.
pub const EXIT_FAILED: u8 = 1;
/// The command line or the settings cannot be used.
pub const EXIT_USAGE: u8 = 2;
/// `docket import`: the file was read to its end, and some of its lines were refused.
pub const EXIT_REJECTED: u8 = 3;

const EXAMPLES: &str = "Examples:
  docket dev                                      one process, SQLite in ./data, prints a token and a curl line
  docket import orders.csv --token \"$TOKEN\"       orders from a file, through the running server
  docket serve --config docket.toml               as production runs it
  docket token --sub c-1 --role customer          a token for a customer
  docket replay --all                             rebuild every read model from the log, at any hour
  docket verify                                   compare every read model with the log
  docket events export > log.ndjson               the whole log, for another store";

const EXIT_CODES: &str = "Exit codes:
  0  done
  1  failed; stderr says why
  2  the command line or the settings cannot be used
  3  import: done, but some lines were refused (they are listed)

Of `verify`, 1 says that a read model differs from the log.";

/// An event-sourced order backend: commands in, events kept, read models and live updates out.
#[derive(Debug, Parser)]
#[command(name = "docket", version, before_help = EXAMPLES, after_help = EXIT_CODES, propagate_version = true)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Everything in one process, nothing to configure: SQLite in ./data, on the loopback interface only.
    #[command(before_help = "Examples:\n  docket dev\n  docket dev --listen 127.0.0.1:9000 --data /tmp/docket")]
    Dev(Dev),
    /// As production runs it: settings from docket.toml, DOCKET_… variables and flags.
    #[command(
        before_help = "Examples:\n  docket serve --config docket.toml\n  DOCKET_DATABASE_URL=postgres://docket@db/docket DOCKET_NATS_URL=nats://bus:4222 docket serve --roles write"
    )]
    Serve(Serve),
    /// Bring the database's schema up to date, also that of an existing cqrs-es database.
    #[command(
        before_help = "Examples:\n  docket migrate\n  DOCKET_DATABASE_URL=postgres://docket@db/docket docket migrate\n  DOCKET_DATABASE_URL=postgres://docket_owner@db/docket docket migrate --grant-to docket"
    )]
    Migrate(Migrate),
    /// Print a token, signed with the server's key.
    #[command(
        before_help = "Examples:\n  docket token --sub c-1 --role customer --ttl 8h\n  TOKEN=$(docket token --sub me --role admin)"
    )]
    Token(Token),
    /// Send orders from a CSV or NDJSON file to a running server; running it again doubles nothing.
    #[command(
        before_help = "Examples:\n  docket import tests/data/grocery-orders-sample.csv --token \"$TOKEN\"\n  docket import orders.csv.gz --url http://127.0.0.1:9000 --dry-run",
        after_help = "Columns (CSV) or fields (NDJSON), a line each: order_ref, customer_ref, store_id, placed_at, sku, product_name,\ndepartment, quantity, unit_price. Lines of one order stand together. An order goes over in one piece, its good lines\nconfirmed, its bad ones listed; an order without a good line stays an empty draft. A name that ends in .gz is unpacked."
    )]
    Import(Import),
    /// Rebuild read models from the log beside the ones that serve, then switch; beside a running server or without one.
    #[command(
        before_help = "Examples:\n  docket replay --all\n  docket replay sales products\n  docket replay sales --rollback\n  docket replay --all --prune",
        after_help = "A new generation is filled from the log, catches up, is compared with the one that serves, and takes its place in one\ntransaction. A rebuild that was killed goes on where it stopped. The generation that served before stays until the next\nrebuild, for --rollback."
    )]
    Replay(Replay),
    /// Compare read models with the log, without writing and without stopping anything; exit code 1 where they differ.
    #[command(before_help = "Examples:\n  docket verify\n  docket verify order_details --sample 1000")]
    Verify(Verify),
    /// How far each read model has come.
    #[command(before_help = "Examples:\n  docket projections\n  docket projections --json")]
    Projections(Listing),
    /// The modules of this program, and read models of modules that are gone.
    #[command(before_help = "Examples:\n  docket modules\n  docket modules --json\n  docket modules --prune loyalty")]
    Modules(Modules),
    /// Events that no projector can apply, and the orders that are parked at them.
    #[command(subcommand)]
    DeadLetters(DeadLetters),
    /// Reactors and process managers: how far they have come, and what waits in their backlogs.
    #[command(subcommand)]
    Reactors(Reactors),
    /// The log as it is.
    #[command(subcommand)]
    Events(Events),
    /// Check or show the settings.
    #[command(subcommand)]
    Config(ConfigCommand),
    /// Ask a running server whether it is ready; exit code 1 where it is not.
    #[command(before_help = "Examples:\n  docket health\n  docket health --url http://127.0.0.1:9000")]
    Health {
        /// The server.
        #[arg(long, default_value = "http://127.0.0.1:8080")]
        url: String,
    },
    /// Print a completion script.
    #[command(before_help = "Examples:\n  docket completions bash > /etc/bash_completion.d/docket")]
    Completions {
        /// For this shell.
        shell: clap_complete::Shell,
    },
}

#[derive(Debug, Args)]
struct Common {
    /// Settings file; docket.toml here, if it is there, where none is named.
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Folder of a store in SQLite, as `docket dev --data` names it.
    #[arg(long, value_name = "FOLDER")]
    data: Option<PathBuf>,
}

#[derive(Debug, Args)]
struct Dev {
    /// Loopback address and port.
    #[arg(long, value_name = "ADDR:PORT")]
    listen: Option<String>,
    /// Folder for the database and the key.
    #[arg(long, value_name = "FOLDER")]
    data: Option<PathBuf>,
}

#[derive(Debug, Args)]
struct Serve {
    #[command(flatten)]
    common: Common,
    /// Address and port.
    #[arg(long, value_name = "ADDR:PORT")]
    listen: Option<String>,
    /// What this process does: write, react, project, read, separated by commas.
    #[arg(long, value_name = "ROLES")]
    roles: Option<String>,
}

#[derive(Debug, Args)]
struct Migrate {
    #[command(flatten)]
    common: Common,
    /// Then give this role of PostgreSQL, which servers connect as, what they need and nothing else: it can append events,
    /// and neither change nor remove them. To be repeated with each release.
    #[arg(long, value_name = "ROLE", value_parser = clap::builder::NonEmptyStringValueParser::new())]
    grant_to: Option<String>,
}

#[derive(Debug, Args)]
struct Token {
    #[command(flatten)]
    common: Common,
    /// Who it is for; a customer's id for the role customer.
    #[arg(long)]
    sub: String,
    /// What they may do.
    #[arg(long, value_enum)]
    role: RoleName,
    /// How long it is valid, e.g. 30m, 8h, 7d.
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
struct Import {
    /// CSV or NDJSON, plain or gzip.
    file: PathBuf,
    /// The server.
    #[arg(long, default_value = "http://127.0.0.1:8080")]
    url: String,
    /// A token of the role staff or admin.
    #[arg(long, env = "DOCKET_TOKEN", hide_env_values = true)]
    token: Option<String>,
    /// Read and check the file, send nothing.
    #[arg(long)]
    dry_run: bool,
    /// Print the summary as JSON.
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Args)]
struct Replay {
    #[command(flatten)]
    common: Common,
    /// Which; `docket replay --all` for every one.
    #[arg(required_unless_present = "all", conflicts_with = "all")]
    projections: Vec<String>,
    /// Every read model.
    #[arg(long)]
    all: bool,
    /// Say what would be done, change nothing.
    #[arg(long)]
    dry_run: bool,
    /// Begin at the first event, whatever a killed rebuild has left: something before has been mended.
    #[arg(long, conflicts_with_all = ["prune", "rollback"])]
    fresh: bool,
    /// Go back to the generation that served before, brought up to date.
    #[arg(long, conflicts_with = "prune")]
    rollback: bool,
    /// Remove generations that do not serve.
    #[arg(long)]
    prune: bool,
    /// Progress and result as lines of JSON.
    #[arg(long, conflicts_with_all = ["prune", "dry_run"])]
    json: bool,
}

#[derive(Debug, Args)]
struct Verify {
    #[command(flatten)]
    common: Common,
    /// Which; every one where none is named.
    projections: Vec<String>,
    /// Check only so many orders, drawn by lot: quick, whatever the length of the log. Sums cannot be checked so.
    #[arg(long, value_name = "ORDERS", value_parser = clap::value_parser!(u32).range(1..))]
    sample: Option<u32>,
    /// Print so many differences of each read model.
    #[arg(long, value_name = "N", default_value_t = 10)]
    first: usize,
    /// The result as JSON.
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Args)]
struct Listing {
    #[command(flatten)]
    common: Common,
    /// As JSON.
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Args)]
struct Modules {
    #[command(flatten)]
    common: Common,
    /// As JSON.
    #[arg(long, conflicts_with = "prune")]
    json: bool,
    /// Remove the read models, checkpoints and dead letters of a module that this program does not have.
    #[arg(long, value_name = "MODULE")]
    prune: Option<String>,
}

#[derive(Debug, Subcommand)]
enum DeadLetters {
    /// Every one, the first in the log first.
    #[command(before_help = "Examples:\n  docket dead-letters list --json")]
    List(Listing),
    /// One, with the events of its order that wait.
    #[command(before_help = "Examples:\n  docket dead-letters show 4711")]
    Show(DeadLetter),
    /// Have the projector try again, once what was wrong is mended.
    #[command(before_help = "Examples:\n  docket dead-letters retry 4711")]
    Retry(DeadLetter),
    /// Do without the event for good; the order goes on after it, here and in every rebuild.
    #[command(before_help = "Examples:\n  docket dead-letters discard 4711")]
    Discard(DeadLetter),
}

#[derive(Debug, Args)]
struct DeadLetter {
    #[command(flatten)]
    common: Common,
    /// Position of the event.
    position: i64,
}

#[derive(Debug, Subcommand)]
enum Reactors {
    /// Every reactor: its position, its backlog, whether it is held.
    #[command(before_help = "Examples:\n  docket reactors list\n  docket reactors list --json")]
    List(Listing),
    /// The backlog of one reactor: the first event of each key, why it failed, and when it is tried again.
    #[command(before_help = "Examples:\n  docket reactors show loyalty-points")]
    Show(OneReactor),
    /// Do without the first event of a key for good; the events behind it are tried now.
    #[command(before_help = "Examples:\n  docket reactors skip loyalty-points --key c-1 --position 4711")]
    Skip(Skipped),
    /// Try the backlog again now: the first event of each key, and those behind it when it succeeds.
    #[command(
        before_help = "Examples:\n  docket reactors retry loyalty-points\n  docket reactors retry loyalty-points --key c-1"
    )]
    Retry(Retried),
    /// Stop a reactor: it takes nothing until it is released. Events wait in the log.
    #[command(before_help = "Examples:\n  docket reactors hold loyalty-points --reason 'the provider is down'")]
    Hold(Held),
    /// Let a held reactor go on from its checkpoint.
    #[command(
        before_help = "Examples:\n  docket reactors release loyalty-points\n  docket reactors release loyalty-points --at-head"
    )]
    Release(Released),
}

#[derive(Debug, Args)]
struct OneReactor {
    #[command(flatten)]
    common: Common,
    /// Its name, as `docket reactors list` prints it.
    reactor: String,
    /// As lines of JSON.
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Args)]
struct Retried {
    #[command(flatten)]
    common: Common,
    /// Its name, as `docket reactors list` prints it.
    reactor: String,
    /// Only the events of this key.
    #[arg(long)]
    key: Option<String>,
}

#[derive(Debug, Args)]
struct Skipped {
    #[command(flatten)]
    common: Common,
    /// Its name, as `docket reactors list` prints it.
    reactor: String,
    /// The key, as `docket reactors show` prints it.
    #[arg(long)]
    key: String,
    /// Position of the event.
    #[arg(long)]
    position: i64,
}

#[derive(Debug, Args)]
struct Released {
    #[command(flatten)]
    common: Common,
    /// Its name, as `docket reactors list` prints it.
    reactor: String,
    /// Go on at the end of the log: nothing that it has not taken is taken, and its backlog is emptied.
    #[arg(long)]
    at_head: bool,
}

#[derive(Debug, Args)]
struct Held {
    #[command(flatten)]
    common: Common,
    /// Its name, as `docket reactors list` prints it.
    reactor: String,
    /// Why, for whoever lists the reactors.
    #[arg(long, default_value = "an operator holds it")]
    reason: String,
}

#[derive(Debug, Subcommand)]
enum Events {
    /// Print the log, or write it to a file: a CloudEvents 1.0 envelope a line.
    #[command(
        before_help = "Examples:\n  docket events export > log.ndjson\n  docket events export --output log.ndjson.gz"
    )]
    Export(Export),
    /// Read an exported log into an empty store, positions kept: the way from embedded to scaled.
    #[command(
        before_help = "Examples:\n  DOCKET_DATABASE_URL=postgres://docket@db/docket docket events import log.ndjson.gz",
        after_help = "An import that was cut off goes on where it stopped. No server may run on the store. Read models are built from the\nlog when a server starts. Idempotency keys and snapshots are not part of an export."
    )]
    Import(Restore),
    /// Say that the log was restored from a backup, so that no listener goes on from a position of what is lost.
    #[command(
        before_help = "Examples:\n  docket events restored --config docket.toml",
        after_help = "The log gets a new incarnation: whoever listened before it was restored begins with what is there now. Where nats_url is\nset, the JetStream stream of before is removed. No server may run on the store."
    )]
    Restored(Restored),
    /// Print events as they come.
    #[command(before_help = "Examples:\n  docket events tail --follow\n  docket events tail --after 4711")]
    Tail(Tail),
}

#[derive(Debug, Args)]
struct Export {
    #[command(flatten)]
    common: Common,
    /// A file in place of stdout; a name that ends in .gz is packed.
    #[arg(long, value_name = "FILE")]
    output: Option<PathBuf>,
}

#[derive(Debug, Args)]
struct Restore {
    #[command(flatten)]
    common: Common,
    /// What `docket events export` wrote, plain or gzip.
    file: PathBuf,
}

#[derive(Debug, Args)]
struct Restored {
    #[command(flatten)]
    common: Common,
    /// Delete the JetStream stream though it is of another incarnation: this store was restored before.
    #[arg(long)]
    delete_stream: bool,
}

#[derive(Debug, Args)]
struct Tail {
    #[command(flatten)]
    common: Common,
    /// After this position; the last ten events where it is left out.
    #[arg(long)]
    after: Option<i64>,
    /// Go on as events come.
    #[arg(long)]
    follow: bool,
}

#[derive(Debug, Subcommand)]
enum ConfigCommand {
    /// Exit 0 where the settings can be used, else say what is wrong.
    #[command(before_help = "Examples:\n  docket config check --config docket.toml\n  docket config check --connect")]
    Check(ConfigCheck),
    /// Print every setting with its value, as TOML; secrets are left out.
    #[command(before_help = "Examples:\n  docket config show > docket.toml.new")]
    Show(Common),
}

#[derive(Debug, Args)]
struct ConfigCheck {
    #[command(flatten)]
    common: Common,
    /// Connect to the database and to NATS, too, and print what an operator should know of them.
    #[arg(long)]
    connect: bool,
}

/// Parses the command line and runs it; gives the exit code.
pub async fn main(of: Vec<Module>) -> u8 {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => {
            let _ = error.print();
            return if error.use_stderr() { EXIT_USAGE } else { 0 };
        }
    };
    let program = match Program::new(of) {
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
        Command::Import(import) => import::import(import).await,
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
            // Not to stdout: it panics where nobody reads that to its end.
            let mut script = Vec::new();
            clap_complete::generate(shell, &mut Cli::command(), "docket", &mut script);
            say(String::from_utf8_lossy(&script).trim_end());
            Ok(0)
        }
    };
    outcome.unwrap_or_else(|error| {
        eprintln!("docket: {}", redact(&told_once(&error)));
        if error.is::<Usage>() { EXIT_USAGE } else { EXIT_FAILED }
    })
}

/// An error with its causes, without those that it has named already.
fn told_once(error: &anyhow::Error) -> String {
    error.chain().map(ToString::to_string).fold(String::new(), |mut text, cause| {
        if !text.contains(&cause) {
            text += if text.is_empty() { "" } else { ": " };
            text += &cause;
        }
        text
    })
}

/// Settings or arguments that cannot be used.
#[derive(Debug)]
struct Usage(anyhow::Error);

impl std::fmt::Display for Usage {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:#}", self.0)
    }
}

impl std::error::Error for Usage {}

/// Prints a line on stdout. A reader that has seen enough ends the program, and is no failure.
fn say(line: impl std::fmt::Display) {
    if let Err(error) = writeln!(std::io::stdout(), "{line}") {
        let broken = error.kind() == std::io::ErrorKind::BrokenPipe;
        if !broken {
            eprintln!("docket: cannot write: {error}");
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

/// The program with the modules that the settings choose, each with its settings.
fn selected(program: Program, settings: &Settings) -> anyhow::Result<Program> {
    let usage = |reason: String| Usage(anyhow!(reason));
    let program = program.select(&settings.server.modules, settings.server.roles()?).map_err(usage)?;
    program.apply(&settings.of_modules).map_err(usage)?;
    Ok(program)
}

fn parse_ttl(text: &str) -> Result<Duration, String> {
    let help = || "a number and a unit, e.g. 30m, 8h, 7d".to_owned();
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
        .ok_or_else(|| "from 1 second to 366 days".to_owned())
}
