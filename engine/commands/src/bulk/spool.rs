//! Buffers results until their client reads them: the newest results in memory, older ones in a file without a name.
//!
//! Most HTTP libraries send the whole request before they read any of the response. So unread results must not stop the
//! reading of commands until the buffer is very large. Bytes leave in the order in which they were added: the bytes in
//! the file are older than those in memory. Once the file has been read to its end, it is truncated and reused, so it
//! never grows beyond its limit.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use axum::body::Bytes;
use tokio::sync::{Mutex, Notify};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::bulk::budget::BulkSlot;

/// The number of bytes in memory from which the file is used.
const MEMORY_BYTES_MAX: usize = 128 << 10;
/// The number of bytes that one read of the file returns, at most.
const READ_BYTES: u64 = 64 << 10;
/// While its spool is full, a client must read this many bytes within each `unread_timeout`, because a full spool holds
/// bytes that all requests share.
const MIN_BYTES_READ_PER_TIMEOUT: u64 = 1 << 20;
/// How often a full spool checks whether other requests have released bytes.
const POLL_INTERVAL: Duration = Duration::from_millis(100);

/// The results of one request.
pub(crate) struct Spool {
    slot: BulkSlot,
    /// How long a full spool waits for its client to read enough.
    unread_timeout: Duration,
    contents: Mutex<Contents>,
    /// Notified when bytes can be read, and when the spool is finished.
    filled: Notify,
    /// Notified when bytes were read; `bytes_read` is their number so far.
    read: Notify,
    bytes_read: AtomicU64,
    /// Cancelled when the client has disconnected.
    gone: CancellationToken,
}

#[derive(Default)]
struct Contents {
    file: Option<Arc<File>>,
    /// The unread part of the file, as offsets in bytes.
    from: u64,
    to: u64,
    /// The bytes that were added after those in the file.
    newest: Vec<u8>,
    /// True after the disk failed once. The spool does not use the disk again.
    disk_failed: bool,
    is_finished: bool,
}

/// The spool is full, and its client has read too little for too long.
#[derive(Debug, PartialEq)]
pub(crate) struct Unread;

impl Spool {
    pub(crate) fn new(slot: BulkSlot, unread_timeout: Duration) -> Self {
        Self {
            slot,
            unread_timeout,
            contents: Mutex::default(),
            filled: Notify::new(),
            read: Notify::new(),
            bytes_read: AtomicU64::new(0),
            gone: CancellationToken::new(),
        }
    }

    /// Returns the slot of the request in the budget.
    pub(crate) fn slot(&self) -> &BulkSlot {
        &self.slot
    }

    /// Returns the token that is cancelled when the client has disconnected.
    pub(crate) fn gone(&self) -> &CancellationToken {
        &self.gone
    }

    /// Adds a result. The call never waits for room; see [`Spool::room`].
    pub(crate) async fn push(&self, result: &[u8]) {
        if self.gone.is_cancelled() {
            return;
        }
        let mut contents = self.contents.lock().await;
        contents.newest.extend_from_slice(result);
        contents.newest.push(b'\n');
        drop(contents);
        self.filled.notify_one();
    }

    /// Waits until one more result may be pushed.
    ///
    /// # Errors
    /// The client has read too little within `unread_timeout`, or has disconnected.
    pub(crate) async fn room(&self) -> Result<(), Unread> {
        let mut deadline = Instant::now() + self.unread_timeout;
        let mut read_by_then = self.bytes_read.load(Relaxed) + MIN_BYTES_READ_PER_TIMEOUT;
        while !self.gone.is_cancelled() {
            {
                let mut contents = self.contents.lock().await;
                if contents.newest.len() < MEMORY_BYTES_MAX || self.move_to_file(&mut contents).await {
                    return Ok(());
                }
            }
            tokio::select! {
                () = self.read.notified() => {}
                () = tokio::time::sleep(POLL_INTERVAL) => {}
                () = self.gone.cancelled() => {}
            }
            if Instant::now() >= deadline {
                let read = self.bytes_read.load(Relaxed);
                if read < read_by_then {
                    break;
                }
                (deadline, read_by_then) = (Instant::now() + self.unread_timeout, read + MIN_BYTES_READ_PER_TIMEOUT);
            }
        }
        Err(Unread)
    }

