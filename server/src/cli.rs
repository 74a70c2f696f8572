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

use clap::{Args, CommandFactory, Parser, Subcommand, ValueEnum};
use event_store::store::{Store, open_without_appender};
use platform::telemetry::redact::redact;
use projection_engine::dead_letters::Decision;

use crate::migrations::MIGRATIONS;
use crate::module::Module;
use crate::program::Program;
use crate::settings::{Settings, Sources, parse_ttl, without_password};

/// The command failed; stderr gives the reason.
pub const EXIT_FAILED: u8 = 1;
/// The command line or the settings are invalid.
pub const EXIT_USAGE: u8 = 2;
/// `docket import` finished, but the store does not hold everything that the file says.
pub const EXIT_REJECTED: u8 = 3;

const EXAMPLES: &str = "Examples:
  docket dev                              run everything in one process
  docket import orders.csv                import orders into a running server
  docket serve --config docket.toml       run a server with production settings
  docket token --sub c-1 --role customer  print a token for a customer
  docket replay --all                     rebuild every read model
  docket verify                           compare every read model with the log
  docket events export > log.ndjson       export the whole log";

const EXIT_CODES: &str = "Exit codes:
  0  success
  1  failure; stderr gives the reason
  2  the command line or the settings are invalid
  3  `docket import` finished, but orders were rejected or differ

`docket verify` exits with 1 when it finds mismatches, `docket health` when the server is not ready.";

/// An event-sourced order backend. It accepts commands, stores events, and serves read models and live updates.
#[derive(Debug, Parser)]
#[command(name = "docket", version, after_long_help = format!("{EXAMPLES}\n\n{EXIT_CODES}"), propagate_version = true)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run everything in one process, without configuration, on the loopback interface.
    ///
    /// Creates a signing key and prints a token. The store is SQLite in the data folder, unless database_url names
    /// another one. Reads the same settings as `docket serve`: docket.toml, DOCKET_… variables, flags.
    #[command(after_long_help = "Examples:\n  docket dev\n  docket dev --listen 127.0.0.1:9000 --data /tmp/docket")]
    Dev(Dev),
    /// Run a server as in production.
    ///
    /// Settings come from docket.toml, DOCKET_… variables and flags; each overrides the one before. The server needs a key
    /// to verify tokens: oidc_issuer, jwt_jwks_url, jwt_key_file or jwt_secret. With SQLite and on a loopback address it uses the key
    /// that `docket dev` created in the data folder when there is no other.
    #[command(
        after_long_help = "Examples:\n  docket serve --config docket.toml\n  docket serve --roles write --listen 0.0.0.0:8080\n  DOCKET_DATABASE_URL=postgres://docket@db/docket docket serve"
    )]
    Serve(Serve),
    /// Migrate the database to the schema of this release.
    ///
    /// Also accepts the database of a cqrs-es program.
    #[command(
        after_long_help = "Examples:\n  docket migrate\n  docket migrate --config owner.toml --grant-to docket\n  DOCKET_DATABASE_URL=postgres://docket@db/docket docket migrate"
    )]
    Migrate(Migrate),
    /// Print a token, signed with the server's key.
    ///
    /// The key is jwt_secret, else jwt_key_file, else the one that `docket dev` created in the data folder. The command
    /// names it on stderr.
    #[command(
        after_long_help = "Examples:\n  docket token --sub c-1 --role customer --ttl 8h\n  TOKEN=$(docket token --sub me --role admin)"
    )]
    Token(Token),
    /// Import orders from a CSV or NDJSON file through a running server. A repeated import creates no duplicates.
    #[command(
        after_long_help = "Each line is one item of an order. Fields: order_ref, customer_ref, placed_at, status, cancelled_at, cancel_reason, currency, sku, product_name, department, quantity, unit_price or line_total, store_id, attributes.NAME. Required: order_ref, sku, quantity, a price, and customer_ref or --customer.\n\nAn order is imported whole or not at all. A stored order is compared with the file; differences are listed. The exit code is 0 only when the store holds what the file says. docs/import.md describes layouts and faults.\n\nExamples:\n  docket import tests/data/grocery-orders-sample.csv --token \"$TOKEN\"\n  docket import orders_export.csv --preset shopify --dry-run\n  docket import sales.csv.gz --map order_ref=\"Order No\",sku=Article\n  zcat orders.gz | docket import - --url http://127.0.0.1:9000"
    )]
    Import(Box<import::arguments::Arguments>),
    /// Rebuild read models from the log, then switch to the new generations.
    ///
    /// Servers may run meanwhile.
    #[command(
        after_long_help = "A rebuild fills a new generation from the log, catches up, compares it with the generation that serves, and switches to it in one transaction. Run the command again to resume an interrupted rebuild. The previous generation is kept until the next rebuild, for --rollback.\n\nExamples:\n  docket replay --all\n  docket replay sales products\n  docket replay sales --rollback\n  docket replay --all --prune"
    )]
    Replay(Replay),
    /// Compare read models with the log and count mismatches.
    ///
    /// Writes nothing and stops nothing. Exits with 1 when there are mismatches.
    #[command(after_long_help = "Examples:\n  docket verify\n  docket verify order_details --sample 1000")]
    Verify(Verify),
    /// List the read models: generation, position, lag and state.
    #[command(after_long_help = "Examples:\n  docket projections\n  docket projections --json")]
    Projections(Listing),
    /// List the modules of this program, and what removed modules have left.
    #[command(
        after_long_help = "Examples:\n  docket modules\n  docket modules --json\n  docket modules --prune loyalty"
    )]
    Modules(Modules),
    /// Show or settle dead letters: events that cannot be projected.
    ///
    /// A stream is parked at such an event. Its later events wait.
    #[command(subcommand)]
    DeadLetters(DeadLetters),
    /// Show or control reactors and process managers.
    #[command(subcommand)]
    Reactors(Reactors),
    /// Export, import or follow the log, or mark it as restored from a backup.
    #[command(subcommand)]
    Events(Events),
    /// Check or print the settings.
    #[command(subcommand)]
    Config(ConfigCommand),
    /// Check whether a running server is ready.
    ///
    /// Exits with 1 when it is not.
    #[command(after_long_help = "Examples:\n  docket health\n  docket health --url http://127.0.0.1:9000 --json")]
    Health(Health),
    /// Print a completion script for a shell.
    #[command(after_long_help = "Examples:\n  docket completions bash > /etc/bash_completion.d/docket")]
    Completions {
        /// The shell.
        shell: clap_complete::Shell,
    },
}

