//! A running server: the store, the roles' tasks, one listener.

use std::time::Duration;

use anyhow::Context;
use axum::Router;
use axum::http::request::Parts;
use axum::http::{HeaderName, HeaderValue, Method};
use event_store::store::{Store, open};
use platform::auth::Authenticator;
use platform::health::Health;
use platform::http;
use platform::limits::Limiter;
use platform::shutdown::Shutdown;
use projections::dead_letters;
use projections::generation::prepare;
use projections::order::upcasters;
use projections::progress::Progress;
use projections::pump;
use read_side::push::presence::Presence;
use read_side::push::{access, feed};
use read_side::revocations;
use read_side::state::ReadSide;
use tokio::net::TcpListener;
use tower_http::cors::{AllowOrigin, CorsLayer};
use write_side::dispatch::WriteSide;

use crate::api;
use crate::settings::Settings;

/// Headers that pages of other origins may send, and those that they may read.
const REQUEST_HEADERS: &[&str] =
    &["authorization", "content-type", "idempotency-key", "if-match", "last-event-id", "traceparent", "x-request-id"];
const ANSWER_HEADERS: &[&str] = &[
    "docket-position",
    "etag",
    "idempotency-replayed",
    "location",
    "ratelimit",
    "ratelimit-policy",
    "retry-after",
    "x-request-id",
];

/// Serves until SIGTERM or SIGINT, then answers what was taken, within 10 s, and ends its tasks, within
/// `shutdown_seconds`. `ready` is told the address
/// once requests are answered.
///
/// # Errors
/// Settings that cannot work, a port in use, a database that is away.
pub async fn serve(settings: Settings, ready: impl FnOnce(std::net::SocketAddr)) -> anyhow::Result<()> {
    let roles = settings.server.roles()?;
    let authenticator = Authenticator::new(&settings.auth)?;
    let listener = TcpListener::bind(&settings.server.listen)
        .await
        .with_context(|| format!("cannot listen on {}", settings.server.listen))?;
    let address = listener.local_addr()?;
    let shutdown = Shutdown::new();
    shutdown.listen()?;
    // The store outlives the requests: it stops when they are answered.
    let store_stop = tokio_util::sync::CancellationToken::new();
    let store = open(settings.store, upcasters(), store_stop.clone(), shutdown.tracker.clone()).await?;

    prepare(&store).await?;
    let progress = Progress::default();
    progress.refresh(store.db()).await?;
    revocations::load(&store, &authenticator).await?;
    let stop = shutdown.token.clone();
    shutdown.tracker.spawn(revocations::follow(store.clone(), authenticator.clone(), stop));
    let (mut app, mut connections) = (Router::new(), Router::new());
    if roles.write {
        store.start_write_tasks();
        app = app.merge(
            api::write_side()
                .with_state(WriteSide::new(store.clone(), authenticator.clone(), shutdown.token.clone()))
                .split_for_parts()
                .0,
        );
    }
    if roles.project {
        shutdown.tracker.spawn(pump::run(store.clone(), settings.pump, progress.clone(), store_stop.clone()));
    }
    if roles.read {
        let (auth, stop) = (authenticator.clone(), shutdown.token.clone());
        let state = ReadSide::new(store.clone(), progress.clone(), auth.clone(), settings.push.clone(), stop.clone());
        shutdown.tracker.spawn(progress.follow(store.clone(), stop.clone()));
        shutdown.tracker.spawn(feed::run(state.clone()));
        shutdown.tracker.spawn(feed::tell_projections(state.clone()));
        shutdown.tracker.spawn(Presence::run(state.clone()));
        shutdown.tracker.spawn(state.connections.clone().watch(auth, stop));
        app = app.merge(api::read_side().with_state(state.clone()).split_for_parts().0);
        connections = api::connections().with_state(state).split_for_parts().0;
    }
    let app = Limiter::new(&settings.limits, authenticator).limit(app).merge(connections);
    let app = cors(app, settings.push.allowed_origins);
    let health = health(&store);
    let app = http::harden(app.merge(api::docs()).merge(health.router()));
    health.set_started();
    tracing::info!(%address, roles = settings.server.roles, "listening");
    ready(address);

    let draining = health.clone();
    let token = shutdown.token.clone();
    tokio::spawn(async move {
        token.cancelled().await;
        draining.set_draining();
    });
    http::serve(listener, app, shutdown.clone()).await;
    // Every request is answered or cut off: now the tasks behind them may end, and finish what they took.
    store_stop.cancel();
    // The appender ends with the last handle on the store, and the checks hold one.
    drop((store, health));
    if !shutdown.wait(Duration::from_secs(settings.server.shutdown_seconds)).await {
        tracing::warn!("some tasks did not end in time");
    }
    tracing::info!("stopped");
    Ok(())
}

/// Lets pages of the allowed origins call the API and read what it answers.
fn cors(app: Router, allowed_origins: String) -> Router {
    if allowed_origins.is_empty() {
        return app;
    }
    let names = |names: &'static [&str]| names.iter().map(|name| HeaderName::from_static(name)).collect::<Vec<_>>();
    let is_allowed = move |origin: &HeaderValue, _: &Parts| {
        origin.to_str().is_ok_and(|origin| access::is_allowed(&allowed_origins, origin, None))
    };
    app.layer(
        CorsLayer::new()
            .allow_origin(AllowOrigin::predicate(is_allowed))
            .allow_credentials(true)
            .allow_methods([Method::GET, Method::POST, Method::PUT, Method::DELETE])
            .allow_headers(names(REQUEST_HEADERS))
            .expose_headers(names(ANSWER_HEADERS))
            .max_age(Duration::from_secs(600)),
    )
}

fn health(store: &Store) -> Health {
    let health = Health::new();
    let database = store.clone();
    health.register(
        "database",
        move || {
            let store = database.clone();
            async move { store.head().await.map(|_| ()).map_err(|e| e.to_string()) }
        },
        true,
    );
    let parked = store.clone();
    // Everything but the parked orders goes on.
    health.register(
        "dead_letters",
        move || {
            let store = parked.clone();
            async move {
                let letters = dead_letters::list(store.db()).await.map_err(|e| e.to_string())?;
                let parked: Vec<_> = letters.iter().filter(|letter| letter.state != "discarded").collect();
                match parked.iter().map(|letter| letter.age_seconds).reduce(f64::max) {
                    None => Ok(()),
                    Some(oldest) => Err(format!(
                        "{} orders are parked, the oldest for {oldest:.0} s: see `docket dead-letters list`",
                        parked.len()
                    )),
                }
            }
        },
        false,
    );
    if store.nats_connected().is_some() {
        let store = store.clone();
        // Commands and queries do without NATS.
        health.register(
            "nats",
            move || {
                let connected = store.nats_connected() == Some(true);
                async move { if connected { Ok(()) } else { Err("not connected".to_owned()) } }
            },
            false,
        );
    }
    health
}
