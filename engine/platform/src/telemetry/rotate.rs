//! A log file that is rotated by size and by day. Rotated files are compressed, and removed by count and by age.
//!
//! `docket.log` is the current file. `docket.log.2026-11-23T091502.123456Z` was rotated at this time and is compressed
//! to `….gz` soon after. `docket.log.audit` contains a line of JSON for each rotated or removed file. A line is never
//! split between two files.

use std::fs::{self, File, TryLockError};
use std::io::{self, BufReader, BufWriter, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::mpsc;
use std::time::{Duration, Instant, SystemTime};

use flate2::Compression;
use flate2::write::GzEncoder;
use jiff::Timestamp;
use jiff::civil::{Date, DateTime};
use jiff::tz::TimeZone;
use serde_json::{Value, json};

use crate::files::{self, private, with_suffix};

/// Format of the rotation time in file names: in UTC, so that names sort by time.
const STAMP: &str = "%Y-%m-%dT%H%M%S.%6fZ";
/// Pause after a failed rotation. Until the next attempt, lines are appended to the current file.
const ROTATION_RETRY_DELAY: Duration = Duration::from_secs(10);

/// Limits for the size of the current file, and for the number and age of rotated files.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Maximum size of a file in bytes; 0 means no limit.
    pub bytes_max: u64,
    /// Number of rotated files to keep; 0 means no limit.
    pub files_max: usize,
    /// Number of days to keep rotated files; 0 means no limit.
    pub days_max: u64,
}

/// A log file that rotates.
pub struct RotatingFile {
    path: PathBuf,
    limits: Limits,
    file: File,
    bytes: u64,
    lines: u64,
    /// Day (UTC) of the lines in the current file.
    day: Date,
    audit: Audit,
    /// Sends rotated files to the thread that compresses and removes files. The thread ends when this sender is
    /// dropped.
    rotated_sender: Option<mpsc::Sender<PathBuf>>,
    compressor: Option<std::thread::JoinHandle<()>>,
    /// Time of the last failed rotation; None after a successful one.
    failed: Option<Instant>,
    /// Whether the file may end with a partial line.
    has_partial_line: bool,
}

/// The audit file, which records rotations and removals. Its file lock makes sure that only one process writes the log.
#[derive(Clone)]
struct Audit(Arc<File>);

impl Audit {
    fn write_entry(&self, entry: &Value) -> io::Result<()> {
        (&*self.0).write_all(format!("{entry}\n").as_bytes())
    }
}