#[derive(Debug, Clone, Args)]
struct Common {
    /// Settings file [default: docket.toml, if it exists].
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Folder of a SQLite store and of the key of `docket dev` [default: data].
    #[arg(long, value_name = "FOLDER")]
    data: Option<PathBuf>,
}

#[derive(Debug, Args)]
struct Dev {
    #[command(flatten)]
    common: Common,
    /// Loopback address and port to listen on [default: 127.0.0.1:8080].
    #[arg(long, value_name = "ADDR:PORT")]
    listen: Option<String>,
}

#[derive(Debug, Args)]
struct Serve {
    #[command(flatten)]
    common: Common,
    /// Address and port to listen on [default: 127.0.0.1:8080].
    #[arg(long, value_name = "ADDR:PORT")]
    listen: Option<String>,
    /// Roles of this process, separated by commas [default: write,react,project,read].
    #[arg(long, value_name = "ROLES")]
    roles: Option<String>,
}

#[derive(Debug, Args)]
struct Migrate {
    #[command(flatten)]
    common: Common,
    /// After the migration, grant this PostgreSQL role the privileges that a server needs.
    ///
    /// Servers that connect with it can append events, but not change or delete them. Repeat this with each release.
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
    /// How long the token is valid, e.g. 30m, 8h or 7d.
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
    /// Start at the first event instead of resuming an interrupted rebuild.
    ///
    /// Use this after stored events were corrected.
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
    /// Check only this many streams, drawn at random.
    ///
    /// This is fast for a log of any length, but cannot check read models that are sums over many streams.
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
    /// Remove what a module that this program does not have has left.
    ///
    /// Removes its read models, reactors, checkpoints and dead letters.
    #[arg(long, value_name = "MODULE")]
    prune: Option<String>,
}

