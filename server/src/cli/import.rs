//! `docket import`: imports orders from a file through `POST /v1/commands` of a running server.
//!
//! Each order is sent as one `create_order` with all its items, so it is created completely or not at all. Then it is
//! confirmed. Items that the server rejects are reported with their lines and removed, and the order is sent again
//! without them. A repeated import finds every order there already and creates no duplicates.

use std::collections::{HashMap, HashSet, VecDeque};
use std::fs::File;
use std::io::{BufRead, BufReader, IsTerminal, Read};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, anyhow, bail};
use futures::StreamExt;
use indicatif::{ProgressBar, ProgressStyle};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};

use crate::cli::{EXIT_REJECTED, Import, Usage, print_line};

/// Most orders that are in flight at a time.
const ORDERS_IN_FLIGHT: usize = 1_024;
/// Longest command that the server accepts, in bytes.
const LINE_BYTES_MAX: usize = 1 << 20;
/// How often one order is retried after the server has answered 503 or 429.
const TRIES_MAX: u32 = 20;
/// How long to wait for the next result.
const RESULT_TIMEOUT: Duration = Duration::from_secs(60);
/// Delay before an order is retried. Other orders continue meanwhile.
const RETRY_DELAY: Duration = Duration::from_millis(500);
/// How often the request is sent while the server has no capacity for it, and the delay before the next try when the
/// answer has no `Retry-After`.
const REQUESTS_MAX: u32 = 30;
const RETRY_AFTER: Duration = Duration::from_secs(1);

/// A line of the file.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
struct Row {
    order_ref: String,
    customer_ref: String,
    store_id: String,
    placed_at: String,
    sku: String,
    product_name: String,
    department: String,
    quantity: String,
    unit_price: String,
}

/// An item with its line number in the file.
struct Item {
    line: u64,
    json: Value,
}

/// An order of the file.
struct Order {
    order_ref: String,
    customer_ref: String,
    store_id: String,
    placed_at: String,
    items: Vec<Item>,
    tries: u32,
    /// Permit among [`ORDERS_IN_FLIGHT`].
    _place: OwnedSemaphorePermit,
}

/// A line that was not imported, and the reason.
#[derive(Debug, Serialize)]
struct Rejected {
    line: u64,
    order_ref: String,
    reason: String,
}

#[derive(Debug, Default, Serialize)]
struct Summary {
    orders: u64,
    lines: u64,
    confirmed: u64,
    left_draft: u64,
    already_there: u64,
    rejected_lines: u64,
    seconds: f64,
    lines_per_second: u64,
    rejected: Vec<Rejected>,
}

/// A line of the server's response: the result of one command.
#[derive(Debug, Deserialize)]
struct LineResult {
    #[serde(default)]
    id: Option<u64>,
    status: u16,
    #[serde(default)]
    problem: Option<Problem>,
}

#[derive(Debug, Default, Deserialize)]
struct Problem {
    r#type: String,
    #[serde(default)]
    detail: Option<String>,
    #[serde(default)]
    errors: Vec<FieldError>,
}

#[derive(Debug, Deserialize)]
struct FieldError {
    pointer: String,
    message: String,
}