impl RotatingFile {
    /// Opens the file for appending, and completes compressions that a crash interrupted.
    ///
    /// # Errors
    /// Fails if the folder cannot be created, the file cannot be opened, or another process writes the file.
    pub fn open(path: &Path, limits: Limits) -> io::Result<Self> {
        if let Some(folder) = path.parent() {
            files::create_folder(folder)?;
        }
        let audit = private().create(true).append(true).open(with_suffix(path, ".audit"))?;
        match audit.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                let text = "another process writes the file: give each process a log file of its own";
                return Err(io::Error::new(io::ErrorKind::ResourceBusy, text));
            }
            Err(TryLockError::Error(error)) => return Err(error),
        }
        let audit = Audit(Arc::new(audit));
        let (file, bytes, lines, day) = open_at_end(path)?;
        let (rotated_sender, rotated) = mpsc::channel::<PathBuf>();
        let (log_path, log_limits, log_audit) = (path.to_owned(), limits, audit.clone());
        let compressor = std::thread::Builder::new().name("log-keeper".into()).spawn(move || {
            for left in rotated_files(&log_path).unwrap_or_default() {
                match left.extension().is_some_and(|end| end == "part") {
                    true => drop(fs::remove_file(&left)),
                    false => compress(&left),
                }
            }
            remove_old(&log_path, log_limits, &log_audit);
            for file in rotated {
                compress(&file);
                remove_old(&log_path, log_limits, &log_audit);
            }
        })?;
        let (rotated_sender, compressor) = (Some(rotated_sender), Some(compressor));
        let path = path.to_owned();
        Ok(Self {
            path,
            limits,
            file,
            bytes,
            lines,
            day,
            audit,
            rotated_sender,
            compressor,
            failed: None,
            has_partial_line: false,
        })
    }

    /// Appends `count` complete lines with one write. Rotates the file first if the lines do not fit or a new day has
    /// begun.
    ///
    /// # Errors
    /// Returns the error of the file system. The lines are then lost, or partially written.
    pub fn write(&mut self, lines: &[u8], count: u64) -> io::Result<()> {
        let today = date_of(SystemTime::now());
        let full = self.limits.bytes_max > 0 && self.bytes + lines.len() as u64 > self.limits.bytes_max;
        let due = self.bytes > 0 && (full || today != self.day);
        if due && self.failed.is_none_or(|failed| failed.elapsed() >= ROTATION_RETRY_DELAY) {
            self.failed = None;
            if let Err(error) = self.rotate(if full { "size" } else { "day" }) {
                self.failed = Some(Instant::now());
                // Written to stderr, because the log itself may be what fails. Errors of stderr are ignored.
                let _ = writeln!(
                    io::stderr(),
                    "docket: Could not rotate the log file {}: {error}. Lines are still appended.",
                    self.path.display()
                );
            }
        }
        if self.failed.is_none() {
            self.day = today;
        }
        if self.has_partial_line {
            self.file.write_all(b"\n")?;
            self.has_partial_line = false;
        }
        let written = self.file.write_all(lines);
        // The next line must not be appended to a partial line.
        self.has_partial_line = written.is_err();
        written?;
        self.bytes += lines.len() as u64;
        self.lines += count;
        Ok(())
    }

    /// Reopens the path after another program has moved the file.
    ///
    /// # Errors
    /// Fails if the file cannot be opened. Lines then still go to the previous file.
    pub fn reopen(&mut self) -> io::Result<()> {
        (self.file, self.bytes, self.lines, self.day) = open_at_end(&self.path)?;
        Ok(())
    }

    fn rotate(&mut self, reason: &'static str) -> io::Result<()> {
        let now = Timestamp::now();
        let rotated = with_suffix(&self.path, &format!(".{}", now.strftime(STAMP)));
        match fs::rename(&self.path, &rotated) {
            // Another program has moved the file, or the previous rotation could not open a new one.
            Err(error) if error.kind() == io::ErrorKind::NotFound => return self.reopen(),
            renamed => renamed?,
        }
        let (bytes, lines) = (self.bytes, self.lines);
        // If no new file can be opened, lines still go to the old file under its new name.
        (self.file, self.bytes, self.lines, self.day) = open_at_end(&self.path)?;
        let name = file_name(&rotated);
        let recorded = self
            .audit
            .write_entry(&json!({"at": now, "rotated": name, "reason": reason, "bytes": bytes, "lines": lines}));
        tracing::info!(file = name, reason, bytes, lines, "Log file rotated.");
        if let Some(rotated_sender) = &self.rotated_sender {
            // The thread runs as long as this sender exists.
            let _ = rotated_sender.send(rotated);
        }
        recorded
    }
}

impl Drop for RotatingFile {
    /// Waits for running compressions.
    fn drop(&mut self) {
        self.rotated_sender = None;
        if let Some(compressor) = self.compressor.take() {
            let _ = compressor.join();
        }
    }
}

/// Opens a file for appending, and returns it with its size in bytes, its lines and its day. A partial last line, left
/// by a crash, is completed with a line feed.
fn open_at_end(path: &Path) -> io::Result<(File, u64, u64, Date)> {
    let mut file = private().create(true).read(true).append(true).open(path)?;
    let meta = file.metadata()?;
    let day = date_of(if meta.len() > 0 { meta.modified()? } else { SystemTime::now() });
    let (mut lines, mut last, mut buffer) = (0, b'\n', vec![0; 64 * 1024]);
    file.seek(SeekFrom::Start(0))?;
    loop {
        let read = file.read(&mut buffer)?;
        let Some(end) = buffer[..read].last() else { break };
        last = *end;
        lines += buffer[..read].iter().filter(|byte| **byte == b'\n').count() as u64;
    }
    if last != b'\n' {
        file.write_all(b"\n")?;
        lines += 1;
    }
    Ok((file, meta.len() + u64::from(last != b'\n'), lines, day))
}

