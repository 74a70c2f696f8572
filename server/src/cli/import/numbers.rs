//! Numbers as people write them: `1,234.50`, `1.234,50`, `1 234,50 €`.
//!
//! A comma or a point can be a decimal mark or separate thousands. [`Evidence`] collects what the numbers of a file show;
//! a file that can be read both ways is refused.

/// A decimal mark.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mark {
    /// `1,234.50`
    Dot,
    /// `1.234,50`
    Comma,
}

impl Mark {
    fn byte(self) -> u8 {
        match self {
            Self::Dot => b'.',
            Self::Comma => b',',
        }
    }
}

/// A number of a file and its line.
type Seen = Option<(u64, String)>;

/// What the numbers of a file show about its decimal mark.
#[derive(Debug, Default)]
pub struct Evidence {
    dot: Seen,
    comma: Seen,
    ambiguous: Seen,
}

impl Evidence {
    /// Looks at a number.
    pub fn observe(&mut self, line: u64, text: &str) {
        let slot = match mark_of(text) {
            Shown::Nothing => return,
            Shown::Mark(Mark::Dot) => &mut self.dot,
            Shown::Mark(Mark::Comma) => &mut self.comma,
            Shown::Ambiguous => &mut self.ambiguous,
        };
        if slot.is_none() {
            *slot = Some((line, text.trim().to_owned()));
        }
    }

    /// Whether no number had a comma or a point.
    pub fn is_empty(&self) -> bool {
        self.dot.is_none() && self.comma.is_none() && self.ambiguous.is_none()
    }

    /// Returns the decimal mark of the file.
    ///
    /// # Errors
    /// A sentence with the option to set, when the file can be read both ways.
    pub fn mark(&self) -> Result<Mark, String> {
        match (&self.dot, &self.comma, &self.ambiguous) {
            (Some((one, dot)), Some((other, comma)), _) => Err(format!(
                "The decimal mark is a point in `{dot}` (line {one}), and a comma in `{comma}` (line {other}). Set it \
                 with --decimal-mark dot or --decimal-mark comma; the other numbers are rejected."
            )),
            (None, None, Some((line, text))) => Err(format!(
                "The decimal mark is not clear: `{text}` (line {line}) can be read in two ways. Set it with \
                 --decimal-mark dot or --decimal-mark comma."
            )),
            (None, Some(_), _) => Ok(Mark::Comma),
            _ => Ok(Mark::Dot),
        }
    }
}

enum Shown {
    Nothing,
    Mark(Mark),
    Ambiguous,
}

fn mark_of(text: &str) -> Shown {
    let (mut dots, mut commas, mut last) = (0, 0, None);
    for (at, byte) in text.bytes().enumerate() {
        match byte {
            b'.' => (dots, last) = (dots + 1, Some((at, Mark::Dot))),
            b',' => (commas, last) = (commas + 1, Some((at, Mark::Comma))),
            _ => {}
        }
    }
    let Some((at, mark)) = last else { return Shown::Nothing };
    let other = if mark == Mark::Dot { Mark::Comma } else { Mark::Dot };
    match (dots, commas) {
        (1, 0) | (0, 1) => {
            let digits = |text: &str| text.bytes().filter(u8::is_ascii_digit).count();
            let (whole, decimals) = (&text[..at], &text[at + 1..]);
            let first = whole.bytes().find(u8::is_ascii_digit);
            match (digits(whole), digits(decimals)) {
                (1..=3, 3) if first != Some(b'0') => Shown::Ambiguous,
                _ => Shown::Mark(mark),
            }
        }
        // Twice the same mark separates thousands.
        (_, 0) | (0, _) => Shown::Mark(other),
        _ => Shown::Mark(mark),
    }
}

/// A decimal number that is not negative.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Number {
    /// Digits before the mark, without leading zeros; at least one.
    whole: String,
    /// Digits after the mark, without zeros at the end.
    decimals: String,
}

