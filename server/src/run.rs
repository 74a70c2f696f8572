//! A running server: the store, the roles' tasks, one listener.

use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, anyhow};
use axum::Router;
use axum::http::request::Parts;
use axum::http::{HeaderValue, Method};
use command_engine::api::CommandApi;
use event_store::store::{Store, open};
use platform::auth::Authenticator;
use platform::health::Health;
use platform::limits::Limiter;
use platform::proxies::Proxies;
use platform::shutdown::Shutdown;
use platform::{http, metrics, telemetry};
use projection_engine::dead_letters;
use projection_engine::generation::prepare;
use projection_engine::progress::Progress;
use projection_engine::pump;
use push::api::QueryApi;
use push::settings::header_names;
use push::{access, feed};
use read_side::{operations, revocations};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};
use tower_http::cors::{AllowOrigin, CorsLayer};

use crate::api;
use crate::migrations::MIGRATIONS;
use crate::module::Measure;
use crate::overview::{self, Overview};
use crate::program::Program;
use crate::settings::{Roles, Settings, without_password};

/// Headers that pages of other origins may send: those that mean something here, and those that libraries of pages send by
/// themselves, such as tracing agents and replacements of `EventSource`.
const REQUEST_HEADERS: &str = "authorization, baggage, cache-control, content-type, idempotency-key, if-match, if-none-match, \
     last-event-id, pragma, prefer, sentry-trace, traceparent, tracestate, x-request-id, x-requested-with";
/// Headers that they may read.
const ANSWER_HEADERS: &str = "allow, docket-position, etag, idempotency-replayed, location, ratelimit, ratelimit-policy, \
     retry-after, www-authenticate, x-request-id";

/// Where Prometheus looks for it, in scaled mode.
const METRICS_LISTEN: &str = "127.0.0.1:9464";
/// Connections to its own listener, and files that everything but connections may have open.
const OPERATORS_CONNECTIONS_MAX: usize = 100;
const OTHER_FILES: usize = 500;
/// How often positions and lag are measured, and how often modules measure.
const OBSERVE_EVERY: Duration = Duration::from_secs(2);
const MEASURE_EVERY: Duration = Duration::from_secs(5);
/// Behind by more, a read model is called degraded.
const LAG_SECONDS_MAX: f64 = 30.0;

