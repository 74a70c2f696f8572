//! The rows of a table that follow from the log.

use std::collections::HashMap;
use std::hash::{BuildHasher, RandomState};

use event_store::table::{Column, Merge, Table, Value};

use crate::generation::Generation;

pub(crate) type Key = Vec<Value>;

/// The rows of a table that follow from the log. Rows of tables that merge values are kept whole. In other tables the
/// last write replaces a row, so only the hash of each row is kept.
pub(crate) struct Expected {
    pub(crate) generation: Generation,
    pub(crate) table: &'static Table,
    /// Whether the table has columns that merge values, such as sums.
    pub(crate) sums: bool,
    pub(crate) rows: HashMap<Key, Vec<Value>>,
    pub(crate) hashes: HashMap<Key, u64>,
}

impl Expected {
    pub(crate) fn new(generation: Generation, table: &'static Table) -> Self {
        let sums = table.columns.iter().any(|column| !matches!(column.merge, Merge::Key | Merge::Set));
        Self { generation, table, sums, rows: HashMap::new(), hashes: HashMap::new() }
    }

    pub(crate) fn write(&mut self, row: Vec<Value>, hasher: &RandomState) {
        let key = key(self.table, &row);
        if !self.sums {
            self.hashes.insert(key, hasher.hash_one(&row));
            return;
        }
        match self.rows.get_mut(&key) {
            None => drop(self.rows.insert(key, row)),
            Some(known) => {
                let at = |name| self.table.columns.iter().position(|column| column.name == name);
                let number = |row: &[Value], name| match at(name).map(|at| &row[at]) {
                    Some(Value::Int(number)) => *number,
                    _ => None,
                };
                let stays =
                    |column: &Column| matches!(column.merge, Merge::Latest(by) if number(&row, by) < number(known, by));
                let stay: Vec<bool> = self.table.columns.iter().map(stays).collect();
                for (((known, new), column), stays) in known.iter_mut().zip(row).zip(self.table.columns).zip(stay) {
                    *known = match (column.merge, &*known, &new) {
                        (Merge::Latest(_), old, _) if stays => old.clone(),
                        (Merge::Add, Value::Int(Some(a)), Value::Int(Some(b))) => a.saturating_add(*b).into(),
                        (Merge::Min, Value::Int(a), Value::Int(b)) => Value::Int(*a.min(b)),
                        (Merge::Max, Value::Int(a), Value::Int(b)) => Value::Int(*a.max(b)),
                        _ => new,
                    };
                }
            }
        }
    }

    pub(crate) fn len(&self) -> usize {
        self.rows.len() + self.hashes.len()
    }

    /// Removes a row of the database from the expected rows; returns false and removes nothing when the row is not as
    /// expected.
    pub(crate) fn take(&mut self, row: &[Value], hasher: &RandomState) -> bool {
        let key = key(self.table, row);
        match self.sums {
            true => self.rows.get(&key).is_some_and(|expected| expected == row) && self.rows.remove(&key).is_some(),
            false => self.hashes.get(&key) == Some(&hasher.hash_one(row)) && self.hashes.remove(&key).is_some(),
        }
    }
}

/// Returns the values of a row's primary key.
pub(crate) fn key(table: &Table, row: &[Value]) -> Key {
    let columns = table.columns.iter().zip(row);
    columns.filter(|(column, _)| column.merge == Merge::Key).map(|(_, value)| value.clone()).collect()
}
