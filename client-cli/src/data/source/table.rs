//! Rows of CSV and TSV files, as RFC 4180 has them: quoted fields may hold line ends, and quotes that are doubled.

use std::path::Path;

use csv::{ByteRecord, ErrorKind, ReaderBuilder};
use serde_json::Value;

use crate::data::columns::Fields;
use crate::data::error::{DataError, Place};
use crate::data::lines::utf8;
use crate::data::problem::{MAX_LINE_LEN, Problem};

/// What is between the fields of a `.csv` file: a comma, or the semicolon that spreadsheets write where numbers have a comma,
/// if the header has none.
pub(super) fn delimiter(head: &[u8]) -> u8 {
    let header = head.split(|&byte| byte == b'\n').next().unwrap_or_default();
    if header.contains(&b';') && !header.contains(&b',') { b';' } else { b',' }
}

/// Calls `each` with every record below the header. Fields are texts.
pub(super) fn for_each(
    path: &Path,
    delimiter: u8,
    mut each: impl FnMut(Place, Fields) -> Result<(), Problem>,
) -> Result<(), DataError> {
    let failed = |error| failure(path, error);
    let mut reader = ReaderBuilder::new().delimiter(delimiter).from_path(path).map_err(failed)?;
    let names = header(path, reader.byte_headers().map_err(failed)?)?;
    let mut record = ByteRecord::new();
    while reader.read_byte_record(&mut record).map_err(failed)? {
        let line = record.position().map_or(0, |position| position.line() as usize);
        let row = |problem| DataError::Row { path: path.to_owned(), place: Place::Line(line), problem };
        if record.as_slice().len() > MAX_LINE_LEN {
            return Err(row(Problem::TooLong));
        }
        let mut fields = Fields::new();
        for (name, field) in names.iter().zip(&record) {
            fields.insert(name.clone(), Value::String(utf8(field).map_err(row)?.to_owned()));
        }
        each(Place::Line(line), fields).map_err(row)?;
    }
    Ok(())
}

fn header(path: &Path, header: &ByteRecord) -> Result<Vec<String>, DataError> {
    let wrong = |problem: String| DataError::Header { path: path.to_owned(), problem };
    let mut names: Vec<String> = Vec::new();
    for name in header {
        let name = utf8(name).map_err(|_| wrong("is not UTF-8: save the file as UTF-8".to_owned()))?;
        let name = name.trim_start_matches('\u{feff}').trim();
        if names.iter().any(|known| known == name) {
            return Err(wrong(format!("has the column `{name}` twice")));
        }
        names.push(name.to_owned());
    }
    Ok(names)
}

fn failure(path: &Path, error: csv::Error) -> DataError {
    let path = path.to_owned();
    let line = error.position().map_or(0, |position| position.line() as usize);
    let row = |problem| DataError::Row { path: path.clone(), place: Place::Line(line), problem };
    match error.into_kind() {
        ErrorKind::Io(source) => DataError::Read { path, source },
        ErrorKind::UnequalLengths { expected_len, len, .. } => row(Problem::Fields { got: len, header: expected_len }),
        ErrorKind::Utf8 { err, .. } => row(Problem::NotUtf8(err.valid_up_to())),
        other => DataError::Header { path, problem: format!("cannot be read ({other:?})") },
    }
}
