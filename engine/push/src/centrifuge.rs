//! `/ws`: the Centrifuge client protocol, version 2, in JSON. Supported: connect, subscribe (with a snapshot or from a
//! position), publications, presence and refresh.
//!
//! The protocol is specified in <https://centrifugal.dev/docs/transports/client_protocol>. A frame contains one or more
//! JSON objects separated by line feeds. A reply has the `id` of its command. A frame `{}` from the server is a ping;
//! the client answers with `{}`. The `offset` of a publication is its position in the log; `epoch` is the log's
//! incarnation.

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
use crate::centrifuge::protocol::{FRAME_BYTES_MAX, configure_socket};
use crate::connections::CloseHandle;
use crate::metrics::Transport;
use crate::problems::{JSON_ONLY, NOT_A_WEBSOCKET, too_many_connections};

/// WebSocket subprotocol that SDKs offer for JSON.
const JSON_PROTOCOL: &str = "centrifuge-json";
/// WebSocket subprotocol that SDKs offer for Protobuf, which is not supported.
const PROTOBUF_PROTOCOL: &str = "centrifuge-protobuf";

/// Returns the routes of the sockets.
pub fn router() -> OpenApiRouter<QueryApi> {
    OpenApiRouter::new().route("/ws", get(socket)).route("/ws/admin", get(admin_socket))
}

async fn socket(State(api): State<QueryApi>, request: Request) -> Result<Response, Problem> {
    upgrade(api, request, false).await
}

/// A socket for admins only, with its own path, so that a proxy can restrict access to it.
async fn admin_socket(State(api): State<QueryApi>, request: Request) -> Result<Response, Problem> {
    upgrade(api, request, true).await
}

async fn upgrade(api: QueryApi, request: Request, admins: bool) -> Result<Response, Problem> {
    let (mut parts, _) = request.into_parts();
    // A refused token or subject is not answered here but in the reply to `connect`. Browsers and SDKs cannot read the response to a refused
    // upgrade, and `connect` may contain another token.
    let principal = match identify(&api, &mut parts).await {
        Err(problem) if problem.status() == StatusCode::UNAUTHORIZED || problem.slug() == "subject-banned" => {
            Err(problem)
        }
        identified => Ok(identified?),
    };
    let ConnectInfo(peer) =
        ConnectInfo::<SocketAddr>::from_request_parts(&mut parts, &api).await.map_err(|_| Problem::internal())?;
    let mut upgrade = WebSocketUpgrade::from_request_parts(&mut parts, &api).await.map_err(|refusal| {
        Problem::new(NOT_A_WEBSOCKET).detail(format!(
            "{}. Connect with a WebSocket, or use GET /v1/live for server-sent events.",
            refusal.body_text()
        ))
    })?;
    // A browser closes the connection if the server selects none of the subprotocols that it offered.
    let offers = parts.headers.get_all(SEC_WEBSOCKET_PROTOCOL).iter().filter_map(|value| value.to_str().ok());
    let offers: Vec<_> = offers.flat_map(|offers| offers.split(',')).map(str::trim).collect();
    if offers.contains(&JSON_PROTOCOL) {
        upgrade = upgrade.protocols([JSON_PROTOCOL]);
    } else if let Some(bearer) = bearer_protocol(&parts.headers) {
        upgrade = upgrade.protocols([bearer.to_owned()]);
    } else if offers.contains(&PROTOBUF_PROTOCOL) {
        return Err(Problem::new(JSON_ONLY).detail(
            "The server does not support the Protobuf form of the Centrifuge protocol. Use the JSON client of the SDK.",
        ));
    }
    let read_limit = parts.extensions.remove::<ReadLimit>().unwrap_or_default();
    let handle = CloseHandle::default();
    let slot = api.connections.enter(Transport::WebSocket, peer.ip(), &handle).map_err(|_| too_many_connections())?;
    let caller = Caller { principal, admins, read_limit };
    Ok(configure_socket(upgrade, FRAME_BYTES_MAX).on_upgrade(move |socket| run(socket, api, caller, handle, slot)))
}
