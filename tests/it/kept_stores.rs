//! The current release opens stores of an earlier one. `tests/data/stores` contains one store for each backend, with
//! the responses that the earlier release gave.

use std::path::{Path, PathBuf};
use std::time::Duration;

use futures::StreamExt;
use serde_json::{Value, json};
use tests::client::{Answer, Client, signed, token};
use tests::socket::Socket;
use tests::system::{Mode, TestSystem};
use tests::wait::until;

/// Time limit for a resumed event stream to reach the head of the log.
const STREAM_DEADLINE: Duration = Duration::from_secs(20);
/// The longest retention of idempotency keys that can be set: ten years.
const IDEMPOTENCY_HOURS_MAX: &str = "87840";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_kept_sqlite_store_opens_and_answers_as_before() {
    a_kept_store_opens(Mode::Embedded, "sqlite").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_kept_postgres_store_opens_and_answers_as_before() {
    a_kept_store_opens(Mode::Scaled, "postgres").await;
}

/// Runs all checks on one store. The steps that change the store come last.
async fn a_kept_store_opens(mode: Mode, name: &str) {
    let store = folder(name);
    let recorded = std::fs::read(store.join("expected.json")).expect("expected.json is next to the store");
    let recorded: Value = serde_json::from_slice(&recorded).expect("expected.json is JSON");
    let builder = TestSystem::builder(mode).setting("DOCKET_IDEMPOTENCY_HOURS", IDEMPOTENCY_HOURS_MAX);
    let mut system = builder.store(store).stopped().await;
    system.cli(&["migrate"]).await;
    the_read_models_have_their_recorded_positions(&system, &recorded).await;
    system.start().await;
    assert_eq!(settled(&system, &recorded).await, number(&recorded, "head"), "opening a store must write no events");
    the_read_models_equal_the_log(&system, &recorded).await;
    every_query_answers_as_before(&system, &recorded).await;
    cursors_resume(&system, &recorded).await;
    sockets_recover(&system, &recorded).await;
    idempotency_keys_are_replayed(&system, &recorded).await;
    revoked_tokens_are_refused(&system, &recorded).await;
    assert_eq!(dead_letters(&system).await, recorded["dead_letters"]);
    assert_eq!(settled(&system, &recorded).await, number(&recorded, "head"), "none of these steps may write an event");
    orders_of_the_store_accept_commands(&system, &recorded).await;
    a_parked_order_continues_without_its_event(&system, &recorded).await;
    old_generations_can_be_restored(&system, &recorded).await;
    a_replay_skips_discarded_events(&system, &recorded).await;
    // The store opens again with the events that the current release has written.
    system.restart().await;
    system.settled().await;
    system.cli(&["verify"]).await;
}

fn folder(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("data/stores").join(name)
}

/// Waits until the recorded read models are at the head of the log, and returns the head. Read models that are newer than
/// the store are built only after the parked order is settled.
async fn settled(system: &TestSystem, recorded: &Value) -> u64 {
    let known: Vec<&str> = list(recorded, "projections").iter().map(|known| text(known, "name")).collect();
    until("the recorded read models are at the head", async || {
        let answer = system.get("/v1/projections").send().await.expect(200).json();
        let mut items = answer["items"].as_array().expect("items").iter();
        let is_there = |item: &Value| !known.contains(&text(item, "name")) || item["position"] == answer["head"];
        items.all(is_there).then(|| number(&answer, "head"))
    })
    .await
}

/// Returns a list of the recorded responses.
fn list<'a>(recorded: &'a Value, name: &str) -> &'a [Value] {
    let found = recorded[name].as_array().unwrap_or_else(|| panic!("the record has no list {name}"));
    assert!(!found.is_empty(), "the record's list {name} is empty");
    found
}

fn number(entry: &Value, name: &str) -> u64 {
    entry[name].as_u64().unwrap_or_else(|| panic!("{name} is not a number in {entry}"))
}

fn text<'a>(entry: &'a Value, name: &str) -> &'a str {
    entry[name].as_str().unwrap_or_else(|| panic!("{name} is not a text in {entry}"))
}

/// Returns a token for an entry's `subject` and `role`.
fn token_of(entry: &Value) -> String {
    token(text(entry, "subject"), text(entry, "role"))
}

