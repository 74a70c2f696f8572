//! Identity: ids of shops and identity providers, tokens in the shapes of identity providers, credentials by setting, and
//! bans.

use std::path::Path;
use std::process::Stdio;
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures::{SinkExt, StreamExt};
use serde_json::{Value, json};
use tests::client::{Answer, Client, encoded, signed, token};
use tests::deployment::nginx;
use tests::process::target_directory;
use tests::socket::Socket;
use tests::system::{Mode, TestSystem};
use tests::verify::read_models_equal_the_fold;
use tests::wait::{until, until_within};
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::process::{Child, Command};

tests::stories![
    ids_of_shops_and_identity_providers_work_everywhere,
    ids_that_look_like_other_ids_are_refused,
    a_ban_ends_everything_and_refuses_new_tokens,
    a_ban_ends_at_its_time,
];

/// Time within which every process must apply a ban.
const BANNED_WITHIN: Duration = Duration::from_secs(2);

/// Customers, orders and SKUs as shops and identity providers name them.
fn names() -> Vec<[String; 3]> {
    let own = |names: [&str; 3]| names.map(str::to_owned);
    vec![
        own(["auth0|65f3a0c2e1b7d9f4a5c6d7e8", "2024/10 #7", "MUG 01/\u{e9}"]),
        own(["ada@example.com", "order \"1\" \\ 100%", "50% off, a+b;c=d"]),
        own(["https://idp.example/users/7?x=1&y", "\u{65e5}\u{672c}:\u{1f375}", "a.b/../c"]),
        own(["arn:aws:iam::1:user/Ada", "Ada@Example.com", "order:o-1,o-2"]),
        ["s".repeat(255), "o".repeat(128), "\u{e9}".repeat(128)],
    ]
}

async fn ids_of_shops_and_identity_providers_work_everywhere(system: TestSystem) {
    for [customer, order, sku] in &names() {
        one_name_works_everywhere(&system, customer, order, sku).await;
    }
    // Ids are compared byte by byte.
    let other = token("Auth0|65f3a0c2e1b7d9f4a5c6d7e8", "customer");
    let path = format!("/v1/orders/{}", encoded("2024/10 #7"));
    system.get(&path).token(&other).send().await.expect_problem(404, "order-not-found");
    read_models_equal_the_fold(&system).await;
    let verified = system.cli(&["verify"]).await;
    assert!(!verified.contains(" 1 mismatch"), "{verified}");
}

