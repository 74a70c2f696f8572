//! The command line of `docket import`.

use std::path::PathBuf;

use anyhow::anyhow;
use clap::{Args, ValueEnum};

use crate::cli::Usage;
use crate::cli::import::layout::Preset;
use crate::cli::import::numbers::Mark;

/// Options of `docket import`.
#[derive(Debug, Clone, Args)]
pub struct Arguments {
    /// CSV or NDJSON file, plain or gzip; `-` reads stdin.
    pub file: PathBuf,
    /// URL of the server.
    #[arg(long, env = "DOCKET_URL", default_value = "http://127.0.0.1:8080")]
    pub url: String,
    /// Token with the role staff or admin.
    #[arg(long, env = "DOCKET_TOKEN", hide_env_values = true)]
    pub token: Option<String>,

    /// Layout of the file.
    #[arg(long, value_enum, default_value_t = Preset::Docket, help_heading = "Layout")]
    pub preset: Preset,
    /// Column of a field, in addition to the preset: `order_ref=Name,sku="Lineitem sku"`. Of several columns, separated
    /// by `|`, the first that has a value counts. May be repeated.
    #[arg(long, value_name = "FIELD=COLUMN,…", help_heading = "Layout")]
    pub map: Vec<String>,
    /// Meaning of a value of the status column: `paid=confirmed,open=draft,void=cancelled,test=skip`. May be repeated.
    #[arg(long, value_name = "VALUE=STATUS,…", help_heading = "Layout")]
    pub status_map: Vec<String>,
    /// Customer of orders that name none.
    #[arg(long, value_name = "ID", help_heading = "Layout")]
    pub customer: Option<String>,
    /// Currency of orders that name none, as an ISO 4217 code.
    #[arg(long, value_name = "CODE", default_value = "USD", value_parser = parse_currency, help_heading = "Layout")]
    pub currency: String,

    /// Format of the file. `auto` looks at its first character.
    #[arg(long, value_enum, default_value_t = Format::Auto, help_heading = "Format")]
    pub format: Format,
    /// Delimiter of a CSV file: `auto`, `comma`, `semicolon`, `tab`, `pipe`, or one character.
    #[arg(long, default_value = "auto", value_parser = parse_delimiter, help_heading = "Format")]
    pub delimiter: Delimiter,
    /// Encoding: `auto` (UTF-8, UTF-16 or Windows-1252), or a name such as `utf-8`, `windows-1252` or `iso-8859-15`.
    #[arg(long, default_value = "auto", value_parser = parse_encoding, help_heading = "Format")]
    pub encoding: Encoding,
    /// Decimal mark of prices and quantities. `auto` finds it in the prices, and refuses a file that can be read both
    /// ways.
    #[arg(long, value_enum, default_value_t = DecimalMark::Auto, help_heading = "Format")]
    pub decimal_mark: DecimalMark,
    /// Format of times, as for strftime: `%d/%m/%Y %H:%M`, `%s`. Without it, ISO 8601 and RFC 2822 are read.
    #[arg(long, value_name = "FORMAT", help_heading = "Format")]
    pub date_format: Option<String>,
    /// Time zone of times without an offset, such as `Europe/Berlin`.
    #[arg(long, value_name = "ZONE", default_value = "UTC", value_parser = parse_zone, help_heading = "Format")]
    pub timezone: jiff::tz::TimeZone,
    /// The last line is whole although no line break follows it.
    #[arg(long, help_heading = "Format")]
    pub no_final_newline: bool,

    /// Check every order as the import would, but change nothing.
    #[arg(long)]
    pub dry_run: bool,
    /// Change stored drafts that differ from the file until they are the same.
    #[arg(long)]
    pub update: bool,
    /// Import an order without its rejected lines, instead of rejecting the whole order.
    #[arg(long)]
    pub partial: bool,
    /// Write the rejected lines to this file, in the layout of the input, with a column `reason`.
    #[arg(long, value_name = "FILE")]
    pub rejects: Option<PathBuf>,
    /// Print the summary as JSON.
    #[arg(long)]
    pub json: bool,
}

/// The format of a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Format {
    /// Found in the file.
    Auto,
    /// Lines with delimiters, the first with the names of the columns.
    Csv,
    /// One JSON object per line.
    Ndjson,
}

