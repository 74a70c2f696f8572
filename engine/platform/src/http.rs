//! The HTTP server: connections with limits and timeouts, and the middleware of all routes.

use std::io;
use std::net::SocketAddr;
use std::panic::AssertUnwindSafe;
use std::pin::Pin;
use std::sync::Arc;
use std::task::Poll;
use std::time::{Duration, Instant};

use axum::Router;
use axum::body::Bytes;
use axum::extract::{ConnectInfo, DefaultBodyLimit, MatchedPath, Request};
use axum::http::header::{
    CACHE_CONTROL, CONTENT_LENGTH, CONTENT_SECURITY_POLICY, CONTENT_TYPE, HOST, REFERRER_POLICY,
    X_CONTENT_TYPE_OPTIONS, X_FRAME_OPTIONS,
};
use axum::http::uri::PathAndQuery;
use axum::http::{HeaderMap, HeaderName, HeaderValue, StatusCode, Uri, Version};
use axum::middleware::{Next, from_fn};
use axum::response::{IntoResponse, Response};
use futures::FutureExt;
use http_body_util::BodyExt;
use hyper::body::{Body, Frame, Incoming, SizeHint};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use opentelemetry::KeyValue;
use socket2::SockRef;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tower::util::option_layer;
use tower::{Service, ServiceExt};
use tower_http::cors::CorsLayer;

use crate::body::check_encoding;
use crate::client_stream::{ClientStream, UNREAD_BYTES_MAX, UNREAD_TIMEOUT};
use crate::compression::{Coding, accepted, compress, decode};
use crate::metrics::{self, Active};
use crate::problem::{
    BAD_REQUEST, BODY_TOO_LARGE, DUPLICATE_HEADER, HEADERS_TOO_LARGE, INTERNAL_ERROR, INVALID_HOST, METHOD_NOT_ALLOWED,
    NOT_FOUND, Problem, UNSUPPORTED_MEDIA_TYPE,
};
use crate::proxies::Proxies;
use crate::request_id::{Context, X_REQUEST_ID};
use crate::shutdown::Shutdown;
use crate::telemetry::access::{Access, AccessRecord};
use crate::telemetry::access_log;
use crate::telemetry::redact::redact;
use crate::trace::{self, OpenSpan};

/// Timeout for the headers of a request, and for an idle connection between requests.
const HEADER_READ_TIMEOUT: Duration = Duration::from_secs(10);
/// How long a write to a client may make no progress.
const WRITE_TIMEOUT: Duration = Duration::from_secs(30);
/// Send buffer of a connection, in bytes. A small buffer detects slow clients sooner and limits their memory.
const SEND_BUFFER_BYTES: usize = 128 * 1024;
/// How long a connection may continue after the shutdown began.
const DRAIN_TIMEOUT: Duration = Duration::from_secs(10);
const ACCEPT_RETRY_DELAY: Duration = Duration::from_millis(100);
/// Maximum number of refused connections that receive a 503 response at the same time, and the time limit of each
/// response. Other refused connections are closed without a response.
const REFUSED_CONNECTIONS_MAX: usize = 64;
const REFUSED_CONNECTION_TIMEOUT: Duration = Duration::from_secs(1);
const CONNECTION_LIMIT_BODY: &str = r#"{"type":"/problems/connection-limit","title":"Too many connections","status":503,"detail":"The server has reached its connection limit. Try again shortly, or use another server."}"#;
/// Minimum time between two log lines about refused connections.
const LOG_INTERVAL: Duration = Duration::from_secs(10);
const HEADERS_BYTES_MAX: usize = 64 * 1024;
const BODY_BYTES_MAX: usize = 1024 * 1024;
const REJECTION_TEXT_BYTES_MAX: u64 = 4096;
/// Headers that may occur only once in a request. Of two values, a proxy in front of the server might use the other
/// one.
const SINGLE_HEADERS: &[&str] =
    &["authorization", "content-type", "host", "idempotency-key", "last-event-id", "origin", "sec-fetch-site"];
