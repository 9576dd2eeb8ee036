//! Names for blocks, models, stashes and prompts.

use std::fmt;
use std::ops::Range;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// A half-open range of transformer blocks, `start..end`, never empty.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "(u32, u32)", into = "(u32, u32)")]
pub struct Span {
    start: u32,
    end: u32,
}

/// Why two numbers or a text are not a [`Span`].
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum BlockSpanError {
    /// `start` is not below `end`.
    #[error("block range {start}..{end} is empty: the start must be below the end")]
    Empty {
        /// First block of the refused range.
        start: u32,
        /// One past the last block of the refused range.
        end: u32,
    },
    /// The text is not of the form `A..B`.
    #[error("`{0}` is not a block range: write START..END, for example 0..12")]
    Syntax(String),
}

impl Span {
    /// The span `start..end`.
    ///
    /// # Errors
    /// [`BlockSpanError::Empty`] unless `start < end`.
    pub fn new(start: u32, end: u32) -> Result<Self, BlockSpanError> {
        if start < end { Ok(Self { start, end }) } else { Err(BlockSpanError::Empty { start, end }) }
    }

    /// First block.
    pub fn start(self) -> u32 {
        self.start
    }

    /// One past the last block.
    pub fn end(self) -> u32 {
        self.end
    }

    /// Number of blocks, at least 1.
    #[allow(clippy::len_without_is_empty, reason = "a span is never empty")]
    pub fn len(self) -> usize {
        (self.end - self.start) as usize
    }

    /// The block numbers, in order.
    pub fn blocks(self) -> Range<u32> {
        self.start..self.end
    }

    /// Whether `block` lies in the span.
    pub fn contains(self, block: u32) -> bool {
        self.blocks().contains(&block)
    }

    /// Whether every block of `other` lies in this span.
    pub fn covers(self, other: Span) -> bool {
        self.start <= other.start && other.end <= self.end
    }

    /// The blocks both spans have, if any.
    pub fn intersect(self, other: Span) -> Option<Span> {
        Span::new(self.start.max(other.start), self.end.min(other.end)).ok()
    }
}

impl fmt::Display for Span {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}..{}", self.start, self.end)
    }
}

impl FromStr for Span {
    type Err = BlockSpanError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let syntax = || BlockSpanError::Syntax(text.to_owned());
        let (start, end) = text.split_once("..").ok_or_else(syntax)?;
        let number = |part: &str| part.trim().parse::<u32>().map_err(|_| syntax());
        Span::new(number(start)?, number(end)?)
    }
}

impl TryFrom<(u32, u32)> for Span {
    type Error = BlockSpanError;

    fn try_from((start, end): (u32, u32)) -> Result<Self, Self::Error> {
        Span::new(start, end)
    }
}

impl From<Span> for (u32, u32) {
    fn from(span: Span) -> Self {
        (span.start, span.end)
    }
}

/// Hash over a model's configuration and its tensors' names, which every holder of any part of the model can compute.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Fingerprint(pub [u8; 8]);

/// Which model a message or record speaks of: its name in the swarm and its [`Fingerprint`].
///
/// Written `name@0123456789abcdef`. Two different models under one name have different ids and never form a chain.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct ModelId {
    name: String,
    fingerprint: Fingerprint,
}

/// Why a text is not a [`ModelId`].
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ModelIdError {
    /// The name is empty, too long or has characters that could confuse a key or a terminal.
    #[error("`{0}` is not a model name: use 1 to {max} letters, digits, `-`, `_`, `.` or `/`", max = ModelId::MAX_NAME_LEN)]
    Name(String),
    /// The part behind `@` is not 16 hexadecimal digits.
    #[error("`{0}` does not end in `@` and 16 hexadecimal digits")]
    Fingerprint(String),
}

impl ModelId {
    /// Longest name, in bytes.
    pub const MAX_NAME_LEN: usize = 128;