pub async fn import(arguments: Import) -> anyhow::Result<u8> {
    let file = File::open(&arguments.file).with_context(|| format!("cannot read {}", arguments.file.display()))?;
    let bytes = file.metadata()?.len();
    let read = Arc::new(AtomicU64::new(0));
    let rows = rows(&arguments.file, Counted { file, read: read.clone() })?;
    let bar = progress_bar(bytes);
    let started = Instant::now();
    let (orders, read_orders) = mpsc::channel(64);
    let places = Arc::new(Semaphore::new(ORDERS_IN_FLIGHT));
    let reader = tokio::task::spawn_blocking({
        let bar = bar.clone();
        move || group(rows, &orders, &places, &|lines| show(&bar, &read, lines, started))
    });
    let mut summary = match arguments.dry_run {
        true => count(read_orders).await,
        false => {
            let token = arguments.token.ok_or_else(|| {
                Usage(anyhow!(
                    "A token is missing. Give --token or set DOCKET_TOKEN. `docket token --sub me --role staff` prints one."
                ))
            })?;
            Sender::new(&arguments.url, &token)?.send(read_orders).await?
        }
    };
    let (lines, unreadable) = reader.await??;
    bar.finish_and_clear();
    summary.rejected.extend(unreadable);
    summary.rejected.sort_by_key(|rejected| rejected.line);
    summary.lines = lines;
    summary.rejected_lines = summary.rejected.len() as u64;
    summary.seconds = (started.elapsed().as_secs_f64() * 1000.0).round() / 1000.0;
    summary.lines_per_second = (lines as f64 / summary.seconds.max(0.001)) as u64;
    print(&summary, arguments.json)?;
    Ok(if summary.rejected.is_empty() { 0 } else { EXIT_REJECTED })
}

fn print(summary: &Summary, as_json: bool) -> anyhow::Result<()> {
    if as_json {
        print_line(serde_json::to_string(summary)?);
    } else {
        for Rejected { line, order_ref, reason } in &summary.rejected {
            print_line(format_args!("line {line} (order {order_ref}): {reason}"));
        }
    }
    eprintln!(
        "{} orders in {} lines: {} confirmed, {} left as empty drafts, {} imported before, {} lines rejected. \
         {:.1} s, {} lines/s.",
        summary.orders,
        summary.lines,
        summary.confirmed,
        summary.left_draft,
        summary.already_there,
        summary.rejected_lines,
        summary.seconds,
        summary.lines_per_second
    );
    Ok(())
}

fn progress_bar(bytes: u64) -> ProgressBar {
    if !std::io::stderr().is_terminal() {
        return ProgressBar::hidden();
    }
    let bar = ProgressBar::new(bytes);
    if let Ok(style) = ProgressStyle::with_template("{bar:30} {percent}% {msg}, {eta} left") {
        bar.set_style(style);
    }
    bar
}

fn show(bar: &ProgressBar, read: &AtomicU64, lines: u64, started: Instant) {
    if lines.is_multiple_of(1_000) {
        bar.set_position(read.load(Ordering::Relaxed));
        bar.set_message(format!("{lines} lines, {:.0} lines/s", lines as f64 / started.elapsed().as_secs_f64()));
    }
}

// ---- reading ----

/// Counts the bytes that are read from the file, before decompression.
struct Counted {
    file: File,
    read: Arc<AtomicU64>,
}

impl Read for Counted {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        let read = self.file.read(buffer)?;
        self.read.fetch_add(read as u64, Ordering::Relaxed);
        Ok(read)
    }
}

/// The number of a line, and its row or the reason why it cannot be read.
type NumberedRow = (u64, Result<Row, String>);
type Rows = Box<dyn Iterator<Item = NumberedRow> + Send>;

