//! Contents of a revision that others may have: whole ones that were held against their hashes.

use std::fs::{self, File};
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use sha2::{Digest, Sha256};

use super::Snapshot;

/// Bytes that are read at a time.
const CHUNK: usize = 1 << 18;

/// A large content of a revision that is in the cache.
#[derive(Debug)]
#[non_exhaustive]
pub enum SharedContent {
    /// It has the hash that it is called by.
    Whole {
        /// It.
        file: File,
        /// Its length.
        size: u64,
    },
    /// Nobody has looked in this process: [`Snapshot::check_content`] does.
    Unchecked,
}

impl Snapshot {
    /// A large content of this revision by its SHA-256, in hexadecimal digits. `None` if it is none of it, not here, or damaged.
    pub fn shared_content(&self, sha256: &str) -> Option<SharedContent> {
        let (blob, size) = self.content_here(sha256)?;
        match self.hub.checked.is_right(&blob) {
            Some(true) => Some(SharedContent::Whole { file: File::open(&blob).ok()?, size }),
            Some(false) => None,
            None => Some(SharedContent::Unchecked),
        }
    }

    /// Holds a large content of this revision against its hash. One that differs is warned of. Ends early, with nothing said, when `goes_on` says so.
    pub fn check_content(&self, sha256: &str, goes_on: impl Fn() -> bool) {
        let Some((blob, _)) = self.content_here(sha256) else { return };
        match hash(&blob, &goes_on) {
            Ok(Some(found)) => {
                let is_right = found.eq_ignore_ascii_case(sha256);
                self.hub.checked.note(&blob, is_right);
                if !is_right {
                    let path = blob.display();
                    tracing::warn!(
                        "{path} has the SHA-256 {found}, so it is damaged and not given to others: remove it, and it is fetched anew"
                    );
                }
            }
            Ok(None) => {}
            Err(error) => {
                self.hub.checked.note(&blob, false);
                tracing::warn!("{} cannot be read, and is not given to others: {error}", blob.display());
            }
        }
    }

    /// Where a large content of this revision is, and its length, if all of it is here.
    fn content_here(&self, sha256: &str) -> Option<(PathBuf, u64)> {
        // It becomes the name of a file.
        if sha256.len() != 64 || !sha256.bytes().all(|byte| byte.is_ascii_hexdigit()) {
            return None;
        }
        let blob = self.folder.blob(sha256);
        let there = fs::metadata(&blob).ok().filter(fs::Metadata::is_file)?.len();
        let is_ours = match &self.files {
            Some(files) => files
                .values()
                .any(|file| file.etag.as_deref() == Some(sha256) && file.size.is_none_or(|size| size == there)),
            // If the hub was not asked, what the links of this revision lead to.
            None => fs::read_dir(&self.directory).into_iter().flatten().flatten().any(|entry| {
                fs::read_link(entry.path()).is_ok_and(|link| link.file_name().is_some_and(|name| name == sha256))
            }),
        };
        is_ours.then_some((blob, there))
    }
}

/// The hash of a file; `None` if it was not to go on.
fn hash(path: &Path, goes_on: &impl Fn() -> bool) -> io::Result<Option<String>> {
    let (mut file, mut hash, mut buffer) = (File::open(path)?, Sha256::new(), vec![0; CHUNK]);
    while goes_on() {
        match file.read(&mut buffer) {
            Ok(0) => return Ok(Some(hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect())),
            Ok(count) => hash.update(buffer.get(..count).unwrap_or_default()),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(None)
}
