//! Formats of data files: what a file is, and its rows.
//!
//! | file | subject |
//! |---|---|
//! | `json` | JSON lines and JSON lists |
//! | `row` | one JSON object |
//! | `constants` | numbers that Python writes and JSON has not |
//! | `table` | CSV and TSV |

use std::path::{Path, PathBuf};

use super::columns::Fields;
use super::error::{DataError, Place};
use super::input::Input;
use super::lines;
use super::problem::Problem;
use crate::text::LFS_POINTER;

mod constants;
mod json;
mod row;
mod table;

/// Bytes that are looked at to tell formats apart.
const HEAD: u64 = 64 << 10;

/// A data file that is being read.
pub(super) struct Source {
    path: PathBuf,
    format: Format,
    input: Input,
}

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
const OTHERS: [(&[u8], &str, &str); 15] = [
    (b"PAR1", "a Parquet file", PARQUET),
    (b"ARROW1", "an Arrow file", ARROW),
    (b"\xff\xff\xff\xff", "an Arrow file", ARROW),
    (b"\x28\xb5\x2f\xfd", "compressed by zstd", "unpack it with unzstd, or compress it by gzip, which is read"),
    (b"BZh", "compressed by bzip2", "unpack it with bunzip2, or compress it by gzip, which is read"),
    (b"\xfd7zXZ\x00", "compressed by xz", "unpack it with unxz, or compress it by gzip, which is read"),
    (b"\x04\x22\x4d\x18", "compressed by lz4", "unpack it with unlz4, or compress it by gzip, which is read"),
    (b"PK\x03\x04", "a zip archive or a spreadsheet", "unpack it, or save the sheet as CSV"),
    (b"7z\xbc\xaf\x27\x1c", "a 7z archive", "unpack it"),
    (b"SQLite format 3\x00", "a database of SQLite", "export the table as CSV"),
    (b"%PDF-", "a PDF file", "make text of it"),
    (b"\x1f\x8b", "compressed by gzip twice", "unpack it with gunzip once"),
    (b"\xff\xfe", "UTF-16 text", UTF_16),
    (b"\xfe\xff", "UTF-16 text", UTF_16),
    (LFS_POINTER, "not the file itself but a pointer of git-lfs to it", "run git lfs pull"),
];
const PARQUET: &str = "convert it to JSON lines, for example with python -c \"import pandas as p; \
                       p.read_parquet('in.parquet').to_json('out.jsonl', orient='records', lines=True)\"";
const ARROW: &str = "convert it to JSON lines, for example with python -c \"from datasets import Dataset as D; \
                     D.from_file('in.arrow').to_json('out.jsonl')\"";
const UTF_16: &str = "save it as UTF-8, for example with iconv -f UTF-16 -t UTF-8";

/// Where the name of the format stands in an archive of tar.
const TAR: (usize, &[u8]) = (257, b"ustar");

impl Source {
    /// Opens a file and finds out what it is, by its name and its first bytes.
    pub(super) fn open(path: &Path) -> Result<Self, DataError> {
        let input = Input::open(path, HEAD)?;
        let head = &input.head;
        let other = OTHERS.iter().find(|(start, ..)| head.starts_with(start)).map(|(_, what, remedy)| (*what, *remedy));
        let is_tar = head.get(TAR.0..).is_some_and(|rest| rest.starts_with(TAR.1));
        let other = other.or_else(|| is_tar.then_some(("an archive of tar", "unpack it with tar -x")));
        if let Some((what, remedy)) = other.or_else(|| wide(head).then_some(("UTF-16 text", UTF_16))) {
            return Err(DataError::Format { path: path.to_owned(), what, remedy });
        }
        Ok(Self { path: path.to_owned(), format: format(path, head), input })
    }

    /// What the file is.
    pub(super) fn format(&self) -> Format {
        self.format
    }

    /// Calls `each` with every row of a file that has rows.
    pub(super) fn for_each(self, each: impl FnMut(Place, Fields) -> Result<(), Problem>) -> Result<(), DataError> {
        let Self { path, format, mut input } = self;
        let bytes = &mut input.bytes;
        let read = match format {
            Format::PlainText => Ok(()),
            Format::JsonLines => json::lines(&path, bytes, each),
            Format::JsonList => json::list(&path, bytes, each),
            Format::Table { delimiter } => table::for_each(&path, bytes, delimiter, each),
        };
        read.map_err(|error| input.explained(&path, error))
    }

    /// The whole text of a file.
    pub(super) fn text(self) -> Result<String, DataError> {
        let Self { path, mut input, .. } = self;
        lines::whole(&path, &mut input.bytes).map_err(|error| input.explained(&path, error))
    }
}

fn format(path: &Path, head: &[u8]) -> Format {
    let head = head.strip_prefix(b"\xef\xbb\xbf").unwrap_or(head);
    // The name without what says that it is compressed.
    let is = |path: &Path, name: &str| path.extension().is_some_and(|extension| extension.eq_ignore_ascii_case(name));
    let stem = path.file_stem().filter(|_| is(path, "gz")).map_or(path, Path::new);
    let named = |name: &str| is(stem, name);
    if named("txt") {
        Format::PlainText
    } else if named("csv") {
        Format::Table { delimiter: table::delimiter(head) }
    } else if named("tsv") {
        Format::Table { delimiter: b'\t' }
    } else if head.trim_ascii_start().first() == Some(&b'[') {
        Format::JsonList
    } else {
        Format::JsonLines
    }
}

/// Whether every other byte is a zero, as in UTF-16 without a mark.
fn wide(head: &[u8]) -> bool {
    let pairs = head.as_chunks::<2>().0.iter().take(32);
    let zeros = |at: usize| pairs.clone().filter(|pair| pair[at] == 0 && pair[1 - at] != 0).count();
    pairs.len() >= 4 && zeros(0).max(zeros(1)) == pairs.len()
}
