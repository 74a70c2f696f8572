//! Loopback ports for the servers of a test.

use std::fs::{File, create_dir_all};
use std::net::TcpListener;
use std::sync::Mutex;

use crate::process::target_directory;

/// Below the range that Linux uses for the local ports of outgoing connections, so that no such connection occupies a
/// port of this range.
const PORT_MIN: u16 = 15_000;
const PORT_MAX: u16 = 30_000;

/// Lock files of the ports that this test process holds. They are unlocked when the process ends.
static HELD: Mutex<Vec<File>> = Mutex::new(Vec::new());

/// Returns a loopback port that nothing listens on. It is reserved against other test processes until this process
/// ends.
pub fn free_port() -> u16 {
    let directory = target_directory().join("tmp/ports");
    create_dir_all(&directory).expect("the target directory is writable");
    let mut held = HELD.lock().expect("no panic under this lock");
    let span = u32::from(PORT_MAX - PORT_MIN);
    let start = std::process::id().wrapping_mul(97) % span;
    for step in 0..span {
        let port = PORT_MIN + u16::try_from((start + step) % span).expect("less than span");
        let lock = File::create(directory.join(port.to_string())).expect("the target directory is writable");
        if lock.try_lock().is_ok() && TcpListener::bind(("127.0.0.1", port)).is_ok() {
            held.push(lock);
            return port;
        }
    }
    panic!("no free port between {PORT_MIN} and {PORT_MAX}");
}