/// Default headers of all responses; a route may set its own values. They prevent scripts, frames, content sniffing and
/// referrers in browsers, and forbid caching, because most responses contain personal data.
static DEFAULT_RESPONSE_HEADERS: [(HeaderName, HeaderValue); 5] = [
    (CACHE_CONTROL, HeaderValue::from_static("no-store")),
    (CONTENT_SECURITY_POLICY, HeaderValue::from_static("default-src 'none'; frame-ancestors 'none'")),
    (REFERRER_POLICY, HeaderValue::from_static("no-referrer")),
    (X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff")),
    (X_FRAME_OPTIONS, HeaderValue::from_static("DENY")),
];

/// Serves HTTP/1.1 with upgrades until the shutdown begins. Then waits at most 10 s for requests in progress and
/// returns.
///
/// The extensions of a request contain the client's address as `ConnectInfo<SocketAddr>` (the peer, or the client
/// behind one of the `proxies`), the connection's [`ReadLimit`](crate::client_stream::ReadLimit) and, for a request
/// with a large body, its [`HalfDuplex`](crate::client_stream::HalfDuplex). Connections beyond `connections_max` are
/// refused with 503; upgraded connections count towards this limit.
///
/// After an upgrade (a WebSocket) the handler owns the connection: it must run on `shutdown.tracker` and end when
/// `shutdown.token` is cancelled. A streamed response must also end on this token, or it is aborted after 10 s.
pub async fn serve(listener: TcpListener, app: Router, proxies: Proxies, connections_max: usize, shutdown: Shutdown) {
    // Accepted connections inherit the size from the listener. If it cannot be set, the system default applies.
    if let Err(error) = SockRef::from(&listener).set_send_buffer_size(SEND_BUFFER_BYTES) {
        tracing::debug!(%error, "Could not set the send buffer size. The system default applies.");
    }
    let connections = TaskTracker::new();
    let permits = Arc::new(Semaphore::new(connections_max));
    let mut refused = RefusedConnections::default();
    loop {
        let accepted = tokio::select! {
            biased;
            () = shutdown.token.cancelled() => break,
            accepted = listener.accept() => accepted,
        };
        match accepted {
            Ok((stream, peer)) => match permits.clone().try_acquire_owned() {
                Ok(permit) => {
                    let (app, proxies, token) = (app.clone(), proxies.clone(), shutdown.token.clone());
                    connections.spawn(connection(stream, permit, peer, app, proxies, token));
                }
                Err(_) => refused.refuse(stream, connections_max),
            },
            Err(error) => accept_failed(&error).await,
        }
    }
    drop(listener);
    connections.close();
    connections.wait().await;
}

/// Ignores errors of connections that the peer closed before they were accepted. Other errors mean a lack of resources,
/// usually file descriptors, so they are logged and followed by a pause.
async fn accept_failed(error: &io::Error) {
    use io::ErrorKind::{ConnectionAborted, ConnectionRefused, ConnectionReset};
    if !matches!(error.kind(), ConnectionAborted | ConnectionRefused | ConnectionReset) {
        tracing::error!(%error, "Could not accept a connection.");
        tokio::time::sleep(ACCEPT_RETRY_DELAY).await;
    }
}

/// Refuses connections beyond the limit.
struct RefusedConnections {
    permits: Arc<Semaphore>,
    count: u64,
    last_logged: Option<Instant>,
}

impl Default for RefusedConnections {
    fn default() -> Self {
        Self { permits: Arc::new(Semaphore::new(REFUSED_CONNECTIONS_MAX)), count: 0, last_logged: None }
    }
}

impl RefusedConnections {
    fn refuse(&mut self, mut stream: TcpStream, connections_max: usize) {
        self.count += 1;
        metrics::count_refused_connection();
        if self.last_logged.is_none_or(|at| at.elapsed() >= LOG_INTERVAL) {
            tracing::warn!(
                connections_max,
                turned_away = self.count,
                "Refused connections: the connection limit is reached."
            );
            (self.last_logged, self.count) = (Some(Instant::now()), 0);
        }
        if let Ok(permit) = self.permits.clone().try_acquire_owned() {
            tokio::spawn(async move {
                let answer = format!(
                    "HTTP/1.1 503 Service Unavailable\r\nretry-after: 1\r\nconnection: close\r\n\
                     cache-control: no-store\r\ncontent-type: application/problem+json\r\ncontent-length: {}\r\n\r\n{CONNECTION_LIMIT_BODY}",
                    CONNECTION_LIMIT_BODY.len()
                );
                let response = async {
                    stream.write_all(answer.as_bytes()).await?;
                    stream.shutdown().await?;
                    // If the connection closed with unread data, it would be reset and the client would lose the
                    // response.
                    while stream.read(&mut [0; 1024]).await? > 0 {}
                    Ok::<_, io::Error>(())
                };
                let _ = tokio::time::timeout(REFUSED_CONNECTION_TIMEOUT, response).await;
                drop(permit);
            });
        }
    }
}

async fn connection(
    stream: TcpStream,
    permit: OwnedSemaphorePermit,
    peer: SocketAddr,
    app: Router,
    proxies: Proxies,
    token: CancellationToken,
) {
    // Otherwise small responses wait for the client's delayed ACK. Setting it fails only on a closed socket.
    let _ = stream.set_nodelay(true);
    let stream = ClientStream::new(stream, permit, WRITE_TIMEOUT);
    let (half_duplex, limit) = (stream.half_duplex(), stream.limit());
    let service = service_fn(move |mut request: hyper::Request<Incoming>| {
        let client = proxies.client(request.headers(), peer);
        // A small body fits into one read buffer, so it is read even if the client does not read the response.
        if request.body().size_hint().exact().is_none_or(|bytes| bytes > HEADERS_BYTES_MAX as u64) {
            request.extensions_mut().insert(half_duplex.clone());
        }
        request.extensions_mut().insert(ConnectInfo(client));
        request.extensions_mut().insert(limit.clone());
        let mut app = app.clone();
        async move { app.call(request).await }
    });
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEADER_READ_TIMEOUT)
        .max_buf_size(HEADERS_BYTES_MAX)
        .serve_connection(TokioIo::new(stream), service)
        .with_upgrades();
    let mut connection = std::pin::pin!(connection);
    let ended = tokio::select! {
        ended = connection.as_mut() => ended,
        () = token.cancelled() => {
            connection.as_mut().graceful_shutdown();
            match tokio::time::timeout(DRAIN_TIMEOUT, connection).await {
                Ok(ended) => ended,
                Err(_) => return tracing::warn!(target: "http", %peer, "Aborted a connection at the drain timeout."),
            }
        }
    };
    if let Err(error) = ended {
        tracing::debug!(target: "http", %peer, %error, "The connection failed.");
    }
}

