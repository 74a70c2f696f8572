//! Times that clients and operators send: RFC 3339 with any offset, plain dates, and time zones.

use std::fmt;
use std::str::FromStr;

use jiff::Timestamp;
use jiff::civil::{Date, DateTime};
use jiff::tz::TimeZone;
use serde::de::Error;
use serde::{Deserialize, Deserializer};

/// Shortest text in front of the offset of a time, for example `2024-03-10T00:00`.
const BEFORE_OFFSET_CHARS_MIN: usize = 16;
/// Length of an offset with its sign, for example `+02:00`.
const OFFSET_CHARS: usize = 6;

/// A bound of a period in time: a whole day, or an instant.
///
/// The text is a date (`2024-03-10`), or a time in RFC 3339 with any offset (`2024-03-10T00:00:00+02:00`). In a query
/// string, a `+` that is not encoded as `%2B` arrives as a blank; the blank is read as `+`, because nothing else can be
/// meant.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DateOrTime {
    /// A whole day in the time zone of the request.
    Date(Date),
    /// An instant.
    Time(Timestamp),
}

impl DateOrTime {
    /// Returns the lower bound of a period that begins with this value, in microseconds since 1970: the first
    /// microsecond at or after it.
    pub fn first_us(self, zone: &TimeZone) -> i64 {
        match self {
            Self::Date(date) => start_of_day_us(date, zone),
            Self::Time(time) => ceil_us(time),
        }
    }

    /// Returns the upper bound of a period, in microseconds since 1970. The bound itself is not part of the period. A
    /// date is included to its end; a time is excluded.
    pub fn end_us(self, zone: &TimeZone) -> i64 {
        match self {
            Self::Date(date) => date.tomorrow().map_or(i64::MAX, |next| start_of_day_us(next, zone)),
            Self::Time(time) => ceil_us(time),
        }
    }

    /// Returns the last microsecond at or before this value, in microseconds since 1970. For a date: the last one of
    /// the day.
    pub fn last_us(self, zone: &TimeZone) -> i64 {
        match self {
            Self::Date(_) => self.end_us(zone).saturating_sub(1),
            Self::Time(time) => i64::try_from(time.as_nanosecond().div_euclid(1_000)).unwrap_or(i64::MAX),
        }
    }
}

/// Returns the first instant of a day, in microseconds since 1970. Where the clocks skip midnight, the day begins later
/// than 00:00. A day outside of the supported years begins at the smallest or largest number.
fn start_of_day_us(date: Date, zone: &TimeZone) -> i64 {
    let start = zone.to_ambiguous_timestamp(date.at(0, 0, 0, 0)).compatible();
    start.map_or(if date.year() > 1970 { i64::MAX } else { i64::MIN }, Timestamp::as_microsecond)
}

fn ceil_us(time: Timestamp) -> i64 {
    let ns = time.as_nanosecond();
    i64::try_from(ns.div_euclid(1_000) + i128::from(ns.rem_euclid(1_000) > 0)).unwrap_or(i64::MAX)
}

impl FromStr for DateOrTime {
    type Err = InvalidTime;

    fn from_str(text: &str) -> Result<Self, InvalidTime> {
        // A date followed by anything else is not a date: the rest would be lost.
        let is_date = text.len() == 10 && text.bytes().all(|byte| byte.is_ascii_digit() || byte == b'-');
        match is_date {
            true => text.parse().map(Self::Date).map_err(|_| InvalidTime::Other),
            false => parse_time(text).map(Self::Time),
        }
    }
}

impl<'de> Deserialize<'de> for DateOrTime {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(D::Error::custom)
    }
}

/// Parses a time in RFC 3339 with any offset. A blank in place of the offset's `+` is read as `+`.
///
/// # Errors
/// The text is not such a time, or has no offset.
pub fn parse_time(text: &str) -> Result<Timestamp, InvalidTime> {
    // A time zone in brackets might contradict the offset. RFC 3339 does not have it.
    if !text.is_ascii() || text.contains('[') {
        return Err(InvalidTime::Other);
    }
    let before = text.len().saturating_sub(OFFSET_CHARS);
    let has_blank = before >= BEFORE_OFFSET_CHARS_MIN
        && matches!(text.as_bytes()[before..], [b' ', h, _, b':', ..] if h.is_ascii_digit());
    let encoded;
    let text = match has_blank {
        true => {
            encoded = format!("{}+{}", &text[..before], &text[before + 1..]);
            &encoded
        }
        false => text,
    };
    let time = text.parse::<Timestamp>().map_err(|_| match text.parse::<DateTime>() {
        Ok(_) if !text.ends_with(['z', 'Z']) && text.len() > 10 => InvalidTime::NoOffset,
        _ => InvalidTime::Other,
    })?;
    // RFC 3339 has the years 0 to 9999 only.
    match (0..=9999).contains(&time.to_zoned(TimeZone::UTC).year()) {
        true => Ok(time),
        false => Err(InvalidTime::Other),
    }
}

/// Why a text is not a time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum InvalidTime {
    /// The time has no offset, so it could mean several instants.
    NoOffset,
    /// The text is neither a date nor a time in RFC 3339.
    Other,
}

impl fmt::Display for InvalidTime {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::NoOffset => "the time has no offset; append Z for UTC, or an offset such as +02:00",
            Self::Other => {
                "must be a time in RFC 3339 with an offset, such as 2024-03-10T00:00:00+02:00, or a date, such as \
                 2024-03-10; in a query, write + as %2B"
            }
        })
    }
}

impl std::error::Error for InvalidTime {}

