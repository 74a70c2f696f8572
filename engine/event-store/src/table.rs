//! Tables of read models. Rows consist of text and integers. The SQL that creates and fills a table is generated here
//! for both databases, so that a projection is written only once.

/// A column's value.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Value {
    /// Text, or null.
    Text(Option<String>),
    /// A 64-bit integer, or null.
    Int(Option<i64>),
}

impl From<&str> for Value {
    fn from(text: &str) -> Self {
        Self::Text(Some(text.to_owned()))
    }
}
impl From<String> for Value {
    fn from(text: String) -> Self {
        Self::Text(Some(text))
    }
}
impl From<Option<String>> for Value {
    fn from(text: Option<String>) -> Self {
        Self::Text(text)
    }
}
impl From<i64> for Value {
    fn from(number: i64) -> Self {
        Self::Int(Some(number))
    }
}
impl From<Option<i64>> for Value {
    fn from(number: Option<i64>) -> Self {
        Self::Int(number)
    }
}

/// How a written row changes the column of an existing row with the same key.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Merge {
    /// The column is part of the primary key.
    Key,
    /// The new value replaces the old one.
    Set,
    /// The new value is added to the old one; the sum is limited to the largest 64-bit integer.
    Add,
    /// The smaller value is kept.
    Min,
    /// The larger value is kept.
    Max,
    /// The new value replaces the old one, unless the existing row has a larger value in the named integer column. The
    /// result therefore does not depend on the order of writes.
    Latest(&'static str),
}

/// A column of a read model's table.
#[derive(Debug, Clone, Copy)]
pub struct Column {
    /// Name of the column in both databases.
    pub name: &'static str,
    /// How a written row changes the column.
    pub merge: Merge,
    pub(crate) int: bool,
    nullable: bool,
}

/// Declares a text column.
pub const fn text(name: &'static str, merge: Merge) -> Column {
    Column { name, merge, int: false, nullable: false }
}

/// Declares an integer column.
pub const fn int(name: &'static str, merge: Merge) -> Column {
    Column { name, merge, int: true, nullable: false }
}

impl Column {
    /// Allows null in the column.
    pub const fn nullable(self) -> Self {
        Self { nullable: true, ..self }
    }
}

/// A table of a read model. Each generation has its own table. Queries read a view, which has the name of this
/// declaration and shows the serving generation.
#[derive(Debug, Clone, Copy)]
pub struct Table {
    /// Name of the view in both databases; also the prefix of the tables' names.
    pub name: &'static str,
    /// The columns, in the order of a row's values.
    pub columns: &'static [Column],
    /// The columns of each index besides the primary key, as SQL: for example `created_at, id`.
    pub indexes: &'static [&'static str],
}

impl Table {
    /// Returns why a row does not fit the table: it must have one value of the right type for each column. `None` when
    /// it fits.
    pub fn row_error(&self, row: &[Value]) -> Option<String> {
        if row.len() != self.columns.len() {
            let (values, columns) = (row.len(), self.columns.len());
            return Some(format!("a row of {} has {values} values for {columns} columns", self.name));
        }
        let mut pairs = self.columns.iter().zip(row);
        let wrong = pairs.find(|(column, value)| column.int != matches!(value, Value::Int(_)));
        let (column, _) = wrong?;
        let kind = if column.int { "an integer value" } else { "a text value" };
        Some(format!("the column {} of {} must have {kind}", column.name, self.name))
    }

    /// Returns the name of the table of a generation.
    pub(crate) fn generation_table(&self, generation: i64) -> String {
        format!("{}_g{generation}", self.name)
    }

    pub(crate) fn key(&self) -> String {
        let key: Vec<_> = self.columns.iter().filter(|c| c.merge == Merge::Key).map(|c| c.name).collect();
        key.join(", ")
    }

    pub(crate) fn create_sql(&self, generation: i64, int: &str, tail: &str) -> String {
        let columns: Vec<_> = self
            .columns
            .iter()
            .map(|c| {
                let null = if c.nullable { "" } else { " not null" };
                format!("{} {}{null}", c.name, if c.int { int } else { "text" })
            })
            .collect();
        format!(
            "create table {} ({}, primary key ({})){tail}",
            self.generation_table(generation),
            columns.join(", "),
            self.key()
        )
    }

    fn on_conflict(&self, generation: i64, sqlite: bool) -> String {
        let sets: Vec<_> = self
            .columns
            .iter()
            .filter(|c| c.merge != Merge::Key)
            .map(|Column { name, merge, .. }| {
                let table = self.generation_table(generation);
                match merge {
                    // SQLite adds in floating point when integers overflow, and the cast then limits the sum to the
                    // largest integer.
                    Merge::Add if sqlite => format!("{name} = cast({table}.{name} + excluded.{name} as integer)"),
                    Merge::Add => {
                        format!("{name} = least({table}.{name}::numeric + excluded.{name}, {})::bigint", i64::MAX)
                    }
                    Merge::Min => {
                        format!("{name} = case when excluded.{name} < {table}.{name} then excluded.{name} else {table}.{name} end")
                    }
                    Merge::Max => {
                        format!("{name} = case when excluded.{name} > {table}.{name} then excluded.{name} else {table}.{name} end")
                    }
                    Merge::Latest(by) => {
                        format!("{name} = case when excluded.{by} >= {table}.{by} then excluded.{name} else {table}.{name} end")
                    }
                    Merge::Set | Merge::Key => format!("{name} = excluded.{name}"),
                }
            })
            .collect();
        format!("on conflict ({}) do update set {}", self.key(), sets.join(", "))
    }

    pub(crate) fn column_names(&self) -> String {
        self.columns.iter().map(|c| c.name).collect::<Vec<_>>().join(", ")
    }

    /// Returns the statement that writes rows. It has one array for each column, so that PostgreSQL plans it once for
    /// any number of rows.
    pub(crate) fn postgres_sql(&self, generation: i64) -> String {
        let arrays: Vec<_> = self
            .columns
            .iter()
            .enumerate()
            .map(|(at, c)| format!("${}::{}[]", at + 1, if c.int { "bigint" } else { "text" }))
            .collect();
        let (name, columns) = (self.generation_table(generation), self.column_names());
        let merge = self.on_conflict(generation, false);
        format!("insert into {name} ({columns}) select * from unnest({}) {merge}", arrays.join(", "))
    }

    /// Returns the statement that writes this number of rows. It has one placeholder for each value, because SQLite has
    /// no arrays.
    pub(crate) fn sqlite_sql(&self, generation: i64, rows: usize) -> String {
        let row = format!("({})", vec!["?"; self.columns.len()].join(", "));
        let (name, columns) = (self.generation_table(generation), self.column_names());
        format!(
            "insert into {name} ({columns}) values {} {}",
            vec![row; rows].join(", "),
            self.on_conflict(generation, true)
        )
    }
}

/// Maximum number of rows in one SQLite statement.
const SQLITE_ROWS: usize = 64;

/// Splits rows into chunks whose lengths are powers of two. A few different statements then cover every number of rows,
/// and each stays prepared.
pub(crate) fn sqlite_chunks<T>(mut rows: &[T]) -> impl Iterator<Item = &[T]> {
    std::iter::from_fn(move || {
        let length = match rows.len() {
            0 => return None,
            SQLITE_ROWS.. => SQLITE_ROWS,
            length => 1 << length.ilog2(),
        };
        let (chunk, rest) = rows.split_at(length);
        rows = rest;
        Some(chunk)
    })
}
