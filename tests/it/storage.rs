//! Storage: one process per database, full disks, file permissions, PostgreSQL roles, and objects that operators build
//! on the views.

use std::fs;
use std::io::Write;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::Output;
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use sqlx::{Connection, PgConnection};
use tests::client::Answer;
use tests::process::POLL;
use tests::system::{Mode, TestSystem};
use tests::verify::{list_orders, read_models_equal_the_fold};
use tests::wait::until_within;

/// Time limit for a server to notice that its disk is full or has space again.
const SEEN_WITHIN: Duration = Duration::from_secs(15);
const MIB: u64 = 1 << 20;

/// Returns the error output of a command that must fail.
fn refusal(output: &Output) -> String {
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(!output.status.success(), "the command must fail: {text}");
    text
}

#[track_caller]
fn done(output: Output) -> String {
    let text = String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned();
    assert!(output.status.success(), "{text}");
    text
}

// ---- one process per database

/// A second process that opens the database through any path meets the lock of the first one.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_path_to_a_database_uses_the_same_lock() {
    let system = TestSystem::embedded().await;
    let (real, aliases) = (system.directory(), tempfile::tempdir().expect("a temporary directory"));
    let folder = |name: &str| {
        let folder = aliases.path().join(name);
        fs::create_dir(&folder).expect("the directory is writable");
        folder
    };
    let linked = aliases.path().join("folder");
    symlink(real, &linked).expect("the directory is writable");
    let by_file = folder("file");
    symlink(real.join("docket.db"), by_file.join("docket.db")).expect("the directory is writable");
    let by_chain = folder("chain");
    symlink("../file/docket.db", by_chain.join("docket.db")).expect("the directory is writable");
    // A separate log with the read models of the first store.
    let by_read_models = folder("read-models");
    symlink(real.join("docket-read.db"), by_read_models.join("docket-read.db")).expect("the directory is writable");
    for alias in [real.join("../").join(real.file_name().expect("a name")), linked, by_file, by_chain, by_read_models] {
        let text = refusal(&system.try_cli(&["migrate", "--data", alias.to_str().expect("UTF-8")]).await);
        assert!(text.contains("is in use by another docket process"), "{}: {text}", alias.display());
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_database_with_hard_links_is_refused() {
    let system = TestSystem::builder(Mode::Embedded).stopped().await;
    let folder = system.directory().display().to_string();
    for name in ["docket.db", "docket-read.db"] {
        done(system.try_cli(&["migrate", "--data", &folder]).await);
        let (file, other) = (system.directory().join(name), system.directory().join("other"));
        fs::hard_link(&file, &other).expect("both paths are on one file system");
        for command in ["migrate", "verify"] {
            let arguments: &[&str] = &[command, "--data", &folder];
            let text = refusal(&system.try_cli(arguments).await);
            let is_named = text.contains(&file.display().to_string()) && text.contains("hard links");
            assert!(is_named && text.contains("remove them"), "{command}: {text}");
        }
        fs::remove_file(other).expect("the file exists");
    }
    done(system.try_cli(&["migrate", "--data", &folder]).await);
}

/// The first start follows a link whose target does not exist yet.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_first_start_follows_a_link() {
    let system = TestSystem::builder(Mode::Embedded).stopped().await;
    let (folder, target) = (system.directory().join("links"), system.directory().join("disk/store"));
    fs::create_dir(&folder).expect("the directory is writable");
    symlink("../disk/store/log.db", folder.join("docket.db")).expect("the directory is writable");
    done(system.try_cli(&["migrate", "--data", folder.to_str().expect("UTF-8")]).await);
    for name in ["log.db", "log-read.db", "log.lock", "log-read.lock"] {
        assert!(target.join(name).is_file(), "{name} is not next to the database");
    }
    assert_eq!(fs::read_dir(&folder).expect("the folder exists").count(), 1, "no file may be next to the link");
    // Read models that an earlier release created next to the link are not silently abandoned.
    fs::rename(target.join("log-read.db"), folder.join("docket-read.db")).expect("both paths are on one file system");
    let text = refusal(&system.try_cli(&["migrate", "--data", folder.to_str().expect("UTF-8")]).await);
    assert!(text.contains("links/docket-read.db to") && text.contains("disk/store/log-read.db"), "{text}");
}

