//! `docket dev`, and the signing key that it creates.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{anyhow, ensure};
use event_store::error::Error;
use event_store::store::check_database;
use platform::auth::{Authenticator, Role, SECRET_BYTES_MIN};
use platform::files;

use crate::cli::{Dev, Usage, cannot_open, selected, sources};
use crate::migrations::MIGRATIONS;
use crate::program::Program;
use crate::run::serve;
use crate::settings::{Settings, without_password};

/// How long the printed token is valid.
const TOKEN_TTL: Duration = Duration::from_secs(24 * 3_600);

/// Runs all roles in one process, and prints a token and a curl command to paste.
pub async fn dev(program: Program, dev: Dev) -> anyhow::Result<u8> {
    let mut sources = sources(&dev.common);
    sources.flags.extend(dev.listen.map(|listen| ("--listen", "listen", listen)));
    sources.development = true;
    let modules = program.settings();
    let settings = Settings::load(&sources, &modules).map_err(Usage)?;
    let listen = &settings.server.listen;
    if !settings.server.is_on_loopback() {
        let reason = format!(
            "listen: `docket dev` listens on the loopback interface only (127.0.0.1:PORT or [::1]:PORT). Use `docket serve` \
             for {listen}"
        );
        return Err(Usage(settings.explain(&reason)).into());
    }
    let program = selected(program, &settings)?;
    // Checked before anything is created or printed: a failed start leaves no folder.
    match check_database(&settings.store, MIGRATIONS).await {
        // The start migrates the schema.
        Ok(_) | Err(Error::Schema(_)) => {}
        // The start recovers a file that another process has left behind in a crash.
        Err(Error::Database(_)) if settings.store.database_url.starts_with("sqlite:") => {}
        Err(error) => return Err(cannot_open(&settings, error.into())),
    }
    if settings.auth.jwt_secret.is_some() || settings.auth.jwt_jwks_url.is_some() {
        Authenticator::new(&settings.auth)
            .map_err(|error| Usage(settings.explain(&error.to_string())))?
            .fetch_keys()
            .await
            .map_err(|error| settings.explain(&error.to_string()))?;
    }
    let reload = move || Settings::load(&sources, &modules);
    serve(program, settings, reload, |address, settings| {
        if settings.auth.jwt_secret.is_none() {
            settings.auth.jwt_secret = Some(own_secret(&settings.server.data)?.into());
        }
        let token = Authenticator::new(&settings.auth)?.sign("dev", Role::Admin, TOKEN_TTL)?;
        let store = match &settings.store.database_url {
            url if url.starts_with("sqlite:") => url.trim_start_matches("sqlite:").to_owned(),
            url => format!("{} ({})", without_password(url), place(settings, "database_url")),
        };
        // A closed stdout must not stop the server.
        let _ = writeln!(
            std::io::stdout(),
            "Docket listens on http://{address}. Stop it with Ctrl-C.\n\n  \
             API documentation  http://{address}/docs\n  \
             Store              {store}\n  \
             Signing key        {}\n\n\
             export TOKEN={token}\n\
             curl -s http://{address}/v1/orders -H \"Authorization: Bearer $TOKEN\" -H 'Content-Type: application/json' \
             -d '{{\"customer_id\":\"c-1\",\"items\":[{{\"sku\":\"bagel\",\"quantity\":2,\"unit_price\":\"0.50\"}}]}}'\n",
            signing_key(settings)
        );
        Ok(())
    })
    .await?;
    Ok(0)
}

/// Returns where a setting was given.
fn place(settings: &Settings, name: &str) -> String {
    settings
        .origin(name)
        .map_or_else(|| "default".to_owned(), |origin| origin.of(name).trim_end_matches(',').to_owned())
}

/// Returns which key signs tokens, in words. The key of the data folder is used when no other is set.
pub fn signing_key(settings: &Settings) -> String {
    match (settings.origin("jwt_secret"), &settings.auth.jwt_secret, &settings.auth.jwt_key_file) {
        (Some(_), ..) => place(settings, "jwt_secret"),
        (None, None, Some(file)) => format!("{} ({})", file.display(), place(settings, "jwt_key_file")),
        _ => secret_path(&settings.server.data).display().to_string(),
    }
}

/// Returns the path of the signing key in a data folder.
pub fn secret_path(data: &Path) -> PathBuf {
    data.join("jwt-secret")
}

/// Returns the signing key in a data folder. The first start creates it, readable by its owner only.
///
/// # Errors
/// The file contains no valid key, or cannot be read or written. The text names the file and says what to do.
pub fn own_secret(data: &Path) -> anyhow::Result<String> {
    let path = secret_path(data);
    let cannot = |what: &str, path: &Path, error| {
        anyhow!("Cannot {what} {} ({error}). Choose another folder with --data or DOCKET_DATA.", path.display())
    };
    if !path.try_exists().map_err(|error| cannot("read", &path, error))? {
        let is_new = !data.exists();
        files::create_folder(data).map_err(|error| cannot("create the data folder", data, error))?;
        // 244 random bits: two version 4 UUIDs.
        let secret = format!("{}{}\n", uuid::Uuid::new_v4().simple(), uuid::Uuid::new_v4().simple());
        // When another process creates the file at the same time, both processes use that file.
        files::write_once(&path, secret.as_bytes()).map_err(|error| {
            if is_new {
                // A failed start leaves no folder. A folder that is not empty stays.
                let _ = std::fs::remove_dir(data);
            }
            cannot("write", &path, error)
        })?;
    }
    let contents = std::fs::read(&path).map_err(|error| cannot("read", &path, error))?;
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
