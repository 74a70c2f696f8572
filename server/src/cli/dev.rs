//! `docket dev`, and the signing key that it creates.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, ensure};
use platform::auth::{Authenticator, Role, SECRET_BYTES_MIN};
use platform::files;
use platform::telemetry::settings::Environment;

use crate::cli::Usage;
use crate::program::Program;
use crate::run::serve;
use crate::settings::Settings;

/// How long the printed token is valid.
const TOKEN_TTL: Duration = Duration::from_secs(24 * 3_600);

/// Runs all roles in one process, and prints a token and a curl command to paste.
pub async fn dev(program: Program, listen: Option<String>, data: Option<PathBuf>) -> anyhow::Result<u8> {
    let mut settings = Settings::default();
    settings.server.listen = listen.unwrap_or(settings.server.listen);
    settings.server.data = data.unwrap_or(settings.server.data);
    settings.server.check_listen().map_err(Usage)?;
    let host = settings.server.listen.rsplit_once(':').map_or("", |(host, _)| host.trim_matches(['[', ']']));
    if host != "localhost" && !host.parse::<std::net::IpAddr>().is_ok_and(|address| address.is_loopback()) {
        let reason = anyhow::anyhow!(
            "`docket dev` listens on the loopback interface only (127.0.0.1:PORT or [::1]:PORT). Use `docket serve` for {}.",
            settings.server.listen
        );
        return Err(Usage(reason).into());
    }
    settings.store.database_url = format!("sqlite:{}", settings.server.data.join("docket.db").display());
    settings.auth.jwt_secret = Some(own_secret(&settings.server.data)?.into());
    // A page under development is served from some port of this machine.
    settings.push.allowed_origins = "loopback".to_owned();
    settings.log.environment = Environment::Development;
    let token = Authenticator::new(&settings.auth)?.sign("dev", Role::Admin, TOKEN_TTL)?;
    let data = settings.server.data.clone();
    let reloaded = settings.clone();
    serve(program, settings, move || Ok(reloaded.clone()), move |address| {
        // A closed stdout must not stop the server.
        let _ = writeln!(
            std::io::stdout(),
            "Docket listens on http://{address}. Data folder: {}. API documentation: http://{address}/docs. Stop it with Ctrl-C.\n\n\
             export TOKEN={token}\n\
             curl -s http://{address}/v1/orders -H \"Authorization: Bearer $TOKEN\" -H 'Content-Type: application/json' \
             -d '{{\"customer_id\":\"c-1\",\"items\":[{{\"sku\":\"bagel\",\"quantity\":2,\"unit_price\":\"0.50\"}}]}}'",
            data.display()
        );
    })
    .await?;
    Ok(0)
}

/// Returns the signing key in a data folder. The first start creates it, readable by its owner only.
///
/// # Errors
/// The file contains no valid key, or cannot be read or written. The text names the file and says what to do.
pub fn own_secret(data: &Path) -> anyhow::Result<String> {
    let path = data.join("jwt-secret");
    let cannot = |what: &str| format!("cannot {what} {}", path.display());
    if !path.try_exists().with_context(|| cannot("read"))? {
        files::create_folder(data).with_context(|| format!("cannot create the folder {}", data.display()))?;
        // 244 random bits: two version 4 UUIDs.
        let secret = format!("{}{}\n", uuid::Uuid::new_v4().simple(), uuid::Uuid::new_v4().simple());
        // When another process creates the file at the same time, both processes use that file.
        files::write_once(&path, secret.as_bytes()).with_context(|| cannot("write"))?;
    }
    let contents = std::fs::read(&path).with_context(|| cannot("read"))?;
    let secret = std::str::from_utf8(&contents).unwrap_or_default().trim();
    ensure!(
        secret.len() >= SECRET_BYTES_MIN && !secret.contains(char::is_control),
        "{} is empty or damaged. It must contain one line of at least {SECRET_BYTES_MIN} characters. Restore it from a \
         backup, or delete it and start `docket dev` again: that creates a new key, and tokens signed with the old key \
         become invalid.",
        path.display()
    );
    Ok(secret.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn concurrent_first_starts_agree_on_one_key() {
        let scratch = tempfile::tempdir().unwrap();
        for round in 0..100 {
            let folder = scratch.path().join(round.to_string());
            let start = std::sync::Barrier::new(8);
            let begin = || {
                start.wait();
                own_secret(&folder).unwrap()
            };
            let keys: Vec<String> = std::thread::scope(|scope| {
                let threads: Vec<_> = (0..8).map(|_| scope.spawn(begin)).collect();
                threads.into_iter().map(|thread| thread.join().unwrap()).collect()
            });
            assert!(keys.iter().all(|key| *key == keys[0] && key.len() == 64), "{keys:?}");
            assert_eq!(own_secret(&folder).unwrap(), keys[0], "the next start uses the same key");
        }
    }

    #[test]
    fn an_emptied_or_damaged_key_is_named_in_the_error() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("jwt-secret");
        for left in [&b""[..], b"\n", b"short", &[0; 65], &[0xff; 65]] {
            std::fs::write(&path, left).unwrap();
            let error = own_secret(folder.path()).unwrap_err().to_string();
            assert!(error.contains(&path.display().to_string()) && error.contains("delete it"), "{error}");
            assert_eq!(std::fs::read(&path).unwrap(), left, "the file is not replaced");
        }
    }
}
