//! What an import has done: the summary, the faults that stdout lists, and the file of rejected lines.

use std::collections::{HashMap, HashSet};
use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::Path;
use std::sync::Arc;

use anyhow::{Context, anyhow};
use serde::Serialize;

use crate::cli::import::layout::{Field, Layout};
use crate::cli::import::records::{Kind, Next, Records, Shape};
use crate::cli::import::source::Source;
use crate::cli::{Usage, print_line};

/// A fault of a line. Without `--partial`, no line of its order was imported.
#[derive(Debug, Clone, Serialize)]
pub struct Fault {
    /// Number of the line, from 1.
    pub line: u64,
    /// The order of the line; empty when it cannot be read.
    pub order_ref: String,
    /// What is wrong.
    pub reason: Arc<str>,
}

/// The result of an import.
#[derive(Debug, Default, Serialize)]
pub struct Summary {
    /// Orders of the file.
    pub orders: u64,
    /// Lines of the file.
    pub lines: u64,
    /// Orders that were created as confirmed.
    pub confirmed: u64,
    /// Orders that were created as drafts.
    pub left_draft: u64,
    /// Orders that were created as cancelled.
    pub cancelled: u64,
    /// Drafts that were changed by `--update`.
    pub updated: u64,
    /// Orders that were stored before, and are the same.
    pub already_there: u64,
    /// Orders that were stored before, and are different.
    pub different: u64,
    /// Orders with a status that is skipped.
    pub skipped: u64,
    /// Orders that were rejected as a whole.
    pub rejected_orders: u64,
    /// Lines that were not imported.
    pub rejected_lines: u64,
    /// Whether nothing was changed because of `--dry-run`.
    pub dry_run: bool,
    /// Duration of the import.
    pub seconds: f64,
    /// Lines of the file per second.
    pub lines_per_second: u64,
    /// The faults, in the order of the file.
    pub rejected: Vec<Fault>,
    /// The differences between the file and the store, in the order of the file.
    pub differences: Vec<Fault>,
    /// The orders that were rejected as a whole.
    #[serde(skip)]
    pub refused: HashSet<String>,
}

impl Summary {
    /// Whether the store now holds what the file says.
    pub fn is_complete(&self) -> bool {
        self.rejected.is_empty() && self.different == 0 && self.rejected_orders == 0
    }

    /// Prints the faults and differences to stdout, or everything as JSON, and the counts to stderr.
    ///
    /// # Errors
    /// The summary cannot be written as JSON.
    pub fn print(&self, as_json: bool) -> anyhow::Result<()> {
        if as_json {
            print_line(serde_json::to_string(self)?);
        } else {
            let mut all: Vec<&Fault> = self.rejected.iter().chain(&self.differences).collect();
            all.sort_by_key(|fault| fault.line);
            for Fault { line, order_ref, reason } in all {
                match order_ref.is_empty() {
                    true => print_line(format_args!("line {line}: {reason}")),
                    false => print_line(format_args!("line {line} (order {order_ref}): {reason}")),
                }
            }
        }
        let count = |count: u64, what: &str| format!("{count} {what}{}", if count == 1 { "" } else { "s" });
        let mut parts = vec![format!("{} confirmed", self.confirmed)];
        parts.extend((self.left_draft > 0).then(|| count(self.left_draft, "draft")));
        for (number, what) in [(self.cancelled, "cancelled"), (self.updated, "updated"), (self.skipped, "skipped")] {
            parts.extend((number > 0).then(|| format!("{number} {what}")));
        }
        parts.push(format!("{} imported before", self.already_there));
        parts.push(format!("{} different", self.different));
        parts.push(format!("{} rejected", count(self.rejected_orders, "order")));
        parts.push(format!("{} rejected", count(self.rejected_lines, "line")));
        eprintln!(
            "{}{} in {}: {}. {:.1} s, {} lines/s.",
            if self.dry_run { "Dry run, nothing was changed. " } else { "" },
            count(self.orders, "order"),
            count(self.lines, "line"),
            parts.join(", "),
            self.seconds,
            self.lines_per_second
        );
        Ok(())
    }
}

