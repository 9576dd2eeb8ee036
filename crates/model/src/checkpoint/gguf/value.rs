//! Values of metadata.

use std::ops::Range;

use super::reader::{Problem, Reader};

/// Longest text of metadata, in bytes: chat templates have some thousand.
const MAX_TEXT: usize = 4 << 20;

/// A value. Lists stay where they are: those of a vocabulary have some hundred thousand texts, which servers never read.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Value {
    Unsigned(u64),
    Signed(i64),
    Float(f64),
    Flag(bool),
    Text(String),
    List(List),
}

/// A list in the file.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct List {
    kind: u32,
    count: usize,
    bytes: Range<usize>,
}

const TEXT: u32 = 8;
const LIST: u32 = 9;

/// Bytes of a value of a type, if all have the same.
fn width(kind: u32) -> Option<usize> {
    match kind {
        0 | 1 | 7 => Some(1),
        2 | 3 => Some(2),
        4..=6 => Some(4),
        10..=12 => Some(8),
        _ => None,
    }
}

impl Value {
    /// A value with its type in front.
    pub(super) fn read(reader: &mut Reader<'_>) -> Result<Self, Problem> {
        match reader.u32()? {
            LIST => List::read(reader).map(Self::List),
            kind => Self::of(kind, reader),
        }
    }

    fn of(kind: u32, reader: &mut Reader<'_>) -> Result<Self, Problem> {
        Ok(match kind {
            0 => Self::Unsigned(u64::from(reader.array::<1>()?[0])),
            1 => Self::Signed(i64::from(i8::from_le_bytes(reader.array()?))),
            2 => Self::Unsigned(u64::from(u16::from_le_bytes(reader.array()?))),
            3 => Self::Signed(i64::from(i16::from_le_bytes(reader.array()?))),
            4 => Self::Unsigned(u64::from(reader.u32()?)),
            5 => Self::Signed(i64::from(i32::from_le_bytes(reader.array()?))),
            6 => Self::Float(decimal(f32::from_le_bytes(reader.array()?))),
            7 => Self::Flag(reader.array::<1>()?[0] != 0),
            TEXT => Self::Text(reader.text(MAX_TEXT)?),
            10 => Self::Unsigned(reader.u64()?),
            11 => Self::Signed(i64::from_le_bytes(reader.array()?)),
            12 => Self::Float(f64::from_le_bytes(reader.array()?)),
            other => return Err(Problem::wrong(format!("a value has the unknown type {other}"))),
        })
    }

    pub(super) fn unsigned(&self) -> Option<u64> {
        match *self {
            Self::Unsigned(value) => Some(value),
            Self::Signed(value) => u64::try_from(value).ok(),
            _ => None,
        }
    }

    pub(super) fn number(&self) -> Option<f64> {
        match *self {
            Self::Float(value) => Some(value),
            Self::Unsigned(value) => Some(value as f64),
            Self::Signed(value) => Some(value as f64),
            _ => None,
        }
    }
}

impl List {
    fn read(reader: &mut Reader<'_>) -> Result<Self, Problem> {
        let (kind, count) = (reader.u32()?, reader.length()?);
        let start = reader.at();
        match (kind, width(kind)) {
            (_, Some(width)) => {
                let bytes = count.checked_mul(width).ok_or(Problem::Ends(u64::MAX))?;
                reader.skip(bytes)?;
            }
            (TEXT, _) => {
                for _ in 0..count {
                    let length = reader.length()?;
                    reader.skip(length)?;
                }
            }
            _ => return Err(Problem::wrong(format!("a list is of the type {kind}, which lists cannot have here"))),
        }
        Ok(Self { kind, count, bytes: start..reader.at() })
    }

    /// How many values it has.
    pub(super) fn len(&self) -> usize {
        self.count
    }

    /// Its values, from the bytes of the file that it was read from.
    pub(super) fn values(&self, file: &[u8]) -> impl Iterator<Item = Result<Value, Problem>> {
        let mut reader = Reader::new(&file[self.bytes.clone()]);
        (0..self.count).map(move |_| Value::of(self.kind, &mut reader))
    }
}

/// The number that was meant: of all that are rounded to this one in single precision the one with the fewest digits, as configurations
/// have it. So `1e-5` stays what it is in `config.json`.
pub(super) fn decimal(value: f32) -> f64 {
    value.to_string().parse().unwrap_or_else(|_| f64::from(value))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_those_that_were_meant() {
        for number in [1e-5, 1e-6, 10_000.0, 500_000.0, 0.1, 1.5625e-7, 5_000_042.0] {
            assert_eq!(decimal(number as f32), number);
        }
    }
}
