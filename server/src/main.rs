//! `docket`: the binary. It gathers settings, wires the crates together by role, and gives operators their commands.
//!
//! It holds no logic of its own: what a command line does stands in its file under `cli`, what a server runs in `run.rs`.

/// Prints a line on stderr. In place of std's, which panics where nobody reads that any more (`docket … 2>&1 | head -1`).
macro_rules! eprintln {
    ($($text:tt)*) => {{
        use std::io::Write as _;
        let _ = writeln!(std::io::stderr(), $($text)*);
    }};
}

mod api;
mod cli;
mod migrations;
mod modules;
mod run;
mod settings;

use std::process::ExitCode;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    let runtime = match tokio::runtime::Builder::new_multi_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            eprintln!("docket: the runtime does not start: {error}");
            return ExitCode::from(cli::EXIT_FAILED);
        }
    };
    let code = runtime.block_on(cli::main());
    // Blocking reads of a terminal or a pipe must not hold the exit up.
    runtime.shutdown_timeout(std::time::Duration::from_secs(1));
    ExitCode::from(code)
}
