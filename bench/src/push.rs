//! The case `push`: measures the memory of idle sockets, the time until a change has reached all sockets, and the
//! sustained rate of deliveries, compared with a bare broadcast of the same bytes.

use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use anyhow::{Context, ensure};
use serde_json::{Value, json};
use tempfile::TempDir;
use tests::client::token;
use tests::ports::free_port;
use tests::process::{Process, profile_directory};
use tests::system::{Mode, TestSystem};
use tokio::time::Instant;

use crate::sockets::Sockets;
use crate::table;

/// Number of changes in the fan-out, one after another.
const CHANGES: usize = 20;
/// How long to wait until a change has reached all sockets.
const DELIVERED_WITHIN: Duration = Duration::from_secs(30);
/// In the sustained measurement: changes that are published at a time, and changes that the slowest socket may lag
/// behind.
const AT_ONCE: u64 = 64;
const IN_FLIGHT_MAX: u64 = 192;
/// Number of sockets that do not read; number of bursts, changes per burst, and interval of the bursts.
const SLOW_CLIENTS: usize = 10;
const BURSTS: usize = 200;
const BURST: u64 = 16;
const BURST_EVERY: Duration = Duration::from_millis(50);
/// First message of a subscriber of the bare broadcast.
const BARE_HELLO: &str = r#"{"id":1}"#;
/// Number of orders whose changes are published.
const ORDERS: usize = 16;

/// Settings of the case.
pub struct Settings {
    /// Number of idle sockets, and of subscribers of the fan-out.
    pub sockets: usize,
    /// Number of subscribers in the sustained measurement.
    pub subscribers: usize,
    /// Duration of each sustained measurement.
    pub measured: Duration,
    /// Number of rounds.
    pub rounds: u32,
}

/// Runs the measurements, and prints tables.
///
/// # Errors
/// A socket is refused or closed, or a change is not delivered exactly once.
pub async fn run(settings: &Settings) -> anyhow::Result<()> {
    let system = TestSystem::builder(Mode::Embedded).durable().start().await;
    let docket = Docket::prepare(&system).await?;
    let sockets = docket.idle(settings.sockets).await?;
    let mut rows = vec![fan_out("docket", &sockets, || docket.publish(1)).await?];
    drop(sockets);
    let message = docket.one_message().await?;
    let bare = Bare::start(message.len()).await?;
    let sockets = Sockets::open(&bare.address, settings.sockets, BARE_HELLO).await?;
    rows.push(fan_out("bare broadcast", &sockets, || bare.publish(1, &message)).await?);
    drop(sockets);
    println!("\nfan-out: one change to {} subscribers, time from the sending of the command, in ms:", settings.sockets);
    table::print(&["who", "p50", "p99", "last"], &rows);
    docket.with_slow_clients(settings.subscribers).await?;
    let mut rows = vec![];
    for _ in 0..settings.rounds {
        let sockets = Sockets::open(&bare.address, settings.subscribers, BARE_HELLO).await?;
        rows.push((
            "bare broadcast",
            sustained(&sockets, settings.measured, |count| bare.publish(count, &message)).await?,
        ));
        drop(sockets);
        let sockets = Sockets::open(&docket.address, settings.subscribers, &docket.hello).await?;
        rows.push(("docket", sustained(&sockets, settings.measured, |count| docket.publish(count)).await?));
    }
    println!("\nsustained: {} subscribers of one channel, {} bytes per change:", settings.subscribers, message.len());
    let of = |name: &str| table::median(rows.iter().filter(|row| row.0 == name).map(|row| row.1));
    let bare = of("bare broadcast");
    let cells: Vec<Vec<String>> = ["bare broadcast", "docket"]
        .iter()
        .map(|name| {
            let rate = of(name);
            let changes = rate / settings.subscribers as f64;
            vec![
                (*name).to_owned(),
                "WebSocket".to_owned(),
                format!("{rate:.0}"),
                format!("{changes:.0}"),
                format!("{:.2}", rate / bare),
            ]
        })
        .collect();
    table::print(&["who", "over", "deliveries/s", "changes/s", "ratio"], &cells);
    Ok(())
}

