//! Settings of all crates. Sources, each overriding the one before: `docket.toml`, `DOCKET_…` variables, flags.
//!
//! Every setting has one flat name: as it is in the file, and in capitals after `DOCKET_` in the environment. Each
//! crate defines its own settings; this module reads them by name and passes them on. The doc comments of the settings
//! are the reference in `docs/settings.md`.

mod described;
mod given;
mod value;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::LazyLock;

use anyhow::{Context, anyhow, bail};
use platform::proxies::Proxies;
use platform::telemetry::redact::{HIDDEN, is_secret};
use schemars::JsonSchema;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::module::Setting;
use crate::settings::described::{Described, Kind, Unit, describe};
use crate::settings::given::{AllGiven, Given, from_environment, from_file, nearest, variable};
use crate::settings::value::parse;

pub use crate::settings::given::Origin;
pub use crate::settings::value::parse_ttl;

/// Settings of the server itself.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Server {
    /// Address and port of the API. `docket dev` accepts loopback addresses only.
    pub listen: String,
    /// Roles of this process, separated by commas: `write`, `react`, `project`, `read`.
    pub roles: String,
    /// Folder of the SQLite store when `database_url` is not set, of the signing key that `docket dev` creates, and of
    /// temporary files of bulk commands.
    pub data: PathBuf,
    /// Deadline for tasks to stop at shutdown, in seconds. It begins after the requests have ended (10 s at most).
    pub shutdown_seconds: u64,
    /// Address and port of `/metrics`. When empty, `/metrics` is on the address of the API in embedded mode, and on
    /// 127.0.0.1:9464 in scaled mode, if that port is free.
    pub metrics_listen: String,
    /// Reverse proxies whose `X-Forwarded-For` is trusted: addresses and networks, separated by commas, for example
    /// `10.1.2.3, 10.4.0.0/16`. Without them, limits by address and the access log use the proxy's address.
    pub trusted_proxies: String,
    /// Modules that this process runs, separated by commas. When empty, all modules. A process with the role `project`
    /// runs all built-in modules or none.
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
    /// Sentences about ignored variables, for the operator.
    pub warnings: Vec<String>,
    /// The settings that are not defaults.
    given: AllGiven,
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
                _ => bail!("{name}: `{listen}` must be ADDRESS:PORT, e.g. 127.0.0.1:8080 or [::1]:8080"),
            }
        }
        Ok(())
    }

    /// Whether only programs on this machine can connect.
    pub fn is_on_loopback(&self) -> bool {
        let host = self.listen.rsplit_once(':').map_or("", |(host, _)| host.trim_matches(['[', ']']));
        host == "localhost" || host.parse::<std::net::IpAddr>().is_ok_and(|address| address.is_loopback())
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
                _ => bail!("roles: `{name}` is not a role. Use one or more of write, react, project, read"),
            }
        }
        if roles == Roles::NONE {
            bail!("roles: Give one or more of write, react, project, read");
        }
        Ok(roles)
    }
}

/// Names of the sections of the reference, and the settings of each.
pub fn reference() -> Vec<(&'static str, Vec<Described>)> {
    vec![
        ("Server", describe::<Server>()),
        ("Store and stream", describe::<event_store::settings::Settings>()),
        ("Read models", describe::<projection_engine::settings::Settings>()),
        ("Tokens", describe::<platform::auth::Settings>()),
        ("Rate limits", describe::<platform::limits::Settings>()),
        ("Bulk commands", describe::<command_engine::settings::Settings>()),
        ("Live updates and CORS", describe::<push::settings::Settings>()),
        ("Logs, metrics and traces", describe::<platform::telemetry::settings::Settings>()),
    ]
}

/// What a command adds to the file and the environment.
#[derive(Debug, Default)]
pub struct Sources {
    /// The settings file. Without it, `docket.toml` in the current folder is read if it exists.
    pub file: Option<PathBuf>,
    /// Flags: the flag, the name of its setting, and the value.
    pub flags: Vec<(&'static str, &'static str, String)>,
    /// Whether the defaults are those of `docket dev`.
    pub development: bool,
    /// `DOCKET_…` variables that are not settings.
    pub other_variables: Vec<String>,
}

