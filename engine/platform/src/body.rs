//! Extractors and parsers of request data. Every failure is a problem that names the invalid place and the allowed
//! values.

use std::borrow::Cow;
use std::collections::HashSet;
use std::error::Error as _;
use std::fmt;
use std::marker::PhantomData;
use std::time::Duration;

use axum::body::{Body, Bytes, HttpBody};
use axum::extract::rejection::BytesRejection;
use axum::extract::{FromRequest, FromRequestParts, Request};
use axum::http::header::{ACCEPT_ENCODING, CONTENT_ENCODING, CONTENT_TYPE};
use axum::http::request::Parts;
use axum::http::{HeaderMap, HeaderValue, StatusCode};
use axum::response::{IntoResponse, Response};
use futures::StreamExt;
use serde::de::value::MapAccessDeserializer;
use serde::de::{DeserializeOwned, DeserializeSeed, IgnoredAny, MapAccess, SeqAccess, Visitor};
use serde::{Deserialize, Deserializer, Serialize};
use serde_json::{Map, Value, json};
use serde_path_to_error::Segment;

use crate::body_memory::BodyReservation;
use crate::compression::{CODINGS, Coding};
use crate::problem::{
    BODY_TOO_LARGE, INVALID_BODY, INVALID_QUERY, MALFORMED_JSON, Problem, REQUEST_TIMEOUT, UNREADABLE_BODY,
    UNSUPPORTED_CONTENT_ENCODING, UNSUPPORTED_MEDIA_TYPE,
};

/// Most wrong members that a problem names.
const ERRORS_MAX: usize = 100;
/// Most bytes of documents that are tried to find the wrong members: some milliseconds of work.
const SEARCHED_BYTES_MAX: usize = 2 << 20;
/// Maximum characters of client data or a message in an error response.
const SHOWN_CHARS_MAX: usize = 500;
/// Bodies with a declared size up to this limit are not counted while they arrive.
const COUNTED_FROM_BYTES: u64 = 16 * 1024;
/// How long a client may take to send a body that is read as a whole.
const READ_TIMEOUT: Duration = Duration::from_secs(30);
/// The byte order mark that some programs write at the start of a UTF-8 text.
const BYTE_ORDER_MARK: &[u8] = b"\xef\xbb\xbf";
/// Initial capacity of the set of member names of an object.
const MEMBERS_USUAL: usize = 14;

/// A JSON body of a request or a response. The `DefaultBodyLimit` of the route limits the size of a request body (1
/// MiB, see [`crate::http::harden`]).
///
/// Refuses a request with 415 (another content type), 413 (body too large), 408 (the body takes more than 30 s to
/// arrive), 400 (`malformed-json`: not JSON), 422 (`invalid-body`: JSON that does not match `T`), or with 429 or 503
/// when too many bodies arrive at once.
#[derive(Clone, Copy, Debug)]
pub struct Json<T>(pub T);

impl<T: DeserializeOwned, S: Send + Sync> FromRequest<S> for Json<T> {
    type Rejection = Problem;

    async fn from_request(request: Request, state: &S) -> Result<Self, Problem> {
        let bytes = read(request, state).await?;
        parse(&bytes, "").map(Self)
    }
}

/// Reads a complete body that is JSON or empty, and returns its bytes. For callers that need the bytes as well as the
/// parsed value.
///
/// # Errors
/// The errors of [`Json`], except those of parsing.
pub async fn read<S: Send + Sync>(request: Request, state: &S) -> Result<Bytes, Problem> {
    let json = is_json(request.headers());
    let is_small = request.body().size_hint().upper().is_some_and(|bytes| bytes <= COUNTED_FROM_BYTES);
    let request = if is_small { request } else { counted(request) };
    let bytes = match tokio::time::timeout(READ_TIMEOUT, Bytes::from_request(request, state)).await {
        Ok(bytes) => bytes.map_err(unreadable)?,
        Err(_) => {
            return Err(Problem::new(REQUEST_TIMEOUT)
                .detail("The body did not arrive within 30 seconds. Send the request again."));
        }
    };
    if !json && !bytes.is_empty() {
        return Err(unsupported_media_type().detail("Send JSON with the header Content-Type: application/json."));
    }
    Ok(bytes)
}

/// Counts the body against the limits of its sender while it arrives. If a limit is reached, the body fails with the
/// problem.
fn counted(request: Request) -> Request {
    let mut reservation = BodyReservation::new(request.extensions());
    request.map(|body| {
        Body::from_stream(body.into_data_stream().map(move |chunk| {
            let chunk = chunk?;
            reservation.add(chunk.len()).map_err(axum::Error::new)?;
            Ok::<_, axum::Error>(chunk)
        }))
    })
}

impl<T: Serialize> IntoResponse for Json<T> {
    fn into_response(self) -> Response {
        axum::Json(self.0).into_response()
    }
}

/// The query string. Refuses a query that does not match `T` with 400 (`invalid-query`) and names the parameter.
#[derive(Clone, Copy, Debug)]
pub struct Query<T>(pub T);

impl<T: DeserializeOwned, S: Send + Sync> FromRequestParts<S> for Query<T> {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Problem> {
        match axum::extract::Query::try_from_uri(&parts.uri) {
            Ok(axum::extract::Query(query)) => Ok(Self(query)),
            Err(rejection) => Err(invalid_query(&rejection)),
        }
    }
}

