//! What ends the program early, and its exit status.

use std::error::Error;
use std::fmt;

use crate::data::DataError;
use crate::text::TextError;

/// Why a command ended without having done its work.
#[derive(Debug)]
pub(crate) enum CliError {
    /// The command line or an input is wrong: exit status 2.
    Usage(String),
    /// Anything else: exit status 1.
    Failed(anyhow::Error),
}

impl CliError {
    /// Wrong input, with the whole chain of causes.
    pub(crate) fn input(error: impl Error + Send + Sync + 'static) -> Self {
        Self::Usage(one_line(&anyhow::Error::new(error)))
    }

    /// The exit status that scripts see.
    pub(crate) fn status(&self) -> u8 {
        match self {
            Self::Usage(_) => 2,
            Self::Failed(_) => 1,
        }
    }
}

impl fmt::Display for CliError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Usage(message) => f.write_str(message),
            Self::Failed(error) => f.write_str(&one_line(error)),
        }
    }
}

impl From<anyhow::Error> for CliError {
    fn from(error: anyhow::Error) -> Self {
        Self::Failed(error)
    }
}

impl From<DataError> for CliError {
    fn from(error: DataError) -> Self {
        Self::input(error)
    }
}

impl From<TextError> for CliError {
    fn from(error: TextError) -> Self {
        Self::input(error)
    }
}

/// The chain of causes in one line. A cause that its parent's text already has is not said twice.
fn one_line(error: &anyhow::Error) -> String {
    let mut line = String::new();
    for cause in error.chain().map(|cause| cause.to_string().trim().replace('\n', " ")) {
        if line.is_empty() {
            line = cause;
        } else if !line.contains(&cause) {
            line = format!("{line}: {cause}");
        }
    }
    line
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn causes_are_said_once_and_in_one_line() {
        let error = anyhow::anyhow!("disk\nfull").context("disk full").context("cannot save");
        let failed = CliError::from(error);
        assert_eq!(failed.to_string(), "cannot save: disk full");
        assert_eq!((failed.status(), CliError::Usage("x".into()).status()), (1, 2));
    }
}
