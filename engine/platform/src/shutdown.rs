//! Stopping in good order: one token to see, one tracker to wait for.

use std::io;
use std::time::Duration;

use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

/// Shared by everything that runs long. Clones speak of the same shutdown.
#[derive(Clone, Debug, Default)]
pub struct Shutdown {
    /// Cancelled once the process shall stop. Long polls, streams and sockets end on it.
    pub token: CancellationToken,
    /// Holds every task that must finish before the process ends; spawn such tasks on it.
    pub tracker: TaskTracker,
}

impl Shutdown {
    /// A shutdown that nobody has asked for yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// Cancels the token at the first SIGTERM or SIGINT; exits the process at once, with 128 + the signal, at the
    /// second.
    ///
    /// # Errors
    /// When the process can't listen for signals.
    pub fn listen(&self) -> io::Result<()> {
        let mut term = signal(SignalKind::terminate())?;
        let mut int = signal(SignalKind::interrupt())?;
        let token = self.token.clone();
        tokio::spawn(async move {
            let mut next = async || tokio::select! { _ = term.recv() => 15, _ = int.recv() => 2 };
            let number = next().await;
            tracing::info!(signal = number, "stopping; a second signal stops at once");
            token.cancel();
            let number = next().await;
            std::process::exit(128 + number);
        });
        Ok(())
    }

    /// Waits for the token, then until every tracked task has ended, at most `deadline`. False when some had not.
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
    async fn waits_for_the_tasks_that_end() {
        let shutdown = Shutdown::new();
        let token = shutdown.token.clone();
        shutdown.tracker.spawn(async move { token.cancelled().await });
        shutdown.token.cancel();
        assert!(shutdown.wait(Duration::from_secs(5)).await);
    }

    #[tokio::test]
    async fn gives_up_at_the_deadline() {
        let shutdown = Shutdown::new();
        shutdown.tracker.spawn(std::future::pending::<()>());
        shutdown.token.cancel();
        assert!(!shutdown.wait(Duration::from_millis(5)).await);
    }
}