/// Returns the rotated files, compressed or not, oldest first. Files with other names (`docket.log.2.gz` of logrotate)
/// are not included.
fn rotated_files(path: &Path) -> io::Result<Vec<PathBuf>> {
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let prefix = format!("{}.", file_name(path));
    let is_ours = |name: &str| {
        name.strip_prefix(&prefix)
            .map(|name| name.trim_end_matches(".gz").trim_end_matches(".part"))
            .is_some_and(|stamp| DateTime::strptime(STAMP, stamp).is_ok())
    };
    let mut found: Vec<_> = fs::read_dir(folder)?
        .filter_map(|entry| Some(entry.ok()?.path()))
        .filter(|file| is_ours(&file_name(file)))
        .collect();
    found.sort();
    Ok(found)
}

/// Replaces a file with its compressed form. The compressed file gets its name after all bytes are on the disk, so a
/// crash leaves at least one complete file, and the next start completes the work.
fn compress(file: &Path) {
    if file.extension().is_some_and(|extension| extension == "gz" || extension == "part") {
        return;
    }
    let (part, compressed) = (with_suffix(file, ".part"), with_suffix(file, ".gz"));
    let work = || -> io::Result<()> {
        if !compressed.exists() {
            let mut from = BufReader::new(File::open(file)?);
            let mut to = GzEncoder::new(BufWriter::new(files::create(&part)?), Compression::fast());
            io::copy(&mut from, &mut to)?;
            files::publish(&to.finish()?.into_inner()?, &part, &compressed)?;
        }
        fs::remove_file(file)
    };
    if let Err(error) = work() {
        // A partial file would only occupy space on a disk that may be full.
        let _ = fs::remove_file(&part);
        tracing::warn!(file = file_name(file), %error, "Could not compress a rotated log file. The next start tries again.");
    }
}

fn remove_old(path: &Path, limits: Limits, audit: &Audit) {
    let files = rotated_files(path).unwrap_or_default();
    let kept: Vec<_> = files.iter().filter(|file| file.extension().is_none_or(|end| end != "part")).collect();
    let over = if limits.files_max == 0 { 0 } else { kept.len().saturating_sub(limits.files_max) };
    let oldest = (limits.days_max > 0)
        .then(|| SystemTime::now().checked_sub(Duration::from_secs(limits.days_max.saturating_mul(86_400))))
        .flatten();
    for (at, file) in kept.into_iter().enumerate() {
        let modified = fs::metadata(file).and_then(|meta| meta.modified());
        let aged = oldest.is_some_and(|oldest| modified.is_ok_and(|modified| modified < oldest));
        if at >= over && !aged {
            continue;
        }
        let reason = if at < over { "count" } else { "age" };
        let removed = fs::remove_file(file).and_then(|()| {
            audit.write_entry(&json!({"at": Timestamp::now(), "removed": file_name(file), "reason": reason}))
        });
        if let Err(error) = removed {
            tracing::warn!(file = file_name(file), %error, "Could not remove an old log file.");
        }
    }
}

fn date_of(time: SystemTime) -> Date {
    Timestamp::try_from(time).unwrap_or_default().to_zoned(TimeZone::UTC).date()
}

fn file_name(path: &Path) -> String {
    path.file_name().unwrap_or_default().to_string_lossy().into_owned()
}

#[cfg(test)]
mod tests {
    use flate2::read::GzDecoder;

    use super::*;

    /// Returns the lines of all files of a log, oldest file first.
    fn lines_of(path: &Path) -> Vec<String> {
        let mut lines = Vec::new();
        for file in rotated_files(path).unwrap().into_iter().chain([path.to_owned()]) {
            let mut text = String::new();
            let raw = File::open(&file).unwrap();
            match file.extension().is_some_and(|end| end == "gz") {
                true => GzDecoder::new(raw).read_to_string(&mut text).unwrap(),
                false => BufReader::new(raw).read_to_string(&mut text).unwrap(),
            };
            lines.extend(text.lines().map(str::to_owned));
        }
        lines
    }

    fn limits(bytes_max: u64) -> Limits {
        Limits { bytes_max, files_max: 0, days_max: 0 }
    }

