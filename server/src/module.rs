//! The interface through which a context adds its parts to a program.

use command_engine::api::CommandApi;
use command_engine::bulk::lines::BulkLines;
use command_engine::reactions::reactor::Reactor;
use event_store::error::Error;
use event_store::store::Store;
use futures::future::BoxFuture;
use platform::problem::ProblemType;
use projection_engine::projection::{AnyAggregate, AnyObserver, AnyProjection};
use projection_engine::registry::CORE;
use push::api::{Channel, QueryApi};
use push::publisher::AnyPublisher;
use utoipa_axum::router::OpenApiRouter;

/// A context with all its parts, as one value. An empty field means that the context has no such part.
pub struct Module {
    /// Name of the module: lower-case letters, digits and hyphens.
    pub name: &'static str,
    /// Checkpoint group of its read models: [`CORE`] for built-in modules, otherwise the module's name.
    pub group: &'static str,
    /// Names of the modules that this module requires.
    pub needs: Vec<&'static str>,
    /// Its aggregate types.
    pub aggregates: Vec<&'static dyn AnyAggregate>,
    /// Returns the routes of its commands.
    pub commands: Option<fn() -> OpenApiRouter<CommandApi>>,
    /// Its bulk commands: lines of `POST /v1/commands`.
    pub bulk: Option<BulkLines>,
    /// Its reactors and process managers.
    pub reactors: Vec<&'static dyn Reactor>,
    /// Its read models.
    pub projections: Vec<&'static dyn AnyProjection>,
    /// Observers, called with the events that its group projects for the first time.
    pub observers: Vec<&'static dyn AnyObserver>,
    /// Returns the routes of its queries.
    pub queries: Option<fn() -> OpenApiRouter<QueryApi>>,
    /// Its channels of live updates.
    pub channels: Vec<Channel>,
    /// Publishers of its aggregates: they define the publications of live updates.
    pub publishers: Vec<&'static dyn AnyPublisher>,
    /// Its problem types, besides the refusals of its aggregates. `/problems` describes them.
    pub problems: Vec<&'static [ProblemType]>,
    /// Its settings. Their names begin with the module's name, unless the module is built in.
    pub settings: Vec<Setting>,
    /// Its health checks.
    pub checks: Vec<Check>,
    /// Its metrics: name and description.
    pub metrics: Vec<(&'static str, &'static str)>,
    /// Measures values that do not follow from events. Called periodically in processes with the role `project`.
    pub measure: Option<Measure>,
}

/// The type of [`Module::measure`].
pub type Measure = fn(Store) -> BoxFuture<'static, Result<(), Error>>;

/// A setting of a module: a string in `docket.toml`, or in the environment as `DOCKET_` and its name in capitals.
/// When the name has a unit (`bytes`, `ms`, `seconds`, `minutes`, `hours`, `days`), a value such as `5m` arrives as the
/// number of these units.
#[derive(Clone, Copy)]
pub struct Setting {
    /// Name of the setting.
    pub name: &'static str,
    /// Value when the setting is not given.
    pub default: &'static str,
    /// Description for operators.
    pub help: &'static str,
    /// Applies the value at start, before anything runs.
    ///
    /// # Errors
    /// The value cannot be used. The text says why, and which values are valid.
    pub apply: fn(&str) -> Result<(), String>,
}

/// A health check of a module.
#[derive(Clone, Copy)]
pub struct Check {
    /// Name of the check.
    pub name: &'static str,
    /// True when a failure makes the process not ready; otherwise a failure makes it degraded.
    pub required: bool,
    /// Runs the check.
    ///
    /// # Errors
    /// The check failed. The text says why.
    pub run: fn(Store) -> BoxFuture<'static, Result<(), String>>,
}

impl Module {
    /// Returns an empty module whose checkpoint group has the module's name.
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
            problems: Vec::new(),
            settings: Vec::new(),
            checks: Vec::new(),
            metrics: Vec::new(),
            measure: None,
        }
    }

    /// Returns an empty module in the checkpoint group of the built-in modules.
    pub(crate) fn built_in(name: &'static str) -> Self {
        Self { group: CORE, ..Self::new(name) }
    }

    /// Whether the module is part of Docket.
    pub fn is_built_in(&self) -> bool {
        self.group == CORE
    }
}
