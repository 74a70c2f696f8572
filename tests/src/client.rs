//! An HTTP client of one `docket` process.

use std::time::Duration;

use bytes::Bytes;
use jsonwebtoken::{Algorithm, EncodingKey, Header, encode};
use reqwest::{Method, header::HeaderMap};
use serde_json::{Value, json};

/// The HS256 secret of every test system.
pub const JWT_SECRET: &str = "a secret of the tests, longer than thirty-two bytes";

/// Time limit of one request; when it passes, the test fails.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(40);

/// Returns a signed token for a role (`customer`, `staff`, `admin`) that is valid for an hour.
pub fn token(subject: &str, role: &str) -> String {
    token_of(JWT_SECRET, subject, role)
}

/// Returns a token as [`token`] does, signed with another secret.
pub fn token_of(secret: &str, subject: &str, role: &str) -> String {
    let now = jiff::Timestamp::now().as_second();
    let claims = json!({
        "sub": subject, "role": role, "iss": "docket", "aud": "docket", "jti": format!("test-{subject}-{now}"),
        "iat": now, "nbf": now, "exp": now + 3600,
    });
    sign(&claims, secret)
}

/// Returns a token with any claims, signed with the secret of the tests.
pub fn signed(claims: &Value) -> String {
    sign(claims, JWT_SECRET)
}

fn sign(claims: &Value, secret: &str) -> String {
    let key = EncodingKey::from_secret(secret.as_bytes());
    encode(&Header::new(Algorithm::HS256), claims, &key).expect("HS256 signs any JSON object")
}

/// Encodes a text as a segment of a path or as a value in a query.
pub fn encoded(text: &str) -> String {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-._~".contains(&byte);
    let one = |byte: u8| if plain(byte) { char::from(byte).to_string() } else { format!("%{byte:02X}") };
    text.bytes().map(one).collect()
}

/// A client of one address. Requests carry an admin's token unless they set another.
#[derive(Clone)]
pub struct Client {
    http: reqwest::Client,
    base: String,
    token: String,
}

impl Client {
    /// Returns a client of the process at `base`, such as `http://127.0.0.1:15000`.
    pub fn new(base: String) -> Self {
        let http = reqwest::Client::builder().timeout(REQUEST_TIMEOUT).build().expect("the HTTP client builds");
        Self { http, base, token: token("tests", "admin") }
    }

    /// Replaces the token of the client.
    #[must_use]
    pub fn with_token(self, token: String) -> Self {
        Self { token, ..self }
    }

    /// Returns the base address of the process.
    pub fn base(&self) -> &str {
        &self.base
    }

    /// Begins a request; `path` starts with `/`.
    pub fn request(&self, method: Method, path: &str) -> Request {
        Request { inner: self.http.request(method, format!("{}{path}", self.base)), token: Some(self.token.clone()) }
    }

    /// Begins a GET.
    pub fn get(&self, path: &str) -> Request {
        self.request(Method::GET, path)
    }

    /// Begins a POST.
    pub fn post(&self, path: &str) -> Request {
        self.request(Method::POST, path)
    }

    /// Begins a PUT.
    pub fn put(&self, path: &str) -> Request {
        self.request(Method::PUT, path)
    }

    /// Begins a DELETE.
    pub fn delete(&self, path: &str) -> Request {
        self.request(Method::DELETE, path)
    }
}

/// A request that has not been sent.
pub struct Request {
    inner: reqwest::RequestBuilder,
    token: Option<String>,
}

impl Request {
    /// Sends this token in place of the admin's.
    #[must_use]
    pub fn token(mut self, token: &str) -> Self {
        self.token = Some(token.to_owned());
        self
    }

    /// Sends no token.
    #[must_use]
    pub fn anonymous(mut self) -> Self {
        self.token = None;
        self
    }

    /// Sends a header.
    #[must_use]
    pub fn header(mut self, name: &str, value: &str) -> Self {
        self.inner = self.inner.header(name, value);
        self
    }

