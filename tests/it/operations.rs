//! The operator's view: logs, traces, metrics and readiness.

use std::collections::{BTreeSet, HashMap};
use std::io::Read;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde_json::{Value, json};
use tests::collector::Collector;
use tests::deployment::{lint, nginx, prometheus};
use tests::listener::{Listener, Transport};
use tests::system::{Builder, Docket, Mode, TestSystem};
use tests::wait::until_true;

tests::stories![the_log_level_changes_while_running, abandoned_requests_are_counted];

mod metrics {
    use super::every_metric_is_in_the_docs;

    tests::stories![settings = with_reactors; every_metric_is_in_the_docs];

    fn with_reactors(builder: super::Builder) -> super::Builder {
        super::with_reactors(builder)
    }
}

/// Selects a program that has reactors and processes, because the built-in modules have none.
fn with_reactors(builder: Builder) -> Builder {
    builder.program("docket-loyalty")
}

/// Headers of a request that its caller wants traced, whatever the sampling ratio is.
const TRACE_ID: &str = "0af7651916cd43dd8448eb211c80319c";
const TRACEPARENT: &str = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";
const REQUEST_ID: &str = "follow-me.2026-11-23";
const DEADLINE: Duration = Duration::from_secs(30);

fn order(id: &str) -> Value {
    json!({"order_id": id, "customer_id": "ada", "items": [
        {"sku": "pen", "quantity": 2, "unit_price": "1.25", "name": "Pen", "category": "OFFICE"}]})
}

/// Returns the log lines of a process that are JSON.
fn lines(docket: &Docket) -> Vec<Value> {
    docket.log().lines().filter_map(|line| serde_json::from_str(line).ok()).collect()
}

/// The log lines and spans of one request in three processes can be found by one request id and one trace id.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_request_can_be_traced_through_all_processes() {
    let collector = Collector::start().await;
    let system = TestSystem::builder(Mode::Scaled)
        .processes(&["write", "project", "read"])
        .setting("DOCKET_LOG_LEVEL", "debug")
        .setting("DOCKET_OTLP_ENDPOINT", &collector.url)
        .setting("DOCKET_OTLP_LOGS", "true")
        .setting("DOCKET_OTLP_METRICS", "true")
        .setting("DOCKET_TRACE_RATIO", "0")
        .start()
        .await;
    system.post("/v1/orders").json(order("other")).send().await.expect(201);
    system.settled().await;
    let token = tests::client::token("desk", "staff");
    let listener = Listener::start(Transport::Socket, vec![system.reader().base().to_owned()], &token, &["orders"]);
    listener.listening(&["orders"]).await;
    let request = system.post("/v1/orders").header("x-request-id", REQUEST_ID).header("traceparent", TRACEPARENT);
    let answer = request.json(order("followed")).send().await.expect(201);
    assert_eq!(answer.header("x-request-id"), Some(REQUEST_ID));
    listener.expect_changes("orders", &[answer.position() - 1, answer.position()], DEADLINE).await;

    let names = ["POST /v1/orders", "decide", "append", "commit", "publish", "project", "push"];
    let spans = collector.trace(TRACE_ID, &names).await;
    let one = |name: &str| spans.iter().find(|span| span.name == name).expect("the span was awaited");
    println!("the trace of one request:");
    for span in &spans {
        let after = Duration::from_nanos(span.started - spans[0].started);
        println!("{:>8.1?}  {:<8} {:<16} {:?}", after, span.roles, span.name, span.took);
    }
    assert_eq!(one("POST /v1/orders").parent_id, &TRACEPARENT[36..52]);
    assert_eq!(one("append").parent_id, one("POST /v1/orders").span_id);
    assert_eq!(one("append").links, [one("commit").span_id.clone()]);
    assert_eq!(one("commit").links, [one("append").span_id.clone()]);
    for (name, roles) in [("publish", "write"), ("project", "project"), ("push", "read")] {
        let (span, append) = (one(name), &one("append").span_id);
        assert_eq!((&*span.roles, &span.parent_id), (roles, append), "{name}");
        let of = (&*span.attributes["docket.aggregate.type"], &*span.attributes["docket.aggregate.id"]);
        assert_eq!(of, ("order", "followed"));
    }
    assert_eq!(one("POST /v1/orders").attributes["docket.request_id"], REQUEST_ID);

    println!("grep {REQUEST_ID}:");
    let expected = [("write", "Event appended."), ("project", "Event projected."), ("read", "Event pushed.")];
    for (docket, (roles, message)) in system.dockets.iter().zip(expected) {
        let said = || async {
            lines(docket).iter().any(|line| line["message"] == message && line["request_id"] == REQUEST_ID)
        };
        until_true(&format!("{roles} logs {message}"), said).await;
        let of = |line: &&Value| line["message"] == message && line["request_id"] == REQUEST_ID;
        let positions: Vec<_> = lines(docket).iter().filter(of).map(|line| line["event.position"].as_u64()).collect();
        assert_eq!(positions, [Some(answer.position() - 1), Some(answer.position())], "{roles}");
        for line in lines(docket).iter().filter(|line| line["request_id"] == REQUEST_ID) {
            println!("{roles:<8} {} {}", line["level"], line["message"]);
            assert_eq!((&line["service"], line["timestamp"].is_string()), (&json!("docket"), true));
        }
    }
    let http = lines(&system.dockets[0]);
    let http = http
        .iter()
        .find(|line| line["level"] == "http" && line["request_id"] == REQUEST_ID)
        .expect("the access log has a line");
    assert_eq!((&http["trace_id"], &http["span_id"]), (&json!(TRACE_ID), &json!(one("POST /v1/orders").span_id)));
    assert_eq!((&http["http.route"], &http["user.id"]), (&json!("/v1/orders"), &json!("tests")));
    let record = collector.log("POST /v1/orders 201").await;
    assert!(record.contains("trace_id="), "{record}");
    // The other request was not traced: its caller did not ask for a trace, and the ratio is 0.
    assert!(collector.spans().iter().all(|span| span.trace_id == TRACE_ID), "a request was traced without a reason");

    // The headers of the message on the bus, for other consumers.
    let nats = system.nats.as_ref().expect("a scaled system");
    let stream = nats.jetstream().await.get_stream(nats.stream()).await.expect("the relay has created the stream");
    let message = stream.get_raw_message(answer.position()).await.expect("the message is in the stream");
    let header = |name: &str| message.headers.get(name).map(|value| value.as_str().to_owned());
    assert_eq!(header("X-Request-Id").as_deref(), Some(REQUEST_ID));
    assert!(header("traceparent").is_some_and(|parent| parent.contains(TRACE_ID)));
}

