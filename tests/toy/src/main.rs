//! Docket with a foreign module beside the built-in ones: what the stories of foreign modules run. Its aggregates can be
//! made to fail in every way that a module can fail.

mod counter;
mod meter;
mod refusal;

use std::process::ExitCode;

use projection_engine::projection::kind_of;
use server::module::{Module, Setting};

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    let mut modules = server::modules::modules();
    modules.push(toy());
    server::main(modules)
}

fn toy() -> Module {
    Module {
        needs: vec!["orders"],
        aggregates: vec![kind_of::<counter::Counter>(), kind_of::<meter::Meter>()],
        commands: Some(|| counter::commands().merge(meter::commands())),
        bulk: Some(counter::BULK),
        projections: vec![&counter::PROJECTION, &meter::PROJECTION],
        queries: Some(|| counter::queries().merge(meter::queries())),
        channels: vec![counter::channel()],
        publishers: vec![&counter::PUBLISHER],
        settings: vec![Setting {
            name: "toy_panics",
            default: "true",
            help: "Whether the fold of a counter whose note is `panic` panics: true or false.",
            apply: counter::set_panics,
        }],
        ..Module::new("toy")
    }
}
