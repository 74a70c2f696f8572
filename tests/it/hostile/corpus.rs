//! The corpus of hostile input: requests and frames that a client can send but should not, grouped by family, each with
//! the expected outcome.

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde_json::{Value, json};
use tests::raw::{announced, frame, unmasked};

/// The draft order that every row about an order uses.
pub const ORDER: &str = "hostile";

/// Expected outcome of a request.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Expect {
    /// A 4xx problem with one of these statuses, or with any if the list is empty.
    Problem(&'static [u16]),
    /// The HTTP library answers before a handler sees a request: with a 4xx without a body, or by closing the
    /// connection. The text says why.
    Bare(&'static str),
    /// The request is allowed or ignored: any response below 500. The text says why.
    Fine(&'static str),
    /// The server must read the bytes as one request: exactly one response below 500, and the connection ends. The text
    /// says why.
    One(&'static str),
    /// 200, and every line that is not blank is refused with a 4xx problem.
    Lines,
    /// 503 `projection-behind`, the documented response for a position that the log does not reach.
    Behind,
    /// Any response below 500 or none: the client disconnects before its request is complete.
    Gone,
}

/// A request of the corpus.
#[derive(Debug, Clone)]
pub struct Row {
    /// The kind of attack.
    pub family: &'static str,
    /// The variant of the attack.
    pub what: String,
    /// The bytes of the request.
    pub bytes: Vec<u8>,
    /// Whether the client closes its sending half afterwards.
    pub cut: bool,
    /// The expected outcome.
    pub expect: Expect,
}

/// Expected outcome of frames.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum ExpectFrames {
    /// The server closes the socket with one of these codes.
    Closed(&'static [u16]),
    /// An error reply with one of these codes (any if the list is empty), and the socket stays open.
    Error(&'static [u64]),
    /// An error reply, or a Close.
    Refused,
    /// The frames are allowed. The text says why.
    Fine(&'static str),
}

/// Frames that are sent after `connect` on a socket.
#[derive(Debug, Clone)]
pub struct Frames {
    /// The kind of attack.
    pub family: &'static str,
    /// The variant of the attack.
    pub what: String,
    /// The bytes of the frames.
    pub bytes: Vec<u8>,
    /// The expected outcome.
    pub expect: ExpectFrames,
}

const ANY: Expect = Expect::Problem(&[]);
const BAD_REQUEST: Expect = Expect::Problem(&[400]);
const HYPER: &str = "hyper refuses bytes that are not HTTP before it creates a request";
const BELOW: &str = "hyper refuses the framing before it reads a body";

/// Creates the rows of one family.
struct Family<'a> {
    name: &'static str,
    token: &'a str,
    rows: Vec<Row>,
}

impl<'a> Family<'a> {
    fn new(name: &'static str, token: &'a str) -> Self {
        Self { name, token, rows: Vec::new() }
    }

    fn raw(&mut self, what: impl Into<String>, bytes: impl Into<Vec<u8>>, expect: Expect) {
        self.rows.push(Row { family: self.name, what: what.into(), bytes: bytes.into(), cut: false, expect });
    }

    fn cut(&mut self, what: impl Into<String>, bytes: impl Into<Vec<u8>>, expect: Expect) {
        self.raw(what, bytes, expect);
        self.rows.last_mut().expect("a row").cut = true;
    }

    /// Adds a request with valid `host` and `authorization` headers, followed by `headers`.
    fn request(&mut self, what: impl Into<String>, line: &str, headers: &[u8], body: &[u8], expect: Expect) {
        let host = "host: docket";
        let mut bytes = format!("{line} HTTP/1.1\r\n{host}\r\nauthorization: Bearer {}\r\n", self.token).into_bytes();
        bytes.extend_from_slice(headers);
        bytes.extend_from_slice(b"\r\n");
        bytes.extend_from_slice(body);
        self.raw(what, bytes, expect);
    }

    fn get(&mut self, target: &str, expect: Expect) {
        let what: String = target.chars().take(80).collect();
        self.request(format!("GET {what}"), &format!("GET {target}"), b"", b"", expect);
    }

    fn json(&mut self, what: impl Into<String>, line: &str, body: impl AsRef<[u8]>, expect: Expect) {
        let body = body.as_ref();
        let headers = format!("content-type: application/json\r\ncontent-length: {}\r\n", body.len());
        self.request(what, line, headers.as_bytes(), body, expect);
    }

    fn ndjson(&mut self, what: impl Into<String>, body: impl AsRef<[u8]>, expect: Expect) {
        let body = body.as_ref();
        let headers = format!("content-type: application/x-ndjson\r\ncontent-length: {}\r\n", body.len());
        self.request(what, "POST /v1/commands", headers.as_bytes(), body, expect);
    }
}

/// Returns every request. `document` is `/openapi.json`, `cursor` a valid cursor of `GET /v1/orders`, `epoch` the epoch
/// of the log.
pub fn requests(token: &str, document: &Value, cursor: &str, epoch: &str) -> Vec<Row> {
    let families = [
        request_lines(token),
        headers(token),
        our_headers(token),
        hosts(token),
        paths(token),
        framing(token),
        bodies(token),
        fields(token),
        amounts(token),
        texts(token),
        duplicates(token),
        queries(token, document),
        cursors(token, cursor, epoch),
        streams_and_polls(token),
        handshakes(token),
        ndjson(token),
    ];
    families.into_iter().flat_map(|family| family.rows).collect()
}

fn request_lines(token: &str) -> Family<'_> {
    let mut family = Family::new("request lines", token);
    let rest = "\r\nhost: docket\r\n\r\n";
    for line in [
        "GET",
        " GET / HTTP/1.1",
        "GET  / HTTP/1.1",
        "GET /  HTTP/1.1",
        "GET / HTTP/1.1 x",
        "GET / HTTP/9.9",
        "GET / HTTP/0.9",
        "GET / http/1.1",
        "GET / HTTP/1.12",
        "GET / HTTPS/1.1",
        "G@T / HTTP/1.1\0",
        "GET\t/\tHTTP/1.1",
        "GET /",
        "/ HTTP/1.1",
        "GET /\0 HTTP/1.1",
        "GET /a b HTTP/1.1",
        "(GET) / HTTP/1.1",
        ": / HTTP/1.1",
        "GET v1/orders HTTP/1.1",
        "\u{feff}GET / HTTP/1.1",
    ] {
        family.raw(format!("{line:?}"), format!("{line}{rest}"), Expect::Bare(HYPER));
    }
    for (what, bytes) in [
        ("nothing but NULs", vec![0; 1_000]),
        ("a TLS hello", b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03".repeat(20)),
        ("an HTTP/2 preface", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0".to_vec()),
        ("random bytes", (0..5_000_u32).map(|n| (n.wrapping_mul(2_654_435_761) >> 13) as u8).collect()),
        ("an SSH banner", b"SSH-2.0-OpenSSH_9.2\r\n\r\n\r\n".to_vec()),
        ("a method of 100,000 characters", [b"G".repeat(100_000), b" / HTTP/1.1\r\n\r\n".to_vec()].concat()),
        (
            "a URI of 70,000 characters",
            [b"GET /".to_vec(), b"a".repeat(70_000), b" HTTP/1.1\r\n\r\n".to_vec()].concat(),
        ),
    ] {
        family.raw(what, bytes, Expect::Bare(HYPER));
    }
    family.cut("empty lines only", b"\r\n".repeat(1_000), Expect::Bare(HYPER));
    family.cut("half a request line", "GET /v1/or", Expect::Gone);
    family.cut("half a header", "GET /v1/orders HTTP/1.1\r\nauthoriz", Expect::Gone);
    for (line, expect) in [
        ("get /v1/orders", Expect::Problem(&[405])),
        ("BREW /v1/orders", Expect::Problem(&[405])),
        ("TRACE /v1/orders", Expect::Problem(&[405])),
        ("PATCH /v1/orders/hostile", Expect::Problem(&[405])),
        ("DELETE /v1/orders/hostile", Expect::Problem(&[405])),
        ("CONNECT evil.test:443", ANY),
        ("GET *", ANY),
        ("GET http://evil.test/v1/nowhere", Expect::Problem(&[404])),
    ] {
        family.request(line, line, b"", b"", expect);
    }
    family.get(&format!("/{}", "a".repeat(10_000)), Expect::Problem(&[404]));
    family
}

fn headers(token: &str) -> Family<'_> {
    let mut family = Family::new("headers", token);
    let bare = |what: &str, header: &[u8], family: &mut Family<'_>| {
        family.request(what, "GET /v1/orders", header, b"", Expect::Bare(HYPER));
    };
    for (what, header) in [
        ("a NUL in a value", &b"x-a: a\0b\r\n"[..]),
        ("a NUL in a name", b"x\0a: b\r\n"),
        ("a space in a name", b"x a: b\r\n"),
        ("a space before the colon", b"x-a : b\r\n"),
        ("no name", b": b\r\n"),
        ("no colon", b"x-a\r\n"),
        ("a folded line", b"x-a: b\r\n c\r\n"),
        ("a folded first line", b" x-a: b\r\n"),
        ("a bare CR in a value", b"x-a: b\rc: d\r\n"),
        ("a name that is not ASCII", b"x-\xc3\xa9: b\r\n"),
        ("a control character in a value", b"x-a: \x01\r\n"),
    ] {
        bare(what, header, &mut family);
    }
    bare("200 headers", "x-a: b\r\n".repeat(200).as_bytes(), &mut family);
    bare("70,000 characters in one", format!("x-a: {}\r\n", "b".repeat(70_000)).as_bytes(), &mut family);
    bare("a name of 70,000 characters", format!("{}: b\r\n", "b".repeat(70_000)).as_bytes(), &mut family);
    bare("70,000 characters in 80", format!("x-a: {}\r\n", "b".repeat(875)).repeat(80).as_bytes(), &mut family);
    let lines = format!("GET /v1/orders/absent HTTP/1.1\nhost: docket\nauthorization: Bearer {token}\n\n");
    family.raw("bare line feeds", lines, Expect::Fine("RFC 9112 lets a server accept a bare LF as the end of a line"));
    let fine = Expect::Fine("a useless header is ignored");
    for header in [
        "x-request-id: \u{e9}",
        "x-request-id: a b",
        "x-request-id: ",
        "traceparent: 00-zz-zz-zz",
        "tracestate: ,,,=",
        "range: bytes=0-1",
        "if-none-match: \"",
        "accept: \u{e9}",
        "cookie: docket_token",
        "te: gzip, trailers",
        "upgrade: h2c",
        "x-forwarded-for: ' or 1=1 --",
        "forwarded: for=\"",
        "max-forwards: -1",
        "connection: keep-alive, x-a, , close",
        "if-modified-since: yesterday",
    ] {
        family.request(header, "GET /v1/orders?limit=1", format!("{header}\r\n").as_bytes(), b"", fine);
    }
    let expectation = format!("expect: {}\r\ncontent-type: application/json\r\ncontent-length: 2\r\n", "200-maybe");
    family.request("an unknown expectation", "POST /v1/orders", expectation.as_bytes(), b"{}", ANY);
    let expectation = "expect: 100-continue\r\ncontent-type: application/json\r\ncontent-length: 2\r\n";
    family.request("an expectation and a bad body", "POST /v1/orders", expectation.as_bytes(), b"{}", ANY);
    family
}

/// Headers that Docket itself reads.
fn our_headers(token: &str) -> Family<'_> {
    let mut family = Family::new("our headers", token);
    let unauthorized = Expect::Problem(&[401]);
    for header in [
        "authorization: Basic YTpi".to_owned(),
        "authorization: Bearer".to_owned(),
        "authorization: ".to_owned(),
        "authorization: Bearer a.b".to_owned(),
        "authorization: Bearer a.b.c.d".to_owned(),
        "authorization: bearer \u{e9}".to_owned(),
        "authorization: Bearer ..".to_owned(),
        format!("authorization: Bearer {}", "a".repeat(9_000)),
        "authorization: Bearer eyJhbGciOiJub25lIn0.e30.".to_owned(),
        format!("authorization: Token {token}"),
        format!("authorization: {token}"),
    ] {
        let what: String = header.chars().take(60).collect();
        family.raw(what, format!("GET /v1/orders HTTP/1.1\r\nhost: docket\r\n{header}\r\n\r\n"), unauthorized);
    }
    let second = format!("authorization: Bearer {token}\r\n");
    let doubled = Expect::Problem(&[400, 401]);
    family.request("two authorizations", "GET /v1/orders", second.as_bytes(), b"", doubled);
    family.request("two authorizations, one bad", "GET /v1/orders", b"authorization: Bearer x\r\n", b"", doubled);
    let command = "POST /v1/orders/hostile/confirm";
    let keyed = |what: &str, headers: String, family: &mut Family<'_>| {
        family.request(what, command, format!("{headers}content-length: 0\r\n").as_bytes(), b"", BAD_REQUEST);
    };
    keyed("two idempotency keys", "idempotency-key: a\r\nidempotency-key: b\r\n".to_owned(), &mut family);
    keyed("an empty idempotency key", "idempotency-key: \r\n".to_owned(), &mut family);
    keyed("an idempotency key of 256 characters", format!("idempotency-key: {}\r\n", "k".repeat(256)), &mut family);
    keyed("an idempotency key that is not ASCII", "idempotency-key: \u{e9}\r\n".to_owned(), &mut family);
    for value in [
        "2",
        "\"+1\"",
        "\"1",
        "1\"",
        "\"\"",
        "\"a\"",
        "\"1.0\"",
        "\" 1\"",
        "\"-1\"",
        "\"99999999999999999999\"",
        "\"\u{663}\"",
        "NaN",
        "'1'",
        "\"0x1\"",
    ] {
        keyed(&format!("if-match: {value}"), format!("if-match: {value}\r\n"), &mut family);
    }
    for media in [
        "text/plain",
        "application/x-www-form-urlencoded",
        "multipart/form-data; boundary=x",
        "application/xml",
        "",
        "/",
        "json",
        "application/json; charset=utf-16",
        "application/json; charset=latin1",
    ] {
        let headers = format!("content-type: {media}\r\ncontent-length: 2\r\n");
        family.request(
            format!("content-type: {media}"),
            "POST /v1/orders",
            headers.as_bytes(),
            b"{}",
            Expect::Problem(&[415]),
        );
    }
    let body = b"\x1f\x8b\x08\0\0\0\0\0\0\x03\0\x01\x02\x03";
    for coding in ["gzip", "deflate", "br", "zstd", "gzip, gzip", "compress"] {
        let headers = format!(
            "content-type: application/json\r\ncontent-encoding: {coding}\r\ncontent-length: {}\r\n",
            body.len()
        );
        let what = format!("content-encoding: {coding} of garbage");
        family.request(what, "POST /v1/orders", headers.as_bytes(), body, Expect::Problem(&[400, 413, 415]));
    }
    for header in ["idempotency-key: a", "if-match: \"1\""] {
        let headers = format!("{header}\r\ncontent-type: application/x-ndjson\r\ncontent-length: 0\r\n");
        family.request(
            format!("{header} of a bulk request"),
            "POST /v1/commands",
            headers.as_bytes(),
            b"",
            BAD_REQUEST,
        );
    }
    for origin in ["https://evil.test", "null", "\u{e9}", "http://localhost.evil.test", "javascript:alert(1)"] {
        let header = format!("origin: {origin}\r\n");
        let target = "GET /v1/poll?channel=orders&wait=0";
        family.request(
            format!("a poll with origin: {origin}"),
            target,
            header.as_bytes(),
            b"",
            Expect::Problem(&[403]),
        );
    }
    family
}

fn hosts(token: &str) -> Family<'_> {
    let mut family = Family::new("hosts", token);
    let mut row = |what: &str, hosts: &str| {
        let request = format!("GET /v1/orders HTTP/1.1\r\n{hosts}authorization: Bearer {token}\r\n\r\n");
        family.raw(what, request, BAD_REQUEST);
    };
    row("no host", "");
    row("two hosts", "host: a\r\nhost: b\r\n");
    row("the same host twice", "host: a\r\nhost: a\r\n");
    row("a host with a space", "host: a b\r\n");
    row("a host with a path", "host: a/b\r\n");
    row("a host with a user", "host: a@b\r\n");
    row("a list of hosts", "host: a, b\r\n");
    row("a host that is not ASCII", "host: \u{e9}\r\n");
    family
}

