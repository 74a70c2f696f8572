//! Docket with a loyalty program: confirmed orders grant points, and points expire. The program is an extension: it
//! uses the engine and the server as libraries, and no other crate of Docket depends on it.
//!
//! `docs/extending.md` explains it step by step.

mod account;
mod expiry;
mod granting;
mod read_model;
mod routes;

use std::process::ExitCode;

use projection_engine::projection::aggregate_type_of;
use server::module::{Module, Setting};

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    let mut modules = server::modules::modules();
    modules.push(loyalty());
    server::main(modules)
}

/// Returns the module: all parts that it adds to the program.
fn loyalty() -> Module {
    Module {
        needs: vec!["orders"],
        aggregates: vec![aggregate_type_of::<account::Account>(), aggregate_type_of::<expiry::Expiry>()],
        reactors: vec![&granting::GrantPoints, &expiry::EXPIRIES],
        commands: Some(routes::commands),
        projections: vec![&read_model::ACCOUNTS],
        queries: Some(routes::queries),
        channels: vec![routes::channel()],
        publishers: vec![&routes::PUBLISHER],
        settings: vec![Setting {
            name: "loyalty_points_last_seconds",
            default: expiry::DEFAULT_SECONDS,
            help: "How long points are valid, in seconds.",
            apply: expiry::set_seconds,
        }],
        ..Module::new("loyalty")
    }
}

#[cfg(test)]
mod schemas {
    use std::path::Path;

    use kernel::schemas::check;

    /// Events are a storage format. `UPDATE_SCHEMAS=1 cargo test -p loyalty` writes the schemas of new events.
    #[test]
    fn the_event_schemas_match_the_types() {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("schemas/events");
        check::<crate::account::Account>(&folder);
        check::<crate::expiry::Expiry>(&folder);
    }
}
