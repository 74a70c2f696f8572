//! The read model of sales: confirmed sales by day, category and store.
//!
//! The projection `sales` holds sums per day in UTC. The projection `sales_quarters` holds the same sums per quarter of an
//! hour, for days of other time zones: since 1972, the offset of every time zone is a multiple of 15 minutes.

use std::collections::{BTreeSet, HashMap};
use std::hash::Hash;

use domain::order::Order;
use domain::values::{Currency, format_minor};
use event_store::db::Read;
use event_store::error::Error;
use event_store::table::{Merge, Table, Value, int, text};
use jiff::Span;
use jiff::civil::{Date, date};
use serde::{Deserialize, Serialize};

use projection_engine::change::{Change, Rows};
use projection_engine::projection::{Fold, Projection};

/// A quarter of an hour in microseconds.
pub const QUARTER_US: i64 = 15 * 60 * 1_000_000;
/// Quarters of an hour in a day.
const QUARTERS_PER_DAY: i64 = 96;
/// Days from the year 0 to 1970. Added before a division, because both databases round negative numbers up.
const DAYS_BEFORE_1970: i64 = 719_528;

static TABLE: Table = Table {
    name: "sales",
    columns: &[
        // `day`, `category` or `store`. Each is stored per day, so that a report can sum a period.
        text("dimension", Merge::Key),
        // The day, category or store; empty if the order or line has none.
        text("key", Merge::Key),
        // Day on which the order was placed: YYYY-MM-DD in UTC.
        text("day", Merge::Key),
        text("currency", Merge::Key),
        int("orders", Merge::Add),
        int("quantity", Merge::Add),
        int("revenue", Merge::Add),
    ],
    indexes: &[],
};

static QUARTERS: Table = Table {
    name: "sales_quarters",
    columns: &[
        // `day`, `category` or `store`.
        text("dimension", Merge::Key),
        // When the order was placed, in quarters of an hour since 1970 in UTC, rounded down.
        int("quarter", Merge::Key),
        // The category or store; empty if the order or line has none, and for the dimension `day`.
        text("key", Merge::Key),
        text("currency", Merge::Key),
        int("orders", Merge::Add),
        int("quantity", Merge::Add),
        int("revenue", Merge::Add),
    ],
    indexes: &[],
};

/// The projection that fills the table `sales`.
pub static PROJECTION: Projection<Order> =
    Projection { name: "sales", version: 1, tables: &[&TABLE], fold: Fold::OfState(fold_days) };

/// The projection that fills the table `sales_quarters`.
pub static QUARTERS_PROJECTION: Projection<Order> =
    Projection { name: "sales_quarters", version: 1, tables: &[&QUARTERS], fold: Fold::OfState(fold_quarters) };

/// The dimension by which a report is grouped.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Dimension {
    /// The day on which the order was placed.
    Day,
    /// The category of the line.
    Category,
    /// The attribute `store_id` of the order.
    Store,
}

impl Dimension {
    fn as_str(self) -> &'static str {
        match self {
            Self::Day => "day",
            Self::Category => "category",
            Self::Store => "store",
        }
    }
}

/// Sums of orders, quantity and revenue in minor units.
#[derive(Default)]
pub(crate) struct Sum {
    pub(crate) orders: i64,
    pub(crate) quantity: i64,
    pub(crate) revenue: i64,
}

/// Sums by key.
struct Sums<K>(HashMap<K, Sum>);

impl<K: Eq + Hash> Sums<K> {
    fn add(&mut self, key: K, orders: i64, quantity: i64, revenue: i64) {
        let sum = self.0.entry(key).or_default();
        sum.orders += orders;
        sum.quantity += quantity;
        sum.revenue = sum.revenue.saturating_add(revenue);
    }

    /// Returns a row for each key: the values of the key, then the sums.
    fn rows<const N: usize>(self, key: impl Fn(K) -> [Value; N]) -> Vec<Vec<Value>> {
        let row = |(of, Sum { orders, quantity, revenue })| {
            key(of).into_iter().chain([orders.into(), quantity.into(), revenue.into()]).collect()
        };
        self.0.into_iter().map(row).collect()
    }
}

/// Sums the sales of newly confirmed orders. `key` receives the dimension, the quarter of an hour since 1970, the category
/// or store, and the currency.
fn sums<K: Eq + Hash>(changes: &[Change<Order>], key: impl Fn(Dimension, i64, &str, Currency) -> K) -> Sums<K> {
    let mut sums = Sums(HashMap::new());
    for Change { before, after } in changes {
        // `Confirmed` is a final status, so an order is counted once: in the batch that confirms it.
        if !after.state.is_confirmed() || before.as_ref().is_some_and(|before| before.state.is_confirmed()) {
            continue;
        }
        let (quarter, currency) = (after.created_at.div_euclid(QUARTER_US), after.state.currency);
        let mut add = |dimension, of: &str, orders, quantity, revenue| {
            sums.add(key(dimension, quarter, of, currency), orders, quantity, revenue);
        };
        let (quantity, total) = (after.state.quantity(), after.state.total);
        add(Dimension::Day, "", 1, quantity, total);
        add(Dimension::Store, after.state.store_id().unwrap_or_default(), 1, quantity, total);
        let mut seen = BTreeSet::new();
        for line in &after.state.lines {
            let category = line.category.as_ref().map_or("", |category| category.as_str());
            let quantity = i64::from(line.quantity);
            add(Dimension::Category, category, i64::from(seen.insert(category)), quantity, line.total());
        }
    }
    sums
}