/// Adds the common middleware to all routes:
///
/// - a request id and a span,
/// - a 500 problem for a panic,
/// - problems for requests that axum itself refuses (unknown route or method, malformed path),
/// - a body limit of 1 MiB, which a route may change with its own `DefaultBodyLimit`,
/// - the headers of `DEFAULT_RESPONSE_HEADERS`, unless the route sets its own values,
/// - the refusal of requests with ambiguous headers, before a handler runs,
/// - the decoding of compressed bodies, and the compression of responses,
/// - a path that no route has is tried again without the slash at its end.
///
/// `not_found_hint` is empty, or a sentence with a leading space that names the role which serves other paths. It is
/// appended to the problems about unknown paths and methods.
///
/// `cors` handles preflight requests on every route, and lets pages of allowed origins read all responses, also errors.
///
/// Apply it once, to the complete router: routes that are added later do not get the middleware.
pub fn harden(router: Router, not_found_hint: &'static str, cors: Option<CorsLayer>) -> Router {
    let router = router
        .fallback(async move |uri: Uri| no_route(&uri, not_found_hint))
        .method_not_allowed_fallback(async move || no_method(not_found_hint))
        .layer(from_fn(refuse_invalid))
        // Outside of the fallback for unknown methods: no route handles OPTIONS, so a preflight would end there.
        .layer(option_layer(cors))
        .layer(from_fn(guard));
    // The inner router has the middleware, so the path is matched and counted as the route that serves it.
    let routes = router.clone();
    router.fallback(async move |mut request: Request| {
        if let Some(uri) = without_slash(request.uri()) {
            *request.uri_mut() = uri;
        }
        routes.oneshot(request).await
    })
}

/// Returns the URI without one slash at the end of its path; None if the path does not end with one, or is `/`.
fn without_slash(uri: &Uri) -> Option<Uri> {
    let path = uri.path().strip_suffix('/').filter(|path| !path.is_empty() && !path.ends_with('/'))?;
    let target = uri.query().map_or_else(|| path.to_owned(), |query| format!("{path}?{query}"));
    let mut parts = uri.clone().into_parts();
    parts.path_and_query = Some(PathAndQuery::try_from(target).ok()?);
    Uri::from_parts(parts).ok()
}

fn no_route(uri: &Uri, not_found_hint: &str) -> Problem {
    let path = uri.path();
    let not_found_hint = match path {
        "/metrics" => " Metrics are served at the address of the setting metrics_listen.",
        _ => not_found_hint,
    };
    Problem::new(NOT_FOUND).detail(format!("This process does not serve the path {path}.{not_found_hint}"))
}

fn no_method(not_found_hint: &str) -> Problem {
    Problem::new(METHOD_NOT_ALLOWED)
        .detail(format!("Use a method that the header Allow of this response lists.{not_found_hint}"))
}

