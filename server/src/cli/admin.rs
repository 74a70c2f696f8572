//! Commands around a server: run it, check its health, migrate its schema, print tokens and settings.

use std::time::Duration;

use anyhow::{Context, anyhow, bail};
use event_store::store::{check_database, check_nats, open};
use platform::auth::{Authenticator, Role};
use projection_engine::generation::prepare;
use serde_json::Value;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::cli::{
    Common, ConfigCheck, EXIT_FAILED, Health, Migrate, RoleName, Serve, Token, Usage, cannot_open, counted, dev, load,
    print_line, selected, sources,
};
use crate::migrations::MIGRATIONS;
use crate::program::Program;
use crate::run;
use crate::settings::{Settings, without_password};

pub async fn serve(program: Program, serve: Serve) -> anyhow::Result<u8> {
    let mut sources = sources(&serve.common);
    let flags = [("--listen", "listen", serve.listen), ("--roles", "roles", serve.roles)];
    sources.flags.extend(flags.into_iter().filter_map(|(flag, name, value)| Some((flag, name, value?))));
    let modules = program.settings();
    let mut settings = Settings::load(&sources, &modules).map_err(Usage)?;
    let program = selected(program, &settings)?;
    authenticator(&mut settings)?;
    let reload = move || Settings::load(&sources, &modules);
    run::serve(program, settings, reload, |_, settings| {
        if settings.auth.jwt_secret.is_some() && settings.origin("jwt_secret").is_none() {
            let file = dev::secret_path(&settings.server.data).display().to_string();
            tracing::info!(file, "Tokens are verified with the key of `docket dev`, because no other key is set.");
        }
        Ok(())
    })
    .await?;
    Ok(0)
}

/// Returns the keys of a server. Without a key in the settings, uses that of `docket dev` where this is safe: its tokens
/// are for one machine, so nobody else may reach the server.
fn authenticator(settings: &mut Settings) -> anyhow::Result<Authenticator> {
    let path = dev::secret_path(&settings.server.data);
    let is_private = settings.server.is_on_loopback() && settings.store.database_url.starts_with("sqlite:");
    let authenticator = match Authenticator::new(&settings.auth) {
        Err(platform::auth::Error::NoKey) if path.exists() && is_private => {
            settings.auth.jwt_secret = Some(dev::own_secret(&settings.server.data)?.into());
            Authenticator::new(&settings.auth)
        }
        Err(platform::auth::Error::NoKey) if path.exists() => {
            let reason = anyhow!(
                "There is no key to verify tokens. {} is the key of `docket dev`; a server uses it only with SQLite and on a \
                 loopback address. Set DOCKET_JWT_SECRET to a new key from `openssl rand -hex 32`, or to the contents of \
                 that file.",
                path.display()
            );
            return Err(Usage(reason).into());
        }
        built => built,
    };
    authenticator.map_err(|error| Usage(settings.explain(&error.to_string())).into())
}

/// Checks the readiness of a server. Meant for operators, and for health checks of containers without curl.
pub async fn health(wanted: Health) -> anyhow::Result<u8> {
    let url = wanted.url.trim_end_matches('/');
    let answer = reqwest::Client::builder()
        .timeout(Duration::from_secs(5))
        .build()?
        .get(format!("{url}/health/ready"))
        .send()
        .await
        .map_err(|error| match (error.is_builder(), error.is_timeout()) {
            (true, _) => {
                Usage(anyhow!("`{url}` is not a URL. Give one such as http://127.0.0.1:8080 with --url.")).into()
            }
            (_, true) => anyhow!("The server at {url} did not answer within 5 s."),
            _ => anyhow!("No server answers at {url}. Start one, or give its URL with --url."),
        })?;
    let (status, ready) = (answer.status(), answer.status().is_success());
    let text = answer.text().await.with_context(|| format!("The server at {url} did not send its whole answer"))?;
    let report: Value = serde_json::from_str(&text).unwrap_or_default();
    let (Some(state), Some(checks)) = (report["status"].as_str(), report["checks"].as_object()) else {
        bail!(
            "The server at {url} answered {status} without a health report. Check that --url is the URL of a Docket server."
        );
    };
    if wanted.json {
        print_line(&text);
    } else {
        print_line(format_args!("The server at {url} is {state}."));
        for (name, check) in checks {
            let latency = check["latency_ms"].as_f64().unwrap_or_default();
            print_line(format_args!("  {name:14} {:8} {latency:8.1} ms", check["status"].as_str().unwrap_or_default()));
        }
        if checks.values().any(|check| check["status"] != "ok") {
            eprintln!("The log of the server says why a check failed.");
        }
    }
    Ok(if ready { 0 } else { EXIT_FAILED })
}

