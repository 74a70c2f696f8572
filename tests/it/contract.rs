//! The API document is valid, generators accept it, and a running system answers as it says.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use serde_json::json;
use tests::client::token;
use tests::process::{clean_command, run_to_end, target_directory};
use tests::record::number;
use tests::system::TestSystem;

tests::stories![requests_from_the_document_get_documented_answers];

/// Generated requests for each operation and phase. `DOCKET_CONTRACT_EXAMPLES` sets another number, and has other requests
/// generated in each run.
const EXAMPLES: u64 = 10;

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("contract")
}

fn document() -> PathBuf {
    folder().join("../../schemas/openapi.json")
}

/// Returns the folder of the Python tools.
///
/// # Panics
/// If they are not installed.
fn python() -> PathBuf {
    let environment = target_directory().join("tools/contract");
    assert!(environment.join("bin/st").exists(), "install the tools with: tests/run install");
    environment
}

#[test]
fn validators_and_generators_accept_the_document() {
    let mut check = Command::new(folder().join("check"));
    run_to_end(check.arg(document()).arg(python()));
}

async fn requests_from_the_document_get_documented_answers(system: TestSystem) {
    let item = json!({"sku": "bagel", "quantity": 2, "unit_price": "0.50"});
    let order = json!({"order_id": "o-1001", "customer_id": "c-1", "items": [item]});
    system.post("/v1/orders").json(order).send().await.expect(201);
    system.settled().await;
    let examples = number("DOCKET_CONTRACT_EXAMPLES");
    let mut schemathesis = clean_command(&python().join("bin/st"));
    schemathesis.current_dir(folder()).stdin(Stdio::null()).env("SCHEMATHESIS_HOOKS", "hooks");
    schemathesis.env("PYTHONDONTWRITEBYTECODE", "1");
    schemathesis.args(["--config-file", "schemathesis.toml", "run"]).arg(document());
    schemathesis.args(["--url", system.writer().base(), "--no-color"]);
    schemathesis.args(["--header", &format!("Authorization: Bearer {}", token("tester", "admin"))]);
    schemathesis.args(["--max-examples", &examples.unwrap_or(EXAMPLES).to_string()]);
    if examples.is_none() {
        // The same requests in each run of CI.
        schemathesis.arg("--generation-deterministic");
    }
    tokio::task::spawn_blocking(move || run_to_end(&mut schemathesis)).await.expect("every check passes");
}