/// Runs the common middleware. It is one layer, because each layer costs one or two allocations per request.
async fn guard(request: Request, next: Next) -> Response {
    let mut request =
        request.map(|body| if body.is_end_stream() { body } else { axum::body::Body::new(ReadToEnd(body)) });
    DefaultBodyLimit::max(BODY_BYTES_MAX).apply(&mut request);
    let route = request.extensions().get::<MatchedPath>().cloned();
    let name = route.as_ref().map_or("", MatchedPath::as_str);
    let (headers, method) = (request.headers(), request.method());
    let accepted = accepted(headers);
    let span = trace::server(|| format!("{method} {name}"), headers);
    let context = Context::new(headers, span.context());
    let id = context.id().clone();
    span.set_attributes(|| {
        vec![
            KeyValue::new("http.request.method", method.to_string()),
            KeyValue::new("http.route", name.to_owned()),
            KeyValue::new("url.path", redact(request.uri().path()).into_owned()),
            KeyValue::new("docket.request_id", id.to_str().unwrap_or_default().to_owned()),
        ]
    });
    let access = access_log().and_then(|log| Some((log, log.begin(&request)?)));
    let pending = PendingResponse { active: Active::begin(method), route, span, access, is_answered: false };
    let mut response = context
        .scope(async {
            let pending = pending;
            let response = match AssertUnwindSafe(next.run(request)).catch_unwind().await {
                Ok(response) => as_problem(response).await,
                // The panic hook has logged the panic.
                Err(_) => Problem::internal().into_response(),
            };
            let response = compress(response, accepted).await;
            pending.end(&response);
            response
        })
        .await;
    let headers = response.headers_mut();
    headers.insert(X_REQUEST_ID, id);
    for (name, value) in &DEFAULT_RESPONSE_HEADERS {
        headers.entry(name).or_insert_with(|| value.clone());
    }
    response
}

/// Refuses invalid requests, and decodes compressed bodies. Runs inside the CORS layer, so that a page can read the
/// refusal.
async fn refuse_invalid(request: Request, next: Next) -> Response {
    match check(&request) {
        Ok(None) => next.run(request).await,
        Ok(Some(coding)) => match decode(request, coding) {
            Ok(request) => next.run(request).await,
            Err(problem) => problem.into_response(),
        },
        Err(problem) => problem.into_response(),
    }
}

/// Returns the coding of the body; None if it is not compressed.
fn check(request: &Request) -> Result<Option<Coding>, Problem> {
    let headers = request.headers();
    // The limit of hyper is approximate: headers that arrive in one read may be twice as large.
    let bytes: usize = headers.iter().map(|(name, value)| name.as_str().len() + value.len() + ": \r\n".len()).sum();
    if bytes > HEADERS_BYTES_MAX {
        return Err(Problem::new(HEADERS_TOO_LARGE)
            .detail(format!("The headers have {bytes} bytes. Send at most {HEADERS_BYTES_MAX} bytes.")));
    }
    // Most requests have no duplicate headers. Comparing the two counts is a cheap test for that.
    if headers.len() != headers.keys_len()
        && let Some(name) = SINGLE_HEADERS.iter().find(|name| headers.get_all(**name).iter().nth(1).is_some())
    {
        return Err(Problem::new(DUPLICATE_HEADER)
            .detail(format!("The request has more than one header {name}. Send the header once.")));
    }
    let has_host = match headers.get(HOST) {
        None => request.version() < Version::HTTP_11,
        Some(host) => host.as_bytes().iter().all(|byte| byte.is_ascii_graphic() && !b",/\\@?#".contains(byte)),
    };
    if !has_host {
        return Err(Problem::new(INVALID_HOST).detail(
            "HTTP/1.1 requires the header Host. Send the name of the server, and the port if it is not the default.",
        ));
    }
    if request.body().is_end_stream() { Ok(None) } else { check_encoding(headers) }
}

/// A request that waits for its response. If it is dropped without a response (the client disconnected, or the drain
/// timeout expired), it is counted and logged with status 499, as in nginx.
struct PendingResponse {
    active: Active,
    route: Option<MatchedPath>,
    span: OpenSpan,
    access: Option<(&'static Access, AccessRecord)>,
    is_answered: bool,
}

impl PendingResponse {
    fn end(mut self, response: &Response) {
        self.is_answered = true;
        self.record(response);
    }

