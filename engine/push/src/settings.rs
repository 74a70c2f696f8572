//! Settings of live updates and CORS.

use axum::http::HeaderName;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Settings of live updates, and of access from pages of other origins (CORS).
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Settings {
    /// Origins whose pages may call the API and subscribe, besides the server's own origin, separated by commas.
    /// Example: `https://shop.example`. `loopback` allows any port of this machine.
    pub allowed_origins: String,
    /// Request headers that pages of other origins may send, besides the built-in ones, separated by commas.
    pub cors_request_headers: String,
    /// Response headers that pages of other origins may read, besides the built-in ones, separated by commas.
    pub cors_answer_headers: String,
    /// Name of the cookie that contains a token, for live updates from pages of an allowed origin.
    pub cookie_name: String,
    /// Whether sockets, streams and polls may have a token in the query, as `?token=`, for clients that can send neither a
    /// header nor a cookie. Logs hide it, but proxies and browsers may keep it.
    pub token_in_query: bool,
    /// Limit of concurrent sockets, streams and polls per client address in each process; 0 means no limit. Behind a
    /// proxy that is not trusted, all clients have the proxy's address.
    pub push_connections_per_address_max: u32,
    /// Limit of concurrent sockets, streams and polls per customer in each process; 0 means no limit.
    pub push_connections_per_customer_max: u32,
    /// Seconds after which a user whose last client has left a channel is reported as gone, unless a client comes back;
    /// 0 to 3600.
    pub push_presence_grace_seconds: u32,
    /// Seconds that a socket stays open after its token has expired, so that the client can send a fresh one; 1 to 3600.
    pub push_token_grace_seconds: u32,
}

/// Longest grace time, in seconds.
const GRACE_SECONDS_MAX: u32 = 3_600;

impl Default for Settings {
    fn default() -> Self {
        Self {
            allowed_origins: String::new(),
            cors_request_headers: String::new(),
            cors_answer_headers: String::new(),
            cookie_name: "docket_token".to_owned(),
            token_in_query: false,
            push_connections_per_address_max: 20_000,
            push_connections_per_customer_max: 64,
            push_presence_grace_seconds: 15,
            push_token_grace_seconds: 25,
        }
    }
}

impl Settings {
    /// Checks that a browser can send every origin, and that every header name is valid.
    ///
    /// # Errors
    /// A text with the invalid setting and a correct example.
    pub fn check(&self) -> Result<(), String> {
        let is_origin = |entry: &str| match entry.split_once("://") {
            // Browsers omit the default port of a scheme, so such an entry would never match.
            Some(("https", host)) if host.ends_with(":443") => false,
            Some(("http", host)) if host.ends_with(":80") => false,
            Some((scheme, host)) => !scheme.is_empty() && !host.is_empty() && !host.contains(['/', '*', '?', '#']),
            None => entry == "loopback",
        };
        for (setting, names) in
            [("cors_request_headers", &self.cors_request_headers), ("cors_answer_headers", &self.cors_answer_headers)]
        {
            header_names(names).map_err(|name| {
                format!(
                    "{setting}: `{name}` is not a valid header name. Separate names with commas, for example: x-tenant, x-version"
                )
            })?;
        }
        let is_token = |c: char| c.is_ascii_alphanumeric() || "!#$%&'*+-.^_`|~".contains(c);
        if self.cookie_name.is_empty() || !self.cookie_name.chars().all(is_token) {
            return Err(format!(
                "cookie_name: `{}` is not a valid name of a cookie. Use letters, digits, `-` and `_`, for example: __Host-token",
                self.cookie_name
            ));
        }
        for (setting, seconds, least) in [
            ("push_token_grace_seconds", self.push_token_grace_seconds, 1),
            ("push_presence_grace_seconds", self.push_presence_grace_seconds, 0),
        ] {
            if !(least..=GRACE_SECONDS_MAX).contains(&seconds) {
                return Err(format!("{setting} must be {least} to {GRACE_SECONDS_MAX}, not {seconds}"));
            }
        }
        match self.allowed_origins.split(',').map(str::trim).find(|entry| !entry.is_empty() && !is_origin(entry)) {
            None => Ok(()),
            Some(entry) => Err(format!(
                "allowed_origins: `{entry}` is not an origin that a browser sends. Write each origin as https://shop.example, without a path and without the default port of its scheme, or write loopback."
            )),
        }
    }
}

/// Parses a comma-separated list of header names.
///
/// # Errors
/// The first invalid name. `*` is invalid, because browsers treat it as a literal header name in requests with
/// credentials.
pub fn header_names(list: &str) -> Result<Vec<HeaderName>, &str> {
    let names = list.split(',').map(str::trim).filter(|name| !name.is_empty());
    names.map(|name| name.parse().ok().filter(|_| name != "*").ok_or(name)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cors_header_names_are_validated() {
        assert_eq!(header_names(" X-Tenant,, x-version ").unwrap(), ["x-tenant", "x-version"]);
        for (setting, list, bad) in [("cors_request_headers", "x-a, x b", "x b"), ("cors_answer_headers", "*", "*")] {
            let mut settings = Settings::default();
            match setting {
                "cors_request_headers" => settings.cors_request_headers = list.into(),
                _ => settings.cors_answer_headers = list.into(),
            }
            let error = settings.check().unwrap_err();
            assert!(error.starts_with(setting) && error.contains(&format!("`{bad}`")), "{error}");
        }
        assert!(Settings::default().check().is_ok());
        let token = |push_token_grace_seconds| Settings { push_token_grace_seconds, ..Settings::default() };
        assert!(token(1).check().is_ok() && token(3_600).check().is_ok());
        for seconds in [0, 3_601] {
            let error = token(seconds).check().unwrap_err();
            assert!(error.contains("push_token_grace_seconds must be 1 to 3600"), "{error}");
        }
    }
}
