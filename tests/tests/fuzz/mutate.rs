//! Damage to valid inputs.

/// Numbers at which something often changes.
const NUMBERS: [u64; 14] = [
    0,
    1,
    2,
    7,
    64,
    127,
    255,
    1023,
    4096,
    0x7fff_ffff,
    0x8000_0000,
    0xffff_ffff,
    0x7fff_ffff_ffff_ffff,
    0xffff_ffff_ffff_ffff,
];
/// What numbers and values of texts are replaced by.
const WORDS: [&str; 18] = [
    "-1",
    "0",
    "1e999",
    "-1e999",
    "18446744073709551616",
    "4294967296",
    "1.5",
    "null",
    "[]",
    "{}",
    "\"\"",
    "true",
    "NaN",
    "\\u0000",
    "..",
    "/p2p/",
    "@",
    "\u{fe}\u{1F600}",
];
/// Where the interesting part of most files is: their header.
const HEAD: usize = 1024;
/// Longest input made here: damage that repeats parts must not grow without end.
const LONGEST: usize = 64 << 10;

pub(crate) struct Mutator(u64);

impl Mutator {
    /// Equal names give equal inputs.
    pub(crate) fn new(name: &str) -> Self {
        Self(
            name.bytes()
                .fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)),
        )
    }

    /// Puts a damaged form of one of `valid` into `bytes`.
    pub(crate) fn damage(&mut self, valid: &[Vec<u8>], bytes: &mut Vec<u8>) {
        bytes.clear();
        bytes.extend_from_slice(&valid[self.below(valid.len())]);
        // Mostly little damage: what is damaged everywhere is refused at its beginning.
        let times = 1 + (self.next().trailing_zeros() as usize).min(6);
        for _ in 0..times {
            self.once(valid, bytes);
        }
    }

    fn once(&mut self, valid: &[Vec<u8>], bytes: &mut Vec<u8>) {
        let room = LONGEST.max(2 * valid.iter().map(Vec::len).max().unwrap_or(0)).saturating_sub(bytes.len());
        let at = self.place(bytes);
        match self.below(12) {
            0 | 1 => {
                if let Some(byte) = bytes.get_mut(at) {
                    *byte ^= 1 << self.below(8);
                }
            }
            2 => {
                let value = self.next() as u8;
                if let Some(byte) = bytes.get_mut(at) {
                    *byte = value;
                }
            }
            3 | 4 => self.number(bytes, at),
            5 => bytes.truncate(at),
            6 => {
                let end = (at + 1 + self.below(16)).min(bytes.len());
                bytes.drain(at.min(end)..end);
            }
            7 if room > 16 => {
                let value = self.next().to_le_bytes();
                let count = 1 + self.below(8);
                bytes.splice(at..at, value.into_iter().take(count));
            }
            8 if room > 4096 => {
                // A part of this or another input, again.
                let other = &valid[self.below(valid.len())];
                let from = self.below(other.len() + 1);
                let to = (from + self.below(256)).min(other.len());
                bytes.splice(at..at, other[from..to].iter().copied());
            }
            9 => {
                let value = self.next().to_le_bytes();
                let other = self.place(bytes);
                for (offset, value) in value.into_iter().enumerate().take(4) {
                    let source = bytes.get(other + offset).copied().unwrap_or(value);
                    if let Some(byte) = bytes.get_mut(at + offset) {
                        *byte = source;
                    }
                }
            }
            10 | 11 if room > 64 => self.word(bytes, at),
            _ => bytes.push(self.next() as u8),
        }
    }

    /// An interesting number, little-endian, of one to eight bytes, over what is there.
    fn number(&mut self, bytes: &mut [u8], at: usize) {
        let (width, small) = ([1, 2, 4, 8][self.below(4)], self.below(5) as u64);
        let number = match self.below(3) {
            0 => (bytes.len() as u64).wrapping_add(small).wrapping_sub(2),
            1 => NUMBERS[self.below(NUMBERS.len())].wrapping_add(small).wrapping_sub(2),
            _ => NUMBERS[self.below(NUMBERS.len())],
        };
        for (byte, value) in bytes.iter_mut().skip(at).zip(number.to_le_bytes().into_iter().take(width)) {
            *byte = value;
        }
    }

    /// An interesting word in the place of the number or word that is there.
    fn word(&mut self, bytes: &mut Vec<u8>, at: usize) {
        let part = |byte: &u8| byte.is_ascii_alphanumeric() || b"-+._".contains(byte);
        let start = bytes.iter().skip(at).position(part).map_or(at, |offset| at + offset);
        let length = bytes.iter().skip(start).take_while(|byte| part(byte)).count();
        let word = WORDS[self.below(WORDS.len())];
        bytes.splice(start..start + length, word.bytes());
    }

    /// A place, more often than not in the head.
    fn place(&mut self, bytes: &[u8]) -> usize {
        let end = if self.below(8) == 0 { bytes.len() } else { bytes.len().min(HEAD) };
        self.below(end + 1).min(bytes.len())
    }

    fn below(&mut self, end: usize) -> usize {
        (self.next() % end.max(1) as u64) as usize
    }

    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let bits = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let bits = (bits ^ (bits >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        bits ^ (bits >> 31)
    }
}
