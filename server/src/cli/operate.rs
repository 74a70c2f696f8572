//! Commands on read models: rebuild, verify, list, and settle dead letters. Each command works on the database
//! directly, with or without a running server.

use std::collections::HashMap;
use std::io::IsTerminal;
use std::time::{Duration, Instant};

use anyhow::{anyhow, bail, ensure};
use event_store::store::Store;
use indicatif::{MultiProgress, ProgressBar, ProgressState, ProgressStyle};
use projection_engine::dead_letters::{self, Decided, Decision};
use projection_engine::generation::prepare;
use projection_engine::progress::Progress;
use projection_engine::projection::AnyProjection;
use projection_engine::rebuild::{self, RebuildStart, Rebuilt, plan, prune, rebuild};
use projection_engine::registry::{Group, Registry, projection_role};
use projection_engine::verify::{self, Extent};
use serde_json::json;

use crate::cli::{
    Common, DeadLetter, EXIT_FAILED, Listing, Replay, Usage, Verify, counted, load, open_store, print_line, selected,
};
use crate::program::Program;
use crate::settings::Settings;

/// How long a command waits until the projector has applied a decision, and how often it looks.
const DECISION_TIMEOUT: Duration = Duration::from_secs(4);
const POLL_INTERVAL: Duration = Duration::from_millis(100);
/// Interval between lines of progress when stderr is not a terminal.
const LINE_EVERY: Duration = Duration::from_secs(2);

async fn opened(program: Program, common: &Common) -> anyhow::Result<(Store, Registry, Settings)> {
    let settings = load(&program, common)?;
    let program = selected(program, &settings)?;
    let store = open_store(&program, &settings).await?;
    prepare(&store, program.registry()).await?;
    Ok((store, program.registry().clone(), settings))
}

/// A checkpoint group with the selected ones of its projections.
type SelectedProjections<'a> = (&'a Group, Vec<&'static dyn AnyProjection>);

/// Returns the projections with these names, by checkpoint group; without names, all projections.
fn named<'a>(registry: &'a Registry, names: &[String]) -> anyhow::Result<Vec<SelectedProjections<'a>>> {
    if let Some(unknown) = names.iter().find(|name| registry.find(name).is_none()) {
        let known: Vec<_> = registry.projections().map(|projection| projection.name()).collect();
        return Err(Usage(anyhow!("`{unknown}` is not a projection. The projections are {}.", known.join(", "))).into());
    }
    let is_named = |projection: &&'static dyn AnyProjection| {
        names.is_empty() || names.iter().any(|name| name == projection.name())
    };
    let own = |group: &'a Group| (group, group.projections.iter().copied().filter(is_named).collect::<Vec<_>>());
    Ok(registry.groups().iter().map(own).filter(|(_, projections)| !projections.is_empty()).collect())
}

/// Shows progress: a bar for each projection on a terminal, otherwise a line every [`LINE_EVERY`].
struct ProgressReporter {
    bars: MultiProgress,
    by_name: Vec<(String, ProgressBar)>,
    json: bool,
    printed: HashMap<String, Printed>,
}

/// The first position shown of a projection, when that was, and when its last line was printed.
struct Printed {
    from: i64,
    first: Instant,
    last: Instant,
}

impl ProgressReporter {
    fn new(json: bool) -> Self {
        Self { bars: MultiProgress::new(), by_name: Vec::new(), json, printed: HashMap::new() }
    }

