//! A second external module. It folds an aggregate of the first one into sums, which reveal an event that is applied
//! twice.

use event_store::table::{Merge, Table, int, text};
use projection_engine::change::{Change, Rows};
use projection_engine::projection::{Fold, Projection};
use server::module::Module;

use crate::counter::Counter;

static TABLE: Table = Table {
    name: "audit_owners",
    columns: &[text("owner", Merge::Key), int("counters", Merge::Add), int("sum", Merge::Add)],
    indexes: &[],
};

/// The number of counters and the sum of each owner.
static PROJECTION: Projection<Counter> =
    Projection { name: "audit_owners", version: 1, tables: &[&TABLE], fold: Fold::OfState(fold) };

fn fold(changes: &[Change<Counter>]) -> Vec<Rows> {
    let mut owners = std::collections::HashMap::<String, (i64, i64)>::new();
    for Change { before, after } in changes {
        let (counters, sum) = owners.entry(after.state.owner().to_owned()).or_default();
        *counters += i64::from(before.is_none());
        *sum += after.state.sum() - before.as_ref().map_or(0, |before| before.state.sum());
    }
    let rows = owners.into_iter().map(|(owner, (counters, sum))| vec![owner.into(), counters.into(), sum.into()]);
    vec![(&TABLE, rows.collect())]
}

/// Returns the module.
pub fn audit() -> Module {
    Module { needs: vec!["toy"], projections: vec![&PROJECTION], ..Module::new("audit") }
}
