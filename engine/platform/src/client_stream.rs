//! Client connections with limits: a connection fails if the client does not read the response for too long, or sends
//! more bytes than allowed.

use std::io;
use std::pin::Pin;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, ReadBuf};
use tokio::net::TcpStream;
use tokio::sync::OwnedSemaphorePermit;
use tokio::time::{Instant, Sleep};

/// Maximum bytes of unread request data that are read after the response, and the time limit for reading them.
pub(crate) const UNREAD_BYTES_MAX: u64 = 256 * 1024;
pub(crate) const UNREAD_TIMEOUT: Duration = Duration::from_secs(2);

/// Suspends the write timeout of a connection while its client sends the whole request before it reads the response.
/// Clones belong to the same connection.
#[derive(Clone, Debug, Default)]
pub struct HalfDuplex(Arc<Mutex<Holds>>);

#[derive(Debug, Default)]
struct Holds {
    count: usize,
    /// When the last hold ended.
    ended: Option<Instant>,
}

/// Suspends the write timeout of the connection until dropped. The full timeout then starts again.
#[derive(Debug)]
pub struct Hold(HalfDuplex);

impl HalfDuplex {
    /// Suspends the write timeout. The caller must limit the data that it buffers for the client, and the duration.
    pub fn hold(&self) -> Hold {
        self.lock().count += 1;
        Hold(self.clone())
    }

    /// Returns the start of the write timeout for a client that has read nothing since `since`.
    fn counts_from(&self, since: Instant) -> Instant {
        let holds = self.lock();
        if holds.count > 0 { Instant::now() } else { since.max(holds.ended.unwrap_or(since)) }
    }

    fn lock(&self) -> MutexGuard<'_, Holds> {
        self.0.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }
}

impl Drop for Hold {
    fn drop(&mut self) {
        let mut holds = self.0.lock();
        holds.count -= 1;
        holds.ended = Some(Instant::now());
    }
}

/// The number of bytes that the client may still send; unlimited until set. For upgraded connections, because their
/// protocols may let a client send an endless incomplete message.
#[derive(Clone)]
pub struct ReadLimit(Arc<AtomicUsize>);

impl Default for ReadLimit {
    fn default() -> Self {
        Self(Arc::new(AtomicUsize::new(usize::MAX)))
    }
}

impl ReadLimit {
    /// Allows `bytes` more bytes. Reading more fails with [`io::ErrorKind::QuotaExceeded`].
    pub fn set(&self, bytes: usize) {
        self.0.store(bytes, Relaxed);
    }

    fn take(&self, bytes: usize) -> io::Result<()> {
        match self.0.load(Relaxed) {
            usize::MAX => Ok(()),
            left if left < bytes => Err(io::ErrorKind::QuotaExceeded.into()),
            left => {
                self.0.store(left - bytes, Relaxed);
                Ok(())
            }
        }
    }
}

/// A client connection with its permit of the connection limit. The permit moves with the connection when it is
/// upgraded.
pub(crate) struct ClientStream {
    /// None only during drop.
    stream: Option<TcpStream>,
    permit: Option<OwnedSemaphorePermit>,
    limit: ReadLimit,
    half_duplex: HalfDuplex,
    /// How long a write may make no progress.
    write_timeout: Duration,
    /// The time since when writes make no progress, and the timer for the next check.
    stalled: Option<(Instant, Pin<Box<Sleep>>)>,
}

impl ClientStream {
    pub(crate) fn new(stream: TcpStream, permit: OwnedSemaphorePermit, write_timeout: Duration) -> Self {
        let (limit, half_duplex) = (ReadLimit::default(), HalfDuplex::default());
        Self { stream: Some(stream), permit: Some(permit), limit, half_duplex, write_timeout, stalled: None }
    }

    pub(crate) fn limit(&self) -> ReadLimit {
        self.limit.clone()
    }

    fn stream(&mut self) -> Pin<&mut TcpStream> {
        Pin::new(self.stream.as_mut().expect("the stream is taken only in drop"))
    }

    pub(crate) fn half_duplex(&self) -> HalfDuplex {
        self.half_duplex.clone()
    }

