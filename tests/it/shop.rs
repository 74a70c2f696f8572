//! `examples/shop`: its page in a browser, and its service on NATS.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tests::client::{JWT_SECRET, token};
use tests::process::{POLL, clean_command, find_on_path};
use tests::system::{Mode, TestSystem};
use tests::wait::until;
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader, Lines};
use tokio::process::{Child, ChildStdin, ChildStdout, Command};

tests::stories![a_customer_orders_and_sees_live_updates];

/// Longest time without a line of output.
const LINE_DEADLINE: Duration = Duration::from_secs(60);

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

/// Time limit for a script to end by itself.
const END_DEADLINE: Duration = Duration::from_secs(5);

/// A Node program that runs. It is killed when the value is dropped.
struct Script {
    child: Child,
    /// Ends when its standard input closes: the script of the page must end the browser first.
    ends_by_itself: bool,
    stdin: Option<ChildStdin>,
    lines: Lines<BufReader<ChildStdout>>,
}

impl Script {
    /// Starts a script in its folder, which has its packages.
    fn start(script: &str, arguments: &[&str], variables: &[(&str, &str)]) -> Self {
        let path = root().join(script);
        let folder = path.parent().expect("a file in a folder");
        assert!(
            folder.join("node_modules").is_dir(),
            "the packages of {script} are missing; install them with: tests/run install"
        );
        let mut command = Command::from(clean_command(&program("node")));
        command.current_dir(folder).arg(&path).args(arguments).envs(variables.iter().copied());
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).kill_on_drop(true);
        let mut child = command.spawn().expect("node starts");
        let stdin = child.stdin.take();
        let lines = BufReader::new(child.stdout.take().expect("standard output is piped")).lines();
        Self { child, ends_by_itself: script.starts_with("tests"), stdin, lines }
    }

    async fn line(&mut self) -> String {
        let line = tokio::time::timeout(LINE_DEADLINE, self.lines.next_line()).await.expect("a line within a minute");
        line.expect("the output is readable").expect("the script is running")
    }

    /// Sends an expression to the page, and waits until its value is neither false nor null.
    async fn ask(&mut self, expression: &str) -> Value {
        let stdin = self.stdin.as_mut().expect("standard input is open");
        stdin.write_all(format!("{expression}\n").as_bytes()).await.expect("the script reads");
        serde_json::from_str(&self.line().await).expect("a line of JSON")
    }

    /// Kills the script, and returns the lines that it printed and nobody has read.
    async fn kill9(&mut self) -> Vec<String> {
        self.child.kill().await.expect("a child of this process");
        let mut lines = vec![];
        while let Ok(Some(line)) = self.lines.next_line().await {
            lines.push(line);
        }
        lines
    }
}

impl Drop for Script {
    fn drop(&mut self) {
        drop(self.stdin.take());
        let started = Instant::now();
        let runs = |child: &mut Child| matches!(child.try_wait(), Ok(None));
        while self.ends_by_itself && runs(&mut self.child) && started.elapsed() < END_DEADLINE {
            std::thread::sleep(POLL);
        }
    }
}

fn program(name: &str) -> PathBuf {
    find_on_path(name).unwrap_or_else(|| panic!("{name} is missing; install it with: tests/run install"))
}

/// Sends requests to Docket from the page, and returns what was answered.
const COMMANDS: &str = "(async () => {
  const { Docket } = await import('/docket.js');
  const { token, docket: url } = await (await fetch('/login', { method: 'POST', body: JSON.stringify({ name: 'ada' }) })).json();
  const docket = new Docket({ url, token });
  const items = [{ sku: 'x', quantity: 1, unit_price: '1.00' }];
  const { order_id } = await docket.orders.create({ customer_id: 'ada', items });
  await docket.orders.confirm(order_id);
  const { status, version } = await docket.orders.get(order_id);
  const second = { type: 'create_order', customer_id: 'ada', order_id: `${order_id}-2` };
  const created = await docket.bulk([second]).next();
  const problem = await docket.orders.confirm(second.order_id).catch((error) => error.name);
  return [status, version, created.value.status, problem];
})()";

