//! Keys that those must have who use what a command serves.

use std::path::Path;

use crate::error::CliError;

/// The key in a file.
pub(super) fn read(file: &Path) -> Result<String, CliError> {
    let text = std::fs::read_to_string(file);
    let text = text.map_err(|error| CliError::Usage(format!("cannot read {}: {error}", file.display())))?;
    checked(&text)
}

/// The keys in a file, one in a line.
pub(super) fn read_all(file: &Path) -> Result<Vec<String>, CliError> {
    let text = std::fs::read_to_string(file);
    let text = text.map_err(|error| CliError::Usage(format!("cannot read {}: {error}", file.display())))?;
    several(&text)
}

fn several(text: &str) -> Result<Vec<String>, CliError> {
    let keys = text.lines().filter(|line| !line.trim().is_empty()).map(checked).collect::<Result<Vec<_>, _>>()?;
    // As of one: an empty file is a mistake, and would let everybody in.
    if keys.is_empty() { checked("").map(|key| vec![key]) } else { Ok(keys) }
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_has_a_key_in_each_line() {
        assert!(several("one\r\n\n two \n").is_ok_and(|keys| keys == ["one", "two"]));
        for wrong in ["", "\n \n", "one\nt w o"] {
            assert!(several(wrong).is_err(), "{wrong:?}");
        }
    }
}