    fn record(&self, response: &Response) {
        if let Some((log, asked)) = &self.access {
            log.end(asked, response);
        }
        self.active.end(self.route.as_ref().map(MatchedPath::as_str), response);
        let status = response.status();
        self.span.set_attributes(|| vec![KeyValue::new("http.response.status_code", i64::from(status.as_u16()))]);
        if status.is_server_error() {
            self.span.failed(status.canonical_reason().unwrap_or_default());
        }
    }
}

impl Drop for PendingResponse {
    fn drop(&mut self) {
        if !self.is_answered {
            let mut no_response = Response::default();
            *no_response.status_mut() = StatusCode::from_u16(499).expect("a status has three digits");
            self.record(&no_response);
        }
    }
}

/// Converts the plain-text errors of axum to problems.
async fn as_problem(response: Response) -> Response {
    if !(response.status().is_client_error() || response.status().is_server_error()) || !is_plain(response.headers()) {
        return response;
    }
    let (mut parts, body) = response.into_parts();
    let small = body.size_hint().exact().is_some_and(|bytes| bytes <= REJECTION_TEXT_BYTES_MAX);
    let text = match small {
        true => {
            body.collect().await.map(|body| String::from_utf8_lossy(&body.to_bytes()).into_owned()).unwrap_or_default()
        }
        false => String::new(),
    };
    let kind = match parts.status {
        StatusCode::NOT_FOUND => NOT_FOUND,
        StatusCode::PAYLOAD_TOO_LARGE => BODY_TOO_LARGE,
        StatusCode::UNSUPPORTED_MEDIA_TYPE => UNSUPPORTED_MEDIA_TYPE,
        status if status.is_server_error() => INTERNAL_ERROR,
        _ => BAD_REQUEST,
    };
    let mut problem = Problem::new(kind);
    if !text.is_empty() && !parts.status.is_server_error() {
        problem = problem.detail(plain(&text));
    }
    let mut response = problem.into_response();
    parts.headers.remove(CONTENT_TYPE);
    parts.headers.remove(CONTENT_LENGTH);
    response.headers_mut().extend(parts.headers);
    response
}

/// Translates a text of axum that names types of Rust or its own steps. Other texts stay as they are.
fn plain(text: &str) -> String {
    if text.starts_with("Failed to buffer the request body") {
        return "The body ended early. Send the request again.".to_owned();
    }
    if text.starts_with("Failed to deserialize query string") {
        return "The query string is not valid.".to_owned();
    }
    let Some(reason) = text.strip_prefix("Invalid URL: ") else { return text.to_owned() };
    if reason.starts_with("Invalid UTF-8") {
        return "The path is not UTF-8 after percent-decoding. Percent-encode the bytes of UTF-8.".to_owned();
    }
    // The value is the last but one text in backticks, and may contain backticks itself; the type is the last one.
    let value = reason.rsplit_once("` to a `").and_then(|(start, _)| {
        let start = start.strip_prefix("Cannot parse `")?;
        Some(start.split_once("` with value `").map_or(start, |(_, value)| value))
    });
    match value {
        Some(value) => format!("The part {value} of the path is not valid. The API document says what it must be."),
        None => "The path is not valid.".to_owned(),
    }
}

/// A body that is read to its end, within limits, if the handler responds without reading it. Otherwise the connection
/// would close while the client is still sending, and the client would lose the response.
struct ReadToEnd(axum::body::Body);

impl Body for ReadToEnd {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut std::task::Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        let frame = Pin::new(&mut self.0).poll_frame(context);
        if let Poll::Ready(None | Some(Err(_))) = frame {
            self.0 = axum::body::Body::empty();
        }
        frame
    }

    fn is_end_stream(&self) -> bool {
        self.0.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.0.size_hint()
    }
}

impl Drop for ReadToEnd {
    fn drop(&mut self) {
        let mut body = std::mem::take(&mut self.0);
        let small = body.size_hint().exact().is_some_and(|left| left <= UNREAD_BYTES_MAX);
        if small && !body.is_end_stream() {
            tokio::spawn(tokio::time::timeout(
                UNREAD_TIMEOUT,
                async move { while let Some(Ok(_)) = body.frame().await {} },
            ));
        }
    }
}

fn is_plain(headers: &HeaderMap) -> bool {
    headers.get(CONTENT_TYPE).is_none_or(|value| value.as_bytes().starts_with(b"text/plain"))
}

#[cfg(test)]
mod tests {
    use axum::body::Bytes;
    use axum::extract::Path;
    use axum::extract::ws::{WebSocket, WebSocketUpgrade};
    use axum::routing::{any, get, post};
    use serde_json::Value;

    use super::*;

    async fn echo(mut socket: WebSocket) {
        while let Some(Ok(message)) = socket.recv().await {
            if socket.send(message).await.is_err() {
                return;
            }
        }
    }