/// Logs, traces and metrics go to a collector that does not run. Nothing else is affected.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_dead_collector_affects_only_telemetry() {
    let mut system = TestSystem::builder(Mode::Embedded)
        .setting("DOCKET_OTLP_ENDPOINT", "http://127.0.0.1:1")
        .setting("DOCKET_OTLP_LOGS", "true")
        .setting("DOCKET_OTLP_METRICS", "true")
        .setting("DOCKET_TRACE_RATIO", "1")
        .start()
        .await;
    for n in 0..300 {
        system.post("/v1/orders").json(order(&format!("o-{n}"))).send().await.expect(201);
    }
    system.settled().await;
    let docket = &system.dockets[0];
    until_true("failures are counted", || async { docket.metric("docket_otlp_failures_total").await > Some(0.0) })
        .await;
    assert_eq!(
        docket.log().matches("Could not send to the OTLP receiver.").count(),
        1,
        "the failure must be logged once, not each time"
    );
    for (status, took) in system.terminate().await {
        assert!(status.success() && took < Duration::from_secs(20), "{status}, {took:?}");
    }
}

async fn the_log_level_changes_while_running(system: TestSystem) {
    let docket = &system.dockets[0];
    let debug =
        || lines(docket).iter().filter(|line| line["level"] == "debug" && line["message"] == "Event appended.").count();
    system.post("/v1/orders").json(order("quiet")).send().await.expect(201);
    assert_eq!(debug(), 0);
    let level = |body: Value| system.put("/v1/admin/log-level").json(body);
    level(json!({"level": "loud"})).send().await.expect_problem(422, "invalid-log-level");
    level(json!({"level": "debug", "filter": "http=loud"})).send().await.expect_problem(422, "invalid-log-level");
    let staff = tests::client::token("desk", "staff");
    level(json!({"level": "debug"})).token(&staff).send().await.expect_problem(403, "forbidden");
    level(json!({"level": "debug"})).send().await.expect(200);
    assert_eq!(system.get("/v1/admin/log-level").send().await.expect(200).json()["level"], "debug");
    system.post("/v1/orders").json(order("loud")).send().await.expect(201);
    until_true("two events are logged", || async { debug() == 2 }).await;
    assert!(lines(docket).iter().any(|line| line["level"] == "http"), "debug includes the access log");
    // SIGHUP restores the configured level.
    docket.signal("HUP");
    let auto = || async { system.get("/v1/admin/log-level").send().await.expect(200).json()["level"] == "auto" };
    until_true("the level is the configured one again", auto).await;
    system.post("/v1/orders").json(order("quiet-again")).send().await.expect(201);
    system.settled().await;
    assert_eq!(debug(), 2);
}

