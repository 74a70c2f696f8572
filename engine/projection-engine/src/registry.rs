//! The projections of a program, in checkpoint groups.

use std::collections::HashSet;
use std::sync::Arc;

use event_store::event::RecordedEvent;
use event_store::table::{Column, Merge};
use kernel::aggregate::History;

use crate::projection::{AnyAggregate, AnyObserver, AnyProjection};

/// Name of the checkpoint group of the built-in contexts. Every release uses this name for their checkpoints.
pub const CORE: &str = "core";

/// A checkpoint group: projections that follow the log together. Each group has its own checkpoints, leader, dead
/// letters and rebuilds, so a failure in one group does not delay another.
pub struct Group {
    /// Name of the group.
    pub name: &'static str,
    /// Projections of the group.
    pub projections: Vec<&'static dyn AnyProjection>,
    /// Observers of the changes that the group projects for the first time.
    pub observers: Vec<&'static dyn AnyObserver>,
}

/// All checkpoint groups of a program. Cheap to clone.
#[derive(Clone)]
pub struct Registry(Arc<[Group]>);

impl Registry {
    /// Creates a registry. Checks that the names of projections and tables are unique, and that each fold fits its
    /// aggregate and its columns.
    ///
    /// # Errors
    /// A text that names the projection and the rule that it breaks.
    pub fn new(groups: Vec<Group>) -> Result<Self, String> {
        let mut names = HashSet::new();
        let mut tables = HashSet::new();
        for group in &groups {
            for projection in &group.projections {
                let name = projection.name();
                if !names.insert(name) {
                    return Err(format!("two projections are named {name}"));
                }
                for table in projection.tables() {
                    if !tables.insert(table.name) {
                        return Err(format!(
                            "two projections have a table named {}; one of them is {name}",
                            table.name
                        ));
                    }
                }
                let adds = |column: &&Column| matches!(column.merge, Merge::Add | Merge::Min | Merge::Max);
                let mut columns = projection.tables().iter().flat_map(|table| table.columns);
                if let Some(column) = columns.find(|column| projection.needs().events && adds(column)) {
                    return Err(format!(
                        "the projection {name} folds events, so the values of its rows are absolute: its column {} must not add or compare values",
                        column.name
                    ));
                }
                if projection.needs().state && projection.aggregate().history() == History::Unbounded {
                    return Err(format!(
                        "the projection {name} folds states of the aggregate `{}`, whose history is unbounded: fold its events instead",
                        projection.aggregate().aggregate_type()
                    ));
                }
            }
        }
        Ok(Self(groups.into()))
    }

    /// Returns all groups.
    pub fn groups(&self) -> &[Group] {
        &self.0
    }

    /// Returns a group by name.
    pub fn group(&self, name: &str) -> Option<&Group> {
        self.0.iter().find(|group| group.name == name)
    }

    /// Returns all projections of all groups.
    pub fn projections(&self) -> impl Iterator<Item = &'static dyn AnyProjection> {
        self.0.iter().flat_map(|group| group.projections.iter().copied())
    }

    /// Whether a group may have rows of an aggregate type: it folds the type, or it belongs to another program, whose
    /// projections are unknown.
    pub(crate) fn may_fold(&self, group: &str, aggregate_type: &str) -> bool {
        self.group(group).is_none_or(|group| {
            group.projections.iter().any(|projection| projection.aggregate().aggregate_type() == aggregate_type)
        })
    }

    /// Returns a projection by name, with its group.
    pub fn find(&self, name: &str) -> Option<(&Group, &'static dyn AnyProjection)> {
        self.0.iter().find_map(|group| Some((group, group.find(name)?)))
    }

    /// Returns all aggregate types that are projected.
    pub fn aggregates(&self) -> Vec<&'static dyn AnyAggregate> {
        distinct(self.projections())
    }

    /// Returns why an event cannot be decoded; `None` if it can, or if its aggregate type is not projected.
    pub fn undecodable(&self, event: &RecordedEvent) -> Option<String> {
        let kinds = self.aggregates();
        kinds.iter().find(|kind| kind.aggregate_type() == event.aggregate_type)?.undecodable(event)
    }
}

/// Returns the name of the leader role for projecting a group. The core group has the same role name in every release.
pub fn projection_role(group: &str) -> String {
    if group == CORE { "projections".to_owned() } else { format!("projections of {group}") }
}

/// Returns the name of the leader role for rebuilding projections of a group. The core group has the same role name in
/// every release.
pub fn rebuild_role(group: &str) -> String {
    if group == CORE { "rebuild".to_owned() } else { format!("rebuild of {group}") }
}

impl Group {
    /// Returns a projection of the group by name.
    pub fn find(&self, name: &str) -> Option<&'static dyn AnyProjection> {
        self.projections.iter().copied().find(|projection| projection.name() == name)
    }

    /// Returns the aggregate types that the group's projections fold.
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
