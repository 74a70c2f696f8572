//! The guarantee of the push layer: a client that reconnects with a position misses no change and sees none twice,
//! whatever failed in between and whichever process it reaches.

use std::pin::Pin;
use std::time::{Duration, Instant};

use futures::{FutureExt, Stream, StreamExt};
use reqwest::Method;
use serde_json::{Value, json};
use tests::client::{Client, signed, token};
use tests::fold::read_log;
use tests::listener::{Listener, Transport, cursor_position};
use tests::proxy::Proxy;
use tests::socket::{Socket, get_without_reading};
use tests::system::{Mode, TestSystem};
use tests::wait::until_within;

tests::stories![
    a_socket_resumes_from_the_log,
    a_stream_and_a_poll_resume_from_the_log,
    a_stream_that_is_cut_inside_a_change_resumes_with_the_rest,
    a_poll_of_large_changes_misses_nothing,
    too_many_missed_changes_cause_a_reset,
    unread_large_orders_use_little_memory,
    readers_keep_up_with_an_import,
    every_transport_survives_a_crash,
    a_ticket_opens_one_connection,
    a_page_can_subscribe_only_from_an_allowed_origin,
    preflight_requests_of_allowed_origins_are_accepted,
    a_socket_gets_an_error_code_for_bad_input,
    polls_of_the_projections_channel_are_paced,
    a_customers_resumes_are_limited_by_a_replay_quota,
    a_token_revoked_before_connect_is_refused,
    no_snapshot_is_newer_than_the_cursor_of_its_response,
    a_revoked_token_ends_every_connection,
    a_fresh_token_may_have_another_role,
    only_the_slow_client_is_disconnected,
    patches_applied_in_order_give_the_view,
    presence_shows_the_subscribers_of_an_order,
    connection_and_command_limits_are_enforced,
];

async fn create(system: &TestSystem, order: &str, customer: &str) {
    system.post("/v1/orders").json(json!({"order_id": order, "customer_id": customer})).send().await.expect(201);
}

async fn add(system: &TestSystem, order: &str, sku: &str) -> u64 {
    let item = json!({"sku": sku, "quantity": 1, "unit_price": "1.00", "category": "OFFICE"});
    system.post(&format!("/v1/orders/{order}/items")).json(item).send().await.expect(200).position()
}

/// Returns the positions of an order's events, or of all orders' events.
async fn positions(system: &TestSystem, order: Option<&str>) -> Vec<u64> {
    let log = read_log(system.reader()).await;
    log.iter().filter(|event| order.is_none_or(|order| event.order_id == order)).map(|event| event.position).collect()
}

/// Checks that each publication of a reply names the one before it. Returns the offsets of the publications.
fn recovered(reply: &Value, after: u64) -> Vec<u64> {
    assert_eq!(reply["subscribe"]["recovered"], true, "{reply}");
    let mut last = after;
    let publications = reply["subscribe"]["publications"].as_array().expect("publications");
    for publication in publications {
        let previous: u64 = publication["tags"]["prev"].as_str().expect("prev").parse().expect("a number");
        assert!(previous <= last, "the change at {previous} was not received: {publication}");
        last = publication["offset"].as_u64().expect("an offset");
        assert_eq!(publication["data"]["position"], last, "{publication}");
    }
    publications.iter().map(|publication| publication["offset"].as_u64().expect("an offset")).collect()
}

async fn a_socket_resumes_from_the_log(system: TestSystem) {
    create(&system, "o-1", "ada").await;
    create(&system, "o-2", "bob").await;
    for number in 0..4 {
        add(&system, "o-1", &format!("sku-{number}")).await;
        add(&system, "o-2", &format!("sku-{number}")).await;
    }
    system.post("/v1/orders/o-2/confirm").send().await.expect(200);
    let head = system.settled().await;
    let mut socket = Socket::connect(system.reader(), &token("clerk", "staff")).await;
    let first = socket.call("subscribe", json!({"channel": "orders"})).await["subscribe"].clone();
    assert_eq!((first["recoverable"].clone(), first["offset"].as_u64()), (json!(true), Some(head)), "{first}");
    let epoch = first["epoch"].as_str().expect("an epoch").to_owned();
    let of = async |order: Option<&str>| positions(&system, order).await;
    let (one, all) = (of(Some("o-1")).await, of(None).await);
    let resume =
        |channel: &str, offset: u64| json!({"channel": channel, "recover": true, "offset": offset, "epoch": &epoch});
    socket.call("unsubscribe", json!({"channel": "orders"})).await;
    for (channel, expected) in
        [("order:o-1", &one), ("customer:ada", &one), ("orders", &all), ("reports:sales", &vec![head])]
    {
        for offset in [0, 2, 5, head] {
            let reply = socket.call("subscribe", resume(channel, offset)).await;
            let missed: Vec<_> = expected.iter().copied().filter(|position| *position > offset).collect();
            assert_eq!(recovered(&reply, offset), missed, "{channel} after {offset}");
            socket.call("unsubscribe", json!({"channel": channel})).await;
        }
    }
    // With the epoch of another log or a position after the head, the reply contains a new snapshot.
    for wrong in [
        json!({"channel": "orders", "recover": true, "offset": 1, "epoch": "another"}),
        resume("orders", head + 1_000),
        resume("orders", u64::MAX),
    ] {
        let reply = socket.call("subscribe", wrong).await;
        assert_eq!(
            (&reply["subscribe"]["recovered"], &reply["subscribe"]["was_recovering"]),
            (&json!(false), &json!(true))
        );
        assert_eq!(reply["subscribe"]["data"]["type"], "snapshot", "{reply}");
        socket.call("unsubscribe", json!({"channel": "orders"})).await;
    }
    // More changes were missed than a resume returns.
    let order = json!({"type": "create_order", "customer_id": "many"});
    let lines: String = (0..301).map(|_| format!("{order}\n")).collect();
    system.post("/v1/commands").body("application/x-ndjson", lines).send().await.expect(200);
    let head = system.settled().await;
    let reply = socket.call("subscribe", resume("orders", head - 301)).await;
    assert_eq!(reply["subscribe"]["recovered"], false, "{reply}");
    socket.call("unsubscribe", json!({"channel": "orders"})).await;
    let reply = socket.call("subscribe", resume("orders", head - 300)).await;
    assert_eq!(recovered(&reply, head - 300).len(), 300);
    // Live publications continue after the head.
    let position = add(&system, "o-1", "later").await;
    let publication = socket.next_publication("orders").await;
    assert_eq!(
        (publication["offset"].as_u64(), &publication["tags"]["prev"]),
        (Some(position), &json!(head.to_string()))
    );
}

