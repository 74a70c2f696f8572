//! Raw bytes over TCP, which no client library would send, and the responses to them.

use std::time::Duration;

use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

/// Bytes of a response that are kept.
const ANSWER_BYTES_MAX: usize = 64 * 1024 * 1024;

/// Result of an exchange.
#[derive(Debug, Clone, PartialEq)]
pub enum Outcome {
    /// An HTTP response.
    Answered(Answer),
    /// The connection was closed without a response.
    Closed,
    /// Neither a response nor a close before the deadline.
    Silent,
}

/// An HTTP response as received.
#[derive(Debug, Clone, PartialEq)]
pub struct Answer {
    /// The status. It is an interim one (`100 Continue`) only where nothing followed.
    pub status: u16,
    /// Status line and headers, in lower case.
    pub head: String,
    /// The body without its framing; of a stream, the part that had arrived.
    pub body: Vec<u8>,
    /// Number of responses on the connection: more than one where the server saw more than one request.
    pub answers: usize,
}

impl Answer {
    /// Whether the response is an RFC 9457 problem whose `status` equals the response's status.
    pub fn is_problem(&self) -> bool {
        let body: Value = serde_json::from_slice(&self.body).unwrap_or_default();
        self.head.contains("content-type: application/problem+json")
            && body["status"] == self.status
            && body["type"].as_str().is_some_and(|slug| slug.starts_with("/problems/"))
            && body["title"].is_string()
    }
}

/// End of an exchange.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Until {
    /// The exchange ends with the first response.
    Answer,
    /// The exchange ends with the connection, so that every response is counted.
    End,
}

/// Sends bytes over a new connection, closes its sending half afterwards if `cut` is set, and reads the response.
pub async fn exchange(address: &str, bytes: &[u8], cut: bool, until: Until, deadline: Duration) -> Outcome {
    let stream = TcpStream::connect(address).await.expect("the server listens");
    let (mut reader, mut writer) = stream.into_split();
    let bytes = bytes.to_vec();
    // A server that refuses a request may stop reading it.
    let writing = tokio::spawn(async move {
        let _ = writer.write_all(&bytes).await;
        if cut {
            let _ = writer.shutdown().await;
        }
        writer
    });
    let mut text = Vec::new();
    let reading = async {
        let mut buffer = vec![0; 64 * 1024];
        while text.len() < ANSWER_BYTES_MAX && !(until == Until::Answer && is_whole(&text)) {
            match reader.read(&mut buffer).await {
                Ok(0) | Err(_) => return,
                Ok(count) => text.extend_from_slice(&buffer[..count]),
            }
        }
    };
    let in_time = tokio::time::timeout(deadline, reading).await.is_ok();
    writing.abort();
    match read_answer(&text) {
        Some(answer) if in_time || is_whole(&text) => Outcome::Answered(answer),
        _ if in_time => Outcome::Closed,
        _ => Outcome::Silent,
    }
}

/// Returns the start and the end of the head of the last response that is not interim.
fn head(text: &[u8]) -> Option<(usize, usize)> {
    let mut start = 0;
    loop {
        let end = start + text[start..].windows(4).position(|four| four == b"\r\n\r\n")? + 4;
        let is_interim = text[start..].starts_with(b"HTTP/1.1 100");
        if !is_interim || end == text.len() {
            return Some((start, end));
        }
        start = end;
    }
}

fn is_whole(text: &[u8]) -> bool {
    let Some((start, end)) = head(text) else { return false };
    let head = String::from_utf8_lossy(&text[start..end]).to_lowercase();
    if head.starts_with("http/1.1 100") {
        return false;
    }
    let body = &text[end..];
    let length = head.split("content-length: ").nth(1).and_then(|rest| rest.split("\r\n").next()?.parse().ok());
    match length {
        Some(length) => body.len() >= length,
        // An event stream does not end: one event is enough.
        None if head.contains("text/event-stream") => body.windows(2).any(|two| two == b"\n\n"),
        None if head.contains("transfer-encoding: chunked") => body.ends_with(b"0\r\n\r\n"),
        None => ["http/1.1 101", "http/1.1 204", "http/1.1 304"].iter().any(|status| head.starts_with(status)),
    }
}

fn read_answer(text: &[u8]) -> Option<Answer> {
    let (start, end) = head(text)?;
    let head = String::from_utf8_lossy(&text[start..end]).to_lowercase();
    let status = head.split(' ').nth(1)?.parse().ok()?;
    let body = match head.contains("transfer-encoding: chunked") {
        true => without_chunks(&text[end..]),
        false => text[end..].to_vec(),
    };
    let answers = text.windows(9).filter(|nine| *nine == b"HTTP/1.1 ").count();
    Some(Answer { status, head, body, answers })
}

fn without_chunks(mut text: &[u8]) -> Vec<u8> {
    let mut body = Vec::new();
    while let Some(at) = text.windows(2).position(|two| two == b"\r\n") {
        let size = std::str::from_utf8(&text[..at]).ok().and_then(|size| usize::from_str_radix(size, 16).ok());
        let Some(size) = size.filter(|size| *size > 0) else { break };
        let chunk = &text[(at + 2).min(text.len())..];
        body.extend_from_slice(&chunk[..size.min(chunk.len())]);
        text = &chunk[(size + 2).min(chunk.len())..];
    }
    body
}

