//! Memory limits: the worst load of one customer on each interface, for some seconds, and the peak memory of the
//! server. All settings have their defaults.

use std::pin::pin;
use std::time::Duration;

use futures::FutureExt;
use futures::future::{BoxFuture, join_all};
use serde_json::json;
use tests::client::token;
use tests::raw::{Until, exchange, frame};
use tests::system::{Builder, TestSystem};
use tokio::io::AsyncWriteExt;
use tokio::net::{TcpSocket, TcpStream};
use tokio::time::{sleep, timeout_at};

use super::{assert_no_faults, check_server_alive, long_form};

tests::stories![settings = durable; one_customer_cannot_exhaust_memory];

/// Maximum memory of the whole process under the load of one customer, in KiB.
const CEILING_KIB: u64 = 384 * 1024;
/// Duration of each row in the short form.
const SHORT: Duration = Duration::from_secs(2);
/// Interval between two measurements of memory.
const MEASURE_EVERY: Duration = Duration::from_millis(20);
/// Pause between two new connections, in rows that open as many as possible.
const NEXT_CONNECTION: Duration = Duration::from_millis(2);
/// Maximum number of connections of one row, limited by the test's file descriptors.
const CONNECTIONS_MAX: usize = 4_000;
/// Size just below the limit of a body and of a line, in bytes.
const ALMOST_A_MIB: usize = 1024 * 1024 - 64;

/// One customer who repeats one action until the time is over.
#[derive(Clone)]
struct Attack {
    address: String,
    /// Id of the customer. `large-ID` is an order of this customer with a view of 300 KB.
    customer: String,
    token: String,
    until: tokio::time::Instant,
}

type AttackFn = fn(Attack) -> BoxFuture<'static, ()>;

/// The most expensive use of each interface by one customer.
const ATTACKS: &[(&str, AttackFn)] = &[
    ("commands of 1 MiB", |attack| commands(attack).boxed()),
    ("bodies that do not end", |attack| slow_bodies(attack).boxed()),
    ("bulk, unread, an unknown field of 900 KB a line", |attack| bulk_of_large_lines(attack).boxed()),
    ("bulk, unread, 150 requests of 10 KB lines", |attack| bulk_of_many(attack).boxed()),
    ("bulk, lines that do not end", |attack| slow_lines(attack).boxed()),
    ("queries, unread", |attack| queries(attack).boxed()),
    ("streams, unread", |attack| streams(attack).boxed()),
    ("polls, unread", |attack| polls(attack).boxed()),
    ("sockets, unread", |attack| sockets(attack).boxed()),
    ("headers that do not end", |attack| slow_headers(attack).boxed()),
    ("idle connections", |attack| idle(attack).boxed()),
];

/// Makes PostgreSQL durable, because without `fsync` Docket is never `ready`.
fn durable(builder: Builder) -> Builder {
    builder.durable()
}

async fn one_customer_cannot_exhaust_memory(mut system: TestSystem) {
    let each = long_form().map_or(SHORT, |time| time / ATTACKS.len() as u32);
    let mut faults = Vec::new();
    for (number, (name, attack)) in ATTACKS.iter().enumerate() {
        // Each row starts with a fresh process.
        system.restart().await;
        let customer = format!("mallory-{number}");
        large_order(&system, &customer).await;
        let before = system.dockets[0].memory_kib();
        let attack = attack(Attack {
            address: system.dockets[0].address().to_owned(),
            token: token(&customer, "customer"),
            customer,
            until: tokio::time::Instant::now() + each,
        });
        let peak = peak_during(&system, attack).await;
        println!("{name}: {} MiB before, at most {} MiB in {each:?}", before / 1024, peak / 1024);
        if peak > CEILING_KIB {
            faults.push(format!("{name}: {} MiB, more than {} MiB", peak / 1024, CEILING_KIB / 1024));
        }
        faults.extend(check_server_alive(&system, name).await);
    }
    assert_no_faults(&faults);
}

