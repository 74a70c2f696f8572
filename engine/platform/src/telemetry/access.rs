//! The access log: one line per request, in a predefined format of morgan (a logger for Node.js), as JSON, or in a
//! custom format.
//!
//! A custom format consists of morgan's tokens: `:method :url :path :route :status :response-time[digits] :request-id
//! :trace-id :remote-addr :user :http-version :date[clf|iso|web] :referrer :user-agent :req[header] :res[header]`. The
//! response time is the time until the response headers, in milliseconds.

use std::fmt::Write;
use std::net::SocketAddr;
use std::time::Instant;

use axum::body::Body;
use axum::extract::{ConnectInfo, MatchedPath, Request};
use axum::http::{HeaderMap, HeaderName, Method, Uri, Version};
use axum::response::Response;
use hyper::body::Body as _;
use jiff::Timestamp;
use jiff::tz::TimeZone;
use opentelemetry::trace::TraceContextExt;
use tracing::Level;

use crate::request_id;
use crate::telemetry::lines::HTTP;
use crate::telemetry::redact::{HIDDEN, is_secret, redact};
use crate::telemetry::sink::Sink;

const TINY: &str = ":method :url :status :res[content-length] - :response-time ms";
const DEV: &str = ":method :url :status :response-time ms - :res[content-length]";
const SHORT: &str =
    ":remote-addr :user :method :url HTTP/:http-version :status :res[content-length] - :response-time ms";
const COMMON: &str =
    ":remote-addr - :user [:date[clf]] \":method :url HTTP/:http-version\" :status :res[content-length]";
const COMBINED: &str = ":remote-addr - :user [:date[clf]] \":method :url HTTP/:http-version\" :status \
                        :res[content-length] \":referrer\" \":user-agent\"";

/// The access log: format, destination and omitted paths.
pub struct Access {
    form: Form,
    /// Destination of text lines: a separate file or the console. If None, lines are logged as events.
    sink: Option<Sink>,
    /// Prefixes of paths that are not logged.
    skip: Vec<String>,
    colour: bool,
}

#[derive(Debug)]
enum Form {
    Json,
    Text(Vec<Token>),
}

#[derive(Debug, PartialEq)]
enum Token {
    Literal(String),
    Method,
    Url,
    Path,
    Route,
    Status,
    ResponseTime(usize),
    RequestId,
    TraceId,
    RemoteAddr,
    User,
    HttpVersion,
    Date(DateForm),
    Request(HeaderName),
    Response(HeaderName),
}

#[derive(Debug, PartialEq)]
enum DateForm {
    Clf,
    Iso,
    Web,
}

/// Data of a request in progress that its log line needs.
pub struct AccessRecord {
    method: Method,
    uri: Uri,
    route: Option<MatchedPath>,
    version: Version,
    peer: Option<SocketAddr>,
    headers: HeaderMap,
    started: Instant,
}

impl Access {
    /// Creates an access log with a named format (`tiny`, `dev`, `short`, `common`, `combined`, `json`) or a format of
    /// tokens.
    ///
    /// # Errors
    /// Fails with an unknown token, an invalid argument of a token, or a format without tokens.
    pub fn new(format: &str, sink: Option<Sink>, skip: &str, colour: bool) -> Result<Self, String> {
        let form = match format {
            "json" => Form::Json,
            "tiny" => Form::Text(tokens(TINY)?),
            "dev" => Form::Text(tokens(DEV)?),
            "short" => Form::Text(tokens(SHORT)?),
            "common" => Form::Text(tokens(COMMON)?),
            "combined" => Form::Text(tokens(COMBINED)?),
            custom => Form::Text(tokens(custom)?),
        };
        let skip = skip.split(',').map(str::trim).filter(|path| !path.is_empty()).map(str::to_owned).collect();
        Ok(Self { form, sink, skip, colour: colour && format == "dev" })
    }

