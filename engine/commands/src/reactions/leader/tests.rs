//! Tests of reactions on a real log in SQLite, with a controlled clock.

use std::pin::Pin;
use std::sync::PoisonError;
use std::sync::atomic::{AtomicBool, AtomicI64};
use std::task::{Context as TaskContext, Poll};

use event_store::reactions::StartFrom;
use futures::FutureExt;
use futures::future::BoxFuture;
use jiff::SignedDuration;
use kernel::aggregate::{Access, Aggregate, CommandType, EventType, History, Refusal, RefusalClass, RefusalType};
use kernel::process::{Correlation, Due, Output, Process, Trigger};
use kernel::upcast::Upcaster;
use platform::auth::{Principal, Role};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use testkit::store::TestStore;

use super::*;
use crate::decider::Origin;
use crate::reactions::process::ProcessManager;
use crate::reactions::reactor::{Subscription, payload, registration};
use crate::reactions::{run, watch_fences};
use crate::step::{AnyStep, Step};

/// How long a test waits for an expected state.
const WITHIN: Duration = Duration::from_secs(60);

// ---- the aggregate that emits events, and the aggregate that reactors write ----

/// Records notes. It is the source of events.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
struct Notebook(i64);

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
enum Noted {
    Noted { text: String },
}

/// Counts events. A command is refused when the count has reached its `most`, which is a hundred thousand or zero.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
struct Tally(i64);

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
enum Counted {
    Counted { of: String },
}

struct Write(String);

struct Count {
    of: String,
    most: i64,
}

#[derive(Debug)]
struct Full;

impl std::fmt::Display for Full {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("the tally is full")
    }
}

impl std::error::Error for Full {}

impl Refusal for Full {
    const TYPES: &'static [RefusalType] = &[RefusalType {
        slug: "full",
        class: RefusalClass::Rule,
        title: "The tally is full",
        meaning: "The tally has its greatest value.",
    }];

    fn not_found() -> Self {
        Self
    }

    fn refusal_type(&self) -> &'static RefusalType {
        &Self::TYPES[0]
    }
}

macro_rules! aggregate {
    ($state:ident, $kind:literal, $event:ident, $name:literal, $command:ident, |$own:ident, $asked:ident| $decide:expr) => {
        impl EventType for $event {
            const VERSIONS: &'static [(&'static str, &'static str)] = &[($name, "1")];
            fn name(&self) -> &'static str {
                $name
            }
        }
        impl CommandType for $command {
            fn name(&self) -> &'static str {
                $kind
            }
            fn creates(&self) -> bool {
                true
            }
        }
        impl Aggregate for $state {
            const TYPE: &'static str = $kind;
            const STATE_VERSION: i64 = 1;
            const HISTORY: History = History::Bounded;
            const UPCASTERS: &'static [Upcaster] = &[];
            type Event = $event;
            type Command = $command;
            type Error = Full;
            fn decide(&self, $asked: &$command) -> Result<Vec<$event>, Full> {
                let $own = self;
                $decide
            }
            fn evolve(&mut self, _: &$event) {
                self.0 += 1;
            }
            fn access(&self) -> Access<'_> {
                Access::Staff
            }
            fn weight(&self) -> usize {
                8
            }
        }
    };
}

aggregate!(Notebook, "notebook", Noted, "Noted", Write, |_own, asked| Ok(vec![Noted::Noted { text: asked.0.clone() }]));
aggregate!(Tally, "tally", Counted, "Counted", Count, |own, asked| match own.0 < asked.most {
    true => Ok(vec![Counted::Counted { of: asked.of.clone() }]),
    false => Err(Full),
});

#[derive(Deserialize)]
struct Note {
    text: String,
}

const NOTES: &[Subscription] = &[Subscription { aggregate_type: "notebook", events: &["Noted"] }];

/// Counts notes. The text of a note can make the reaction fail.
struct Counting {
    name: &'static str,
    renamed_from: Option<&'static str>,
    acts: Acts,
    fails: AtomicBool,
    /// Texts of its calls, in order.
    calls: Mutex<Vec<String>>,
}

