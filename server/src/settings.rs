//! Settings gathered from each crate: `docket.toml`, then `DOCKET_…` variables, then flags.
//!
//! Every setting has one flat name, the same in the file and, in capitals behind `DOCKET_`, in the environment. Each
//! crate owns its own settings; here they are only found by name and handed over.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use anyhow::{Context, anyhow, bail};
use config::{Config, Environment, File, FileFormat, Value};
use platform::proxies::Proxies;
use platform::telemetry::redact::is_secret;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::module::Setting;

/// What the server itself is told.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Server {
    /// Address and port to listen on.
    pub listen: String,
    /// What this process does: `write`, `react`, `project`, `read`, separated by commas.
    pub roles: String,
    /// Folder for what Docket keeps beside the database: the key that `docket dev` makes.
    pub data: PathBuf,
    /// How long tasks may take to end, after the requests (10 s at most), in seconds.
    pub shutdown_seconds: u64,
    /// Address and port of `/metrics`; where it is empty, with the API in embedded mode, and on 127.0.0.1:9464 (if that is
    /// free) in scaled mode.
    pub metrics_listen: String,
    /// Reverse proxies whose `X-Forwarded-For` is believed: addresses and networks, separated by commas.
    pub trusted_proxies: String,
    /// The modules that this process runs, separated by commas; empty: all.
    pub modules: String,
    /// Connections of clients at a time, sockets and streams among them; one more is answered 503.
    pub http_connections_max: usize,
}

impl Default for Server {
    fn default() -> Self {
        Self {
            listen: "127.0.0.1:8080".into(),
            roles: "write,react,project,read".into(),
            data: "data".into(),
            shutdown_seconds: 10,
            metrics_listen: String::new(),
            trusted_proxies: String::new(),
            modules: String::new(),
            http_connections_max: 30_000,
        }
    }
}

/// All settings, each part for the crate that owns it.
#[derive(Debug, Clone, Default)]
pub struct Settings {
    /// The server.
    pub server: Server,
    /// The event store and its stream.
    pub store: event_store::settings::Settings,
    /// The pump.
    pub pump: projection_engine::settings::Settings,
    /// Who may ask.
    pub auth: platform::auth::Settings,
    /// How often.
    pub limits: platform::limits::Settings,
    /// Commands in bulk.
    pub write: command_engine::settings::Settings,
    /// Who may listen to live updates.
    pub push: push::settings::Settings,
    /// What is logged.
    pub log: platform::telemetry::settings::Settings,
    /// Those of modules, by name.
    pub of_modules: BTreeMap<&'static str, String>,
}

/// What a process does.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Roles {
    /// Takes commands, relays events to the stream.
    pub write: bool,
    /// Runs reactors and process managers.
    pub react: bool,
    /// Builds read models.
    pub project: bool,
    /// Answers queries, pushes live updates.
    pub read: bool,
}

impl Roles {
    /// All there are.
    pub const ALL: Self = Self { write: true, react: true, project: true, read: true };
    const NONE: Self = Self { write: false, react: false, project: false, read: false };

    /// What to say of a path that this process does not know.
    pub fn not_found_hint(self) -> &'static str {
        match self {
            Self { write: true, read: true, .. } => "",
            Self { write: true, .. } => "; this process takes commands only, one with the role read answers queries",
            Self { read: true, .. } => "; this process answers queries only, one with the role write takes commands",
            _ => "; this process answers neither commands nor queries, others with the roles write and read do",
        }
    }
}

impl Server {
    /// Whether what is listened on names an address.
    pub fn check_listen(&self) -> anyhow::Result<()> {
        for (name, listen) in [("listen", &self.listen), ("metrics_listen", &self.metrics_listen)] {
            match listen.rsplit_once(':') {
                Some((host, port)) if !host.is_empty() && port.parse::<u16>().is_ok() => {}
                None if name == "metrics_listen" && listen.is_empty() => {}
                _ => bail!("{name}: `{listen}` must be ADDRESS:PORT, e.g. 127.0.0.1:8080 or [::1]:8080"),
            }
        }
        Ok(())
    }

    /// The proxies that are believed.
    ///
    /// # Errors
    /// What is neither an address nor a network.
    pub fn proxies(&self) -> anyhow::Result<Proxies> {
        Proxies::parse(&self.trusted_proxies).map_err(|error| anyhow!("trusted_proxies: {error}"))
    }

