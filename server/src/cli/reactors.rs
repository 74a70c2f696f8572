//! `docket reactors`: shows positions and backlogs of reactors, and carries out the decisions of operators about them.
//!
//! Each command works on the database directly, with or without a running server. A change raises the fence of the
//! reactor's checkpoint, so that the process that leads the reactor reads its state again within a second.

use anyhow::{anyhow, bail};
use command_engine::reactions::reactor::{Acts, registration};
use event_store::append::BacklogKey;
use event_store::now_us;
use event_store::reactions::{BacklogSummary, IMPORT_INCOMPLETE, Reactions};
use event_store::store::Store;
use jiff::Timestamp;
use serde_json::{Value, json};

use crate::cli::events::deadlines;
use crate::cli::{
    Common, Held, Listing, OneReactor, Released, Retried, Skipped, Usage, counted, load, open_store, print_line,
    selected,
};
use crate::program::Program;

/// Rows of a backlog that one query reads.
const CHUNK: i64 = 1_000;
/// Longest key or reason that is printed in full, in characters.
const SHOWN_CHARS_MAX: usize = 300;

struct Opened {
    program: Program,
    store: Store,
    rows: Reactions,
}

async fn opened(program: Program, common: &Common) -> anyhow::Result<Opened> {
    let settings = load(&program, common)?;
    let program = selected(program, &settings)?;
    let store = open_store(&program, &settings).await?;
    let rows = store.reactions();
    let registrations: Vec<_> = program.reactors().into_iter().map(registration).collect();
    rows.register(&registrations).await?;
    Ok(Opened { program, store, rows })
}

impl Opened {
    /// Returns an error unless the reactor is registered in the store.
    async fn find(&self, name: &str) -> anyhow::Result<()> {
        let known = self.rows.checkpoints().await?;
        if known.iter().any(|checkpoint| checkpoint.reactor == name) {
            return Ok(());
        }
        let names: Vec<_> = known.iter().map(|checkpoint| &*checkpoint.reactor).collect();
        let there = if names.is_empty() {
            "It has no reactors.".to_owned()
        } else {
            format!("Its reactors are {}.", names.join(", "))
        };
        Err(Usage(anyhow!("`{name}` is not a reactor of this store. {there}")).into())
    }
}

pub async fn list(program: Program, listing: Listing) -> anyhow::Result<u8> {
    let opened = opened(program, &listing.common).await?;
    let (items, deadlines, head) = overview(&opened).await?;
    if listing.json {
        print_line(json!({"items": items, "deadlines": deadlines, "head": head}));
        return Ok(0);
    }
    print_line(format_args!(
        "{:24} {:8} {:>10} {:>8} {:>8} {:>8} {:>8} {:>9}  state",
        "reactor", "acts", "position", "lag", "backlog", "keys", "parked", "oldest s"
    ));
    for item in &items {
        let number = |name: &str| item[name].as_i64().unwrap_or_default();
        let oldest = item["oldest_seconds"].as_f64().map_or("-".to_owned(), |seconds| format!("{seconds:.0}"));
        print_line(format_args!(
            "{:24} {:8} {:>10} {:>8} {:>8} {:>8} {:>8} {oldest:>9}  {}",
            text(item, "name"),
            text(item, "acts"),
            number("position"),
            number("lag_events"),
            number("backlog_events"),
            number("backlog_keys"),
            number("parked_keys"),
            item["held"].as_str().map_or("running".to_owned(), |reason| format!("held: {reason}")),
        ));
    }
    for item in &deadlines {
        let late = item["late_seconds"].as_f64().unwrap_or_default();
        let late =
            if late > 0.0 { format!(", {late:.0} s late; run `docket reactors show REACTOR`") } else { String::new() };
        let (process, next) = (text(item, "process"), text(item, "next"));
        print_line(format_args!("Deadlines of {process}: {}, the next one is due at {next}{late}.", item["open"]));
    }
    print_line(format_args!("The log ends at position {head}."));
    Ok(0)
}

