//! What a context gives to a program.

use command_engine::api::CommandApi;
use command_engine::bulk::lines::BulkLines;
use command_engine::reactions::reactor::Reactor;
use event_store::error::Error;
use event_store::store::Store;
use futures::future::BoxFuture;
use projection_engine::projection::{AnyAggregate, AnyObserver, AnyProjection};
use projection_engine::registry::CORE;
use push::api::{Channel, QueryApi};
use push::publisher::AnyPublisher;
use utoipa_axum::router::OpenApiRouter;

/// A context: everything that it gives to a program, as one value. A field that is empty is not given.
pub struct Module {
    /// Its name: lower-case letters, digits and hyphens.
    pub name: &'static str,
    /// The group of its read models: [`CORE`] for built-in modules, else its own name.
    pub group: &'static str,
    /// Names of modules that it does not work without.
    pub needs: Vec<&'static str>,
    /// Its aggregates.
    pub aggregates: Vec<&'static dyn AnyAggregate>,
    /// The routes of its commands.
    pub commands: Option<fn() -> OpenApiRouter<CommandApi>>,
    /// Its commands in bulk.
    pub bulk: Option<BulkLines>,
    /// Its reactors and process managers.
    pub reactors: Vec<&'static dyn Reactor>,
    /// Its read models.
    pub projections: Vec<&'static dyn AnyProjection>,
    /// Who is called with what its group projects for the first time.
    pub observers: Vec<&'static dyn AnyObserver>,
    /// The routes of its queries.
    pub queries: Option<fn() -> OpenApiRouter<QueryApi>>,
    /// Its channels of live updates.
    pub channels: Vec<Channel>,
    /// What is published of its aggregates.
    pub publishers: Vec<&'static dyn AnyPublisher>,
    /// Its settings; their names begin with the module's, unless the module is built in.
    pub settings: Vec<Setting>,
    /// Its health checks.
    pub checks: Vec<Check>,
    /// Its metrics, with what each one tells.
    pub metrics: Vec<(&'static str, &'static str)>,
    /// Measures what no event tells, now and then, in processes that project.
    pub measure: Option<Measure>,
}

/// See [`Module::measure`].
pub type Measure = fn(Store) -> BoxFuture<'static, Result<(), Error>>;

/// A setting of a module: a text in `docket.toml`, or in the environment as `DOCKET_` and its name in capitals.
#[derive(Clone, Copy)]
pub struct Setting {
    /// Its name.
    pub name: &'static str,
    /// Its value where none is given.
    pub default: &'static str,
    /// What it sets.
    pub help: &'static str,
    /// Takes the value at start, before anything runs.
    ///
    /// # Errors
    /// Why the value cannot be used, and which can.
    pub apply: fn(&str) -> Result<(), String>,
}

/// A health check of a module.
#[derive(Clone, Copy)]
pub struct Check {
    /// Its name.
    pub name: &'static str,
    /// Whether the process is not ready while it fails; otherwise it is degraded.
    pub required: bool,
    /// Looks.
    ///
    /// # Errors
    /// What is wrong.
    pub run: fn(Store) -> BoxFuture<'static, Result<(), String>>,
}

impl Module {
    /// A module with nothing in it, in a group of its own.
    pub fn new(name: &'static str) -> Self {
        Self {
            name,
            group: name,
            needs: Vec::new(),
            aggregates: Vec::new(),
            commands: None,
            bulk: None,
            reactors: Vec::new(),
            projections: Vec::new(),
            observers: Vec::new(),
            queries: None,
            channels: Vec::new(),
            publishers: Vec::new(),
            settings: Vec::new(),
            checks: Vec::new(),
            metrics: Vec::new(),
            measure: None,
        }
    }

    /// The same in the group of the built-in modules.
    pub(crate) fn built_in(name: &'static str) -> Self {
        Self { group: CORE, ..Self::new(name) }
    }

    /// Whether it is part of Docket.
    pub fn is_built_in(&self) -> bool {
        self.group == CORE
    }
}
