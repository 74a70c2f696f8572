//! Rows of reactors in the log's database: checkpoints, backlog, deadlines.
//!
//! A reaction changes them in the transaction of its append ([`crate::append::ReactionMove`]). This module reads them,
//! registers reactors when a process starts, and makes the changes of operators. Each change by an operator raises the
//! checkpoint's fence: the next append of the reactor's leader is refused, and the leader reads all rows again.

use compact_str::CompactString;

use crate::append::{BacklogEntry, BacklogKey, Deadline, DeadlineKey};
use crate::db::{Db, Tx};
use crate::error::Error;
use crate::now_us;
use crate::store::Store;
use crate::table::Value;

/// The only partition of a reactor in this release.
pub const PARTITION: i64 = 0;

/// Reason for which reactors are held while a log is imported, and after an import that was not completed.
pub const IMPORT_INCOMPLETE: &str = "an import of the log is not complete";

/// Start position of a reactor that a store does not contain.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StartFrom {
    /// The end of the log: the reactor handles only later events.
    Now,
    /// The first event of the log.
    Beginning,
}

/// Registers a reactor in the store when a process starts.
#[derive(Debug, Clone, Copy)]
pub struct Registration {
    /// Name of the reactor.
    pub name: &'static str,
    /// Start position of the reactor.
    pub start_from: StartFrom,
    /// The reactor's name in an earlier release, from which its checkpoint and backlog are moved.
    pub renamed_from: Option<&'static str>,
}

/// The checkpoint of a reactor.
#[derive(Debug, Clone, PartialEq, Eq, sqlx_macros::FromRow)]
pub struct ReactorCheckpoint {
    /// Name of the reactor.
    pub reactor: String,
    /// Position of the last event that the reactor has handled or put into its backlog.
    pub position: i64,
    /// Fence, raised by every new leader and by every change of an operator.
    pub fence: i64,
    /// Time of the last move, in microseconds since 1970.
    pub updated_at: i64,
    /// Reason why the reactor is held; `None` when it runs.
    pub held: Option<String>,
}

/// Counts of a reactor's unsettled events and keys.
#[derive(Debug, Clone, Default, PartialEq, Eq, sqlx_macros::FromRow)]
pub struct BacklogSummary {
    /// Name of the reactor.
    pub reactor: String,
    /// Number of events in the backlog.
    pub events: i64,
    /// Number of keys that have events in the backlog.
    pub keys: i64,
    /// Number of keys that are parked: their first event waits for an operator.
    pub parked: i64,
    /// Time when the oldest event of the backlog was recorded, in microseconds since 1970.
    pub oldest: Option<i64>,
}

/// Counts of the deadlines of a process type.
#[derive(Debug, Clone, Default, PartialEq, Eq, sqlx_macros::FromRow)]
pub struct DeadlineSummary {
    /// Type of the process.
    pub process: String,
    /// Number of deadlines.
    pub open: i64,
    /// Time of the earliest deadline, in microseconds since 1970.
    pub next: i64,
}

#[derive(sqlx_macros::FromRow)]
struct BacklogRow {
    key: String,
    position: i64,
    attempts: i64,
    due_at: Option<i64>,
    reason: Option<String>,
}

#[derive(sqlx_macros::FromRow)]
struct DeadlineRow {
    process: String,
    id: String,
    name: String,
    due_at: i64,
}

impl From<BacklogRow> for BacklogEntry {
    fn from(row: BacklogRow) -> Self {
        let BacklogRow { key, position, attempts, due_at, reason } = row;
        Self { event: BacklogKey { key: key.into(), position }, attempts, due_at, reason }
    }
}

const CHECKPOINTS: &str = "select reactor, position, fence, updated_at, held from reactor_checkpoints
                           where partition = 0 order by reactor";

/// Condition for the first event of each key: the later events of the key wait for it.
const IS_FIRST: &str = "not exists (select 1 from reactor_backlog before
                                    where before.reactor = b.reactor and before.partition = b.partition
                                          and before.key = b.key and before.position < b.position)";

const BACKLOG: &str = "select b.key, b.position, b.attempts, b.due_at, b.reason from reactor_backlog b";

/// Access to the rows of reactors. Cheap to clone.
#[derive(Clone)]
pub struct Reactions(Db);

impl Store {
    /// Returns the access to the rows of reactors.
    pub fn reactions(&self) -> Reactions {
        Reactions(self.log_db().clone())
    }
}

