//! A server process of a test. Its output goes to a log file.

use std::ffi::OsString;
use std::fs::{File, OpenOptions};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

/// Number of bytes at the end of a log that are printed when a test fails.
const LOG_TAIL_BYTES: usize = 6_000;

/// Interval of checks while a test waits for a condition.
pub const POLL: Duration = Duration::from_millis(15);

/// A program with its arguments and environment, and its process if it runs.
pub struct Process {
    name: String,
    program: PathBuf,
    arguments: Vec<OsString>,
    environment: Vec<(String, String)>,
    log: PathBuf,
    child: Option<Child>,
    /// Signal that ends the process when the value is dropped.
    drop_signal: &'static str,
}

impl Process {
    /// Describes a process without starting it; [`Process::start`] does. Its output is written to the file `log`.
    pub fn new(name: impl Into<String>, program: PathBuf, log: PathBuf) -> Self {
        Self {
            name: name.into(),
            program,
            arguments: vec![],
            environment: vec![],
            log,
            child: None,
            drop_signal: "KILL",
        }
    }

    /// Adds arguments.
    #[must_use]
    pub fn args<A: Into<OsString>>(mut self, arguments: impl IntoIterator<Item = A>) -> Self {
        self.arguments.extend(arguments.into_iter().map(Into::into));
        self
    }

    /// Sets environment variables. `DOCKET_…` variables of the test's own environment are not inherited.
    #[must_use]
    pub fn envs(mut self, variables: &[(String, String)]) -> Self {
        self.environment.extend_from_slice(variables);
        self
    }

    /// Uses another program at the next start.
    pub fn set_program(&mut self, program: PathBuf) {
        self.program = program;
    }

    /// Sets an environment variable for the next start.
    pub fn set_env(&mut self, name: &str, value: &str) {
        self.environment.retain(|(known, _)| known != name);
        self.environment.push((name.to_owned(), value.to_owned()));
    }

    /// Sets the signal that ends the process when the value is dropped, instead of `KILL`. A process that still runs
    /// after 3 seconds is killed.
    #[must_use]
    pub fn drop_signal(mut self, signal: &'static str) -> Self {
        self.drop_signal = signal;
        self
    }

    /// Starts the program, and appends its output to the log.
    ///
    /// # Panics
    /// If the process already runs, or cannot be started.
    pub fn start(&mut self) {
        assert!(self.child.is_none(), "{} already runs", self.name);
        let log = OpenOptions::new().create(true).append(true).open(&self.log).expect("the test directory is writable");
        let mut command = clean_command(&self.program);
        command.args(&self.arguments).envs(self.environment.iter().map(|(name, value)| (name, value)));
        command.stdin(Stdio::null()).stdout(log.try_clone().expect("a file handle")).stderr(log);
        let child =
            command.spawn().unwrap_or_else(|error| panic!("{} does not start: {error}", self.program.display()));
        self.child = Some(child);
    }

    /// Returns the process id; `None` when the process was not started or was stopped.
    pub fn id(&self) -> Option<u32> {
        self.child.as_ref().map(Child::id)
    }

    /// Returns the exit status when the process has ended by itself.
    pub fn exited(&mut self) -> Option<ExitStatus> {
        self.child.as_mut().and_then(|child| child.try_wait().expect("a child of this process"))
    }

    /// Kills the process with SIGKILL, and waits until it has ended.
    pub fn kill9(&mut self) {
        if let Some(mut child) = self.child.take() {
            child.kill().expect("a child of this process");
            child.wait().expect("a child of this process");
        }
    }

    /// Sends a signal by name (`TERM`, `QUIT`, …) to a running process.
    pub fn signal(&self, name: &str) {
        if let Some(id) = self.id() {
            let sent = Command::new("sh").args(["-c", &format!("kill -{name} {id}")]).status();
            assert!(sent.is_ok_and(|status| status.success()), "could not send SIG{name} to {}", self.name);
        }
    }

    /// Sends a signal, and waits until the process has ended. Returns the exit status and how long it took.
    ///
    /// # Panics
    /// If the process does not run, or has not ended within `deadline`.
    pub async fn stop(&mut self, signal: &str, deadline: Duration) -> (ExitStatus, Duration) {
        assert!(self.child.is_some(), "{} does not run", self.name);
        let started = Instant::now();
        self.signal(signal);
        loop {
            if let Some(status) = self.exited() {
                self.child = None;
                return (status, started.elapsed());
            }
            assert!(started.elapsed() < deadline, "{} still runs {deadline:?} after SIG{signal}", self.name);
            tokio::time::sleep(POLL).await;
        }
    }

