//! `docket events`: export, import and follow the log, and mark it as restored. A line is a CloudEvents 1.0 envelope in
//! JSON.

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
use event_store::store::{Store, open};
use flate2::Compression;
use flate2::read::MultiGzDecoder;
use flate2::write::GzEncoder;
use platform::files;
use projection_engine::state::rfc3339;
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::cli::{Common, Export, Restore, Restored, Tail, cannot_open, counted, load, open_store, output_failed};
use crate::migrations::MIGRATIONS;
use crate::program::Program;

/// Events that are read or written in one batch.
const CHUNK: usize = 2_000;
/// How often `tail --follow` looks for new events.
const POLL_INTERVAL: Duration = Duration::from_millis(250);

/// A CloudEvents 1.0 envelope. Positions are strings, because integers of CloudEvents have 32 bits.
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

/// Payload and metadata, byte for byte as the log stores them, except that line breaks between members become spaces:
/// an event is one line. A payload or metadata that is not JSON, because foreign code wrote into the table, is a string
/// in the member `payload_text` or `metadata_text`.
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

/// Returns the envelope of an event.
pub fn envelope(event: &RecordedEvent) -> Envelope {
    // JSON strings contain no unescaped line breaks, so this changes only the space between members.
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
            self.source.strip_prefix("/docket/").context("source must be /docket/ followed by the aggregate type")?;
        let stored = |raw: Option<Box<RawValue>>, text: Option<String>| {
            raw.map(|raw| raw.get().to_owned()).or(text).context("data must have payload and metadata")
        };
        Ok(RecordedEvent {
            position: self.position.parse().context("invalid position")?,
            aggregate_type: aggregate_type.into(),
            aggregate_id: self.subject.into(),
            sequence: self.sequence.parse().context("invalid sequence")?,
            event_type: self.event_type.into(),
            event_version: self.eventversion.into(),
            payload: stored(self.data.payload, self.data.payload_text)?,
            metadata: stored(self.data.metadata, self.data.metadata_text)?,
            recorded_at: self.time.parse::<jiff::Timestamp>().context("invalid time")?.as_microsecond(),
        })
    }
}

pub async fn export(program: &Program, export: Export) -> anyhow::Result<u8> {
    let store = open_store(program, &load(program, &export.common)?).await?;
    let head = match &export.output {
        None => {
            let mut output = BufWriter::new(std::io::stdout().lock());
            let written = write_log(&store, &mut output).await.and_then(|head| Ok(output.flush().map(|()| head)?));
            match written {
                Err(error) if error.is::<std::io::Error>() => return Ok(output_failed(&error.downcast()?)),
                written => written?,
            }
        }
        Some(path) => write_file(&store, path).await?,
    };
    eprintln!("Exported {}.", counted(head, "event"));
    Ok(0)
}

/// Writes the log to a regular file, or to a named pipe or a device. Returns the number of events.
async fn write_file(store: &Store, path: &Path) -> anyhow::Result<i64> {
    let cannot = || format!("cannot write {}", path.display());
    if path.metadata().is_ok_and(|about| !about.is_file()) {
        let file = File::options().write(true).open(path).with_context(cannot)?;
        return Ok(write_maybe_gzip(store, file, is_packed(path)).await?.0);
    }
    // A partial export looks like a complete one. So it is written under another name until it is complete, and until
    // then an existing file stays.
    let part = files::with_suffix(path, ".part");
    let file = files::create(&part).with_context(|| format!("cannot write {}", part.display()))?;
    let written = async {
        let (head, file) = write_maybe_gzip(store, file, is_packed(path)).await?;
        files::publish(&file, &part, path).with_context(cannot)?;
        Ok(head)
    };
    let written = written.await;
    if written.is_err() {
        let _ = std::fs::remove_file(&part);
    }
    written
}