async fn a_stream_and_a_poll_resume_from_the_log(system: TestSystem) {
    create(&system, "o-1", "ada").await;
    create(&system, "o-2", "ada").await;
    system.settled().await;
    let path = "/v1/poll?channel=orders&channel=order:o-1&channel=customer:ada&wait=0";
    let first = system.get(path).send().await.expect(200).json();
    let kinds: Vec<_> = first["events"].as_array().expect("events").iter().map(|event| &event["event"]).collect();
    assert_eq!(kinds, ["snapshot"; 3], "{first}");
    let cursor = first["cursor"].as_str().expect("a cursor").to_owned();
    let again =
        |cursor: &str, wait: u64| format!("/v1/poll?channel=orders&channel=order:o-1&wait={wait}&cursor={cursor}");
    let nothing = system.get(&again(&cursor, 0)).send().await.expect(200).json();
    assert_eq!(nothing["events"], json!([]), "{nothing}");
    let (one, two) = (add(&system, "o-1", "pen").await, add(&system, "o-2", "ink").await);
    system.settled().await;
    // A cursor is valid for any set of channels.
    let polled = system.get(&again(&cursor, 5)).send().await.expect(200).json();
    let received: Vec<_> = polled["events"]
        .as_array()
        .expect("events")
        .iter()
        .map(|event| {
            (event["channel"].as_str().expect("a channel").to_owned(), event["offset"].as_u64().expect("an offset"))
        })
        .collect();
    assert_eq!(received, [("order:o-1".into(), one), ("orders".into(), one), ("orders".into(), two)], "{polled}");
    // A poll waits for the next change.
    let next = polled["cursor"].as_str().expect("a cursor").to_owned();
    let waiting = {
        let request = system.get(&again(&next, 20));
        tokio::spawn(request.send())
    };
    tokio::time::sleep(Duration::from_millis(300)).await;
    let started = Instant::now();
    let three = add(&system, "o-2", "paper").await;
    let waited = waiting.await.expect("the request ends").expect(200).json();
    assert!(started.elapsed() < Duration::from_secs(5), "the poll must end at once");
    assert_eq!(waited["events"][0]["offset"], three, "{waited}");
    // Invalid cursors.
    system.get(&again("nonsense", 0)).send().await.expect_problem(400, "invalid-query");
    let other = system.get(&again("1.another", 0)).send().await.expect(200).json();
    assert_eq!(other["events"][0]["event"], "reset", "{other}");
    // An event stream resumes in the same way.
    let ids: Vec<u64> = stream(system.reader(), "channel=orders", Some(&cursor), 3).await;
    assert_eq!(ids, [one, two, three]);
    for (query, status, slug) in [
        ("", 400, "invalid-query"),
        ("channel=order:nowhere", 404, "channel-not-found"),
        ("channel=nonsense", 404, "channel-not-found"),
        ("channel=orders&chanel=x", 400, "invalid-query"),
    ] {
        system.get(&format!("/v1/live?{query}")).send().await.expect_problem(status, slug);
    }
    let bob = token("bob", "customer");
    for (channel, status, slug) in [
        ("order:o-1", 404, "channel-not-found"),
        ("orders", 403, "forbidden"),
        ("customer:ada", 404, "channel-not-found"),
    ] {
        system.get(&format!("/v1/poll?channel={channel}")).token(&bob).send().await.expect_problem(status, slug);
    }
    system.get("/v1/live?channel=orders").anonymous().send().await.expect_problem(401, "authentication-required");
}

/// Returns the positions of the first `count` changes of an event stream, from their ids.
async fn stream(client: &Client, query: &str, last_event_id: Option<&str>, count: usize) -> Vec<u64> {
    let mut request =
        reqwest::Client::new().get(format!("{}/v1/live?{query}", client.base())).bearer_auth(token("clerk", "staff"));
    if let Some(id) = last_event_id {
        request = request.header("last-event-id", id);
    }
    let answer = request.send().await.expect("a response").error_for_status().expect("the status is 200");
    assert_eq!(answer.headers()["content-type"], "text/event-stream");
    let (mut body, mut text, mut ids) = (answer.bytes_stream(), String::new(), vec![]);
    let until = tokio::time::Instant::now() + Duration::from_secs(20);
    while ids.len() < count {
        let bytes = tokio::time::timeout_at(until, body.next()).await.expect("the next chunk in time");
        text += std::str::from_utf8(&bytes.expect("the stream continues").expect("a complete chunk")).expect("UTF-8");
        while let Some((event, rest)) = text.split_once("\n\n") {
            let id = event.lines().find_map(|line| line.strip_prefix("id: ")).filter(|_| event.contains("event: pub"));
            ids.extend(id.map(|id| cursor_position(id).expect("a position")));
            text = rest.to_owned();
        }
    }
    ids
}

