//! The bytes of a file: stdin is kept in a temporary file, gzip is recognized by its content, and text of any encoding
//! is read as UTF-8. A source can be read several times.

use std::fs::File;
use std::io::{BufReader, Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use anyhow::{Context, anyhow};
use chardetng::{EncodingDetector, Iso2022JpDetection, Utf8Detection};
use encoding_rs::{UTF_8, UTF_16BE, UTF_16LE, WINDOWS_1252};
use encoding_rs_io::DecodeReaderBytesBuilder;

use crate::cli::Usage;

const GZIP: &[u8] = &[0x1f, 0x8b];
/// What other files begin with, and what to do about them.
const FOREIGN: [(&[u8], &str); 6] = [
    (b"PK\x03\x04", "It is a spreadsheet or a zip archive. Export it as CSV, or unpack it."),
    (b"\xd0\xcf\x11\xe0", "It is a spreadsheet of an old Excel. Export it as CSV."),
    (b"%PDF", "It is a PDF. Export the orders as CSV."),
    (b"\x28\xb5\x2f\xfd", "It is compressed with zstd. Use: zstd -dc FILE | docket import -"),
    (b"BZh", "It is compressed with bzip2. Use: bzip2 -dc FILE | docket import -"),
    (b"\xfd7zXZ", "It is compressed with xz. Use: xz -dc FILE | docket import -"),
];
const BUFFER_BYTES: usize = 64 << 10;

/// A file that can be read from its beginning several times.
pub struct Source {
    path: PathBuf,
    file: File,
    is_gzip: bool,
    /// Size of the file, before decompression.
    pub bytes: u64,
    /// Bytes that were read in all passes, before decompression.
    pub read: Arc<AtomicU64>,
}

impl Source {
    /// Opens a file. `-` is stdin. A pipe is copied to a temporary file first, because a source is read more than once.
    ///
    /// # Errors
    /// The file cannot be read, or is no text.
    pub fn open(path: &Path) -> anyhow::Result<Self> {
        let (path, mut file) = if path == Path::new("-") {
            ("stdin".into(), spool(&mut std::io::stdin().lock())?)
        } else {
            let cannot_read = || format!("cannot read {}", path.display());
            let mut file = File::open(path).with_context(cannot_read)?;
            let metadata = file.metadata().with_context(cannot_read)?;
            if metadata.is_dir() {
                return Err(Usage(anyhow!("{} is a folder.", path.display())).into());
            }
            if !metadata.is_file() {
                file = spool(&mut file)?;
            }
            (path.to_owned(), file)
        };
        let mut start = Vec::new();
        file.seek(SeekFrom::Start(0))?;
        Read::by_ref(&mut file)
            .take(8)
            .read_to_end(&mut start)
            .with_context(|| format!("cannot read {}", path.display()))?;
        let bytes = file.metadata()?.len();
        let source = Self { path, file, is_gzip: start.starts_with(GZIP), bytes, read: Arc::default() };
        let start = source.start(8)?;
        if let Some((_, advice)) = FOREIGN.iter().find(|(magic, _)| start.starts_with(magic)) {
            return Err(source.usage(advice));
        }
        Ok(source)
    }

    /// Returns the path, for messages.
    pub fn name(&self) -> std::path::Display<'_> {
        self.path.display()
    }

    /// Whether this is the file of a path.
    pub fn is_file(&self, path: &Path) -> bool {
        matches!((self.path.canonicalize(), path.canonicalize()), (Ok(own), Ok(other)) if own == other)
    }

    /// Returns an error that the user can correct.
    pub fn usage(&self, reason: impl std::fmt::Display) -> anyhow::Error {
        Usage(anyhow!("{}: {reason}", self.name())).into()
    }

    /// Reads the bytes from the beginning, decompressed.
    ///
    /// # Errors
    /// The file cannot be read.
    fn raw(&self) -> std::io::Result<Box<dyn Read + Send>> {
        let mut file = self.file.try_clone()?;
        file.seek(SeekFrom::Start(0))?;
        let counted = Counted { file, read: self.read.clone() };
        if self.is_gzip {
            let buffered = BufReader::with_capacity(BUFFER_BYTES, counted);
            return Ok(Box::new(flate2::bufread::MultiGzDecoder::new(buffered)));
        }
        Ok(Box::new(counted))
    }

    /// Returns the first bytes, decompressed. A file that ends early has fewer.
    pub fn start(&self, bytes: usize) -> anyhow::Result<Vec<u8>> {
        let mut start = Vec::new();
        let mut raw = self.raw()?.take(bytes as u64);
        // Damage is reported when the file is read as a whole.
        let _ = raw.read_to_end(&mut start);
        Ok(start)
    }

    /// Reads the text from the beginning, as UTF-8. UTF-8 itself is not checked. A byte order mark is left out.
    ///
    /// # Errors
    /// The file cannot be read.
    pub fn text(&self, encoding: &'static encoding_rs::Encoding) -> std::io::Result<Box<dyn Read + Send>> {
        let mut raw = self.raw()?;
        if encoding != UTF_8 {
            let decoder = DecodeReaderBytesBuilder::new().encoding(Some(encoding)).build(raw);
            return Ok(Box::new(decoder));
        }
        let mut start = Vec::new();
        // A read that fails here fails again later.
        let _ = Read::by_ref(&mut raw).take(3).read_to_end(&mut start);
        if start == b"\xef\xbb\xbf" {
            start.clear();
        }
        Ok(Box::new(std::io::Cursor::new(start).chain(raw)))
    }

    /// Finds the encoding in the first bytes: UTF-16, or else UTF-8, which the first pass verifies.
    pub fn guess_encoding(&self) -> anyhow::Result<&'static encoding_rs::Encoding> {
        let start = self.start(1024)?;
        if let Some((encoding, _)) = encoding_rs::Encoding::for_bom(&start) {
            return Ok(encoding);
        }
        // Each character of a header has a zero byte in UTF-16, and none in UTF-8.
        let zeros = |offset: usize| start.iter().skip(offset).step_by(2).filter(|byte| **byte == 0).count();
        let (even, odd, pairs) = (zeros(0), zeros(1), start.len() / 2);
        Ok(if odd * 10 > pairs * 8 {
            UTF_16LE
        } else if even * 10 > pairs * 8 {
            UTF_16BE
        } else {
            UTF_8
        })
    }

    /// Finds the encoding of a file that is not valid UTF-8, from all its bytes.
    ///
    /// # Errors
    /// The encoding is not clear.
    pub fn detect_encoding(&self) -> anyhow::Result<&'static encoding_rs::Encoding> {
        let mut detector = EncodingDetector::new(Iso2022JpDetection::Deny);
        let (mut characters, mut invalid) = (0_u64, 0_u64);
        let mut raw = self.raw()?;
        let mut buffer = vec![0; BUFFER_BYTES];
        let mut rest = 0;
        loop {
            let read = raw.read(&mut buffer[rest..]).unwrap_or(0);
            let (chunk, last) = (&buffer[..rest + read], read == 0);
            detector.feed(&chunk[rest..], last);
            let mut at = 0;
            let mut unfinished = 0;
            while at < chunk.len() {
                match std::str::from_utf8(&chunk[at..]) {
                    Ok(text) => {
                        characters += text.chars().filter(|c| !c.is_ascii()).count() as u64;
                        break;
                    }
                    Err(error) => {
                        let valid = &chunk[at..at + error.valid_up_to()];
                        characters += String::from_utf8_lossy(valid).chars().filter(|c| !c.is_ascii()).count() as u64;
                        at += error.valid_up_to();
                        match error.error_len() {
                            Some(length) => {
                                invalid += 1;
                                at += length;
                            }
                            None => {
                                unfinished = chunk.len() - at;
                                break;
                            }
                        }
                    }
                }
            }
            if last {
                invalid += u64::from(unfinished > 0);
                break;
            }
            let end = rest + read;
            buffer.copy_within(end - unfinished..end, 0);
            rest = unfinished;
        }
        // UTF-8 with some damaged lines: these are rejected.
        if characters > invalid {
            return Ok(UTF_8);
        }
        let guess = detector.guess(None, Utf8Detection::Deny);
        if guess == WINDOWS_1252 {
            return Ok(guess);
        }
        Err(self.usage(format!(
            "The encoding is not clear. It is not UTF-8, and could be {}. Set it with --encoding, e.g. --encoding \
             windows-1252 (Western Europe) or --encoding {}.",
            guess.name(),
            guess.name().to_lowercase()
        )))
    }
}