async fn one_name_works_everywhere(system: &TestSystem, customer: &str, order: &str, sku: &str) {
    let own = token(customer, "customer");
    let item = |sku: &str| json!({"sku": sku, "quantity": 1, "unit_price": "1.00", "category": "CUPS"});
    let body = json!({"order_id": order, "customer_id": customer, "items": [item(sku)]});
    let created = system.post("/v1/orders").token(&own).json(body).send().await.expect(201);
    assert_eq!(created.json()["order_id"], order);
    let path = format!("/v1/orders/{}", encoded(order));
    assert_eq!(created.header("location"), Some(path.as_str()));

    // Commands, with the SKU in the path and in the query.
    let in_path = format!("{path}/items/{}", encoded(sku));
    let in_query = format!("{path}/items?sku={}", encoded(sku));
    system.put(&in_path).token(&own).json(json!({"quantity": 3})).send().await.expect(200);
    let change = || system.put(&in_query).token(&own).json(json!({"quantity": 4})).key(sku_key(sku));
    assert_eq!(change().send().await.expect(200).version(), 4);
    assert_eq!(change().send().await.expect(200).header("idempotency-replayed"), Some("true"));
    let other = format!("{path}/items?sku=other");
    let reused = system.put(&other).token(&own).json(json!({"quantity": 4})).key(sku_key(sku));
    reused.send().await.expect_problem(422, "idempotency-key-reused");
    system.post(&format!("{path}/items")).token(&own).json(item("second")).send().await.expect(200);
    let removed = format!("{path}/items?sku=second");
    let position = system.delete(&removed).token(&own).send().await.expect(200).position();

    // Queries.
    let view = system.get(&format!("{path}?min_position={position}&wait_ms=10000")).token(&own).send().await;
    let view = view.expect(200).json();
    assert_eq!(
        (&view["order_id"], &view["customer_id"], &view["lines"][0]["sku"]),
        (&json!(order), &json!(customer), &json!(sku))
    );
    assert_eq!((&view["quantity"], view["lines"].as_array().map(Vec::len)), (&json!(4), Some(1)));
    let history = system.get(&format!("{path}/events")).token(&own).send().await.expect(200).json();
    assert_eq!(history["items"][1]["payload"]["sku"], sku);
    system.get(&format!("{path}?as_of=1")).token(&own).send().await.expect(200);
    for found in
        [format!("/v1/customers/{}", encoded(customer)), format!("/v1/customers?customer_id={}", encoded(customer))]
    {
        let found = system.get(&found).token(&own).send().await.expect(200).json();
        assert_eq!((&found["customer_id"], &found["orders"]), (&json!(customer), &json!(1)), "{found}");
    }
    let listed = system.get(&format!("/v1/orders?customer_id={}", encoded(customer))).send().await.expect(200).json();
    assert_eq!(listed["items"][0]["order_id"], order);
    let stranger = token("stranger", "customer");
    system.get(&path).token(&stranger).send().await.expect_problem(404, "order-not-found");

    // Live updates.
    let channels = [format!("order:{order}"), format!("customer:{customer}")];
    let both = format!("channel={}&channel={}", encoded(&channels[0]), encoded(&channels[1]));
    let first = system.get(&format!("/v1/poll?{both}&wait=0")).token(&own).send().await.expect(200).json();
    assert_eq!(channels_of(&first), sorted(&channels), "{first}");
    let mut socket = Socket::connect(system.reader(), &own).await;
    for channel in &channels {
        assert!(socket.subscribe(channel).await.is_object());
    }
    let changed = system.put(&in_path).token(&own).json(json!({"quantity": 5})).send().await.expect(200).position();
    for channel in &channels {
        assert_eq!(socket.next_publication(channel).await["offset"], changed);
    }
    let cursor = encoded(first["cursor"].as_str().expect("a cursor"));
    let next =
        system.get(&format!("/v1/poll?{both}&wait=30&cursor={cursor}")).token(&own).send().await.expect(200).json();
    assert_eq!(channels_of(&next), sorted(&channels), "{next}");
    let offsets = next["events"].as_array().expect("events").iter().map(|event| &event["offset"]);
    assert!(offsets.into_iter().all(|offset| *offset == changed), "{next}");
    let mut stream = Stream::open(system.reader(), &both, &own, None).await;
    let text = stream.until("snapshot\",\"channel").await;
    drop(stream);
    let id = text.lines().rev().find_map(|line| line.strip_prefix("id: ")).map(str::to_owned);
    let confirmed = system.post(&format!("{path}/confirm")).token(&own).send().await.expect(200).position();
    let mut stream = Stream::open(system.reader(), &both, &own, id.as_deref()).await;
    let text = stream.until(&format!("\"offset\":{confirmed}")).await;
    assert!(!text.contains("event: reset"), "{text}");
    let refused = system.get(&format!("/v1/poll?{both}&wait=0")).token(&stranger).send().await;
    refused.expect_problem(404, "channel-not-found");
    // Bulk lines.
    let line = json!({"type": "create_order", "order_id": format!("{}+", &order[..order.len().min(60)].trim_end()),
        "customer_id": customer, "items": [item(sku)]});
    let bulk = system.post("/v1/commands").token(&own).body("application/x-ndjson", format!("{line}\n")).send().await;
    assert_eq!(bulk.expect(200).json()["status"], 201);
}

/// An idempotency key is ASCII.
fn sku_key(sku: &str) -> &'static str {
    if sku.len() > 128 { "long" } else { "short" }
}

fn sorted(names: &[String]) -> Vec<String> {
    let mut names = names.to_vec();
    names.sort();
    names
}

fn channels_of(polled: &Value) -> Vec<String> {
    let events = polled["events"].as_array().expect("events").iter();
    let mut names: Vec<String> = events.map(|event| event["channel"].as_str().expect("a channel").to_owned()).collect();
    names.sort();
    names.dedup();
    names
}

/// An open event stream.
struct Stream {
    body: futures::stream::BoxStream<'static, reqwest::Result<Bytes>>,
    text: String,
}

impl Stream {
    async fn open(client: &Client, query: &str, token: &str, after: Option<&str>) -> Self {
        let mut request = reqwest::Client::new().get(format!("{}/v1/live?{query}", client.base())).bearer_auth(token);
        if let Some(after) = after {
            request = request.header("last-event-id", after);
        }
        let answer = request.send().await.expect("a response").error_for_status().expect("the status is 200");
        Self { body: answer.bytes_stream().boxed(), text: String::new() }
    }

