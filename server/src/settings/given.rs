//! Values of settings with their origin: the file, the environment, or a flag.

use std::collections::BTreeMap;
use std::fmt;
use std::path::{Path, PathBuf};

use anyhow::{anyhow, bail};
use serde_json::Value;
use toml::de::DeTable;

/// Prefix of the environment variables.
const PREFIX: &str = "DOCKET_";
/// Similarity of two names, from 0 to 1, above which one is suggested for the other.
const SIMILARITY_MIN: f64 = 0.8;

/// A value and where it comes from.
#[derive(Debug, Clone)]
pub struct Given {
    /// The value.
    pub value: Value,
    /// Where it comes from.
    pub origin: Origin,
}

/// The origin of a value.
#[derive(Debug, Clone, PartialEq)]
pub enum Origin {
    /// A line of the settings file.
    File(PathBuf, usize),
    /// The environment.
    Environment,
    /// A flag of the command line.
    Flag(&'static str),
}

/// Values by the name of the setting.
pub type AllGiven = BTreeMap<String, Given>;

impl Origin {
    /// Returns where a setting was given, in words: `the environment variable DOCKET_LISTEN`.
    pub fn of(&self, name: &str) -> String {
        match self {
            Self::File(path, line) => format!("the setting {name} in {}, line {line},", path.display()),
            Self::Environment => format!("the environment variable {}", variable(name)),
            Self::Flag(flag) => format!("the flag {flag}"),
        }
    }
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::File(path, line) => write!(f, "{}, line {line}", path.display()),
            Self::Environment => write!(f, "environment"),
            Self::Flag(flag) => write!(f, "{flag}"),
        }
    }
}

/// Returns the environment variable of a setting.
pub fn variable(name: &str) -> String {
    format!("{PREFIX}{}", name.to_uppercase())
}

/// Reads the settings file.
///
/// # Errors
/// The file cannot be read or is not TOML. The text is one line with the place of the error.
pub fn from_file(path: &Path) -> anyhow::Result<AllGiven> {
    let shown = path.display();
    let text = std::fs::read_to_string(path).map_err(|error| match error.kind() {
        std::io::ErrorKind::InvalidData => anyhow!("The settings file {shown} is not UTF-8. Save it as UTF-8."),
        std::io::ErrorKind::IsADirectory => {
            anyhow!("The settings file {shown} is a folder. Give the path of a TOML file with --config, or remove the folder.")
        }
        _ => anyhow!("Cannot read the settings file {shown}: {error}. Give the path of a readable file with --config."),
    })?;
    let text = text.trim_start_matches('\u{feff}');
    let line_of = |at: usize| text[..at.min(text.len())].matches('\n').count() + 1;
    let damaged = |error: toml::de::Error| {
        let line = error.span().map(|span| format!(", line {}", line_of(span.start))).unwrap_or_default();
        let reason = error.message().split_whitespace().collect::<Vec<_>>().join(" ");
        anyhow!(
            "The settings file {shown}{line} is not valid TOML: {reason}. Write each setting as NAME = VALUE, texts in quotes."
        )
    };
    let lines: BTreeMap<String, usize> = DeTable::parse(text)
        .map_err(damaged)?
        .into_inner()
        .into_iter()
        .map(|(name, _)| (name.get_ref().to_string(), line_of(name.span().start)))
        .collect();
    let values: BTreeMap<String, Value> = toml::from_str(text).map_err(damaged)?;
    let given = |(name, value): (String, Value)| {
        let line = lines.get(&name).copied().unwrap_or(1);
        (name, Given { value, origin: Origin::File(path.to_owned(), line) })
    };
    Ok(values.into_iter().map(given).collect())
}

/// Reads the `DOCKET_…` variables. `others` are variables that are not settings.
///
/// # Errors
/// A value is not UTF-8.
pub fn from_environment(
    variables: impl Iterator<Item = (std::ffi::OsString, std::ffi::OsString)>,
    others: &[String],
) -> anyhow::Result<AllGiven> {
    let mut all = AllGiven::new();
    for (variable, value) in variables {
        let Some(variable) = variable.to_str() else { continue };
        let Some(name) = variable.strip_prefix(PREFIX).filter(|_| !others.iter().any(|other| other == variable)) else {
            continue;
        };
        let Some(value) = value.to_str() else { bail!("The environment variable {variable} is not UTF-8.") };
        all.insert(name.to_lowercase(), Given { value: value.into(), origin: Origin::Environment });
    }
    Ok(all)
}

/// Returns the name that is most similar to an unknown one, if one is similar enough.
pub fn nearest<'a>(unknown: &str, names: impl Iterator<Item = &'a str>) -> Option<&'a str> {
    let similar = names.map(|name| (strsim::jaro_winkler(unknown, name), name));
    let best = similar.max_by(|one, other| one.0.total_cmp(&other.0))?;
    (best.0 >= SIMILARITY_MIN).then_some(best.1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_that_cannot_be_used_is_explained_in_one_line() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("docket.toml");
        let told = |bytes: &[u8]| {
            std::fs::write(&file, bytes).unwrap();
            from_file(&file).unwrap_err().to_string()
        };
        for (bytes, reason) in [
            (&b"listen = \"a\"\nroles = read\n"[..], "line 2 is not valid TOML"),
            (b"listen\n", "line 1 is not valid TOML"),
            (b"listen = \"a\"\nlisten = \"b\"\n", "line 2 is not valid TOML"),
            (b"\xff\xfe", "is not UTF-8"),
        ] {
            let error = told(bytes);
            assert!(error.contains(reason) && !error.contains('\n'), "{error}");
            assert!(error.contains(&file.display().to_string()), "{error}");
        }
        assert!(from_file(folder.path()).unwrap_err().to_string().contains("is a folder"));
        assert!(from_file(&folder.path().join("none")).unwrap_err().to_string().contains("Cannot read"));
    }

    #[test]
    fn values_know_their_line() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("docket.toml");
        std::fs::write(&file, "\u{feff}# comment\n\nlisten = \"a\"\nappend_queue_max = 7\n").unwrap();
        let all = from_file(&file).unwrap();
        assert_eq!(all["listen"].origin, Origin::File(file.clone(), 3));
        assert_eq!(all["append_queue_max"].value, Value::from(7));
        assert_eq!(all["append_queue_max"].origin, Origin::File(file, 4));
    }

    #[test]
    fn the_nearest_name_is_suggested() {
        let names = ["listen", "roles", "append_queue_max", "log_level"];
        let of = |unknown| nearest(unknown, names.into_iter());
        assert_eq!(of("lissten"), Some("listen"));
        assert_eq!(of("append_queu_max"), Some("append_queue_max"));
        assert_eq!(of("loglevel"), Some("log_level"));
        assert_eq!(of("colour"), None);
    }
}