#[derive(Debug, Subcommand)]
enum DeadLetters {
    /// List the dead letters in the order of the log.
    #[command(after_long_help = "Examples:\n  docket dead-letters list --json")]
    List(Listing),
    /// Show one dead letter, with the events of its stream that wait.
    #[command(after_long_help = "Examples:\n  docket dead-letters show 4711")]
    Show(DeadLetter),
    /// Project the parked stream again.
    ///
    /// Use this after the cause was corrected.
    #[command(after_long_help = "Examples:\n  docket dead-letters retry 4711")]
    Retry(DeadLetter),
    /// Omit the event from the read models and from every rebuild, permanently.
    ///
    /// Its stream continues after it.
    #[command(after_long_help = "Examples:\n  docket dead-letters discard 4711")]
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
    #[command(after_long_help = "Examples:\n  docket reactors list\n  docket reactors list --json")]
    List(Listing),
    /// Show the backlog of a reactor.
    ///
    /// Lists the first event of each key, why it failed, and when it is retried.
    #[command(after_long_help = "Examples:\n  docket reactors show loyalty-points")]
    Show(OneReactor),
    /// Skip the first event of a key permanently.
    ///
    /// The next event of the key is tried now.
    #[command(after_long_help = "Examples:\n  docket reactors skip loyalty-points --key c-1 --position 4711")]
    Skip(Skipped),
    /// Retry the backlog now.
    ///
    /// Retries the first event of each key, and after it has succeeded the events behind it.
    #[command(
        after_long_help = "Examples:\n  docket reactors retry loyalty-points\n  docket reactors retry loyalty-points --key c-1"
    )]
    Retry(Retried),
    /// Hold a reactor: it handles no event until it is released.
    ///
    /// Events wait in the log.
    #[command(after_long_help = "Examples:\n  docket reactors hold loyalty-points --reason 'the provider is down'")]
    Hold(Held),
    /// Release a held reactor.
    ///
    /// It resumes from its checkpoint.
    #[command(
        after_long_help = "Examples:\n  docket reactors release loyalty-points\n  docket reactors release loyalty-points --at-head"
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
    /// Resume at the end of the log.
    ///
    /// Skips all events that the reactor has not handled, and empties its backlog.
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
        after_long_help = "Examples:\n  docket events export > log.ndjson\n  docket events export --output log.ndjson.gz"
    )]
    Export(Export),
    /// Import an exported log into an empty store.
    ///
    /// Positions are kept. Use this to move from SQLite to PostgreSQL.
    #[command(
        after_long_help = "Run the command again to resume an interrupted import. No server may run on the store. A server builds the read models from the log when it starts. An export contains no idempotency keys and no snapshots.\n\nExamples:\n  docket events import log.ndjson.gz --config postgres.toml"
    )]
    Import(Restore),
    /// Mark the log as restored from a backup.
    ///
    /// After that, no client resumes at a position of the lost log.
    #[command(
        after_long_help = "The log gets a new incarnation: a client that resumes with a cursor of an earlier one gets a fresh snapshot. When nats_url is set, the JetStream stream of the lost log is removed. No server may run on the store.\n\nExamples:\n  docket events restored --config docket.toml"
    )]
    Restored(Restored),
    /// Print the last events of the log.
    ///
    /// With --follow also new events as they are appended.
    #[command(after_long_help = "Examples:\n  docket events tail --follow\n  docket events tail --after 4711")]
    Tail(Tail),
}

#[derive(Debug, Args)]
struct Export {
    #[command(flatten)]
    common: Common,
    /// Write to this file instead of stdout; a name that ends in .gz is compressed.
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
    /// Delete the JetStream stream even if it belongs to another incarnation.
    ///
    /// Use this when the store was restored before.
    #[arg(long)]
    delete_stream: bool,
}