impl Reactions {
    /// Registers reactors. The first process that registers a reactor decides its start position; later registrations
    /// change nothing. To be called before the process accepts commands.
    ///
    /// # Errors
    /// The database is unavailable.
    pub async fn register(&self, reactors: &[Registration]) -> Result<(), Error> {
        let is_known = |known: &[ReactorCheckpoint], name: &str| known.iter().any(|one| one.reactor == name);
        let known = self.checkpoints().await?;
        if reactors.iter().all(|reactor| is_known(&known, reactor.name)) {
            return Ok(());
        }
        let mut tx = self.0.begin_durably().await?;
        // In PostgreSQL the unique index also contains the position. The lock ensures that each reactor has one row.
        tx.lock_head().await?;
        let known: Vec<ReactorCheckpoint> = tx.fetch_all(CHECKPOINTS, vec![]).await?;
        for reactor in reactors.iter().filter(|reactor| !is_known(&known, reactor.name)) {
            if let Some(old) = reactor.renamed_from.filter(|old| is_known(&known, old)) {
                tx.rename_reactor(old, reactor.name).await?;
                continue;
            }
            let position = match reactor.start_from {
                StartFrom::Now => "(select position from log_head)",
                StartFrom::Beginning => "0",
            };
            let sql = format!(
                "insert into reactor_checkpoints (reactor, partition, position, fence, updated_at)
                 values ($1, $2, {position}, 1, $3)"
            );
            tx.execute(&sql, vec![reactor.name.into(), PARTITION.into(), now_us().into()]).await?;
        }
        tx.commit().await
    }

    /// Returns the checkpoints of all registered reactors, ordered by name.
    ///
    /// # Errors
    /// The database is unavailable.
    pub async fn checkpoints(&self) -> Result<Vec<ReactorCheckpoint>, Error> {
        self.0.fetch_all(CHECKPOINTS, vec![]).await
    }

    /// Raises the fence of a reactor's checkpoint and returns the checkpoint; `None` when the reactor is not
    /// registered.
    ///
    /// # Errors
    /// The database is unavailable.
    pub async fn acquire(&self, reactor: &str) -> Result<Option<ReactorCheckpoint>, Error> {
        let mut tx = self.0.begin_durably().await?;
        tx.raise_fence(reactor).await?;
        let sql = "select reactor, position, fence, updated_at, held from reactor_checkpoints
                   where partition = 0 and reactor = $1";
        let found = tx.fetch_all(sql, vec![reactor.into()]).await?;
        tx.commit().await?;
        Ok(found.into_iter().next())
    }

    /// Returns the keys that have events in the reactor's backlog, each with the number of its events.
    ///
    /// # Errors
    /// The database is unavailable.
    pub async fn backlog_keys(&self, reactor: &str) -> Result<Vec<(CompactString, i64)>, Error> {
        let sql = "select key, count(*) from reactor_backlog where reactor = $1 and partition = 0 group by key";
        let keys: Vec<(String, i64)> = self.0.fetch_all(sql, vec![reactor.into()]).await?;
        Ok(keys.into_iter().map(|(key, events)| (key.into(), events)).collect())
    }

    /// Returns the first event of each key whose next attempt is due at `now`, in microseconds since 1970; the earliest
    /// due time first, at most `limit`.
    ///
    /// # Errors
    /// The database is unavailable.
    pub async fn due_backlog(&self, reactor: &str, now: i64, limit: i64) -> Result<Vec<BacklogEntry>, Error> {
        let sql = format!(
            "{BACKLOG} where b.reactor = $1 and b.partition = 0 and b.due_at <= $2 and {IS_FIRST}
             order by b.due_at limit $3"
        );
        let rows: Vec<BacklogRow> = self.0.fetch_all(&sql, vec![reactor.into(), now.into(), limit.into()]).await?;
        Ok(rows.into_iter().map(Into::into).collect())
    }

    /// Returns the next due time in a reactor's backlog after `after`. Both are in microseconds since 1970.
    ///
    /// # Errors
    /// The database is unavailable.
    pub async fn next_due(&self, reactor: &str, after: i64) -> Result<Option<i64>, Error> {
        let sql = "select min(due_at) from reactor_backlog where reactor = $1 and partition = 0 and due_at > $2";
        let found: Vec<(Option<i64>,)> = self.0.fetch_all(sql, vec![reactor.into(), after.into()]).await?;
        Ok(found.first().and_then(|(due_at,)| *due_at))
    }

