//! Docket as a library: modules in, a program out.
//!
//! `docket` is [`main`] over [`modules::modules`]. A program of one's own adds its modules to that list. The crate holds no
//! business logic: it gathers what the modules give, wires it by role, and gives operators their commands. What a command
//! line does is in its file under `cli`, what a server runs in `run.rs`.

/// Prints a line on stderr. In place of std's, which panics where nobody reads that any more (`docket … 2>&1 | head -1`).
macro_rules! eprintln {
    ($($text:tt)*) => {{
        use std::io::Write as _;
        let _ = writeln!(std::io::stderr(), $($text)*);
    }};
}

mod api;
mod checks;
mod cli;
mod cors;
mod migrations;
pub mod module;
pub mod modules;
mod observe;
mod overview;
pub mod program;
mod run;
pub mod settings;

use std::process::ExitCode;

use crate::module::Module;

/// Runs the command line of a program made of these modules.
pub fn main(modules: Vec<Module>) -> ExitCode {
    let runtime = match tokio::runtime::Builder::new_multi_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            eprintln!("docket: the runtime does not start: {error}");
            return ExitCode::from(cli::EXIT_FAILED);
        }
    };
    let code = runtime.block_on(cli::main(modules));
    // Blocking reads of a terminal or a pipe must not hold the exit up.
    runtime.shutdown_timeout(std::time::Duration::from_secs(1));
    ExitCode::from(code)
}
