//! The records of a file: lines of CSV or NDJSON, with their numbers, and what cannot be read.
//!
//! The CSV reader accepts everything, also a quote that does not end and swallows the lines after it. [`Watch`] looks
//! at the same bytes and finds quotes that are wrong, so that such a record is not taken for a whole one.

use std::collections::{BTreeSet, VecDeque};
use std::io::{BufRead, BufReader, Read};
use std::sync::atomic::{AtomicU8, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use encoding_rs::{Encoding, UTF_8};
use serde_json::{Map, Value};

use crate::cli::import::arguments::{Arguments, Format};
use crate::cli::import::layout::{Columns, Layout};
use crate::cli::import::source::Source;

/// How much of a file is looked at to find its format.
const START_BYTES: usize = 256 << 10;
/// Longest line of NDJSON, in bytes.
const LINE_BYTES_MAX: u64 = 4 << 20;
/// Longest quoted field of CSV, in bytes. A longer one is a quote that does not end.
const FIELD_BYTES_MAX: u64 = 4 << 20;
/// Names of unknown members that are kept.
const UNKNOWN_MAX: usize = 100;
const BUFFER_BYTES: usize = 64 << 10;

/// The shape of a file.
#[derive(Debug, Clone)]
pub struct Shape {
    /// Encoding of the text.
    pub encoding: &'static Encoding,
    /// CSV or NDJSON.
    pub kind: Kind,
    /// Where the fields are in a record.
    pub columns: Columns,
}

/// The format of a file.
#[derive(Debug, Clone)]
pub enum Kind {
    /// A CSV file.
    Csv {
        /// The delimiter.
        delimiter: u8,
        /// The names of the columns.
        header: csv::StringRecord,
        /// Whether a line `sep=;` of Excel comes before the header.
        has_sep_line: bool,
        /// Whether lines end with CR and LF.
        is_crlf: bool,
    },
    /// A file with one JSON object per line. A record has the values of these members.
    Ndjson {
        /// The names of the members that a field can use.
        names: Vec<String>,
    },
}

/// The next record of a file.
pub enum Next {
    /// A record.
    Record,
    /// A record that cannot be read, and the reason.
    Unreadable(String),
    /// The file cannot be read further, because it is cut or damaged.
    Broken(String),
    /// The file has ended.
    End,
}

/// Finds the shape of a file.
///
/// # Errors
/// The file has no header, or a column is missing.
pub fn shape(
    source: &Source,
    encoding: &'static Encoding,
    layout: &Layout,
    arguments: &Arguments,
) -> anyhow::Result<Shape> {
    let mut start = Vec::new();
    let _ = source.text(encoding)?.take(START_BYTES as u64).read_to_end(&mut start);
    let text = String::from_utf8_lossy(&start);
    let text = text.trim_start_matches('\u{feff}');
    let first = text.trim_start().chars().next();
    let Some(first) = first else { return Err(source.usage("The file is empty.")) };
    let is_ndjson = match arguments.format {
        Format::Auto => first == '{',
        Format::Csv => false,
        Format::Ndjson => true,
    };
    if first == '[' && arguments.format != Format::Csv {
        return Err(source.usage("It is a JSON array. Write one object per line: jq -c '.[]' FILE | docket import -"));
    }
    if is_ndjson {
        let names: Vec<String> = layout.column_names().into_iter().map(str::to_owned).collect();
        let columns = layout.columns(&names.iter().map(String::as_str).collect::<Vec<_>>());
        let columns = columns.map_err(|reason| source.usage(reason))?;
        return Ok(Shape { encoding, kind: Kind::Ndjson { names }, columns });
    }
    let first_line = text.lines().next().unwrap_or_default();
    let sep = first_line.strip_prefix("sep=").and_then(|sep| sep.bytes().next()).filter(u8::is_ascii);
    let body = if sep.is_some() { text.split_once('\n').map_or("", |(_, rest)| rest) } else { text };
    let header_of = |delimiter: u8| {
        let mut reader = csv::ReaderBuilder::new().delimiter(delimiter).flexible(true).from_reader(body.as_bytes());
        reader.headers().cloned().unwrap_or_default()
    };
    let (delimiter, header) = match arguments.delimiter.or(sep) {
        Some(delimiter) => (delimiter, header_of(delimiter)),
        None => {
            // The delimiter with which most fields are found, and of those the one with most columns.
            let all = [b',', b';', b'\t', b'|'].map(|delimiter| (delimiter, header_of(delimiter)));
            let score = |header: &csv::StringRecord| (layout.matches(&header.iter().collect::<Vec<_>>()), header.len());
            let best = all.into_iter().rev().max_by_key(|(_, header)| score(header));
            best.unwrap_or((b',', csv::StringRecord::new()))
        }
    };
    let columns = layout.columns(&header.iter().collect::<Vec<_>>()).map_err(|reason| source.usage(reason))?;
    let has_sep_line = sep.is_some();
    let is_crlf = body.split_once('\n').is_some_and(|(line, _)| line.ends_with('\r'));
    Ok(Shape { encoding, kind: Kind::Csv { delimiter, header, has_sep_line, is_crlf }, columns })
}

/// Reads the records of a file.
pub struct Records {
    reader: Reader,
    is_utf8: bool,
    watched: Arc<Watched>,
    /// The record that was read last.
    pub record: csv::ByteRecord,
    /// Number of the record's first line, from 1.
    pub line: u64,
    /// Members of NDJSON that no field uses.
    pub unknown: BTreeSet<String>,
}

enum Reader {
    Csv { reader: Box<csv::Reader<Watch<Box<dyn Read + Send>>>>, columns: usize, lines_before: u64, is_crlf: bool },
    Ndjson { reader: BufReader<Watch<Box<dyn Read + Send>>>, names: Vec<String>, text: Vec<u8>, line: u64 },
}

impl Records {
    /// Reads a file from its beginning. The header of a CSV file is not a record.
    ///
    /// # Errors
    /// The file cannot be read.
    pub fn open(source: &Source, shape: &Shape) -> anyhow::Result<Self> {
        let mut text = source.text(shape.encoding)?;
        let watched = Arc::new(Watched::default());
        let reader = match &shape.kind {
            Kind::Csv { delimiter, header, has_sep_line, is_crlf } => {
                if *has_sep_line {
                    skip_line(&mut text);
                }
                let watch = Watch::new(text, Some(*delimiter), watched.clone());
                let reader = csv::ReaderBuilder::new()
                    .delimiter(*delimiter)
                    .flexible(true)
                    .has_headers(false)
                    .buffer_capacity(BUFFER_BYTES)
                    .from_reader(watch);
                let lines_before = u64::from(*has_sep_line);
                Reader::Csv { reader: Box::new(reader), columns: header.len(), lines_before, is_crlf: *is_crlf }
            }
            Kind::Ndjson { names } => {
                let watch = Watch::new(text, None, watched.clone());
                let reader = BufReader::with_capacity(BUFFER_BYTES, watch);
                Reader::Ndjson { reader, names: names.clone(), text: Vec::new(), line: 0 }
            }
        };
        let mut records = Self {
            reader,
            is_utf8: shape.encoding == UTF_8,
            watched,
            record: csv::ByteRecord::new(),
            line: 0,
            unknown: BTreeSet::new(),
        };
        if matches!(records.reader, Reader::Csv { .. }) {
            // The header. Its quotes were read by `shape`.
            let _ = records.read();
        }
        Ok(records)
    }

    /// Whether the text ended without a line break. Valid at the end of the file.
    pub fn ends_without_newline(&self) -> bool {
        !matches!(self.watched.last.load(Ordering::Relaxed), b'\n' | b'\r')
    }

    /// Returns the text of the line that was read last, in a file of NDJSON.
    pub fn json_text(&self) -> Option<&[u8]> {
        match &self.reader {
            Reader::Csv { .. } => None,
            Reader::Ndjson { text, .. } => Some(text.trim_ascii()),
        }
    }

    /// Reads the next record that is not blank.
    pub fn read(&mut self) -> Next {
        loop {
            let next = match &mut self.reader {
                Reader::Csv { reader, columns, lines_before, is_crlf } => {
                    let read = reader.read_byte_record(&mut self.record);
                    match read {
                        Err(error) => return Next::Broken(broken(&error)),
                        Ok(false) => return Next::End,
                        Ok(true) => {
                            let end = reader.position().byte();
                            // The reader is after LF, or between CR and LF, or at the end of the file.
                            let is_after_line = !*is_crlf && !self.watched.ends_within_line(end);
                            let within = self.record.as_slice().iter().filter(|byte| **byte == b'\n').count() as u64;
                            let last = reader.position().line() - u64::from(is_after_line);
                            self.line = last.saturating_sub(within) + *lines_before;
                            let is_blank = self.record.iter().all(|field| field.trim_ascii().is_empty());
                            match self.watched.fault_before(end) {
                                Some(fault) => Next::Unreadable(fault_text(fault + *lines_before)),
                                None if is_blank => continue,
                                None if self.record.len() != *columns => Next::Unreadable(format!(
                                    "The line has {} fields, and the header {columns}.",
                                    self.record.len()
                                )),
                                None => Next::Record,
                            }
                        }
                    }
                }
                Reader::Ndjson { reader, names, text, line } => {
                    text.clear();
                    match reader.by_ref().take(LINE_BYTES_MAX).read_until(b'\n', text) {
                        Err(error) => return Next::Broken(error.to_string()),
                        Ok(0) => return Next::End,
                        Ok(_) => {}
                    }
                    *line += 1;
                    self.line = *line;
                    if text.len() as u64 == LINE_BYTES_MAX && !text.ends_with(b"\n") {
                        return Next::Broken("The line is longer than 4 MiB.".to_owned());
                    }
                    if text.trim_ascii().is_empty() {
                        continue;
                    }
                    match members(text, names, &mut self.record, &mut self.unknown) {
                        Ok(()) => Next::Record,
                        Err(reason) => Next::Unreadable(reason),
                    }
                }
            };
            return match next {
                Next::Record if self.is_utf8 && std::str::from_utf8(self.record.as_slice()).is_err() => {
                    Next::Unreadable("The line is not valid UTF-8. Set the encoding with --encoding.".to_owned())
                }
                Next::Record if !self.is_utf8 && has_replacement(self.record.as_slice()) => {
                    Next::Unreadable("The line is not valid in the encoding of the file.".to_owned())
                }
                next => next,
            };
        }
    }

    /// Whether the last record is not valid UTF-8, in a file that is read as UTF-8.
    pub fn is_not_utf8(&self) -> bool {
        let bytes: &[u8] = match &self.reader {
            Reader::Csv { .. } => self.record.as_slice(),
            Reader::Ndjson { text, .. } => text,
        };
        self.is_utf8 && std::str::from_utf8(bytes).is_err()
    }
}

fn broken(error: &csv::Error) -> String {
    match error.kind() {
        csv::ErrorKind::Io(error) => error.to_string(),
        _ => error.to_string(),
    }
}

fn fault_text(line: u64) -> String {
    format!("A quote in line {line} does not end, or ends within a field. Write a quote within a quoted field twice.")
}

fn has_replacement(bytes: &[u8]) -> bool {
    bytes.windows(3).any(|window| window == "\u{fffd}".as_bytes())
}

fn skip_line(reader: &mut dyn Read) {
    let mut byte = [0];
    while matches!(reader.read(&mut byte), Ok(1)) && byte[0] != b'\n' {}
}

/// Puts the members of a JSON object into a record, in the order of `names`.
fn members(
    text: &[u8],
    names: &[String],
    record: &mut csv::ByteRecord,
    unknown: &mut BTreeSet<String>,
) -> Result<(), String> {
    record.clear();
    let text = text.strip_prefix("\u{feff}".as_bytes()).unwrap_or(text);
    let mut object: Map<String, Value> =
        serde_json::from_slice(text).map_err(|error| format!("The line is not a JSON object: {error}."))?;
    for name in names {
        match object.remove(name) {
            None | Some(Value::Null) => record.push_field(b""),
            Some(Value::String(text)) => record.push_field(text.as_bytes()),
            Some(Value::Number(number)) => record.push_field(plain(&number).as_bytes()),
            Some(Value::Bool(value)) => record.push_field(value.to_string().as_bytes()),
            Some(Value::Array(_) | Value::Object(_)) => {
                return Err(format!("{name}: The value must be a text or a number."));
            }
        }
    }
    for name in object.into_iter().map(|(name, _)| name).filter(|name| name != "reason") {
        if unknown.len() < UNKNOWN_MAX {
            unknown.insert(name);
        }
    }
    Ok(())
}

/// Writes a number of JSON so that its point cannot be taken for a separator of thousands.
fn plain(number: &serde_json::Number) -> String {
    let text = number.to_string();
    match text.split_once('.') {
        Some((whole, "0")) => whole.to_owned(),
        Some((_, decimals)) if decimals.len() == 3 => text + "0",
        _ => text,
    }
}

/// What was seen in the bytes of a file.
#[derive(Default)]
struct Watched {
    /// Offset and line of each wrong quote, in the order of the file.
    faults: Mutex<VecDeque<(u64, u64)>>,
    /// The length of `faults`.
    count: AtomicUsize,
    /// The last byte.
    last: AtomicU8,
    /// Number of bytes.
    bytes: AtomicU64,
}

impl Watched {
    /// Whether an offset is the end of the file, after a line without a line break.
    fn ends_within_line(&self, offset: u64) -> bool {
        offset == self.bytes.load(Ordering::Relaxed) && self.last.load(Ordering::Relaxed) != b'\n'
    }

    /// Removes the faults before an offset, and returns the line of the first one.
    fn fault_before(&self, end: u64) -> Option<u64> {
        if self.count.load(Ordering::Relaxed) == 0 {
            return None;
        }
        let mut faults = self.faults.lock().unwrap_or_else(PoisonError::into_inner);
        let first = faults.front().copied().filter(|(offset, _)| *offset < end);
        while faults.front().is_some_and(|(offset, _)| *offset < end) {
            faults.pop_front();
        }
        self.count.store(faults.len(), Ordering::Relaxed);
        first.map(|(_, line)| line)
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum State {
    FieldStart,
    Unquoted,
    Quoted,
    QuoteInQuoted,
}

/// Looks at the bytes of a CSV file while they are read, and finds wrong quotes.
struct Watch<R> {
    inner: R,
    /// `None`: quotes are not looked at.
    delimiter: Option<u8>,
    watched: Arc<Watched>,
    state: State,
    line: u64,
    offset: u64,
    /// Offset and line of the last quote that began a field.
    opened: (u64, u64),
}

impl<R> Watch<R> {
    fn new(inner: R, delimiter: Option<u8>, watched: Arc<Watched>) -> Self {
        Self { inner, delimiter, watched, state: State::FieldStart, line: 1, offset: 0, opened: (0, 1) }
    }

    fn fault(&mut self) {
        let mut faults = self.watched.faults.lock().unwrap_or_else(PoisonError::into_inner);
        if faults.back() != Some(&self.opened) {
            faults.push_back(self.opened);
        }
        self.watched.count.store(faults.len(), Ordering::Relaxed);
    }

    fn look(&mut self, bytes: &[u8], delimiter: u8) {
        // Most text has no quotes. Its lines are counted fast.
        if matches!(self.state, State::FieldStart | State::Unquoted)
            && let Some(last) = bytes.last()
            && !bytes.contains(&b'"')
        {
            self.line += bytes.iter().filter(|byte| **byte == b'\n').count() as u64;
            self.offset += bytes.len() as u64;
            let starts = *last == delimiter || matches!(last, b'\n' | b'\r');
            self.state = if starts { State::FieldStart } else { State::Unquoted };
            return;
        }
        for byte in bytes {
            let ends = *byte == delimiter || matches!(byte, b'\n' | b'\r');
            self.state = match (self.state, byte) {
                (State::FieldStart, b'"') => {
                    self.opened = (self.offset, self.line);
                    State::Quoted
                }
                (State::Quoted, b'"') => State::QuoteInQuoted,
                (State::QuoteInQuoted, b'"') | (State::Quoted, _) => State::Quoted,
                (_, _) if ends => State::FieldStart,
                (State::QuoteInQuoted, _) => {
                    self.fault();
                    State::Unquoted
                }
                (State::FieldStart | State::Unquoted, _) => State::Unquoted,
            };
            self.line += u64::from(*byte == b'\n');
            self.offset += 1;
        }
    }
}

impl<R: Read> Read for Watch<R> {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        let read = self.inner.read(buffer)?;
        if let Some(last) = buffer[..read].last() {
            self.watched.last.store(*last, Ordering::Relaxed);
            self.watched.bytes.fetch_add(read as u64, Ordering::Relaxed);
        }
        if let Some(delimiter) = self.delimiter {
            self.look(&buffer[..read], delimiter);
            if self.state == State::Quoted && self.offset - self.opened.0 > FIELD_BYTES_MAX {
                return Err(std::io::Error::other(format!("a quote in line {} does not end", self.opened.1)));
            }
            if read == 0 && self.state == State::Quoted {
                self.state = State::FieldStart;
                self.fault();
            }
        }
        Ok(read)
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use clap::Parser;

    use super::*;
    use crate::cli::import::layout::Preset;

    #[derive(Parser)]
    struct Cli {
        #[command(flatten)]
        arguments: Arguments,
    }

    /// Returns the lines of a file with the first two fields of each record, or the reason why it cannot be read.
    fn read(text: &str) -> Vec<(u64, Result<String, String>)> {
        let mut file = tempfile::NamedTempFile::new().unwrap();
        file.write_all(text.as_bytes()).unwrap();
        let source = Source::open(file.path()).unwrap();
        let arguments = Cli::parse_from(["docket", "-"]).arguments;
        let layout = Layout::new(Preset::Docket, &[], &[], true).unwrap();
        let shape = shape(&source, UTF_8, &layout, &arguments).unwrap();
        let mut records = Records::open(&source, &shape).unwrap();
        let mut all = Vec::new();
        loop {
            let read = match records.read() {
                Next::Record => {
                    let fields: Vec<_> = records.record.iter().take(2).map(String::from_utf8_lossy).collect();
                    Ok(fields.join("|"))
                }
                Next::Unreadable(reason) => Err(reason),
                Next::Broken(reason) => panic!("{reason}"),
                Next::End => return all,
            };
            all.push((records.line, read));
        }
    }

    const HEADER: &str = "order_ref,customer_ref,sku,product_name,quantity,unit_price";

    fn good(line: u64, text: &str) -> (u64, Result<String, String>) {
        (line, Ok(text.to_owned()))
    }

    #[test]
    fn records_have_the_numbers_of_their_lines() {
        for newline in ["\n", "\r\n"] {
            let lines =
                [HEADER, "a,ada,pen,\"A \"\"pen\"\"\",1,1", "", "b,ada,pen,5\" pipe,1,1", ",,,,,", "c,ada,pen,,1,1"];
            assert_eq!(
                read(&lines.join(newline)),
                [good(2, "a|ada"), good(4, "b|ada"), good(6, "c|ada")],
                "{newline:?}"
            );
        }
        let within = format!("{HEADER}\na,ada,pen,\"two\nlines\",1,1\nb,ada,pen,,1,1\n");
        assert_eq!(read(&within), [good(2, "a|ada"), good(4, "b|ada")]);
    }

    #[test]
    fn a_wrong_quote_makes_the_record_unreadable() {
        // Without a look at the quotes, this is one record with the right number of fields.
        let text = format!("{HEADER}\na,ada,pen,\"Pen,1,1\na,ada,cup,\"Cup\",3,2\nb,ada,pen,Pen,1,1\n");
        let all = read(&text);
        assert!(matches!(&all[0], (2, Err(reason)) if reason.contains("A quote in line 2")), "{all:?}");
        assert_eq!(all.last(), Some(&good(4, "b|ada")));
        // A quote that never ends.
        let all = read(&format!("{HEADER}\na,ada,pen,Pen,1,1\nb,ada,\"pen,Pen,1,1\nc,ada,pen,Pen,1,1"));
        assert_eq!(all[0], good(2, "a|ada"));
        assert!(matches!(&all[1..], [(3, Err(reason))] if reason.contains("A quote in line 3")), "{all:?}");
        let all = read(&format!("{HEADER}\na,ada,pen,Pen,1,\"1"));
        assert!(matches!(&all[..], [(2, Err(reason))] if reason.contains("A quote in line 2")), "{all:?}");
    }

    #[test]
    fn a_line_with_other_fields_is_unreadable() {
        let all = read(&format!("{HEADER}\na,ada,pen,Pen, red,1,1\nb,ada,pen,Pen,1,1\nc,ada\n"));
        assert!(matches!(&all[..], [(2, Err(_)), (3, Ok(_)), (4, Err(_))]), "{all:?}");
    }

    #[test]
    fn the_delimiter_is_found() {
        for delimiter in [",", ";", "\t", "|"] {
            let text = format!("{HEADER}\na,ada,pen,,1,2\n").replace(',', delimiter);
            assert_eq!(read(&text), [good(2, "a|ada")], "{delimiter:?}");
        }
        let text = format!("sep=;\n{HEADER}\na,ada,pen,,1,2\n").replace(',', ";");
        assert_eq!(read(&text), [good(3, "a|ada")]);
    }

    #[test]
    fn objects_are_records() {
        let text = "{\"order_ref\": 7, \"customer_ref\": \"ada\", \"sku\": null, \"x\": 1}\n\n{\"order_ref\": 7.50\n";
        let all = read(text);
        assert!(matches!(&all[..], [(1, Ok(first)), (3, Err(_))] if first == "7|ada"), "{all:?}");
    }
}
