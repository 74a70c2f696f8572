//! The modules as operators see them: the parts of each module, and the read models that removed modules have left in
//! the database.

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

/// A module and its parts.
#[derive(Debug, Clone, Serialize, ToSchema)]
pub struct ModuleView {
    /// Name of the module.
    name: &'static str,
    /// Checkpoint group of its read models.
    group: &'static str,
    /// Names of the modules that this module requires.
    needs: Vec<&'static str>,
    /// Its aggregate types.
    aggregates: Vec<&'static str>,
    /// Its routes: method and path.
    routes: Vec<String>,
    /// Its bulk commands.
    bulk: Vec<&'static str>,
    /// Its reactors and process managers.
    reactors: Vec<&'static str>,
    /// Its read models.
    projections: Vec<&'static str>,
    /// Its channels of live updates.
    channels: Vec<String>,
    /// Its settings, each with a description.
    settings: Vec<Documented>,
    /// Its metrics, each with a description.
    metrics: Vec<Documented>,
    /// Its health checks.
    checks: Vec<&'static str>,
}

/// A name with its description.
#[derive(Debug, Clone, Serialize, ToSchema)]
pub struct Documented {
    /// The name.
    name: &'static str,
    /// The description.
    help: &'static str,
}

/// Every module, and the read models of modules that this program does not have.
#[derive(Debug, Clone, Serialize, ToSchema)]
pub struct Modules {
    /// The modules of this process.
    items: Vec<ModuleView>,
    /// Read models of modules that this process does not have. `docket modules --prune NAME` removes them.
    unclaimed: Vec<Unclaimed>,
}

/// Returns the modules of a program with their parts.
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

/// Returns the modules of a program, and the read models in the database that belong to no module of it.
///
/// # Errors
/// The database is unavailable.
pub async fn modules(program: &Program, store: &Store) -> Result<Modules, Error> {
    Ok(Modules { items: views(program), unclaimed: unclaimed(store.db(), program.registry()).await? })
}

/// State of the route.
#[derive(Clone)]
pub struct Overview {
    program: Arc<Program>,
    store: Store,
    authenticator: Authenticator,
}

impl Overview {
    /// Returns the state for a program and its store.
    pub fn new(program: Arc<Program>, store: Store, authenticator: Authenticator) -> Self {
        Self { program, store, authenticator }
    }
}

impl FromRef<Overview> for Authenticator {
    fn from_ref(overview: &Overview) -> Self {
        overview.authenticator.clone()
    }
}

/// Returns the route `GET /v1/modules`.
pub fn router() -> OpenApiRouter<Overview> {
    OpenApiRouter::new().routes(routes!(list))
}

/// Lists the modules of the process that answers, and the read models of modules that this process does not have.
#[utoipa::path(get, path = "/v1/modules", operation_id = "list_modules", tag = "operations",
    responses((status = 200, description = "The modules of the process that answers.", body = Modules)),
    extensions(("x-problems" = json!(["forbidden"]))))]
async fn list(State(overview): State<Overview>, principal: Principal) -> Result<Response, Problem> {
    principal.admin_only()?;
    let modules = modules(&overview.program, &overview.store).await.map_err(push::problems::unavailable)?;
    Ok(axum::Json(modules).into_response())
}
