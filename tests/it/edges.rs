//! Edge cases of HTTP and WebSockets: unusual, broken and malicious input of clients, proxies and browsers.

use std::process::Stdio;
use std::time::Duration;

use reqwest::Method;
use serde_json::{Value, json};
use tests::client::{Client, token};
use tests::deployment::nginx_with;
use tests::process::find_on_path;
use tests::system::{Mode, TestSystem};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

tests::stories![
    conditional_requests_follow_the_rfc,
    bodies_are_validated_alike_on_every_path,
    ambiguous_headers_are_refused,
    responses_forbid_caching_and_framing,
    a_socket_closes_with_the_code_of_the_broken_rule,
];

const DEADLINE: Duration = Duration::from_secs(30);

/// Creates an order with one item, waits until the read models have it, and returns its version.
async fn order(system: &TestSystem, id: &str) -> u64 {
    let item = json!({"sku": "pen", "quantity": 1, "unit_price": "1.00"});
    let body = json!({"order_id": id, "customer_id": "ada", "items": [item]});
    let version = system.post("/v1/orders").json(body).send().await.expect(201).version();
    system.settled().await;
    version
}

async fn conditional_requests_follow_the_rfc(system: TestSystem) {
    assert_eq!(order(&system, "etag").await, 2);
    let known: [(&[&str], u16); 12] = [
        (&["\"2\""], 304),
        (&["W/\"2\""], 304),
        (&["*"], 304),
        (&["\"1\", W/\"2\""], 304),
        (&["\"1\"", "\"2\""], 304),
        (&["\"of-another-server\",\"2\""], 304),
        (&["\"1\""], 200),
        (&["W/\"1\", \"3\""], 200),
        (&["\"+2\""], 200),
        (&["\"02\""], 200),
        (&["2"], 200),
        (&["\"2\" x"], 200),
    ];
    for (lines, status) in known {
        for path in ["/v1/orders/etag", "/v1/orders/etag?as_of=2"] {
            let request = lines.iter().fold(system.get(path), |request, line| request.header("if-none-match", line));
            let answer = request.send().await.expect(status);
            assert_eq!(answer.header("etag"), Some("\"2\""), "{lines:?}");
            assert_eq!(answer.body.is_empty(), status == 304, "{lines:?}");
        }
    }
    // Setting the current quantity creates no event, so the version stays the same.
    let guards: [(&[&str], u16, &str); 16] = [
        (&["\"2\""], 200, ""),
        (&["W/\"2\""], 200, ""),
        (&["*"], 200, ""),
        (&["\"1\", \"2\""], 200, ""),
        (&["\"1\"", "W/\"2\""], 200, ""),
        (&["\"1\""], 412, "version-mismatch"),
        (&["\"1\", W/\"3\""], 412, "version-mismatch"),
        (&["\"+2\""], 400, "invalid-if-match"),
        (&["\"02\""], 400, "invalid-if-match"),
        (&["\" 2\""], 400, "invalid-if-match"),
        (&["\"-2\""], 400, "invalid-if-match"),
        (&["2"], 400, "invalid-if-match"),
        (&["\"2"], 400, "invalid-if-match"),
        (&["\"2\", *"], 400, "invalid-if-match"),
        (&["\"2\"", "\"two\""], 400, "invalid-if-match"),
        (&[""], 400, "invalid-if-match"),
    ];
    for (lines, status, slug) in guards {
        let request = system.put("/v1/orders/etag/items/pen").json(json!({"quantity": 1}));
        let request = lines.iter().fold(request, |request, line| request.header("if-match", line));
        let answer = request.send().await;
        assert_eq!(answer.status, status, "{lines:?}: {}", answer.json());
        if status != 200 {
            answer.expect_problem(status, slug);
        }
    }
}