/// A value inside a body that must be a JSON object. Serde also accepts an array as the fields of a struct in order; the
/// API does not.
#[derive(Clone, Copy, Debug)]
pub struct Object<T>(pub T);

impl<'de, T: Deserialize<'de>> Deserialize<'de> for Object<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Members<T>(PhantomData<T>);

        impl<'de, T: Deserialize<'de>> Visitor<'de> for Members<T> {
            type Value = Object<T>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object")
            }

            fn visit_map<A: MapAccess<'de>>(self, members: A) -> Result<Object<T>, A::Error> {
                T::deserialize(MapAccessDeserializer::new(members)).map(Object)
            }
        }

        deserializer.deserialize_map(Members(PhantomData))
    }
}

/// Parses a JSON object from a body or a line of NDJSON. `pointer_prefix` (a JSON pointer or empty) is prepended to the
/// pointers in the problem. A leading byte order mark is ignored, as RFC 8259 allows.
///
/// # Errors
/// 400 (`malformed-json`) if the text is not JSON; 422 (`invalid-body`) if it does not match `T`, or if an object at
/// any depth has two members with the same name.
pub fn parse<T: DeserializeOwned>(bytes: &[u8], pointer_prefix: &str) -> Result<T, Problem> {
    let bytes = bytes.strip_prefix(BYTE_ORDER_MARK).unwrap_or(bytes);
    let Ok(text) = std::str::from_utf8(bytes) else { return Err(malformed("it is not UTF-8")) };
    let mut doubled = None;
    if let Err(error) = check_names(text, &mut doubled) {
        // Syntax errors take precedence: an error about a member is misleading if the text is not JSON.
        if let Err(error) = serde_json::from_str::<IgnoredAny>(text) {
            return Err(match text.trim_ascii().is_empty() {
                true => malformed("it is empty"),
                false => malformed(&error.to_string().replacen("EOF while parsing", "it ends within", 1)),
            });
        }
        return Err(match doubled {
            None => invalid_body::<T>(text, pointer_prefix, &error),
            Some(place) => {
                let pointer: String = place.iter().rev().map(|part| format!("/{}", escape(part))).collect();
                let message = format!("duplicate field `{}`", place.first().map_or("", String::as_str));
                invalid(format!("{pointer_prefix}{pointer}"), message)
            }
        });
    }
    // Serde accepts an array as the fields of a struct in order. The API does not.
    if text.trim_ascii_start().starts_with('[') {
        return Err(invalid(pointer_prefix.to_owned(), "must be an object, not an array".to_owned()));
    }
    // Tracking the path costs one allocation per key, so only an invalid body is read with it.
    serde_json::from_str(text).map_err(|error| invalid_body::<T>(text, pointer_prefix, &error))
}

/// Converts a JSON value that is part of a larger one. Errors are reported as by [`parse`].
///
/// # Errors
/// 422 (`invalid-body`) if the value does not match `T`.
pub fn from_value<T: DeserializeOwned>(value: serde_json::Value) -> Result<T, Problem> {
    // Only an invalid value is serialized and parsed again, to find the path of the error.
    T::deserialize(&value).map_err(|error| invalid_body::<T>(&value.to_string(), "", &error))
}

/// Returns the coding of a body; None if it is not compressed. Refuses unknown codings, and charsets other than UTF-8.
/// For all routes that read a body, including those that read it as a stream.
///
/// # Errors
/// 415 (`unsupported-content-encoding` or `unsupported-media-type`).
pub(crate) fn check_encoding(headers: &HeaderMap) -> Result<Option<Coding>, Problem> {
    let encodings = headers.get_all(CONTENT_ENCODING).iter().map(|value| value.to_str().unwrap_or("?"));
    let encodings = encodings.flat_map(|value| value.split(',')).map(str::trim);
    let mut encodings = encodings.filter(|name| !name.is_empty() && !name.eq_ignore_ascii_case("identity"));
    let coding = match (encodings.next(), encodings.next()) {
        (None, _) => None,
        (Some(name), None) if Coding::named(name).is_some() => Coding::named(name),
        (Some(name), second) => {
            let names = second.map_or(name.to_owned(), |second| format!("{name}, {second}"));
            return Err(Problem::new(UNSUPPORTED_CONTENT_ENCODING)
                .detail(format!(
                    "The body was sent with Content-Encoding: {}. Send the body with one of the codings gzip and br, or \
                     uncompressed and without this header.",
                    shortened(names)
                ))
                .header(ACCEPT_ENCODING, HeaderValue::from_static(CODINGS)));
        }
    };
    let content_type = headers.get(CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or_default();
    let parameters = content_type.split(';').skip(1).filter_map(|parameter| parameter.split_once('='));
    let mut charsets = parameters
        .filter(|(name, _)| name.trim().eq_ignore_ascii_case("charset"))
        .map(|(_, value)| value.trim().trim_matches('"'));
    let is_utf8 = |charset: &&str| ["utf-8", "utf8", "us-ascii"].iter().any(|name| charset.eq_ignore_ascii_case(name));
    match charsets.find(|charset| !is_utf8(charset)) {
        None => Ok(coding),
        Some(charset) => Err(unsupported_media_type()
            .detail(format!("The body was sent with charset={}. Send UTF-8.", shortened(charset.to_owned())))),
    }
}

fn unsupported_media_type() -> Problem {
    Problem::new(UNSUPPORTED_MEDIA_TYPE)
}

/// Parses a JSON text and refuses duplicate member names, because of two members with one name some parsers use the
/// first and some the last. `doubled` receives the path of the second member, innermost part first.
fn check_names(text: &str, doubled: &mut Option<Vec<String>>) -> serde_json::Result<()> {
    let mut deserializer = serde_json::Deserializer::from_str(text);
    UniqueNames(doubled).deserialize(&mut deserializer)?;
    deserializer.end()
}

struct UniqueNames<'a>(&'a mut Option<Vec<String>>);

