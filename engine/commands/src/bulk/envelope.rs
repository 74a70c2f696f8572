//! Parses a line of a bulk request into a command.

use std::panic::{AssertUnwindSafe, catch_unwind};

use jiff::Timestamp;
use platform::auth::Principal;
use platform::body;
use platform::conditional::Versions;
use platform::problem::{FORBIDDEN, INVALID_BODY, Problem, TOKEN_EXPIRED};
use platform::time::parse_time;
use serde_json::{Map, Value};

use crate::bulk::lines::{BulkLines, Line};
use crate::decider::Origin;

/// The largest length of a line's `id`, in characters.
const ID_CHARS_MAX: usize = 255;

/// Request id and trace context of the bulk request.
pub(crate) type RequestContext = (Option<String>, Option<opentelemetry::Context>);

/// A parsed line.
pub(crate) struct Envelope {
    pub(crate) number: u64,
    /// The line's `id`, which its result repeats.
    pub(crate) id: Option<Value>,
    /// `Err` when the line is refused before it is a command.
    pub(crate) command: Result<(Line, Origin), Box<Problem>>,
}

/// Parses a line. `lines` are the bulk commands of each context.
pub(crate) fn envelope(
    number: u64,
    bytes: &[u8],
    principal: &Principal,
    context: &RequestContext,
    lines: &[BulkLines],
) -> Envelope {
    let mut id = None;
    let command = (|| {
        let mut fields: Map<String, Value> = body::parse(bytes, "")?;
        id = match fields.remove("id") {
            Some(Value::String(text)) if text.chars().count() > ID_CHARS_MAX => {
                return Err(field("/id", "Must have at most 255 characters."));
            }
            // JSON would echo another number in another form: 1e2 as 100.0, a number of 20 digits rounded.
            Some(Value::Number(number)) if !number.is_i64() && !number.is_u64() => {
                return Err(field("/id", "Must be a string, or a whole number of at most 64 bits."));
            }
            id @ (None | Some(Value::Null | Value::String(_) | Value::Number(_))) => id,
            Some(_) => return Err(field("/id", "Must be a string or a whole number.")),
        };
        if principal.expires_at < Timestamp::now().as_second() {
            return Err(Problem::new(TOKEN_EXPIRED)
                .detail("The token expired while commands were read. Send the remaining lines with a new token."));
        }
        let occurred_at = occurred_at(&mut fields, principal)?;
        let is_history = is_history(&mut fields, principal)?;
        let expected = match fields.remove("expected_version") {
            None | Some(Value::Null) => None,
            Some(version) => {
                let version =
                    version.as_i64().ok_or_else(|| field("/expected_version", "Must be a version, e.g. 3."))?;
                Some(Versions::Listed(vec![version]))
            }
        };
        let Some(Value::String(kind)) = fields.remove("type") else {
            return Err(field("/type", "Must be the name of a command."));
        };
        let own = lines.iter().find(|own| own.types.contains(&kind.as_str()));
        let parse = own.ok_or_else(|| unknown_type(lines))?.parse;
        let parsed = catch_unwind(AssertUnwindSafe(|| parse(&kind, fields, principal)));
        let mut line = parsed.unwrap_or_else(|_| Err(Problem::internal()))?;
        line.step.expect(expected);
        let origin = Origin {
            principal: principal.clone(),
            key: None,
            occurred_at,
            is_history,
            waits_for_capacity: true,
            request_id: context.0.clone(),
            trace: context.1.clone(),
        };
        Ok((line, origin))
    })();
    Envelope { number, id, command: command.map_err(Box::new) }
}

fn unknown_type(lines: &[BulkLines]) -> Problem {
    let types: Vec<_> = lines.iter().flat_map(|own| own.types).copied().collect();
    field("/type", &format!("Must be one of {}.", types.join(", ")))
}

fn is_history(fields: &mut Map<String, Value>, principal: &Principal) -> Result<bool, Problem> {
    match fields.remove("history") {
        None | Some(Value::Null | Value::Bool(false)) => Ok(false),
        Some(Value::Bool(true)) if principal.is_staff() => Ok(true),
        Some(Value::Bool(true)) => Err(Problem::new(FORBIDDEN)
            .detail("Only staff may mark a command as history.")
            .error("/history", "Only staff may set this member.")),
        Some(_) => Err(field("/history", "Must be true or false.")),
    }
}

fn occurred_at(fields: &mut Map<String, Value>, principal: &Principal) -> Result<Option<Timestamp>, Problem> {
    match fields.remove("occurred_at") {
        None | Some(Value::Null) => Ok(None),
        Some(_) if !principal.is_staff() => Err(Problem::new(FORBIDDEN)
            .detail("Only staff may set the time at which a command happened.")
            .error("/occurred_at", "Only staff may set this member.")),
        Some(at) => at
            .as_str()
            .and_then(|text| parse_time(text).ok())
            .and_then(|at| Timestamp::from_microsecond(at.as_microsecond()).ok())
            .map(Some)
            .ok_or_else(|| {
                field("/occurred_at", "Must be a time in RFC 3339 with an offset, e.g. \"2017-01-01T11:53:26+02:00\".")
            }),
    }
}

/// Returns 422 (`invalid-body`) for a wrong member of a line. `pointer` is its JSON pointer; `message` says what is
/// allowed.
pub fn field(pointer: &str, message: &str) -> Problem {
    Problem::new(INVALID_BODY)
        .detail(format!("Member {}: {message}", pointer.trim_start_matches('/')))
        .error(pointer, message)
}