/// Returns deliveries per second. Publishes as many changes as the slowest socket can receive.
async fn sustained<F: Future<Output = anyhow::Result<()>>>(
    sockets: &Sockets,
    measured: Duration,
    publish: impl Fn(u64) -> F,
) -> anyhow::Result<f64> {
    let before = sockets.slowest()?;
    let (mut published, started) = (0, Instant::now());
    while started.elapsed() < measured {
        if published - (sockets.slowest()? - before) <= IN_FLIGHT_MAX - AT_ONCE {
            publish(AT_ONCE).await?;
            published += AT_ONCE;
        } else {
            tokio::time::sleep(Duration::from_micros(200)).await;
        }
    }
    let rate = sockets.delivered() as f64 / started.elapsed().as_secs_f64();
    let until = Instant::now() + DELIVERED_WITHIN;
    while sockets.slowest()? < before + published {
        ensure!(
            Instant::now() < until,
            "Only {} of {published} changes reached the slowest socket.",
            sockets.slowest()? - before
        );
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    let (got, sent) = (sockets.delivered(), published * sockets.counters.len() as u64);
    ensure!(got == sent, "There were {got} deliveries instead of {sent}.");
    Ok(rate)
}

/// Measures the time from the sending of a change until each socket has received it. Returns a row of the table.
async fn fan_out<F: Future<Output = anyhow::Result<()>>>(
    name: &str,
    sockets: &Sockets,
    publish: impl Fn() -> F,
) -> anyhow::Result<Vec<String>> {
    let mut times = vec![];
    for number in 1..=CHANGES as u64 {
        let sent = sockets.started.elapsed().as_micros() as u64;
        publish().await?;
        let until = Instant::now() + DELIVERED_WITHIN;
        while sockets.slowest()? < number {
            ensure!(Instant::now() < until, "A change did not reach every socket.");
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        times.extend(sockets.counters.iter().map(|counter| counter.last_us.load(Relaxed).saturating_sub(sent)));
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
    times.sort_unstable();
    let at = |share: f64| times[((times.len() - 1) as f64 * share) as usize] as f64 / 1_000.0;
    let cells = [0.5, 0.99, 1.0].map(|share| format!("{:.1}", at(share)));
    Ok(std::iter::once(name.to_owned()).chain(cells).collect())
}

struct Docket<'a> {
    system: &'a TestSystem,
    address: String,
    hello: String,
}

impl<'a> Docket<'a> {
    async fn prepare(system: &'a TestSystem) -> anyhow::Result<Self> {
        for number in 0..ORDERS {
            let order = json!({"order_id": format!("o-{number}"), "customer_id": format!("c-{number}")});
            system.post("/v1/orders").json(order).send().await.expect(201);
        }
        let address = system.reader().base().trim_start_matches("http://").to_owned();
        let connect = json!({"id": 1, "connect": {"token": token("clerk", "staff")}});
        let hello = format!("{connect}\n{}", json!({"id": 2, "subscribe": {"channel": "orders"}}));
        let docket = Self { system, address, hello };
        docket.publish(ORDERS as u64).await?;
        system.settled().await;
        Ok(docket)
    }

    /// Publishes `count` changes: adds items to orders.
    async fn publish(&self, count: u64) -> anyhow::Result<()> {
        let line = |number: u64| {
            let order = format!("o-{}", number as usize % ORDERS);
            json!({"type": "add_item", "order_id": order, "sku": "bagel", "quantity": 1, "unit_price": "0.50"})
                .to_string()
        };
        let lines: Vec<_> = (0..count).map(line).collect();
        let answer =
            self.system.post("/v1/commands").body("application/x-ndjson", lines.join("\n")).send().await.expect(200);
        let text = String::from_utf8_lossy(&answer.body);
        let refused = text.lines().find(|line| !line.contains("\"status\":200"));
        ensure!(refused.is_none(), "{refused:?}");
        Ok(())
    }

    /// Opens idle sockets, and prints the server's memory for each.
    async fn idle(&self, count: usize) -> anyhow::Result<Sockets> {
        // A first socket lets the server allocate what it needs only once, which must not be counted.
        drop(Sockets::open(&self.address, 1, &self.hello).await?);
        let before = self.memory_kib();
        let sockets = Sockets::open(&self.address, count, &self.hello).await?;
        tokio::time::sleep(Duration::from_secs(2)).await;
        let each = (self.memory_kib() - before) / count as f64;
        println!("idle: {count} sockets, {each:.1} KiB of the server's memory per socket");
        Ok(sockets)
    }

    /// Measures how clients that do not read affect the other clients and the server's memory.
    async fn with_slow_clients(&self, subscribers: usize) -> anyhow::Result<()> {
        let sockets = Sockets::open(&self.address, subscribers, &self.hello).await?;
        let cut_before = self.cut_off().await;
        let mut rows = vec![];
        for slow in [0, SLOW_CLIENTS, 0] {
            let _slow = Sockets::open_without_reading(&self.address, slow, &self.hello).await?;
            let (mut times, mut most) = (vec![], 0.0_f64);
            for _ in 0..BURSTS {
                let (before, started) = (sockets.slowest()?, Instant::now());
                self.publish(BURST).await?;
                while sockets.slowest()? < before + BURST {
                    ensure!(started.elapsed() < DELIVERED_WITHIN, "A change did not reach every socket that reads.");
                    tokio::time::sleep(Duration::from_millis(1)).await;
                }
                times.push(started.elapsed().as_secs_f64() * 1_000.0);
                most = most.max(self.memory_kib() / 1_024.0);
                tokio::time::sleep_until(started + BURST_EVERY).await;
            }
            times.sort_unstable_by(f64::total_cmp);
            let at = |share: f64| format!("{:.1}", times[((times.len() - 1) as f64 * share) as usize]);
            rows.push(vec![format!("{slow} sockets that do not read"), at(0.5), at(0.99), format!("{most:.0}")]);
        }
        let cut = self.cut_off().await - cut_before;
        ensure!(cut == SLOW_CLIENTS as u64, "The server cut off {cut} instead of {SLOW_CLIENTS} slow sockets.");
        println!(
            "\n{BURST} changes to {subscribers} subscribers, time until the last one has received all, in ms; server memory in MiB:"
        );
        table::print(&["beside", "p50", "p99", "memory"], &rows);
        println!("The server cut off {cut} slow sockets.");
        Ok(())
    }

    /// Returns the current memory of the server, in KiB.
    fn memory_kib(&self) -> f64 {
        self.system.dockets[0].memory_kib() as f64
    }

    /// Returns the number of connections that the server has cut off as slow.
    async fn cut_off(&self) -> u64 {
        let sample = r#"docket_push_closed_total{reason="slow"}"#;
        self.system.dockets[0].metric(sample).await.unwrap_or(0.0) as u64
    }

    /// Returns the frame of one change, as a subscriber receives it.
    async fn one_message(&self) -> anyhow::Result<String> {
        let path = "/v1/poll?channel=orders&wait=10";
        let first: Value = self.system.get(path).send().await.expect(200).json();
        let cursor = first["cursor"].as_str().context("the answer has no cursor")?;
        self.publish(1).await?;
        let polled: Value = self.system.get(&format!("{path}&cursor={cursor}")).send().await.expect(200).json();
        let event = &polled["events"][0];
        let publication =
            json!({"data": event["data"], "offset": event["offset"], "tags": {"prev": event["prev"].to_string()}});
        Ok(json!({"push": {"channel": "orders", "pub": publication}}).to_string())
    }
}

struct Bare {
    address: String,
    http: reqwest::Client,
    _process: Process,
    _directory: TempDir,
}

impl Bare {
    async fn start(bytes: usize) -> anyhow::Result<Self> {
        ensure!(bytes < 60_000, "A message of {bytes} bytes is too long.");
        let program = profile_directory().join("docket-bench-bare");
        ensure!(
            program.is_file(),
            "{} is missing. Build it with: cargo build --profile dist -p bench",
            program.display()
        );
        let directory = tempfile::Builder::new().prefix("docket-bench-").tempdir()?;
        let address = format!("127.0.0.1:{}", free_port());
        let listen = [("LISTEN".to_owned(), address.clone())];
        let mut process = Process::new("bare", program, directory.path().join("log")).envs(&listen);
        process.start();
        process
            .wait_until(Duration::from_secs(30), || async { tokio::net::TcpStream::connect(&address).await.is_ok() })
            .await;
        Ok(Self { address, http: reqwest::Client::new(), _process: process, _directory: directory })
    }

    async fn publish(&self, count: u64, message: &str) -> anyhow::Result<()> {
        let url = format!("http://{}/publish?count={count}", self.address);
        self.http.post(url).body(message.to_owned()).send().await?.error_for_status()?;
        Ok(())
    }
}
