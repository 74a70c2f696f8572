//! Parses the values of settings. Sizes and durations may have a unit; a plain number has the unit in the setting's name.

use std::time::Duration;

use parse_size::Config as SizeParser;
use serde_json::{Number, Value};

use crate::settings::described::{Kind, Unit};

/// Converts a value from the file, or a text from the environment or a flag, to the type of the setting.
///
/// # Errors
/// The value has another type or is out of range. The text says what is accepted, to follow the name of the setting.
pub fn parse(kind: &Kind, value: &Value) -> Result<Value, String> {
    let text = value.as_str().map(str::trim);
    let parsed = match kind {
        Kind::Boolean => match (value, text) {
            (Value::Bool(_), _) => Some(value.clone()),
            (_, Some("true" | "yes" | "on" | "1")) => Some(true.into()),
            (_, Some("false" | "no" | "off" | "0")) => Some(false.into()),
            _ => None,
        },
        Kind::Integer { min, max, unit } => {
            let number = value.as_i64().map(i128::from).or_else(|| integer(text?, *unit));
            number.filter(|number| (min..=max).contains(&number)).and_then(Number::from_i128).map(Value::Number)
        }
        Kind::Number => {
            let number = value.as_f64().or_else(|| text?.parse().ok());
            number.and_then(Number::from_f64).map(Value::Number)
        }
        Kind::Choice(names) => text.filter(|text| names.iter().any(|name| name == text)).map(Value::from),
        Kind::Text => match value {
            Value::String(_) => Some(value.clone()),
            Value::Bool(_) | Value::Number(_) => Some(value.to_string().into()),
            _ => None,
        },
        Kind::List => match (value, text) {
            (Value::Array(_), _) => Some(value.clone()),
            (_, Some(text)) => Some(text.split(',').map(str::trim).filter(|part| !part.is_empty()).collect()),
            _ => None,
        },
        Kind::Other => Some(value.clone()),
    };
    parsed.ok_or_else(|| format!("must be {}", accepted(kind)))
}

/// Parses a whole number, or a number with a unit.
fn integer(text: &str, unit: Option<Unit>) -> Option<i128> {
    if let Ok(number) = text.parse() {
        return Some(number);
    }
    match unit? {
        Unit::Bytes => SizeParser::new().with_binary().parse_size(text).ok().map(i128::from),
        unit => {
            let (milliseconds, length) = (humantime::parse_duration(text).ok()?.as_millis(), unit.milliseconds()?);
            (milliseconds % length == 0).then(|| i128::try_from(milliseconds / length).ok())?
        }
    }
}

/// Returns the values that a kind accepts, in words.
fn accepted(kind: &Kind) -> String {
    match kind {
        Kind::Boolean => "true or false".to_owned(),
        Kind::Integer { min, max, unit } => {
            let number = match (*min, *max) {
                (0, max) if max < i128::from(i64::MAX) => format!("a whole number from 0 to {max}"),
                (0, _) => "a whole number, 0 or more".to_owned(),
                _ => "a whole number".to_owned(),
            };
            match unit {
                None => number,
                Some(Unit::Bytes) => {
                    format!("{number}, of bytes, or a size such as 512k, 100m or 2g (1k is 1024 bytes)")
                }
                Some(unit) => {
                    let name = unit.name();
                    format!("{number}, of {name}, or a duration such as {} in whole {name}", example(*unit))
                }
            }
        }
        Kind::Number => "a number".to_owned(),
        Kind::Choice(names) => format!("one of {}", names.join(", ")),
        Kind::Text => "a text".to_owned(),
        Kind::List | Kind::Other => "a list of texts".to_owned(),
    }
}

/// Returns an example of a duration that is a whole number of the unit.
fn example(unit: Unit) -> &'static str {
    match unit {
        Unit::Days => "30d",
        Unit::Hours => "48h or 2d",
        Unit::Minutes => "30m or 1h",
        Unit::Seconds => "30s or 5m",
        Unit::Milliseconds | Unit::Bytes => "500ms or 5s",
    }
}

