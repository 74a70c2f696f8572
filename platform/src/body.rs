//! What clients send, parsed: every failure is a problem that names the place and says what is allowed.

use std::error::Error as _;
use std::time::Duration;

use axum::body::Bytes;
use axum::extract::rejection::BytesRejection;
use axum::extract::{FromRequest, FromRequestParts, Request};
use axum::http::header::CONTENT_TYPE;
use axum::http::request::Parts;
use axum::http::{HeaderMap, StatusCode};
use axum::response::{IntoResponse, Response};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::error::Category;
use serde_path_to_error::Segment;

use crate::problem::Problem;

/// Characters of a name or a message that an answer shows.
const SHOWN_CHARS_MAX: usize = 500;
/// How long a client may take to send a body that is read whole.
const READ_TIMEOUT: Duration = Duration::from_secs(30);

/// A JSON body, of a request or of an answer. A request's size is limited by the `DefaultBodyLimit` of the route (1
/// MiB, see [`crate::http::harden`]).
///
/// Refuses with 415 another content type, 413 a body too large, 408 one that takes more than 30 s to arrive, 400
/// (`malformed-json`) what is no JSON, 422 (`invalid-body`) JSON that does not fit `T`.
#[derive(Clone, Copy, Debug)]
pub struct Json<T>(pub T);

impl<T: DeserializeOwned, S: Send + Sync> FromRequest<S> for Json<T> {
    type Rejection = Problem;

    async fn from_request(request: Request, state: &S) -> Result<Self, Problem> {
        let bytes = read(request, state).await?;
        parse(&bytes, "").map(Self)
    }
}

/// Reads a body whole that is JSON or empty, and gives its bytes: for callers that need them beside what they mean.
///
/// # Errors
/// As [`Json`] before it parses.
pub async fn read<S: Send + Sync>(request: Request, state: &S) -> Result<Bytes, Problem> {
    let json = is_json(request.headers());
    let bytes = match tokio::time::timeout(READ_TIMEOUT, Bytes::from_request(request, state)).await {
        Ok(bytes) => bytes.map_err(unreadable)?,
        Err(_) => {
            return Err(Problem::new(StatusCode::REQUEST_TIMEOUT, "request-timeout", "Request timeout")
                .detail("the body did not arrive within 30 seconds"));
        }
    };
    if !json && !bytes.is_empty() {
        return Err(Problem::new(
            StatusCode::UNSUPPORTED_MEDIA_TYPE,
            "unsupported-media-type",
            "Unsupported media type",
        )
        .detail("send JSON, with the header Content-Type: application/json"));
    }
    Ok(bytes)
}

impl<T: Serialize> IntoResponse for Json<T> {
    fn into_response(self) -> Response {
        axum::Json(self.0).into_response()
    }
}

/// The query string. Refuses what does not fit `T` with 400 (`invalid-query`), naming the parameter.
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

/// Parses a JSON object that did not come as a body of its own, like a line of NDJSON. `pointer_prefix` (a JSON pointer or
/// empty) goes before the pointers in the problem.
///
/// # Errors
/// 400 (`malformed-json`) what is no JSON, 422 (`invalid-body`) JSON that does not fit `T`.
pub fn parse<'de, T: Deserialize<'de>>(bytes: &'de [u8], pointer_prefix: &str) -> Result<T, Problem> {
    // Serde would take an array for the members in their order; nobody means that.
    if bytes.trim_ascii_start().first() == Some(&b'[') && serde_json::from_slice::<serde::de::IgnoredAny>(bytes).is_ok()
    {
        let message = "an object is expected, not an array";
        return Err(Problem::new(StatusCode::UNPROCESSABLE_ENTITY, "invalid-body", "Invalid body")
            .detail(message)
            .error(pointer_prefix, message));
    }
    // Keeping track of the path costs an allocation a key, so only a body that failed is read with it.
    serde_json::from_slice(bytes).map_err(|error| match error.classify() {
        Category::Data => invalid_body::<T>(bytes, pointer_prefix, &error),
        _ => malformed(bytes, &error),
    })
}

/// As [`parse`], for a value that has been taken out of a larger one.
///
/// # Errors
/// 422 (`invalid-body`) where it does not fit `T`.
pub fn from_value<T: DeserializeOwned>(value: serde_json::Value) -> Result<T, Problem> {
    // Only a value that failed is written out again, to be read with its path.
    T::deserialize(&value).map_err(|error| {
        let text = value.to_string();
        invalid_body::<T>(text.as_bytes(), "", &error)
    })
}

fn malformed(bytes: &[u8], error: &serde_json::Error) -> Problem {
    let detail = match bytes.trim_ascii().is_empty() {
        true => "the body is empty; JSON is expected".to_owned(),
        false => error.to_string(),
    };
    Problem::new(StatusCode::BAD_REQUEST, "malformed-json", "Malformed JSON").detail(detail)
}

fn invalid_body<'de, T: Deserialize<'de>>(bytes: &'de [u8], prefix: &str, first: &serde_json::Error) -> Problem {
    let mut deserializer = serde_json::Deserializer::from_slice(bytes);
    let traced = serde_path_to_error::deserialize::<_, T>(&mut deserializer).err();
    let (mut pointer, message) = match &traced {
        Some(error) => (format!("{prefix}{}", pointer(error.path())), message(error.inner())),
        None => (prefix.to_owned(), message(first)),
    };
    // Serde reports a member that is unknown, missing or doubled at its parent. Clients look for the member.
    if let Some(field) = named_field(&message) {
        let last = format!("/{}", escape(field));
        if message.starts_with("missing") || !pointer.ends_with(&last) {
            pointer.push_str(&last);
        }
    }
    // What a client sent comes back, but not a megabyte of it.
    let (pointer, message) = (shortened(pointer), shortened(message));
    let detail = match pointer.as_str() {
        "" => message.clone(),
        pointer => format!("{pointer}: {message}"),
    };
    Problem::new(StatusCode::UNPROCESSABLE_ENTITY, "invalid-body", "Invalid body")
        .detail(detail)
        .error(pointer, message)
}

