//! The log as lines: export, import, tail. A line is a CloudEvents 1.0 envelope in JSON.

use std::fs::File;
use std::io::{BufRead, BufReader, BufWriter, IntoInnerError, Read, Write};
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, bail, ensure};
use event_store::event::RecordedEvent;
use event_store::store::{Store, open, open_beside};
use flate2::Compression;
use flate2::read::MultiGzDecoder;
use flate2::write::GzEncoder;
use projections::order::{rfc3339, upcasters};
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::cli::{Common, Export, Restore, Tail, load};

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
#[derive(Serialize, Deserialize)]
struct Data {
    payload: Box<RawValue>,
    metadata: Box<RawValue>,
}

/// An event as a line.
pub fn envelope(event: &RecordedEvent) -> anyhow::Result<Envelope> {
    let raw = |text: &str| {
        // A string of JSON holds none as such.
        let line = text.replace(['\n', '\r'], " ");
        RawValue::from_string(line).with_context(|| format!("event {} is no JSON: mend its row", event.position))
    };
    Ok(Envelope {
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
        data: Data { payload: raw(&event.payload)?, metadata: raw(&event.metadata)? },
    })
}

impl Envelope {
    fn event(self) -> anyhow::Result<RecordedEvent> {
        ensure!(self.specversion == "1.0", "specversion is {}, not 1.0", self.specversion);
        let aggregate_type =
            self.source.strip_prefix("/docket/").context("source must be /docket/ and the aggregate's type")?;
        Ok(RecordedEvent {
            position: self.position.parse().context("position")?,
            aggregate_type: aggregate_type.into(),
            aggregate_id: self.subject.into(),
            sequence: self.sequence.parse().context("sequence")?,
            event_type: self.event_type.into(),
            event_version: self.eventversion.into(),
            payload: self.data.payload.get().to_owned(),
            metadata: self.data.metadata.get().to_owned(),
            recorded_at: self.time.parse::<jiff::Timestamp>().context("time")?.as_microsecond(),
        })
    }
}

pub async fn export(export: Export) -> anyhow::Result<u8> {
    let store = open_beside(load(&export.common, &[])?.store, upcasters()).await?;
    let head = match &export.output {
        None => {
            let mut output = BufWriter::new(std::io::stdout().lock());
            let head = write_log(&store, &mut output).await?;
            output.flush()?;
            head
        }
        Some(path) => {
            let written = write_file(&store, path).await;
            // A part of a log reads like a whole one.
            if written.is_err() && path.symlink_metadata().is_ok_and(|about| about.is_file()) {
                let _ = std::fs::remove_file(path);
            }
            written?
        }
    };
    eprintln!("{head} events.");
    Ok(0)
}

async fn write_file(store: &Store, path: &Path) -> anyhow::Result<i64> {
    let file = File::create(path).with_context(|| format!("cannot write {}", path.display()))?;
    let (head, file) = if is_packed(path) {
        let mut output = BufWriter::new(GzEncoder::new(file, Compression::fast()));
        let head = write_log(store, &mut output).await?;
        (head, output.into_inner().map_err(IntoInnerError::into_error)?.finish()?)
    } else {
        let mut output = BufWriter::new(file);
        let head = write_log(store, &mut output).await?;
        (head, output.into_inner().map_err(IntoInnerError::into_error)?)
    };
    file.sync_all()?;
    Ok(head)
}

/// Every event, a line each; their number.
async fn write_log(store: &Store, output: &mut impl Write) -> anyhow::Result<i64> {
    let head = store.head().await?;
    let mut position = 0;
    while position < head {
        let events = store.read_stored(position, (CHUNK as i64).min(head - position)).await?;
        let Some(last) = events.last() else { bail!("no event follows position {position}") };
        position = last.position;
        for event in &events {
            serde_json::to_writer(&mut *output, &envelope(event)?)?;
            output.write_all(b"\n")?;
        }
    }
    Ok(head)
}

/// A store that no server has open, as far as that can be known.
async fn alone(common: &Common) -> anyhow::Result<Store> {
    let mut settings = load(common, &[])?.store;
    settings.nats_url.clear();
    Ok(open(settings, upcasters(), CancellationToken::new(), TaskTracker::new()).await?)
}

pub async fn restored(common: Common) -> anyhow::Result<u8> {
    let store = alone(&common).await?;
    let head = store.head().await?;
    ensure!(head > 0, "the log is empty: is database_url that of the store that was restored?");
    eprintln!("The log ends at {head}; its incarnation is {} from now on.", store.renew().await?);
    Ok(0)
}

pub async fn import(restore: Restore) -> anyhow::Result<u8> {
    let path = &restore.file;
    let file = File::open(path).with_context(|| format!("cannot read {}", path.display()))?;
    let reader: Box<dyn Read> = if is_packed(path) { Box::new(MultiGzDecoder::new(file)) } else { Box::new(file) };
    let store = alone(&restore.common).await?;
    let there = store.head().await?;
    let mut events = Vec::with_capacity(CHUNK);
    let mut last = 0;
    for (line, number) in BufReader::new(reader).lines().zip(1..) {
        let parsed = async {
            let event = serde_json::from_str::<Envelope>(&line?)?.event()?;
            ensure!(event.position == last + 1, "position {} follows {last}: the file has a gap", event.position);
            Ok(event)
        };
        let event: RecordedEvent = parsed.await.with_context(|| format!("{}, line {number}", path.display()))?;
        last = event.position;
        if event.position <= there {
            if event.position == there {
                same(&store, &event).await?;
            }
            continue;
        }
        events.push(event);
        if events.len() == CHUNK {
            store.restore(std::mem::take(&mut events)).await?;
        }
    }
    ensure!(last >= there, "the store holds {there} events, the file {last}: import into an empty store");
    store.restore(events).await?;
    eprintln!("{last} events; {} of them were there before.", there.min(last));
    Ok(0)
}

/// An import that was cut off goes on; a store with other events is none to import into.
async fn same(store: &Store, event: &RecordedEvent) -> anyhow::Result<()> {
    let known = store.read_stored(event.position - 1, 1).await?;
    let known = known.first().map(RecordedEvent::id);
    ensure!(known == Some(event.id()), "the store holds other events than the file: import into an empty store");
    Ok(())
}

pub async fn tail(tail: Tail) -> anyhow::Result<u8> {
    let store = open_beside(load(&tail.common, &[])?.store, upcasters()).await?;
    let mut position = match tail.after {
        Some(after) => after.max(0),
        None => (store.head().await? - 10).max(0),
    };
    loop {
        let events = store.read(position, CHUNK as i64).await?;
        let mut output = std::io::stdout().lock();
        for event in &events {
            position = event.position;
            if let Err(error) = writeln!(output, "{}", serde_json::to_string(&envelope(event)?)?) {
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
