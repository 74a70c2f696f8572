//! A running server: the store, the roles' tasks, one listener.

use std::time::Duration;

use anyhow::Context;
use axum::Router;
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
use read_side::push::feed;
use read_side::push::hub::Hub;
use read_side::state::ReadSide;
use tokio::net::TcpListener;
use write_side::dispatch::WriteSide;

use crate::api;
use crate::settings::Settings;

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
    let mut app = Router::new();
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
        let state = ReadSide {
            store: store.clone(),
            progress: progress.clone(),
            authenticator: authenticator.clone(),
            hub: Hub::default(),
            stop: shutdown.token.clone(),
        };
        shutdown.tracker.spawn(progress.follow(store.clone(), shutdown.token.clone()));
        shutdown.tracker.spawn(feed::run(state.clone()));
        app = app.merge(api::read_side().with_state(state).split_for_parts().0);
    }
    let app = Limiter::new(&settings.limits, authenticator).limit(app);
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
