//! Times as exports write them. A time without an offset is a time of the zone of `--timezone`.

use jiff::civil::DateTime;
use jiff::fmt::{rfc2822, strtime};
use jiff::tz::TimeZone;
use jiff::{Timestamp, Zoned};

/// Formats with an offset that ISO 8601 does not have, e.g. `2024-03-10 09:30:00 -0500`.
const WITH_OFFSET: [&str; 4] =
    ["%Y-%m-%d %H:%M:%S%.f %z", "%Y-%m-%d %H:%M:%S%.f %:z", "%Y-%m-%d %H:%M:%S%.f%z", "%Y-%m-%dT%H:%M:%S%.f%z"];
/// Formats without an offset whose order of year, month and day is clear.
const WITHOUT_OFFSET: [&str; 4] = ["%Y/%m/%d %H:%M:%S", "%Y/%m/%d %H:%M", "%Y/%m/%d", "%Y%m%d"];

/// Reads the times of a file.
#[derive(Debug, Clone)]
pub struct Times {
    /// The format of `--date-format`.
    pub format: Option<String>,
    /// The zone of times without an offset.
    pub zone: TimeZone,
}

impl Times {
    /// Parses a time, to the microsecond. A time that a clock showed twice is the earlier one.
    ///
    /// # Errors
    /// A sentence that says what can be read.
    pub fn parse(&self, text: &str) -> Result<Timestamp, String> {
        let text = text.trim();
        let at = match &self.format {
            Some(format) => self
                .formatted(format, text)
                .ok_or_else(|| format!("placed_at: `{text}` does not have the format `{format}`.")),
            None => self.guessed(text).ok_or_else(|| {
                format!(
                    "placed_at: `{text}` is not a time such as 2024-03-10T09:30:00+01:00 or 2024-03-10 09:30. Give its \
                     format, e.g. --date-format '%d.%m.%Y' for 24.12.2025, or '%m/%d/%Y %H:%M' for 12/24/2025 18:30."
                )
            }),
        }?;
        Timestamp::from_microsecond(at.as_microsecond()).map_err(|error| format!("placed_at: {error}."))
    }

    fn guessed(&self, text: &str) -> Option<Timestamp> {
        if let Ok(at) = text.parse::<Timestamp>() {
            return Some(at);
        }
        for suffix in [" UTC", " GMT", " Z"] {
            if let Some(at) = text.strip_suffix(suffix) {
                return at.trim().parse::<DateTime>().ok()?.to_zoned(TimeZone::UTC).ok().map(|at| at.timestamp());
            }
        }
        let with_offset = WITH_OFFSET.iter().find_map(|format| self.formatted(format, text));
        let iso = || text.parse::<DateTime>().ok().filter(|_| !text.contains('[')).and_then(|at| self.in_zone(at));
        let other = || WITHOUT_OFFSET.iter().find_map(|format| self.formatted(format, text));
        let mail = || rfc2822::parse(text).ok().map(|at: Zoned| at.timestamp());
        with_offset.or_else(iso).or_else(other).or_else(mail)
    }

    fn formatted(&self, format: &str, text: &str) -> Option<Timestamp> {
        let read = strtime::parse(format, text).ok()?;
        if let Ok(at) = read.to_timestamp() {
            return Some(at);
        }
        if read.offset().is_some() {
            return None;
        }
        let at = read.to_datetime().or_else(|_| read.to_date().map(|date| date.at(0, 0, 0, 0))).ok()?;
        self.in_zone(at)
    }

    fn in_zone(&self, at: DateTime) -> Option<Timestamp> {
        self.zone.to_ambiguous_timestamp(at).compatible().ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn times(format: Option<&str>, zone: &str) -> Times {
        Times { format: format.map(str::to_owned), zone: TimeZone::get(zone).unwrap() }
    }

    #[test]
    fn times_of_exports_are_read() {
        for (text, at) in [
            ("2017-01-01T11:53:26Z", "2017-01-01T11:53:26Z"),
            ("2024-03-10T09:30:00+02:00", "2024-03-10T07:30:00Z"),
            ("2024-03-10 09:30:00 -0500", "2024-03-10T14:30:00Z"),
            ("2024-03-10 09:30:00 +05:30", "2024-03-10T04:00:00Z"),
            ("2024-03-10 09:30:00 UTC", "2024-03-10T09:30:00Z"),
            ("2024-03-10 09:30:00", "2024-03-10T08:30:00Z"),
            ("2024-03-10T09:30", "2024-03-10T08:30:00Z"),
            ("2024-07-10 09:30", "2024-07-10T07:30:00Z"),
            ("2024-03-10", "2024-03-09T23:00:00Z"),
            ("2024/03/10 09:30", "2024-03-10T08:30:00Z"),
            ("Sun, 10 Mar 2024 09:30:00 +0000", "2024-03-10T09:30:00Z"),
            // The clock showed this time twice: the earlier one.
            ("2024-10-27 02:30:00", "2024-10-27T00:30:00Z"),
        ] {
            let read = times(None, "Europe/Berlin").parse(text);
            assert_eq!(read.map(|at| at.to_string()), Ok(at.to_owned()), "{text}");
        }
    }

    #[test]
    fn a_date_that_can_be_read_in_two_ways_needs_a_format() {
        for text in ["03/04/2024", "3.4.2024", "03-04-2024 10:00", "44256.5", "yesterday", ""] {
            let error = times(None, "UTC").parse(text).unwrap_err();
            assert!(error.contains("--date-format"), "{text}: {error}");
        }
    }

    #[test]
    fn a_given_format_is_the_only_one() {
        let read = |format, zone, text| times(Some(format), zone).parse(text).map(|at| at.to_string());
        assert_eq!(read("%d/%m/%Y %H:%M", "America/New_York", "03/04/2024 09:30"), Ok("2024-04-03T13:30:00Z".into()));
        assert_eq!(read("%m/%d/%Y", "UTC", "03/04/2024"), Ok("2024-03-04T00:00:00Z".into()));
        assert_eq!(read("%s", "UTC", "1700000000"), Ok("2023-11-14T22:13:20Z".into()));
        assert!(read("%m/%d/%Y", "UTC", "2024-03-04").unwrap_err().contains("does not have the format"));
    }
}