/// A request whose client gives up is logged and counted with nginx's status 499. A long poll that is abandoned does
/// not count as request time.
async fn abandoned_requests_are_counted(system: TestSystem) {
    system.put("/v1/admin/log-level").json(json!({"level": "http"})).send().await.expect(200);
    let given_up = |path: &str, id: &str| {
        let request = system.get(path).header("x-request-id", id).try_send();
        tokio::time::timeout(Duration::from_millis(300), request)
    };
    given_up("/v1/orders?min_position=999999&wait_ms=9000", "gone")
        .await
        .expect_err("the query waits for its position");
    let cursor = system.get("/v1/poll?channel=orders&wait=0").send().await.expect(200).json()["cursor"].clone();
    let poll = format!("/v1/poll?channel=orders&wait=20&cursor={}", cursor.as_str().expect("a cursor"));
    given_up(&poll, "left").await.expect_err("the poll waits");
    let docket = &system.dockets[0];
    for id in ["gone", "left"] {
        let logged = || async {
            lines(docket).iter().any(|line| {
                (&line["request_id"], &line["http.response.status_code"], &line["user.id"])
                    == (&json!(id), &json!(499), &json!("tests"))
            })
        };
        until_true(&format!("{id} is logged"), logged).await;
    }
    let metrics = docket.metrics().await;
    let counted = |route: &str| {
        let is = |line: &&str| {
            line.contains("request_duration_seconds_count") && line.contains("\"499\"") && line.contains(route)
        };
        metrics.lines().filter(is).count()
    };
    assert_eq!((counted("/v1/orders"), counted("/v1/poll")), (1, 0), "{metrics}");
}

/// Everything that a process logs goes to a file that rotates, errors also to a second file, requests to a third one.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn log_files_rotate_under_load() {
    let folder = tempfile::tempdir().expect("a temporary directory");
    let file = |name: &str| folder.path().join(name).display().to_string();
    let mut system = TestSystem::builder(Mode::Embedded)
        .setting("DOCKET_LOG_FILE", &file("docket.log"))
        .setting("DOCKET_LOG_ERROR_FILE", &file("errors.log"))
        .setting("DOCKET_ACCESS_LOG_FILE", &file("access.log"))
        .setting("DOCKET_ACCESS_LOG", ":request-id :method :url :status :response-time[1]")
        .setting("DOCKET_LOG_FORMAT", "off")
        .setting("DOCKET_LOG_LEVEL", "debug")
        .setting("DOCKET_LOG_FILE_BYTES_MAX", "40000")
        .start()
        .await;
    for n in 0..500 {
        let request = system.post("/v1/orders").header("x-request-id", &format!("rotate-{n}"));
        request.json(order(&format!("o-{n}"))).send().await.expect(201);
    }
    system.terminate().await;
    // A crash leaves the last file uncompressed, and a shutdown may too. The next start compresses it.
    system.start().await;
    system.terminate().await;
    let access = rotated(&folder.path().join("access.log"));
    let mut ids: HashMap<&str, usize> = HashMap::new();
    for line in &access {
        *ids.entry(line.split(' ').next().unwrap_or_default()).or_default() += 1;
    }
    for n in 0..500 {
        assert_eq!(ids.get(&*format!("rotate-{n}")), Some(&1), "request {n}");
    }
    assert!(!access.iter().any(|line| line.contains("/health")), "probes must not be in the access log");
    let events = rotated(&folder.path().join("docket.log"));
    let appended = events.iter().filter(|line| line.contains(r#""message":"Event appended.""#)).count();
    assert_eq!(appended, 1000, "each order must log two events");
    let files = std::fs::read_dir(folder.path()).expect("a readable folder").count();
    assert!(files > 8, "{files} files");
    assert!(system.dockets[0].log().lines().all(|line| !line.starts_with('{')), "no JSON line may be on the console");
}

/// The access log as JSON goes to its own file and nowhere else.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_access_log_has_its_own_file_as_json_too() {
    let folder = tempfile::tempdir().expect("a temporary directory");
    let file = folder.path().join("access.log");
    let mut system = TestSystem::builder(Mode::Embedded)
        .setting("DOCKET_ACCESS_LOG_FILE", &file.display().to_string())
        .setting("DOCKET_ACCESS_LOG", "json")
        .start()
        .await;
    system.post("/v1/orders").header("x-request-id", "as-json").json(order("o-1")).send().await.expect(201);
    system.terminate().await;
    let line =
        rotated(&file).into_iter().find(|line| line.contains("as-json")).expect("the access log has the request");
    let line: Value = serde_json::from_str(&line).expect("the line is JSON");
    assert_eq!((&line["url.path"], &line["http.response.status_code"]), (&json!("/v1/orders"), &json!(201)));
    assert!(!system.dockets[0].log().contains("as-json"), "the request must not be on the console");
}

