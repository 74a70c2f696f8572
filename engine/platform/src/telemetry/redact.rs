//! Redaction of credentials and e-mail addresses in log lines, spans and attributes.

use std::borrow::Cow;
use std::sync::LazyLock;

use regex::{Captures, Regex};

/// Replaces a redacted text.
pub const HIDDEN: &str = "***";

/// Parts of field names whose values are always secret.
static SECRET_NAMES: LazyLock<Regex> = LazyLock::new(|| {
    let names =
        "(?i)password|passwd|secret|token|authorization|cookie|credential|(api|access)[_-]?key|session[_-]?id|ticket";
    Regex::new(names).expect("a constant pattern")
});

/// A fast test: every match of the pattern below contains one of these parts, and most texts contain none of them.
static PRECHECK: LazyLock<Regex> = LazyLock::new(|| {
    let traces = "@|%40|://|eyJ|(?i:bearer|basic|password|passwd|pwd|secret|token|ticket|key|session|sig|code)";
    Regex::new(traces).expect("a constant pattern")
});

/// Secrets in texts: bearer tokens, JWTs, passwords in URLs, credentials in queries and in `key=value` texts, and
/// e-mail addresses.
static SECRETS: LazyLock<Regex> = LazyLock::new(|| {
    let pattern = r#"(?xi)
        (?P<bearer> \b(?: bearer (?: \s+ | \. ) | basic \s+ (?-i:[A-Za-z0-9+/]{4}) ) ) [A-Za-z0-9._~+/=-]{6,}
      | \b (?-i:eyJ)[A-Za-z0-9_-]{5,} \. [A-Za-z0-9_-]+ (?: \. [A-Za-z0-9_-]* )?
      | (?P<url> \b[a-z][a-z0-9+.-]* :// [^\s/:@?\#"']* : ) [^\s/@"']+ @
      | (?P<pair> (?:password|passwd|pwd|secret|token|ticket|(?:api|access)[_-]?key|session[_-]?id|signature|[?&](?:sig|code)) ["']? \s*[=:]\s*
            (?: Some\( )? \\?["']? ) [^\s&;,"'}\#)\\]+
      | [A-Za-z0-9._%+-]+ (?: @ | %40 ) [A-Za-z0-9-]+ (?: \. [A-Za-z0-9-]+ )* \. [A-Za-z]{2,}
    "#;
    Regex::new(pattern).expect("a constant pattern")
});

/// Whether the value of a field with this name is secret.
pub fn is_secret(name: &str) -> bool {
    SECRET_NAMES.is_match(name)
}

/// Returns the text with all secrets replaced by [`HIDDEN`].
pub fn redact(text: &str) -> Cow<'_, str> {
    if !PRECHECK.is_match(text) {
        return Cow::Borrowed(text);
    }
    SECRETS.replace_all(text, |found: &Captures<'_>| {
        let kept = |name| found.name(name).map(|kept| kept.as_str());
        match (kept("bearer").or(kept("pair")), kept("url")) {
            (Some(kept), _) => format!("{kept}{HIDDEN}"),
            (_, Some(kept)) => format!("{kept}{HIDDEN}@"),
            _ => HIDDEN.to_owned(),
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn secrets_are_hidden_anywhere_in_a_text() {
        let jwt = "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiJtZSJ9.c2lnbmF0dXJl";
        let cases = [
            (format!("Authorization: Bearer {jwt}"), "Authorization: Bearer ***".to_owned()),
            (format!("bearer.{jwt}"), "bearer.***".to_owned()),
            (format!("bad token {jwt} given"), "bad token *** given".to_owned()),
            ("postgres://docket:pa55@db:5432/docket".into(), "postgres://docket:***@db:5432/docket".into()),
            ("nats://:canary@bus:4222".into(), "nats://:***@bus:4222".into()),
            ("/ws?ticket=abc123&x=1".into(), "/ws?ticket=***&x=1".into()),
            (r#"{"token":"abc","n":1}"#.into(), r#"{"token":"***","n":1}"#.into()),
            ("customer ada@example.com is unknown".into(), "customer *** is unknown".into()),
            ("/v1/customers/ada%40example.com/orders".into(), "/v1/customers/***/orders".into()),
            ("refresh_token=abc&client_secret=def".into(), "refresh_token=***&client_secret=***".into()),
            (
                r#"Url { username: "u", password: Some("pa55"), port: None }"#.into(),
                r#"Url { username: "u", password: Some("***"), port: None }"#.into(),
            ),
            (r#"password: Some(\"pa55\")"#.into(), r#"password: Some(\"***\")"#.into()),
            ("/a?sig=abc&access_key=def&code=ghi".into(), "/a?sig=***&access_key=***&code=***".into()),
            ("x-session-id: s1".into(), "x-session-id: ***".into()),
            ("DB_PASSWORD: pa55, x-api-key: k1".into(), "DB_PASSWORD: ***, x-api-key: ***".into()),
        ];
        for (text, shown) in cases {
            assert_eq!(redact(&text), shown);
        }
    }

    #[test]
    fn other_text_is_unchanged() {
        for text in [
            "order o-1 is at version 3",
            "GET /v1/orders/o-1?min_position=5",
            "127.0.0.1:8080",
            "http://collector:4318/v1/traces",
            "error communicating with database: Connection refused (os error 111)",
            "2026-11-23T09:15:02.123Z",
        ] {
            assert_eq!(redact(text), text);
        }
        assert!(
            is_secret("db.Password") && is_secret("jwt_secret") && is_secret("x-api-key") && !is_secret("aggregate.id")
        );
    }
}