fn fold_days(changes: &[Change<Order>]) -> Vec<Rows> {
    let sums = sums(changes, |dimension, quarter, of, currency| {
        (dimension, of.to_owned(), quarter.div_euclid(QUARTERS_PER_DAY), currency)
    });
    let rows = sums.rows(|(dimension, of, day, currency)| {
        let day = day_text(day);
        let key = if dimension == Dimension::Day { day.clone() } else { of };
        [dimension.as_str().into(), key.into(), day.into(), currency.to_string().into()]
    });
    vec![(&TABLE, rows)]
}

fn fold_quarters(changes: &[Change<Order>]) -> Vec<Rows> {
    let sums = sums(changes, |dimension, quarter, of, currency| (dimension, quarter, of.to_owned(), currency));
    let rows = sums.rows(|(dimension, quarter, of, currency)| {
        [dimension.as_str().into(), quarter.into(), of.into(), currency.to_string().into()]
    });
    vec![(&QUARTERS, rows)]
}

/// Returns a day, counted from 1970, as YYYY-MM-DD; the first or last day of the supported years if it is outside.
fn day_text(day: i64) -> String {
    let outside = if day < 0 { Date::ZERO } else { Date::MAX };
    let day = Span::new().try_days(day).and_then(|days| date(1970, 1, 1).checked_add(days)).unwrap_or(outside);
    day.max(Date::ZERO).to_string()
}

/// A row of the report.
#[derive(Debug, Clone, Serialize, utoipa::ToSchema)]
pub struct Sale {
    /// The day, category or store; null if the orders or lines have none.
    pub key: Option<String>,
    /// Currency, as an ISO 4217 code.
    pub currency: String,
    /// Number of confirmed orders that contribute to this row.
    pub orders: i64,
    /// Quantity sold.
    pub quantity: i64,
    /// Revenue as a decimal string in the major unit.
    pub revenue: String,
}

#[derive(sqlx_macros::FromRow)]
struct Row {
    #[sqlx(default)]
    key: String,
    currency: String,
    orders: i64,
    quantity: i64,
    revenue_high: i64,
    revenue_low: i64,
}

#[derive(sqlx_macros::FromRow)]
struct DayRow {
    /// The local day, counted from 1970.
    day: i64,
    #[sqlx(flatten)]
    row: Row,
}

impl Row {
    /// Returns the sum of both halves, limited to the range of a 64-bit integer.
    fn revenue(&self) -> i64 {
        let sum = i128::from(self.revenue_high) * 4_294_967_296 + i128::from(self.revenue_low);
        sum.clamp(i64::MIN.into(), i64::MAX.into()) as i64
    }
}

/// A period in quarters of an hour since 1970: from the first one, to the second one exclusive. Without a bound, it is
/// open on that side.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Period {
    /// First quarter.
    pub from: Option<i64>,
    /// First quarter after the period.
    pub to: Option<i64>,
}

impl Period {
    /// Whether the period consists of whole days in UTC.
    pub fn is_whole_days(self) -> bool {
        [self.from, self.to].into_iter().flatten().all(|quarter| quarter % QUARTERS_PER_DAY == 0)
    }
}

/// A period with one offset from UTC.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct OffsetPeriod {
    /// First quarter of an hour since 1970.
    pub from: i64,
    /// First quarter after the period.
    pub to: i64,
    /// The offset in quarters of an hour, positive east of UTC.
    pub offset: i64,
}

// The casts are needed because PostgreSQL sums 64-bit integers into a wider type. The revenue is summed in two halves
// because the sum may exceed 64 bits, which both databases reject.
const SUMS: &str = "currency, cast(sum(orders) as bigint) as orders, cast(sum(quantity) as bigint) as quantity,
                    cast(sum(revenue / 4294967296) as bigint) as revenue_high,
                    cast(sum(revenue % 4294967296) as bigint) as revenue_low";

