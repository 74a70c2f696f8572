//! What every HTTP client meets: the root page, slashes at the end of paths, and compression.

use std::io::{Read, Write};

use flate2::Compression;
use flate2::read::GzDecoder;
use flate2::write::GzEncoder;
use reqwest::Method;
use serde_json::{Value, json};
use tests::client::Answer;
use tests::system::TestSystem;

tests::stories![
    the_root_links_what_a_process_serves,
    a_slash_at_the_end_of_a_path_makes_no_difference,
    long_answers_are_compressed,
    bodies_may_be_compressed,
    bulk_commands_may_be_compressed,
];

fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = GzEncoder::new(Vec::new(), Compression::default());
    encoder.write_all(bytes).expect("memory");
    encoder.finish().expect("memory")
}

fn brotli(mut bytes: &[u8]) -> Vec<u8> {
    let mut compressed = Vec::new();
    let params = brotli::enc::BrotliEncoderParams { quality: 4, lgwin: 20, ..Default::default() };
    brotli::BrotliCompress(&mut bytes, &mut compressed, &params).expect("memory");
    compressed
}

fn unpacked(answer: &Answer) -> Vec<u8> {
    let mut whole = Vec::new();
    match answer.header("content-encoding") {
        Some("gzip") => GzDecoder::new(&answer.body[..]).read_to_end(&mut whole).map(drop).expect("gzip"),
        Some("br") => brotli::BrotliDecompress(&mut &answer.body[..], &mut whole).expect("brotli"),
        other => panic!("content-encoding: {other:?}"),
    }
    whole
}

/// Whether the response names `Accept-Encoding` in `Vary`, beside the headers that CORS names.
fn varies(answer: &Answer) -> bool {
    answer.headers.get_all("vary").iter().any(|value| value == "accept-encoding")
}

async fn the_root_links_what_a_process_serves(system: TestSystem) {
    for docket in &system.dockets {
        let get = |path: &str| docket.client.get(path).anonymous();
        let root = get("/").send().await.expect(200);
        assert_eq!(root.header("content-type"), Some("application/json"));
        let root = root.json();
        assert!(root["name"] == "Docket" && root["version"].is_string(), "{root}");
        let links = root["links"].as_object().expect("links");
        for name in ["docs", "openapi", "health"] {
            assert!(links.contains_key(name), "{}: {root}", docket.roles);
        }
        assert_eq!(links.contains_key("asyncapi"), docket.roles.contains("read"), "{}: {root}", docket.roles);
        let browser = "text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8";
        let page = get("/").header("accept", browser).send().await.expect(200);
        assert_eq!(page.header("content-type"), Some("text/html; charset=utf-8"));
        let policy = page.header("content-security-policy").expect("a policy");
        assert!(policy.starts_with("default-src 'none'; style-src 'sha256-"), "{policy}");
        let page = String::from_utf8_lossy(&page.body).into_owned();
        for path in links.values() {
            let path = path.as_str().expect("a path");
            assert!(page.contains(&format!("href=\"{path}\"")), "{path}: {page}");
            let linked = get(path).send().await;
            assert!(matches!(linked.status, 200 | 303), "{path}: {}", linked.status);
        }
        assert_eq!(page.matches("<li>").count(), links.len(), "{page}");
        let icon = get("/favicon.ico").send().await.expect(200);
        assert!(icon.header("content-type") == Some("image/x-icon") && icon.body.starts_with(b"\0\0\x01\0"));
        docket.client.request(Method::HEAD, "/").anonymous().send().await.expect(200);
        docket.client.post("/").json(json!({})).send().await.expect_problem(405, "method-not-allowed");
    }
}

async fn a_slash_at_the_end_of_a_path_makes_no_difference(system: TestSystem) {
    let order = json!({"order_id": "slash", "customer_id": "ada"});
    let created = system.post("/v1/orders/").key("k").json(order.clone()).send().await.expect(201);
    assert_eq!(created.header("location"), Some("/v1/orders/slash"));
    let again = system.post("/v1/orders").key("k").json(order).send().await.expect(201);
    assert_eq!(again.header("idempotency-replayed"), Some("true"), "it is the same request");
    let item = json!({"sku": "pen", "quantity": 1, "unit_price": "1.00"});
    system.post("/v1/orders/slash/items/").json(item).send().await.expect(200);
    system.put("/v1/orders/slash/items/pen/").json(json!({"quantity": 2})).send().await.expect(200);
    let removed = system.delete("/v1/orders/slash/items/pen/").send().await.expect(200);
    let path = format!("/v1/orders/slash/?min_position={}&wait_ms=10000", removed.position());
    assert_eq!(system.get(&path).send().await.expect(200).version(), 4);
    let list = system.get("/v1/orders/?limit=1").send().await.expect(200).json();
    assert_eq!(list["items"][0]["order_id"], "slash");
    system.get("/v1/orders/slash/").anonymous().send().await.expect_problem(401, "authentication-required");
    system.get("/v1/orders/slash//").send().await.expect_problem(404, "not-found");
    system.reader().post("/v1/orders/slash/").json(json!({})).send().await.expect_problem(405, "method-not-allowed");
    for path in ["/docs/", "/openapi.json/", "/health/live/"] {
        system.get(path).send().await.expect(200);
    }
    // Metrics name the route, whatever the path looked like.
    let docket = system.dockets.iter().find(|docket| docket.roles.contains("read")).expect("a process that reads");
    let metrics = docket.metrics().await;
    assert!(metrics.contains("http_route=\"/v1/orders/{id}\""), "{metrics}");
}