impl Counting {
    fn leaked(name: &'static str, acts: Acts) -> &'static Self {
        let (fails, calls) = (AtomicBool::new(false), Mutex::default());
        Box::leak(Box::new(Self { name, renamed_from: None, acts, fails, calls }))
    }

    fn calls(&self) -> Vec<String> {
        self.calls.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn count(&self, event: &RecordedEvent) -> Outcome {
        let note: Note = match payload(event) {
            Ok(note) => note,
            Err(error) => return error.into(),
        };
        self.calls.lock().unwrap_or_else(PoisonError::into_inner).push(note.text.clone());
        match &*note.text {
            "fail" if self.fails.load(Relaxed) => return Outcome::Park("the test requested it".into()),
            "fail once" if self.calls().iter().filter(|text| *text == "fail once").count() % 2 == 1 => {
                return Outcome::Retry("the test requested it".into());
            }
            "panic" if self.fails.load(Relaxed) => panic!("the test requested it"),
            "slow fail" => {
                std::thread::sleep(Duration::from_millis(1_500));
                return Outcome::Retry("the test requested it".into());
            }
            "slow" => std::thread::sleep(Duration::from_millis(3)),
            "hang" if self.fails.load(Relaxed) => std::thread::sleep((REACT_WITHIN + GRACE) * 2),
            _ => {}
        }
        let command = Count { of: event.position.to_string(), most: 100_000 };
        Outcome::Done(vec![Step::<Tally>::new(&*event.aggregate_id, command)])
    }
}

impl Reactor for Counting {
    fn name(&self) -> &'static str {
        self.name
    }
    fn subscriptions(&self) -> &'static [Subscription] {
        NOTES
    }
    fn renamed_from(&self) -> Option<&'static str> {
        self.renamed_from
    }
    fn acts(&self) -> Acts {
        self.acts
    }
    fn react<'a>(&'a self, input: &'a Input, _: &'a mut Scope) -> BoxFuture<'a, Outcome> {
        let Cause::Event(event) = &input.cause else { panic!("this reactor has no deadline") };
        std::future::ready(self.count(event)).boxed()
    }
}

// ---- a process ----

/// After a note `wait`, waits [`WAIT`] for a note `cancel`. Without one, counts in the tally of its id.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
struct Waiting {
    id: String,
    until: Option<Timestamp>,
    most: i64,
    ended: Option<String>,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
enum Waited {
    Began {
        id: String,
        most: i64,
        #[schemars(with = "String")]
        until: Timestamp,
    },
    Ended {
        how: String,
    },
}

impl EventType for Waited {
    const VERSIONS: &'static [(&'static str, &'static str)] = &[("Began", "1"), ("Ended", "1")];
    fn name(&self) -> &'static str {
        match self {
            Self::Began { .. } => "Began",
            Self::Ended { .. } => "Ended",
        }
    }
}

impl Aggregate for Waiting {
    const TYPE: &'static str = "waiting";
    const STATE_VERSION: i64 = 1;
    const HISTORY: History = History::Bounded;
    const UPCASTERS: &'static [Upcaster] = &[];
    type Event = Waited;
    type Command = Write;
    type Error = Full;
    fn decide(&self, _: &Write) -> Result<Vec<Waited>, Full> {
        Err(Full)
    }
    fn evolve(&mut self, event: &Waited) {
        match event {
            Waited::Began { id, most, until } => {
                *self = Self { id: id.clone(), most: *most, until: Some(*until), ended: None };
            }
            Waited::Ended { how } => {
                self.until = None;
                self.ended = Some(how.clone());
            }
        }
    }
    fn access(&self) -> Access<'_> {
        Access::Staff
    }
    fn weight(&self) -> usize {
        64
    }
}

const WAIT: SignedDuration = SignedDuration::from_secs(3_600);

impl Process for Waiting {
    type Input = (String, String);
    type Request = (String, Count);

    fn correlate((id, text): &(String, String)) -> Correlation {
        match &**text {
            "wait" | "wait for a full one" => Correlation::Start(id.clone()),
            "cancel" => Correlation::Continue(id.clone()),
            _ => Correlation::Ignore,
        }
    }