    /// Returns the events of a key in the reactor's backlog, in order, at most `limit`.
    ///
    /// # Errors
    /// The database is unavailable.
    pub async fn backlog_of(&self, reactor: &str, key: &str, limit: i64) -> Result<Vec<BacklogEntry>, Error> {
        let sql =
            format!("{BACKLOG} where b.reactor = $1 and b.partition = 0 and b.key = $2 order by b.position limit $3");
        let rows: Vec<BacklogRow> = self.0.fetch_all(&sql, vec![reactor.into(), key.into(), limit.into()]).await?;
        Ok(rows.into_iter().map(Into::into).collect())
    }

    /// Returns the first event of each key in a reactor's backlog, with the key's number of events. Only keys greater
    /// than `after`, ordered by key, at most `limit`.
    ///
    /// # Errors
    /// The database is unavailable.
    pub async fn backlog(
        &self,
        reactor: &str,
        after: Option<&str>,
        limit: i64,
    ) -> Result<Vec<(BacklogEntry, i64)>, Error> {
        let (mut values, mut of_keys) = (vec![reactor.into(), limit.into()], "");
        if let Some(after) = after {
            values.push(after.into());
            of_keys = "and b.key > $3";
        }
        let sql = format!(
            "{BACKLOG} where b.reactor = $1 and b.partition = 0 {of_keys} and {IS_FIRST} order by b.key limit $2"
        );
        let rows: Vec<BacklogRow> = self.0.fetch_all(&sql, values).await?;
        let counts: std::collections::HashMap<_, _> = self.backlog_keys(reactor).await?.into_iter().collect();
        let with_count = |row: BacklogRow| {
            let events = counts.get(row.key.as_str()).copied().unwrap_or(1);
            (row.into(), events)
        };
        Ok(rows.into_iter().map(with_count).collect())
    }

    /// Returns the counts of every reactor that has a backlog.
    ///
    /// # Errors
    /// The database is unavailable.
    pub async fn backlog_summaries(&self) -> Result<Vec<BacklogSummary>, Error> {
        // Only the first event of a key is ever attempted, so an event with attempts and without a due time is parked.
        let sql = "select b.reactor as reactor, b.events as events, b.keys as keys, b.parked as parked,
                          (select e.recorded_at from events e where e.position = b.oldest) as oldest
                   from (select reactor, count(*) as events, count(distinct key) as keys,
                                count(case when due_at is null and attempts > 0 then 1 end) as parked,
                                min(position) as oldest
                         from reactor_backlog group by reactor) b";
        self.0.fetch_all(sql, vec![]).await
    }

    /// Returns the counts of every process type that has deadlines.
    ///
    /// # Errors
    /// The database is unavailable.
    pub async fn deadline_summaries(&self) -> Result<Vec<DeadlineSummary>, Error> {
        let sql = "select process, count(*) as open, min(due_at) as next from process_deadlines group by process";
        self.0.fetch_all(sql, vec![]).await
    }

    /// Returns deadlines of a process type that are due at `now`, in microseconds since 1970, the earliest first: at
    /// most `limit`, after skipping the first `skipped`.
    ///
    /// # Errors
    /// The database is unavailable.
    pub async fn due_deadlines(
        &self,
        process: &str,
        now: i64,
        limit: i64,
        skipped: i64,
    ) -> Result<Vec<Deadline>, Error> {
        let sql = "select process, id, name, due_at from process_deadlines where process = $1 and due_at <= $2
                   order by due_at, id, name limit $3 offset $4";
        let values = vec![process.into(), now.into(), limit.into(), skipped.into()];
        let rows: Vec<DeadlineRow> = self.0.fetch_all(sql, values).await?;
        Ok(rows.into_iter().map(deadline).collect())
    }

    /// Returns the earliest deadline of a process type, in microseconds since 1970.
    ///
    /// # Errors
    /// The database is unavailable.
    pub async fn next_deadline(&self, process: &str) -> Result<Option<i64>, Error> {
        let sql = "select min(due_at) from process_deadlines where process = $1";
        let found: Vec<(Option<i64>,)> = self.0.fetch_all(sql, vec![process.into()]).await?;
        Ok(found.first().and_then(|(due_at,)| *due_at))
    }

    /// Holds a reactor: it handles no events until it is released. Returns whether the reactor is registered.
    ///
    /// # Errors
    /// The database is unavailable.
    pub async fn hold(&self, reactor: &str, reason: &str) -> Result<bool, Error> {
        self.set_held(reactor, Some(reason.to_owned())).await
    }

    /// Releases a held reactor. Returns whether the reactor is registered.
    ///
    /// # Errors
    /// The database is unavailable.
    pub async fn release(&self, reactor: &str) -> Result<bool, Error> {
        self.set_held(reactor, None).await
    }

