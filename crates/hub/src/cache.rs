//! The hub's cache on this machine, as Python's `huggingface_hub` lays it out.
//!
//! ```text
//! models--org--name/refs/main                     the commit that a branch was at
//! models--org--name/blobs/HASH                    contents, each once
//! models--org--name/blobs/HASH.incomplete         what has come of one
//! models--org--name/snapshots/COMMIT/config.json  -> ../../blobs/HASH
//! .locks/models--org--name/HASH.lock              held by whoever fetches it
//! ```
//!
//! When a blob was used is its time of access, which is set whenever we use one: file systems write it seldom or never by themselves. Whoever
//! uses one holds a shared lock on it.

use std::fs::{self, File, FileTimes, OpenOptions, TryLockError};
use std::io::{self, ErrorKind};
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use crate::error::HubError;
use crate::reference::{ModelName, is_commit};

/// How the folder of a file that is not complete is called.
pub(crate) const INCOMPLETE: &str = "incomplete";

/// The folder of one repository.
#[derive(Debug, Clone)]
pub(crate) struct Folder {
    path: PathBuf,
    locks: PathBuf,
}

impl Folder {
    pub(crate) fn new(cache: &Path, name: &ModelName) -> Self {
        let folder = name.folder();
        Self { path: cache.join(&folder), locks: cache.join(".locks").join(folder) }
    }

    /// The folder of a revision.
    pub(crate) fn snapshot(&self, commit: &str) -> PathBuf {
        self.path.join("snapshots").join(commit)
    }

    /// Where a content is.
    pub(crate) fn blob(&self, etag: &str) -> PathBuf {
        self.path.join("blobs").join(etag)
    }

    /// Where what has come of a content is.
    pub(crate) fn incomplete(&self, etag: &str) -> PathBuf {
        self.path.join("blobs").join(format!("{etag}.{INCOMPLETE}"))
    }

    /// The commit that a revision was at when the hub was last asked, as far as anything of it is here.
    pub(crate) fn commit_of(&self, revision: &str) -> Option<String> {
        let commit = match is_commit(revision) {
            true => revision.to_owned(),
            false => fs::read_to_string(self.path.join("refs").join(revision)).ok()?.trim().to_owned(),
        };
        (is_commit(&commit) && self.snapshot(&commit).is_dir()).then_some(commit)
    }

    /// Notes the commit that a branch or tag is at.
    pub(crate) fn note_commit(&self, revision: &str, commit: &str) -> Result<(), HubError> {
        let path = self.path.join("refs").join(revision);
        if revision == commit || fs::read_to_string(&path).is_ok_and(|known| known.trim() == commit) {
            return Ok(());
        }
        make_parent(&path)?;
        fs::write(&path, commit).map_err(HubError::cache("write", path))
    }

    /// Makes a file of a snapshot lead to its content.
    pub(crate) fn link(&self, commit: &str, file: &str, etag: &str) -> Result<(), HubError> {
        let path = self.snapshot(commit).join(file);
        make_parent(&path)?;
        // As many steps up as the file has folders below the repository's.
        let up = "../".repeat(2 + file.matches('/').count());
        let failed = |source| HubError::Cache { what: "make the link", path: path.clone(), source };
        match fs::remove_file(&path) {
            Err(error) if error.kind() != ErrorKind::NotFound => return Err(failed(error)),
            _ => {}
        }
        match link(&format!("{up}blobs/{etag}"), &self.blob(etag), &path) {
            // Another process was quicker.
            Err(error) if error.kind() == ErrorKind::AlreadyExists => Ok(()),
            linked => linked.map_err(failed),
        }
    }

    /// The lock of whoever fetches a content, as Python takes it; `None` if another process has it.
    pub(crate) fn lock(&self, etag: &str) -> Result<Option<File>, HubError> {
        let path = self.locks.join(format!("{etag}.lock"));
        make_parent(&path)?;
        let file = OpenOptions::new().create(true).truncate(false).write(true).open(&path);
        let file = file.map_err(HubError::cache("write", &path))?;
        locked(file.try_lock()).map(|ours| ours.then_some(file)).map_err(HubError::cache("lock", path))
    }
}

#[cfg(unix)]
fn link(target: &str, _: &Path, path: &Path) -> io::Result<()> {
    std::os::unix::fs::symlink(target, path)
}