fn shortened(mut text: String) -> String {
    if let Some((end, _)) = text.char_indices().nth(SHOWN_CHARS_MAX) {
        text.truncate(end);
        text.push('…');
    }
    text
}

fn pointer(path: &serde_path_to_error::Path) -> String {
    let mut pointer = String::new();
    for segment in path {
        match segment {
            Segment::Seq { index } => pointer.push_str(&format!("/{index}")),
            Segment::Map { key } => pointer.push_str(&format!("/{}", escape(key))),
            // A variant is not a place of the document; a key that is no string can't occur in JSON.
            Segment::Enum { .. } | Segment::Unknown => {}
        }
    }
    pointer
}

fn escape(key: &str) -> String {
    key.replace('~', "~0").replace('/', "~1")
}

/// The message without its line and column: the pointer says the place better.
fn message(error: &serde_json::Error) -> String {
    let text = error.to_string();
    let place = format!(" at line {} column {}", error.line(), error.column());
    text.strip_suffix(&place).unwrap_or(&text).to_owned()
}

fn named_field(message: &str) -> Option<&str> {
    let rest = ["unknown field `", "missing field `", "duplicate field `"]
        .iter()
        .find_map(|start| message.strip_prefix(start))?;
    // An unknown name may itself hold a backtick; what follows it in serde's message does not vary.
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
    let problem = Problem::new(StatusCode::BAD_REQUEST, "invalid-query", "Invalid query");
    let Some(cause) = cause else { return problem.detail(rejection.body_text()) };
    let message = cause.inner().to_string();
    let parameter = match named_field(&message) {
        Some(field) => field.to_owned(),
        None => cause.path().to_string(),
    };
    problem.detail(format!("{parameter}: {message}")).with("parameter", parameter)
}

/// `application/json` or `application/<anything>+json`, with or without parameters.
fn is_json(headers: &HeaderMap) -> bool {
    let Some(value) = headers.get(CONTENT_TYPE).and_then(|value| value.to_str().ok()) else { return false };
    let media_type = value.split(';').next().unwrap_or_default().trim();
    media_type.eq_ignore_ascii_case("application/json") || {
        let lower = media_type.to_ascii_lowercase();
        lower.starts_with("application/") && lower.ends_with("+json")
    }
}

fn unreadable(rejection: BytesRejection) -> Problem {
    let rejection = rejection.into_response();
    match rejection.status() {
        StatusCode::PAYLOAD_TOO_LARGE => {
            Problem::new(StatusCode::PAYLOAD_TOO_LARGE, "body-too-large", "Body too large")
                .detail("the body is larger than this resource accepts")
        }
        _ => Problem::new(StatusCode::BAD_REQUEST, "unreadable-body", "Unreadable body").detail("the body ended early"),
    }
}

#[cfg(test)]
mod tests {
    use axum::body::Body;
    use axum::extract::DefaultBodyLimit;
    use serde_json::{Value, json};

    use super::*;

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
    fn a_data_error_names_the_place() {
        let cases = [
            (r#"{"customer":5}"#, "/customer", "invalid type: integer `5`, expected a string"),
            (
                r#"{"customer":"c","items":[{"a/b~c":1},{"a/b~c":"2"}]}"#,
                "/items/1/a~1b~0c",
                "invalid type: string \"2\", expected u32",
            ),
            (r#"{"customer":"c","price":1}"#, "/price", "unknown field `price`, expected `customer` or `items`"),
            (r#"{"customer":"c","items":[{"x/y":1}]}"#, "/items/0/x~1y", "unknown field `x/y`, expected `a/b~c`"),
            (r#"{"customer":"c","items":[{}]}"#, "/items/0/a~1b~0c", "missing field `a/b~c`"),
            (r#"{"customer":"c","customer":"d"}"#, "/customer", "duplicate field `customer`"),
            (r#"{"items":[]}"#, "/customer", "missing field `customer`"),
        ];
        for (text, pointer, message) in cases {
            let (status, slug, problem) = fail(text, "");
            assert_eq!((status, slug), (422, "invalid-body"), "{text}");
            assert_eq!(problem["errors"], json!([{"pointer": pointer, "message": message}]), "{text}");
        }
        // Serde reads an array as a struct's fields in order.
        assert_eq!(fail("[1]", "").2["errors"][0]["message"], "an object is expected, not an array");
        assert_eq!(fail("7", "").2["errors"][0]["pointer"], "");
    }

    #[test]
    fn the_prefix_goes_before_the_pointer() {
        assert_eq!(fail(r#"{"customer":5}"#, "/lines/3").2["errors"][0]["pointer"], "/lines/3/customer");
    }

    #[test]
    fn a_syntax_error_says_where() {
        for text in ["{", r#"{"customer":"c"} x"#, "{'a':1}", "\u{feff}{}"] {
            let (status, slug, problem) = fail(text, "");
            assert_eq!((status, slug), (400, "malformed-json"), "{text}");
            assert!(problem["detail"].as_str().unwrap().contains("line 1"), "{problem}");
        }
        assert_eq!(parse::<Value>("[".repeat(1000).as_bytes(), "").unwrap_err().slug(), "malformed-json");
        assert!(fail(" ", "").2["detail"].as_str().unwrap().contains("empty"));
        assert!(parse::<Order>(b"{\"customer\":\"\xff\"}", "").is_err());
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
