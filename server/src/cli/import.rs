//! `docket import`: imports orders from a file through `POST /v1/commands` of a running server.
//!
//! **Two passes.** The lines of an order may be anywhere in a file, and a file may be cut. So the first pass
//! ([`orders::survey`]) counts the lines of each order, and looks at the whole file: can it be read to its end, in which
//! encoding, with which decimal mark? The second pass ([`orders::read`]) collects the lines of each order, and passes it
//! on when it has all of them. A pipe is kept in a temporary file for this.
//!
//! **One command for an order.** Each order is one `import_order` with all its items and its final status. The server
//! creates it in one transaction, or compares it with the stored one. So a repeated import creates no duplicates, and a
//! dry run (`?dry_run=true`) gets the answers of a real one. An order with a fault is rejected as a whole; with
//! `--partial` it is imported without its faulty lines.
//!
//! **Memory.** The first pass keeps about 100 bytes for each order. The second pass keeps at most 64 MiB of orders that
//! are not whole (others wait for another pass), and 64 MiB of orders that wait for the server. Faults are kept until the
//! end, because they are listed in the order of the file.

pub mod arguments;
mod layout;
mod numbers;
mod orders;
mod records;
mod report;
mod sender;
mod source;
mod times;

use std::io::IsTerminal;
use std::sync::Arc;
use std::time::Instant;

use anyhow::anyhow;
use indicatif::{ProgressBar, ProgressStyle};
use tokio::sync::mpsc;

use crate::cli::import::arguments::{Arguments, pairs};
use crate::cli::import::layout::Layout;
use crate::cli::import::orders::{Reading, Survey, SurveyError, survey};
use crate::cli::import::records::{Kind, Shape, shape};
use crate::cli::import::report::{Rejects, Summary};
use crate::cli::import::sender::Sender;
use crate::cli::import::source::Source;
use crate::cli::{EXIT_REJECTED, Usage};

/// Runs `docket import`, and returns the exit code.
///
/// # Errors
/// The file cannot be read as orders, or the server cannot be reached.
pub async fn import(arguments: Arguments) -> anyhow::Result<u8> {
    let arguments = Arc::new(arguments);
    let token = arguments.token.clone().ok_or_else(|| {
        Usage(anyhow!(
            "A token is missing. Give --token or set DOCKET_TOKEN. `docket token --sub me --role staff` prints one."
        ))
    })?;
    let sender = Sender::new(&arguments, &token)?;
    let started = Instant::now();
    let file = tokio::task::spawn_blocking({
        let arguments = arguments.clone();
        move || OrderFile::open(&arguments, started)
    });
    let file = file.await??;
    file.name_unused_columns();
    let (lines, count) = (file.survey.lines, file.survey.orders());
    let (orders, read_orders) = mpsc::channel(64);
    let reader = tokio::task::spawn_blocking({
        let arguments = arguments.clone();
        move || file.read(&arguments, &orders, started)
    });
    let summary = sender.send(read_orders).await?;
    let (file, reading) = reader.await??;
    let summary = file.summarize(summary, reading, &arguments);
    file.bar.finish_and_clear();
    let seconds = (started.elapsed().as_secs_f64() * 1000.0).round() / 1000.0;
    let lines_per_second = (lines as f64 / seconds.max(0.001)) as u64;
    let summary = Summary { orders: count, lines, seconds, lines_per_second, ..summary };
    let summary = tokio::task::spawn_blocking(move || file.write_rejects(&summary).map(|()| summary)).await??;
    summary.print(arguments.json)?;
    Ok(if summary.is_complete() { 0 } else { EXIT_REJECTED })
}

/// A file of orders after the first pass.
struct OrderFile {
    source: Source,
    layout: Layout,
    shape: Shape,
    survey: Survey,
    rejects: Option<Rejects>,
    bar: ProgressBar,
}

