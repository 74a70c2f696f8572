//! The modules as operators see them: what each one gives, and what is in the database of modules that are not there.

use std::sync::Arc;

use axum::extract::{FromRef, State};
use axum::response::{IntoResponse, Response};
use event_store::error::Error;
use event_store::store::Store;
use platform::auth::{Authenticator, Principal};
use platform::problem::Problem;
use projection_engine::generation::{Unclaimed, unclaimed};
use serde::Serialize;
use utoipa::ToSchema;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use crate::program::{Program, own_routes};

/// A module, and what it gives.
#[derive(Debug, Clone, Serialize, ToSchema)]
pub struct ModuleView {
    /// Its name.
    name: &'static str,
    /// The group that its read models follow the log with.
    group: &'static str,
    /// Modules that it does not work without.
    needs: Vec<&'static str>,
    /// Types of its aggregates.
    aggregates: Vec<&'static str>,
    /// Method and path of each route.
    routes: Vec<String>,
    /// Its commands in bulk.
    bulk: Vec<&'static str>,
    /// Its reactors and process managers.
    reactors: Vec<&'static str>,
    /// Its read models.
    projections: Vec<&'static str>,
    /// Its channels of live updates.
    channels: Vec<String>,
    /// Its settings, with what each one sets.
    settings: Vec<Documented>,
    /// Its metrics, with what each one tells.
    metrics: Vec<Documented>,
    /// Its health checks.
    checks: Vec<&'static str>,
}

/// A name, and what it is for.
#[derive(Debug, Clone, Serialize, ToSchema)]
pub struct Documented {
    /// The name.
    name: &'static str,
    /// What it is for.
    help: &'static str,
}

/// Every module, and read models of modules that are not there.
#[derive(Debug, Clone, Serialize, ToSchema)]
pub struct Modules {
    /// The modules of this process.
    items: Vec<ModuleView>,
    /// Read models of modules that this process does not have; `docket modules --prune NAME` removes them.
    unclaimed: Vec<Unclaimed>,
}

/// The modules of a program.
pub fn views(program: &Program) -> Vec<ModuleView> {
    let view = |module: &crate::module::Module| ModuleView {
        name: module.name,
        group: module.group,
        needs: module.needs.clone(),
        aggregates: module.aggregates.iter().map(|kind| kind.aggregate_type()).collect(),
        routes: own_routes(module),
        bulk: module.bulk.iter().flat_map(|bulk| bulk.types).copied().collect(),
        reactors: module.reactors.iter().map(|reactor| reactor.name()).collect(),
        projections: module.projections.iter().map(|projection| projection.name()).collect(),
        channels: module.channels.iter().map(|channel| channel.address("ID")).collect(),
        settings: module.settings.iter().map(|one| Documented { name: one.name, help: one.help }).collect(),
        metrics: module.metrics.iter().map(|&(name, help)| Documented { name, help }).collect(),
        checks: module.checks.iter().map(|check| check.name).collect(),
    };
    program.modules().iter().map(view).collect()
}

/// The same with what the database holds besides.
///
/// # Errors
/// The database is away.
pub async fn modules(program: &Program, store: &Store) -> Result<Modules, Error> {
    Ok(Modules { items: views(program), unclaimed: unclaimed(store.db(), program.registry()).await? })
}

/// What the route works with.
#[derive(Clone)]
pub struct Overview {
    program: Arc<Program>,
    store: Store,
    authenticator: Authenticator,
}

impl Overview {
    /// Over the modules of a process.
    pub fn new(program: Arc<Program>, store: Store, authenticator: Authenticator) -> Self {
        Self { program, store, authenticator }
    }
}

impl FromRef<Overview> for Authenticator {
    fn from_ref(overview: &Overview) -> Self {
        overview.authenticator.clone()
    }
}

/// The route.
pub fn router() -> OpenApiRouter<Overview> {
    OpenApiRouter::new().routes(routes!(list))
}

/// The modules of the process that answers, and read models of modules that it does not have.
#[utoipa::path(get, path = "/v1/modules", tag = "operations",
    responses((status = 200, body = Modules), (status = "4XX", body = Problem, content_type = "application/problem+json")))]
async fn list(State(overview): State<Overview>, principal: Principal) -> Result<Response, Problem> {
    principal.admin_only()?;
    let modules = modules(&overview.program, &overview.store).await.map_err(push::problems::unavailable)?;
    Ok(axum::Json(modules).into_response())
}
