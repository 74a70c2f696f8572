//! Reports on confirmed orders, and the channel `reports:sales`, for staff.

use axum::extract::State;
use axum::response::Response;
use futures::FutureExt;
use jiff::Timestamp;
use jiff::tz::TimeZone;
use platform::auth::Principal;
use platform::body::Query;
use platform::problem::Problem;
use platform::time::{DateOrTime, Zone};
use projection_engine::registry::CORE;
use projections::orders::products::{self, By, Product};
use projections::orders::sales::{self, Dimension, OffsetPeriod, Period, QUARTER_US, Sale};
use serde::Deserialize;
use utoipa::IntoParams;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use crate::json::text;
use crate::orders::channels::changed_in_log_of;

use push::api::{Channel, DeniedAnswer, QueryApi};
use push::consistency::with_position_header;
use push::problems::invalid;

/// Most products in one response.
const LIMIT_MAX: i64 = 1_000;

/// Most periods with one offset in a report. A time zone with summer time has two in a year. Each takes three parameters of
/// the query, of which SQLite allows 32,766.
const PERIODS_MAX: usize = 8_192;

/// Name of the channel of confirmed orders, for staff.
pub const SALES: &str = "reports:sales";
/// Names of the events that count as a sale.
const SALE_EVENTS: &[&str] = &["OrderConfirmed"];
/// Most events of the log that are searched for missed sales. Sales have no index by position.
const SCANNED_EVENTS_MAX: i64 = 10_000;

/// Returns the channel with newly confirmed orders.
pub fn channel() -> Channel {
    Channel {
        name: SALES,
        is_id: None,
        who: "staff, admin",
        shows: "every order that is confirmed, and so is included in the sales reports",
        group: CORE,
        projection: Some(sales::PROJECTION.name),
        allows: |_, principal, _| std::future::ready(Ok(principal.is_staff())).boxed(),
        denied_answer: DeniedAnswer::Staff,
        snapshot: |_, tx, _| {
            async move { Ok(("items", text(&sales::report(tx, Dimension::Day, Period::default()).await?))) }.boxed()
        },
        missed: Some(|api, _, after, until| {
            changed_in_log_of(api, after, until, SALE_EVENTS, SCANNED_EVENTS_MAX).boxed()
        }),
        event_types: SALE_EVENTS,
        has_presence: false,
    }
}

/// Returns the report routes.
pub fn router() -> OpenApiRouter<QueryApi> {
    OpenApiRouter::new().routes(routes!(sales_report)).routes(routes!(top_products))
}

/// Query parameters of the sales report.
#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub struct SalesQuery {
    /// Dimension of the report: `day`, `category` or `store`.
    #[param(inline)]
    by: Dimension,
    /// Start of the period: a date (`2024-03-10`), or a time in RFC 3339 at a quarter of an hour
    /// (`2024-03-10T00:00:00+02:00`, with `+` written as `%2B`). Default: the first sale.
    #[param(value_type = Option<String>)]
    from: Option<DateOrTime>,
    /// End of the period: a date, which is included, or a time, which is excluded. Default: the last sale.
    #[param(value_type = Option<String>)]
    to: Option<DateOrTime>,
    /// Time zone of days and dates, a name of the IANA database such as `Europe/Berlin`. Default: UTC.
    #[param(value_type = Option<String>)]
    timezone: Option<Zone>,
    /// Wait until the read model has reached this position.
    min_position: Option<i64>,
    /// Longest wait for `min_position`, in milliseconds, at most 10000. Default: 1000.
    #[param(maximum = 10_000)]
    wait_ms: Option<u64>,
}

/// Returns confirmed sales by day, category or store, sorted by key. A sale counts on the day on which its order was
/// placed, in the time zone of the request.
#[utoipa::path(get, path = "/v1/reports/sales", operation_id = "report_sales", tag = "queries", params(SalesQuery),
    responses((status = 200, description = "The rows of the report.", body = Vec<Sale>)),
    extensions(("x-problems" = json!(["forbidden", "projection-behind"]))))]
async fn sales_report(
    State(api): State<QueryApi>,
    principal: Principal,
    Query(query): Query<SalesQuery>,
) -> Result<Response, Problem> {
    principal.staff_only()?;
    let Zone(zone) = query.timezone.unwrap_or_default();
    let from = query.from.map(|from| quarter("from", from, from.first_us(&zone))).transpose()?;
    let to = query.to.map(|to| quarter("to", to, to.end_us(&zone))).transpose()?;
    let period = Period { from, to };
    let has_quarters = query.by == Dimension::Day && zone != TimeZone::UTC || !period.is_whole_days();
    let projection = if has_quarters { &sales::QUARTERS_PROJECTION } else { &sales::PROJECTION };
    // `None`: the time zone changes its offset too often in the period.
    let report = || async {
        let db = api.store.db();
        if query.by != Dimension::Day || zone == TimeZone::UTC {
            return sales::report(db, query.by, period).await.map(Some);
        }
        match sales::quarters(db).await? {
            None => Ok(Some(Vec::new())),
            Some((first, last)) => {
                let (from, to) = (from.unwrap_or(first).max(first), to.unwrap_or(last + 1).min(last + 1));
                let periods = offsets(&zone, from, to);
                match periods.len() {
                    0..=PERIODS_MAX => sales::by_local_day(db, &periods).await.map(Some),
                    _ => Ok(None),
                }
            }
        }
    };
    let (position, report) = api.read_at(projection.name, query.min_position, query.wait_ms, report).await?;
    let report = report
        .ok_or_else(|| invalid("to", "The sales span thousands of years in this time zone. Send from and to."))?;
    Ok(with_position_header(position, axum::Json(report)))
}

