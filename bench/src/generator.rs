//! The load generator: a minimal HTTP/1.1 client on one thread. It runs on the same machine as the server, so it only
//! sends prepared bytes and reads the status and the length of each response. That costs the same for every peer.

use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::task::JoinSet;

/// Number of customers among which the orders are distributed.
const CUSTOMERS: u32 = 10_000;
/// How long to wait for one response.
const ANSWER_DEADLINE: Duration = Duration::from_secs(30);
/// Longest response, head and body, in bytes.
const ANSWER_MAX_BYTES: usize = 64 * 1024;

/// A `POST` request that creates an order. The load repeats it.
#[derive(Clone, Debug)]
pub struct Target {
    /// Address of the server, `host:port`.
    pub address: String,
    /// Path, with its leading slash.
    pub path: &'static str,
    /// Bearer token; None for no authentication.
    pub token: Option<String>,
    /// End of the body, after the customer: `}` or `,"currency":"USD"}`.
    pub body_end: &'static str,
}

/// Amount and duration of the load.
#[derive(Clone, Copy, Debug)]
pub struct Load {
    /// Number of connections, each with one request in flight.
    pub connections: u32,
    /// Duration of the load before the measurement.
    pub warm_up: Duration,
    /// Duration of the measurement.
    pub measured: Duration,
}

/// Result of a load.
#[derive(Debug, Default)]
pub struct Outcome {
    /// Number of 2xx responses, including those of the warm-up and those that arrived after the measurement.
    pub acknowledged: u64,
    /// Number of other responses, including those of the warm-up.
    pub errors: u64,
    /// The first error response.
    pub first_error: Option<String>,
    /// Latencies, in microseconds, of the acknowledged requests that were answered during the measurement. Sorted.
    pub latencies_us: Vec<u32>,
}

impl Outcome {
    /// Returns the latency quantile for a share from 0.0 to 1.0, in milliseconds; NaN when nothing was measured.
    pub fn quantile_ms(&self, share: f64) -> f64 {
        let last = self.latencies_us.len().saturating_sub(1);
        let rank = (last as f64 * share).round() as usize;
        self.latencies_us.get(rank).map_or(f64::NAN, |&us| f64::from(us) / 1000.0)
    }

    fn add(&mut self, other: Self) {
        self.acknowledged += other.acknowledged;
        self.errors += other.errors;
        self.first_error = self.first_error.take().or(other.first_error);
        self.latencies_us.extend(other.latencies_us);
    }
}

/// Runs the load on this thread until its time is over and every request is answered.
///
/// # Errors
/// A connection fails, or a response cannot be read. A refused request is not an error; it is counted.
pub fn run(target: &Target, load: Load) -> anyhow::Result<Outcome> {
    tokio::runtime::Builder::new_current_thread().enable_all().build()?.block_on(async {
        let mut connections = JoinSet::new();
        let begin = Instant::now() + load.warm_up;
        for number in 0..load.connections {
            let request = Request::new(target, number);
            let address = target.address.clone();
            connections.spawn(connection(address, request, begin, begin + load.measured));
        }
        let mut outcome = Outcome::default();
        while let Some(one) = connections.join_next().await {
            outcome.add(one??);
        }
        outcome.latencies_us.sort_unstable();
        Ok(outcome)
    })
}

async fn connection(address: String, mut request: Request, begin: Instant, end: Instant) -> anyhow::Result<Outcome> {
    let mut stream = TcpStream::connect(&address).await.with_context(|| format!("cannot connect to {address}"))?;
    stream.set_nodelay(true)?;
    let mut outcome = Outcome::default();
    let mut buffer = Vec::with_capacity(4096);
    loop {
        let sent = Instant::now();
        if sent >= end {
            return Ok(outcome);
        }
        stream.write_all(request.next()).await?;
        let answer = tokio::time::timeout(ANSWER_DEADLINE, read_answer(&mut stream, &mut buffer)).await;
        let status = answer.with_context(|| format!("no response within {ANSWER_DEADLINE:?}"))??;
        let answered = Instant::now();
        if (200..300).contains(&status) {
            outcome.acknowledged += 1;
            if answered >= begin && answered < end {
                let us = (answered - sent).as_micros();
                outcome.latencies_us.push(u32::try_from(us).unwrap_or(u32::MAX));
            }
        } else {
            outcome.errors += 1;
            outcome.first_error.get_or_insert_with(|| String::from_utf8_lossy(&buffer).into_owned());
        }
    }
}