/// A change is published on each of its channels, one after another. A client that is disconnected in between gets the
/// rest.
async fn a_stream_that_is_cut_inside_a_change_resumes_with_the_rest(system: TestSystem) {
    create(&system, "o-1", "ada").await;
    add(&system, "o-1", "pen").await;
    system.settled().await;
    // The channels are in the byte order of their names, which is the order in which a stream sends them.
    let channels = ["customer:ada", "order:o-1", "orders", "reports:sales"];
    let query = channels.map(|channel| format!("channel={channel}")).join("&");
    let first = system.get(&format!("/v1/poll?{query}&wait=0")).send().await.expect(200).json();
    let start = first["cursor"].as_str().expect("a cursor").to_owned();
    let mut live = events(system.reader(), &query, &start);
    let added = add(&system, "o-1", "ink").await;
    let confirmed = system.post("/v1/orders/o-1/confirm").send().await.expect(200).position();
    let of_added: Vec<_> = channels.iter().take(3).map(|channel| (added, *channel)).collect();
    let all = [of_added, channels.map(|channel| (confirmed, channel)).to_vec()].concat();
    let seen: Vec<_> = live.by_ref().take(all.len()).collect().await;
    let names = |events: &[(String, u64, String)]| -> Vec<(u64, String)> {
        events.iter().map(|(_, position, channel)| (*position, channel.clone())).collect()
    };
    let expected: Vec<_> = all.iter().map(|(position, channel)| (*position, (*channel).to_owned())).collect();
    assert_eq!(names(&seen), expected);
    for (at, (id, _, _)) in seen.iter().enumerate() {
        let rest: Vec<_> = events(system.reader(), &query, id).take(all.len() - at - 1).collect().await;
        assert_eq!(names(&rest), expected[at + 1..], "after {id}");
        // A client that resumes only some of the channels gets the rest of those.
        let fewer: Vec<_> =
            expected[at + 1..].iter().filter(|(_, channel)| channel.starts_with("or")).cloned().collect();
        let query = "channel=orders&channel=order:o-1";
        let rest: Vec<_> = events(system.reader(), query, id).take(fewer.len()).collect().await;
        assert_eq!(names(&rest), fewer, "after {id}");
    }
    // A client of the previous release has a cursor in the old format, which counts channel kinds in their old order.
    let epoch = start.split('.').nth(1).expect("an epoch");
    let old_order = ["order:o-1", "customer:ada", "orders", "reports:sales"];
    for known in 0..=old_order.len() {
        let old = if known == 0 { format!("{added}.{epoch}") } else { format!("{added}+{known}.{epoch}") };
        assert_eq!(confirmed, added + 1, "the cursor must be inside this change");
        let unknown = |channel: &&&str| !old_order[..known].contains(channel);
        let expected: Vec<_> =
            channels.iter().filter(unknown).map(|channel| (confirmed, (*channel).to_owned())).collect();
        let rest: Vec<_> = events(system.reader(), &query, &old).take(expected.len()).collect().await;
        assert_eq!(names(&rest), expected, "after {old}");
        // The next stream continues after the last received change.
        for (at, (id, _, _)) in rest.iter().enumerate() {
            let after: Vec<_> = events(system.reader(), &query, id).take(expected.len() - at - 1).collect().await;
            assert_eq!(names(&after), expected[at + 1..], "after {old} and {id}");
        }
        let path = format!("/v1/poll?{query}&wait=0&cursor={}", old.replace('+', "%2B"));
        let polled = system.get(&path).send().await.expect(200).json();
        assert_eq!(polled["events"].as_array().map(Vec::len), Some(expected.len()), "{polled}");
    }
}

/// Returns the changes of a stream that resumes after an id: the id, the position and the channel of each.
fn events(client: &Client, query: &str, id: &str) -> Pin<Box<dyn Stream<Item = (String, u64, String)>>> {
    let url = format!("{}/v1/live?{query}", client.base());
    let request = reqwest::Client::new().get(url).bearer_auth(token("clerk", "staff")).header("last-event-id", id);
    let body = async {
        request.send().await.expect("a response").error_for_status().expect("the status is 200").bytes_stream()
    };
    let text = body
        .flatten_stream()
        .map(|bytes| String::from_utf8(bytes.expect("the stream continues").to_vec()).expect("UTF-8"));
    let blocks = text.scan(String::new(), |held, text| {
        held.push_str(&text);
        let whole: Vec<_> = held.split("\n\n").map(str::to_owned).collect();
        let (rest, blocks) = whole.split_last().expect("a split has at least one part");
        *held = rest.clone();
        std::future::ready(Some(futures::stream::iter(blocks.to_vec())))
    });
    let change = |block: String| {
        let field = |name: &str| block.lines().find_map(|line| line.strip_prefix(name)).map(str::to_owned);
        let data: Value = serde_json::from_str(&field("data: ")?).expect("data is JSON");
        assert_eq!(data["event"], "pub", "{data}");
        Some((field("id: ")?, data["offset"].as_u64()?, data["channel"].as_str()?.to_owned()))
    };
    Box::pin(blocks.flatten().filter_map(move |block| std::future::ready(change(block))))
}

async fn every_transport_survives_a_crash(mut system: TestSystem) {
    create(&system, "o-1", "ada").await;
    create(&system, "o-2", "bob").await;
    system.settled().await;
    let base = vec![system.reader().base().to_owned()];
    let staff = token("clerk", "staff");
    let channels = ["orders", "order:o-1", "customer:bob"];
    let start = |transport| Listener::start(transport, base.clone(), &staff, &channels);
    let listeners: Vec<_> = [Transport::Socket, Transport::Stream, Transport::Poll].map(start).into();
    for listener in &listeners {
        listener.listening(&channels).await;
    }
    for _ in 0..3 {
        for number in 0..20 {
            // Few SKUs keep the order small, so that the missed changes fit into one resume.
            add(&system, "o-1", &format!("sku-{}", number % 5)).await;
            add(&system, "o-2", &format!("sku-{}", number % 5)).await;
        }
        system.kill9();
        system.restart().await;
    }
    let expected = [(None, "orders"), (Some("o-1"), "order:o-1"), (Some("o-2"), "customer:bob")];
    for (order, channel) in expected {
        let expected = positions(&system, order).await;
        for listener in &listeners {
            let received = listener.expect_changes(channel, &expected, Duration::from_secs(30)).await;
            assert_eq!(received.resets, [], "every missed change must come from the log");
        }
    }
}

async fn a_ticket_opens_one_connection(system: TestSystem) {
    create(&system, "o-1", "ada").await;
    system.settled().await;
    let ada = token("ada", "customer");
    let ticket = async || {
        let answer = system.reader().post("/v1/tickets").token(&ada).send().await.expect(201).json();
        assert_eq!(answer["expires_in"], 60, "{answer}");
        answer["ticket"].as_str().expect("a ticket").to_owned()
    };
    let (one, other) = (ticket().await, ticket().await);
    let poll =
        |ticket: &str| system.get(&format!("/v1/poll?channel=order:o-1&wait=0&ticket={ticket}")).anonymous().send();
    poll(&one).await.expect(200);
    poll(&one).await.expect_problem(401, "invalid-ticket");
    poll("nonsense").await.expect_problem(401, "invalid-ticket");
    let mut socket = Socket::open(&format!("{}/ws?ticket={other}", system.reader().base()), &[])
        .await
        .expect("the upgrade succeeds");
    socket.call("connect", json!({})).await;
    assert_eq!(socket.subscribe("order:o-1").await["view"]["version"], 1);
    let mut again = Socket::open(&format!("{}/ws?ticket={other}", system.reader().base()), &[])
        .await
        .expect("the upgrade succeeds");
    again.send(&json!({"id": 1, "connect": {}})).await;
    assert_eq!(again.closed().await, 3500);
    system.reader().post("/v1/tickets").anonymous().send().await.expect_problem(401, "authentication-required");
}

