//! Groups that cannot work are refused before anything starts.

use event_store::table::{Merge, Table, int, text};
use projection_engine::change::Decoded;
use projection_engine::projection::{Fold, Projection};
use projection_engine::registry::{CORE, Registry};
use testkit::counter::Counter;

use crate::rig::{OTHER, SUMS, group};

static ADDING: Table =
    Table { name: "adding", columns: &[text("id", Merge::Key), int("sum", Merge::Add)], indexes: &[] };
static ADDS_EVENTS: Projection<Counter> = Projection {
    name: "adds",
    version: 1,
    tables: &[&ADDING],
    fold: Fold::OfEvents(|_: &[&Decoded<Counter>]| Vec::new()),
};
static SAME_TABLE: Projection<Counter> =
    Projection { name: "again", version: 1, tables: SUMS.tables, fold: Fold::OfState(|_| Vec::new()) };

fn refusal(groups: Vec<projection_engine::registry::Group>) -> String {
    Registry::new(groups).err().expect("these groups cannot work")
}

#[test]
fn names_and_tables_are_used_once() {
    let twice = refusal(vec![group(CORE, vec![&SUMS]), group(OTHER, vec![&SUMS])]);
    assert!(twice.contains("sums"), "{twice}");
    let shared = refusal(vec![group(CORE, vec![&SUMS, &SAME_TABLE])]);
    assert!(shared.contains("sums") && shared.contains("again"), "{shared}");
}

#[test]
fn rows_of_events_hold_absolute_values() {
    let refused = refusal(vec![group(CORE, vec![&ADDS_EVENTS])]);
    assert!(refused.contains("adds") && refused.contains("sum"), "{refused}");
}
