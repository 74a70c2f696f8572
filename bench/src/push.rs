//! The case `push`: what idle sockets cost, how long one change takes to everybody, and how many deliveries a second hold,
//! beside a bare broadcast of the same bytes.

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

/// Changes of the fan-out, one after the other.
const CHANGES: usize = 20;
/// How long a change may take to everybody.
const DELIVERED_WITHIN: Duration = Duration::from_secs(30);
/// Changes that are published at once in the sustained part, and that may be on their way to the slowest.
const AT_ONCE: u64 = 64;
const ON_THE_WAY: u64 = 192;
/// Sockets that do not read, and the bursts of changes that they are measured with.
const SILENT: usize = 10;
const BURSTS: usize = 200;
const BURST: u64 = 16;
const BURST_EVERY: Duration = Duration::from_millis(50);
/// What a subscriber of the bare broadcast sends.
const BARE_HELLO: &str = r#"{"id":1}"#;
/// Orders whose changes are published.
const ORDERS: usize = 16;

/// What to measure with.
pub struct Settings {
    /// Idle sockets, which are also those of the fan-out.
    pub sockets: usize,
    /// Sockets of the sustained part.
    pub subscribers: usize,
    /// How long that lasts, each.
    pub measured: Duration,
    /// How often, in turn.
    pub rounds: u32,
}

/// Measures, and prints a table.
///
/// # Errors
/// When a socket is refused or closed.
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
    println!("\nfan-out: one change to {} subscribers, from the command's send, in ms:", settings.sockets);
    table::print(&["who", "p50", "p99", "last"], &rows);
    docket.beside_silent(settings.subscribers).await?;
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
    println!("\nsustained, {} subscribers of one channel, {} bytes a change:", settings.subscribers, message.len());
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

/// Deliveries a second, while as many changes are published as the slowest socket takes.
async fn sustained<F: Future<Output = anyhow::Result<()>>>(
    sockets: &Sockets,
    measured: Duration,
    publish: impl Fn(u64) -> F,
) -> anyhow::Result<f64> {
    let before = sockets.slowest()?;
    let (mut published, started) = (0, Instant::now());
    while started.elapsed() < measured {
        if published - (sockets.slowest()? - before) <= ON_THE_WAY - AT_ONCE {
            publish(AT_ONCE).await?;
            published += AT_ONCE;
        } else {
            tokio::time::sleep(Duration::from_micros(200)).await;
        }
    }
    let rate = sockets.delivered() as f64 / started.elapsed().as_secs_f64();
    let until = Instant::now() + DELIVERED_WITHIN;
    while sockets.slowest()? < before + published {
        ensure!(Instant::now() < until, "{} of {published} changes reached the slowest", sockets.slowest()? - before);
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    let (got, sent) = (sockets.delivered(), published * sockets.counters.len() as u64);
    ensure!(got == sent, "{got} deliveries of {sent}: something came twice, or what came was not counted");
    Ok(rate)
}

/// How long one change takes to every socket: a row of the table.
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
            ensure!(Instant::now() < until, "a change did not reach every socket");
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

    /// Adds pieces to orders.
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

    /// Idle sockets, and what they cost.
    async fn idle(&self, count: usize) -> anyhow::Result<Sockets> {
        // One socket first: what is made once does not count.
        drop(Sockets::open(&self.address, 1, &self.hello).await?);
        let before = self.memory_kib();
        let sockets = Sockets::open(&self.address, count, &self.hello).await?;
        tokio::time::sleep(Duration::from_secs(2)).await;
        let each = (self.memory_kib() - before) / count as f64;
        println!("idle: {count} sockets, {each:.1} KiB of the server's memory each");
        Ok(sockets)
    }

    /// What clients that do not read cost the others, and the server.
    async fn beside_silent(&self, subscribers: usize) -> anyhow::Result<()> {
        let sockets = Sockets::open(&self.address, subscribers, &self.hello).await?;
        let cut_before = self.cut_off().await;
        let mut rows = vec![];
        for silent in [0, SILENT, 0] {
            let _silent = Sockets::open_silent(&self.address, silent, &self.hello).await?;
            let (mut times, mut most) = (vec![], 0.0_f64);
            for _ in 0..BURSTS {
                let (before, started) = (sockets.slowest()?, Instant::now());
                self.publish(BURST).await?;
                while sockets.slowest()? < before + BURST {
                    ensure!(started.elapsed() < DELIVERED_WITHIN, "a change did not reach every socket that reads");
                    tokio::time::sleep(Duration::from_millis(1)).await;
                }
                times.push(started.elapsed().as_secs_f64() * 1_000.0);
                most = most.max(self.memory_kib() / 1_024.0);
                tokio::time::sleep_until(started + BURST_EVERY).await;
            }
            times.sort_unstable_by(f64::total_cmp);
            let at = |share: f64| format!("{:.1}", times[((times.len() - 1) as f64 * share) as usize]);
            rows.push(vec![format!("{silent} sockets that do not read"), at(0.5), at(0.99), format!("{most:.0}")]);
        }
        let cut = self.cut_off().await - cut_before;
        ensure!(cut == SILENT as u64, "{cut} of {SILENT} that do not read were cut off as slow");
        println!(
            "\n{BURST} changes to {subscribers} subscribers, until the last has them, in ms; the server's memory in MiB:"
        );
        table::print(&["beside", "p50", "p99", "memory"], &rows);
        println!("{cut} were cut off as slow");
        Ok(())
    }

    /// The memory that the server holds now, in KiB.
    fn memory_kib(&self) -> f64 {
        self.system.dockets[0].memory_kib() as f64
    }

    /// Connections that were ended as slow.
    async fn cut_off(&self) -> u64 {
        let sample = r#"docket_push_closed_total{reason="slow"}"#;
        self.system.dockets[0].metric(sample).await.unwrap_or(0.0) as u64
    }

    /// A frame as subscribers get it.
    async fn one_message(&self) -> anyhow::Result<String> {
        let path = "/v1/poll?channel=orders&wait=10";
        let first: Value = self.system.get(path).send().await.expect(200).json();
        let cursor = first["cursor"].as_str().context("a cursor")?;
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
        ensure!(bytes < 60_000, "one message is {bytes} bytes");
        let program = profile_directory().join("docket-bench-bare");
        ensure!(
            program.is_file(),
            "{} is missing; build it with: cargo build --profile dist -p bench",
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
