//! Tables of read models: rows are text and integers, and the SQL that makes and fills a table stands here for both
//! databases, so that a projection is written once.

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

/// What a written row does to the row that is there.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Merge {
    /// Part of the primary key.
    Key,
    /// Replaces.
    Set,
    /// Is added, up to the largest integer.
    Add,
    /// The smaller stays.
    Min,
    /// The larger stays.
    Max,
    /// Replaces, unless the row that is there has the larger value in this integer column: it came later, whatever the
    /// order of writing.
    Latest(&'static str),
}

/// A column of a read model's table.
#[derive(Debug, Clone, Copy)]
pub struct Column {
    /// Its name in both databases.
    pub name: &'static str,
    /// What a written row does to it.
    pub merge: Merge,
    pub(crate) int: bool,
    nullable: bool,
}

/// A text column.
pub const fn text(name: &'static str, merge: Merge) -> Column {
    Column { name, merge, int: false, nullable: false }
}

/// An integer column.
pub const fn int(name: &'static str, merge: Merge) -> Column {
    Column { name, merge, int: true, nullable: false }
}

impl Column {
    /// The same column, which may be null.
    pub const fn nullable(self) -> Self {
        Self { nullable: true, ..self }
    }
}

/// A read model's table. Each generation has a table of its own behind one view, which has the table's name and is what
/// queries read.
#[derive(Debug, Clone, Copy)]
pub struct Table {
    /// Its name in both databases.
    pub name: &'static str,
    /// Its columns, in the order of a row's values.
    pub columns: &'static [Column],
    /// The columns of each index besides the primary key, as SQL.
    pub indexes: &'static [&'static str],
}

impl Table {
    /// What is wrong with a row, if anything: a value for each column, of its kind.
    pub fn fault(&self, row: &[Value]) -> Option<String> {
        if row.len() != self.columns.len() {
            let (values, columns) = (row.len(), self.columns.len());
            return Some(format!("a row of {} has {values} values for {columns} columns", self.name));
        }
        let mut pairs = self.columns.iter().zip(row);
        let wrong = pairs.find(|(column, value)| column.int != matches!(value, Value::Int(_)));
        let (column, _) = wrong?;
        let kind = if column.int { "an integer" } else { "a text" };
        Some(format!("the column {} of {} takes {kind}", column.name, self.name))
    }

    /// Name of the table that holds a generation.
    pub(crate) fn of(&self, generation: i64) -> String {
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
        format!("create table {} ({}, primary key ({})){tail}", self.of(generation), columns.join(", "), self.key())
    }

    fn on_conflict(&self, generation: i64, sqlite: bool) -> String {
        let sets: Vec<_> = self
            .columns
            .iter()
            .filter(|c| c.merge != Merge::Key)
            .map(|Column { name, merge, .. }| {
                let table = self.of(generation);
                match merge {
                    // SQLite adds in floating point where integers end, and the cast stops at the largest.
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

    /// One array a column: PostgreSQL plans the statement once, whatever the number of rows.
    pub(crate) fn postgres_sql(&self, generation: i64) -> String {
        let arrays: Vec<_> = self
            .columns
            .iter()
            .enumerate()
            .map(|(at, c)| format!("${}::{}[]", at + 1, if c.int { "bigint" } else { "text" }))
            .collect();
        let (name, columns) = (self.of(generation), self.column_names());
        let merge = self.on_conflict(generation, false);
        format!("insert into {name} ({columns}) select * from unnest({}) {merge}", arrays.join(", "))
    }

    /// Many rows of placeholders: SQLite has no arrays.
    pub(crate) fn sqlite_sql(&self, generation: i64, rows: usize) -> String {
        let row = format!("({})", vec!["?"; self.columns.len()].join(", "));
        let (name, columns) = (self.of(generation), self.column_names());
        format!(
            "insert into {name} ({columns}) values {} {}",
            vec![row; rows].join(", "),
            self.on_conflict(generation, true)
        )
    }
}

/// Rows in one SQLite statement, at most.
const SQLITE_ROWS: usize = 64;

/// Rows cut into pieces whose lengths are powers of two, so that few different statements serve every number of rows,
/// and each is prepared once and kept.
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