/// Returns the lines of a log file and of its rotated files, the oldest first.
fn rotated(path: &Path) -> Vec<String> {
    let folder = std::fs::read_dir(path.parent().expect("a folder")).expect("a readable folder");
    let name = path.file_name().expect("a file").to_string_lossy().into_owned();
    let mut files: Vec<PathBuf> = folder
        .map(|entry| entry.expect("a readable entry").path())
        .filter(|file| file.file_name().is_some_and(|found| found.to_string_lossy().starts_with(&format!("{name}.2"))))
        .collect();
    files.sort();
    files.push(path.to_owned());
    let mut text = String::new();
    for file in files {
        let raw = std::fs::File::open(&file).expect("a readable file");
        let read = match file.extension().is_some_and(|end| end == "gz") {
            true => flate2::read::GzDecoder::new(raw).read_to_string(&mut text),
            false => std::io::BufReader::new(raw).read_to_string(&mut text),
        };
        read.expect("the file is text");
    }
    text.lines().map(str::to_owned).collect()
}

/// No output of a process shows a secret that the process has or receives.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_output_contains_a_secret() {
    let folder = tempfile::tempdir().expect("a temporary directory");
    let collector = Collector::start().await;
    let mut system = TestSystem::builder(Mode::Scaled)
        .own_servers()
        .setting("DOCKET_LOG_FILE", &folder.path().join("docket.log").display().to_string())
        .setting("DOCKET_LOG_ERROR_FILE", &folder.path().join("errors.log").display().to_string())
        .setting("DOCKET_ACCESS_LOG_FILE", &folder.path().join("access.log").display().to_string())
        .setting("DOCKET_ACCESS_LOG", ":method :url :user :req[authorization] :req[cookie] :referrer :user-agent")
        .setting("DOCKET_LOG_LEVEL", "trace")
        .setting("DOCKET_OTLP_ENDPOINT", &collector.url)
        .setting("DOCKET_OTLP_HEADERS", "x-api-key=canary-vendor")
        .setting("DOCKET_OTLP_LOGS", "true")
        .setting("DOCKET_TRACE_RATIO", "1")
        .start()
        .await;
    let token = tests::client::token("grace@example.org", "admin");
    let canaries = [
        "canary-cookie",
        "canary-ticket",
        "canary-bad",
        "canary-vendor",
        "canary-query",
        "canary-nats",
        tests::postgres::PASSWORD,
        tests::client::JWT_SECRET,
    ];
    let requests = [
        system.post("/v1/orders").token(&token).json(order("told")).header("cookie", "docket_token=canary-cookie"),
        system.get("/v1/live?channel=orders&ticket=canary-ticket").anonymous(),
        system.get("/v1/orders?token=canary-query").header("referer", "http://u:canary-query@shop/"),
        system.get("/v1/orders").token("eyJhbGciOiJIUzI1NiJ9.eyJjYW5hcnkiOjF9.canary-bad"),
        system.get("/ws").header("sec-websocket-protocol", "bearer.Y2FuYXJ5LWJhZA").token(&token),
    ];
    for request in requests {
        request.header("user-agent", "grace@example.org").send().await;
    }
    // Requests while the database is down cause other kinds of error messages.
    system.postgres.as_mut().expect("a scaled system").kill_all();
    system.get("/v1/orders").token(&token).send().await.expect(503);
    system.post("/v1/orders").token(&token).json(order("refused")).send().await.expect(503);
    // At this level the exporter cannot send every record, so the test waits for any record.
    collector.log("").await;
    let metrics = system.dockets[0].metrics().await;
    system.terminate().await;
    let console = system.dockets[0].log();
    let mut outputs = vec![("console".to_owned(), console), ("metrics".to_owned(), metrics)];
    for name in ["docket.log", "errors.log", "access.log"] {
        outputs.push((name.to_owned(), rotated(&folder.path().join(name)).join("\n")));
    }
    for (name, text) in &outputs {
        assert!(text.len() > 50, "{name} is too short: {text}");
        for canary in canaries.iter().chain(&[&*token, "grace@example.org", "Y2FuYXJ5"]) {
            let line = text.lines().find(|line| line.contains(canary));
            assert!(line.is_none(), "{name} shows {canary}: {line:?}");
        }
    }
    for canary in canaries.iter().chain(&[&*token, "grace@example.org"]) {
        assert!(!collector.holds(canary), "OTLP shows {canary}");
    }
}