/// Checks that each recorded field has the recorded value. A later release may add fields to a response, but no
/// attributes to an order.
fn assert_holds(found: &Value, recorded: &Value, what: &str) {
    match (found, recorded) {
        (Value::Object(found), Value::Object(recorded)) => {
            for (name, value) in recorded {
                let found = found.get(name).unwrap_or_else(|| panic!("{what} does not contain {name}"));
                match &**name {
                    "attributes" => assert_eq!(found, value, "{what}.{name}"),
                    _ => assert_holds(found, value, &format!("{what}.{name}")),
                }
            }
        }
        (Value::Array(found), Value::Array(recorded)) => {
            assert_eq!(found.len(), recorded.len(), "{what}: {found:?}");
            for (at, (found, recorded)) in found.iter().zip(recorded).enumerate() {
                assert_holds(found, recorded, &format!("{what}[{at}]"));
            }
        }
        _ => assert_eq!(found, recorded, "{what}"),
    }
}

/// Runs before the server starts: in the PostgreSQL store, the read models are behind the log.
async fn the_read_models_have_their_recorded_positions(system: &TestSystem, recorded: &Value) {
    let found: Value = serde_json::from_str(&system.cli(&["projections", "--json"]).await).expect("the output is JSON");
    assert_eq!(found["head"], recorded["head"]);
    let items = found["items"].as_array().expect("items");
    for known in list(recorded, "projections") {
        let row = items.iter().find(|row| row["name"] == known["name"]);
        assert_eq!(row.map(|row| &row["position"]), Some(&recorded["projected"]), "{known}");
    }
    let behind = number(recorded, "projected") < number(recorded, "head");
    assert_eq!(behind, system.mode == Mode::Scaled, "only the PostgreSQL store must be behind");
}

async fn the_read_models_equal_the_log(system: &TestSystem, recorded: &Value) {
    let names = list(recorded, "projections").iter().map(|known| text(known, "name"));
    let arguments: Vec<&str> = ["verify", "--json"].into_iter().chain(names).collect();
    let found: Value = serde_json::from_str(&system.cli(&arguments).await).expect("the output is JSON");
    assert_eq!((&found["differences"], &found["missing_events"]), (&json!(0), &json!(0)), "{found}");
    let projections = found["projections"].as_array().expect("projections");
    for known in list(recorded, "projections") {
        let row = projections.iter().find(|row| row["name"] == known["name"]);
        let row = row.unwrap_or_else(|| panic!("{known} is not verified: {found}"));
        assert_eq!((&row["checked"], &row["position"]), (&json!(true), &recorded["head"]), "{row}");
        assert!(number(row, "rows") > 0, "{row}");
    }
}

async fn every_query_answers_as_before(system: &TestSystem, recorded: &Value) {
    for query in list(recorded, "queries") {
        let path = text(query, "path");
        let answer = system.get(path).send().await.expect(200);
        assert_holds(&answer.json(), &query["body"], path);
        assert_eq!(answer.header("etag"), query["etag"].as_str(), "{path}");
    }
}

/// Each cursor works for a poll and for an event stream, whichever of them issued it.
async fn cursors_resume(system: &TestSystem, recorded: &Value) {
    // The cursor of the head in the format of the current release.
    let head = format!("2.{}.core={}", text(recorded, "epoch"), number(recorded, "head"));
    for known in list(recorded, "cursors") {
        let (cursor, token) = (text(known, "cursor"), token_of(known));
        let channels = list(known, "channels").iter().map(|channel| channel.as_str().expect("a channel"));
        let query = channels.map(|channel| format!("channel={channel}")).collect::<Vec<_>>().join("&");
        let path = format!("/v1/poll?{query}&cursor={}&wait=0", cursor.replace('+', "%2B"));
        let polled = system.get(&path).token(&token).send().await.expect(200).json();
        assert_eq!(polled["cursor"], head, "a poll after {cursor}");
        let changes: Vec<_> = polled["events"].as_array().expect("events").iter().map(change).collect();
        let expected = by_position(known["follows"].as_array().expect("changes").clone());
        assert_eq!(by_position(changes), expected, "a poll after {cursor}");
        let streamed = stream(system.reader(), &query, &token, cursor, &head).await;
        assert_eq!(by_position(streamed), expected, "a stream after {cursor}");
    }
}

/// Sorts changes by position and channel, because releases publish one change on its channels in different orders.
fn by_position(mut changes: Vec<Value>) -> Vec<Value> {
    changes.sort_by_key(|change| (change[1].as_u64(), change[0].as_str().map(str::to_owned)));
    changes
}

/// Returns the channel, the position and the type of a change. Panics at a snapshot or a `reset`.
fn change(event: &Value) -> Value {
    assert_eq!(event["event"], "pub", "the cursor does not resume: {event}");
    json!([event["channel"], event["offset"], event["data"]["type"]])
}

