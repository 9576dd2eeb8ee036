//! Numbers and texts from a file's bytes, never beyond their end.

use std::ops::Range;
use std::path::Path;

use crate::checkpoint::CheckpointError;

/// What is wrong with a file.
#[derive(Debug)]
pub(super) enum Problem {
    /// It ends before this many bytes.
    Ends(u64),
    /// It says what cannot be.
    Wrong(String),
}

impl Problem {
    pub(super) fn wrong(reason: impl Into<String>) -> Self {
        Self::Wrong(reason.into())
    }

    /// With the key or tensor that it is in.
    pub(super) fn within(self, place: &str) -> Self {
        match self {
            Self::Wrong(reason) => Self::Wrong(format!("{place}: {reason}")),
            ends => ends,
        }
    }

    /// The error for a file of `length` bytes.
    pub(super) fn of(self, path: &Path, length: u64) -> CheckpointError {
        match self {
            Self::Ends(expected) => CheckpointError::Truncated { path: path.to_owned(), length, expected },
            Self::Wrong(reason) => CheckpointError::Malformed { path: path.to_owned(), reason },
        }
    }
}

/// Bytes, and how many of them have been read.
#[derive(Debug)]
pub(super) struct Reader<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl<'a> Reader<'a> {
    pub(super) fn new(bytes: &'a [u8]) -> Self {
        Self { bytes, at: 0 }
    }

    pub(super) fn at(&self) -> usize {
        self.at
    }

    /// Where the next `count` bytes are, which are passed over.
    pub(super) fn skip(&mut self, count: usize) -> Result<Range<usize>, Problem> {
        let end = self.at.checked_add(count).filter(|end| *end <= self.bytes.len());
        let end = end.ok_or_else(|| Problem::Ends((self.at as u64).saturating_add(count as u64)))?;
        let range = self.at..end;
        self.at = end;
        Ok(range)
    }

    pub(super) fn take(&mut self, count: usize) -> Result<&'a [u8], Problem> {
        let bytes = self.bytes;
        self.skip(count).map(|range| &bytes[range])
    }

    pub(super) fn array<const N: usize>(&mut self) -> Result<[u8; N], Problem> {
        let mut array = [0; N];
        array.copy_from_slice(self.take(N)?);
        Ok(array)
    }

    pub(super) fn u32(&mut self) -> Result<u32, Problem> {
        self.array().map(u32::from_le_bytes)
    }

    pub(super) fn u64(&mut self) -> Result<u64, Problem> {
        self.array().map(u64::from_le_bytes)
    }

    /// The length of what follows, which the file must have.
    pub(super) fn length(&mut self) -> Result<usize, Problem> {
        let length = self.u64()?;
        usize::try_from(length).map_err(|_| Problem::Ends(length))
    }

    /// A text of at most `limit` bytes.
    pub(super) fn text(&mut self, limit: usize) -> Result<String, Problem> {
        let length = self.length()?;
        if length > limit {
            return Err(Problem::wrong(format!("a text has {length} bytes, and {limit} are the most that is read")));
        }
        let text = std::str::from_utf8(self.take(length)?);
        text.map(str::to_owned).map_err(|error| Problem::wrong(format!("a text is not UTF-8: {error}")))
    }
}