/// nginx makes the entity tag of a compressed response weak, and its clients see only the weak tag.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn conditional_requests_work_behind_a_proxy_that_compresses() {
    let system = TestSystem::embedded().await;
    order(&system, "zip").await;
    let gzip = "gzip on; gzip_min_length 1; gzip_types application/json;";
    let nginx = nginx_with(&system.dockets, gzip).await;
    let get = || nginx.client.get("/v1/orders/zip").header("accept-encoding", "gzip");
    let packed = get().send().await.expect(200);
    assert_eq!(packed.header("content-encoding"), Some("gzip"));
    let tag = packed.header("etag").expect("an entity tag").to_owned();
    assert_eq!(tag, "W/\"2\"", "nginx weakens the tag");
    get().header("if-none-match", &tag).send().await.expect(304);
    let item = json!({"sku": "ink", "quantity": 1, "unit_price": "2.00"});
    let add = || nginx.client.post("/v1/orders/zip/items").header("if-match", &tag).json(item.clone());
    add().send().await.expect(200);
    add().send().await.expect_problem(412, "version-mismatch");
    // nginx forwards requests of HTTP/1.0 clients, which need not send Host, as HTTP/1.1.
    let bearer = token("ada", "customer");
    let request = format!("GET /v1/orders/zip HTTP/1.0\r\nauthorization: Bearer {bearer}\r\n\r\n");
    assert_eq!(raw(&nginx.client, &request).await.0, 200);
}

