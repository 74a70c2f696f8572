//! Meters: an aggregate with unbounded streams, so their events are folded and never their states.

use axum::extract::{Path, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use command_engine::api::CommandApi;
use command_engine::outcome::Resource;
use command_engine::request::CommandRequest;
use event_store::table::{Merge, Table, int, text};
use kernel::aggregate::{Access, Aggregate, CommandType, EventType, History};
use kernel::upcast::Upcaster;
use platform::auth::Principal;
use platform::problem::Problem;
use projection_engine::change::{Decoded, Rows};
use projection_engine::projection::{Fold, Projection};
use push::api::QueryApi;
use push::consistency::with_position_header;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use crate::refusal::Refused;

platform::problem_types! {
    /// The meter does not exist, or you may not see it.
    METER_NOT_FOUND = NOT_FOUND, "meter-not-found", "There is no such meter";
}

/// Events of a meter.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub enum Event {
    /// The meter was read.
    MeterRead {
        /// The reading.
        value: i64,
    },
}

impl EventType for Event {
    const VERSIONS: &'static [(&'static str, &'static str)] = &[("MeterRead", "1")];

    fn name(&self) -> &'static str {
        "MeterRead"
    }
}

/// A meter.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Meter {
    value: Option<i64>,
}

/// The command that records a reading; the first reading creates the meter.
pub struct Read(i64);

impl CommandType for Read {
    fn name(&self) -> &'static str {
        "read_meter"
    }

    fn creates(&self) -> bool {
        true
    }
}

impl Aggregate for Meter {
    const TYPE: &'static str = "meter";
    const STATE_VERSION: i64 = 1;
    const HISTORY: History = History::Unbounded;
    const UPCASTERS: &'static [Upcaster] = &[];
    type Event = Event;
    type Command = Read;
    type Error = Refused;

    fn decide(&self, Read(value): &Read) -> Result<Vec<Event>, Refused> {
        Ok(vec![Event::MeterRead { value: *value }])
    }

    fn evolve(&mut self, Event::MeterRead { value }: &Event) {
        self.value = Some(*value);
    }

    fn access(&self) -> Access<'_> {
        if self.value.is_some() { Access::Staff } else { Access::Absent }
    }

    fn weight(&self) -> usize {
        0
    }
}

static TABLE: Table = Table {
    name: "toy_meters",
    columns: &[
        text("meter_id", Merge::Key),
        int("value", Merge::Set),
        int("readings", Merge::Set),
        int("position", Merge::Set),
    ],
    indexes: &[],
};

/// The read model with the latest reading of each meter.
pub static PROJECTION: Projection<Meter> =
    Projection { name: "toy_meters", version: 1, tables: &[&TABLE], fold: Fold::OfEvents(fold) };

fn fold(events: &[&Decoded<Meter>]) -> Vec<Rows> {
    let row = |event: &&Decoded<Meter>| {
        let Event::MeterRead { value } = event.event;
        assert!(value != -1, "the value asks for a panic");
        vec![event.id.to_string().into(), value.into(), event.sequence.into(), event.position.into()]
    };
    vec![(&TABLE, events.iter().map(row).collect())]
}

static RESOURCE: Resource = Resource { id_field: "meter_id", path: "/v1/meters/" };

/// Returns the routes of commands.
pub fn commands() -> OpenApiRouter<CommandApi> {
    OpenApiRouter::new().routes(routes!(read))
}

/// A reading.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
struct Reading {
    /// The value that the meter shows.
    value: i64,
}

/// Records a reading of a meter.
#[utoipa::path(post, path = "/v1/meters/{id}/readings", operation_id = "add_reading", tag = "commands", request_body = Reading,
    params(("id" = String, Path)), responses((status = 200, description = "The reading is recorded.")),
    extensions(("x-problems" = json!(["forbidden"]))))]
async fn read(
    State(api): State<CommandApi>,
    Path(id): Path<String>,
    request: CommandRequest<Reading>,
) -> Result<Response, Problem> {
    request.principal.staff_only()?;
    let (request, body) = request.take();
    request.execute::<Meter>(&api, &RESOURCE, StatusCode::OK, &id, Read(body.value)).await
}

/// Returns the routes of queries.
pub fn queries() -> OpenApiRouter<QueryApi> {
    OpenApiRouter::new().routes(routes!(show))
}

/// A meter.
#[derive(Debug, Clone, Serialize, ToSchema, sqlx_macros::FromRow)]
struct MeterView {
    /// Id of the meter.
    meter_id: String,
    /// Latest reading.
    value: i64,
    /// Number of readings.
    readings: i64,
}

/// Returns a meter, for staff only.
#[utoipa::path(get, path = "/v1/meters/{id}", operation_id = "get_meter", tag = "queries", params(("id" = String, Path)),
    responses((status = 200, description = "The meter.", body = MeterView)),
    extensions(("x-problems" = json!(["meter-not-found", "forbidden"]))))]
async fn show(State(api): State<QueryApi>, principal: Principal, Path(id): Path<String>) -> Result<Response, Problem> {
    principal.staff_only()?;
    let sql = "select meter_id, value, readings from toy_meters where meter_id = $1";
    let find = || api.store.db().fetch_all::<MeterView>(sql, vec![id.as_str().into()]);
    let (position, found) = api.read_at(PROJECTION.name, None, None, find).await?;
    let meter = found.into_iter().next().ok_or_else(|| Problem::new(METER_NOT_FOUND))?;
    Ok(with_position_header(position, axum::Json(meter).into_response()))
}