    fn app(token: CancellationToken) -> Router {
        async fn panic() {
            panic!("on purpose")
        }
        let body = async |body: Bytes| body.len().to_string();
        harden(
            Router::new()
                .route("/", get(async |ConnectInfo(peer): ConnectInfo<SocketAddr>| peer.ip().to_string()))
                .route("/panic", get(panic))
                .route("/number/{n}", get(async |Path(n): Path<u8>| n.to_string()))
                .route("/body", post(body))
                .route("/large", post(body).layer(DefaultBodyLimit::max(2 * BODY_BYTES_MAX)))
                .route("/own", get(async || [(CACHE_CONTROL, "max-age=60")]))
                .route("/id", get(async || crate::request_id::current().unwrap_or_default()))
                .route("/socket", any(async |upgrade: WebSocketUpgrade| upgrade.on_upgrade(echo)))
                .route("/stopping", get(async move || token.cancelled().await)),
            "",
            None,
        )
    }

    struct Server {
        address: SocketAddr,
        shutdown: Shutdown,
        task: tokio::task::JoinHandle<()>,
    }

    async fn start() -> Server {
        start_with(100).await
    }

    async fn start_with(connections_max: usize) -> Server {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let (address, shutdown) = (listener.local_addr().unwrap(), Shutdown::new());
        let app = app(shutdown.token.clone());
        let task = tokio::spawn(serve(listener, app, Proxies::default(), connections_max, shutdown.clone()));
        Server { address, shutdown, task }
    }

    /// Sends one request on a new connection. Returns head (in lower case) and body of the response.
    async fn ask(address: SocketAddr, head: &str, body: &[u8]) -> (String, String) {
        let mut stream = TcpStream::connect(address).await.unwrap();
        let length = body.len();
        let request = format!(
            "{head} HTTP/1.1\r\nhost: x\r\nconnection: close\r\ncontent-length: {length}\r\nx-request-id: r-1\r\n\r\n"
        );
        stream.write_all(request.as_bytes()).await.unwrap();
        // A server that refuses a body may close the connection before it has read the whole body.
        let _ = stream.write_all(body).await;
        let mut answer = Vec::new();
        let _ = stream.read_to_end(&mut answer).await;
        let answer = String::from_utf8(answer).unwrap();
        let (head, body) = answer.split_once("\r\n\r\n").unwrap();
        (head.to_lowercase(), body.to_owned())
    }

    async fn problem(address: SocketAddr, head: &str) -> (String, Value) {
        let (head, body) = ask(address, head, b"").await;
        assert!(head.contains("content-type: application/problem+json"), "{head}");
        let body: Value = serde_json::from_str(&body).unwrap();
        assert_eq!(body["request_id"], "r-1", "{body}");
        (head, body)
    }

    #[tokio::test]
    async fn every_response_has_the_request_id_and_security_headers() {
        let server = start().await;
        let (head, body) = ask(server.address, "GET /", b"").await;
        assert!(head.starts_with("http/1.1 200") && head.contains("x-request-id: r-1"), "{head}");
        assert_eq!(body, "127.0.0.1");
        for path in ["/", "/nowhere", "/panic", "/own"] {
            let (head, _) = ask(server.address, &format!("GET {path}"), b"").await;
            for (name, value) in &DEFAULT_RESPONSE_HEADERS {
                let value = value.to_str().unwrap().to_lowercase();
                let own = path == "/own" && name == CACHE_CONTROL;
                let value = if own { "max-age=60" } else { &value };
                assert_eq!(head.matches(&format!("\r\n{name}: ")).count(), 1, "{path}: {head}");
                assert!(head.contains(&format!("\r\n{name}: {value}")), "{path}: {head}");
            }
        }
        assert_eq!(ask(server.address, "GET /id", b"").await.1, "r-1");
    }

    #[tokio::test]
    async fn refusals_of_axum_are_problems() {
        let server = start().await;
        let (_, body) = problem(server.address, "GET /nowhere").await;
        assert_eq!((&body["status"], &body["type"]), (&Value::from(404), &Value::from("/problems/not-found")));
        let (head, body) = problem(server.address, "PUT /body").await;
        assert_eq!(body["type"], "/problems/method-not-allowed");
        assert!(head.contains("allow: post"), "{head}");
        let (_, body) = problem(server.address, "GET /number/300").await;
        assert_eq!(body["status"], 400);
        let detail = body["detail"].as_str().unwrap();
        assert!(detail.contains("300") && !detail.contains("u8"), "{body}");
        let (_, body) = problem(server.address, "GET /number/%ff").await;
        assert!(body["detail"].as_str().unwrap().contains("not UTF-8"), "{body}");
    }

