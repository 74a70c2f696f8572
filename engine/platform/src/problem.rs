//! Error responses: problem details of RFC 9457.

use std::borrow::Cow;
use std::fmt;

use axum::http::header::{CONTENT_TYPE, RETRY_AFTER};
use axum::http::{HeaderMap, HeaderName, HeaderValue, StatusCode};
use axum::response::{IntoResponse, Response};
use serde::Serialize;
use serde_json::{Map, Value};
use utoipa::openapi::{RefOr, Schema};
use utoipa::{PartialSchema, ToSchema};

use crate::request_id;

/// The media type of every error response.
pub const CONTENT_TYPE_PROBLEM: &str = "application/problem+json";

/// An error response: `application/problem+json` over HTTP, or the same object in a line of a bulk response.
///
/// The size is one pointer, so that `Result<T, Problem>` stays small in the success case.
#[derive(Clone, Debug)]
pub struct Problem(Box<Inner>);

/// A kind of problem. Everything in it is the same at every occurrence. `/problems/<slug>` describes it to clients.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ProblemType {
    /// The HTTP status.
    pub status: StatusCode,
    /// The last part of the URI reference `/problems/<slug>`.
    pub slug: &'static str,
    /// A short summary.
    pub title: &'static str,
    /// What the problem is and what the client can do, in sentences.
    pub meaning: &'static str,
}

