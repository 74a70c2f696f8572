//! Faults at random moments, one after another, and the invariants that must hold after each.
//!
//! A cycle is a short load, a fault in the middle of the load, and the recovery. Listeners of every transport
//! disconnect and reconnect all the time, and a reader requests each acknowledged change. Then all acknowledged
//! commands and everything that listeners received are compared with the log. `DOCKET_CAMPAIGN_CYCLES` sets the number
//! of cycles of each campaign, `DOCKET_CAMPAIGN_SEED` the random choices. A failure prints the seed, the cycle and its
//! actions.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use tests::client::{Client, token};
use tests::dice::Dice;
use tests::fold::Event;
use tests::listener::{Listener, Transport};
use tests::load::{Latest, Load, LoadRun, Outcome, Sent, Shape};
use tests::nats::Nats;
use tests::postgres::Postgres;
use tests::process::POLL;
use tests::record::{Record, number};
use tests::stream::stream_equals_the_log;
use tests::system::{Builder, Mode, TestSystem};
use tests::verify::{assert_outcomes_match_log, read_models_equal_the_fold};
use tokio::sync::watch;
use tokio::task::JoinHandle;

const CYCLES: u64 = 10;
/// Number of cycles after which a new system is used, so that a long campaign compares short logs.
const CYCLES_OF_A_SYSTEM: u64 = 10;
const SHAPE: Shape = Shape { name: "campaign", clients: 4, orders: 6, commands_each: 60 };
/// Pause between two commands of a client. It is long enough that the changes a listener misses fit into one read of
/// the log.
const PAUSE: Duration = Duration::from_millis(8);
/// Time limit for a listener to reach the end of the log.
const DELIVERY_DEADLINE: Duration = Duration::from_secs(20);
const CHANNELS: [&[&str]; 3] =
    [&["orders"], &["order:campaign-0-0", "customer:customer-1"], &["customer:customer-2", "orders"]];

/// The fault of a cycle.
#[derive(Clone, Copy, Debug)]
enum Fault {
    /// `kill -9` of one Docket process, then a start.
    DocketDies,
    /// `kill -9` of one Docket process, and a second one while it starts.
    DocketDiesTwice,
    /// SIGSTOP of one Docket process, then SIGCONT.
    DocketFreezes,
    /// Every process of PostgreSQL is killed: commits that did not wait for the disk are lost.
    PostgresDies,
    /// Only the postmaster is killed.
    PostmasterDies,
    PostgresStopsImmediately,
    PostgresStopsFast,
    PostgresFreezes,
    /// The standby is promoted; the old primary keeps running, read-only, and keeps its connections.
    PostgresIsReplaced,
    /// The primary is killed, then the standby is promoted.
    PostgresDiesAndIsReplaced,
    /// The primary does not answer while the standby is promoted; it is killed later.
    PostgresFreezesAndIsReplaced,
    NatsDies,
    /// NATS restarts without its stored data.
    NatsIsWiped,
    NatsFreezes,
}