/// Returns a masked frame of a WebSocket client; [`unmasked`] returns one without a mask.
///
/// `first` is the first byte: FIN, the reserved bits and the opcode.
pub fn frame(first: u8, payload: &[u8]) -> Vec<u8> {
    let mut bytes = head_of(first, 0x80, payload.len() as u64);
    let mask = [0x37, 0xfa, 0x21, 0x3d];
    bytes.extend_from_slice(&mask);
    bytes.extend(payload.iter().zip(mask.iter().cycle()).map(|(byte, mask)| byte ^ mask));
    bytes
}

/// Returns a frame without a mask, which the protocol forbids for clients.
pub fn unmasked(first: u8, payload: &[u8]) -> Vec<u8> {
    let mut bytes = head_of(first, 0, payload.len() as u64);
    bytes.extend_from_slice(payload);
    bytes
}

/// Returns the head of a masked frame that announces `length` bytes, without the bytes.
pub fn announced(first: u8, length: u64) -> Vec<u8> {
    let mut bytes = head_of(first, 0x80, length);
    bytes.extend_from_slice(&[0; 4]);
    bytes
}

fn head_of(first: u8, mask: u8, length: u64) -> Vec<u8> {
    let mut bytes = vec![first];
    match length {
        0..=125 => bytes.push(mask | length as u8),
        126..=0xffff => {
            bytes.push(mask | 126);
            bytes.extend_from_slice(&(length as u16).to_be_bytes());
        }
        _ => {
            bytes.push(mask | 127);
            bytes.extend_from_slice(&length.to_be_bytes());
        }
    }
    bytes
}

/// What a socket sent until it answered the ping that [`exchange_frames`] sends last, or closed.
#[derive(Debug, Default, Clone, PartialEq)]
pub struct SocketTrace {
    /// Error codes of replies.
    pub errors: Vec<u64>,
    /// Number of replies without an error.
    pub good: usize,
    /// Code of the Close frame.
    pub closed: Option<u16>,
    /// Whether the socket answered the ping and so is still open.
    pub is_alive: bool,
    /// Whether the deadline passed first.
    pub is_silent: bool,
}

/// Id of the last command, the ping, whose reply shows that the socket is still open.
const LAST_ID: u64 = 4_000_000_000;

/// Opens a socket, connects with the token, sends bytes and then a ping. Returns what the server sent.
pub async fn exchange_frames(address: &str, token: &str, bytes: &[u8], deadline: Duration) -> SocketTrace {
    let mut stream = TcpStream::connect(address).await.expect("the server listens");
    let upgrade = format!(
        "GET /ws HTTP/1.1\r\nhost: {address}\r\nconnection: upgrade\r\nupgrade: websocket\r\nsec-websocket-version: 13\r\n\
         sec-websocket-key: MDEyMzQ1Njc4OWFiY2RlZg==\r\nauthorization: Bearer {token}\r\n\r\n"
    );
    stream.write_all(upgrade.as_bytes()).await.expect("the server reads");
    stream.write_all(&frame(0x81, br#"{"id":1,"connect":{}}"#)).await.expect("the server reads");
    let (mut reader, mut writer) = stream.into_split();
    let mut bytes = bytes.to_vec();
    bytes.extend(frame(0x81, json!({"id": LAST_ID, "ping": {}}).to_string().as_bytes()));
    let writing = tokio::spawn(async move {
        let _ = writer.write_all(&bytes).await;
        writer
    });
    let mut trace = SocketTrace::default();
    let mut is_connected = false;
    let reading = async {
        let (mut text, mut buffer) = (Vec::new(), vec![0; 16 * 1024]);
        loop {
            match reader.read(&mut buffer).await {
                Ok(0) | Err(_) => return,
                Ok(count) => text.extend_from_slice(&buffer[..count]),
            }
            if !is_connected {
                let Some((_, end)) = head(&text) else { continue };
                text.drain(..end);
                is_connected = true;
            }
            while let Some((opcode, payload)) = take_frame(&mut text) {
                match opcode {
                    8 => {
                        trace.closed = payload.first_chunk().map(|code| u16::from_be_bytes(*code));
                        return;
                    }
                    1 => {
                        for line in String::from_utf8_lossy(&payload).lines() {
                            let line: Value = serde_json::from_str(line).unwrap_or_default();
                            match (line["id"].as_u64(), line["error"]["code"].as_u64()) {
                                (Some(LAST_ID), error) => {
                                    trace.errors.extend(error);
                                    trace.is_alive = true;
                                    return;
                                }
                                (_, Some(code)) => trace.errors.push(code),
                                (Some(id), None) if id != 1 || line["connect"].is_null() => trace.good += 1,
                                _ => {}
                            }
                        }
                    }
                    _ => {}
                }
            }
        }
    };
    let in_time = tokio::time::timeout(deadline, reading).await.is_ok();
    writing.abort();
    trace.is_silent = !in_time;
    trace
}

/// Takes the first complete frame of a server and returns its opcode and payload.
fn take_frame(text: &mut Vec<u8>) -> Option<(u8, Vec<u8>)> {
    let (first, second) = (*text.first()?, *text.get(1)?);
    let (start, length) = match second & 0x7f {
        126 => (4, usize::from(u16::from_be_bytes(*text.get(2..4)?.first_chunk()?))),
        127 => (10, u64::from_be_bytes(*text.get(2..10)?.first_chunk()?) as usize),
        length => (2, usize::from(length)),
    };
    let payload = text.get(start..start + length)?.to_vec();
    text.drain(..start + length);
    Some((first & 0x0f, payload))
}