impl Number {
    /// Parses a number, and returns it with what else the text has: a currency's symbol or code.
    ///
    /// # Errors
    /// A phrase that says what is wrong.
    pub fn parse(text: &str, mark: Mark) -> Result<(Self, &str), String> {
        let text = text.trim();
        let wrong = || match text.is_empty() {
            true => "The number is missing.".to_owned(),
            false => format!(
                "`{text}` is not a number{}.",
                match mark {
                    Mark::Dot => "",
                    Mark::Comma => " with a decimal comma",
                }
            ),
        };
        let is_digit = |c: char| c.is_ascii_digit();
        let start = text.find(is_digit).ok_or_else(wrong)?;
        let end = text.rfind(is_digit).ok_or_else(wrong)? + 1;
        let (before, core, after) = (&text[..start], &text[start..end], &text[end..]);
        // `.5` and `5.`
        let point = mark.byte() as char;
        let (before, has_point) = before.strip_suffix(point).map_or((before, false), |before| (before, true));
        let after = after.strip_prefix(point).unwrap_or(after);
        let (before, after) = (before.trim(), after.trim());
        if before.starts_with(['-', '\u{2212}', '(']) || before.ends_with(['-', '\u{2212}']) || after.starts_with('-') {
            return Err(format!("`{text}` is negative."));
        }
        let before = before.trim_start_matches('+');
        if !before.is_empty() && !after.is_empty() {
            return Err(wrong());
        }
        let (whole, decimals) = match has_point {
            true => ("", core),
            false => core.split_once(point).unwrap_or((core, "")),
        };
        if !decimals.bytes().all(|byte| byte.is_ascii_digit()) {
            return Err(wrong());
        }
        let whole = ungrouped(whole, mark).ok_or_else(wrong)?;
        let whole = whole.trim_start_matches('0');
        let whole = if whole.is_empty() { "0" } else { whole }.to_owned();
        let rest = if before.is_empty() { after } else { before };
        Ok((Self { whole, decimals: decimals.trim_end_matches('0').to_owned() }, rest))
    }

    /// Returns the number as a whole number, if it is one of at most 18 digits.
    pub fn whole(&self) -> Option<u64> {
        (self.decimals.is_empty() && self.whole.len() <= 18).then(|| self.whole.parse().ok()).flatten()
    }

    /// Divides a price by a number of pieces. `None` when the result has more than three decimals.
    pub fn divided(&self, pieces: u64) -> Option<Self> {
        if self.decimals.len() > 3 || self.whole.len() > 15 || pieces == 0 {
            return None;
        }
        let milli: u64 = format!("{}{:0<3}", self.whole, self.decimals).parse().ok()?;
        milli.is_multiple_of(pieces).then(|| {
            let milli = milli / pieces;
            let decimals = format!("{:03}", milli % 1000);
            Self { whole: (milli / 1000).to_string(), decimals: decimals.trim_end_matches('0').to_owned() }
        })
    }
}

impl std::fmt::Display for Number {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.decimals.as_str() {
            "" => f.write_str(&self.whole),
            decimals => write!(f, "{}.{decimals}", self.whole),
        }
    }
}

/// Removes the separators of thousands. `None` when they are at wrong places.
fn ungrouped(whole: &str, mark: Mark) -> Option<std::borrow::Cow<'_, str>> {
    if whole.bytes().all(|byte| byte.is_ascii_digit()) {
        return Some(whole.into());
    }
    let other = if mark == Mark::Dot { ',' } else { '.' };
    let separates = |c: char| c == other || matches!(c, ' ' | '\'' | '\u{2019}' | '\u{a0}' | '\u{202f}' | '\u{2009}');
    let groups: Vec<&str> = whole.split(separates).collect();
    let last = groups.len() - 1;
    let fits = |(at, group): (usize, &&str)| {
        let length = match at {
            0 => 1..=3,
            _ if at == last => 3..=3,
            // 12,34,567 of India
            _ => 2..=3,
        };
        length.contains(&group.len()) && group.bytes().all(|byte| byte.is_ascii_digit())
    };
    groups.iter().enumerate().all(fits).then(|| groups.concat().into())
}

