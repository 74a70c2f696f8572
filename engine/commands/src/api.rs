//! What the handlers of commands work with.

use std::path::PathBuf;
use std::sync::Arc;

use event_store::store::Store;
use platform::auth::{Authenticator, Principal};
use platform::limits::Limiter;
use tokio_util::sync::CancellationToken;

use crate::bulk::budget::Budget;
use crate::bulk::lines::BulkLines;
use crate::decider::Decider;
use crate::in_flight::InFlight;
use crate::settings::Settings;

/// The command API of a process. Cheap to clone.
#[derive(Clone)]
pub struct CommandApi {
    inner: Arc<Inner>,
    authenticator: Authenticator,
    /// What streams of commands cost of their principal's rate.
    pub(crate) limiter: Limiter,
    /// When it is cancelled, streams of commands are read no further.
    pub(crate) stop: CancellationToken,
}

struct Inner {
    decider: Arc<Decider>,
    in_flight: InFlight,
    /// What streams of commands may hold.
    budget: Arc<Budget>,
    /// The lines of each context.
    lines: Vec<BulkLines>,
}

impl axum::extract::FromRef<CommandApi> for Authenticator {
    fn from_ref(api: &CommandApi) -> Self {
        api.authenticator.clone()
    }
}

impl CommandApi {
    /// Over a decider, for the principals that the authenticator knows. Results that clients have not read wait in the first
    /// of the `folders` that takes a file.
    pub fn new(
        decider: Arc<Decider>,
        authenticator: Authenticator,
        limiter: Limiter,
        settings: Settings,
        folders: Vec<PathBuf>,
        lines: Vec<BulkLines>,
        stop: CancellationToken,
    ) -> Self {
        let inner =
            Inner { decider, in_flight: InFlight::default(), budget: Arc::new(Budget::new(settings, folders)), lines };
        Self { inner: Arc::new(inner), authenticator, limiter, stop }
    }

    /// Decides on commands.
    pub fn decider(&self) -> &Decider {
        &self.inner.decider
    }

    pub(crate) fn store(&self) -> &Store {
        self.inner.decider.store()
    }

    pub(crate) fn in_flight(&self) -> &InFlight {
        &self.inner.in_flight
    }

    pub(crate) fn budget(&self) -> &Arc<Budget> {
        &self.inner.budget
    }

    pub(crate) fn lines(&self) -> &[BulkLines] {
        &self.inner.lines
    }

    /// Whether a token has been revoked since its request began.
    pub(crate) fn has_revoked(&self, principal: &Principal) -> bool {
        self.authenticator.has_revoked(principal)
    }
}