    #[tokio::test]
    async fn a_slash_at_the_end_of_a_path_makes_no_difference() {
        let server = start().await;
        for (head, expected) in [("GET /number/7/?a=b", "7"), ("POST /body/", "0"), ("GET /id/", "r-1")] {
            let (head, body) = ask(server.address, head, b"").await;
            assert!(head.starts_with("http/1.1 200") && body == expected, "{head}: {body}");
            assert_eq!(head.matches("x-request-id: ").count(), 1, "{head}");
        }
        let (head, body) = problem(server.address, "PUT /body/").await;
        assert!(head.contains("allow: post") && body["type"] == "/problems/method-not-allowed", "{head}");
        for path in ["/nowhere/", "/id//", "//", "//id"] {
            let (head, _) = problem(server.address, &format!("GET {path}")).await;
            assert!(head.starts_with("http/1.1 404"), "{path}: {head}");
        }
    }

    #[tokio::test]
    async fn a_panic_is_a_500_and_the_server_keeps_serving() {
        let server = start().await;
        let (_, body) = problem(server.address, "GET /panic").await;
        assert_eq!((&body["status"], &body["type"]), (&Value::from(500), &Value::from("/problems/internal-error")));
        assert!(!body.to_string().contains("on purpose"));
        assert!(ask(server.address, "GET /", b"").await.0.starts_with("http/1.1 200"));
    }

    #[tokio::test]
    async fn a_body_is_limited_unless_the_route_says_otherwise() {
        let server = start().await;
        let body = vec![b'x'; BODY_BYTES_MAX + 1];
        assert!(ask(server.address, "POST /body", &body[1..]).await.0.starts_with("http/1.1 200"));
        assert!(ask(server.address, "POST /large", &body).await.0.starts_with("http/1.1 200"));
        assert!(ask(server.address, "POST /body", &body).await.0.starts_with("http/1.1 413"));
    }

    /// Sends a raw request and returns the raw response. Panics if the server resets the connection.
    async fn raw(address: SocketAddr, request: &str) -> String {
        let mut stream = TcpStream::connect(address).await.unwrap();
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.unwrap();
        answer
    }

    #[tokio::test]
    async fn ambiguous_headers_and_encoded_bodies_are_refused() {
        let server = start().await;
        let post = "POST /body HTTP/1.1\r\nconnection: close\r\ncontent-length: 2\r\n";
        let cases = [
            ("GET / HTTP/1.1\r\nconnection: close\r\n".to_owned(), 400, "invalid-host"),
            ("GET / HTTP/1.1\r\nconnection: close\r\nhost: a\r\nhost: a\r\n".to_owned(), 400, "duplicate-header"),
            ("GET / HTTP/1.0\r\nhost: a\r\nhost: b\r\n".to_owned(), 400, "duplicate-header"),
            ("GET / HTTP/1.1\r\nconnection: close\r\nhost: a, b\r\n".to_owned(), 400, "invalid-host"),
            ("GET / HTTP/1.1\r\nconnection: close\r\nhost: me@a\r\n".to_owned(), 400, "invalid-host"),
            ("GET / HTTP/1.1\r\nconnection: close\r\nhost: \u{e9}\r\n".to_owned(), 400, "invalid-host"),
            (format!("{post}host: x\r\nauthorization: a\r\nAuthorization: b\r\n"), 400, "duplicate-header"),
            (format!("{post}host: x\r\nidempotency-key: a\r\nidempotency-key: a\r\n"), 400, "duplicate-header"),
            (format!("{post}host: x\r\ncontent-type: a/b\r\ncontent-type: a/b\r\n"), 400, "duplicate-header"),
            (format!("{post}host: x\r\ncontent-encoding: zstd\r\n"), 415, "unsupported-content-encoding"),
            (format!("{post}host: x\r\ncontent-type: text/plain; charset=utf-16\r\n"), 415, "unsupported-media-type"),
        ];
        for (head, status, slug) in cases {
            let body = if head.starts_with("POST") { "{}" } else { "" };
            let answer = raw(server.address, &format!("{head}\r\n{body}")).await;
            assert!(
                answer.starts_with(&format!("HTTP/1.1 {status} ")) || answer.starts_with("HTTP/1.0 400 "),
                "{head}: {answer}"
            );
            assert!(answer.contains(&format!("/problems/{slug}\"")), "{head}: {answer}");
            assert_eq!(
                answer.contains("accept-encoding: gzip, br"),
                slug == "unsupported-content-encoding",
                "{answer}"
            );
        }
        for (head, body) in [
            ("GET / HTTP/1.0\r\n".to_owned(), ""),
            ("GET / HTTP/1.1\r\nconnection: close\r\nhost:\r\n".to_owned(), ""),
            ("GET / HTTP/1.1\r\nconnection: close\r\nhost: [::1]:80\r\naccept: a/b\r\naccept: c/d\r\n".to_owned(), ""),
            ("GET / HTTP/1.1\r\nconnection: close\r\nhost: a\r\ncontent-encoding: gzip\r\n".to_owned(), ""),
            (format!("{post}host: x\r\ncontent-encoding: identity\r\ncontent-type: a/b; charset=utf-8\r\n"), "{}"),
        ] {
            let answer = raw(server.address, &format!("{head}\r\n{body}")).await;
            assert!(answer.contains(" 200 OK\r\n"), "{head}: {answer}");
        }
    }

