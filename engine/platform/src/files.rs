//! Private files and folders, and files that are written atomically: after a power failure a file is complete or
//! absent.

use std::fs::{DirBuilder, File, OpenOptions, hard_link, remove_file, rename};
use std::io::{self, ErrorKind, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

/// Permissions of a new file, and of a new folder.
const FILE_MODE: u32 = 0o600;
const FOLDER_MODE: u32 = 0o700;

/// Returns the folder that contains a path.
pub fn folder_of(path: &Path) -> &Path {
    path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

/// Returns the path with a suffix added to its last component.
pub fn with_suffix(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(suffix);
    name.into()
}

/// Returns options that create a file with access for its owner only. An existing file keeps its permissions.
pub fn private() -> OpenOptions {
    let mut options = OpenOptions::new();
    options.mode(FILE_MODE);
    options
}

/// Creates an empty file with access for its owner only. Replaces an existing file.
///
/// # Errors
/// Returns the error of the file system.
pub fn create(path: &Path) -> io::Result<File> {
    match remove_file(path) {
        Err(error) if error.kind() != ErrorKind::NotFound => Err(error),
        _ => private().write(true).create_new(true).open(path),
    }
}

/// Creates a folder and its missing parents with access for their owner only. The folders survive a power failure. An
/// existing folder keeps its permissions.
///
/// # Errors
/// Returns the error of the file system, also if the path exists and is not a folder.
pub fn create_folder(path: &Path) -> io::Result<()> {
    if path.as_os_str().is_empty() || path.is_dir() {
        return Ok(());
    }
    let parent = folder_of(path);
    create_folder(parent)?;
    match DirBuilder::new().mode(FOLDER_MODE).create(path) {
        // Another process created the folder concurrently.
        Err(error) if error.kind() == ErrorKind::AlreadyExists && path.is_dir() => {}
        made => made?,
    }
    sync_folder(parent)
}

/// Writes an immutable file with access for its owner only. The name appears after the contents are on the disk.
/// Returns false and changes nothing if the name exists: if two processes write the file concurrently, one of them
/// succeeds.
///
/// # Errors
/// Returns the error of the file system.
pub fn write_once(path: &Path, contents: &[u8]) -> io::Result<bool> {
    let part = with_suffix(path, &format!(".{}.part", uuid::Uuid::new_v4().simple()));
    let write = || {
        let mut file = create(&part)?;
        file.write_all(contents)?;
        file.sync_all()?;
        // Unlike `rename`, this never replaces a file.
        match hard_link(&part, path) {
            Err(error) if error.kind() == ErrorKind::AlreadyExists => Ok(false),
            linked => linked.map(|()| true),
        }
    };
    let written = write();
    let removed = remove_file(&part);
    let written = written?;
    removed?;
    sync_folder(folder_of(path))?;
    Ok(written)
}

/// Renames a completely written file from `part` to `path`, replacing an existing file. After a power failure `path` is
/// the old file or the new file, never a partial one.
///
/// # Errors
/// Returns the error of the file system.
pub fn publish(file: &File, part: &Path, path: &Path) -> io::Result<()> {
    file.sync_all()?;
    rename(part, path)?;
    sync_folder(folder_of(path))
}

/// Waits until the folder's entries are on the disk.
fn sync_folder(folder: &Path) -> io::Result<()> {
    match File::open(folder).and_then(|folder| folder.sync_all()) {
        // The folder may be entered but not read, or the file system cannot sync folders.
        Err(error) if matches!(error.kind(), ErrorKind::PermissionDenied | ErrorKind::InvalidInput) => Ok(()),
        synced => synced,
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::PermissionsExt;
    use std::sync::Barrier;

    use super::*;

    fn mode(path: &Path) -> u32 {
        fs::metadata(path).unwrap().permissions().mode() & 0o777
    }

    #[test]
    fn created_files_are_readable_only_by_the_owner() {
        let scratch = tempfile::tempdir().unwrap();
        let folder = scratch.path().join("a/b");
        create_folder(&folder).unwrap();
        create_folder(&folder).unwrap();
        let file = folder.join("key");
        assert!(write_once(&file, b"secret").unwrap());
        assert_eq!((mode(&scratch.path().join("a")), mode(&folder), mode(&file)), (0o700, 0o700, 0o600));
        fs::write(&file, "other").unwrap();
        fs::set_permissions(&file, fs::Permissions::from_mode(0o644)).unwrap();
        create(&file).unwrap();
        assert_eq!((mode(&file), fs::read(&file).unwrap().len()), (0o600, 0));
        let error = create_folder(&file.join("c")).unwrap_err();
        assert!(matches!(error.kind(), ErrorKind::NotADirectory | ErrorKind::AlreadyExists), "{error}");
    }

    #[test]
    fn one_of_many_concurrent_writers_creates_a_file() {
        let scratch = tempfile::tempdir().unwrap();
        let file = scratch.path().join("key");
        let start = Barrier::new(8);
        let writers = 0..8_u8;
        let won: Vec<u8> = std::thread::scope(|scope| {
            let write = |number| {
                let (file, start) = (&file, &start);
                scope.spawn(move || {
                    start.wait();
                    write_once(file, &[number; 64]).unwrap().then_some(number)
                })
            };
            let threads: Vec<_> = writers.map(write).collect();
            threads.into_iter().filter_map(|thread| thread.join().unwrap()).collect()
        });
        assert_eq!(won.len(), 1, "{won:?}");
        assert_eq!(fs::read(&file).unwrap(), [won[0]; 64]);
        assert_eq!(fs::read_dir(scratch.path()).unwrap().count(), 1, "no temporary file is left");
    }

    #[test]
    fn a_published_file_replaces_the_one_before() {
        let scratch = tempfile::tempdir().unwrap();
        let (part, path) = (scratch.path().join("log.part"), scratch.path().join("log"));
        fs::write(&path, "before").unwrap();
        let mut file = create(&part).unwrap();
        file.write_all(b"after").unwrap();
        publish(&file, &part, &path).unwrap();
        assert_eq!((fs::read(&path).unwrap(), part.exists()), (b"after".to_vec(), false));
    }
}