    /// Releases a reactor at the end of the log with an empty backlog: it skips all events that it has not handled.
    /// Missing deadlines of its process are set. Returns whether the reactor is registered.
    ///
    /// # Errors
    /// The database is unavailable.
    pub async fn release_at_head(&self, reactor: &str, deadlines: &[Deadline]) -> Result<bool, Error> {
        let mut tx = self.0.begin_durably().await?;
        tx.lock_head().await?;
        let sql = "update reactor_checkpoints set position = (select position from log_head), fence = fence + 1,
                                                  held = null, updated_at = $2 where reactor = $1";
        let known = tx.execute(sql, vec![reactor.into(), now_us().into()]).await? > 0;
        tx.execute("delete from reactor_backlog where reactor = $1", vec![reactor.into()]).await?;
        tx.set_deadlines(deadlines).await?;
        tx.commit().await?;
        Ok(known)
    }

    async fn set_held(&self, reactor: &str, held: Option<String>) -> Result<bool, Error> {
        let mut tx = self.0.begin_durably().await?;
        let sql = "update reactor_checkpoints set held = $2 where reactor = $1";
        let known = tx.execute(sql, vec![reactor.into(), held.into()]).await? > 0;
        tx.raise_fence(reactor).await?;
        tx.commit().await?;
        Ok(known)
    }

    /// Makes the first event of each key, or of one key, due now and resets its number of attempts. Returns the number
    /// of keys.
    ///
    /// # Errors
    /// The database is unavailable.
    pub async fn retry(&self, reactor: &str, key: Option<&str>) -> Result<u64, Error> {
        let (of_key, mut values) = of_key(reactor, key);
        values.push(now_us().into());
        let sql = format!(
            "update reactor_backlog as b set due_at = ${}, attempts = 0
             where b.reactor = $1 and b.partition = 0{of_key} and {IS_FIRST}",
            values.len()
        );
        self.change(reactor, &sql, values).await
    }

    /// Removes the first event of a key from a reactor's backlog, so that the reactor never handles it. The next event
    /// of the key is due at once. Returns whether the event was the first of its key in the backlog.
    ///
    /// # Errors
    /// The database is unavailable.
    pub async fn skip(&self, reactor: &str, event: &BacklogKey) -> Result<bool, Error> {
        let mut tx = self.0.begin_durably().await?;
        // The checkpoint is locked first, because appends also lock it before rows of the backlog.
        tx.raise_fence(reactor).await?;
        let values = || vec![reactor.into(), (&*event.key).into(), event.position.into()];
        let sql = format!(
            "delete from reactor_backlog as b where b.reactor = $1 and b.partition = 0 and b.key = $2 and b.position = $3
                                                    and {IS_FIRST}"
        );
        let was_there = tx.execute(&sql, values()).await? > 0;
        if was_there {
            let sql = format!(
                "update reactor_backlog as b set due_at = $3
                 where b.reactor = $1 and b.partition = 0 and b.key = $2 and {IS_FIRST}"
            );
            tx.execute(&sql, vec![reactor.into(), (&*event.key).into(), now_us().into()]).await?;
        }
        tx.commit().await?;
        Ok(was_there)
    }

    /// Removes a reactor that no longer exists in the program, and its backlog. Returns whether the reactor was
    /// registered.
    ///
    /// # Errors
    /// The database is unavailable.
    pub async fn remove(&self, reactor: &str) -> Result<bool, Error> {
        let mut tx = self.0.begin_durably().await?;
        tx.raise_fence(reactor).await?;
        tx.execute("delete from reactor_backlog where reactor = $1", vec![reactor.into()]).await?;
        let sql = "delete from reactor_checkpoints where reactor = $1";
        let was_there = tx.execute(sql, vec![reactor.into()]).await? > 0;
        tx.commit().await?;
        Ok(was_there)
    }

    /// Resets all reactors after an import of the log: each continues at the end of the log, with an empty backlog and
    /// these deadlines. Reactors that were held only for the import are released. `held` names reactors with effects
    /// outside the log: they stay held for `reason` until an operator releases them.
    ///
    /// # Errors
    /// The database is unavailable.
    pub async fn reset_to_head(&self, held: &[&str], reason: &str, deadlines: &[Deadline]) -> Result<(), Error> {
        let mut tx = self.0.begin_durably().await?;
        let sql = "update reactor_checkpoints set position = (select position from log_head), fence = fence + 1,
                                                  held = case when held = $2 then null else held end, updated_at = $1";
        tx.execute(sql, vec![now_us().into(), IMPORT_INCOMPLETE.into()]).await?;
        tx.execute("delete from reactor_backlog", vec![]).await?;
        tx.execute("delete from process_deadlines", vec![]).await?;
        tx.set_deadlines(deadlines).await?;
        tx.hold_all(held, reason).await?;
        tx.commit().await
    }