/// Parses the duration of a command-line option, such as `90s`, `30m`, `8h` or `7d`; a plain number means seconds.
///
/// # Errors
/// The text is not a duration from 1 second to 366 days.
pub fn parse_ttl(text: &str) -> Result<Duration, String> {
    let seconds = integer(text.trim(), Some(Unit::Seconds)).and_then(|seconds| u64::try_from(seconds).ok());
    seconds.filter(|seconds| (1..=366 * 86_400).contains(seconds)).map(Duration::from_secs).ok_or_else(|| {
        "give a duration from 1s to 366d, such as 30m, 8h or 7d; a plain number means seconds".to_owned()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn integer_of(unit: Unit) -> Kind {
        Kind::Integer { min: 0, max: i64::MAX.into(), unit: Some(unit) }
    }

    #[test]
    fn sizes_and_durations_take_units_and_plain_numbers_keep_theirs() {
        for (unit, text, number) in [
            (Unit::Bytes, "1048576", 1_048_576),
            (Unit::Bytes, "100m", 100 << 20),
            (Unit::Bytes, "100 MiB", 100 << 20),
            (Unit::Bytes, "2G", 2_i64 << 30),
            (Unit::Bytes, "1.5k", 1_536),
            (Unit::Days, "30d", 30),
            (Unit::Days, "30", 30),
            (Unit::Hours, "2d", 48),
            (Unit::Hours, "48h", 48),
            (Unit::Seconds, "5s", 5),
            (Unit::Seconds, "5", 5),
            (Unit::Seconds, "1h 30m", 5_400),
            (Unit::Milliseconds, "5s", 5_000),
            (Unit::Milliseconds, "250ms", 250),
        ] {
            assert_eq!(parse(&integer_of(unit), &text.into()), Ok(number.into()), "{text}");
        }
        assert_eq!(parse(&integer_of(Unit::Seconds), &7.into()), Ok(7.into()), "a number in the file");
    }

    #[test]
    fn an_unusable_value_is_answered_with_what_is_accepted() {
        let port = Kind::Integer { min: 0, max: u16::MAX.into(), unit: None };
        let choice = Kind::Choice(vec!["a".into(), "b".into()]);
        for (kind, value, told) in [
            (integer_of(Unit::Seconds), Value::from("1500ms"), "in whole seconds"),
            (integer_of(Unit::Hours), "30m".into(), "48h or 2d in whole hours"),
            (integer_of(Unit::Bytes), "lots".into(), "such as 512k, 100m or 2g"),
            (integer_of(Unit::Bytes), (-1).into(), "0 or more"),
            (integer_of(Unit::Bytes), "99999999t".into(), "a whole number"),
            (port.clone(), 70_000.into(), "from 0 to 65535"),
            (port.clone(), "1s".into(), "a whole number from 0 to 65535"),
            (port, 1.5.into(), "a whole number"),
            (Kind::Boolean, "perhaps".into(), "true or false"),
            (Kind::Boolean, "".into(), "true or false"),
            (Kind::Number, "NaN".into(), "a number"),
            (choice, "c".into(), "one of a, b"),
            (Kind::Text, Value::Array(vec![]), "a text"),
        ] {
            let error = parse(&kind, &value).unwrap_err();
            assert!(error.starts_with("must be ") && error.contains(told), "{value}: {error}");
        }
    }

    #[test]
    fn the_life_of_a_token_has_a_unit() {
        for (text, seconds) in [("90", 90), ("90s", 90), ("30m", 1_800), ("8h", 28_800), ("366d", 366 * 86_400)] {
            assert_eq!(parse_ttl(text), Ok(Duration::from_secs(seconds)), "{text}");
        }
        for text in ["", "0", "0s", "367d", "-1h", "1500ms", "h", "soon", "99999999999999999999d"] {
            assert!(parse_ttl(text).unwrap_err().contains("such as 30m"), "{text}");
        }
    }
}
