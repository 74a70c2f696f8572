//! Counters: bounded streams whose states are folded. An event has the name of one of another aggregate.

use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::Duration;

use axum::extract::{Path, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use command_engine::api::CommandApi;
use command_engine::bulk::envelope::field;
use command_engine::bulk::lines::{BulkLines, Line};
use command_engine::outcome::Resource;
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
use push::api::{ChangedStream, Channel, QueryApi, Refusal};
use push::consistency::with_position_header;
use push::problems::not_found;
use push::publication::Interest;
use push::publisher::Publisher;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use crate::refusal::Refused;

/// Whether a fold panics that is asked to.
static PANICS: AtomicBool = AtomicBool::new(true);

/// The setting `toy_panics`.
pub fn set_panics(value: &str) -> Result<(), String> {
    let panics = value.parse().map_err(|_| format!("`{value}` must be true or false"))?;
    PANICS.store(panics, Relaxed);
    Ok(())
}

/// What happens to a counter.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub enum Event {
    /// It was made.
    CounterCreated {
        /// Whose it is.
        owner: String,
    },
    /// Something was counted.
    ItemAdded {
        /// How much.
        by: i64,
        /// What the folds shall do: `sleep 5000`, `panic`, or anything.
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

/// What can be asked of it.
pub enum Command {
    /// Make it.
    Create {
        /// Whose it is.
        owner: String,
    },
    /// Count.
    Add {
        /// How much.
        by: i64,
        /// See [`Event::ItemAdded`].
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
    /// Whose it is.
    pub fn owner(&self) -> &str {
        self.owner.as_deref().unwrap_or_default()
    }

    /// What was counted.
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
                assert!(note != "panic in evolve" || !PANICS.load(Relaxed), "the note says so");
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

/// The counters.
pub static PROJECTION: Projection<Counter> =
    Projection { name: "toy_counters", version: 1, tables: &[&TABLE], fold: Fold::OfState(fold) };

fn fold(changes: &[Change<Counter>]) -> Vec<Rows> {
    let row = |change: &Change<Counter>| {
        let counter = &change.after.state;
        if let Some(ms) = counter.note.strip_prefix("sleep ").and_then(|ms| ms.parse().ok()) {
            std::thread::sleep(Duration::from_millis(ms));
        }
        assert!(counter.note != "panic" || !PANICS.load(Relaxed), "the note says so");
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

/// Lines in bulk.
pub const BULK: BulkLines = BulkLines {
    types: &["create_counter", "count"],
    parse: |kind, mut fields, principal| {
        let id = match fields.remove("counter_id") {
            Some(serde_json::Value::String(id)) => id,
            _ => return Err(field("/counter_id", "must name the counter")),
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

/// The routes of commands.
pub fn commands() -> OpenApiRouter<CommandApi> {
    OpenApiRouter::new().routes(routes!(create)).routes(routes!(count))
}

/// A new counter.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
struct Create {
    /// Its id.
    counter_id: String,
}

/// Something to count.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
struct Count {
    /// How much.
    by: i64,
    /// What the folds shall do.
    #[serde(default)]
    note: String,
}

/// Makes a counter of the caller's.
#[utoipa::path(post, path = "/v1/counters", tag = "commands", request_body = Create, responses((status = 201)))]
async fn create(State(api): State<CommandApi>, request: CommandRequest<Create>) -> Result<Response, Problem> {
    let (request, body) = request.take();
    let command = Command::Create { owner: request.principal.subject.clone() };
    request.execute::<Counter>(&api, &RESOURCE, StatusCode::CREATED, &body.counter_id, command).await
}

/// Counts.
#[utoipa::path(post, path = "/v1/counters/{id}/count", tag = "commands", request_body = Count,
    params(("id" = String, Path)), responses((status = 200)))]
async fn count(
    State(api): State<CommandApi>,
    Path(id): Path<String>,
    request: CommandRequest<Count>,
) -> Result<Response, Problem> {
    let (request, Count { by, note }) = request.take();
    request.execute::<Counter>(&api, &RESOURCE, StatusCode::OK, &id, Command::Add { by, note }).await
}

/// Followed by a counter's id.
const COUNTER_PREFIX: &str = "counter:";

/// The changes of one counter.
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
                assert!(id != "panic", "the id says so");
                let found = find(api.store.db(), id).await?;
                Ok(found.is_some_and(|counter| principal.may_see(&counter.owner)))
            }
            .boxed()
        },
        refusal: Refusal::NotFound,
        snapshot: |_, tx, id| {
            async move {
                assert!(id != "panic-snapshot", "the id says so");
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

/// Counters as they change.
pub static PUBLISHER: Publisher<Counter> = Publisher {
    group: "toy",
    id_member: "counter_id",
    interest: Interest { names: &[], by_stream: &[COUNTER_PREFIX], by_prefix: &[] },
    view: |counter, json| json.write(&counter.state),
    publish: |step| {
        let payload = serde_json::to_value(step.event).unwrap_or_default();
        Some(step.publication(payload).on_own(format_compact!("{COUNTER_PREFIX}{}", step.after.id)))
    },
};

/// A counter by its id.
async fn find(mut from: impl Read, id: &str) -> Result<Option<CounterView>, Error> {
    let sql = "select counter_id, owner, sum, note, version from toy_counters where counter_id = $1";
    Ok(from.rows(sql, vec![id.into()]).await?.pop())
}

/// The routes of queries.
pub fn queries() -> OpenApiRouter<QueryApi> {
    OpenApiRouter::new().routes(routes!(show))
}

/// A counter.
#[derive(Debug, Clone, Serialize, ToSchema, sqlx_macros::FromRow)]
struct CounterView {
    /// Its id.
    counter_id: String,
    /// Whose it is.
    owner: String,
    /// What was counted.
    sum: i64,
    /// The last note.
    note: String,
    /// Its version.
    version: i64,
}

/// A counter of the caller's.
#[utoipa::path(get, path = "/v1/counters/{id}", tag = "queries", params(("id" = String, Path)),
    responses((status = 200, body = CounterView)))]
async fn show(State(api): State<QueryApi>, principal: Principal, Path(id): Path<String>) -> Result<Response, Problem> {
    let find = || find(api.store.db(), &id);
    let (position, found) = api.read_at(PROJECTION.name, None, None, find).await?;
    let own = found.filter(|counter| principal.may_see(&counter.owner));
    let counter = own.ok_or_else(|| not_found("counter-not-found", "There is no such counter"))?;
    Ok(with_position_header(position, axum::Json(counter).into_response()))
}