async fn long_answers_are_compressed(system: TestSystem) {
    let items: Vec<Value> = (0..60)
        .map(|n| json!({"sku": format!("sku-{n}"), "quantity": n + 1, "unit_price": "1.25", "category": "OFFICE"}))
        .collect();
    let long = json!({"order_id": "long", "customer_id": "ada", "items": items});
    let version = system.post("/v1/orders").json(long).send().await.expect(201).version();
    let short = json!({"order_id": "short", "customer_id": "ada"});
    system.post("/v1/orders").json(short).send().await.expect(201);
    system.settled().await;
    let get = |path: &str, accepted: &str| system.get(path).header("accept-encoding", accepted);

    let plain = system.get("/v1/orders/long").send().await.expect(200);
    assert!(plain.header("content-encoding").is_none() && varies(&plain), "{:?}", plain.headers);
    assert_eq!(plain.version(), version);
    for (accepted, coding) in
        [("gzip", "gzip"), ("br", "br"), ("gzip, deflate, br, zstd", "br"), ("gzip, br;q=0.1", "gzip")]
    {
        let packed = get("/v1/orders/long", accepted).send().await.expect(200);
        assert_eq!(packed.header("content-encoding"), Some(coding), "{accepted}");
        assert!(varies(&packed), "{:?}", packed.headers);
        assert_eq!(packed.header("content-length"), Some(packed.body.len().to_string().as_str()));
        assert!(packed.body.len() * 3 < plain.body.len(), "{} of {}", packed.body.len(), plain.body.len());
        assert_eq!(unpacked(&packed), plain.body);
        let tag = packed.header("etag").expect("a tag").to_owned();
        assert_eq!(tag, format!("W/\"{version}\""));
        // The tag of either representation names the version, in every condition.
        for tag in [tag, format!("\"{version}\"")] {
            get("/v1/orders/long", accepted).header("if-none-match", &tag).send().await.expect(304);
            let change = system.put("/v1/orders/long/items/sku-0").json(json!({"quantity": 1}));
            assert_eq!(change.header("if-match", &tag).send().await.expect(200).version(), version);
        }
    }
    let head =
        |accepted: &str| system.reader().request(Method::HEAD, "/v1/orders/long").header("accept-encoding", accepted);
    let (packed, identity) = (head("gzip").send().await.expect(200), head("identity").send().await.expect(200));
    let whole = get("/v1/orders/long", "gzip").send().await.expect(200);
    for name in ["content-length", "content-encoding", "etag", "vary"] {
        assert_eq!(packed.header(name), whole.header(name), "{name}");
    }
    assert_eq!(identity.header("content-length"), Some(plain.body.len().to_string().as_str()));

    for (path, accepted) in
        [("/v1/orders/short", "gzip, br"), ("/v1/orders/long", "identity"), ("/v1/orders/long", "gzip;q=0")]
    {
        let answer = get(path, accepted).send().await.expect(200);
        assert_eq!(answer.header("content-encoding"), None, "{path}");
    }
    for path in ["/openapi.json", "/docs/", "/v1/orders", "/v1/orders/long/events"] {
        let answer = get(path, "gzip").send().await.expect(200);
        let long = answer.header("content-encoding") == Some("gzip");
        assert!(long || answer.body.len() < 1024, "{path}");
    }
    let line = json!({"type": "confirm_order", "order_id": "long"}).to_string() + "\n";
    let bulk = system.post("/v1/commands").header("accept-encoding", "gzip, br");
    let bulk = bulk.body("application/x-ndjson", line.repeat(200)).send().await.expect(200);
    assert!(bulk.body.len() > 1024 && bulk.header("content-encoding").is_none(), "results arrive one by one");
}

