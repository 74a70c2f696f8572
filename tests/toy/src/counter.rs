//! Counters: an aggregate with bounded streams, whose states are folded. The event `ItemAdded` has the name of an event
//! of another aggregate.

use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::Duration;

use axum::extract::{Path, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use command_engine::api::CommandApi;
use command_engine::bulk::envelope::field;
use command_engine::bulk::lines::{BulkLines, Line};
use command_engine::outcome::Resource;
use command_engine::problems::refused;
use command_engine::request::CommandRequest;
use compact_str::format_compact;
use event_store::db::Read;
use event_store::error::Error;
use event_store::table::{Merge, Table, int, text};
use futures::FutureExt;
use kernel::aggregate::{Access, Aggregate, CommandType, EventType, History};
use kernel::stream::{StreamId, is_id};
use kernel::upcast::Upcaster;
use platform::auth::Principal;
use platform::body;
use platform::problem::Problem;
use projection_engine::change::{Change, Rows};
use projection_engine::projection::{Fold, Projection};
use push::api::{ChangedStream, Channel, DeniedAnswer, QueryApi};
use push::consistency::with_position_header;
use push::publication::Interest;
use push::publisher::Publisher;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use crate::refusal::Refused;

/// Whether a counter whose note asks for a panic panics.
static PANICS: AtomicBool = AtomicBool::new(true);

/// Applies the setting `toy_panics`.
pub fn set_panics(value: &str) -> Result<(), String> {
    let panics = value.parse().map_err(|_| format!("`{value}` must be true or false"))?;
    PANICS.store(panics, Relaxed);
    Ok(())
}

/// Events of a counter.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub enum Event {
    /// The counter was created.
    CounterCreated {
        /// The user who owns the counter.
        owner: String,
    },
    /// A number was added.
    ItemAdded {
        /// The number.
        by: i64,
        /// Fault to simulate: `sleep MS` and `panic` in the fold of the read model, `panic in evolve` in `evolve`.
        note: String,
    },
}

impl EventType for Event {
    const VERSIONS: &'static [(&'static str, &'static str)] = &[("CounterCreated", "1"), ("ItemAdded", "1")];

    fn name(&self) -> &'static str {
        match self {
            Self::CounterCreated { .. } => "CounterCreated",
            Self::ItemAdded { .. } => "ItemAdded",
        }
    }
}

/// A counter.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Counter {
    owner: Option<String>,
    sum: i64,
    note: String,
}

/// Commands of a counter.
pub enum Command {
    /// Creates the counter.
    Create {
        /// Id of the owner.
        owner: String,
    },
    /// Adds to the sum.
    Add {
        /// The amount to add; it may be negative.
        by: i64,
        /// Instruction for the folds: see [`Event::ItemAdded`].
        note: String,
    },
}

impl CommandType for Command {
    fn name(&self) -> &'static str {
        match self {
            Self::Create { .. } => "create_counter",
            Self::Add { .. } => "count",
        }
    }

    fn creates(&self) -> bool {
        matches!(self, Self::Create { .. })
    }
}

impl Counter {
    /// Returns the id of the owner; empty before the creation.
    pub fn owner(&self) -> &str {
        self.owner.as_deref().unwrap_or_default()
    }

    /// Returns the sum.
    pub fn sum(&self) -> i64 {
        self.sum
    }
}

impl Aggregate for Counter {
    const TYPE: &'static str = "counter";
    const STATE_VERSION: i64 = 1;
    const HISTORY: History = History::Bounded;
    const UPCASTERS: &'static [Upcaster] = &[];
    type Event = Event;
    type Command = Command;
    type Error = Refused;

    fn decide(&self, command: &Command) -> Result<Vec<Event>, Refused> {
        match (command, &self.owner) {
            (Command::Create { owner }, None) => Ok(vec![Event::CounterCreated { owner: owner.clone() }]),
            (Command::Create { .. }, Some(_)) => Err(Refused::Exists),
            (Command::Add { .. }, None) => Err(Refused::NotFound),
            (Command::Add { by, note }, Some(_)) => Ok(vec![Event::ItemAdded { by: *by, note: note.clone() }]),
        }
    }