fn rows(path: &Path, file: Counted) -> anyhow::Result<Rows> {
    let name = path.file_name().unwrap_or_default().to_string_lossy().to_lowercase();
    let (name, reader): (_, Box<dyn Read + Send>) = match name.strip_suffix(".gz") {
        Some(name) => (name.to_owned(), Box::new(flate2::read::MultiGzDecoder::new(file))),
        None => (name.clone(), Box::new(file)),
    };
    if name.ends_with(".ndjson") || name.ends_with(".jsonl") {
        let lines = BufReader::new(reader)
            .lines()
            .zip(1..)
            .filter(|(line, _)| !line.as_ref().is_ok_and(|l| l.trim().is_empty()));
        let mut broken = false;
        // A reader that has failed fails again at every call, so the lines end after the first failure.
        let lines = lines.take_while(move |(line, _)| {
            let fails = line.as_ref().is_err_and(|error| error.kind() != std::io::ErrorKind::InvalidData);
            !std::mem::replace(&mut broken, fails)
        });
        return Ok(Box::new(lines.map(|(line, number)| {
            let row = line.map_err(|e| e.to_string()).and_then(|l| {
                // Some programs write a byte order mark at the start of a file. The CSV reader skips it by itself.
                serde_json::from_str(l.strip_prefix('\u{feff}').unwrap_or(&l)).map_err(|e| e.to_string())
            });
            (number, row)
        })));
    }
    if !name.ends_with(".csv") {
        bail!(Usage(anyhow!(
            "{}: The file name must end in .csv, .ndjson or .jsonl, optionally followed by .gz.",
            path.display()
        )));
    }
    let mut csv = csv::ReaderBuilder::new().from_reader(reader);
    let headers = csv.headers().with_context(|| format!("cannot read {}", path.display()))?.clone();
    let _: () = check_columns(&headers).map_err(|reason| Usage(anyhow!("{}: {reason}", path.display())))?;
    // A record has the number of its first line. A record that cannot be parsed is reported with that number, too.
    Ok(Box::new(csv.into_records().map(move |record| match record {
        Ok(record) => {
            let line = record.position().map_or(0, csv::Position::line);
            (line, record.deserialize(Some(&headers)).map_err(|e| e.to_string()))
        }
        Err(error) => (error.position().map_or(0, csv::Position::line), Err(error.to_string())),
    })))
}

fn check_columns(headers: &csv::StringRecord) -> Result<(), String> {
    let wanted = [
        "order_ref",
        "customer_ref",
        "store_id",
        "placed_at",
        "sku",
        "product_name",
        "department",
        "quantity",
        "unit_price",
    ];
    match wanted.iter().find(|name| !headers.iter().any(|header| header == **name)) {
        Some(missing) => Err(format!("The column `{missing}` is missing. The columns must be {}.", wanted.join(", "))),
        None => Ok(()),
    }
}

/// Groups adjacent lines into orders, and sends the orders to `orders`. Returns the number of lines, and the lines that
/// were rejected.
fn group(
    rows: Rows,
    orders: &mpsc::Sender<Order>,
    places: &Arc<Semaphore>,
    on_line: &dyn Fn(u64),
) -> anyhow::Result<(u64, Vec<Rejected>)> {
    let mut lines = 0;
    let mut unreadable = Vec::new();
    let mut current: Option<Order> = None;
    let mut seen = HashSet::new();
    let runtime = tokio::runtime::Handle::current();
    for (line, row) in rows {
        lines += 1;
        on_line(lines);
        let row = match row {
            Ok(row) => row,
            Err(reason) => {
                unreadable.push(Rejected { line, order_ref: String::new(), reason });
                continue;
            }
        };
        if current.as_ref().is_none_or(|order| order.order_ref != row.order_ref) {
            if !seen.insert(row.order_ref.clone()) {
                let reason =
                    "The other lines of this order are further up. Put the lines of an order together.".to_owned();
                unreadable.push(Rejected { line, order_ref: row.order_ref, reason });
                continue;
            }
            if let Some(order) = current.take()
                && orders.blocking_send(order).is_err()
            {
                // The sender has stopped and reports the reason.
                return Ok((lines, unreadable));
            }
            let place = runtime.block_on(places.clone().acquire_owned())?;
            current = Some(Order {
                order_ref: row.order_ref.clone(),
                customer_ref: row.customer_ref.clone(),
                store_id: row.store_id.clone(),
                placed_at: row.placed_at.clone(),
                items: Vec::new(),
                tries: 0,
                _place: place,
            });
        }
        if let Some(order) = &mut current {
            order.items.push(Item { line, json: item(row) });
        }
    }
    if let Some(order) = current {
        let _ = orders.blocking_send(order);
    }
    Ok((lines, unreadable))
}