#[derive(Debug, Args)]
struct Tail {
    #[command(flatten)]
    common: Common,
    /// Print the events after this position [default: the last ten events].
    #[arg(long)]
    after: Option<i64>,
    /// Keep running, and print new events as they are appended.
    #[arg(long)]
    follow: bool,
}

#[derive(Debug, Subcommand)]
enum ConfigCommand {
    /// Check the settings, and connect to the servers that they name.
    ///
    /// Connects to PostgreSQL, to each NATS server and to the key URL, and prints what is wrong with them. Exits with 0
    /// when a server could start, with 1 when it could not or the database has no schema, and with 2 when a setting is
    /// invalid.
    #[command(
        after_long_help = "Examples:\n  docket config check --config docket.toml\n  docket config check --offline"
    )]
    Check(ConfigCheck),
    /// Print every setting with its value and its origin as TOML.
    ///
    /// Secrets and passwords are printed as ***, so the output does not replace a settings file. docs/settings.md
    /// describes every setting.
    #[command(
        after_long_help = "Examples:\n  docket config show\n  docket config show --config docket.toml | grep nats"
    )]
    Show(Common),
}

#[derive(Debug, Args)]
struct ConfigCheck {
    #[command(flatten)]
    common: Common,
    /// Check the settings only, and connect to nothing.
    #[arg(long)]
    offline: bool,
    /// Has no effect. Earlier releases connected only with this option.
    #[arg(long, hide = true, conflicts_with = "offline")]
    connect: bool,
}

#[derive(Debug, Args)]
struct Health {
    /// URL of the server.
    #[arg(long, env = "DOCKET_URL", default_value = "http://127.0.0.1:8080")]
    url: String,
    /// Print the server's answer as JSON.
    #[arg(long)]
    json: bool,
}

