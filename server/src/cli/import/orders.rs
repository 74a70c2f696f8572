//! Groups the lines of a file into whole orders.
//!
//! [`survey`] reads the file once and counts the lines of each order. [`read`] reads it again, and passes on an order when
//! it has all of them. So the lines of an order may be anywhere in the file, and an order that is not whole is never
//! passed on. An order for which there is no room waits for another pass.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::sync::Arc;

use anyhow::bail;
use compact_str::CompactString;
use jiff::Timestamp;
use serde::Serialize;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};

use crate::cli::import::arguments::Arguments;
use crate::cli::import::layout::{Columns, Field, Layout, Meaning};
use crate::cli::import::numbers::{Evidence, Mark, Number, is_symbol_of};
use crate::cli::import::records::{Kind, Next, Records, Shape};
use crate::cli::import::report::{Fault, order_of};
use crate::cli::import::source::Source;
use crate::cli::import::times::Times;

/// Bytes of orders of which lines are missing. An order that would exceed it is read in the next pass.
const OPEN_BYTES_MAX: u64 = 64 << 20;
/// Bytes of whole orders that wait for the server.
const SENDING_BYTES_MAX: usize = 64 << 20;
/// Most whole orders that wait for the server.
const SENDING_ORDERS_MAX: usize = 1_024;
/// Bytes that each order that waits is charged at least, so that both limits hold.
const ORDER_BYTES_MIN: usize = SENDING_BYTES_MAX / SENDING_ORDERS_MAX;
/// Bytes that a line costs in addition to its text.
const LINE_OVERHEAD_BYTES: u64 = 160;
/// Largest text of an order. The server accepts a command of 1 MiB.
const ORDER_TEXT_BYTES_MAX: u64 = 8 << 20;

/// What the first pass has found.
pub struct Survey {
    index: HashMap<CompactString, u32>,
    orders: Vec<Entry>,
    /// Lines of the file.
    pub lines: u64,
    /// The decimal mark of the numbers.
    pub mark: Mark,
    /// Lines that cannot be read.
    pub faults: Vec<Fault>,
    /// Members of NDJSON that no field uses.
    pub unknown: BTreeSet<String>,
    /// The last line, if it may be cut.
    cut_line: Option<u64>,
    unread_lines: u64,
}

impl Survey {
    /// Returns the number of orders.
    pub fn orders(&self) -> u64 {
        self.orders.len() as u64
    }

    /// Returns the number of lines that are counted with no order.
    pub fn unread_lines(&self) -> u64 {
        self.unread_lines
    }
}

#[derive(Debug, Clone, Copy)]
struct Entry {
    /// Lines that belong to the order and can be read.
    lines: u32,
    /// Bytes of these lines, with their overhead.
    bytes: u32,
    state: State,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    /// No line was read in the second pass.
    Waiting,
    /// Some lines were read.
    Open,
    /// All lines were read.
    Done,
    /// A line that cannot be read may belong to the order.
    Refused,
}

/// The first pass failed.
pub enum SurveyError {
    /// The file is not UTF-8.
    NotUtf8,
    /// Nothing can be imported.
    Failed(anyhow::Error),
}

impl From<anyhow::Error> for SurveyError {
    fn from(error: anyhow::Error) -> Self {
        Self::Failed(error)
    }
}