/// A browser sends a preflight request for every route, without a token.
async fn preflight_requests_of_allowed_origins_are_accepted(system: TestSystem) {
    let page = "http://localhost:5173";
    for (client, path, method) in [
        (system.writer(), "/v1/orders", "POST"),
        (system.writer(), "/v1/orders/o-1/items/pen", "DELETE"),
        (system.reader(), "/v1/orders/o-1", "GET"),
        (system.reader(), "/v1/tickets", "POST"),
        (system.reader(), "/v1/live", "GET"),
        (system.reader(), "/v1/poll", "GET"),
    ] {
        let preflight = |origin: &str| {
            let request = client.request(Method::OPTIONS, path).anonymous().header("origin", origin);
            let request = request.header("access-control-request-method", method);
            request.header("access-control-request-headers", "authorization,content-type").send()
        };
        let allowed = preflight(page).await.expect(200);
        assert_eq!(allowed.header("access-control-allow-origin"), Some(page), "{path}");
        let may =
            |name: &str, what: &str| allowed.header(name).is_some_and(|allowed| allowed.to_lowercase().contains(what));
        assert!(may("access-control-allow-methods", &method.to_lowercase()), "{path}: {allowed:?}");
        assert!(may("access-control-allow-headers", "authorization"), "{path}: {allowed:?}");
        let refused = preflight("https://evil.test").await;
        assert_eq!(refused.header("access-control-allow-origin"), None, "{path}");
    }
}

/// Returns an expired token of a customer.
fn expired(subject: &str) -> String {
    let now = jiff::Timestamp::now().as_second();
    let (issued, expires) = (now - 100, now - 50);
    signed(
        &json!({"sub": subject, "role": "customer", "iss": "docket", "aud": "docket", "iat": issued, "exp": expires}),
    )
}

/// A socket that sends unusable input gets an error code that names the mistake.
async fn a_socket_gets_an_error_code_for_bad_input(system: TestSystem) {
    let reader = system.reader();
    let url = format!("{}/ws", reader.base());
    let mut late = Socket::open(&url, &[]).await.expect("a WebSocket");
    let reply = late.call("connect", json!({"token": expired("c")})).await;
    assert_eq!(reply["error"]["code"], 109, "this code makes SDKs ask for a fresh token: {reply}");
    let reply = late.call("connect", json!({"token": token("c", "customer")})).await;
    assert!(reply["connect"]["client"].is_string(), "{reply}");
    for body in [json!({}), json!({"channel": "customer:c", "offset": "x"})] {
        let reply = late.call("subscribe", body).await;
        assert_eq!(reply["error"]["code"], 107, "{reply}");
    }
    assert_eq!(late.close().await, Some(1000), "the server must answer the Close");
    let mut long = Socket::connect(reader, &token("c", "customer")).await;
    long.send(&json!({"id": 7, "ping": {"x": "y".repeat(70_000)}})).await;
    assert_eq!(long.closed().await, 1009);
}

/// A resume that would cost too much is answered by a snapshot, and is not charged.
async fn a_customers_resumes_are_limited_by_a_replay_quota(system: TestSystem) {
    create(&system, "long", "ada").await;
    let mut socket = Socket::connect(system.reader(), &token("ada", "customer")).await;
    let bulk: String = (0..600)
        .map(|n| {
            let item = json!({"type": "add_item", "order_id": "long", "sku": format!("s-{}", n % 20), "quantity": 1, "unit_price": "1.00"});
            format!("{item}\n")
        })
        .collect();
    let answers = system.post("/v1/commands").body("application/x-ndjson", bulk).send().await.expect(200);
    assert!(!String::from_utf8_lossy(&answers.body).contains("problem"), "{answers:?}");
    let head = system.settled().await;
    let first = socket.call("subscribe", json!({"channel": "order:long"})).await;
    let epoch = first["subscribe"]["epoch"].clone();
    let mut resume = async |offset: u64| {
        socket.call("unsubscribe", json!({"channel": "order:long"})).await;
        let how = json!({"channel": "order:long", "recover": true, "epoch": epoch, "offset": offset});
        socket.call("subscribe", how).await["subscribe"]["recovered"].clone()
    };
    assert_eq!(
        (resume(1).await, resume(head - 50).await),
        (json!(false), json!(true)),
        "the first resume must be refused, the second must not"
    );
    // Each resume folds 601 events. The quota allows 33 resumes at once.
    let mut recovered = 0;
    for _ in 0..60 {
        recovered += u64::from(resume(head - 1).await == true);
    }
    assert!((25..55).contains(&recovered), "{recovered} of 60 resumes succeeded");
    assert_eq!(resume(head).await, true, "a resume without missed changes costs nothing");
}

/// A token that was revoked between the upgrade and the first command is refused.
async fn a_token_revoked_before_connect_is_refused(system: TestSystem) {
    let url = format!("{}/ws", system.reader().base());
    let bearer = format!("Bearer {}", token("mallory", "staff"));
    let mut early = Socket::open(&url, &[("authorization", &bearer)]).await.expect("a WebSocket");
    let body = json!({"subject": "mallory"});
    system.reader().post("/v1/admin/revocations").json(body).send().await.expect(201);
    early.send(&json!({"id": 1, "connect": {}})).await;
    assert_eq!(early.closed().await, 4503);
}

/// The cursor in a response is never before a snapshot in the same response, whichever channels had to begin with one.
async fn no_snapshot_is_newer_than_the_cursor_of_its_response(system: TestSystem) {
    create(&system, "quiet", "ada").await;
    system.settled().await;
    let first = system.get("/v1/poll?channel=order:quiet&wait=0").send().await.expect(200).json();
    let cursor = first["cursor"].as_str().expect("a cursor").to_owned();
    for n in 0..320 {
        create(&system, &format!("loud-{n}"), "bob").await;
    }
    let busy = async {
        for n in 0..150 {
            create(&system, &format!("more-{n}"), "bob").await;
        }
    };
    let polls = async {
        for _ in 0..40 {
            let path = format!("/v1/poll?channel=orders&channel=order:quiet&wait=0&cursor={cursor}");
            let answer = system.get(&path).send().await.expect(200).json();
            let next = answer["cursor"].as_str().and_then(cursor_position).expect("a position");
            let events = answer["events"].as_array().expect("events");
            let shown = events.iter().filter(|event| event["event"] == "snapshot");
            for event in shown {
                let position = event["data"]["position"].as_u64().expect("a position");
                assert!(position <= next, "the snapshot is at {position}, the cursor at {next}");
            }
        }
    };
    tokio::join!(busy, polls);
}

