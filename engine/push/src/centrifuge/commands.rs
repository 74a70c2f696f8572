//! Executes the commands of a client.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use axum::extract::ws::Utf8Bytes;
use platform::auth::{BlockReason, Principal};
use platform::client_stream::ReadLimit;
use platform::problem::Problem;
use serde_json::{Value, json};
use tokio::time::Instant;

use crate::api::{QueryApi, SubscribeError};
use crate::batch::Change;
use crate::centrifuge::protocol::{ChannelName, Close, Code, Command, MERGE_PATCH, Object, Subscribe, close, code};
use crate::connections::{ConnectionSlot, LimitReached};
use crate::cursor::Cursor;
use crate::frames::{push_publication, unsubscribe_frame};
use crate::hub::Subscription;
use crate::metrics::METRICS;
use crate::presence::PresenceGuard;
use crate::queue::{Delivery, Queue};
use crate::session::{Opened, Start, open};
use crate::tokens::ttl;

/// Most channels of one connection.
const CHANNELS_MAX: usize = 128;
/// Code of the push that ends a subscription which a fresh token does not allow.
const UNSUBSCRIBED_DENIED: u32 = 2000;
/// Interval of pings.
pub(super) const PING_EVERY: Duration = Duration::from_secs(25);

/// `Err(None)`: the client has disconnected. `Err(Some(…))`: the server closes the connection with this reason.
pub(super) type Handled<T> = Result<T, Option<Close>>;

/// The caller of a connection before its `connect` command.
pub(super) struct Caller {
    /// The caller by the credentials of the upgrade request, or the reason why these are not accepted.
    pub(super) principal: Result<Option<Principal>, Problem>,
    /// Whether only admins may connect.
    pub(super) admins: bool,
    /// Limit of received bytes until the next complete message.
    pub(super) read_limit: ReadLimit,
}

/// A connected client with its channels.
pub(super) struct Client {
    api: QueryApi,
    id: Arc<str>,
    pub(super) caller: Caller,
    pub(super) principal: Option<Principal>,
    slot: ConnectionSlot,
    /// When the connection closes unless the client refreshes its token: the token's expiry plus [`EXPIRY_GRACE`].
    pub(super) expires: Option<Instant>,
    pub(super) channels: HashMap<Arc<str>, Subscribed>,
    queue: Queue,
    /// Pushes to send after the reply to the current command.
    pub(super) pending_pushes: Vec<String>,
}

pub(super) struct Subscribed {
    _subscription: Subscription,
    /// All changes at or before this position have been sent.
    position: i64,
    patched: bool,
    _presence: Option<PresenceGuard>,
}

impl Client {
    /// Creates a client that has not sent `connect` yet.
    pub(super) fn new(api: QueryApi, caller: Caller, slot: ConnectionSlot, queue: Queue) -> Self {
        Self {
            api,
            id: uuid::Uuid::now_v7().to_string().into(),
            caller,
            principal: None,
            slot,
            expires: None,
            channels: HashMap::new(),
            queue,
            pending_pushes: Vec::new(),
        }
    }