async fn a_customer_orders_and_sees_live_updates(mut system: TestSystem) {
    let url = system.writer().base().to_owned();
    let variables = [("PORT", "0"), ("DOCKET_URL", url.as_str()), ("DOCKET_JWT_SECRET", JWT_SECRET)];
    let mut server = Script::start("examples/shop/server.mjs", &[], &variables);
    let line = server.line().await;
    let shop = line.rsplit(' ').next().expect("the line ends with the address").to_owned();

    let browser = ["chromium", "chromium-browser", "google-chrome"].iter().find_map(|name| find_on_path(name));
    let browser = browser.expect("chromium is missing; install it with: tests/run install").display().to_string();
    let mut page = Script::start("tests/clients/shop.mjs", &[&browser, &shop], &[]);
    let click = |selector: &str| format!("document.querySelector('{selector}').click(), true");
    let shows = |selector: &str, text: &str| format!("document.querySelector('{selector}').textContent === '{text}'");
    page.ask("document.body?.dataset.ready").await;
    page.ask(&click("[data-sku=mug]")).await;
    page.ask(&shows("#total", "12.00 USD")).await;
    page.ask(&click("[data-sku=tea]")).await;
    page.ask(&shows("#total", "16.50 USD")).await;

    // A clerk adds something; the page shows it.
    let hash = page.ask("location.hash").await;
    let order =
        hash.as_str().and_then(|hash| hash.strip_prefix("#order=")).expect("the page names its order").to_owned();
    let bagel = json!({"sku": "bagel", "quantity": 4, "unit_price": "0.50"});
    system.post(&format!("/v1/orders/{order}/items")).json(bagel.clone()).send().await.expect(200);
    page.ask(&shows("#total", "18.50 USD")).await;

    // The page resumes after a crash, and misses nothing.
    system.kill9();
    system.restart().await;
    system.post(&format!("/v1/orders/{order}/items")).json(bagel).send().await.expect(200);
    page.ask(&shows("#total", "20.50 USD")).await;
    page.ask(&click("#confirm")).await;
    page.ask(&shows("#status", "confirmed")).await;
    let changes =
        page.ask("[...document.querySelectorAll('#changes li')].map((item) => item.innerText.split('\\n')[0])").await;
    assert_eq!(changes, json!(["Connected", "ItemAdded", "ItemAdded", "ItemAdded", "OrderConfirmed"]));
    assert_eq!(page.ask("document.querySelector('#problem').textContent || 'none'").await, "none");

    // Commands, queries and bulk requests of the client work in a browser too.
    let found = page.ask(&COMMANDS.replace('\n', " ")).await;
    assert_eq!(found, json!(["confirmed", 3, 201, "OrderEmpty"]));

    // Another customer cannot use the order, and nobody without a login.
    let http = reqwest::Client::new();
    let post = |path: &str, body: Value| http.post(format!("{shop}{path}")).body(body.to_string());
    let login: Value =
        post("/login", json!({"name": "bob"})).send().await.expect("an answer").json().await.expect("JSON");
    let bob = login["token"].as_str().expect("a token");
    let body = json!({"order_id": order, "sku": "mug", "key": "k"});
    assert_eq!(post("/items", body.clone()).bearer_auth(bob).send().await.expect("an answer").status(), 404);
    assert_eq!(post("/items", body).send().await.expect("an answer").status(), 401);
}

/// Confirms an order for each number, with one more piece than the number.
async fn confirm(system: &TestSystem, numbers: std::ops::Range<u64>) {
    for number in numbers {
        let id = format!("pack-{number}");
        let items = json!([{"sku": "mug", "quantity": number + 1, "unit_price": "1.00"}]);
        let body = json!({"order_id": id, "customer_id": "ada", "items": items});
        system.post("/v1/orders").json(body).send().await.expect(201);
        system.post(&format!("/v1/orders/{id}/confirm")).send().await.expect(200);
    }
}

/// Returns the packed quantities by order.
fn packed(folder: &Path) -> BTreeMap<String, u64> {
    let read = |path: PathBuf| -> Option<(String, u64)> {
        let list: Value = serde_json::from_slice(&std::fs::read(path).ok()?).ok()?;
        Some((list["order_id"].as_str()?.to_owned(), list["lines"][0]["quantity"].as_u64()?))
    };
    let files = std::fs::read_dir(folder).into_iter().flatten().flatten().map(|entry| entry.path());
    files.filter(|path| path.extension().is_some_and(|kind| kind == "json")).filter_map(read).collect()
}

async fn packs(folder: &Path, count: u64) {
    let expected: BTreeMap<_, _> = (0..count).map(|number| (format!("pack-{number}"), number + 1)).collect();
    until("each order is packed", async || (packed(folder) == expected).then_some(())).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_packing_service_packs_each_order_once_despite_crashes() {
    let system = TestSystem::builder(Mode::Scaled).start().await;
    let nats = system.nats.as_ref().expect("a scaled system");
    let folder = tempfile::tempdir().expect("a temporary directory");
    let (nats_url, token, path) = (nats.url(), token("packing", "admin"), folder.path().display().to_string());
    let variables = [
        ("DOCKET_URL", system.writer().base()),
        ("DOCKET_TOKEN", &token),
        ("NATS_URL", &nats_url),
        ("NATS_STREAM", nats.stream()),
        ("PACKED", &path),
    ];
    let start = || Script::start("examples/shop/packing.mjs", &[], &variables);
    let mut lines = vec![];
    let mut service = start();
    confirm(&system, 0..10).await;
    packs(folder.path(), 10).await;

    // It resumes after a crash.
    lines.extend(service.kill9().await);
    confirm(&system, 10..20).await;
    service = start();
    packs(folder.path(), 20).await;

    // NATS loses the stream while the service is stopped: it reads the log.
    lines.extend(service.kill9().await);
    confirm(&system, 20..23).await;
    nats.jetstream().await.delete_stream(nats.stream()).await.expect("the stream is deleted");
    confirm(&system, 23..26).await;
    service = start();
    packs(folder.path(), 26).await;

    // And while it runs.
    nats.jetstream().await.delete_stream(nats.stream()).await.expect("the stream is deleted");
    confirm(&system, 26..29).await;
    packs(folder.path(), 29).await;
    lines.extend(service.kill9().await);
    let done: Vec<_> = lines.iter().filter(|line| line.starts_with("packed")).collect();
    assert_eq!(done.len(), 29, "an order was packed twice: {done:?}");
}
