//! `docket dev`, and the key that it makes for itself.

use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::Context;
use platform::auth::{Authenticator, Role};
use platform::telemetry::Environment;

use crate::cli::Usage;
use crate::run::serve;
use crate::settings::Settings;

/// Valid for as long as a day at the desk.
const TOKEN_TTL: Duration = Duration::from_secs(24 * 3_600);

/// Runs everything in one process and prints what to paste.
pub async fn dev(listen: Option<String>, data: Option<PathBuf>) -> anyhow::Result<u8> {
    let mut settings = Settings::default();
    settings.server.listen = listen.unwrap_or(settings.server.listen);
    settings.server.data = data.unwrap_or(settings.server.data);
    settings.server.check_listen().map_err(Usage)?;
    let host = settings.server.listen.rsplit_once(':').map_or("", |(host, _)| host.trim_matches(['[', ']']));
    if host != "localhost" && !host.parse::<std::net::IpAddr>().is_ok_and(|address| address.is_loopback()) {
        let reason = anyhow::anyhow!(
            "docket dev listens on the loopback interface only (127.0.0.1:PORT or [::1]:PORT); use `docket serve` for {}",
            settings.server.listen
        );
        return Err(Usage(reason).into());
    }
    settings.store.database_url = format!("sqlite:{}", settings.server.data.join("docket.db").display());
    settings.auth.jwt_secret = Some(own_secret(&settings.server.data)?.into());
    // A page that is being developed comes from some port of this machine.
    settings.push.allowed_origins = "loopback".to_owned();
    settings.log.environment = Environment::Development;
    let token = Authenticator::new(&settings.auth)?.sign("dev", Role::Admin, TOKEN_TTL)?;
    let data = settings.server.data.clone();
    let again = settings.clone();
    serve(settings, move || Ok(again.clone()), move |address| {
        // A closed stdout is no reason to stop serving.
        let _ = writeln!(
            std::io::stdout(),
            "Docket listens on http://{address}, data in {}, API at http://{address}/docs. Stop it with Ctrl-C.\n\n\
             export TOKEN={token}\n\
             curl -s http://{address}/v1/orders -H \"Authorization: Bearer $TOKEN\" -H 'Content-Type: application/json' \
             -d '{{\"customer_id\":\"c-1\",\"items\":[{{\"sku\":\"bagel\",\"quantity\":2,\"unit_price\":\"0.50\"}}]}}'",
            data.display()
        );
    })
    .await?;
    Ok(0)
}

/// The secret in a data folder, made at first start and readable by its owner only.
pub fn own_secret(data: &Path) -> anyhow::Result<String> {
    let path = data.join("jwt-secret");
    if let Ok(secret) = std::fs::read_to_string(&path) {
        return Ok(secret.trim().to_owned());
    }
    std::fs::create_dir_all(data).with_context(|| format!("cannot make the folder {}", data.display()))?;
    // 244 random bits: two version 4 UUIDs.
    let secret = format!("{}{}", uuid::Uuid::new_v4().simple(), uuid::Uuid::new_v4().simple());
    let mut file = std::fs::OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(&path)
        .with_context(|| format!("cannot write {}", path.display()))?;
    writeln!(file, "{secret}")?;
    Ok(secret)
}
