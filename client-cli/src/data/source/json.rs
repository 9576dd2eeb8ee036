//! Rows as JSON objects: one on each line, or all in a list.

use std::fmt;
use std::fs::File;
use std::io::{BufRead, BufReader};
use std::path::Path;

use serde::Deserializer as _;
use serde::de::{self, SeqAccess, Visitor};
use serde_json::{Deserializer, Value};

use crate::data::columns::Fields;
use crate::data::error::{DataError, Place};
use crate::data::lines;
use crate::data::problem::Problem;

/// Calls `each` with the object of every line that is not blank.
pub(super) fn lines(path: &Path, mut each: impl FnMut(Place, Fields) -> Result<(), Problem>) -> Result<(), DataError> {
    lines::for_each(path, |line, text| {
        let value = serde_json::from_str(text).map_err(|error| {
            if error.is_eof() { Problem::OpenJson(error.to_string()) } else { Problem::NotJson(error.to_string()) }
        })?;
        each(Place::Line(line), object(value)?)
    })
}

/// Calls `each` with every object of a list. The list is not held as a whole.
pub(super) fn list(path: &Path, each: &mut dyn FnMut(Place, Fields) -> Result<(), Problem>) -> Result<(), DataError> {
    let failed = |source| DataError::Read { path: path.to_owned(), source };
    let mut reader = BufReader::new(File::open(path).map_err(failed)?);
    if reader.fill_buf().map_err(failed)?.starts_with(b"\xef\xbb\xbf") {
        reader.consume(3);
    }
    let mut wrong = None;
    let mut json = Deserializer::from_reader(reader);
    let read = json.deserialize_seq(Items { each, wrong: &mut wrong }).and_then(|()| json.end());
    match (wrong, read) {
        (Some((place, problem)), _) => Err(DataError::Row { path: path.to_owned(), place, problem }),
        (None, Err(source)) => Err(DataError::List { path: path.to_owned(), source }),
        (None, Ok(())) => Ok(()),
    }
}

/// Hands the items of a list on, one by one.
struct Items<'a> {
    each: &'a mut dyn FnMut(Place, Fields) -> Result<(), Problem>,
    /// The first item that is wrong; reading stops there.
    wrong: &'a mut Option<(Place, Problem)>,
}

impl<'de> Visitor<'de> for Items<'_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a list of objects")
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<(), A::Error> {
        for item in 1.. {
            let Some(value) = items.next_element::<Value>()? else { break };
            let place = Place::Item(item);
            if let Err(problem) = object(value).and_then(|fields| (self.each)(place, fields)) {
                *self.wrong = Some((place, problem));
                return Err(de::Error::custom("an item is wrong"));
            }
        }
        Ok(())
    }
}

fn object(value: Value) -> Result<Fields, Problem> {
    match value {
        Value::Object(fields) => Ok(fields),
        _ => Err(Problem::NotAnObject),
    }
}
