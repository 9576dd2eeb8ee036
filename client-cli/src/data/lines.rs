//! Lines of a text file, with bounds.

use std::fs::File;
use std::io::{BufRead, BufReader, Read};
use std::path::Path;

use super::error::{DataError, LineProblem, MAX_LINE_LEN};

/// Calls `each` with the number (from 1) and text of every line that is not blank. A byte order mark is no text.
pub(super) fn for_each(
    path: &Path,
    mut each: impl FnMut(usize, &str) -> Result<(), LineProblem>,
) -> Result<(), DataError> {
    let failed = |source| DataError::Read { path: path.to_owned(), source };
    let mut reader = BufReader::new(File::open(path).map_err(failed)?);
    let mut bytes = Vec::new();
    for line in 1.. {
        bytes.clear();
        let limit = MAX_LINE_LEN as u64 + 1;
        if reader.by_ref().take(limit).read_until(b'\n', &mut bytes).map_err(failed)? == 0 {
            break;
        }
        let text = if bytes.len() > MAX_LINE_LEN { Err(LineProblem::TooLong) } else { utf8(&bytes) };
        let done = text.and_then(|text| {
            let text = if line == 1 { text.trim_start_matches('\u{feff}') } else { text };
            if text.trim().is_empty() { Ok(()) } else { each(line, text) }
        });
        done.map_err(|problem| DataError::Line { path: path.to_owned(), line, problem })?;
    }
    Ok(())
}

/// A whole file as text.
pub(super) fn whole(path: &Path) -> Result<String, DataError> {
    let bytes = std::fs::read(path).map_err(|source| DataError::Read { path: path.to_owned(), source })?;
    let text = String::from_utf8(bytes).map_err(|error| {
        let valid = &error.as_bytes()[..error.utf8_error().valid_up_to()];
        let line = valid.iter().filter(|&&byte| byte == b'\n').count() + 1;
        let start = valid.iter().rposition(|&byte| byte == b'\n').map_or(0, |at| at + 1);
        DataError::Line { path: path.to_owned(), line, problem: LineProblem::NotUtf8(valid.len() - start) }
    })?;
    Ok(text.trim_start_matches('\u{feff}').to_owned())
}

fn utf8(bytes: &[u8]) -> Result<&str, LineProblem> {
    std::str::from_utf8(bytes).map_err(|error| LineProblem::NotUtf8(error.valid_up_to()))
}
