//! A disk that loses power. `power/power.c` is preloaded into a process and copies everything that is synced in a
//! folder to a second folder; a power cut replaces the folder by that copy.

use std::collections::HashMap;
use std::fs::{self, Permissions};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;
use std::time::UNIX_EPOCH;

use tempfile::TempDir;

use crate::dice::Dice;
use crate::process::{find_on_path, lock_file, run_to_end, target_directory};

/// Disks write a sector of this size, in bytes, atomically.
const SECTOR: usize = 512;

/// What remains after a power cut.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Remains {
    /// Only synced data.
    Synced,
    /// Synced data, and some sectors and some names that were not synced: a disk may write them before a sync.
    SyncedAndSome,
}

/// A folder on such a disk. The folder itself survives a power cut; its entries may not.
pub struct Disk {
    root: TempDir,
}

impl Default for Disk {
    fn default() -> Self {
        let root = tempfile::Builder::new().prefix("docket-power-").tempdir().expect("a temporary directory");
        let disk = Self { root };
        fs::create_dir(disk.folder()).expect("a new directory");
        fs::create_dir(disk.shadow()).expect("a new directory");
        disk
    }
}

impl Disk {
    /// Returns the folder that a process may use.
    pub fn folder(&self) -> PathBuf {
        self.root.path().join("data")
    }

    fn shadow(&self) -> PathBuf {
        self.root.path().join("shadow")
    }

    /// Returns the path of a file outside the folder, which no power cut changes.
    pub fn outside(&self, name: &str) -> PathBuf {
        self.root.path().join(name)
    }

    /// Returns the environment variables that a process needs. Files that exist when the process starts count as
    /// synced.
    pub fn environment(&self) -> Vec<(String, String)> {
        let pair = |name: &str, value: &Path| (name.to_owned(), value.display().to_string());
        vec![pair("LD_PRELOAD", library()), pair("POWER_FOLDER", &self.folder()), pair("POWER_SHADOW", &self.shadow())]
    }

    /// Returns the environment of [`Self::environment`], in which syncs of the file of this name do nothing.
    pub fn environment_without_syncs_of(&self, file: &str) -> Vec<(String, String)> {
        [self.environment(), vec![("POWER_IGNORE".to_owned(), file.to_owned())]].concat()
    }

    /// Counts everything as synced. No process may be using the folder.
    pub fn sync(&self) {
        fs::remove_dir_all(self.shadow()).expect("a directory of this test");
        fs::create_dir(self.shadow()).expect("a new directory");
    }

    /// Cuts the power: replaces the folder by what remains of it. The process that used it must have been killed.
    pub fn cut(&self, remains: Remains, dice: &mut Dice) {
        let (folder, left) = (self.folder(), self.outside("left"));
        if self.shadow().join("folders").join(id(&folder)).exists() {
            fs::create_dir(&left).expect("a new directory");
            self.restore(&folder, &id(&folder), &left, remains, dice);
            fs::remove_dir_all(&folder).expect("a directory of this test");
            fs::rename(&left, &folder).expect("both directories exist");
        }
        self.sync();
    }