/// As Python does it where links are a privilege.
#[cfg(not(unix))]
fn link(_: &str, blob: &Path, path: &Path) -> io::Result<()> {
    fs::hard_link(blob, path).or_else(|_| fs::copy(blob, path).map(drop))
}

/// Whether an attempt to lock succeeded. File systems without locks have none to respect.
fn locked(attempt: Result<(), TryLockError>) -> io::Result<bool> {
    match attempt {
        Ok(()) => Ok(true),
        Err(TryLockError::WouldBlock) => Ok(false),
        Err(TryLockError::Error(error)) if error.kind() == ErrorKind::Unsupported => Ok(true),
        Err(TryLockError::Error(error)) => Err(error),
    }
}

/// Takes a file into use: as long as what is returned lives it is not removed to make room. `None` if it is not there.
pub(crate) fn hold(path: &Path) -> Option<File> {
    let file = File::open(path).ok()?;
    let times = FileTimes::new().set_accessed(SystemTime::now());
    if let Err(error) = file.set_times(times) {
        // A cache of somebody else, which may be read; nothing of it is ours to remove either.
        tracing::debug!(%error, path = %path.display(), "cannot note that a file is used");
    }
    match file.try_lock_shared() {
        Err(TryLockError::WouldBlock) => None,
        // What was removed between the two is there no more.
        _ => path.exists().then_some(file),
    }
}

/// The lock under which a content may be removed; `None` if it is in use.
pub(crate) fn unused(path: &Path) -> Option<File> {
    let file = OpenOptions::new().read(true).write(true).open(path).ok()?;
    locked(file.try_lock()).ok()?.then_some(file)
}

pub(crate) fn make_parent(path: &Path) -> Result<(), HubError> {
    match path.parent() {
        Some(parent) => fs::create_dir_all(parent).map_err(HubError::cache("make the folder", parent)),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn links_lead_to_contents_from_any_depth() {
        let root = tempfile::tempdir().unwrap();
        let folder = Folder::new(root.path(), &ModelName::parse("org/name").unwrap());
        let blob = folder.blob("abc");
        make_parent(&blob).unwrap();
        fs::write(&blob, "content").unwrap();
        let commit = "0".repeat(40);
        for file in ["config.json", "a/b/c.jinja"] {
            folder.link(&commit, file, "abc").unwrap();
            folder.link(&commit, file, "abc").unwrap();
            let path = root.path().join("models--org--name/snapshots").join(&commit).join(file);
            assert_eq!(fs::read_to_string(&path).unwrap(), "content");
            assert!(fs::read_link(&path).unwrap().is_relative());
        }
    }

    #[test]
    fn a_branch_is_known_only_with_its_snapshot() {
        let root = tempfile::tempdir().unwrap();
        let folder = Folder::new(root.path(), &ModelName::parse("org/name").unwrap());
        let commit = "1".repeat(40);
        folder.note_commit("refs/pr/1", &commit).unwrap();
        assert_eq!(folder.commit_of("refs/pr/1"), None);
        fs::create_dir_all(folder.snapshot(&commit)).unwrap();
        assert_eq!(folder.commit_of("refs/pr/1").as_ref(), Some(&commit));
        assert_eq!(folder.commit_of(&commit), Some(commit.clone()));
        assert_eq!(folder.commit_of("main"), None);
        folder.note_commit(&commit, &commit).unwrap();
        assert!(!root.path().join("models--org--name/refs").join(&commit).exists());
    }

    #[test]
    fn what_is_used_is_not_unused_and_one_process_fetches() {
        let root = tempfile::tempdir().unwrap();
        let path = root.path().join("blob");
        fs::write(&path, "x").unwrap();
        let (one, two) = (hold(&path).unwrap(), hold(&path).unwrap());
        assert!(unused(&path).is_none());
        drop((one, two));
        let removing = unused(&path).unwrap();
        assert!(hold(&path).is_none(), "what is about to be removed is not taken into use");
        drop(removing);
        let folder = Folder::new(root.path(), &ModelName::parse("org/name").unwrap());
        let first = folder.lock("abc").unwrap();
        assert!(first.is_some() && folder.lock("abc").unwrap().is_none());
    }
}