/// Returns the peak memory of the server during the attack, in KiB.
async fn peak_during(system: &TestSystem, attack: BoxFuture<'static, ()>) -> u64 {
    let mut attack = pin!(tokio::spawn(attack));
    let mut peak = 0;
    loop {
        peak = peak.max(system.dockets[0].memory_kib());
        tokio::select! {
            ended = &mut attack => {
                ended.expect("the attack does not fail");
                return peak;
            }
            () = sleep(MEASURE_EVERY) => {}
        }
    }
}

async fn large_order(system: &TestSystem, customer: &str) {
    let item = |number: u32| json!({"sku": format!("sku-{number}"), "quantity": 1, "unit_price": "1.00", "name": "x".repeat(200)});
    let items: Vec<_> = (0..1_000).map(item).collect();
    let order = json!({"type": "create_order", "order_id": format!("large-{customer}"), "customer_id": customer, "items": items});
    let created =
        system.post("/v1/commands").body("application/x-ndjson", order.to_string() + "\n").send().await.expect(200);
    assert!(!String::from_utf8_lossy(&created.body).contains("problem"), "{created:?}");
    system.settled().await;
}

impl Attack {
    /// Opens a connection with a small receive buffer, so that unread data soon blocks the server.
    async fn connect(&self) -> Option<TcpStream> {
        let tcp = TcpSocket::new_v4().ok()?;
        tcp.set_recv_buffer_size(16 * 1024).ok()?;
        tcp.connect(self.address.parse().ok()?).await.ok()
    }

    fn is_over(&self) -> bool {
        tokio::time::Instant::now() >= self.until
    }

    fn head(&self, line: &str, headers: &str) -> Vec<u8> {
        format!("{line} HTTP/1.1\r\nhost: docket\r\nauthorization: Bearer {}\r\n{headers}\r\n", self.token).into_bytes()
    }

    /// Writes as long as the server reads. Never reads. Returns whether all bytes were written in time.
    async fn write(&self, stream: &mut TcpStream, bytes: &[u8]) -> bool {
        timeout_at(self.until, stream.write_all(bytes)).await.is_ok_and(|written| written.is_ok())
    }

    /// Opens `connections` connections. Each sends the bytes of `first`, then those of `again` repeatedly, and never
    /// reads.
    async fn flood(self, connections: usize, first: Vec<u8>, again: Vec<u8>) {
        let each = async || {
            let Some(mut stream) = self.connect().await else { return };
            let mut is_read = self.write(&mut stream, &first).await;
            while is_read && !self.is_over() {
                is_read = self.write(&mut stream, &again).await;
            }
            // Responses arrive and stay unread.
            tokio::time::sleep_until(self.until).await;
        };
        join_all((0..connections).map(|_| each())).await;
    }

    /// Opens as many connections as possible. Each sends the same bytes and then nothing.
    async fn open_idle_connections(self, bytes: Vec<u8>) {
        let mut streams = Vec::new();
        let bytes: std::sync::Arc<[u8]> = bytes.into();
        while !self.is_over() && streams.len() < CONNECTIONS_MAX {
            let (attack, bytes) = (self.clone(), bytes.clone());
            streams.push(tokio::spawn(async move {
                let mut stream = attack.connect().await?;
                attack.write(&mut stream, &bytes).await;
                tokio::time::sleep_until(attack.until).await;
                Some(())
            }));
            sleep(NEXT_CONNECTION).await;
        }
        join_all(streams).await;
    }
}

