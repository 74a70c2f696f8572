//! A client's connection: it ends when the client takes nothing of its answer for too long, or sends more than it may.

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

/// What is read of a body when its request has been answered, and how long it may take to come.
pub(crate) const UNREAD_BYTES_MAX: u64 = 256 * 1024;
pub(crate) const UNREAD_WITHIN: Duration = Duration::from_secs(2);

/// Says that a client of this connection may send its whole request before it reads any of the answer. Clones are the
/// same connection's.
#[derive(Clone, Debug, Default)]
pub struct HalfDuplex(Arc<Mutex<Holds>>);

#[derive(Debug, Default)]
struct Holds {
    count: usize,
    /// When the last one ended.
    ended: Option<Instant>,
}

/// While it lives, the connection does not end because its client reads nothing; afterwards the client has the usual time.
#[derive(Debug)]
pub struct Hold(HalfDuplex);

impl HalfDuplex {
    /// Begins to hold the connection. Whoever holds it must bound what is kept for the client, and for how long.
    pub fn hold(&self) -> Hold {
        self.lock().count += 1;
        Hold(self.clone())
    }

    /// From when on the time counts of a client that has read nothing since `since`.
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

/// How many bytes a connection may still send: all there are, until somebody sets it. For upgraded connections, whose
/// protocol may let a client send without end what makes no whole message.
#[derive(Clone)]
pub struct ReadLimit(Arc<AtomicUsize>);

impl Default for ReadLimit {
    fn default() -> Self {
        Self(Arc::new(AtomicUsize::new(usize::MAX)))
    }
}

impl ReadLimit {
    /// From now on so many bytes may come; at the next one, reading fails with [`io::ErrorKind::QuotaExceeded`].
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

/// A client's connection, with its place among all. Both go where the connection goes, also when it is upgraded.
pub(crate) struct ClientStream {
    /// None only while it is dropped.
    stream: Option<TcpStream>,
    place: Option<OwnedSemaphorePermit>,
    limit: ReadLimit,
    half_duplex: HalfDuplex,
    /// How long a client may take none of what it is sent.
    write_timeout: Duration,
    /// Since when the client takes nothing, and when to look again.
    stalled: Option<(Instant, Pin<Box<Sleep>>)>,
}

impl ClientStream {
    pub(crate) fn new(stream: TcpStream, place: OwnedSemaphorePermit, write_timeout: Duration) -> Self {
        let (limit, half_duplex) = (ReadLimit::default(), HalfDuplex::default());
        Self { stream: Some(stream), place: Some(place), limit, half_duplex, write_timeout, stalled: None }
    }

    pub(crate) fn limit(&self) -> ReadLimit {
        self.limit.clone()
    }

    fn stream(&mut self) -> Pin<&mut TcpStream> {
        Pin::new(self.stream.as_mut().expect("it is taken when this is dropped"))
    }

    pub(crate) fn half_duplex(&self) -> HalfDuplex {
        self.half_duplex.clone()
    }

    /// What a write gives, or an error where none has succeeded for too long.
    fn unless_stalled<T>(&mut self, context: &mut Context<'_>, written: Poll<io::Result<T>>) -> Poll<io::Result<T>> {
        if written.is_ready() {
            self.stalled = None;
            return written;
        }
        let (since, look) = self.stalled.get_or_insert_with(|| {
            let now = Instant::now();
            (now, Box::pin(tokio::time::sleep_until(now + self.write_timeout)))
        });
        loop {
            ready!(look.as_mut().poll(context));
            let deadline = self.half_duplex.counts_from(*since) + self.write_timeout;
            if deadline <= Instant::now() {
                return Poll::Ready(Err(io::ErrorKind::TimedOut.into()));
            }
            look.as_mut().reset(deadline);
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
        self.unless_stalled(context, written)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let written = self.stream().poll_write_vectored(context, bytes);
        self.unless_stalled(context, written)
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

/// A connection that ends before all was read that its client sent (headers too long, a frame that breaks the protocol)
/// would be reset by the system, and the client would lose the answer: so the rest is read, within limits.
impl Drop for ClientStream {
    fn drop(&mut self) {
        let (Some(mut stream), place) = (self.stream.take(), self.place.take()) else { return };
        let is_read = !matches!(stream.try_read(&mut [0; 1]), Ok(1));
        let Ok(runtime) = tokio::runtime::Handle::try_current() else { return };
        if is_read {
            return;
        }
        runtime.spawn(tokio::time::timeout(UNREAD_WITHIN, async move {
            let _place = place;
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
        let place = Arc::new(tokio::sync::Semaphore::new(1)).acquire_owned().await.unwrap();
        (ClientStream::new(accepted.unwrap().0, place, TIMEOUT), client.unwrap())
    }

    /// Writes until the client's buffers are full, and then until the connection is given up; how long that took.
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
    async fn a_client_that_reads_nothing_is_given_up_unless_its_request_is_still_read() {
        let (mut stream, mut client) = connected().await;
        assert!(stall(&mut stream).await >= TIMEOUT);

        let hold = stream.half_duplex().hold();
        let held = tokio::time::timeout(TIMEOUT * 5, stall(&mut stream)).await;
        assert!(held.is_err(), "it is held");
        drop(hold);
        assert!(stall(&mut stream).await >= TIMEOUT, "the client has the usual time");

        let mut buffer = vec![0; 1 << 20];
        client.read_exact(&mut buffer).await.unwrap();
        stream.write_all(b"it goes on once the client reads").await.unwrap();
    }
}
