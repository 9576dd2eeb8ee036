//! One row as a JSON object, in which no column may be there twice: which one counts, programs do not agree on.

use std::fmt;

use serde::de::{Deserialize, Deserializer, Error, IgnoredAny, MapAccess, SeqAccess, Visitor};
use serde_json::Value;

use crate::data::columns::Fields;
use crate::data::problem::Problem;

/// What was read where a row should be.
pub(super) struct Row(Result<Fields, Problem>);

impl Row {
    /// The columns.
    pub(super) fn fields(self) -> Result<Fields, Problem> {
        self.0
    }
}

impl<'de> Deserialize<'de> for Row {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(Columns)
    }
}

struct Columns;

/// No object, but JSON.
const OTHER: Row = Row(Err(Problem::NotAnObject));

impl<'de> Visitor<'de> for Columns {
    type Value = Row;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Row, A::Error> {
        let (mut fields, mut twice) = (Fields::new(), None);
        while let Some((name, value)) = map.next_entry::<String, Value>()? {
            if fields.contains_key(&name) {
                twice.get_or_insert(name);
            } else {
                fields.insert(name, value);
            }
        }
        Ok(Row(twice.map_or(Ok(fields), |name| Err(Problem::Twice(name)))))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Row, A::Error> {
        while items.next_element::<IgnoredAny>()?.is_some() {}
        Ok(OTHER)
    }

    fn visit_bool<E: Error>(self, _: bool) -> Result<Row, E> {
        Ok(OTHER)
    }

    fn visit_i64<E: Error>(self, _: i64) -> Result<Row, E> {
        Ok(OTHER)
    }

    fn visit_u64<E: Error>(self, _: u64) -> Result<Row, E> {
        Ok(OTHER)
    }

    fn visit_f64<E: Error>(self, _: f64) -> Result<Row, E> {
        Ok(OTHER)
    }

    fn visit_str<E: Error>(self, _: &str) -> Result<Row, E> {
        Ok(OTHER)
    }

    fn visit_unit<E: Error>(self) -> Result<Row, E> {
        Ok(OTHER)
    }
}