/// Reads a file for the first time: counts the lines of each order, finds the decimal mark, and finds lines that cannot
/// be read.
///
/// # Errors
/// The file is not UTF-8 though it was taken for it; or nothing can be imported, because no order is known to be whole.
pub fn survey(
    source: &Source,
    shape: &Shape,
    layout: &Layout,
    arguments: &Arguments,
    on_line: &dyn Fn(u64),
) -> Result<Survey, SurveyError> {
    let mut records = Records::open(source, shape)?;
    let order_at = shape.columns.of(&Field::OrderRef);
    let price_at = [shape.columns.of(&Field::UnitPrice), shape.columns.of(&Field::LineTotal)].concat();
    let quantity_at = shape.columns.of(&Field::Quantity);
    let (mut prices, mut quantities) = (Evidence::default(), Evidence::default());
    let mut survey = Survey {
        index: HashMap::new(),
        orders: Vec::new(),
        lines: 0,
        mark: Mark::Dot,
        faults: Vec::new(),
        unknown: BTreeSet::new(),
        cut_line: None,
        unread_lines: 0,
    };
    let mut neighbours = Neighbours::default();
    // The order of the last line, so that the index is not needed for each line.
    let mut last: Option<(CompactString, u32)> = None;
    let (mut last_line, mut is_spread) = (0, false);
    loop {
        let unreadable = match records.read() {
            Next::End => break,
            Next::Broken(reason) => {
                let line = records.line.max(last_line) + 1;
                if !arguments.partial {
                    return Err(SurveyError::Failed(source.usage(format!(
                        "The file cannot be read after line {last_line}: it is cut or damaged ({reason}). Nothing was \
                         imported. Get the whole file, or import the lines that can be read with --partial."
                    ))));
                }
                survey.faults.push(Fault { line, order_ref: String::new(), reason: cut(&reason) });
                break;
            }
            Next::Unreadable(_) if records.is_not_utf8() && arguments.encoding.is_none() => {
                return Err(SurveyError::NotUtf8);
            }
            Next::Unreadable(reason) => Some(reason),
            Next::Record => None,
        };
        survey.lines += 1;
        on_line(survey.lines);
        last_line = records.line;
        let order_ref = order_of(&records.record, &order_at, layout);
        let reason = unreadable.or_else(|| order_ref.is_none().then(|| "order_ref: The value is missing.".to_owned()));
        if let Some(reason) = reason {
            let order_ref = order_ref.unwrap_or_default().to_owned();
            survey.unread_lines += 1;
            neighbours.unreadable(last.as_ref().map(|(name, order)| (name.as_str(), *order)), &order_ref);
            survey.faults.push(Fault { line: records.line, order_ref, reason: reason.into() });
            continue;
        }
        let Some(order_ref) = order_ref else { continue };
        let order = match &last {
            Some((known, order)) if known == order_ref => *order,
            _ => {
                let next = survey.orders.len() as u32;
                let order = *survey.index.entry(order_ref.into()).or_insert(next);
                match order == next {
                    true => survey.orders.push(Entry { lines: 0, bytes: 0, state: State::Waiting }),
                    false => is_spread = true,
                }
                last = Some((order_ref.into(), order));
                order
            }
        };
        neighbours.at(order, order_ref);
        let entry = &mut survey.orders[order as usize];
        let bytes = records.record.as_slice().len() as u64 + LINE_OVERHEAD_BYTES;
        (entry.lines, entry.bytes) = (entry.lines + 1, entry.bytes.saturating_add(bytes as u32));
        let value = |at: &[usize]| {
            let fields = at.iter().filter_map(|at| std::str::from_utf8(records.record.get(*at)?).ok());
            fields.map(str::trim).find(|text| !text.is_empty())
        };
        if let Some(price) = value(&price_at) {
            prices.observe(records.line, price);
        }
        if let Some(quantity) = value(&quantity_at) {
            quantities.observe(records.line, quantity);
        }
    }
    neighbours.finish();
    // Prices show the mark. Without one, a quantity such as 1,500 must be clear as well.
    let found = if prices.is_empty() { quantities.mark() } else { prices.mark() };
    survey.mark = match arguments.decimal_mark.given() {
        Some(mark) => mark,
        None => found.map_err(|reason| SurveyError::Failed(source.usage(reason)))?,
    };
    let is_csv = matches!(shape.kind, Kind::Csv { .. });
    let may_be_cut = is_csv && survey.lines > 0 && records.ends_without_newline() && !arguments.no_final_newline;
    if may_be_cut && survey.faults.last().is_none_or(|fault| fault.line < last_line) {
        if is_spread && !arguments.partial {
            return Err(SurveyError::Failed(source.usage(
                "The last line does not end with a line break, so the file may be cut, and the lines of an order are \
                 not together. Nothing was imported. If the file is whole, use --no-final-newline.",
            )));
        }
        if let Some((order_ref, order)) = last {
            let reason = "The last line does not end with a line break, so it may be cut. If it is whole, use \
                          --no-final-newline.";
            survey.faults.push(Fault { line: last_line, order_ref: order_ref.into(), reason: reason.into() });
            survey.cut_line = Some(last_line);
            let entry = &mut survey.orders[order as usize];
            if arguments.partial {
                survey.unread_lines += 1;
                entry.lines -= 1;
            }
            if entry.lines == 0 || !arguments.partial {
                entry.state = State::Refused;
            }
        }
    }
    if !arguments.partial {
        if is_spread && neighbours.has_unknown {
            let fault = survey.faults.first();
            let (line, reason) = fault.map_or((0, ""), |fault| (fault.line, &*fault.reason));
            return Err(SurveyError::Failed(source.usage(format!(
                "Line {line} cannot be read: {reason} The lines of an order are not together in this file, so the line \
                 may belong to any order. Nothing was imported. Correct the line, or use --partial."
            ))));
        }
        for order in neighbours.refused {
            survey.orders[order as usize].state = State::Refused;
        }
    }
    survey.unknown = std::mem::take(&mut records.unknown);
    Ok(survey)
}