impl Settings {
    /// Reads the file, then the environment, then the flags. A later source overrides an earlier one.
    ///
    /// # Errors
    /// The file cannot be read, a name in it is not a setting, or a value is invalid. The error names the setting, where
    /// it was given, and what is accepted.
    pub fn load(sources: &Sources, module_settings: &[Setting]) -> anyhow::Result<Self> {
        let default_file = Path::new("docket.toml");
        let mut given = match &sources.file {
            Some(file) => from_file(file)?,
            // Not `exists`: a file that cannot be inspected is an error, not an absent file.
            None if matches!(default_file.try_exists(), Ok(false)) => AllGiven::new(),
            None => from_file(default_file)?,
        };
        given.extend(from_environment(std::env::vars_os(), &sources.other_variables)?);
        let flags = sources.flags.iter().map(|(flag, name, value)| {
            ((*name).to_owned(), Given { value: value.as_str().into(), origin: Origin::Flag(flag) })
        });
        given.extend(flags);

        let mut settings = Self::default();
        if sources.development {
            // A page under development is served from some port of this machine.
            settings.push.allowed_origins = "loopback".to_owned();
            settings.log.environment = platform::telemetry::settings::Environment::Development;
        }
        let mut named = Named { known: BTreeMap::new(), given };
        settings.server = named.extract(&settings.server)?;
        settings.store = named.extract(&settings.store)?;
        settings.pump = named.extract(&settings.pump)?;
        settings.auth = named.extract(&settings.auth)?;
        settings.limits = named.extract(&settings.limits)?;
        settings.write = named.extract(&settings.write)?;
        settings.push = named.extract(&settings.push)?;
        settings.log = named.extract(&settings.log)?;
        settings.module_settings =
            module_settings.iter().map(|setting| named.module_setting(setting)).collect::<Result<_, _>>()?;
        settings.warnings = named.refuse_unknown(module_settings)?;
        settings.given = named.known;
        settings.choose_database(sources.development)?;
        settings.check().map_err(|error| settings.explain(&format!("{error:#}")))?;
        Ok(settings)
    }

    /// Checks each part. The text of an error begins with the name of the setting.
    fn check(&self) -> anyhow::Result<()> {
        self.server.roles()?;
        self.server.check_listen()?;
        self.server.proxies()?;
        self.store.check()?;
        self.log.check().map_err(|error| match error {
            platform::telemetry::Error::Level(_) => anyhow!("log_level: {error}"),
            platform::telemetry::Error::Filter { .. } => anyhow!("log_filter: {error}"),
            error => error.into(),
        })?;
        self.write.check().map_err(|reason| anyhow!(reason))?;
        self.push.check().map_err(|reason| anyhow!(reason))
    }

    /// Without `database_url`, the store is in the folder `data`.
    fn choose_database(&mut self, development: bool) -> anyhow::Result<()> {
        if self.given.contains_key("database_url") {
            return Ok(());
        }
        let (file, former) = (self.server.data.join("docket.db"), Path::new("data/docket.db"));
        // The former default must not be left for an empty store in silence.
        if !development && !file.exists() && former.exists() {
            bail!(
                "{} does not exist, but {} does. Set database_url to `sqlite:PATH` of the store that you want.",
                file.display(),
                former.display()
            );
        }
        self.store.database_url = format!("sqlite:{}", file.display());
        Ok(())
    }

    /// Adds to a reason that begins with the name of a setting where the setting was given, and its value.
    pub fn explain(&self, reason: &str) -> anyhow::Error {
        let end = reason.find(|c: char| !(c.is_ascii_alphanumeric() || c == '_')).unwrap_or(reason.len());
        match self.given.get_key_value(&reason[..end]) {
            Some((name, given)) => anyhow!("{}", invalid(name, given, reason)),
            None => anyhow!("{reason}"),
        }
    }

    /// Returns where a setting was given; `None` when it has its default.
    pub fn origin(&self, name: &str) -> Option<&Origin> {
        self.given.get(name).map(|given| &given.origin)
    }

    /// Returns every setting with its value as TOML, without secrets. Values that are not defaults have their origin in a
    /// comment.
    pub fn show(&self) -> String {
        let parts = [
            serde_json::to_value(&self.server),
            serde_json::to_value(&self.store),
            serde_json::to_value(&self.pump),
            serde_json::to_value(&self.auth),
            serde_json::to_value(&self.limits),
            serde_json::to_value(&self.write),
            serde_json::to_value(&self.push),
            serde_json::to_value(&self.log),
            serde_json::to_value(&self.module_settings),
        ];
        let values = parts.into_iter().flatten().filter_map(|part| part.as_object().cloned()).flatten();
        let mut lines: Vec<String> = values
            .map(|(name, value)| {
                let origin = self.origin(&name).map(|origin| format!("  # {origin}")).unwrap_or_default();
                match masked(&name, &value) {
                    Value::Null => format!("# {name} is not set"),
                    value => format!("{name} = {value}{origin}"),
                }
            })
            .collect();
        lines.push(format!("# jwt_secret: {}", if self.auth.jwt_secret.is_some() { "set" } else { "not set" }));
        lines.join("\n")
    }
}

