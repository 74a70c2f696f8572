//! What the queries and the push layer work with.

use axum::extract::FromRef;
use axum::http::{HeaderName, StatusCode};
use event_store::error::Error;
use event_store::store::Store;
use platform::auth::Authenticator;
use platform::problem::Problem;
use projection_engine::progress::Progress;
use serde::{Deserialize, Serialize};
use tokio_util::sync::CancellationToken;

use crate::allowance::Allowance;
use crate::connections::Connections;
use crate::hub::Hub;
use crate::metrics::Metrics;
use crate::presence::Presence;

/// What operators set.
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
    /// Makes sure that an origin can be one that a browser sends, and that a header can be one.
    ///
    /// # Errors
    /// What is wrong, and what is right.
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

/// The headers that a setting lists.
///
/// # Errors
/// What can be the name of none. `*` is among it: browsers take it for the header of that name where they send credentials.
pub fn header_names(list: &str) -> Result<Vec<HeaderName>, &str> {
    let names = list.split(',').map(str::trim).filter(|name| !name.is_empty());
    names.map(|name| name.parse().ok().filter(|_| name != "*").ok_or(name)).collect()
}

/// Cheap to clone.
#[derive(Clone)]
pub struct QueryApi {
    /// The log and the read models' database.
    pub store: Store,
    /// How far the read models have come.
    pub progress: Progress,
    /// Who may ask.
    pub authenticator: Authenticator,
    /// What operators set.
    pub settings: Settings,
    /// Live updates.
    pub hub: Hub,
    /// Who gets them.
    pub connections: Connections,
    /// How much of the past they may ask for.
    pub allowance: Allowance,
    /// Who looks at which order.
    pub presence: Presence,
    /// When it is cancelled, the process stops.
    pub stop: CancellationToken,
}

impl QueryApi {
    /// The read side of a process, with nobody listening yet.
    pub fn new(
        store: Store,
        progress: Progress,
        authenticator: Authenticator,
        settings: Settings,
        stop: CancellationToken,
    ) -> Self {
        let connections =
            Connections::new(settings.push_connections_per_address_max, settings.push_connections_per_customer_max);
        let (hub, presence) = (Hub::default(), Presence::default());
        let allowance = Allowance::default();
        Metrics::begin();
        Self { store, progress, authenticator, settings, hub, connections, allowance, presence, stop }
    }
}

impl FromRef<QueryApi> for Authenticator {
    fn from_ref(state: &QueryApi) -> Self {
        state.authenticator.clone()
    }
}

/// Not there, or not yours: the same answer, so that nobody can tell which.
pub fn not_found(slug: &'static str, title: &str) -> Problem {
    Problem::new(StatusCode::NOT_FOUND, slug, title)
}

/// A database that is away.
pub fn unavailable(error: Error) -> Problem {
    if error.is_about_the_data() {
        return Problem::new(StatusCode::BAD_REQUEST, "invalid-query", "The query cannot be used")
            .detail("The database takes no such text: it may hold a NUL, or be too long.");
    }
    tracing::error!(%error, "query");
    Problem::new(StatusCode::SERVICE_UNAVAILABLE, "store-unavailable", "The database cannot be reached")
        .detail("Try again in a moment.")
        .retry_after(1)
}

/// Something in the query string that cannot be used.
pub fn invalid(parameter: &str, message: &str) -> Problem {
    Problem::new(StatusCode::BAD_REQUEST, "invalid-query", "The query cannot be used")
        .detail(format!("{parameter}: {message}"))
        .error(format!("/{parameter}"), message)
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
