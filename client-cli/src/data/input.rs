//! The bytes of a data file: of a file or of standard input, unpacked if they are compressed by gzip, and no more of them than there
//! is room for.

use std::cell::Cell;
use std::fs::File;
use std::io::{self, BufRead, BufReader, Cursor, Read};
use std::mem;
use std::path::Path;
use std::rc::Rc;

use flate2::bufread::GzDecoder;

use super::error::DataError;
use super::problem::MAX_LINE_LEN;

/// Most bytes that are unpacked: an archive of a few megabytes may become as long as one likes.
const MAX_UNPACKED: u64 = 4 << 30;
/// What a file compressed by gzip begins with.
const GZIP: &[u8] = b"\x1f\x8b";
/// What a reader may have read ahead of the record that it gives.
const AHEAD: usize = 64 << 10;

/// The name under which standard input is asked for.
const STDIN: &str = "-";

/// Why reading ended, inside of an [`io::Error`], which other crates' readers hand on.
#[derive(Debug, thiserror::Error)]
enum Ended {
    #[error("the archive is damaged")]
    Damaged(#[source] io::Error),
    #[error("too much is unpacked")]
    TooMuch,
    #[error("the record is too long")]
    LongRecord,
}

/// What was opened.
pub(super) struct Input {
    /// The first bytes.
    pub(super) head: Vec<u8>,
    /// All bytes.
    pub(super) bytes: Box<dyn BufRead>,
    /// Whether they are unpacked on the way.
    is_packed: bool,
}

impl Input {
    /// Opens a file, or standard input, and unpacks it. `head`: how many of its first bytes are wanted.
    pub(super) fn open(path: &Path, head: u64) -> Result<Self, DataError> {
        let failed = |source| failure(path, source);
        let packed: Box<dyn Read> =
            if path == Path::new(STDIN) { Box::new(io::stdin()) } else { Box::new(file(path)?) };
        let (start, bytes) = peek(packed, head).map_err(failed)?;
        if !start.starts_with(GZIP) {
            return Ok(Self { head: start, bytes, is_packed: false });
        }
        let unpacked = Unpacked { members: Members::new(bytes), left: MAX_UNPACKED };
        let (head, bytes) = peek(unpacked, head).map_err(failed)?;
        Ok(Self { head, bytes, is_packed: true })
    }

    /// Why a row is wrong: where the archive is damaged, a wrong row is but a consequence. That shows at its end, where its checksum is.
    pub(super) fn explained(mut self, path: &Path, error: DataError) -> DataError {
        if !self.is_packed {
            return error;
        }
        let rest = io::copy(&mut self.bytes, &mut io::sink());
        rest.err()
            .map(|source| failure(path, source))
            .filter(|error| matches!(error, DataError::Damaged { .. }))
            .unwrap_or(error)
    }
}

fn file(path: &Path) -> Result<File, DataError> {
    if path.is_dir() {
        return Err(DataError::Folder { path: path.to_owned() });
    }
    let is_pattern = path.to_string_lossy().contains(['*', '?']);
    File::open(path).map_err(|error| match error.kind() {
        io::ErrorKind::NotFound if is_pattern => DataError::Pattern { path: path.to_owned() },
        _ => failure(path, error),
    })
}

/// The first bytes, and all bytes.
fn peek(reader: impl Read + 'static, head: u64) -> io::Result<(Vec<u8>, Box<dyn BufRead>)> {
    let mut reader = BufReader::new(reader);
    let mut start = Vec::new();
    reader.by_ref().take(head).read_to_end(&mut start)?;
    Ok((start.clone(), Box::new(Cursor::new(start).chain(reader))))
}

/// What an error of reading means.
pub(super) fn failure(path: &Path, error: io::Error) -> DataError {
    let path = path.to_owned();
    match error.downcast::<Ended>() {
        Ok(Ended::Damaged(source)) => DataError::Damaged { path, source },
        Ok(Ended::TooMuch) => DataError::UnpacksTooLong { path, most: MAX_UNPACKED },
        Ok(Ended::LongRecord) => DataError::Read { path, source: io::Error::other(Ended::LongRecord) },
        Err(source) => DataError::Read { path, source },
    }
}

/// Whether reading ended because of [`Bounded`].
pub(super) fn is_long_record(error: &io::Error) -> bool {
    error.get_ref().is_some_and(|inner| matches!(inner.downcast_ref::<Ended>(), Some(Ended::LongRecord)))
}

/// The members of a gzip file, one after the other: `cat a.gz b.gz` is a gzip file too. Zeros behind them are padding.
struct Members<R> {
    state: State<R>,
}

enum State<R> {
    Member(GzDecoder<R>),
    Done,
}

impl<R: BufRead> Members<R> {
    fn new(reader: R) -> Self {
        Self { state: State::Member(GzDecoder::new(reader)) }
    }
}

impl<R: BufRead> Read for Members<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        loop {
            let State::Member(member) = &mut self.state else { return Ok(0) };
            let length = member.read(buffer)?;
            if length > 0 || buffer.is_empty() {
                return Ok(length);
            }
            let State::Member(member) = mem::replace(&mut self.state, State::Done) else { return Ok(0) };
            let mut rest = member.into_inner();
            if skip_zeros(&mut rest)? {
                self.state = State::Member(GzDecoder::new(rest));
            }
        }
    }
}