/// The values that are given, and those of them that are known settings.
struct Named {
    known: AllGiven,
    given: AllGiven,
}

impl Named {
    /// Removes a crate's settings from the given values, and puts them over its defaults.
    fn extract<T: Serialize + DeserializeOwned + JsonSchema>(&mut self, defaults: &T) -> anyhow::Result<T> {
        let Value::Object(mut values) = serde_json::to_value(defaults)? else { bail!("settings are no object") };
        for Described { name, kind, .. } in describe::<T>() {
            let Some(given) = self.given.remove(&name) else { continue };
            let value = parse(&kind, &given.value);
            values.insert(name.clone(), value.map_err(|must| invalid(&name, &given, &format!("{name} {must}")))?);
            self.known.insert(name, given);
        }
        // A secret is not serialized. Its default is that there is none.
        serde_json::from_value(Value::Object(values)).context("settings")
    }

    /// Returns the value of a module's setting, or its default when it is not given.
    fn module_setting(&mut self, setting: &Setting) -> anyhow::Result<(&'static str, String)> {
        let name = setting.name;
        let Some(given) = self.given.remove(name) else { return Ok((name, setting.default.to_owned())) };
        // A module gets the plain number of a size or a duration whose unit is in the setting's name.
        let kind = Unit::of(name).map(|unit| Kind::Integer { min: 0, max: i64::MAX.into(), unit: Some(unit) });
        let number = kind.and_then(|kind| parse(&kind, &given.value).ok());
        let value = parse(&Kind::Text, number.as_ref().unwrap_or(&given.value));
        let value = value.map_err(|must| invalid(name, &given, &format!("{name} {must}")))?;
        self.known.insert(name.to_owned(), given);
        Ok((name, value.as_str().unwrap_or_default().to_owned()))
    }

    /// Refuses an unknown name in the file. Returns a warning for each unknown variable.
    fn refuse_unknown(&self, module_settings: &[Setting]) -> anyhow::Result<Vec<String>> {
        let mut warnings = Vec::new();
        let described: Vec<Described> = reference().into_iter().flat_map(|(_, settings)| settings).collect();
        for (unknown, Given { value, origin }) in &self.given {
            let names = described.iter().map(|one| one.name.as_str()).chain(module_settings.iter().map(|one| one.name));
            let nearest = nearest(unknown, names);
            if *origin == Origin::Environment {
                let advice = nearest.map_or_else(
                    || "`docket config show` lists all settings.".to_owned(),
                    |nearest| format!("Did you mean {}?", variable(nearest)),
                );
                warnings.push(format!(
                    "Ignored the environment variable {}: it is not a setting. {advice}",
                    variable(unknown)
                ));
                continue;
            }
            let advice = match (value, nearest) {
                (Value::Object(_), _) => "Settings have no sections: write NAME = VALUE without [SECTION].".to_owned(),
                (_, Some(nearest)) => format!("Did you mean `{nearest}`?"),
                (_, None) => "Correct or remove it; then `docket config show` lists all settings.".to_owned(),
            };
            bail!("{origin}: `{unknown}` is not a setting. {advice}");
        }
        Ok(warnings)
    }
}

/// Returns the text of an error about a value. A secret value is masked.
fn invalid(name: &str, given: &Given, reason: &str) -> anyhow::Error {
    let value = match masked(name, &given.value) {
        Value::String(text) => text,
        value => value.to_string(),
    };
    let place = given.origin.of(name);
    let place = format!("{}{}", place[..1].to_uppercase(), &place[1..]);
    anyhow!("{place} has the value `{value}`: {reason}.")
}

/// Whether each setting is a secret.
static SECRETS: LazyLock<BTreeMap<String, bool>> = LazyLock::new(|| {
    let all = reference().into_iter().flat_map(|(_, settings)| settings);
    all.map(|setting| (setting.name, setting.is_secret)).collect()
});

