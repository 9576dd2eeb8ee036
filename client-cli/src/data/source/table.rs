//! Rows of CSV and TSV files, as RFC 4180 has them: quoted fields may hold line ends, and quotes that are doubled.

use std::io::BufRead;
use std::path::Path;

use csv::{ByteRecord, ErrorKind, ReaderBuilder};
use serde_json::Value;

use crate::data::columns::Fields;
use crate::data::error::{DataError, Place};
use crate::data::input::{self, Bounded};
use crate::data::lines::text;
use crate::data::problem::{MAX_LINE_LEN, Problem};

/// Line ends that are put behind the last record. They are none of it, unless a quotation mark is still open there: the last field has
/// them then.
const SENTINEL: &str = "\r\n\n\r\r\n\n\r";

/// What is between the fields of a `.csv` file: a comma; or, if the header has none, the semicolon that spreadsheets write where numbers
/// have a comma, or a tab.
pub(super) fn delimiter(head: &[u8]) -> u8 {
    let header = head.split(|&byte| byte == b'\n').next().unwrap_or_default();
    [b',', b';', b'\t'].into_iter().find(|delimiter| header.contains(delimiter)).unwrap_or(b',')
}

/// Calls `each` with every record below the header. Fields are texts.
pub(super) fn for_each(
    path: &Path,
    bytes: impl BufRead,
    delimiter: u8,
    mut each: impl FnMut(Place, Fields) -> Result<(), Problem>,
) -> Result<(), DataError> {
    let failed = |error, line| failure(path, error, line);
    let (bounded, allowance) = Bounded::new(bytes.chain(SENTINEL.as_bytes()));
    let mut reader = ReaderBuilder::new().delimiter(delimiter).from_reader(bounded);
    let names = header(path, reader.byte_headers().map_err(|error| failed(error, 1))?)?;
    let mut record = ByteRecord::new();
    loop {
        allowance.next();
        let line = reader.position().line() as usize;
        if !reader.read_byte_record(&mut record).map_err(|error| failed(error, line))? {
            return Ok(());
        }
        let line = record.position().map_or(line, |position| position.line() as usize);
        let row = |problem| DataError::Row { path: path.to_owned(), place: Place::Line(line), problem };
        if record.as_slice().len() > MAX_LINE_LEN {
            return Err(row(Problem::TooLong));
        }
        if record.as_slice().ends_with(SENTINEL.as_bytes()) {
            return Err(row(Problem::OpenQuote));
        }
        let mut fields = Fields::new();
        for (name, field) in names.iter().zip(&record).filter(|(name, _)| !name.is_empty()) {
            fields.insert(name.clone(), Value::String(text(field).map_err(row)?.to_owned()));
        }
        each(Place::Line(line), fields).map_err(row)?;
    }
}

fn header(path: &Path, header: &ByteRecord) -> Result<Vec<String>, DataError> {
    let wrong = |problem: String| DataError::Header { path: path.to_owned(), problem };
    if header.as_slice().ends_with(SENTINEL.as_bytes()) {
        return Err(wrong("has a quotation mark that is never closed".to_owned()));
    }
    let mut names: Vec<String> = Vec::new();
    for name in header {
        let name = text(name).map_err(|problem| wrong(format!("cannot be read: {problem}")))?;
        let name = name.trim_start_matches('\u{feff}').trim();
        // Spreadsheets write columns that have neither a name nor anything in them.
        if !name.is_empty() && names.iter().any(|known| known == name) {
            return Err(wrong(format!("has the column `{name}` twice")));
        }
        names.push(name.to_owned());
    }
    Ok(names)
}

fn failure(path: &Path, error: csv::Error, line: usize) -> DataError {
    let line = error.position().map_or(line, |position| position.line() as usize);
    let row = |problem| DataError::Row { path: path.to_owned(), place: Place::Line(line), problem };
    match error.into_kind() {
        ErrorKind::Io(source) if input::is_long_record(&source) => row(Problem::TooLong),
        ErrorKind::Io(source) => input::failure(path, source),
        ErrorKind::UnequalLengths { expected_len, len, .. } => row(Problem::Fields { got: len, header: expected_len }),
        ErrorKind::Utf8 { err, .. } => row(Problem::NotUtf8(err.valid_up_to())),
        other => DataError::Header { path: path.to_owned(), problem: format!("cannot be read ({other:?})") },
    }
}