    /// Reads until the text contains `part`, and returns the text.
    async fn until(&mut self, part: &str) -> String {
        while !self.text.contains(part) {
            let next = tokio::time::timeout(Duration::from_secs(30), self.body.next()).await;
            let bytes = next.unwrap_or_else(|_| panic!("no {part} in {}", self.text));
            let bytes = bytes.unwrap_or_else(|| panic!("the stream ended without {part}: {}", self.text));
            self.text.push_str(&String::from_utf8_lossy(&bytes.expect("the stream is whole")));
        }
        self.text.clone()
    }
}

async fn ids_that_look_like_other_ids_are_refused(system: TestSystem) {
    let item = |sku: &str| json!({"sku": sku, "quantity": 1, "unit_price": "1.00"});
    let bad = ["", " a", "a ", ".", "..", "a\nb", "e\u{301}", "a\u{200b}b", "a\u{202e}b", "\u{feff}a", "\u{212b}"];
    for id in bad.iter().map(|id| (*id).to_owned()).chain(["x".repeat(256)]) {
        for (pointer, body) in [
            ("/order_id", json!({"order_id": id, "customer_id": "ada"})),
            ("/customer_id", json!({"customer_id": id})),
            ("/items/0/sku", json!({"customer_id": "ada", "items": [item(&id)]})),
        ] {
            let problem = system.post("/v1/orders").json(body).send().await.expect(422).json();
            assert_eq!(problem["errors"][0]["pointer"], pointer, "{id:?}: {problem}");
        }
        if !id.is_empty() && !id.starts_with('.') {
            let path = format!("/v1/orders/{}", encoded(&id));
            system.get(&path).send().await.expect_problem(404, "order-not-found");
            system.post(&format!("{path}/confirm")).send().await.expect_problem(404, "order-not-found");
        }
        let refused = system.get("/v1/orders").token(&token(&id, "customer")).send().await;
        let refused = refused.expect_problem(401, "invalid-token");
        assert!(refused["detail"].as_str().is_some_and(|text| text.contains("jwt_subject_claim")), "{refused}");
    }
    // A path that is not UTF-8 is an error of the client.
    let answer = system.get("/v1/orders/%ff").send().await;
    assert_eq!(answer.status, 400, "{answer:?}");
}

async fn create(system: &TestSystem, order: &str, customer: &str) {
    system.post("/v1/orders").json(json!({"order_id": order, "customer_id": customer})).send().await.expect(201);
}

fn issued(subject: &str, at: i64) -> String {
    let claims =
        json!({"sub": subject, "role": "customer", "iss": "docket", "aud": "docket", "iat": at, "exp": at + 3600});
    signed(&claims)
}

async fn ban(client: &Client, body: Value) -> Answer {
    client.post("/v1/admin/bans").json(body).send().await
}

async fn reinstate(client: &Client, subject: &str) -> Answer {
    client.delete(&format!("/v1/admin/bans?subject={}", encoded(subject))).send().await
}