/// Whether a symbol or a code next to a number is that of a currency.
pub fn is_symbol_of(symbol: &str, currency: &str) -> bool {
    let symbol = symbol.trim().trim_end_matches('.');
    symbol.eq_ignore_ascii_case(currency)
        || iso_currency::Currency::from_code(currency)
            .is_some_and(|currency| currency.symbol().symbol.trim_end_matches('.') == symbol)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_read_as_people_write_them() {
        for (text, mark, number, rest) in [
            ("2.55", Mark::Dot, "2.55", ""),
            (" 0.50 ", Mark::Dot, "0.5", ""),
            ("1,234.50", Mark::Dot, "1234.5", ""),
            ("12,34,567.00", Mark::Dot, "1234567", ""),
            ("1.234,50", Mark::Comma, "1234.5", ""),
            ("1 234,50 €", Mark::Comma, "1234.5", "€"),
            ("1\u{202f}234,5", Mark::Comma, "1234.5", ""),
            ("1'234.50", Mark::Dot, "1234.5", ""),
            ("$12.00", Mark::Dot, "12", "$"),
            ("EUR 7", Mark::Comma, "7", "EUR"),
            (".5", Mark::Dot, "0.5", ""),
            ("5.", Mark::Dot, "5", ""),
            ("007", Mark::Dot, "7", ""),
            ("+3", Mark::Dot, "3", ""),
            ("0", Mark::Dot, "0", ""),
        ] {
            let (read, symbol) = Number::parse(text, mark).unwrap();
            assert_eq!((read.to_string().as_str(), symbol), (number, rest), "{text}");
        }
        for (text, mark) in [
            ("", Mark::Dot),
            ("abc", Mark::Dot),
            ("1,5", Mark::Dot),
            ("1.5", Mark::Comma),
            ("1.2.3", Mark::Dot),
            ("1,23,45", Mark::Dot),
            ("1e3", Mark::Dot),
            ("-5", Mark::Dot),
            ("(5.00)", Mark::Dot),
            ("5-", Mark::Dot),
            ("12x34", Mark::Dot),
            ("$5€", Mark::Dot),
        ] {
            assert!(Number::parse(text, mark).is_err(), "{text}");
        }
    }

    fn mark(texts: &[&str]) -> Result<Mark, String> {
        let mut evidence = Evidence::default();
        texts.iter().zip(1..).for_each(|(text, line)| evidence.observe(line, text));
        evidence.mark()
    }

    #[test]
    fn the_mark_is_found_in_the_numbers() {
        for (texts, found) in [
            (&["12", "7"][..], Mark::Dot),
            (&["1,500", "2.55"], Mark::Dot),
            (&["1.500", "2,55"], Mark::Comma),
            (&["1.234.567"], Mark::Comma),
            (&["1,234,567"], Mark::Dot),
            (&["1.234,50"], Mark::Comma),
            (&["0.500"], Mark::Dot),
            (&["0,125"], Mark::Comma),
            (&["1234,567"], Mark::Comma),
            (&["3,5 €"], Mark::Comma),
        ] {
            assert_eq!(mark(texts), Ok(found), "{texts:?}");
        }
        assert!(mark(&["7", "1,500"]).unwrap_err().contains("`1,500` (line 2) can be read in two ways"));
        assert!(mark(&["1.500"]).unwrap_err().contains("--decimal-mark"));
        assert!(mark(&["1,5", "1.5"]).unwrap_err().contains("a point in `1.5` (line 2)"));
    }

    #[test]
    fn a_price_of_a_line_divides_exactly_or_not_at_all() {
        let divided = |text: &str, pieces| Number::parse(text, Mark::Dot).unwrap().0.divided(pieces);
        assert_eq!(divided("10.50", 3).map(|price| price.to_string()), Some("3.5".to_owned()));
        assert_eq!(divided("0.00", 3).map(|price| price.to_string()), Some("0".to_owned()));
        assert_eq!((divided("10.00", 3), divided("1", 0)), (None, None));
    }

    #[test]
    fn a_symbol_belongs_to_its_currency() {
        for (symbol, currency) in [("€", "EUR"), ("$", "USD"), ("usd", "USD"), ("£", "GBP"), ("¥", "JPY")] {
            assert!(is_symbol_of(symbol, currency), "{symbol} {currency}");
        }
        for (symbol, currency) in [("€", "USD"), ("$", "EUR"), ("x", "USD"), ("GBP", "USD")] {
            assert!(!is_symbol_of(symbol, currency), "{symbol} {currency}");
        }
    }
}