    /// Executes a command. Returns the reply's member, as JSON text.
    pub(super) async fn command(&mut self, command: Command) -> Handled<Result<String, Code>> {
        if let Some(Object(connect)) = command.connect {
            if self.principal.is_some() {
                return Err(Some(close::BAD_REQUEST));
            }
            return self.connect(&connect.token).map(|reply| reply.map(|reply| format!(r#""connect":{reply}"#)));
        }
        let Some(principal) = self.principal.clone() else { return Ok(Err(code::UNAUTHORIZED)) };
        if let Some(Object(subscribe)) = command.subscribe {
            return Ok(self.subscribe(&principal, subscribe).await.map(|reply| format!(r#""subscribe":{reply}"#)));
        }
        if let Some(Object(ChannelName { channel })) = command.unsubscribe {
            self.channels.remove(&*channel);
            return Ok(Ok(r#""unsubscribe":{}"#.to_owned()));
        }
        if let Some(Object(refresh)) = command.refresh {
            let reply = self.refresh(&principal, &refresh.token).await?;
            return Ok(reply.map(|reply| format!(r#""refresh":{reply}"#)));
        }
        if command.ping.is_some() {
            return Ok(Ok(r#""ping":{}"#.to_owned()));
        }
        if let Some(Object(ChannelName { channel })) = command.presence {
            return Ok(self.may_see_presence(&principal, &channel).map(|()| {
                let presence = json!({"presence": self.api.presence.of(&channel)});
                format!(r#""presence":{presence}"#)
            }));
        }
        if let Some(Object(ChannelName { channel })) = command.presence_stats {
            return Ok(self.may_see_presence(&principal, &channel).map(|()| {
                let (clients, users) = self.api.presence.count(&channel);
                format!(r#""presence_stats":{{"num_clients":{clients},"num_users":{users}}}"#)
            }));
        }
        Ok(Err(if command.publish.is_some() || command.rpc.is_some() {
            // Changes are made only by commands over HTTP.
            code::DENIED
        } else if command.history.is_some() {
            code::NOT_AVAILABLE
        } else {
            code::METHOD
        }))
    }

    fn connect(&mut self, token: &str) -> Handled<Result<Value, Code>> {
        if !token.is_empty() {
            // This token replaces the credentials of the upgrade request, even if it is invalid.
            self.caller.principal = self.api.authenticator.verify(token).map(Some);
        }
        let principal = match &self.caller.principal {
            Ok(Some(principal)) => principal.clone(),
            Ok(None) => return Err(Some(close::NO_TOKEN)),
            Err(problem) if problem.slug() == "token-expired" => return Ok(Err(code::TOKEN_EXPIRED)),
            Err(problem) if problem.slug() == "unknown-key" => return Ok(Err(code::INTERNAL)),
            Err(problem) => return Err(Some(close_for_token(problem))),
        };
        self.caller.principal = Ok(None);
        if self.caller.admins && !principal.is_admin() {
            return Err(Some(close::FORBIDDEN));
        }
        self.register_principal(&principal)?;
        let reply = json!({
            "client": &*self.id,
            "version": concat!("docket ", env!("CARGO_PKG_VERSION")),
            "expires": true,
            "ttl": ttl(&principal),
            "ping": PING_EVERY.as_secs(),
            "pong": true,
        });
        self.expires = Some(self.expiry(&principal));
        self.principal = Some(principal);
        Ok(Ok(reply))
    }

    fn register_principal(&self, principal: &Principal) -> Handled<()> {
        self.slot.set_principal(principal).map_err(|_: LimitReached| Some(close::CONNECTION_LIMIT))?;
        // A revocation before `set_principal` has not closed this connection, so it is checked here.
        match self.api.authenticator.block_reason(principal) {
            Some(reason) => Err(Some(close_for_block(reason))),
            None => Ok(()),
        }
    }

    /// Replaces the token with a new one of the same subject. If the role differs, channels that the new role does not
    /// allow are unsubscribed.
    async fn refresh(&mut self, principal: &Principal, token: &str) -> Handled<Result<Value, Code>> {
        let fresh = match self.api.authenticator.verify(token) {
            Ok(fresh) => fresh,
            Err(problem) if problem.slug() == "unknown-key" => return Ok(Err(code::INTERNAL)),
            Err(problem) => return Err(Some(close_for_token(&problem))),
        };
        if fresh.subject != principal.subject || (self.caller.admins && !fresh.is_admin()) {
            return Err(Some(close::INVALID_TOKEN));
        }
        self.register_principal(&fresh)?;
        if fresh.role != principal.role && self.authorize_again(&fresh).await.is_err() {
            return Ok(Err(code::INTERNAL));
        }
        let reply = json!({"client": &*self.id, "expires": true, "ttl": ttl(&fresh)});
        self.expires = Some(self.expiry(&fresh));
        self.principal = Some(fresh);
        Ok(Ok(reply))
    }

    async fn authorize_again(&mut self, principal: &Principal) -> Result<(), SubscribeError> {
        for name in self.channels.keys().cloned().collect::<Vec<_>>() {
            let Ok((channel, id)) = self.api.channels.find(&name) else { continue };
            let kind = channel.kind();
            if !channel.is_allowed(&self.api, principal, id).await? {
                self.channels.remove(&name);
                self.pending_pushes.push(unsubscribe_frame(&name, UNSUBSCRIBED_DENIED, "permission denied"));
            } else if let Some(channel) = self.channels.get_mut(&name) {
                // The new subscription is created before the old one is dropped, so no change is missed. A change that
                // both receive is sent once, because `position` filters it.
                channel._subscription = self.api.hub.subscribe(kind, &name, &self.queue, principal.is_staff());
            }
        }
        Ok(())
    }

    fn may_see_presence(&self, principal: &Principal, channel: &str) -> Result<(), Code> {
        match self.api.channels.find(channel) {
            Ok((found, _)) if !found.has_presence => Err(code::NOT_AVAILABLE),
            Ok(_) if principal.is_staff() => Ok(()),
            Ok(_) | Err(SubscribeError::Denied) => Err(code::DENIED),
            Err(_) => Err(code::UNKNOWN_CHANNEL),
        }
    }

    async fn subscribe(&mut self, principal: &Principal, subscribe: Subscribe) -> Result<String, Code> {
        let Subscribe { channel, recover, offset, epoch, data } = subscribe;
        if self.channels.contains_key(&*channel) {
            return Err(code::ALREADY_SUBSCRIBED);
        }
        if self.channels.len() >= CHANNELS_MAX {
            return Err(code::LIMIT);
        }
        let patched = match data.and_then(|Object(data)| data.delta).as_deref() {
            None => false,
            Some(MERGE_PATCH) => true,
            Some(_) => return Err(code::BAD_REQUEST),
        };
        let (found, _) = self.api.channels.find(&channel).map_err(|_| code::UNKNOWN_CHANNEL)?;
        let offset = i64::try_from(offset).unwrap_or(i64::MAX);
        let after = recover.then(|| Cursor::of_group(&epoch, found.group, offset));
        let opened = open(&self.api, principal, &[&channel], after.as_ref(), &self.queue).await;
        let session = opened.map_err(|(_, refused)| match refused {
            SubscribeError::Denied => code::DENIED,
            SubscribeError::Unknown => code::UNKNOWN_CHANNEL,
            SubscribeError::Behind | SubscribeError::Panicked => code::INTERNAL,
            SubscribeError::TooMuch => code::LIMIT,
            SubscribeError::Unavailable(error) => {
                tracing::warn!(%error, channel, "Could not open a channel. The client gets a temporary error.");
                code::INTERNAL
            }
        })?;
        let Some(Opened {
            channel: name,
            subscription: Some(subscription),
            position,
            start,
            is_logged,
            has_presence,
            ..
        }) = session.channels.into_iter().next()
        else {
            return Err(code::INTERNAL);
        };
        if recover {
            METRICS.resumed(matches!(start, Start::Recovered(_)));
        }
        let mut reply = format!(r#"{{"was_recovering":{recover}"#);
        // The client resumes from this position.
        if is_logged {
            let epoch = json!(self.api.store.incarnation());
            reply += &format!(r#","recoverable":true,"positioned":true,"epoch":{epoch},"offset":{position}"#);
        }
        match start {
            Start::Snapshot(snapshot) => reply.push_str(&format!(r#","recovered":false,"data":{snapshot}}}"#)),
            Start::Recovered(batch) => {
                reply.push_str(r#","recovered":true,"publications":["#);
                for (at, Change { previous, publication, .. }) in batch.changes.iter().enumerate() {
                    reply.push_str(if at > 0 { "," } else { "" });
                    push_publication(&mut reply, *previous, publication, patched);
                }
                reply.push_str("]}");
            }
        }
        let presence = has_presence.then(|| self.api.presence.enter(&name, &self.id, &principal.subject));
        self.channels.insert(name, Subscribed { _subscription: subscription, position, patched, _presence: presence });
        Ok(reply)
    }

    /// Returns the part of a delivery that the client does not have yet, as a frame.
    pub(super) fn frame(&mut self, delivery: &Delivery) -> Handled<Option<Utf8Bytes>> {
        match delivery {
            Delivery::Changes(batch) => {
                let Some(channel) = self.channels.get_mut(&batch.channel) else { return Ok(None) };
                let position = channel.position;
                if batch.follows() > position {
                    // A gap must not pass silently. The client reconnects and receives the missing changes from the
                    // log.
                    tracing::error!(
                        channel = &*batch.channel,
                        position,
                        follows = batch.follows(),
                        "A change is missing in a subscription. The connection is closed, and the client resumes from the log."
                    );
                    return Err(Some(close::INSUFFICIENT_STATE));
                }
                channel.position = batch.last().max(position);
                Ok(if batch.first() > position {
                    Some(batch.frame(channel.patched))
                } else if batch.last() > position {
                    Some(batch.frame_after(position, channel.patched))
                } else {
                    None
                })
            }
            Delivery::Ephemeral(ephemeral) => {
                Ok(self.channels.contains_key(&ephemeral.channel).then(|| ephemeral.frame()))
            }
        }
    }

    /// When the connection closes unless the client sends a fresh token.
    fn expiry(&self, principal: &Principal) -> Instant {
        let grace = self.api.settings.push_token_grace_seconds;
        Instant::now() + Duration::from_secs(ttl(principal).saturating_add(grace.into()))
    }
}

/// Returns the close reason for a caller whose token is valid but refused.
pub(super) fn close_for_block(reason: BlockReason) -> Close {
    match reason {
        BlockReason::Revoked => close::REVOKED,
        BlockReason::Banned => close::BANNED,
    }
}

/// Returns the close reason for a refused token.
fn close_for_token(problem: &Problem) -> Close {
    match problem.slug() {
        "token-expired" => close::EXPIRED,
        "token-revoked" => close::REVOKED,
        "subject-banned" => close::BANNED,
        "invalid-ticket" => close::INVALID_TICKET,
        _ => close::INVALID_TOKEN,
    }
}