async fn a_ban_ends_everything_and_refuses_new_tokens(mut system: TestSystem) {
    let subject = "auth0|ada";
    create(&system, "o-1", subject).await;
    system.settled().await;
    let now = jiff::Timestamp::now().as_second();
    let (ada, clerk) = (issued(subject, now - 10), token("clerk", "staff"));
    let mut socket = Socket::connect(system.reader(), &ada).await;
    socket.subscribe("order:o-1").await;
    let mut other = Socket::connect(system.reader(), &clerk).await;
    other.subscribe("order:o-1").await;
    let mut live = Stream::open(system.reader(), "channel=order:o-1", &ada, None).await;
    live.until("snapshot").await;
    let cursor = system.get("/v1/poll?channel=order:o-1&wait=0").token(&ada).send().await.expect(200).json();
    let cursor = cursor["cursor"].as_str().expect("a cursor").to_owned();
    let polling = format!("/v1/poll?channel=order:o-1&wait=30&cursor={cursor}");
    let polling = tokio::spawn(system.get(&polling).token(&ada).send());
    let ticket = system.reader().post("/v1/tickets").token(&ada).send().await.expect(201).json();
    let ticket = ticket["ticket"].as_str().expect("a ticket").to_owned();
    // A bulk request that has executed one line and waits for the next.
    let (mut lines, body) = futures::channel::mpsc::unbounded::<Result<Bytes, std::io::Error>>();
    let bulk = reqwest::Client::new().post(format!("{}/v1/commands", system.writer().base())).bearer_auth(&ada);
    let bulk = bulk.header("content-type", "application/x-ndjson").body(reqwest::Body::wrap_stream(body));
    let bulk = tokio::spawn(bulk.send());
    let line = |order: &str| {
        Ok(Bytes::from(json!({"type": "create_order", "order_id": order, "customer_id": subject}).to_string() + "\n"))
    };
    lines.send(line("bulk-1")).await.expect("the request is open");
    let mut results = bulk.await.expect("no panic").expect("a response").bytes_stream();
    let first = results.next().await.expect("a result").expect("the response is whole");
    assert!(String::from_utf8_lossy(&first).contains("bulk-1"), "{first:?}");

    // Who may ban, and what a ban needs.
    let reader = system.reader().clone();
    let good = json!({"subject": subject, "reason": "chargeback fraud"});
    reader.post("/v1/admin/bans").token(&clerk).json(good.clone()).send().await.expect_problem(403, "forbidden");
    for (pointer, body) in [
        ("/subject", json!({"subject": " a", "reason": "x"})),
        ("/subject", json!({"subject": "tests", "reason": "the admin's own subject"})),
        ("/reason", json!({"subject": "ada", "reason": " "})),
        ("/until", json!({"subject": "ada", "reason": "x", "until": "2020-01-01T00:00:00Z"})),
    ] {
        let problem = ban(&reader, body).await.expect_problem(422, "invalid-ban");
        assert_eq!(problem["errors"][0]["pointer"], pointer, "{problem}");
    }
    let started = Instant::now();
    let banned = ban(&reader, good).await.expect(201).json();
    assert_eq!(
        (&banned["subject"], &banned["actor"], &banned["until"]),
        (&json!(subject), &json!("tests"), &Value::Null)
    );
    assert_eq!(socket.closed().await, 4503);
    polling.await.expect("the request ends").expect_problem(403, "subject-banned");
    let text = live.until("auth_expired").await;
    assert!(text.ends_with("event: auth_expired\ndata: {\"reason\":\"banned\"}\n\n"), "{text}");
    assert!(started.elapsed() < BANNED_WITHIN, "after {:?}", started.elapsed());
    lines.send(line("bulk-2")).await.expect("the request is open");
    let rest = results.next().await.expect("a result").expect("the response is whole");
    assert!(String::from_utf8_lossy(&rest).contains("subject-banned"), "{rest:?}");
    system.get("/v1/orders/bulk-2").send().await.expect_problem(404, "order-not-found");

    // No token of the subject is accepted, however new it is, nor is the ticket.
    let new = issued(subject, jiff::Timestamp::now().as_second() + 3);
    for token in [&ada, &new] {
        system.get("/v1/orders/o-1").token(token).send().await.expect_problem(403, "subject-banned");
        system.post("/v1/orders/o-1/confirm").token(token).send().await.expect_problem(403, "subject-banned");
        reader.post("/v1/tickets").token(token).send().await.expect_problem(403, "subject-banned");
        reader.get("/v1/live?channel=order:o-1").token(token).send().await.expect_problem(403, "subject-banned");
    }
    let by_ticket = format!("/v1/poll?channel=order:o-1&wait=0&ticket={ticket}");
    reader.get(&by_ticket).anonymous().send().await.expect_problem(403, "subject-banned");
    let url = format!("{}/ws", reader.base());
    for bearer in [vec![], vec![("authorization", format!("Bearer {new}"))]] {
        let headers: Vec<_> = bearer.iter().map(|(name, value)| (*name, value.as_str())).collect();
        let mut refused = Socket::open(&url, &headers).await.expect("the upgrade succeeds");
        let token = if headers.is_empty() { new.as_str() } else { "" };
        refused.send(&json!({"id": 1, "connect": {"token": token}})).await;
        assert_eq!(refused.closed().await, 4503);
    }
    // Staff cannot create an order for the subject, except from an import of history.
    let order = json!({"customer_id": subject});
    system.post("/v1/orders").token(&clerk).json(order).send().await.expect_problem(422, "customer-banned");
    for (is_history, expected) in [(false, 422), (true, 201)] {
        let line = json!({"type": "create_order", "customer_id": subject, "history": is_history}).to_string();
        let answer = system.post("/v1/commands").token(&clerk).body("application/x-ndjson", line).send().await;
        assert_eq!(answer.expect(200).json()["status"], expected);
    }
    // Others are not affected, and staff still see the orders.
    let item = json!({"sku": "pen", "quantity": 1, "unit_price": "1.00"});
    system.post("/v1/orders/o-1/items").token(&clerk).json(item).send().await.expect(200);
    other.next_publication("order:o-1").await;
    let listed = reader.get("/v1/admin/bans").send().await.expect(200).json();
    assert_eq!(listed["items"].as_array().map(Vec::len), Some(1), "{listed}");
    assert_eq!(listed["items"][0]["reason"], "chargeback fraud");

    // The ban survives a crash.
    system.restart().await;
    system.get("/v1/orders/o-1").token(&new).send().await.expect_problem(403, "subject-banned");
    let reader = system.reader().clone();
    // A token that was revoked stays revoked when the subject is reinstated.
    reader.post("/v1/admin/revocations").json(json!({"subject": subject})).send().await.expect(201);
    reinstate(&reader, subject).await.expect(204);
    reinstate(&reader, subject).await.expect_problem(404, "ban-not-found");
    system.get("/v1/orders/o-1").token(&ada).send().await.expect_problem(401, "token-revoked");
    let later = issued(subject, jiff::Timestamp::now().as_second() + 3);
    system.get("/v1/orders/o-1").token(&later).send().await.expect(200);
    assert_eq!(reader.get("/v1/admin/bans").send().await.expect(200).json()["items"], json!([]));
}