fn text<'a>(item: &'a Value, name: &str) -> &'a str {
    item[name].as_str().unwrap_or_default()
}

async fn overview(opened: &Opened) -> anyhow::Result<(Vec<Value>, Vec<Value>, i64)> {
    let (checkpoints, backlogs) = (opened.rows.checkpoints().await?, opened.rows.backlog_summaries().await?);
    let (deadlines, head) = (opened.rows.deadline_summaries().await?, opened.store.head().await?);
    let now = now_us();
    let reactors = opened.program.reactors();
    let item = |checkpoint: event_store::reactions::ReactorCheckpoint| {
        let backlog = backlogs.iter().find(|backlog| backlog.reactor == checkpoint.reactor).cloned();
        let BacklogSummary { events, keys, parked, oldest, .. } = backlog.unwrap_or_default();
        let own = reactors.iter().find(|reactor| reactor.name() == checkpoint.reactor);
        let acts = match own.map(|reactor| reactor.acts()) {
            Some(Acts::InTheLog) => "in log",
            Some(Acts::Outside) => "outside",
            None => "no module",
        };
        json!({
            "name": checkpoint.reactor,
            "acts": acts,
            "position": checkpoint.position,
            "lag_events": (head - checkpoint.position).max(0),
            "backlog_events": events,
            "backlog_keys": keys,
            "parked_keys": parked,
            "oldest_seconds": oldest.map(|oldest| (now - oldest).max(0) as f64 / 1e6),
            "held": checkpoint.held,
            "moved_at": time(checkpoint.updated_at),
        })
    };
    let deadline = |of: event_store::reactions::DeadlineSummary| {
        let late_seconds = (now - of.next).max(0) as f64 / 1e6;
        json!({"process": of.process, "open": of.open, "next": time(of.next), "late_seconds": late_seconds})
    };
    Ok((checkpoints.into_iter().map(item).collect(), deadlines.into_iter().map(deadline).collect(), head))
}

/// Returns a text that is safe to print on a terminal: it comes from others, so control characters are escaped. Long
/// texts are cut.
fn printable(text: &str) -> String {
    let escape = |c: char| if c.is_control() { c.escape_default().to_string() } else { c.to_string() };
    let mut shown: String = text.chars().take(SHOWN_CHARS_MAX).map(escape).collect();
    if text.chars().nth(SHOWN_CHARS_MAX).is_some() {
        shown.push('…');
    }
    shown
}

fn time(microseconds: i64) -> String {
    Timestamp::from_microsecond(microseconds).unwrap_or_default().to_string()
}

pub async fn show(program: Program, wanted: OneReactor) -> anyhow::Result<u8> {
    let opened = opened(program, &wanted.common).await?;
    opened.find(&wanted.reactor).await?;
    let (mut after, mut any) = (None::<String>, false);
    loop {
        let rows = opened.rows.backlog(&wanted.reactor, after.as_deref(), CHUNK).await?;
        let Some((last, _)) = rows.last() else { break };
        after = Some(last.event.key.to_string());
        for (entry, events) in &rows {
            any = true;
            let row = json!({
                "key": &*entry.event.key,
                "position": entry.event.position,
                "events": events,
                "attempts": entry.attempts,
                "due_at": entry.due_at.map(time),
                "reason": entry.reason,
            });
            if wanted.json {
                print_line(row);
                continue;
            }
            let when = match entry.due_at {
                Some(due_at) => format!("next attempt at {}", time(due_at)),
                None => "parked".to_owned(),
            };
            print_line(format_args!(
                "{}: event {}, {} behind it, {}, {when}: {}",
                printable(&entry.event.key),
                entry.event.position,
                counted(events - 1, "event"),
                counted(entry.attempts, "attempt"),
                printable(entry.reason.as_deref().unwrap_or("waits for a worker"))
            ));
        }
    }
    let reactors = opened.program.reactors();
    let process =
        reactors.iter().find(|reactor| reactor.name() == wanted.reactor).and_then(|reactor| reactor.process());
    let late = match process {
        Some(process) => opened.rows.due_deadlines(process, now_us(), CHUNK, 0).await?,
        None => Vec::new(),
    };
    for deadline in late {
        let (process, id, name) = (&*deadline.key.process, &*deadline.key.id, &*deadline.key.name);
        let due_at = time(deadline.due_at);
        any = true;
        match wanted.json {
            true => print_line(json!({"process": process, "id": id, "deadline": name, "due_at": due_at})),
            false => print_line(format_args!(
                "{process}/{id}: the deadline {name} is overdue since {due_at}. The log of the process that leads the \
                 reactor says why."
            )),
        }
    }
    if !any && !wanted.json {
        eprintln!("The backlog of {} is empty, and no deadline is overdue.", wanted.reactor);
    }
    Ok(0)
}

