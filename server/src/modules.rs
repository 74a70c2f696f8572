//! The list of built-in modules.

use command_engine::bulk;
use projections::orders;

use crate::module::Module;

/// Returns the built-in modules.
pub fn modules() -> Vec<Module> {
    vec![orders(), operations()]
}

/// Orders, with their reports.
fn orders() -> Module {
    Module {
        aggregates: orders::aggregates(),
        commands: Some(write_side::orders::router),
        bulk: Some(write_side::orders::BULK),
        projections: orders::projections(),
        observers: vec![&orders::metrics::OBSERVER],
        queries: Some(read_side::orders_router),
        channels: read_side::orders_channels(),
        publishers: read_side::orders_publishers(),
        problems: vec![write_side::orders::PROBLEM_TYPES, read_side::problem_types()],
        metrics: orders::metrics::DOCS.to_vec(),
        measure: Some(orders::metrics::measure),
        ..Module::built_in("orders")
    }
}

/// Routes and channels for operators, and the route of bulk commands.
fn operations() -> Module {
    Module {
        commands: Some(bulk::router),
        queries: Some(read_side::operations_router),
        channels: read_side::operations_channels(),
        ..Module::built_in("operations")
    }
}