async fn a_ban_ends_at_its_time(system: TestSystem) {
    let reader = system.reader();
    let ada = token("ada", "customer");
    let until = jiff::Timestamp::now() + jiff::SignedDuration::from_secs(3);
    ban(reader, json!({"subject": "ada", "reason": "cool down", "until": until.to_string()})).await.expect(201);
    system.get("/v1/orders").token(&ada).send().await.expect_problem(403, "subject-banned");
    let ended = async || (system.get("/v1/orders").token(&ada).send().await.status == 200).then_some(());
    until_within(Duration::from_secs(10), "the ban ends", ended).await;
    assert!(jiff::Timestamp::now() >= until, "not before its time");
    assert_eq!(reader.get("/v1/admin/bans").send().await.expect(200).json()["items"], json!([]));
    reinstate(reader, "ada").await.expect_problem(404, "ban-not-found");
}

/// Every process applies a ban, whatever its roles, with NATS and without.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_ban_reaches_every_process() {
    for without in ["", "DOCKET_NATS_URL"] {
        let roles = ["write,react", "project", "read", "read"];
        let system = TestSystem::builder(Mode::Scaled).processes(&roles).without(without).start().await;
        create(&system, "o-1", "ada").await;
        system.settled().await;
        let ada = token("ada", "customer");
        let far = &system.dockets[3].client;
        let mut socket = Socket::connect(far, &ada).await;
        socket.subscribe("order:o-1").await;
        let started = Instant::now();
        ban(system.reader(), json!({"subject": "ada", "reason": "a test"})).await.expect(201);
        assert_eq!(socket.closed().await, 4503);
        let is_refused = async |client: &Client, path: &str| {
            let ask = async || (client.get(path).token(&ada).send().await.status == 403).then_some(());
            until_within(BANNED_WITHIN, "the process refuses the subject", ask).await;
        };
        // Each role answers this path.
        for docket in &system.dockets {
            is_refused(&docket.client, "/v1/rate-limit").await;
        }
        assert!(started.elapsed() < BANNED_WITHIN, "{without:?}: after {:?}", started.elapsed());
        system.post("/v1/orders/o-1/confirm").token(&ada).send().await.expect_problem(403, "subject-banned");
        reinstate(far, "ada").await.expect(204);
        let is_back = async || {
            let answer = system.writer().get("/v1/rate-limit").token(&ada).send().await;
            (answer.status == 200).then_some(())
        };
        until_within(BANNED_WITHIN, "the subject is accepted again", is_back).await;
    }
}