fn item(row: Row) -> Value {
    // A quantity that is not a number is sent unchanged, so that the server reports what is wrong with it.
    let quantity = row.quantity.parse::<u64>().map_or(Value::from(row.quantity), Value::from);
    let mut item = json!({"sku": row.sku, "quantity": quantity, "unit_price": row.unit_price});
    for (name, text) in [("name", row.product_name), ("category", row.department)] {
        if !text.is_empty() {
            item[name] = text.into();
        }
    }
    item
}

async fn count(mut orders: mpsc::Receiver<Order>) -> Summary {
    let mut summary = Summary::default();
    while orders.recv().await.is_some() {
        summary.orders += 1;
    }
    summary
}

// ---- sending ----

/// The command of an order that is sent or retried.
enum Step {
    Create,
    Confirm { created: bool },
}

struct Sender {
    client: reqwest::Client,
    url: String,
    token: String,
    in_flight: HashMap<u64, (Order, Step)>,
    /// Orders to retry, each with its time; the earliest first.
    retries: VecDeque<(tokio::time::Instant, u64, Order, Step)>,
    summary: Summary,
}

impl Sender {
    fn new(url: &str, token: &str) -> anyhow::Result<Self> {
        Ok(Self {
            client: reqwest::Client::builder().tcp_nodelay(true).connect_timeout(Duration::from_secs(10)).build()?,
            url: format!("{}/v1/commands", url.trim_end_matches('/')),
            token: token.to_owned(),
            in_flight: HashMap::new(),
            retries: VecDeque::new(),
            summary: Summary::default(),
        })
    }

    /// Sends every order through one request, reads the results as they arrive, and retries orders when necessary.
    async fn send(mut self, mut orders: mpsc::Receiver<Order>) -> anyhow::Result<Summary> {
        let (commands, response) = self.open().await?;
        if !response.status().is_success() {
            let status = response.status();
            let hint = match status {
                reqwest::StatusCode::UNAUTHORIZED => " Run `docket token --sub me --role staff` to get a token.",
                reqwest::StatusCode::NOT_FOUND | reqwest::StatusCode::METHOD_NOT_ALLOWED => {
                    " Use the URL of a process with the role write."
                }
                _ => "",
            };
            let problem: Problem = response.json().await.unwrap_or_default();
            bail!("{} answered {status}. {}{hint}", self.url, problem.detail.unwrap_or_default());
        }
        let mut results = Box::pin(lines(response.bytes_stream()));
        let mut more = true;
        while more || !self.in_flight.is_empty() || !self.retries.is_empty() {
            let due = self.retries.front().map(|(due, ..)| *due);
            tokio::select! {
                () = tokio::time::sleep_until(due.unwrap_or_else(tokio::time::Instant::now)), if due.is_some() => {
                    if let Some((_, id, order, step)) = self.retries.pop_front() {
                        self.command(&commands, id, order, step)?;
                    }
                }
                order = orders.recv(), if more => match order {
                    Some(order) => {
                        self.summary.orders += 1;
                        let id = self.summary.orders;
                        self.create(&commands, id, order)?;
                    }
                    None => more = false,
                },
                result = tokio::time::timeout(RESULT_TIMEOUT, results.next()), if !self.in_flight.is_empty() => {
                    let result = result.context("the server sent no result for a minute; run the import again, it creates no duplicates")?;
                    let line = result.context("the server ended the response early; run the import again, it creates no duplicates")?
                        .context("the connection was lost; run the import again, it creates no duplicates")?;
                    self.result(&commands, serde_json::from_slice(&line)?)?;
                }
            }
        }
        Ok(self.summary)
    }