    /// Returns the result of a write, or `TimedOut` if no write has succeeded within the write timeout.
    fn check_write_timeout<T>(
        &mut self,
        context: &mut Context<'_>,
        written: Poll<io::Result<T>>,
    ) -> Poll<io::Result<T>> {
        if written.is_ready() {
            self.stalled = None;
            return written;
        }
        let (since, timer) = self.stalled.get_or_insert_with(|| {
            let now = Instant::now();
            (now, Box::pin(tokio::time::sleep_until(now + self.write_timeout)))
        });
        loop {
            ready!(timer.as_mut().poll(context));
            let deadline = self.half_duplex.counts_from(*since) + self.write_timeout;
            if deadline <= Instant::now() {
                return Poll::Ready(Err(io::ErrorKind::TimedOut.into()));
            }
            timer.as_mut().reset(deadline);
        }
    }
}

impl AsyncRead for ClientStream {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buffer.filled().len();
        ready!(self.stream().poll_read(context, buffer))?;
        Poll::Ready(self.limit.take(buffer.filled().len() - before))
    }
}

impl AsyncWrite for ClientStream {
    fn poll_write(mut self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let written = self.stream().poll_write(context, bytes);
        self.check_write_timeout(context, written)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let written = self.stream().poll_write_vectored(context, bytes);
        self.check_write_timeout(context, written)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.as_ref().is_some_and(|stream| stream.is_write_vectored())
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.stream().poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.stream().poll_shutdown(context)
    }
}

/// Reads the rest of the client's data, within limits, before the connection closes. If unread data remained (headers
/// too large, an invalid frame), the operating system would reset the connection and the client would lose the
/// response.
impl Drop for ClientStream {
    fn drop(&mut self) {
        let (Some(mut stream), permit) = (self.stream.take(), self.permit.take()) else { return };
        let is_read = !matches!(stream.try_read(&mut [0; 1]), Ok(1));
        let Ok(runtime) = tokio::runtime::Handle::try_current() else { return };
        if is_read {
            return;
        }
        runtime.spawn(tokio::time::timeout(UNREAD_TIMEOUT, async move {
            let _permit = permit;
            stream.shutdown().await?;
            let rest = stream.take(UNREAD_BYTES_MAX);
            tokio::io::copy(&mut std::pin::pin!(rest), &mut tokio::io::sink()).await
        }));
    }
}

#[cfg(test)]
mod tests {
    use tokio::net::TcpListener;

    use super::*;

    const TIMEOUT: Duration = Duration::from_millis(200);

    async fn connected() -> (ClientStream, TcpStream) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let (client, accepted) = tokio::join!(TcpStream::connect(listener.local_addr().unwrap()), listener.accept());
        let permit = Arc::new(tokio::sync::Semaphore::new(1)).acquire_owned().await.unwrap();
        (ClientStream::new(accepted.unwrap().0, permit, TIMEOUT), client.unwrap())
    }

    /// Writes until the client's buffers are full and the write timeout has expired. Returns the elapsed time.
    async fn stall(stream: &mut ClientStream) -> Duration {
        let began = Instant::now();
        let error = loop {
            if let Err(error) = stream.write(&[0; 1 << 16]).await {
                break error;
            }
        };
        assert_eq!(error.kind(), io::ErrorKind::TimedOut);
        began.elapsed()
    }

    #[tokio::test]
    async fn a_client_that_reads_nothing_times_out_unless_a_hold_exists() {
        let (mut stream, mut client) = connected().await;
        assert!(stall(&mut stream).await >= TIMEOUT);

        let hold = stream.half_duplex().hold();
        let held = tokio::time::timeout(TIMEOUT * 5, stall(&mut stream)).await;
        assert!(held.is_err(), "a hold suspends the write timeout");
        drop(hold);
        assert!(stall(&mut stream).await >= TIMEOUT, "the full write timeout starts again after the hold");

        let mut buffer = vec![0; 1 << 20];
        client.read_exact(&mut buffer).await.unwrap();
        // The kernel announces the free space of the client's buffer a moment later.
        stream.stream.as_ref().unwrap().writable().await.unwrap();
        stream.write_all(b"it goes on once the client reads").await.unwrap();
    }
}
