//! Rows as JSON objects: one on each line, or all in a list.

use std::fmt;
use std::io::{self, BufRead, BufReader};
use std::path::Path;

use serde::Deserializer as _;
use serde::de::{self, SeqAccess, Visitor};
use serde_json::Deserializer;

use super::constants::{self, Constants};
use super::row::Row;
use crate::data::columns::Fields;
use crate::data::error::{DataError, Place};
use crate::data::input::{self, Allowance, Bounded};
use crate::data::lines;
use crate::data::problem::Problem;

/// Calls `each` with the object of every line that is not blank.
pub(super) fn lines(
    path: &Path,
    bytes: impl BufRead,
    mut each: impl FnMut(Place, Fields) -> Result<(), Problem>,
) -> Result<(), DataError> {
    let mut first = true;
    lines::for_each(path, bytes, |line, text| {
        let row = parse(text).map_err(|error| {
            if error.is_eof() {
                Problem::OpenJson(error.to_string())
            } else if first && !text.trim_start().starts_with('{') {
                Problem::NotJsonAtAll(error.to_string())
            } else {
                Problem::NotJson(error.to_string())
            }
        })?;
        first = false;
        each(Place::Line(line), row.fields()?)
    })
}

fn parse(text: &str) -> Result<Row, serde_json::Error> {
    serde_json::from_str(text).or_else(|error| {
        let again = || serde_json::from_reader(Constants::new(text.as_bytes())).ok();
        Some(text).filter(|text| constants::may_be_in(text)).and_then(|_| again()).ok_or(error)
    })
}

/// Calls `each` with every object of a list. The list is not held as a whole.
pub(super) fn list(
    path: &Path,
    mut bytes: impl BufRead,
    mut each: impl FnMut(Place, Fields) -> Result<(), Problem>,
) -> Result<(), DataError> {
    let failed = |source| input::failure(path, source);
    if bytes.fill_buf().map_err(failed)?.starts_with(b"\xef\xbb\xbf") {
        bytes.consume(3);
    }
    let (bounded, allowance) = Bounded::new(bytes);
    let (mut wrong, mut read) = (None, 0);
    let bytes = BufReader::new(Constants::new(BufReader::new(bounded)));
    let mut json = Deserializer::from_reader(bytes);
    let items = Items { each: &mut each, allowance, wrong: &mut wrong, read: &mut read };
    let done = json.deserialize_seq(items).and_then(|()| json.end());
    let at = |place, problem| DataError::Row { path: path.to_owned(), place, problem };
    match (wrong, done) {
        (Some((place, problem)), _) => Err(at(place, problem)),
        (None, Err(error)) if error.is_io() => {
            let error = io::Error::from(error);
            Err(if input::is_long_record(&error) { at(Place::Item(read + 1), Problem::TooLong) } else { failed(error) })
        }
        (None, Err(source)) => Err(DataError::List { path: path.to_owned(), source }),
        (None, Ok(())) => Ok(()),
    }
}

/// Hands the items of a list on, one by one.
struct Items<'a> {
    each: &'a mut dyn FnMut(Place, Fields) -> Result<(), Problem>,
    allowance: Allowance,
    /// The first item that is wrong; reading stops there.
    wrong: &'a mut Option<(Place, Problem)>,
    /// Items that were read.
    read: &'a mut usize,
}

impl<'de> Visitor<'de> for Items<'_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a list of objects")
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<(), A::Error> {
        while let Some(row) = items.next_element::<Row>()? {
            *self.read += 1;
            self.allowance.next();
            let place = Place::Item(*self.read);
            if let Err(problem) = row.fields().and_then(|fields| (self.each)(place, fields)) {
                *self.wrong = Some((place, problem));
                return Err(de::Error::custom("an item is wrong"));
            }
        }
        Ok(())
    }
}