    /// Opens the request. Retries while the server has no capacity for it.
    async fn open(&self) -> anyhow::Result<(mpsc::UnboundedSender<String>, reqwest::Response)> {
        for request in 1.. {
            let (commands, body) = mpsc::unbounded_channel::<String>();
            let body = futures::stream::unfold(body, |mut body| async {
                let mut chunk = body.recv().await?;
                while chunk.len() < 64 * 1024 {
                    let Ok(next) = body.try_recv() else { break };
                    chunk += &next;
                }
                Some((Ok::<_, std::convert::Infallible>(chunk), body))
            });
            let response = self
                .client
                .post(&self.url)
                .bearer_auth(&self.token)
                .header("content-type", "application/x-ndjson")
                .body(reqwest::Body::wrap_stream(body))
                .send()
                .await
                .with_context(|| format!("no server answers at {}; start one, or give its URL with --url", self.url))?;
            if !matches!(response.status().as_u16(), 429 | 503) || request == REQUESTS_MAX {
                return Ok((commands, response));
            }
            let after = response.headers().get("retry-after").and_then(|value| value.to_str().ok()?.parse().ok());
            tokio::time::sleep(after.map_or(RETRY_AFTER, Duration::from_secs)).await;
        }
        bail!("{} has no capacity for the import. Run the import again later.", self.url)
    }

    /// Sends the command of a step.
    fn command(
        &mut self,
        commands: &mpsc::UnboundedSender<String>,
        id: u64,
        order: Order,
        step: Step,
    ) -> anyhow::Result<()> {
        match step {
            Step::Create => self.create(commands, id, order),
            Step::Confirm { created } => self.confirm(commands, id, order, created),
        }
    }

    fn create(&mut self, commands: &mpsc::UnboundedSender<String>, id: u64, order: Order) -> anyhow::Result<()> {
        let items: Vec<_> = order.items.iter().map(|item| &item.json).collect();
        let attributes = if order.store_id.is_empty() { json!({}) } else { json!({"store_id": order.store_id}) };
        let command = json!({
            "type": "create_order", "id": id, "order_id": order.order_ref, "customer_id": order.customer_ref,
            "attributes": attributes, "occurred_at": order.placed_at, "history": true, "items": items,
        });
        if command.to_string().len() > LINE_BYTES_MAX {
            self.reject(&order, "The order is larger than 1 MiB.");
            return Ok(());
        }
        self.in_flight.insert(id, (order, Step::Create));
        push(commands, &command)
    }

    fn confirm(
        &mut self,
        commands: &mpsc::UnboundedSender<String>,
        id: u64,
        order: Order,
        created: bool,
    ) -> anyhow::Result<()> {
        let command = json!({
            "type": "confirm_order", "id": id, "order_id": order.order_ref, "occurred_at": order.placed_at, "history": true,
        });
        self.in_flight.insert(id, (order, Step::Confirm { created }));
        push(commands, &command)
    }