pub async fn migrate(program: Program, migrate: Migrate) -> anyhow::Result<u8> {
    let mut settings = load(&program, &migrate.common)?;
    settings.store.nats_url.clear();
    let program = selected(program, &settings)?;
    let registry = program.registry();
    let store =
        open(settings.store.clone(), MIGRATIONS, program.upcasters(), CancellationToken::new(), TaskTracker::new())
            .await
            .map_err(|error| cannot_open(&settings, error.into()))?;
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
    eprintln!("The schema is up to date. The log has {}.", counted(store.head().await?, "event"));
    Ok(0)
}

pub fn token(program: &Program, token: Token) -> anyhow::Result<u8> {
    let mut settings = load(program, &token.common)?;
    let key = dev::signing_key(&settings);
    if settings.auth.jwt_secret.is_none() && settings.auth.jwt_key_file.is_none() {
        let path = dev::secret_path(&settings.server.data);
        if !path.exists() {
            let reason = anyhow!(
                "There is no signing key: {} does not exist. Set DOCKET_JWT_SECRET, or give the folder of `docket dev` with \
                 --data.",
                path.display()
            );
            return Err(Usage(reason).into());
        }
        settings.auth.jwt_secret = Some(dev::own_secret(&settings.server.data)?.into());
    }
    let role = match token.role {
        RoleName::Customer => Role::Customer,
        RoleName::Staff => Role::Staff,
        RoleName::Admin => Role::Admin,
    };
    let signed = Authenticator::new(&settings.auth).and_then(|keys| keys.sign(&token.sub, role, token.ttl));
    print_line(signed.map_err(|error| Usage(settings.explain(&error.to_string())))?);
    eprintln!("Signed with the key in {key}.");
    Ok(0)
}

pub async fn config_check(program: Program, check: ConfigCheck) -> anyhow::Result<u8> {
    let mut settings = load(&program, &check.common)?;
    selected(program, &settings)?;
    let authenticator = authenticator(&mut settings)?;
    if check.offline {
        eprintln!("The settings are valid. Nothing was connected to.");
        return Ok(0);
    }
    let (database, nats, keys) =
        tokio::join!(check_database(&settings.store, MIGRATIONS), check_nats(&settings.store), authenticator.fetch());
    let mut failures = Vec::new();
    match database {
        Ok(notes) => notes.iter().for_each(|note| eprintln!("{note}")),
        Err(error) => {
            failures.push(format!("The database {}: {error}.", without_password(&settings.store.database_url)));
        }
    }
    let reachable = nats.iter().filter(|(_, outcome)| outcome.is_ok()).count();
    for (server, outcome) in &nats {
        let Err(error) = outcome else { continue };
        match reachable {
            0 => failures.push(format!("The NATS server {server}: {error}.")),
            // A server starts when one of its NATS servers answers.
            _ => eprintln!("The NATS server {server} is not usable: {error}. Another one of nats_url is."),
        }
    }
    if let Err(error) = keys {
        failures.push(settings.explain(&error.to_string()).to_string());
    }
    if !failures.is_empty() {
        bail!(failures.join("\n"));
    }
    let nats = match nats.len() {
        0 => String::new(),
        all => format!(" and {reachable} of {}", counted(all as u64, "NATS server")),
    };
    eprintln!("The settings are valid, and the database{nats} can be used.");
    Ok(0)
}

pub fn config_show(program: &Program, common: Common) -> anyhow::Result<u8> {
    print_line(load(program, &common)?.show());
    Ok(0)
}