fn paths(token: &str) -> Family<'_> {
    let mut family = Family::new("paths", token);
    for path in [
        "/../../../etc/passwd",
        "/v1/../../etc/passwd",
        "/v1/orders/../../../etc/passwd",
        "/docs/../../Cargo.toml",
        "/docs/%2e%2e/%2e%2e/etc/passwd",
        "/docs/..%2f..%2fetc%2fpasswd",
        "/docs/....//....//etc/passwd",
        "/v1/orders/..%2f..%2fevents",
        "/v1/orders/%2e%2e",
        "/v1/orders/.",
        "//v1/orders",
        "/v1//orders",
        "/V1/ORDERS",
        "/v1/orders;a=b",
        "/v1/orders/hostile/items/pen/x",
        "/%76%31/orders",
        "/v1/orders/%00",
        "/v1/orders/hostile%00",
        "/v1/orders/%zz",
        "/v1/orders/%",
        "/v1/orders/%2",
        "/v1/orders/%ff%fe",
        "/v1/orders/%c0%ae%c0%ae",
        "/v1/orders/%ed%a0%80",
        "/v1/orders/%e2%80%aehostile",
        "/v1/orders/hostile%e2%80%8b",
        "/v1/orders/%ef%bb%bfhostile",
        "/v1/orders/hostile%0d%0aset-cookie:a=b",
        "/v1/orders/%27%20or%201=1--",
        "/v1/orders/*",
        "/v1/orders/hostile%2fevents",
        "/v1/customers/%00",
        "/v1/customers/..",
        "/.git/config",
        "/.env",
        "/admin",
        "/metrics/x",
        "/health/",
        "/server-status",
        "/cgi-bin/sh",
        "/%",
        "/%00",
        "/v1",
        "/v1/admin",
        "/v1/admin/",
    ] {
        family.get(path, ANY);
    }
    family.get(&format!("/v1/orders/{}", "a".repeat(65)), ANY);
    family.get(&format!("/v1/orders/{}", "a".repeat(10_000)), ANY);
    family.get(&format!("/{}", "a/".repeat(5_000)), ANY);
    for path in ["/v1/orders/%00/items", "/v1/orders/a%20b/items", "/v1/orders/%ff/items", "/v1/orders/x%2fy/confirm"] {
        let body = r#"{"sku":"pen","quantity":1,"unit_price":"1.00"}"#;
        family.json(format!("POST {path}"), &format!("POST {path}"), body, ANY);
    }
    for sku in ["%00", "a%20b", "%ff", "..", "%e2%80%ae", "%f0%9f%92%a9"] {
        let line = format!("PUT /v1/orders/hostile/items/{sku}");
        family.json(line.clone(), &line, r#"{"quantity":1}"#, ANY);
    }
    family
}

