//! Cursors: a client's position in each checkpoint group, as text that any process can read.
//!
//! The format is `2.EPOCH.GROUP=POSITION[+NAME]`, with one part `.GROUP=…` per subscribed group. The client has all
//! changes at or before POSITION. Changes at one position are sent in the byte order of their channels' names. `+NAME`
//! means that the client also has the change at the next position, on the channels up to that name. Characters that
//! could be mistaken for separators are percent-encoded.
//!
//! Cursors of format 1, `7.EPOCH` and `7+2.EPOCH`, stay readable for ever: see [`Received::Kinds`].

use std::fmt;
use std::str::FromStr;

use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, percent_decode_str, utf8_percent_encode};
use projection_engine::registry::CORE;

/// Format version of written cursors.
const VERSION: &str = "2.";
/// Longest accepted cursor, in bytes.
const TEXT_BYTES_MAX: usize = 8 * 1024;
/// Most groups in an accepted cursor.
const GROUPS_MAX: usize = 64;
/// Longest accepted epoch, in bytes.
const EPOCH_BYTES_MAX: usize = 64;
/// Characters that are percent-encoded.
const ENCODED: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'_').remove(b'~').remove(b':');

/// A kind of channel in cursors of format 1.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum V1Kind {
    /// All channels with this prefix.
    Prefix(&'static str),
    /// The channel with this name.
    Name(&'static str),
}

/// A client's position in its checkpoint groups.
#[derive(Debug, Clone, PartialEq)]
pub struct Cursor {
    /// The log's incarnation.
    pub epoch: String,
    /// Positions by group; each group at most once.
    pub groups: Vec<GroupCursor>,
}

/// A client's position in one checkpoint group.
#[derive(Debug, Clone, PartialEq)]
pub struct GroupCursor {
    /// Name of the group.
    pub group: String,
    /// The client has all changes at or before this position.
    pub position: i64,
    /// The channels on which the client also has the change at the next position.
    pub next: Received,
}

/// The channels on which a client has the change at a position.
#[derive(Debug, Clone, PartialEq)]
pub enum Received {
    /// No channel.
    Nothing,
    /// All channels up to this name, in byte order.
    UpTo(String),
    /// The first kinds of channel, this many, in the publishing order of format 1: the `2` of `7+2`.
    Kinds(usize),
}

impl Received {
    fn includes(&self, channel: &str, v1_kinds: &[V1Kind]) -> bool {
        let belongs_to = |kind: &V1Kind| match kind {
            V1Kind::Prefix(prefix) => channel.starts_with(prefix),
            V1Kind::Name(name) => channel == *name,
        };
        match self {
            Self::Nothing => false,
            Self::UpTo(name) => channel <= name.as_str(),
            Self::Kinds(count) => v1_kinds.iter().take(*count).any(belongs_to),
        }
    }
}

impl GroupCursor {
    /// Creates a cursor of a client that has all changes up to a position.
    pub fn at(group: &str, position: i64) -> Self {
        Self { group: group.to_owned(), position, next: Received::Nothing }
    }

    /// Returns the position up to which the client has all changes of a channel. `v1_kinds` are the kinds of format 1,
    /// in their order.
    pub fn position_on(&self, channel: &str, v1_kinds: &[V1Kind]) -> i64 {
        self.position.saturating_add(i64::from(self.next.includes(channel, v1_kinds)))
    }
}

impl Cursor {
    /// Creates a cursor of one group, of a client that has all changes up to a position.
    pub fn of_group(epoch: &str, group: &str, position: i64) -> Self {
        Self { epoch: epoch.to_owned(), groups: vec![GroupCursor::at(group, position)] }
    }

    /// Returns the client's position in a group, if the cursor has the group.
    pub fn of(&self, group: &str) -> Option<&GroupCursor> {
        self.groups.iter().find(|known| known.group == group)
    }

    /// Sets the position in a group, and the channels on which the client has the change at the next position.
    pub fn set(&mut self, group: &str, position: i64, next: Received) {
        match self.groups.iter_mut().find(|known| known.group == group) {
            Some(known) => (known.position, known.next) = (position, next),
            None => self.groups.push(GroupCursor { group: group.to_owned(), position, next }),
        }
    }

    /// Sets the position in a group if it is greater than the present one.
    pub fn advance(&mut self, group: &str, position: i64) {
        if self.of(group).is_none_or(|known| known.position < position) {
            self.set(group, position, Received::Nothing);
        }
    }
}

impl fmt::Display for Cursor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let encoded = |text| utf8_percent_encode(text, ENCODED);
        write!(f, "{VERSION}{}", encoded(&self.epoch))?;
        for GroupCursor { group, position, next } in &self.groups {
            write!(f, ".{}={position}", encoded(group))?;
            match next {
                Received::Nothing => {}
                Received::UpTo(name) => write!(f, "+{}", encoded(name))?,
                // Not ambiguous: no channel name begins with a digit.
                Received::Kinds(count) => write!(f, "+{count}")?,
            }
        }
        Ok(())
    }
}

