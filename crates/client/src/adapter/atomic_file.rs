//! Files that are either the old or the new ones, whatever happens while they are written.

use std::ffi::OsString;
use std::fs::{self, File};
use std::hash::{BuildHasher, RandomState};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

/// A file that could not be written; what was there before is still there.
#[derive(Debug, thiserror::Error)]
#[error("cannot write {}", path.display())]
pub struct WriteError {
    path: PathBuf,
    source: io::Error,
}

/// Writes a file by a temporary one beside it, which is synced and renamed. Creates the directory if there is none.
///
/// # Errors
/// [`WriteError`]; the old file, if any, is untouched then.
pub fn write_atomically(path: &Path, bytes: &[u8]) -> Result<(), WriteError> {
    let failed = |source| WriteError { path: path.to_owned(), source };
    let directory = directory_of(path);
    fs::create_dir_all(directory).map_err(failed)?;
    remove_leftovers(directory, path);
    let temporary = directory.join(temporary_name(path, &unforeseen()));
    let written = write_synced(&temporary, bytes).and_then(|()| fs::rename(&temporary, path));
    if let Err(error) = written {
        // Best effort: what is left behind is removed by the next write.
        let _ = fs::remove_file(&temporary);
        return Err(failed(error));
    }
    // The rename itself must survive a power cut; a file system without directory sync has done what it can.
    let _ = File::open(directory).and_then(|directory| directory.sync_all());
    Ok(())
}

fn directory_of(path: &Path) -> &Path {
    path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

fn write_synced(path: &Path, bytes: &[u8]) -> io::Result<()> {
    // Never one that is there: in a directory that others may write to it may be a link to something of this user's.
    let mut file = File::options().write(true).create_new(true).open(path)?;
    file.write_all(bytes)?;
    file.sync_all()
}

/// Part of a name that nobody else can know before it is there. The keys of the standard library's hashes are random.
fn unforeseen() -> String {
    format!("{:016x}", RandomState::new().hash_one(std::process::id()))
}

fn temporary_name(path: &Path, writer: &str) -> OsString {
    let mut name = OsString::from(".");
    name.push(path.file_name().unwrap_or_default());
    name.push(format!(".{writer}.tmp"));
    name
}

/// Removes temporary files of writers that were killed.
fn remove_leftovers(directory: &Path, path: &Path) {
    let Ok(entries) = fs::read_dir(directory) else { return };
    for entry in entries.flatten() {
        let name = entry.file_name();
        let writer = name.to_str().and_then(|name| name.strip_suffix(".tmp")).and_then(|name| name.rsplit('.').next());
        if writer.is_some_and(|writer| name == temporary_name(path, writer)) {
            let _ = fs::remove_file(entry.path());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(directory: &Path) -> Vec<String> {
        let mut names: Vec<String> =
            fs::read_dir(directory).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }

    #[test]
    fn a_write_replaces_the_file_and_removes_what_a_killed_writer_left() {
        let root = tempfile::tempdir().unwrap();
        let directory = root.path().join("new/place");
        let path = directory.join("state.bin");
        write_atomically(&path, b"one").unwrap();
        fs::write(directory.join(".state.bin.1234.tmp"), b"half").unwrap();
        fs::write(directory.join(".other.bin.1234.tmp"), b"not ours").unwrap();
        write_atomically(&path, b"two").unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"two");
        assert_eq!(names(&directory), [".other.bin.1234.tmp", "state.bin"]);
    }

    #[test]
    #[cfg(unix)]
    fn a_link_that_lies_in_wait_is_not_written_through() {
        let root = tempfile::tempdir().unwrap();
        let (mine, link) = (root.path().join("mine"), root.path().join(".state.bin.1.tmp"));
        fs::write(&mine, b"precious").unwrap();
        std::os::unix::fs::symlink(&mine, &link).unwrap();
        assert!(write_synced(&link, b"x").is_err());
        assert_eq!(fs::read(&mine).unwrap(), b"precious");
        assert_ne!(unforeseen(), unforeseen());
    }

    #[test]
    fn a_failed_write_names_the_file_and_leaves_nothing() {
        let root = tempfile::tempdir().unwrap();
        let path = root.path().join("taken");
        fs::create_dir(&path).unwrap();
        let error = write_atomically(&path, b"x").unwrap_err();
        assert!(error.to_string().contains("taken"));
        assert_eq!(names(root.path()), ["taken"]);
    }
}