    /// Collects the data for the log line; `None` if the request is not logged.
    pub fn begin(&self, request: &Request) -> Option<AccessRecord> {
        let path = request.uri().path();
        if !tracing::enabled!(target: HTTP, Level::INFO) || self.skip.iter().any(|skip| path.starts_with(&**skip)) {
            return None;
        }
        let mut headers = HeaderMap::new();
        let mut keep = |name: &HeaderName| {
            if let Some(value) = request.headers().get(name) {
                headers.insert(name.clone(), value.clone());
            }
        };
        match &self.form {
            Form::Json => keep(&axum::http::header::USER_AGENT),
            Form::Text(tokens) => tokens.iter().for_each(|token| {
                if let Token::Request(name) = token {
                    keep(name);
                }
            }),
        }
        Some(AccessRecord {
            method: request.method().clone(),
            uri: request.uri().clone(),
            route: request.extensions().get().cloned(),
            version: request.version(),
            peer: request.extensions().get::<ConnectInfo<SocketAddr>>().map(|peer| peer.0),
            headers,
            started: Instant::now(),
        })
    }

    /// Writes the log line. Must be called within the scope of the request.
    pub fn end(&self, asked: &AccessRecord, response: &Response<Body>) {
        match (&self.form, &self.sink) {
            (Form::Json, _) => asked.event(response),
            (Form::Text(tokens), Some(sink)) => {
                let mut line = asked.line(tokens, response, self.colour);
                line.push('\n');
                sink.line(line);
                crate::metrics::log_line(HTTP);
            }
            (Form::Text(tokens), None) => {
                let line = asked.line(tokens, response, false);
                tracing::info!(target: HTTP, "{line}");
            }
        }
    }
}

impl AccessRecord {
    fn url(&self) -> String {
        redact(self.uri.path_and_query().map_or("/", |url| url.as_str())).into_owned()
    }

    /// Logs the event of the format `json`. Field names follow the OpenTelemetry semantic conventions.
    fn event(&self, response: &Response<Body>) {
        let ms = self.started.elapsed().as_secs_f64() * 1e3;
        let user = request_id::current_user();
        tracing::info!(
            target: HTTP,
            { http.request.method = %self.method,
            url.path = self.uri.path(),
            url.query = self.uri.query().map(|query| redact(query).into_owned()),
            http.route = self.route.as_ref().map(MatchedPath::as_str),
            http.response.status_code = response.status().as_u16(),
            http.response.body.size = response.body().size_hint().exact(),
            http.server.duration_ms = (ms * 1e3).round() / 1e3,
            client.address = self.peer.map(|peer| peer.ip().to_string()),
            user.id = user.as_deref(),
            user_agent.original = self.headers.get(axum::http::header::USER_AGENT).and_then(|value| value.to_str().ok()) },
            "{} {} {}", self.method, self.uri.path(), response.status().as_u16()
        );
    }

    fn line(&self, tokens: &[Token], response: &Response<Body>, colour: bool) -> String {
        let mut line = String::with_capacity(160);
        for token in tokens {
            match token {
                Token::Literal(text) => line.push_str(text),
                Token::Method => line.push_str(self.method.as_str()),
                Token::Url => push(&mut line, &self.url()),
                Token::Path => push(&mut line, &redact(self.uri.path())),
                Token::Route => line.push_str(self.route.as_ref().map_or("-", MatchedPath::as_str)),
                Token::Status => push_status(&mut line, response.status().as_u16(), colour),
                Token::ResponseTime(digits) => {
                    let ms = self.started.elapsed().as_secs_f64() * 1e3;
                    let _ = write!(line, "{ms:.digits$}");
                }
                Token::RequestId => line.push_str(&request_id::current().unwrap_or_else(|| "-".into())),
                Token::TraceId => match request_id::current_trace() {
                    Some(trace) => {
                        let _ = write!(line, "{}", trace.span().span_context().trace_id());
                    }
                    None => line.push('-'),
                },
                Token::RemoteAddr => match self.peer {
                    Some(peer) => {
                        let _ = write!(line, "{}", peer.ip());
                    }
                    None => line.push('-'),
                },
                Token::User => match request_id::current_user() {
                    Some(user) => push(&mut line, &redact(&user)),
                    None => line.push('-'),
                },
                Token::HttpVersion => line.push_str(match self.version {
                    Version::HTTP_10 => "1.0",
                    Version::HTTP_2 => "2.0",
                    _ => "1.1",
                }),
                Token::Date(form) => push_date(&mut line, form),
                Token::Request(name) => push_header(&mut line, &self.headers, name),
                Token::Response(name) if name == axum::http::header::CONTENT_LENGTH => {
                    match response.body().size_hint().exact() {
                        Some(bytes) => {
                            let _ = write!(line, "{bytes}");
                        }
                        None => line.push('-'),
                    }
                }
                Token::Response(name) => push_header(&mut line, response.headers(), name),
            }
        }
        line
    }
}