/// The projections channel has no events in the log, so each poll gets the current state. A second poll right after the
/// first waits.
async fn polls_of_the_projections_channel_are_paced(system: TestSystem) {
    let poll = |cursor: &str| system.get(&format!("/v1/poll?channel=projections&wait=10&cursor={cursor}"));
    let first = poll("").send().await.expect(200).json();
    assert_eq!(first["events"][0]["event"], "snapshot", "{first}");
    let cursor = first["cursor"].as_str().expect("a cursor").to_owned();
    let started = Instant::now();
    for _ in 0..2 {
        let next = poll(&cursor).send().await.expect(200).json();
        assert_eq!(next["events"].as_array().map(Vec::len), Some(1), "{next}");
    }
    let took = started.elapsed();
    assert!((Duration::from_millis(900)..Duration::from_secs(5)).contains(&took), "{took:?}");
}

async fn a_page_can_subscribe_only_from_an_allowed_origin(system: TestSystem) {
    create(&system, "o-1", "ada").await;
    system.settled().await;
    let base = system.reader().base().to_owned();
    let ada = token("ada", "customer");
    let cookie = format!("theme=dark; docket_token={ada}");
    let own = ("origin", base.as_str());
    let evil = ("origin", "https://evil.test");
    let poll = |headers: &[(&str, &str)]| {
        let request = system.get("/v1/poll?channel=order:o-1&wait=0").anonymous();
        headers.iter().fold(request, |request, (name, value)| request.header(name, value)).send()
    };
    poll(&[own, ("cookie", &cookie)]).await.expect(200);
    poll(&[evil, ("cookie", &cookie)]).await.expect_problem(403, "origin-not-allowed");
    poll(&[("cookie", &cookie)]).await.expect_problem(401, "authentication-required");
    // A WebSocket with a cookie, and one with a token in a subprotocol that the server confirms.
    let url = format!("{base}/ws");
    let mut socket = Socket::open(&url, &[own, ("cookie", &cookie)]).await.expect("the upgrade succeeds");
    socket.call("connect", json!({})).await;
    socket.subscribe("order:o-1").await;
    assert_eq!(Socket::open(&url, &[evil, ("cookie", &cookie)]).await.err(), Some(403));
    use base64::Engine;
    let bearer = format!("bearer.{}", base64::engine::general_purpose::URL_SAFE_NO_PAD.encode(&ada));
    let mut socket = Socket::open(&url, &[("sec-websocket-protocol", &bearer)]).await.expect("the upgrade succeeds");
    socket.call("connect", json!({})).await;
    socket.subscribe("order:o-1").await;
    let mut socket =
        Socket::open(&url, &[("sec-websocket-protocol", "bearer.bm9uc2Vuc2U")]).await.expect("the upgrade succeeds");
    socket.send(&json!({"id": 1, "connect": {}})).await;
    assert_eq!(socket.closed().await, 3500);
    // An expired cookie or an invalid header does not matter if `connect` brings a valid token.
    let old = format!("docket_token={}", expired("ada"));
    for (name, value) in [("cookie", old.as_str()), ("authorization", "Bearer nonsense")] {
        let mut socket = Socket::open(&url, &[own, (name, value)]).await.expect("the upgrade succeeds");
        socket.call("connect", json!({"token": ada})).await;
        socket.subscribe("order:o-1").await;
    }
    let mut socket = Socket::open(&url, &[own, ("cookie", &old)]).await.expect("the upgrade succeeds");
    assert_eq!(
        socket.call("connect", json!({})).await["error"]["code"],
        109,
        "this code makes SDKs ask for a fresh token"
    );
    assert_eq!(Socket::open(&url, &[("sec-websocket-protocol", "centrifuge-protobuf")]).await.err(), Some(400));
    // Admins have their own endpoint.
    let admins = format!("{base}/ws/admin");
    let header = |token: &str| format!("Bearer {token}");
    let mut socket = Socket::open(&admins, &[("authorization", &header(&ada))]).await.expect("the upgrade succeeds");
    socket.send(&json!({"id": 1, "connect": {}})).await;
    assert_eq!(socket.closed().await, 4503);
    let mut socket = Socket::open(&admins, &[("authorization", &header(&token("root", "admin")))])
        .await
        .expect("the upgrade succeeds");
    socket.call("connect", json!({})).await;
    assert!(socket.subscribe("projections").await["items"].is_array());
}

async fn a_revoked_token_ends_every_connection(system: TestSystem) {
    create(&system, "o-1", "ada").await;
    system.settled().await;
    let (ada, bob) = (token("ada", "customer"), token("clerk", "staff"));
    let mut socket = Socket::connect(system.reader(), &ada).await;
    socket.subscribe("order:o-1").await;
    let mut other = Socket::connect(system.reader(), &bob).await;
    other.subscribe("order:o-1").await;
    let live = reqwest::Client::new().get(format!("{}/v1/live?channel=order:o-1", system.reader().base()));
    let live = live.bearer_auth(&ada).send().await.expect("a response").error_for_status().expect("the status is 200");
    let cursor = system.get("/v1/poll?channel=order:o-1&wait=0").token(&ada).send().await.expect(200).json();
    let cursor = cursor["cursor"].as_str().expect("a cursor").to_owned();
    let polling =
        tokio::spawn(system.get(&format!("/v1/poll?channel=order:o-1&wait=30&cursor={cursor}")).token(&ada).send());
    tokio::time::sleep(Duration::from_millis(100)).await;
    system.get("/v1/admin/revocations").token(&ada).send().await.expect_problem(403, "forbidden");
    system
        .reader()
        .post("/v1/admin/revocations")
        .json(json!({}))
        .send()
        .await
        .expect_problem(422, "invalid-revocation");
    let started = Instant::now();
    system.reader().post("/v1/admin/revocations").json(json!({"subject": "ada"})).send().await.expect(201);
    assert_eq!(socket.closed().await, 4503);
    polling.await.expect("the request ends").expect_problem(401, "token-revoked");
    let text = live.text().await.expect("the stream ends properly");
    assert!(text.ends_with("event: auth_expired\ndata: {\"reason\":\"revoked\"}\n\n"), "{text}");
    assert!(started.elapsed() < Duration::from_secs(2), "after {:?}", started.elapsed());
    system.get("/v1/orders/o-1").token(&ada).send().await.expect_problem(401, "token-revoked");
    system.post("/v1/orders/o-1/confirm").token(&ada).send().await.expect_problem(401, "token-revoked");
    // Other users are not affected, and a token that was issued later is valid.
    add(&system, "o-1", "pen").await;
    other.next_publication("order:o-1").await;
    let later = jiff::Timestamp::now().as_second() + 3;
    let claims =
        json!({"sub": "ada", "role": "customer", "iss": "docket", "aud": "docket", "iat": later, "exp": later + 60});
    system.get("/v1/orders/o-1").token(&signed(&claims)).send().await.expect(200);
    let list = system.get("/v1/admin/revocations").send().await.expect(200).json();
    assert_eq!((&list["items"][0]["kind"], &list["items"][0]["value"]), (&json!("subject"), &json!("ada")), "{list}");
}