    fn react(&self, trigger: &Trigger<(String, String)>, now: Timestamp) -> Vec<Output<Self>> {
        let ended = |how: &str| Output::Event(Waited::Ended { how: how.to_owned() });
        match trigger {
            Trigger::Input((id, text)) if text != "cancel" && self.id.is_empty() => {
                let most = if text == "wait" { 100_000 } else { 0 };
                vec![Output::Event(Waited::Began { id: id.clone(), most, until: now + WAIT })]
            }
            Trigger::Input((_, text)) if text == "cancel" && self.until.is_some() => vec![ended("cancelled")],
            Trigger::Input(_) => Vec::new(),
            Trigger::Deadline(_) => {
                let count = Count { of: "deadline".into(), most: self.most };
                vec![ended("late"), Output::Request((self.id.clone(), count))]
            }
            Trigger::Refused(refused) => vec![ended(&refused[0].slug)],
        }
    }

    fn deadlines(&self) -> Vec<Due> {
        self.until.map(|at| Due { name: "end".into(), at }).into_iter().collect()
    }
}

static WAITING: ProcessManager<Waiting> = ProcessManager {
    name: "waiting",
    subscriptions: NOTES,
    start_from: StartFrom::Now,
    renamed_from: None,
    input: |event| payload(event).map(|note: Note| Some((event.aggregate_id.to_string(), note.text))),
    request: |(id, count)| Step::<Tally>::new(id, count),
};

// ---- the test fixture ----

struct Rig {
    _kit: TestStore,
    store: Store,
    decider: Arc<Decider>,
    /// How far the clock of the leaders is ahead, in microseconds.
    ahead: Arc<AtomicI64>,
}

