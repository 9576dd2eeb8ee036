//! What a session takes, by its length.

use petals_model::PAGE_TOKENS;

/// What a session's memory follows from.
#[derive(Debug, Clone)]
pub(crate) struct SessionMemory {
    /// Most bytes of a sequence of up to [`PAGE_TOKENS`] positions, of up to twice as many, and so on; the last one is of the longest.
    of_sequence: Vec<u64>,
    /// Bytes of its tables.
    fixed: u64,
}

impl SessionMemory {
    /// Of a session whose sequences have up to `longest` positions; `bytes` says what a sequence takes at most by its positions.
    pub(crate) fn new(longest: u64, fixed: u64, bytes: impl Fn(u64) -> u64) -> Self {
        let mut of_sequence = Vec::new();
        let mut positions = PAGE_TOKENS as u64;
        while positions < longest {
            of_sequence.push(bytes(positions));
            positions = positions.saturating_mul(2);
        }
        of_sequence.push(bytes(longest));
        Self { of_sequence, fixed }
    }

    /// Bytes for so many sequences of up to so many positions: by doublings, so that a session grows a few times only.
    pub(crate) fn bytes(&self, positions: u64, sequences: u32) -> u64 {
        let step = positions.div_ceil(PAGE_TOKENS as u64).next_power_of_two().trailing_zeros() as usize;
        let of_sequence = self.of_sequence.get(step).or(self.of_sequence.last()).copied().unwrap_or(0);
        of_sequence.saturating_mul(u64::from(sequences)).saturating_add(self.fixed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_grows_by_doublings_up_to_the_longest() {
        let memory = SessionMemory::new(200, 7, |positions| positions);
        let bytes = [0, 1, 64, 65, 128, 129, 200, 10_000].map(|positions| memory.bytes(positions, 2));
        assert_eq!(bytes, [135, 135, 135, 263, 263, 407, 407, 407]);
        let short = SessionMemory::new(5, 0, |positions| positions);
        assert_eq!([0, 1, 5].map(|positions| short.bytes(positions, 1)), [5; 3]);
    }
}
