//! Lines of a text file, with bounds.

use std::fs::File;
use std::io::{BufRead, BufReader, Read};
use std::path::Path;

use super::error::{DataError, Place};
use super::problem::{MAX_LINE_LEN, Problem};

/// Longest file that is read at once. Its tokens would take several times as much memory.
pub(super) const MAX_FILE_LEN: u64 = 4 << 30;

/// Calls `each` with the number (from 1) and text of every line that is not blank. A byte order mark is no text.
pub(super) fn for_each(path: &Path, mut each: impl FnMut(usize, &str) -> Result<(), Problem>) -> Result<(), DataError> {
    let failed = |source| DataError::Read { path: path.to_owned(), source };
    let mut reader = BufReader::new(File::open(path).map_err(failed)?);
    let mut bytes = Vec::new();
    for line in 1.. {
        bytes.clear();
        let limit = MAX_LINE_LEN as u64 + 1;
        if reader.by_ref().take(limit).read_until(b'\n', &mut bytes).map_err(failed)? == 0 {
            break;
        }
        let text = if bytes.len() > MAX_LINE_LEN { Err(Problem::TooLong) } else { utf8(&bytes) };
        let done = text.and_then(|text| {
            let text = if line == 1 { text.trim_start_matches('\u{feff}') } else { text };
            if text.trim().is_empty() { Ok(()) } else { each(line, text) }
        });
        done.map_err(|problem| DataError::Row { path: path.to_owned(), place: Place::Line(line), problem })?;
    }
    Ok(())
}

/// A whole file as text, without a byte order mark.
pub(super) fn whole(path: &Path) -> Result<String, DataError> {
    let failed = |source| DataError::Read { path: path.to_owned(), source };
    let mut bytes = Vec::new();
    File::open(path).map_err(failed)?.take(MAX_FILE_LEN + 1).read_to_end(&mut bytes).map_err(failed)?;
    let len = bytes.len() as u64;
    if len > MAX_FILE_LEN {
        return Err(DataError::TooLong { path: path.to_owned(), len });
    }
    let text = String::from_utf8(bytes).map_err(|error| {
        let valid = &error.as_bytes()[..error.utf8_error().valid_up_to()];
        let line = valid.iter().filter(|&&byte| byte == b'\n').count() + 1;
        let start = valid.iter().rposition(|&byte| byte == b'\n').map_or(0, |at| at + 1);
        let problem = Problem::NotUtf8(valid.len() - start);
        DataError::Row { path: path.to_owned(), place: Place::Line(line), problem }
    })?;
    Ok(text.trim_start_matches('\u{feff}').to_owned())
}

/// Text of a line's bytes.
pub(super) fn utf8(bytes: &[u8]) -> Result<&str, Problem> {
    std::str::from_utf8(bytes).map_err(|error| Problem::NotUtf8(error.valid_up_to()))
}