/// Splits a format into its tokens.
fn tokens(format: &str) -> Result<Vec<Token>, String> {
    let mut tokens = Vec::new();
    let mut rest = format;
    while let Some(at) = rest.find(':') {
        if at > 0 {
            tokens.push(Token::Literal(rest[..at].to_owned()));
        }
        rest = &rest[at + 1..];
        let end = rest.find(|c: char| !(c.is_ascii_alphabetic() || c == '-')).unwrap_or(rest.len());
        // A trailing "-" belongs to the following text: `:status-`.
        let name = rest[..end].trim_end_matches('-');
        rest = &rest[name.len()..];
        let argument = match rest.strip_prefix('[').and_then(|inner| inner.split_once(']')) {
            Some((argument, after)) if !name.is_empty() => {
                rest = after;
                Some(argument)
            }
            _ => None,
        };
        tokens.push(token(name, argument)?);
    }
    if !rest.is_empty() {
        tokens.push(Token::Literal(rest.to_owned()));
    }
    match tokens.iter().any(|token| !matches!(token, Token::Literal(_))) {
        true => Ok(tokens),
        false => Err(format!(
            "the format `{format}` is unknown: use off, tiny, dev, short, common, combined, json, or tokens such as :method"
        )),
    }
}

fn token(name: &str, argument: Option<&str>) -> Result<Token, String> {
    let header = |of: &str| {
        let name =
            argument.ok_or_else(|| format!("the token `:{of}` needs a header name, as in :{of}[x-request-id]"))?;
        HeaderName::try_from(name).map_err(|_| format!("`{name}` is not a header name"))
    };
    Ok(match name {
        "" => Token::Literal(":".into()),
        "method" => Token::Method,
        "url" => Token::Url,
        "path" => Token::Path,
        "route" => Token::Route,
        "status" => Token::Status,
        "response-time" | "total-time" => {
            let digits = argument.unwrap_or("3").parse().ok().filter(|digits| *digits <= 9);
            Token::ResponseTime(
                digits.ok_or("the token `:response-time` accepts 0 to 9 digits, as in :response-time[3]")?,
            )
        }
        "request-id" => Token::RequestId,
        "trace-id" => Token::TraceId,
        "remote-addr" => Token::RemoteAddr,
        "user" | "remote-user" => Token::User,
        "http-version" => Token::HttpVersion,
        "referrer" => Token::Request(axum::http::header::REFERER),
        "user-agent" => Token::Request(axum::http::header::USER_AGENT),
        "req" => Token::Request(header("req")?),
        "res" => Token::Response(header("res")?),
        "date" => Token::Date(match argument.unwrap_or("web") {
            "clf" => DateForm::Clf,
            "iso" => DateForm::Iso,
            "web" => DateForm::Web,
            other => return Err(format!("the token `:date[{other}]` has an unknown format: use clf, iso or web")),
        }),
        other => return Err(format!("the token `:{other}` is unknown: see the list of tokens in docs/operations.md")),
    })
}