/// Defines constants of [`ProblemType`] and their list `PROBLEM_TYPES`. The doc comment of a constant is its meaning.
///
/// ```
/// platform::problem_types! {
///     /// The cart is full. Remove an item first.
///     CART_FULL = UNPROCESSABLE_ENTITY, "cart-full", "The cart is full";
/// }
/// assert_eq!((PROBLEM_TYPES.len(), CART_FULL.meaning), (1, "The cart is full. Remove an item first."));
/// ```
#[macro_export]
macro_rules! problem_types {
    ($($(#[doc = $line:literal])+ $name:ident = $status:ident, $slug:literal, $title:literal;)+) => {
        $($(#[doc = $line])+
        pub const $name: $crate::problem::ProblemType = $crate::problem::ProblemType {
            status: ::axum::http::StatusCode::$status,
            slug: $slug,
            title: $title,
            // A doc comment begins with a space.
            meaning: concat!($($line),+).trim_ascii_start(),
        };)+

        /// Every problem type that this module defines.
        pub const PROBLEM_TYPES: &[$crate::problem::ProblemType] = &[$($name),+];
    };
}

#[derive(Clone, Debug)]
struct Inner {
    kind: ProblemType,
    body: Body,
    headers: HeaderMap,
}

/// The members of the JSON object, in the order of serialization.
#[derive(Clone, Debug, Serialize, ToSchema)]
#[schema(as = Problem)]
struct Body {
    /// A stable URI reference, `/problems/<slug>`, by which programs identify the problem type.
    #[schema(example = "/problems/not-found")]
    r#type: String,
    /// A short summary of the problem type. It is the same at every occurrence.
    #[schema(value_type = String, example = "Not found")]
    title: &'static str,
    /// The HTTP status code.
    #[schema(example = 404, minimum = 400, maximum = 599)]
    status: u16,
    /// What went wrong in this request, and what the client can do.
    #[serde(skip_serializing_if = "Option::is_none")]
    detail: Option<String>,
    /// The `X-Request-Id` of the request, to find the request in the logs.
    #[serde(skip_serializing_if = "Option::is_none")]
    request_id: Option<String>,
    /// The invalid values in the body, one entry per place.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    errors: Vec<FieldError>,
    #[serde(flatten)]
    #[schema(ignore)]
    extensions: Map<String, Value>,
}

/// An invalid value in a request body.
#[derive(Clone, Debug, Serialize, ToSchema)]
struct FieldError {
    /// A JSON pointer (RFC 6901) into the request body; empty for the whole body.
    #[schema(example = "/items/0/quantity")]
    pointer: String,
    /// What is wrong with the value, and what is allowed.
    message: String,
}

problem_types! {
    /// The process does not serve this path, or the path contains an id that cannot exist.
    NOT_FOUND = NOT_FOUND, "not-found", "Not found";
    /// The path exists, but not with this method. The header Allow lists the methods of the path.
    METHOD_NOT_ALLOWED = METHOD_NOT_ALLOWED, "method-not-allowed", "Method not allowed";
    /// The request is malformed. The detail says how to correct it.
    BAD_REQUEST = BAD_REQUEST, "bad-request", "Bad request";
    /// A query parameter is unknown, missing or not valid. `errors` names each; correct them.
    INVALID_QUERY = BAD_REQUEST, "invalid-query", "The query cannot be used";
    /// The request has a header twice that may occur once. Send it once.
    DUPLICATE_HEADER = BAD_REQUEST, "duplicate-header", "Duplicate header";
    /// HTTP/1.1 requires the header Host with the name of the server, and the port if it is not the default.
    INVALID_HOST = BAD_REQUEST, "invalid-host", "Invalid Host header";
    /// If-Match must contain versions in double quotes, as the server sends them in ETag, or an asterisk.
    INVALID_IF_MATCH = BAD_REQUEST, "invalid-if-match", "Invalid If-Match header";
    /// The headers of the request are too large. Send fewer or shorter headers.
    HEADERS_TOO_LARGE = REQUEST_HEADER_FIELDS_TOO_LARGE, "headers-too-large", "Headers too large";
    /// The body is not JSON. The detail says where it stops to be JSON.
    MALFORMED_JSON = BAD_REQUEST, "malformed-json", "Malformed JSON";
    /// The body is JSON, but members are missing, unknown or not valid. `errors` names each by a JSON pointer.
    INVALID_BODY = UNPROCESSABLE_ENTITY, "invalid-body", "Invalid body";
    /// The body ended early. Send the request again.
    UNREADABLE_BODY = BAD_REQUEST, "unreadable-body", "Unreadable body";
    /// The body, or the next part of it, did not arrive in time. Send the request again.
    REQUEST_TIMEOUT = REQUEST_TIMEOUT, "request-timeout", "Request timeout";
    /// The body is larger than the resource accepts. Send less data in each request.
    BODY_TOO_LARGE = PAYLOAD_TOO_LARGE, "body-too-large", "Body too large";
    /// The resource does not accept this Content-Type. Send JSON as application/json, and NDJSON as
    /// application/x-ndjson.
    UNSUPPORTED_MEDIA_TYPE = UNSUPPORTED_MEDIA_TYPE, "unsupported-media-type", "Unsupported media type";
    /// The resource does not accept this Content-Encoding. Accept-Encoding of the answer lists those it accepts.
    UNSUPPORTED_CONTENT_ENCODING = UNSUPPORTED_MEDIA_TYPE, "unsupported-content-encoding", "Unsupported content encoding";
    /// The sender has too many bytes in unfinished requests. Send the request again when they have completed.
    TOO_MANY_BODIES = TOO_MANY_REQUESTS, "too-many-bodies", "Too many bodies of one sender at once";
    /// The server is receiving too many bodies at once. Send the request again after Retry-After seconds.
    BODY_LIMIT = SERVICE_UNAVAILABLE, "body-limit", "Too many bodies at once";
    /// The request has no token. Send the header `Authorization: Bearer TOKEN`.
    AUTHENTICATION_REQUIRED = UNAUTHORIZED, "authentication-required", "Authentication required";
    /// The token is malformed, has a wrong signature, or lacks a claim. The detail says which.
    INVALID_TOKEN = UNAUTHORIZED, "invalid-token", "Invalid token";
    /// The token has expired. Get a new one.
    TOKEN_EXPIRED = UNAUTHORIZED, "token-expired", "Token expired";
    /// The token was revoked. Get a new one.
    TOKEN_REVOKED = UNAUTHORIZED, "token-revoked", "Token revoked";
    /// No key of the issuer has the kid of the token. Try again when the server has fetched the keys again.
    UNKNOWN_KEY = UNAUTHORIZED, "unknown-key", "Unknown key";
    /// The token is valid, but does not allow the operation. The detail names the role that does.
    FORBIDDEN = FORBIDDEN, "forbidden", "Not allowed";
    /// The subject of the token is banned, so every token of it is refused. Ask the operator of the service.
    SUBJECT_BANNED = FORBIDDEN, "subject-banned", "The subject is banned";
    /// The sender has used up its rate of requests. Send the request again after Retry-After seconds.
    RATE_LIMITED = TOO_MANY_REQUESTS, "rate-limited", "Too many requests";
    /// The server has its greatest number of connections. Try again shortly, or use another server.
    CONNECTION_LIMIT = SERVICE_UNAVAILABLE, "connection-limit", "Too many connections";
    /// The level is not one of those that the detail lists, or the target is not valid.
    INVALID_LOG_LEVEL = UNPROCESSABLE_ENTITY, "invalid-log-level", "Invalid log level";
    /// The database does not answer. Send the request again after Retry-After seconds. A command that is sent again with
    /// the same Idempotency-Key takes effect at most once.
    STORE_UNAVAILABLE = SERVICE_UNAVAILABLE, "store-unavailable", "The database cannot be reached";
    /// The server failed to process the request. Its logs contain the cause under the request id.
    INTERNAL_ERROR = INTERNAL_SERVER_ERROR, "internal-error", "Internal error";
}

impl Problem {
    /// Creates a problem. It contains the id of the current request, if there is one.
    pub fn new(kind: ProblemType) -> Self {
        Self(Box::new(Inner {
            kind,
            body: Body {
                r#type: format!("/problems/{}", kind.slug),
                title: kind.title,
                status: kind.status.as_u16(),
                detail: None,
                request_id: request_id::current(),
                errors: Vec::new(),
                extensions: Map::new(),
            },
            headers: HeaderMap::new(),
        }))
    }

    /// Creates the problem of an internal error. The caller must log the cause, because the response does not contain
    /// it.
    pub fn internal() -> Self {
        Self::new(INTERNAL_ERROR)
            .detail("The server failed to process the request. Its logs contain the cause under the request id.")
    }

    /// Sets the detail: what went wrong in this request, and what the client can do.
    pub fn detail(mut self, detail: impl Into<String>) -> Self {
        self.0.body.detail = Some(sentence(detail.into()));
        self
    }

    /// Adds an invalid value of the body: a JSON pointer (RFC 6901), and what is wrong with the value.
    pub fn error(mut self, pointer: impl Into<String>, message: impl Into<String>) -> Self {
        self.0.body.errors.push(FieldError { pointer: pointer.into(), message: sentence(message.into()) });
        self
    }

    /// Adds the invalid values of another problem about the same body.
    pub fn and(mut self, other: Self) -> Self {
        self.0.body.errors.extend(other.0.body.errors);
        self
    }

    /// Adds an extension member. The name must not be that of a standard member.
    pub fn with(mut self, member: &'static str, value: impl Into<Value>) -> Self {
        self.0.body.extensions.insert(member.to_owned(), value.into());
        self
    }

    /// Sets `Retry-After`, in seconds.
    pub fn retry_after(self, seconds: u64) -> Self {
        self.header(RETRY_AFTER, HeaderValue::from(seconds))
    }

    /// Sets a response header, replacing an earlier one with the same name.
    pub fn header(mut self, name: HeaderName, value: HeaderValue) -> Self {
        self.0.headers.insert(name, value);
        self
    }

    /// Returns the HTTP status.
    pub fn status(&self) -> StatusCode {
        self.0.kind.status
    }

    /// Returns the last part of `type`.
    pub fn slug(&self) -> &'static str {
        self.0.kind.slug
    }
}

/// Makes the text of an error a sentence: errors of Rust begin with a lower-case letter and have no full stop. A first
/// word that is not plain letters, such as the name of a field, stays as it is.
fn sentence(mut text: String) -> String {
    text.truncate(text.trim_end().len());
    let first = text.split(' ').next().unwrap_or_default();
    if !first.is_empty() && first.bytes().all(|byte| byte.is_ascii_lowercase()) {
        text[..1].make_ascii_uppercase();
    }
    if !text.is_empty() && !text.ends_with(['.', '!', '?', '…']) {
        text.push('.');
    }
    text
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let detail = self.0.body.detail.as_deref().unwrap_or(self.0.kind.title);
        write!(f, "{}: {detail}", self.0.kind.slug)
    }
}

impl std::error::Error for Problem {}

impl Serialize for Problem {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        self.0.body.serialize(serializer)
    }
}

