//! Graceful shutdown: a token that signals the shutdown, and a tracker that waits for tasks.

use std::io;
use std::time::Duration;

use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

/// A token that signals a stop, and the tracker of the tasks that must end after it. Clones share both.
#[derive(Clone, Debug, Default)]
pub struct Shutdown {
    /// Cancelled when the process begins to stop. Long polls, streams and sockets must then end.
    pub token: CancellationToken,
    /// Tracks the tasks that must finish before the process ends. Spawn such tasks on it.
    pub tracker: TaskTracker,
}

impl Shutdown {
    /// Creates a shutdown that has not begun.
    pub fn new() -> Self {
        Self::default()
    }

    /// Handles SIGTERM and SIGINT: the first signal cancels the token; the second exits the process immediately with
    /// code 128 + signal number.
    ///
    /// # Errors
    /// Fails if the signal handlers cannot be installed.
    pub fn listen(&self) -> io::Result<()> {
        let mut term = signal(SignalKind::terminate())?;
        let mut int = signal(SignalKind::interrupt())?;
        let token = self.token.clone();
        tokio::spawn(async move {
            let mut next = async || tokio::select! { _ = term.recv() => 15, _ = int.recv() => 2 };
            let number = next().await;
            tracing::info!(signal = number, "Shutting down. Send a second signal to exit immediately.");
            token.cancel();
            let number = next().await;
            std::process::exit(128 + number);
        });
        Ok(())
    }

    /// Waits until the token is cancelled, then at most `deadline` until all tracked tasks have ended. Returns false if
    /// some tasks are still running.
    pub async fn wait(&self, deadline: Duration) -> bool {
        self.token.cancelled().await;
        self.tracker.close();
        tokio::time::timeout(deadline, self.tracker.wait()).await.is_ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_shutdown_waits_for_its_tasks() {
        let shutdown = Shutdown::new();
        let token = shutdown.token.clone();
        shutdown.tracker.spawn(async move { token.cancelled().await });
        shutdown.token.cancel();
        assert!(shutdown.wait(Duration::from_secs(5)).await);
    }

    #[tokio::test]
    async fn a_shutdown_stops_waiting_at_the_deadline() {
        let shutdown = Shutdown::new();
        shutdown.tracker.spawn(std::future::pending::<()>());
        shutdown.token.cancel();
        assert!(!shutdown.wait(Duration::from_millis(5)).await);
    }
}