/// Parses the command line, runs the command, and returns the exit code.
pub async fn main(modules: Vec<Module>) -> u8 {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => {
            let printed = error.print().and_then(|()| std::io::stdout().flush());
            return match printed {
                _ if error.use_stderr() => EXIT_USAGE,
                Err(error) => output_failed(&error),
                Ok(()) => 0,
            };
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
        Command::Dev(dev) => dev::dev(program, dev).await,
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
        Command::Health(wanted) => admin::health(wanted).await,
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

/// Prints a line on stdout. When stdout cannot be written, the program ends with the code of [`output_failed`].
fn print_line(line: impl std::fmt::Display) {
    // Without this flush, a line that the buffer keeps could be lost at the exit without an error.
    let mut stdout = std::io::stdout();
    if let Err(error) = writeln!(stdout, "{line}").and_then(|()| stdout.flush()) {
        std::process::exit(output_failed(&error).into());
    }
}

/// Reports a failed write to stdout, and returns the exit code: 0 when the reader has closed the pipe, which is not a
/// failure.
fn output_failed(error: &std::io::Error) -> u8 {
    if error.kind() == std::io::ErrorKind::BrokenPipe {
        return 0;
    }
    eprintln!("docket: Cannot write to stdout: {error}.");
    EXIT_FAILED
}

/// Returns a number with its noun: `1 event`, `2 events`, `2 mismatches`.
fn counted(number: impl Into<i128>, noun: &str) -> String {
    let number = number.into();
    let ending = match noun {
        _ if number == 1 => "",
        noun if noun.ends_with("ch") => "es",
        _ => "s",
    };
    format!("{number} {noun}{ending}")
}

/// Returns the sources of the settings of a command.
fn sources(common: &Common) -> Sources {
    let mut flags = Vec::new();
    if let Some(folder) = &common.data {
        flags.push(("--data", "data", folder.display().to_string()));
        flags.push(("--data", "database_url", format!("sqlite:{}", folder.join("docket.db").display())));
    }
    let mut other_variables = Vec::new();
    add_variables(&Cli::command(), &mut other_variables);
    Sources { file: common.config.clone(), flags, development: false, other_variables }
}

/// Adds the environment variables of a command's options and of its subcommands.
fn add_variables(command: &clap::Command, names: &mut Vec<String>) {
    names.extend(command.get_arguments().filter_map(|option| Some(option.get_env()?.to_str()?.to_owned())));
    command.get_subcommands().for_each(|command| add_variables(command, names));
}

/// Loads the settings, and prints the warnings about them.
fn load(program: &Program, common: &Common) -> anyhow::Result<Settings> {
    let settings = Settings::load(&sources(common), &program.settings()).map_err(Usage)?;
    for warning in &settings.warnings {
        eprintln!("docket: {warning}");
    }
    Ok(settings)
}

/// Opens the store beside a server that may run on it.
async fn open_store(program: &Program, settings: &Settings) -> anyhow::Result<Store> {
    let store = open_without_appender(settings.store.clone(), MIGRATIONS, program.upcasters()).await;
    store.map_err(|error| cannot_open(settings, error.into()))
}

/// Returns the error of a store that cannot be opened, with where its URL was given.
fn cannot_open(settings: &Settings, error: anyhow::Error) -> anyhow::Error {
    let database = without_password(&settings.store.database_url);
    settings.explain(&format!("database_url: cannot open {database}: {}", format_error_chain(&error)))
}

/// Returns the program with the modules that the settings select, and applies the settings of these modules.
fn selected(program: Program, settings: &Settings) -> anyhow::Result<Program> {
    let usage = |reason: String| Usage(settings.explain(&reason));
    let program = program.select(&settings.server.modules, settings.server.roles()?).map_err(usage)?;
    program.apply(&settings.module_settings).map_err(usage)?;
    Ok(program)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Width of a terminal that every help text must fit.
    const COLUMNS: usize = 80;

    /// Calls `check` with every command and its path.
    fn each(command: &clap::Command, path: &str, check: &mut impl FnMut(&clap::Command, &str)) {
        let path = format!("{path} {}", command.get_name());
        check(command, path.trim());
        command.get_subcommands().for_each(|command| each(command, &path, check));
    }

    #[test]
    fn short_help_is_short_and_long_help_has_examples_and_no_broken_line() {
        let mut root = Cli::command().term_width(COLUMNS);
        root.build();
        each(&root, "", &mut |command, path| {
            if path.ends_with(" help") || path.contains(" help ") {
                return;
            }
            let mut command = command.clone();
            let short = command.render_help().to_string();
            assert!(!short.contains("Examples:"), "`{path} -h` is long:\n{short}");
            let most = if path == "docket import" { 70 } else { 45 };
            assert!(short.lines().count() <= most, "`{path} -h` has {} lines:\n{short}", short.lines().count());
            let long = command.get_after_long_help().map(ToString::to_string).unwrap_or_default();
            assert!(long.contains("Examples:\n") || command.has_subcommands(), "`{path} --help` has no example");
            for paragraph in long.split("\n\n") {
                let mut lines = paragraph.lines();
                let is_list = lines.next().is_some_and(|first| first.ends_with(':'));
                assert!(is_list || lines.next().is_none(), "`{path}`: a line is broken by hand:\n{paragraph}");
                for line in paragraph.lines().filter(|_| is_list) {
                    assert!(line.chars().count() < COLUMNS, "`{path}`: the terminal breaks the line\n{line}");
                }
            }
        });
    }

    #[test]
    fn options_of_settings_show_their_defaults() {
        each(&Cli::command(), "", &mut |command, path| {
            for option in command.get_arguments() {
                let name = option.get_id().as_str();
                let help = option.get_help().map(ToString::to_string).unwrap_or_default();
                if ["config", "data", "listen", "roles"].contains(&name) {
                    assert!(help.contains("[default: "), "`{path} --{name}`: {help}");
                }
            }
        });
    }

    #[test]
    fn nouns_agree_with_their_numbers() {
        assert_eq!(
            [counted(0, "event"), counted(1, "event"), counted(2, "event")],
            ["0 events", "1 event", "2 events"]
        );
        assert_eq!([counted(1, "mismatch"), counted(2, "mismatch")], ["1 mismatch", "2 mismatches"]);
    }

    #[test]
    fn variables_of_options_are_not_settings() {
        assert!(sources(&Common { config: None, data: None }).other_variables.contains(&"DOCKET_TOKEN".to_owned()));
    }
}
