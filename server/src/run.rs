//! Runs a server: opens the store, starts the tasks of its roles, and serves HTTP.

use std::sync::Arc;
use std::time::Duration;

use anyhow::anyhow;
use axum::Router;
use command_engine::api::CommandApi;
use command_engine::decider::Decider;
use command_engine::reactions;
use command_engine::reactions::reactor::registration;
use event_store::store::open;
use platform::auth::Authenticator;
use platform::limits::Limiter;
use platform::proxies::Proxies;
use platform::shutdown::Shutdown;
use platform::{http, metrics, telemetry};
use projection_engine::generation::prepare;
use projection_engine::progress::Progress;
use projection_engine::pump;
use push::api::QueryApi;
use push::feed;
use read_side::{bans, operations, revocations};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};

use crate::api;
use crate::checks::health;
use crate::cors::cors;
use crate::migrations::MIGRATIONS;
use crate::observe;
use crate::overview::{self, Overview};
use crate::problems;
use crate::program::Program;
use crate::settings::{Roles, Settings, without_password};

/// Default address of `/metrics` in scaled mode.
const METRICS_LISTEN: &str = "127.0.0.1:9464";
/// Limit of connections to the metrics listener, and number of file handles reserved for everything but client
/// connections.
const OPERATORS_CONNECTIONS_MAX: usize = 100;
const OTHER_FILES: usize = 500;