/// Ambiguous body lengths, which could move the start of the next request.
fn framing(token: &str) -> Family<'_> {
    let mut family = Family::new("framing", token);
    let next = "GET /v1/smuggled HTTP/1.1\r\nhost: docket\r\n\r\n";
    let json = "content-type: application/json\r\n";
    for (what, headers) in [
        ("lengths that differ", "content-length: 2\r\ncontent-length: 3\r\n"),
        ("a list of lengths that differ", "content-length: 2, 3\r\n"),
        ("a length with a sign", "content-length: +2\r\n"),
        ("a negative length", "content-length: -2\r\n"),
        ("a length with letters", "content-length: 2x\r\n"),
        ("a length in hexadecimal", "content-length: 0x2\r\n"),
        ("a length with a space", "content-length: 2 2\r\n"),
        ("a length beyond 64 bits", "content-length: 99999999999999999999\r\n"),
        ("an empty length", "content-length: \r\n"),
        ("an unknown transfer coding", "transfer-encoding: xchunked\r\n"),
        ("a transfer coding before a space", "transfer-encoding : chunked\r\n"),
        ("a transfer coding after a vertical tab", "transfer-encoding:\x0bchunked\r\n"),
        ("chunked and then identity", "transfer-encoding: chunked, identity\r\n"),
        ("chunked and then gzip", "transfer-encoding: chunked, gzip\r\n"),
        ("no transfer coding", "transfer-encoding: \r\n"),
    ] {
        family.request(what, "POST /v1/orders", format!("{json}{headers}").as_bytes(), b"{}", Expect::Bare(BELOW));
    }
    let one = Expect::One("RFC 9112: the transfer coding wins, and the connection ends");
    for (what, headers) in [
        ("a length and chunks", "content-length: 4\r\ntransfer-encoding: chunked\r\n"),
        ("chunks and a length", "transfer-encoding: chunked\r\ncontent-length: 4\r\n"),
        ("chunks and a length of 0", "transfer-encoding: chunked\r\ncontent-length: 0\r\n"),
    ] {
        let body = format!("2\r\n{{}}\r\n0\r\n\r\n{next}");
        family.request(what, "POST /v1/orders", format!("{json}{headers}").as_bytes(), body.as_bytes(), one);
    }
    let old = format!(
        "POST /v1/orders HTTP/1.0\r\nhost: docket\r\nauthorization: Bearer {token}\r\n{json}transfer-encoding: chunked\r\n\r\n\
         2\r\n{{}}\r\n0\r\n\r\n{next}"
    );
    family.raw("chunks in HTTP/1.0", old, one);
    let chunked = format!("{json}transfer-encoding: chunked\r\n");
    for (what, body) in [
        ("a chunk size with letters", "zz\r\n{}\r\n0\r\n\r\n"),
        ("a negative chunk size", "-2\r\n{}\r\n0\r\n\r\n"),
        ("a chunk size with a prefix", "0x2\r\n{}\r\n0\r\n\r\n"),
        ("a chunk size beyond 64 bits", "fffffffffffffffff\r\n{}\r\n0\r\n\r\n"),
        ("an empty chunk size", "\r\n{}\r\n0\r\n\r\n"),
        ("a chunk shorter than its data", "1\r\n{}\r\n0\r\n\r\n"),
        ("a chunk size that ends in a bare line feed", "2\n{}\r\n0\r\n\r\n"),
        ("a chunk that ends in letters", "2\r\n{}xx0\r\n\r\n"),
    ] {
        family.request(what, "POST /v1/orders", chunked.as_bytes(), body.as_bytes(), BAD_REQUEST);
    }
    let extension = format!("2;{}\r\n{{}}\r\n0\r\n\r\n", "x".repeat(20_000));
    family.request(
        "an extension of 20,000 characters",
        "POST /v1/orders",
        chunked.as_bytes(),
        extension.as_bytes(),
        ANY,
    );
    let trailers = format!("2\r\n{{}}\r\n0\r\n{}\r\n", "x-a: b\r\n".repeat(20_000));
    family.request("20,000 trailers", "POST /v1/orders", chunked.as_bytes(), trailers.as_bytes(), ANY);
    let trailer = "2\r\n{}\r\n0\r\nauthorization: Bearer x\r\ncontent-length: 9\r\n\r\n";
    family.request("trailers that are headers", "POST /v1/orders", chunked.as_bytes(), trailer.as_bytes(), ANY);
    let tiny = format!("{}0\r\n\r\n", "1\r\n[\r\n".repeat(50_000));
    family.request("50,000 chunks of a byte", "POST /v1/orders", chunked.as_bytes(), tiny.as_bytes(), ANY);
    family
}

const CREATE: &str = "POST /v1/orders";

