//! The archive that `just dist` makes.

use std::path::Path;
use std::process::Command;
use std::time::Duration;

use serde_json::json;
use tests::client::Client;
use tests::ports::free_port;
use tests::process::{Process, clean_command, profile_directory, run_to_end};

/// The archive is made from the binary of this test run, because only the build differs.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_archive_unpacks_and_starts() {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy/dist");
    let folder = tempfile::tempdir().expect("a temporary directory");
    run_to_end(Command::new(script).arg(profile_directory().join("docket")).arg(folder.path()));
    let mut files = std::fs::read_dir(folder.path()).expect("a readable folder").flatten().map(|entry| entry.path());
    let archive = files.next().expect("an archive");
    run_to_end(Command::new("tar").arg("-xzf").arg(&archive).current_dir(folder.path()));

    let name = archive.file_name().and_then(|name| name.to_str()).expect("a name");
    let unpacked = folder.path().join(name.strip_suffix(".tar.gz").expect("a gzipped archive"));
    for file in ["README.md", "LICENSE", "docs/operations.md", "deploy/nginx/nginx.conf", "completions/docket.bash"] {
        let length = std::fs::metadata(unpacked.join(file)).expect(file).len();
        assert!(length > 0, "{file} is empty");
    }

    let (binary, data) = (unpacked.join("docket"), folder.path().join("data").display().to_string());
    let listen = format!("127.0.0.1:{}", free_port());
    let mut docket = Process::new("docket dev", binary.clone(), folder.path().join("log"))
        .args(["dev", "--listen", &listen, "--data", &data]);
    docket.start();
    let client = Client::new(format!("http://{listen}"));
    let ready =
        || async { client.get("/health/ready").anonymous().try_send().await.is_ok_and(|answer| answer.status == 200) };
    docket.wait_until(Duration::from_secs(60), ready).await;
    // The variable is for clients. Commands that read settings ignore it.
    let command = || {
        let mut command = clean_command(&binary);
        command.env("DOCKET_URL", client.base());
        command
    };
    run_to_end(command().arg("health"));
    let token = command().args(["token", "--sub", "me", "--role", "admin", "--data", &data]).output();
    let token = String::from_utf8(token.expect("docket starts").stdout).expect("a token");
    let order = json!({"order_id": "o-1", "customer_id": "ada"});
    client.post("/v1/orders").token(token.trim()).json(order).send().await.expect(201);
    let (status, _) = docket.stop("TERM", Duration::from_secs(40)).await;
    assert!(status.success(), "{status}");
}