    /// Moves the bytes in memory to the end of the file; false when they have to stay in memory.
    async fn move_to_file(&self, contents: &mut Contents) -> bool {
        let bytes = contents.newest.len() as u64;
        if contents.disk_failed
            || contents.to + bytes > self.slot.results_max()
            || !self.slot.reserve_result_bytes(bytes)
        {
            return false;
        }
        let newest = std::mem::take(&mut contents.newest);
        let outcome = match contents.file.clone().map_or_else(|| self.slot.file().map(Arc::new), Ok) {
            Err(error) => Err((error, newest)),
            Ok(file) => {
                contents.file = Some(file.clone());
                let at = contents.to;
                let write = move || file.write_all_at(&newest, at).map_err(|error| (error, newest));
                tokio::task::spawn_blocking(write).await.unwrap_or_else(|e| Err((io::Error::other(e), Vec::new())))
            }
        };
        match outcome {
            Ok(()) => contents.to += bytes,
            Err((error, newest)) => {
                tracing::warn!(
                    %error,
                    "Could not buffer results on disk. They stay in memory, and their client must read them sooner."
                );
                self.slot.release_result_bytes(bytes);
                contents.newest = newest;
                contents.disk_failed = true;
            }
        }
        !contents.disk_failed
    }

    /// Marks the end: no result follows.
    pub(crate) async fn finish(&self) {
        self.contents.lock().await.is_finished = true;
        self.filled.notify_one();
    }

    /// Waits for the oldest unread bytes; `None` at the end.
    ///
    /// # Errors
    /// The file cannot be read. Results are lost, so the response must end with an error.
    async fn next(&self) -> Option<io::Result<Bytes>> {
        loop {
            {
                let mut contents = self.contents.lock().await;
                let next = match contents.to > contents.from {
                    true => Some(self.read_file(&mut contents).await),
                    false if !contents.newest.is_empty() => Some(Ok(std::mem::take(&mut contents.newest).into())),
                    false if contents.is_finished => return None,
                    false => None,
                };
                if let Some(next) = &next {
                    self.bytes_read.fetch_add(next.as_ref().map_or(0, |bytes| bytes.len() as u64), Relaxed);
                    self.read.notify_one();
                }
                if next.is_some() {
                    return next;
                }
            }
            self.filled.notified().await;
        }
    }

    async fn read_file(&self, contents: &mut Contents) -> io::Result<Bytes> {
        let Some(file) = contents.file.clone() else { return Err(io::ErrorKind::NotFound.into()) };
        let (from, bytes) = (contents.from, READ_BYTES.min(contents.to - contents.from));
        contents.from += bytes;
        let is_end = contents.from == contents.to;
        let read = move || {
            let mut buffer = vec![0; bytes as usize];
            file.read_exact_at(&mut buffer, from)?;
            if is_end {
                file.set_len(0)?;
            }
            Ok(Bytes::from(buffer))
        };
        let outcome = tokio::task::spawn_blocking(read).await.unwrap_or_else(|error| Err(io::Error::other(error)));
        if is_end {
            self.slot.release_result_bytes(contents.to);
            (contents.from, contents.to) = (0, 0);
        }
        outcome.inspect_err(
            |error| tracing::error!(%error, "Could not read buffered results from disk. Their response ends early."),
        )
    }
}

impl Drop for Spool {
    fn drop(&mut self) {
        self.slot.release_result_bytes(self.contents.get_mut().to);
    }
}

/// The reading end of a spool. Dropping it cancels [`Spool::gone`].
pub(crate) struct Reader(Arc<Spool>);

impl Reader {
    pub(crate) fn new(spool: Arc<Spool>) -> Self {
        Self(spool)
    }

    /// Returns the bytes as a stream, which ends after the first error.
    pub(crate) fn into_stream(self) -> impl futures::Stream<Item = io::Result<Bytes>> {
        futures::stream::unfold(Some(self), async |reader| {
            let reader = reader?;
            let next = reader.0.next().await?;
            // The stream ends after an error.
            Some(match next {
                Ok(bytes) => (Ok(bytes), Some(reader)),
                Err(error) => (Err(error), None),
            })
        })
    }
}

