//! Settings of all crates. Sources, each overriding the one before: `docket.toml`, `DOCKET_…` variables, flags.
//!
//! Every setting has one flat name: as it is in the file, and in capitals after `DOCKET_` in the environment. Each
//! crate defines its own settings; this module reads them by name and passes them on.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use anyhow::{Context, anyhow, bail};
use config::{Config, Environment, File, FileFormat, Value};
use platform::proxies::Proxies;
use platform::telemetry::redact::is_secret;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::module::Setting;

/// Settings of the server itself.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Server {
    /// Address and port to listen on.
    pub listen: String,
    /// Roles of this process, separated by commas: `write`, `react`, `project`, `read`.
    pub roles: String,
    /// Folder of the signing key that `docket dev` creates, and of temporary files of bulk commands.
    pub data: PathBuf,
    /// Deadline for tasks to stop at shutdown, in seconds. It begins after the requests have ended (10 s at most).
    pub shutdown_seconds: u64,
    /// Address and port of `/metrics`. When empty, `/metrics` is on the address of the API in embedded mode, and on
    /// 127.0.0.1:9464 in scaled mode, if that port is free.
    pub metrics_listen: String,
    /// Reverse proxies whose `X-Forwarded-For` is trusted: addresses and networks, separated by commas.
    pub trusted_proxies: String,
    /// Modules that this process runs, separated by commas. When empty, all modules.
    pub modules: String,
    /// Limit of open client connections, including sockets and streams. Further connections are answered 503.
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

/// All settings, one field for each crate that defines settings.
#[derive(Debug, Clone, Default)]
pub struct Settings {
    /// Settings of the server.
    pub server: Server,
    /// Settings of the event store and its JetStream stream.
    pub store: event_store::settings::Settings,
    /// Settings of the pump.
    pub pump: projection_engine::settings::Settings,
    /// Settings of authentication.
    pub auth: platform::auth::Settings,
    /// Settings of rate limits.
    pub limits: platform::limits::Settings,
    /// Settings of commands and bulk commands.
    pub write: command_engine::settings::Settings,
    /// Settings of live updates.
    pub push: push::settings::Settings,
    /// Settings of logs, metrics and traces.
    pub log: platform::telemetry::settings::Settings,
    /// Values of the modules' settings, by name.
    pub module_settings: BTreeMap<&'static str, String>,
}

/// The roles of a process.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Roles {
    /// Accepts commands, and relays events to JetStream.
    pub write: bool,
    /// Runs reactors and process managers.
    pub react: bool,
    /// Builds read models.
    pub project: bool,
    /// Answers queries, and pushes live updates.
    pub read: bool,
}

impl Roles {
    /// Every role.
    pub const ALL: Self = Self { write: true, react: true, project: true, read: true };
    const NONE: Self = Self { write: false, react: false, project: false, read: false };

    /// Returns a hint for answers about unknown paths: which role serves the paths that this process does not. It
    /// begins with a space, or is empty.
    pub fn not_found_hint(self) -> &'static str {
        match self {
            Self { write: true, read: true, .. } => "",
            Self { write: true, .. } => " This process lacks the role read. Send queries to a process that has it.",
            Self { read: true, .. } => " This process lacks the role write. Send commands to a process that has it.",
            _ => " This process lacks the roles write and read. Send requests to a process that has them.",
        }
    }
}

impl Server {
    /// Checks that the addresses to listen on have the form ADDRESS:PORT.
    pub fn check_listen(&self) -> anyhow::Result<()> {
        for (name, listen) in [("listen", &self.listen), ("metrics_listen", &self.metrics_listen)] {
            match listen.rsplit_once(':') {
                Some((host, port)) if !host.is_empty() && port.parse::<u16>().is_ok() => {}
                None if name == "metrics_listen" && listen.is_empty() => {}
                _ => bail!("{name}: `{listen}` must be ADDRESS:PORT, e.g. 127.0.0.1:8080 or [::1]:8080."),
            }
        }
        Ok(())
    }

    /// Parses the trusted proxies.
    ///
    /// # Errors
    /// An entry is neither an address nor a network.
    pub fn proxies(&self) -> anyhow::Result<Proxies> {
        Proxies::parse(&self.trusted_proxies).map_err(|error| anyhow!("trusted_proxies: {error}"))
    }

    /// Parses the roles.
    ///
    /// # Errors
    /// A name is not a role, or there is no name.
    pub fn roles(&self) -> anyhow::Result<Roles> {
        let mut roles = Roles::NONE;
        for name in self.roles.split(',').map(str::trim).filter(|name| !name.is_empty()) {
            match name {
                "write" => roles.write = true,
                "react" => roles.react = true,
                "project" => roles.project = true,
                "read" => roles.read = true,
                _ => bail!("roles: `{name}` is not a role. Use one or more of write, react, project, read."),
            }
        }
        if roles == Roles::NONE {
            bail!("roles: Give one or more of write, react, project, read.");
        }
        Ok(roles)
    }
}

type Named = BTreeMap<String, Value>;

/// Names of the settings of authentication. `names_of` reads the names of all other settings from their serialized
/// defaults. These settings contain secrets and are never serialized, so their names are listed here.
const AUTH: [&str; 10] = [
    "jwt_secret",
    "jwt_key_file",
    "jwt_jwks_url",
    "oidc_issuer",
    "jwt_issuer",
    "jwt_audience",
    "jwt_audience_claim",
    "jwt_subject_claim",
    "jwt_role_claim",
    "jwt_roles",
];

