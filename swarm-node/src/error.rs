//! Why the program stops.

use std::fmt;

/// An error for the person at the command line.
#[derive(Debug)]
pub struct NodeError {
    error: anyhow::Error,
    usage: bool,
}

impl NodeError {
    /// A flag or a file that was given is wrong.
    pub(crate) fn input(error: impl Into<anyhow::Error>) -> Self {
        Self { error: error.into(), usage: true }
    }

    /// Exit status: 2 for bad usage or input, 1 for the rest.
    pub fn exit_code(&self) -> u8 {
        if self.usage { 2 } else { 1 }
    }
}

impl From<anyhow::Error> for NodeError {
    fn from(error: anyhow::Error) -> Self {
        Self { error, usage: false }
    }
}

impl fmt::Display for NodeError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // The whole chain of causes on one line, without causes that their effect already quotes.
        let mut text = self.error.to_string();
        for cause in self.error.chain().skip(1).map(ToString::to_string) {
            if !text.ends_with(&cause) {
                text = format!("{text}: {cause}");
            }
        }
        f.write_str(&text)
    }
}