/// Converts a bound in microseconds since 1970 to quarters of an hour.
///
/// # Errors
/// 400 if the bound is a time within a quarter, because sales are counted by quarter.
fn quarter(parameter: &str, bound: DateOrTime, us: i64) -> Result<i64, Problem> {
    // A date may begin within a quarter before 1972, when some zones had other offsets.
    if us % QUARTER_US == 0 || matches!(bound, DateOrTime::Date(_)) {
        return Ok(us.div_euclid(QUARTER_US));
    }
    Err(invalid(parameter, "Must be a date, or a time whose minutes are 00, 15, 30 or 45 and whose seconds are 0."))
}

/// Returns the offsets of a time zone in a period, which is given in quarters of an hour since 1970.
fn offsets(zone: &TimeZone, from: i64, to: i64) -> Vec<OffsetPeriod> {
    let mut periods: Vec<OffsetPeriod> = Vec::new();
    let mut from = from;
    while from < to && periods.len() <= PERIODS_MAX {
        let start = Timestamp::from_microsecond(from.saturating_mul(QUARTER_US)).unwrap_or(Timestamp::MAX);
        let next = zone.following(start).next().map(|transition| transition.timestamp().as_microsecond());
        let next = next.map_or(to, |us| -(-us).div_euclid(QUARTER_US)).clamp(from + 1, to);
        let offset = (i64::from(zone.to_offset(start).seconds()) * 1_000_000).div_euclid(QUARTER_US);
        match periods.last_mut().filter(|last| last.offset == offset) {
            Some(last) => last.to = next,
            None => periods.push(OffsetPeriod { from, to: next, offset }),
        }
        from = next;
    }
    periods
}

/// Query parameters of the list of best sellers.
#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub struct TopQuery {
    /// Ranking: `revenue` or `quantity`.
    #[param(inline)]
    by: By,
    /// Number of products, 1 to 1000. Default: 10.
    #[param(minimum = 1, maximum = 1000)]
    limit: Option<i64>,
    /// Wait until the read model has reached this position.
    min_position: Option<i64>,
    /// Longest wait for `min_position`, in milliseconds, at most 10000. Default: 1000.
    #[param(maximum = 10_000)]
    wait_ms: Option<u64>,
}

/// Lists the best-selling products of confirmed orders.
#[utoipa::path(get, path = "/v1/products/top", operation_id = "list_top_products", tag = "queries", params(TopQuery),
    responses((status = 200, description = "The products, best-selling first.", body = Vec<Product>)),
    extensions(("x-problems" = json!(["forbidden"]))))]
async fn top_products(
    State(api): State<QueryApi>,
    principal: Principal,
    Query(query): Query<TopQuery>,
) -> Result<Response, Problem> {
    principal.staff_only()?;
    let limit = query.limit.unwrap_or(10);
    if !(1..=LIMIT_MAX).contains(&limit) {
        return Err(invalid("limit", &format!("Must be 1 to {LIMIT_MAX}.")));
    }
    let top = || products::top(api.store.db(), query.by, limit);
    let (position, top) = api.read_at(products::PROJECTION.name, query.min_position, query.wait_ms, top).await?;
    Ok(with_position_header(position, axum::Json(top)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn quarter_of(text: &str) -> i64 {
        text.parse::<Timestamp>().expect("a time").as_microsecond() / QUARTER_US
    }

    #[test]
    fn a_time_zone_is_divided_at_its_changes() {
        let [from, spring, autumn, to] =
            ["2024-01-01T00:00:00Z", "2024-03-31T01:00:00Z", "2024-10-27T01:00:00Z", "2025-01-01T00:00:00Z"]
                .map(quarter_of);
        let of = |name: &str| offsets(&TimeZone::get(name).expect("a time zone"), from, to);
        assert_eq!(
            of("Europe/Berlin"),
            [
                OffsetPeriod { from, to: spring, offset: 4 },
                OffsetPeriod { from: spring, to: autumn, offset: 8 },
                OffsetPeriod { from: autumn, to, offset: 4 },
            ]
        );
        assert_eq!(of("Asia/Kathmandu"), [OffsetPeriod { from, to, offset: 23 }]);
        assert_eq!(of("America/St_Johns").iter().map(|period| period.offset).collect::<Vec<_>>(), [-14, -10, -14]);
        assert_eq!(of("Australia/Lord_Howe").iter().map(|period| period.offset).collect::<Vec<_>>(), [44, 42, 44]);
        assert_eq!(offsets(&TimeZone::UTC, to, from), []);
    }
}