impl FromStr for Cursor {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        if text.len() > TEXT_BYTES_MAX {
            return Err(());
        }
        let cursor = match text.strip_prefix(VERSION).and_then(|rest| rest.split_once('.')) {
            Some((epoch, groups)) => {
                let groups = groups.split('.').take(GROUPS_MAX + 1).map(group).collect::<Result<_, ()>>()?;
                Self { epoch: decoded(epoch)?, groups }
            }
            // Format 1 has one group.
            None => {
                let (known, epoch) = text.split_once('.').ok_or(())?;
                let (position, next) = parse_position(known)?;
                if matches!(next, Received::UpTo(_)) {
                    return Err(());
                }
                Self { epoch: epoch.to_owned(), groups: vec![GroupCursor { group: CORE.to_owned(), position, next }] }
            }
        };
        let is_once =
            |(at, known): (usize, &GroupCursor)| cursor.groups[..at].iter().all(|one| one.group != known.group);
        let is_valid = cursor.groups.len() <= GROUPS_MAX
            && (1..=EPOCH_BYTES_MAX).contains(&cursor.epoch.len())
            && cursor.groups.iter().enumerate().all(is_once)
            && cursor.groups.iter().all(|known| !known.group.is_empty());
        if is_valid { Ok(cursor) } else { Err(()) }
    }
}

fn group(text: &str) -> Result<GroupCursor, ()> {
    let (group, known) = text.split_once('=').ok_or(())?;
    let (position, next) = parse_position(known)?;
    Ok(GroupCursor { group: decoded(group)?, position, next })
}

fn parse_position(text: &str) -> Result<(i64, Received), ()> {
    // A plus sign becomes a blank when a client does not encode the cursor in a query string.
    let (position, next) = match text.split_once(['+', ' ']) {
        None => (text, Received::Nothing),
        Some((position, count)) if is_number(count) => (position, Received::Kinds(count.parse().map_err(|_| ())?)),
        Some((_, "")) => return Err(()),
        Some((position, name)) => {
            let name = decoded(name)?;
            let is_name = name.starts_with(|first: char| first.is_ascii_lowercase());
            (position, if is_name { Received::UpTo(name) } else { return Err(()) })
        }
    };
    if !is_number(position) {
        return Err(());
    }
    Ok((position.parse().map_err(|_| ())?, next))
}

fn is_number(text: &str) -> bool {
    !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit())
}

fn decoded(text: &str) -> Result<String, ()> {
    percent_decode_str(text).decode_utf8().map(|text| text.into_owned()).map_err(|_| ())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Cursor {
        text.parse().unwrap_or_else(|()| panic!("could not parse {text}"))
    }

    #[test]
    fn a_formatted_cursor_parses_to_the_same_cursor() {
        for text in [
            "2.e-1.core=0",
            "2.e.core=7",
            "2.e.core=7+one:o-1",
            "2.e.core=7+2",
            "2.e.core=7.loyalty=9223372036854775807+points",
            "2.e%2Ee.a%20group=1+name%2Bwith%2Edots%25",
        ] {
            assert_eq!(read(text).to_string(), text);
        }
        assert_eq!(read("2.e%2Ee.a%20group=1+x%2By").groups[0].next, Received::UpTo("x+y".into()));
        assert_eq!(read("2.e.core=7 one:o-1"), read("2.e.core=7+one:o-1"), "from a query string");
    }

    const V1_KINDS: &[V1Kind] = &[V1Kind::Prefix("one:"), V1Kind::Prefix("by:"), V1Kind::Name("ones")];

    #[test]
    fn cursors_of_format_1_are_read() {
        for (text, same) in [
            ("7.e", "2.e.core=7"),
            ("7+2.e", "2.e.core=7+2"),
            ("2.e", "2.e.core=2"),
            ("0 9999.e-1", "2.e-1.core=0+9999"),
        ] {
            assert_eq!(read(text), read(same), "{text}");
        }
        let known = |count: usize| {
            let cursor = read(&format!("7+{count}.e"));
            ["one:a", "by:a", "ones", "another"].map(|channel| cursor.groups[0].position_on(channel, V1_KINDS))
        };
        assert_eq!(known(0), [7; 4]);
        assert_eq!(known(1), [8, 7, 7, 7]);
        assert_eq!(known(2), [8, 8, 7, 7]);
        assert_eq!(known(9), [8, 8, 8, 7]);
    }

    #[test]
    fn a_cursor_with_a_name_covers_the_channels_up_to_it() {
        let known = read("2.e.core=7+one:o-2");
        let on = |channel| known.groups[0].position_on(channel, V1_KINDS);
        assert_eq!(["by:ada", "one:o-1", "one:o-2", "one:o-3", "ones"].map(on), [8, 8, 8, 7, 7]);
        assert_eq!(read("2.e.core=9223372036854775807+x").groups[0].position_on("a", &[]), i64::MAX);
    }

    #[test]
    fn invalid_cursors_are_refused() {
        for text in [
            "",
            "7",
            "-1.e",
            "7+.e",
            "7+-1.e",
            "+2.e",
            "7.",
            "x.e",
            "7+x.e",
            "99999999999999999999.e",
            "7+99999999999999999999.e",
            "2.",
            "2..core=7",
            "2.e.",
            "2.e.core",
            "2.e.core=",
            "2.e.=7",
            "2.e.core=-7",
            "2.e.core=+7",
            "2.e.core=7+",
            "2.e.core=7++",
            "2.e.core=7+-1",
            "2.e.core=7+Upper",
            "2.e.core=7.core=8",
            "2.e.core=7..loyalty=8",
            "2.e.core=7.",
            "2.e.core=7+%ff",
            "2.e.core=99999999999999999999",
            "3.e.core=7",
        ] {
            assert!(text.parse::<Cursor>().is_err() || text == "3.e.core=7", "{text}");
        }
        assert!(format!("2.{}.core=7", "e".repeat(65)).parse::<Cursor>().is_err());
        assert!(format!("2.e.core=7+{}", "n".repeat(TEXT_BYTES_MAX)).parse::<Cursor>().is_err());
        // A cursor of a later format parses as a position with an unknown epoch, so its client gets snapshots.
        assert_eq!(read("3.e.core=7").epoch, "e.core=7");
    }
}
