//! Foreseeing that a text goes on as it did before.

/// Tokens at the end of a text that are looked for, the longest first: the more of them, the surer it goes on alike.
const LONGEST: usize = 3;

/// Where the text was alike, and how alike.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Found {
    /// Where it went on.
    continuation: usize,
    /// Tokens in front of it that are also those at the end of the text, at most [`LONGEST`].
    pub(super) alike: usize,
}

/// The latest place where the text had its last tokens before.
pub(super) fn find(text: &[u32]) -> Option<Found> {
    (1..=LONGEST.min(text.len().saturating_sub(1))).rev().find_map(|alike| {
        let end = &text[text.len() - alike..];
        let at = text[..text.len() - 1].windows(alike).rposition(|window| window == end)?;
        Some(Found { continuation: at + alike, alike })
    })
}

impl Found {
    /// `count` tokens that follow if the text goes on alike. Where it repeats itself without a break, so do they.
    pub(super) fn continuation(self, text: &[u32], count: usize) -> Vec<u32> {
        let period = text.len() - self.continuation;
        (0..count).map(|at| text[self.continuation + at % period]).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn foreseen(text: &[u32], count: usize) -> Option<(usize, Vec<u32>)> {
        find(text).map(|found| (found.alike, found.continuation(text, count)))
    }

    #[test]
    fn the_longest_match_counts_and_of_equals_the_latest() {
        assert_eq!(foreseen(&[1, 2, 3, 9, 5, 3, 7, 1, 2, 3], 2), Some((3, vec![9, 5])));
        assert_eq!(foreseen(&[3, 9, 5, 3, 7, 4, 3], 2), Some((1, vec![7, 4])));
        assert_eq!(foreseen(&[1, 2, 3], 2), None);
        assert_eq!(foreseen(&[1], 2), None);
        assert_eq!(foreseen(&[], 2), None);
    }

    #[test]
    fn repetitions_are_foreseen_to_go_on() {
        assert_eq!(foreseen(&[8, 1, 2, 1, 2, 1, 2], 5), Some((3, vec![1, 2, 1, 2, 1])));
        assert_eq!(foreseen(&[4, 4], 3), Some((1, vec![4, 4, 4])));
    }
}