    /// Handles the result of a command, and sends the next command of its order.
    fn result(&mut self, commands: &mpsc::UnboundedSender<String>, result: LineResult) -> anyhow::Result<()> {
        let Some(id) = result.id else {
            let detail = result.problem.and_then(|problem| problem.detail).unwrap_or_default();
            bail!(
                "The server stopped reading the request ({}): {detail} Run the import again. It creates no duplicates.",
                result.status
            );
        };
        let Some((mut order, step)) = self.in_flight.remove(&id) else { return Ok(()) };
        let problem = result.problem.as_ref();
        let slug = problem.map_or("", |problem| problem.r#type.trim_start_matches("/problems/"));
        match (step, result.status, slug) {
            (step, 503 | 429, _) if order.tries < TRIES_MAX => {
                order.tries += 1;
                self.retries.push_back((tokio::time::Instant::now() + RETRY_DELAY, id, order, step));
            }
            (Step::Create, 201, _) if order.items.is_empty() => self.summary.left_draft += 1,
            (Step::Create, 409, "order-exists") if order.items.is_empty() => self.summary.already_there += 1,
            (Step::Create, 201, _) => self.confirm(commands, id, order, true)?,
            (Step::Create, 409, "order-exists") => self.confirm(commands, id, order, false)?,
            (Step::Create, _, _) if problem.is_some_and(|problem| self.reject_items(&mut order, problem)) => {
                self.create(commands, id, order)?;
            }
            (Step::Confirm { .. }, 200, _) => self.summary.confirmed += 1,
            (Step::Confirm { created: false }, _, "order-not-draft") => self.summary.already_there += 1,
            // An earlier try has confirmed the order, but its answer was lost.
            (Step::Confirm { created: true }, _, "order-not-draft") if order.tries > 0 => self.summary.confirmed += 1,
            (_, 401, _) => bail!(
                "The token is no longer valid ({slug}). Run the import again with a new token. It creates no duplicates."
            ),
            (_, 403, _) => bail!("The token does not allow imports. Run `docket token --sub me --role staff`."),
            (_, status, _) => {
                let detail = problem.and_then(|problem| problem.detail.clone()).unwrap_or_default();
                self.reject(&order, &format!("The server rejected the order ({status} {slug}): {detail}"));
            }
        }
        Ok(())
    }

    /// Records all lines of an order as rejected.
    fn reject(&mut self, order: &Order, reason: &str) {
        self.summary.rejected.extend(order.items.iter().map(|item| Rejected {
            line: item.line,
            order_ref: order.order_ref.clone(),
            reason: reason.to_owned(),
        }));
    }

    /// Removes from the order the items that the problem points at, and records them as rejected. Returns false when
    /// the problem points at no item.
    fn reject_items(&mut self, order: &mut Order, problem: &Problem) -> bool {
        let mut reasons: HashMap<usize, Vec<String>> = HashMap::new();
        for FieldError { pointer, message } in &problem.errors {
            let mut parts = pointer.trim_start_matches('/').splitn(3, '/');
            if let (Some("items"), Some(Ok(at))) = (parts.next(), parts.next().map(str::parse)) {
                let field = parts.next().map(|field| format!("{field}: ")).unwrap_or_default();
                reasons.entry(at).or_default().push(format!("{field}{message}"));
            }
        }
        let before = order.items.len();
        let items = std::mem::take(&mut order.items);
        for (at, item) in items.into_iter().enumerate() {
            match reasons.remove(&at) {
                None => order.items.push(item),
                Some(reasons) => self.summary.rejected.push(Rejected {
                    line: item.line,
                    order_ref: order.order_ref.clone(),
                    reason: reasons.join("; "),
                }),
            }
        }
        order.items.len() < before
    }
}

fn push(commands: &mpsc::UnboundedSender<String>, command: &Value) -> anyhow::Result<()> {
    commands
        .send(format!("{command}\n"))
        .map_err(|_| anyhow!("The server stopped reading the request. Run the import again. It creates no duplicates."))
}

/// Splits the response into lines.
fn lines(
    bytes: impl futures::Stream<Item = reqwest::Result<impl AsRef<[u8]>>> + Unpin,
) -> impl futures::Stream<Item = reqwest::Result<Vec<u8>>> {
    futures::stream::unfold(
        (bytes, Vec::new(), Vec::<Vec<u8>>::new().into_iter()),
        |(mut bytes, mut rest, mut ready)| async move {
            loop {
                if let Some(line) = ready.next() {
                    return Some((Ok(line), (bytes, rest, ready)));
                }
                match bytes.next().await? {
                    Err(error) => return Some((Err(error), (bytes, rest, ready))),
                    Ok(chunk) => {
                        rest.extend_from_slice(chunk.as_ref());
                        let end = rest.iter().rposition(|byte| *byte == b'\n').map_or(0, |at| at + 1);
                        let tail = rest.split_off(end);
                        let lines: Vec<_> = std::mem::replace(&mut rest, tail)
                            .split(|byte| *byte == b'\n')
                            .filter(|line| !line.is_empty())
                            .map(<[u8]>::to_vec)
                            .collect();
                        ready = lines.into_iter();
                    }
                }
            }
        },
    )
}