impl Settings {
    /// Reads the file, then the environment, then `flags`. Without `file`, reads `docket.toml` in the current folder if
    /// it exists.
    ///
    /// # Errors
    /// The file cannot be read, a name is not a setting, or a value is invalid. The error names the setting.
    pub fn load(file: Option<&Path>, flags: &[(&str, String)], module_settings: &[Setting]) -> anyhow::Result<Self> {
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
        // DOCKET_URL and DOCKET_TOKEN are for clients, such as `docket import`; they are not settings.
        named.remove("url");
        named.remove("token");
        let settings = Self {
            server: extract(&mut named, &names_of(&Server::default()))?,
            store: extract(&mut named, &names_of(&event_store::settings::Settings::default()))?,
            pump: extract(&mut named, &names_of(&projection_engine::settings::Settings::default()))?,
            auth: extract(&mut named, &AUTH.map(String::from))?,
            limits: extract(&mut named, &names_of(&platform::limits::Settings::default()))?,
            write: extract(&mut named, &names_of(&command_engine::settings::Settings::default()))?,
            push: extract(&mut named, &names_of(&push::settings::Settings::default()))?,
            log: extract(&mut named, &names_of(&platform::telemetry::settings::Settings::default()))?,
            module_settings: module_settings
                .iter()
                .map(|setting| module_setting(&mut named, setting))
                .collect::<Result<_, _>>()?,
        };
        if let Some(unknown) = named.keys().next() {
            bail!(
                "settings: `{unknown}` is not a setting. Correct or remove it; then `docket config show` lists all settings."
            );
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

    /// Returns every setting with its value as TOML, without secrets.
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
                // Vendors expect their API key in these headers.
                "otlp_headers" if value != "" => serde_json::Value::from("***"),
                _ => value,
            };
            lines.push(format!("{name} = {value}"));
        }
        lines.extend(self.module_settings.iter().map(|(name, value)| format!("{name} = {value:?}")));
        for (name, value) in [
            ("jwt_issuer", &self.auth.jwt_issuer),
            ("jwt_audience", &self.auth.jwt_audience),
            ("jwt_audience_claim", &self.auth.jwt_audience_claim),
            ("jwt_subject_claim", &self.auth.jwt_subject_claim),
            ("jwt_role_claim", &self.auth.jwt_role_claim),
            ("jwt_roles", &self.auth.jwt_roles),
        ] {
            lines.push(format!("{name} = {}", serde_json::Value::from(value.as_str())));
        }
        lines.push(format!("# jwt_secret: {}", if self.auth.jwt_secret.is_some() { "set" } else { "not set" }));
        if let Some(file) = &self.auth.jwt_key_file {
            lines.push(format!("jwt_key_file = {:?}", file.display().to_string()));
        }
        if let Some(url) = &self.auth.jwt_jwks_url {
            lines.push(format!("jwt_jwks_url = {:?}", without_password(url)));
        }
        if let Some(issuer) = &self.auth.oidc_issuer {
            lines.push(format!("oidc_issuer = {:?}", without_password(issuer)));
        }
        lines.join("\n")
    }
}

/// Returns a URL with its passwords and tokens replaced by `***`.
pub fn without_password(url: &str) -> String {
    let shown = match url.split_once("://").and_then(|(scheme, rest)| Some((scheme, rest.rsplit_once('@')?))) {
        // A NATS user without a password is a token.
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

/// Returns the value of a module's setting, or its default when it is not given.
fn module_setting(named: &mut Named, setting: &Setting) -> anyhow::Result<(&'static str, String)> {
    let value = match named.remove(setting.name) {
        Some(value) => value.into_string().with_context(|| format!("{}: give a string", setting.name))?,
        None => setting.default.to_owned(),
    };
    Ok((setting.name, value))
}

/// Returns the names of a crate's settings: the fields of its defaults.
fn names_of(defaults: &impl Serialize) -> Vec<String> {
    match serde_json::to_value(defaults) {
        Ok(serde_json::Value::Object(fields)) => fields.keys().cloned().collect(),
        _ => Vec::new(),
    }
}

/// Removes a crate's settings from `named`, and parses them.
fn extract<T: DeserializeOwned>(named: &mut Named, names: &[String]) -> anyhow::Result<T> {
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
    fn flags_override_the_file_and_an_unknown_setting_is_named() {
        let folder = std::env::temp_dir().join(format!("docket-settings-{}", std::process::id()));
        std::fs::create_dir_all(&folder).unwrap();
        let file = folder.join("docket.toml");
        std::fs::write(&file, "listen = \"127.0.0.1:9\"\nappend_queue_max = 7\n").unwrap();
        let settings = Settings::load(Some(&file), &[("listen", "127.0.0.1:8".into())], &[]).unwrap();
        assert_eq!((settings.server.listen.as_str(), settings.store.append_queue_max), ("127.0.0.1:8", 7));
        std::fs::write(&file, "lissten = \"x\"\n").unwrap();
        let error = Settings::load(Some(&file), &[], &[]).unwrap_err().to_string();
        assert!(error.contains("`lissten` is not a setting"), "{error}");
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
    fn an_unknown_role_is_named_in_the_error() {
        let server = Server { roles: "write,prject".into(), ..Server::default() };
        assert!(server.roles().unwrap_err().to_string().contains("`prject`"));
    }
}
