//! Numbers of a few bits in little-endian words of 32.

/// Word `number` of packed numbers.
pub(super) fn word(words: &[[u8; 4]], number: usize) -> u32 {
    u32::from_le_bytes(words[number])
}

/// The largest number of so many bits, one to 31.
pub(super) fn mask(bits: u32) -> u32 {
    (1 << bits) - 1
}

/// Number `number` of a run in which they follow each other without gaps, so that one of three bits may begin in one word and end in the
/// next. `word` gives the words of the run.
pub(super) fn in_run(bits: u32, number: usize, word: impl Fn(usize) -> u32) -> u32 {
    let first = number * bits as usize;
    let (at, shift) = (first / 32, (first % 32) as u32);
    let low = word(at) >> shift;
    let high = if shift + bits > 32 { word(at + 1) << (32 - shift) } else { 0 };
    (low | high) & mask(bits)
}

/// Widens the numbers of a run in order. `word` gives the words of the run, each of which is asked for once if numbers end with words.
pub(super) fn widen_run(bits: u32, values: &mut [f32], word: impl Fn(usize) -> u32) {
    if !32_u32.is_multiple_of(bits) {
        return values.iter_mut().enumerate().for_each(|(n, value)| *value = in_run(bits, n, &word) as f32);
    }
    for (at, values) in values.chunks_mut((32 / bits) as usize).enumerate() {
        let mut word = word(at);
        for value in values {
            *value = (word & mask(bits)) as f32;
            word >>= bits;
        }
    }
}