    fn show(&mut self, name: &str, position: i64, target: i64) {
        if !self.json && std::io::stderr().is_terminal() {
            let bar = match self.by_name.iter().find(|(known, _)| known == name) {
                Some((_, bar)) => bar.clone(),
                None => {
                    let bar = self.bars.add(ProgressBar::new(target as u64).with_message(name.to_owned()));
                    let template = "{msg:16} {bar:30} {pos}/{len} events, {rate}, {eta} left";
                    bar.set_style(
                        ProgressStyle::with_template(template)
                            .unwrap_or_else(|_| ProgressStyle::default_bar())
                            .with_key("rate", |state: &ProgressState, to: &mut dyn std::fmt::Write| {
                                let rate = state.pos() as f64 / state.elapsed().as_secs_f64().max(0.1);
                                let _ = write!(to, "{rate:.0} events/s");
                            }),
                    );
                    self.by_name.push((name.to_owned(), bar.clone()));
                    bar
                }
            };
            bar.set_length(target as u64);
            bar.set_position(position as u64);
            return;
        }
        let now = Instant::now();
        let printed = match self.printed.get_mut(name) {
            Some(printed) if printed.last.elapsed() < LINE_EVERY => return,
            Some(printed) => printed,
            None => self.printed.entry(name.to_owned()).or_insert(Printed { from: position, first: now, last: now }),
        };
        printed.last = now;
        let rate = (position - printed.from) as f64 / (now - printed.first).as_secs_f64().max(0.001);
        let left = (rate > 0.0).then(|| ((target - position).max(0) as f64 / rate).ceil());
        if self.json {
            let line = json!({
                "projection": name,
                "position": position,
                "target": target,
                "events_per_second": rate.round(),
                "seconds_left": left,
            });
            return print_line(format_args!("{line}"));
        }
        let left = left.map(|left| format!(", {rate:.0} events/s, {left:.0} s left")).unwrap_or_default();
        eprintln!("{name}: {position} of {target} events{left}");
    }

    fn end(self) {
        self.by_name.into_iter().for_each(|(_, bar)| bar.finish_and_clear());
    }
}

pub async fn replay(program: Program, replay: Replay) -> anyhow::Result<u8> {
    let (store, registry, settings) = opened(program, &replay.common).await?;
    let groups = named(&registry, &replay.projections)?;
    if replay.prune {
        let mut removed = Vec::new();
        for (group, projections) in &groups {
            removed.extend(prune(&store, group, projections, replay.dry_run).await?);
        }
        for (name, generation) in &removed {
            let what = if replay.dry_run { "would be removed" } else { "was removed" };
            print_line(format_args!("{name}: generation {generation} {what}."));
        }
        if removed.is_empty() {
            eprintln!("There is nothing to remove: every generation serves queries.");
        }
        return Ok(0);
    }
    let from = match (replay.rollback, replay.fresh) {
        (true, _) => RebuildStart::Older,
        (_, true) => RebuildStart::Scratch,
        _ => RebuildStart::Log,
    };
    if replay.dry_run {
        let head = store.head().await?;
        for (group, projections) in &groups {
            for planned in plan(&store, group, projections, from).await? {
                print_line(format_args!(
                    "{}: generation {} would be built from position {} to {head}, and would then serve queries.",
                    planned.name, planned.generation, planned.position
                ));
            }
        }
        return Ok(0);
    }
    for (group, projections) in groups {
        rebuild_group(&store, group, &settings, &projections, from, replay.json).await?;
    }
    Ok(0)
}