async fn a_fresh_token_may_have_another_role(system: TestSystem) {
    create(&system, "o-1", "ada").await;
    create(&system, "o-2", "bob").await;
    system.settled().await;
    let mut socket = Socket::connect(system.reader(), &token("ada", "staff")).await;
    for channel in ["orders", "order:o-1", "order:o-2"] {
        socket.subscribe(channel).await;
    }
    let reply = socket.call("refresh", json!({"token": token("ada", "customer")})).await;
    assert!(reply["refresh"]["ttl"].is_number(), "{reply}");
    let mut left = vec![socket.next_push("unsubscribe").await, socket.next_push("unsubscribe").await];
    left.sort();
    assert_eq!(left, ["order:o-2", "orders"]);
    add(&system, "o-2", "pen").await;
    let position = add(&system, "o-1", "pen").await;
    let publication = socket.next_publication("order:o-1").await;
    assert_eq!(publication["offset"], position);
    assert_eq!(socket.call("subscribe", json!({"channel": "orders"})).await["error"]["code"], 103);
}

async fn only_the_slow_client_is_disconnected(system: TestSystem) {
    create(&system, "o-1", "ada").await;
    system.settled().await;
    let staff = token("clerk", "staff");
    let mut slow = Socket::connect_slowly(system.reader(), &staff).await;
    slow.subscribe("orders").await;
    let base = vec![system.reader().base().to_owned()];
    let fine = Listener::start(Transport::Socket, base, &staff, &["orders"]);
    fine.listening(&["orders"]).await;
    // Large orders fill the socket buffers of both sides quickly.
    let item = |number: u32| json!({"sku": format!("sku-{number}"), "quantity": 1, "unit_price": "1.00", "name": "x".repeat(200)});
    let items: Vec<_> = (0..200).map(item).collect();
    let order = json!({"type": "create_order", "customer_id": "ada", "items": items}).to_string() + "\n";
    let slow_closed = "docket_push_closed_total{reason=\"slow\"}";
    let mut orders = 0;
    while system.dockets[0].metric(slow_closed).await != Some(1.0) {
        orders += 1;
        assert!(orders <= 300, "the slow client is not disconnected");
        // The next order waits until the client that reads has this one, so a slow machine does not make it slow.
        system.post("/v1/commands").body("application/x-ndjson", order.clone()).send().await.expect(200);
        let expected = positions(&system, None).await;
        let received = fine.expect_changes("orders", &expected, Duration::from_secs(60)).await;
        assert_eq!(received.resets, [], "a client that reads must not be disconnected and must get each change");
    }
    assert_eq!(slow.closed().await, 3008);
}

/// Creates orders with `lines` lines. A line takes about 420 bytes of the order's view.
async fn create_large(system: &TestSystem, orders: &[String], lines: usize) {
    let item = |number: usize| json!({"sku": format!("sku-{number}"), "quantity": 1, "unit_price": "1.00", "name": "x".repeat(200), "category": "y".repeat(100)});
    let items: Vec<_> = (0..lines).map(item).collect();
    for order in orders {
        let line = json!({"type": "create_order", "order_id": order, "customer_id": "ada", "items": items});
        let answer = system.post("/v1/commands").body("application/x-ndjson", line.to_string() + "\n").send().await;
        assert!(!String::from_utf8_lossy(&answer.expect(200).body).contains("problem"), "{order}");
    }
    system.settled().await;
}

async fn change(system: &TestSystem, order: &str, quantity: usize) -> u64 {
    let change = json!({"quantity": quantity});
    system.put(&format!("/v1/orders/{order}/items/sku-1")).json(change).send().await.expect(200).position()
}

/// A client that reads thousands of changes per second must not be disconnected.
async fn readers_keep_up_with_an_import(system: TestSystem) {
    create(&system, "o-1", "ada").await;
    system.settled().await;
    let (base, staff) = (vec![system.reader().base().to_owned()], token("clerk", "staff"));
    let listeners = [Transport::Socket, Transport::Stream]
        .map(|transport| Listener::start(transport, base.clone(), &staff, &["orders"]));
    for listener in &listeners {
        listener.listening(&["orders"]).await;
    }
    system.import_sample().await;
    let expected = positions(&system, None).await;
    for listener in &listeners {
        let received = listener.expect_changes("orders", &expected, Duration::from_secs(60)).await;
        assert_eq!(received.resets, [], "no change may be left out");
    }
}

/// The missed changes of each channel fit into the limit, but those of all channels together do not.
async fn too_many_missed_changes_cause_a_reset(system: TestSystem) {
    let orders: Vec<_> = (0..12).map(|number| format!("large-{number}")).collect();
    create_large(&system, &orders, 50).await;
    let channels: String = orders.iter().map(|order| format!("&channel=order:{order}")).collect();
    let poll = async |cursor: &str, channels: &str| {
        system.get(&format!("/v1/poll?wait=0&cursor={cursor}{channels}")).send().await.expect(200).json()
    };
    let kinds = |answer: &Value| -> Vec<String> {
        let events = answer["events"].as_array().expect("events");
        events.iter().map(|event| event["event"].as_str().expect("a kind").to_owned()).collect()
    };
    let first = poll("", &channels).await;
    let cursor = first["cursor"].as_str().expect("a cursor");
    for quantity in 2..12 {
        for order in &orders {
            change(&system, order, quantity).await;
        }
    }
    system.settled().await;
    assert_eq!(kinds(&poll(cursor, &format!("&channel=order:{}", orders[0])).await), ["pub"; 10]);
    let reset = poll(cursor, &channels).await;
    assert_eq!(kinds(&reset), [&["reset"; 1][..], &["snapshot"; 12]].concat());
}