impl OrderFile {
    /// Reads a file for the first time.
    fn open(arguments: &Arguments, started: Instant) -> anyhow::Result<Self> {
        let map = pairs("--map", &arguments.map)?;
        let status_map = pairs("--status-map", &arguments.status_map)?;
        let layout = Layout::new(arguments.preset, &map, &status_map, arguments.customer.is_none());
        let layout = layout.map_err(|reason| Usage(anyhow!(reason)))?;
        let source = Source::open(&arguments.file)?;
        let rejects = arguments.rejects.as_ref().map(|path| Rejects::create(path, &source)).transpose()?;
        // The file is read twice.
        let bar = progress_bar(2 * source.bytes);
        let mut encoding = match arguments.encoding {
            Some(encoding) => encoding,
            None => source.guess_encoding()?,
        };
        loop {
            let shape = shape(&source, encoding, &layout, arguments)?;
            let on_line = |lines| show(&bar, &source, "checked", lines, started);
            match survey(&source, &shape, &layout, arguments, &on_line) {
                Ok(survey) => return Ok(Self { source, layout, shape, survey, rejects, bar }),
                Err(SurveyError::Failed(error)) => return Err(error),
                Err(SurveyError::NotUtf8) => {
                    let found = source.detect_encoding()?;
                    if found == encoding {
                        // A file of UTF-8 with some damaged lines.
                        let arguments = Arguments { encoding: Some(found), ..arguments.clone() };
                        return match survey(&source, &shape, &layout, &arguments, &on_line) {
                            Ok(survey) => Ok(Self { source, layout, shape, survey, rejects, bar }),
                            Err(SurveyError::Failed(error)) => Err(error),
                            Err(SurveyError::NotUtf8) => Err(source.usage("The file is not valid UTF-8.")),
                        };
                    }
                    encoding = found;
                }
            }
        }
    }

    /// Names the columns that are not imported, once.
    fn name_unused_columns(&self) {
        let unused: Vec<&str> = match &self.shape.kind {
            Kind::Csv { .. } => self.shape.columns.unused.iter().map(String::as_str).collect(),
            Kind::Ndjson { .. } => self.survey.unknown.iter().map(String::as_str).collect(),
        };
        if !unused.is_empty() {
            eprintln!(
                "Columns that are not imported: {}. Name one with --map FIELD=COLUMN to import it.",
                unused.join(", ")
            );
        }
    }

    /// Reads the file for the second time, and sends its orders.
    fn read(
        mut self,
        arguments: &Arguments,
        orders: &mpsc::Sender<orders::Order>,
        started: Instant,
    ) -> anyhow::Result<(Self, Reading)> {
        let Self { source, layout, shape, survey, bar, .. } = &mut self;
        let on_line = |lines| show(bar, source, "sent", lines, started);
        let reading = orders::read(source, shape, layout, arguments, survey, orders, &on_line)?;
        Ok((self, reading))
    }

    /// Puts together what the passes and the server have found.
    fn summarize(&self, mut summary: Summary, reading: Reading, arguments: &Arguments) -> Summary {
        summary.rejected.extend(reading.faults);
        summary.rejected.extend(self.survey.faults.iter().cloned());
        summary.rejected.sort_by_key(|fault| fault.line);
        summary.differences.sort_by_key(|fault| fault.line);
        summary.rejected_lines += reading.rejected_lines + self.survey.unread_lines();
        summary.refused.extend(reading.refused);
        summary.rejected_orders = summary.refused.len() as u64;
        summary.skipped = reading.skipped;
        summary.dry_run = arguments.dry_run;
        summary
    }

    fn write_rejects(self, summary: &Summary) -> anyhow::Result<()> {
        let Self { source, layout, shape, rejects, .. } = self;
        rejects.map_or(Ok(()), |rejects| rejects.write(&source, &shape, &layout, summary))
    }
}

fn progress_bar(bytes: u64) -> ProgressBar {
    if !std::io::stderr().is_terminal() {
        return ProgressBar::hidden();
    }
    let bar = ProgressBar::new(bytes);
    if let Ok(style) = ProgressStyle::with_template("{bar:30} {percent}% {msg}, {eta} left") {
        bar.set_style(style);
    }
    bar
}

fn show(bar: &ProgressBar, source: &Source, what: &str, lines: u64, started: Instant) {
    if lines.is_multiple_of(1_000) {
        bar.set_position(source.read.load(std::sync::atomic::Ordering::Relaxed));
        bar.set_message(format!("{lines} lines {what}, {:.0} lines/s", lines as f64 / started.elapsed().as_secs_f64()));
    }
}