    /// The roles by name.
    ///
    /// # Errors
    /// A name that is no role, or no role at all.
    pub fn roles(&self) -> anyhow::Result<Roles> {
        let mut roles = Roles::NONE;
        for name in self.roles.split(',').map(str::trim).filter(|name| !name.is_empty()) {
            match name {
                "write" => roles.write = true,
                "react" => roles.react = true,
                "project" => roles.project = true,
                "read" => roles.read = true,
                _ => bail!("roles: `{name}` is no role; take one or more of write, react, project, read"),
            }
        }
        if roles == Roles::NONE {
            bail!("roles: give one or more of write, react, project, read");
        }
        Ok(roles)
    }
}

type Named = BTreeMap<String, Value>;

/// Secrets have no default that could name them.
const AUTH: [&str; 5] = ["jwt_secret", "jwt_key_file", "jwt_jwks_url", "jwt_issuer", "jwt_audience"];

impl Settings {
    /// Reads the file (`docket.toml` here, if it is there, where none is named), then the environment, then `flags`.
    ///
    /// # Errors
    /// A file that cannot be read, a name that is no setting, a value that does not fit; each error names the setting.
    pub fn load(file: Option<&Path>, flags: &[(&str, String)], of_modules: &[Setting]) -> anyhow::Result<Self> {
        let mut builder = Config::builder();
        builder = match file {
            Some(file) => builder.add_source(File::from(file).format(FileFormat::Toml)),
            None => builder.add_source(File::from(Path::new("docket.toml")).format(FileFormat::Toml).required(false)),
        };
        builder = builder.add_source(Environment::with_prefix("DOCKET").prefix_separator("_"));
        for (name, value) in flags {
            builder = builder.set_override(*name, value.clone())?;
        }
        let mut named: Named = builder.build().context("settings")?.try_deserialize().context("settings")?;
        // DOCKET_TOKEN is what `docket import` authenticates with, and no setting.
        named.remove("token");
        let settings = Self {
            server: part(&mut named, &names_of(&Server::default()))?,
            store: part(&mut named, &names_of(&event_store::settings::Settings::default()))?,
            pump: part(&mut named, &names_of(&projection_engine::settings::Settings::default()))?,
            auth: part(&mut named, &AUTH.map(String::from))?,
            limits: part(&mut named, &names_of(&platform::limits::Settings::default()))?,
            write: part(&mut named, &names_of(&command_engine::settings::Settings::default()))?,
            push: part(&mut named, &names_of(&push::settings::Settings::default()))?,
            log: part(&mut named, &names_of(&platform::telemetry::settings::Settings::default()))?,
            of_modules: of_modules.iter().map(|setting| own(&mut named, setting)).collect::<Result<_, _>>()?,
        };
        if let Some(unknown) = named.keys().next() {
            bail!("settings: `{unknown}` is no setting; `docket config show` lists them");
        }
        settings.server.roles()?;
        settings.server.check_listen()?;
        settings.server.proxies()?;
        settings.store.check()?;
        settings.log.check()?;
        settings.write.check().map_err(|reason| anyhow!(reason))?;
        settings.push.check().map_err(|reason| anyhow!(reason))?;
        Ok(settings)
    }

    /// Every setting with its value, secrets left out: valid TOML.
    pub fn show(&self) -> String {
        let mut lines = Vec::new();
        let parts = [
            serde_json::to_value(&self.server),
            serde_json::to_value(&self.store),
            serde_json::to_value(&self.pump),
            serde_json::to_value(&self.limits),
            serde_json::to_value(&self.write),
            serde_json::to_value(&self.push),
            serde_json::to_value(&self.log),
        ];
        for (name, value) in parts.into_iter().flatten().filter_map(|part| part.as_object().cloned()).flatten() {
            let value = match name.as_str() {
                "database_url" | "nats_url" | "otlp_endpoint" => {
                    serde_json::Value::from(without_password(value.as_str().unwrap_or_default()))
                }
                // Where vendors want their key.
                "otlp_headers" if value != "" => serde_json::Value::from("***"),
                _ => value,
            };
            lines.push(format!("{name} = {value}"));
        }
        lines.extend(self.of_modules.iter().map(|(name, value)| format!("{name} = {value:?}")));
        lines.push(format!("jwt_issuer = {:?}", self.auth.jwt_issuer));
        lines.push(format!("jwt_audience = {:?}", self.auth.jwt_audience));
        lines.push(format!("# jwt_secret: {}", if self.auth.jwt_secret.is_some() { "set" } else { "not set" }));
        if let Some(file) = &self.auth.jwt_key_file {
            lines.push(format!("jwt_key_file = {:?}", file.display().to_string()));
        }
        if let Some(url) = &self.auth.jwt_jwks_url {
            lines.push(format!("jwt_jwks_url = {:?}", without_password(url)));
        }
        lines.join("\n")
    }
}

