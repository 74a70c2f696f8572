//! The state of the command handlers.

use std::path::PathBuf;
use std::sync::Arc;

use event_store::store::Store;
use platform::auth::{Authenticator, BlockReason, Principal};
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
    /// Charges the lines of bulk requests to the rate of their principal.
    pub(crate) limiter: Limiter,
    /// Cancelled when the process stops. No further line of a bulk request is read then.
    pub(crate) stop: CancellationToken,
}

struct Inner {
    decider: Arc<Decider>,
    in_flight: InFlight,
    /// The limits of bulk requests.
    budget: Arc<Budget>,
    /// The bulk commands of each context.
    lines: Vec<BulkLines>,
}

impl axum::extract::FromRef<CommandApi> for Authenticator {
    fn from_ref(api: &CommandApi) -> Self {
        api.authenticator.clone()
    }
}

impl CommandApi {
    /// Creates the command API. `folders` hold unread results of bulk requests; the first folder in which a file can be
    /// created is used. `stop` ends the reading of bulk requests.
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

    /// Returns the decider.
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

    /// Returns why a principal is refused after its request began: its token was revoked, or its subject was banned.
    pub(crate) fn block_reason(&self, principal: &Principal) -> Option<BlockReason> {
        self.authenticator.block_reason(principal)
    }

    /// Whether a subject is banned.
    pub fn is_banned(&self, subject: &str) -> bool {
        self.authenticator.is_banned(subject)
    }
}
