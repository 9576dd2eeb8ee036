//! Contents that this process has held against their hashes.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

/// Where they are, and whether they have the hashes that they are called by.
#[derive(Debug, Default)]
pub(crate) struct Checked(Mutex<HashMap<PathBuf, bool>>);

impl Checked {
    pub(crate) fn note(&self, blob: &Path, is_right: bool) {
        self.all().insert(blob.to_owned(), is_right);
    }

    /// `None` if it was not looked at.
    pub(crate) fn is_right(&self, blob: &Path) -> Option<bool> {
        self.all().get(blob).copied()
    }

    /// Changed in single steps, so a panic elsewhere leaves it whole.
    fn all(&self) -> MutexGuard<'_, HashMap<PathBuf, bool>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