impl PartialSchema for Problem {
    fn schema() -> RefOr<Schema> {
        Body::schema()
    }
}

impl ToSchema for Problem {
    fn name() -> Cow<'static, str> {
        Cow::Borrowed("Problem")
    }

    fn schemas(schemas: &mut Vec<(String, RefOr<Schema>)>) {
        Body::schemas(schemas);
    }
}

impl IntoResponse for Problem {
    fn into_response(self) -> Response {
        let Inner { kind, body, mut headers } = *self.0;
        headers.insert(CONTENT_TYPE, HeaderValue::from_static(CONTENT_TYPE_PROBLEM));
        let text = serde_json::to_vec(&body).expect("strings, numbers and JSON values always serialize");
        (kind.status, headers, text).into_response()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn text(response: Response) -> String {
        let bytes = axum::body::to_bytes(response.into_body(), 10_000).await.unwrap();
        String::from_utf8(bytes.to_vec()).unwrap()
    }

    #[tokio::test]
    async fn a_problem_is_serialized_with_all_its_members() {
        const KIND: ProblemType =
            ProblemType { status: StatusCode::CONFLICT, slug: "price-mismatch", title: "Price mismatch", meaning: "" };
        let problem = Problem::new(KIND)
            .detail("the price of A is 2.55")
            .error("/items/0/unit_price", "must be \"2.55\"")
            .with("expected", "2.55")
            .retry_after(3);
        let response = problem.into_response();
        assert_eq!(response.status(), 409);
        assert_eq!(response.headers()[CONTENT_TYPE], "application/problem+json");
        assert_eq!(response.headers()[RETRY_AFTER], "3");
        assert_eq!(
            text(response).await,
            r#"{"type":"/problems/price-mismatch","title":"Price mismatch","status":409,"detail":"The price of A is 2.55.","#.to_owned()
                + r#""errors":[{"pointer":"/items/0/unit_price","message":"Must be \"2.55\"."}],"expected":"2.55"}"#
        );
    }

    #[test]
    fn texts_of_errors_become_sentences() {
        for (text, expected) in [
            ("the order is confirmed", "The order is confirmed."),
            ("Try again.", "Try again."),
            ("unit_price must be a text", "unit_price must be a text."),
            ("`bagel` is unknown", "`bagel` is unknown."),
            ("", ""),
        ] {
            assert_eq!(sentence(text.to_owned()), expected);
        }
    }

    #[tokio::test]
    async fn members_without_a_value_are_left_out() {
        let problem = Problem::new(NOT_FOUND);
        assert_eq!(
            text(problem.into_response()).await,
            r#"{"type":"/problems/not-found","title":"Not found","status":404}"#
        );
    }

    #[test]
    fn the_schema_names_the_standard_members() {
        let schema = serde_json::to_value(Problem::schema()).unwrap();
        let names: Vec<&String> = schema["properties"].as_object().unwrap().keys().collect();
        assert_eq!(names, ["type", "title", "status", "detail", "request_id", "errors"]);
        let mut schemas = Vec::new();
        Problem::schemas(&mut schemas);
        assert_eq!(schemas.len(), 1, "the schema refers to FieldError, so FieldError must be listed");
    }
}