    fn evolve(&mut self, event: &Event) {
        match event {
            Event::CounterCreated { owner } => self.owner = Some(owner.clone()),
            Event::ItemAdded { by, note } => {
                assert!(note != "panic in evolve" || !PANICS.load(Relaxed), "the note asks for a panic");
                self.sum += by;
                self.note.clone_from(note);
            }
        }
    }

    fn access(&self) -> Access<'_> {
        self.owner.as_deref().map_or(Access::Absent, Access::Owner)
    }

    fn weight(&self) -> usize {
        self.note.len()
    }
}

static TABLE: Table = Table {
    name: "toy_counters",
    columns: &[
        text("counter_id", Merge::Key),
        text("owner", Merge::Set),
        int("sum", Merge::Set),
        text("note", Merge::Set),
        int("version", Merge::Set),
    ],
    indexes: &[],
};

/// The read model of counters.
pub static PROJECTION: Projection<Counter> =
    Projection { name: "toy_counters", version: 1, tables: &[&TABLE], fold: Fold::OfState(fold) };

fn fold(changes: &[Change<Counter>]) -> Vec<Rows> {
    let row = |change: &Change<Counter>| {
        let counter = &change.after.state;
        if let Some(ms) = counter.note.strip_prefix("sleep ").and_then(|ms| ms.parse().ok()) {
            std::thread::sleep(Duration::from_millis(ms));
        }
        assert!(counter.note != "panic" || !PANICS.load(Relaxed), "the note asks for a panic");
        vec![
            change.after.id.to_string().into(),
            counter.owner.clone().into(),
            counter.sum.into(),
            counter.note.clone().into(),
            change.after.version.into(),
        ]
    };
    vec![(&TABLE, changes.iter().map(row).collect())]
}

static RESOURCE: Resource = Resource { id_field: "counter_id", path: "/v1/counters/" };

/// The command lines of counters in bulk requests.
pub const BULK: BulkLines = BulkLines {
    types: &["create_counter", "count"],
    parse: |kind, mut fields, principal| {
        let id = match fields.remove("counter_id") {
            Some(serde_json::Value::String(id)) => id,
            _ => return Err(field("/counter_id", "Must be the id of the counter.")),
        };
        Ok(match kind {
            "create_counter" => {
                let command = Command::Create { owner: principal.subject.clone() };
                Line::new::<Counter>(&RESOURCE, StatusCode::CREATED, id, command)
            }
            _ => {
                let Count { by, note } = body::from_value(fields.into())?;
                Line::new::<Counter>(&RESOURCE, StatusCode::OK, id, Command::Add { by, note })
            }
        })
    },
};

/// Returns the routes of commands.
pub fn commands() -> OpenApiRouter<CommandApi> {
    OpenApiRouter::new().routes(routes!(create)).routes(routes!(count))
}

/// A new counter.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
struct Create {
    /// Id of the counter.
    counter_id: String,
}

/// An amount to count.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
struct Count {
    /// The amount to add; it may be negative.
    by: i64,
    /// See [`Event::ItemAdded`].
    #[serde(default)]
    note: String,
}

/// Creates a counter that belongs to the caller.
#[utoipa::path(post, path = "/v1/counters", operation_id = "create_counter", tag = "commands", request_body = Create, responses((status = 201, description = "The counter is created.")),
    extensions(("x-problems" = json!(["counter-exists"]))))]
async fn create(State(api): State<CommandApi>, request: CommandRequest<Create>) -> Result<Response, Problem> {
    let (request, body) = request.take();
    let command = Command::Create { owner: request.principal.subject.clone() };
    request.execute::<Counter>(&api, &RESOURCE, StatusCode::CREATED, &body.counter_id, command).await
}