/// Returns the report for a period. The days of [`Dimension::Day`] are days in UTC. Rows are ordered by key and
/// currency.
pub async fn report(mut source: impl Read, by: Dimension, period: Period) -> Result<Vec<Sale>, Error> {
    let first_day = period.from.map(|quarter| -(-quarter).div_euclid(QUARTERS_PER_DAY));
    let end_day = period.to.map(|quarter| quarter.div_euclid(QUARTERS_PER_DAY));
    let first_text = first_day.map(day_text).unwrap_or_default();
    let last_text = day_text(end_day.map_or(i64::MAX, |day| day - 1));
    let mut values: Vec<Value> = vec![by.as_str().into(), first_text.into(), last_text.into()];
    let days = "select key, currency, orders, quantity, revenue from sales
                where dimension = $1 and day >= $2 and day <= $3";
    if period.is_whole_days() {
        let sql = format!("select key, {SUMS} from ({days}) as days group by key, currency");
        return Ok(sales(source.rows(&sql, values).await?));
    }
    if by == Dimension::Day {
        let (from, to) = (period.from.unwrap_or(i64::MIN), period.to.unwrap_or(i64::MAX));
        return by_local_day(source, &[OffsetPeriod { from, to, offset: 0 }]).await;
    }
    // The whole days of the period, and the quarters before the first and after the last of them.
    let (first, end) = match (first_day, end_day) {
        (Some(first), Some(end)) if first >= end => (period.to, period.to),
        (first, end) => (first.map(|day| day * QUARTERS_PER_DAY), end.map(|day| day * QUARTERS_PER_DAY)),
    };
    let edges = [period.from.zip(first), end.zip(period.to)];
    for (from, to) in edges.map(Option::unwrap_or_default) {
        values.extend([from.into(), to.into()]);
    }
    let sql = format!(
        "select key, {SUMS} from (
             {days}
             union all
             select key, currency, orders, quantity, revenue from sales_quarters
             where dimension = $1 and (quarter >= $4 and quarter < $5 or quarter >= $6 and quarter < $7)
         ) as parts group by key, currency"
    );
    Ok(sales(source.rows(&sql, values).await?))
}

/// Returns the first and the last quarter of an hour with a sale; `None` if there are no sales.
pub async fn quarters(mut source: impl Read) -> Result<Option<(i64, i64)>, Error> {
    // Two queries, because each finds its answer at one end of the primary key.
    let sql = "select (select min(quarter) from sales_quarters where dimension = 'day'),
                      (select max(quarter) from sales_quarters where dimension = 'day')";
    let rows: Vec<(Option<i64>, Option<i64>)> = source.rows(sql, vec![]).await?;
    Ok(rows.first().and_then(|(first, last)| first.zip(*last)))
}

/// Returns the report by local day: `periods` are the offsets of the time zone, in order. Rows are ordered by day and
/// currency.
pub async fn by_local_day(mut source: impl Read, periods: &[OffsetPeriod]) -> Result<Vec<Sale>, Error> {
    // Padded to a power of two, so that a few different statements cover every number of periods and stay prepared.
    let count = periods.len().next_power_of_two();
    let padded =
        periods.iter().copied().chain(std::iter::repeat(OffsetPeriod { from: 0, to: 0, offset: 0 })).take(count);
    let values = padded.flat_map(|period| [period.from.into(), period.to.into(), period.offset.into()]).collect();
    let places: Vec<_> = (0..count).map(|at| format!("(${}, ${}, ${})", 3 * at + 1, 3 * at + 2, 3 * at + 3)).collect();
    let sql = format!(
        "select (quarter + column3 + {bias}) / {QUARTERS_PER_DAY} - {DAYS_BEFORE_1970} as day, {SUMS}
         from (values {places}) as offsets cross join sales_quarters
         where dimension = 'day' and quarter >= column1 and quarter < column2
         group by 1, currency",
        bias = DAYS_BEFORE_1970 * QUARTERS_PER_DAY,
        places = places.join(", ")
    );
    let rows: Vec<DayRow> = source.rows(&sql, values).await?;
    let rows = rows.into_iter().map(|DayRow { day, row }| Row { key: day_text(day), ..row });
    Ok(sales(rows.collect()))
}

/// Converts rows to the report. They are sorted here because the collations of the databases differ.
fn sales(mut rows: Vec<Row>) -> Vec<Sale> {
    rows.sort_by(|a, b| (&a.key, &a.currency).cmp(&(&b.key, &b.currency)));
    rows.into_iter()
        .map(|row| Sale {
            revenue: format_minor(row.revenue(), row.currency.parse().unwrap_or_default()),
            key: (!row.key.is_empty()).then_some(row.key),
            currency: row.currency,
            orders: row.orders,
            quantity: row.quantity,
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn days_are_limited_to_the_years_of_rfc_3339() {
        let days = [-1, 0, 19_792, 2_932_896, 2_932_897, i64::MAX, -719_528, -719_529, i64::MIN];
        let texts = ["1969-12-31", "1970-01-01", "2024-03-10", "9999-12-31", "9999-12-31", "9999-12-31"];
        let texts = texts.into_iter().chain(["0000-01-01"; 3]);
        assert!(days.into_iter().map(day_text).eq(texts));
    }
}