async fn commands(attack: Attack) {
    let body = format!(r#"{{"x":"{}"}}"#, "x".repeat(ALMOST_A_MIB));
    let headers = format!("content-type: application/json\r\ncontent-length: {}\r\n", body.len());
    let request = [attack.head("POST /v1/orders", &headers), body.into_bytes()].concat();
    let each = async || {
        while !attack.is_over() {
            exchange(&attack.address, &request, false, Until::Answer, Duration::from_secs(5)).await;
        }
    };
    join_all((0..32).map(|_| each())).await;
}

async fn slow_bodies(attack: Attack) {
    let headers = format!("content-type: application/json\r\ncontent-length: {}\r\n", 1024 * 1024);
    let bytes = [attack.head("POST /v1/orders", &headers), b" ".repeat(ALMOST_A_MIB)].concat();
    attack.open_idle_connections(bytes).await;
}

const CHUNKED: &str = "content-type: application/x-ndjson\r\ntransfer-encoding: chunked\r\n";

fn chunk(text: &str) -> Vec<u8> {
    format!("{:x}\r\n{text}\r\n", text.len()).into_bytes()
}

async fn bulk_of_large_lines(attack: Attack) {
    let unknown = "x".repeat(900_000);
    let line = chunk(&format!("{{\"type\":\"confirm_order\",\"order_id\":\"absent\",\"{unknown}\":1}}\n"));
    let first = attack.head("POST /v1/commands", CHUNKED);
    attack.flood(4, first, line).await;
}

async fn bulk_of_many(attack: Attack) {
    let attributes: Vec<_> = (0..20).map(|n| format!("\"k{n}\":\"{}\"", "v".repeat(500))).collect();
    let line = format!(
        "{{\"type\":\"create_order\",\"customer_id\":\"{}\",\"attributes\":{{{}}}}}\n",
        attack.customer,
        attributes.join(",")
    );
    let first = attack.head("POST /v1/commands", CHUNKED);
    attack.flood(150, first, chunk(&line)).await;
}

async fn slow_lines(attack: Attack) {
    let bytes = [attack.head("POST /v1/commands", CHUNKED), chunk(&" ".repeat(ALMOST_A_MIB))].concat();
    attack.open_idle_connections(bytes).await;
}

async fn queries(attack: Attack) {
    let large = format!("GET /v1/orders/large-{}", attack.customer);
    let again = [attack.head("GET /v1/orders?limit=200", ""), attack.head(&large, "")].concat();
    attack.flood(64, Vec::new(), again).await;
}

async fn streams(attack: Attack) {
    let large = format!("order:large-{}", attack.customer);
    let first = attack.head(&format!("GET /v1/live?channel={large}&channel=customer:{}", attack.customer), "");
    let changes = change_the_order(attack.clone());
    tokio::join!(attack.flood(64, first, Vec::new()), changes);
}

/// Changes the large order as often as the rate limit allows.
async fn change_the_order(attack: Attack) {
    let line = format!("PUT /v1/orders/large-{}/items/sku-1", attack.customer);
    for quantity in (1..1_000_000).take_while(|_| !attack.is_over()) {
        let body = format!("{{\"quantity\":{quantity}}}");
        let headers = format!("content-type: application/json\r\ncontent-length: {}\r\n", body.len());
        let request = [attack.head(&line, &headers), body.into_bytes()].concat();
        exchange(&attack.address, &request, false, Until::Answer, Duration::from_secs(5)).await;
    }
}

async fn polls(attack: Attack) {
    let line = format!("GET /v1/poll?wait=0&channel=order:large-{}", attack.customer);
    let again = attack.head(&line, "");
    attack.flood(64, Vec::new(), again).await;
}

async fn sockets(attack: Attack) {
    let upgrade = "connection: upgrade\r\nupgrade: websocket\r\nsec-websocket-version: 13\r\n\
                   sec-websocket-key: MDEyMzQ1Njc4OWFiY2RlZg==\r\n";
    let text = |line: String| frame(0x81, line.as_bytes());
    let first = [attack.head("GET /ws", upgrade), text(r#"{"id":1,"connect":{}}"#.to_owned())].concat();
    let channel = format!("{{\"channel\":\"order:large-{}\"}}", attack.customer);
    let again = text(format!("{{\"id\":2,\"subscribe\":{channel}}}\n{{\"id\":3,\"unsubscribe\":{channel}}}"));
    let changes = change_the_order(attack.clone());
    tokio::join!(attack.flood(64, first, again), changes);
}

async fn slow_headers(attack: Attack) {
    let mut bytes = attack.head("GET /v1/orders", &format!("x-a: {}\r\n", "a".repeat(60_000)));
    bytes.truncate(bytes.len() - 2);
    attack.open_idle_connections(bytes).await;
}

async fn idle(attack: Attack) {
    attack.open_idle_connections(Vec::new()).await;
}
