//! The open connections of this process: their callers, their limits, and how the server closes them.

use std::collections::HashMap;
use std::future::poll_fn;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock};
use std::task::Poll;
use std::time::Duration;

use futures::task::AtomicWaker;
use platform::auth::{Authenticator, BlockReason, Principal};
use tokio_util::sync::CancellationToken;

use crate::metrics::{METRICS, Transport};

/// How often all connections are checked for revoked tokens and bans, besides at every new one.
const SWEEP_EVERY: Duration = Duration::from_secs(60);
/// A stopping process closes its connections in this many steps, with this pause between them, so that their clients do
/// not reconnect to other processes all at once.
const DRAIN_STEPS: usize = 20;
const DRAIN_STEP: Duration = Duration::from_millis(50);
/// How long a stopping process waits for its connections to close.
const DRAIN_WITHIN: Duration = Duration::from_secs(5);

/// Why the server closes a connection.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum CloseReason {
    /// Too much was queued for the connection.
    Slow,
    /// A change for the connection could not be published.
    Incomplete,
    /// The process stops.
    Shutdown,
    /// The connection's token was revoked, or its subject was banned.
    Blocked(BlockReason),
}

/// Closes a connection from any task of the process. The connection's own task waits on it.
#[derive(Clone, Default)]
pub struct CloseHandle(Arc<Closing>);

#[derive(Default)]
struct Closing {
    why: OnceLock<CloseReason>,
    connection: AtomicWaker,
}

impl CloseReason {
    /// Returns the value of the metric label `reason`.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Slow => "slow",
            Self::Incomplete => "error",
            Self::Shutdown => "shutdown",
            Self::Blocked(_) => "forbidden",
        }
    }
}

impl CloseHandle {
    /// Requests that the connection closes. Only the first reason counts.
    pub fn close(&self, why: CloseReason) {
        let _ = self.0.why.set(why);
        self.0.connection.wake();
    }

    /// Whether a close was requested.
    pub fn is_closed(&self) -> bool {
        self.0.why.get().is_some()
    }

    /// Returns the reason of the close, if one was requested.
    pub fn why(&self) -> Option<CloseReason> {
        self.0.why.get().copied()
    }

    /// Waits until a close is requested, and returns its reason.
    pub async fn closed(&self) -> CloseReason {
        poll_fn(|context| {
            // Registered before the check, so that a close in between wakes this task.
            self.0.connection.register(context.waker());
            self.0.why.get().map_or(Poll::Pending, |why| Poll::Ready(*why))
        })
        .await
    }
}

/// The connection limit that is reached.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum LimitReached {
    /// Limit per client address.
    Address,
    /// Limit per token subject.
    Subject,
}

/// The open connections of this process. Cheap to clone.
#[derive(Clone)]
pub struct Connections {
    open: Arc<Mutex<Open>>,
    per_address_max: usize,
    per_subject_max: usize,
}

#[derive(Default)]
struct Open {
    entries: HashMap<u64, Entry>,
    addresses: HashMap<IpAddr, usize>,
    subjects: HashMap<String, usize>,
    next_id: u64,
}

struct Entry {
    address: IpAddr,
    principal: Option<Principal>,
    transport: Transport,
    handle: CloseHandle,
}

/// Registration of an open connection, which counts against the limits until it is dropped.
pub struct ConnectionSlot {
    connections: Connections,
    id: u64,
}

impl Connections {
    /// Creates an empty registry. A limit of 0 means no limit.
    pub fn new(per_address_max: u32, per_subject_max: u32) -> Self {
        let limit = |max: u32| if max == 0 { usize::MAX } else { max as usize };
        Self { open: Arc::default(), per_address_max: limit(per_address_max), per_subject_max: limit(per_subject_max) }
    }

    /// Registers a connection from an address.
    ///
    /// # Errors
    /// [`LimitReached::Address`] if the address has reached its limit.
    pub fn enter(
        &self,
        transport: Transport,
        address: IpAddr,
        handle: &CloseHandle,
    ) -> Result<ConnectionSlot, LimitReached> {
        let mut open = self.lock();
        let count = open.addresses.entry(address).or_default();
        if *count >= self.per_address_max {
            return Err(LimitReached::Address);
        }
        *count += 1;
        open.next_id += 1;
        let id = open.next_id;
        open.entries.insert(id, Entry { address, principal: None, transport, handle: handle.clone() });
        METRICS.opened(transport);
        Ok(ConnectionSlot { connections: self.clone(), id })
    }

    /// Returns the number of open connections.
    pub fn len(&self) -> usize {
        self.lock().entries.len()
    }