/// Serves until SIGTERM or SIGINT, then answers what was taken, within 10 s, and ends its tasks, within
/// `shutdown_seconds`. `ready` is told the address
/// once requests are answered; `reload` reads the settings anew when SIGHUP asks for it.
///
/// # Errors
/// Settings that cannot work, a port in use, a database that is away.
pub async fn serve(
    program: Program,
    settings: Settings,
    reload: impl Fn() -> anyhow::Result<Settings> + Send + 'static,
    ready: impl FnOnce(std::net::SocketAddr),
) -> anyhow::Result<()> {
    let (roles, proxies) = (settings.server.roles()?, settings.server.proxies()?);
    let program = program.select(&settings.server.modules, roles).map_err(|reason| anyhow!(reason))?;
    program.apply(&settings.of_modules).map_err(|reason| anyhow!(reason))?;
    let _telemetry = telemetry::init(&settings.log, &settings.server.roles)?;
    let connections_max = connections_max(settings.server.http_connections_max);
    let authenticator = Authenticator::new(&settings.auth)?;
    if settings.store.database_url.starts_with("sqlite:") && roles != Roles::ALL {
        tracing::warn!("with SQLite no other process can have the roles that this one has not");
    }
    let listener = TcpListener::bind(&settings.server.listen).await.with_context(|| {
        format!("cannot listen on {}: take another one with --listen or DOCKET_LISTEN", settings.server.listen)
    })?;
    let address = listener.local_addr()?;
    let metrics_listener = metrics_listener(&settings).await?;
    let shutdown = Shutdown::new();
    shutdown.listen()?;
    on_hangup(reload)?;
    // The store outlives the requests: it stops when they are answered.
    let store_stop = tokio_util::sync::CancellationToken::new();
    let database = without_password(&settings.store.database_url);
    let store = open(settings.store, MIGRATIONS, program.upcasters(), store_stop.clone(), shutdown.tracker.clone())
        .await
        .with_context(|| format!("cannot open {database}"))?;

    prepare(&store, program.registry()).await?;
    let progress = Progress::new(program.registry().clone());
    progress.refresh(store.db()).await?;
    authenticator.fetch_keys().await?;
    shutdown.tracker.spawn(authenticator.clone().follow_keys(shutdown.token.clone()));
    revocations::load(&store, &authenticator).await?;
    shutdown.tracker.spawn(revocations::follow(store.clone(), authenticator.clone(), shutdown.token.clone()));
    let limiter = Limiter::new(&settings.limits, authenticator.clone());
    let (mut app, mut connections) = (Router::new(), Router::new());
    if roles.write {
        store.start_write_tasks();
        let (auth, stop) = (authenticator.clone(), shutdown.token.clone());
        let folders = vec![settings.server.data.clone(), std::env::temp_dir()];
        let lines = program.modules().iter().filter_map(|module| module.bulk).collect();
        let state = CommandApi::new(store.clone(), auth, limiter.clone(), settings.write, folders, lines, stop);
        app = app.merge(api::commands(&program).with_state(state).split_for_parts().0);
    }
    if roles.project {
        shutdown.tracker.spawn(pump::run(store.clone(), settings.pump, progress.clone(), store_stop.clone()));
    }
    if roles.read {
        let (auth, stop) = (authenticator.clone(), shutdown.token.clone());
        let (push, lists) = (settings.push.clone(), program.live_updates());
        let query = QueryApi::new(store.clone(), progress.clone(), auth.clone(), push, lists, stop.clone())?;
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
    app = app.merge(api::everywhere().with_state(authenticator).split_for_parts().0);
    let app = limiter.limit(app).merge(connections);
    let health = health(&program, &store, &progress, roles);
    let mut app = app.merge(api::docs(&program)).merge(health.router());
    match metrics_listener {
        Some(listener) => {
            let app = http::harden(metrics::router().merge(health.router()), "", None);
            // It tells that the process is draining, until that is done.
            let drained = Shutdown { token: store_stop.clone(), tracker: shutdown.tracker.clone() };
            let serve = http::serve(listener, app, Proxies::default(), OPERATORS_CONNECTIONS_MAX, drained);
            shutdown.tracker.spawn(serve);
        }
        None if store.nats_connected().is_none() => app = app.merge(metrics::router()),
        None => {}
    }
    let app = http::harden(app, roles.elsewhere(), cors(&settings.push)?);
    let measures = program.modules().iter().filter_map(|module| module.measure).collect();
    shutdown.tracker.spawn(observe(store.clone(), progress, roles, measures, shutdown.token.clone()));
    health.set_started();
    tracing::info!(%address, roles = settings.server.roles, "listening");
    ready(address);

    let draining = health.clone();
    let token = shutdown.token.clone();
    tokio::spawn(async move {
        token.cancelled().await;
        draining.set_draining();
    });
    http::serve(listener, app, proxies, connections_max, shutdown.clone()).await;
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

/// As many connections as were asked for, if the system lets this process have as many files.
fn connections_max(asked: usize) -> usize {
    let limit = getrlimit(Resource::Nofile);
    // Only the softer of the two limits is in the way: it is for programs that use `select`.
    let raised = Rlimit { current: limit.maximum, maximum: limit.maximum };
    let files = match setrlimit(Resource::Nofile, raised) {
        Ok(()) => limit.maximum,
        Err(_) => limit.current,
    };
    let room = files.map_or(usize::MAX, |files| (files as usize).saturating_sub(OTHER_FILES).max(OTHER_FILES));
    if room < asked {
        tracing::info!(files, connections_max = room, "takes as many connections as ulimit -n has room for");
    }
    asked.min(room)
}

/// Lets pages of the allowed origins call the API and read what it answers.
fn cors(settings: &push::settings::Settings) -> anyhow::Result<Option<CorsLayer>> {
    let allowed_origins = settings.allowed_origins.clone();
    if allowed_origins.is_empty() {
        return Ok(None);
    }
    let names = |ours: &str, theirs: &str| {
        header_names(&format!("{ours},{theirs}")).map_err(|name| anyhow!("`{name}` is no header's name"))
    };
    let is_allowed = move |origin: &HeaderValue, _: &Parts| {
        origin.to_str().is_ok_and(|origin| access::is_allowed(&allowed_origins, origin, None))
    };
    Ok(Some(
        CorsLayer::new()
            .allow_origin(AllowOrigin::predicate(is_allowed))
            .allow_credentials(true)
            .allow_methods([Method::GET, Method::POST, Method::PUT, Method::DELETE])
            .allow_headers(names(REQUEST_HEADERS, &settings.cors_request_headers)?)
            .expose_headers(names(ANSWER_HEADERS, &settings.cors_answer_headers)?)
            .max_age(Duration::from_secs(600)),
    ))
}

/// Where `/metrics` has an address of its own.
async fn metrics_listener(settings: &Settings) -> anyhow::Result<Option<TcpListener>> {
    let asked = &settings.server.metrics_listen;
    if asked.is_empty() && settings.store.nats_url.is_empty() {
        return Ok(None);
    }
    let listen = if asked.is_empty() { METRICS_LISTEN } else { asked };
    match TcpListener::bind(listen).await {
        Ok(listener) => {
            tracing::info!(address = listen, "metrics");
            Ok(Some(listener))
        }
        Err(error) if asked.is_empty() => {
            tracing::warn!(%error, address = listen, "no metrics: give this process its own metrics_listen");
            Ok(None)
        }
        Err(error) => Err(error).with_context(|| format!("metrics_listen: cannot listen on {listen}")),
    }
}

/// At each SIGHUP: reads the log level anew, and opens the log files again.
fn on_hangup(reload: impl Fn() -> anyhow::Result<Settings> + Send + 'static) -> anyhow::Result<()> {
    let mut hangups = signal(SignalKind::hangup())?;
    tokio::spawn(async move {
        while hangups.recv().await.is_some() {
            telemetry::reopen_files();
            let outcome = reload()
                .and_then(|settings| Ok(telemetry::set_level(&settings.log.log_level, &settings.log.log_filter)?));
            if let Err(error) = outcome {
                let error = format!("{error:#}");
                tracing::warn!(error, "SIGHUP: the log level stays");
            }
        }
    });
    Ok(())
}

/// Measures, now and then, what nobody else measures by the way.
async fn observe(
    store: Store,
    progress: Progress,
    roles: Roles,
    measures: Vec<Measure>,
    stop: tokio_util::sync::CancellationToken,
) {
    let mut measured_at = Instant::now();
    loop {
        let outcome = async {
            store.observe().await?;
            if roles.project {
                progress.observe(&store).await?;
                if measured_at <= Instant::now() {
                    let started = Instant::now();
                    for measure in &measures {
                        measure(store.clone()).await?;
                    }
                    // However much there is to count, it takes a hundredth of the time.
                    measured_at = Instant::now() + (started.elapsed() * 100).max(MEASURE_EVERY);
                }
            }
            Ok::<_, event_store::error::Error>(())
        };
        if let Err(error) = outcome.await {
            tracing::debug!(%error, "not measured");
        }
        tokio::select! {
            () = tokio::time::sleep(OBSERVE_EVERY) => {}
            () = stop.cancelled() => return,
        }
    }
}

fn health(program: &Program, store: &Store, progress: &Progress, roles: Roles) -> Health {
    let health = Health::new();
    let (projecting, progress) = (store.clone(), progress.clone());
    // What is behind is served as it is; `min_position` says so to whom it matters.
    health.register(
        "projections",
        move || {
            let (store, progress) = (projecting.clone(), progress.clone());
            async move {
                let (status, _) = progress.status(&store).await.map_err(|e| e.to_string())?;
                match status.iter().find(|one| one.state == "failed" || one.lag_seconds > LAG_SECONDS_MAX) {
                    None => Ok(()),
                    Some(one) => Err(match &one.last_error {
                        Some(error) => format!("{} failed: {error}", one.name),
                        None => format!("{} is {:.0} s behind: see `docket projections`", one.name, one.lag_seconds),
                    }),
                }
            }
        },
        false,
    );
    let database = store.clone();
    health.register(
        "database",
        move || {
            let store = database.clone();
            async move { store.head().await.map(|_| ()).map_err(|e| e.to_string()) }
        },
        true,
    );
    if roles.write {
        let appending = store.clone();
        // A database that only answers queries takes no commands.
        health.register(
            "append",
            move || {
                let store = appending.clone();
                async move { store.probe().await.map_err(|e| e.to_string()) }
            },
            true,
        );
    }
    let syncing = store.clone();
    health.register(
        "durability",
        move || {
            let lost = "PostgreSQL runs with fsync or full_page_writes off: a power loss takes acknowledged commands";
            std::future::ready(if syncing.is_durable() { Ok(()) } else { Err(lost.to_owned()) })
        },
        false,
    );
    if let Some(disk) = store.disk().cloned() {
        let probe = move || {
            let disk = disk.clone();
            async move { disk.probe().await }
        };
        health.register("storage", probe, true);
    }
    let parked = store.clone();
    // Everything but the parked streams goes on.
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
                        "{} streams are parked, the oldest for {oldest:.0} s: see `docket dead-letters list`",
                        parked.len()
                    )),
                }
            }
        },
        false,
    );
    for check in program.modules().iter().flat_map(|module| module.checks.clone()) {
        let store = store.clone();
        health.register(check.name, move || (check.run)(store.clone()), check.required);
    }
    if store.nats_connected().is_some() {
        let store = store.clone();
        // Commands and queries do without NATS.
        health.register("nats", move || std::future::ready(store.nats_trouble().map_or(Ok(()), Err)), false);
    }
    health
}
