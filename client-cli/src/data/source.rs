//! Formats of data files: what a file is, and its rows.
//!
//! | file | subject |
//! |---|---|
//! | `json` | JSON lines and JSON lists |
//! | `table` | CSV and TSV |

use std::fs::File;
use std::io::{BufReader, Read};
use std::path::Path;

use super::columns::Fields;
use super::error::{DataError, Place};
use super::problem::Problem;
use crate::text::LFS_POINTER;

mod json;
mod table;

/// Bytes that are looked at to tell formats apart.
const HEAD: u64 = 64 << 10;

/// How the rows of a file are written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Format {
    /// No rows, text.
    PlainText,
    /// An object on each line.
    JsonLines,
    /// One list of objects.
    JsonList,
    /// Fields with this byte between them, below a header.
    Table {
        /// The byte.
        delimiter: u8,
    },
}

/// Beginnings of files that have examples in another form, what they are, and the way out.
const OTHERS: [(&[u8], &str, &str); 8] = [
    (b"PAR1", "a Parquet file", PARQUET),
    (b"ARROW1", "an Arrow file", PARQUET),
    (b"\x1f\x8b", "compressed by gzip", "unpack it with gunzip"),
    (b"\x28\xb5\x2f\xfd", "compressed by zstd", "unpack it with unzstd"),
    (b"PK\x03\x04", "a zip archive or a spreadsheet", "unpack it, or save the sheet as CSV"),
    (b"\xff\xfe", "UTF-16 text", "save it as UTF-8"),
    (b"\xfe\xff", "UTF-16 text", "save it as UTF-8"),
    (LFS_POINTER, "not the file itself but a pointer of git-lfs to it", "run git lfs pull"),
];
const PARQUET: &str = "convert it to JSON lines, for example with python -c \"import pandas as p; \
                       p.read_parquet('in.parquet').to_json('out.jsonl', orient='records', lines=True)\"";

/// What a file is, by its name and its first bytes.
pub(super) fn format(path: &Path) -> Result<Format, DataError> {
    let failed = |source| DataError::Read { path: path.to_owned(), source };
    let mut head = Vec::new();
    BufReader::new(File::open(path).map_err(failed)?).take(HEAD).read_to_end(&mut head).map_err(failed)?;
    if let Some((_, what, remedy)) = OTHERS.iter().find(|(start, ..)| head.starts_with(start)) {
        return Err(DataError::Format { path: path.to_owned(), what, remedy });
    }
    let head = head.strip_prefix(b"\xef\xbb\xbf").unwrap_or(&head);
    let named = |name: &str| path.extension().is_some_and(|extension| extension.eq_ignore_ascii_case(name));
    Ok(if named("txt") {
        Format::PlainText
    } else if named("csv") {
        Format::Table { delimiter: table::delimiter(head) }
    } else if named("tsv") {
        Format::Table { delimiter: b'\t' }
    } else if head.trim_ascii_start().first() == Some(&b'[') {
        Format::JsonList
    } else {
        Format::JsonLines
    })
}

/// Calls `each` with every row of a file that has rows.
pub(super) fn for_each(
    path: &Path,
    format: Format,
    mut each: impl FnMut(Place, Fields) -> Result<(), Problem>,
) -> Result<(), DataError> {
    match format {
        Format::PlainText => Ok(()),
        Format::JsonLines => json::lines(path, each),
        Format::JsonList => json::list(path, &mut each),
        Format::Table { delimiter } => table::for_each(path, delimiter, each),
    }
}
