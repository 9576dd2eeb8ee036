//! Names of weights: what a block's tensors are in the files that a server has them from.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// Most blocks whose hashes a record has room for, beside everything else that may be in it.
pub const MAX_HASHED_BLOCKS: usize = 160;

/// BLAKE3 over the tensors of one block as they lie in the model's files (names, dtypes, shapes and bytes), cut to 12 bytes. It says nothing of
/// how a server rounds them.
///
/// Written as 24 hexadecimal digits.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct WeightsHash(pub [u8; 12]);

/// Why a text is not a [`WeightsHash`].
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is not the hash of a block's weights: 24 hexadecimal digits")]
pub struct WeightsHashError(String);

/// The hashes of the blocks of a span, in their order.
///
/// In a record they are one string, the digits of one block behind those of the other.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct BlockHashes(Vec<WeightsHash>);

impl BlockHashes {
    /// Hashes of the blocks of a span. `None` if there are more than a record has room for, or none.
    pub fn new(hashes: Vec<WeightsHash>) -> Option<Self> {
        (1..=MAX_HASHED_BLOCKS).contains(&hashes.len()).then_some(Self(hashes))
    }

    /// In the order of the blocks.
    pub fn as_slice(&self) -> &[WeightsHash] {
        &self.0
    }
}

impl fmt::Display for WeightsHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for WeightsHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self}")
    }
}

impl FromStr for WeightsHash {
    type Err = WeightsHashError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let wrong = || WeightsHashError(text.chars().filter(|c| !c.is_control()).take(32).collect());
        let digits: Option<Vec<u8>> = text.chars().map(|c| Some(c.to_digit(16)? as u8)).collect();
        let digits = digits.filter(|digits| digits.len() == 24).ok_or_else(wrong)?;
        let mut bytes = [0; 12];
        bytes.iter_mut().zip(digits.as_chunks::<2>().0).for_each(|(byte, [high, low])| *byte = high << 4 | low);
        Ok(Self(bytes))
    }
}

impl TryFrom<String> for BlockHashes {
    type Error = WeightsHashError;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        let wrong = || WeightsHashError(text.chars().filter(|c| !c.is_control()).take(32).collect());
        let parts = text.as_bytes().chunks(24).map(|part| std::str::from_utf8(part).map_err(|_| wrong())?.parse());
        Self::new(parts.collect::<Result<_, _>>()?).ok_or_else(wrong)
    }
}

impl From<BlockHashes> for String {
    fn from(hashes: BlockHashes) -> Self {
        hashes.0.iter().map(ToString::to_string).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hashes_round_trip_and_nonsense_is_refused() {
        let hash = |first| WeightsHash(std::array::from_fn(|at| first + at as u8));
        let hashes = BlockHashes::new(vec![hash(0), hash(0xf0)]).unwrap();
        let text = String::from(hashes.clone());
        assert_eq!(text, "000102030405060708090a0bf0f1f2f3f4f5f6f7f8f9fafb");
        assert_eq!(BlockHashes::try_from(text.clone()), Ok(hashes));
        assert_eq!(text[24..].parse(), Ok(hash(0xf0)));
        for wrong in ["", "0", &text[1..], &format!("{text}\u{1b}"), "+00102030405060708090a0b", &text.repeat(81)] {
            assert!(BlockHashes::try_from(wrong.to_owned()).is_err(), "{wrong}");
        }
        assert_eq!(BlockHashes::new(vec![hash(1); MAX_HASHED_BLOCKS + 1]), None);
    }
}
