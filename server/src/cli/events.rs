//! The log as lines: export, import, tail. A line is a CloudEvents 1.0 envelope in JSON.

use std::fs::File;
use std::io::{BufRead, BufReader, BufWriter, IntoInnerError, Read, Write};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, bail, ensure};
use command_engine::decider::Decider;
use command_engine::reactions::reacting;
use command_engine::reactions::reactor::{Acts, Reactor, registration};
use command_engine::reactions::scope::Scope;
use event_store::append::Deadline;
use event_store::event::RecordedEvent;
use event_store::leader::Leadership;
use event_store::reactions::{IMPORT_INCOMPLETE, ReactorCheckpoint};
use event_store::store::{Store, open, open_without_appender};
use flate2::Compression;
use flate2::read::MultiGzDecoder;
use flate2::write::GzEncoder;
use platform::files;
use projection_engine::state::rfc3339;
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::cli::{Common, Export, Restore, Restored, Tail, load};
use crate::migrations::MIGRATIONS;
use crate::program::Program;

/// Events read or written at once.
const CHUNK: usize = 2_000;
/// How often a tail looks for more.
const LOOK: Duration = Duration::from_millis(250);

/// A CloudEvents 1.0 envelope. Positions are text, because its integers end at 2^31.
#[derive(Serialize, Deserialize)]
pub struct Envelope {
    specversion: String,
    id: String,
    source: String,
    #[serde(rename = "type")]
    event_type: String,
    subject: String,
    time: String,
    datacontenttype: String,
    position: String,
    sequence: String,
    eventversion: String,
    data: Data,
}

/// Payload and metadata as the log holds them, byte for byte, but for line feeds between members: an event is one line.
/// What is no JSON, because somebody wrote into the table, is a text under another name.
#[derive(Serialize, Deserialize)]
struct Data {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    payload: Option<Box<RawValue>>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    payload_text: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    metadata: Option<Box<RawValue>>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    metadata_text: Option<String>,
}

/// An event as a line.
pub fn envelope(event: &RecordedEvent) -> Envelope {
    // A string of JSON holds no line feed as such.
    let raw = |text: &str| RawValue::from_string(text.replace(['\n', '\r'], " ")).ok();
    let (payload, metadata) = (raw(&event.payload), raw(&event.metadata));
    Envelope {
        specversion: "1.0".into(),
        id: event.id(),
        source: format!("/docket/{}", event.aggregate_type),
        event_type: event.event_type.to_string(),
        subject: event.aggregate_id.to_string(),
        time: rfc3339(event.recorded_at),
        datacontenttype: "application/json".into(),
        position: event.position.to_string(),
        sequence: event.sequence.to_string(),
        eventversion: event.event_version.to_string(),
        data: Data {
            payload_text: payload.is_none().then(|| event.payload.clone()),
            metadata_text: metadata.is_none().then(|| event.metadata.clone()),
            payload,
            metadata,
        },
    }
}

impl Envelope {
    fn event(self) -> anyhow::Result<RecordedEvent> {
        ensure!(self.specversion == "1.0", "specversion is {}, not 1.0", self.specversion);
        let aggregate_type =
            self.source.strip_prefix("/docket/").context("source must be /docket/ and the aggregate's type")?;
        let stored = |raw: Option<Box<RawValue>>, text: Option<String>| {
            raw.map(|raw| raw.get().to_owned()).or(text).context("data must have payload and metadata")
        };
        Ok(RecordedEvent {
            position: self.position.parse().context("position")?,
            aggregate_type: aggregate_type.into(),
            aggregate_id: self.subject.into(),
            sequence: self.sequence.parse().context("sequence")?,
            event_type: self.event_type.into(),
            event_version: self.eventversion.into(),
            payload: stored(self.data.payload, self.data.payload_text)?,
            metadata: stored(self.data.metadata, self.data.metadata_text)?,
            recorded_at: self.time.parse::<jiff::Timestamp>().context("time")?.as_microsecond(),
        })
    }
}

pub async fn export(program: &Program, export: Export) -> anyhow::Result<u8> {
    let store =
        open_without_appender(load(program, &export.common, &[])?.store, MIGRATIONS, program.upcasters()).await?;
    let head = match &export.output {
        None => {
            let mut output = BufWriter::new(std::io::stdout().lock());
            let written = write_log(&store, &mut output).await.and_then(|head| Ok(output.flush().map(|()| head)?));
            // Whoever read the lines has seen enough.
            if written.as_ref().is_err_and(is_broken_pipe) {
                return Ok(0);
            }
            written?
        }
        Some(path) => write_file(&store, path).await?,
    };
    eprintln!("{head} events.");
    Ok(0)
}

