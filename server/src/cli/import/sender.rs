//! Sends whole orders through one request of `POST /v1/commands`, one `import_order` for each, and reads the results as
//! they arrive.

use std::collections::{HashMap, VecDeque};
use std::time::Duration;

use anyhow::{Context, anyhow, bail};
use futures::StreamExt;
use jiff::Timestamp;
use serde::Deserialize;
use tokio::sync::mpsc;

use crate::cli::import::arguments::Arguments;
use crate::cli::import::orders::Order;
use crate::cli::import::report::{Fault, Summary};

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

/// A line of the server's response: the result of one command.
#[derive(Debug, Deserialize)]
struct LineResult {
    #[serde(default)]
    id: Option<u64>,
    status: u16,
    #[serde(default)]
    unchanged: bool,
    #[serde(default)]
    created_at: Option<Timestamp>,
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

impl FieldError {
    /// Returns the index of the item that the error is about, and the path within the item.
    fn item(&self) -> Option<(usize, &str)> {
        let rest = self.pointer.strip_prefix("/items/")?;
        let (at, field) = rest.split_once('/').unwrap_or((rest, ""));
        Some((at.parse().ok()?, field))
    }
}

/// Sends the orders of one import.
pub struct Sender {
    client: reqwest::Client,
    url: String,
    token: String,
    is_dry_run: bool,
    is_partial: bool,
    update: bool,
    in_flight: HashMap<u64, Order>,
    /// Orders to retry, each with its time; the earliest first.
    retries: VecDeque<(tokio::time::Instant, u64, Order)>,
    summary: Summary,
}

impl Sender {
    /// Creates the sender of an import.
    ///
    /// # Errors
    /// The client cannot be created.
    pub fn new(arguments: &Arguments, token: &str) -> anyhow::Result<Self> {
        let query = if arguments.dry_run { "?dry_run=true" } else { "" };
        Ok(Self {
            client: reqwest::Client::builder().tcp_nodelay(true).connect_timeout(Duration::from_secs(10)).build()?,
            url: format!("{}/v1/commands{query}", arguments.url.trim_end_matches('/')),
            token: token.to_owned(),
            is_dry_run: arguments.dry_run,
            is_partial: arguments.partial,
            update: arguments.update,
            in_flight: HashMap::new(),
            retries: VecDeque::new(),
            summary: Summary::default(),
        })
    }

