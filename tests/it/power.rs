//! Power failures: only synced data remains in the folder of the embedded store, and that must be enough.
//!
//! `DOCKET_POWER_CYCLES` sets the number of power cuts, `DOCKET_POWER_SEED` the random choices. A failure prints the
//! seed and the actions.

use std::time::Duration;

use tests::client::{Client, token_of};
use tests::dice::Dice;
use tests::fold::{Event, read_log};
use tests::load::{Load, LoadRun, Outcome, Sent, Shape};
use tests::ports::free_port;
use tests::power::{Disk, Remains};
use tests::process::{Process, profile_directory};
use tests::record::{Record, number};
use tests::verify::{assert_outcomes_match_log, read_models_of};

const CYCLES: u64 = 100;
const SHAPE: Shape = Shape { name: "power", clients: 8, orders: 6, commands_each: u64::MAX };
const START_DEADLINE: Duration = Duration::from_secs(60);
const STOP_DEADLINE: Duration = Duration::from_secs(40);

/// `docket dev` on a disk that can lose power.
struct Machine {
    disk: Disk,
    process: Process,
    base: String,
    /// Number of loads so far.
    runs: u64,
    sent: Vec<Sent>,
}

impl Machine {
    fn new(environment: impl Fn(&Disk) -> Vec<(String, String)>) -> Self {
        let disk = Disk::default();
        let (binary, address) = (profile_directory().join("docket"), format!("127.0.0.1:{}", free_port()));
        assert!(binary.is_file(), "{} is missing; build it with: cargo build -p server", binary.display());
        let folder = disk.folder().display().to_string();
        let process = Process::new("docket-dev", binary, disk.outside("log"))
            .args(["dev", "--listen", &address, "--data", &folder])
            .envs(&environment(&disk));
        Self { disk, process, base: format!("http://{address}"), runs: 0, sent: vec![] }
    }

    /// Waits until the process is ready. Returns a client whose token is signed with the secret of the machine.
    async fn ready(&mut self) -> Client {
        let client = Client::new(self.base.clone());
        let ready = || async {
            client.get("/health/ready").anonymous().try_send().await.is_ok_and(|answer| answer.status == 200)
        };
        self.process.wait_until(START_DEADLINE, ready).await;
        let secret =
            std::fs::read_to_string(self.disk.folder().join("jwt-secret")).expect("docket dev has created the secret");
        client.with_token(token_of(secret.trim(), "tests", "admin"))
    }

    /// Starts a load and returns it once `count` commands are acknowledged; the load keeps running.
    async fn load(&mut self, client: &Client, count: u64) -> Load {
        self.runs += 1;
        let load = Load::start_run(client, SHAPE, LoadRun { number: self.runs, ..LoadRun::default() });
        load.acknowledged(count).await;
        load
    }

    /// Cuts the power.
    async fn cut(&mut self, load: Option<Load>, remains: Remains, dice: &mut Dice) {
        self.process.kill9();
        if let Some(load) = load {
            self.sent.extend(load.stop().await);
        }
        self.disk.cut(remains, dice);
    }
}

fn is_acknowledged(command: &&Sent) -> bool {
    matches!(command.outcome, Outcome::Acknowledged { .. })
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn acknowledged_commands_survive_a_power_cut() {
    let mut record = Record::new("DOCKET_POWER_SEED");
    let mut dice = Dice::new(record.seed);
    let mut machine = None;
    for cycle in 1..=number("DOCKET_POWER_CYCLES").unwrap_or(CYCLES) {
        // A new machine starts with an empty folder.
        if machine.is_none() || dice.below(8) == 0 {
            record.clear();
            machine = Some(Machine::new(Disk::environment));
        }
        let machine = machine.as_mut().expect("the machine exists");
        let remains = dice.pick(&[Remains::Synced, Remains::SyncedAndSome]);
        record.line(format!("cut {cycle}: {remains:?}"));
        machine.process.start();
        if dice.below(4) == 0 {
            let moment = Duration::from_micros(dice.below(250_000));
            record.add(&format!("{moment:?} after the start"));
            tokio::time::sleep(moment).await;
            machine.cut(None, remains, &mut dice).await;
            continue;
        }
        let client = machine.ready().await;
        let log = read_models_of(&client).await;
        let acknowledged = machine.sent.iter().filter(is_acknowledged).count();
        record.add(&format!("{} events, {acknowledged} commands acknowledged before", log.len()));
        if acknowledged > 0 {
            assert_outcomes_match_log(&log, &machine.sent);
        }
        // Sometimes the load is long enough to fill a journal.
        let most = dice.pick(&[150, 150, 150, 150, 150, 2_000]);
        let load = machine.load(&client, 1 + dice.below(most)).await;
        let mut moment = Duration::from_micros(dice.below(20_000));
        if dice.below(4) == 0 {
            // During a shutdown, the process copies its journals into its database files.
            machine.process.signal("TERM");
            moment *= 4;
            record.add(&format!("{moment:?} after SIGTERM"));
        }
        tokio::time::sleep(moment).await;
        machine.cut(Some(load), remains, &mut dice).await;
    }
}

/// The control experiment: this story must find lost commands in a store that does not sync its log at each commit, as
/// SQLite with `synchronous=NORMAL`.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_unsynced_log_loses_acknowledged_commands() {
    let mut machine = Machine::new(|disk| disk.environment_without_syncs_of("docket.db-wal"));
    machine.process.start();
    machine.ready().await;
    machine.process.stop("TERM", STOP_DEADLINE).await;
    machine.disk.sync();
    machine.process.start();
    let client = machine.ready().await;
    let load = machine.load(&client, 50).await;
    machine.cut(Some(load), Remains::Synced, &mut Dice::new(0)).await;
    machine.process.start();
    let client = machine.ready().await;
    let log = read_log(&client).await;
    let lost = machine.sent.iter().filter(is_acknowledged).filter(|command| !is_in(&log, command)).count();
    assert!(lost > 0, "the simulated power cut must lose commands of a log that is not synced");
}

fn is_in(log: &[Event], command: &Sent) -> bool {
    let Outcome::Acknowledged { version, .. } = command.outcome else { return false };
    log.iter().any(|event| event.order_id == command.order_id && event.sequence == version)
}