    /// Returns the output of the process, since its first start.
    pub fn log(&self) -> String {
        String::from_utf8_lossy(&std::fs::read(&self.log).unwrap_or_default()).into_owned()
    }

    /// Returns the end of the log, below a line with the name of the process.
    pub fn log_tail(&self) -> String {
        let text = std::fs::read(&self.log).unwrap_or_default();
        let tail = String::from_utf8_lossy(&text[text.len().saturating_sub(LOG_TAIL_BYTES)..]);
        format!("\n---- {} ----\n{tail}", self.name)
    }

    /// Waits until `ready` returns true.
    ///
    /// # Panics
    /// If the process ends or the deadline passes first. The message contains the end of the log.
    pub async fn wait_until<F: Future<Output = bool>>(&mut self, deadline: Duration, mut ready: impl FnMut() -> F) {
        let started = Instant::now();
        while !ready().await {
            if let Some(status) = self.exited() {
                panic!("{} ended with {status} before it was ready{}", self.name, self.log_tail());
            }
            assert!(started.elapsed() < deadline, "{} is not ready after {deadline:?}{}", self.name, self.log_tail());
            tokio::time::sleep(POLL).await;
        }
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("{}", self.log_tail());
        }
        if let Some(mut child) = self.child.take() {
            let gentle = self.drop_signal != "KILL" && matches!(child.try_wait(), Ok(None));
            if gentle {
                let _ = Command::new("sh").args(["-c", &format!("kill -{} {}", self.drop_signal, child.id())]).status();
                let started = Instant::now();
                while matches!(child.try_wait(), Ok(None)) && started.elapsed() < Duration::from_secs(3) {
                    std::thread::sleep(POLL);
                }
            }
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

/// Returns the state (`R`, `S`, `T`, `Z`, …) and the parent of a process.
pub(crate) fn process_state(id: u32) -> Option<(char, u32)> {
    let text = std::fs::read_to_string(format!("/proc/{id}/stat")).ok()?;
    // The name in parentheses, which comes first, may contain anything.
    let mut fields = text.rsplit_once(')')?.1.split_whitespace();
    Some((fields.next()?.chars().next()?, fields.next()?.parse().ok()?))
}

/// Returns whether a process exists and has not ended. An ended process stays listed until its parent waits for it.
pub fn is_alive(id: u32) -> bool {
    process_state(id).is_some_and(|(state, _)| !matches!(state, 'Z' | 'X'))
}

/// Returns the start time of a process, in clock ticks since the boot. It tells a process from a later one with the same
/// id.
pub fn start_time(id: u32) -> Option<u64> {
    let text = std::fs::read_to_string(format!("/proc/{id}/stat")).ok()?;
    // Field 22. The first field after the name in parentheses is field 3.
    text.rsplit_once(')')?.1.split_whitespace().nth(19)?.parse().ok()
}

/// Returns a command that does not inherit the `DOCKET_…` variables of the test's environment.
pub fn clean_command(program: &Path) -> Command {
    let mut command = Command::new(program);
    for (name, _) in std::env::vars_os().filter(|(name, _)| name.to_string_lossy().starts_with("DOCKET_")) {
        command.env_remove(name);
    }
    command
}

/// Returns the build directory of the running executable, such as `target/release`.
pub fn profile_directory() -> PathBuf {
    let executable = std::env::current_exe().expect("the path of the executable");
    let directory = executable.parent().expect("an executable is in a directory");
    // Test executables are one level deeper.
    if directory.ends_with("deps") { directory.parent().expect("a profile").to_owned() } else { directory.to_owned() }
}

/// Returns Cargo's target directory.
pub fn target_directory() -> PathBuf {
    profile_directory().parent().expect("a profile is in the target directory").to_owned()
}

/// Searches `PATH` for a program.
pub fn find_on_path(name: &str) -> Option<PathBuf> {
    std::env::split_paths(&std::env::var_os("PATH")?).map(|directory| directory.join(name)).find(|path| path.is_file())
}

/// Runs a program and waits until it has ended.
///
/// # Panics
/// If the program cannot be started, or fails. The message contains its output.
pub fn run_to_end(command: &mut Command) {
    let output = command.stdin(Stdio::null()).output().unwrap_or_else(|error| panic!("{command:?}: {error}"));
    let text = [output.stdout, output.stderr].concat();
    assert!(output.status.success(), "{command:?}: {}\n{}", output.status, String::from_utf8_lossy(&text));
}

/// Waits for an exclusive lock on `path`. The lock is held until the returned file is dropped.
pub fn lock_file(path: &Path) -> File {
    std::fs::create_dir_all(path.parent().expect("a path in a directory")).expect("the target directory is writable");
    let file = File::create(path).expect("the target directory is writable");
    file.lock().expect("the file system supports locks");
    file
}