/// Writes a log into a file, or into what is no file, such as a pipe.
async fn write_file(store: &Store, path: &Path) -> anyhow::Result<i64> {
    let cannot = || format!("cannot write {}", path.display());
    if path.metadata().is_ok_and(|about| !about.is_file()) {
        let file = File::options().write(true).open(path).with_context(cannot)?;
        return Ok(write_packed(store, file, is_packed(path)).await?.0);
    }
    // A part of a log reads like a whole one: it has another name until it is whole, and what was there before stays.
    let part = files::with_suffix(path, ".part");
    let file = files::create(&part).with_context(|| format!("cannot write {}", part.display()))?;
    let written = async {
        let (head, file) = write_packed(store, file, is_packed(path)).await?;
        files::publish(&file, &part, path).with_context(cannot)?;
        Ok(head)
    };
    let written = written.await;
    if written.is_err() {
        let _ = std::fs::remove_file(&part);
    }
    written
}

async fn write_packed(store: &Store, file: File, packed: bool) -> anyhow::Result<(i64, File)> {
    if packed {
        let mut output = BufWriter::new(GzEncoder::new(file, Compression::fast()));
        let head = write_log(store, &mut output).await?;
        Ok((head, output.into_inner().map_err(IntoInnerError::into_error)?.finish()?))
    } else {
        let mut output = BufWriter::new(file);
        let head = write_log(store, &mut output).await?;
        Ok((head, output.into_inner().map_err(IntoInnerError::into_error)?))
    }
}

/// Every event, a line each; their number.
async fn write_log(store: &Store, output: &mut impl Write) -> anyhow::Result<i64> {
    let head = store.head().await?;
    let mut position = 0;
    while position < head {
        let events = store.read_stored(position, (CHUNK as i64).min(head - position)).await?;
        ensure!(!events.is_empty(), gap(position + 1));
        for event in &events {
            position += 1;
            ensure!(event.position == position, gap(position));
            output.write_all(line(event).as_bytes())?;
        }
    }
    Ok(head)
}

fn gap(position: i64) -> String {
    format!("the log has no event at position {position}: somebody has removed it from the table; a backup has it")
}

fn line(event: &RecordedEvent) -> String {
    // A struct of texts always serializes.
    serde_json::to_string(&envelope(event)).unwrap_or_default() + "\n"
}

fn is_broken_pipe(error: &anyhow::Error) -> bool {
    error.downcast_ref::<std::io::Error>().is_some_and(|error| error.kind() == std::io::ErrorKind::BrokenPipe)
}

/// A store on which no server writes or projects, and none will as long as the leaderships are held.
async fn alone(program: &Program, common: &Common) -> anyhow::Result<(Store, Vec<Leadership>)> {
    let mut settings = load(program, common, &[])?.store;
    settings.nats_url.clear();
    let store = open(settings, MIGRATIONS, program.upcasters(), CancellationToken::new(), TaskTracker::new()).await?;
    let reactors = program.reactors();
    let reactors = reactors.iter().map(|reactor| reacting(reactor.name()));
    let mut leaderships = Vec::new();
    for role in ["relay".to_owned(), "projections".to_owned()].into_iter().chain(reactors) {
        match store.try_lead(&role).await? {
            Some(leadership) => leaderships.push(leadership),
            None => bail!("a server runs on this store: stop it first, every process of it"),
        }
    }
    let registrations: Vec<_> = program.reactors().into_iter().map(registration).collect();
    store.reactions().register(&registrations).await?;
    Ok((store, leaderships))
}

pub async fn restored(program: &Program, restored: Restored) -> anyhow::Result<u8> {
    let common = restored.common;
    let (store, _leaderships) = alone(program, &common).await?;
    let head = store.head().await?;
    ensure!(head > 0, "the log is empty: is database_url that of the store that was restored?");
    let nats_url = load(program, &common, &[])?.store.nats_url;
    if !nats_url.is_empty() {
        let removed = store.remove_stream(&nats_url, restored.delete_stream).await;
        match removed.context("the JetStream stream of before must go first")? {
            true => eprintln!("The JetStream stream of before is removed; a new one is made after the log's end."),
            false => eprintln!("There is no JetStream stream of before."),
        }
    }
    let held = outside(program);
    store.reactions().hold_all(&held, "the log was restored from a backup").await?;
    tell_held(&held);
    eprintln!("The log ends at {head}; its incarnation is {} from now on.", store.renew().await?);
    Ok(0)
}

pub async fn import(program: &Program, restore: Restore) -> anyhow::Result<u8> {
    let path = &restore.file;
    let file = File::open(path).with_context(|| format!("cannot read {}", path.display()))?;
    let reader: Box<dyn Read> = if is_packed(path) { Box::new(MultiGzDecoder::new(file)) } else { Box::new(file) };
    let (store, _leaderships) = alone(program, &restore.common).await?;
    let there = store.head().await?;
    let mut events = Vec::with_capacity(CHUNK);
    let mut last = 0;
    for (line, number) in BufReader::new(reader).lines().zip(1..) {
        let event = parse(line, last).with_context(|| format!("{}, line {number}", path.display()))?;
        last = event.position;
        events.push(event);
        if events.len() == CHUNK {
            take(program, &store, there, &mut events).await?;
        }
    }
    take(program, &store, there, &mut events).await?;
    ensure!(last > 0, "{} holds no events", path.display());
    ensure!(last >= there, "the store holds {there} events, the file {last}: import into an empty store");
    let is_held = |one: &ReactorCheckpoint| one.held.as_deref() == Some(IMPORT_INCOMPLETE);
    if store.reactions().checkpoints().await?.iter().any(is_held) {
        let held = outside(program);
        let deadlines = deadlines(&program.reactors(), &store).await?;
        store.reactions().reset_to_head(&held, "the log was imported", &deadlines).await?;
        tell_held(&held);
    }
    eprintln!("{last} events; {} of them were there before.", there.min(last));
    Ok(0)
}