/// Returns the changes that an event stream sends after the id `after`, up to the id `until`.
async fn stream(client: &Client, query: &str, token: &str, after: &str, until: &str) -> Vec<Value> {
    let request = reqwest::Client::new().get(format!("{}/v1/live?{query}", client.base()));
    let answer = request.bearer_auth(token).header("last-event-id", after).send().await.expect("a response");
    let mut body = answer.error_for_status().expect("the status is 200").bytes_stream();
    let (mut received, mut changes) = (String::new(), vec![]);
    let deadline = tokio::time::Instant::now() + STREAM_DEADLINE;
    loop {
        let bytes = tokio::time::timeout_at(deadline, body.next()).await;
        let bytes = bytes.unwrap_or_else(|_| panic!("the stream after {after} does not reach {until}: {changes:?}"));
        received +=
            std::str::from_utf8(&bytes.expect("the stream continues").expect("a complete chunk")).expect("UTF-8");
        while let Some((event, rest)) = received.split_once("\n\n") {
            let field = |name: &str| event.lines().find_map(|line| line.strip_prefix(name));
            changes.extend(field("data: ").map(|data| change(&serde_json::from_str(data).expect("data is JSON"))));
            if field("id: ") == Some(until) {
                return changes;
            }
            received = rest.to_owned();
        }
    }
}

async fn sockets_recover(system: &TestSystem, recorded: &Value) {
    for known in list(recorded, "sockets") {
        let mut socket = Socket::connect(system.reader(), &token_of(known)).await;
        let (offset, epoch) = (&known["offset"], &known["epoch"]);
        let command = json!({"channel": known["channel"], "recover": true, "offset": offset, "epoch": epoch});
        let reply = socket.call("subscribe", command).await["subscribe"].clone();
        assert_eq!((&reply["recovered"], &reply["epoch"]), (&json!(true), epoch), "{reply}");
        assert_eq!(reply["offset"], recorded["head"], "{reply}");
        let publications = reply["publications"].as_array().cloned().unwrap_or_default();
        let changes: Vec<_> =
            publications.iter().map(|found| json!([found["offset"], found["data"]["type"]])).collect();
        assert_eq!(json!(changes), known["follows"], "{} after {offset}", known["channel"]);
    }
}

/// Sends a recorded command with this body.
async fn send(system: &TestSystem, command: &Value, body: Option<&str>) -> Answer {
    let method = text(command, "method").parse().expect("an HTTP method");
    let mut request = system.writer().request(method, text(command, "path")).token(&token_of(command));
    if let Some(key) = command["key"].as_str() {
        request = request.key(key);
    }
    if let Some(body) = body {
        request = request.body("application/json", body.to_owned());
    }
    request.send().await
}

fn assert_same_answer(answer: Answer, command: &Value) -> Answer {
    let answer = answer.expect(u16::try_from(number(command, "status")).expect("a status"));
    assert_eq!(String::from_utf8_lossy(&answer.body), text(command, "answer"), "{command}");
    assert_eq!(answer.header("etag"), command["etag"].as_str(), "{command}");
    assert_eq!(answer.header("location"), command["location"].as_str(), "{command}");
    answer
}

async fn idempotency_keys_are_replayed(system: &TestSystem, recorded: &Value) {
    for command in list(recorded, "idempotency") {
        let body = command["body"].as_str();
        let again = assert_same_answer(send(system, command, body).await, command);
        assert_eq!(again.header("idempotency-replayed"), Some("true"), "{command}");
        // The additional blank makes this another request.
        let other = body.map_or("{}".to_owned(), |body| format!("{body} "));
        send(system, command, Some(&other)).await.expect_problem(422, "idempotency-key-reused");
    }
}

/// A token that was issued before the revocation of its subject is refused, and so is a token that was revoked by its
/// id.
async fn revoked_tokens_are_refused(system: &TestSystem, recorded: &Value) {
    let found = system.get("/v1/admin/revocations").send().await.expect(200).json();
    assert_holds(&found["items"], &recorded["revoked"], "revocations");
    let expires = jiff::Timestamp::now().as_second() + 3_600;
    for revoked in list(recorded, "revoked") {
        let (subject, id) = match text(revoked, "kind") {
            "subject" => (text(revoked, "value"), "another"),
            _ => ("somebody", text(revoked, "value")),
        };
        let issued = |at: u64, id: &str| {
            let mut claims = json!({"sub": subject, "role": "customer", "iss": "docket", "aud": "docket"});
            (claims["jti"], claims["iat"], claims["exp"]) = (json!(id), json!(at), json!(expires));
            signed(&claims)
        };
        let at = number(revoked, "revoked_at");
        system.get("/v1/orders").token(&issued(at, id)).send().await.expect_problem(401, "token-revoked");
        // A later token with another id is valid.
        system.get("/v1/orders").token(&issued(at + 1, "another")).send().await.expect(200);
    }
}

