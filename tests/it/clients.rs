//! The client packages in `clients/`: their own tests and the examples of their documents, against a real system.

use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use tests::client::token;
use tests::process::{clean_command, find_on_path, target_directory};
use tests::system::TestSystem;
use tokio::process::Command;

tests::stories![the_typescript_client_passes_its_tests, the_python_client_passes_its_tests];

/// Time limit for all tests of a client.
const DEADLINE: Duration = Duration::from_secs(240);

fn client(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../clients").join(name)
}

/// Returns a program that runs in the folder of a client, without the variables of other tests.
///
/// # Panics
/// If it is not installed.
fn program(name: &str, folder: &Path, needs: &Path) -> Command {
    let install = "install it with: tests/run install";
    assert!(needs.exists(), "{} is missing; {install}", needs.display());
    let found = find_on_path(name).unwrap_or_else(|| panic!("{name} is missing; {install}"));
    let mut command = Command::from(clean_command(&found));
    command.current_dir(folder).stdin(Stdio::null()).kill_on_drop(true);
    command
}

/// Runs the tests of a client against a system.
async fn run(mut command: Command, system: &TestSystem) {
    command.env("DOCKET_URL", system.writer().base()).env("DOCKET_TOKEN", token("app", "admin"));
    let output = tokio::time::timeout(DEADLINE, command.output()).await.expect("the tests end in time");
    let output = output.expect("the program starts");
    let text = [output.stdout, output.stderr].concat();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&text));
}

async fn the_typescript_client_passes_its_tests(system: TestSystem) {
    let folder = client("typescript");
    let mut node = program("node", &folder, &folder.join("dist/index.js"));
    node.args(["--test", "test/pages.test.mjs", "test/requests.test.mjs", "test/system.test.mjs"]);
    run(node, &system).await;
}

async fn the_python_client_passes_its_tests(system: TestSystem) {
    let (folder, packages) = (client("python"), target_directory().join("tools/python"));
    let mut python = program("python3", &folder, &packages.join("httpx"));
    let path = std::env::join_paths([folder.join("src"), packages]).expect("paths without a colon");
    python.env("PYTHONPATH", path).env("PYTHONDONTWRITEBYTECODE", "1");
    python.args(["-W", "error::ResourceWarning", "-m", "unittest", "discover", "tests"]);
    run(python, &system).await;
}

/// The generated sources belong to the API document of this commit.
#[test]
fn generated_sources_are_current() {
    let folder = client("typescript");
    let mut node = program("node", &folder, &folder.join("dist/index.js")).into_std();
    tests::process::run_to_end(node.args(["--test", "test/generated.test.mjs"]));
    let (folder, packages) = (client("python"), target_directory().join("tools/python"));
    let license = |folder: &Path| std::fs::read(folder.join("LICENSE")).expect("a licence");
    assert!(license(&folder) == license(&client("typescript/../..")), "copy LICENSE to clients/python");
    let mut python = program("python3", &folder, &packages.join("datamodel_code_generator")).into_std();
    tests::process::run_to_end(python.args(["generate.py", "--check"]).env("PYTHONPATH", packages));
}