use Fault::*;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_embedded_process_dies() {
    let builder = || TestSystem::builder(Mode::Embedded);
    campaign(builder, &[DocketDies, DocketDiesTwice, DocketFreezes]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn processes_of_every_role_die() {
    campaign(by_role, &[DocketDies, DocketDiesTwice, DocketFreezes]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn postgres_crashes() {
    let faults =
        [PostgresDies, PostgresDies, PostgresStopsImmediately, PostgresStopsFast, PostmasterDies, PostgresFreezes];
    campaign(|| by_role().durable(), &faults).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn postgres_fails_over() {
    let faults = [PostgresIsReplaced, PostgresDiesAndIsReplaced, PostgresFreezesAndIsReplaced];
    campaign(|| by_role().standby(), &faults).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nats_crashes() {
    campaign(by_role, &[NatsDies, NatsIsWiped, NatsFreezes]).await;
}

fn by_role() -> Builder {
    TestSystem::builder(Mode::Scaled).own_servers().processes(&["write", "project", "project", "read", "read"])
}

async fn campaign(builder: impl Fn() -> Builder, faults: &[Fault]) {
    let mut record = Record::new("DOCKET_CAMPAIGN_SEED");
    let mut dice = Dice::new(record.seed);
    let mut cycles = number("DOCKET_CAMPAIGN_CYCLES").unwrap_or(CYCLES);
    while cycles > 0 {
        let part = cycles.min(CYCLES_OF_A_SYSTEM);
        cycles -= part;
        record.clear();
        let mut observed = ObservedSystem::start(builder()).await;
        for cycle in 1..=part {
            let fault = dice.pick(faults);
            record.line(format!("cycle {cycle}: {fault:?}"));
            observed.cycle(cycle, fault, &mut dice, &mut record).await;
        }
        if observed.system.mode == Mode::Scaled {
            stream_equals_the_log(&observed.system, &observed.log).await;
        }
        observed.system.cli(&["verify"]).await;
    }
}

/// A running system with its listeners.
struct ObservedSystem {
    system: TestSystem,
    /// Each listener with a description of its behaviour and with its channels.
    listeners: Vec<(String, Listener, &'static [&'static str])>,
    /// Commands of all cycles.
    sent: Vec<Sent>,
    log: Vec<Event>,
}

impl ObservedSystem {
    async fn start(builder: Builder) -> Self {
        let mut system = builder.stopped().await;
        if let Some(postgres) = &system.postgres {
            // A server default that must not affect the log.
            postgres.sql(&["alter database docket set synchronous_commit = off"]).await;
        }
        system.start().await;
        // Creates the orders that the listeners follow.
        let first = Load::start(system.writer(), Shape { commands_each: 10, ..SHAPE });
        let sent = first.finish().await;
        let log = read_models_equal_the_fold(&system).await;
        let bases: Vec<_> = readers(&system).iter().map(|reader| reader.base().to_owned()).collect();
        let staff = token("clerk", "staff");
        let mut listeners = vec![];
        for (number, channels) in (0..).zip(CHANNELS) {
            for transport in [Transport::Socket, Transport::Stream, Transport::Poll] {
                let mut bases = bases.clone();
                let first = number % bases.len();
                bases.rotate_left(first);
                let listener = Listener::start(transport, bases.clone(), &staff, channels);
                listeners.push((format!("{transport:?}"), listener, channels));
                for stay in [60, 170, 450] {
                    bases.rotate_left(1);
                    let stay = Duration::from_millis(stay);
                    let listener = Listener::reconnecting(transport, bases.clone(), &staff, channels, stay);
                    listeners.push((format!("{transport:?} for {stay:?} each"), listener, channels));
                }
            }
        }
        for (_, listener, channels) in &listeners {
            listener.listening(channels).await;
        }
        Self { system, listeners, sent, log }
    }

    async fn cycle(&mut self, cycle: u64, fault: Fault, dice: &mut Dice, record: &mut Record) {
        let load = Load::start_run(self.system.writer(), SHAPE, LoadRun { number: cycle, pause: PAUSE });
        let checks: Vec<_> =
            readers(&self.system).into_iter().map(|reader| FreshnessCheck::start(reader, load.latest())).collect();
        let acknowledged = 5 + dice.below(40);
        load.acknowledged(acknowledged).await;
        pause(dice, 0, 20).await;
        record.add(&format!("after {acknowledged} acknowledgements"));
        let started = Instant::now();
        let replaced = self.inject(fault, dice, record).await;
        record.add(&format!("injected in {:?}", started.elapsed()));
        self.sent.extend(load.finish().await);
        record.add(&format!("all answered after {:?}", started.elapsed()));
        let acknowledged = self.sent.iter().filter_map(|sent| match sent.outcome {
            Outcome::Acknowledged { position, .. } => Some(position),
            _ => None,
        });
        self.system.settled_at(acknowledged.max().expect("a command was acknowledged")).await;
        record.add(&format!("settled after {:?}", started.elapsed()));
        self.check().await;
        let wrong: Vec<_> = checks.iter().flat_map(FreshnessCheck::faults).collect();
        assert_eq!(wrong, Vec::<String>::new(), "an acknowledged change was not readable");
        if replaced.is_some() {
            drop(replaced);
            self.system.add_standby().await;
        }
    }

    /// Injects the fault and repairs it. Returns the old primary after a failover.
    async fn inject(&mut self, fault: Fault, dice: &mut Dice, record: &mut Record) -> Option<Postgres> {
        match fault {
            DocketDies | DocketDiesTwice | DocketFreezes => self.inject_docket(fault, dice, record).await,
            NatsDies | NatsIsWiped | NatsFreezes => self.inject_nats(fault, dice).await,
            _ => return self.inject_postgres(fault, dice, record).await,
        }
        None
    }

    async fn inject_docket(&mut self, fault: Fault, dice: &mut Dice, record: &mut Record) {
        let number = usize::try_from(dice.below(self.system.dockets.len() as u64)).expect("a process number");
        let docket = &mut self.system.dockets[number];
        record.add(&format!("process {number} ({})", docket.roles));
        match fault {
            DocketFreezes => {
                docket.signal("STOP");
                pause(dice, 50, 1_500).await;
                docket.signal("CONT");
            }
            DocketDiesTwice => {
                docket.kill9();
                let _ = tokio::time::timeout(Duration::from_millis(5 + dice.below(150)), docket.start()).await;
                docket.restart().await;
            }
            _ => {
                docket.kill9();
                pause(dice, 0, 300).await;
                docket.start().await;
            }
        }
    }

    async fn inject_nats(&mut self, fault: Fault, dice: &mut Dice) {
        let nats: &mut Nats = self.system.nats.as_mut().expect("a scaled system");
        match fault {
            NatsFreezes => {
                nats.signal("STOP");
                pause(dice, 50, 1_500).await;
                nats.signal("CONT");
            }
            _ => {
                nats.kill9();
                if matches!(fault, NatsIsWiped) {
                    nats.wipe();
                }
                pause(dice, 0, 500).await;
                nats.restart().await;
            }
        }
    }

    async fn inject_postgres(&mut self, fault: Fault, dice: &mut Dice, record: &mut Record) -> Option<Postgres> {
        let postgres = self.system.postgres.as_mut().expect("a scaled system");
        match fault {
            PostgresFreezes => {
                postgres.freeze();
                pause(dice, 50, 2_000).await;
                postgres.thaw();
                return None;
            }
            PostgresIsReplaced => return Some(self.system.fail_over().await),
            PostgresDiesAndIsReplaced => {
                postgres.kill_all();
                pause(dice, 0, 300).await;
                return Some(self.system.fail_over().await);
            }
            PostgresFreezesAndIsReplaced => {
                postgres.freeze();
                pause(dice, 0, 300).await;
                let mut old = self.system.fail_over().await;
                pause(dice, 0, 1_000).await;
                old.kill_all();
                return Some(old);
            }
            PostgresStopsImmediately => postgres.stop_immediate().await,
            PostgresStopsFast => postgres.stop_fast().await,
            PostmasterDies => postgres.kill9(),
            _ => postgres.kill_all(),
        }
        pause(dice, 0, 300).await;
        // Sometimes a Docket process dies too.
        let dies = dice.below(4) == 0;
        let number = usize::try_from(dice.below(self.system.dockets.len() as u64)).expect("a process number");
        if dies {
            record.add(&format!("process {number} dies too"));
            self.system.dockets[number].kill9();
        }
        self.system.postgres.as_mut().expect("a scaled system").restart().await;
        if dies {
            self.system.dockets[number].start().await;
        }
        None
    }

    /// Checks that every acknowledged command is in the log, that the read models equal the log, and that each listener
    /// received the right changes.
    async fn check(&mut self) {
        self.log = read_models_equal_the_fold(&self.system).await;
        assert_outcomes_match_log(&self.log, &self.sent);
        let mut customers = HashMap::new();
        for event in &self.log {
            if let Some(customer) = event.payload["customer_id"].as_str() {
                customers.insert(event.order_id.as_str(), customer.to_owned());
            }
        }
        let of_channel = |channel: &str, event: &Event| match channel.split_once(':') {
            Some(("order", id)) => event.order_id == id,
            Some((_, id)) => customers[event.order_id.as_str()] == id,
            None => true,
        };
        let mut wrong = vec![];
        for (how, listener, channels) in &self.listeners {
            for channel in *channels {
                let events = self.log.iter().filter(|event| of_channel(channel, event));
                let expected: Vec<_> = events.map(|event| event.position).collect();
                if let Err(difference) = listener.try_expect_changes(channel, &expected, DELIVERY_DEADLINE).await {
                    wrong.push(format!("{how}: {difference}"));
                }
            }
        }
        assert!(wrong.is_empty(), "{} of {} listeners:\n{}", wrong.len(), self.listeners.len(), wrong.join("\n"));
    }
}

fn readers(system: &TestSystem) -> Vec<Client> {
    let reads = system.dockets.iter().filter(|docket| docket.roles.contains("read"));
    reads.map(|docket| docket.client.clone()).collect()
}

async fn pause(dice: &mut Dice, from: u64, to: u64) {
    tokio::time::sleep(Duration::from_millis(from + dice.below(to - from + 1))).await;
}

/// Reads each change as soon as it is acknowledged. The response must contain the change, or be a 503.
struct FreshnessCheck {
    faults: Arc<Mutex<Vec<String>>>,
    task: JoinHandle<()>,
}

impl FreshnessCheck {
    fn start(reader: Client, mut latest: watch::Receiver<Option<Latest>>) -> Self {
        let faults = Arc::<Mutex<Vec<String>>>::default();
        let found = Arc::clone(&faults);
        let task = tokio::spawn(async move {
            while latest.wait_for(Option::is_some).await.is_ok() {
                let change = latest.borrow_and_update().clone().expect("the value was awaited");
                let path = format!("/v1/orders/{}?min_position={}&wait_ms=500", change.order_id, change.position);
                if let Ok(answer) = reader.get(&path).try_send().await {
                    let position = answer.header("docket-position").and_then(|text| text.parse::<u64>().ok());
                    let fresh = match answer.status {
                        200 => answer.version() >= change.version && position >= Some(change.position),
                        status => status == 503,
                    };
                    if !fresh {
                        let body = String::from_utf8_lossy(&answer.body);
                        let text = format!("{change:?}: {} at {position:?}: {body}", answer.status);
                        found.lock().expect("the lock is not poisoned").push(text);
                    }
                }
                tokio::time::sleep(POLL).await;
            }
        });
        Self { faults, task }
    }

    fn faults(&self) -> Vec<String> {
        self.faults.lock().expect("the lock is not poisoned").clone()
    }
}

impl Drop for FreshnessCheck {
    fn drop(&mut self) {
        self.task.abort();
    }
}