impl Drop for Reader {
    fn drop(&mut self) {
        self.0.gone.cancel();
    }
}

#[cfg(test)]
mod tests {
    use futures::TryStreamExt;

    use super::*;
    use crate::bulk::budget::tests::slot;

    const PATIENCE: Duration = Duration::from_millis(200);

    fn spool(disk: u64, folder: &str) -> Arc<Spool> {
        Arc::new(Spool::new(slot(disk, vec![folder.into()]), PATIENCE))
    }

    fn result(number: usize) -> Vec<u8> {
        format!("{number:0>99}").into_bytes()
    }

    /// Pushes at most `most` numbered results of 100 bytes, until the spool has no room. Returns the number of results
    /// that had room.
    async fn fill(spool: &Spool, most: usize) -> usize {
        for number in 0..most {
            if spool.room().await.is_err() {
                return number;
            }
            spool.push(&result(number)).await;
        }
        most
    }

    async fn read_all(spool: Arc<Spool>) -> Vec<Vec<u8>> {
        let chunks: Vec<Bytes> = Reader::new(spool).into_stream().try_collect().await.unwrap();
        chunks.concat().split(|byte| *byte == b'\n').filter(|line| !line.is_empty()).map(<[u8]>::to_vec).collect()
    }

    fn temporary() -> String {
        std::env::temp_dir().display().to_string()
    }

    #[tokio::test]
    async fn results_keep_their_order_however_late_they_are_read() {
        let spool = spool(1 << 30, &temporary());
        assert_eq!(fill(&spool, 50_000).await, 50_000);
        let (memory, on_disk) = {
            let contents = spool.contents.lock().await;
            (contents.newest.capacity(), contents.to)
        };
        assert!(memory <= 2 * MEMORY_BYTES_MAX && on_disk > 4_000_000, "{memory} bytes in memory, {on_disk} on disk");
        spool.finish().await;
        let read = read_all(spool.clone()).await;
        assert!(read.into_iter().eq((0..50_000).map(result)));
        assert!(spool.gone().is_cancelled());
        assert_eq!(spool.contents.lock().await.to, 0, "the bytes on disk are released");
    }

    #[tokio::test]
    async fn a_client_that_reads_concurrently_gets_all_results() {
        let spool = spool(1 << 22, &temporary());
        let reading = tokio::spawn(read_all(spool.clone()));
        assert_eq!(fill(&spool, 100_000).await, 100_000);
        spool.finish().await;
        assert!(reading.await.unwrap().into_iter().eq((0..100_000).map(result)));
    }

    #[tokio::test]
    async fn a_full_spool_waits_for_its_client_and_then_reports_an_error() {
        let spool = spool(8 << 20, &temporary());
        let began = Instant::now();
        let taken = fill(&spool, 1_000_000).await;
        assert!(began.elapsed() >= PATIENCE);
        assert!((8_000..=13_000).contains(&taken), "{taken} results of 100 bytes in an eighth of 8 MiB and in memory");
        // A result that is pushed after that comes last, and no result before it is lost.
        spool.push(b"the end").await;
        spool.finish().await;
        let read = read_all(spool).await;
        assert!(read.into_iter().eq((0..taken).map(result).chain([b"the end".to_vec()])));
    }

    #[tokio::test]
    async fn without_a_disk_results_are_bounded_in_memory_and_none_is_lost() {
        let spool = spool(1 << 30, "/proc/no-such-folder");
        let taken = fill(&spool, 1_000_000).await;
        assert!((1_000..=1_400).contains(&taken), "{taken}");
        spool.finish().await;
        assert!(read_all(spool).await.into_iter().eq((0..taken).map(result)));
    }

    #[tokio::test]
    async fn a_disconnected_client_does_not_delay_the_spool() {
        let spool = spool(0, &temporary());
        drop(Reader::new(spool.clone()));
        let began = Instant::now();
        fill(&spool, 1_000_000).await;
        assert!(began.elapsed() < PATIENCE);
    }
}