    /// Joins a name and a fingerprint.
    ///
    /// # Errors
    /// [`ModelIdError::Name`] if the name is empty, longer than [`Self::MAX_NAME_LEN`] or has other characters than
    /// letters, digits, `-`, `_`, `.` and `/`.
    pub fn new(name: impl Into<String>, fingerprint: Fingerprint) -> Result<Self, ModelIdError> {
        let name = name.into();
        let allowed = |c: char| c.is_ascii_alphanumeric() || "-_./".contains(c);
        if name.is_empty() || name.len() > Self::MAX_NAME_LEN || !name.chars().all(allowed) {
            return Err(ModelIdError::Name(name));
        }
        Ok(Self { name, fingerprint })
    }

    /// The name alone.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The fingerprint alone.
    pub fn fingerprint(&self) -> Fingerprint {
        self.fingerprint
    }
}

impl fmt::Display for ModelId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}@{}", self.name, self.fingerprint)
    }
}

impl fmt::Display for Fingerprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}", u64::from_be_bytes(self.0))
    }
}

impl FromStr for ModelId {
    type Err = ModelIdError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let wrong = || ModelIdError::Fingerprint(text.to_owned());
        let (name, hex) = text.rsplit_once('@').ok_or_else(wrong)?;
        if hex.len() != 16 || !hex.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f')) {
            return Err(wrong());
        }
        let bits = u64::from_str_radix(hex, 16).map_err(|_| wrong())?;
        Self::new(name, Fingerprint(bits.to_be_bytes()))
    }
}

impl TryFrom<String> for ModelId {
    type Error = ModelIdError;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        text.parse()
    }
}

impl From<ModelId> for String {
    fn from(id: ModelId) -> Self {
        id.to_string()
    }
}

/// Names what a server keeps of a training forward for its backward. Chosen by the client, unique on its stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct StashId(pub u64);

/// Names prompts that later requests of a stream use again. Chosen by the client; other prompts have another name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct TablesId(pub u64);

/// Names a session. Chosen by the client, unique on its stream. Its upper half is a salt: a server that keeps what sessions begin with has
/// it for those of the same client and salt alone, so that a client with several users can keep them apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct SessionId(pub u64);

impl SessionId {
    /// The name with this number, of which the lower half counts, among those of a salt.
    pub fn salted(salt: u32, number: u64) -> Self {
        Self((u64::from(salt) << 32) | (number & u64::from(u32::MAX)))
    }

    /// Whose sessions may have what this one begins with.
    pub fn salt(self) -> u32 {
        (self.0 >> 32) as u32
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_session_has_its_salt_in_its_name() {
        let id = SessionId::salted(7, (3 << 32) | 5);
        assert_eq!((id, id.salt()), (SessionId((7 << 32) | 5), 7));
        assert_eq!(SessionId(5).salt(), 0);
    }

    #[test]
    fn span_is_parsed_and_printed() {
        let span: Span = "3..12".parse().unwrap();
        assert_eq!((span.start(), span.end(), span.len()), (3, 12, 9));
        assert_eq!(span.to_string(), "3..12");
    }

    #[test]
    fn wrong_spans_are_refused() {
        assert!(matches!("5..5".parse::<Span>(), Err(BlockSpanError::Empty { .. })));
        assert!(matches!("0-12".parse::<Span>(), Err(BlockSpanError::Syntax(_))));
        assert!(matches!("-1..2".parse::<Span>(), Err(BlockSpanError::Syntax(_))));
        assert!(serde_json::from_str::<Span>("[4,2]").is_err());
    }

    #[test]
    fn spans_intersect() {
        let span = |a, b| Span::new(a, b).unwrap();
        assert_eq!(span(0, 4).intersect(span(2, 9)), Some(span(2, 4)));
        assert_eq!(span(0, 4).intersect(span(4, 9)), None);
        assert!(span(0, 4).covers(span(1, 4)) && !span(0, 4).covers(span(1, 5)));
    }

    #[test]
    fn model_id_round_trips_and_refuses_strange_names() {
        let id = ModelId::new("org/Tiny-1.1", Fingerprint([0, 1, 2, 3, 4, 5, 6, 7])).unwrap();
        assert_eq!(id.to_string(), "org/Tiny-1.1@0001020304050607");
        assert_eq!(id.to_string().parse::<ModelId>().unwrap(), id);
        assert!(ModelId::new("a b", id.fingerprint()).is_err());
        assert!("x@12".parse::<ModelId>().is_err());
        assert!("x@+001020304050607".parse::<ModelId>().is_err());
    }
}