/// A time zone, named as in the IANA time zone database, for example `Europe/Berlin`. The default is UTC.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Zone(pub TimeZone);

impl Default for Zone {
    fn default() -> Self {
        Self(TimeZone::UTC)
    }
}

impl<'de> Deserialize<'de> for Zone {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        // No name contains a blank. One that does contained a `+`, as in `Etc/GMT+3`.
        let name = String::deserialize(deserializer)?.replace(' ', "+");
        TimeZone::get(&name).map(Self).map_err(|_| {
            D::Error::custom("must be the name of a time zone in the IANA database, such as Europe/Berlin or UTC")
        })
    }
}

#[cfg(test)]
mod tests {
    use serde::de::IntoDeserializer;
    use serde::de::value::StrDeserializer;

    use super::*;

    fn zone(name: &str) -> TimeZone {
        TimeZone::get(name).unwrap()
    }

    fn us(text: &str) -> i64 {
        text.parse::<Timestamp>().unwrap().as_microsecond()
    }

    #[test]
    fn a_time_keeps_its_offset() {
        for (text, utc) in [
            ("2024-03-10T00:00:00+02:00", "2024-03-09T22:00:00Z"),
            ("2024-03-10T00:00:00 02:00", "2024-03-09T22:00:00Z"),
            ("2024-03-10T00:00 02:00", "2024-03-09T22:00:00Z"),
            ("2024-03-10T00:00:00-02:00", "2024-03-10T02:00:00Z"),
            ("2024-03-10T00:00:00+05:45", "2024-03-09T18:15:00Z"),
            ("2024-03-10T00:00:00.123456Z", "2024-03-10T00:00:00.123456Z"),
            ("2024-03-10t00:00:00z", "2024-03-10T00:00:00Z"),
        ] {
            assert_eq!(text.parse(), Ok(DateOrTime::Time(utc.parse().unwrap())), "{text}");
            assert_eq!(parse_time(text).unwrap().as_microsecond(), us(utc), "{text}");
        }
    }

    #[test]
    fn a_text_without_one_meaning_is_refused() {
        for text in [
            "",
            "0",
            "today",
            "2026-02-30",
            "2026-2-3",
            "+2026-02-03",
            "99999-01-01",
            "2026-13-01T00:00:00Z",
            "2026-01-01T25:00:00Z",
            "2026-01-01T00:00:00 02",
            "2026-01-01T00:00:00+99:00",
            "2026-01-01T00:00:00+02:00[Europe/Berlin]",
            "-000001-01-01T00:00:00Z",
            "1704067200",
            "٢٠٢٦-01-01",
        ] {
            assert_eq!(text.parse::<DateOrTime>(), Err(InvalidTime::Other), "{text}");
        }
        for text in ["2026-01-01T00:00:00", "2026-01-01T00:00", "2026-01-01 00:00"] {
            assert_eq!(text.parse::<DateOrTime>(), Err(InvalidTime::NoOffset), "{text}");
        }
        assert!(parse_time("2026-01-01").is_err(), "a date is no instant");
    }

    /// Days with 23, 24 and 25 hours, and a day that begins at 01:00.
    #[test]
    fn a_date_is_a_whole_local_day() {
        for (name, date, start, hours) in [
            ("UTC", "2024-03-10", "2024-03-10T00:00:00Z", 24.0),
            ("Europe/Berlin", "2024-03-31", "2024-03-30T23:00:00Z", 23.0),
            ("Europe/Berlin", "2024-10-27", "2024-10-26T22:00:00Z", 25.0),
            ("America/New_York", "2024-03-10", "2024-03-10T05:00:00Z", 23.0),
            ("Asia/Kathmandu", "2024-03-10", "2024-03-09T18:15:00Z", 24.0),
            ("Australia/Lord_Howe", "2024-04-07", "2024-04-06T13:00:00Z", 24.5),
            ("Africa/Cairo", "2024-04-26", "2024-04-25T22:00:00Z", 23.0),
        ] {
            let (day, zone) = (date.parse::<DateOrTime>().unwrap(), zone(name));
            assert_eq!(day.first_us(&zone), us(start), "{name} {date}");
            assert_eq!((day.end_us(&zone) - day.first_us(&zone)) as f64 / 3.6e9, hours, "{name} {date}");
            assert_eq!(day.last_us(&zone), day.end_us(&zone) - 1, "{name} {date}");
        }
    }

    #[test]
    fn bounds_between_two_microseconds_include_only_what_they_name() {
        let time: DateOrTime = "1969-12-31T23:59:59.0000005Z".parse().unwrap();
        let utc = TimeZone::UTC;
        assert_eq!((time.first_us(&utc), time.end_us(&utc), time.last_us(&utc)), (-999_999, -999_999, -1_000_000));
        let last: DateOrTime = "9999-12-31".parse().unwrap();
        assert_eq!((last.first_us(&zone("America/New_York")), last.end_us(&utc)), (i64::MAX, i64::MAX));
    }

    #[test]
    fn zones_have_names_of_the_iana_database() {
        let parse = |name: &str| {
            let name: StrDeserializer<'_, serde::de::value::Error> = name.into_deserializer();
            Zone::deserialize(name)
        };
        assert_eq!(parse("Europe/Berlin").unwrap().0, zone("Europe/Berlin"));
        assert_eq!(parse("Etc/GMT 3").unwrap().0, zone("Etc/GMT+3"));
        assert_eq!(Zone::default().0, TimeZone::UTC);
        for name in ["", "Mars/Olympus", "+02:00", "../../etc/passwd", "CET-1CEST"] {
            assert!(parse(name).is_err(), "{name}");
        }
    }
}