    /// Returns ids of the aggregates of a type that are greater than `after`, in order, at most `limit`.
    ///
    /// # Errors
    /// The database is unavailable.
    pub async fn aggregate_ids(&self, aggregate_type: &str, after: &str, limit: i64) -> Result<Vec<String>, Error> {
        let sql = "select aggregate_id from events where aggregate_type = $1 and sequence = 1 and aggregate_id > $2
                   order by aggregate_id limit $3";
        let ids: Vec<(String,)> =
            self.0.fetch_all(sql, vec![aggregate_type.into(), after.into(), limit.into()]).await?;
        Ok(ids.into_iter().map(|(id,)| id).collect())
    }

    /// Holds several reactors. A reactor that is already held keeps its reason.
    ///
    /// # Errors
    /// The database is unavailable.
    pub async fn hold_all(&self, reactors: &[&str], reason: &str) -> Result<(), Error> {
        let mut tx = self.0.begin_durably().await?;
        tx.hold_all(reactors, reason).await?;
        tx.commit().await
    }

    async fn change(&self, reactor: &str, sql: &str, values: Vec<Value>) -> Result<u64, Error> {
        let mut tx = self.0.begin_durably().await?;
        tx.raise_fence(reactor).await?;
        let changed = tx.execute(sql, values).await?;
        tx.commit().await?;
        Ok(changed)
    }
}

impl Tx {
    async fn raise_fence(&mut self, reactor: &str) -> Result<(), Error> {
        let sql = "update reactor_checkpoints set fence = fence + 1 where reactor = $1";
        self.execute(sql, vec![reactor.into()]).await.map(drop)
    }

    /// Moves the rows of a reactor to another name. The old name stays in the store, held, so that a restarted process
    /// of the earlier release does not run the reactor a second time.
    async fn rename_reactor(&mut self, old: &str, new: &str) -> Result<(), Error> {
        // This locks the row, and makes later appends of the old leader fail.
        self.raise_fence(old).await?;
        let sql = "insert into reactor_checkpoints (reactor, partition, position, fence, updated_at, held)
                   select $2, partition, position, fence, updated_at, held from reactor_checkpoints where reactor = $1";
        self.execute(sql, vec![old.into(), new.into()]).await?;
        let sql = "update reactor_backlog set reactor = $2 where reactor = $1";
        self.execute(sql, vec![old.into(), new.into()]).await?;
        let sql = "update reactor_checkpoints set held = $2 where reactor = $1";
        self.execute(sql, vec![old.into(), format!("renamed to {new}").into()]).await.map(drop)
    }

    /// Prevents appends by others until this transaction ends.
    async fn lock_head(&mut self) -> Result<(), Error> {
        // SQLite allows one write transaction at a time.
        if let Self::Postgres(..) = self {
            self.execute("select position from log_head order by position desc limit 1 for update", vec![]).await?;
        }
        Ok(())
    }

    /// Holds several reactors. A reactor that is already held keeps its reason.
    async fn hold_all(&mut self, reactors: &[&str], reason: &str) -> Result<(), Error> {
        for reactor in reactors {
            let sql = "update reactor_checkpoints set held = coalesce(held, $2), fence = fence + 1 where reactor = $1";
            self.execute(sql, vec![(*reactor).into(), reason.into()]).await?;
        }
        Ok(())
    }

    async fn set_deadlines(&mut self, deadlines: &[Deadline]) -> Result<(), Error> {
        for Deadline { key, due_at } in deadlines {
            let sql = "insert into process_deadlines (process, id, name, due_at) values ($1, $2, $3, $4)
                       on conflict (process, id, name) do nothing";
            let values = vec![(&*key.process).into(), (&*key.id).into(), (&*key.name).into(), (*due_at).into()];
            self.execute(sql, values).await?;
        }
        Ok(())
    }
}

fn of_key(reactor: &str, key: Option<&str>) -> (&'static str, Vec<Value>) {
    match key {
        Some(key) => (" and b.key = $2", vec![reactor.into(), key.into()]),
        None => ("", vec![reactor.into()]),
    }
}

fn deadline(row: DeadlineRow) -> Deadline {
    let DeadlineRow { process, id, name, due_at } = row;
    Deadline { key: DeadlineKey { process: process.into(), id: id.into(), name: name.into() }, due_at }
}