// ---- disks

async fn create(system: &TestSystem, id: &str) -> Answer {
    let items = json!([{"sku": "pen", "quantity": 1, "unit_price": "1.00", "category": "OFFICE"}]);
    system.post("/v1/orders").json(json!({"order_id": id, "customer_id": "disk", "items": items})).send().await
}

/// Creates orders until a response has this status. Returns the ids of the accepted orders, and the last response.
async fn create_until(system: &TestSystem, prefix: &str, status: u16) -> (Vec<String>, Answer) {
    let (started, mut taken) = (Instant::now(), vec![]);
    for number in 0.. {
        let id = format!("{prefix}-{number}");
        let answer = create(system, &id).await;
        if answer.status == 201 {
            taken.push(id);
        }
        if answer.status == status {
            return (taken, answer);
        }
        if answer.status != 201 {
            answer.clone().expect_problem(503, "disk-low");
        }
        assert!(
            started.elapsed() < SEEN_WITHIN,
            "no {status} within {SEEN_WITHIN:?}; the last status is {}",
            answer.status
        );
        tokio::time::sleep(POLL).await;
    }
    unreachable!("the loop returns or panics")
}

async fn readiness(system: &TestSystem) -> (u16, Value) {
    let answer = system.get("/health/ready").anonymous().send().await;
    (answer.status, answer.json())
}

async fn is_ready(system: &TestSystem, wanted: &str) -> Value {
    until_within(SEEN_WITHIN, &format!("the status is {wanted}"), async || {
        let (_, report) = readiness(system).await;
        (report["status"] == wanted).then_some(report)
    })
    .await
}

/// Writes a file of `bytes` bytes to the disk of the system, or less if the disk is full. Returns its path.
fn fill(system: &TestSystem, bytes: u64) -> PathBuf {
    let path = system.disk().join("filler");
    let mut file = fs::File::create(&path).expect("the disk of the process is mounted");
    let block = [0; 4096];
    for _ in 0..bytes.div_ceil(4096) {
        if file.write_all(&block).is_err() {
            break;
        }
    }
    path
}