/// Returns the names of the metric families in a Prometheus text.
fn families(metrics: &str) -> BTreeSet<String> {
    metrics.lines().filter_map(|line| line.strip_prefix("# TYPE ")?.split(' ').next().map(str::to_owned)).collect()
}

/// Causes the events that the metrics count.
async fn live(system: &TestSystem) {
    let token = tests::client::token("desk", "staff");
    let bases = vec![system.reader().base().to_owned()];
    let socket = Listener::start(Transport::Socket, bases.clone(), &token, &["orders"]);
    let stream = Listener::start(Transport::Stream, bases, &token, &["orders"]);
    socket.listening(&["orders"]).await;
    stream.listening(&["orders"]).await;
    let made = system.post("/v1/orders").json(order("counted")).send().await.expect(201).position();
    system.post("/v1/orders").json(order("counted")).send().await.expect(409);
    system.post("/v1/orders/counted/confirm").send().await.expect(200);
    socket.expect_changes("orders", &[made - 1, made, made + 1], DEADLINE).await;
    let cursor = system.get("/v1/poll?channel=orders&wait=0").send().await.expect(200).json()["cursor"].clone();
    let cursor = cursor.as_str().expect("a cursor");
    system.get(&format!("/v1/poll?channel=orders&wait=0&cursor={cursor}")).send().await.expect(200);
    system.settled().await;
    let docket = &system.dockets[0];
    let counted = || async { docket.metric("docket_orders{status=\"confirmed\"}").await == Some(1.0) };
    until_true("one order is confirmed", counted).await;
    let scheduled =
        || async { docket.metric("docket_process_deadlines{process=\"points-expiry\"}").await == Some(1.0) };
    until_true("the deadline of its points is scheduled", scheduled).await;
}

async fn every_metric_is_in_the_docs(system: TestSystem) {
    live(&system).await;
    let metrics = system.dockets[0].metrics().await;
    let page = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/metrics.md");
    let page = std::fs::read_to_string(page).expect("docs/metrics.md exists");
    let rows = page.lines().filter_map(|line| line.strip_prefix("| `")?.split_once('`'));
    let documented: BTreeSet<String> = rows
        .filter(|(_, rest)| system.mode == Mode::Scaled || !rest.contains("scaled"))
        .map(|(name, _)| name.to_owned())
        .collect();
    let there = families(&metrics);
    assert_eq!(there, documented, "left: /metrics, right: docs/metrics.md");
    assert_eq!(lint(&metrics), Ok(()), "promtool check metrics");
    // The number of label values stays small, whatever clients send.
    for n in 0..50 {
        system.get(&format!("/nowhere/{n}")).send().await.expect(404);
        system.get(&format!("/v1/orders/nobody-{n}")).send().await.expect(404);
    }
    let series = |text: &str| text.lines().filter(|line| !line.starts_with('#')).count();
    let more = series(&system.dockets[0].metrics().await) - series(&metrics);
    assert!(more < 60, "{more} more series");
}