impl UniqueNames<'_> {
    /// Adds this level to the path of a duplicate member, while the error returns to the root.
    fn push_path_segment(&mut self, part: impl ToString) {
        if let Some(place) = self.0 {
            place.push(part.to_string());
        }
    }
}

/// The name of a member. Borrowed from the text unless it contains an escape.
#[derive(PartialEq, Eq, Hash, Deserialize)]
#[serde(transparent)]
struct Name<'a>(#[serde(borrow)] Cow<'a, str>);

impl<'de> DeserializeSeed<'de> for UniqueNames<'_> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for UniqueNames<'_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("any valid JSON value")
    }

    fn visit_unit<E>(self) -> Result<(), E> {
        Ok(())
    }

    fn visit_bool<E>(self, _: bool) -> Result<(), E> {
        Ok(())
    }

    fn visit_u64<E>(self, _: u64) -> Result<(), E> {
        Ok(())
    }

    fn visit_i64<E>(self, _: i64) -> Result<(), E> {
        Ok(())
    }

    fn visit_f64<E>(self, _: f64) -> Result<(), E> {
        Ok(())
    }

    fn visit_str<E>(self, _: &str) -> Result<(), E> {
        Ok(())
    }

    fn visit_seq<A: SeqAccess<'de>>(mut self, mut items: A) -> Result<(), A::Error> {
        for at in 0.. {
            match items.next_element_seed(UniqueNames(self.0)) {
                Ok(Some(())) => {}
                Ok(None) => break,
                Err(error) => {
                    self.push_path_segment(at);
                    return Err(error);
                }
            }
        }
        Ok(())
    }

    fn visit_map<A: MapAccess<'de>>(mut self, mut members: A) -> Result<(), A::Error> {
        let mut names = HashSet::with_capacity(MEMBERS_USUAL);
        while let Some(name) = members.next_key::<Name<'de>>()? {
            if names.contains(&name) {
                *self.0 = Some(vec![name.0.into_owned()]);
                return Err(serde::de::Error::custom("duplicate field"));
            }
            if let Err(error) = members.next_value_seed(UniqueNames(self.0)) {
                self.push_path_segment(name.0);
                return Err(error);
            }
            names.insert(name);
        }
        Ok(())
    }
}

fn malformed(reason: &str) -> Problem {
    Problem::new(MALFORMED_JSON).detail(format!("The request must contain JSON, but {reason}."))
}

fn invalid(pointer: String, message: String) -> Problem {
    // Both texts may contain client data of any length.
    let (pointer, message) = (shortened(pointer), shortened(message));
    let detail = match pointer.as_str() {
        "" => message.clone(),
        pointer => format!("The value at {pointer} is not valid: {message}."),
    };
    Problem::new(INVALID_BODY).detail(detail).error(pointer, message)
}

/// Returns the problem for a text that does not match `T`. It names every wrong member, within the limits of [`Search`].
fn invalid_body<T: DeserializeOwned>(text: &str, prefix: &str, first: &serde_json::Error) -> Problem {
    let mut search = Search { found: Vec::new(), bytes_left: SEARCHED_BYTES_MAX };
    if let Ok(document) = serde_json::from_str(text) {
        // `None` means that a limit is reached.
        let _ = search.members::<T>(&document, &|document| document, "", "");
    }
    if search.found.is_empty() {
        search.found.push(first_error::<T>(text).unwrap_or_else(|| (String::new(), message(first))));
    }
    let found = search.found.into_iter();
    let mut errors = found.map(|(pointer, message)| invalid(format!("{prefix}{pointer}"), message));
    let problem = errors.next().unwrap_or_else(|| malformed("it does not match"));
    errors.fold(problem, Problem::and)
}

/// Finds the wrong members of a document. Serde stops at the first error, so each member is tried alone: `document`
/// returns a document that contains a value in the place of the tried one and nothing beside it. `tried` is the pointer of
/// that place, and `pointer` the one in the client's document: an element of an array is tried as the only element.
///
/// A search ends after [`ERRORS_MAX`] wrong members, or when all tried documents together have [`SEARCHED_BYTES_MAX`]
/// bytes. Its methods then return `None`.
struct Search {
    /// Pointers of the wrong members, and what is wrong with each.
    found: Vec<(String, String)>,
    bytes_left: usize,
}