/// A customer's clients request large orders and do not read them. The process must keep little of that in memory.
async fn unread_large_orders_use_little_memory(system: TestSystem) {
    let orders: Vec<_> = (0..16).map(|number| format!("large-{number}")).collect();
    create_large(&system, &orders, 700).await;
    let ada = token("ada", "customer");
    let path = |way: &str, count: usize| {
        let channels: Vec<_> = orders[..count].iter().map(|order| format!("channel=order:{order}")).collect();
        format!("/v1/{way}?{}", channels.join("&"))
    };
    let ask = |way: &str, count: usize| system.get(&path(way, count)).token(&ada).send();
    ask("poll", 16).await.expect_problem(422, "too-much-at-once");
    ask("live", 16).await.expect_problem(422, "too-much-at-once");
    ask("poll", 3).await.expect(200);
    let memory_mib = || system.dockets[0].memory_kib() / 1024;
    let before = memory_mib();
    let (mut unread, mut deaf) = (vec![], vec![]);
    for _ in 0..20 {
        unread.push(get_without_reading(system.reader(), &path("live", 3), &ada).await);
        let mut socket = Socket::connect_slowly(system.reader(), &ada).await;
        for order in &orders {
            socket.send(&json!({"id": 9, "subscribe": {"channel": format!("order:{order}")}})).await;
        }
        deaf.push(socket);
    }
    for quantity in 2..42 {
        for order in &orders {
            change(&system, order, quantity).await;
        }
        for _ in 0..8 {
            unread.push(get_without_reading(system.reader(), &path("poll", 3), &ada).await);
        }
    }
    let held = memory_mib();
    println!("{before} MiB before, {held} MiB with clients that do not read");
    assert!(held < before + 256, "{before} MiB before, {held} MiB with clients that do not read");
}

/// A change of a large order on several channels of one poll exceeds the buffer of the poll. Each channel must still
/// get the change, or a reset that reports a gap.
async fn a_poll_of_large_changes_misses_nothing(system: TestSystem) {
    create_large(&system, &["large".to_owned()], 900).await;
    let path = "/v1/poll?channel=order:large&channel=customer:ada&channel=orders";
    let first = system.get(&format!("{path}&wait=0")).send().await.expect(200).json();
    let mut cursor = first["cursor"].as_str().expect("a cursor").to_owned();
    for quantity in 2..14 {
        let poll = tokio::spawn(system.get(&format!("{path}&wait=10&cursor={cursor}")).send());
        tokio::time::sleep(Duration::from_millis(50)).await;
        let changed = change(&system, "large", quantity).await;
        let mut answer = poll.await.expect("the task ends");
        let mut seen = std::collections::BTreeSet::new();
        for _ in 0..3 {
            let polled = answer.expect(200).json();
            for event in polled["events"].as_array().expect("events") {
                let position = event["offset"].as_u64().or(event["data"]["position"].as_u64());
                if position == Some(changed) {
                    seen.insert(event["channel"].as_str().expect("a channel").to_owned());
                }
            }
            cursor = polled["cursor"].as_str().expect("a cursor").to_owned();
            answer = system.get(&format!("{path}&wait=0&cursor={cursor}")).send().await;
        }
        assert_eq!(seen.len(), 3, "the change at {changed} was received only on {seen:?}");
    }
}

async fn patches_applied_in_order_give_the_view(system: TestSystem) {
    create(&system, "o-1", "ada").await;
    system.settled().await;
    let mut socket = Socket::connect(system.reader(), &token("ada", "customer")).await;
    let reply = socket.call("subscribe", json!({"channel": "order:o-1", "data": {"delta": "merge-patch"}})).await;
    let mut view = reply["subscribe"]["data"]["view"].clone();
    let (offset, epoch) = (reply["subscribe"]["offset"].clone(), reply["subscribe"]["epoch"].clone());
    add(&system, "o-1", "pen").await;
    add(&system, "o-1", "ink").await;
    system.delete("/v1/orders/o-1/items/pen").send().await.expect(200);
    system.post("/v1/orders/o-1/confirm").send().await.expect(200);
    let patch = |view: &mut Value, patch: &Value| {
        for (name, value) in patch.as_object().expect("a patch") {
            match value {
                Value::Null => drop(view.as_object_mut().expect("a view").remove(name)),
                value => view[name] = value.clone(),
            }
        }
    };
    let first = view.clone();
    for _ in 0..4 {
        let publication = socket.next_publication("order:o-1").await;
        assert!(publication["data"]["view"].is_null(), "{publication}");
        patch(&mut view, &publication["data"]["patch"]);
    }
    system.settled().await;
    assert_eq!(view, system.get("/v1/orders/o-1").send().await.expect(200).json());
    // A resume from the log gives the same patches.
    socket.call("unsubscribe", json!({"channel": "order:o-1"})).await;
    let resume = json!({"channel": "order:o-1", "recover": true, "offset": offset, "epoch": epoch, "data": {"delta": "merge-patch"}});
    let reply = socket.call("subscribe", resume).await;
    let mut again = first;
    for publication in reply["subscribe"]["publications"].as_array().expect("publications") {
        patch(&mut again, &publication["data"]["patch"]);
    }
    assert_eq!(again, view);
    let wrong = json!({"channel": "customer:ada", "data": {"delta": "fossil"}});
    assert_eq!(socket.call("subscribe", wrong).await["error"]["code"], 107);
}

async fn presence_shows_the_subscribers_of_an_order(system: TestSystem) {
    create(&system, "o-1", "ada").await;
    system.settled().await;
    let mut clerk = Socket::connect(system.reader(), &token("clerk", "staff")).await;
    clerk.subscribe("order:o-1").await;
    assert_eq!(clerk.next_push_of("join").await["user"], "clerk");
    let ada = token("ada", "customer");
    let mut first = Socket::connect(system.reader(), &ada).await;
    first.subscribe("order:o-1").await;
    assert_eq!(clerk.next_push_of("join").await["user"], "ada");
    let mut second = Socket::connect(system.reader(), &ada).await;
    second.subscribe("order:o-1").await;
    let presence = clerk.call("presence", json!({"channel": "order:o-1"})).await["presence"]["presence"].clone();
    let mut users: Vec<_> = presence.as_object().expect("clients").values().map(|info| info["user"].clone()).collect();
    users.sort_by_key(Value::to_string);
    assert_eq!(users, ["ada", "ada", "clerk"], "{presence}");
    let stats = clerk.call("presence_stats", json!({"channel": "order:o-1"})).await;
    assert_eq!(stats["presence_stats"], json!({"num_clients": 3, "num_users": 2}));
    assert_eq!(first.call("presence", json!({"channel": "order:o-1"})).await["error"]["code"], 103);
    assert_eq!(clerk.call("presence", json!({"channel": "orders"})).await["error"]["code"], 108);
    let gone = Instant::now();
    drop((first, second));
    assert_eq!(clerk.next_push_of("leave").await["user"], "ada");
    assert!(gone.elapsed() > Duration::from_secs(2), "the leave must wait for a possible reconnect");
}