fn cut(reason: &str) -> Arc<str> {
    format!("The file cannot be read from here on: it is cut or damaged ({reason}).").into()
}

/// The orders that lines which cannot be read may belong to: that of the line before and that of the line after.
#[derive(Default)]
struct Neighbours {
    refused: HashSet<u32>,
    /// The order before, and the order that the line seems to name, until the next line is known.
    pending: Vec<(Option<u32>, String)>,
    /// Whether the order of a line is not known for certain.
    has_unknown: bool,
}

impl Neighbours {
    /// A line cannot be read. It belongs to the order of the line before if it seems to name that order.
    fn unreadable(&mut self, before: Option<(&str, u32)>, named: &str) {
        match before {
            Some((name, order)) if name == named => {
                self.refused.insert(order);
            }
            before => self.pending.push((before.map(|(_, order)| order), named.to_owned())),
        }
    }

    /// The next line that can be read belongs to `order`.
    fn at(&mut self, order: u32, order_ref: &str) {
        for (before, named) in self.pending.drain(..) {
            self.refused.insert(order);
            if named != order_ref {
                self.refused.extend(before);
                self.has_unknown = true;
            }
        }
    }

    /// The file ends.
    fn finish(&mut self) {
        for (before, _) in self.pending.drain(..) {
            self.refused.extend(before);
            self.has_unknown = true;
        }
    }
}

/// An item of an order, as JSON.
pub struct Item {
    /// Number of its line in the file.
    pub line: u64,
    /// The item of a command.
    pub json: String,
}

/// A whole order.
pub struct Order {
    /// Id of the order.
    pub order_ref: String,
    /// Its first line in the file.
    pub line: u64,
    /// Number of its lines in the file.
    pub lines: u64,
    /// The members of the command, except the items.
    pub head: Head,
    /// The items.
    pub items: Vec<Item>,
    /// How often the server had no capacity for it.
    pub tries: u32,
    /// Its share of [`SENDING_BYTES_MAX`].
    _permit: OwnedSemaphorePermit,
}

/// The members of an order's command that are the same for all its items.
#[derive(Debug, Serialize)]
pub struct Head {
    /// Id of the order.
    pub order_id: String,
    /// Id of the customer.
    pub customer_id: String,
    /// ISO 4217 code.
    pub currency: String,
    /// Labels.
    #[serde(skip_serializing_if = "serde_json::Map::is_empty")]
    pub attributes: serde_json::Map<String, serde_json::Value>,
    /// When the order was placed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub occurred_at: Option<Timestamp>,
    /// `draft`, `confirmed` or `cancelled`.
    pub status: &'static str,
    /// Reason of a cancellation.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
}

/// What the second pass has found, apart from the orders that it passed on.
#[derive(Default)]
pub struct Reading {
    /// Faults of lines.
    pub faults: Vec<Fault>,
    /// Orders that were not passed on because of a fault.
    pub refused: HashSet<String>,
    /// Lines that were not passed on because of a fault.
    pub rejected_lines: u64,
    /// Orders with a status that is skipped.
    pub skipped: u64,
}

