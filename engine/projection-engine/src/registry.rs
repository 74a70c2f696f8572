//! The read models of a program, in groups.

use std::collections::HashSet;
use std::sync::Arc;

use event_store::event::RecordedEvent;
use event_store::table::{Column, Merge};
use kernel::aggregate::History;

use crate::projection::{AnyAggregate, AnyObserver, AnyProjection};

/// The group of the built-in contexts. Its checkpoints are those of every release.
pub const CORE: &str = "core";

/// Read models that follow the log together. A group has its own checkpoints, leader, dead letters and rebuilds: what
/// fails in one does not hold up another.
pub struct Group {
    /// Its name.
    pub name: &'static str,
    /// Its read models.
    pub projections: Vec<&'static dyn AnyProjection>,
    /// Who is called with what the group projects for the first time.
    pub observers: Vec<&'static dyn AnyObserver>,
}

/// Every group; cheap to clone.
#[derive(Clone)]
pub struct Registry(Arc<[Group]>);

impl Registry {
    /// Checks that names are used once and that every fold can work.
    ///
    /// # Errors
    /// What cannot be, and who it is about.
    pub fn new(groups: Vec<Group>) -> Result<Self, String> {
        let mut names = HashSet::new();
        let mut tables = HashSet::new();
        for group in &groups {
            for projection in &group.projections {
                let name = projection.name();
                if !names.insert(name) {
                    return Err(format!("two read models are named {name}"));
                }
                for table in projection.tables() {
                    if !tables.insert(table.name) {
                        return Err(format!("two read models have a table {}, one of them is {name}", table.name));
                    }
                }
                let adds = |column: &&Column| matches!(column.merge, Merge::Add | Merge::Min | Merge::Max);
                let mut columns = projection.tables().iter().flat_map(|table| table.columns);
                if let Some(column) = columns.find(|column| projection.needs().events && adds(column)) {
                    return Err(format!(
                        "the read model {name} folds events, so a row's values are absolute: its column {} must be set",
                        column.name
                    ));
                }
                if projection.needs().state && projection.aggregate().history() == History::Unbounded {
                    return Err(format!(
                        "the read model {name} folds the states of `{}`, whose history is unbounded: fold its events",
                        projection.aggregate().aggregate_type()
                    ));
                }
            }
        }
        Ok(Self(groups.into()))
    }

    /// Every group.
    pub fn groups(&self) -> &[Group] {
        &self.0
    }

    /// A group by name.
    pub fn group(&self, name: &str) -> Option<&Group> {
        self.0.iter().find(|group| group.name == name)
    }

    /// Every read model.
    pub fn projections(&self) -> impl Iterator<Item = &'static dyn AnyProjection> {
        self.0.iter().flat_map(|group| group.projections.iter().copied())
    }

    /// Whether a group may have rows of a kind of aggregate: it folds it, or belongs to another program.
    pub(crate) fn may_fold(&self, group: &str, aggregate_type: &str) -> bool {
        self.group(group).is_none_or(|group| {
            group.projections.iter().any(|projection| projection.aggregate().aggregate_type() == aggregate_type)
        })
    }

    /// A read model by name, with its group.
    pub fn find(&self, name: &str) -> Option<(&Group, &'static dyn AnyProjection)> {
        self.0.iter().find_map(|group| Some((group, group.find(name)?)))
    }

    /// Every kind of aggregate that is projected.
    pub fn aggregates(&self) -> Vec<&'static dyn AnyAggregate> {
        distinct(self.projections())
    }

    /// Why an event cannot be decoded by its kind of aggregate, if it cannot.
    pub fn undecodable(&self, event: &RecordedEvent) -> Option<String> {
        let kinds = self.aggregates();
        kinds.iter().find(|kind| kind.aggregate_type() == event.aggregate_type)?.undecodable(event)
    }
}

/// Name of the leadership of whoever projects a group: that of the core group is the one of every release.
pub fn projecting(group: &str) -> String {
    if group == CORE { "projections".to_owned() } else { format!("projections of {group}") }
}

/// Name of the leadership of whoever rebuilds read models of a group.
pub fn rebuilding(group: &str) -> String {
    if group == CORE { "rebuild".to_owned() } else { format!("rebuild of {group}") }
}

impl Group {
    /// A read model of it by name.
    pub fn find(&self, name: &str) -> Option<&'static dyn AnyProjection> {
        self.projections.iter().copied().find(|projection| projection.name() == name)
    }

    /// The kinds of aggregates that its read models fold.
    pub(crate) fn aggregates(&self) -> Vec<&'static dyn AnyAggregate> {
        distinct(self.projections.iter().copied())
    }
}

fn distinct(projections: impl Iterator<Item = &'static dyn AnyProjection>) -> Vec<&'static dyn AnyAggregate> {
    let mut kinds: Vec<&'static dyn AnyAggregate> = Vec::new();
    for kind in projections.map(|projection| projection.aggregate()) {
        if kinds.iter().all(|known| known.aggregate_type() != kind.aggregate_type()) {
            kinds.push(kind);
        }
    }
    kinds
}
