//! Keys that those must have who use what a command serves.

use std::path::Path;

use crate::error::CliError;

/// The key in a file.
pub(super) fn read(file: &Path) -> Result<String, CliError> {
    let text = std::fs::read_to_string(file);
    let text = text.map_err(|error| CliError::Usage(format!("cannot read {}: {error}", file.display())))?;
    checked(&text)
}

/// A key without the end of its line.
pub(super) fn checked(key: &str) -> Result<String, CliError> {
    let key = key.trim();
    // An empty key is a mistake, and would let everybody in who sends none.
    if key.is_empty() || !key.chars().all(|c| c.is_ascii_graphic()) {
        return Err(CliError::Usage("the API key must be printable ASCII characters without spaces".to_owned()));
    }
    Ok(key.to_owned())
}