/// Reads a file again, and sends its whole orders to `orders`.
///
/// # Errors
/// The file cannot be read.
pub fn read(
    source: &Source,
    shape: &Shape,
    layout: &Layout,
    arguments: &Arguments,
    survey: &mut Survey,
    orders: &mpsc::Sender<Order>,
    on_line: &dyn Fn(u64),
) -> anyhow::Result<Reading> {
    let times = Times { format: arguments.date_format.clone(), zone: arguments.timezone.clone() };
    let rules = Rules { at: At::new(&shape.columns), layout, arguments, times, mark: survey.mark };
    let mut reading = Reading::default();
    let mut names: HashMap<u32, CompactString> = HashMap::new();
    if !arguments.partial {
        let refused = |order: &u32| survey.orders[*order as usize].state == State::Refused;
        let refused = survey.index.iter().filter(|(_, order)| refused(order));
        for (name, order) in refused {
            reading.rejected_lines += u64::from(survey.orders[*order as usize].lines);
            reading.refused.insert(name.to_string());
        }
    }
    for (name, order) in &survey.index {
        let entry = &mut survey.orders[*order as usize];
        if u64::from(entry.bytes) > ORDER_TEXT_BYTES_MAX && entry.state == State::Waiting {
            entry.state = State::Refused;
            reading.rejected_lines += u64::from(entry.lines);
            reading.refused.insert(name.to_string());
            names.insert(*order, name.clone());
        }
    }
    let sending = Arc::new(Semaphore::new(SENDING_BYTES_MAX));
    let runtime = tokio::runtime::Handle::current();
    let (mut lines, mut is_first_pass, mut has_changed) = (0, true, false);
    loop {
        let mut records = Records::open(source, shape)?;
        let mut open: HashMap<u32, Draft> = HashMap::new();
        let (mut open_bytes, mut is_deferred) = (0_u64, false);
        let mut last: Option<(CompactString, u32)> = None;
        loop {
            match records.read() {
                Next::End | Next::Broken(_) => break,
                Next::Unreadable(_) => continue,
                Next::Record => {}
            }
            lines += 1;
            on_line(lines);
            if survey.cut_line == Some(records.line) {
                continue;
            }
            let Some(order_ref) = order_of(&records.record, &rules.at.order, layout) else { continue };
            let order = match &last {
                Some((known, order)) if known == order_ref => *order,
                _ => {
                    let Some(order) = survey.index.get(order_ref).copied() else { continue };
                    last = Some((order_ref.into(), order));
                    order
                }
            };
            let entry = &mut survey.orders[order as usize];
            match entry.state {
                State::Done => {
                    // Lines that the survey did not see.
                    has_changed |= is_first_pass;
                    continue;
                }
                State::Refused => {
                    if names.remove(&order).is_some() {
                        reading.faults.push(Fault {
                            line: records.line,
                            order_ref: order_ref.to_owned(),
                            reason: "The order is larger than 1 MiB.".into(),
                        });
                    }
                    continue;
                }
                State::Open => {}
                State::Waiting if !open.is_empty() && open_bytes + u64::from(entry.bytes) > OPEN_BYTES_MAX => {
                    is_deferred = true;
                    continue;
                }
                State::Waiting => {
                    entry.state = State::Open;
                    open_bytes += u64::from(entry.bytes);
                    open.insert(order, Draft::new(order_ref, records.line));
                }
            }
            let Some(draft) = open.get_mut(&order) else { continue };
            draft.add(&records.record, records.line, &rules);
            if draft.lines < u64::from(entry.lines) {
                continue;
            }
            entry.state = State::Done;
            open_bytes -= u64::from(entry.bytes);
            let bytes = (entry.bytes as usize).clamp(ORDER_BYTES_MIN, SENDING_BYTES_MAX);
            let Some(draft) = open.remove(&order) else { continue };
            let finished = draft.finish(&rules, &mut reading);
            if let Some((order_ref, line, lines, head, items)) = finished {
                let permit = runtime.block_on(sending.clone().acquire_many_owned(bytes as u32))?;
                let order = Order { order_ref, line, lines, head, items, tries: 0, _permit: permit };
                if orders.blocking_send(order).is_err() {
                    // The sender has stopped and reports the reason.
                    return Ok(reading);
                }
            }
        }
        is_first_pass = false;
        if !is_deferred {
            break;
        }
    }
    let is_missing = |entry: &Entry| matches!(entry.state, State::Waiting | State::Open);
    let missing = survey.orders.iter().filter(|entry| is_missing(entry)).count();
    if has_changed || missing > 0 {
        bail!(
            "the file changed while it was imported: {missing} orders were not sent, and others may lack lines. Import it again when it is complete"
        );
    }
    Ok(reading)
}

/// The columns of a file.
struct At {
    order: Vec<usize>,
    customer: Vec<usize>,
    placed_at: Vec<usize>,
    status: Vec<usize>,
    cancelled_at: Vec<usize>,
    cancel_reason: Vec<usize>,
    currency: Vec<usize>,
    sku: Vec<usize>,
    name: Vec<usize>,
    category: Vec<usize>,
    quantity: Vec<usize>,
    unit_price: Vec<usize>,
    line_total: Vec<usize>,
    attributes: Vec<(String, Vec<usize>)>,
}