    /// Sends an `Idempotency-Key`.
    #[must_use]
    pub fn key(self, key: &str) -> Self {
        self.header("idempotency-key", key)
    }

    /// Sends `If-Match` with a version.
    #[must_use]
    pub fn if_match(self, version: u64) -> Self {
        self.header("if-match", &format!("\"{version}\""))
    }

    /// Sends a JSON body.
    #[must_use]
    pub fn json(self, body: Value) -> Self {
        self.body("application/json", body.to_string())
    }

    /// Sends a body of any type.
    #[must_use]
    pub fn body(mut self, content_type: &str, body: String) -> Self {
        self.inner = self.inner.header("content-type", content_type).body(body);
        self
    }

    /// Sends the request.
    ///
    /// # Panics
    /// If no complete response is received.
    pub async fn send(self) -> Answer {
        self.try_send().await.unwrap_or_else(|error| panic!("no answer: {error:?}"))
    }

    /// Sends the request.
    ///
    /// # Errors
    /// The connection failed or was cut. The outcome of the request is then unknown.
    pub async fn try_send(self) -> Result<Answer, reqwest::Error> {
        let request = match self.token {
            Some(token) => self.inner.bearer_auth(token),
            None => self.inner,
        };
        let response = request.send().await?;
        let (status, headers) = (response.status().as_u16(), response.headers().clone());
        let what = response.url().path().to_owned();
        Ok(Answer { what, status, headers, body: response.bytes().await? })
    }
}

/// A complete HTTP response.
#[derive(Clone, Debug)]
pub struct Answer {
    what: String,
    /// The HTTP status.
    pub status: u16,
    /// The headers.
    pub headers: HeaderMap,
    /// The body, unchanged.
    pub body: Bytes,
}

impl Answer {
    /// Returns the response when it has this status.
    ///
    /// # Panics
    /// If the status is another; the message contains the body.
    #[track_caller]
    pub fn expect(self, status: u16) -> Self {
        assert_eq!(self.status, status, "{}: {}", self.what, String::from_utf8_lossy(&self.body));
        self
    }

    /// Checks that the response is an RFC 9457 problem of this status and slug, with a title and a request id, and
    /// returns its body.
    #[track_caller]
    pub fn expect_problem(self, status: u16, slug: &str) -> Value {
        let answer = self.expect(status);
        assert_eq!(answer.header("content-type"), Some("application/problem+json"), "{}", answer.what);
        let problem = answer.json();
        assert_eq!(problem["type"], format!("/problems/{slug}"), "{problem}");
        assert_eq!(problem["status"], status, "{problem}");
        assert!(problem["title"].is_string(), "{problem}");
        assert_eq!(problem["request_id"].as_str(), answer.header("x-request-id"), "{problem}");
        problem
    }

    /// Returns the body as JSON.
    #[track_caller]
    pub fn json(&self) -> Value {
        serde_json::from_slice(&self.body)
            .unwrap_or_else(|error| panic!("{}: {error}: {}", self.what, String::from_utf8_lossy(&self.body)))
    }

    /// Returns the text of a header; `None` if the header is missing or is not text.
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name).and_then(|value| value.to_str().ok())
    }

    /// Returns the `version` of the body, and checks that the `ETag` has the same version.
    #[track_caller]
    pub fn version(&self) -> u64 {
        let version = self.number("version");
        assert_eq!(self.header("etag"), Some(format!("\"{version}\"").as_str()), "{}", self.what);
        version
    }

    /// Returns the `position` of the body.
    #[track_caller]
    pub fn position(&self) -> u64 {
        self.number("position")
    }

    #[track_caller]
    fn number(&self, field: &str) -> u64 {
        self.json()[field].as_u64().unwrap_or_else(|| panic!("{}: no {field}: {}", self.what, self.json()))
    }
}