/// Every query of a dashboard or an alert uses metrics that a running server has.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn dashboards_and_alerts_use_existing_metrics() {
    let system = with_reactors(TestSystem::builder(Mode::Scaled)).start().await;
    live(&system).await;
    let there = families(&system.dockets[0].metrics().await);
    let deploy = Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy");
    let script = deploy.join("dashboard_queries");
    let output = std::process::Command::new("python3").arg(script).arg(&deploy).output().expect("python3 runs");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let asked = String::from_utf8(output.stdout).expect("the output is UTF-8");
    let family = |name: &str| {
        ["_bucket", "_sum", "_count"].iter().find_map(|end| name.strip_suffix(end)).unwrap_or(name).to_owned()
    };
    let unknown: Vec<_> =
        asked.lines().filter(|name| !there.contains(*name) && !there.contains(&family(name))).collect();
    assert!(asked.lines().count() > 20, "{asked}");
    assert!(unknown.iter().all(|name| *name == "up"), "no server has the metrics {unknown:?}");
}

/// While NATS is unavailable, requests are answered, and readiness and metrics report the failure. Everything recovers
/// without a restart.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_nats_outage_degrades_readiness_and_recovers() {
    let mut system = TestSystem::builder(Mode::Scaled).durable().processes(&["write", "project", "read"]).start().await;
    let made = system.post("/v1/orders").json(order("before")).send().await.expect(201).position();
    system.settled().await;
    let writer = &system.dockets[0];
    let relayed = || async { writer.metric("docket_relay_position").await == Some(made as f64) };
    until_true("the relay is at the head", relayed).await;
    system.nats.as_mut().expect("a scaled system").kill9();
    let create = |n| format!(r#"{{"type":"create_order","order_id":"o-{n}","customer_id":"c"}}"#) + "\n";
    let lines: String = (0..1_100).map(create).collect();
    system.post("/v1/commands").body("application/x-ndjson", lines).send().await.expect(200);
    let head = system.settled().await as f64;
    for docket in &system.dockets {
        let degraded = || async {
            let ready = docket.client.get("/health/ready").anonymous().send().await.expect(200).json();
            ready["status"] == "degraded" && ready["checks"]["nats"]["status"] == "failed"
        };
        until_true(&format!("{} is degraded", docket.roles), degraded).await;
        let disconnected = || async { docket.metric("docket_nats_connected").await == Some(0.0) };
        until_true("the gauge shows the lost connection", disconnected).await;
    }
    let writer = &system.dockets[0];
    let behind = || async { writer.metric("docket_log_position").await == Some(head) };
    until_true("the log's position is known", behind).await;
    // The condition of the alert DocketStreamLag in deploy/prometheus/alerts.yml.
    assert_eq!(writer.metric("docket_stream_position").await, Some(made as f64));
    assert!(head - made as f64 > 1_000.0);
    assert_eq!(writer.metric(r#"docket_leader{role="relay"}"#).await, Some(1.0));
    system.nats.as_mut().expect("a scaled system").restart().await;
    let writer = &system.dockets[0];
    until_true("the relay has caught up", || async { writer.metric("docket_stream_position").await == Some(head) })
        .await;
    for docket in &system.dockets {
        let ready = || async {
            docket.client.get("/health/ready").anonymous().send().await.expect(200).json()["status"] == "ready"
        };
        until_true(&format!("{} is ready", docket.roles), ready).await;
    }
}

/// Without its database a process is not ready, answers with Retry-After, and recovers without a restart.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_postgres_outage_returns_503_and_recovers() {
    let mut system = TestSystem::builder(Mode::Scaled).own_servers().start().await;
    system.post("/v1/orders").json(order("before")).send().await.expect(201);
    let postgres = system.postgres.as_mut().expect("a scaled system");
    postgres.kill9();
    // Backend processes of a killed PostgreSQL server keep serving their connections for a moment.
    let mut refused = system.post("/v1/orders").json(order("during")).send().await;
    if refused.status == 201 {
        tokio::time::sleep(Duration::from_millis(500)).await;
        refused = system.post("/v1/orders").json(order("later")).send().await;
    }
    assert!(refused.expect(503).header("retry-after").is_some());
    let refused = system.get("/v1/orders").send().await.expect(503);
    assert!(refused.header("retry-after").is_some(), "{refused:?}");
    let not_ready = || async { system.get("/health/ready").anonymous().send().await.status == 503 };
    until_true("the process is not ready", not_ready).await;
    let ready = system.get("/health/ready").anonymous().send().await.expect(503).json();
    assert_eq!((&ready["status"], &ready["checks"]["database"]["status"]), (&json!("unavailable"), &json!("failed")));
    assert!(ready["checks"]["database"]["latency_ms"].is_number(), "{ready}");
    system.get("/health/live").anonymous().send().await.expect(200);
    system.postgres.as_mut().expect("a scaled system").restart().await;
    let ready = || async { system.get("/health/ready").anonymous().send().await.status == 200 };
    until_true("the process is ready again", ready).await;
    let taken = || async { system.post("/v1/orders").json(order("after")).send().await.status != 503 };
    until_true("commands are accepted again", taken).await;
    system.settled().await;
    system.get("/v1/orders/before").send().await.expect(200);
}

/// The topology of `compose.yaml`: one process that writes, one that projects, four that read, nginx in front,
/// Prometheus beside them.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_whole_topology_works() {
    let roles = ["write", "project", "read", "read", "read", "read"];
    let mut system = TestSystem::builder(Mode::Scaled).processes(&roles).start().await;
    let (nginx, prometheus) = (nginx(&system.dockets).await, prometheus(&system.dockets).await);
    let front = &nginx.client;
    let token = tests::client::token("desk", "staff");
    let bases = vec![front.base().to_owned()];
    let listeners = [Transport::Socket, Transport::Stream, Transport::Poll]
        .map(|transport| Listener::start(transport, bases.clone(), &token, &["orders"]));
    for listener in &listeners {
        listener.listening(&["orders"]).await;
    }
    let mut positions = Vec::new();
    for n in 0..20 {
        let made = front.post("/v1/orders").json(order(&format!("o-{n}"))).send().await.expect(201).position();
        positions.extend([made - 1, made]);
        let path = format!("/v1/orders/o-{n}?min_position={made}&wait_ms=10000");
        front.get(&path).send().await.expect(200);
        if n == 10 {
            // The subscribers of this process reconnect to another one.
            system.dockets[2].kill9();
        }
    }
    let change = json!({"quantity": 5});
    front.put("/v1/orders/o-1/items/pen").json(change).send().await.expect(200);
    positions.push(front.delete("/v1/orders/o-2/items/pen").send().await.expect(200).position());
    positions.insert(positions.len() - 1, positions[positions.len() - 1] - 1);
    let lines: String = (0..50)
        .map(|n| format!("{{\"type\":\"create_order\",\"order_id\":\"b-{n}\",\"customer_id\":\"ada\"}}\n"))
        .collect();
    let answer = front.post("/v1/commands").body("application/x-ndjson", lines).send().await.expect(200);
    let results = String::from_utf8_lossy(&answer.body).lines().count();
    assert_eq!(results, 50);
    let last = positions[positions.len() - 1];
    positions.extend(last + 1..=last + 50);
    for listener in &listeners {
        listener.expect_changes("orders", &positions, DEADLINE).await;
    }
    front.get("/metrics").anonymous().send().await.expect(404);

    // One query checks all targets: a target that was not scraped yet is neither up nor down.
    let up = || async { prometheus.query("sum(up) == 5 and count(up) == 6").await.len() == 1 };
    until_true("five of six processes are up, and one is down", up).await;
    let pending = || async { prometheus.query("ALERTS{alertname=\"DocketDown\"}").await.len() == 1 };
    until_true("the alert is pending", pending).await;
    let confirmed = || async {
        prometheus.query("sum(docket_append_events_total)").await.first().map(|found| found.1) == Some(92.0)
    };
    until_true("every event is counted", confirmed).await;
}