impl At {
    fn new(columns: &Columns) -> Self {
        Self {
            order: columns.of(&Field::OrderRef),
            customer: columns.of(&Field::CustomerRef),
            placed_at: columns.of(&Field::PlacedAt),
            status: columns.of(&Field::Status),
            cancelled_at: columns.of(&Field::CancelledAt),
            cancel_reason: columns.of(&Field::CancelReason),
            currency: columns.of(&Field::Currency),
            sku: columns.of(&Field::Sku),
            name: columns.of(&Field::ProductName),
            category: columns.of(&Field::Department),
            quantity: columns.of(&Field::Quantity),
            unit_price: columns.of(&Field::UnitPrice),
            line_total: columns.of(&Field::LineTotal),
            attributes: columns.attributes.clone(),
        }
    }
}

/// How the lines of a file are read.
struct Rules<'a> {
    at: At,
    layout: &'a Layout,
    arguments: &'a Arguments,
    times: Times,
    mark: Mark,
}

/// A value of an order that a line has set.
type Once = Option<(String, u64)>;

/// An order of which lines are missing.
struct Draft {
    order_ref: String,
    line: u64,
    lines: u64,
    customer: Once,
    placed_at: Once,
    status: Once,
    cancelled_at: Once,
    cancel_reason: Once,
    currency: Once,
    symbol: Once,
    attributes: Vec<Once>,
    items: Vec<Item>,
    /// Faults of lines: with `--partial`, the order is imported without them.
    line_faults: Vec<(u64, String)>,
    /// Faults of the order as a whole.
    faults: Vec<(u64, String)>,
}

#[derive(Serialize)]
struct ItemJson<'a> {
    sku: &'a str,
    quantity: u64,
    unit_price: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    name: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    category: Option<&'a str>,
}

impl Draft {
    fn new(order_ref: &str, line: u64) -> Self {
        Self {
            order_ref: order_ref.to_owned(),
            line,
            lines: 0,
            customer: None,
            placed_at: None,
            status: None,
            cancelled_at: None,
            cancel_reason: None,
            currency: None,
            symbol: None,
            attributes: Vec::new(),
            items: Vec::new(),
            line_faults: Vec::new(),
            faults: Vec::new(),
        }
    }

    /// Adds a line. Values of the order may be in one of its lines or in all; two different values are a fault.
    fn add(&mut self, record: &csv::ByteRecord, line: u64, rules: &Rules<'_>) {
        self.lines += 1;
        let Rules { at, layout, .. } = rules;
        let value = |at: &[usize], field: &Field| -> Option<&str> {
            at.iter().find_map(|at| layout.value(field, std::str::from_utf8(record.get(*at)?).ok()?))
        };
        let faults = &mut self.faults;
        let mut set = |slot: &mut Once, name: &str, text: Option<&str>| match (slot, text) {
            (_, None) => {}
            (Some((known, _)), Some(text)) if known.as_str() == text => {}
            (Some((known, before)), Some(text)) => {
                faults.push((line, format!("{name}: `{text}` here, and `{known}` in line {before}.")));
            }
            (slot, Some(text)) => *slot = Some((text.to_owned(), line)),
        };
        set(&mut self.customer, "customer_ref", value(&at.customer, &Field::CustomerRef));
        set(&mut self.placed_at, "placed_at", value(&at.placed_at, &Field::PlacedAt));
        set(&mut self.status, "status", value(&at.status, &Field::Status));
        set(&mut self.cancelled_at, "cancelled_at", value(&at.cancelled_at, &Field::CancelledAt));
        set(&mut self.cancel_reason, "cancel_reason", value(&at.cancel_reason, &Field::CancelReason));
        set(&mut self.currency, "currency", value(&at.currency, &Field::Currency));
        self.attributes.resize(at.attributes.len(), None);
        for ((key, at), slot) in at.attributes.iter().zip(&mut self.attributes) {
            set(slot, key, value(at, &Field::Status));
        }
        let mut line_faults: Vec<String> = Vec::new();
        let sku = value(&at.sku, &Field::Sku);
        if sku.is_none() {
            line_faults.push("sku: The value is missing.".to_owned());
        }
        let quantity = number(value(&at.quantity, &Field::Quantity), rules.mark)
            .and_then(|(number, rest)| match (number.whole(), rest) {
                (Some(pieces), "") => Ok(pieces),
                _ => Err("The quantity must be a whole number from 1 to 1000000.".to_owned()),
            })
            .map_err(|reason| line_faults.push(format!("quantity: {reason}")));
        let unit_price = value(&at.unit_price, &Field::UnitPrice);
        let line_total = value(&at.line_total, &Field::LineTotal);
        let (price, symbol) = match (unit_price, line_total, &quantity) {
            (None, Some(text), Ok(pieces)) => number(Some(text), rules.mark)
                .and_then(|(total, symbol)| match total.divided(*pieces) {
                    Some(price) => Ok((price, symbol)),
                    // The server says what a quantity must be.
                    None if *pieces == 0 => Ok((total, symbol)),
                    None => Err(format!("{total} is not {pieces} times a price of at most three decimals.")),
                })
                .map_err(|reason| line_faults.push(format!("line_total: {reason}"))),
            (None, Some(_), Err(())) => Err(()),
            (text, ..) => number(text, rules.mark).map_err(|reason| line_faults.push(format!("unit_price: {reason}"))),
        }
        .map_or((None, None), |(price, symbol)| (Some(price), Some(symbol).filter(|symbol| !symbol.is_empty())));
        set(&mut self.symbol, "unit_price", symbol);
        if !line_faults.is_empty() {
            self.line_faults.push((line, line_faults.join(" ")));
            return;
        }
        if let (Some(sku), Ok(quantity), Some(price)) = (sku, quantity, price) {
            let unit_price = price.to_string();
            let name = value(&at.name, &Field::ProductName);
            let category = value(&at.category, &Field::Department);
            let item = ItemJson { sku, quantity, unit_price: &unit_price, name, category };
            let json = serde_json::to_string(&item).unwrap_or_default();
            self.items.push(Item { line, json });
        }
    }