/// Copies a pipe to a temporary file, which has no name.
fn spool(from: &mut dyn Read) -> anyhow::Result<File> {
    let mut file = tempfile::tempfile().context("cannot create a temporary file")?;
    std::io::copy(from, &mut file).context("cannot copy the input to a temporary file")?;
    Ok(file)
}

/// Counts the bytes that are read from a file.
struct Counted {
    file: File,
    read: Arc<AtomicU64>,
}

impl Read for Counted {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        let read = self.file.read(buffer)?;
        self.read.fetch_add(read as u64, Ordering::Relaxed);
        Ok(read)
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    fn source(bytes: &[u8]) -> (tempfile::NamedTempFile, anyhow::Result<Source>) {
        let mut file = tempfile::NamedTempFile::new().unwrap();
        file.write_all(bytes).unwrap();
        let source = Source::open(file.path());
        (file, source)
    }

    fn text(bytes: &[u8]) -> String {
        let (_file, source) = source(bytes);
        let source = source.unwrap();
        let mut encoding = source.guess_encoding().unwrap();
        let mut text = Vec::new();
        source.text(encoding).unwrap().read_to_end(&mut text).unwrap();
        if std::str::from_utf8(&text).is_err() {
            encoding = source.detect_encoding().unwrap();
            text.clear();
            source.text(encoding).unwrap().read_to_end(&mut text).unwrap();
        }
        String::from_utf8_lossy(&text).trim_start_matches('\u{feff}').to_owned()
    }

    #[test]
    fn the_encoding_is_found() {
        let plain = "name,price\nCafé crème,1\nMüsli,2\nJalapeño,3\n";
        let utf16 = |big: bool| -> Vec<u8> {
            plain.encode_utf16().flat_map(|unit| if big { unit.to_be_bytes() } else { unit.to_le_bytes() }).collect()
        };
        let latin: Vec<u8> = plain.chars().map(|c| c as u8).collect();
        for bytes in [
            plain.as_bytes().to_vec(),
            [b"\xef\xbb\xbf", plain.as_bytes()].concat(),
            [vec![0xff, 0xfe], utf16(false)].concat(),
            [vec![0xfe, 0xff], utf16(true)].concat(),
            utf16(false),
            utf16(true),
            latin,
        ] {
            assert_eq!(text(&bytes), plain, "{bytes:?}");
        }
        assert_eq!(text("a€b“c”".as_bytes()), "a€b“c”");
        assert_eq!(text(b"Caf\xe9"), "Café");
        assert_eq!(text(b"5 \x80"), "5 €");
    }

    #[test]
    fn other_files_are_refused_with_advice() {
        for (bytes, advice) in [(&b"PK\x03\x04xxxx"[..], "Export it as CSV"), (b"\x28\xb5\x2f\xfdxxxx", "zstd -dc")] {
            let error = source(bytes).1.err().unwrap();
            assert!(error.to_string().contains(advice), "{error}");
        }
    }
}