/// Appends client data. Escapes quotes and control characters, so that a client can neither end a quoted field nor
/// start a new line.
fn push(line: &mut String, text: &str) {
    for char in text.chars() {
        match char {
            '"' | '\\' => line.extend(['\\', char]),
            char if char.is_control() => {
                let _ = write!(line, "\\u{:04x}", u32::from(char));
            }
            char => line.push(char),
        }
    }
}

fn push_header(line: &mut String, headers: &HeaderMap, name: &HeaderName) {
    match headers.get(name) {
        None => line.push('-'),
        Some(_) if is_secret(name.as_str()) => line.push_str(HIDDEN),
        Some(value) => push(line, &redact(&String::from_utf8_lossy(value.as_bytes()))),
    }
}

fn push_status(line: &mut String, status: u16, colour: bool) {
    let code = match status {
        500.. => 31,
        400.. => 33,
        300.. => 36,
        _ => 32,
    };
    let _ = match colour {
        true => write!(line, "\x1b[{code}m{status}\x1b[0m"),
        false => write!(line, "{status}"),
    };
}

fn push_date(line: &mut String, form: &DateForm) {
    let now = Timestamp::now().to_zoned(TimeZone::UTC);
    let _ = match form {
        DateForm::Clf => write!(line, "{}", now.strftime("%d/%b/%Y:%H:%M:%S +0000")),
        DateForm::Iso => write!(line, "{:.3}", now.timestamp()),
        DateForm::Web => write!(line, "{}", now.strftime("%a, %d %b %Y %H:%M:%S GMT")),
    };
}

#[cfg(test)]
mod tests {
    use axum::http::{HeaderValue, StatusCode};

    use super::*;

    fn line(format: &str) -> String {
        let asked = AccessRecord {
            method: Method::GET,
            uri: "/v1/orders?ticket=canary&limit=1".parse().unwrap(),
            route: None,
            version: Version::HTTP_11,
            peer: Some("127.0.0.1:9".parse().unwrap()),
            headers: HeaderMap::from_iter([
                (axum::http::header::USER_AGENT, HeaderValue::from_static("curl \"8\"")),
                (axum::http::header::AUTHORIZATION, HeaderValue::from_static("Bearer canary")),
            ]),
            started: Instant::now(),
        };
        let mut response = Response::new(Body::from("{}"));
        *response.status_mut() = StatusCode::NOT_FOUND;
        response.headers_mut().insert("x-docket", HeaderValue::from_static("1"));
        match Access::new(format, None, "", false).unwrap().form {
            Form::Text(tokens) => asked.line(&tokens, &response, false),
            Form::Json => panic!("a text format"),
        }
    }

    #[test]
    fn the_predefined_formats_match_morgan() {
        let tiny = line("tiny");
        assert!(tiny.starts_with("GET /v1/orders?ticket=***&limit=1 404 2 - ") && tiny.ends_with(" ms"), "{tiny}");
        let combined = line("combined");
        assert!(combined.starts_with("127.0.0.1 - - ["), "{combined}");
        assert!(combined.contains(" +0000] \"GET /v1/orders?ticket=***&limit=1 HTTP/1.1\" 404 2 \"-\" "), "{combined}");
        assert!(combined.ends_with(r#""curl \"8\"""#), "{combined}");
    }

    #[test]
    fn custom_formats() {
        let own = ":method|:path|:status|:res[x-docket]|:req[x-none]|:req[authorization]|:http-version:";
        assert_eq!(line(own), "GET|/v1/orders|404|1|-|***|1.1:");
        assert!(line(":response-time[0]").parse::<u32>().is_ok() && line(":response-time[2]").contains('.'));
        assert_eq!(line(":date[iso]").len(), "2026-11-23T09:15:02.123Z".len());
    }

    #[test]
    fn an_invalid_format_is_named_in_the_error() {
        for (format, named) in [("tidy", "tidy"), (":verb", ":verb"), (":req", ":req["), (":date[utc]", "date[utc]")] {
            let error = Access::new(format, None, "", false).err().unwrap();
            assert!(error.contains(named), "{format}: {error}");
        }
    }
}