/// Reactors that act outside the log: what they did after the backup was taken is not known.
fn outside(program: &Program) -> Vec<&'static str> {
    let reactors = program.reactors();
    reactors.iter().filter(|reactor| reactor.acts() == Acts::Outside).map(|reactor| reactor.name()).collect()
}

/// The deadlines that the processes of a log wait for, made from their states.
pub(super) async fn deadlines(reactors: &[&'static dyn Reactor], store: &Store) -> anyhow::Result<Vec<Deadline>> {
    let (rows, decider) = (store.reactions(), Arc::new(Decider::new(store.clone())));
    let mut all = Vec::new();
    for (reactor, process) in reactors.iter().filter_map(|one| Some((one, one.process()?))) {
        let mut after = String::new();
        loop {
            let ids = rows.aggregate_ids(process, &after, CHUNK as i64).await?;
            let Some(last) = ids.last() else { break };
            after.clone_from(last);
            for id in &ids {
                all.extend(reactor.deadlines_of(id, &mut Scope::new(decider.clone())).await?);
            }
        }
    }
    Ok(all)
}

fn tell_held(reactors: &[&str]) {
    for reactor in reactors {
        eprintln!("{reactor} acts outside the log, so it is held: `docket reactors release {reactor}` lets it run.");
    }
}

/// The event of a line, which must follow that of the line before.
fn parse(line: std::io::Result<String>, last: i64) -> anyhow::Result<RecordedEvent> {
    let line = line.context("the file is damaged or cut off: export again")?;
    let envelope = serde_json::from_str::<Envelope>(&line).context("this is no line of `docket events export`")?;
    let event = envelope.event().context("this is no line of `docket events export`")?;
    ensure!(event.position > last, "position {} comes after {last}: the file repeats itself", event.position);
    ensure!(event.position == last + 1, "position {} comes after {last}: the file has a gap", event.position);
    Ok(event)
}

/// Writes the events that the store has not, and compares the others: an import that was cut off goes on; a store with
/// other events is none to import into.
async fn take(program: &Program, store: &Store, there: i64, events: &mut Vec<RecordedEvent>) -> anyhow::Result<()> {
    let new = events.partition_point(|event| event.position <= there);
    let missing = events.split_off(new);
    if let Some(first) = events.first() {
        let known = store.read_stored(first.position - 1, events.len() as i64).await?;
        if let Some((event, _)) = events.iter().zip(&known).find(|(event, known)| line(event) != line(known)) {
            let at = event.position;
            bail!("event {at} of the file is not event {at} of the store: import into an empty store");
        }
        events.clear();
    }
    if let (Some(first), Some(last)) = (missing.first(), missing.last()) {
        let (first, last) = (first.position, last.position);
        // Until the end: a server that starts on half of a log must not react to it.
        let all: Vec<_> = program.reactors().iter().map(|reactor| reactor.name()).collect();
        store.reactions().hold_all(&all, IMPORT_INCOMPLETE).await?;
        store.restore(missing).await.with_context(|| {
            format!(
                "events {first} to {last} are not taken: each must be the next of its order, and PostgreSQL takes no payload \
                 that is no JSON (payload_text); mend the rows where they come from, and export again"
            )
        })?;
    }
    Ok(())
}

pub async fn tail(program: &Program, tail: Tail) -> anyhow::Result<u8> {
    let store = open_without_appender(load(program, &tail.common, &[])?.store, MIGRATIONS, program.upcasters()).await?;
    let head = store.head().await?;
    let mut position = match tail.after {
        Some(after) if after > head && !tail.follow => bail!("nothing is there yet: the log ends at {head}"),
        Some(after) => after.max(0),
        None => (head - 10).max(0),
    };
    loop {
        let events = store.read_stored(position, CHUNK as i64).await?;
        let mut output = std::io::stdout().lock();
        for event in &events {
            position = event.position;
            if let Err(error) = output.write_all(line(event).as_bytes()) {
                // Whoever read the lines has seen enough.
                return if error.kind() == std::io::ErrorKind::BrokenPipe { Ok(0) } else { Err(error.into()) };
            }
        }
        drop(output);
        if events.is_empty() {
            if !tail.follow {
                return Ok(0);
            }
            tokio::time::sleep(LOOK).await;
        }
    }
}

fn is_packed(path: &Path) -> bool {
    path.extension().is_some_and(|extension| extension == "gz")
}
