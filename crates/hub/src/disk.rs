//! Room in the cache: `--max-disk`, kept by removing what was not used for longest.

use std::collections::{BTreeMap, HashSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use crate::cache::{INCOMPLETE, unused};
use crate::error::HubError;
use crate::progress::Progress;

/// What a fetch needs room for.
#[derive(Debug)]
pub(crate) struct Need<'a> {
    /// The model, for people.
    pub(crate) model: &'a str,
    /// Bytes that are to come.
    pub(crate) bytes: u64,
    /// Contents that must stay, whole ones and those that are coming.
    pub(crate) stay: &'a HashSet<PathBuf>,
}

/// A content in the cache, or what has come of one.
#[derive(Debug)]
struct Blob {
    path: PathBuf,
    size: u64,
    used: SystemTime,
}

/// Makes room for `need`, so that all models of the cache together have at most `most` bytes. Data sets are not counted and not touched.
///
/// # Errors
/// [`HubError::TooLarge`], before anything is removed, if it cannot be had without what is in use.
pub(crate) fn make_room(cache: &Path, most: u64, need: &Need<'_>, say: impl Fn(Progress)) -> Result<(), HubError> {
    let mut blobs = blobs(cache);
    let mut total: u64 = blobs.iter().map(|blob| blob.size).sum();
    if total.saturating_add(need.bytes) <= most {
        return Ok(());
    }
    blobs.retain(|blob| !need.stay.contains(&blob.path));
    // Of those that were used together the largest first, so that fewer go.
    blobs.sort_by_key(|blob| (blob.used, std::cmp::Reverse(blob.size)));
    let over = total.saturating_add(need.bytes) - most;
    let (mut freed, mut going) = (0, Vec::new());
    for blob in blobs {
        if freed >= over {
            break;
        }
        // The lock is held until the content is gone, so that nobody takes it into use meanwhile.
        if let Some(lock) = lock(&blob.path) {
            freed += blob.size;
            going.push((blob, lock));
        }
    }
    if freed < over {
        total -= freed;
        return Err(HubError::TooLarge {
            name: need.model.to_owned(),
            needed: need.bytes,
            most,
            used: total,
            cache: cache.to_owned(),
        });
    }
    let mut removed: BTreeMap<String, u64> = BTreeMap::new();
    for (blob, _lock) in going {
        let Some(folder) = blob.path.parent().and_then(Path::parent) else { continue };
        fs::remove_file(&blob.path).map_err(HubError::cache("remove", &blob.path))?;
        unlink(folder);
        let model = folder.file_name().unwrap_or_default().to_string_lossy();
        let model = model.strip_prefix("models--").unwrap_or(&model).replacen("--", "/", 1);
        *removed.entry(model).or_default() += blob.size;
    }
    removed.into_iter().for_each(|(model, bytes)| say(Progress::Removed { model, bytes }));
    Ok(())
}

/// The lock under which a content may go. Of one that is coming it is that of whoever fetches it.
fn lock(path: &Path) -> Option<fs::File> {
    let name = path.file_name()?.to_str()?;
    if !name.ends_with(INCOMPLETE) {
        return unused(path);
    }
    // Python puts a word of the process behind the hash.
    let etag = name.split('.').next()?;
    let folder = path.parent()?.parent()?;
    let lock = folder.parent()?.join(".locks").join(folder.file_name()?).join(format!("{etag}.lock"));
    // Without a lock nobody is fetching it who takes locks.
    if lock.exists() { unused(&lock) } else { unused(path) }
}

/// All contents of models. A folder that cannot be read has none that could be removed.
fn blobs(cache: &Path) -> Vec<Blob> {
    let entries = |path: &Path| fs::read_dir(path).into_iter().flatten().flatten();
    let models = entries(cache).filter(|entry| entry.file_name().to_string_lossy().starts_with("models--"));
    let blob = |entry: fs::DirEntry| {
        let of = entry.metadata().ok().filter(fs::Metadata::is_file)?;
        let used = of.accessed().or_else(|_| of.modified()).unwrap_or(SystemTime::UNIX_EPOCH);
        Some(Blob { path: entry.path(), size: of.len(), used })
    };
    models.flat_map(|model| entries(&model.path().join("blobs")).filter_map(blob).collect::<Vec<_>>()).collect()
}

/// Removes links of a repository that lead nowhere, folders that are empty then, and branches whose commits are gone. What cannot be removed is
/// only untidy.
fn unlink(folder: &Path) {
    let snapshots = folder.join("snapshots");
    for commit in fs::read_dir(&snapshots).into_iter().flatten().flatten() {
        prune(&commit.path());
    }
    let gone =
        |reference: &Path| fs::read_to_string(reference).is_ok_and(|commit| !snapshots.join(commit.trim()).exists());
    remove_where(&folder.join("refs"), &gone);
    let is_empty = |name: &str| fs::read_dir(folder.join(name)).is_ok_and(|mut entries| entries.next().is_none());
    if is_empty("snapshots") && is_empty("blobs") {
        // Notes on files that the repository does not have are all that is left.
        let _ = fs::remove_dir_all(folder);
    }
}

/// Removes links below a folder that lead nowhere, and it with them if nothing else is in it.
fn prune(folder: &Path) {
    remove_where(folder, &|path| path.is_symlink() && !path.exists());
    let _ = fs::remove_dir(folder);
}

fn remove_where(folder: &Path, goes: &impl Fn(&Path) -> bool) {
    for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
        let path = entry.path();
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            remove_where(&path, goes);
            let _ = fs::remove_dir(&path);
        } else if goes(&path) {
            let _ = fs::remove_file(&path);
        }
    }
}

#[cfg(test)]
mod tests;
