//! Sinks of log lines. Each sink has a queue and a thread that writes the queued lines, so that logging never waits for
//! a disk or a terminal.

use std::io::{self, Write};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering::Relaxed};
use std::sync::mpsc::{Receiver, SyncSender, TrySendError, sync_channel};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use axum::body::Bytes;

use crate::telemetry::rotate::RotatingFile;

/// Maximum number of queued lines. Further lines are dropped and counted, and the loss is logged.
const LINES_MAX: usize = 65_536;
/// Maximum size of all queued lines, in bytes.
const QUEUE_BYTES_MAX: usize = 64 * 1024 * 1024;
/// Queued lines are written together up to this size, in bytes.
const WRITE_BYTES: usize = 64 * 1024;
/// Pause between writes, in which lines are collected. Waking the thread for each line would cost the caller more than
/// formatting the line.
const WRITE_INTERVAL: Duration = Duration::from_millis(10);
/// Minimum time between two log lines about dropped lines. On a full disk these lines are dropped, too.
const DROPPED_LOG_INTERVAL: Duration = Duration::from_secs(10);
/// How long the end of the process waits for queued lines.
const FLUSH_TIMEOUT: Duration = Duration::from_secs(2);

/// A destination of log lines: the console or a file. Clones share the queue.
#[derive(Clone)]
pub struct Sink {
    name: &'static str,
    queue: SyncSender<Message>,
    /// Size of the queued lines, in bytes.
    waiting: Arc<AtomicUsize>,
    dropped: Arc<AtomicU64>,
}

enum Message {
    /// A line with its line feed.
    Line(Bytes),
    Reopen,
    Flush(SyncSender<()>),
}

/// The target of a sink.
pub enum Target {
    /// Stderr, because stdout is reserved for the output of commands.
    Console,
    /// A rotating file.
    File(RotatingFile),
}

impl Sink {
    /// Starts a sink and its thread.
    ///
    /// # Errors
    /// Fails if the thread cannot be started.
    pub fn start(name: &'static str, target: Target) -> io::Result<(Self, JoinHandle<()>)> {
        let (queue, messages) = sync_channel(LINES_MAX);
        let (waiting, dropped) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicU64::new(0)));
        let (taken, counted) = (waiting.clone(), dropped.clone());
        let thread = std::thread::Builder::new()
            .name(format!("log-{name}"))
            .spawn(move || Writer { name, target, waiting: taken, dropped: counted }.run(&messages))?;
        Ok((Self { name, queue, waiting, dropped }, thread))
    }

    /// Returns the name of the sink, as used in metrics.
    pub fn name(&self) -> &'static str {
        self.name
    }

    /// Returns the number of lines that were dropped or could not be written since the start.
    pub fn dropped(&self) -> u64 {
        self.dropped.load(Relaxed)
    }

    /// Queues a line, which must end with a line feed. Drops it if the queue is full.
    pub fn line(&self, line: impl Into<Bytes>) {
        let line = line.into();
        let bytes = line.len();
        let waiting = self.waiting.fetch_add(bytes, Relaxed);
        if waiting > QUEUE_BYTES_MAX || self.queue.try_send(Message::Line(line)).is_err() {
            self.waiting.fetch_sub(bytes, Relaxed);
            self.dropped.fetch_add(1, Relaxed);
        }
    }

    /// Reopens the file after another program has moved it.
    pub fn reopen(&self) {
        // If the queue is full, the request is lost. The operator can send the signal again.
        let _ = self.queue.try_send(Message::Reopen);
    }

    /// Waits at most 2 s until all queued lines are written.
    pub fn flush(&self) {
        let (done, wait) = sync_channel(1);
        let (started, mut message) = (Instant::now(), Message::Flush(done));
        // The queue stays full only if the disk or the terminal accepts no data.
        while let Err(TrySendError::Full(again)) = self.queue.try_send(message) {
            if started.elapsed() >= FLUSH_TIMEOUT {
                return;
            }
            message = again;
            std::thread::sleep(WRITE_INTERVAL);
        }
        let _ = wait.recv_timeout(FLUSH_TIMEOUT.saturating_sub(started.elapsed()));
    }
}

struct Writer {
    name: &'static str,
    target: Target,
    waiting: Arc<AtomicUsize>,
    dropped: Arc<AtomicU64>,
}