    /// Sends every order, and retries orders when necessary.
    ///
    /// # Errors
    /// The server does not answer, or refuses the import as a whole.
    pub async fn send(mut self, mut orders: mpsc::Receiver<Order>) -> anyhow::Result<Summary> {
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
        let (mut more, mut id) = (true, 0);
        while more || !self.in_flight.is_empty() || !self.retries.is_empty() {
            let due = self.retries.front().map(|(due, ..)| *due);
            tokio::select! {
                () = tokio::time::sleep_until(due.unwrap_or_else(tokio::time::Instant::now)), if due.is_some() => {
                    if let Some((_, id, order)) = self.retries.pop_front() {
                        self.command(&commands, id, order)?;
                    }
                }
                order = orders.recv(), if more => match order {
                    Some(order) => {
                        id += 1;
                        self.command(&commands, id, order)?;
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

    /// Sends the command of an order.
    fn command(&mut self, commands: &mpsc::UnboundedSender<String>, id: u64, order: Order) -> anyhow::Result<()> {
        let mut command = serde_json::to_string(&order.head)?;
        command.pop();
        let update = if self.update { r#","update":true"# } else { "" };
        command += &format!(r#","type":"import_order","id":{id},"history":true{update},"items":["#);
        for (at, item) in order.items.iter().enumerate() {
            if at > 0 {
                command.push(',');
            }
            command += &item.json;
        }
        command += "]}\n";
        if command.len() > LINE_BYTES_MAX {
            self.reject(&order, vec![(order.line, "The order is larger than 1 MiB.".to_owned())]);
            return Ok(());
        }
        self.in_flight.insert(id, order);
        commands.send(command).map_err(|_| {
            anyhow!("The server stopped reading the request. Run the import again. It creates no duplicates.")
        })
    }

    /// Handles the result of a command.
    fn result(&mut self, commands: &mpsc::UnboundedSender<String>, result: LineResult) -> anyhow::Result<()> {
        let Some(id) = result.id else {
            let detail = result.problem.and_then(|problem| problem.detail).unwrap_or_default();
            bail!(
                "The server stopped reading the request ({}): {detail} Run the import again. It creates no duplicates.",
                result.status
            );
        };
        let Some(mut order) = self.in_flight.remove(&id) else { return Ok(()) };
        let problem = result.problem.unwrap_or_default();
        let slug = problem.r#type.trim_start_matches("/problems/").to_owned();
        match (result.status, slug.as_str()) {
            (503 | 429, _) if order.tries < TRIES_MAX => {
                order.tries += 1;
                self.retries.push_back((tokio::time::Instant::now() + RETRY_DELAY, id, order));
            }
            (201, _) => self.created(&order),
            // An earlier try has created the order, but its answer was lost.
            (200, _) if result.unchanged && order.tries > 0 && !self.is_dry_run => self.created(&order),
            (200, _) => match time_difference(&order, result.created_at) {
                Some(difference) => self.differ(&order, vec![(order.line, difference)]),
                None if result.unchanged => self.summary.already_there += 1,
                None => self.summary.updated += 1,
            },
            (409, "order-differs") => {
                let line = |error: &FieldError| {
                    error.item().and_then(|(at, _)| order.items.get(at)).map_or(order.line, |item| item.line)
                };
                let mut differences: Vec<(u64, String)> =
                    problem.errors.iter().map(|error| (line(error), error.message.clone())).collect();
                differences.extend(time_difference(&order, result.created_at).map(|text| (order.line, text)));
                self.differ(&order, differences);
            }
            (401, _) => bail!(
                "The token is no longer valid ({slug}). Run the import again with a new token. It creates no duplicates."
            ),
            (403, _) => bail!("The token does not allow imports. Run `docket token --sub me --role staff`."),
            (422, _) if problem.errors.iter().any(|error| error.pointer == "/type") => {
                bail!("The server is older than this program and cannot import. Update the server.")
            }
            (status, _) => {
                let faults = item_faults(&order, &problem);
                match faults.is_empty() {
                    true => {
                        let fields = problem.errors.iter().map(|FieldError { pointer, message }| {
                            format!("{}: {message}", pointer.trim_start_matches('/').replace('/', "."))
                        });
                        let fields: Vec<String> = fields.collect();
                        let reason = match fields.is_empty() {
                            true => problem.detail.clone().unwrap_or_default(),
                            false => fields.join(" "),
                        };
                        let text = format!("The server rejected the order ({status} {slug}): {reason}");
                        self.reject(&order, vec![(order.line, text)]);
                    }
                    false if self.is_partial => {
                        let bad: Vec<u64> = faults.iter().map(|(line, _)| *line).collect();
                        self.summary.rejected_lines += bad.len() as u64;
                        self.add_faults(&order, faults);
                        order.items.retain(|item| !bad.contains(&item.line));
                        // An order without a line cannot be confirmed.
                        if order.items.is_empty() && order.head.status == "confirmed" {
                            order.head.status = "draft";
                        }
                        self.command(commands, id, order)?;
                    }
                    false => self.reject(&order, faults),
                }
            }
        }
        Ok(())
    }

    fn created(&mut self, order: &Order) {
        match order.head.status {
            "confirmed" => self.summary.confirmed += 1,
            "cancelled" => self.summary.cancelled += 1,
            _ => self.summary.left_draft += 1,
        }
    }

    fn differ(&mut self, order: &Order, differences: Vec<(u64, String)>) {
        self.summary.different += 1;
        self.summary.differences.extend(differences.into_iter().map(|(line, reason)| fault(order, line, &reason)));
    }

    /// Records that an order was rejected as a whole.
    fn reject(&mut self, order: &Order, faults: Vec<(u64, String)>) {
        self.summary.rejected_lines += order.lines;
        self.summary.refused.insert(order.order_ref.clone());
        self.add_faults(order, faults);
    }

    fn add_faults(&mut self, order: &Order, faults: Vec<(u64, String)>) {
        self.summary.rejected.extend(faults.into_iter().map(|(line, reason)| fault(order, line, &reason)));
    }
}

fn fault(order: &Order, line: u64, reason: &str) -> Fault {
    Fault { line, order_ref: order.order_ref.clone(), reason: reason.into() }
}

/// Returns a sentence when a stored order was placed at another time than the file says.
fn time_difference(order: &Order, created_at: Option<Timestamp>) -> Option<String> {
    let (wanted, stored) = (order.head.occurred_at?, created_at?);
    (wanted != stored).then(|| format!("The time is {stored} in the stored order, and {wanted} in the import."))
}

/// Returns the lines of the items that a problem points at, with the reasons.
fn item_faults(order: &Order, problem: &Problem) -> Vec<(u64, String)> {
    let mut faults: Vec<(u64, String)> = Vec::new();
    for error in &problem.errors {
        let Some((at, field)) = error.item() else { continue };
        let Some(item) = order.items.get(at) else { continue };
        let field = if field.is_empty() { String::new() } else { format!("{field}: ") };
        let text = format!("{field}{}", error.message);
        match faults.iter_mut().find(|(line, _)| *line == item.line) {
            Some((_, reasons)) => *reasons += &format!("; {text}"),
            None => faults.push((item.line, text)),
        }
    }
    faults
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