/// Serves the program, whose modules are already selected, until SIGTERM or SIGINT. Then it answers the accepted requests
/// within 10 s, and stops its tasks within `shutdown_seconds`. Calls `bound` with the address once it is bound, before it writes anything: requests are answered
/// after the store is open. Calls `reload` on SIGHUP to read the settings again.
///
/// # Errors
/// The settings are invalid, a port is in use, or the database is unavailable.
pub async fn serve(
    program: Program,
    mut settings: Settings,
    reload: impl Fn() -> anyhow::Result<Settings> + Send + 'static,
    bound: impl FnOnce(std::net::SocketAddr, &mut Settings) -> anyhow::Result<()>,
) -> anyhow::Result<()> {
    let (roles, proxies) = (settings.server.roles()?, settings.server.proxies()?);
    let _telemetry = telemetry::init(&settings.log, &settings.server.roles).map_err(|error| match error {
        telemetry::Error::File { path, source } => {
            let log = &settings.log;
            let files = [("log_file", &log.log_file), ("log_error_file", &log.log_error_file)];
            let name = files.into_iter().find_map(|(name, file)| (*file == path).then_some(name));
            let name = name.unwrap_or("access_log_file");
            settings.explain(&format!("{name}: cannot open the file {}: {source}", path.display()))
        }
        error => error.into(),
    })?;
    for warning in &settings.warnings {
        tracing::warn!("{warning}");
    }
    if settings.store.database_url.starts_with("sqlite:") && roles != Roles::ALL {
        tracing::warn!("With SQLite, no other process can run the roles that this process does not have.");
    }
    let listener = TcpListener::bind(&settings.server.listen).await.map_err(|error| {
        let listen = &settings.server.listen;
        match error.kind() {
            std::io::ErrorKind::AddrInUse => anyhow!(
                "Another program listens on {listen}. Stop it, or choose another address with --listen or DOCKET_LISTEN."
            ),
            _ => anyhow!("Cannot listen on {listen}: {error}. Choose another address with --listen or DOCKET_LISTEN."),
        }
    })?;
    let address = listener.local_addr()?;
    let metrics_listener = metrics_listener(&settings).await?;
    bound(address, &mut settings)?;
    let authenticator = Authenticator::new(&settings.auth)?;
    authenticator.fetch_keys().await.map_err(|error| settings.explain(&error.to_string()))?;
    let connections_max = connections_max(settings.server.http_connections_max);
    let shutdown = Shutdown::new();
    shutdown.listen()?;
    reload_on_sighup(reload)?;
    // The store stops after the requests have been answered, so it has its own token.
    let store_stop = tokio_util::sync::CancellationToken::new();
    let database = without_password(&settings.store.database_url);
    let store = settings.store.clone();
    let store = open(store, MIGRATIONS, program.upcasters(), store_stop.clone(), shutdown.tracker.clone())
        .await
        .map_err(|error| settings.explain(&format!("database_url: cannot open {database}: {error}")))?;

    let reactors = program.reactors();
    let registrations: Vec<_> = reactors.iter().map(|reactor| registration(*reactor)).collect();
    store.reactions().register(&registrations).await?;
    prepare(&store, program.registry()).await?;
    let progress = Progress::new(program.registry().clone());
    progress.refresh(store.db()).await?;
    shutdown.tracker.spawn(authenticator.clone().refresh_keys(shutdown.token.clone()));
    revocations::load(&store, &authenticator).await?;
    bans::load(&store, &authenticator).await?;
    shutdown.tracker.spawn(revocations::follow(store.clone(), authenticator.clone(), shutdown.token.clone()));
    let limiter = Limiter::new(&settings.limits, authenticator.clone());
    let (mut app, mut connections) = (Router::new(), Router::new());
    let decider = Arc::new(Decider::new(store.clone()));
    if roles.write {
        store.start_write_tasks();
        let (auth, stop) = (authenticator.clone(), shutdown.token.clone());
        let folders = vec![settings.server.data.clone(), std::env::temp_dir()];
        let lines = program.modules().iter().filter_map(|module| module.bulk).collect();
        let state = CommandApi::new(decider.clone(), auth, limiter.clone(), settings.write, folders, lines, stop);
        app = app.merge(api::commands(&program).with_state(state).split_for_parts().0);
    }
    if roles.react {
        store.follow_heads();
        let clock = reactions::system_clock();
        shutdown.tracker.spawn(reactions::run(decider.clone(), reactors, clock, store_stop.clone()));
    }
    drop(decider);
    if roles.project {
        shutdown.tracker.spawn(pump::run(store.clone(), settings.pump, progress.clone(), store_stop.clone()));
    }
    if roles.read {
        let (auth, stop) = (authenticator.clone(), shutdown.token.clone());
        let (push, definitions) = (settings.push.clone(), program.live_updates());
        let query = QueryApi::new(store.clone(), progress.clone(), auth.clone(), push, definitions, stop.clone())?;
        shutdown.tracker.spawn(progress.clone().follow(store.clone(), stop.clone()));
        for group in query.channels.groups() {
            shutdown.tracker.spawn(feed::run(query.clone(), group));
        }
        shutdown.tracker.spawn(operations::publish_status(query.clone()));
        shutdown.tracker.spawn(query.presence.clone().run(store.clone(), query.hub.clone(), stop.clone()));
        shutdown.tracker.spawn(query.connections.clone().watch(auth, stop));
        app = app.merge(api::queries(&program).with_state(query.clone()).split_for_parts().0);
        connections = api::connections().with_state(query).split_for_parts().0;
    }
    let program = Arc::new(program);
    let overview = Overview::new(program.clone(), store.clone(), authenticator.clone());
    app = app.merge(overview::router().with_state(overview).split_for_parts().0);
    app = app.merge(api::common_routes().with_state(authenticator).split_for_parts().0);
    let app = limiter.limit(app).merge(connections);
    let health = health(&program, &store, &progress, roles);
    let mut app = app
        .merge(api::docs(&program).map_err(anyhow::Error::msg)?)
        .merge(problems::router(&program))
        .merge(health.router());
    match metrics_listener {
        Some(listener) => {
            let app = http::harden(metrics::router().merge(health.router()), "", None);
            // This listener reports that the process is draining, so it stays open until the requests are answered.
            let drained = Shutdown { token: store_stop.clone(), tracker: shutdown.tracker.clone() };
            let serve = http::serve(listener, app, Proxies::default(), OPERATORS_CONNECTIONS_MAX, drained);
            shutdown.tracker.spawn(serve);
        }
        None if store.nats_connected().is_none() => app = app.merge(metrics::router()),
        None => {}
    }
    let app = http::harden(app, roles.not_found_hint(), cors(&settings.push)?);
    shutdown.tracker.spawn(observe::measure_positions(
        store.clone(),
        progress,
        program.reactors(),
        roles,
        shutdown.token.clone(),
    ));
    for measure in program.modules().iter().filter_map(|module| module.measure).filter(|_| roles.project) {
        shutdown.tracker.spawn(observe::measure(store.clone(), measure, shutdown.token.clone()));
    }
    health.set_started();
    tracing::info!(%address, roles = settings.server.roles, "Listening for requests.");

    let draining = health.clone();
    let token = shutdown.token.clone();
    tokio::spawn(async move {
        token.cancelled().await;
        draining.set_draining();
    });
    http::serve(listener, app, proxies, connections_max, shutdown.clone()).await;
    // Every request has been answered or cut off. Now the background tasks may finish their work and end.
    store_stop.cancel();
    // The appender ends when the last handle on the store is dropped. The health checks hold one.
    drop((store, health));
    if !shutdown.wait(Duration::from_secs(settings.server.shutdown_seconds)).await {
        tracing::warn!("Some tasks did not stop within the shutdown deadline.");
    }
    tracing::info!("Server stopped.");
    Ok(())
}