/// A URL as it may be shown.
pub fn without_password(url: &str) -> String {
    let shown = match url.split_once("://").and_then(|(scheme, rest)| Some((scheme, rest.rsplit_once('@')?))) {
        // A name alone is a token there.
        Some(("nats", (token, host))) if !token.contains(':') => format!("nats://***@{host}"),
        Some((scheme, (user, host))) => format!("{scheme}://{}:***@{host}", user.split(':').next().unwrap_or_default()),
        None => url.to_owned(),
    };
    let Some((place, query)) = shown.split_once('?') else { return shown };
    let parameter = |pair: &str| match pair.split_once('=') {
        Some((name, _)) if is_secret(name) => format!("{name}=***"),
        _ => pair.to_owned(),
    };
    format!("{place}?{}", query.split('&').map(parameter).collect::<Vec<_>>().join("&"))
}

/// A module's setting, as given or as it is where it is not given.
fn own(named: &mut Named, setting: &Setting) -> anyhow::Result<(&'static str, String)> {
    let value = match named.remove(setting.name) {
        Some(value) => value.into_string().with_context(|| format!("{}: give a text", setting.name))?,
        None => setting.default.to_owned(),
    };
    Ok((setting.name, value))
}

/// The names of a crate's settings: those of its defaults.
fn names_of(defaults: &impl Serialize) -> Vec<String> {
    match serde_json::to_value(defaults) {
        Ok(serde_json::Value::Object(fields)) => fields.keys().cloned().collect(),
        _ => Vec::new(),
    }
}

/// Takes a crate's settings out of all that were given.
fn part<T: DeserializeOwned>(named: &mut Named, names: &[String]) -> anyhow::Result<T> {
    let mut builder = Config::builder();
    for name in names {
        if let Some(value) = named.remove(name) {
            builder = builder.set_override(name, value)?;
        }
    }
    builder.build()?.try_deserialize().context("settings")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_is_overridden_by_flags_and_a_wrong_name_is_named() {
        let folder = std::env::temp_dir().join(format!("docket-settings-{}", std::process::id()));
        std::fs::create_dir_all(&folder).unwrap();
        let file = folder.join("docket.toml");
        std::fs::write(&file, "listen = \"127.0.0.1:9\"\nappend_queue_max = 7\n").unwrap();
        let settings = Settings::load(Some(&file), &[("listen", "127.0.0.1:8".into())], &[]).unwrap();
        assert_eq!((settings.server.listen.as_str(), settings.store.append_queue_max), ("127.0.0.1:8", 7));
        std::fs::write(&file, "lissten = \"x\"\n").unwrap();
        let error = Settings::load(Some(&file), &[], &[]).unwrap_err().to_string();
        assert!(error.contains("`lissten` is no setting"), "{error}");
        std::fs::remove_dir_all(&folder).unwrap();
    }

    #[test]
    fn passwords_are_not_shown() {
        assert_eq!(without_password("postgres://docket:secret@db:5432/docket"), "postgres://docket:***@db:5432/docket");
        assert_eq!(without_password("sqlite:data/docket.db"), "sqlite:data/docket.db");
        assert_eq!(without_password("nats://a-token@bus:4222"), "nats://***@bus:4222");
        let in_query = "postgres://docket@db/docket?sslmode=require&password=secret";
        assert_eq!(without_password(in_query), "postgres://docket:***@db/docket?sslmode=require&password=***");
    }

    #[test]
    fn a_role_that_is_none_is_named() {
        let server = Server { roles: "write,prject".into(), ..Server::default() };
        assert!(server.roles().unwrap_err().to_string().contains("`prject`"));
    }
}
