//! The state of reactors, for metrics and health checks.

use std::collections::BTreeMap;
use std::time::Instant;

use event_store::error::Error;
use event_store::now_us;
use event_store::reactions::BacklogSummary;
use event_store::store::Store;
use opentelemetry::KeyValue;

use crate::metrics::METRICS;
use crate::reactions::reactor::Reactor;

/// A health check reports an unhandled event or an unfired deadline that is older than this.
const LATE_SECONDS: i64 = 30;

/// The pause between two counts of deadlines, as a multiple of the duration of a count. So counting uses at most a
/// hundredth of the time.
const PAUSE_PER_COUNT: u32 = 100;

/// The earliest time of the next count of deadlines.
#[derive(Debug, Default)]
pub struct NextCount(Option<Instant>);

/// Records metrics of the lag, the backlog and the deadlines of reactors.
///
/// # Errors
/// The database is unavailable.
pub async fn observe(
    store: &Store,
    reactors: &[&'static dyn Reactor],
    next_count: &mut NextCount,
) -> Result<(), Error> {
    if reactors.is_empty() {
        return Ok(());
    }
    let rows = store.reactions();
    let (head, now) = (store.head().await?, now_us());
    let checkpoints: BTreeMap<_, _> =
        rows.checkpoints().await?.into_iter().map(|one| (one.reactor.clone(), one)).collect();
    let backlogs: BTreeMap<_, _> =
        rows.backlog_summaries().await?.into_iter().map(|one| (one.reactor.clone(), one)).collect();
    for reactor in reactors {
        let Some(checkpoint) = checkpoints.get(reactor.name()) else { continue };
        let name = || KeyValue::new("reactor", reactor.name());
        METRICS.reactor_lag.record((head - checkpoint.position).max(0), &[name()]);
        METRICS.reactor_held.record(checkpoint.held.is_some().into(), &[name()]);
        let none = BacklogSummary::default();
        let BacklogSummary { events, parked, oldest, .. } = backlogs.get(reactor.name()).unwrap_or(&none);
        METRICS.backlog_events.record(*events, &[name()]);
        METRICS.backlog_parked.record(*parked, &[name()]);
        let age = oldest.map_or(0.0, |oldest| (now - oldest).max(0) as f64 / 1e6);
        METRICS.backlog_oldest.record(age, &[name()]);
    }
    let processes = || reactors.iter().filter_map(|reactor| reactor.process());
    for process in processes() {
        let late = rows.next_deadline(process).await?.map_or(0.0, |next| (now - next).max(0) as f64 / 1e6);
        METRICS.deadlines_late.record(late, &[KeyValue::new("process", process)]);
    }
    let started = Instant::now();
    if next_count.0.is_none_or(|at| at <= started) {
        let deadlines = rows.deadline_summaries().await?;
        for process in processes() {
            let open = deadlines.iter().find(|one| one.process == process).map_or(0, |one| one.open);
            METRICS.deadlines.record(open, &[KeyValue::new("process", process)]);
        }
        next_count.0 = Some(Instant::now() + started.elapsed() * PAUSE_PER_COUNT);
    }
    Ok(())
}

/// Describes the problems of reactors that an operator should know; `None` when there are none.
///
/// # Errors
/// The database is unavailable.
pub async fn describe_problems(store: &Store, reactors: &[&'static dyn Reactor]) -> Result<Option<String>, Error> {
    if reactors.is_empty() {
        return Ok(None);
    }
    let rows = store.reactions();
    let (head, late) = (store.head().await?, now_us() - LATE_SECONDS * 1_000_000);
    let mut found = Vec::new();
    for checkpoint in rows.checkpoints().await? {
        let name = &checkpoint.reactor;
        if reactors.iter().all(|reactor| reactor.name() != name) {
            continue;
        }
        if let Some(reason) = &checkpoint.held {
            found.push(format!("reactor {name} is held: {reason}"));
            continue;
        }
        if rows.next_due(name, 0).await?.is_some_and(|due_at| due_at < late) {
            found.push(format!("the backlog of reactor {name} is not being processed"));
        }
        if checkpoint.position < head {
            let next = store.read_stored(checkpoint.position, 1).await?;
            if next.first().is_some_and(|event| event.recorded_at < late) {
                found.push(format!(
                    "reactor {name} is {} events behind: no process with the role `react` leads it, or it cannot \
                     continue",
                    head - checkpoint.position
                ));
            }
        }
    }
    for backlog in rows.backlog_summaries().await?.into_iter().filter(|backlog| backlog.parked > 0) {
        found.push(format!(
            "reactor {} has {} parked keys: run `docket reactors show {0}`",
            backlog.reactor, backlog.parked
        ));
    }
    for process in reactors.iter().filter_map(|reactor| reactor.process()) {
        if rows.next_deadline(process).await?.is_some_and(|next| next < late) {
            found.push(format!("a deadline of process {process} is overdue"));
        }
    }
    Ok((!found.is_empty()).then(|| found.join("; ")))
}