    /// Whether there are no open connections.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Closes connections whose tokens are revoked or whose subjects are banned, until `stop`. Then closes all connections step by step, and returns
    /// when all have ended, at the latest 5 s after the last step.
    pub async fn watch(self, authenticator: Authenticator, stop: CancellationToken) {
        let mut blocklist = authenticator.blocklist();
        loop {
            tokio::select! {
                () = stop.cancelled() => break,
                // The sender lives as long as the authenticator.
                _ = blocklist.changed() => {}
                () = tokio::time::sleep(SWEEP_EVERY) => {}
            }
            let blocklist = blocklist.borrow_and_update().clone();
            for entry in self.lock().entries.values() {
                if let Some(reason) = entry.principal.as_ref().and_then(|principal| blocklist.block_reason(principal)) {
                    entry.handle.close(CloseReason::Blocked(reason));
                }
            }
        }
        let handles: Vec<_> = self.lock().entries.values().map(|entry| entry.handle.clone()).collect();
        for step in handles.chunks(handles.len().div_ceil(DRAIN_STEPS).max(1)) {
            step.iter().for_each(|handle| handle.close(CloseReason::Shutdown));
            tokio::time::sleep(DRAIN_STEP).await;
        }
        let drained = async {
            while !self.is_empty() {
                // Also closes connections that opened during the steps above.
                self.lock().entries.values().for_each(|entry| entry.handle.close(CloseReason::Shutdown));
                tokio::time::sleep(DRAIN_STEP).await;
            }
        };
        let _ = tokio::time::timeout(DRAIN_WITHIN, drained).await;
    }

    fn lock(&self) -> MutexGuard<'_, Open> {
        self.open.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }
}

impl ConnectionSlot {
    /// Sets or replaces the caller of the connection. Only customers count against the limit per subject.
    ///
    /// # Errors
    /// [`LimitReached::Subject`] if the customer has reached the limit.
    pub fn set_principal(&self, principal: &Principal) -> Result<(), LimitReached> {
        let mut open = self.connections.lock();
        let open = &mut *open;
        let Some(entry) = open.entries.get_mut(&self.id) else { return Ok(()) };
        let counted = |principal: &Option<Principal>| principal.clone().filter(|known| !known.is_staff());
        let (before, now) = (counted(&entry.principal), counted(&Some(principal.clone())));
        let stays = matches!((&before, &now), (Some(before), Some(now)) if before.subject == now.subject);
        if let Some(now) = now.filter(|_| !stays) {
            let count = open.subjects.entry(now.subject).or_default();
            if *count >= self.connections.per_subject_max {
                return Err(LimitReached::Subject);
            }
            *count += 1;
        }
        entry.principal = Some(principal.clone());
        if let Some(before) = before.filter(|_| !stays) {
            release(&mut open.subjects, &before);
        }
        Ok(())
    }
}

fn release(subjects: &mut HashMap<String, usize>, principal: &Principal) {
    if !principal.is_staff()
        && let Some(count) = subjects.get_mut(&principal.subject)
    {
        *count -= 1;
        if *count == 0 {
            subjects.remove(&principal.subject);
        }
    }
}

impl Drop for ConnectionSlot {
    fn drop(&mut self) {
        let mut open = self.connections.lock();
        let Some(entry) = open.entries.remove(&self.id) else { return };
        METRICS.gone(entry.transport);
        if let Some(principal) = &entry.principal {
            release(&mut open.subjects, principal);
        }
        if let Some(count) = open.addresses.get_mut(&entry.address) {
            *count -= 1;
            if *count == 0 {
                open.addresses.remove(&entry.address);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use platform::auth::Role;

    use super::*;

    fn principal(subject: &str, role: Role) -> Principal {
        Principal { subject: subject.into(), role, token_id: None, issued_at: 0, expires_at: 0 }
    }

    #[test]
    fn slots_are_counted_and_released() {
        let connections = Connections::new(3, 1);
        let enter = || connections.enter(Transport::Sse, IpAddr::from([127, 0, 0, 1]), &CloseHandle::default());
        let (one, two, three) = (enter().unwrap(), enter().unwrap(), enter().unwrap());
        assert_eq!(enter().err(), Some(LimitReached::Address));
        let ada = principal("ada", Role::Customer);
        one.set_principal(&ada).unwrap();
        one.set_principal(&ada).unwrap();
        assert_eq!(two.set_principal(&ada), Err(LimitReached::Subject));
        let clerk = principal("clerk", Role::Staff);
        two.set_principal(&clerk).unwrap();
        three.set_principal(&clerk).unwrap();
        // The role is now staff, so the connection no longer counts against the limit.
        one.set_principal(&principal("ada", Role::Staff)).unwrap();
        drop(two);
        let four = enter().unwrap();
        four.set_principal(&ada).unwrap();
        drop((one, three, four));
        let open = connections.lock();
        assert!(open.entries.is_empty() && open.subjects.is_empty() && open.addresses.is_empty());
    }
}