async fn connection_and_command_limits_are_enforced(system: TestSystem) {
    create(&system, "o-1", "ada").await;
    system.settled().await;
    let ada = token("ada", "customer");
    let mut sockets = vec![];
    for _ in 0..64 {
        sockets.push(Socket::connect(system.reader(), &ada).await);
    }
    let mut one_more =
        Socket::open(&format!("{}/ws", system.reader().base()), &[]).await.expect("the upgrade succeeds");
    one_more.send(&json!({"id": 1, "connect": {"token": ada}})).await;
    assert_eq!(one_more.closed().await, 3504);
    system.get("/v1/poll?channel=order:o-1").token(&ada).send().await.expect_problem(429, "too-many-connections");
    drop(sockets);
    until_within(Duration::from_secs(10), "the closed connections no longer count", async || {
        let poll = system.get("/v1/poll?channel=order:o-1&wait=0").token(&ada).send().await;
        (poll.status == 200).then_some(())
    })
    .await;
    let mut socket = Socket::connect(system.reader(), &ada).await;
    // The burst of 512 commands refills by 64 in each second, however slow this machine is.
    let (started, mut accepted) = (Instant::now(), 0);
    while socket.call("ping", json!({})).await["error"]["code"] != 111 {
        accepted += 1;
        assert!(accepted < 10_000, "no command is refused");
    }
    let most = 512.0 + 64.0 * started.elapsed().as_secs_f64();
    // `connect` counts as a command too.
    assert!((511.0..=most).contains(&f64::from(accepted)), "{accepted} commands were accepted, at most {most} may be");
    // A client that keeps exceeding the rate still gets its 64 answers per second.
    let (started, mut sent, mut answered) = (Instant::now(), 0, 0);
    while started.elapsed() < Duration::from_secs(2) {
        sent += 1;
        answered += u32::from(socket.call("ping", json!({})).await["error"].is_null());
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    let refilled = 64.0 * started.elapsed().as_secs_f64();
    let least = f64::from(sent).min(0.75 * refilled);
    assert!((least..=refilled + 2.0).contains(&f64::from(answered)), "{answered} of {sent} commands were answered");
}

/// While changes are written, faults occur one after another: a process is killed, NATS is restarted, its stream is
/// deleted, the network is cut, the projector is restarted. Every listener must end with exactly the changes of its
/// channels. `DOCKET_LISTENERS` sets the number of listeners.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn listeners_on_three_processes_survive_every_fault() {
    let count = std::env::var("DOCKET_LISTENERS").ok().and_then(|count| count.parse().ok()).unwrap_or(48);
    let mut system = TestSystem::builder(Mode::Scaled)
        .own_servers()
        .processes(&["write", "project", "read", "read", "read"])
        .start()
        .await;
    const ORDERS: usize = 12;
    for number in 0..ORDERS {
        create(&system, &format!("o-{number}"), &format!("c-{}", number % 4)).await;
    }
    for docket in &system.dockets[2..] {
        let path = format!("/v1/orders/o-{}?min_position={ORDERS}&wait_ms=10000", ORDERS - 1);
        docket.client.get(&path).send().await.expect(200);
    }
    let mut proxies = vec![];
    for docket in &system.dockets[2..] {
        proxies.push(Proxy::start(docket.client.base().trim_start_matches("http://")).await);
    }
    let bases: Vec<_> = proxies.iter().map(Proxy::base).collect();
    let staff = token("clerk", "staff");
    let mut listeners: Vec<(Listener, Vec<String>)> = vec![];
    for number in 0..count {
        let transport = [Transport::Socket, Transport::Stream, Transport::Socket, Transport::Poll][number % 4];
        let names = match number % 3 {
            0 => vec![format!("order:o-{}", number % ORDERS)],
            1 => vec!["orders".to_owned(), format!("order:o-{}", number % ORDERS)],
            _ => vec![format!("customer:c-{}", number % 4), format!("order:o-{}", number % ORDERS)],
        };
        let mut bases = bases.clone();
        bases.rotate_left(number % 3);
        let channels: Vec<&str> = names.iter().map(String::as_str).collect();
        listeners.push((Listener::start(transport, bases, &staff, &channels), names));
    }
    for (listener, names) in &listeners {
        listener.listening(&names.iter().map(String::as_str).collect::<Vec<_>>()).await;
    }
    // The load is steady, so that the changes missed while a process is down fit into one resume.
    let (stop, mut stopped) = tokio::sync::watch::channel(false);
    let writer = system.writer().clone();
    let load = tokio::spawn(async move {
        let mut number = 0_u32;
        while !*stopped.borrow_and_update() {
            let path = format!("/v1/orders/o-{}/items", number as usize % ORDERS);
            let item = json!({"sku": format!("sku-{}", number % 5), "quantity": 1, "unit_price": "1.00"});
            writer.post(&path).key(&format!("load-{number}")).json(item).send().await.expect(200);
            number += 1;
            tokio::time::sleep(Duration::from_millis(25)).await;
        }
        number
    });
    let pause = || tokio::time::sleep(Duration::from_millis(1_500));
    pause().await;
    for number in 2..5 {
        system.dockets[number].restart().await;
        pause().await;
    }
    system.nats.as_mut().expect("a scaled system").restart().await;
    pause().await;
    let jetstream = system.nats.as_ref().expect("a scaled system").jetstream().await;
    jetstream.delete_stream("docket").await.expect("the stream exists");
    pause().await;
    for proxy in &proxies {
        proxy.cut(Duration::from_secs(2)).await;
        pause().await;
    }
    system.dockets[1].restart().await;
    pause().await;
    stop.send_replace(true);
    let sent = load.await.expect("the load ends");
    assert!(sent > 200, "only {sent} changes were written");
    system.settled().await;
    let log = read_log(system.reader()).await;
    for (listener, names) in &listeners {
        for name in names {
            let of_channel = |event: &&tests::fold::Event| match name.split_once(':') {
                Some(("order", id)) => event.order_id == id,
                Some((_, customer)) => {
                    let number: usize = event.order_id.trim_start_matches("o-").parse().expect("a number");
                    customer == format!("c-{}", number % 4)
                }
                None => true,
            };
            let expected: Vec<_> = log.iter().filter(of_channel).map(|event| event.position).collect();
            let received = listener.expect_changes(name, &expected, Duration::from_secs(60)).await;
            assert_eq!(received.resets, [], "{name}: every missed change must come from the log");
        }
    }
}
