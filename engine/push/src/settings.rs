//! Settings that operators choose.

use axum::http::HeaderName;
use serde::{Deserialize, Serialize};

/// The settings of live updates, and of pages of other origins.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Settings {
    /// Origins whose pages may call the API and listen, besides that of the server itself: `https://shop.example`, several
    /// separated by commas; `loopback` is any port of this machine.
    pub allowed_origins: String,
    /// Request headers that those pages may send, besides the usual ones; separated by commas.
    pub cors_request_headers: String,
    /// Answer headers that those pages may read, besides the usual ones; separated by commas.
    pub cors_answer_headers: String,
    /// Sockets, streams and polls of one address at a time; 0 is no limit. Behind a proxy that is not
    /// trusted all come from its address.
    pub push_connections_per_address_max: u32,
    /// Sockets, streams and polls of one customer at a time; 0 is no limit.
    pub push_connections_per_customer_max: u32,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            allowed_origins: String::new(),
            cors_request_headers: String::new(),
            cors_answer_headers: String::new(),
            push_connections_per_address_max: 20_000,
            push_connections_per_customer_max: 64,
        }
    }
}

impl Settings {
    /// Checks that every origin is one that a browser can send, and every header name is valid.
    ///
    /// # Errors
    /// The setting at fault, and a correct example.
    pub fn check(&self) -> Result<(), String> {
        let is_origin = |entry: &str| match entry.split_once("://") {
            // Browsers leave out the port that a scheme has anyway.
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
                    "{setting}: `{name}` is no header's name: give names separated by commas, e.g. x-tenant, x-version"
                )
            })?;
        }
        match self.allowed_origins.split(',').map(str::trim).find(|entry| !entry.is_empty() && !is_origin(entry)) {
            None => Ok(()),
            Some(entry) => Err(format!(
                "allowed_origins: `{entry}` is no origin that a browser sends: give each as https://shop.example, without a path or the port of its scheme, or loopback"
            )),
        }
    }
}

/// Parses the header names that a setting lists.
///
/// # Errors
/// The first name that is not valid. `*` is not: browsers read it as the name of a header where they send credentials.
pub fn header_names(list: &str) -> Result<Vec<HeaderName>, &str> {
    let names = list.split(',').map(str::trim).filter(|name| !name.is_empty());
    names.map(|name| name.parse().ok().filter(|_| name != "*").ok_or(name)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn headers_of_pages_are_checked_by_name() {
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
    }
}
