//! Many WebSockets that only count the changes that they receive, and record when the last one arrived.

use std::cell::RefCell;
use std::future::poll_fn;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::task::{Poll, ready};
use std::time::Duration;

use anyhow::{Context, bail, ensure};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWriteExt, ReadBuf};
use tokio::net::TcpStream;
use tokio::runtime::{Builder, Runtime};
use tokio::task::JoinSet;
use tokio::time::{Instant, timeout};

/// How long to wait until a socket is open.
const OPEN_WITHIN: Duration = Duration::from_secs(60);
/// Number of sockets that are being opened at a time.
const OPENED_AT_ONCE: usize = 64;
/// Number of reader threads, and how long a reader sleeps so that arrivals accumulate. The readers share the processors
/// with the server: a reader that wakes for each arrival would mostly measure the wake-ups. With the sleep, a change is
/// seen late by at most this time, and never early.
const READERS: usize = 2;
const READER_SLEEP: Duration = Duration::from_millis(1);
/// The pong of the Centrifuge protocol: a text frame `{}`, masked with zeros (RFC 6455, section 5.3).
const PONG: &[u8] = &[0x81, 0x82, 0, 0, 0, 0, b'{', b'}'];

thread_local! {
    static BUFFER: RefCell<Vec<u8>> = RefCell::new(vec![0; 256 * 1024]);
}

/// What one socket has received.
#[derive(Default)]
pub struct Counter {
    /// Number of changes.
    pub changes: AtomicU64,
    /// When the last change arrived, in microseconds since [`Sockets::started`].
    pub last_us: AtomicU64,
}

/// Open sockets. They are closed when this value is dropped.
pub struct Sockets {
    /// One counter per socket.
    pub counters: Arc<Vec<Counter>>,
    /// Start of the counters' clock.
    pub started: Instant,
    closed: Arc<AtomicBool>,
    readers: Option<Runtime>,
}

impl Drop for Sockets {
    fn drop(&mut self) {
        if let Some(readers) = self.readers.take() {
            readers.shutdown_background();
        }
    }
}

impl Sockets {
    /// Opens `count` sockets on `address`, such as `127.0.0.1:8080`. On each socket it sends the lines of `hello`, one
    /// command per line, and waits for a reply to each.
    ///
    /// # Errors
    /// A socket cannot be opened.
    pub async fn open(address: &str, count: usize, hello: &str) -> anyhow::Result<Self> {
        let counters: Arc<Vec<Counter>> = Arc::new((0..count).map(|_| Counter::default()).collect());
        let (started, closed) = (Instant::now(), Arc::new(AtomicBool::new(false)));
        let sleep = || std::thread::sleep(READER_SLEEP);
        let readers = Builder::new_multi_thread().worker_threads(READERS).enable_all().on_thread_park(sleep).build()?;
        let mut opening = JoinSet::new();
        for number in 0..count {
            if opening.len() == OPENED_AT_ONCE {
                let (number, stream) = opening.join_next().await.context("no socket is being opened")???;
                readers.spawn(read(stream, number, counters.clone(), started, closed.clone()));
            }
            let (address, hello) = (address.to_owned(), hello.to_owned());
            let opened = async move {
                let stream =
                    timeout(OPEN_WITHIN, open(&address, &hello)).await.context("a socket was not open in time")??;
                anyhow::Ok((number, stream))
            };
            opening.spawn_on(opened, readers.handle());
        }
        while let Some(opened) = opening.join_next().await {
            let (number, stream) = opened??;
            readers.spawn(read(stream, number, counters.clone(), started, closed.clone()));
        }
        Ok(Self { counters, started, closed, readers: Some(readers) })
    }

    /// Opens sockets that never read.
    ///
    /// # Errors
    /// A socket cannot be opened.
    pub async fn open_without_reading(address: &str, count: usize, hello: &str) -> anyhow::Result<Vec<TcpStream>> {
        let mut sockets = vec![];
        for _ in 0..count {
            sockets.push(timeout(OPEN_WITHIN, open(address, hello)).await.context("a socket was not open in time")??);
        }
        Ok(sockets)
    }

    /// Returns the number of changes that the slowest socket has received.
    ///
    /// # Errors
    /// A socket was closed.
    pub fn slowest(&self) -> anyhow::Result<u64> {
        ensure!(!self.closed.load(Relaxed), "A socket was closed.");
        Ok(self.counters.iter().map(|counter| counter.changes.load(Relaxed)).min().unwrap_or(0))
    }

