//! Names of weights: what a block's tensors are in the files that a server has them from.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// Most blocks whose hashes a record has room for, beside everything else that may be in it.
pub const MAX_HASHED_BLOCKS: usize = 1024;
/// Bytes that the hashes of all blocks of a model may have together.
const ROOM: usize = 2048;
/// Bytes of a [`WeightsHash`], and the fewest that are told of one.
const WHOLE: usize = 12;
const LEAST: usize = ROOM / MAX_HASHED_BLOCKS;

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
/// In a record they are one string, the digits of one block behind those of the other. Of models with so many blocks that a record has no room for
/// whole hashes, the first bytes are told: as many for every server of a model, whatever its span, so that they can be compared. The string then begins
/// with their number and a colon.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct BlockHashes {
    hashes: Vec<WeightsHash>,
    /// Bytes that are told of each; the others are 0.
    bytes: usize,
}

impl BlockHashes {
    /// Hashes of the blocks of a span of a model with `model_blocks` blocks. `None` if the model has more than a record has room for, or fewer than
    /// there are hashes, or if there are none.
    pub fn new(hashes: Vec<WeightsHash>, model_blocks: usize) -> Option<Self> {
        let bytes = told_bytes(model_blocks)?;
        let hashes: Vec<_> = hashes.into_iter().map(|hash| hash.cut_to(bytes)).collect();
        (1..=model_blocks).contains(&hashes.len()).then_some(Self { hashes, bytes })
    }

    /// In the order of the blocks.
    pub fn as_slice(&self) -> &[WeightsHash] {
        &self.hashes
    }
}

/// How much of each hash the servers of a model with so many blocks tell. `None` if it has too many.
fn told_bytes(model_blocks: usize) -> Option<usize> {
    (model_blocks <= MAX_HASHED_BLOCKS).then(|| (ROOM / model_blocks.max(1)).clamp(LEAST, WHOLE))
}

impl WeightsHash {
    /// What servers of a model with so many blocks tell of it; all of it where they tell nothing.
    #[must_use]
    pub fn as_told(self, model_blocks: usize) -> Self {
        told_bytes(model_blocks).map_or(self, |bytes| self.cut_to(bytes))
    }

    fn cut_to(self, bytes: usize) -> Self {
        Self(std::array::from_fn(|at| if at < bytes { self.0[at] } else { 0 }))
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
        read(text.as_bytes(), WHOLE).ok_or_else(|| wrong(text))
    }
}

/// The first bytes of a hash; the others are 0.
fn read(text: &[u8], bytes: usize) -> Option<WeightsHash> {
    let digits: Option<Vec<u8>> = text.iter().map(|c| Some(char::from(*c).to_digit(16)? as u8)).collect();
    let digits = digits.filter(|digits| digits.len() == 2 * bytes)?;
    let mut hash = [0; WHOLE];
    hash.iter_mut().zip(digits.as_chunks::<2>().0).for_each(|(byte, [high, low])| *byte = high << 4 | low);
    Some(WeightsHash(hash))
}

fn wrong(text: &str) -> WeightsHashError {
    WeightsHashError(text.chars().filter(|c| !c.is_control()).take(32).collect())
}

impl TryFrom<String> for BlockHashes {
    type Error = WeightsHashError;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        let (bytes, digits) = match text.split_once(':') {
            None => (WHOLE, text.as_str()),
            Some((bytes, digits)) => (bytes.parse().map_err(|_| wrong(&text))?, digits),
        };
        if !(LEAST..=WHOLE).contains(&bytes) || digits.len() > 2 * ROOM {
            return Err(wrong(&text));
        }
        let hashes = digits.as_bytes().chunks(2 * bytes).map(|part| read(part, bytes)).collect::<Option<Vec<_>>>();
        let hashes = hashes.filter(|hashes| !hashes.is_empty()).ok_or_else(|| wrong(&text))?;
        Ok(Self { hashes, bytes })
    }
}

impl From<BlockHashes> for String {
    fn from(BlockHashes { hashes, bytes }: BlockHashes) -> Self {
        let start = if bytes == WHOLE { Self::new() } else { format!("{bytes}:") };
        let of_hash = |hash: WeightsHash| hash.to_string().chars().take(2 * bytes).collect::<Self>();
        hashes.into_iter().fold(start, |text, hash| text + &of_hash(hash))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hashes_round_trip_and_nonsense_is_refused() {
        let hash = |first| WeightsHash(std::array::from_fn(|at| first + at as u8));
        let hashes = BlockHashes::new(vec![hash(0), hash(0xf0)], 80).unwrap();
        let text = String::from(hashes.clone());
        assert_eq!(text, "000102030405060708090a0bf0f1f2f3f4f5f6f7f8f9fafb");
        assert_eq!(BlockHashes::try_from(text.clone()), Ok(hashes));
        assert_eq!(text[24..].parse(), Ok(hash(0xf0)));
        for wrong in ["", "0", &text[1..], &format!("{text}\u{1b}"), "+00102030405060708090a0b", &text.repeat(86)] {
            assert!(BlockHashes::try_from(wrong.to_owned()).is_err(), "{wrong}");
        }
        assert_eq!(BlockHashes::new(vec![hash(1); MAX_HASHED_BLOCKS + 1], MAX_HASHED_BLOCKS + 1), None);
        assert_eq!((BlockHashes::new(Vec::new(), 80), BlockHashes::new(vec![hash(1); 3], 2)), (None, None));
    }

    #[test]
    fn of_many_blocks_each_hash_is_told_in_part_and_as_much_of_it_by_every_server() {
        let hash = |first| WeightsHash(std::array::from_fn(|at| first + at as u8));
        for (blocks, bytes) in [(1, 12), (170, 12), (171, 11), (320, 6), (1000, 2), (MAX_HASHED_BLOCKS, 2)] {
            let all = BlockHashes::new(vec![hash(7); blocks], blocks).unwrap();
            let one = BlockHashes::new(vec![hash(7)], blocks).unwrap();
            assert_eq!(all.as_slice()[blocks - 1], one.as_slice()[0]);
            assert_eq!(one.as_slice()[0], hash(7).as_told(blocks), "what a user knows is compared with it");
            assert!((0..12).all(|at| (one.as_slice()[0].0[at] != 0) == (at < bytes)), "{blocks}: {one:?}");
            let text = String::from(all.clone());
            assert!(text.len() <= 2 * ROOM + 3, "{blocks}: {}", text.len());
            assert_eq!((text.contains(':'), BlockHashes::try_from(text)), (bytes < 12, Ok(all)));
        }
        assert_eq!(String::from(BlockHashes::new(vec![hash(1), hash(2)], 400).unwrap()), "5:01020304050203040506");
        for wrong in
            ["5:", "5:0102030405f", "1:0101", "13:00", "-5:0102030405", ":", "5:01020304050x03040506", "2:0102:0102"]
        {
            assert!(BlockHashes::try_from(wrong.to_owned()).is_err(), "{wrong}");
        }
        assert!(BlockHashes::try_from(format!("2:{}", "0".repeat(2 * ROOM + 4))).is_err());
    }
}