/// Adds to a counter.
#[utoipa::path(post, path = "/v1/counters/{id}/count", operation_id = "count", tag = "commands", request_body = Count,
    params(("id" = String, Path)), responses((status = 200, description = "The counter is changed.")),
    extensions(("x-problems" = json!(["counter-not-found"]))))]
async fn count(
    State(api): State<CommandApi>,
    Path(id): Path<String>,
    request: CommandRequest<Count>,
) -> Result<Response, Problem> {
    let (request, Count { by, note }) = request.take();
    request.execute::<Counter>(&api, &RESOURCE, StatusCode::OK, &id, Command::Add { by, note }).await
}

/// Prefix of a counter's channel; the counter's id follows.
const COUNTER_PREFIX: &str = "counter:";

/// Returns the channel of one counter's changes.
pub fn channel() -> Channel {
    Channel {
        name: COUNTER_PREFIX,
        is_id: Some(is_id),
        who: "its owner, staff, admin",
        shows: "every change of one counter",
        group: "toy",
        projection: Some(PROJECTION.name),
        allows: |api, principal, id| {
            async move {
                assert!(id != "panic", "the id asks for a panic");
                let found = find(api.store.db(), id).await?;
                Ok(found.is_some_and(|counter| principal.can_access_customer(&counter.owner)))
            }
            .boxed()
        },
        denied_answer: DeniedAnswer::NotFound,
        snapshot: |_, tx, id| {
            async move {
                assert!(id != "panic-snapshot", "the id asks for a panic");
                let text = serde_json::to_string(&find(tx, id).await?).unwrap_or_default();
                Ok(("view", text))
            }
            .boxed()
        },
        missed: Some(|_, id, _, _| {
            let changed = ChangedStream { stream: StreamId::new(Counter::TYPE, id), events: 0 };
            std::future::ready(Ok(Some(vec![changed]))).boxed()
        }),
        event_types: &[],
        has_presence: false,
    }
}

/// Publishes the changes of counters.
pub static PUBLISHER: Publisher<Counter> = Publisher {
    group: "toy",
    id_member: "counter_id",
    interest: Interest { names: &[], by_stream: &[COUNTER_PREFIX], by_prefix: &[] },
    view: |counter, json| json.write(&counter.state),
    publish: |step| {
        let payload = serde_json::to_value(step.event).unwrap_or_default();
        Some(step.publication(payload).on_stream_channel(format_compact!("{COUNTER_PREFIX}{}", step.after.id)))
    },
};

/// Returns a counter by its id.
async fn find(mut from: impl Read, id: &str) -> Result<Option<CounterView>, Error> {
    let sql = "select counter_id, owner, sum, note, version from toy_counters where counter_id = $1";
    Ok(from.rows(sql, vec![id.into()]).await?.pop())
}

/// Returns the routes of queries.
pub fn queries() -> OpenApiRouter<QueryApi> {
    OpenApiRouter::new().routes(routes!(show))
}

/// A counter.
#[derive(Debug, Clone, Serialize, ToSchema, sqlx_macros::FromRow)]
struct CounterView {
    /// Id of the counter.
    counter_id: String,
    /// Id of the owner.
    owner: String,
    /// The sum.
    sum: i64,
    /// The last note.
    note: String,
    /// Version of the counter.
    version: i64,
}

/// Returns a counter of the caller.
#[utoipa::path(get, path = "/v1/counters/{id}", operation_id = "get_counter", tag = "queries", params(("id" = String, Path)),
    responses((status = 200, description = "The counter.", body = CounterView)),
    extensions(("x-problems" = json!(["counter-not-found"]))))]
async fn show(State(api): State<QueryApi>, principal: Principal, Path(id): Path<String>) -> Result<Response, Problem> {
    let find = || find(api.store.db(), &id);
    let (position, found) = api.read_at(PROJECTION.name, None, None, find).await?;
    let own = found.filter(|counter| principal.can_access_customer(&counter.owner));
    let counter = own.ok_or_else(|| refused(&Refused::NotFound))?;
    Ok(with_position_header(position, axum::Json(counter).into_response()))
}