    /// Returns the whole order; `None` when it has a fault, or a status that is skipped.
    fn finish(mut self, rules: &Rules<'_>, reading: &mut Reading) -> Option<(String, u64, u64, Head, Vec<Item>)> {
        let Rules { layout, arguments, times, at, .. } = rules;
        let text = |once: Once| once.map(|(text, _)| text);
        let mut meaning = Meaning::Confirmed;
        match layout.meaning(self.status.as_ref().map(|(text, _)| text.as_str())) {
            Ok(known) => meaning = known,
            Err(reason) => self.faults.push((self.status.as_ref().map_or(self.line, |(_, line)| *line), reason)),
        }
        if meaning == Meaning::Skip {
            reading.skipped += 1;
            return None;
        }
        if self.cancelled_at.is_some() {
            meaning = Meaning::Cancelled;
        }
        let mut occurred_at = None;
        if let Some((text, line)) = &self.placed_at {
            match times.parse(text) {
                Ok(at) => occurred_at = Some(at),
                Err(reason) => self.faults.push((*line, reason)),
            }
        }
        let currency = text(self.currency).map_or_else(|| arguments.currency.clone(), |code| code.to_uppercase());
        if let Some((symbol, line)) = &self.symbol
            && !is_symbol_of(symbol, &currency)
        {
            let reason = format!("unit_price: `{symbol}` is not a symbol of the order's currency, {currency}.");
            self.faults.push((*line, reason));
        }
        let customer = text(self.customer).or_else(|| arguments.customer.clone());
        if customer.is_none() {
            let reason = "customer_ref: The value is missing. Name a customer for such orders with --customer.";
            self.faults.push((self.line, reason.to_owned()));
        }
        let is_refused = !self.faults.is_empty() || (!self.line_faults.is_empty() && !arguments.partial);
        reading.rejected_lines += if is_refused { self.lines } else { self.line_faults.len() as u64 };
        self.faults.append(&mut self.line_faults);
        let faults = self.faults.into_iter();
        reading.faults.extend(faults.map(|(line, reason)| Fault {
            line,
            order_ref: self.order_ref.clone(),
            reason: reason.into(),
        }));
        if is_refused {
            reading.refused.insert(self.order_ref);
            return None;
        }
        let attributes = at.attributes.iter().zip(self.attributes);
        let attributes =
            attributes.filter_map(|((key, _), value)| Some((key.clone(), serde_json::Value::from(text(value)?))));
        let head = Head {
            order_id: self.order_ref.clone(),
            customer_id: customer.unwrap_or_default(),
            currency,
            attributes: attributes.collect(),
            occurred_at,
            // An order without a line cannot be confirmed. With `--partial` it stays an empty draft.
            status: if self.items.is_empty() && meaning == Meaning::Confirmed { "draft" } else { meaning.status() },
            reason: text(self.cancel_reason).filter(|_| meaning == Meaning::Cancelled),
        };
        Some((self.order_ref, self.line, self.lines, head, self.items))
    }
}

fn number(text: Option<&str>, mark: Mark) -> Result<(Number, &str), String> {
    Number::parse(text.unwrap_or_default(), mark)
}