/// The file of `--rejects`.
pub struct Rejects {
    file: File,
    path: String,
}

impl Rejects {
    /// Creates the file.
    ///
    /// # Errors
    /// The file cannot be created, or is the input.
    pub fn create(path: &Path, source: &Source) -> anyhow::Result<Self> {
        if source.is_file(path) {
            return Err(Usage(anyhow!("--rejects: {} is the file to import. Give another one.", path.display())).into());
        }
        let file = File::create(path).with_context(|| format!("cannot create {}", path.display()))?;
        Ok(Self { file, path: path.display().to_string() })
    }

    /// Writes the rejected lines of a file, in its layout, as UTF-8. `refused` are the orders that were rejected with
    /// all their lines.
    ///
    /// # Errors
    /// A file cannot be read or written.
    pub fn write(self, source: &Source, shape: &Shape, layout: &Layout, summary: &Summary) -> anyhow::Result<()> {
        let path = self.path.clone();
        self.write_all(source, shape, layout, summary).with_context(|| format!("cannot write {path}"))
    }

    fn write_all(self, source: &Source, shape: &Shape, layout: &Layout, summary: &Summary) -> anyhow::Result<()> {
        let mut reasons: HashMap<u64, String> = HashMap::new();
        for fault in &summary.rejected {
            let reason = reasons.entry(fault.line).or_default();
            if !reason.is_empty() {
                reason.push(' ');
            }
            reason.push_str(&fault.reason);
        }
        let order_at = shape.columns.of(&Field::OrderRef);
        let mut records = Records::open(source, shape)?;
        let mut output = BufWriter::new(self.file);
        let (delimiter, header) = match &shape.kind {
            Kind::Csv { delimiter, header, .. } => (*delimiter, Some(header)),
            Kind::Ndjson { .. } => (b',', None),
        };
        // The file of an earlier import has the column already.
        let has_reason = header.is_some_and(|header| header.iter().next_back() == Some("reason"));
        let columns = header.map_or(0, |header| header.len() - usize::from(has_reason));
        let mut writer = csv::WriterBuilder::new().delimiter(delimiter).flexible(true).from_writer(Vec::new());
        if let Some(header) = header {
            writer.write_record(header.iter().take(columns).chain(["reason"]))?;
        }
        loop {
            let next = records.read();
            if matches!(next, Next::End | Next::Broken(_)) {
                break;
            }
            let order = order_of(&records.record, &order_at, layout);
            let reason = match reasons.get(&records.line) {
                Some(reason) => reason.as_str(),
                None if order.is_some_and(|order| summary.refused.contains(order)) => {
                    "The order was rejected because of another line."
                }
                None => continue,
            };
            if let Some(text) = records.json_text() {
                match serde_json::from_slice::<serde_json::Map<String, serde_json::Value>>(text) {
                    Ok(mut object) => {
                        object.insert("reason".to_owned(), reason.into());
                        serde_json::to_writer(&mut output, &object)?;
                    }
                    Err(_) => output.write_all(text)?,
                }
                output.write_all(b"\n")?;
                continue;
            }
            let fields = records.record.len().min(if has_reason { columns } else { usize::MAX });
            let padding = columns.saturating_sub(fields);
            let record = records.record.iter().take(fields).chain(std::iter::repeat_n(&b""[..], padding));
            writer.write_record(record.chain([reason.as_bytes()]))?;
            if writer.get_ref().len() > 1 << 16 {
                writer.flush()?;
                output.write_all(writer.get_ref())?;
                writer = csv::WriterBuilder::new().delimiter(delimiter).flexible(true).from_writer(Vec::new());
            }
        }
        output.write_all(&writer.into_inner().map_err(|error| anyhow!("{error}"))?)?;
        output.flush()?;
        Ok(())
    }
}

/// Returns the order of a record.
pub fn order_of<'a>(record: &'a csv::ByteRecord, at: &[usize], layout: &Layout) -> Option<&'a str> {
    at.iter().find_map(|at| {
        let text = record.get(*at).and_then(|bytes| std::str::from_utf8(bytes).ok())?;
        layout.value(&Field::OrderRef, text)
    })
}