async fn rebuild_group(
    store: &Store,
    group: &Group,
    settings: &Settings,
    projections: &[&'static dyn AnyProjection],
    from: RebuildStart,
    json: bool,
) -> anyhow::Result<()> {
    let mut reporter = ProgressReporter::new(json);
    let started = Instant::now();
    let show = |name: &str, position, target| reporter.show(name, position, target);
    let rebuilt = rebuild(store, group, &settings.pump, projections, from, show).await.map_err(with_advice)?;
    reporter.end();
    let seconds = started.elapsed().as_secs_f64().max(0.001);
    let rate = rebuilt.events as f64 / seconds;
    if json {
        let summary = json!({"done": rebuilt, "seconds": seconds, "events_per_second": rate.round()});
        print_line(format_args!("{summary}"));
        return Ok(());
    }
    let Rebuilt { projections, events, missing: lost, position } = rebuilt;
    for projection in &projections {
        let differences = match projection.differences {
            None => "not compared with the previous one, whose version or position differs".to_owned(),
            Some(1) => "1 row differs from the previous one".to_owned(),
            Some(rows) => format!("{rows} rows differ from the previous one"),
        };
        eprintln!("{}: generation {} serves queries now; {differences}.", projection.name, projection.generation);
    }
    eprintln!(
        "Folded {} in {seconds:.1} s ({rate:.0} events/s). Switched at position {position}.",
        counted(events, "event")
    );
    if lost > 0 {
        eprintln!("{}", missing(lost));
    }
    Ok(())
}

pub async fn verify(program: Program, verify: Verify) -> anyhow::Result<u8> {
    let (store, registry, settings) = opened(program, &verify.common).await?;
    let groups = named(&registry, &verify.projections)?;
    let extent = verify.sample.map_or(Extent::Whole, |streams| Extent::Sample(streams as usize));
    let mut reporter = ProgressReporter::new(false);
    let mut show = |folded, of| {
        if !verify.json {
            reporter.show("log", folded, of);
        }
    };
    let (mut found, mut missing_events) = (Vec::new(), 0);
    for (group, projections) in &groups {
        let of_group =
            verify::verify(&store, group, &settings.pump, projections, extent, verify.first, &mut show).await;
        let of_group = of_group.map_err(with_advice)?;
        found.extend(of_group.projections);
        missing_events = missing_events.max(of_group.missing_events);
    }
    reporter.end();
    let differences: usize = found.iter().map(|projection| projection.differences).sum();
    let (head, left_out) = (store.head().await?, dead_letters::list(store.db()).await?);
    if verify.json {
        let left_out: Vec<_> = left_out.iter().map(|letter| letter.position).collect();
        let all = json!({
            "projections": found,
            "differences": differences,
            "missing_events": missing_events,
            "head": head,
            "dead_letters": left_out,
        });
        print_line(format_args!("{all}"));
    } else {
        for projection in &found {
            match projection.checked {
                true => print_line(format_args!(
                    "{}: {} at position {} of {head}, {}",
                    projection.name,
                    rows(projection.rows),
                    projection.position,
                    counted(projection.differences as u64, "mismatch")
                )),
                false => {
                    print_line(format_args!("{}: not verified, because a sample cannot check sums", projection.name))
                }
            }
            for difference in &projection.first {
                print_line(format_args!("  {} {}: {}", difference.table, difference.key, difference.what.join("; ")));
            }
        }
    }
    if !(verify.json || left_out.is_empty()) {
        let letters =
            if left_out.len() == 1 { "1 dead letter is" } else { &format!("{} dead letters are", left_out.len()) };
        eprintln!("{letters} left out. Run `docket dead-letters list` to list them.");
    }
    if differences > 0 {
        let wrong = found.iter().filter(|projection| projection.differences > 0).map(|projection| projection.name);
        let wrong = wrong.collect::<Vec<_>>().join(" ");
        // When events are missing from the log, a rebuild from it would not be correct either.
        let mend = if missing_events == 0 {
            format!(". Run `docket replay --fresh {wrong}` to rebuild")
        } else {
            String::new()
        };
        eprintln!("Mismatches: {}{mend}.", rows(differences));
    }
    if missing_events > 0 {
        eprintln!("{}", missing(missing_events));
    }
    if differences > 0 || missing_events > 0 {
        return Ok(EXIT_FAILED);
    }
    ensure!(
        found.iter().any(|projection| projection.checked),
        "Nothing was verified, because a sample cannot check sums. Run the command without --sample."
    );
    Ok(0)
}

/// Adds to the error of an event that cannot be applied what the operator can do.
fn with_advice(error: projection_engine::error::Error) -> anyhow::Error {
    match &error {
        projection_engine::error::Error::Fold(failed) => {
            let position = failed.position;
            anyhow!(
                "{error}. Correct its row in `events`, or discard it with `docket dead-letters discard {position}`."
            )
        }
        _ => error.into(),
    }
}

fn missing(events: i64) -> String {
    let (lost, them) = (counted(events, "event"), if events == 1 { "it" } else { "them" });
    format!("The log lacks {lost} that somebody removed from the table. Restore {them} from a backup.")
}

fn rows(number: usize) -> String {
    counted(number as u64, "row")
}

pub async fn projections(program: Program, listing: Listing) -> anyhow::Result<u8> {
    let (store, registry, _) = opened(program, &listing.common).await?;
    let (items, head) = Progress::new(registry.clone()).status(&store).await?;
    if listing.json {
        print_line(format_args!("{}", json!({"items": items, "head": head})));
        return Ok(0);
    }
    let mut running = Vec::new();
    for group in registry.groups() {
        if rebuild::is_running(&store, group).await? {
            running.push(group.name);
        }
    }
    print_line(format_args!(
        "{:16} {:8} {:>10} {:>7} {:>10} {:>10} {:>8}  state",
        "projection", "group", "generation", "version", "position", "lag", "lag s"
    ));
    for item in items {
        let state = match (&item.last_error, &item.rebuild) {
            (Some(error), _) => format!("{}: {error}", item.state),
            (None, Some(rebuild)) if !running.contains(&item.group) => format!(
                "{}, the rebuild of generation {} stopped at {}: `docket replay {}` resumes it",
                item.state, rebuild.generation, rebuild.position, item.name
            ),
            (None, Some(rebuild)) => {
                format!("{}, the rebuild of generation {} is at {}", item.state, rebuild.generation, rebuild.position)
            }
            (None, None) => item.state.to_owned(),
        };
        print_line(format_args!(
            "{:16} {:8} {:>10} {:>7} {:>10} {:>10} {:>8.1}  {state}",
            item.name, item.group, item.generation, item.version, item.position, item.lag_events, item.lag_seconds
        ));
    }
    print_line(format_args!("The log ends at position {head}."));
    Ok(0)
}

pub async fn dead_letters(program: Program, listing: Listing) -> anyhow::Result<u8> {
    let (store, ..) = opened(program, &listing.common).await?;
    let letters = dead_letters::list(store.db()).await?;
    if listing.json {
        print_line(format_args!("{}", json!({"items": letters})));
        return Ok(0);
    }
    for letter in &letters {
        print_line(format_args!(
            "{} {} {} of {}/{}{} since {} ({}): {}",
            letter.position,
            letter.state,
            letter.event_type,
            letter.aggregate_type,
            letter.aggregate_id,
            letter.group.as_ref().map(|group| format!(" in the group {group}")).unwrap_or_default(),
            letter.parked_at,
            counted(letter.attempts, "attempt"),
            letter.reason
        ));
    }
    if letters.is_empty() {
        eprintln!("There are no dead letters.");
    }
    Ok(0)
}

pub async fn show(program: Program, wanted: DeadLetter) -> anyhow::Result<u8> {
    let (store, ..) = opened(program, &wanted.common).await?;
    let letters = dead_letters::list(store.db()).await?;
    let Some(letter) = letters.into_iter().find(|letter| letter.position == wanted.position) else {
        bail!(no_such(wanted.position));
    };
    let waiting =
        store.read_streams(&letter.aggregate_type, std::slice::from_ref(&letter.aggregate_id), i64::MAX).await?;
    let waiting = waiting.iter().filter(|event| event.position >= letter.position);
    let waiting: Vec<_> = waiting.map(super::events::envelope).collect();
    print_line(format_args!("{}", serde_json::to_string_pretty(&json!({"dead_letter": letter, "waiting": waiting}))?));
    Ok(0)
}

pub async fn decide(program: Program, wanted: DeadLetter, decision: Decision) -> anyhow::Result<u8> {
    let (store, registry, _) = opened(program, &wanted.common).await?;
    let position = wanted.position;
    match dead_letters::decide(&store, &registry, position, decision).await? {
        Decided::NoSuch => bail!(no_such(position)),
        Decided::Done => {
            eprintln!(
                "Event {position} is discarded: rebuilds leave it out. Its changes stay in read models until the next one."
            );
            return Ok(0);
        }
        Decided::Requested => {}
    }
    let asked = Instant::now();
    while asked.elapsed() < DECISION_TIMEOUT {
        tokio::time::sleep(POLL_INTERVAL).await;
        let letters = dead_letters::list(store.db()).await?;
        let own: Vec<_> = letters.iter().filter(|letter| letter.position == position).collect();
        if own.iter().any(|letter| letter.state == "retry" || letter.state == "discard") {
            continue;
        }
        if let Some(letter) = own.iter().find(|letter| letter.state == "parked") {
            bail!("The stream {}/{} is parked again: {}", letter.aggregate_type, letter.aggregate_id, letter.reason);
        }
        match own.is_empty() {
            true => eprintln!("The stream is up to date."),
            false => eprintln!("Event {position} is discarded. Its stream continues without it."),
        }
        return Ok(0);
    }
    let letters = dead_letters::list(store.db()).await?;
    for letter in letters.iter().filter(|letter| letter.position == position) {
        let Some(group) = letter.group.as_ref().filter(|_| letter.state != "discarded") else { continue };
        match store.try_lead(&projection_role(group)).await? {
            Some(_) => {
                eprintln!(
                    "No projector of {group} is running. The decision takes effect when a server with the role `project` starts."
                )
            }
            None => eprintln!(
                "The projector of {group} has not applied the decision yet. Run `docket dead-letters list` to see its state."
            ),
        }
    }
    Ok(0)
}

fn no_such(position: i64) -> String {
    format!("No stream is parked at position {position}. Run `docket dead-letters list` to list the parked streams.")
}
