//! Banned subjects: rows in the log's database, because no event can restore them.

use crate::db::Db;
use crate::error::Error;
use crate::now_us;
use crate::store::Store;

/// A ban.
#[derive(Debug, Clone, PartialEq, Eq, sqlx_macros::FromRow)]
pub struct Ban {
    /// The banned subject.
    pub subject: String,
    /// Reason of the ban, for operators.
    pub reason: String,
    /// Subject of the admin who banned.
    pub actor: String,
    /// Time of the ban, in microseconds since 1970.
    pub banned_at: i64,
    /// End of the ban, in microseconds since 1970; `None` for a ban that lasts until the subject is reinstated.
    pub until: Option<i64>,
}

/// Access to the banned subjects. Cheap to clone.
#[derive(Clone)]
pub struct Bans(Db);

impl Store {
    /// Returns the access to the banned subjects.
    pub fn bans(&self) -> Bans {
        Bans(self.log_db().clone())
    }
}

impl Bans {
    /// Returns the bans that have not ended, ordered by subject.
    ///
    /// # Errors
    /// The database is unavailable.
    pub async fn list(&self) -> Result<Vec<Ban>, Error> {
        let sql = "select subject, reason, actor, banned_at, until from bans
                   where until is null or until > $1 order by subject";
        self.0.fetch_all(sql, vec![now_us().into()]).await
    }

    /// Bans a subject. An earlier ban of the subject is replaced. Also removes the bans that have ended.
    ///
    /// # Errors
    /// The database is unavailable.
    pub async fn ban(&self, ban: &Ban) -> Result<(), Error> {
        let mut tx = self.0.begin_durably().await?;
        tx.execute("delete from bans where until <= $1", vec![now_us().into()]).await?;
        let sql = "insert into bans (subject, reason, actor, banned_at, until) values ($1, $2, $3, $4, $5)
                   on conflict (subject) do update set reason = excluded.reason, actor = excluded.actor,
                                                       banned_at = excluded.banned_at, until = excluded.until";
        let Ban { subject, reason, actor, banned_at, until } = ban;
        let values = vec![
            subject.as_str().into(),
            reason.as_str().into(),
            actor.as_str().into(),
            (*banned_at).into(),
            (*until).into(),
        ];
        tx.execute(sql, values).await?;
        tx.commit().await
    }

    /// Ends the ban of a subject. Returns whether the subject was banned.
    ///
    /// # Errors
    /// The database is unavailable.
    pub async fn reinstate(&self, subject: &str) -> Result<bool, Error> {
        let mut tx = self.0.begin_durably().await?;
        let sql = "delete from bans where subject = $1 returning coalesce(until, $2)";
        let removed: Vec<(i64,)> = tx.fetch_all(sql, vec![subject.into(), i64::MAX.into()]).await?;
        tx.commit().await?;
        Ok(removed.first().is_some_and(|(until,)| now_us() < *until))
    }
}
