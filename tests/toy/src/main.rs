//! Docket with an external module next to the built-in ones, for the stories about such modules. Its aggregates can be
//! made to fail in every way in which a module can fail.

mod audit;
mod counter;
mod meter;
mod reactors;
mod refusal;

use std::process::ExitCode;

use projection_engine::projection::aggregate_type_of;
use server::module::{Module, Setting};

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    let mut modules = server::modules::modules();
    modules.extend([toy(), audit::audit()]);
    server::main(modules)
}

fn toy() -> Module {
    Module {
        needs: vec!["orders"],
        aggregates: vec![aggregate_type_of::<counter::Counter>(), aggregate_type_of::<meter::Meter>()],
        reactors: reactors::all(),
        commands: Some(|| counter::commands().merge(meter::commands())),
        bulk: Some(counter::BULK),
        projections: vec![&counter::PROJECTION, &meter::PROJECTION],
        queries: Some(|| counter::queries().merge(meter::queries())),
        channels: vec![counter::channel()],
        publishers: vec![&counter::PUBLISHER],
        problems: vec![meter::PROBLEM_TYPES],
        settings: vec![Setting {
            name: "toy_panics",
            default: "true",
            help: "Whether the fold of a counter whose note is `panic` panics: true or false.",
            apply: counter::set_panics,
        }],
        ..Module::new("toy")
    }
}

#[cfg(test)]
mod schemas {
    use std::path::Path;

    use kernel::schemas::check;

    #[test]
    fn the_event_schemas_match_the_types() {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("schemas/events");
        check::<crate::counter::Counter>(&folder);
        check::<crate::meter::Meter>(&folder);
    }
}
