//! What became of the rows of a data file.

use std::fmt;

use serde::Serialize;

/// Numbers of rows and of what was done with them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize)]
pub(crate) struct Counts {
    /// Rows of the file, lines that are blank not counted; for plain text the windows that it was cut into.
    pub(crate) rows: usize,
    /// Rows left out because their text is empty or nothing but space.
    pub(crate) empty: usize,
    /// Rows left out because no token that is to be learnt remained: too short, or cut off.
    pub(crate) without_label: usize,
    /// Examples cut to the maximal length, those left out for it included.
    pub(crate) cut: usize,
    /// Tokens of the longest example before it was cut.
    pub(crate) longest: usize,
    /// Labels with space around them, which was taken off.
    pub(crate) trimmed_labels: usize,
    /// Conversations that became an example for each answer, since the template shows earlier answers in another way.
    pub(crate) split_conversations: usize,
}

impl Counts {
    /// Rows that nothing is learnt from.
    pub(crate) fn left_out(&self) -> usize {
        self.empty + self.without_label
    }
}

impl fmt::Display for Counts {
    /// What was left out, and why.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} rows, {} left out", self.rows, self.left_out())?;
        match (self.empty, self.without_label) {
            (0, 0) => Ok(()),
            (empty, 0) => write!(f, ": {empty} empty"),
            (0, short) => write!(f, ": {short} too short or cut off by --max-length"),
            (empty, short) => write!(f, ": {empty} empty, {short} too short or cut off by --max-length"),
        }
    }
}