async fn write_maybe_gzip(store: &Store, file: File, packed: bool) -> anyhow::Result<(i64, File)> {
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

/// Writes every event as a line. Returns the number of events.
async fn write_log(store: &Store, output: &mut impl Write) -> anyhow::Result<i64> {
    let head = store.head().await?;
    let mut position = 0;
    while position < head {
        let events = store.read_stored(position, (CHUNK as i64).min(head - position)).await?;
        ensure!(!events.is_empty(), missing_event(position + 1));
        for event in &events {
            position += 1;
            ensure!(event.position == position, missing_event(position));
            output.write_all(line(event).as_bytes())?;
        }
    }
    Ok(head)
}

fn missing_event(position: i64) -> String {
    format!("The log has no event at position {position}: it was removed from the table. Restore it from a backup.")
}

fn line(event: &RecordedEvent) -> String {
    // A struct of strings always serializes.
    serde_json::to_string(&envelope(event)).unwrap_or_default() + "\n"
}

/// Opens a store on which no server relays, projects or reacts. No server can start to do so while the returned
/// leaderships are held.
async fn open_exclusively(program: &Program, common: &Common) -> anyhow::Result<(Store, Vec<Leadership>)> {
    let mut settings = load(program, common)?;
    settings.store.nats_url.clear();
    let store = settings.store.clone();
    let store = open(store, MIGRATIONS, program.upcasters(), CancellationToken::new(), TaskTracker::new()).await;
    let store = store.map_err(|error| cannot_open(&settings, error.into()))?;
    let reactors = program.reactors();
    let reactors = reactors.iter().map(|reactor| reacting(reactor.name()));
    let mut leaderships = Vec::new();
    for role in ["relay".to_owned(), "projections".to_owned()].into_iter().chain(reactors) {
        match store.try_lead(&role).await? {
            Some(leadership) => leaderships.push(leadership),
            None => bail!("A server runs on this store. Stop all of its processes first."),
        }
    }
    let registrations: Vec<_> = program.reactors().into_iter().map(registration).collect();
    store.reactions().register(&registrations).await?;
    Ok((store, leaderships))
}

pub async fn restored(program: &Program, restored: Restored) -> anyhow::Result<u8> {
    let common = restored.common;
    let settings = load(program, &common)?;
    let file = settings.store.database_url.strip_prefix("sqlite:").map(|path| path.trim_start_matches("//"));
    if file.is_some_and(|file| !Path::new(file).exists()) {
        // Fails: a restored store exists. `open_exclusively` would create an empty one.
        open_store(program, &settings).await?;
    }
    let (store, _leaderships) = open_exclusively(program, &common).await?;
    let head = store.head().await?;
    ensure!(head > 0, "The log is empty. Check that database_url names the restored store.");
    let nats_url = settings.store.nats_url;
    if !nats_url.is_empty() {
        let removed = store.remove_stream(&nats_url, restored.delete_stream).await;
        match removed.context("cannot remove the JetStream stream of the lost log")? {
            true => eprintln!(
                "Removed the JetStream stream of the lost log. The relay creates a new one from the end of the log."
            ),
            false => eprintln!("There is no JetStream stream to remove."),
        }
    }
    let held = reactors_outside_log(program);
    store.reactions().hold_all(&held, "the log was restored from a backup").await?;
    print_held(&held);
    eprintln!("The log ends at position {head}. Its new incarnation is {}.", store.renew_incarnation().await?);
    Ok(0)
}

pub async fn import(program: &Program, restore: Restore) -> anyhow::Result<u8> {
    let path = &restore.file;
    let file = File::open(path).with_context(|| format!("cannot read {}", path.display()))?;
    ensure!(
        !file.metadata()?.is_dir(),
        "{} is a folder. Give the file that `docket events export` has written.",
        path.display()
    );
    let reader: Box<dyn Read> = if is_packed(path) { Box::new(MultiGzDecoder::new(file)) } else { Box::new(file) };
    let mut lines = BufReader::new(reader).lines().zip(1..).peekable();
    // Checked before a store is created.
    match lines.peek() {
        Some((Ok(line), _)) => drop(parse(Ok(line.clone()), 0).with_context(|| format!("{}, line 1", path.display()))?),
        Some((Err(error), _)) => {
            bail!("{}, line 1: the file is damaged or incomplete; export the log again: {error}", path.display())
        }
        None => bail!("{} contains no events.", path.display()),
    }
    let (store, _leaderships) = open_exclusively(program, &restore.common).await?;
    let there = store.head().await?;
    let mut events = Vec::with_capacity(CHUNK);
    let mut last = 0;
    for (line, number) in lines {
        let event = parse(line, last).with_context(|| format!("{}, line {number}", path.display()))?;
        last = event.position;
        events.push(event);
        if events.len() == CHUNK {
            import_batch(program, &store, there, &mut events).await?;
        }
    }
    import_batch(program, &store, there, &mut events).await?;
    ensure!(last > 0, "{} contains no events.", path.display());
    ensure!(
        last >= there,
        "The store has {}, but the file only {last}. Import into an empty store.",
        counted(there, "event")
    );
    let is_held = |one: &ReactorCheckpoint| one.held.as_deref() == Some(IMPORT_INCOMPLETE);
    if store.reactions().checkpoints().await?.iter().any(is_held) {
        let held = reactors_outside_log(program);
        let deadlines = deadlines(&program.reactors(), &store).await?;
        store.reactions().reset_to_head(&held, "the log was imported", &deadlines).await?;
        print_held(&held);
    }
    eprintln!("The file has {}; {} of them were already in the store.", counted(last, "event"), there.min(last));
    Ok(0)
}

/// Returns the names of the reactors that act outside the log. Their effects after the backup was taken are unknown.
fn reactors_outside_log(program: &Program) -> Vec<&'static str> {
    let reactors = program.reactors();
    reactors.iter().filter(|reactor| reactor.acts() == Acts::Outside).map(|reactor| reactor.name()).collect()
}