fn bodies(token: &str) -> Family<'_> {
    let mut family = Family::new("bodies", token);
    for (what, body) in [
        ("nothing", ""),
        ("a blank", " "),
        ("null", "null"),
        ("a number", "7"),
        ("a string", "\"x\""),
        ("true", "true"),
        ("an array", "[]"),
        ("an array of the members' values", r#"["c-1","USD"]"#),
        ("an array of an object", r#"[{"customer_id":"c-1"}]"#),
        ("an empty object", "{}"),
        ("half an object", r#"{"customer_id":"c"#),
        ("two objects", r#"{"customer_id":"c"}{"customer_id":"d"}"#),
        ("a comma too many", r#"{"customer_id":"c",}"#),
        ("single quotes", "{'customer_id':'c'}"),
        ("a name without quotes", "{customer_id:\"c\"}"),
        ("a comment", "{\"customer_id\":\"c\"/**/}"),
        ("NaN", r#"{"customer_id":NaN}"#),
        ("a raw line feed in a string", "{\"customer_id\":\"a\nb\"}"),
        ("a raw NUL", "{\"customer_id\":\"a\0b\"}"),
        ("an unknown escape", r#"{"customer_id":"\x41"}"#),
        ("a lone surrogate", r#"{"customer_id":"\ud800"}"#),
        ("surrogates the wrong way round", r#"{"customer_id":"\udc00\ud800"}"#),
        ("an unknown field", r#"{"customer_id":"c","price":1}"#),
        ("an unknown field of a prototype", r#"{"customer_id":"c","__proto__":{"role":"admin"}}"#),
        ("an unknown field with backticks", "{\"customer_id\":\"c\",\"`, expected `\":1}"),
        ("NDJSON", "{\"customer_id\":\"c\"}\n{\"customer_id\":\"c\"}\n"),
        ("XML", "<?xml version=\"1.0\"?><!DOCTYPE a [<!ENTITY b SYSTEM \"file:///etc/passwd\">]><a>&b;</a>"),
        ("a form", "customer_id=c"),
    ] {
        family.json(what, CREATE, body, ANY);
    }
    for (what, bytes) in [
        ("invalid UTF-8", &b"{\"customer_id\":\"\xff\"}"[..]),
        ("overlong UTF-8", b"{\"customer_id\":\"\xc0\xaf\"}"),
        ("a surrogate in UTF-8", b"{\"customer_id\":\"\xed\xa0\x80\"}"),
        ("UTF-16", b"\xff\xfe{\0}\0"),
        ("half a character", b"{\"customer_id\":\"\xe2\x82"),
    ] {
        family.json(what, CREATE, bytes, ANY);
    }
    let bom = "\u{feff}{\"customer_id\":\"c\",\"price\":1}";
    family.json("a byte order mark and an unknown field", CREATE, bom, ANY);
    for (what, open) in [("[", "["), ("{\"a\":", "{\"a\":"), ("[{\"items\":", "[{\"items\":")] {
        family.json(format!("100,000 {what}"), CREATE, open.repeat(100_000), ANY);
    }
    let deep = format!("{}{}", "[".repeat(100_000), "]".repeat(100_000));
    family.json("100,000 arrays, closed", CREATE, &deep, ANY);
    for field in ["customer_id", "items", "attributes", "unknown"] {
        family.json(format!("100,000 arrays as {field}"), CREATE, format!(r#"{{"{field}":{deep}}}"#), ANY);
    }
    let digits = "9".repeat(500_000);
    for (what, number) in [("500,000 digits", digits.clone()), ("500,000 decimals", format!("0.{digits}"))] {
        family.json(what, CREATE, format!(r#"{{"customer_id":{number}}}"#), ANY);
    }
    let members: String = (0..50_000).map(|n| format!("\"k{n}\":1,")).collect();
    family.json("50,000 unknown fields", CREATE, format!("{{{members}\"customer_id\":\"c\"}}"), ANY);
    let items = r#"{"sku":"a","quantity":1,"unit_price":"1.00"},"#.repeat(20_000);
    family.json(
        "20,000 items",
        CREATE,
        format!(r#"{{"customer_id":"c","items":[{}]}}"#, items.trim_end_matches(',')),
        ANY,
    );
    let bad_items = "7,".repeat(900);
    family.json(
        "900 bad items",
        CREATE,
        format!(r#"{{"customer_id":"c","items":[{}]}}"#, bad_items.trim_end_matches(',')),
        ANY,
    );
    let large = format!(r#"{{"customer_id":"{}"}}"#, "c".repeat(1024 * 1024));
    family.json("more than 1 MiB", CREATE, &large, Expect::Problem(&[413]));
    let chunk = format!("{:x}\r\n{large}\r\n0\r\n\r\n", large.len());
    let headers = b"content-type: application/json\r\ntransfer-encoding: chunked\r\n";
    family.request("more than 1 MiB in a chunk", CREATE, headers, chunk.as_bytes(), Expect::Problem(&[413]));
    let mib = format!(r#"{{"x":"{}"}}"#, "x".repeat(1024 * 1024 - 8));
    family.json("1 MiB of an unknown field", CREATE, mib, Expect::Problem(&[422]));
    for (what, line) in [
        ("a body of confirm", "POST /v1/orders/hostile/confirm"),
        ("a body of remove", "DELETE /v1/orders/hostile/items/pen"),
    ] {
        family.json(what, line, r#"{"force":true}"#, ANY);
        family.json(format!("{what}, an array"), line, "[]", ANY);
        family.json(format!("{what}, null"), line, "null", ANY);
    }
    let half = b"content-type: application/json\r\ncontent-length: 100\r\n";
    family.request("half a body", CREATE, half, b"{\"customer_id\":", Expect::Gone);
    family.rows.last_mut().expect("a row").cut = true;
    family
}

/// Kinds of field values.
#[derive(Clone, Copy, PartialEq)]
enum Kind {
    Id,
    Text,
    Count,
    Price,
}

/// A command or another body: its request line, its type in NDJSON, and its fields.
type Command = (&'static str, &'static str, &'static [(&'static str, &'static str, Kind, bool)]);

/// Every body with every field: name, a valid value, its kind, and whether it may be null or missing.
const COMMANDS: &[Command] = &[
    (
        "POST /v1/orders",
        "create_order",
        &[
            ("customer_id", r#""c-1""#, Kind::Id, false),
            ("currency", r#""USD""#, Kind::Id, false),
            ("order_id", r#""o-1""#, Kind::Id, true),
        ],
    ),
    (
        "POST /v1/orders/hostile/items",
        "add_item",
        &[
            ("sku", r#""pen""#, Kind::Id, false),
            ("quantity", "1", Kind::Count, false),
            ("unit_price", r#""1.00""#, Kind::Price, false),
            ("name", r#""Pen""#, Kind::Text, true),
            ("category", r#""OFFICE""#, Kind::Text, true),
        ],
    ),
    ("PUT /v1/orders/hostile/items/pen", "change_item", &[("quantity", "2", Kind::Count, false)]),
    ("POST /v1/orders/hostile/cancel", "cancel_order", &[("reason", r#""none""#, Kind::Text, false)]),
    ("POST /v1/admin/revocations", "", &[("subject", r#""nobody""#, Kind::Text, true)]),
    ("POST /v1/admin/revocations", "", &[("token_id", r#""of nobody""#, Kind::Text, true)]),
    (
        "POST /v1/admin/bans",
        "",
        &[("subject", r#""nobody""#, Kind::Id, false), ("reason", r#""none""#, Kind::Text, false)],
    ),
    ("PUT /v1/admin/log-level", "", &[("level", r#""info""#, Kind::Id, false)]),
];

/// Returns values that no field of a kind accepts.
fn wrong(kind: Kind, may_be_null: bool) -> Vec<String> {
    let mut values: Vec<String> = [
        "true",
        "[]",
        "{}",
        "[[\"x\"]]",
        "{\"x\":{}}",
        "1e400",
        "-1e400",
        "\"\\ud800\"",
        "NaN",
        "Infinity",
        "undefined",
    ]
    .map(str::to_owned)
    .into();
    if !may_be_null {
        values.push("null".to_owned());
    }
    match kind {
        Kind::Count => values.extend(
            [
                "0",
                "-1",
                "-0",
                "1.5",
                "1e0",
                "1000001",
                "18446744073709551616",
                "\"1\"",
                "\"\"",
                "01",
                "+1",
                "0x1",
                "1_0",
                "1.",
            ]
            .map(str::to_owned),
        ),
        Kind::Price => values.extend(["\"\"", "\"\\u0000\""].map(str::to_owned)),
        Kind::Id | Kind::Text => {
            values.extend(["7", "\"\"", "\"\\u0000\"", "\"a\\u0000b\""].map(str::to_owned));
            values.push(format!("\"{}\"", "x".repeat(10_000)));
        }
    }
    values
}

fn object(fields: &[(&str, &str, Kind, bool)], changed: &str, value: &str) -> String {
    let members =
        fields.iter().map(|(name, good, _, _)| format!("\"{name}\":{}", if *name == changed { value } else { good }));
    format!("{{{}}}", members.collect::<Vec<_>>().join(","))
}

fn shown(text: &str) -> String {
    text.chars().take(60).collect()
}

/// Wrong values for each field of each command.
fn fields(token: &str) -> Family<'_> {
    let mut family = Family::new("fields", token);
    for (line, _, fields) in COMMANDS {
        for (name, _, kind, may_be_null) in *fields {
            for value in wrong(*kind, *may_be_null) {
                family.json(format!("{line}, {name}: {}", shown(&value)), line, object(fields, name, &value), ANY);
            }
        }
        if !fields.iter().all(|(_, _, _, may_be_missing)| *may_be_missing) {
            family.json(format!("{line}, a field missing"), line, "{}", ANY);
        }
    }
    for attributes in [
        "7",
        "[]",
        "\"x\"",
        "null",
        r#"{"a":1}"#,
        r#"{"a":null}"#,
        r#"{"a":["b"]}"#,
        r#"{"a":{"b":"c"}}"#,
        r#"{"":"a"}"#,
        r#"{"a b":"c"}"#,
        r#"{"a\u0000":"b"}"#,
        r#"{"a":"b\u0000"}"#,
        r#"{"a":"\ud800"}"#,
        r#"{"\u202e":"a"}"#,
    ] {
        let body = format!(r#"{{"customer_id":"c","attributes":{attributes}}}"#);
        family.json(format!("attributes: {attributes}"), CREATE, body, ANY);
    }
    let many: Vec<_> = (0..21).map(|n| format!("\"k{n}\":\"v\"")).collect();
    for (what, attributes) in [
        ("21 attributes", format!("{{{}}}", many.join(","))),
        ("an attribute's key of 41 characters", format!("{{\"{}\":\"v\"}}", "k".repeat(41))),
        ("an attribute's value of 501 characters", format!("{{\"k\":\"{}\"}}", "v".repeat(501))),
    ] {
        family.json(what, CREATE, format!(r#"{{"customer_id":"c","attributes":{attributes}}}"#), ANY);
    }
    for items in
        ["7", "{}", "\"x\"", "null", "[7]", "[null]", "[[]]", r#"[["pen",1,"1.00"]]"#, "[{}]", r#"[{"sku":"pen"}]"#]
    {
        family.json(format!("items: {items}"), CREATE, format!(r#"{{"customer_id":"c","items":{items}}}"#), ANY);
    }
    for body in [r#"{"subject":"a","token_id":"b"}"#, "{}", r#"{"subject":null,"token_id":null}"#] {
        family.json(format!("revocation: {body}"), "POST /v1/admin/revocations", body, ANY);
    }
    for filter in ["=", "a=b=c", "http=loud", "["] {
        let body = json!({"level": "info", "filter": filter}).to_string();
        family.json(format!("filter: {filter}"), "PUT /v1/admin/log-level", body, ANY);
    }
    family
}

/// Invalid prices: wrong JSON types and malformed amounts.
const AMOUNTS: &[&str] = &[
    "1.00",
    "1",
    "0",
    "-1",
    "2.55",
    "1e2",
    "1e400",
    "-0",
    "0.1",
    "NaN",
    "\"-1\"",
    "\"+1\"",
    "\"-0\"",
    "\"1e2\"",
    "\"0x10\"",
    "\"1,50\"",
    "\" 1\"",
    "\"1 \"",
    "\"1\\n\"",
    "\"1.\"",
    "\".5\"",
    "\".\"",
    "\"..5\"",
    "\"1.2.3\"",
    "\"1.234\"",
    "\"1.2345\"",
    "\"1_000\"",
    "\"1 000\"",
    "\"NaN\"",
    "\"Infinity\"",
    "\"null\"",
    "\"$1\"",
    "\"1USD\"",
    "\"1000000001\"",
    "\"99999999999999999999999999\"",
    "\"\\uff11\"",
    "\"\\u0663\"",
    "\"\\u00bd\"",
    "\"1\\u200b\"",
    "\"\\u202e1\"",
    "\"\\ufeff1\"",
    "\"--1\"",
    "\"1-1\"",
    "\"1;drop table events\"",
];

fn amounts(token: &str) -> Family<'_> {
    let mut family = Family::new("amounts", token);
    for amount in AMOUNTS {
        let body = format!(r#"{{"sku":"ink","quantity":1,"unit_price":{amount}}}"#);
        family.json(format!("unit_price: {amount}"), "POST /v1/orders/hostile/items", body, ANY);
    }
    for (currency, amount) in
        [("JPY", "1.0"), ("USD", "1.001"), ("KWD", "1.0001"), ("XXX", "1"), ("usd", "1"), ("US", "1")]
    {
        let body = json!({"customer_id": "c", "currency": currency, "items": [{"sku": "a", "quantity": 1, "unit_price": amount}]});
        family.json(format!("{amount} in {currency}"), CREATE, body.to_string(), ANY);
    }
    family
}

/// Unusual Unicode. Free texts accept all of it, ids only what [`ID_TRICKS`] names.
const TRICKS: &[(&str, &str)] = &[
    ("right to left", "a\u{202e}b"),
    ("zero width", "a\u{200b}b"),
    ("a joiner", "a\u{200d}b"),
    ("a byte order mark", "\u{feff}a"),
    ("a combining accent", "e\u{301}"),
    ("a letter with that accent", "\u{e9}"),
    ("full width", "\u{ff41}"),
    ("Cyrillic that looks Latin", "\u{430}bc"),
    ("an emoji of several characters", "\u{1f468}\u{200d}\u{1f469}\u{200d}\u{1f467}"),
    ("a private character", "\u{e000}"),
    ("a noncharacter", "\u{ffff}"),
    ("the last character", "\u{10ffff}"),
    ("a line separator", "a\u{2028}b"),
    ("a soft hyphen", "a\u{ad}b"),
    ("a thousand accents", "z"),
];

/// The unusual Unicode that ids accept: visible characters in NFC, and characters without a meaning.
const ID_TRICKS: &[&str] = &[
    "a letter with that accent",
    "full width",
    "Cyrillic that looks Latin",
    "a private character",
    "a noncharacter",
    "the last character",
];

fn texts(token: &str) -> Family<'_> {
    let mut family = Family::new("texts", token);
    for (what, text) in TRICKS {
        let text = if *what == "a thousand accents" {
            format!("{text}{}", "\u{301}".repeat(1_000))
        } else {
            (*text).to_owned()
        };
        let id = if ID_TRICKS.contains(what) { Expect::Fine("ids may have any visible character in NFC") } else { ANY };
        let create = json!({"customer_id": text}).to_string();
        family.json(format!("customer_id with {what}"), CREATE, create, id);
        let create = json!({"customer_id": "c", "order_id": text}).to_string();
        family.json(format!("order_id with {what}"), CREATE, create, id);
        let item = json!({"sku": text, "quantity": 1, "unit_price": "1.00"}).to_string();
        family.json(format!("sku with {what}"), "POST /v1/orders/hostile/items", item, id);
        let item = json!({"sku": "ink", "quantity": 1, "unit_price": "1.00", "name": text}).to_string();
        let fine = Expect::Fine("a name is free text without control characters");
        family.json(format!("name with {what}"), "POST /v1/orders/hostile/items", item, fine);
    }
    for text in ["..", " a", "a ", "a\tb", "a\r\nb"] {
        let create = json!({"customer_id": "c", "order_id": text}).to_string();
        family.json(format!("order_id {text:?}"), CREATE, create, ANY);
    }
    for text in ["a/b", "a\\b", "'", "\"", "<script>", "%00", "${jndi:ldap://x}", "{{7*7}}"] {
        let create = json!({"customer_id": "c", "order_id": text}).to_string();
        family.json(format!("order_id {text:?}"), CREATE, create, Expect::Fine("ids may have any visible character"));
    }
    for text in ["a\u{7}b", "a\u{1b}[31mb", "a\u{7f}b", "a\u{85}b", "a\nb", "   "] {
        let body = json!({"reason": text}).to_string();
        family.json(format!("reason {text:?}"), "POST /v1/orders/hostile/cancel", body, ANY);
    }
    family
}

/// Duplicate JSON members, at each depth.
fn duplicates(token: &str) -> Family<'_> {
    let mut family = Family::new("duplicate members", token);
    let items = "POST /v1/orders/hostile/items";
    for (line, body) in [
        (CREATE, r#"{"customer_id":"c","customer_id":"d"}"#),
        (CREATE, r#"{"customer_id":"c","currency":"USD","currency":"EUR"}"#),
        (CREATE, r#"{"customer_id":"c","customer\u005fid":"d"}"#),
        (CREATE, r#"{"customer_id":"c","items":[],"items":[]}"#),
        (CREATE, r#"{"customer_id":"c","items":[{"sku":"a","sku":"b","quantity":1,"unit_price":"1.00"}]}"#),
        (CREATE, r#"{"customer_id":"c","attributes":{},"attributes":{}}"#),
        (CREATE, r#"{"customer_id":"c","attributes":{"a":"1","a":"2"}}"#),
        (CREATE, r#"{"customer_id":"c","attributes":{"a":"1","\u0061":"2"}}"#),
        (items, r#"{"sku":"a","quantity":1,"quantity":2,"unit_price":"1.00"}"#),
        (items, r#"{"sku":"a","quantity":1,"unit_price":"1.00","unit_price":"0.01"}"#),
        ("PUT /v1/orders/hostile/items/pen", r#"{"quantity":1,"quantity":2}"#),
        ("POST /v1/orders/hostile/cancel", r#"{"reason":"a","reason":"b"}"#),
        ("POST /v1/admin/revocations", r#"{"subject":"a","subject":"b"}"#),
        ("PUT /v1/admin/log-level", r#"{"level":"info","level":"debug"}"#),
    ] {
        family.json(format!("{line} {body}"), line, body, ANY);
    }
    let line = |body: &str| format!("{body}\n");
    family.ndjson(
        "in lines",
        [
            line(r#"{"type":"confirm_order","order_id":"hostile","order_id":"other"}"#),
            line(r#"{"type":"confirm_order","type":"cancel_order","order_id":"hostile","reason":"a"}"#),
            line(r#"{"id":1,"id":2,"type":"add_item","order_id":"hostile","sku":"a","quantity":1,"unit_price":"1.00"}"#),
            line(r#"{"type":"create_order","customer_id":"c","attributes":{"a":"1","a":"2"}}"#),
            line(r#"{"type":"create_order","customer_id":"c","items":[{"sku":"a","sku":"b","quantity":1,"unit_price":"1.00"}]}"#),
        ]
        .concat(),
        Expect::Lines,
    );
    family
}

/// Parameters that accept any text.
const FREE: &[&str] = &["q", "category", "customer_id", "last_event_id"];

/// Each parameter of the document with wrong types, too large, duplicated, unknown, with a NUL, or 10,000 characters
/// long.
fn queries<'a>(token: &'a str, document: &Value) -> Family<'a> {
    let mut family = Family::new("queries", token);
    for (path, item) in document["paths"].as_object().expect("paths") {
        let parameters = item["get"]["parameters"].as_array().cloned().unwrap_or_default();
        let parameters: Vec<_> = parameters.iter().filter(|parameter| parameter["in"] == "query").collect();
        if parameters.is_empty() {
            continue;
        }
        // Parameters that the request needs in any case.
        let needed = match path.as_str() {
            "/v1/reports/sales" => "by=day",
            "/v1/products/top" => "by=revenue",
            "/v1/poll" => "channel=orders&wait=0",
            "/v1/live" => "channel=orders",
            _ => "",
        };
        let target = path.replace("{id}", ORDER);
        let with = |query: &str| {
            let rest: Vec<_> = needed
                .split('&')
                .filter(|one| !query.starts_with(&format!("{}=", one.split('=').next().unwrap_or_default())))
                .collect();
            let rest = rest.join("&");
            format!("{target}?{query}{}{rest}", if rest.is_empty() { "" } else { "&" })
        };
        family.get(&with("unknown=1"), BAD_REQUEST);
        family.get(&with("LIMIT=1"), BAD_REQUEST);
        family.get(&with("=1"), BAD_REQUEST);
        family.get(&with("limit%00=1"), BAD_REQUEST);
        for parameter in parameters {
            let name = parameter["name"].as_str().expect("a name");
            if name == "ticket" {
                continue;
            }
            let is_number = parameter["schema"].to_string().contains("integer");
            let values: &[&str] = match is_number {
                true => &[
                    "x",
                    "1.5",
                    "1e3",
                    "99999999999999999999",
                    "-99999999999999999999",
                    "",
                    "%00",
                    "1%00",
                    "0x1",
                    "%EF%BC%91",
                    "1,2",
                    "null",
                    "[]",
                    "1%20",
                ],
                false => &[
                    "%00",
                    "a%00b",
                    "%ff%fe",
                    "%zz",
                    "%",
                    "%E2%80%AE",
                    "'%20or%201=1--",
                    "[]",
                    "{}",
                    "%0d%0aset-cookie:a=b",
                ],
            };
            let expect = match name {
                _ if FREE.contains(&name) => Expect::Fine("any text may be searched for, with or without a match"),
                "channel" => Expect::Problem(&[400, 404]),
                _ => BAD_REQUEST,
            };
            for value in values {
                family.get(&with(&format!("{name}={value}")), expect);
            }
            family.get(&with(&format!("{name}={}", "1".repeat(10_000))), expect);
            family.get(&with(&format!("{name}={}", "a".repeat(10_000))), expect);
            if name != "channel" {
                family.get(&with(&format!("{name}=1&{name}=1")), BAD_REQUEST);
            }
        }
    }
    for (target, bad) in [
        ("/v1/orders?limit=", &["0", "-1", "201", "9223372036854775807"][..]),
        ("/v1/orders/hostile/events?limit=", &["0", "-1", "201"]),
        ("/v1/products/top?by=revenue&limit=", &["0", "-1", "1001"]),
        ("/v1/events?limit=", &["0", "-1", "1001"]),
        ("/v1/orders?wait_ms=", &["-1", "10001", "18446744073709551615"]),
        ("/v1/poll?channel=orders&wait=", &["-1", "61", "18446744073709551616", "1.0"]),
        ("/v1/orders?sort=", &["total,placed_at", "--total", "+total", "position", "-"]),
        ("/v1/orders?status=", &["DRAFT", "draft,confirmed", "", "null"]),
        ("/v1/orders?min_total=", &["-1", "1e2", "1.2345", "NaN", "%EF%BC%91", "99999999999999999999", ".5", "%2B1"]),
        (
            "/v1/orders?placed_from=",
            &[
                "yesterday",
                "2026-13-01T00:00:00Z",
                "2026-01-01T00:00:00",
                "infinity",
                "-infinity",
                "0",
                "99999-01-01T00:00:00Z",
            ],
        ),
        (
            "/v1/orders/hostile?as_of=",
            &["0", "-1", "1.0", "%2B1", "now", "2026-13-01T00:00:00Z", "99999999999999999999", ""],
        ),
        ("/v1/reports/sales?by=", &["hour", "", "DAY", "day;", "category,store"]),
        ("/v1/reports/sales?by=day&from=", &["2026-02-30", "0", "today", "2026-01-01T00:00:01Z", "99999-01-01"]),
        (
            "/v1/reports/sales?by=day&timezone=",
            &["", "Mars/Olympus", "%2B02:00", "../../etc/passwd", "Europe/Berlin%00"],
        ),
        ("/v1/products/top?by=", &["price", "", "revenue%00"]),
    ] {
        for value in bad {
            family.get(&format!("{target}{value}"), BAD_REQUEST);
        }
    }
    for target in ["/v1/orders?", "/v1/orders/hostile?", "/v1/events?", "/v1/customers/c-1?"] {
        family.get(&format!("{target}min_position=9223372036854775807&wait_ms=0"), Expect::Behind);
    }
    family.get(&format!("/v1/orders?{}", "&".repeat(10_000)), Expect::Fine("empty pairs are ignored"));
    family.get(&format!("/v1/orders?{}", "q=a&".repeat(5_000)), BAD_REQUEST);
    let many: String = (0..5_000).map(|n| format!("p{n}=1&")).collect();
    family.get(&format!("/v1/orders?{many}"), BAD_REQUEST);
    family
}

/// Cursors that the server never issued.
fn cursors<'a>(token: &'a str, cursor: &str, epoch: &str) -> Family<'a> {
    let mut family = Family::new("cursors", token);
    let encode = |text: &str| URL_SAFE_NO_PAD.encode(text);
    let good: Value = serde_json::from_slice(&URL_SAFE_NO_PAD.decode(cursor).expect("base64url")).expect("JSON");
    let mut bad = vec![
        String::new(),
        "x".to_owned(),
        "====".to_owned(),
        cursor[1..].to_owned(),
        cursor[..cursor.len() - 3].to_owned(),
        format!("{cursor}A"),
        format!("{cursor}="),
        cursor.to_uppercase(),
        encode("null"),
        encode("[]"),
        encode("{}"),
        encode("\u{feff}{}"),
        encode("\"x\""),
        encode(&"[".repeat(5_000)),
        "A".repeat(10_000),
    ];
    for name in good.as_object().expect("an object").keys() {
        for value in [json!(null), json!([]), json!({}), json!(1e300), json!("x\0"), json!(["x"]), json!(1.5)] {
            if good[name] != value && !(good[name].is_string() && value.is_string()) {
                let mut changed = good.clone();
                changed[name] = value;
                bad.push(encode(&changed.to_string()));
            }
        }
        let mut without = good.clone();
        without.as_object_mut().expect("an object").remove(name);
        bad.push(encode(&without.to_string()));
    }
    let values: Vec<Value> = good.as_object().expect("an object").values().cloned().collect();
    bad.push(encode(&Value::from(values).to_string()));
    for cursor in bad {
        family.get(&format!("/v1/orders?sort=total&limit=1&cursor={cursor}"), BAD_REQUEST);
    }
    family.get(&format!("/v1/orders?sort=-placed_at&cursor={cursor}"), BAD_REQUEST);
    for cursor in [
        "x",
        ".",
        "1",
        "1.",
        format!("-1.{epoch}").as_str(),
        format!("1.5.{epoch}x{}", "x".repeat(64)).as_str(),
        format!("9223372036854775808.{epoch}").as_str(),
        format!("1+.{epoch}").as_str(),
        format!("1+-1.{epoch}").as_str(),
        format!("%2B1.{epoch}").as_str(),
        format!("1+99999999999999999999.{epoch}").as_str(),
        format!("%00.{epoch}").as_str(),
        format!("%EF%BC%91.{epoch}").as_str(),
        format!("2.{epoch}.").as_str(),
        format!("2.{epoch}.core").as_str(),
        format!("2.{epoch}.core=").as_str(),
        format!("2.{epoch}.core=-1").as_str(),
        format!("2.{epoch}.core=%2B1").as_str(),
        format!("2.{epoch}.core=1+").as_str(),
        format!("2.{epoch}.core=1+Orders").as_str(),
        format!("2.{epoch}.core=1.core=1").as_str(),
        format!("2.{epoch}.core=1..core=1").as_str(),
        format!("2.{epoch}.core=9223372036854775808").as_str(),
        format!("2.{epoch}.core=1+%25ff").as_str(),
        format!("2.{}.core=1", "e".repeat(65)).as_str(),
        format!("2.{epoch}.core=1+{}", "n".repeat(9_000)).as_str(),
    ] {
        family.get(&format!("/v1/poll?channel=orders&wait=0&cursor={cursor}"), BAD_REQUEST);
    }
    let reset = Expect::Fine("a cursor of another log gets a reset and snapshots");
    for cursor in [
        "1.another".to_owned(),
        format!("9223372036854775807.{epoch}"),
        format!("0+9999.{epoch}"),
        "2.another.core=1".to_owned(),
        format!("2.{epoch}.core=9223372036854775807+orders"),
        format!("2.{epoch}.unknown=1"),
        format!("2.{epoch}.core=0+zzz.unknown=1+n"),
    ] {
        family.get(&format!("/v1/poll?channel=orders&wait=0&cursor={cursor}"), reset);
    }
    family
}

fn streams_and_polls(token: &str) -> Family<'_> {
    let mut family = Family::new("streams and polls", token);
    for path in ["/v1/live", "/v1/poll"] {
        let wait = if path == "/v1/poll" { "&wait=0" } else { "" };
        family.get(&format!("{path}?{}", wait.trim_start_matches('&')), BAD_REQUEST);
        let many: Vec<_> = (0..129).map(|n| format!("channel=customer:c-{n}")).collect();
        family.get(&format!("{path}?{}{wait}", many.join("&")), BAD_REQUEST);
        for channel in [
            "",
            "order",
            "order:",
            "order:%00",
            "order:a/b",
            "orders:",
            "Orders",
            "%6frders%00",
            "customer:",
            "projections:x",
            "*",
            "order:*",
            "reports:",
            "reports:sales:x",
            "orders,projections",
            "order:%E2%80%AE",
            "$share/a/orders",
            "orders%20",
        ] {
            family.get(&format!("{path}?channel={channel}{wait}"), Expect::Problem(&[400, 404]));
        }
        family.get(&format!("{path}?channel=order:{}{wait}", "a".repeat(65)), Expect::Problem(&[404]));
        family.get(&format!("{path}?channel=orders&ticket=x{wait}&unknown=1"), BAD_REQUEST);
        for ticket in ["", "x", "%00", "' or 1=1 --"] {
            let ticket = ticket.replace(' ', "%20");
            let request = format!("GET {path}?channel=orders&ticket={ticket}{wait} HTTP/1.1\r\nhost: docket\r\n\r\n");
            family.raw(format!("{path} with ticket {ticket:?}"), request, Expect::Problem(&[401]));
        }
    }
    let fine = Expect::Fine("an EventSource cannot drop its id, so it gets a reset");
    for id in ["x", "-1", "1.", "999999999999999999999.x", "\u{e9}", "0", "a: b", "NaN"] {
        let header = format!("last-event-id: {id}\r\n");
        family.request(format!("last-event-id: {id}"), "GET /v1/live?channel=orders", header.as_bytes(), b"", fine);
    }
    family
}

/// Invalid WebSocket upgrades.
fn handshakes(token: &str) -> Family<'_> {
    let mut family = Family::new("handshakes", token);
    let good = [
        ("connection", "upgrade"),
        ("upgrade", "websocket"),
        ("sec-websocket-version", "13"),
        ("sec-websocket-key", "MDEyMzQ1Njc4OWFiY2RlZg=="),
    ];
    let with = |changes: &[(&str, &str)]| {
        let mut headers: Vec<(&str, &str)> = good.to_vec();
        for (name, value) in changes {
            headers.retain(|(known, _)| known != name);
            if !value.is_empty() {
                headers.push((name, value));
            }
        }
        headers.iter().map(|(name, value)| format!("{name}: {value}\r\n")).collect::<String>()
    };
    for path in ["/ws", "/ws/admin"] {
        for change in [
            ("connection", ""),
            ("connection", "close"),
            ("upgrade", ""),
            ("upgrade", "h2c"),
            ("sec-websocket-version", ""),
            ("sec-websocket-version", "12"),
            ("sec-websocket-version", "99"),
            ("sec-websocket-version", "x"),
            ("sec-websocket-key", ""),
        ] {
            let what = format!("{path} with {}: {}", change.0, change.1);
            family.request(what, &format!("GET {path}"), with(&[change]).as_bytes(), b"", ANY);
        }
        let line = format!("POST {path}");
        family.request(
            line.clone(),
            &line,
            format!("{}content-length: 0\r\n", with(&[])).as_bytes(),
            b"",
            Expect::Problem(&[405]),
        );
        let protobuf = with(&[("sec-websocket-protocol", "centrifuge-protobuf")]);
        family.request(format!("{path} in Protobuf"), &format!("GET {path}"), protobuf.as_bytes(), b"", BAD_REQUEST);
        let evil = with(&[("origin", "https://evil.test")]);
        family.request(
            format!("{path} from a page of another origin"),
            &format!("GET {path}"),
            evil.as_bytes(),
            b"",
            Expect::Problem(&[403]),
        );
    }
    let old = format!("GET /ws HTTP/1.0\r\nhost: docket\r\nauthorization: Bearer {token}\r\n{}\r\n", with(&[]));
    family.raw("an upgrade of HTTP/1.0", old, ANY);
    family
}

/// Many commands in one body.
fn ndjson(token: &str) -> Family<'_> {
    let mut family = Family::new("NDJSON", token);
    let lines = Expect::Lines;
    for (what, body) in [
        ("no line feed", "{".to_owned()),
        ("nothing", String::new()),
        ("only line feeds", "\n".repeat(100_000)),
        ("carriage returns", "{}\r\n{}\r\n".to_owned()),
        ("a line of 1 MiB and more", format!("{}\n{{}}\n", "x".repeat(1024 * 1024 + 1))),
        ("a line of 1 MiB without an end", "x".repeat(1024 * 1024 + 1)),
        ("a line of almost 1 MiB", format!("{{\"x\":\"{}\"}}\n", "x".repeat(1024 * 1024 - 20))),
        ("100,000 tiny bad lines", "x\n".repeat(100_000)),
        ("100,000 [ in a line", format!("{}\n", "[".repeat(100_000))),
        ("100,000 objects in a line", format!("{}\n", "{\"a\":".repeat(100_000))),
        ("NULs", "\0\n\0\n".to_owned()),
        ("a byte order mark and a bad line", "\u{feff}{\"type\":\"x\"}\n".to_owned()),
        ("a JSON array of commands", r#"[{"type":"confirm_order","order_id":"hostile"}]"#.to_owned()),
        ("all JSON types", "null\ntrue\n7\n\"x\"\n[]\n{}\n1e400\n-0\nNaN\n".to_owned()),
        ("two commands in a line", "{\"type\":\"x\"}{\"type\":\"y\"}\n".to_owned()),
    ] {
        family.ndjson(what, body, lines);
    }
    let binary: Vec<u8> = (0..200_000_u32).map(|n| (n.wrapping_mul(2_654_435_761) >> 11) as u8).collect();
    family.ndjson("binary", binary, lines);
    family.ndjson("invalid UTF-8", b"{\"type\":\"\xff\"}\n", lines);
    let envelope: String = [
        r#"{"type":7}"#,
        r#"{"type":null}"#,
        r#"{"type":"drop_table"}"#,
        r#"{"type":"confirm_order"}"#,
        r#"{"type":"confirm_order","order_id":7}"#,
        r#"{"type":"confirm_order","order_id":""}"#,
        r#"{"type":"confirm_order","order_id":"hostile\u0000"}"#,
        r#"{"type":"confirm_order","order_id":"absent"}"#,
        r#"{"type":"confirm_order","order_id":"hostile","extra":1}"#,
        r#"{"type":"confirm_order","order_id":"hostile","expected_version":"1"}"#,
        r#"{"type":"confirm_order","order_id":"hostile","expected_version":1.5}"#,
        r#"{"type":"confirm_order","order_id":"hostile","expected_version":1e400}"#,
        r#"{"type":"confirm_order","order_id":"hostile","expected_version":99999999999999999999}"#,
        r#"{"type":"confirm_order","order_id":"hostile","expected_version":-1}"#,
        r#"{"type":"confirm_order","order_id":"hostile","occurred_at":"yesterday"}"#,
        r#"{"type":"confirm_order","order_id":"hostile","occurred_at":"-009999-01-01T00:00:00Z"}"#,
        r#"{"type":"confirm_order","order_id":"hostile","occurred_at":7}"#,
        r#"{"id":{},"type":"confirm_order","order_id":"absent"}"#,
        r#"{"id":[],"type":"confirm_order","order_id":"absent"}"#,
        r#"{"id":true,"type":"confirm_order","order_id":"absent"}"#,
        r#"{"id":1e400,"type":"confirm_order","order_id":"absent"}"#,
        r#"{"type":"remove_item","order_id":"hostile","sku":7}"#,
        r#"{"type":"remove_item","order_id":"hostile"}"#,
    ]
    .map(|line| format!("{line}\n"))
    .concat();
    family.ndjson("bad envelopes", envelope, lines);
    for (_, kind, fields) in COMMANDS.iter().filter(|(_, kind, _)| !kind.is_empty()) {
        let mut body = String::new();
        for (name, _, value_kind, may_be_null) in *fields {
            for value in wrong(*value_kind, *may_be_null) {
                let rest = object(fields, name, &value);
                let order = if *kind == "create_order" { "" } else { "\"order_id\":\"hostile\",\"sku\":\"pen\"," };
                let order =
                    if *kind == "add_item" || *kind == "cancel_order" { "\"order_id\":\"hostile\"," } else { order };
                body += &format!("{{\"type\":\"{kind}\",{order}{}\n", &rest[1..]);
            }
        }
        family.ndjson(format!("wrong fields of {kind}"), body, lines);
    }
    let prices: String = AMOUNTS
        .iter()
        .map(|amount| format!("{{\"type\":\"add_item\",\"order_id\":\"hostile\",\"sku\":\"ink\",\"quantity\":1,\"unit_price\":{amount}}}\n"))
        .collect();
    family.ndjson("amounts", prices, lines);
    let half = b"content-type: application/x-ndjson\r\ncontent-length: 1000\r\n";
    family.request(
        "half a line, then a disconnect",
        "POST /v1/commands",
        half,
        b"{\"type\":\"confirm_or",
        Expect::Gone,
    );
    family.rows.last_mut().expect("a row").cut = true;
    let chunked = b"content-type: application/x-ndjson\r\ntransfer-encoding: chunked\r\n";
    family.request("a bad chunk after a line", "POST /v1/commands", chunked, b"3\r\n{}\n\r\nzz\r\n", Expect::Gone);
    family.rows.last_mut().expect("a row").cut = true;
    family
}

/// Returns every sequence of frames on a socket.
pub fn frames() -> Vec<Frames> {
    let mut rows = Vec::new();
    let mut add = |family: &'static str, what: String, bytes: Vec<u8>, expect: ExpectFrames| {
        rows.push(Frames { family, what, bytes, expect });
    };
    let protocol = ExpectFrames::Closed(&[1002]);
    let mut broken = |what: &str, bytes: Vec<u8>| add("frames", what.to_owned(), bytes, protocol);
    let text = |payload: &str| frame(0x81, payload.as_bytes());
    let ping = r#"{"id":2,"ping":{}}"#;
    for (bit, name) in [(0x40, "first"), (0x20, "second"), (0x10, "third"), (0x70, "every")] {
        broken(&format!("the {name} reserved bit"), frame(0x81 | bit, ping.as_bytes()));
    }
    for opcode in [3_u8, 4, 5, 6, 7, 0xb, 0xc, 0xd, 0xe, 0xf] {
        broken(&format!("opcode {opcode}"), frame(0x80 | opcode, ping.as_bytes()));
    }
    broken("a text without a mask", unmasked(0x81, ping.as_bytes()));
    broken("a ping without a mask", unmasked(0x89, b""));
    broken("a ping in fragments", frame(0x09, b"x"));
    broken("a Close in fragments", frame(0x08, &1000_u16.to_be_bytes()));
    broken("a ping of 126 bytes", frame(0x89, &[b'x'; 126]));
    broken("a Close of 126 bytes", frame(0x88, &[&1000_u16.to_be_bytes()[..], &[b'x'; 124]].concat()));
    broken("a continuation without a start", frame(0x80, b"x"));
    broken("a text inside a fragmented text", [frame(0x01, b"{"), frame(0x81, b"}")].concat());
    broken("a Close of one byte", frame(0x88, b"\x03"));
    for code in [0_u16, 999, 1004, 1005, 1006, 1015, 1016, 2999, 5000, 65535] {
        broken(&format!("a Close with {code}"), frame(0x88, &code.to_be_bytes()));
    }
    let utf8 = ExpectFrames::Closed(&[1007]);
    for (what, payload) in [
        ("an invalid byte", &b"{\"id\":2,\"ping\":\"\xff\"}"[..]),
        ("an overlong character", b"\xc0\xaf"),
        ("a surrogate", b"\xed\xa0\x80"),
        ("half a character", b"\xe2\x82"),
        ("beyond the last character", b"\xf4\x90\x80\x80"),
    ] {
        add("frames", format!("a text with {what}"), frame(0x81, payload), utf8);
    }
    add(
        "frames",
        "half a character in each fragment".to_owned(),
        [frame(0x01, b"\xe2"), frame(0x80, b"x")].concat(),
        utf8,
    );
    let reason = [&1000_u16.to_be_bytes()[..], b"\xff"].concat();
    add("frames", "a Close whose reason is not UTF-8".to_owned(), frame(0x88, &reason), utf8);
    for (what, length) in [
        ("2^63 bytes", 1_u64 << 63),
        ("2^64 bytes", u64::MAX),
        ("2^62 bytes", 1 << 62),
        ("4 GiB", 1 << 32),
        ("1 MiB", 1 << 20),
    ] {
        add(
            "frames",
            format!("a header that announces {what}"),
            announced(0x81, length),
            ExpectFrames::Closed(&[1002, 1009]),
        );
    }
    add("frames", "a text of 65,537 bytes".to_owned(), text(&" ".repeat(65_537)), ExpectFrames::Closed(&[1009]));
    let flood = [frame(0x01, b"{"), frame(0x00, b" ").repeat(200_000)].concat();
    add("floods", "200,000 fragments of a byte".to_owned(), flood, ExpectFrames::Closed(&[1002, 1008, 1009, 3501]));
    let empty = [frame(0x01, b""), frame(0x00, b"").repeat(200_000)].concat();
    add("floods", "200,000 empty fragments".to_owned(), empty, ExpectFrames::Closed(&[1002, 1008, 1009, 3501]));
    add("floods", "20,000 pings".to_owned(), frame(0x89, b"x").repeat(20_000), ExpectFrames::Closed(&[3501]));
    add("floods", "20,000 pongs".to_owned(), frame(0x8a, b"x").repeat(20_000), ExpectFrames::Closed(&[3501]));
    add("floods", "20,000 empty objects".to_owned(), text("{}").repeat(20_000), ExpectFrames::Closed(&[3501]));
    add(
        "floods",
        "20,000 empty texts".to_owned(),
        text("").repeat(20_000),
        ExpectFrames::Fine("an empty text is ignored"),
    );
    let many = text(&format!("{ping}\n").repeat(3_000));
    add("floods", "3,000 commands in a frame".to_owned(), many, ExpectFrames::Error(&[111]));
    add(
        "floods",
        "30,000 line feeds in a frame".to_owned(),
        text(&"\n".repeat(30_000)),
        ExpectFrames::Fine("empty lines are ignored"),
    );
    for payload in [&b"{}"[..], b"\x00", ping.as_bytes()] {
        add("frames", format!("binary {payload:?}"), frame(0x82, payload), ExpectFrames::Closed(&[3501]));
    }
    let bad = ExpectFrames::Closed(&[3501]);
    for payload in [
        "x",
        "7",
        "null",
        "[]",
        "[{}]",
        "\"x\"",
        "{",
        "}",
        "{\"id\":1",
        "{\"id\":-1,\"ping\":{}}",
        "{\"id\":1.5,\"ping\":{}}",
        "{\"id\":\"1\",\"ping\":{}}",
        "{\"id\":null,\"ping\":{}}",
        "{\"id\":4294967296,\"ping\":{}}",
        "{\"id\":1e400,\"ping\":{}}",
        "{\"id\":1,\"id\":2,\"ping\":{}}",
        "{'id':1}",
        "{\"id\":[],\"ping\":{}}",
        "\u{feff}{\"id\":2,\"ping\":{}}",
        "{\"id\":2,\"ping\":{}}x",
        "\0",
    ] {
        add("commands", format!("{payload:?}"), text(payload), bad);
    }
    add("commands", "60,000 [".to_owned(), text(&"[".repeat(60_000)), bad);
    for (what, open) in [("[", "["), ("{\"a\":", "{\"a\":")] {
        let deep = format!("{{\"id\":2,\"rpc\":{}", open.repeat(10_000));
        add("commands", format!("rpc of 10,000 {what}"), text(&deep), ExpectFrames::Refused);
    }
    for unknown in ["{\"id\":2}", "{\"id\":2,\"unknown\":{}}", "{\"id\":2,\"Ping\":{}}"] {
        add("commands", unknown.to_owned(), text(unknown), ExpectFrames::Error(&[104]));
    }
    for body in SHAPES {
        for command in [
            "connect",
            "subscribe",
            "unsubscribe",
            "refresh",
            "presence",
            "presence_stats",
            "publish",
            "history",
            "rpc",
            "ping",
            "send",
            "sub_refresh",
        ] {
            let expect = match (command, *body) {
                // A lone surrogate is not valid JSON. Otherwise the commands below accept any content.
                (_, body) if body.contains("ud800") => ExpectFrames::Refused,
                ("ping", body) if body != "null" => ExpectFrames::Fine("a ping may contain anything"),
                ("unsubscribe", body) if body.starts_with("{\"channel\":\"") => {
                    ExpectFrames::Fine("unsubscribing without a subscription is allowed")
                }
                ("presence" | "presence_stats", body) if body.contains("absent") => {
                    ExpectFrames::Fine("an order that does not exist has no presence")
                }
                _ => ExpectFrames::Refused,
            };
            let line = format!("{{\"id\":2,\"{command}\":{body}}}");
            add("commands", shown(&line), text(&line), expect);
        }
    }
    for body in [
        r#"{"channel":"orders","recover":1}"#,
        r#"{"channel":"orders","offset":-1}"#,
        r#"{"channel":"orders","offset":1.5}"#,
        r#"{"channel":"orders","offset":18446744073709551616}"#,
        r#"{"channel":"orders","epoch":7}"#,
        r#"{"channel":"orders","data":7}"#,
        r#"{"channel":"orders","data":["merge-patch"]}"#,
        r#"{"channel":"orders","data":{"delta":7}}"#,
        r#"{"channel":"orders","data":{"delta":"fossil"}}"#,
        r#"{"channel":"orders","channel":"projections"}"#,
        r#"["orders",false,0,"",null]"#,
    ] {
        let line = format!("{{\"id\":2,\"subscribe\":{body}}}");
        add("commands", line.clone(), text(&line), ExpectFrames::Error(&[107]));
    }
    let many: String =
        (0..200).map(|n| format!("{{\"id\":{},\"subscribe\":{{\"channel\":\"customer:c-{n}\"}}}}\n", n + 2)).collect();
    add("commands", "200 subscriptions".to_owned(), text(&many), ExpectFrames::Error(&[106]));
    rows
}

/// Bodies that no command accepts, or that name channels that do not exist.
const SHAPES: &[&str] = &[
    "null",
    "true",
    "7",
    "\"x\"",
    "[]",
    "[[]]",
    "[\"orders\"]",
    "[\"x\",\"y\"]",
    "{\"channel\":7}",
    "{\"channel\":null}",
    "{\"channel\":[\"orders\"]}",
    "{\"channel\":\"\"}",
    "{\"channel\":\"x\"}",
    "{\"channel\":\"order:\\u0000\"}",
    "{\"channel\":\"order:absent\"}",
    "{\"token\":7}",
    "{\"token\":\"\\u0000\"}",
    "{\"channel\":\"\\ud800\"}",
];
