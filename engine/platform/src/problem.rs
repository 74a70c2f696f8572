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

#[derive(Clone, Debug)]
struct Inner {
    status: StatusCode,
    slug: &'static str,
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
    title: String,
    /// The HTTP status code.
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

impl Problem {
    /// Creates a problem of the type `/problems/<slug>`. It contains the id of the current request, if there is one.
    pub fn new(status: StatusCode, slug: &'static str, title: &str) -> Self {
        Self(Box::new(Inner {
            status,
            slug,
            body: Body {
                r#type: format!("/problems/{slug}"),
                title: title.to_owned(),
                status: status.as_u16(),
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
        Self::new(StatusCode::INTERNAL_SERVER_ERROR, "internal-error", "Internal error")
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
        self.0.status
    }

    /// Returns the last part of `type`.
    pub fn slug(&self) -> &'static str {
        self.0.slug
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
        let detail = self.0.body.detail.as_deref().unwrap_or(&self.0.body.title);
        write!(f, "{}: {detail}", self.0.slug)
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
        let Inner { status, body, mut headers, .. } = *self.0;
        headers.insert(CONTENT_TYPE, HeaderValue::from_static(CONTENT_TYPE_PROBLEM));
        let text = serde_json::to_vec(&body).expect("strings, numbers and JSON values always serialize");
        (status, headers, text).into_response()
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
        let problem = Problem::new(StatusCode::CONFLICT, "price-mismatch", "Price mismatch")
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
        let problem = Problem::new(StatusCode::NOT_FOUND, "not-found", "Not found");
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
