//! `shared-servers FILE PID` runs the servers that the tests of one run share: it starts them, writes their ports to
//! FILE, and stops them when the process PID, which runs the tests, has ended. See [`tests::shared`].

use std::fs;
use std::path::PathBuf;

use serde_json::json;
use tests::nats::Nats;
use tests::postgres::Postgres;
use tests::process::{POLL, is_alive, start_time};
use tokio::signal::unix::{SignalKind, signal};

#[tokio::main]
async fn main() {
    let mut arguments = std::env::args_os().skip(1);
    let (Some(file), Some(runner)) = (arguments.next(), arguments.next()) else {
        panic!("usage: shared-servers FILE PID");
    };
    let file = PathBuf::from(file);
    let runner = runner.to_str().and_then(|id| id.parse().ok()).expect("PID is a process id");
    let (postgres, nats) = tokio::join!(Postgres::start(false), Nats::start());
    let ports = json!({"postgres_port": postgres.port(), "nats_port": nats.port()});
    // The complete file is renamed, so that no test reads a part of it.
    let staged = file.with_extension("new");
    fs::write(&staged, ports.to_string()).expect("the target directory is writable");
    fs::rename(&staged, &file).expect("the target directory is writable");
    let ended = async {
        let started = start_time(runner);
        while is_alive(runner) && start_time(runner) == started {
            tokio::time::sleep(POLL * 10).await;
        }
    };
    let mut stopped = [SignalKind::terminate(), SignalKind::interrupt(), SignalKind::hangup()]
        .map(|kind| signal(kind).expect("signals can be handled"));
    let [terminate, interrupt, hangup] = &mut stopped;
    tokio::select! {
        () = ended => {}
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
        _ = hangup.recv() => {}
    }
    for extension in ["json", "lock", "log"] {
        let _ = fs::remove_file(file.with_extension(extension));
    }
}