impl Search {
    fn members<T: DeserializeOwned>(
        &mut self,
        value: &Value,
        document: &dyn Fn(Value) -> Value,
        tried: &str,
        pointer: &str,
    ) -> Option<()> {
        match value {
            Value::Object(members) => {
                let mut right = Map::new();
                for (name, member) in members {
                    let alone = |member| document(Value::Object(Map::from_iter([(name.clone(), member)])));
                    let place = format!("/{}", escape(name));
                    let (inner, outer) = (format!("{tried}{place}"), format!("{pointer}{place}"));
                    if self.member::<T>(member, &alone, &inner, &outer)? {
                        right.insert(name.clone(), member.clone());
                    }
                }
                self.missing::<T>(right, document, tried, pointer)
            }
            Value::Array(elements) => {
                let (alone, inner) = (|element| document(Value::Array(vec![element])), format!("{tried}/0"));
                for (at, element) in elements.iter().enumerate() {
                    self.member::<T>(element, &alone, &inner, &format!("{pointer}/{at}"))?;
                }
                Some(())
            }
            _ => Some(()),
        }
    }

    /// Tries one member or element. Returns whether it is right.
    fn member<T: DeserializeOwned>(
        &mut self,
        member: &Value,
        alone: &dyn Fn(Value) -> Value,
        tried: &str,
        pointer: &str,
    ) -> Option<bool> {
        let error = self.first_error::<T>(alone(member.clone()))?;
        let Some((at, message)) = error.filter(|(at, _)| is_within(at, tried)) else { return Some(true) };
        let before = self.found.len();
        // The error of the member itself says nothing about its own members.
        if at != tried {
            self.members::<T>(member, alone, tried, pointer)?;
        }
        if self.found.len() == before {
            self.add(format!("{pointer}{}", &at[tried.len()..]), message)?;
        }
        Some(false)
    }

    /// Finds the missing members of an object whose other members are right. Serde reports the first one, so each is
    /// filled with a value that it may have, until none is missing.
    fn missing<T: DeserializeOwned>(
        &mut self,
        mut right: Map<String, Value>,
        document: &dyn Fn(Value) -> Value,
        tried: &str,
        pointer: &str,
    ) -> Option<()> {
        while let Some((at, message)) = self.first_error::<T>(document(Value::Object(right.clone())))?
            && let Some(name) = named_field(&message).filter(|_| message.starts_with("missing")).map(str::to_owned)
            && at == format!("{tried}/{}", escape(&name))
        {
            let place = format!("{pointer}{}", &at[tried.len()..]);
            // A wrong member is left out of `right`, so it seems to be missing.
            if !self.found.iter().any(|(wrong, _)| is_within(wrong, &place)) {
                self.add(place, message)?;
            }
            let mut fits = false;
            for fitting in [json!("1"), json!(1), json!([]), json!({}), json!(true), json!("USD")] {
                right.insert(name.clone(), fitting);
                let error = self.first_error::<T>(document(Value::Object(right.clone())))?;
                fits = !error.is_some_and(|(wrong, _)| is_within(&wrong, &at));
                if fits {
                    break;
                }
            }
            if !fits {
                break;
            }
        }
        Some(())
    }

    fn first_error<T: DeserializeOwned>(&mut self, document: Value) -> Option<Option<(String, String)>> {
        let text = document.to_string();
        self.bytes_left = self.bytes_left.checked_sub(text.len())?;
        Some(first_error::<T>(&text))
    }

    fn add(&mut self, pointer: String, message: String) -> Option<()> {
        self.found.push((pointer, message));
        (self.found.len() < ERRORS_MAX).then_some(())
    }
}

/// Whether a pointer is `place` or leads into it.
fn is_within(pointer: &str, place: &str) -> bool {
    pointer.strip_prefix(place).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
}

/// Returns the first error of a text that does not match `T`: the pointer of the member, and what is wrong.
fn first_error<T: DeserializeOwned>(text: &str) -> Option<(String, String)> {
    let mut deserializer = serde_json::Deserializer::from_str(text);
    let error = serde_path_to_error::deserialize::<_, T>(&mut deserializer).err()?;
    let (mut pointer, message) = (pointer(error.path()), message(error.inner()));
    // Serde reports an unknown or missing member at its parent. The pointer must name the member.
    if let Some(field) = named_field(&message) {
        let last = format!("/{}", escape(field));
        if message.starts_with("missing") || !pointer.ends_with(&last) {
            pointer.push_str(&last);
        }
    }
    Some((pointer, message))
}

/// Truncates a text to [`SHOWN_CHARS_MAX`] characters, in a new allocation if the text was longer.
fn shortened(text: String) -> String {
    match text.char_indices().nth(SHOWN_CHARS_MAX) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text,
    }
}

fn pointer(path: &serde_path_to_error::Path) -> String {
    let mut pointer = String::new();
    for segment in path {
        match segment {
            Segment::Seq { index } => pointer.push_str(&format!("/{index}")),
            Segment::Map { key } => pointer.push_str(&format!("/{}", escape(key))),
            // A variant is not a place in the document, and JSON keys are always strings.
            Segment::Enum { .. } | Segment::Unknown => {}
        }
    }
    pointer
}

fn escape(key: &str) -> String {
    key.replace('~', "~0").replace('/', "~1")
}

/// Returns the message without line and column, because the pointer names the place, and without names of Rust types.
fn message(error: &serde_json::Error) -> String {
    let text = error.to_string();
    let place = format!(" at line {} column {}", error.line(), error.column());
    plain(text.strip_suffix(&place).unwrap_or(&text))
}