    /// Returns the number of changes that all sockets together have received.
    pub fn delivered(&self) -> u64 {
        self.counters.iter().map(|counter| counter.changes.load(Relaxed)).sum()
    }
}

async fn open(address: &str, hello: &str) -> anyhow::Result<TcpStream> {
    let mut stream = TcpStream::connect(address).await?;
    stream.set_nodelay(true)?;
    let request = format!(
        "GET /ws HTTP/1.1\r\nHost: {address}\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n\
         Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
    );
    stream.write_all(request.as_bytes()).await?;
    let mut head = vec![];
    while !head.ends_with(b"\r\n\r\n") {
        head.push(stream.read_u8().await?);
    }
    if !head.starts_with(b"HTTP/1.1 101") {
        bail!("{}", String::from_utf8_lossy(&head));
    }
    for line in hello.lines() {
        let mut frame = vec![0x81];
        match line.len() {
            length @ ..126 => frame.push(0x80 | length as u8),
            length => frame.extend([0xFE, (length >> 8) as u8, length as u8]),
        }
        frame.extend([0; 4]);
        frame.extend(line.as_bytes());
        stream.write_all(&frame).await?;
        let (mut frame, mut payload) = (Frames::default(), vec![]);
        while frame.ended == 0 {
            let byte = [stream.read_u8().await?];
            frame.read(&byte, |bytes| payload.extend_from_slice(bytes));
        }
        ensure!(!payload.windows(7).any(|window| window == b"\"error\""), "{}", String::from_utf8_lossy(&payload));
    }
    Ok(stream)
}

/// State of a parser of unmasked WebSocket frames (RFC 6455, section 5.2).
#[derive(Default)]
struct Frames {
    head: Vec<u8>,
    left: u64,
    length: u64,
    /// Number of text frames that have ended.
    ended: u64,
}

impl Frames {
    /// Parses bytes, and calls `payload` with each part of a payload.
    fn read(&mut self, mut bytes: &[u8], mut payload: impl FnMut(&[u8])) {
        while !bytes.is_empty() {
            if self.left > 0 {
                let part = bytes.len().min(self.left as usize);
                payload(&bytes[..part]);
                self.left -= part as u64;
                bytes = &bytes[part..];
                self.ended += u64::from(self.left == 0);
                continue;
            }
            self.head.push(bytes[0]);
            bytes = &bytes[1..];
            let length = match (self.head.get(1).map(|byte| byte & 0x7F), self.head.len()) {
                (Some(length @ ..126), 2) => u64::from(length),
                (Some(126), 4) => u64::from(u16::from_be_bytes([self.head[2], self.head[3]])),
                (Some(127), 10) => self.head[2..].iter().fold(0, |length, byte| length << 8 | u64::from(*byte)),
                _ => continue,
            };
            self.head.clear();
            (self.left, self.length) = (length, length);
        }
    }
}

async fn read(
    mut stream: TcpStream,
    number: usize,
    counters: Arc<Vec<Counter>>,
    started: Instant,
    closed: Arc<AtomicBool>,
) {
    let mut frames = Frames::default();
    let counter = &counters[number];
    loop {
        let read = poll_fn(|context| {
            BUFFER.with_borrow_mut(|buffer| {
                let mut buffer = ReadBuf::new(buffer);
                ready!(Pin::new(&mut stream).poll_read(context, &mut buffer))?;
                let (before, mut lines, mut pinged) = (frames.ended, 0, false);
                frames.read(buffer.filled(), |bytes| {
                    lines += bytes.iter().filter(|&&byte| byte == b'\n').count() as u64;
                    pinged |= bytes == b"{}";
                });
                let changes = frames.ended - before + lines - u64::from(pinged);
                Poll::Ready(std::io::Result::Ok((buffer.filled().len(), changes, pinged)))
            })
        });
        let Ok((1.., changes, pinged)) = read.await else { break };
        if pinged && stream.write_all(PONG).await.is_err() {
            break;
        }
        if changes > 0 {
            counter.last_us.store(started.elapsed().as_micros() as u64, Relaxed);
            counter.changes.fetch_add(changes, Relaxed);
        }
    }
    closed.store(true, Relaxed);
}