/// Orders of the store accept commands: one order has a snapshot, the other was created by stock cqrs-es code. The
/// total in the event of a confirmation follows from the snapshot and the events after it.
async fn orders_of_the_store_accept_commands(system: &TestSystem, recorded: &Value) {
    for command in list(recorded, "commands") {
        let answer = assert_same_answer(send(system, command, command["body"].as_str()).await, command);
        let (mut order, mut event) = (command["order"].clone(), command["event"].clone());
        let path = format!("/v1/orders/{}", text(&order, "order_id"));
        let after = format!("min_position={}&wait_ms=10000", answer.position());
        let found = system.get(&format!("{path}?{after}")).send().await.expect(200).json();
        let history = system.get(&format!("{path}/events?limit=200&{after}")).send().await.expect(200).json();
        // These fields have the time of this command, not of the recorded one.
        order.as_object_mut().expect("an order").remove("updated_at");
        event.as_object_mut().expect("an event").remove("occurred_at");
        assert_holds(&found, &order, &path);
        let last = history["items"].as_array().and_then(|items| items.last());
        assert_holds(last.expect("an event"), &event, &path);
    }
    settled(system, recorded).await;
    let names = list(recorded, "projections").iter().map(|known| text(known, "name"));
    system.cli(&["verify"].into_iter().chain(names).collect::<Vec<_>>()).await;
}

/// Returns the dead letters without the fields that depend on the retries: number of attempts, last reason, time.
async fn dead_letters(system: &TestSystem) -> Value {
    let found: Value =
        serde_json::from_str(&system.cli(&["dead-letters", "list", "--json"]).await).expect("the output is JSON");
    // The field that the earlier release called `order_id` is now the id of any aggregate.
    let fields = [
        ("position", "position"),
        ("order_id", "aggregate_id"),
        ("sequence", "sequence"),
        ("event_type", "event_type"),
        ("state", "state"),
    ];
    let letters = found["items"].as_array().expect("items").iter();
    letters
        .map(|letter| fields.iter().map(|(then, now)| ((*then).to_owned(), letter[*now].clone())).collect::<Value>())
        .collect()
}

/// A parked order blocks a replay until its event is discarded.
async fn a_parked_order_continues_without_its_event(system: &TestSystem, recorded: &Value) {
    let refused = system.try_cli(&["replay", "--all"]).await;
    let stderr = String::from_utf8_lossy(&refused.stderr);
    assert!(
        !refused.status.success() && stderr.contains("parked"),
        "a replay may skip only discarded events: {stderr}"
    );
    assert_eq!(dead_letters(system).await, recorded["dead_letters"]);
    for letter in list(recorded, "dead_letters").iter().filter(|letter| letter["state"] == "parked") {
        system.cli(&["dead-letters", "discard", &letter["position"].to_string()]).await;
    }
    orders_continue_after_discarded_events(system, recorded).await;
    // The read models that are newer than the store are built now.
    system.settled().await;
}

/// Checks that all dead letters are discarded and that their orders contain the later events.
async fn orders_continue_after_discarded_events(system: &TestSystem, recorded: &Value) {
    let found = dead_letters(system).await;
    let expected: Value = list(recorded, "dead_letters").iter().cloned().map(discarded).collect();
    assert_eq!(found, expected);
    let path = "/v1/orders/discarded";
    let order =
        list(recorded, "queries").iter().find(|query| query["path"] == path).expect("the record has this query");
    for (path, order) in [(path, &order["body"]), ("/v1/orders/parked", &recorded["after_discard"])] {
        assert_holds(&system.get(path).send().await.expect(200).json(), order, path);
    }
}

fn discarded(mut letter: Value) -> Value {
    letter["state"] = json!("discarded");
    letter
}

/// The generations that served before the earlier release's own replay are brought up to date from their old positions.
/// This is skipped for a projection that has a newer version now.
async fn old_generations_can_be_restored(system: &TestSystem, recorded: &Value) {
    let status = async |name: &Value| {
        let answer = system.get("/v1/projections").send().await.expect(200).json();
        let found = answer["items"].as_array().expect("items").iter().find(|row| row["name"] == *name).cloned();
        found.unwrap_or_else(|| panic!("{name} is not in {answer}"))
    };
    for known in list(recorded, "projections") {
        let row = status(&known["name"]).await;
        if row["version"] != known["version"] {
            continue;
        }
        assert_holds(&row, known, "the projection");
        system.cli(&["replay", text(known, "name"), "--rollback"]).await;
        assert_eq!(status(&known["name"]).await["generation"], known["older_generation"], "{known}");
    }
    system.cli(&["verify"]).await;
}

async fn a_replay_skips_discarded_events(system: &TestSystem, recorded: &Value) {
    system.cli(&["replay", "--all"]).await;
    system.settled().await;
    orders_continue_after_discarded_events(system, recorded).await;
    system.cli(&["verify"]).await;
}