/// A body is refused in the same way as a single command and as a line of a bulk request.
async fn bodies_are_validated_alike_on_every_path(system: TestSystem) {
    let cases: [(&str, u16, &str, &str); 17] = [
        (r#"{"customer_id":"ada","customer_id":"ada"}"#, 422, "invalid-body", "/customer_id"),
        (r#"{"customer_id":"ada","attributes":{"a":"1","a":"2"}}"#, 422, "invalid-body", "/attributes/a"),
        (r#"{"customer_id":"ada","attributes":{"a":"1","\u0061":"1"}}"#, 422, "invalid-body", "/attributes/a"),
        (r#"{"customer_id":"ada","items":[{"sku":"a","sku":"b"}]}"#, 422, "invalid-body", "/items/0/sku"),
        (r#"{"customer_id":"ada","x":{"y":[{"z":1,"z":2}]}}"#, 422, "invalid-body", "/x/y/0/z"),
        (r#"{"customer_id":5}"#, 422, "invalid-body", "/customer_id"),
        (r#"{"customer_id":{}}"#, 422, "invalid-body", "/customer_id"),
        (r#"{"customer_id":"ada","items":{}}"#, 422, "invalid-body", "/items"),
        (r#"{"customer_id":"ada","items":[7]}"#, 422, "invalid-body", "/items/0"),
        (r#"{"customer_id":"ada","attributes":[]}"#, 422, "invalid-body", "/attributes"),
        (r#"{"customer_id":"ada","attributes":{"a":1e999}}"#, 422, "invalid-body", "/attributes/a"),
        ("[1]", 422, "invalid-body", ""),
        ("7", 422, "invalid-body", ""),
        ("[[[[", 400, "malformed-json", ""),
        (r#"{"customer_id":5"#, 400, "malformed-json", ""),
        ("{}{}", 400, "malformed-json", ""),
        ("\u{feff}\u{feff}{}", 400, "malformed-json", ""),
    ];
    for (body, status, slug, pointer) in cases {
        let alone = system.post("/v1/orders").body("application/json", body.to_owned()).send().await;
        let alone = alone.expect_problem(status, slug);
        let line = body.replacen('{', r#"{"type":"create_order","#, 1);
        let line = if status == 422 && body.starts_with('{') { line } else { body.to_owned() };
        let bulk = results(&system, line).await;
        let problem = &bulk[0]["problem"];
        assert_eq!(
            (problem["status"].as_u64(), &problem["type"]),
            (Some(status.into()), &alone["type"]),
            "{body}: {bulk:?}"
        );
        for problem in [&alone, problem] {
            let text = problem.to_string();
            if status == 422 {
                assert_eq!(problem["errors"][0]["pointer"], pointer, "{body}: {text}");
            } else {
                assert!(problem["errors"].is_null(), "{body}: {text}");
            }
            for word in ["struct", "CreateOrder", "AddItem", "map", "sequence", "invalid type", "u32", "EOF"] {
                let words: Vec<_> = text.split(|c: char| !c.is_alphanumeric() && c != ' ').collect();
                assert!(!words.iter().any(|found| found.split(' ').any(|one| one == word)), "{word} in {text}");
                assert!(!text.contains("invalid type"), "{text}");
            }
        }
    }

    // Some editors and spreadsheets write a byte order mark at the beginning.
    let body = "\u{feff}{\"order_id\":\"bom\",\"customer_id\":\"ada\"}".to_owned();
    system.post("/v1/orders").body("application/json", body).send().await.expect(201);
    let lines = "\u{feff}{\"type\":\"create_order\",\"order_id\":\"bom-2\",\"customer_id\":\"ada\"}\n{\"type\":\"confirm_order\",\"order_id\":\"none\"}\n";
    let found = results(&system, lines.to_owned()).await;
    assert_eq!([&found[0]["status"], &found[1]["status"]], [&json!(201), &json!(404)], "{found:?}");

    // An id is returned exactly as it was sent, or it is refused.
    for (id, status) in [
        ("18446744073709551615", 404),
        ("-9223372036854775808", 404),
        ("0", 404),
        ("\"18446744073709551616\"", 404),
        ("null", 404),
        ("18446744073709551616", 422),
        ("123456789012345678901234567890", 422),
        ("-9223372036854775809", 422),
        ("1e2", 422),
        ("1.50", 422),
        ("-0", 422),
        ("{}", 422),
    ] {
        let line = format!(r#"{{"type":"confirm_order","order_id":"none","id":{id}}}"#);
        let answer = system.post("/v1/commands").body("application/x-ndjson", line).send().await.expect(200);
        let text = String::from_utf8_lossy(&answer.body).into_owned();
        let result: Value = serde_json::from_str(&text).expect("a result is JSON");
        assert_eq!(result["status"], status, "{id}: {text}");
        assert!(
            if status == 404 { text.contains(&format!("\"id\":{id},")) } else { result["id"].is_null() },
            "{id}: {text}"
        );
    }

    let packed = "\u{1f}\u{8b}".to_owned();
    for path in ["/v1/orders", "/v1/orders/bom/items", "/v1/commands", "/v1/admin/revocations", "/v1/tickets"] {
        let client =
            if path.contains("orders") || path.contains("commands") { system.writer() } else { system.reader() };
        let post = |kind: &str| client.post(path).body(kind, packed.clone());
        let packed = post("application/json").header("content-encoding", "zstd").send().await;
        assert_eq!(packed.header("accept-encoding"), Some("gzip, br"), "{path}");
        let packed = packed.expect_problem(415, "unsupported-content-encoding");
        assert!(packed["detail"].as_str().is_some_and(|detail| detail.contains("zstd")), "{packed}");
        let wide = post("application/json; charset=utf-16").send().await.expect_problem(415, "unsupported-media-type");
        assert!(wide["detail"].as_str().is_some_and(|detail| detail.contains("utf-16")), "{wide}");
    }
    let plain = system.post("/v1/orders").header("content-encoding", "identity");
    plain.body("application/json; charset=utf-8", r#"{"customer_id":"ada"}"#.to_owned()).send().await.expect(201);
}

/// Sends a bulk request and returns the results.
async fn results(system: &TestSystem, lines: String) -> Vec<Value> {
    let answer = system.post("/v1/commands").body("application/x-ndjson", lines).send().await.expect(200);
    let text = String::from_utf8(answer.body.to_vec()).expect("the body is UTF-8");
    text.lines().map(|line| serde_json::from_str(line).expect("a line is JSON")).collect()
}

async fn connect(client: &Client) -> TcpStream {
    TcpStream::connect(client.base().trim_start_matches("http://")).await.expect("the server listens")
}

/// Sends a request unchanged and returns the status and the text of the response.
async fn raw(client: &Client, request: &str) -> (u16, String) {
    let mut tcp = connect(client).await;
    tcp.write_all(request.as_bytes()).await.expect("the server reads");
    let mut answer = String::new();
    tokio::time::timeout(DEADLINE, tcp.read_to_string(&mut answer))
        .await
        .expect("the response ends in time")
        .expect("the response is complete");
    (
        answer
            .split(' ')
            .nth(1)
            .and_then(|status| status.parse().ok())
            .unwrap_or_else(|| panic!("{request}: {answer}")),
        answer,
    )
}

async fn ambiguous_headers_are_refused(system: TestSystem) {
    let (mine, other) = (token("ada", "customer"), token("tests", "admin"));
    let body = r#"{"customer_id":"ada"}"#;
    let fixed = format!("connection: close\r\ncontent-length: {}\r\n", body.len());
    let bearer = format!("authorization: Bearer {mine}\r\n");
    let usual = format!("host: x\r\n{bearer}content-type: application/json\r\n");
    for (version, headers, status, slug) in [
        ("1.1", usual.clone(), 201, ""),
        ("1.0", format!("{bearer}content-type: application/json\r\n"), 201, ""),
        ("1.1", format!("{bearer}content-type: application/json\r\n"), 400, "invalid-host"),
        ("1.1", format!("{usual}host: x\r\n"), 400, "duplicate-header"),
        ("1.0", format!("{usual}host: y\r\n"), 400, "duplicate-header"),
        ("1.1", format!("{usual}authorization: Bearer {other}\r\n"), 400, "duplicate-header"),
        ("1.1", format!("{usual}{bearer}"), 400, "duplicate-header"),
        ("1.1", format!("{usual}content-type: text/plain\r\n"), 400, "duplicate-header"),
        ("1.1", format!("{usual}idempotency-key: a\r\nIdempotency-Key: b\r\n"), 400, "duplicate-header"),
        ("1.1", format!("{usual}idempotency-key: a\r\nidempotency-key: a\r\n"), 400, "duplicate-header"),
        ("1.1", format!("{usual}x-request-id: a\r\nx-request-id: b\r\n"), 201, ""),
    ] {
        let (found, answer) =
            raw(system.writer(), &format!("POST /v1/orders HTTP/{version}\r\n{headers}{fixed}\r\n{body}")).await;
        assert_eq!(found, status, "{headers}: {answer}");
        assert!(slug.is_empty() || answer.contains(&format!("/problems/{slug}\"")), "{headers}: {answer}");
        assert!(!answer.contains("x-request-id: a\r\n") && !answer.contains("x-request-id: b\r\n"), "{answer}");
    }
    // Bulk commands, WebSockets and streams apply the same rules.
    let two = format!("host: x\r\nconnection: close\r\n{bearer}authorization: Bearer {other}\r\n");
    let upgrade = "upgrade: websocket\r\nsec-websocket-version: 13\r\nsec-websocket-key: MDEyMzQ1Njc4OWFiY2RlZg==\r\n";
    for (client, path, headers) in [
        (system.reader(), "/v1/live?channel=orders", ""),
        (system.reader(), "/v1/poll?channel=orders", ""),
        (system.reader(), "/ws", upgrade),
    ] {
        let (status, answer) = raw(client, &format!("GET {path} HTTP/1.1\r\n{two}{headers}\r\n")).await;
        assert_eq!(status, 400, "{path}: {answer}");
    }
    let (status, answer) =
        raw(system.writer(), &format!("POST /v1/commands HTTP/1.1\r\n{two}content-length: 0\r\n\r\n")).await;
    assert_eq!(status, 400, "{answer}");
    // The documented status for too many or too large headers.
    for headers in [format!("x: {}\r\n", "y".repeat(70_000)), "x: y\r\n".repeat(101)] {
        assert_eq!(
            raw(system.reader(), &format!("GET / HTTP/1.1\r\nhost: x\r\nconnection: close\r\n{headers}\r\n")).await.0,
            431
        );
    }
}

async fn responses_forbid_caching_and_framing(system: TestSystem) {
    order(&system, "kept").await;
    let ada = token("ada", "customer");
    let fixed = [
        ("content-security-policy", "default-src 'none'; frame-ancestors 'none'"),
        ("x-frame-options", "DENY"),
        ("referrer-policy", "no-referrer"),
        ("x-content-type-options", "nosniff"),
    ];
    for (path, tag, status, cache) in [
        ("/v1/orders", None, 200, "no-store"),
        ("/v1/orders/kept", None, 200, "no-store"),
        ("/v1/orders/kept", Some("\"2\""), 304, "no-store"),
        ("/v1/orders/kept?as_of=1", None, 200, "no-store"),
        ("/v1/orders/kept/events", None, 200, "no-store"),
        ("/v1/customers/ada", None, 200, "no-store"),
        ("/v1/poll?channel=order:kept&wait=0", None, 200, "no-store"),
        ("/v1/orders/none", None, 404, "no-store"),
        ("/v1/reports/sales?by=day", None, 403, "no-store"),
        ("/v1/orders?limit=x", None, 400, "no-store"),
        ("/nowhere", None, 404, "no-store"),
        ("/health/live", None, 200, "no-store"),
        ("/openapi.json", None, 200, "public, max-age=3600"),
        ("/docs/", None, 200, "public, max-age=3600"),
        ("/docs/nowhere.js", None, 404, "no-store"),
    ] {
        let request = system.get(path).token(&ada);
        let request = if let Some(tag) = tag { request.header("if-none-match", tag) } else { request };
        let answer = request.send().await.expect(status);
        assert_eq!(answer.header("cache-control"), Some(cache), "{path}");
        for (name, value) in fixed {
            let found = answer.header(name).unwrap_or_else(|| panic!("{path} does not send {name}"));
            if name == "content-security-policy" && cache.starts_with("public") {
                assert!(
                    found.contains("frame-ancestors 'none'") && !found.contains("script-src 'unsafe"),
                    "{path}: {found}"
                );
            } else {
                assert_eq!(found, value, "{path}: {name}");
            }
        }
    }
    let made = system.post("/v1/orders").json(json!({"customer_id": "ada"})).send().await.expect(201);
    assert_eq!(made.header("cache-control"), Some("no-store"));
    let request = format!("GET /v1/live?channel=order:kept HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {ada}\r\n\r\n");
    let mut tcp = connect(system.reader()).await;
    tcp.write_all(request.as_bytes()).await.expect("the server reads");
    let mut answer = vec![0; 1024];
    let read = tcp.read(&mut answer).await.expect("the stream sends its head");
    assert!(
        String::from_utf8_lossy(&answer[..read]).contains("cache-control: no-store"),
        "a stream must not be cached"
    );
}

/// Returns a frame of a client, masked with zeros.
fn frame(first: u8, payload: &[u8]) -> Vec<u8> {
    let mut bytes = vec![first];
    match payload.len() {
        length @ 0..126 => bytes.push(0x80 | length as u8),
        length @ 126..65_536 => {
            bytes.push(0x80 | 126);
            bytes.extend((length as u16).to_be_bytes());
        }
        length => {
            bytes.push(0x80 | 127);
            bytes.extend((length as u64).to_be_bytes());
        }
    }
    bytes.extend([0; 4]);
    bytes.extend(payload);
    bytes
}

/// Sends frames over a new WebSocket. Returns the received frames once the connection ends or `count` frames have
/// arrived.
async fn exchange(client: &Client, sent: &[u8], count: usize) -> Vec<(u8, Vec<u8>)> {
    let mut tcp = connect(client).await;
    let upgrade = "GET /ws HTTP/1.1\r\nhost: x\r\nconnection: upgrade\r\nupgrade: websocket\r\nsec-websocket-version: 13\r\n\
                   sec-websocket-key: MDEyMzQ1Njc4OWFiY2RlZg==\r\n\r\n";
    tcp.write_all(upgrade.as_bytes()).await.expect("the server reads");
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(tcp.read_u8().await.expect("the response to the upgrade"));
    }
    assert!(head.starts_with(b"HTTP/1.1 101"), "{}", String::from_utf8_lossy(&head));
    let (mut reader, mut writer) = tcp.split();
    // The server may stop reading before the end.
    let write = async {
        let _ = writer.write_all(sent).await;
    };
    let mut frames = Vec::new();
    let read = async {
        while frames.len() < count {
            let (Ok(first), Ok(length)) = (reader.read_u8().await, reader.read_u8().await) else { return };
            let length =
                if length == 126 { reader.read_u16().await.expect("a complete length") } else { length.into() };
            let mut payload = vec![0; length.into()];
            reader.read_exact(&mut payload).await.expect("a complete payload");
            frames.push((first, payload));
        }
    };
    tokio::time::timeout(DEADLINE, async { tokio::join!(write, read) }).await.expect("the connection ends");
    frames
}

async fn a_socket_closes_with_the_code_of_the_broken_rule(system: TestSystem) {
    let long = vec![b' '; 65_537];
    let half = vec![b' '; 40_000];
    let pieces = |count: usize| [frame(0x01, b""), frame(0x00, b"").repeat(count)].concat();
    let cases: Vec<(&str, Vec<u8>, u16)> = vec![
        ("a reserved bit", frame(0xc1, b"{}"), 1002),
        ("a reserved opcode", frame(0x83, b"{}"), 1002),
        ("a reserved control opcode", frame(0x8b, b""), 1002),
        ("no mask", vec![0x81, 2, b'{', b'}'], 1002),
        ("a continuation without a start", frame(0x80, b"{}"), 1002),
        ("a text inside a fragmented text", [frame(0x01, b"{"), frame(0x81, b"{}")].concat(), 1002),
        ("a ping in fragments", frame(0x09, b"x"), 1002),
        ("a ping that is too long", frame(0x89, &[b'x'; 126]), 1002),
        ("a close of one byte", frame(0x88, b"x"), 1002),
        ("a text that is not UTF-8", frame(0x81, b"{\xff}"), 1007),
        ("fragments that are not UTF-8", [frame(0x01, b"\xce"), frame(0x80, b"x")].concat(), 1007),
        ("a close whose reason is not UTF-8", frame(0x88, b"\x03\xe8\xff"), 1007),
        ("a frame that is too long", frame(0x81, &long), 1009),
        ("a frame that claims to be huge", vec![0x81, 0xff, 0x3f, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0], 1009),
        ("fragments that are too long", [frame(0x01, &half), frame(0x80, &half)].concat(), 1009),
        ("too many fragments", pieces(100_000), 1008),
        ("binary", frame(0x82, b"{}"), 3501),
    ];
    for (what, sent, code) in cases {
        let frames = exchange(system.reader(), &sent, usize::MAX).await;
        let (first, payload) = frames.last().unwrap_or_else(|| panic!("{what}: the server sent nothing"));
        assert_eq!(*first, 0x88, "{what}: {frames:?}");
        assert_eq!(u16::from_be_bytes([payload[0], payload[1]]), code, "{what}: {}", String::from_utf8_lossy(payload));
    }
    // A similar sequence that is valid: a text in fragments, some of them empty, with a ping between them.
    let hello = format!(r#"{{"id":1,"connect":{{"token":"{}"}}}}"#, token("ada", "customer"));
    let (start, end) = hello.as_bytes().split_at(9);
    let sent = [frame(0x01, start), frame(0x00, b"").repeat(1_000), frame(0x89, b"?"), frame(0x80, end)].concat();
    let frames = exchange(system.reader(), &sent, 2).await;
    assert_eq!(frames[0], (0x8a, b"?".to_vec()));
    assert!(String::from_utf8_lossy(&frames[1].1).contains("\"client\""), "{frames:?}");
}

/// Pages may send the usual headers and those of the settings, and no others.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn cors_allows_the_usual_and_the_configured_headers() {
    let system = TestSystem::builder(Mode::Embedded)
        .setting("DOCKET_CORS_REQUEST_HEADERS", "X-Tenant, x-api-version")
        .setting("DOCKET_CORS_ANSWER_HEADERS", "server-timing")
        .start()
        .await;
    let page = "http://localhost:5173";
    let request = system.reader().request(Method::OPTIONS, "/v1/orders/o-1").anonymous().header("origin", page);
    let allowed = request.header("access-control-request-method", "GET").send().await.expect(200);
    let listed = |answer: &tests::client::Answer, name: &str| -> Vec<String> {
        answer.header(name).unwrap_or_default().split(',').map(|name| name.trim().to_lowercase()).collect()
    };
    let may_send = listed(&allowed, "access-control-allow-headers");
    for name in [
        "authorization",
        "baggage",
        "cache-control",
        "content-type",
        "idempotency-key",
        "if-match",
        "if-none-match",
        "last-event-id",
        "prefer",
        "sentry-trace",
        "traceparent",
        "tracestate",
        "x-request-id",
        "x-tenant",
        "x-api-version",
    ] {
        assert!(may_send.iter().any(|allowed| allowed == name), "{name} is not in {may_send:?}");
    }
    assert!(!may_send.iter().any(|name| name == "*" || name == "x-other"), "{may_send:?}");
    // A page can read the reason of a refusal too.
    let refused = system.post("/v1/orders").header("origin", page).header("content-encoding", "zstd");
    let refused = refused.body("application/json", "x".into()).send().await.expect(415);
    assert_eq!(refused.header("access-control-allow-origin"), Some(page));
    let may_read = listed(&refused, "access-control-expose-headers");
    for name in ["etag", "docket-position", "retry-after", "server-timing"] {
        assert!(may_read.iter().any(|allowed| allowed == name), "{name} is not in {may_read:?}");
    }
    let output = TestSystem::builder(Mode::Embedded).setting("DOCKET_CORS_REQUEST_HEADERS", "x tenant").stopped().await;
    let output = output.try_cli(&["config", "check"]).await;
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.code() == Some(2) && text.contains("cors_request_headers: `x tenant`"), "{text}");
}

/// The content security policy of `/docs` allows everything that the page needs.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_browser_shows_the_docs_under_their_security_policy() {
    let system = TestSystem::embedded().await;
    let names = ["chromium", "chromium-browser", "google-chrome"];
    let browser = names.iter().find_map(|name| find_on_path(name)).expect("install a browser with: tests/run install");
    let profile = tempfile::tempdir().expect("a temporary directory");
    let output = tokio::process::Command::new(browser)
        .args(["--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--enable-logging=stderr"])
        .arg(format!("--user-data-dir={}", profile.path().display()))
        .args(["--virtual-time-budget=15000", "--dump-dom"])
        .arg(format!("{}/docs/#/commands/create_order", system.reader().base()))
        .kill_on_drop(true)
        .output();
    let output = tokio::time::timeout(2 * DEADLINE, output)
        .await
        .expect("the browser shows the page in time")
        .expect("the browser starts");
    let (page, log) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    let paths = page.matches("class=\"opblock-summary-path\"").count();
    assert!(paths > 10 && page.contains("curl") | page.contains("Try it out"), "{paths} paths: {page}");
    // Swagger UI takes the underscore in the link for an old escape.
    let is_complaint = |line: &&str| line.contains("CONSOLE") && !line.contains("deep link whitespace");
    let complaints: Vec<_> = log.lines().filter(is_complaint).collect();
    assert!(complaints.is_empty(), "{complaints:#?}");
    let answer = system.get("/docs/").send().await.expect(200);
    let policy = answer.header("content-security-policy").expect("the page has a policy");
    assert!(policy.starts_with("default-src 'none'") && policy.contains("script-src 'self';"), "{policy}");
}

/// Some programs begin a text with a byte order mark, in files as well as in requests.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_file_may_begin_with_a_byte_order_mark() {
    let system = TestSystem::embedded().await;
    let (url, staff) = (system.writer().base().to_owned(), token("bom", "staff"));
    let folder = tempfile::tempdir().expect("a temporary directory");
    let csv = "order_ref,customer_ref,store_id,placed_at,sku,product_name,department,quantity,unit_price\n\
               r-1,ada,7,2017-01-01T11:53:26Z,pen,Pen,OFFICE,1,1.00\n";
    let row = json!({"order_ref": "r-1", "customer_ref": "ada", "store_id": "7", "placed_at": "2017-01-01T11:53:26Z",
        "sku": "pen", "product_name": "Pen", "department": "OFFICE", "quantity": "1", "unit_price": "1.00"});
    for (name, text) in [("orders.csv", csv.to_owned()), ("orders.ndjson", row.to_string())] {
        let path = folder.path().join(name);
        std::fs::write(&path, format!("\u{feff}{text}")).expect("the file is written");
        let path = path.to_str().expect("UTF-8");
        let output = system.try_cli(&["import", path, "--dry-run", "--json", "--url", &url, "--token", &staff]).await;
        assert_eq!(output.status.code(), Some(0), "{name}: {}", String::from_utf8_lossy(&output.stdout));
    }
}

/// A reader that closes the pipe early (`docket … | head -1`) is not a failure, and nothing is printed about it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_closed_pipe_is_not_a_failure() {
    let system = TestSystem::embedded().await;
    order(&system, "piped").await;
    for (arguments, code) in [
        (&["completions", "bash"][..], 0),
        (&["completions", "zsh"], 0),
        (&["config", "show"], 0),
        (&["token", "--sub", "ada", "--role", "customer"], 0),
        (&["projections"], 0),
        (&["projections", "--json"], 0),
        (&["verify"], 0),
        (&["dead-letters", "list"], 0),
        (&["events", "tail"], 0),
        (&["events", "export"], 0),
        (&["replay", "--all", "--dry-run"], 0),
        (&["health", "--url", system.reader().base()], 0),
        (&["health", "--json", "--url", system.reader().base()], 0),
        (&["modules"], 0),
        (&["reactors", "list"], 0),
        (&["replay", "--all", "--json"], 0),
        (&["-h"], 0),
        (&["help", "dev"], 0),
        (&["nonsense"], 2),
        (&["--help"], 0),
        (&["config", "check", "--config", "/nowhere.toml"], 2),
    ] {
        let closed = || {
            let (reader, writer) = std::io::pipe().expect("a pipe");
            drop(reader);
            Stdio::from(writer)
        };
        // Standard output alone, and with `2>&1`.
        for both in [false, true] {
            let mut command = system.command(arguments);
            command.stdout(closed()).stderr(if both { closed() } else { Stdio::piped() });
            let output = command.spawn().expect("docket starts").wait_with_output().await.expect("docket ends");
            let text = String::from_utf8_lossy(&output.stderr);
            assert_eq!(output.status.code(), Some(code), "{arguments:?}: {text}");
            assert!(!text.contains("panicked") && !text.contains("cannot write"), "{arguments:?}: {text}");
        }
    }
}