/// Reads one whole response into `buffer` and returns its status.
async fn read_answer(stream: &mut TcpStream, buffer: &mut Vec<u8>) -> anyhow::Result<u16> {
    buffer.clear();
    loop {
        ensure!(stream.read_buf(buffer).await? > 0, "The server closed the connection.");
        if let Some((status, length)) = parse_head(buffer)? {
            while buffer.len() < length {
                ensure!(stream.read_buf(buffer).await? > 0, "The server closed the connection within a response.");
            }
            ensure!(buffer.len() == length, "The server sent more than one response.");
            return Ok(status);
        }
        ensure!(buffer.len() <= ANSWER_MAX_BYTES, "The head of a response is longer than {ANSWER_MAX_BYTES} bytes.");
    }
}

/// Returns the status and the length of the whole response; None until its head is complete.
fn parse_head(bytes: &[u8]) -> anyhow::Result<Option<(u16, usize)>> {
    let Some(head) = bytes.windows(4).position(|four| four == b"\r\n\r\n") else { return Ok(None) };
    let text = std::str::from_utf8(&bytes[..head]).context("the head of a response is not UTF-8")?;
    let mut lines = text.split("\r\n");
    let status = lines.next().and_then(|line| line.strip_prefix("HTTP/1.1 ")?.get(..3)?.parse().ok());
    let status: u16 = status.with_context(|| format!("no status in the response {text}"))?;
    let length =
        lines.filter_map(|line| line.split_once(':')).find(|(name, _)| name.eq_ignore_ascii_case("content-length"));
    let body: usize = match length {
        Some((_, value)) => value.trim().parse().with_context(|| format!("invalid content-length: {text}"))?,
        None if status == 204 => 0,
        None => bail!("The response has no content-length: {text}"),
    };
    let whole = head + 4 + body;
    ensure!(whole <= ANSWER_MAX_BYTES, "A response of {whole} bytes is too long.");
    Ok(Some((status, whole)))
}

/// The bytes of a request. Only the customer's number changes.
struct Request {
    bytes: Vec<u8>,
    /// Offset of the six digits of that number.
    digits: usize,
    customer: u32,
}

impl Request {
    fn new(target: &Target, connection: u32) -> Self {
        let body_begin = r#"{"customer_id":"c-"#;
        let body = format!("{body_begin}000000\"{}", target.body_end);
        let token = target.token.as_ref().map(|token| format!("authorization: Bearer {token}\r\n")).unwrap_or_default();
        let head = format!(
            "POST {} HTTP/1.1\r\nhost: {}\r\n{token}content-type: application/json\r\ncontent-length: {}\r\n\r\n",
            target.path,
            target.address,
            body.len()
        );
        let digits = head.len() + body_begin.len();
        Self { bytes: (head + &body).into_bytes(), digits, customer: connection * 7919 % CUSTOMERS }
    }

    fn next(&mut self) -> &[u8] {
        self.customer = (self.customer + 1) % CUSTOMERS;
        let mut rest = self.customer;
        for digit in self.bytes[self.digits..self.digits + 6].iter_mut().rev() {
            *digit = b'0' + (rest % 10) as u8;
            rest /= 10;
        }
        &self.bytes
    }
}

#[cfg(test)]
mod tests {
    use super::{Outcome, Request, Target, parse_head};

    #[test]
    fn a_response_is_complete_when_its_body_has_arrived() {
        assert_eq!(parse_head(b"HTTP/1.1 201 Created\r\nContent-Le").ok(), Some(None));
        let answer = b"HTTP/1.1 201 Created\r\nContent-Length: 2\r\n\r\n{}";
        assert_eq!(parse_head(answer).ok(), Some(Some((201, answer.len()))));
        let empty = b"HTTP/1.1 204 No Content\r\n\r\n";
        assert_eq!(parse_head(empty).ok(), Some(Some((204, empty.len()))));
        assert!(parse_head(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n").is_err());
        assert!(parse_head(b"SSH-2.0\r\n\r\n").is_err());
    }

    #[test]
    fn each_request_is_for_the_next_customer() {
        let (path, body_end) = ("/v1/orders", r#","currency":"USD"}"#);
        let target = Target { address: "127.0.0.1:1".to_owned(), path, token: Some("t".to_owned()), body_end };
        let mut request = Request::new(&target, 0);
        request.next();
        let text = String::from_utf8_lossy(request.next()).into_owned();
        let (head, body) = text.split_once("\r\n\r\n").expect("a head and a body");
        assert_eq!(body, r#"{"customer_id":"c-000002","currency":"USD"}"#);
        assert!(
            head.contains("authorization: Bearer t\r\n") && head.ends_with(&format!("content-length: {}", body.len()))
        );
    }

    #[test]
    fn quantiles_are_of_the_sorted_latencies() {
        let outcome = Outcome { latencies_us: (1..=101).map(|ms| ms * 1000).collect(), ..Outcome::default() };
        assert_eq!(
            (outcome.quantile_ms(0.5), outcome.quantile_ms(0.99), outcome.quantile_ms(1.0)),
            (51.0, 100.0, 101.0)
        );
        assert!(Outcome::default().quantile_ms(0.5).is_nan());
    }
}