    /// Writes to `to` what remains of the folder with the id `of`. `from` is its path if it still exists.
    fn restore(&self, from: &Path, of: &str, to: &Path, remains: Remains, dice: &mut Dice) {
        let mut synced = self.names(of);
        let mut present: HashMap<String, PathBuf> = HashMap::new();
        for entry in fs::read_dir(from).into_iter().flatten().flatten() {
            let name = entry.file_name().to_str().expect("UTF-8").to_owned();
            let kind = entry.file_type().expect("the entry exists");
            let id = id(&entry.path());
            present.insert(id.clone(), entry.path());
            // A disk may write a new name before it is synced.
            let written = remains == Remains::SyncedAndSome && dice.below(2) == 0;
            if written && !name.ends_with("-shm") && (kind.is_file() || kind.is_dir()) {
                let mode = entry.metadata().expect("the entry exists").mode() & 0o7777;
                synced.insert(name, Entry { is_folder: kind.is_dir(), mode, id });
            }
        }
        // A disk may also write the removal of a name before it is synced.
        synced.retain(|name, _| remains == Remains::Synced || from.join(name).exists() || dice.below(2) == 0);
        for (name, entry) in &synced {
            let (to, from) = (to.join(name), present.get(&entry.id));
            if entry.is_folder {
                fs::create_dir(&to).expect("a new directory");
                self.restore(from.unwrap_or(&to), &entry.id, &to, remains, dice);
            } else {
                let bytes = fs::read(self.shadow().join("files").join(&entry.id)).unwrap_or_default();
                let now = from
                    .filter(|_| remains == Remains::SyncedAndSome)
                    .map(|path| fs::read(path).expect("the file exists"));
                fs::write(&to, now.map_or(bytes.clone(), |now| mix(&bytes, &now, dice))).expect("a new file");
            }
            fs::set_permissions(&to, Permissions::from_mode(entry.mode)).expect("a file of this test");
        }
    }

    fn names(&self, of: &str) -> HashMap<String, Entry> {
        let text = fs::read_to_string(self.shadow().join("folders").join(of)).unwrap_or_default();
        let entry = |line: &str| {
            let mut fields = line.splitn(4, ' ');
            let is_folder = fields.next()? == "d";
            let mode = u32::from_str_radix(fields.next()?, 8).ok()?;
            let id = fields.next()?.to_owned();
            Some((fields.next()?.to_owned(), Entry { is_folder, mode, id }))
        };
        text.lines().map(|line| entry(line).expect("a line of the shadow")).collect()
    }
}

/// The file or folder of a name.
struct Entry {
    is_folder: bool,
    mode: u32,
    id: String,
}

/// Mixes the sectors of the synced and the last written content at random.
fn mix(synced: &[u8], written: &[u8], dice: &mut Dice) -> Vec<u8> {
    let length = dice.pick(&[synced.len(), written.len()]);
    let mut mixed = vec![0; length];
    for start in (0..length).step_by(SECTOR) {
        let from = dice.pick(&[synced, written]);
        let end = length.min(start + SECTOR).min(from.len());
        if start < end {
            mixed[start..end].copy_from_slice(&from[start..end]);
        }
    }
    mixed
}

/// Returns the id of a file or folder, from its inode and time of birth, as `power/power.c` writes it.
fn id(path: &Path) -> String {
    let metadata = fs::symlink_metadata(path).expect("the file exists");
    let born = metadata.created().expect("the file system stores the time of birth");
    let born = born.duration_since(UNIX_EPOCH).expect("after 1970");
    format!("{}-{}-{}", metadata.ino(), born.as_secs(), born.subsec_nanos())
}

/// Returns the path of the shared library of `power/power.c`, and compiles it if needed.
fn library() -> &'static Path {
    static LIBRARY: OnceLock<PathBuf> = OnceLock::new();
    LIBRARY.get_or_init(|| {
        let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("power/power.c");
        let home = target_directory().join("tmp");
        let _lock = lock_file(&home.join("power.lock"));
        let (built, staged) = (home.join("power.so"), home.join("power.so.new"));
        let modified = |path: &Path| fs::metadata(path).and_then(|metadata| metadata.modified()).ok();
        if modified(&built) < modified(&source) {
            let cc = find_on_path("cc").expect("no C compiler found; install it with: tests/run install");
            let flags = ["-std=gnu11", "-O2", "-Wall", "-Wextra", "-Werror", "-shared", "-fPIC", "-o"];
            run_to_end(Command::new(cc).args(flags).arg(&staged).arg(&source).args(["-ldl", "-lpthread"]));
            fs::rename(&staged, &built).expect("both paths are in the target directory");
        }
        built
    })
}
