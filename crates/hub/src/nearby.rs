//! Somebody nearer than the hub who may have contents of it.

use std::fmt;
use std::io::Read;

/// A large content that is missing, or the rest of one.
#[derive(Debug, Clone, Copy)]
pub struct Wanted<'a> {
    /// Its hash, in hexadecimal digits.
    pub sha256: &'a str,
    /// Bytes of all of it.
    pub size: u64,
    /// Where what is missing begins.
    pub start: u64,
}

/// Somebody who has what is wanted.
pub struct Found {
    /// Who it is, as people are told.
    pub from: String,
    /// The bytes from where they were wanted to the end. Nothing of them is believed.
    pub bytes: Box<dyn Read + Send>,
}

impl fmt::Debug for Found {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Found").field("from", &self.from).finish_non_exhaustive()
    }
}

/// Those who are asked for large contents before the hub is. What is missing of one after that comes from the hub.
///
/// Calls block for as long as it takes to know, and come from several threads at a time.
pub trait Nearby: fmt::Debug + Send + Sync {
    /// Somebody who has a content and did not fail lately; `None` if nobody has.
    fn find(&self, wanted: &Wanted<'_>) -> Option<Found>;

    /// The bytes that somebody gave ended too early, or were too many.
    fn failed(&self, from: &str);

    /// A content to which somebody gave bytes does not have its hash.
    fn lied(&self, from: &str);
}
