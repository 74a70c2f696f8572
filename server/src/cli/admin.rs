//! What operators run: the server, its schema, tokens, rebuilds, settings.

use std::io::IsTerminal;

use anyhow::{anyhow, bail};
use event_store::store::open;
use indicatif::{ProgressBar, ProgressStyle};
use platform::auth::{Authenticator, Role};
use projections::projection::{Projection, all};
use projections::pump::{self, rebuild};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::cli::{Common, Replay, RoleName, Serve, Token, Usage, dev, load};
use crate::run;

pub async fn serve(serve: Serve) -> anyhow::Result<u8> {
    let flags = [("listen", serve.listen), ("roles", serve.roles)];
    let flags: Vec<_> = flags.into_iter().filter_map(|(name, value)| Some((name, value?))).collect();
    let settings = load(&serve.common, &flags)?;
    settings.server.roles().map_err(Usage)?;
    platform::telemetry::init(&settings.log)?;
    run::serve(settings, |_| {}).await?;
    Ok(0)
}

pub async fn migrate(common: Common) -> anyhow::Result<u8> {
    let mut settings = load(&common, &[])?;
    settings.store.nats_url.clear();
    let store = open(settings.store, CancellationToken::new(), TaskTracker::new()).await?;
    eprintln!("The schema is up to date; the log holds {} events.", store.head().await?);
    Ok(0)
}

pub fn token(token: Token) -> anyhow::Result<u8> {
    let mut settings = load(&token.common, &[])?;
    if settings.auth.jwt_secret.is_none() && settings.auth.jwt_key_file.is_none() {
        let data = token.data.unwrap_or(settings.server.data);
        if !data.join("jwt-secret").exists() {
            let reason = anyhow!(
                "no key to sign with: set DOCKET_JWT_SECRET, or name the folder of a `docket dev` with --data ({} has none)",
                data.display()
            );
            return Err(Usage(reason).into());
        }
        settings.auth.jwt_secret = Some(dev::own_secret(&data)?.into());
    }
    let role = match token.role {
        RoleName::Customer => Role::Customer,
        RoleName::Staff => Role::Staff,
        RoleName::Admin => Role::Admin,
    };
    println!("{}", Authenticator::new(&settings.auth)?.sign(&token.sub, role, token.ttl)?);
    Ok(0)
}

pub async fn replay(replay: Replay) -> anyhow::Result<u8> {
    let settings = load(&replay.common, &[])?;
    let projections: Vec<&'static Projection> = match replay.all {
        true => all().iter().collect(),
        false => replay.projections.iter().map(|name| find(name)).collect::<Result<_, _>>()?,
    };
    let mut store_settings = settings.store;
    // A rebuild reads the log, never the bus.
    store_settings.nats_url.clear();
    let store = open(store_settings, CancellationToken::new(), TaskTracker::new()).await?;
    let head = store.head().await?;
    let names: Vec<_> = projections.iter().map(|projection| projection.name).collect();
    if replay.dry_run {
        println!("would rebuild {} from {head} events", names.join(", "));
        return Ok(0);
    }
    let bar = ProgressBar::new(head as u64);
    if let Ok(style) = ProgressStyle::with_template("{bar:30} {pos}/{len} events, {per_sec}, {eta} left") {
        bar.set_style(style);
    }
    let started = std::time::Instant::now();
    let settings = pump::Settings { orders_in_memory_max: 100_000, ..settings.pump };
    let head = rebuild(&store, &settings, &projections, |position, _| bar.set_position(position as u64)).await?;
    bar.finish_and_clear();
    let seconds = started.elapsed().as_secs_f64().max(0.001);
    eprintln!(
        "Rebuilt {} from {head} events in {seconds:.1} s ({:.0} events/s).",
        names.join(", "),
        head as f64 / seconds
    );
    Ok(0)
}

fn find(name: &str) -> anyhow::Result<&'static Projection> {
    all().iter().find(|projection| projection.name == name).ok_or_else(|| {
        let names: Vec<_> = all().iter().map(|projection| projection.name).collect();
        Usage(anyhow!("`{name}` is no projection; there are {}", names.join(", "))).into()
    })
}

pub fn config_check(common: Common) -> anyhow::Result<u8> {
    let settings = load(&common, &[])?;
    settings.server.roles().map_err(Usage)?;
    if let Err(error) = Authenticator::new(&settings.auth) {
        bail!(Usage(error.into()));
    }
    if std::io::stderr().is_terminal() {
        eprintln!("The settings can be used.");
    }
    Ok(0)
}

pub fn config_show(common: Common) -> anyhow::Result<u8> {
    println!("{}", load(&common, &[])?.show());
    Ok(0)
}