/// Translates a message of serde to the terms of JSON.
fn plain(message: &str) -> String {
    let mismatch =
        ["invalid type: ", "invalid value: ", "invalid length "].iter().find_map(|start| message.strip_prefix(start));
    if let Some((found, expected)) = mismatch.and_then(|rest| rest.rsplit_once(", expected ")) {
        let found = match found {
            "map" => "an object",
            "sequence" => "an array",
            "unit value" | "Option value" => "null",
            found => ["integer ", "floating point ", "boolean ", "string "]
                .iter()
                .find_map(|kind| found.strip_prefix(kind))
                .map_or(found, |value| value.trim_matches('`')),
        };
        return format!("must be {}, not {found}", in_json(expected));
    }
    match message {
        "number out of range" | "number too large to fit in target type" | "number too small to fit in target type" => {
            "the number is out of range".to_owned()
        }
        "invalid digit found in string" | "cannot parse integer from empty string" => {
            "must be a whole number".to_owned()
        }
        "recursion limit exceeded" => "the value is nested too deeply".to_owned(),
        "lone leading surrogate in hex escape" | "unexpected end of hex escape" => {
            "the text contains an escape (\\u) that is not a character".to_owned()
        }
        other => match other.strip_prefix("unknown variant ") {
            Some(rest) => format!("unknown name {rest}"),
            None => other.to_owned(),
        },
    }
}

/// Translates a type in a message of serde to the terms of JSON.
fn in_json(expected: &str) -> &str {
    match expected {
        "a map" | "map" | "an object" => "an object",
        "a sequence" | "sequence" => "an array",
        "a boolean" | "bool" => "true or false",
        "u8" => "a whole number from 0 to 255",
        "u16" => "a whole number from 0 to 65535",
        "u32" => "a whole number from 0 to 4294967295",
        "u64" | "u128" | "usize" => "a whole number that is not negative",
        "i8" | "i16" | "i32" | "i64" | "i128" | "isize" => "a whole number",
        "f32" | "f64" => "a number",
        _ if expected.starts_with("struct ") => "an object",
        _ if expected.starts_with("tuple ") || expected.starts_with("a tuple") => "an array",
        _ if expected.starts_with("enum ") => "one of the names that the API lists",
        other => other,
    }
}

fn named_field(message: &str) -> Option<&str> {
    let rest = ["unknown field `", "missing field `", "duplicate field `"]
        .iter()
        .find_map(|start| message.strip_prefix(start))?;
    // An unknown name may contain a backtick itself, so the end is found by the text that serde adds after the name.
    let end = rest
        .rfind("`, expected")
        .filter(|_| message.starts_with("unknown"))
        .or_else(|| rest.rfind("`, there are"))
        .or_else(|| rest.rfind('`'));
    Some(&rest[..end?])
}

fn invalid_query(rejection: &axum::extract::rejection::QueryRejection) -> Problem {
    type Cause = serde_path_to_error::Error<serde::de::value::Error>;
    let cause = std::iter::successors(rejection.source(), |error| (*error).source())
        .find_map(|error| error.downcast_ref::<Cause>());
    let problem = Problem::new(INVALID_QUERY);
    let Some(cause) = cause else { return problem.detail("The query string cannot be read. Percent-encode it.") };
    let message = plain(&cause.inner().to_string());
    let parameter = match named_field(&message) {
        Some(field) => field.to_owned(),
        None => cause.path().to_string(),
    };
    let detail = if message.starts_with("missing field") {
        format!("The query parameter {parameter} is required.")
    } else if message.starts_with("duplicate field") {
        format!("The query parameter {parameter} occurs more than once. Send it once.")
    } else if message.starts_with("unknown field") {
        let known = message.rsplit_once("`, expected ").map_or("", |(_, known)| known);
        let known = known.trim_start_matches("one of ").replace('`', "");
        match known.as_str() {
            "" => format!("There is no query parameter {parameter}. This path has no parameters."),
            known => format!("There is no query parameter {parameter}. The parameters are: {known}."),
        }
    } else {
        format!("The query parameter {parameter} is not valid: {message}.")
    };
    problem.detail(shortened(detail)).with("parameter", shortened(parameter))
}

/// Whether the content type is `application/json` or `application/*+json`, with or without parameters.
fn is_json(headers: &HeaderMap) -> bool {
    let Some(value) = headers.get(CONTENT_TYPE).and_then(|value| value.to_str().ok()) else { return false };
    let media_type = value.split(';').next().unwrap_or_default().trim();
    media_type.eq_ignore_ascii_case("application/json") || {
        let lower = media_type.to_ascii_lowercase();
        lower.starts_with("application/") && lower.ends_with("+json")
    }
}