/// Commands are refused while there is no space, queries still work, and everything recovers without a restart.
async fn check_low_disk(system: &TestSystem, filled: u64) {
    let mut taken = create_until(system, "before", 201).await.0;
    system.settled().await;
    let filler = fill(system, filled);
    let (before, refused) = create_until(system, "while", 503).await;
    taken.extend(before);
    assert!(refused.header("retry-after").is_some(), "the refusal must have Retry-After");
    refused.expect_problem(503, "disk-low");
    let report = is_ready(system, "unavailable").await;
    assert_eq!(report["checks"]["storage"]["status"], "failed", "{report}");
    assert_eq!(report["checks"]["database"]["status"], "ok", "queries must still work: {report}");
    system.get("/v1/orders/before-0").send().await.expect(200);
    create(system, "refused").await.expect_problem(503, "disk-low");

    fs::remove_file(filler).expect("the file exists");
    taken.extend(create_until(system, "after", 201).await.0);
    is_ready(system, "ready").await;
    let log = read_models_equal_the_fold(system).await;
    assert!(log.iter().all(|event| event.order_id != "refused"), "the refused command must not be in the log");
    let listed = list_orders(system.reader(), "").await;
    let missing: Vec<_> = taken.iter().filter(|id| !listed.contains_key(*id)).collect();
    assert!(missing.is_empty(), "acknowledged orders are missing: {missing:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn commands_are_refused_before_the_disk_is_full() {
    let builder = TestSystem::builder(Mode::Embedded).setting("DOCKET_DISK_FREE_BYTES_MIN", &(8 * MIB).to_string());
    let system = builder.disk(32 * MIB).start().await;
    check_low_disk(&system, 26 * MIB).await;
    assert!(!system.dockets[0].log().contains("Append failed."), "SQLite must not meet a full disk");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_full_disk_returns_503_and_needs_no_restart() {
    let builder = TestSystem::builder(Mode::Embedded).setting("DOCKET_DISK_FREE_BYTES_MIN", "0");
    let system = builder.disk(16 * MIB).start().await;
    check_low_disk(&system, 16 * MIB).await;
    assert!(system.dockets[0].log().contains("Append failed."), "SQLite must meet a full disk");
}

/// A rebuild is refused when the disk space is low, because it would take the space from the running server.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_rebuild_is_refused_when_disk_space_is_low() {
    let builder = TestSystem::builder(Mode::Embedded).setting("DOCKET_DISK_FREE_BYTES_MIN", &(1_i64 << 60).to_string());
    let system = builder.stopped().await;
    done(system.try_cli(&["migrate"]).await);
    let text = refusal(&system.try_cli(&["replay", "--all"]).await);
    assert!(text.contains("disk_free_bytes_min") && text.contains("free some space"), "{text}");
    // A prune, which frees space, is still allowed.
    done(system.try_cli(&["replay", "--all", "--prune"]).await);
}

// ---- file permissions

fn modes(folder: &Path) -> Vec<(PathBuf, u32)> {
    let mut found = vec![];
    for entry in fs::read_dir(folder).expect("a readable folder").map(|entry| entry.expect("a readable entry").path()) {
        let mode = fs::symlink_metadata(&entry).expect("the entry exists").permissions().mode() & 0o777;
        if entry.is_dir() {
            found.extend(modes(&entry));
        }
        found.push((entry, mode));
    }
    found
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn files_are_readable_only_by_their_owner() {
    let scratch = tempfile::tempdir().expect("a temporary directory");
    let folder = scratch.path().join("new");
    let (data, logs) = (folder.join("data/docket.db"), folder.join("logs/docket.log"));
    let mut system = TestSystem::builder(Mode::Embedded)
        .setting("DOCKET_DATABASE_URL", &format!("sqlite:{}", data.display()))
        .setting("DOCKET_LOG_FILE", logs.to_str().expect("UTF-8"))
        .setting("DOCKET_LOG_FILE_BYTES_MAX", "10000")
        .setting("DOCKET_LOG_LEVEL", "http")
        .start()
        .await;
    for number in 0..100 {
        create(&system, &format!("private-{number}")).await.expect(201);
    }
    system.settled().await;
    let export = folder.join("log.ndjson");
    fs::write(&export, "old content").expect("the directory is writable");
    fs::set_permissions(&export, fs::Permissions::from_mode(0o644)).expect("a file of this test");
    system.cli(&["events", "export", "--output", export.to_str().expect("UTF-8")]).await;
    let text = fs::read_to_string(&export).expect("the export exists");
    assert_eq!(text.lines().count(), 200, "the export must replace the old content");
    let running = modes(scratch.path());
    system.terminate().await;
    let ended = modes(scratch.path());
    let names: Vec<_> = running.iter().chain(&ended).map(|(path, _)| path.display().to_string()).collect();
    let kinds =
        ["docket.db", "-wal", "-shm", "docket-read.db", ".lock", ".projections.lock", "docket.log", ".audit", ".gz"];
    for kind in kinds {
        assert!(names.iter().any(|name| name.ends_with(kind)), "there is no {kind} in {names:?}");
    }
    for (path, mode) in running.iter().chain(&ended) {
        assert_eq!(mode & 0o077, 0, "{} has the mode {mode:o}", path.display());
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_emptied_key_file_is_named_in_the_error() {
    let system = TestSystem::builder(Mode::Embedded).without("DOCKET_JWT_SECRET").stopped().await;
    let folder = system.directory().join("dev");
    fs::create_dir(&folder).expect("the directory is writable");
    fs::write(folder.join("jwt-secret"), "").expect("the directory is writable");
    let data = folder.to_str().expect("UTF-8");
    let text = refusal(&system.try_cli(&["dev", "--data", data, "--listen", "127.0.0.1:0"]).await);
    assert!(text.contains("jwt-secret is empty or damaged") && text.contains("delete it"), "{text}");
}

// ---- PostgreSQL

async fn sql(url: &str, statement: &str) -> Result<u64, sqlx::Error> {
    let mut connection = PgConnection::connect(url).await?;
    Ok(sqlx::raw_sql(statement).execute(&mut connection).await?.rows_affected())
}

async fn one<T>(url: &str, query: &str) -> T
where
    T: Send + Unpin + for<'r> sqlx::Decode<'r, sqlx::Postgres> + sqlx::Type<sqlx::Postgres>,
{
    let mut connection = PgConnection::connect(url).await.expect("PostgreSQL answers");
    sqlx::query_scalar(query).fetch_one(&mut connection).await.expect(query)
}

/// A role that can read a view, one column of another view, and its own view on the first view.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_replay_keeps_grants_and_dependent_views() {
    let system = TestSystem::builder(Mode::Scaled).own_servers().start().await;
    let postgres = system.postgres.as_ref().expect("a scaled system");
    let (owner, bi) = (postgres.url(), postgres.url_as("bi"));
    create(&system, "bi-1").await.expect(201);
    system.settled().await;
    let prepare = "create role bi login; grant select on order_summaries, sales to bi with grant option;
                   grant select (customer_id) on customers to bi;
                   create view orders_of_bi as select customer_id, count(*) as orders from order_summaries group by 1;
                   grant select on orders_of_bi to bi";
    sql(&owner, prepare).await.expect("PostgreSQL accepts the statement");
    system.cli(&["replay", "--all"]).await;
    system.cli(&["replay", "--all"]).await;
    create(&system, "bi-2").await.expect(201);
    system.settled().await;
    let grants = async || {
        assert_eq!(one::<i64>(&bi, "select count(*) from order_summaries").await, 2);
        assert_eq!(one::<i64>(&bi, "select count(customer_id) from customers").await, 1);
        assert!(sql(&bi, "select orders from customers").await.is_err(), "only one column may be readable");
        assert!(one::<bool>(&bi, "select has_table_privilege('sales', 'select with grant option')").await);
    };
    grants().await;
    assert_eq!(
        one::<i64>(&bi, "select orders from orders_of_bi").await,
        2,
        "the view must show the serving generation"
    );

    // A release that changes a view's columns must drop the view. Here the old view has one column more.
    let widen = "create or replace view order_summaries as select *, 0 as gone from order_summaries_g3;
                 create or replace view customers as select *, 0 as gone from customers_g3";
    sql(&owner, widen).await.expect("PostgreSQL accepts the statement");
    let text = refusal(&system.try_cli(&["replay", "order_summaries", "customers"]).await);
    assert!(text.contains("view order_summaries cannot be removed"), "{text}");
    assert!(text.contains("view orders_of_bi depends on view order_summaries") && text.contains("Drop"), "{text}");
    assert_eq!(one::<i64>(&bi, "select orders from orders_of_bi").await, 2, "the failed replay must change nothing");
    sql(&owner, "drop view orders_of_bi").await.expect("the view exists");
    system.cli(&["replay", "order_summaries", "customers"]).await;
    assert!(sql(&bi, "select gone from order_summaries").await.is_err(), "the view must have its own columns again");
    grants().await;

    // An object that depends on a generation's table prevents its removal, and the error names the object.
    sql(&owner, "create view of_a_table as select * from sales_g3").await.expect("PostgreSQL accepts the statement");
    system.cli(&["replay", "sales"]).await;
    for arguments in [&["replay", "sales"][..], &["replay", "--all", "--prune"]] {
        let text = refusal(&system.try_cli(arguments).await);
        assert!(text.contains("table sales_g3 cannot be removed"), "{text}");
        assert!(text.contains("view of_a_table depends on table sales_g3"), "{text}");
    }
    sql(&owner, "drop view of_a_table").await.expect("the view exists");
    system.cli(&["replay", "sales"]).await;
    system.cli(&["verify"]).await;
}

/// One role owns the log; servers connect as another role.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_database_role_of_a_server_cannot_change_events() {
    let mut system = TestSystem::builder(Mode::Scaled).database_role("docket_server").stopped().await;
    let postgres = system.postgres.as_ref().expect("a scaled system");
    let [admin, owner, server] = ["postgres", "docket_owner", "docket_server"].map(|role| postgres.url_as(role));
    let roles = "create role docket_owner login; create role docket_server login;
                 alter database docket owner to docket_owner; alter schema public owner to docket_owner";
    sql(&admin, roles).await.expect("the superuser has the permission");
    let grant = ["migrate", "--grant-to", "docket_server"];

    // The operator's earlier release created the read models as the owner.
    done(system.try_cli_on(&owner, &["migrate"]).await);
    let text = refusal(&system.try_cli_on(&owner, &grant).await);
    assert!(text.contains("`grant docket_server to docket_owner`"), "the error must name the missing grant: {text}");
    sql(&admin, "grant docket_server to docket_owner").await.expect("the superuser has the permission");
    done(system.try_cli_on(&owner, &grant).await);
    // The command can be repeated, as it is at each release.
    done(system.try_cli_on(&owner, &grant).await);
    for (role, reason) in
        [("postgres", "could still change"), ("nobody", "there is no role"), ("docket_owner", "runs as")]
    {
        let text = refusal(&system.try_cli_on(&owner, &["migrate", "--grant-to", role]).await);
        assert!(text.contains(reason), "{role}: {text}");
    }

    system.start().await;
    let key = |request: tests::client::Request| request.key("once");
    create(&system, "role-1").await.expect(201);
    key(system.post("/v1/orders/role-1/confirm")).send().await.expect(200);
    key(system.post("/v1/orders/role-1/confirm")).send().await.expect(200);
    system.post("/v1/tickets").send().await.expect(201);
    let revoked = json!({"subject": "mallory"});
    system.post("/v1/admin/revocations").json(revoked).send().await.expect(201);
    for arguments in
        [&["replay", "--all"][..], &["replay", "sales", "--rollback"], &["replay", "--all", "--prune"], &["verify"]]
    {
        system.cli(arguments).await;
    }
    for number in 0..5 {
        create(&system, &format!("role-{}", number + 2)).await.expect(201);
    }
    read_models_equal_the_fold(&system).await;
    let events = "select count(*) from events";
    let before: i64 = one(&server, events).await;
    for forbidden in [
        "update events set payload = '{}'",
        "update events set recorded_at = 0",
        "delete from events",
        "truncate events",
        "drop table events",
        "alter table events disable trigger all",
        "drop trigger events_assign_position on events",
        "create trigger mine before insert on events for each row execute function docket_assign_position()",
        "create or replace function docket_assign_position() returns trigger language plpgsql as 'begin return null; end'",
        "delete from log_head",
        "delete from _sqlx_migrations",
        "set role docket_owner",
    ] {
        let error = sql(&server, forbidden).await.expect_err(forbidden);
        let code = error.as_database_error().and_then(|error| error.code()).map(|code| code.into_owned());
        assert_eq!(code.as_deref(), Some("42501"), "{forbidden}: {error}");
    }
    assert_eq!(one::<i64>(&server, events).await, before);
    let forgotten = "select coalesce(string_agg(relname, ', '), '') from pg_class
                     where relnamespace = 'public'::regnamespace and relkind in ('r', 'v', 'S')
                     and not has_table_privilege('docket_server', oid, 'select')";
    assert_eq!(one::<String>(&admin, forgotten).await, "", "tables that `docket migrate --grant-to` does not cover");

    // In a release with a migration that the owner has not run, the server reports this and does not try the migration.
    system.terminate().await;
    sql(&owner, "delete from _sqlx_migrations where version = 105").await.expect("the owner has the permission");
    let text = refusal(&system.try_cli(&["migrate"]).await);
    assert!(text.contains("docket migrate --grant-to"), "{text}");
}
