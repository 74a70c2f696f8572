//! `/ws`: the Centrifuge client protocol, version 2, in JSON: connect, subscribe with a snapshot or from a position, follow,
//! presence, refresh.
//!
//! The protocol is that of <https://centrifugal.dev/docs/transports/client_protocol>: frames hold one or more JSON
//! objects separated by line feeds; a command has an `id`, its reply the same one; a frame `{}` from the server is a
//! ping and is answered by `{}`. A publication's `offset` is its position in the log, `epoch` is the log's incarnation.

mod commands;
mod connection;
pub mod protocol;

use std::net::SocketAddr;

use axum::extract::ws::WebSocketUpgrade;
use axum::extract::{ConnectInfo, FromRequestParts, Request, State};
use axum::http::StatusCode;
use axum::http::header::SEC_WEBSOCKET_PROTOCOL;
use axum::response::Response;
use axum::routing::get;
use platform::client_stream::ReadLimit;
use platform::problem::Problem;
use utoipa_axum::router::OpenApiRouter;

use crate::access::{bearer_protocol, identify};
use crate::api::QueryApi;
use crate::centrifuge::commands::Caller;
use crate::centrifuge::connection::run;
use crate::centrifuge::protocol::{FRAME_BYTES_MAX, set_up};
use crate::connections::CloseHandle;
use crate::metrics::Transport;
use crate::problems::too_many_connections;

/// The subprotocol that SDKs offer for JSON.
const JSON_PROTOCOL: &str = "centrifuge-json";
/// The one for what is not spoken here.
const PROTOBUF_PROTOCOL: &str = "centrifuge-protobuf";

/// The routes.
pub fn router() -> OpenApiRouter<QueryApi> {
    OpenApiRouter::new().route("/ws", get(socket)).route("/ws/admin", get(admin_socket))
}

async fn socket(State(api): State<QueryApi>, request: Request) -> Result<Response, Problem> {
    upgrade(api, request, false).await
}

/// The same for admins alone, so that it can be closed off in front of the server.
async fn admin_socket(State(api): State<QueryApi>, request: Request) -> Result<Response, Problem> {
    upgrade(api, request, true).await
}

async fn upgrade(api: QueryApi, request: Request, admins: bool) -> Result<Response, Problem> {
    let (mut parts, _) = request.into_parts();
    // Browsers and SDKs cannot read why an upgrade is refused, and `connect` may bring a better token: so it answers.
    let principal = match identify(&api, &mut parts).await {
        Err(problem) if problem.status() == StatusCode::UNAUTHORIZED => Err(problem),
        identified => Ok(identified?),
    };
    let ConnectInfo(peer) =
        ConnectInfo::<SocketAddr>::from_request_parts(&mut parts, &api).await.map_err(|_| Problem::internal())?;
    let mut upgrade = WebSocketUpgrade::from_request_parts(&mut parts, &api).await.map_err(|refusal| {
        Problem::new(StatusCode::BAD_REQUEST, "not-a-websocket", "Not a WebSocket").detail(format!(
            "{}; without a WebSocket, GET /v1/live gives the same as server-sent events",
            refusal.body_text()
        ))
    })?;
    // A browser gives up where none of the protocols it offered comes back.
    let offers = parts.headers.get_all(SEC_WEBSOCKET_PROTOCOL).iter().filter_map(|value| value.to_str().ok());
    let offers: Vec<_> = offers.flat_map(|offers| offers.split(',')).map(str::trim).collect();
    if offers.contains(&JSON_PROTOCOL) {
        upgrade = upgrade.protocols([JSON_PROTOCOL]);
    } else if let Some(bearer) = bearer_protocol(&parts.headers) {
        upgrade = upgrade.protocols([bearer.to_owned()]);
    } else if offers.contains(&PROTOBUF_PROTOCOL) {
        return Err(Problem::new(StatusCode::BAD_REQUEST, "json-only", "JSON only")
            .detail("the Centrifuge protocol is spoken in JSON here, not in Protobuf: use the SDK's JSON client"));
    }
    let read_limit = parts.extensions.remove::<ReadLimit>().unwrap_or_default();
    let handle = CloseHandle::default();
    let slot = api.connections.enter(Transport::WebSocket, peer.ip(), &handle).map_err(|_| too_many_connections())?;
    let caller = Caller { principal, admins, read_limit };
    Ok(set_up(upgrade, FRAME_BYTES_MAX).on_upgrade(move |socket| run(socket, api, caller, handle, slot)))
}