/// nginx compares decoded paths, but must pass them on as they are.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ids_and_bans_pass_through_nginx() {
    let system = TestSystem::builder(Mode::Scaled).processes(&["write,react,project", "read"]).start().await;
    let nginx = nginx(&system.dockets).await;
    let client = &nginx.client;
    for [customer, order, sku] in &names() {
        let item = |sku: &str| json!({"sku": sku, "quantity": 1, "unit_price": "1.00"});
        let body = json!({"order_id": order, "customer_id": customer, "items": [item(sku), item("second")]});
        let path = client.post("/v1/orders").json(body).send().await.expect(201);
        let path = path.header("location").expect("a location").to_owned();
        let quantity = |quantity: u32| json!({"quantity": quantity});
        client.put(&format!("{path}/items/{}", encoded(sku))).json(quantity(2)).send().await.expect(200);
        client.put(&format!("{path}/items?sku={}", encoded(sku))).json(quantity(3)).send().await.expect(200);
        client.post(&format!("{path}/items")).json(item("third")).send().await.expect(200);
        let removed = client.delete(&format!("{path}/items?sku=second")).send().await.expect(200).position();
        let view = client.get(&format!("{path}?min_position={removed}&wait_ms=10000")).send().await.expect(200).json();
        assert_eq!((&view["order_id"], &view["quantity"]), (&json!(order), &json!(4)), "{view}");
        let of_customer = client.get(&format!("/v1/customers/{}", encoded(customer))).send().await.expect(200);
        assert_eq!(of_customer.json()["customer_id"], *customer);
        let channel = encoded(&format!("order:{order}"));
        client.get(&format!("/v1/poll?channel={channel}&wait=0")).send().await.expect(200);
        ban(client, json!({"subject": customer, "reason": "a test"})).await.expect(201);
        reinstate(client, customer).await.expect(204);
    }
}

/// The settings name the cookie, and decide whether a token may be in the query.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_cookie_and_the_query_follow_the_settings() {
    let ada = token("ada", "customer");
    let own = |system: &TestSystem| ("origin", system.reader().base().to_owned());
    let poll = |system: &TestSystem, query: &str, cookie: &str| {
        let (name, value) = own(system);
        let request = system.get(&format!("/v1/poll?channel=order:o-1&wait=0{query}")).anonymous();
        request.header(name, &value).header("cookie", cookie).send()
    };
    let system = TestSystem::embedded().await;
    create(&system, "o-1", "ada").await;
    system.settled().await;
    let problem = poll(&system, &format!("&token={ada}"), "a=b").await.expect_problem(401, "authentication-required");
    assert!(problem["detail"].as_str().is_some_and(|text| text.contains("token_in_query")), "{problem}");
    poll(&system, "", &format!("docket_token={ada}")).await.expect(200);
    poll(&system, "", &format!("__Host-shop={ada}")).await.expect_problem(401, "authentication-required");
    let with_header = system.get(&format!("/v1/poll?channel=order:o-1&wait=0&token={ada}")).token(&ada);
    with_header.send().await.expect_problem(400, "invalid-query");

    let builder = TestSystem::builder(Mode::Embedded)
        .setting("DOCKET_COOKIE_NAME", "__Host-shop")
        .setting("DOCKET_TOKEN_IN_QUERY", "true")
        .setting("DOCKET_LOG_LEVEL", "trace");
    let system = builder.start().await;
    create(&system, "o-1", "ada").await;
    system.settled().await;
    poll(&system, "", &format!("__Host-shop={ada}")).await.expect(200);
    let problem =
        poll(&system, "", &format!("docket_token={ada}")).await.expect_problem(401, "authentication-required");
    assert!(problem["detail"].as_str().is_some_and(|text| text.contains("__Host-shop")), "{problem}");
    poll(&system, &format!("&token={ada}"), "a=b").await.expect(200);
    poll(&system, "&token=nonsense", "a=b").await.expect_problem(401, "invalid-token");
    let live = format!("{}/v1/live?channel=order:o-1&token={ada}", system.reader().base());
    let mut live =
        reqwest::get(live).await.expect("a response").error_for_status().expect("the status is 200").bytes_stream();
    assert!(live.next().await.is_some());
    let mut socket =
        Socket::open(&format!("{}/ws?token={ada}", system.reader().base()), &[]).await.expect("a WebSocket");
    assert!(socket.call("connect", json!({})).await["connect"].is_object());
    socket.subscribe("order:o-1").await;
    // Only the transports of live updates accept it.
    let query = system.get(&format!("/v1/orders/o-1?token={ada}")).anonymous().send().await;
    query.expect_problem(401, "authentication-required");
    drop((live, socket));
    let signature = ada.rsplit('.').next().expect("a signature").to_owned();
    let log = until("the requests are logged", async || {
        Some(system.dockets[0].log()).filter(|log| log.contains("token=***"))
    })
    .await;
    assert!(!log.contains(&signature), "the log must hide the token");
}

