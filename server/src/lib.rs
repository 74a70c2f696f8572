//! Docket as a library: builds a program from a list of modules.
//!
//! `docket` calls [`main`] with [`modules::modules`]. Another program adds its own modules to that list. This crate has
//! no business logic: it collects what the modules provide, wires it by role, and implements the operators' commands.
//! Each command is in its file under `cli`; the server is in `run.rs`.

/// Prints a line on stderr. Replaces the macro of std, which panics when stderr is closed (`docket … 2>&1 | head -1`).
macro_rules! eprintln {
    ($($text:tt)*) => {{
        use std::io::Write as _;
        let _ = writeln!(std::io::stderr(), $($text)*);
    }};
}

mod api;
mod checks;
mod cli;
mod contract;
mod cors;
mod migrations;
pub mod module;
pub mod modules;
mod observe;
mod overview;
mod page;
mod problems;
pub mod program;
mod root;
mod run;
pub mod settings;

use std::process::ExitCode;

use crate::module::Module;

/// Runs the command line of a program with these modules and returns its exit code.
pub fn main(modules: Vec<Module>) -> ExitCode {
    let runtime = match tokio::runtime::Builder::new_multi_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            eprintln!("docket: cannot start the async runtime: {error}");
            return ExitCode::from(cli::EXIT_FAILED);
        }
    };
    let code = runtime.block_on(cli::main(modules));
    // A blocking read of a terminal or a pipe must not delay the exit.
    runtime.shutdown_timeout(std::time::Duration::from_secs(1));
    ExitCode::from(code)
}
