//! The command line and the settings, as a user meets them: errors, sources, output and exit codes.

use std::fs;
use std::io::{BufRead, BufReader};
use std::net::TcpListener;
use std::path::Path;
use std::process::{Child, Output, Stdio};

use serde_json::{Value, json};
use tests::client::Client;
use tests::ports::free_port;
use tests::postgres::Postgres;
use tests::process::{clean_command, profile_directory};
use tests::system::{Mode, TestSystem};
use tests::wait::until_true;

const SECRET: &str = "0123456789abcdef0123456789abcdef";

/// Runs `docket` in a folder to its end.
fn docket(folder: &Path, variables: &[(&str, &str)], arguments: &[&str]) -> Output {
    let mut command = clean_command(&profile_directory().join("docket"));
    command.args(arguments).envs(variables.iter().copied()).current_dir(folder).stdin(Stdio::null());
    command.output().expect("docket runs")
}

/// Returns the exit code and the last line of stderr, which gives the reason.
fn reason(output: &Output) -> (Option<i32>, String) {
    let text = String::from_utf8_lossy(&output.stderr);
    (output.status.code(), text.lines().last().unwrap_or_default().to_owned())
}

/// A process that is killed at the end of the test.
struct Killed(Child);

impl Drop for Killed {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn a_failed_start_leaves_no_data_folder_and_says_what_to_do() {
    let busy = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let busy = busy.local_addr().expect("an address").to_string();
    let gone = format!("postgres://docket:pa55@127.0.0.1:{}/docket", free_port());
    // `file` is the text of docket.toml; without a text it is a folder.
    let fails = |file: Option<&str>, variables: &[(&str, &str)], arguments: &[&str], code: i32, parts: &[&str]| {
        let folder = tempfile::tempdir().expect("a temporary directory");
        let path = folder.path().join("docket.toml");
        match file {
            None => fs::create_dir(path).expect("a writable directory"),
            Some("") => {}
            Some(text) => fs::write(path, text).expect("a writable directory"),
        }
        let output = docket(folder.path(), variables, &[&["dev"][..], arguments].concat());
        let (found, line) = reason(&output);
        assert_eq!(found, Some(code), "{variables:?} {arguments:?}: {line}");
        assert!(line.starts_with("docket: ") && parts.iter().all(|part| line.contains(part)), "{parts:?}: {line}");
        assert!(output.stdout.is_empty(), "nothing promises a server: {output:?}");
        assert!(!folder.path().join("data").exists(), "{arguments:?}: a data folder is left");
    };
    let none = Some("");
    fails(none, &[], &["--listen", &busy], 1, &["Another program listens on", "--listen"]);
    fails(none, &[], &["--listen", "0.0.0.0:1"], 2, &["--listen has the value", "loopback"]);
    fails(none, &[("DOCKET_LISTEN", "8080")], &[], 2, &["DOCKET_LISTEN has the value `8080`"]);
    fails(none, &[("DOCKET_DATABASE_URL", &gone)], &[], 1, &["DOCKET_DATABASE_URL", ":***@", "refused"]);
    fails(none, &[("DOCKET_DATABASE_URL", "mysql://x")], &[], 2, &["`sqlite:PATH` or `postgres://"]);
    fails(none, &[("DOCKET_DATA", "/dev/null/x")], &[], 1, &["/dev/null/x/docket.db: Not a directory", "give another"]);
    fails(none, &[("DOCKET_LOG_FILE", "/dev/null/x")], &[], 1, &["DOCKET_LOG_FILE", "cannot open the file"]);
    fails(Some("listen = \n"), &[], &[], 2, &["docket.toml, line 1 is not valid TOML"]);
    fails(Some("\nlissten = \"x\"\n"), &[], &[], 2, &["line 2: `lissten`", "Did you mean `listen`?"]);
    fails(Some("log_days_max = \"a while\"\n"), &[], &[], 2, &["line 1, has the value `a while`", "30d"]);
    fails(None, &[], &[], 2, &["docket.toml is a folder"]);
}

#[test]
fn a_folder_or_another_file_in_place_of_the_store_is_named() {
    let folder = tempfile::tempdir().expect("a temporary directory");
    let dev = |data: &str| reason(&docket(folder.path(), &[], &["dev", "--listen", "127.0.0.1:0", "--data", data]));
    let path = |name: &str| folder.path().join(name);
    fs::create_dir_all(path("store/docket.db")).expect("a writable directory");
    fs::create_dir_all(path("key/jwt-secret")).expect("a writable directory");
    fs::create_dir(path("text")).expect("a writable directory");
    fs::write(path("text/docket.db"), "a text, which is no database of SQLite").expect("a writable directory");
    fs::write(path("file"), "").expect("a writable directory");
    for (data, told) in [
        ("store", "is not a file: give the path of a file in database_url"),
        ("key", "Cannot read key/jwt-secret (Is a directory"),
        ("text", "is not a database of SQLite, or is damaged"),
        ("file", "cannot read the database file/docket.db: Not a directory"),
    ] {
        let (code, line) = dev(data);
        assert!(code == Some(1) && line.contains(told), "{data}: {code:?} {line}");
    }
    // The same in every command that opens the store.
    for command in [&["verify"][..], &["projections"], &["events", "tail"], &["migrate"]] {
        let (code, line) = reason(&docket(folder.path(), &[], &[command, &["--data", "text"]].concat()));
        assert!(code == Some(1) && line.contains("--data has the value"), "{command:?}: {line}");
    }
    // A command for an existing store creates none.
    for command in [&["verify"][..], &["projections"], &["events", "restored"], &["reactors", "list"]] {
        let (code, line) = reason(&docket(folder.path(), &[], command));
        assert!(code == Some(1) && line.contains("there is no database data/docket.db"), "{command:?}: {line}");
        assert!(!path("data").exists(), "{command:?} leaves a folder");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn dev_reads_the_file_then_variables_then_flags() {
    let folder = tempfile::tempdir().expect("a temporary directory");
    let address = format!("127.0.0.1:{}", free_port());
    let file = "listen = \"0.0.0.0:1\"\nrate_per_second_staff = 5\nrate_burst = 11\njwt_issuer = \"of-file\"\n";
    fs::write(folder.path().join("docket.toml"), file).expect("a writable directory");
    let mut command = clean_command(&profile_directory().join("docket"));
    command.args(["dev", "--listen", &address]).current_dir(folder.path()).stdin(Stdio::null());
    command.envs([("DOCKET_RATE_PER_SECOND_STAFF", "7"), ("DOCKET_LISTEN", "0.0.0.0:2"), ("DOCKET_DATA", "elsewhere")]);
    command.envs([("DOCKET_APPEND_QUEU_MAX", "5"), ("DOCKET_LOG_FILE", "log")]);
    let mut child = Killed(command.stdout(Stdio::piped()).stderr(Stdio::null()).spawn().expect("docket starts"));
    let stdout = BufReader::new(child.0.stdout.take().expect("a pipe"));
    let lines: Vec<String> =
        stdout.lines().map_while(Result::ok).take_while(|line| !line.starts_with("curl ")).collect();
    let banner = lines.join("\n");
    let parts = [format!("http://{address}. Stop"), format!("http://{address}/docs"), "elsewhere/docket.db".to_owned()];
    for part in parts {
        assert!(banner.contains(&part), "{part} is not in {banner}");
    }
    let token = lines.iter().find_map(|line| line.strip_prefix("export TOKEN=")).expect("the banner has a token");
    let client = Client::new(format!("http://{address}")).with_token(token.to_owned());
    let rate = client.get("/v1/rate-limit").send().await.expect(200).json();
    assert_eq!((&rate["rate_limit"]["per_second"], &rate["rate_limit"]["burst"]), (&json!(7), &json!(11)));
    assert!(folder.path().join("elsewhere/docket.db").exists() && !folder.path().join("data").exists());
    let log = folder.path().join("log");
    let warned = "DOCKET_APPEND_QUEU_MAX: it is not a setting. Did you mean DOCKET_APPEND_QUEUE_MAX?";
    until_true("the warning", async || fs::read_to_string(&log).is_ok_and(|log| log.contains(warned))).await;
    // `docket token` finds the same key, and names it.
    let output = docket(folder.path(), &[("DOCKET_DATA", "elsewhere")], &["token", "--sub", "me", "--role", "admin"]);
    assert_eq!(reason(&output).1, "Signed with the key in elsewhere/jwt-secret.");
    let token = String::from_utf8_lossy(&output.stdout).trim().to_owned();
    client.get("/v1/rate-limit").token(&token).send().await.expect(200);
    // The health of the server, for people and for programs.
    let url = format!("http://{address}");
    let health = |json: &[&str]| docket(folder.path(), &[], &[&["health", "--url", &url][..], json].concat());
    until_true("the server is ready", async || health(&[]).status.success()).await;
    let text = String::from_utf8_lossy(&health(&[]).stdout).into_owned();
    assert!(text.starts_with(&format!("The server at {url} is ready.\n")) && text.contains("\n  database "), "{text}");
    let report: Value = serde_json::from_slice(&health(&["--json"]).stdout).expect("the output is JSON");
    assert_eq!((&report["status"], &report["checks"]["append"]["status"]), (&json!("ready"), &json!("ok")));
}

#[test]
fn serve_uses_the_key_of_dev_only_where_nobody_else_can_connect() {
    let folder = tempfile::tempdir().expect("a temporary directory");
    fs::create_dir(folder.path().join("data")).expect("a writable directory");
    let check = |variables: &[(&str, &str)]| docket(folder.path(), variables, &["config", "check", "--offline"]);
    let (code, line) = reason(&check(&[]));
    assert!(code == Some(2) && line.contains("set DOCKET_JWT_SECRET"), "{line}");
    fs::write(folder.path().join("data/jwt-secret"), SECRET).expect("a writable directory");
    assert_eq!(reason(&check(&[])), (Some(0), "The settings are valid. Nothing was connected to.".to_owned()));
    for variables in [("DOCKET_LISTEN", "0.0.0.0:8080"), ("DOCKET_DATABASE_URL", "postgres://docket@db/docket")] {
        let (code, line) = reason(&check(&[variables]));
        assert!(code == Some(2) && line.contains("data/jwt-secret is the key of `docket dev`"), "{line}");
        assert!(line.contains("Set DOCKET_JWT_SECRET to"), "{line}");
        assert!(check(&[variables, ("DOCKET_JWT_SECRET", SECRET)]).status.success());
    }
    let token = ["token", "--sub", "me", "--role", "admin"];
    let (_, line) = reason(&docket(folder.path(), &[("DOCKET_JWT_SECRET", SECRET)], &token));
    assert_eq!(line, "Signed with the key in the environment variable DOCKET_JWT_SECRET.");
}

#[test]
fn an_unset_database_is_in_the_data_folder_but_never_replaces_another_store() {
    let folder = tempfile::tempdir().expect("a temporary directory");
    let run = |variables: &[(&str, &str)]| docket(folder.path(), variables, &["migrate"]);
    assert!(run(&[("DOCKET_DATA", "store")]).status.success());
    assert!(folder.path().join("store/docket.db").exists() && !folder.path().join("data").exists());
    assert!(run(&[]).status.success());
    // Releases before this one used data/docket.db, whatever the setting data was.
    let (code, line) = reason(&run(&[("DOCKET_DATA", "other")]));
    assert!(code == Some(2) && line.contains("other/docket.db does not exist, but data/docket.db does"), "{line}");
    assert!(!folder.path().join("other").exists());
}

/// The connections of `config check` fail with what to do; several NATS servers are named one by one.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn config_check_connects_to_every_server() {
    let (postgres, nats) = (Postgres::start(false).await, tests::nats::Nats::start().await);
    let (folder, nobody) = (tempfile::tempdir().expect("a temporary directory"), free_port());
    let (url, key) = (postgres.url(), ("DOCKET_JWT_SECRET", SECRET));
    let check = |variables: &[(&str, &str)], flags: &[&str]| {
        let variables = [variables, &[key, ("DOCKET_DATABASE_URL", &url)]].concat();
        let output = docket(folder.path(), &variables, &[&["config", "check"][..], flags].concat());
        (output.status.code(), String::from_utf8_lossy(&output.stderr).into_owned())
    };
    let (code, text) = check(&[], &[]);
    assert!(code == Some(1) && text.contains("contains no store: run `docket migrate`"), "{text}");
    assert_eq!(check(&[], &["--offline"]).0, Some(0));
    let migrated = docket(folder.path(), &[("DOCKET_DATABASE_URL", &url)], &["migrate"]);
    assert!(migrated.status.success(), "{migrated:?}");
    for flags in [&[][..], &["--connect"]] {
        let (code, text) = check(&[], flags);
        assert!(code == Some(0) && text.contains("The settings are valid, and the database can be used."), "{text}");
    }
    let both = format!("nats://127.0.0.1:{nobody},{}", nats.url());
    let (code, text) = check(&[("DOCKET_NATS_URL", &both)], &[]);
    let told = format!("The NATS server 127.0.0.1:{nobody} is not usable");
    assert!(code == Some(0) && text.contains(&told) && text.contains("1 of 2 NATS servers can be used"), "{text}");
    let none = format!("nats://127.0.0.1:{nobody}");
    let keys = format!("http://127.0.0.1:{nobody}/keys");
    let (code, text) = check(&[("DOCKET_NATS_URL", &none), ("DOCKET_JWT_JWKS_URL", &keys)], &[]);
    assert!(code == Some(1) && text.contains(&format!("The NATS server 127.0.0.1:{nobody}: ")), "{text}");
    assert!(text.contains("DOCKET_JWT_JWKS_URL has the value") && text.contains("could not use the keys"), "{text}");
}

/// Output that cannot be written is a failure, and no panic, in every command that prints.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_full_disk_behind_stdout_is_a_failure() {
    let system = TestSystem::builder(Mode::Embedded).start().await;
    let body = json!({"order_id": "o-1", "customer_id": "ada"});
    system.post("/v1/orders").json(body).send().await.expect(201);
    system.settled().await;
    for arguments in [
        &["--help"][..],
        &["-h"],
        &["--version"],
        &["help", "serve"],
        &["completions", "bash"],
        &["config", "show"],
        &["token", "--sub", "ada", "--role", "customer"],
        &["projections"],
        &["projections", "--json"],
        &["modules"],
        &["modules", "--json"],
        &["reactors", "list", "--json"],
        &["verify"],
        &["verify", "--json"],
        &["dead-letters", "list", "--json"],
        &["events", "tail"],
        &["events", "export"],
        &["replay", "--all", "--dry-run"],
        &["replay", "--all", "--json"],
        &["health", "--url", system.reader().base()],
        &["health", "--json", "--url", system.reader().base()],
    ] {
        for both in [false, true] {
            let full = || fs::File::options().write(true).open("/dev/full").expect("Linux has /dev/full");
            let mut command = system.command(arguments);
            command.stdout(full());
            command.stderr(if both { Stdio::from(full()) } else { Stdio::piped() });
            let output = command.spawn().expect("docket starts").wait_with_output().await.expect("docket ends");
            let text = String::from_utf8_lossy(&output.stderr);
            assert_eq!(output.status.code(), Some(1), "{arguments:?}: {text}");
            assert!(both || text.contains("docket: Cannot write to stdout: No space left"), "{arguments:?}: {text}");
            assert!(!text.contains("panicked"), "{arguments:?}: {text}");
        }
    }
}

#[test]
fn invalid_arguments_exit_with_2_and_failures_with_1() {
    let folder = tempfile::tempdir().expect("a temporary directory");
    for (arguments, code, told) in [
        (&["nonsense"][..], 2, "nonsense"),
        (&["dev", "--nonsense"], 2, "--nonsense"),
        (&["replay"], 2, "--all"),
        (&["token", "--sub", "me", "--role", "boss"], 2, "customer, staff, admin"),
        (&["token", "--sub", "me", "--role", "admin", "--ttl", "soon"], 2, "such as 30m, 8h or 7d"),
        (&["token", "--sub", "me", "--role", "admin"], 2, "DOCKET_JWT_SECRET"),
        (&["health", "--url", "nonsense"], 2, "is not a URL"),
        (&["health", "--url", "http://127.0.0.1:1"], 1, "No server answers at http://127.0.0.1:1."),
        (&["config", "check", "--config", "none.toml"], 2, "Cannot read the settings file none.toml"),
        (&["config", "check", "--offline", "--connect"], 2, "--connect"),
        (&["events", "import", "none"], 1, "none"),
        (&["events", "import", "."], 1, "is a folder"),
    ] {
        let output = docket(folder.path(), &[], arguments);
        let text = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(code), "{arguments:?}: {text}");
        assert!(text.contains(told), "{arguments:?}: {text}");
        assert_eq!(fs::read_dir(folder.path()).expect("a directory").count(), 0, "{arguments:?} leaves files");
    }
}