/// Whether there is anything but zeros.
fn skip_zeros(reader: &mut impl BufRead) -> io::Result<bool> {
    loop {
        let bytes = reader.fill_buf()?;
        let zeros = bytes.iter().take_while(|&&byte| byte == 0).count();
        if zeros < bytes.len() {
            reader.consume(zeros);
            return Ok(true);
        }
        if bytes.is_empty() {
            return Ok(false);
        }
        reader.consume(zeros);
    }
}

/// What an archive becomes, as far as it may.
struct Unpacked<R> {
    members: Members<R>,
    left: u64,
}

impl<R: BufRead> Read for Unpacked<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let length = self.members.read(buffer).map_err(|error| match error.kind() {
            io::ErrorKind::Interrupted => error,
            _ => io::Error::other(Ended::Damaged(error)),
        })?;
        self.left = self.left.checked_sub(length as u64).ok_or_else(|| io::Error::other(Ended::TooMuch))?;
        Ok(length)
    }
}

/// Bytes of which only so many are read for a record, be it because a quotation mark is open or because it has no end.
pub(super) struct Bounded<R> {
    inner: R,
    left: Rc<Cell<usize>>,
}

/// Allows the next record to a [`Bounded`].
pub(super) struct Allowance(Rc<Cell<usize>>);

impl<R: Read> Bounded<R> {
    pub(super) fn new(inner: R) -> (Self, Allowance) {
        let left = Rc::new(Cell::new(MAX_LINE_LEN + AHEAD));
        (Self { inner, left: left.clone() }, Allowance(left))
    }
}

impl Allowance {
    /// A record was read, the next one may be.
    pub(super) fn next(&self) {
        self.0.set(MAX_LINE_LEN + AHEAD);
    }
}

impl<R: Read> Read for Bounded<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let room = buffer.len().min(self.left.get());
        if room == 0 && !buffer.is_empty() {
            return Err(io::Error::other(Ended::LongRecord));
        }
        let length = self.inner.read(&mut buffer[..room])?;
        self.left.set(self.left.get() - length);
        Ok(length)
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use flate2::Compression;
    use flate2::write::GzEncoder;

    use super::*;

    fn packed(bytes: &[u8]) -> Vec<u8> {
        let mut encoder = GzEncoder::new(Vec::new(), Compression::fast());
        encoder.write_all(bytes).unwrap();
        encoder.finish().unwrap()
    }

    fn unpacked(archive: &[u8], left: u64) -> io::Result<Vec<u8>> {
        let mut bytes = Vec::new();
        let archive: Box<dyn BufRead> = Box::new(Cursor::new(archive.to_vec()));
        Unpacked { members: Members::new(archive), left }.read_to_end(&mut bytes).map(|_| bytes)
    }

    #[test]
    fn members_follow_each_other_and_zeros_are_padding() {
        let two = [packed(b"one "), packed(b""), packed(b"two"), vec![0; 3000]].concat();
        assert_eq!(unpacked(&two, 100).unwrap(), b"one two");
        assert!(unpacked(&[packed(b"one"), b"garbage behind it".to_vec()].concat(), 100).is_err());
    }

    #[test]
    fn an_archive_is_unpacked_up_to_the_limit_and_no_further() {
        let bomb = packed(&vec![b'x'; 1 << 20]);
        assert!(bomb.len() < 1 << 14);
        assert_eq!(unpacked(&bomb, 1 << 20).unwrap().len(), 1 << 20);
        let error = unpacked(&bomb, (1 << 20) - 1).unwrap_err();
        assert!(matches!(failure(Path::new("b"), error), DataError::UnpacksTooLong { .. }));
    }

    #[test]
    fn an_archive_that_ends_anywhere_too_early_is_damaged() {
        let whole = packed(b"{\"text\": \"a\"}\n{\"text\": \"b\"}\n");
        for end in 2..whole.len() {
            let error = unpacked(&whole[..end], 1 << 20).unwrap_err();
            assert!(matches!(failure(Path::new("b"), error), DataError::Damaged { .. }), "{end}");
        }
        for at in 12..whole.len() {
            let mut other = whole.clone();
            other[at] ^= 0x55;
            assert!(unpacked(&other, 1 << 20).is_err(), "{at}");
        }
    }

    #[test]
    fn a_record_without_an_end_is_not_read_to_the_end_of_the_file() {
        let (mut bounded, allowance) = Bounded::new(io::repeat(b'x'));
        let mut bytes = vec![0; 1 << 20];
        for _ in 0..3 {
            let mut read = 0;
            let error = loop {
                match bounded.read(&mut bytes) {
                    Ok(length) => read += length,
                    Err(error) => break error,
                }
            };
            assert!(is_long_record(&error) && read == MAX_LINE_LEN + AHEAD);
            allowance.next();
        }
    }
}