impl Writer {
    /// Writes queued lines until the last clone of the sink is dropped.
    fn run(mut self, messages: &Receiver<Message>) {
        let (mut lines, mut count, mut failing) = (Vec::with_capacity(WRITE_BYTES), 0, false);
        let (mut reported, mut last_logged) = (0, None::<Instant>);
        while let Ok(first) = messages.recv() {
            let mut next = Some(first);
            while let Some(message) = next {
                match message {
                    Message::Line(line) => {
                        self.waiting.fetch_sub(line.len(), Relaxed);
                        if lines.len() + line.len() > WRITE_BYTES && count > 0 {
                            self.write(&mut lines, &mut count, &mut failing);
                        }
                        lines.extend_from_slice(&line);
                        count += 1;
                    }
                    Message::Reopen => {
                        self.write(&mut lines, &mut count, &mut failing);
                        if let Target::File(file) = &mut self.target
                            && let Err(error) = file.reopen()
                        {
                            self.report_error(&format!("could not reopen the file: {error}"));
                        }
                    }
                    Message::Flush(done) => {
                        self.write(&mut lines, &mut count, &mut failing);
                        let _ = done.send(());
                    }
                }
                next = messages.try_recv().ok();
            }
            self.write(&mut lines, &mut count, &mut failing);
            std::thread::sleep(WRITE_INTERVAL);
            let dropped = self.dropped.load(Relaxed);
            if dropped > reported && last_logged.is_none_or(|at| at.elapsed() >= DROPPED_LOG_INTERVAL) {
                tracing::warn!(sink = self.name, lines = dropped - reported, "Log lines were dropped.");
                (reported, last_logged) = (dropped, Some(Instant::now()));
            }
        }
    }

    fn write(&mut self, lines: &mut Vec<u8>, count: &mut u64, failing: &mut bool) {
        if *count == 0 {
            return;
        }
        let written = match &mut self.target {
            Target::Console => io::stderr().write_all(lines),
            Target::File(file) => file.write(lines, *count),
        };
        if let Err(error) = &written {
            self.dropped.fetch_add(*count, Relaxed);
            // Reported once per failure period: a full disk fails for a long time. Console errors cannot be reported.
            if !*failing && matches!(self.target, Target::File(_)) {
                self.report_error(&error.to_string());
            }
        }
        *failing = written.is_err();
        lines.clear();
        *count = 0;
    }

    /// Writes a message to stderr. Errors are ignored, because stderr may be on the same full disk.
    fn report_error(&self, what: &str) {
        let _ = writeln!(io::stderr(), "docket: Error in the log sink {}: {what}", self.name);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::telemetry::rotate::Limits;

    /// Writes 50,000 lines per second for two seconds to files that rotate about every 100 ms. Each line must be in
    /// exactly one file.
    #[test]
    fn lines_under_load_are_all_in_the_files() {
        const WRITERS: usize = 4;
        const ROUNDS: usize = 100;
        const LINES: usize = 250;
        const ROUND: Duration = Duration::from_millis(20);
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("docket.log");
        let limits = Limits { bytes_max: 300_000, files_max: 0, days_max: 0 };
        let file = RotatingFile::open(&path, limits).unwrap();
        let (sink, thread) = Sink::start("file", Target::File(file)).unwrap();
        let started = Instant::now();
        let writers: Vec<_> = (0..WRITERS)
            .map(|writer| {
                let sink = sink.clone();
                std::thread::spawn(move || {
                    for round in 0..ROUNDS {
                        for n in 0..LINES {
                            sink.line(format!("{writer}/{round}/{n} {}\n", "x".repeat(40)));
                        }
                        std::thread::sleep((ROUND * (round as u32 + 1)).saturating_sub(started.elapsed()));
                    }
                })
            })
            .collect();
        writers.into_iter().for_each(|writer| writer.join().unwrap());
        let rate = (WRITERS * ROUNDS * LINES) as f64 / started.elapsed().as_secs_f64();
        println!("{rate:.0} lines per second");
        let dropped = sink.dropped();
        drop(sink);
        thread.join().unwrap();
        let files: Vec<_> = std::fs::read_dir(folder.path()).unwrap().map(|entry| entry.unwrap().path()).collect();
        let mut seen = std::collections::HashSet::new();
        for file in files.iter().filter(|file| !file.to_string_lossy().ends_with("audit")) {
            let mut text = String::new();
            let raw = std::fs::File::open(file).unwrap();
            if file.to_string_lossy().ends_with(".gz") {
                io::Read::read_to_string(&mut flate2::read::GzDecoder::new(raw), &mut text).unwrap();
            } else {
                io::Read::read_to_string(&mut io::BufReader::new(raw), &mut text).unwrap();
            }
            for line in text.lines() {
                assert!(seen.insert(line.split(' ').next().unwrap().to_owned()), "twice: {line}");
            }
        }
        assert!(files.len() > 5, "{files:?}");
        assert_eq!((seen.len(), dropped), (WRITERS * ROUNDS * LINES, 0));
    }
}
