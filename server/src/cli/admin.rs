//! Commands around a server: run it, check its health, migrate its schema, print tokens and settings.

use std::io::IsTerminal;
use std::time::Duration;

use anyhow::{Context, anyhow};
use event_store::store::open;
use platform::auth::{Authenticator, Role};
use projection_engine::generation::prepare;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::cli::{
    Common, ConfigCheck, EXIT_FAILED, Migrate, RoleName, Serve, Token, Usage, dev, load, print_line, selected,
};
use crate::migrations::MIGRATIONS;
use crate::program::Program;
use crate::run;
use crate::settings::{Settings, without_password};

pub async fn serve(program: Program, serve: Serve) -> anyhow::Result<u8> {
    let flags = [("listen", serve.listen), ("roles", serve.roles)];
    let flags: Vec<_> = flags.into_iter().filter_map(|(name, value)| Some((name, value?))).collect();
    let settings = load(&program, &serve.common, &flags)?;
    Authenticator::new(&settings.auth).map_err(|error| Usage(error.into()))?;
    let module_settings = program.settings();
    let reload = move || Settings::load(serve.common.config.as_deref(), &[], &module_settings);
    run::serve(program, settings, reload, |_| {}).await?;
    Ok(0)
}

/// Checks the readiness of a server. Meant for health checks of containers without curl.
pub async fn health(url: &str) -> anyhow::Result<u8> {
    let answer = reqwest::Client::builder()
        .timeout(Duration::from_secs(5))
        .build()?
        .get(format!("{}/health/ready", url.trim_end_matches('/')))
        .send()
        .await
        .with_context(|| format!("no server answers at {url}; start one, or give its URL with --url"))?;
    let ready = answer.status().is_success();
    print_line(answer.text().await?);
    Ok(if ready { 0 } else { EXIT_FAILED })
}

pub async fn migrate(program: Program, migrate: Migrate) -> anyhow::Result<u8> {
    let mut settings = load(&program, &migrate.common, &[])?;
    settings.store.nats_url.clear();
    let database = without_password(&settings.store.database_url);
    let program = selected(program, &settings)?;
    let registry = program.registry();
    let store = open(settings.store, MIGRATIONS, program.upcasters(), CancellationToken::new(), TaskTracker::new())
        .await
        .with_context(|| format!("cannot open {database}"))?;
    match &migrate.grant_to {
        // A server creates missing tables of read models at its start, so the role owns them. They are not created
        // here.
        Some(role) => {
            let tables: Vec<_> = registry.projections().flat_map(|projection| projection.tables()).copied().collect();
            store.grant_to(role, &tables).await?;
            eprintln!(
                "Granted the privileges of a server to {role}. It can append events, but not change or delete them."
            );
        }
        None => prepare(&store, registry).await?,
    }
    eprintln!("The schema is up to date. The log has {} events.", store.head().await?);
    Ok(0)
}

pub fn token(program: &Program, token: Token) -> anyhow::Result<u8> {
    let mut settings = load(program, &token.common, &[])?;
    if settings.auth.jwt_secret.is_none() && settings.auth.jwt_key_file.is_none() {
        let data = token.common.data.unwrap_or(settings.server.data);
        if !data.join("jwt-secret").exists() {
            let reason = anyhow!(
                "There is no signing key: {} contains no `jwt-secret`. Set DOCKET_JWT_SECRET, or give the folder of `docket dev` with --data.",
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
    let signed = Authenticator::new(&settings.auth).and_then(|keys| keys.sign(&token.sub, role, token.ttl));
    print_line(signed.map_err(|error| Usage(error.into()))?);
    Ok(0)
}

pub async fn config_check(program: Program, check: ConfigCheck) -> anyhow::Result<u8> {
    let settings = load(&program, &check.common, &[])?;
    selected(program, &settings)?;
    Authenticator::new(&settings.auth).map_err(|error| Usage(error.into()))?;
    if check.connect {
        let database = without_password(&settings.store.database_url);
        let notes = event_store::store::check(&settings.store, MIGRATIONS).await;
        for note in notes.with_context(|| format!("the store at {database} or its NATS is not usable"))? {
            eprintln!("{note}");
        }
    }
    if std::io::stderr().is_terminal() {
        eprintln!("The settings are valid.");
    }
    Ok(0)
}

pub fn config_show(program: &Program, common: Common) -> anyhow::Result<u8> {
    print_line(load(program, &common, &[])?.show());
    Ok(0)
}