/// Returns the limit of connections: `asked`, or fewer when the process may not open that many files.
fn connections_max(asked: usize) -> usize {
    let limit = getrlimit(Resource::Nofile);
    // The soft limit exists for programs that use `select`, so it may be raised to the hard limit.
    let raised = Rlimit { current: limit.maximum, maximum: limit.maximum };
    let files = match setrlimit(Resource::Nofile, raised) {
        Ok(()) => limit.maximum,
        Err(_) => limit.current,
    };
    let room = files.map_or(usize::MAX, |files| (files as usize).saturating_sub(OTHER_FILES).max(OTHER_FILES));
    if room < asked {
        tracing::info!(
            files,
            connections_max = room,
            "The limit of open files (ulimit -n) allows fewer connections than http_connections_max."
        );
    }
    asked.min(room)
}

/// Binds the listener of `/metrics`; None when `/metrics` is served with the API or not at all.
async fn metrics_listener(settings: &Settings) -> anyhow::Result<Option<TcpListener>> {
    let asked = &settings.server.metrics_listen;
    if asked.is_empty() && settings.store.nats_url.is_empty() {
        return Ok(None);
    }
    let listen = if asked.is_empty() { METRICS_LISTEN } else { asked };
    match TcpListener::bind(listen).await {
        Ok(listener) => {
            tracing::info!(address = listen, "Listening for metrics requests.");
            Ok(Some(listener))
        }
        Err(error) if asked.is_empty() => {
            tracing::warn!(%error, address = listen, "Could not listen for metrics requests. Give this process its own metrics_listen.");
            Ok(None)
        }
        Err(error) => Err(settings.explain(&format!("metrics_listen: cannot listen on {listen}: {error}"))),
    }
}

/// On each SIGHUP, reads the log level from the settings again, and reopens the log files.
fn reload_on_sighup(reload: impl Fn() -> anyhow::Result<Settings> + Send + 'static) -> anyhow::Result<()> {
    let mut hangups = signal(SignalKind::hangup())?;
    tokio::spawn(async move {
        while hangups.recv().await.is_some() {
            telemetry::reopen_files();
            let outcome = reload()
                .and_then(|settings| Ok(telemetry::set_level(&settings.log.log_level, &settings.log.log_filter)?));
            if let Err(error) = outcome {
                let error = format!("{error:#}");
                tracing::warn!(error, "Could not reload the log level on SIGHUP. The log level is unchanged.");
            }
        }
    });
    Ok(())
}