pub async fn retry(program: Program, wanted: Retried) -> anyhow::Result<u8> {
    let opened = opened(program, &wanted.common).await?;
    opened.find(&wanted.reactor).await?;
    let keys = opened.rows.retry(&wanted.reactor, wanted.key.as_deref()).await?;
    if keys == 0 {
        match &wanted.key {
            Some(key) => bail!("The backlog has no key {key}. Run `docket reactors show {}`.", wanted.reactor),
            None => eprintln!("The backlog of {} is empty.", wanted.reactor),
        }
        return Ok(0);
    }
    eprintln!("{keys} {} retried now, each with its events in order.", if keys == 1 { "key is" } else { "keys are" });
    Ok(0)
}

pub async fn skip(program: Program, wanted: Skipped) -> anyhow::Result<u8> {
    let opened = opened(program, &wanted.common).await?;
    opened.find(&wanted.reactor).await?;
    let event = BacklogKey { key: wanted.key.as_str().into(), position: wanted.position };
    if !opened.rows.skip(&wanted.reactor, &event).await? {
        bail!(
            "Event {} is not the first event of the key {} in the backlog. Run `docket reactors show {}` to list the first events.",
            wanted.position,
            wanted.key,
            wanted.reactor
        );
    }
    eprintln!(
        "{} skips event {} permanently. The next event of the key {} is tried now.",
        wanted.reactor, wanted.position, wanted.key
    );
    Ok(0)
}

pub async fn hold(program: Program, wanted: Held) -> anyhow::Result<u8> {
    let opened = opened(program, &wanted.common).await?;
    opened.find(&wanted.reactor).await?;
    opened.rows.hold(&wanted.reactor, &wanted.reason).await?;
    eprintln!("{} is held. Run `docket reactors release {}` to release it.", wanted.reactor, wanted.reactor);
    Ok(0)
}

pub async fn release(program: Program, wanted: Released) -> anyhow::Result<u8> {
    let opened = opened(program, &wanted.common).await?;
    let reactor = &wanted.reactor;
    opened.find(reactor).await?;
    if wanted.at_head {
        let process = opened.program.reactors().into_iter().filter(|one| one.name() == reactor).collect::<Vec<_>>();
        let deadlines = deadlines(&process, &opened.store).await?;
        opened.rows.release_at_head(reactor, &deadlines).await?;
        eprintln!("{reactor} resumes at the end of the log with an empty backlog.");
        return Ok(0);
    }
    let known = opened.rows.checkpoints().await?;
    if known.iter().any(|one| one.reactor == *reactor && one.held.as_deref() == Some(IMPORT_INCOMPLETE)) {
        bail!(
            "Cannot release {reactor}: {IMPORT_INCOMPLETE}, and the reactor would react to events whose effects happened \
             elsewhere. Stop all servers and run `docket events import` again. If that is refused, run `docket reactors \
             release {reactor} --at-head` to resume at the end of the log."
        );
    }
    opened.rows.release(reactor).await?;
    eprintln!("{reactor} resumes from its checkpoint.");
    Ok(0)
}