async fn bodies_may_be_compressed(system: TestSystem) {
    let order = json!({"order_id": "packed", "customer_id": "ada", "items": [
        {"sku": "pen", "quantity": 1, "unit_price": "1.00", "name": "Füller"}]})
    .to_string();
    let post = |coding: &str, body: Vec<u8>| {
        system.post("/v1/orders").header("content-encoding", coding).bytes("application/json", body)
    };
    post("gzip", gzip(order.as_bytes())).key("k").send().await.expect(201);
    for (coding, body) in
        [("br", brotli(order.as_bytes())), ("x-gzip", gzip(order.as_bytes())), ("identity", order.clone().into())]
    {
        let again = post(coding, body).key("k").send().await.expect(201);
        assert_eq!(again.header("idempotency-replayed"), Some("true"), "{coding}: the same body");
    }
    for coding in ["gzip", "br"] {
        let pack = |bytes: &[u8]| if coding == "gzip" { gzip(bytes) } else { brotli(bytes) };
        let whole = pack(order.as_bytes());
        let cut = whole[..whole.len() - 3].to_vec();
        post(coding, cut).send().await.expect_problem(400, "undecodable-body");
        post(coding, order.clone().into()).send().await.expect_problem(400, "undecodable-body");
        // The limit of a body counts the bytes after decompression.
        let large = format!("{{\"customer_id\":\"{}\"}}", "x".repeat(1 << 20));
        post(coding, pack(large.as_bytes())).send().await.expect_problem(413, "body-too-large");
        let bomb = pack(&vec![b' '; 16 << 20]);
        let refused = post(coding, bomb).send().await;
        assert_eq!(refused.status, 413, "{coding}: {}", refused.json());
        let syntax = post(coding, pack(b"{\"customer_id\":")).send().await;
        syntax.expect_problem(400, "malformed-json");
    }
    for coding in ["zstd", "deflate", "gzip, gzip"] {
        let refused = post(coding, gzip(order.as_bytes())).send().await;
        assert_eq!(refused.header("accept-encoding"), Some("gzip, br"));
        refused.expect_problem(415, "unsupported-content-encoding");
    }
    system.settled().await;
    let stored = system.get("/v1/orders/packed").send().await.expect(200).json();
    assert_eq!(stored["lines"][0]["name"], "Füller");
}

async fn bulk_commands_may_be_compressed(system: TestSystem) {
    let lines: String = (0..5_000)
        .map(|n| {
            format!("{}\n", json!({"type": "create_order", "order_id": format!("bulk-{n}"), "customer_id": "ada"}))
        })
        .collect();
    let post = |coding: &str, body: Vec<u8>| {
        system.post("/v1/commands").header("content-encoding", coding).bytes("application/x-ndjson", body)
    };
    let results = |answer: &Answer| -> Vec<Value> {
        let text = String::from_utf8_lossy(&answer.body).into_owned();
        text.lines().map(|line| serde_json::from_str(line).expect("a result is JSON")).collect()
    };
    let created = results(&post("gzip", gzip(lines.as_bytes())).send().await.expect(200));
    assert_eq!(created.len(), 5_000);
    assert!(created.iter().all(|result| result["status"] == 201), "{:?}", created[0]);
    let again = results(&post("br", brotli(lines.as_bytes())).send().await.expect(200));
    assert!(again.len() == 5_000 && again.iter().all(|result| result["status"] == 409), "{:?}", again[0]);
    // Cut off: whole lines are executed, and the last result names the first line that is missing.
    let more = lines.replace("bulk-", "more-");
    let packed = gzip(more.as_bytes());
    let cut = results(&post("gzip", packed[..packed.len() / 2].to_vec()).send().await.expect(200));
    let last = cut.last().expect("a result");
    assert_eq!((last["status"].as_u64(), &last["problem"]["type"]), (Some(400), &json!("/problems/undecodable-body")));
    assert_eq!(last["line"].as_u64(), Some(cut.len() as u64));
    assert!(cut.len() > 100 && cut[..cut.len() - 1].iter().all(|result| result["status"] == 201), "{}", cut.len());
    // A bomb does not make the server allocate memory, or read on.
    let before = system.dockets[0].memory_kib();
    let refused = results(&post("gzip", gzip(&vec![b'x'; 128 << 20])).send().await.expect(200));
    assert_eq!(refused.len(), 1, "{refused:?}");
    assert_eq!(refused[0]["problem"]["type"], "/problems/body-expands-too-much", "{refused:?}");
    let grown = system.dockets[0].memory_kib().saturating_sub(before);
    assert!(grown < 64 << 10, "{grown} KiB");
}