/// Replaces a secret by `***`. The name of a module's setting decides whether it is one.
fn masked(name: &str, value: &Value) -> Value {
    match value.as_str() {
        None | Some("") => value.clone(),
        _ if SECRETS.get(name).copied().unwrap_or_else(|| is_secret(name)) => HIDDEN.into(),
        Some(text) if text.contains("://") => {
            text.split(',').map(without_password).collect::<Vec<_>>().join(",").into()
        }
        _ => value.clone(),
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

#[cfg(test)]
mod tests {
    use super::*;

    /// Loads a file with these lines.
    fn of_file(lines: &str) -> anyhow::Result<Settings> {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("docket.toml");
        std::fs::write(&file, lines).unwrap();
        Settings::load(&Sources { file: Some(file), ..Sources::default() }, &[])
    }

    fn error_of(lines: &str) -> String {
        of_file(lines).unwrap_err().to_string()
    }

    fn flag(flag: &'static str, name: &'static str, value: &str) -> Sources {
        Sources { flags: vec![(flag, name, value.to_owned())], ..Sources::default() }
    }

    #[test]
    fn flags_override_the_file_and_sizes_have_units() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("docket.toml");
        std::fs::write(
            &file,
            "listen = \"127.0.0.1:9\"\nappend_queue_max = 7\nlog_file_bytes_max = \"1m\"\nidempotency_hours = \"3d\"\n",
        )
        .unwrap();
        let sources = Sources { file: Some(file), ..flag("--listen", "listen", "127.0.0.1:8") };
        let settings = Settings::load(&sources, &[]).unwrap();
        assert_eq!((settings.server.listen.as_str(), settings.store.append_queue_max), ("127.0.0.1:8", 7));
        assert_eq!((settings.log.log_file_bytes_max, settings.store.idempotency_hours), (1 << 20, 72));
        assert_eq!(settings.origin("listen"), Some(&Origin::Flag("--listen")));
        let shown = settings.show();
        assert!(shown.contains("listen = \"127.0.0.1:8\"  # --listen\n"), "{shown}");
        assert!(shown.contains("append_queue_max = 7  # ") && shown.contains("docket.toml, line 2\n"), "{shown}");
    }

    #[test]
    fn an_unknown_name_in_the_file_is_refused_with_the_nearest_one() {
        let error = error_of("\nlissten = \"x\"\n");
        assert!(error.contains("line 2: `lissten` is not a setting. Did you mean `listen`?"), "{error}");
        let error = error_of("[log]\nlevel = \"info\"\n");
        assert!(error.contains("line 1: `log` is not a setting. Settings have no sections"), "{error}");
    }

    #[test]
    fn an_error_names_the_setting_its_place_its_value_and_what_is_accepted() {
        for (line, parts) in [
            ("append_queue_max = \"many\"", ["append_queue_max in", "line 1, has the value `many`", "a whole number"]),
            ("append_queue_max = 0", ["append_queue_max in", "has the value `0`", "must be at least 1"]),
            ("nats_replicas = 9", ["nats_replicas in", "has the value `9`", "must be 1 to 5"]),
            ("environment = \"test\"", ["environment in", "has the value `test`", "development, staging, production"]),
            ("push_token_grace_seconds = \"2h\"", ["push_token_grace_seconds in", "value `2h`", "must be 1 to 3600"]),
            ("log_level = \"loud\"", ["log_level in", "value `loud`", "use error, warn"]),
            ("access_log = \":unknown\"", ["access_log in", "value `:unknown`", "access_log: the token"]),
            ("trace_ratio = 2.0", ["trace_ratio in", "value `2.0`", "from 0 to 1"]),
            ("listen = \"8080\"", ["listen in", "value `8080`", "ADDRESS:PORT"]),
            ("roles = \"prject\"", ["roles in", "value `prject`", "Use one or more of write"]),
            ("trusted_proxies = \"x\"", ["trusted_proxies in", "value `x`", "an address or a network"]),
            ("otlp_headers = \"key\"", ["otlp_headers in", "value `***`", "name=value"]),
            ("nats_url = \"http://u:p@h\"", ["nats_url in", "value `http://u:***@h`", "nats://HOST:PORT"]),
            ("database_url = \"mysql://u:p@h\"", ["database_url in", "value `mysql://u:***@h`", "sqlite:PATH"]),
        ] {
            let error = error_of(line);
            assert!(parts.iter().all(|part| error.contains(part)) && !error.contains('\n'), "{line}: {error}");
        }
        let error = Settings::load(&flag("--listen", "listen", "x"), &[]).unwrap_err().to_string();
        assert!(error.starts_with("The flag --listen has the value `x`: listen: "), "{error}");
    }

    #[test]
    fn development_has_its_own_defaults_that_can_be_changed() {
        let load = |sources: Sources| Settings::load(&Sources { development: true, ..sources }, &[]).unwrap();
        let settings = load(flag("--data", "data", "/tmp/x"));
        assert_eq!((settings.push.allowed_origins.as_str(), settings.log.log_level.as_str()), ("loopback", "auto"));
        assert_eq!(settings.store.database_url, "sqlite:/tmp/x/docket.db");
        let settings = load(flag("--x", "allowed_origins", "https://shop.example"));
        assert_eq!(settings.push.allowed_origins, "https://shop.example");
    }

    #[test]
    fn sizes_and_durations_of_modules_have_units_too() {
        let setting = |name| Setting { name, default: "5", help: "", apply: |_| Ok(()) };
        let settings = [setting("toy_wait_seconds"), setting("toy_colour")];
        let value = |name: &'static str, text: &str| {
            let settings = Settings::load(&flag("--x", name, text), &settings).unwrap();
            settings.module_settings[name].clone()
        };
        assert_eq!((value("toy_wait_seconds", "2m"), value("toy_wait_seconds", "7")), ("120".into(), "7".into()));
        // The module explains what it does not accept.
        assert_eq!((value("toy_wait_seconds", "soon"), value("toy_colour", "2m")), ("soon".into(), "2m".into()));
    }

    #[test]
    fn secrets_are_not_shown() {
        let secret = "0123456789abcdef0123456789abcdef";
        let lines = format!(
            "jwt_secret = \"{secret}\"\notlp_headers = \"key={secret}\"\nnats_url = \"nats://{secret}@h:4222\""
        );
        let settings = of_file(&lines).unwrap();
        let (shown, debug) = (settings.show(), settings.explain("jwt_secret is odd").to_string());
        assert!(!shown.contains(secret) && shown.contains("# jwt_secret: set"), "{shown}");
        assert!(!debug.contains(secret) && debug.contains("has the value `***`: jwt_secret is odd"), "{debug}");
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

    /// The reference of settings, from the doc comments of the settings.
    fn document() -> String {
        let mut text = "# Settings\n\n\
            <!-- Written by `UPDATE_SCHEMAS=1 cargo test -p server document` from the settings' doc comments. -->\n\n\
            Each setting has one name. In `docket.toml` it is written as below, in the environment in capitals\n\
            after `DOCKET_`: `append_queue_max` is `DOCKET_APPEND_QUEUE_MAX`. [operations.md](operations.md#settings)\n\
            says which source overrides which.\n\n\
            A plain number has the unit of the column. Sizes also take `k`, `m` and `g` (`100m` is 104857600\n\
            bytes), durations `ms`, `s`, `m`, `h` and `d` (`30d`, `5s`, `1h 30m`); in the file such a value is a\n\
            text in quotes.\n"
            .to_owned();
        for (section, settings) in reference() {
            text += &format!("\n## {section}\n\n| setting | default | unit | meaning |\n| --- | --- | --- | --- |\n");
            for Described { name, kind, default, meaning, .. } in settings {
                let default = match (&default, name.as_str()) {
                    (_, "database_url") => "`sqlite:data/docket.db`".to_owned(),
                    (Value::Null, _) => "not set".to_owned(),
                    (Value::String(text), _) if text.is_empty() => "empty".to_owned(),
                    (Value::String(text), _) => format!("`{text}`"),
                    (value, _) => match (&kind, value.as_u64()) {
                        (Kind::Integer { unit: Some(Unit::Bytes), .. }, Some(bytes)) => {
                            format!("`{bytes}` ({} MiB)", bytes >> 20)
                        }
                        _ => format!("`{value}`"),
                    },
                };
                let unit = match kind {
                    Kind::Integer { unit: Some(unit), .. } => unit.name(),
                    _ => "",
                };
                text += &format!("| `{name}` | {default} | {unit} | {} |\n", meaning.replace('|', "\\|"));
            }
        }
        text
    }

    #[test]
    fn the_settings_document_is_current() {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/settings.md");
        let now = document();
        if std::env::var_os("UPDATE_SCHEMAS").is_some() {
            std::fs::write(&path, &now).unwrap();
        }
        let known = std::fs::read_to_string(&path).unwrap_or_default();
        assert!(known == now, "docs/settings.md is stale: run UPDATE_SCHEMAS=1 cargo test -p server document");
        for (_, settings) in reference() {
            for setting in settings {
                assert!(setting.meaning.ends_with('.'), "{} has no doc comment", setting.name);
            }
        }
    }
}