/// Returns the problem with which a body failed while it arrived: a limit was reached, or it could not be decoded. None
/// when the connection failed.
pub fn refusal(error: &(dyn std::error::Error + 'static)) -> Option<Problem> {
    let mut causes = std::iter::successors(Some(error), |error| (*error).source());
    causes.find_map(|error| error.downcast_ref::<Problem>()).cloned()
}

fn unreadable(rejection: BytesRejection) -> Problem {
    if let Some(refusal) = refusal(&rejection) {
        return refusal;
    }
    let rejection = rejection.into_response();
    match rejection.status() {
        StatusCode::PAYLOAD_TOO_LARGE => Problem::new(BODY_TOO_LARGE)
            .detail("The body is larger than this resource accepts. Send less data per request."),
        _ => Problem::new(UNREADABLE_BODY).detail("The body ended early. Send the request again."),
    }
}

#[cfg(test)]
mod tests {
    use axum::body::Body;
    use axum::extract::DefaultBodyLimit;
    use serde_json::{Value, json};

    use super::*;

    #[test]
    fn every_wrong_member_is_named() {
        #[derive(Debug, Deserialize)]
        #[serde(deny_unknown_fields)]
        #[expect(dead_code, reason = "only parsed")]
        struct Cart {
            owner: String,
            note: String,
            count: u8,
            lines: Vec<Object<Line>>,
            #[serde(default)]
            tags: std::collections::BTreeMap<String, String>,
        }
        #[derive(Debug, Deserialize)]
        #[serde(deny_unknown_fields)]
        #[expect(dead_code, reason = "only parsed")]
        struct Line {
            sku: String,
            pieces: u8,
            price: String,
        }
        let text = r#"{"count": 999, "colour": "red", "tags": {"a": "b", "c": 1},
            "lines": [{"sku": "tea", "pieces": 1, "price": "1"}, {"sku": 7, "pieces": -1}, 5, {"weight": 3}, ["tea", 1, "1"]]}"#;
        let problem = serde_json::to_value(parse::<Cart>(text.as_bytes(), "").unwrap_err()).unwrap();
        let pointers: Vec<&str> =
            problem["errors"].as_array().unwrap().iter().map(|error| error["pointer"].as_str().unwrap()).collect();
        assert_eq!(
            pointers,
            [
                "/count",
                "/colour",
                "/tags/c",
                "/lines/1/sku",
                "/lines/1/pieces",
                "/lines/1/price",
                "/lines/2",
                "/lines/3/weight",
                "/lines/3/sku",
                "/lines/3/pieces",
                "/lines/3/price",
                "/lines/4",
                "/owner",
                "/note",
            ],
            "{problem:#}"
        );
        // An error of a long array says nothing about its elements, and a search is limited.
        for long in [r#"{"owner": [{}0]}"#, r#"{"lines": [{}[0]]}"#] {
            let text = long.replace("{}", &"0,".repeat(500_000));
            let started = std::time::Instant::now();
            assert!(parse::<Cart>(text.as_bytes(), "").is_err());
            assert!(started.elapsed() < Duration::from_secs(5), "{:?}", started.elapsed());
        }
        let many = format!(r#"{{"lines": [{}0]}}"#, "0,".repeat(1_000));
        let problem = serde_json::to_value(parse::<Cart>(many.as_bytes(), "").unwrap_err()).unwrap();
        assert_eq!(problem["errors"].as_array().unwrap().len(), ERRORS_MAX);
    }

    #[derive(Debug, Deserialize)]
    #[serde(deny_unknown_fields)]
    struct Order {
        #[allow(dead_code)]
        customer: String,
        #[serde(default)]
        #[allow(dead_code)]
        items: Vec<Item>,
    }

    #[derive(Debug, Deserialize)]
    #[serde(deny_unknown_fields)]
    struct Item {
        #[serde(rename = "a/b~c")]
        #[allow(dead_code)]
        odd: u32,
    }

    fn fail(text: &str, prefix: &str) -> (u16, &'static str, Value) {
        let problem = parse::<Order>(text.as_bytes(), prefix).unwrap_err();
        (problem.status().as_u16(), problem.slug(), serde_json::to_value(&problem).unwrap())
    }

    #[test]
    fn a_data_error_names_its_json_pointer() {
        let cases = [
            (r#"{"customer":5}"#, "/customer", "Must be a string, not 5."),
            (
                r#"{"customer":"c","items":[{"a/b~c":1},{"a/b~c":"2"}]}"#,
                "/items/1/a~1b~0c",
                "Must be a whole number from 0 to 4294967295, not \"2\".",
            ),
            (r#"{"customer":"c","price":1}"#, "/price", "Unknown field `price`, expected `customer` or `items`."),
            (
                r#"{"customer":"c","items":[{"a/b~c":1,"x/y":1}]}"#,
                "/items/0/x~1y",
                "Unknown field `x/y`, expected `a/b~c`.",
            ),
            (r#"{"customer":"c","items":[{}]}"#, "/items/0/a~1b~0c", "Missing field `a/b~c`."),
            (r#"{"customer":"c","customer":"d"}"#, "/customer", "Duplicate field `customer`."),
            (r#"{"customer":"c","items":{}}"#, "/items", "Must be an array, not an object."),
            (r#"{"customer":"c","items":[5]}"#, "/items/0", "Must be an object, not 5."),
            (r#"{"customer":null}"#, "/customer", "Must be a string, not null."),
            (r#"{"customer":"c","items":[{"a/b~c":1e999}]}"#, "/items/0/a~1b~0c", "The number is out of range."),
            (r#"{"customer":"\ud800"}"#, "/customer", r"The text contains an escape (\u) that is not a character."),
            (r#"{"items":[]}"#, "/customer", "Missing field `customer`."),
        ];
        for (text, pointer, message) in cases {
            let (status, slug, problem) = fail(text, "");
            assert_eq!((status, slug), (422, "invalid-body"), "{text}");
            assert_eq!(problem["errors"], json!([{"pointer": pointer, "message": message}]), "{text}");
        }
        // Serde reads an array as a struct's fields in order.
        assert_eq!(fail("[1]", "").2["errors"][0]["message"], "Must be an object, not an array.");
        assert_eq!(fail("7", "").2["errors"], json!([{"pointer": "", "message": "Must be an object, not 7."}]));
    }

    #[test]
    fn client_values_in_errors_are_shortened_and_not_retained() {
        let short = shortened("é".repeat(900_000));
        assert_eq!(short.chars().count(), SHOWN_CHARS_MAX + 1);
        assert!(short.capacity() <= 4 * SHOWN_CHARS_MAX, "{} bytes", short.capacity());
    }

    #[test]
    fn the_prefix_goes_before_the_pointer() {
        assert_eq!(fail(r#"{"customer":5}"#, "/lines/3").2["errors"][0]["pointer"], "/lines/3/customer");
    }

    #[test]
    fn a_syntax_error_states_its_line() {
        // A syntax error takes precedence over an invalid member.
        for text in ["{", r#"{"customer":"c"} x"#, "{'a':1}", "[[[[", r#"{"customer":5"#, r#"{"customer":[[["#] {
            let (status, slug, problem) = fail(text, "");
            assert_eq!((status, slug), (400, "malformed-json"), "{text}");
            assert!(problem["errors"].is_null(), "{problem}");
            assert!(problem["detail"].as_str().unwrap().contains("line 1"), "{problem}");
        }
        assert_eq!(parse::<Value>("[".repeat(1000).as_bytes(), "").unwrap_err().slug(), "malformed-json");
        assert!(fail(" ", "").2["detail"].as_str().unwrap().contains("empty"));
        let problem = parse::<Order>(b"{\"customer\":\"\xff\"}", "").unwrap_err();
        assert_eq!((problem.slug(), problem.to_string().contains("UTF-8")), ("malformed-json", true), "{problem}");
    }

    #[test]
    fn one_byte_order_mark_is_ignored() {
        assert!(parse::<Order>("\u{feff}{\"customer\":\"c\"}".as_bytes(), "").is_ok());
        assert_eq!(fail("\u{feff}\u{feff}{}", "").1, "malformed-json");
        assert_eq!(fail("{\u{feff}}", "").1, "malformed-json");
    }

    #[test]
    fn a_duplicate_member_is_refused_at_any_depth() {
        let cases = [
            (r#"{"a":1,"b":2,"a":1}"#, "/a"),
            (r#"{"a":{"b":1,"b":1}}"#, "/a/b"),
            (r#"{"a":{"b":1},"b":[{"c":1},[{"c/~":1,"c/~":2}]]}"#, "/b/1/0/c~1~0"),
            (r#"{"a":1,"\u0061":1}"#, "/a"),
            (r#"{"":1,"":1}"#, "/"),
        ];
        for (text, pointer) in cases {
            for prefix in ["", "/lines/3"] {
                let problem = parse::<Value>(text.as_bytes(), prefix).unwrap_err();
                assert_eq!((problem.status().as_u16(), problem.slug()), (422, "invalid-body"), "{text}");
                let problem = serde_json::to_value(&problem).unwrap();
                assert_eq!(problem["errors"][0]["pointer"], format!("{prefix}{pointer}"), "{text}");
                assert!(problem["detail"].as_str().unwrap().contains("duplicate field"), "{problem}");
            }
        }
        assert!(parse::<Value>(br#"{"a":{"a":[{"a":1},{"a":1}]},"b":"a"}"#, "").is_ok());
        let members: Vec<_> = (0..50_000).map(|number| format!("\"{number}\":0")).collect();
        let started = std::time::Instant::now();
        assert!(parse::<Value>(format!("{{{}}}", members.join(",")).as_bytes(), "").is_ok());
        assert!(started.elapsed() < Duration::from_secs(5), "the time must not grow quadratically");
    }

    #[test]
    fn deep_nesting_does_not_crash() {
        let deep = format!("{{\"a\":{}1{}}}", "[".repeat(100_000), "]".repeat(100_000));
        let problem = parse::<Value>(deep.as_bytes(), "").unwrap_err();
        assert_eq!(problem.slug(), "invalid-body");
        assert!(problem.to_string().contains("nested too deeply"), "{problem}");
    }

    /// Provokes all type errors of serde. No message to a client may contain a Rust type.
    #[test]
    fn no_message_contains_a_rust_type() {
        #[derive(Debug, Default, Deserialize)]
        #[serde(default)]
        #[allow(dead_code)]
        struct All {
            byte: u8,
            short: u16,
            int: u32,
            long: u64,
            signed: i64,
            float: f64,
            flag: bool,
            text: String,
            list: Vec<u8>,
            map: std::collections::BTreeMap<String, u8>,
            nested: Option<Box<All>>,
            pair: (u8, u8),
            kind: Kind,
        }
        #[derive(Debug, Default, Deserialize)]
        #[serde(rename_all = "snake_case")]
        enum Kind {
            #[default]
            One,
        }
        let names = [
            "byte", "short", "int", "long", "signed", "float", "flag", "text", "list", "map", "nested", "pair", "kind",
        ];
        let values =
            ["null", "true", "-1", "1e300", "1.5", "\"x\"", "[]", "[{}]", "{}", "{\"x\":[]}", "99999999999999999999"];
        for (name, value) in names.iter().flat_map(|name| values.map(|value| (name, value))) {
            let Err(problem) = parse::<All>(format!("{{\"{name}\":{value}}}").as_bytes(), "") else { continue };
            let text = problem.to_string();
            for word in [
                "struct",
                "enum",
                "All",
                "Kind",
                "tuple",
                "sequence",
                "map",
                "u8",
                "u16",
                "u32",
                "u64",
                "i64",
                "f64",
                "invalid type",
            ] {
                let words: Vec<_> = text.split(|c: char| !c.is_alphanumeric()).collect();
                assert!(name == &word || !words.contains(&word), "{name} {value}: {text}");
            }
        }
    }

    #[test]
    fn only_uncompressed_utf_8_bodies_are_accepted() {
        let headers = |pairs: &[(&'static str, &str)]| {
            pairs.iter().map(|(name, value)| (name.parse().unwrap(), HeaderValue::from_str(value).unwrap())).collect()
        };
        for good in [
            &[][..],
            &[("content-encoding", "identity")],
            &[("content-encoding", " Identity , ")],
            &[("content-type", "application/json; charset=UTF-8")],
            &[("content-type", "application/json;charset=\"utf-8\"; x=y")],
            &[("content-type", "text/plain; format=charset")],
        ] {
            assert!(check_encoding(&headers(good)).is_ok(), "{good:?}");
        }
        for (bad, slug, named) in [
            (&[("content-encoding", "deflate")][..], "unsupported-content-encoding", "deflate"),
            (&[("content-encoding", "gzip, br")], "unsupported-content-encoding", "gzip, br"),
            (
                &[("content-encoding", "gzip"), ("content-encoding", "gzip")],
                "unsupported-content-encoding",
                "gzip, gzip",
            ),
            (&[("content-encoding", "identity"), ("content-encoding", "zstd")], "unsupported-content-encoding", "zstd"),
            (&[("content-type", "application/json; charset=utf-16")], "unsupported-media-type", "utf-16"),
            (
                &[("content-type", "application/x-ndjson; a=b; Charset=\"ISO-8859-1\"")],
                "unsupported-media-type",
                "ISO-8859-1",
            ),
        ] {
            let problem = check_encoding(&headers(bad)).unwrap_err();
            assert_eq!((problem.status().as_u16(), problem.slug()), (415, slug), "{bad:?}");
            assert!(problem.to_string().contains(named), "{problem}");
        }
    }

    async fn send(content_type: Option<&str>, body: &str) -> Result<Json<Order>, Problem> {
        let mut request = Request::builder();
        if let Some(value) = content_type {
            request = request.header(CONTENT_TYPE, value);
        }
        let mut request = request.body(Body::from(body.to_owned())).unwrap();
        DefaultBodyLimit::max(100).apply(&mut request);
        Json::from_request(request, &()).await
    }

    #[tokio::test]
    async fn only_json_within_the_limit_is_read() {
        let good = r#"{"customer":"c"}"#;
        for kind in ["application/json", "Application/JSON; charset=utf-8", "application/merge-patch+json"] {
            assert!(send(Some(kind), good).await.is_ok(), "{kind}");
        }
        for kind in [None, Some("text/plain"), Some("application/jsonp"), Some("")] {
            assert_eq!(send(kind, good).await.unwrap_err().status(), 415, "{kind:?}");
        }
        let long = format!(r#"{{"customer":"{}"}}"#, "x".repeat(100));
        let problem = send(Some("application/json"), &long).await.unwrap_err();
        assert_eq!((problem.status().as_u16(), problem.slug()), (413, "body-too-large"));
    }

    #[derive(Debug, Deserialize)]
    #[serde(deny_unknown_fields)]
    struct Page {
        #[allow(dead_code)]
        limit: Option<u8>,
    }

    #[test]
    fn a_parameter_is_refused_in_plain_words() {
        for (query, words) in [
            ("limit=x", "whole number"),
            ("limit=300", "out of range"),
            ("limit=", "whole number"),
            ("limti=3", "There is no query parameter limti. The parameters are: limit."),
            ("limit=1&limit=2", "limit occurs more than once"),
        ] {
            let uri = format!("/?{query}").parse().unwrap();
            let rejection = axum::extract::Query::<Page>::try_from_uri(&uri).unwrap_err();
            let text = invalid_query(&rejection).to_string();
            assert!(text.contains(words), "{query}: {text}");
        }
    }

    #[tokio::test]
    async fn a_bad_parameter_is_named() {
        for (query, parameter) in
            [("limit=x", "limit"), ("limit=300", "limit"), ("limti=3", "limti"), ("limit=1&limit=2", "limit")]
        {
            let mut parts = Request::builder().uri(format!("/?{query}")).body(()).unwrap().into_parts().0;
            let problem = Query::<Page>::from_request_parts(&mut parts, &()).await.unwrap_err();
            assert_eq!((problem.status().as_u16(), problem.slug()), (400, "invalid-query"));
            let problem = serde_json::to_value(&problem).unwrap();
            assert_eq!(problem["parameter"], parameter, "{problem}");
            assert!(problem["detail"].as_str().unwrap().contains(parameter));
        }
    }
}
