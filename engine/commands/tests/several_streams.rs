//! A command to several aggregates: each aggregate decides its part, and all parts commit or none.

use command_engine::decider::{Decider, Key, Origin};
use command_engine::outcome::{Executed, Rejected};
use command_engine::step::{AnyStep, Step};
use kernel::aggregate::{Access, Aggregate, CommandType, EventType, History, Refusal, RefusalClass, RefusalType};
use kernel::upcast::Upcaster;
use platform::auth::{Principal, Role};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use testkit::store::TestStore;

/// Counts up to ten. The two kinds differ only in their type.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
struct Count<const KIND: u8>(i64);

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
enum Event {
    Counted { by: i64 },
}

impl EventType for Event {
    const VERSIONS: &'static [(&'static str, &'static str)] = &[("Counted", "1")];
    fn name(&self) -> &'static str {
        "Counted"
    }
}

struct Add(i64);

impl CommandType for Add {
    fn name(&self) -> &'static str {
        "add"
    }
    fn creates(&self) -> bool {
        true
    }
}

#[derive(Debug)]
struct TooMuch;

impl std::fmt::Display for TooMuch {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("too much")
    }
}
impl std::error::Error for TooMuch {}
impl Refusal for TooMuch {
    const TYPES: &'static [RefusalType] = &[RefusalType {
        slug: "too-much",
        class: RefusalClass::Rule,
        title: "Too much",
        meaning: "The account has too little.",
    }];

    fn not_found() -> Self {
        Self
    }

    fn refusal_type(&self) -> &'static RefusalType {
        &Self::TYPES[0]
    }
}

impl<const KIND: u8> Aggregate for Count<KIND> {
    const TYPE: &'static str = if KIND == 1 { "first" } else { "second" };
    const STATE_VERSION: i64 = 1;
    const HISTORY: History = History::Bounded;
    const UPCASTERS: &'static [Upcaster] = &[];
    type Event = Event;
    type Command = Add;
    type Error = TooMuch;

    fn decide(&self, Add(by): &Add) -> Result<Vec<Event>, TooMuch> {
        match self.0 + by {
            ..=10 if *by == 0 => Ok(vec![]),
            ..=10 => Ok(vec![Event::Counted { by: *by }]),
            _ => Err(TooMuch),
        }
    }
    fn evolve(&mut self, Event::Counted { by }: &Event) {
        self.0 += by;
    }
    fn access(&self) -> Access<'_> {
        Access::Staff
    }
    fn weight(&self) -> usize {
        size_of::<Self>()
    }
}

type First = Count<1>;
type Second = Count<2>;

fn origin(key: Option<&str>) -> Origin {
    let subject = "clerk".to_owned();
    let principal = Principal { subject, role: Role::Staff, token_id: None, issued_at: 0, expires_at: i64::MAX };
    let key = key.map(|key| Key { scope: "clerk".into(), key: key.into(), request_hash: "hash".into(), status: 200 });
    Origin {
        principal,
        key,
        occurred_at: None,
        is_history: false,
        waits_for_capacity: true,
        request_id: None,
        trace: None,
    }
}

async fn add(decider: &Decider, key: Option<&str>, first: i64, second: i64) -> Result<Executed, Rejected> {
    let mut steps: [Box<dyn AnyStep>; 2] =
        [Step::<First>::new("17", Add(first)), Step::<Second>::new("17", Add(second))];
    decider.execute(&mut steps, &origin(key)).await
}

async fn sums(decider: &Decider) -> (i64, i64) {
    let first = decider.repositories().of::<First>().load("17").await.unwrap();
    let second = decider.repositories().of::<Second>().load("17").await.unwrap();
    (first.state.0, second.state.0)
}

#[tokio::test]
async fn all_streams_commit_or_none_and_the_first_refusal_is_returned() {
    let kit = TestStore::open().await;
    let store = kit.store.clone();
    let decider = Decider::new(store.clone());
    let done = add(&decider, None, 4, 5).await.unwrap();
    assert_eq!((done.versions, done.position), (vec![1, 1], 2));
    // The second aggregate refuses, so nothing is written to the first one either.
    let refused = add(&decider, None, 1, 6).await;
    assert!(matches!(refused, Err(Rejected::Problem(problem)) if problem.slug() == "too-much"));
    assert_eq!((sums(&decider).await, store.head().await.unwrap()), ((4, 5), 2));
    // An aggregate that does not change is checked, and keeps its version.
    let done = add(&decider, Some("key"), 0, 1).await.unwrap();
    assert_eq!((done.versions, done.position), (vec![1, 2], 3));
    let record = store.idempotency_record("clerk", "key").await.unwrap().expect("the key is recorded");
    assert_eq!((&*record.aggregate_type, record.version, record.position), ("second", 2, 3));
    assert!(matches!(add(&decider, Some("key"), 1, 1).await, Err(Rejected::KeyUsed)));
    assert_eq!(sums(&decider).await, (4, 6));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn commands_on_the_same_streams_in_opposite_order_do_not_deadlock() {
    let kit = TestStore::open().await;
    let store = kit.store.clone();
    // Two deciders act like two processes: each has its own locks, so they conflict in the log.
    let deciders = [std::sync::Arc::new(Decider::new(store.clone())), std::sync::Arc::new(Decider::new(store.clone()))];
    let tasks = (0..40).map(|number: usize| {
        let decider = deciders[number % 2].clone();
        tokio::spawn(async move {
            let id = format!("{}", number % 5);
            let (first, second) = (Step::<First>::new(id.clone(), Add(1)), Step::<Second>::new(id, Add(1)));
            let mut steps: [Box<dyn AnyStep>; 2] = if number % 4 < 2 { [first, second] } else { [second, first] };
            decider.execute(&mut steps, &origin(None)).await.map(drop)
        })
    });
    for task in futures::future::join_all(tasks).await {
        task.unwrap().expect("every command is decided again until it is written");
    }
    let fresh = Decider::new(store.clone());
    for id in 0..5 {
        let first = fresh.repositories().of::<First>().load(&id.to_string()).await.unwrap();
        let second = fresh.repositories().of::<Second>().load(&id.to_string()).await.unwrap();
        assert_eq!((first.state.0, first.version, second.state.0), (8, 8, 8));
    }
    assert_eq!(store.head().await.unwrap(), 80);
}
