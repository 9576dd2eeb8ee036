//! Lines of a text file, with bounds.

use std::io::{BufRead, Read};
use std::path::Path;

use super::error::{DataError, Place};
use super::input;
use super::problem::{MAX_LINE_LEN, Problem};

/// Longest text that is read at once. Its tokens would take several times as much memory.
pub(super) const MAX_FILE_LEN: u64 = 4 << 30;

/// Calls `each` with the number (from 1) and text of every line that is not blank. A byte order mark is no text, be it in front of the
/// first line or where files were put together.
pub(super) fn for_each(
    path: &Path,
    mut reader: impl BufRead,
    mut each: impl FnMut(usize, &str) -> Result<(), Problem>,
) -> Result<(), DataError> {
    let mut bytes = Vec::new();
    for line in 1.. {
        bytes.clear();
        let limit = MAX_LINE_LEN as u64 + 1;
        let read = reader.by_ref().take(limit).read_until(b'\n', &mut bytes);
        if read.map_err(|error| input::failure(path, error))? == 0 {
            break;
        }
        let text = if bytes.len() > MAX_LINE_LEN { Err(Problem::TooLong) } else { text(&bytes) };
        let done = text.and_then(|text| {
            let text = text.trim_start_matches('\u{feff}');
            if text.trim().is_empty() { Ok(()) } else { each(line, text) }
        });
        done.map_err(|problem| DataError::Row { path: path.to_owned(), place: Place::Line(line), problem })?;
    }
    Ok(())
}

/// All of it as text, without a byte order mark.
pub(super) fn whole(path: &Path, reader: impl BufRead) -> Result<String, DataError> {
    let mut bytes = Vec::new();
    reader.take(MAX_FILE_LEN + 1).read_to_end(&mut bytes).map_err(|error| input::failure(path, error))?;
    let len = bytes.len() as u64;
    if len > MAX_FILE_LEN {
        return Err(DataError::TooLong { path: path.to_owned(), most: MAX_FILE_LEN });
    }
    let at = |bytes: &[u8], at: usize, problem: fn(usize) -> Problem| {
        let before = bytes.get(..at).unwrap_or_default();
        let line = before.iter().filter(|&&byte| byte == b'\n').count() + 1;
        let start = before.iter().rposition(|&byte| byte == b'\n').map_or(0, |at| at + 1);
        DataError::Row { path: path.to_owned(), place: Place::Line(line), problem: problem(at - start) }
    };
    if let Some(nul) = bytes.iter().position(|&byte| byte == 0) {
        return Err(at(&bytes, nul, Problem::Nul));
    }
    let text = String::from_utf8(bytes)
        .map_err(|error| at(error.as_bytes(), error.utf8_error().valid_up_to(), Problem::NotUtf8))?;
    Ok(text.trim_start_matches('\u{feff}').to_owned())
}

/// Text of a line's bytes, or of a field's.
pub(super) fn text(bytes: &[u8]) -> Result<&str, Problem> {
    match bytes.iter().position(|&byte| byte == 0) {
        Some(at) => Err(Problem::Nul(at)),
        None => std::str::from_utf8(bytes).map_err(|error| Problem::NotUtf8(error.valid_up_to())),
    }
}