/// The identity providers of `tests/clients/issuer.py`. They end when the value is dropped.
struct Providers {
    _child: Child,
    providers: Vec<Value>,
}

impl Providers {
    async fn start() -> Self {
        let python = target_directory().join("tools/python");
        assert!(python.join("authlib").is_dir(), "authlib is missing; install it with: tests/run install");
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("clients/issuer.py");
        let mut command = Command::new("python3");
        command.arg(script).env("PYTHONPATH", python).stdin(Stdio::piped()).stdout(Stdio::piped()).kill_on_drop(true);
        let mut child = command.spawn().expect("python3 starts");
        let mut lines = BufReader::new(child.stdout.take().expect("standard output is piped")).lines();
        let mut providers = Vec::new();
        loop {
            let line = lines.next_line().await.expect("the output is readable").expect("the script runs");
            let provider: Value = serde_json::from_str(&line).expect("a line is JSON");
            match provider["name"].is_string() {
                true => providers.push(provider),
                false => return Self { _child: child, providers },
            }
        }
    }

    async fn system(provider: &Value, mode: Mode) -> TestSystem {
        let settings = provider["settings"].as_object().expect("settings");
        let builder = settings.iter().fold(TestSystem::builder(mode), |builder, (name, value)| {
            builder.setting(name, value.as_str().expect("a text"))
        });
        // Without a secret: only the provider's keys verify.
        builder.without("DOCKET_JWT_SECRET").start().await
    }
}

/// Returns what is wrong with the answers to a token.
async fn fault(system: &TestSystem, case: &Value) -> Option<String> {
    let token = case["token"].as_str().expect("a token");
    let get = async |path: &str| system.reader().get(path).token(token).send().await;
    if let Some(reason) = case["expect"].as_str() {
        let answer = get("/v1/rate-limit").await;
        let problem = answer.json();
        let detail = problem["detail"].as_str().unwrap_or_default();
        let is_refused = answer.status == 401 && problem["type"] == "/problems/invalid-token";
        let challenge = answer.header("www-authenticate").unwrap_or_default();
        return (!is_refused || !detail.contains(reason) || !challenge.contains("error_description"))
            .then(|| format!("expected a refusal with `{reason}`, got {} {problem}", answer.status));
    }
    let (subject, role) = (&case["expect"][0], case["expect"][1].as_str().expect("a role"));
    let found = [get("/v1/rate-limit").await, get("/v1/reports/sales?by=day").await, get("/v1/projections").await];
    let found = found.map(|answer| answer.status);
    let expected = match role {
        "customer" => [200, 403, 403],
        "staff" => [200, 200, 403],
        _ => [200; 3],
    };
    if found != expected {
        return Some(format!("expected {role}: {expected:?}, got {found:?}"));
    }
    let order = |customer: Value| system.post("/v1/orders").token(token).json(json!({"customer_id": customer})).send();
    let (own, foreign) = (order(subject.clone()).await.status, order(json!("somebody else")).await.status);
    let may = if role == "customer" { 403 } else { 201 };
    ((own, foreign) != (201, may)).then(|| format!("orders of {subject}: {own}, of somebody else: {foreign}"))
}

/// Tokens in the shapes of common identity providers, with the settings of `docs/identity.md`.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn tokens_of_identity_providers_are_accepted() {
    let providers = Providers::start().await;
    let (mut faults, mut count) = (Vec::new(), 0);
    for (at, provider) in providers.providers.iter().enumerate() {
        // Tokens do not depend on the mode, so one provider stands for all in scaled mode.
        for mode in [Mode::Embedded, Mode::Scaled].into_iter().take(if at == 0 { 2 } else { 1 }) {
            let system = Providers::system(provider, mode).await;
            for case in provider["cases"].as_array().expect("cases") {
                count += 1;
                if let Some(fault) = fault(&system, case).await {
                    faults.push(format!("{mode:?}, {}, {}: {fault}", provider["name"], case["name"]));
                }
            }
        }
    }
    assert!(faults.is_empty() && count > 40, "{} of {count} cases:\n{}", faults.len(), faults.join("\n"));
}