    #[tokio::test]
    async fn headers_beyond_the_limits_are_answered_431() {
        let server = start().await;
        let many: String = (0..101).map(|number| format!("x-{number}: y\r\n")).collect();
        // Much larger than the server reads. The client must receive the response although data remains unread.
        let large = [HEADERS_BYTES_MAX, 2 * HEADERS_BYTES_MAX, 4 * HEADERS_BYTES_MAX];
        for headers in [many].into_iter().chain(large.map(|bytes| format!("x: {}\r\n", "y".repeat(bytes)))) {
            let request = format!("GET / HTTP/1.1\r\nhost: x\r\nconnection: close\r\n{headers}\r\n");
            let answer = raw(server.address, &request).await;
            assert!(answer.starts_with("HTTP/1.1 431 "), "{answer}");
        }
        let some: String = (0..90).map(|number| format!("x-{number}: {}\r\n", "y".repeat(600))).collect();
        let within = format!("GET / HTTP/1.1\r\nhost: x\r\nconnection: close\r\n{some}\r\n");
        assert!(raw(server.address, &within).await.starts_with("HTTP/1.1 200 "));
    }

    #[tokio::test]
    async fn connections_beyond_the_limit_get_503_and_permits_are_returned() {
        let server = start_with(2).await;
        let address = server.address;
        // An upgraded connection counts towards the limit.
        let mut socket = TcpStream::connect(address).await.unwrap();
        let upgrade = "GET /socket HTTP/1.1\r\nhost: x\r\nconnection: upgrade\r\nupgrade: websocket\r\n\
                       sec-websocket-version: 13\r\nsec-websocket-key: MDEyMzQ1Njc4OWFiY2RlZg==\r\n\r\n";
        socket.write_all(upgrade.as_bytes()).await.unwrap();
        let mut answer = [0; 12];
        socket.read_exact(&mut answer).await.unwrap();
        assert_eq!(&answer, b"HTTP/1.1 101");
        let idle = TcpStream::connect(address).await.unwrap();
        let (head, body) = ask(address, "GET /", b"").await;
        assert!(head.starts_with("http/1.1 503") && head.contains("retry-after: 1"), "{head}");
        let body: Value = serde_json::from_str(&body).unwrap();
        assert_eq!(body["type"], "/problems/connection-limit");
        drop(idle);
        // The server notices the closed connection a moment later.
        while !ask(address, "GET /", b"").await.0.starts_with("http/1.1 200") {
            tokio::task::yield_now().await;
        }
        drop(socket);
        let mut both = Vec::new();
        while both.len() < 2 {
            let mut stream = TcpStream::connect(address).await.unwrap();
            stream.write_all(b"GET / HTTP/1.1\r\nhost: x\r\n\r\n").await.unwrap();
            stream.read_exact(&mut answer).await.unwrap();
            both.extend((&answer == b"HTTP/1.1 200").then_some(stream));
        }
    }

    #[tokio::test]
    async fn a_shutdown_finishes_requests_and_accepts_no_new_ones() {
        let server = start().await;
        let address = server.address;
        // An idle connection must not delay the shutdown.
        let idle = TcpStream::connect(address).await.unwrap();
        let mut busy = TcpStream::connect(address).await.unwrap();
        busy.write_all(b"GET /stopping HTTP/1.1\r\nhost: x\r\n\r\n").await.unwrap();
        assert!(ask(address, "GET /", b"").await.0.starts_with("http/1.1 200"));
        server.shutdown.token.cancel();
        tokio::time::timeout(DRAIN_TIMEOUT / 2, server.task).await.unwrap().unwrap();
        let mut answer = String::new();
        busy.read_to_string(&mut answer).await.unwrap();
        assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
        assert!(TcpStream::connect(address).await.is_err());
        drop(idle);
    }
}
