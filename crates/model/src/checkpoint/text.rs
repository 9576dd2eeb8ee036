//! Small files of text, and what is found in the place of files.

use std::fs::File;
use std::io::Read;
use std::path::Path;

use super::CheckpointError;

/// How a git-lfs pointer begins (github.com/git-lfs/git-lfs, docs/spec.md).
const LFS: &[u8] = b"version https://git-lfs.github.com/spec/";

/// Whether a file's first bytes are those of a git-lfs pointer.
pub(super) fn is_lfs_pointer(start: &[u8]) -> bool {
    start.starts_with(LFS)
}

/// Reads a text of at most `limit` bytes.
pub(super) fn read(path: &Path, limit: u64) -> Result<String, CheckpointError> {
    let io = |source| CheckpointError::Io { path: path.to_owned(), source };
    let malformed = |reason: String| CheckpointError::Malformed { path: path.to_owned(), reason };
    let mut bytes = Vec::new();
    File::open(path).map_err(io)?.take(limit + 1).read_to_end(&mut bytes).map_err(io)?;
    if bytes.len() as u64 > limit {
        return Err(malformed(format!("it has more than {limit} bytes")));
    }
    if is_lfs_pointer(&bytes) {
        return Err(CheckpointError::LfsPointer { path: path.to_owned() });
    }
    String::from_utf8(bytes).map_err(|error| malformed(format!("it is not UTF-8 text: {}", error.utf8_error())))
}