impl Rig {
    async fn new(reactors: &[&'static dyn Reactor]) -> Self {
        let kit = TestStore::open().await;
        let store = kit.store.clone();
        let registrations: Vec<_> = reactors.iter().map(|reactor| registration(*reactor)).collect();
        store.reactions().register(&registrations).await.unwrap();
        Self { _kit: kit, decider: Arc::new(Decider::new(store.clone())), store, ahead: Arc::default() }
    }

    /// Records a note and returns the position of its event.
    async fn note(&self, id: &str, text: &str) -> i64 {
        self.write(id, text, false).await
    }

    async fn write(&self, id: &str, text: &str, is_history: bool) -> i64 {
        let principal = Principal {
            subject: "writer".into(),
            role: Role::Staff,
            token_id: None,
            issued_at: 0,
            expires_at: i64::MAX,
        };
        let request_id = Some("request-1".into());
        let origin = Origin {
            principal,
            key: None,
            occurred_at: None,
            is_history,
            waits_for_capacity: true,
            request_id,
            trace: None,
        };
        let mut steps: [Box<dyn AnyStep>; 1] = [Step::<Notebook>::new(id, Write(text.to_owned()))];
        self.decider.execute(&mut steps, &origin).await.unwrap().position
    }

    fn clock(&self) -> Clock {
        let ahead = self.ahead.clone();
        Arc::new(move || event_store::now_us() + ahead.load(Relaxed))
    }

    /// Advances the clock of the leaders.
    fn pass(&self, by: SignedDuration) {
        self.ahead.fetch_add(by.as_micros() as i64, Relaxed);
    }

    fn leader(&self, reactor: &'static dyn Reactor) -> (Leader, tokio::task::JoinHandle<()>) {
        let (seen, fences) = watch::channel(Arc::default());
        let watching = tokio::spawn(watch_fences(self.store.reactions(), seen, CancellationToken::new()));
        (Leader { reactor, decider: self.decider.clone(), clock: self.clock(), fences }, watching)
    }

    /// Runs reactors until a condition holds.
    async fn run_until(&self, reactors: &[&'static dyn Reactor], what: &str, holds: impl AsyncFn() -> bool) {
        let stop = CancellationToken::new();
        let running = tokio::spawn(run(self.decider.clone(), reactors.to_vec(), self.clock(), stop.clone()));
        let began = Instant::now();
        while !holds().await {
            assert!(began.elapsed() < WITHIN, "timed out waiting for {what}");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        stop.cancel();
        running.await.unwrap();
    }

    /// Runs a reactor until its checkpoint is at the log's head.
    async fn catch_up(&self, reactor: &'static dyn Reactor) {
        let at_head = async || {
            let head = self.store.head().await.unwrap();
            self.checkpoint(reactor.name()).await >= head
        };
        self.run_until(&[reactor], "the head", at_head).await;
    }

    async fn checkpoint(&self, reactor: &str) -> i64 {
        let all = self.store.reactions().checkpoints().await.unwrap();
        all.iter().find(|one| one.reactor == reactor).unwrap().position
    }

    /// Returns what a tally has counted, in order.
    async fn counted(&self, id: &str) -> Vec<String> {
        let events = self.store.read_stream("tally", id, 0, i64::MAX, 1_000_000).await.unwrap();
        events.iter().map(|event| payload::<CountedOf>(event).unwrap().of).collect()
    }

    async fn ended(&self, id: &str) -> Option<String> {
        self.decider.repositories().of::<Waiting>().load(id).await.unwrap().state.ended.clone()
    }
}

#[derive(Deserialize)]
struct CountedOf {
    of: String,
}

fn texts(positions: &[i64]) -> Vec<String> {
    positions.iter().map(i64::to_string).collect()
}

/// Polls a future a limited number of times and then drops it, as a crash would.
struct Polls<F>(Pin<Box<F>>, u32);

impl<F: Future> Future for Polls<F> {
    type Output = bool;

    fn poll(mut self: Pin<&mut Self>, context: &mut TaskContext<'_>) -> Poll<bool> {
        if self.1 == 0 {
            return Poll::Ready(true);
        }
        self.1 -= 1;
        self.0.as_mut().poll(context).map(|_| false)
    }
}

// ---- tests ----

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_crash_between_any_two_steps_loses_and_repeats_no_effect() {
    let reactor = Counting::leaked("counting", Acts::InTheLog);
    let rig = Rig::new(&[reactor, &WAITING]).await;
    let (mut a, mut b, mut cut) = (Vec::new(), Vec::new(), 0);
    let never = CancellationToken::new();
    for polls in 1..60 {
        a.push(rig.note("a", "one").await);
        b.push(rig.note("b", "fail once").await);
        a.push(rig.note("a", "two").await);
        rig.note(&format!("w{polls}"), "wait").await;
        rig.pass(SignedDuration::from_secs(10));
        for reactor in [reactor as &'static dyn Reactor, &WAITING] {
            let (leader, watching) = rig.leader(reactor);
            let crashed = Polls(Box::pin(leader.lead(&never)), polls);
            cut += i32::from(tokio::time::timeout(Duration::from_millis(100), crashed).await.is_ok());
            watching.abort();
        }
    }
    assert!(cut > 20, "only {cut} of 118 runs were cut off");
    rig.pass(WAIT);
    let is_done = async || {
        let waiting = rig.store.reactions().backlog_keys("counting").await.unwrap();
        let deadlines = rig.store.reactions().next_deadline("waiting").await.unwrap();
        rig.pass(SignedDuration::from_secs(1));
        waiting.is_empty() && deadlines.is_none() && rig.counted("w59").await.iter().any(|of| of == "deadline")
    };
    rig.run_until(&[reactor, &WAITING], "the end", is_done).await;
    rig.catch_up(reactor).await;
    assert_eq!(rig.counted("a").await, texts(&a));
    assert_eq!(rig.counted("b").await, texts(&b));
    for number in 1..60 {
        let counted = rig.counted(&format!("w{number}")).await;
        assert_eq!(counted.iter().filter(|of| *of == "deadline").count(), 1, "w{number}: {counted:?}");
        assert_eq!(counted.len(), 2, "w{number}: {counted:?}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_concurrent_leaders_react_once() {
    let reactor = Counting::leaked("counting", Acts::InTheLog);
    let rig = Rig::new(&[reactor]).await;
    let (first, _) = rig.leader(reactor);
    let (second, _) = rig.leader(reactor);
    let mut positions = Vec::new();
    {
        let terms = |leader: Leader| {
            tokio::spawn(async move {
                let (lost_threads, mut workers) = (AtomicUsize::new(0), Workers::default());
                loop {
                    let _ =
                        LeaderTerm::new(&leader, &lost_threads, &mut workers, &CancellationToken::new()).follow().await;
                }
            })
        };
        let (first, second) = (terms(first), terms(second));
        for _ in 0..200 {
            positions.push(rig.note("a", "one").await);
        }
        tokio::time::sleep(Duration::from_millis(200)).await;
        first.abort();
        second.abort();
    }
    rig.catch_up(reactor).await;
    assert_eq!(rig.counted("a").await, texts(&positions));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_reactor_slower_than_the_log_handles_every_event() {
    let reactor = Counting::leaked("counting", Acts::InTheLog);
    let rig = Rig::new(&[reactor]).await;
    let (leader, watching) = rig.leader(reactor);
    let leading = tokio::spawn(async move { leader.lead(&CancellationToken::new()).await });
    let mut positions = Vec::new();
    for _ in 0..600 {
        positions.push(rig.note("a", "slow").await);
    }
    assert!(rig.counted("a").await.len() < 600, "the reactor is behind");
    leading.abort();
    watching.abort();
    rig.catch_up(reactor).await;
    assert_eq!(rig.counted("a").await, texts(&positions));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_parked_key_blocks_no_other_key_and_is_released_in_sequence() {
    let reactor = Counting::leaked("counting", Acts::InTheLog);
    let rig = Rig::new(&[reactor]).await;
    reactor.fails.store(true, Relaxed);
    let (mut parked, mut others) = (vec![rig.note("a", "fail").await], Vec::new());
    for _ in 0..1_000 {
        parked.push(rig.note("a", "one").await);
    }
    others.push(rig.note("b", "one").await);
    rig.catch_up(reactor).await;
    assert_eq!(rig.counted("b").await, texts(&others));
    assert_eq!(rig.counted("a").await, Vec::<String>::new());
    assert_eq!(reactor.calls().len(), 2, "the reactor is not called for events that wait");
    let rows = rig.store.reactions();
    let (first, waiting) = rows.backlog("counting", None, 10).await.unwrap().remove(0);
    assert_eq!((first.event.position, first.due_at, waiting), (parked[0], None, 1_001));
    // An operator fixes the cause and retries the key.
    reactor.fails.store(false, Relaxed);
    assert_eq!(rows.retry("counting", Some("a")).await.unwrap(), 1);
    let is_free = async || rows.backlog_keys("counting").await.unwrap().is_empty();
    rig.run_until(&[reactor], "the release", is_free).await;
    assert_eq!(rig.counted("a").await, texts(&parked));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn more_keys_than_a_batch_are_all_retried() {
    let reactor = Counting::leaked("counting", Acts::InTheLog);
    let rig = Rig::new(&[reactor]).await;
    reactor.fails.store(true, Relaxed);
    let keys = BATCH_MAX + 50;
    for key in 0..keys {
        rig.note(&format!("k{key}"), "fail").await;
    }
    rig.catch_up(reactor).await;
    reactor.fails.store(false, Relaxed);
    let rows = rig.store.reactions();
    assert_eq!(rows.retry("counting", None).await.unwrap(), keys as u64);
    let is_free = async || rows.backlog_keys("counting").await.unwrap().is_empty();
    rig.run_until(&[reactor], "the end of the backlog", is_free).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_event_skipped_while_a_worker_runs_is_not_retried() {
    let reactor = Counting::leaked("calling", Acts::Outside);
    let rig = Rig::new(&[reactor]).await;
    reactor.fails.store(true, Relaxed);
    let position = rig.note("a", "slow fail").await;
    let rows = rig.store.reactions();
    let skipped = Mutex::new(None);
    let is_over = async || {
        let at = *skipped.lock().unwrap();
        if let Some(at) = at {
            return Instant::elapsed(&at) > Duration::from_secs(2);
        }
        // The call is running, and fails in the end.
        if !reactor.calls().is_empty() {
            assert!(rows.skip("calling", &BacklogKey { key: "a".into(), position }).await.unwrap());
            *skipped.lock().unwrap() = Some(Instant::now());
        }
        false
    };
    rig.run_until(&[reactor], "the call", is_over).await;
    assert_eq!(reactor.calls().len(), 1);
    assert!(rows.backlog_keys("calling").await.unwrap().is_empty());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_skipped_event_has_no_reaction_and_later_events_have() {
    let reactor = Counting::leaked("counting", Acts::InTheLog);
    let rig = Rig::new(&[reactor]).await;
    reactor.fails.store(true, Relaxed);
    let (first, second) = (rig.note("a", "fail").await, rig.note("a", "one").await);
    rig.catch_up(reactor).await;
    let rows = rig.store.reactions();
    let key = |position| BacklogKey { key: "a".into(), position };
    assert!(!rows.skip("counting", &key(second)).await.unwrap(), "only the first event of a key can be skipped");
    assert!(rows.skip("counting", &key(first)).await.unwrap());
    let is_free = async || rows.backlog_keys("counting").await.unwrap().is_empty();
    rig.run_until(&[reactor], "the release", is_free).await;
    assert_eq!(rig.counted("a").await, texts(&[second]));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_reaction_that_panics_or_hangs_blocks_only_its_key() {
    let reactor = Counting::leaked("counting", Acts::InTheLog);
    let rig = Rig::new(&[reactor]).await;
    reactor.fails.store(true, Relaxed);
    let (panics, hangs) = (rig.note("a", "panic").await, rig.note("b", "hang").await);
    let other = rig.note("c", "one").await;
    rig.catch_up(reactor).await;
    assert_eq!(rig.counted("c").await, texts(&[other]));
    let rows = rig.store.reactions().backlog("counting", None, 10).await.unwrap();
    let reasons: Vec<_> = rows.iter().map(|(entry, _)| entry.reason.clone().unwrap_or_default()).collect();
    assert!(reasons[0].contains("panicked") && reasons[1].contains("did not return"), "{reasons:?}");
    assert!(rows.iter().all(|(entry, _)| entry.due_at.is_some()), "both are retried");
    reactor.fails.store(false, Relaxed);
    rig.pass(SignedDuration::from_secs(5));
    let is_free = async || rig.store.reactions().backlog_keys("counting").await.unwrap().is_empty();
    rig.run_until(&[reactor], "the second try", is_free).await;
    assert_eq!((rig.counted("a").await, rig.counted("b").await), (texts(&[panics]), texts(&[hangs])));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_event_is_parked_after_ten_attempts() {
    let reactor = Counting::leaked("counting", Acts::InTheLog);
    let rig = Rig::new(&[reactor]).await;
    reactor.fails.store(true, Relaxed);
    rig.note("a", "panic").await;
    let rows = rig.store.reactions();
    let is_parked = async || {
        rig.pass(RETRY_DELAY_MAX.try_into().unwrap());
        let backlog = rows.backlog("counting", None, 1).await.unwrap();
        backlog.first().is_some_and(|(entry, _)| entry.attempts == ATTEMPTS_MAX && entry.due_at.is_none())
    };
    rig.run_until(&[reactor], "the last attempt", is_parked).await;
    assert_eq!(reactor.calls().len() as i64, ATTEMPTS_MAX);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn imported_history_and_earlier_events_have_no_effect() {
    let reactor = Counting::leaked("counting", Acts::InTheLog);
    let rig = Rig::new(&[]).await;
    rig.note("a", "before").await;
    rig.store.reactions().register(&[registration(reactor)]).await.unwrap();
    rig.write("a", "imported", true).await;
    let now = rig.note("a", "now").await;
    rig.catch_up(reactor).await;
    assert_eq!(rig.counted("a").await, texts(&[now]));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_renamed_or_removed_reactor_resumes_at_its_checkpoint() {
    let old = Counting::leaked("old", Acts::InTheLog);
    let rig = Rig::new(&[old]).await;
    old.fails.store(true, Relaxed);
    let first = rig.note("a", "fail").await;
    rig.catch_up(old).await;
    // Meanwhile the program runs without the reactor.
    let second = rig.note("a", "one").await;
    let (fails, calls) = (AtomicBool::new(false), Mutex::default());
    let new: &Counting =
        Box::leak(Box::new(Counting { name: "new", renamed_from: Some("old"), acts: Acts::InTheLog, fails, calls }));
    let rows = rig.store.reactions();
    rows.register(&[registration(new)]).await.unwrap();
    // A process of the earlier release starts once more. The old reactor must not start a second time.
    rows.register(&[registration(old)]).await.unwrap();
    let old_one = rows.checkpoints().await.unwrap().into_iter().find(|one| one.reactor == "old").unwrap();
    assert_eq!(old_one.held.as_deref(), Some("renamed to new"));
    rows.retry("new", None).await.unwrap();
    let is_free = async || rows.backlog_keys("new").await.unwrap().is_empty() && rig.counted("a").await.len() == 2;
    rig.run_until(&[old, new], "the new one", is_free).await;
    assert_eq!(rig.counted("a").await, texts(&[first, second]));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_deadline_is_never_early_and_never_precedes_its_cancellation() {
    let rig = Rig::new(&[&WAITING]).await;
    rig.note("late", "wait").await;
    rig.note("cancelled", "wait").await;
    rig.note("full", "wait for a full one").await;
    rig.catch_up(&WAITING).await;
    let rows = rig.store.reactions();
    // The clock is set back, and then advanced to one minute before the deadline.
    rig.pass(-WAIT);
    rig.pass(WAIT + WAIT - SignedDuration::from_mins(1));
    rig.run_until(&[&WAITING], "a moment", {
        let began = Instant::now();
        async move || began.elapsed() > TICK * 3
    })
    .await;
    assert_eq!(rig.ended("late").await, None);
    // While no reactor runs, one process is cancelled, and then all deadlines pass.
    rig.note("cancelled", "cancel").await;
    rig.pass(WAIT);
    let is_done = async || rows.next_deadline("waiting").await.unwrap().is_none();
    rig.run_until(&[&WAITING], "the deadlines", is_done).await;
    assert_eq!(rig.ended("cancelled").await.as_deref(), Some("cancelled"));
    assert_eq!(rig.ended("late").await.as_deref(), Some("late"));
    assert_eq!(rig.counted("late").await, ["deadline"]);
    // The command was refused: no effect of the deadline is written, and the process gets the refusal.
    assert_eq!(rig.ended("full").await.as_deref(), Some("full"));
    assert_eq!(rig.counted("full").await, Vec::<String>::new());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn external_effects_of_a_key_run_one_by_one_and_stop_while_held() {
    let reactor = Counting::leaked("calling", Acts::Outside);
    let rig = Rig::new(&[reactor]).await;
    let rows = rig.store.reactions();
    rows.hold("calling", "the provider is down").await.unwrap();
    let (mut a, mut b) = (Vec::new(), Vec::new());
    for _ in 0..20 {
        a.push(rig.note("a", "one").await);
        b.push(rig.note("b", "fail once").await);
    }
    rig.run_until(&[reactor], "a moment", {
        let began = Instant::now();
        async move || began.elapsed() > TICK * 2
    })
    .await;
    assert_eq!(reactor.calls(), Vec::<String>::new());
    rows.release("calling").await.unwrap();
    let is_done = async || {
        rig.pass(SignedDuration::from_secs(2));
        rig.counted("a").await.len() == 20 && rig.counted("b").await.len() == 20
    };
    rig.run_until(&[reactor], "all effects", is_done).await;
    assert_eq!((rig.counted("a").await, rig.counted("b").await), (texts(&a), texts(&b)));
    let twice = reactor.calls().iter().filter(|text| *text == "fail once").count();
    assert_eq!(twice, 40, "each that failed was called again");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn events_of_a_reaction_carry_correlation_and_causation() {
    let reactor = Counting::leaked("counting", Acts::InTheLog);
    let rig = Rig::new(&[reactor]).await;
    let position = rig.note("a", "one").await;
    rig.catch_up(reactor).await;
    let note = rig.store.read_positions(&[position]).await.unwrap().remove(0);
    let counted = rig.store.read_stream("tally", "a", 0, 1, 1).await.unwrap().remove(0);
    let id = note.id();
    let names = |event: &RecordedEvent| {
        ["causation_id", "correlation_id", "request_id", "actor"]
            .map(|name| event.metadata_text(name).unwrap_or_default().to_owned())
    };
    assert_eq!(names(&counted), [&*id, "request-1", "request-1", "reactor:counting"].map(String::from));
}