/// Computes the open deadlines of the processes that these reactors run, from the states of the processes in the log.
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

fn print_held(reactors: &[&str]) {
    for reactor in reactors {
        eprintln!(
            "{reactor} acts outside the log, so it is held. Run `docket reactors release {reactor}` to release it."
        );
    }
}

/// Parses a line. The position of its event must follow `last`, the position of the previous line.
fn parse(line: std::io::Result<String>, last: i64) -> anyhow::Result<RecordedEvent> {
    let line = line.context("the file is damaged or incomplete; export the log again")?;
    let envelope = serde_json::from_str::<Envelope>(&line).context("this is not a line of `docket events export`")?;
    let event = envelope.event().context("this is not a line of `docket events export`")?;
    ensure!(
        event.position > last,
        "position {} follows position {last}: the file contains events twice",
        event.position
    );
    ensure!(
        event.position == last + 1,
        "position {} follows position {last}: events are missing from the file",
        event.position
    );
    Ok(event)
}

/// Writes the events that the store lacks, and compares the others with the events of the store. So an interrupted
/// import resumes, and an import into a store with other events fails.
async fn import_batch(
    program: &Program,
    store: &Store,
    there: i64,
    events: &mut Vec<RecordedEvent>,
) -> anyhow::Result<()> {
    let new = events.partition_point(|event| event.position <= there);
    let missing = events.split_off(new);
    if let Some(first) = events.first() {
        let known = store.read_stored(first.position - 1, events.len() as i64).await?;
        if let Some((event, _)) = events.iter().zip(&known).find(|(event, known)| line(event) != line(known)) {
            let at = event.position;
            bail!("Event {at} of the file differs from event {at} of the store. Import into an empty store.");
        }
        events.clear();
    }
    if let (Some(first), Some(last)) = (missing.first(), missing.last()) {
        let (first, last) = (first.position, last.position);
        // Held until the import is complete: a server that starts on a partial log must not react to its events.
        let all: Vec<_> = program.reactors().iter().map(|reactor| reactor.name()).collect();
        store.reactions().hold_all(&all, IMPORT_INCOMPLETE).await?;
        store.restore(missing).await.with_context(|| {
            format!(
                "cannot write the events {first} to {last}: each must be the next event of its stream, and PostgreSQL accepts no \
                 payload that is not JSON (payload_text); correct the rows in the source store and export it again"
            )
        })?;
    }
    Ok(())
}

pub async fn tail(program: &Program, tail: Tail) -> anyhow::Result<u8> {
    let store = open_store(program, &load(program, &tail.common)?).await?;
    let head = store.head().await?;
    let mut position = match tail.after {
        Some(after) if after > head && !tail.follow => bail!("The log ends at position {head}. Add --follow to wait."),
        Some(after) => after.max(0),
        None => (head - 10).max(0),
    };
    loop {
        let events = store.read_stored(position, CHUNK as i64).await?;
        let mut output = std::io::stdout().lock();
        for event in &events {
            position = event.position;
            if let Err(error) = output.write_all(line(event).as_bytes()) {
                return Ok(output_failed(&error));
            }
        }
        if let Err(error) = output.flush() {
            return Ok(output_failed(&error));
        }
        drop(output);
        if events.is_empty() {
            if !tail.follow {
                return Ok(0);
            }
            tokio::time::sleep(POLL_INTERVAL).await;
        }
    }
}

fn is_packed(path: &Path) -> bool {
    path.extension().is_some_and(|extension| extension == "gz")
}