    #[test]
    fn a_full_file_is_compressed_and_every_line_is_in_one_file() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("logs/docket.log");
        let mut log = RotatingFile::open(&path, limits(1000)).unwrap();
        for n in 0..500 {
            log.write(format!("line {n}\n").as_bytes(), 1).unwrap();
        }
        drop(log);
        assert_eq!(lines_of(&path), (0..500).map(|n| format!("line {n}")).collect::<Vec<_>>());
        let rotated = rotated_files(&path).unwrap();
        assert!(rotated.len() >= 4 && rotated.iter().all(|file| file.extension().unwrap() == "gz"), "{rotated:?}");
        let audit = fs::read_to_string(with_suffix(&path, ".audit")).unwrap();
        let counted: u64 =
            audit.lines().map(|line| serde_json::from_str::<Value>(line).unwrap()["lines"].as_u64().unwrap()).sum();
        let in_last = fs::read_to_string(&path).unwrap().lines().count() as u64;
        assert_eq!(counted + in_last, 500);
    }

    #[test]
    fn a_removed_file_is_created_again() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("docket.log");
        let mut log = RotatingFile::open(&path, limits(10)).unwrap();
        log.write(b"gone\n", 1).unwrap();
        fs::remove_file(&path).unwrap();
        for line in ["one is there\n", "two is there\n"] {
            log.write(line.as_bytes(), 1).unwrap();
        }
        drop(log);
        assert_eq!(lines_of(&path), ["one is there", "two is there"]);
    }

    #[test]
    fn a_new_day_begins_a_new_file() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("docket.log");
        fs::write(&path, "yesterday\n").unwrap();
        let yesterday = SystemTime::now() - Duration::from_secs(86_400);
        File::options().append(true).open(&path).unwrap().set_modified(yesterday).unwrap();
        let mut log = RotatingFile::open(&path, limits(0)).unwrap();
        log.write(b"today\n", 1).unwrap();
        drop(log);
        assert_eq!(fs::read_to_string(&path).unwrap(), "today\n");
        assert_eq!(lines_of(&path), ["yesterday", "today"]);
    }

    #[test]
    fn excess_and_old_files_are_removed() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("docket.log");
        let old = folder.path().join("docket.log.2020-01-01T000000.000000Z.gz");
        fs::write(&old, "").unwrap();
        File::options().append(true).open(&old).unwrap().set_modified(SystemTime::UNIX_EPOCH).unwrap();
        let of_logrotate = folder.path().join("docket.log.2.gz");
        fs::write(&of_logrotate, "").unwrap();
        File::options().append(true).open(&of_logrotate).unwrap().set_modified(SystemTime::UNIX_EPOCH).unwrap();
        drop(RotatingFile::open(&path, Limits { bytes_max: 10, files_max: 3, days_max: 7 }).unwrap());
        assert!(!old.exists() && of_logrotate.exists());
        let mut log = RotatingFile::open(&path, Limits { bytes_max: 10, files_max: 3, days_max: 7 }).unwrap();
        for n in 0..20 {
            log.write(format!("line {n:02}\n").as_bytes(), 1).unwrap();
        }
        drop(log);
        assert_eq!(lines_of(&path), ["line 16", "line 17", "line 18", "line 19"]);
        let audit = fs::read_to_string(with_suffix(&path, ".audit")).unwrap();
        assert!(audit.contains(r#""reason":"age""#), "{audit}");
        assert!(audit.contains(r#""reason":"count""#), "{audit}");
    }

    #[test]
    fn interrupted_compressions_are_completed() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("docket.log");
        let rotated = folder.path().join("docket.log.2026-01-01T000000.000000Z");
        fs::write(&rotated, "one\n").unwrap();
        fs::write(with_suffix(&rotated, ".part"), "half of it").unwrap();
        fs::write(&path, "two\ncut of").unwrap();
        let mut log = RotatingFile::open(&path, limits(0)).unwrap();
        log.write(b"three\n", 1).unwrap();
        drop(log);
        assert_eq!(lines_of(&path), ["one", "two", "cut of", "three"]);
        assert!(!rotated.exists());
    }

    #[test]
    fn two_processes_do_not_share_a_file() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("docket.log");
        let _first = RotatingFile::open(&path, limits(0)).unwrap();
        let error = RotatingFile::open(&path, limits(0)).err().unwrap();
        assert!(error.to_string().contains("a log file of its own"), "{error}");
    }

    #[test]
    fn a_reopen_after_a_move_creates_a_new_file() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("docket.log");
        let mut log = RotatingFile::open(&path, limits(0)).unwrap();
        log.write(b"one\n", 1).unwrap();
        fs::rename(&path, folder.path().join("elsewhere")).unwrap();
        log.reopen().unwrap();
        log.write(b"two\n", 1).unwrap();
        assert_eq!(fs::read_to_string(&path).unwrap(), "two\n");
    }
}