/// The delimiter of a CSV file; `None`: found in the first line.
pub type Delimiter = Option<u8>;

/// The encoding of a file; `None`: found in the file.
pub type Encoding = Option<&'static encoding_rs::Encoding>;

/// The decimal mark of a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum DecimalMark {
    /// Found in the prices.
    Auto,
    /// `1,234.50`
    #[value(alias = ".")]
    Dot,
    /// `1.234,50`
    #[value(alias = ",")]
    Comma,
}

impl DecimalMark {
    /// Returns the mark, if it was set.
    pub fn given(self) -> Option<Mark> {
        match self {
            Self::Auto => None,
            Self::Dot => Some(Mark::Dot),
            Self::Comma => Some(Mark::Comma),
        }
    }
}

fn parse_currency(text: &str) -> Result<String, String> {
    let code = text.trim().to_uppercase();
    match iso_currency::Currency::from_code(&code) {
        Some(_) => Ok(code),
        None => Err("give an ISO 4217 code, e.g. EUR".to_owned()),
    }
}

fn parse_delimiter(text: &str) -> Result<Delimiter, String> {
    Ok(Some(match text {
        "auto" => return Ok(None),
        "comma" => b',',
        "semicolon" => b';',
        "tab" | "\\t" => b'\t',
        "pipe" => b'|',
        _ => match text.as_bytes() {
            [byte] if byte.is_ascii() && !byte.is_ascii_alphanumeric() && !matches!(byte, b'"' | b'\n' | b'\r') => {
                *byte
            }
            _ => return Err("give auto, comma, semicolon, tab, pipe, or one ASCII character".to_owned()),
        },
    }))
}

fn parse_encoding(text: &str) -> Result<Encoding, String> {
    if text == "auto" {
        return Ok(None);
    }
    let label = if text.eq_ignore_ascii_case("utf-16") { "utf-16le" } else { text };
    match encoding_rs::Encoding::for_label(label.as_bytes()) {
        Some(encoding) => Ok(Some(encoding)),
        None => {
            Err("give auto, utf-8, utf-16le, utf-16be, windows-1252, or another name of the WHATWG list".to_owned())
        }
    }
}

fn parse_zone(text: &str) -> Result<jiff::tz::TimeZone, String> {
    jiff::tz::TimeZone::get(text).map_err(|_| "give a name of the IANA database, e.g. Europe/Berlin".to_owned())
}

/// Splits `a=b,c="d, e"` of a repeated option into pairs.
///
/// # Errors
/// A part has no `=`, an empty side, or a quote that does not end.
pub fn pairs(option: &str, texts: &[String]) -> anyhow::Result<Vec<(String, String)>> {
    let mut pairs = Vec::new();
    for text in texts {
        let mut quoted = false;
        let parts = text.split(|c: char| {
            quoted ^= c == '"';
            c == ',' && !quoted
        });
        for part in parts {
            let pair = part.split_once('=').map(|(field, value)| (field.trim(), value.trim().replace('"', "")));
            match pair {
                Some((field, value)) if !field.is_empty() && !value.is_empty() => pairs.push((field.to_owned(), value)),
                _ => {
                    return Err(Usage(anyhow!("{option}: `{part}` must have the form NAME=VALUE.")).into());
                }
            }
        }
        if quoted {
            return Err(Usage(anyhow!("{option}: `{text}` has a quote that does not end.")).into());
        }
    }
    Ok(pairs)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pair_may_be_quoted() {
        let texts = ["order_ref=Name,sku=\"Lineitem sku\",product_name=\"Name, long\"".to_owned(), "a = b".to_owned()];
        let pairs = pairs("--map", &texts).unwrap();
        let pairs: Vec<_> = pairs.iter().map(|(field, value)| (field.as_str(), value.as_str())).collect();
        assert_eq!(pairs, [("order_ref", "Name"), ("sku", "Lineitem sku"), ("product_name", "Name, long"), ("a", "b")]);
        for text in ["a", "a=", "=b", "a=\"b"] {
            assert!(super::pairs("--map", &[text.to_owned()]).is_err(), "{text}");
        }
    }
}
