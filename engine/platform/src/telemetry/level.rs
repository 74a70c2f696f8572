//! Routes to read and change the log level at run time, for admins.

use axum::extract::FromRef;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use crate::auth::{Authenticator, Principal};
use crate::body::Json;
use crate::problem::{INVALID_LOG_LEVEL, Problem};
use crate::telemetry;

/// Log level and filter of a process.
#[derive(Debug, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct LogLevel {
    /// `error`, `warn`, `info`, `http`, `debug`, `trace` or `auto`. `auto` depends on the setting `environment`.
    level: String,
    /// Directives that take precedence over the level: `http=off,event_store=debug`.
    #[serde(default)]
    filter: String,
}

/// Returns the routes of `/v1/admin/log-level`.
pub fn router<S>() -> OpenApiRouter<S>
where
    S: Clone + Send + Sync + 'static,
    Authenticator: FromRef<S>,
{
    OpenApiRouter::new().routes(routes!(read, change))
}

/// Returns the log level and filter of this process.
#[utoipa::path(get, path = "/v1/admin/log-level", operation_id = "get_log_level", tag = "operations",
    responses((status = 200, description = "The level and filter of this process.", body = LogLevel)),
    extensions(("x-problems" = json!(["forbidden"]))))]
async fn read(principal: Principal) -> Result<axum::Json<LogLevel>, Problem> {
    principal.admin_only()?;
    let (level, filter) = telemetry::level().unwrap_or_default();
    Ok(axum::Json(LogLevel { level, filter }))
}

/// Changes the log level and filter of this process. The change applies until the next change, SIGHUP or the end of the
/// process. It does not affect other processes.
#[utoipa::path(put, path = "/v1/admin/log-level", operation_id = "set_log_level", tag = "operations", request_body = LogLevel,
    responses((status = 200, description = "The new level and filter.", body = LogLevel)),
    extensions(("x-problems" = json!(["forbidden", "invalid-log-level"]))))]
async fn change(principal: Principal, Json(wanted): Json<LogLevel>) -> Result<axum::Json<LogLevel>, Problem> {
    principal.admin_only()?;
    telemetry::set_level(&wanted.level, &wanted.filter).map_err(|error| {
        let pointer = if matches!(error, telemetry::Error::Filter { .. }) { "/filter" } else { "/level" };
        Problem::new(INVALID_LOG_LEVEL).detail(error.to_string()).error(pointer, error.to_string())
    })?;
    Ok(axum::Json(wanted))
}
